"""What the made-up functions do, by the name that their description has in the templates: results of examples are true."""

# ruff: noqa: B905, RUF007 (written as a reader of the instructions might write it)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

# A number of a list: x, with constants k and d; what becomes of it: x, with s; what becomes of the list.
CONDITIONS: dict[str, Callable[..., Any]] = {
    "even": lambda x, k, d: x % 2 == 0,
    "odd": lambda x, k, d: x % 2 == 1,
    "negative": lambda x, k, d: x < 0,
    "nonzero": lambda x, k, d: x != 0,
    "multiples_of_{k}": lambda x, k, d: x % k == 0,
    "not_divisible_by_{k}": lambda x, k, d: x % k != 0,
    "above_{k}": lambda x, k, d: x > k,
    "at_most_{k}": lambda x, k, d: x <= k,
    "within_{k}": lambda x, k, d: abs(x) <= k,
    "two_digit": lambda x, k, d: 10 <= abs(x) <= 99,
    "ending_in_{d}": lambda x, k, d: abs(x) % 10 == d,
    "square": lambda x, k, d: x >= 0 and int(x**0.5) ** 2 == x,
    "repdigit": lambda x, k, d: len(set(str(abs(x)))) == 1,
    "containing_{d}": lambda x, k, d: str(d) in str(x),
    "even_digit_sum": lambda x, k, d: sum(map(int, str(abs(x)))) % 2 == 0,
    "power_of_two": lambda x, k, d: x > 0 and x & (x - 1) == 0,
}
MAPS: dict[str, Callable[..., Any]] = {
    "": lambda x, s: x,
    "squares_of_": lambda x, s: x * x,
    "cubes_of_": lambda x, s: x**3,
    "magnitudes_of_": lambda x, s: abs(x),
    "negated_": lambda x, s: -x,
    "last_digits_of_": lambda x, s: abs(x) % 10,
    "digit_sums_of_": lambda x, s: sum(map(int, str(abs(x)))),
    "halves_of_": lambda x, s: x // 2,
    "lengths_of_": lambda x, s: len(str(abs(x))),
    "shifted_": lambda x, s: x + s,
    "tripled_": lambda x, s: 3 * x,
}
REDUCES: dict[str, Callable[..., Any]] = {
    "total": lambda values: sum(values),
    "product": lambda values: math.prod(values),
    "collect": lambda values: values,
    "sorted": lambda values: sorted(values),
    "descending": lambda values: sorted(values, reverse=True),
    "distinct": lambda values: len(set(values)),
    "highest": lambda values: max(values, default=None),
    "lowest": lambda values: min(values, default=None),
    "average": lambda values: round(sum(values) / len(values), 2) if values else 0.0,
    "spread": lambda values: max(values) - min(values) if len(values) > 1 else 0,
    "first": lambda values: values[0] if values else None,
    "last": lambda values: values[-1] if values else None,
    "running_total": lambda values: [sum(values[: i + 1]) for i in range(len(values))],
    "unique": lambda values: list(dict.fromkeys(values)),
}
# Pairs.
PAIR_VALUES: dict[str, Callable[..., Any]] = {
    "differences": lambda a, b: b - a,
    "gaps": lambda a, b: abs(a - b),
    "products": lambda a, b: a * b,
    "peaks": lambda a, b: max(a, b),
    "lows": lambda a, b: min(a, b),
    "sums": lambda a, b: a + b,
}
PAIR_REDUCES: dict[str, Callable[..., Any]] = {
    "list": lambda values: values,
    "largest": lambda values: max(values, default=None),
    "smallest": lambda values: min(values, default=None),
    "total": lambda values: sum(values),
    "count_even": lambda values: sum(v % 2 == 0 for v in values),
    "count_negative": lambda values: sum(v < 0 for v in values),
    "all_positive": lambda values: all(v > 0 for v in values),
    "any_zero": lambda values: 0 in values,
}
PAIRINGS: dict[str, Callable[..., Any]] = {
    "neighbours": lambda xs, ys: zip(xs, xs[1:]),
    "two_apart": lambda xs, ys: zip(xs, xs[2:]),
    "mirrored": lambda xs, ys: zip(xs[: len(xs) // 2], xs[::-1]),
    "cyclic": lambda xs, ys: zip(xs, xs[1:] + xs[:1]),
    "aligned": lambda xs, ys: zip(xs, ys),
    "crossed": lambda xs, ys: zip(xs, ys[::-1]),
    "all_pairs": lambda xs, ys: ((x, y) for x in xs for y in ys),
}
# Matrices.
LINES: dict[str, Callable[..., Any]] = {
    "rows": lambda m: m,
    "columns": lambda m: [list(c) for c in zip(*m)],
    "even_rows": lambda m: m[::2],
    "border_rows": lambda m: [m[0], m[-1]],
    "reversed_rows": lambda m: m[::-1],
    "column_pairs": lambda m: [list(c) for c in zip(*m)][::2],
}
LINE_VALUES: dict[str, Callable[..., Any]] = {
    "sum": lambda r: sum(r),
    "max": lambda r: max(r),
    "min": lambda r: min(r),
    "range": lambda r: max(r) - min(r),
    "count_negative": lambda r: sum(v < 0 for v in r),
    "count_zero": lambda r: r.count(0),
    "argmax": lambda r: r.index(max(r)),
    "distinct": lambda r: len(set(r)),
}
LINE_REDUCES: dict[str, Callable[..., Any]] = {
    "list": lambda values: values,
    "best": lambda values: max(values),
    "worst": lambda values: min(values),
    "total": lambda values: sum(values),
    "equal": lambda values: len(set(values)) == 1,
    "ascending": lambda values: values == sorted(values),
}
# Characters c of a string s that fulfil e.
CHARS: dict[str, Callable[..., Any]] = {
    "vowels": lambda c, z: c.lower() in "aeiou",
    "consonants": lambda c, z: c.isalpha() and c.lower() not in "aeiou",
    "digits": lambda c, z: c.isdigit(),
    "capitals": lambda c, z: c.isupper(),
    "lowercase": lambda c, z: c.islower(),
    "symbols": lambda c, z: not c.isalnum() and c != " ",
    "spaces": lambda c, z: c == " ",
    "early_letters": lambda c, z: "a" <= c.lower() <= "m",
    "late_letters": lambda c, z: "n" <= c.lower() <= "z",
    "letter_{z}": lambda c, z: c.lower() == z,
    "not_{z}": lambda c, z: c != z,
}
CHAR_OPS: dict[str, Callable[..., Any]] = {
    "strip": lambda s, e: "".join(c for c in s if not (e(c))),
    "keep": lambda s, e: "".join(c for c in s if e(c)),
    "star": lambda s, e: "".join("*" if e(c) else c for c in s),
    "double": lambda s, e: "".join(c * 2 if e(c) else c for c in s),
    "last": lambda s, e: "".join(c for c in s if not (e(c))) + "".join(c for c in s if e(c)),
    "positions": lambda s, e: [i for i, c in enumerate(s) if e(c)],
    "share": lambda s, e: round(sum(1 for c in s if e(c)) / len(s), 2) if s else 0.0,
    "first": lambda s, e: next((i for i, c in enumerate(s) if e(c)), -1),
    "longest_run": lambda s, e: max((len(p) for p in "".join("x" if e(c) else " " for c in s).split()), default=0),
    "mirror": lambda s, e: (lambda q: "".join(q.pop() if e(c) else c for c in s))([c for c in s if e(c)]),
    "most_common": lambda s, e: (lambda q: "".join(sorted(c for c in set(q) if q.count(c) == max(map(q.count, q)))))(
        [c for c in s if e(c)]
    ),
    "swap_case": lambda s, e: "".join(c.swapcase() if e(c) else c for c in s),
    "tally": lambda s, e: (lambda q: {c: q.count(c) for c in dict.fromkeys(q)})([c for c in s if e(c)]),
    "ranks": lambda s, e: (sum(1 for c in s[: len(s) // 2] if e(c)), sum(1 for c in s[len(s) // 2 :] if e(c))),
}
# Words w of a sentence; the words q of those in ws.
WORD_CONDITIONS: dict[str, Callable[..., Any]] = {
    "long": lambda w, k, z: len(w) > k,
    "short": lambda w, k, z: len(w) <= k,
    "starting_with_{z}": lambda w, k, z: w.lower().startswith(z),
    "ending_with_{z}": lambda w, k, z: w.lower().endswith(z),
    "containing_{z}": lambda w, k, z: z in w,
    "capitalised": lambda w, k, z: w[0].isupper(),
    "double_letter": lambda w, k, z: any(a == b for a, b in zip(w, w[1:])),
    "isogram": lambda w, k, z: len(set(w.lower())) == len(w),
    "vowel_first": lambda w, k, z: w[0].lower() in "aeiou",
    "even_length": lambda w, k, z: len(w) % 2 == 0,
    "numeric": lambda w, k, z: w.isdigit(),
    "same_ends": lambda w, k, z: w[0].lower() == w[-1].lower(),
}
WORD_OPS: dict[str, Callable[..., Any]] = {
    "count_words": lambda q, ws: len(q),
    "list_words": lambda q, ws: q,
    "drop_words": lambda q, ws: " ".join(w for w in ws if w not in q),
    "reverse_words": lambda q, ws: " ".join(w[::-1] if w in q else w for w in ws),
    "shout_words": lambda q, ws: " ".join(w.upper() if w in q else w for w in ws),
    "longest_word": lambda q, ws: max(q, key=len, default=""),
    "sort_words": lambda q, ws: sorted(q, key=str.lower),
    "word_lengths": lambda q, ws: {w: len(w) for w in q},
    "join_words": lambda q, ws: "-".join(q),
    "initials": lambda q, ws: "".join(w[0] for w in q).upper(),
    "total_letters": lambda q, ws: sum(map(len, q)),
    "last_word": lambda q, ws: q[-1] if q else None,
}
# A dictionary d and a limit n.
DICT_OPS: dict[str, Callable[..., Any]] = {
    "at_least": lambda d, n: sorted(k for k in d if d[k] >= n),
    "below": lambda d, n: {k: v for k, v in d.items() if v < n},
    "top": lambda d, n: min(d, key=lambda k: (-d[k], k)),
    "ranking": lambda d, n: sorted(d, key=lambda k: (-d[k], k)),
    "shares": lambda d, n: {k: round(100 * v / sum(d.values()), 1) for k, v in d.items()},
    "grouped": lambda d, n: {v: sorted(k for k in d if d[k] == v) for v in d.values()},
    "raised": lambda d, n: {k: v + n for k, v in d.items()},
    "middle": lambda d, n: round(sum(d.values()) / len(d), 2),
    "nearest": lambda d, n: min(d, key=lambda k: (abs(d[k] - n), k)),
    "initials": lambda d, n: {k[0]: sum(v for j, v in d.items() if j[0] == k[0]) for k in d},
    "both": lambda d, n: (min(d, key=lambda k: (d[k], k)), min(d, key=lambda k: (-d[k], k))),
    "exceeds": lambda d, n: sum(v > sum(d.values()) / len(d) for v in d.values()),
}
# A whole number n, with constants.
DIGIT_OPS: dict[str, Callable[..., Any]] = {
    "alternating_digit_sum": lambda n, d, b, k, m, q: sum(int(c) * (-1) ** i for i, c in enumerate(str(n))),
    "largest_rearranged": lambda n, d, b, k, m, q: int("".join(sorted(str(n), reverse=True))),
    "without_digit_{d}": lambda n, d, b, k, m, q: int(str(n).replace(str(d), "") or "0"),
    "digits_above_{d}": lambda n, d, b, k, m, q: sum(int(c) > d for c in str(n)),
    "multiplied_nonzero_digits": lambda n, d, b, k, m, q: math.prod(int(c) for c in str(n) if c != "0"),
    "digits_in_base_{b}": lambda n, d, b, k, m, q: (lambda f: f(f, n))(
        lambda f, v: ([] if v < b else f(f, v // b)) + [v % b]
    ),
    "divisors_below_{k}": lambda n, d, b, k, m, q: [i for i in range(1, k) if n % i == 0],
    "round_up_to_{k}": lambda n, d, b, k, m, q: -(-n // k) * k,
    "count_multiples_{k}_upto": lambda n, d, b, k, m, q: sum(i % k == 0 and i % m != 0 for i in range(1, n + 1)),
    "step_down_{k}": lambda n, d, b, k, m, q: list(range(n, -1, -k)),
    "proper_divisor_total": lambda n, d, b, k, m, q: sum(i for i in range(1, n) if n % i == 0),
    "binary_ones_gap": lambda n, d, b, k, m, q: max(map(len, bin(n)[2:].strip("0").split("1")), default=0),
    "digit_steps": lambda n, d, b, k, m, q: [abs(int(a) - int(b)) for a, b in zip(str(n), str(n)[1:])],
    "is_bouncy": lambda n, d, b, k, m, q: (
        list(str(n)) != sorted(str(n)) and list(str(n)) != sorted(str(n), reverse=True)
    ),
    "digital_root_steps": lambda n, d, b, k, m, q: (lambda f: f(f, n))(
        lambda f, v: 0 if v < 10 else 1 + f(f, sum(map(int, str(v))))
    ),
    "mirror_sum": lambda n, d, b, k, m, q: n + int(str(n)[::-1]),
    "split_halves_sum": lambda n, d, b, k, m, q: int(str(n)[: len(str(n)) // 2] or 0) + int(str(n)[len(str(n)) // 2 :]),
    "divides_its_digits": lambda n, d, b, k, m, q: sorted({int(c) for c in str(n) if c != "0" and n % int(c) == 0}),
    "nearest_multiple_{k}": lambda n, d, b, k, m, q: (2 * n + k) // (2 * k) * k,
    "triangle_index": lambda n, d, b, k, m, q: next((m for m in range(1, n + 1) if m * (m + 1) // 2 == n), -1),
    "sum_digit_powers_{q}": lambda n, d, b, k, m, q: sum(int(c) ** q for c in str(n)),
    "pretty_units_{k}": lambda n, d, b, k, m, q: divmod(n, k),
}
