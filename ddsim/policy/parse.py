"""Policies by the names that command lines and tables use."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from ddsim.errors import DdsimError
from ddsim.policy.batch import FairRatio, Share, Uniform
from ddsim.policy.contract import Policy
from ddsim.policy.rules import (
    Autoregressive,
    BestFixed,
    CaDDTree,
    DDTree,
    DFlash,
    GreedySteps,
    Hindsight,
    LongRun,
    RoundRatio,
    _Rule,
)


def policy_of(policy: Any, *, joint: bool = False) -> Policy:
    """A policy from what a caller gave: an object, or its name as `parse_policy` takes it.

    Raises
    ------
    DdsimError
        Neither, or a policy without a name, or with that of another policy of ddsim.
    """
    if isinstance(policy, str):
        return parse_policy(policy, joint=joint)
    if isinstance(policy, type):
        raise DdsimError(f"policies: {policy.__name__} is a class; give an object, as in {policy.__name__}()")
    if not isinstance(policy, Policy):
        raise DdsimError(
            f"policies: expected a policy or its name, got {type(policy).__name__}; derive a policy of your own from ddsim.Policy"
        )
    if not isinstance(policy.name, str) or not policy.name.strip():
        raise DdsimError(f"policy {type(policy).__name__}: its name must be a text, is {policy.name!r:.60}")
    if policy.name in _KNOWN and type(policy) is not _KNOWN[policy.name]:
        raise DdsimError(f"policy {type(policy).__name__}: {policy.name} is ddsim's own; give yours another name")
    return policy


def policies_of(policies: Any, *, joint: bool = False) -> list[Policy]:
    """Policies from what a caller gave, one or several (`policy_of`), each name once.

    Examples
    --------
    >>> policies_of("CaDDTree"), policies_of([DDTree(8), "ar"])
    ([<CaDDTree>], [<DDTree(8)>, <AR>])
    """
    if isinstance(policies, (str, Policy, type)):
        policies = [policies]
    try:
        found = [policy_of(policy, joint=joint) for policy in policies]
    except TypeError:
        if isinstance(policies, Iterable):
            raise
        raise DdsimError(f"policies: expected policies or their names, got {type(policies).__name__}") from None
    names = [policy.name for policy in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DdsimError(f"two policies are called {twice[0]!r}; give each a name of its own")
    return found


_KNOWN: dict[str, Callable[..., Policy]] = {
    "AR": Autoregressive,
    "DFlash": DFlash,
    "DDTree": DDTree,
    "CaDDTree": CaDDTree,
    "GreedySteps": GreedySteps,
    "RoundRatio": RoundRatio,
    "LongRun": LongRun,
    "BestFixed": BestFixed,
    "Hindsight": Hindsight,
}


_SETTINGS: dict[str, dict[str, Callable[[str], Any]]] = {
    "DDTree": {"budget": int},
    "CaDDTree": {"fill": bool},
    "LongRun": {"price": float, "online": bool, "memory": float},
}


LONGEST_NAME = 200  # characters: each level of Share:Share:... is a call deeper


JOINT = ("FairRatio", "Share", "Uniform")  # of ddsim.joint: policies for requests that are decoded together


def parse_policy(text: str, *, joint: bool = False) -> Policy:
    """A policy from its name and settings as typed on a command line.

    Parameters
    ----------
    text : str
        ``Name``, ``Name:value`` or ``Name:key=value,...``; the names that tables show (``DDTree(64)``, ``LongRun online``,
        ``RoundRatio share``) are understood too. Names count whatever their case.
    joint : bool
        Whether it is for requests that are decoded together: then ``FairRatio``, ``Share:RULE`` and ``Uniform:RULE`` are known
        too, where RULE is CaDDTree, GreedySteps, RoundRatio or LongRun with its settings.

    Raises
    ------
    DdsimError
        Unknown name (the line lists the known ones), or settings that the policy doesn't take.

    Examples
    --------
    >>> [parse_policy(text).name for text in ("ddtree:64", "DDTree(8)", "CaDDTree:fill", "LongRun:price=500", "LongRun:online")]
    ['DDTree(64)', 'DDTree(8)', 'CaDDTree filled', 'LongRun', 'LongRun online']
    >>> [parse_policy(text, joint=True).name for text in ("Share:RoundRatio", "uniform:LongRun:500", "FairRatio")]
    ['RoundRatio share', 'LongRun uniform', 'FairRatio']
    """
    if len(text) > LONGEST_NAME:
        raise DdsimError(f"unknown policy {text[:40]!r}… of {len(text):,} characters; see --help for names")
    text = re.sub(r"(?i)^\s*(\S.*?)\s+(share|uniform)\s*$", r"\2:\1", text)
    text = re.sub(r"(?i)^\s*(longrun)\s+online\s*$", r"\1:online", text)
    text = re.sub(r"(?i)^\s*(caddtree)\s+filled\s*$", r"\1:fill", text)
    match = re.fullmatch(r"\s*([A-Za-z]+)\s*(?::(.*)|\((.*)\))?\s*", text)
    name = match.group(1).lower() if match else ""
    known = {key.lower(): key for key in (*_KNOWN, *JOINT)} | {"autoregressive": "AR"}
    if match is None or name not in known:
        names = ", ".join([key for key in _KNOWN if key != "Hindsight"] + [*JOINT] if joint else _KNOWN)
        raise DdsimError(f"unknown policy {text!r}; known: {names} (a budget is given as DDTree:63)")
    label = known[name]
    settings = (match.group(2) or match.group(3) or "").strip()
    if label in JOINT:
        if not joint:
            raise DdsimError(f"policy {text!r}: {label} is for requests that are decoded together, as by ddsim serve")
        return _parse_joint(text, label, settings)
    takes = _SETTINGS.get(label, {})
    values: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in settings.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            first = next((key for key, kind in takes.items() if kind is not bool), "")
            key, value = (part, "true") if takes.get(part) is bool else (first, part)
        if key not in takes:
            raise DdsimError(f"policy {text!r}: {label} takes {', '.join(takes) or 'no settings'}")
        try:
            values[key] = {"true": True, "false": False}[value.lower()] if takes[key] is bool else takes[key](value)
        except (KeyError, ValueError):
            raise DdsimError(f"policy {text!r}: {key} can't be {value!r}") from None
    if label == "DDTree" and "budget" not in values:
        raise DdsimError(f"policy {text!r}: DDTree needs a budget, as in DDTree:63")
    return _KNOWN[label](**values)


def _parse_joint(text: str, label: str, settings: str) -> Policy:
    pass

    if label == "FairRatio":
        if settings:
            raise DdsimError(f"policy {text!r}: FairRatio takes no settings")
        return FairRatio()
    if not settings:
        raise DdsimError(f"policy {text!r}: {label} needs a rule for one request, as in {label}:RoundRatio")
    rule = parse_policy(settings, joint=True)
    if not isinstance(rule, _Rule):
        raise DdsimError(
            f"policy {text!r}: {label} takes CaDDTree, GreedySteps, RoundRatio or LongRun, not {rule.name}"
        )
    return Share(rule) if label == "Share" else Uniform(rule)
