"""Policies by what is typed for them: Python calls, older spellings, and classes of a user's own."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable
from importlib import import_module, invalidate_caches
from pathlib import Path
from typing import Any

from ddsim.errors import DdsimError
from ddsim.policy import batch, engine_rules, rules
from ddsim.policy.contract import Policy, knows_batches

_KNOWN: dict[str, type[Policy]] = {
    kind.name: kind
    for module in (rules, batch, engine_rules)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, Policy) and kind.__module__ == module.__name__ and name[0] != "_"
}
"""Every policy that ddsim has, by the name that is typed for it."""

_SPELLED = {spelt.lower(): name for name, kind in _KNOWN.items() for spelt in (name, kind.__name__)}
_KINDS: dict[str, Any] = {
    "int": int, "bool": bool, "float": float, "float | None": float, "list[tuple[int, int, int]]": ast.literal_eval,
    "Slots | None": ast.literal_eval,
}  # fmt: skip
"""How settings that can be typed are read, by how they are declared."""

LONGEST_NAME = 800  # characters: each level of Share(Share(... is a call deeper


def kind_of(name: str) -> type[Policy]:
    """The class that a policy's name in a table stands for, to be asked what it can; Policy itself where it isn't known.

    Examples
    --------
    >>> kind_of("AR").drafts, kind_of("Hindsight").hindsight, kind_of("Half") is Policy
    (False, True, True)
    """
    return _KNOWN.get(name, Policy)


def policy_of(policy: Any, *, joint: bool = False) -> Policy:
    """A policy from what a caller gave: an object, or its name as `parse_policy` takes it.

    For requests that are decoded together (``joint``), a rule that knows lone requests only decides by `Share`.

    Raises
    ------
    DdsimError
        Neither, or a policy without a name, or with that of another policy of ddsim.
    """
    if isinstance(policy, str):
        policy = parse_policy(policy, joint=joint)
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
    return _for_batches(policy) if joint else policy


def _for_batches(policy: Policy) -> Policy:
    """A rule that knows lone requests only decides by its requests' shares."""
    return batch.Share(policy) if policy.adaptive and not knows_batches(policy) else policy


def policies_of(policies: Any, *, joint: bool = False) -> list[Policy]:
    """Policies from what a caller gave, one or several (`policy_of`), each once.

    Examples
    --------
    >>> policies_of("CaDDTree"), policies_of(["DDTree(8)", "ar"])
    ([CaDDTree()], [DDTree(8), Autoregressive()])
    """
    if isinstance(policies, (str, Policy, type)):
        policies = [policies]
    if not isinstance(policies, Iterable):
        raise DdsimError(f"policies: expected policies or their names, got {type(policies).__name__}")
    found = [policy_of(parse_policy(policy, joint=joint) if isinstance(policy, str) else policy) for policy in policies]
    for shown in (found, [_for_batches(policy) for policy in found] if joint else []):
        for i, policy in enumerate(shown):
            if any(same_policy(policy, other) for other in shown[:i]):
                raise DdsimError(f"two policies are called {policy.name!r} and are the same; give it once")
    return shown or found


def same_policy(one: Policy, other: Policy) -> bool:
    """Whether two policies decide alike for all that can be told: one object, or made by the same call.

    Examples
    --------
    >>> from ddsim.policy.rules import DDTree, LongRun
    >>> same_policy(DDTree(8), DDTree(8)), same_policy(LongRun(), LongRun(500))
    (True, False)
    """
    if one is other:
        return True
    said = repr(one)
    alike = type(one) is type(other) and one.name == other.name and one.calibration is other.calibration
    return alike and said == repr(other) and not said.startswith("<")


def parse_policy(text: str, *, joint: bool = False) -> Policy:
    """A policy from what was typed, a call in Python: ``DDTree(64)``, ``LongRun(price=500)``, ``Share(RoundRatio())``.

    A policy's ``repr`` is such a call. Nothing is evaluated: settings are literals and policies.

    Parameters
    ----------
    text : str
        A name with its settings in brackets; without settings the brackets may go, and names count in any case.
        ``module:Class`` or ``module:Class(settings)`` is a class of your own, its module in the working directory or on the
        path. Older spellings are read too: ``DDTree:64``, ``LongRun:online``, ``Share:LongRun:500``, and what tables show
        (``LongRun online``, ``RoundRatio share``).
    joint : bool
        Whether it is for requests that are decoded together: then ``FairRatio``, ``Share(RULE)`` and ``Uniform(RULE)`` are known
        too, where RULE is CaDDTree, GreedySteps, RoundRatio, LongRun or a rule of your own, with its settings.

    Raises
    ------
    DdsimError
        Unknown name (the line lists the known ones), a module or class that isn't there, or settings that the policy doesn't take.

    Examples
    --------
    >>> [parse_policy(text) for text in ("ddtree:64", "DDTree(8)", "CaDDTree:fill", "LongRun(price=500)", "LongRun online")]
    [DDTree(64), DDTree(8), CaDDTree(fill=True), LongRun(price=500), LongRun(online=True)]
    >>> [parse_policy(text, joint=True) for text in ("Share:RoundRatio", "uniform:LongRun:500", "FairRatio")]
    [Share(RoundRatio()), Uniform(LongRun(price=500)), FairRatio()]
    """
    if len(text) > LONGEST_NAME:
        raise DdsimError(f"unknown policy {text[:40]!r}… of {len(text):,} characters; see --help for names")
    try:
        tree = ast.parse(_as_call(text.strip()), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise _unknown(text, joint) from None
    return _built(tree, text, joint)


def _as_call(text: str) -> str:
    """An older spelling as a call; what is none stays."""
    shown = re.fullmatch(r"(?is)(.*\S)\s+(share|uniform|online|filled)(\(.*\))?", text)
    if shown and shown.group(2).lower() in ("share", "uniform") and not shown.group(3):
        return f"{shown.group(2)}({_as_call(shown.group(1))})"
    chained = re.fullmatch(r"(?is)(.*\S)\s+on chains", text)
    if chained:
        return f"OnChain({_as_call(chained.group(1))})"
    if shown and shown.group(1).lower() == "longrun" and shown.group(2).lower() == "online":
        memory = f", memory={shown.group(3)[1:-1]}" if shown.group(3) else ""
        return f"LongRun(online=True{memory})"
    if shown and shown.group(1).lower() == "caddtree" and shown.group(2).lower() == "filled":
        return "CaDDTree(fill=True)"
    named = re.fullmatch(r"(?s)([A-Za-z]+)\s*(?::(.*)|\((.*)\))", text)
    if named and named.group(1).lower() in _SPELLED:
        kind, settings = _KNOWN[_SPELLED[named.group(1).lower()]], (named.group(2) or named.group(3) or "").strip()
        if _takes_a_policy(kind):
            return f"{named.group(1)}({_as_call(settings)})"
        flags = [key for key, of in _settings_of(kind).items() if of is bool]
        if not flags:
            return f"{named.group(1)}({settings})"
        parts = [part.strip() for part in settings.split(",") if part.strip()]
        parts = [f"{part}=True" if part in flags else part for part in parts]  # LongRun:online
        return f"{named.group(1)}({', '.join(sorted(parts, key=lambda part: '=' in part))})"
    return re.sub(r"\b([A-Za-z_][\w.]*):([A-Za-z_]\w*)", r"\1.\2", text)  # a class in a module, as Python writes it


def _unknown(text: str, joint: bool) -> DdsimError:
    names = [name for name, kind in _KNOWN.items() if (not kind.hindsight if joint else not kind.for_batches)]
    return DdsimError(f"unknown policy {text!r}; known: {', '.join(names)} (a budget: DDTree:63), or module:Class")


def _built(node: ast.expr, text: str, joint: bool) -> Policy:
    """The policy that a parsed call stands for."""
    target, given, named = node, [], []
    if isinstance(node, ast.Call):
        target, given, named = node.func, node.args, node.keywords
    if isinstance(target, ast.Attribute):
        return _own(ast.unparse(target), given, named, text)
    if not isinstance(target, ast.Name) or target.id.lower() not in _SPELLED:
        raise _unknown(text, joint)
    name = _SPELLED[target.id.lower()]
    kind = _KNOWN[name]
    if kind.for_batches and not joint:
        raise DdsimError(f"policy {text!r}: {name} is for requests that are decoded together, as by ddsim serve")
    if _takes_a_policy(kind):
        return kind(_rule(name, given, named, text, joint))  # type: ignore[call-arg]
    takes = _settings_of(kind)
    values: dict[str, Any] = {}
    for key, value in [(None, value) for value in given] + [(keyword.arg, keyword.value) for keyword in named]:
        said = ast.unparse(value)
        if key is None:
            key = next((key for key, kind in takes.items() if kind is not bool), "")
        if key not in takes:
            raise DdsimError(f"policy {text!r}: {name} takes {', '.join(takes) or 'no settings'}")
        try:
            values[key] = {"true": True, "false": False}[said.lower()] if takes[key] is bool else takes[key](said)
        except (KeyError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise DdsimError(f"policy {text!r}: {key} can't be {said!r}") from None
    for key, parameter in inspect.signature(kind).parameters.items():
        if parameter.default is parameter.empty and key not in values:
            example = "Schedule([(1, 4, 15), (5, 16, 7)])" if kind.scheduled else f"{name}:63"
            raise DdsimError(f"policy {text!r}: {name} needs {'' if kind.scheduled else 'a '}{key}, as in {example}")
    return kind(**values)


def _settings_of(kind: type[Policy]) -> dict[str, Any]:
    """What can be typed for one of ddsim's own policies."""
    parameters = inspect.signature(kind).parameters.items()
    return {key: _KINDS[parameter.annotation] for key, parameter in parameters if parameter.annotation in _KINDS}


def _takes_a_policy(kind: type[Policy]) -> bool:
    return "policy" in inspect.signature(kind).parameters


def _rule(name: str, given: list[ast.expr], named: list[ast.keyword], text: str, joint: bool) -> Policy:
    """The rule for one request that `Share` or `Uniform` carries over to a batch, or the rule that `OnChain` carries over to chains."""
    if len(given) + len(named) != 1:
        raise DdsimError(f"policy {text!r}: {name} needs a rule for one request, as in {name}:RoundRatio")
    inner = given[0] if given else named[0].value
    rule = _built(inner, ast.unparse(inner), joint or name != "OnChain")
    if rule.chains or not rule.adaptive or (rule.for_batches and name != "OnChain"):
        rules = [
            key
            for key, kind in _KNOWN.items()
            if kind.adaptive and not (kind.for_batches or kind.chains or kind.hindsight)
        ]
        raise DdsimError(f"policy {text!r}: {name} takes {', '.join(rules[:-1])} or {rules[-1]}, not {rule.name}")
    return rule


def _own(dotted: str, given: list[ast.expr], named: list[ast.keyword], text: str) -> Policy:
    """An object of a user's own class ``module.Class``."""
    where, _, name = dotted.rpartition(".")
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    invalidate_caches()
    try:
        module = import_module(where)
    except ModuleNotFoundError as error:
        missing = error.name or where
        if where == missing or where.startswith(f"{missing}."):
            raise DdsimError(
                f"policy {text!r}: there is no module {missing} in the working directory or on Python's path"
            ) from error
        raise DdsimError(f"policy {text!r}: importing {where} failed: {error}") from error
    except Exception as error:
        raise DdsimError(f"policy {text!r}: importing {where} failed: {_said(error)}") from error
    finally:
        sys.path.remove(folder)
    kind = getattr(module, name, None)
    if not (isinstance(kind, type) and issubclass(kind, Policy)):
        there = [
            key
            for key, of in vars(module).items()
            if isinstance(of, type) and issubclass(of, Policy) and of is not Policy
        ]
        has = f"it has {', '.join(there)}" if there else "it has none"
        raise DdsimError(f"policy {text!r}: {name} in module {where} is no class derived from ddsim.Policy; {has}")
    arguments = [_setting(value, text) for value in given]
    settings = {keyword.arg: _setting(keyword.value, text) for keyword in named if keyword.arg}
    try:
        policy = kind(*arguments, **settings)
    except Exception as error:
        raise DdsimError(f"policy {text!r}: {where}:{name} can't be made of these settings: {_said(error)}") from error
    if (given or named) and policy.name == name:  # so that two of them have two names
        policy.name = f"{name}({', '.join([*map(ast.unparse, given), *map(ast.unparse, named)])})"
    return policy


def _setting(node: ast.expr, text: str) -> Any:
    """A literal, or a policy."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return _built(node, ast.unparse(node), True)


def _said(error: Exception) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
