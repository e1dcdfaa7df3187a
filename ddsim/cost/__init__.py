"""Costs: from measured latencies to the seconds of a round.

``profile`` holds samples, ``shapes`` the curves that can be fitted, ``interpolation`` joins them between contexts and batches, ``fit`` picks
the kind that predicts best, ``model`` answers questions, ``table`` prices budgets for the solvers, ``shown`` says what is printed.

May use: arrays, errors, files, limits, tables, text.
"""
