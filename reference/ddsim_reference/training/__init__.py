"""Training a DFlash drafter on text that its target writes.

``instructions`` makes up prompts (of ``templates`` in ``prompts``; ``instructions_code`` and ``functions`` those about code,
``instructions_text`` the others), ``data`` has the target answer them, ``trainer`` trains with
``batches``, ``attention``, ``loss`` and ``optimiser``, ``processes`` is one process a GPU, ``run`` does all of it and continues what was stopped.

May use: ddsim.errors, ddsim.files, generate, limits, model.
"""
