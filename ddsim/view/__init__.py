"""What people look at: figures, the report, and files for other tools.

``style`` dresses every figure, ``trees``, ``budgets``, ``costs``, ``comparisons`` and ``checks`` draw, ``report`` writes the page, ``export`` tables.

May use: arrays, cost, errors, files, policy, replay, text, trace, tree.
"""
