"""Policies: who decides, each round, how many nodes to verify.

``contract`` is what a policy must be and can say of itself, ``choose`` scans budgets of one round, ``batch`` hands out the nodes of a
joint round and holds the rules made for that, ``rules`` the shipped policies for one request, ``engine_rules`` those of serving engines, ``memory`` what these
carry from round to round, ``joint`` prices many joint rounds, ``walk`` follows the true tokens, ``price`` solves for a price, ``names`` says what can be typed
and ``parse`` reads it.

May use: arrays, cost, errors, jit, limits, tables, text, threads, trace.
"""
