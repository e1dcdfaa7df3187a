"""Training a DFlash drafter on text that its target writes.

``instructions`` makes up prompts, ``data`` has the target answer them, ``trainer`` trains, ``processes`` is one process a GPU, ``run``
does all of it and continues what was stopped.

May use: ddsim.errors, ddsim.files, generate, limits, model.
"""
