"""The command line: ``ddsim demo``, ``plan``, ``replay`` and the others.

``app`` holds what commands share, ``console`` what reaches the terminal, ``answers``, ``curves`` and ``models`` the commands, ``main`` the
entry point and its exit codes, ``interrupts`` what Ctrl-C does.

May use: bench, cost, demo, errors, files, limits, policy, replay, text, trace, view.
"""
