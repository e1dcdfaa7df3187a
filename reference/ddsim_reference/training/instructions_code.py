"""Programming instructions for drafter training: functions composed from small parts, with true examples."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from ddsim_reference.model.workloads import HUMANEVAL_WORDING
from ddsim_reference.training import functions
from ddsim_reference.training.templates import pick, templates

CODE = templates("code")
WORDS = CODE.words.split()


@dataclass(frozen=True)
class Idea:
    """A function to be written: its signature, what it does, its examples and, if short, its source."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    returns: str
    doc: str
    examples: tuple[tuple[str, str], ...] = ()  # (arguments, result), both as source
    body: str = ""


# --- lists of integers: reduce(map(filter)) -------------------------------------------------------------------------


def _tidy(doc: str) -> str:
    return re.sub(r",([,;.])", r"\1", doc)


def list_idea(rng: np.random.Generator) -> Idea:
    """A pipeline over a list of integers."""
    fill = {"k": int(rng.integers(3, 13)), "d": int(rng.integers(1, 10)), "s": int(rng.integers(2, 10))}
    condition, mapping, reduce = pick(rng, CODE.conditions), pick(rng, CODE.maps), pick(rng, CODE.reduces)
    cond_slug, cond_noun, cond = (part.format(**fill) for part in condition)
    map_slug, map_noun, mapped = (part.format(c=cond_noun, **fill) for part in mapping)
    name = f"{reduce[0]}_{map_slug}{cond_slug}"
    arg = pick(rng, CODE.list_names)
    passes = partial(functions.CONDITIONS[condition[0]], k=fill["k"], d=fill["d"])
    becomes = partial(functions.MAPS[mapping[0]], s=fill["s"])
    run = functions.REDUCES[reduce[0]]
    examples = []
    for size in (int(rng.integers(4, 7)), int(rng.integers(2, 5))):
        # Half of the values pass the condition if enough do, so that the examples say something.
        pool = [int(v) for v in rng.integers(-25, 100, 60)]
        passing = [x for x in pool if passes(x)]
        xs = [pick(rng, passing) if passing and rng.random() < 0.5 else v for v in pool[:size]]
        examples.append((repr(xs), repr(run([becomes(x) for x in xs if passes(x)]))))
    body = f"    values = [{mapped} for x in {arg} if {cond}]\n    return {reduce[3]}"
    if "__import__" in body:
        body = f"    result = 1\n    for x in {arg}:\n        if {cond}:\n            result *= {mapped}\n    return result"
    return Idea(name, ((arg, "List[int]"),), reduce[2], _tidy(reduce[1].format(m=map_noun)), tuple(examples), body)


# --- adjacent pairs, two lists, matrices -----------------------------------------------------------------------------


def pair_idea(rng: np.random.Generator) -> Idea:
    """Something about pairs out of one or two lists."""
    value, reduce, pairing = pick(rng, CODE.pair_values), pick(rng, CODE.pair_reduces), pick(rng, CODE.pairings)
    run, combine = functions.PAIR_REDUCES[reduce[0]], functions.PAIR_VALUES[value[0]]
    pairs = functions.PAIRINGS[pairing[0]]
    names = [("numbers", "values", "row", "samples")[int(rng.integers(4))]]
    if pairing[2] == 2:
        names = list(pick(rng, (("first", "second"), ("left", "right"), ("xs", "ys"), ("prices", "costs"))))
    examples = []
    for size in rng.integers(3, 6, 2):
        lists = [[int(v) for v in rng.integers(-9, 20, size)] for _ in names]
        examples.append(
            (", ".join(map(repr, lists)), repr(run([combine(a, b) for a, b in pairs(lists[0], lists[-1])])))
        )
    doc = reduce[1].format(p=f"{value[1]} {pairing[1]}") + "."
    if reduce[2].startswith("Optional"):
        doc += " Return None if there are no pairs."
    parameters = tuple((name, "List[int]") for name in names)
    return Idea(f"{reduce[0]}_{value[0]}_{pairing[0]}", parameters, reduce[2], doc, tuple(examples))


def matrix_idea(rng: np.random.Generator) -> Idea:
    """Something about rows or columns of a matrix."""
    line, value, reduce = pick(rng, CODE.lines), pick(rng, CODE.line_values), pick(rng, CODE.line_reduces)
    run, measure = functions.LINE_REDUCES[reduce[0]], functions.LINE_VALUES[value[0]]
    lines = functions.LINES[line[0]]
    arg = pick(rng, ("matrix", "grid", "table", "board", "rows"))
    examples = []
    for height, width in ((2, 3), (3, 2)):
        m = [[int(v) for v in row] for row in rng.integers(-4, 12, (height, width))]
        examples.append((repr(m), repr(run([measure(r) for r in lines(m)]))))
    doc = _tidy(reduce[1].format(v=value[1].format(l=line[1])))
    return Idea(f"{reduce[0]}_{value[0]}_{line[0]}", ((arg, "List[List[int]]"),), reduce[2], doc, tuple(examples))


# --- strings and sentences -------------------------------------------------------------------------------------------


def _sample_string(rng: np.random.Generator) -> str:
    parts = [pick(rng, WORDS) for _ in range(int(rng.integers(1, 4)))]
    parts = [p.title() if rng.random() < 0.4 else p for p in parts]
    if rng.random() < 0.5:
        parts.insert(int(rng.integers(len(parts) + 1)), str(int(rng.integers(2, 999))))
    return pick(rng, (" ", " ", "-", "")).join(parts) + pick(rng, ("", "", "!", "?"))


def string_idea(rng: np.random.Generator) -> Idea:
    """An operation on some characters of a string."""
    fill = {"z": pick(rng, "aeiorstnl")}
    chars = pick(rng, CODE.chars)
    slug, noun, expression = (part.format(**fill) for part in chars)
    op = pick(rng, CODE.char_ops)
    source = op[3].format(e=expression)
    run, passes = functions.CHAR_OPS[op[0]], partial(functions.CHARS[chars[0]], **fill)
    arg = pick(rng, ("text", "string", "s", "message", "phrase", "line", "label"))
    strings = [_sample_string(rng), _sample_string(rng)] + ([""] if rng.random() < 0.3 else [])
    examples = tuple((repr(s), repr(run(s, passes))) for s in strings if s or op[0] != "most_common")
    body = "    return " + re.sub(r"(?<!')\bs\b", arg, source)
    return Idea(f"{op[0]}_{slug}", ((arg, "str"),), op[2], _tidy(op[1].format(c=noun)), examples, body)


def sentence_idea(rng: np.random.Generator) -> Idea:
    """An operation on some words of a sentence, or of a list of words."""
    fill = {"k": int(rng.integers(3, 8)), "z": pick(rng, "abcegmnoprstwy")}
    condition = pick(rng, CODE.word_conditions)
    slug, phrase = (part.format(**fill) for part in condition)
    passes = partial(functions.WORD_CONDITIONS[condition[0]], **fill)
    op = pick(rng, CODE.word_ops)
    as_list = bool(rng.random() < 0.4)
    run = functions.WORD_OPS[op[0]]
    examples = []
    for size in rng.integers(3, 7, 2):
        pool = [pick(rng, WORDS) for _ in range(40)] + ["42", "1999", "365"]
        pool = [w.title() if rng.random() < 0.25 else w for w in pool]
        passing = [w for w in pool if passes(w)]
        ws = [pick(rng, passing) if passing and rng.random() < 0.4 else w for w in pool[: int(size)]]
        examples.append((repr(ws) if as_list else repr(" ".join(ws)), repr(run([w for w in ws if passes(w)], ws))))
    arg, kind = (
        (pick(rng, ("words", "tokens", "tags")), "List[str]")
        if as_list
        else (pick(rng, ("sentence", "text", "line")), "str")
    )
    doc = op[1].format(c=phrase)
    doc += (
        ""
        if as_list
        else pick(rng, (" Words are separated by single spaces.", "", " The sentence has no punctuation."))
    )
    return Idea(f"{op[0]}_{slug}", ((arg, kind),), op[2], doc, tuple(examples))


# --- dictionaries and records ----------------------------------------------------------------------------------------


def dict_idea(rng: np.random.Generator) -> Idea:
    """Something about a dictionary of counts, or the same records as tuples."""
    arg, key, value, names = pick(rng, CODE.things)
    op = pick(rng, CODE.dict_ops)
    run = functions.DICT_OPS[op[0]]
    as_pairs = bool(rng.random() < 0.35)
    examples = []
    for size in (4, 3):
        chosen = [names[int(i)] for i in rng.permutation(len(names))[:size]]
        d = {name: int(rng.integers(2, 60)) for name in chosen}
        limit = int(rng.integers(10, 45))
        shown = repr(list(d.items()) if as_pairs else d) + (f", {limit}" if op[3] else "")
        examples.append((shown, repr(run(d, limit))))
    plural = "people" if key == "person" else "days" if key == "day" else key + "s"
    given = (
        f"`{arg}` is a list of (name, {value}) pairs, one for each {key}."
        if as_pairs
        else f"`{arg}` maps each {key} to its {value}."
    )
    doc = given + " " + op[1].format(k=key, ks=plural, v=value)
    kind = "List[Tuple[str, int]]" if as_pairs else "Dict[str, int]"
    parameters = ((arg, kind), *((("limit", "int"),) if op[3] else ()))
    return Idea(f"{arg}_{op[0]}{'_from_pairs' if as_pairs else ''}", parameters, op[2], doc, tuple(examples))


# --- whole numbers ---------------------------------------------------------------------------------------------------


def number_idea(rng: np.random.Generator) -> Idea:
    """Something about one whole number."""
    k = int(rng.integers(3, 16))
    fill = {
        "d": int(rng.integers(1, 9)),
        "b": int(rng.integers(3, 10)),
        "k": k,
        "m": 2 * k,
        "q": int(rng.integers(3, 6)),
    }
    entry = pick(rng, CODE.digit_ops)
    op = tuple(part.format(**fill) for part in entry)
    run = partial(functions.DIGIT_OPS[entry[0]], **fill)
    high = int(pick(rng, (99, 300, 4000)))
    numbers = [int(v) for v in rng.integers(7, high, int(rng.integers(2, 4)))] + [12]
    examples = [(str(n), result) for n in dict.fromkeys(numbers) if len(result := repr(run(n))) <= 80]
    return Idea(op[0], (("n", "int"),), op[2], op[1], tuple(examples[: max(1, len(numbers) - 1)]))


# --- ideas written one by one ----------------------------------------------------------------------------------------


@cache
def single_ideas() -> tuple[Idea, ...]:
    """The functions written one by one, with their examples."""
    return tuple(
        Idea(name, tuple(map(tuple, parameters)), returns, doc, tuple(map(tuple, examples)))
        for name, parameters, returns, doc, examples in CODE.single
    )


def single_idea(rng: np.random.Generator) -> Idea:
    """One of the functions written one by one."""
    return pick(rng, single_ideas())


# --- rendering -------------------------------------------------------------------------------------------------------

_IDEAS: tuple[tuple[Callable[[np.random.Generator], Idea], float], ...] = (
    (list_idea, 0.24),
    (pair_idea, 0.09),
    (matrix_idea, 0.08),
    (string_idea, 0.17),
    (sentence_idea, 0.14),
    (dict_idea, 0.09),
    (number_idea, 0.07),
    (single_idea, 0.12),
)
_IDEA_SHARES = np.cumsum([share for _, share in _IDEAS])


def random_idea(rng: np.random.Generator) -> Idea:
    """An idea from any of the families."""
    return _IDEAS[min(int(np.searchsorted(_IDEA_SHARES, rng.random())), len(_IDEAS) - 1)][0](rng)


def _wrap(text: str, width: int = 90, indent: str = "    ") -> str:
    lines, line = [], ""
    for word in text.split():
        if line and len(line) + len(word) + 1 > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return ("\n" + indent).join([*lines, line])


def signature(idea: Idea, typed: bool = True) -> str:
    """The `def` line."""
    if not typed:
        return f"def {idea.name}({', '.join(name for name, _ in idea.parameters)}):"
    inside = ", ".join(f"{name}: {kind}" for name, kind in idea.parameters)
    return f"def {idea.name}({inside}) -> {idea.returns}:"


def render_stub(idea: Idea, rng: np.random.Generator) -> str:
    """Imports, `def` line and docstring with examples, in one of several house styles."""
    typed = bool(rng.random() < 0.72)
    line = signature(idea, typed)
    used = [t for t in ("Dict", "List", "Optional", "Tuple") if re.search(rf"\b{t}\[", line)]
    head = f"from typing import {', '.join(used)}\n\n\n" if used else pick(rng, ("", "", "\n"))
    quote = pick(rng, ('"""', '"""', '"""', "'''"))
    examples = list(idea.examples[: int(rng.integers(1, 4))])
    style = rng.random()
    doc = idea.doc
    leads = CODE.leads.get(idea.parameters[0][1])
    if leads and len(idea.parameters) == 1 and not doc.startswith("`") and rng.random() < 0.4:
        lead = pick(rng, leads)
        doc = lead + (doc[0].lower() + doc[1:] if lead.endswith((", ", "and ")) else doc)
    if rng.random() < 0.12:
        doc += " " + pick(rng, CODE.notes)
    doc = _wrap(doc)
    if style < 0.55:
        lines = [f">>> {idea.name}({a})\n    {r}" for a, r in examples]
        start = pick(rng, (f"{quote} {doc}", f"{quote}{doc}", f"{quote}\n    {doc}"))
        gap = pick(rng, ("\n    ", "\n\n    "))
        text = start + gap + "\n    ".join(lines) + f"\n    {quote}"
    elif style < 0.85:
        arrow = pick(rng, ("==", "=>", "->", "returns", "➞"))
        title = pick(rng, ("Examples:", "Example:", "For example:", "e.g.", "Some examples:"))
        lines = [f"{idea.name}({a}) {arrow} {r}" for a, r in examples]
        text = f"{quote}\n    {doc}\n\n    {title}\n    " + "\n    ".join(lines) + f"\n    {quote}"
    elif style < 0.93:
        args = "\n".join(f"        {name} ({kind}): the input." for name, kind in idea.parameters)
        text = f"{quote}{doc}\n\n    Args:\n{args}\n\n    Returns:\n        {idea.returns}: the result.\n    {quote}"
    else:
        text = f"{quote}{doc}{quote}"
    return f"{head}{line}\n    {text}".strip("\n")


def completion(rng: np.random.Generator) -> str:
    """Complete a function, half of the time in exactly HumanEval's wording of `workloads`."""
    code = render_stub(random_idea(rng), rng)
    if rng.random() < 0.55:
        return HUMANEVAL_WORDING.format(code=code)
    return pick(rng, CODE.complete).format(code=code).strip("\n")


def description(rng: np.random.Generator) -> str:
    """Write a function from a description in words."""
    idea = random_idea(rng)
    example, result = idea.examples[0]
    words = idea.name.split("_")
    return pick(rng, CODE.describe).format(
        name=idea.name,
        doc=idea.doc,
        example=example,
        result=result,
        camel=words[0] + "".join(w.title() for w in words[1:]),
        plain=", ".join(name for name, _ in idea.parameters),
        args=" and ".join(f"`{name}` ({kind})" for name, kind in idea.parameters),
    )


def with_body(rng: np.random.Generator) -> str:
    """Explain, test, mend or translate a given function."""
    idea = list_idea(rng) if rng.random() < 0.6 else string_idea(rng)
    bare = signature(idea, typed=False) + "\n" + idea.body
    full = (signature(idea) + "\n" + idea.body) if rng.random() < 0.5 else bare
    bugs = [(a, b) for a, b in CODE.bugs if a in idea.body]
    bug = pick(rng, bugs) if bugs else ("return ", "print(")
    broken = bare.replace(bug[0], bug[1], 1) if bugs else bare.replace("    return ", "    ", 1)
    example, result = idea.examples[0]
    return pick(rng, CODE.with_body).format(
        full=full,
        bare=bare,
        broken=broken,
        doc=idea.doc,
        name=idea.name,
        example=example,
        result=result,
        anonymous=bare.replace(idea.name, pick(rng, ("foo", "func", "process", "do_it", "helper")), 1),
    )


# --- classes, SQL, shell, regular expressions, questions -------------------------------------------------------------


def other_code(rng: np.random.Generator) -> str:
    """Classes, SQL, shell scripts, regular expressions and questions about concepts."""
    kind = rng.random()
    if kind < 0.22:
        name, things, first, second, key = pick(rng, CODE.classes)
        return pick(rng, CODE.class_forms).format(C=name.title().replace(" ", ""), n=things, a=first, b=second, f=key)
    if kind < 0.44:
        table, key, value, date = pick(rng, CODE.tables)
        return pick(rng, CODE.sql_forms).format(t=table, k=key, v=value, d=date, n=int(rng.integers(2, 12)))
    if kind < 0.62:
        task = pick(rng, CODE.shell).format(
            e=pick(rng, ("txt", "log", "csv", "jpg", "py", "md", "json")), n=int(rng.integers(2, 30))
        )
        return pick(rng, CODE.shell_forms).format(s=task)
    if kind < 0.72:
        what = pick(rng, CODE.regex)
        return pick(rng, CODE.regex_forms).format(r=what, q=re.sub(r"^an? ", "", what))
    return pick(rng, CODE.concept_forms).format(c=pick(rng, CODE.concepts))
