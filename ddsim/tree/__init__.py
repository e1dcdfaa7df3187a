"""Draft trees: what a drafter proposes, and the best tree of it for a node budget.

``kernels`` builds trees of rows of marginals in Numba, ``checked`` looks at the rows first, ``rows`` runs both over many positions,
``trees`` builds one tree and its ``masks``. A ``lattice`` knows the token before: ``lattice_kernels`` finds its best nodes,
``lattice_tables`` what these come to. ``proposal`` is the seam: what a drafter proposes at every position, of whatever kind, becomes
gains and true-path ranks there; ``lattices`` are those that know their path. ``forests`` merges the gains of requests that are
verified together.

May use: arrays, errors, jit, tables, text, threads.
"""
