"""What figures are of, in a line: model, device and engine, from a provenance; and titles that wrap."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

from ddsim.text import printable
from ddsim.view.style import _TEXT, _figure, _settle

_SPELT = {
    "smollm": "SmolLM",
    "qwen": "Qwen",
    "llama": "Llama",
    "deepseek": "DeepSeek",
    "gpt": "GPT",
    "huggingface": "Hugging Face",
}

_SOLD_AS = re.compile(r"NVIDIA|AMD|Instinct|Tesla|\d*GB|HBM\w*|PCIe|SXM\d*|NVL", re.IGNORECASE)


def about(provenance: Mapping[str, Any]) -> str:
    """Model, device and engine that numbers are of, as far as a provenance tells; "" where it doesn't.

    Parameters
    ----------
    provenance : mapping
        Of a profile, a cost model, a recording, or of an answer that holds those of its trace and costs.

    Examples
    --------
    >>> about({"target": "smollm2-135m text at qwen3-8b cost", "device": "NVIDIA H100 80GB HBM3", "engine": "vLLM 0.26.0"})
    'SmolLM2-135M text at Qwen3-8B cost · H100 · vLLM 0.26'
    """
    cost = provenance.get("cost")
    costs = cost.get("provenance", {}) if isinstance(cost, Mapping) else {} if "trace" in provenance else provenance
    trace = provenance.get("trace")
    recording = trace.get("recording", {}) if isinstance(trace, Mapping) else {}
    mine, theirs = (_model(of.get("target")) for of in (costs, recording))
    if mine and theirs and theirs.lower() not in mine.lower():
        mine = f"{theirs} text at {mine} cost"
    parts = [mine or theirs, _device(costs.get("device")), _engine(costs)]
    return " · ".join(part for part in parts if part)


def _model(name: object) -> str:
    """A model's name as its makers spell it: qwen3-8b is Qwen3-8B. Of a path, its last part."""
    words = [word.rstrip("/").rpartition("/")[2] for word in printable(name or "", 96).split()]
    return " ".join(_cased(word) if re.search(r"-\d", word) and word.islower() else word for word in words)


def _cased(word: str) -> str:
    parts = []
    for part in word.split("-"):
        letters = re.match(r"[a-z]*", part).group()  # type: ignore[union-attr]
        sized = re.fullmatch(r"[\d.]+[bmk]", part)
        parts.append(part.upper() if sized else _SPELT.get(letters, letters.capitalize()) + part[len(letters) :])
    return "-".join(parts)


def _device(name: object) -> str:
    words = re.split(r"[\s-]+", printable(name or "", 60))
    return " ".join(word for word in words if word and not _SOLD_AS.fullmatch(word))


def _engine(provenance: Mapping[str, Any]) -> str:
    named = printable(provenance.get("engine") or "", 40)
    if not named:
        return "ddsim's decoder" if "cuda_graphs" in provenance else ""
    if named.startswith("huggingface"):
        return named.replace("huggingface", "Hugging Face").replace("-", ", ", 1)
    return re.sub(r"(\d+\.\d+)\.0\b", r"\1", named.removeprefix("Hugging Face "))


def entitle(ax: Axes, title: str | None, line: str | None = None) -> None:
    """Write a title, and below it in grey what the figure is of, above everything drawn; both wrap at the figure's edge.

    Parameters
    ----------
    ax : Axes
    title : str, optional
        A sentence, or what the figure shows.
    line : str, optional
        As `about` gives it.

    Examples
    --------
    >>> from ddsim.view.style import canvas
    >>> ax = canvas()
    >>> entitle(ax, "Bigger trees are accepted more", "Qwen3-8B · H100")
    >>> [note.get_text() for note in ax.texts]
    ['Qwen3-8B · H100', 'Bigger trees are accepted more']
    """
    rows = [(text, size, colour, weight) for text, size, colour, weight in (
        (line, _TEXT - 0.5, "#555555", "normal"), (title, _TEXT + 1.5, "#1b1b1b", "bold"),
    ) if text]  # fmt: skip
    if not rows:
        return
    _settle(ax)
    figure = _figure(ax)
    box, outer = ax.get_window_extent(), ax.get_tightbbox()
    left = min(box.x0, outer.x0 if outer is not None else box.x0)
    above = (
        7.0 + max(0.0, outer.y1 - box.y1 if outer is not None else 0.0) * 72 / figure.dpi
    )  # over legends and panels' titles
    shift = (left - box.x0) * 72 / figure.dpi
    room = (figure.bbox.x1 - left) * 72 / figure.dpi - 6
    for text, size, colour, weight in rows:
        wrapped = wrap(printable(text), room, size, weight)
        ax.annotate(
            wrapped, (0, 1), xycoords="axes fraction", xytext=(shift, above), textcoords="offset points", fontsize=size, color=colour,
            weight=weight, va="bottom", ha="left", linespacing=1.2, parse_math=False, annotation_clip=False, label="_title",
        )  # fmt: skip
        above += (wrapped.count("\n") + 1) * 1.2 * size + 5


def wrap(text: str, room: float, size: float, weight: str = "normal") -> str:
    """Break a text so that no line is wider than so many points; at " · " where that is in reach, else at any space."""
    lines: list[str] = []
    text = re.sub(r"(?<=\d) (?=%)", "\u00a0", text)
    for piece in text.split(" · "):
        joined = f"{lines[-1]} · {piece}" if lines else piece
        if lines and _wide(joined, size, weight) <= room:
            lines[-1] = joined
            continue
        words, row = piece.split(" "), ""
        for word in words:
            if row and _wide(f"{row} {word}", size, weight) > room:
                lines.append(row)
                row = word
            else:
                row = f"{row} {word}".strip()
        lines.append(row)
    return "\n".join(lines)


@lru_cache(maxsize=4096)
def _wide(text: str, size: float, weight: str) -> float:
    """Points that a text takes."""
    prop = FontProperties(size=size, weight=weight)
    return float(_renderer().get_text_width_height_descent(text, prop, False)[0])  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def _renderer() -> Any:
    return RendererAgg(1, 1, 72)
