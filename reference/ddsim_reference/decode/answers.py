"""What decoding tells: rounds, events and whole answers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one request.

    Attributes
    ----------
    position : int
        p: the round's root is the answer's token p.
    budget : int
        Nodes verified, the root not counted.
    accepted : int
        Drafted tokens that were committed.
    committed : int
        Tokens committed: one more than accepted, unless the answer ended within the tree.
    """

    position: int
    budget: int
    accepted: int
    committed: int


@dataclass(frozen=True, slots=True)
class Event:
    """What a request has just committed.

    Attributes
    ----------
    index : int
        Which prompt.
    tokens : list of int
        In order.
    accepted : int
        How many of them, from the first, the drafter had proposed.
    round : Round or None
        None for the first token, which the prompt itself yields.
    done : bool
        The answer is complete.
    """

    index: int
    tokens: list[int]
    accepted: int
    round: Round | None
    done: bool


@dataclass
class Decoded:
    """An answer and how it came about.

    Attributes
    ----------
    tokens : list of int
        The answer, its stop token included.
    rounds : list of Round
        In order; for autoregressive decoding one a token after the first.
    seconds : dict of str to float
        ``ttft``: from the call to the first token, answers that came before included; ``prefill``: prompt and first token alone.
        ``decode``: from the first token to the last, a round's time shared equally by the requests in it; tokens a second are
        ``(len(tokens) - 1) / seconds["decode"]``. With ``timings``, the parts of ``decode``: ``draft``, ``verify``, ``commit`` (the
        device's), ``tree`` (budget, tree, packing) and ``host`` (the rest).
    """

    tokens: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
