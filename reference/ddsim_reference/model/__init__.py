"""Targets and drafters as they are: files, shapes, one plain forward pass, sampling, prompts.

``config`` holds shapes, ``fields``, ``formats``, ``checkpoint`` and ``gguf`` read and write files, ``device`` says where weights go, ``forward`` is
the plain forward pass, ``heads`` conditions drafts on the token before, ``sampling`` chooses tokens, ``rows`` reads files and data sets, ``workloads`` prompts and ``logs`` answers that are given,
``widen`` makes a small pair as dear as a big one, ``shapes`` makes one of a published size at random.

May use: ddsim.errors, ddsim.files, ddsim.text, limits.
"""
