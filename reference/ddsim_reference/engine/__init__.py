"""The fast forward pass: static buffers, CUDA graphs, tree attention, fused kernels.

``engine`` is what a decode loop drives, ``buckets`` what a pass takes, ``graphs`` its launches captured, ``layers`` one pass over
target or drafter, ``attention`` the tree attention, ``kernels`` what stands between the products, ``products`` the products. Every
kernel has a twin in plain PyTorch, and sums what belongs to a token in one order, whoever shares its pass.

May use: ddsim.errors, limits, model.
"""
