"""The reference decoder of ddsim in PyTorch: record, profile, decode, validate, train drafters.

``model`` holds the models as their files have them and one plain forward pass, ``engine`` the fast one. ``decode`` answers prompts with
the engine, ``generate`` without drafts; ``record`` writes traces, ``profile`` measures costs, ``validate`` compares replay with decoding,
``published`` is the loop that papers publish, for comparison, ``training`` makes drafters. GPU self-tests stand in ``reference/tools``.
"""
