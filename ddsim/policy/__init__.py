"""Policies: who decides, each round, how many nodes to verify.

``contract`` is what a policy must be, ``choose`` scans budgets of one round, ``rules`` holds the shipped policies, ``batch`` those for requests
that are verified together, ``walk`` follows the true tokens, ``price`` solves for a price, ``parse`` reads names.

May use: arrays, cost, errors, jit, limits, text, threads, trace, tree.
"""
