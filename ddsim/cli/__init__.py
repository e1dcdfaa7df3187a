"""The command line: ``ddsim demo``, ``plan``, ``replay`` and the others.

``app`` and ``options`` hold what commands share, ``console`` what reaches the terminal, ``answers``, ``curves`` and ``models`` the commands, ``main`` the
entry point and its exit codes, ``interrupts`` what Ctrl-C does.

May use: bench, bench_serving, cost, demo, errors, files, limits, policy, replay, tables, text, trace, view.
"""
