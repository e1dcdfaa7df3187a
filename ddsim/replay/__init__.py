"""Replay: exact answers from a recording and costs.

``replay`` runs policies over a trace, ``shown`` says what answers print, ``bootstrap`` gives intervals, ``plan`` recommends, ``serving`` decodes batches, ``sweep`` many of
them, ``contest`` tells which rule wins where, ``compare`` puts two of a kind beside each other, ``maps`` answers by
batch size and context.

May use: arrays, cluster, cost, errors, files, jit, limits, policy, tables, text, threads, trace.
"""
