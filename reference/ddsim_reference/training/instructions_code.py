"""Programming instructions for drafter training: functions composed from small parts, with true examples."""

# ruff: noqa: SIM905 (tables of text: one entry a line is easier to read and to extend)

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, TypeVar

import numpy as np

from ddsim_reference.model.workloads import HUMANEVAL_WORDING

T = TypeVar("T")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of the options, uniformly (numpy's own choice would turn tuples into arrays)."""
    return options[int(rng.integers(len(options)))]


@dataclass(frozen=True)
class Idea:
    """A function to be written: its signature, what it does, its examples and, if short, its source."""

    name: str
    parameters: tuple[tuple[str, str], ...]
    returns: str
    doc: str
    examples: tuple[tuple[str, str], ...] = ()  # (arguments, result), both as source
    body: str = ""
    notes: tuple[str, ...] = field(default=())


@cache
def _function(parameters: str, expression: str) -> Callable[..., Any]:
    """The expressions are the constants of this file (never input): they make the examples' results true."""
    scope = {"re": re}
    return eval(f"lambda {parameters}: {expression}", scope)  # type: ignore[no-any-return]


# --- lists of integers: reduce(map(filter)) -------------------------------------------------------------------------

# slug, noun phrase, expression in x. {k} is a small constant.
_CONDITIONS = (
    ("even", "even numbers", "x % 2 == 0"),
    ("odd", "odd numbers", "x % 2 == 1"),
    ("negative", "negative numbers", "x < 0"),
    ("nonzero", "non-zero numbers", "x != 0"),
    ("multiples_of_{k}", "multiples of {k}", "x % {k} == 0"),
    ("not_divisible_by_{k}", "numbers that {k} does not divide", "x % {k} != 0"),
    ("above_{k}", "values above {k}", "x > {k}"),
    ("at_most_{k}", "values of at most {k}", "x <= {k}"),
    ("within_{k}", "entries whose distance from zero is at most {k}", "abs(x) <= {k}"),
    ("two_digit", "two-digit numbers", "10 <= abs(x) <= 99"),
    ("ending_in_{d}", "numbers whose last digit is {d}", "abs(x) % 10 == {d}"),
    ("square", "perfect squares", "x >= 0 and int(x ** 0.5) ** 2 == x"),
    ("repdigit", "numbers written with one digit only", "len(set(str(abs(x)))) == 1"),
    ("containing_{d}", "numbers that contain the digit {d}", "'{d}' in str(x)"),
    ("even_digit_sum", "numbers whose digits add up to an even number", "sum(map(int, str(abs(x)))) % 2 == 0"),
    ("power_of_two", "powers of two", "x > 0 and x & (x - 1) == 0"),
)
_MAPS = (
    ("", "the {c}", "x"),
    ("squares_of_", "the squares of the {c}", "x * x"),
    ("cubes_of_", "the cubes of the {c}", "x ** 3"),
    ("magnitudes_of_", "the absolute values of the {c}", "abs(x)"),
    ("negated_", "the {c} with their signs flipped", "-x"),
    ("last_digits_of_", "the last digits of the {c}", "abs(x) % 10"),
    ("digit_sums_of_", "the digit sums of the {c}", "sum(map(int, str(abs(x))))"),
    ("halves_of_", "the halves (rounded down) of the {c}", "x // 2"),
    ("lengths_of_", "the digit counts of the {c}", "len(str(abs(x)))"),
    ("shifted_", "the {c}, each increased by {s},", "x + {s}"),
    ("tripled_", "three times the {c}", "3 * x"),
)
_REDUCES = (
    ("total", "Add up {m} and return the total.", "int", "sum(values)"),
    ("product", "Multiply {m} together; the product of nothing is 1.", "int", "__import__('math').prod(values)"),
    ("collect", "Return a list of {m}, keeping their order.", "List[int]", "values"),
    ("sorted", "Return {m} as a list in ascending order.", "List[int]", "sorted(values)"),
    ("descending", "Give back {m}, sorted from high to low.", "List[int]", "sorted(values, reverse=True)"),
    ("distinct", "Return how many different values occur among {m}.", "int", "len(set(values))"),
    (
        "highest",
        "Find the largest of {m}. If there are none, return None.",
        "Optional[int]",
        "max(values, default=None)",
    ),
    (
        "lowest",
        "Find the smallest of {m}. If there are none, return None.",
        "Optional[int]",
        "min(values, default=None)",
    ),
    (
        "average",
        "Compute the mean of {m}, or 0.0 when there is nothing to average.",
        "float",
        "round(sum(values) / len(values), 2) if values else 0.0",
    ),
    (
        "spread",
        "Return the gap between the largest and the smallest of {m}, zero if fewer than two qualify.",
        "int",
        "max(values) - min(values) if len(values) > 1 else 0",
    ),
    (
        "first",
        "Return the first of {m}, or None if the list holds none.",
        "Optional[int]",
        "values[0] if values else None",
    ),
    (
        "last",
        "Return the last of {m}, or None if the list holds none.",
        "Optional[int]",
        "values[-1] if values else None",
    ),
    (
        "running_total",
        "Return the running totals of {m} as a list.",
        "List[int]",
        "[sum(values[:i + 1]) for i in range(len(values))]",
    ),
    ("unique", "Return {m} without repeats, in order of first appearance.", "List[int]", "list(dict.fromkeys(values))"),
)
_LIST_NAMES = ("numbers", "values", "nums", "items", "data", "readings", "scores", "entries", "amounts")


def _tidy(doc: str) -> str:
    return re.sub(r",([,;.])", r"\1", doc)


def list_idea(rng: np.random.Generator) -> Idea:
    """A pipeline over a list of integers."""
    fill = {"k": int(rng.integers(3, 13)), "d": int(rng.integers(1, 10)), "s": int(rng.integers(2, 10))}
    condition, mapping, reduce = pick(rng, _CONDITIONS), pick(rng, _MAPS), pick(rng, _REDUCES)
    cond_slug, cond_noun, cond = (part.format(**fill) for part in condition)
    map_slug, map_noun, mapped = (part.format(c=cond_noun, **fill) for part in mapping)
    name = f"{reduce[0]}_{map_slug}{cond_slug}"
    arg = pick(rng, _LIST_NAMES)
    run = _function("values", reduce[3])
    select = _function("xs", f"[{mapped} for x in xs if {cond}]")
    examples = []
    for size in (int(rng.integers(4, 7)), int(rng.integers(2, 5))):
        # Half of the values pass the condition if enough do, so that the examples say something.
        pool = [int(v) for v in rng.integers(-25, 100, 60)]
        passing = _function("xs", f"[x for x in xs if {cond}]")(pool)
        xs = [pick(rng, passing) if passing and rng.random() < 0.5 else v for v in pool[:size]]
        examples.append((repr(xs), repr(run(select(xs)))))
    body = f"    values = [{mapped} for x in {arg} if {cond}]\n    return {reduce[3]}"
    if "__import__" in body:
        body = f"    result = 1\n    for x in {arg}:\n        if {cond}:\n            result *= {mapped}\n    return result"
    return Idea(name, ((arg, "List[int]"),), reduce[2], _tidy(reduce[1].format(m=map_noun)), tuple(examples), body)


# --- adjacent pairs, two lists, matrices -----------------------------------------------------------------------------

_PAIR_VALUES = (
    ("differences", "differences (second minus first)", "b - a"),
    ("gaps", "absolute differences", "abs(a - b)"),
    ("products", "products", "a * b"),
    ("peaks", "maxima", "max(a, b)"),
    ("lows", "minima", "min(a, b)"),
    ("sums", "sums", "a + b"),
)
_PAIR_REDUCES = (
    ("list", "Return the list of {p}", "List[int]", "values"),
    ("largest", "Return the largest of the {p}", "Optional[int]", "max(values, default=None)"),
    ("smallest", "Return the smallest of the {p}", "Optional[int]", "min(values, default=None)"),
    ("total", "Return the total of all {p}", "int", "sum(values)"),
    ("count_even", "Count the even numbers among the {p}", "int", "sum(v % 2 == 0 for v in values)"),
    ("count_negative", "Count the negative numbers among the {p}", "int", "sum(v < 0 for v in values)"),
    (
        "all_positive",
        "Check for positive values only: return False if zero or a negative number is among the {p}",
        "bool",
        "all(v > 0 for v in values)",
    ),
    ("any_zero", "Tell whether zero is among the {p}", "bool", "0 in values"),
)
_PAIRINGS = (
    ("neighbours", "of neighbouring elements in the list", "zip(xs, xs[1:])", 1),
    ("two_apart", "of elements that are two places apart", "zip(xs, xs[2:])", 1),
    (
        "mirrored",
        "of each element of the first half and its mirror image in the second half",
        "zip(xs[:len(xs) // 2], xs[::-1])",
        1,
    ),
    ("cyclic", "of neighbouring elements, the list being taken as a circle", "zip(xs, xs[1:] + xs[:1])", 1),
    ("aligned", "of elements at equal positions of both lists, up to the shorter one's end", "zip(xs, ys)", 2),
    (
        "crossed",
        "of each element of the first list with the element of the second that lies as far from its end",
        "zip(xs, ys[::-1])",
        2,
    ),
    (
        "all_pairs",
        "of every element of the first list with every element of the second",
        "((x, y) for x in xs for y in ys)",
        2,
    ),
)


def pair_idea(rng: np.random.Generator) -> Idea:
    """Something about pairs out of one or two lists."""
    value, reduce, pairing = pick(rng, _PAIR_VALUES), pick(rng, _PAIR_REDUCES), pick(rng, _PAIRINGS)
    expression = f"(lambda values: {reduce[3]})([{value[2]} for a, b in {pairing[2]}])"
    run = _function("xs, ys=()", expression)
    names = [("numbers", "values", "row", "samples")[int(rng.integers(4))]]
    if pairing[3] == 2:
        names = list(pick(rng, (("first", "second"), ("left", "right"), ("xs", "ys"), ("prices", "costs"))))
    examples = []
    for size in rng.integers(3, 6, 2):
        lists = [[int(v) for v in rng.integers(-9, 20, size)] for _ in names]
        examples.append((", ".join(map(repr, lists)), repr(run(*lists))))
    doc = reduce[1].format(p=f"{value[1]} {pairing[1]}") + "."
    if reduce[2].startswith("Optional"):
        doc += " Return None if there are no pairs."
    parameters = tuple((name, "List[int]") for name in names)
    return Idea(f"{reduce[0]}_{value[0]}_{pairing[0]}", parameters, reduce[2], doc, tuple(examples))


_LINES = (
    ("rows", "each row", "m"),
    ("columns", "each column", "[list(c) for c in zip(*m)]"),
    ("even_rows", "each row with an even index", "m[::2]"),
    ("border_rows", "the first and the last row", "[m[0], m[-1]]"),
    ("reversed_rows", "each row, going from the bottom of the matrix to its top,", "m[::-1]"),
    ("column_pairs", "every second column, starting with the first,", "[list(c) for c in zip(*m)][::2]"),
)
_LINE_VALUES = (
    ("sum", "the sum of {l}", "sum(r)"),
    ("max", "the maximum of {l}", "max(r)"),
    ("min", "the minimum of {l}", "min(r)"),
    ("range", "the difference between the greatest and the least entry of {l}", "max(r) - min(r)"),
    ("count_negative", "the number of negative entries in {l}", "sum(v < 0 for v in r)"),
    ("count_zero", "the number of zeros in {l}", "r.count(0)"),
    ("argmax", "the index of the first largest entry in {l}", "r.index(max(r))"),
    ("distinct", "the number of different entries in {l}", "len(set(r))"),
)
_LINE_REDUCES = (
    ("list", "Return a list with {v}.", "List[int]", "values"),
    ("best", "Compute {v} and return the largest result.", "int", "max(values)"),
    ("worst", "Compute {v} and return the smallest result.", "int", "min(values)"),
    ("total", "Compute {v} and return the sum of the results.", "int", "sum(values)"),
    ("equal", "Check if {v} is always the same.", "bool", "len(set(values)) == 1"),
    ("ascending", "Check if {v} never gets smaller from one to the next.", "bool", "values == sorted(values)"),
)


def matrix_idea(rng: np.random.Generator) -> Idea:
    """Something about rows or columns of a matrix."""
    line, value, reduce = pick(rng, _LINES), pick(rng, _LINE_VALUES), pick(rng, _LINE_REDUCES)
    run = _function("m", f"(lambda values: {reduce[3]})([{value[2]} for r in {line[2]}])")
    arg = pick(rng, ("matrix", "grid", "table", "board", "rows"))
    examples = []
    for height, width in ((2, 3), (3, 2)):
        m = [[int(v) for v in row] for row in rng.integers(-4, 12, (height, width))]
        examples.append((repr(m), repr(run(m))))
    doc = _tidy(reduce[1].format(v=value[1].format(l=line[1])))
    return Idea(f"{reduce[0]}_{value[0]}_{line[0]}", ((arg, "List[List[int]]"),), reduce[2], doc, tuple(examples))


# --- strings and sentences -------------------------------------------------------------------------------------------

_WORDS = (
    "amber anchor apple autumn badger basket beacon bottle breeze bridge candle canyon carrot castle cherry circle "
    "copper corner cotton cradle dancer desert dragon eagle ember engine fabric falcon feather fiddle forest galaxy "
    "garden ginger glacier hammer harbor hazel helmet honey igloo island ivory jacket jungle kettle kitten ladder "
    "lantern lemon level lizard magnet maple marble meadow mirror modern noon notebook ocean olive onion orange otter "
    "oxygen paddle paper pebble pepper pilot planet pocket pumpkin puzzle rabbit radar river robot rocket saddle "
    "salmon shadow silver spiral spring stone sunset table temple thunder ticket timber tunnel turtle umbrella valley "
    "velvet violin wagon walnut water whistle willow window winter wizard yellow zebra"
).split()

_CHARS = (
    ("vowels", "vowels (a, e, i, o, u in either case)", "c.lower() in 'aeiou'"),
    ("consonants", "consonants", "c.isalpha() and c.lower() not in 'aeiou'"),
    ("digits", "digits", "c.isdigit()"),
    ("capitals", "uppercase letters", "c.isupper()"),
    ("lowercase", "lowercase letters", "c.islower()"),
    ("symbols", "characters that are neither letters, digits nor spaces", "not c.isalnum() and c != ' '"),
    ("spaces", "spaces", "c == ' '"),
    ("early_letters", "letters from the first half of the alphabet", "'a' <= c.lower() <= 'm'"),
    ("late_letters", "letters from the second half of the alphabet", "'n' <= c.lower() <= 'z'"),
    ("letter_{z}", "occurrences of the letter '{z}', upper or lower case,", "c.lower() == '{z}'"),
    ("not_{z}", "characters other than '{z}'", "c != '{z}'"),
)
_CHAR_OPS = (
    ("strip", "Delete all {c} from the string and return what is left.", "str", "''.join(c for c in s if not ({e}))"),
    ("keep", "Return only the {c} of the string, in their original order.", "str", "''.join(c for c in s if {e})"),
    (
        "star",
        "Replace every one of the {c} in the string by an asterisk.",
        "str",
        "''.join('*' if {e} else c for c in s)",
    ),
    (
        "double",
        "Write each of the {c} in the string twice and leave the rest as it is.",
        "str",
        "''.join(c * 2 if {e} else c for c in s)",
    ),
    (
        "last",
        "Move all {c} to the end of the string without changing the order within both groups.",
        "str",
        "''.join(c for c in s if not ({e})) + ''.join(c for c in s if {e})",
    ),
    (
        "positions",
        "Return the indices at which the string has {c}.",
        "List[int]",
        "[i for i, c in enumerate(s) if {e}]",
    ),
    (
        "share",
        "Return the share of {c} in the string as a float rounded to two places; an empty string gives 0.0.",
        "float",
        "round(sum(1 for c in s if {e}) / len(s), 2) if s else 0.0",
    ),
    (
        "first",
        "Return the index of the first of the {c}, or -1 if the string has none.",
        "int",
        "next((i for i, c in enumerate(s) if {e}), -1)",
    ),
    (
        "longest_run",
        "Return the length of the longest unbroken run of {c}.",
        "int",
        "max((len(p) for p in ''.join('x' if {e} else ' ' for c in s).split()), default=0)",
    ),
    (
        "mirror",
        "Reverse the order of the {c} only; everything else stays in its place.",
        "str",
        "(lambda q: ''.join(q.pop() if {e} else c for c in s))([c for c in s if {e}])",
    ),
    (
        "most_common",
        "Return the {c} that occur most often (several in case of a tie), joined in alphabetical order.",
        "str",
        "(lambda q: ''.join(sorted(c for c in set(q) if q.count(c) == max(map(q.count, q)))))([c for c in s if {e}])",
    ),
    (
        "swap_case",
        "Swap the case of the {c} and leave other characters alone.",
        "str",
        "''.join(c.swapcase() if {e} else c for c in s)",
    ),
    (
        "tally",
        "Return a dictionary that tells how many times each of the {c} appears.",
        "Dict[str, int]",
        "(lambda q: {{c: q.count(c) for c in dict.fromkeys(q)}})([c for c in s if {e}])",
    ),
    (
        "ranks",
        (
            "Count the {c} in the first half and in the second half of the string (the middle character belongs to the "
            "second) and return both counts as a tuple."
        ),
        "Tuple[int, int]",
        "(sum(1 for c in s[:len(s) // 2] if {e}), sum(1 for c in s[len(s) // 2:] if {e}))",
    ),
)


def _sample_string(rng: np.random.Generator) -> str:
    parts = [pick(rng, _WORDS) for _ in range(int(rng.integers(1, 4)))]
    parts = [p.title() if rng.random() < 0.4 else p for p in parts]
    if rng.random() < 0.5:
        parts.insert(int(rng.integers(len(parts) + 1)), str(int(rng.integers(2, 999))))
    return pick(rng, (" ", " ", "-", "")).join(parts) + pick(rng, ("", "", "!", "?"))


def string_idea(rng: np.random.Generator) -> Idea:
    """An operation on some characters of a string."""
    fill = {"z": pick(rng, "aeiorstnl")}
    slug, noun, expression = (part.format(**fill) for part in pick(rng, _CHARS))
    op = pick(rng, _CHAR_OPS)
    source = op[3].format(e=expression)
    run = _function("s", source)
    arg = pick(rng, ("text", "string", "s", "message", "phrase", "line", "label"))
    strings = [_sample_string(rng), _sample_string(rng)] + ([""] if rng.random() < 0.3 else [])
    examples = tuple((repr(s), repr(run(s))) for s in strings if s or op[0] != "most_common")
    body = "    return " + re.sub(r"(?<!')\bs\b", arg, source)
    return Idea(f"{op[0]}_{slug}", ((arg, "str"),), op[2], _tidy(op[1].format(c=noun)), examples, body)


_WORD_CONDITIONS = (
    ("long", "that have more than {k} letters", "len(w) > {k}"),
    ("short", "that have at most {k} letters", "len(w) <= {k}"),
    ("starting_with_{z}", "that start with '{z}' (ignoring case)", "w.lower().startswith('{z}')"),
    ("ending_with_{z}", "that end with '{z}' (ignoring case)", "w.lower().endswith('{z}')"),
    ("containing_{z}", "in which the letter '{z}' occurs", "'{z}' in w"),
    ("capitalised", "that begin with a capital letter", "w[0].isupper()"),
    ("double_letter", "that have two equal letters in a row", "any(a == b for a, b in zip(w, w[1:]))"),
    ("isogram", "in which no letter occurs twice", "len(set(w.lower())) == len(w)"),
    ("vowel_first", "whose first letter is a vowel", "w[0].lower() in 'aeiou'"),
    ("even_length", "whose length is even", "len(w) % 2 == 0"),
    ("numeric", "that consist of digits", "w.isdigit()"),
    ("same_ends", "whose first and last letters are the same", "w[0].lower() == w[-1].lower()"),
)
_WORD_OPS = (
    ("count_words", "Count the words {c}.", "int", "len(q)"),
    ("list_words", "Return a list of the words {c}, in the order in which they appear.", "List[str]", "q"),
    (
        "drop_words",
        "Remove the words {c} and return the remaining sentence, joined by single spaces.",
        "str",
        "' '.join(w for w in ws if w not in q)",
    ),
    (
        "reverse_words",
        "Spell the words {c} backwards and leave the others unchanged.",
        "str",
        "' '.join(w[::-1] if w in q else w for w in ws)",
    ),
    (
        "shout_words",
        "Write the words {c} in capitals and leave the others unchanged.",
        "str",
        "' '.join(w.upper() if w in q else w for w in ws)",
    ),
    (
        "longest_word",
        (
            "Among the words {c}, return the longest; the earlier one wins a tie, and without any such word "
            "return an empty string."
        ),
        "str",
        "max(q, key=len, default='')",
    ),
    (
        "sort_words",
        "Return the words {c}, sorted alphabetically without regard to case.",
        "List[str]",
        "sorted(q, key=str.lower)",
    ),
    (
        "word_lengths",
        "Return a dictionary from each of the words {c} to its length.",
        "Dict[str, int]",
        "{{w: len(w) for w in q}}",
    ),
    ("join_words", "Join the words {c} with hyphens.", "str", "'-'.join(q)"),
    (
        "initials",
        "Return the first letters of the words {c} as one uppercase string.",
        "str",
        "''.join(w[0] for w in q).upper()",
    ),
    ("total_letters", "Return how many characters the words {c} have together.", "int", "sum(map(len, q))"),
    (
        "last_word",
        "Return the last of the words {c}, or None if the sentence has no such word.",
        "Optional[str]",
        "q[-1] if q else None",
    ),
)


def sentence_idea(rng: np.random.Generator) -> Idea:
    """An operation on some words of a sentence, or of a list of words."""
    fill = {"k": int(rng.integers(3, 8)), "z": pick(rng, "abcegmnoprstwy")}
    slug, phrase, condition = (part.format(**fill) for part in pick(rng, _WORD_CONDITIONS))
    op = pick(rng, _WORD_OPS)
    as_list = bool(rng.random() < 0.4)
    run = _function("ws", f"(lambda q: {op[3].format()})([w for w in ws if {condition}])")
    examples = []
    for size in rng.integers(3, 7, 2):
        pool = [pick(rng, _WORDS) for _ in range(40)] + ["42", "1999", "365"]
        pool = [w.title() if rng.random() < 0.25 else w for w in pool]
        passing = _function("ws", f"[w for w in ws if {condition}]")(pool)
        ws = [pick(rng, passing) if passing and rng.random() < 0.4 else w for w in pool[: int(size)]]
        examples.append((repr(ws) if as_list else repr(" ".join(ws)), repr(run(ws))))
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

_THINGS = (
    ("stock", "item", "number of pieces in the warehouse", ("bolts", "nails", "hinges", "screws", "pipes", "brackets")),
    ("scores", "player", "number of points", ("Ada", "Bo", "Cleo", "Dev", "Eli", "Fay")),
    ("prices", "product", "price in cents", ("tea", "rice", "salt", "oil", "soap", "jam")),
    ("ages", "person", "age in years", ("Gus", "Hana", "Ivo", "June", "Kai", "Lena")),
    ("votes", "candidate", "number of votes", ("Mora", "Nash", "Oduya", "Park", "Quinn", "Reyes")),
    ("rainfall", "town", "rainfall in millimetres", ("Arden", "Birch", "Colby", "Derry", "Elm", "Firth")),
    ("steps", "day", "number of steps", ("mon", "tue", "wed", "thu", "fri", "sat")),
    ("pages", "book", "number of pages", ("Dune", "Emma", "Ulysses", "Walden", "Hamlet", "Beowulf")),
)
_DICT_OPS = (
    (
        "at_least",
        "Return the {ks} whose {v} is at least `limit`, sorted by name.",
        "List[str]",
        True,
        "sorted(k for k in d if d[k] >= n)",
    ),
    (
        "below",
        "Build a new dictionary with only those {ks} whose {v} is below `limit`.",
        "Dict[str, int]",
        True,
        "{k: v for k, v in d.items() if v < n}",
    ),
    (
        "top",
        "Return the name of the {k} with the greatest {v}; ties go to the name that comes first alphabetically.",
        "str",
        False,
        "min(d, key=lambda k: (-d[k], k))",
    ),
    (
        "ranking",
        "Return all {ks} ordered by falling {v}, and by name where that is equal.",
        "List[str]",
        False,
        "sorted(d, key=lambda k: (-d[k], k))",
    ),
    (
        "shares",
        "Return a dictionary with the percentage of the total that each {k} has, rounded to one decimal.",
        "Dict[str, float]",
        False,
        "{k: round(100 * v / sum(d.values()), 1) for k, v in d.items()}",
    ),
    (
        "grouped",
        "Group the {ks}: map each {v} to the sorted list of those that have it.",
        "Dict[int, List[str]]",
        False,
        "{v: sorted(k for k in d if d[k] == v) for v in d.values()}",
    ),
    (
        "raised",
        "Return a copy in which every {v} is increased by `limit`; the argument itself must not change.",
        "Dict[str, int]",
        True,
        "{k: v + n for k, v in d.items()}",
    ),
    (
        "middle",
        "Return the average {v} over all {ks}, rounded to two decimals.",
        "float",
        False,
        "round(sum(d.values()) / len(d), 2)",
    ),
    (
        "nearest",
        "Return the {k} whose {v} is nearest to `limit`. The alphabetically first one wins a tie.",
        "str",
        True,
        "min(d, key=lambda k: (abs(d[k] - n), k))",
    ),
    (
        "initials",
        "Sum the {v} of all {ks} that share a first letter and return a dictionary from letter to sum.",
        "Dict[str, int]",
        False,
        "{k[0]: sum(v for j, v in d.items() if j[0] == k[0]) for k in d}",
    ),
    (
        "both",
        "Return a pair: the names with the least and with the most {v}, alphabetically first in case of a tie.",
        "Tuple[str, str]",
        False,
        "(min(d, key=lambda k: (d[k], k)), min(d, key=lambda k: (-d[k], k)))",
    ),
    (
        "exceeds",
        "Tell how many {ks} have a {v} above the average.",
        "int",
        False,
        "sum(v > sum(d.values()) / len(d) for v in d.values())",
    ),
)


def dict_idea(rng: np.random.Generator) -> Idea:
    """Something about a dictionary of counts, or the same records as tuples."""
    arg, key, value, names = pick(rng, _THINGS)
    op = pick(rng, _DICT_OPS)
    run = _function("d, n=0", op[4])
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

_DIGIT_OPS = (
    (
        "alternating_digit_sum",
        "Add and subtract the digits of n in turn, starting with plus for the leftmost one.",
        "int",
        "sum(int(c) * (-1) ** i for i, c in enumerate(str(n)))",
    ),
    (
        "largest_rearranged",
        "Return the largest integer that can be written with the digits of n.",
        "int",
        "int(''.join(sorted(str(n), reverse=True)))",
    ),
    (
        "without_digit_{d}",
        "Delete every digit {d} from n. If nothing remains, return 0.",
        "int",
        "int(str(n).replace('{d}', '') or '0')",
    ),
    (
        "digits_above_{d}",
        "Count the digits of n that are greater than {d}.",
        "int",
        "sum(int(c) > {d} for c in str(n))",
    ),
    (
        "multiplied_nonzero_digits",
        "Return the product of those digits of n that are not 0.",
        "int",
        "__import__('math').prod(int(c) for c in str(n) if c != '0')",
    ),
    (
        "digits_in_base_{b}",
        "Return the digits of n in base {b} as a list, most significant first.",
        "List[int]",
        "(lambda f: f(f, n))(lambda f, v: ([] if v < {b} else f(f, v // {b})) + [v % {b}])",
    ),
    (
        "divisors_below_{k}",
        "List all positive divisors of n that are smaller than {k}.",
        "List[int]",
        "[i for i in range(1, {k}) if n % i == 0]",
    ),
    (
        "round_up_to_{k}",
        "Round n up to the next multiple of {k}; a multiple stays as it is.",
        "int",
        "-(-n // {k}) * {k}",
    ),
    (
        "count_multiples_{k}_upto",
        "Count the integers from 1 to n that are divisible by {k} but not by {m}.",
        "int",
        "sum(i % {k} == 0 and i % {m} != 0 for i in range(1, n + 1))",
    ),
    (
        "step_down_{k}",
        "Start at n and keep subtracting {k} while the value stays non-negative; return all values visited.",
        "List[int]",
        "list(range(n, -1, -{k}))",
    ),
    (
        "proper_divisor_total",
        "Return the sum of the divisors of n without n itself.",
        "int",
        "sum(i for i in range(1, n) if n % i == 0)",
    ),
    (
        "binary_ones_gap",
        "Return the longest stretch of zeros enclosed by ones in the binary form of n.",
        "int",
        "max(map(len, bin(n)[2:].strip('0').split('1')), default=0)",
    ),
    (
        "digit_steps",
        "Return the absolute differences between neighbouring digits of n.",
        "List[int]",
        "[abs(int(a) - int(b)) for a, b in zip(str(n), str(n)[1:])]",
    ),
    (
        "is_bouncy",
        "Check if n is bouncy: a number is bouncy if its digits neither only rise (or stay) nor only fall (or stay).",
        "bool",
        "list(str(n)) != sorted(str(n)) and list(str(n)) != sorted(str(n), reverse=True)",
    ),
    (
        "digital_root_steps",
        "Count how many times n must be replaced by its digit sum until one digit is left.",
        "int",
        "(lambda f: f(f, n))(lambda f, v: 0 if v < 10 else 1 + f(f, sum(map(int, str(v)))))",
    ),
    (
        "mirror_sum",
        "Add n to the number that its digits give when read from right to left.",
        "int",
        "n + int(str(n)[::-1])",
    ),
    (
        "split_halves_sum",
        (
            "Cut the decimal form of n in the middle (the left part is shorter if its length is odd) and add "
            "both parts; an empty part counts as 0."
        ),
        "int",
        "int(str(n)[:len(str(n)) // 2] or 0) + int(str(n)[len(str(n)) // 2:])",
    ),
    (
        "divides_its_digits",
        "Return the digits of n that divide n, each once, in ascending order.",
        "List[int]",
        "sorted({{int(c) for c in str(n) if c != '0' and n % int(c) == 0}})",
    ),
    (
        "nearest_multiple_{k}",
        "Return the multiple of {k} that is closest to n; the larger one in case of a tie.",
        "int",
        "(2 * n + {k}) // (2 * {k}) * {k}",
    ),
    (
        "triangle_index",
        "Return m if n is the triangular number 1 + 2 + ... + m, and -1 if there is no such m.",
        "int",
        "next((m for m in range(1, n + 1) if m * (m + 1) // 2 == n), -1)",
    ),
    (
        "sum_digit_powers_{q}",
        "Raise every digit of n to the power {q} and add the results.",
        "int",
        "sum(int(c) ** {q} for c in str(n))",
    ),
    (
        "pretty_units_{k}",
        "Break n minutes into full blocks of {k} minutes and a rest; return (blocks, rest).",
        "Tuple[int, int]",
        "divmod(n, {k})",
    ),
)


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
    op = tuple(part.format(**fill) for part in pick(rng, _DIGIT_OPS))
    run = _function("n", op[3])
    high = int(pick(rng, (99, 300, 4000)))
    numbers = [int(v) for v in rng.integers(7, high, int(rng.integers(2, 4)))] + [12]
    examples = [(str(n), result) for n in dict.fromkeys(numbers) if len(result := repr(run(n))) <= 80]
    return Idea(op[0], (("n", "int"),), op[2], op[1], tuple(examples[: max(1, len(numbers) - 1)]))


# --- ideas written one by one ----------------------------------------------------------------------------------------

# signature | docstring | expression | argument lists, separated by ';'
_SINGLE = r"""
seconds_to_clock(total: int) -> str|Format a number of seconds as H:MM:SS, with two digits for minutes and seconds.|f"{total // 3600}:{total // 60 % 60:02d}:{total % 60:02d}"|59;3725;86399
clock_to_minutes(clock: str) -> int|Convert a time such as "07:45" to minutes after midnight.|int(clock[:2]) * 60 + int(clock[3:])|"07:45";"23:10"
minutes_between(start: str, end: str) -> int|Given two times "HH:MM" of the same day, return the minutes from the first to the second; if the second is earlier it belongs to the next day.|(int(end[:2]) * 60 + int(end[3:]) - int(start[:2]) * 60 - int(start[3:])) % 1440|"09:30", "10:05";"23:50", "00:20"
celsius_table(start: int, stop: int, step: int) -> List[Tuple[int, float]]|List (celsius, fahrenheit) pairs from start up to and including stop, in the given steps.|[(c, c * 9 / 5 + 32) for c in range(start, stop + 1, step)]|0, 30, 10;-10, 0, 5
clamp(value: float, low: float, high: float) -> float|Limit a value to the interval from low to high.|max(low, min(high, value))|7, 0, 5;-2, -1, 1
chunk(items: List[int], size: int) -> List[List[int]]|Cut a list into consecutive pieces of the given size; the last piece may be shorter.|[items[i:i + size] for i in range(0, len(items), size)]|[4, 8, 15, 16, 23], 2;[1, 2], 5
interleave(first: List[int], second: List[int]) -> List[int]|Take elements from both lists in turn, beginning with the first. When one list runs out, append what is left of the other.|[x for p in zip(first, second) for x in p] + first[len(second):] + second[len(first):]|[1, 3], [2, 4, 6, 8];[5, 5, 5], [0]
rotate_right(items: List[int], steps: int) -> List[int]|Move every element the given number of places to the right; what falls off the end comes back at the front.|(lambda s: items[-s:] + items[:-s] if s else list(items))(steps % len(items))|[6, 2, 5, 4], 1;[7, 8, 9], 5
run_lengths(text: str) -> List[Tuple[str, int]]|Describe a string as a list of (character, how many times it is repeated in a row).|[(k, len(list(g))) for k, g in __import__('itertools').groupby(text)]|"aaabcc";"zz top"
expand_runs(pairs: List[Tuple[str, int]]) -> str|Build the string that a list of (character, repetitions) pairs describes.|''.join(c * n for c, n in pairs)|[("a", 3), ("b", 1)];[("x", 2), ("-", 2), ("x", 2)]
caesar(text: str, shift: int) -> str|Shift lowercase letters forward in the alphabet by the given amount, wrapping round after z. Everything else is kept.|''.join(chr((ord(c) - 97 + shift) % 26 + 97) if c.islower() else c for c in text)|"hello", 3;"xyz!", 2
is_pangram(text: str) -> bool|Does the text use every letter of the English alphabet at least once?|set('abcdefghijklmnopqrstuvwxyz') <= set(text.lower())|"The quick brown fox jumps over the lazy dog";"Hello"
acronym(phrase: str) -> str|Make an acronym out of the initial letters of the words of a phrase.|''.join(w[0].upper() for w in phrase.split())|"portable network graphics";"as soon as possible"
to_snake_case(name: str) -> str|Convert a camelCase identifier to snake_case.|re.sub(r'(?<!^)(?=[A-Z])', '_', name).lower()|"parseHttpHeader";"userId"
to_camel_case(name: str) -> str|Turn a snake_case identifier into camelCase.|(lambda p: p[0] + ''.join(w.title() for w in p[1:]))(name.split('_'))|"max_retry_count";"path"
slugify(title: str) -> str|Make a slug for a web address: lowercase, only letters and digits, words joined by hyphens.|'-'.join(re.findall(r'[a-z0-9]+', title.lower()))|"Ten Tips, for Better Sleep!";"What's new?"
mask_email(address: str) -> str|Hide the part before the @ of an e-mail address except for its first character.|address[0] + '*' * (address.index('@') - 1) + address[address.index('@'):]|"marta@example.com";"jo@site.org"
valid_isbn10(code: str) -> bool|Check an ISBN-10: the sum of its digits weighted 10, 9, ..., 1 must be divisible by 11, and a final X stands for ten.|sum((10 - i) * (10 if c == 'X' else int(c)) for i, c in enumerate(code)) % 11 == 0|"0306406152";"0306406153"
luhn_valid(number: str) -> bool|Check a card number with the Luhn algorithm: double every second digit from the right, subtract 9 where the result exceeds 9, and see if the sum ends in 0.|sum(int(c) if i % 2 == 0 else (int(c) * 2 - 9 if int(c) > 4 else int(c) * 2) for i, c in enumerate(number[::-1])) % 10 == 0|"79927398713";"79927398710"
leap_years(start: int, stop: int) -> List[int]|List the leap years of the Gregorian calendar from start to stop, both included.|[y for y in range(start, stop + 1) if y % 4 == 0 and (y % 100 != 0 or y % 400 == 0)]|1896, 1908;2019, 2024
days_in_month(year: int, month: int) -> int|Return the number of days of a month, with leap years taken into account.|__import__('calendar').monthrange(year, month)[1]|2023, 2;2024, 2;2021, 11
roman_to_int(numeral: str) -> int|Return the value of a Roman numeral written in capitals.|sum(v if v >= w else -v for v, w in (lambda q: zip(q, q[1:] + [0]))([{'I': 1, 'V': 5, 'X': 10, 'L': 50, 'C': 100, 'D': 500, 'M': 1000}[c] for c in numeral]))|"XIV";"MCMXC"
pascal_line(n: int) -> List[int]|Return line n of Pascal's triangle; line 0 is [1].|[__import__('math').comb(n, k) for k in range(n + 1)]|0;4
spiral(matrix: List[List[int]]) -> List[int]|Read a matrix in a clockwise spiral that starts at the top left corner.|(lambda f: f(f, matrix))(lambda f, m: list(m[0]) + f(f, [list(r) for r in zip(*m[1:])][::-1]) if m and m[0] else [])|[[5, 2, 9], [4, 8, 6], [1, 7, 3]];[[6, 2], [9, 4]]
transpose(matrix: List[List[int]]) -> List[List[int]]|Swap rows and columns of a matrix.|[list(r) for r in zip(*matrix)]|[[7, 2, 3], [4, 9, 6]];[[5]]
is_magic_square(square: List[List[int]]) -> bool|Tell whether all rows, all columns and both diagonals of a square have the same sum.|len({*map(sum, square), *map(sum, zip(*square)), sum(square[i][i] for i in range(len(square))), sum(square[i][-1 - i] for i in range(len(square)))}) == 1|[[2, 7, 6], [9, 5, 1], [4, 3, 8]];[[1, 2], [3, 4]]
merge_intervals(intervals: List[Tuple[int, int]]) -> List[Tuple[int, int]]|Join overlapping or touching intervals and return the result sorted by start.|__import__('functools').reduce(lambda a, p: a[:-1] + [(a[-1][0], max(a[-1][1], p[1]))] if a and p[0] <= a[-1][1] else a + [p], sorted(intervals), [])|[(1, 4), (3, 6), (8, 9)];[(5, 7), (0, 5)]
covered_length(intervals: List[Tuple[int, int]]) -> int|How many integer points does at least one of the closed intervals cover?|len({x for a, b in intervals for x in range(a, b + 1)})|[(1, 3), (2, 5)];[(0, 0), (9, 10)]
flatten(nested: list) -> list|Flatten a list of arbitrarily nested lists.|(lambda f: f(f, nested))(lambda f, v: [y for x in v for y in (f(f, x) if isinstance(x, list) else [x])])|[1, [8, [5, 4]], []];[[["a"]], "b"]
depth(nested: list) -> int|Return how deep lists are nested; a list without lists inside has depth 1.|(lambda f: f(f, nested))(lambda f, v: 1 + max((f(f, x) for x in v if isinstance(x, list)), default=0))|[1, 2];[1, [2, [3]]]
invert(mapping: Dict[str, int]) -> Dict[int, List[str]]|Turn a dictionary round: each value becomes a key for the sorted list of keys that had it.|{v: sorted(k for k in mapping if mapping[k] == v) for v in mapping.values()}|{"a": 1, "b": 2, "c": 1};{}
merge_counts(first: Dict[str, int], second: Dict[str, int]) -> Dict[str, int]|Merge two dictionaries of counts; keys that occur in both get the sum.|{k: first.get(k, 0) + second.get(k, 0) for k in {**first, **second}}|{"x": 1, "y": 4}, {"y": 2, "z": 3};{}, {"q": 7}
group_anagrams(words: List[str]) -> List[List[str]]|Put words that are anagrams of each other into one list; groups appear in the order of their first words.|list((lambda d: [d.setdefault(''.join(sorted(w)), []).append(w) for w in words] and d)({}).values())|["tea", "tan", "eat", "nat", "bat"];["abc"]
balance_after(transactions: List[Tuple[str, int]], start: int) -> int|Apply deposits ("in", amount) and withdrawals ("out", amount) to a starting balance. A withdrawal that would overdraw the account is skipped.|__import__('functools').reduce(lambda b, t: b + t[1] if t[0] == 'in' else b - t[1] if t[1] <= b else b, transactions, start)|[("in", 50), ("out", 30), ("out", 100)], 20;[("out", 5)], 3
longest_streak(days: List[bool]) -> int|Return the largest number of True values in a row.|max((len(s) for s in ''.join('x' if d else ' ' for d in days).split()), default=0)|[True, True, False, True];[False]
top_k(items: List[int], k: int) -> List[int]|Return the k largest items in descending order; all of them if there are fewer.|sorted(items, reverse=True)[:k]|[4, 9, 1, 7], 2;[3], 4
second_smallest(values: List[int]) -> Optional[int]|Return the second smallest of the different values, or None if all are equal.|(sorted(set(values)) + [None, None])[1] if values else None|[5, 1, 1, 4];[2, 2]
majority(votes: List[str]) -> Optional[str]|Return the option that got more than half of all votes, or None.|next((v for v in set(votes) if 2 * votes.count(v) > len(votes)), None)|["a", "b", "a"];["a", "b"]
moving_average(values: List[float], width: int) -> List[float]|Average every window of the given width; the result has one entry for each full window.|[sum(values[i:i + width]) / width for i in range(len(values) - width + 1)]|[2.0, 4.0, 6.0, 8.0], 2;[1.0, 2.0, 6.0], 3
normalise_weights(weights: List[float]) -> List[float]|Scale non-negative weights so that they add up to 1; weights that are all zero become equal shares.|[w / sum(weights) for w in weights] if sum(weights) else [1 / len(weights)] * len(weights)|[1.0, 3.0];[0.0, 0.0]
dot(u: List[float], v: List[float]) -> float|Return the scalar product of two vectors of the same length.|sum(a * b for a, b in zip(u, v))|[1.5, 2.0], [4.0, 3.0];[0.5], [8.0]
manhattan(p: Tuple[int, int], q: Tuple[int, int]) -> int|How many blocks does a taxi drive from p to q in a city whose streets form a grid?|abs(p[0] - q[0]) + abs(p[1] - q[1])|(1, 2), (4, -2);(0, 0), (0, 0)
walk(path: str) -> Tuple[int, int]|Follow the letters N, S, E and W, one step each, from (0, 0) and return the position reached; north raises y, east raises x.|(path.count('E') - path.count('W'), path.count('N') - path.count('S'))|"NNE";"SWSW"
hamming(first: str, second: str) -> int|Count the places at which two strings of equal length differ.|sum(a != b for a, b in zip(first, second))|"karolin", "kathrin";"101", "101"
common_prefix(words: List[str]) -> str|Return the longest string with which all words begin.|__import__('os').path.commonprefix(words)|["flower", "flow", "flight"];["dog", "cat"]
wrap_words(text: str, width: int) -> List[str]|Break a text into lines of at most the given width, without cutting words.|__import__('textwrap').wrap(text, width)|"the quick brown fox", 9;"a bb ccc", 4
parse_query(query: str) -> Dict[str, str]|Parse a query string such as "a=1&b=2" into a dictionary; a key without "=" gets an empty value.|{p.partition('=')[0]: p.partition('=')[2] for p in query.split('&') if p}|"page=2&sort=name";"debug&x=1"
parse_version(version: str) -> Tuple[int, ...]|Convert a version like "3.11.2" to a tuple of integers that can be compared.|tuple(map(int, version.split('.')))|"3.11.2";"10.0"
evaluate_rpn(tokens: List[str]) -> int|Evaluate an expression in reverse Polish notation with +, - and * on integers.|(lambda st: [st.append(int(t)) if t not in '+-*' else st.append((lambda b, a: a + b if t == '+' else a - b if t == '-' else a * b)(st.pop(), st.pop())) for t in tokens] and st[-1])([])|["2", "3", "+", "4", "*"];["7", "10", "-"]
change_coins(amount: int) -> Dict[int, int]|Pay an amount with as few coins of 50, 20, 10, 5, 2 and 1 as possible; return a dictionary from coin to how many of it are used.|(lambda f: f(f, amount, (50, 20, 10, 5, 2, 1)))(lambda f, a, cs: {} if not cs else {**({cs[0]: a // cs[0]} if a // cs[0] else {}), **f(f, a % cs[0], cs[1:])})|87;40
collatz_peak(n: int) -> int|Halve even numbers and replace odd ones by 3n + 1 until 1 is reached. Return the largest value met on the way, n included.|(lambda f: f(f, n))(lambda f, v: 1 if v == 1 else max(v, f(f, v // 2 if v % 2 == 0 else 3 * v + 1)))|6;7
prime_gaps(limit: int) -> List[int]|Return the gaps between consecutive primes up to the limit.|(lambda p: [b - a for a, b in zip(p, p[1:])])([n for n in range(2, limit + 1) if all(n % i for i in range(2, n))])|12;20
lcm_of_list(values: List[int]) -> int|Return the least common multiple of all values in a list.|__import__('math').lcm(*values)|[4, 6];[3, 5, 10]
compound(principal: float, rate: float, years: int) -> float|Return the capital after a number of years with yearly compounding at a rate in percent, rounded to cents.|round(principal * (1 + rate / 100) ** years, 2)|1000.0, 5.0, 2;200.0, 0.0, 7
bmi_class(weight: float, height: float) -> str|Divide the weight in kilograms by the squared height in metres and return "under" below 18.5, "normal" below 25 and "over" otherwise.|(lambda b: 'under' if b < 18.5 else 'normal' if b < 25 else 'over')(weight / height ** 2)|70.0, 1.75;50.0, 1.8
tip_split(bill: float, tip_percent: float, people: int) -> float|Add a tip to a bill, share the result equally and round to cents.|round(bill * (1 + tip_percent / 100) / people, 2)|80.0, 15, 4;33.5, 10, 2
shipping_fee(weight: float, express: bool) -> float|A parcel costs 4.5 up to 1 kg and 1.2 more for each further kilogram or part of it. Express doubles the price.|round((4.5 + 1.2 * max(0, __import__('math').ceil(weight) - 1)) * (2 if express else 1), 2)|0.8, False;2.3, True
grade_counts(marks: List[int]) -> Dict[str, int]|Count marks as "fail" (below 50), "pass" (50 to 74) and "distinction" (75 and above).|{'fail': sum(m < 50 for m in marks), 'pass': sum(50 <= m < 75 for m in marks), 'distinction': sum(m >= 75 for m in marks)}|[30, 62, 75, 91];[]
sort_versions(versions: List[str]) -> List[str]|Sort version strings by their numeric parts, the oldest first.|sorted(versions, key=lambda v: [int(p) for p in v.split('.')])|["1.10", "1.9", "1.2.5"];["2.0"]
sort_by_last_name(names: List[str]) -> List[str]|Sort full names by the last word, then by the whole name.|sorted(names, key=lambda n: (n.split()[-1], n))|["Ann Lee", "Bob Day", "Al Lee"];["Zoe Poe"]
stable_partition(items: List[int], pivot: int) -> List[int]|Put all items below the pivot before all others and keep the order within both groups.|[x for x in items if x < pivot] + [x for x in items if x >= pivot]|[5, 1, 8, 2], 5;[3, 3], 3
zigzag(text: str) -> str|Return a string whose letters are alternately uppercase and lowercase, beginning with uppercase; other characters don't count.|(lambda it: ''.join((c.upper() if next(it) % 2 == 0 else c.lower()) if c.isalpha() else c for c in text))(__import__('itertools').count())|"hello you";"a-b-c"
bracket_depth(text: str) -> int|Return how deeply square brackets are nested in a text at most; brackets may be assumed to match.|max((text[:i].count('[') - text[:i].count(']') for i in range(len(text) + 1)))|"a[b[c]]d";"none"
ordinal(n: int) -> str|Return an English ordinal such as "1st", "12th" or "23rd".|f"{n}{'th' if n % 100 in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"|1;12;23
human_size(size: int) -> str|Print a number of bytes with one decimal in B, KB, MB or GB, where each unit is 1024 of the one before.|(lambda f: f(f, float(size), ['B', 'KB', 'MB', 'GB']))(lambda f, v, u: f"{v:.1f} {u[0]}" if v < 1024 or len(u) == 1 else f(f, v / 1024, u[1:]))|512;1536;5242880
thousands(n: int) -> str|Write an integer with an apostrophe between groups of three digits.|f"{n:,}".replace(',', "'")|1234567;42
luminance(color: str) -> float|Given a colour "#rrggbb", return 0.299 r + 0.587 g + 0.114 b, rounded to one decimal.|round(0.299 * int(color[1:3], 16) + 0.587 * int(color[3:5], 16) + 0.114 * int(color[5:7], 16), 1)|"#ffffff";"#102030"
triangle_kind(a: float, b: float, c: float) -> str|Name a triangle by its sides: "equilateral", "isosceles", "scalene", or "impossible" if one side is too long.|'impossible' if 2 * max(a, b, c) >= a + b + c else {1: 'equilateral', 2: 'isosceles', 3: 'scalene'}[len({a, b, c})]|3, 4, 5;2, 2, 3;1, 1, 9
rectangle_overlap(a: Tuple[int, int, int, int], b: Tuple[int, int, int, int]) -> int|Two rectangles are given as (left, bottom, right, top). Return the area that they share.|max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))|(0, 0, 4, 4), (2, 1, 6, 3);(0, 0, 1, 1), (1, 1, 2, 2)
polygon_area(points: List[Tuple[int, int]]) -> float|Compute the area of a simple polygon from its corners with the shoelace formula.|abs(sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1]))) / 2|[(0, 0), (4, 0), (4, 3)];[(0, 0), (2, 0), (2, 2), (0, 2)]
neighbours(row: int, column: int, height: int, width: int) -> List[Tuple[int, int]]|List the cells above, below, left and right of a cell (in this order) that lie inside the grid.|[(r, c) for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)) if 0 <= r < height and 0 <= c < width]|0, 0, 2, 2;1, 1, 3, 3
tic_tac_toe_winner(board: List[str]) -> str|A board is three strings of 'X', 'O' and '.'. Return the player who has three in a line, or "" if nobody has.|next((p for p in 'XO' if any(all(board[r][c] == p for r, c in l) for l in [[(i, j) for j in range(3)] for i in range(3)] + [[(j, i) for j in range(3)] for i in range(3)] + [[(i, i) for i in range(3)], [(i, 2 - i) for i in range(3)]])), '')|["XXX", "OO.", "..."];["XO.", "OX.", "..O"]
hand_value(cards: List[str]) -> int|Add card values: numbers count as they are, J, Q and K ten, and an ace eleven, or one if the total would exceed 21.|(lambda f: f(f, sum(11 if c == 'A' else 10 if c in 'JQK' else int(c) for c in cards), cards.count('A')))(lambda f, t, a: t if t <= 21 or a == 0 else f(f, t - 10, a - 1))|["A", "K"];["A", "9", "5"]
first_missing(values: List[int]) -> int|Return the smallest positive integer that isn't in the list.|next(i for i in range(1, len(values) + 2) if i not in values)|[3, 4, -1, 1];[]
symmetric_difference_sorted(a: List[int], b: List[int]) -> List[int]|Return the values that occur in exactly one of two lists, in ascending order and without repeats.|sorted(set(a) ^ set(b))|[1, 2, 3], [3, 4];[5], [5]
is_subsequence(small: str, large: str) -> bool|Can the small string be obtained from the large one by deleting characters?|(lambda it: all(c in it for c in small))(iter(large))|"ace", "abcde";"aec", "abcde"
count_inversions(values: List[int]) -> int|Count the pairs of positions whose values stand in the wrong order.|sum(values[i] > values[j] for i in range(len(values)) for j in range(i + 1, len(values)))|[2, 4, 1];[1, 2, 3]
equilibrium(values: List[int]) -> int|Return the first index at which the sum of everything to the left equals the sum of everything to the right, or -1.|next((i for i in range(len(values)) if sum(values[:i]) == sum(values[i + 1:])), -1)|[1, 7, 3, 6, 5, 6];[1, 2]
best_trade(prices: List[int]) -> int|Return the greatest profit from buying once and selling once later; 0 if prices only fall.|max((prices[j] - prices[i] for i in range(len(prices)) for j in range(i, len(prices))), default=0)|[7, 1, 5, 3, 6, 4];[5, 4]
trapped_water(heights: List[int]) -> int|Walls of width one and the given heights stand side by side. How many units of water can stay between them after rain?|sum(min(max(heights[:i + 1]), max(heights[i:])) - h for i, h in enumerate(heights))|[3, 0, 2];[1, 2, 1]
stairs(n: int) -> int|In how many ways can one climb n stairs, taking one, two or three at a time?|(lambda f: f(f, n))(lambda f, m: 1 if m == 0 else sum(f(f, m - s) for s in (1, 2, 3) if s <= m))|3;5
look_and_say(term: str) -> str|Return the term of the look-and-say sequence that follows the given one.|''.join(str(len(list(g))) + k for k, g in __import__('itertools').groupby(term))|"1211";"3"
morse(word: str) -> str|Translate a word made of the letters s, o, e and t to Morse code, with spaces between letters.|' '.join({'s': '...', 'o': '---', 'e': '.', 't': '-'}[c] for c in word)|"sos";"toe"
atbash(text: str) -> str|Replace each lowercase letter by the one at the mirrored place in the alphabet (a by z, b by y and so on).|''.join(chr(219 - ord(c)) if c.islower() else c for c in text)|"abc xyz";"wizard"
parity_bit(bits: str) -> str|Append one bit to a string of bits so that the number of ones becomes even.|bits + str(bits.count('1') % 2)|"1011";"0000"
gray_code(n: int) -> str|Return the Gray code of n in binary, without leading zeros.|bin(n ^ n >> 1)[2:]|2;9
ip_to_int(address: str) -> int|Convert a dotted IPv4 address to the integer that its four bytes form.|int.from_bytes(bytes(map(int, address.split('.'))), 'big')|"0.0.1.1";"10.0.0.1"
valid_password(password: str) -> bool|A password must have at least eight characters, a digit, a lowercase and an uppercase letter.|len(password) >= 8 and any(c.isdigit() for c in password) and any(c.islower() for c in password) and any(c.isupper() for c in password)|"Sunny2day";"short1A"
word_frequencies(text: str) -> List[Tuple[str, int]]|Count the words of a text without regard to case and sort them by falling count, then by word.|(lambda ws: sorted({(w, ws.count(w)) for w in ws}, key=lambda p: (-p[1], p[0])))(text.lower().split())|"the cat and the dog";"a b A"
title_except(title: str, small: List[str]) -> str|Capitalise the words of a title, except for the given small words where they aren't the first word.|' '.join(w if w in small and i else w.capitalize() for i, w in enumerate(title.split()))|"the lord of the rings", ["of", "the"];"war and peace", ["and"]
csv_column(text: str, name: str) -> List[str]|The first line of a text holds column names separated by commas. Return the column with the given name.|(lambda rows: [r[rows[0].index(name)] for r in rows[1:]])([l.split(',') for l in text.split('\n')])|"id,city\n1,Rome\n2,Oslo", "city";"a,b\n3,4", "a"
elevator_distance(floors: List[int]) -> int|An elevator visits the floors in the given order. How many floors does it travel in all?|sum(abs(a - b) for a, b in zip(floors, floors[1:]))|[0, 5, 2];[3]
tournament_rounds(players: int) -> int|In a knockout tournament an odd player waits for the next round. How many rounds are needed until one is left?|(players - 1).bit_length()|8;9
bus_passengers(stops: List[Tuple[int, int]]) -> int|Each stop is (people getting on, people getting off). Return the greatest number of passengers aboard at any time.|max(__import__('itertools').accumulate((a - b for a, b in stops), initial=0))|[(3, 0), (5, 2), (0, 4)];[]
water_bill(litres: int) -> float|The first 1000 litres cost 2.0 per hundred, the rest 3.5 per hundred. Return the bill rounded to cents.|round(min(litres, 1000) / 100 * 2 + max(0, litres - 1000) / 100 * 3.5, 2)|800;1500
seat_label(index: int, per_row: int) -> str|Seats are numbered from 0, row by row. Return a label such as "B3" with a letter for the row and a number from 1.|chr(65 + index // per_row) + str(index % per_row + 1)|0, 4;6, 4
rhyme_groups(words: List[str]) -> Dict[str, List[str]]|Group words by their last two letters.|{w[-2:]: [v for v in words if v[-2:] == w[-2:]] for w in words}|["cat", "hat", "dog"];["moon", "spoon"]
sort_by_length_then_name(words: List[str]) -> List[str]|Order words by length, the longest first; words of the same length are ordered alphabetically.|sorted(words, key=lambda w: (-len(w), w))|["fig", "banana", "kiwi", "plum"];["b", "a"]
remove_every_nth(items: List[int], n: int) -> List[int]|Leave out every n-th element, counting from one.|[x for i, x in enumerate(items, 1) if i % n]|[3, 6, 2, 9, 5], 2;[1, 1, 1], 3
peaks_in(values: List[int]) -> List[int]|Return the indices of the elements that are greater than both of their neighbours. The first and the last element have only one neighbour and never count.|[i for i in range(1, len(values) - 1) if values[i - 1] < values[i] > values[i + 1]]|[1, 5, 2, 8, 3];[4, 4, 4]
water_level(changes: List[int], limit: int) -> int|A tank is empty at first. Apply the changes one by one; the level can't fall below zero and can't rise above the limit. Return the final level.|__import__('functools').reduce(lambda l, c: max(0, min(limit, l + c)), changes, 0)|[5, 7, -3], 10;[-4, 2], 10
first_repeated(items: List[str]) -> Optional[str]|Return the first item that has already occurred before, or None if all are different.|next((x for i, x in enumerate(items) if x in items[:i]), None)|["a", "c", "b", "c", "a"];["x"]
count_steps_to_one(n: int) -> int|If n is even, divide it by two, otherwise subtract one. How many steps does it take to get down to 1?|(lambda f: f(f, n))(lambda f, v: 0 if v == 1 else 1 + f(f, v // 2 if v % 2 == 0 else v - 1))|10;1
swap_ends(text: str) -> str|Exchange the first and the last character of a string; shorter strings than two characters stay as they are.|text[-1] + text[1:-1] + text[0] if len(text) > 1 else text|"planet";"q"
repeat_by_position(text: str) -> str|Write the first character once, the second twice, the third three times, and so on, with a dash between the groups.|'-'.join(c * i for i, c in enumerate(text, 1))|"abc";"Go"
count_islands_in_row(cells: str) -> int|A string consists of '#' (land) and '.' (water). Count the groups of adjacent land cells.|len(cells.replace('.', ' ').split())|"##..#.###";"...."
spreadsheet_column(index: int) -> str|Spreadsheet columns are called A, B, ..., Z, AA, AB, ... Return the name of the column with the given number, where A is 1.|(lambda f: f(f, index))(lambda f, v: '' if v == 0 else f(f, (v - 1) // 26) + chr(65 + (v - 1) % 26))|3;28
traffic_fine(speed: int, limit: int) -> int|Up to the limit there is no fine. Up to 10 km/h too fast costs 30, up to 25 too fast 80, and anything beyond 200.|0 if speed <= limit else 30 if speed <= limit + 10 else 80 if speed <= limit + 25 else 200|48, 50;58, 50;90, 50
movie_price(age: int, weekday: bool) -> int|A ticket costs 12. Children under 14 pay half, people from 65 on pay 9, and on weekdays everyone pays 2 less.|(6 if age < 14 else 9 if age >= 65 else 12) - (2 if weekday else 0)|10, False;70, True
dominoes_fit(tiles: List[Tuple[int, int]]) -> bool|Tell whether domino tiles, laid in the given order without turning them, form a chain: each right half must equal the next left half.|all(a[1] == b[0] for a, b in zip(tiles, tiles[1:]))|[(1, 4), (4, 2), (2, 2)];[(3, 5), (3, 6)]
winning_team(goals: List[Tuple[str, int]]) -> Optional[str]|Each entry is a team and the number of goals that it scored in one period. Return the team with most goals overall, or None in case of a draw.|(lambda t: (lambda b: b[0] if len(b) == 1 else None)([k for k in t if t[k] == max(t.values())]))({k: sum(g for n, g in goals if n == k) for k, _ in goals})|[("red", 2), ("blue", 1), ("blue", 3)];[("red", 1), ("blue", 1)]
bulls_and_cows(secret: str, guess: str) -> Tuple[int, int]|Return how many digits of a guess are right and in the right place, and how many others are right but in the wrong place. All digits of the secret differ, and so do those of the guess.|(sum(a == b for a, b in zip(secret, guess)), sum(c in secret for c in guess) - sum(a == b for a, b in zip(secret, guess)))|"1234", "1325";"9876", "1234"
robot_energy(commands: str) -> int|A robot spends 3 units for each 'F' (forward), 1 for each 'L' or 'R' (turn) and gains 2 for each 'W' (wait). Return the units spent in all; it may be negative.|3 * commands.count('F') + commands.count('L') + commands.count('R') - 2 * commands.count('W')|"FFLW";"WWR"
fill_missing(values: List[Optional[int]]) -> List[int]|Replace each None by the last number before it, or by 0 if there is none.|(lambda r: [r.append(v if v is not None else (r[-1] if r else 0)) for v in values] and r or r)([])|[4, None, None, 7];[None, 3]
pack_boxes(weights: List[int], limit: int) -> int|Put things into boxes in the given order; open a new box whenever the next thing would exceed the weight limit. Return the number of boxes.|(lambda r: len(r) if weights else 0)(__import__('functools').reduce(lambda b, w: b[:-1] + [b[-1] + w] if b and b[-1] + w <= limit else b + [w], weights, []))|[4, 3, 5, 2], 8;[9, 9], 9
count_pairs_with_gap(values: List[int], gap: int) -> int|Count the unordered pairs of positions whose values differ by exactly the given gap.|sum(abs(values[i] - values[j]) == gap for i in range(len(values)) for j in range(i))|[1, 3, 5, 3], 2;[7], 0
snake_rows(width: int, height: int) -> List[List[int]]|Number the cells of a grid from 1, row by row; every second row runs from right to left.|[list(range(r * width + 1, (r + 1) * width + 1))[::-1 if r % 2 else 1] for r in range(height)]|3, 2;1, 2
diagonal_sums(matrix: List[List[int]]) -> Tuple[int, int]|Return the sums of the main diagonal and of the other diagonal of a square matrix.|(sum(r[i] for i, r in enumerate(matrix)), sum(r[-1 - i] for i, r in enumerate(matrix)))|[[6, 1], [2, 9]];[[3]]
count_words_by_length(text: str) -> Dict[int, int]|Map each word length in a text to the number of words that have it.|(lambda q: {n: q.count(n) for n in sorted(set(q))})([len(w) for w in text.split()])|"the owl and a bird";""
strip_comments(code: str) -> str|Remove everything from a '#' to the end of its line, and trailing spaces, from a program text.|'\n'.join(line.split('#')[0].rstrip() for line in code.split('\n'))|"x = 1  # start\ny = 2";"# nothing"
is_valid_time(text: str) -> bool|Is the text a time of the form HH:MM with hours from 00 to 23 and minutes from 00 to 59?|bool(re.fullmatch(r'([01]\d;2[0-3]):[0-5]\d'.replace(';', chr(124)), text))|"09:41";"24:00";"7:30"
to_base(n: int, base: int) -> str|Write a non-negative integer in a base between 2 and 16, with the digits 0-9 and a-f.|(lambda f: f(f, n))(lambda f, v: '0123456789abcdef'[v] if v < base else f(f, v // base) + '0123456789abcdef'[v % base])|26, 16;7, 2
sum_of_multiples(limit: int, factors: List[int]) -> int|Add all positive integers below the limit that are divisible by at least one of the factors.|sum(i for i in range(1, limit) if any(i % f == 0 for f in factors))|12, [4, 6];10, [3]
longest_rising_run(values: List[int]) -> List[int]|Return the longest run of consecutive elements in which each is greater than the one before; the earliest one wins a tie.|max(([values[i:j] for i in range(len(values)) for j in range(i + 1, len(values) + 1) if all(a < b for a, b in zip(values[i:j], values[i + 1:j]))]), key=len, default=[])|[5, 1, 3, 8, 2, 9];[]
inventory_value(stock: Dict[str, int], prices: Dict[str, float]) -> float|Multiply the number of pieces of each item by its price and add everything up; items without a price count as 0.|round(sum(n * prices.get(k, 0.0) for k, n in stock.items()), 2)|{"pen": 3, "ink": 2}, {"pen": 1.5, "ink": 4.0};{"cap": 1}, {}
common_friends(friends: Dict[str, List[str]], a: str, b: str) -> List[str]|A dictionary maps people to lists of friends. Return the sorted names of those who are friends of both given people.|sorted(set(friends.get(a, [])) & set(friends.get(b, [])))|{"Ann": ["Cy", "Di"], "Bob": ["Di", "Eve"]}, "Ann", "Bob";{}, "x", "y"
nearest_square(n: int) -> int|Return the perfect square that is nearest to n.|min((i * i for i in range(n + 2)), key=lambda q: abs(q - n))|17;8
weekday_after(day: str, steps: int) -> str|Days are called mon, tue, wed, thu, fri, sat and sun. Return the day that comes the given number of steps after a day; steps may be negative.|(lambda d: d[(d.index(day) + steps) % 7])(['mon', 'tue', 'wed', 'thu', 'fri', 'sat', 'sun'])|"fri", 4;"mon", -1
alternate_sort(values: List[int]) -> List[int]|Return the values in the order greatest, smallest, second greatest, second smallest and so on.|(lambda q: [q.pop() if i % 2 == 0 else q.pop(0) for i in range(len(values))])(sorted(values))|[4, 7, 1, 9];[2]
count_sign_changes(values: List[float]) -> int|Count how many times the sign flips between neighbouring values; zeros are ignored.|(lambda q: sum(a * b < 0 for a, b in zip(q, q[1:])))([v for v in values if v])|[1.0, -2.0, 0.0, 3.0];[5.0, 6.0]
safe_divide(values: List[float], divisor: float) -> List[Optional[float]]|Divide all values by the divisor; if it is zero, return None for each of them.|[v / divisor if divisor else None for v in values]|[4.0, 9.0], 2.0;[1.0], 0.0
"""


@lru_cache(maxsize=1)
def single_ideas() -> tuple[Idea, ...]:
    """The functions written one by one, their examples computed."""
    ideas = []
    for entry in _SINGLE.strip().split("\n"):
        signature, doc, expression, calls = entry.split("|", 3)
        match = re.fullmatch(r"(\w+)\((.*)\) -> (.*)", signature)
        assert match, signature
        name, inside, returns = match.groups()
        parameters = tuple(tuple(p.split(": ", 1)) for p in re.split(r", (?=\w+: )", inside))
        run = _function(", ".join(p[0] for p in parameters), expression)
        examples = []
        for call in calls.split(";"):
            arguments = eval(f"({call},)")
            examples.append((call, repr(run(*arguments))))
        ideas.append(Idea(name, parameters, returns, doc, tuple(examples)))
    return tuple(ideas)


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
# Openings of a docstring by the type of the first parameter; what follows is an imperative sentence.
_LEADS = {
    "List[int]": (
        "Given a list of integers, ",
        "You have a list of whole numbers. ",
        "Take a list of integers and ",
        "The input is a list of integers, possibly empty. ",
    ),
    "str": ("Given a string, ", "The argument is a string. ", "You receive a piece of text. "),
    "List[str]": ("Given a list of strings, ", "The input is a list of words. "),
    "int": ("Take a positive integer n and ", "Let n be a positive integer. "),
    "List[List[int]]": ("Given a matrix as a list of rows, ", "The argument is a rectangular table of integers. "),
}
_NOTES = (
    "The input must not be changed.",
    "You may assume that the input is valid.",
    "Use only the standard library.",
    "Keep it simple.",
    "Do not sort unless it is necessary.",
    "A single pass over the input is enough.",
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
    leads = _LEADS.get(idea.parameters[0][1])
    if leads and len(idea.parameters) == 1 and not doc.startswith("`") and rng.random() < 0.4:
        lead = pick(rng, leads)
        doc = lead + (doc[0].lower() + doc[1:] if lead.endswith((", ", "and ")) else doc)
    if rng.random() < 0.12:
        doc += " " + pick(rng, _NOTES)
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


_COMPLETE = (
    "Complete this Python function:\n\n```python\n{code}\n```",
    "Implement the function below in Python.\n\n```python\n{code}\n```",
    "{code}\n",
    "Please finish the body of this function.\n\n{code}",
    "Write the code that belongs in this function and explain it briefly.\n\n```python\n{code}\n```",
    "Here is a function signature with a docstring. Fill in the implementation.\n\n```python\n{code}\n```",
    "Complete the code. Only return Python.\n\n```\n{code}\n```",
    "Can you complete this function for me? Show the full function.\n\n```python\n{code}\n```",
    "I'm stuck on this exercise:\n\n```python\n{code}\n```\n\nCould you write the solution?",
    "Finish the following function so that the examples in its docstring hold.\n\n```python\n{code}\n```",
    "Give me a simple and readable implementation of this:\n\n```python\n{code}\n```",
    "Complete the following code, then describe its time complexity in one sentence.\n\n```python\n{code}\n```",
)
_DESCRIBE = (
    "Write a Python function `{name}` that takes {args}. {doc}",
    "Write a Python function called {name}({plain}). {doc} Add a docstring.",
    "I need a Python function. {doc} Call it `{name}` and show how to use it.",
    "{doc} Write this as a Python function named `{name}` with type hints.",
    "How would I code this in Python? {doc}",
    (
        "Python exercise: {doc} The function is `{name}({plain})`, for instance `{name}({example})` gives `{result}`. "
        "Write a solution and explain each step."
    ),
    "Write two versions of a Python function `{name}`, one with a loop and one without. {doc}",
    "Write a function in Python: {doc} Include three test cases with assert.",
    "Write a JavaScript function `{camel}`. {doc}",
    "Create a small Python script. {doc} Read the input from the user and print the result.",
)
_WITH_BODY = (
    "Explain what this function does, line by line.\n\n```python\n{full}\n```",
    "Add a docstring and type hints to this function.\n\n```python\n{bare}\n```",
    "Write unit tests for this function with pytest.\n\n```python\n{full}\n```",
    "What does this function return for the argument {example}? Think step by step.\n\n```python\n{full}\n```",
    "Rewrite this function with an ordinary for loop, so that a beginner can follow it.\n\n```python\n{full}\n```",
    "Review this code and suggest improvements.\n\n```python\n{bare}\n```",
    "Translate this Python function to JavaScript.\n\n```python\n{full}\n```",
    "Suggest a better name for this function and say what it's for.\n\n```python\n{anonymous}\n```",
    "My function should do this: {doc}\n\n```python\n{broken}\n```\n\nIt gives wrong results. Find the bug and fix it.",
    (
        "There's a mistake in the following function. `{name}({example})` should be `{result}`. Correct it.\n\n"
        "```python\n{broken}\n```"
    ),
    (
        "Refactor this so that it works on large inputs, and handle invalid arguments with a clear exception.\n\n"
        "```python\n{full}\n```"
    ),
    "Write a short documentation page for this function with two usage examples.\n\n```python\n{full}\n```",
)
_BUGS = (
    ("== 0", "!= 0"),
    (" > ", " < "),
    (" <= ", " < "),
    ("== 1", "== 2"),
    ("not in", "in"),
    ("max(", "min("),
    ("sum(", "len("),
    ("sorted(", "list("),
    (" if ", " if not "),
)


def completion(rng: np.random.Generator) -> str:
    """Complete a function, half of the time in exactly HumanEval's wording of `workloads`."""
    code = render_stub(random_idea(rng), rng)
    if rng.random() < 0.55:
        return HUMANEVAL_WORDING.format(code=code)
    return pick(rng, _COMPLETE).format(code=code).strip("\n")


def description(rng: np.random.Generator) -> str:
    """Write a function from a description in words."""
    idea = random_idea(rng)
    example, result = idea.examples[0]
    words = idea.name.split("_")
    return pick(rng, _DESCRIBE).format(
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
    bugs = [(a, b) for a, b in _BUGS if a in idea.body]
    bug = pick(rng, bugs) if bugs else ("return ", "print(")
    broken = bare.replace(*bug, 1) if bugs else bare.replace("    return ", "    ", 1)
    example, result = idea.examples[0]
    return pick(rng, _WITH_BODY).format(
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

_CLASSES = (
    ("Library", "books", "lend", "return", "title"),
    ("Playlist", "songs", "queue", "skip", "artist"),
    ("Garden", "plants", "water", "harvest", "species"),
    ("Fleet", "trucks", "dispatch", "recall", "plate number"),
    ("Zoo", "animals", "feed", "move", "species"),
    ("Menu", "dishes", "offer", "withdraw", "price"),
    ("Calendar", "appointments", "book", "cancel", "date"),
    ("Kiosk", "magazines", "sell", "restock", "publisher"),
    ("Warehouse", "pallets", "store", "ship", "weight"),
    ("Clinic", "patients", "admit", "discharge", "age"),
    ("Festival", "concerts", "schedule", "postpone", "stage"),
    ("Inventory", "parts", "reserve", "release", "part number"),
    ("Aquarium", "fish", "feed", "relocate", "tank"),
    ("Gallery", "paintings", "hang", "store", "painter"),
    ("Bakery", "loaves", "bake", "sell", "flour"),
    ("School", "pupils", "enrol", "transfer", "grade"),
    ("Harbour", "ships", "dock", "release", "length"),
    ("Backlog", "tasks", "add", "complete", "priority"),
    ("Address book", "contacts", "add", "remove", "phone number"),
    ("Parking lot", "cars", "park", "release", "colour"),
)
_CLASS_FORMS = (
    "Write a Python class `{C}` that keeps {n}. It should have methods to {a} and {b} one, and to list all of them.",
    (
        "Design a class `{C}` in Python for {n}, with methods `{a}` and `{b}`, and a method that finds {n} by {f}. "
        "Raise ValueError when something isn't found."
    ),
    "Create a Python dataclass for {n} (choose suitable fields, one of them {f}) and a class `{C}` that can {a} and {b} them.",
    "Write a Python class `{C}` with `__len__`, `__contains__` and `__iter__` over its {n}. Explain why these are useful.",
    (
        "I have a Python program that manages {n} in a plain list of dictionaries. Show me how to rewrite it with a class `{C}` "
        "that can {a} and {b} them."
    ),
    "Write pytest tests for a class `{C}` that can {a} and {b} {n}. Think of edge cases.",
    "Show an example of inheritance in Python with a base class `{C}` for {n} and two subclasses.",
    "Write a Python class `{C}` that saves its {n} to a JSON file and loads them again.",
    "Write a context manager in Python that opens a `{C}`, lets the user {a} {n} and closes it in any case.",
    "Add a method that returns all {n} sorted by {f} to a class `{C}`. Show the whole class.",
    "Write a command-line program in Python with which one can {a}, {b} and list {n}. Use argparse.",
    "Write a REST API with Flask for a `{C}` with endpoints to {a} and {b} {n}.",
)
_TABLES = (
    ("orders", "customer_id", "amount", "created_at"),
    ("employees", "department", "salary", "hired_on"),
    ("students", "course", "grade", "enrolled_on"),
    ("flights", "airline", "delay_minutes", "departure"),
    ("movies", "director", "rating", "released"),
    ("visits", "page", "duration_seconds", "visited_at"),
    ("sales", "region", "revenue", "sold_on"),
    ("rentals", "bike_id", "kilometres", "started_at"),
    ("invoices", "supplier", "total", "due_date"),
    ("measurements", "station", "temperature", "measured_at"),
    ("reviews", "restaurant", "stars", "written_on"),
    ("tickets", "agent", "minutes_open", "opened_at"),
    ("matches", "team", "goals", "played_on"),
    ("donations", "donor", "euros", "given_on"),
    ("parcels", "courier", "weight", "sent_on"),
    ("subscriptions", "plan", "price", "renewed_on"),
)
_SQL_FORMS = (
    "Write an SQL query that shows the average {v} per {k} in the table {t}({k}, {v}, {d}), highest first.",
    "Given a table `{t}` with the columns {k}, {v} and {d}, write a query for the {n} rows with the largest {v}.",
    "Write SQL to find every {k} in `{t}` that has more than {n} rows since 1 January, with the number of rows.",
    "How do I count the rows of `{t}` per month of {d} in SQL? Explain the query.",
    "Write a CREATE TABLE statement for `{t}` with {k}, {v} and {d} and sensible types, and insert {n} sample rows.",
    "In SQL, how can I get the latest row of each {k} from a table `{t}` (columns {k}, {v}, {d})?",
    "Write an SQL query that deletes rows of `{t}` whose {d} is older than {n} years. What should I check before I run it?",
    "Explain the difference between WHERE and HAVING with queries on a table `{t}` that has {k} and {v}.",
    "Write an UPDATE statement that raises {v} by {n} percent in `{t}`, but only for one {k}.",
    "Write a query that lists each {k} of `{t}` with its total {v} and its share of the overall total in percent.",
    "Using pandas, group a data frame `{t}` by {k}, compute the mean and the maximum of {v}, and sort the result.",
    "Read a CSV file {t}.csv with the columns {k}, {v} and {d} with Python's csv module and print the {n} largest values of {v}.",
    "With pandas, load {t}.csv, parse {d} as a date and plot the monthly total of {v}.",
    "My query on `{t}` that filters by {k} and sorts by {d} is slow with {n} million rows. Which index should I create and why?",
)
_SHELL = (
    "finds all files ending in .{e} that are larger than {n} MB",
    "renames every .{e} file in a folder to lower case",
    "counts the lines in all .{e} files below the current directory",
    "deletes .{e} files older than {n} days after asking",
    "makes a dated backup of all .{e} files and keeps only the last {n} backups",
    "prints the {n} most frequent words in a .{e} file",
    "replaces tabs by {n} spaces in every .{e} file",
    "copies all .{e} files that changed in the last {n} hours to another folder",
    "splits a large .{e} file into parts of {n} thousand lines",
    "removes duplicate lines from a .{e} file and keeps the order",
    "checks every {n} minutes whether a .{e} file has changed and prints a message",
    "lists the {n} largest .{e} files with their sizes",
    "moves .{e} files into folders named after their first {n} letters",
)
_SHELL_FORMS = (
    "Write a bash script that {s}.",
    "Give me a one-line shell command that {s}, and explain its parts.",
    "Write a Python script that {s}. Use pathlib.",
    "How can I do this on Linux: a command that {s}?",
    "Write a short Python program that {s}. Add a --dry-run option.",
)
_REGEX = (
    "a date like 2024-05-31",
    "a time like 17:05",
    "a hex colour such as #1fa2ff",
    "an e-mail address",
    "a price with a currency sign and two decimals",
    "a German car number plate",
    "a 24-bit hexadecimal number",
    "a word that is repeated immediately",
    "a quoted string without escapes",
    "a version number such as 2.10.3",
    "a URL that begins with https",
    "an IPv4 address",
    "a line that consists of white space only",
    "a Python comment",
    "a phone number with optional country code",
    "a twelve-digit serial number in groups of four",
    "a Markdown link",
    "a signed decimal number",
    "a hashtag",
    "an ISO week such as 2024-W07",
    "a file name ending in .jpg or .png",
    "an HTML tag",
    "a sentence that ends in a question mark",
    "a Roman numeral below 40",
    "a username of 3 to 16 characters",
)
_REGEX_FORMS = (
    "Write a regular expression that matches {r} and explain it.",
    "In Python, extract every match of {r} from a text with the re module. Show the code.",
    "How do I check in Python whether a string is exactly {r}?",
    "Write a Python function that replaces each {q} in a text by the word REDACTED.",
    "What could go wrong when I use a regular expression to find {r}? Give three tricky inputs.",
    "Write a JavaScript function that returns true if its argument is {r}.",
    "Write three pytest tests for a function that recognises {r}.",
)
_CONCEPTS = (
    "a list comprehension",
    "a decorator",
    "a generator",
    "recursion",
    "a hash table",
    "a binary search",
    "a linked list",
    "a stack",
    "a queue",
    "a breadth-first search",
    "a depth-first search",
    "dynamic programming",
    "memoisation",
    "a lambda function",
    "an abstract base class",
    "a race condition",
    "a deadlock",
    "a unit test",
    "a mock object",
    "a context manager",
    "the difference between a list and a tuple",
    "the difference between == and is",
    "a set",
    "a default argument that is mutable",
    "a virtual environment",
    "exception handling",
    "an f-string",
    "slicing",
    "the global interpreter lock",
    "asynchronous code with async and await",
    "a heap",
    "merge sort",
    "quicksort",
    "insertion sort",
    "a binary tree",
    "a trie",
    "a graph as an adjacency list",
    "big-O notation",
    "type hints",
    "a named tuple",
    "an enum",
    "a property",
    "a class method",
    "a static method",
    "multiple inheritance",
    "a closure",
    "pass by reference",
    "garbage collection",
    "a regular expression",
    "a JSON file",
    "an environment variable",
    "a command-line argument",
    "logging",
    "a Git branch",
    "a merge conflict",
    "a REST API",
    "an HTTP status code",
    "a primary key",
    "a foreign key",
    "a database transaction",
    "an index in a database",
    "a Docker container",
    "a cron job",
    "a symbolic link",
    "a pipe in the shell",
    "an operating system process",
    "a thread",
    "caching",
    "a load balancer",
    "public-key encryption",
    "a hash function",
    "a checksum",
    "floating-point rounding",
    "two's complement",
    "bitwise operators",
    "Unicode",
    "a sliding window",
    "the two-pointer technique",
    "backtracking",
    "a greedy algorithm",
    "topological sorting",
    "Dijkstra's algorithm",
    "a priority queue",
    "a circular buffer",
    "an iterator",
    "zip and enumerate",
    "the map and filter functions",
    "*args and **kwargs",
    "a dictionary comprehension",
    "sorting with a key function",
)
_CONCEPT_FORMS = (
    "Explain {c} in Python with a short example.",
    "What is {c}? I've been programming for two weeks.",
    "Show me {c} in code and walk me through it.",
    "When would I use {c}, and when not?",
    "Give me three exercises about {c}, with solutions.",
    "What mistakes do beginners make with {c}?",
    "Write a short tutorial about {c}.",
    "Explain {c} with an analogy from the kitchen, then with code.",
    "I have an interview tomorrow. Ask me a question about {c} and give a model answer.",
    "Write a runnable example of {c} with comments.",
)


def other_code(rng: np.random.Generator) -> str:
    """Classes, SQL, shell scripts, regular expressions and questions about concepts."""
    kind = rng.random()
    if kind < 0.22:
        name, things, first, second, key = pick(rng, _CLASSES)
        return pick(rng, _CLASS_FORMS).format(C=name.title().replace(" ", ""), n=things, a=first, b=second, f=key)
    if kind < 0.44:
        table, key, value, date = pick(rng, _TABLES)
        return pick(rng, _SQL_FORMS).format(t=table, k=key, v=value, d=date, n=int(rng.integers(2, 12)))
    if kind < 0.62:
        task = pick(rng, _SHELL).format(
            e=pick(rng, ("txt", "log", "csv", "jpg", "py", "md", "json")), n=int(rng.integers(2, 30))
        )
        return pick(rng, _SHELL_FORMS).format(s=task)
    if kind < 0.72:
        what = pick(rng, _REGEX)
        return pick(rng, _REGEX_FORMS).format(r=what, q=re.sub(r"^an? ", "", what))
    return pick(rng, _CONCEPT_FORMS).format(c=pick(rng, _CONCEPTS))
