"""Recordings: traces in files and in memory, the table of rounds that they come down to, and calibration.

``schema`` says what a trace holds, ``checks`` what its rows must be, ``folded`` how lattices and trees are kept, ``reader`` and ``writer``
move shards, ``together`` for several processes, ``trace`` is the recording that users hold, ``memory`` what they pass to make one. ``rounds`` is the table of rounds (gains
and true-path ranks) that replay reads, ``cache`` keeps it. ``reliability`` measures the drafter's probabilities, ``calibration`` corrects
them, ``path`` by the token before. ``shared`` sends a trace to other processes by reference.

May use: arrays, cluster, errors, files, jit, limits, tables, text, threads, tree.
"""
