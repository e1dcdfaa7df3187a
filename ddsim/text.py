"""Text of others made fit to be shown, and figures in words."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any


def brief(value: Any) -> str:
    """A value for an error message, on one line and short."""
    try:
        text = json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):  # not from JSON: a caller's own object
        text = json.dumps(type(value).__name__)
    return text if len(text) <= 40 else text[:37] + "..."


def distinct(names: Sequence[str]) -> list[str]:
    """Names, all different: those that were there before get a number.

    Examples
    --------
    >>> distinct(["Half", "AR", "Half"])
    ['Half', 'AR', 'Half (2)']
    """
    found: list[str] = []
    for name in names:
        shown, number = name, 2
        while shown in found or (shown != name and shown in names):
            shown, number = f"{name} ({number})", number + 1
        found.append(shown)
    return found


_HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


_JOINERS = "\u200c\u200d"  # emoji and several scripts are spelt with them


def printable(text: object, most: int | None = None, keep: str = "") -> str:
    r"""Text with an escape such as ``\x1b`` in place of each character that isn't seen.

    Control characters drive a terminal and may not stand in XML; bidirectional overrides make text read otherwise than it is.
    The answer is one line, unless ``keep`` holds line ends.

    Parameters
    ----------
    text : object
        Shown as ``str`` shows it.
    most : int, optional
        Longest answer; the middle of a longer text becomes "…", because names often differ at their ends.
    keep : str
        Characters that stay as they are.

    Examples
    --------
    >>> print(printable("a\x1b[31mred\u202e\n"))
    a\x1b[31mred\u202e\n
    >>> printable("a name that goes on and on", most=11)
    'a nam…nd on'
    """
    shown = str(text)
    if most is not None and len(shown) > most:
        shown = f"{shown[: most // 2]}…{shown[len(shown) - (most - 1) // 2 :]}"
    if shown.isprintable():
        return shown
    return "".join(
        c if c in keep or c in _JOINERS or unicodedata.category(c) not in _HIDDEN else _escape(c) for c in shown
    )


def printable_json(text: str, encoding: str = "utf-8") -> str:
    r"""A JSON document with JSON's own escapes in place of what isn't seen, or what an encoding lacks; its meaning stays.

    Examples
    --------
    >>> printable_json('{"name": "caf\u00e9\u202e"}')
    '{"name": "café\\u202e"}'
    >>> printable_json('{"name": "café"}', "ascii")
    '{"name": "caf\\u00e9"}'
    """
    try:
        text.encode(encoding)
        fits = True
    except UnicodeEncodeError:
        fits = False
    if fits and text.replace("\n", "").isprintable():
        return text

    def shown(c: str) -> str:
        if c == "\n" or (c.isprintable() and (fits or c.isascii())):
            return c
        units = c.encode("utf-16-be", "surrogatepass")
        return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))

    return "".join(map(shown, text))


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def listed(words: Sequence[str], word: str = "and") -> str:
    """Words as a sentence lists them.

    Examples
    --------
    >>> listed(["a"]), listed(["a", "b", "c"]), listed(["a", "b"], "or")
    ('a', 'a, b and c', 'a or b')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {word} {words[-1]}"


def signed(share: float, digits: int = 1, unit: str = " %") -> str:
    """A relative gain in per cent with its sign; what rounds to nothing has none.

    Examples
    --------
    >>> signed(0.042), signed(-0.0031), signed(-0.0004), signed(2.866, 0, "")
    ('+4.2 %', '−0.3 %', '0.0 %', '+287')
    """
    value = round(100 * share, digits)
    return (f"{value:+.{digits}f}" if value else f"{0:.{digits}f}").replace("-", "−") + unit


def between(low: float, high: float, how: Callable[[float], str] = str, to: str = " to ") -> str:
    """Both ends of an interval, one where they print the same, nothing where there is none (NaN).

    Examples
    --------
    >>> between(0.851, 0.854, "{:.0%}".format), between(0.85, 0.87, "{:.0%}".format), between(math.nan, math.nan)
    ('85%', '85% to 87%', '')
    """
    if math.isnan(low) or math.isnan(high):
        return ""
    first, last = how(low), how(high)
    return first if first == last else f"{first}{to}{last}"


def gained(value: float, low: float = math.nan, high: float = math.nan, digits: int = 1) -> str:
    """A relative gain with its interval; without one that says no more than the gain.

    Examples
    --------
    >>> gained(0.042, 0.03, 0.055), gained(0.0002, -0.002, 0.002), gained(0.5, 0.5, 0.5), gained(-0.01)
    ('+4.2 % (+3.0 to +5.5 %)', '0.0 % (−0.2 to +0.2 %)', '+50.0 %', '−1.0 %')
    """
    text, ends = signed(value, digits), between(low, high, lambda end: signed(end, digits, ""))
    return text if not ends or f"{ends} %" == text else f"{text} ({ends} %)"
