"""Damaged checkpoints: every one is loaded as what it says, or refused in one line that names it, and soon."""

from __future__ import annotations

import copy
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ddsim.errors import DdsimError
from ddsim_reference.limits import in_child
from ddsim_reference.model import workloads
from ddsim_reference.model.checkpoint import load_drafter, load_head, load_target, save_drafter
from ddsim_reference.model.config import drafter_shapes, target_shapes
from ddsim_reference.model.heads import HeadConfig, head_shapes
from ddsim_reference.model.workloads import encode_all
from tests.reference import test_formats, tiny, tiny_models

LONGEST = 30.0  # seconds for one case on a busy machine; a hang takes for ever
VALUES: list[Any] = [
    None, True, -1, 0, 1, 1.5, 7, 10**9, 10**30, -(10**5), float("nan"), float("inf"), "", "4", "\ud800", "x" * 5000, [], [1],
    [[]], {}, {"a": {}}, ["sliding_attention"], {"rope_type": ["yarn"]}, [None] * 2000,
]  # fmt: skip


def damaged_json(text: str, rng: random.Random) -> str:
    """A document with some values changed, removed or moved, or its text cut or nested without end."""
    kind = rng.randrange(8)
    if kind == 0:
        return text[: rng.randrange(len(text))]
    if kind == 1:
        at = rng.randrange(len(text))
        return text[:at] + rng.choice(["[" * 900, "1" * 5000, '"', "{", "\0", "NaN", "é"]) + text[at + 1 :]
    document = json.loads(text)
    for _ in range(rng.randint(1, 2)):
        node, key = document, None
        while isinstance(node, dict | list) and node and (key is None or rng.random() < 0.7):
            parent = node
            key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
            node = parent[key]
        if key is None:
            break
        if rng.random() < 0.2:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(rng.choice([*VALUES, node, str(node), [node]]))
    return json.dumps(document)


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """Bytes with flipped bits, lengths that lead beyond, runs removed or repeated, mostly near the beginning."""
    out = bytearray(data)
    head = min(len(out), 1 << rng.randrange(5, 17))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(head)
        kind = rng.randrange(6)
        if kind <= 1:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            out[at : at + 8] = rng.choice([b"\xff" * 8, b"\0" * 8, (2**40).to_bytes(8, "little"), rng.randbytes(8)])
        elif kind == 3:
            del out[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            out[at:at] = out[at : at + rng.randrange(1, 64)]
        else:
            del out[rng.randrange(1, len(out)) :]
        head = min(head, len(out))
        if not head:
            break
    return bytes(out)


def holds_a_target(loaded: Any) -> None:
    config, weights, tokenizer = loaded
    holds(weights, target_shapes(config))
    if tokenizer is not None and getattr(tokenizer, "chat_template", None):
        for ids in encode_all(tokenizer, ["word1 word2"], config, 4):
            assert all(0 <= token < config.vocab_size for token in ids)


def holds(weights: dict[str, torch.Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    assert {name: tuple(x.shape) for name, x in weights.items()} == shapes
    assert all(bool(torch.isfinite(x).all()) for x in weights.values())


def load_with_head(name: str) -> Any:
    shape, weights = load_drafter(name)
    return shape, weights, load_head(name, shape)


def holds_a_drafter(loaded: Any) -> None:
    shape, weights, head = loaded
    holds(weights, drafter_shapes(shape))
    assert 1 <= shape.horizon < 64
    if head is not None:
        holds(head[1], head_shapes(head[0], shape))


def save_dspark(folder: Path) -> None:
    shape, weights = tiny.drafter(tiny.target_config(), sample_from_anchor=True)
    head = HeadConfig("markov", 5, tables=True)
    save_drafter(folder, shape, weights, {}, (head, tiny.random_weights(head_shapes(head, shape), 0)))


class Checkpoints:
    """Whole checkpoints in a folder, one file of which is damaged at a time."""

    def __init__(self, folder: Path) -> None:
        target, drafter = tiny_models.save(folder)
        gguf, dspark, dflash2 = folder / "tiny.gguf", folder / "dspark", folder / "dflash2"
        save_dspark(dspark)
        dflash2.mkdir()
        test_formats.second(dflash2)
        tiny_models.save_gguf(gguf)
        target_of: Callable[[str], Any] = load_target
        bare: Callable[[str], Any] = lambda name: load_target(name, with_tokenizer=False)  # noqa: E731
        self.kinds: list[tuple[Path, str, Callable[[str], Any], Callable[[Any], None]]] = [
            (target / "config.json", str(target), bare, holds_a_target),
            (drafter / "config.json", str(drafter), load_drafter, lambda x: holds(x[1], drafter_shapes(x[0]))),
            (target / "model.safetensors", str(target), bare, holds_a_target),
            (drafter / "model.safetensors", str(drafter), load_drafter, lambda x: holds(x[1], drafter_shapes(x[0]))),
            (gguf, str(gguf), bare, holds_a_target),
            (target / "tokenizer.json", str(target), target_of, holds_a_target),
            (target / "tokenizer_config.json", str(target), target_of, holds_a_target),
            (target / "chat_template.jinja", str(target), target_of, holds_a_target),
            (dspark / "config.json", str(dspark), load_with_head, holds_a_drafter),
            (dspark / "model.safetensors", str(dspark), load_with_head, holds_a_drafter),
            (dflash2 / "config.json", str(dflash2), load_with_head, holds_a_drafter),
            (dflash2 / "model.safetensors", str(dflash2), load_with_head, holds_a_drafter),
        ]
        self.whole = {path: path.read_bytes() for path, *_ in self.kinds}

    def case(self, number: int) -> str:
        """Damage one file, load it, mend it; what came of it."""
        rng = random.Random(number)
        path, name, load, check = self.kinds[number % len(self.kinds)]
        data = self.whole[path]
        if path.suffix == ".json" and rng.random() < 0.9:
            data = damaged_json(data.decode(), rng).encode("utf-8", "surrogatepass")
        else:
            data = damaged_bytes(data, rng)
        path.write_bytes(data)
        began = time.monotonic()
        try:
            check(load(name))
            return "loaded"
        except DdsimError as error:
            line = str(error)
            assert "\n" not in line and len(line) < 1000, line
            assert name in line or str(path.parent) in line, f"{path}: not named in {line!r}"
            return "refused"
        finally:
            path.write_bytes(self.whole[path])
            assert time.monotonic() - began < LONGEST, f"case {number} took too long"


def run(folder: Path, numbers: range, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workloads, "in_child", lambda work, what: in_child(work, what, seconds=2))
    checkpoints = Checkpoints(folder)
    for _, name, load, check in checkpoints.kinds:
        check(load(name))  # whole, all of them load
    found = [checkpoints.case(number) for number in numbers]
    assert found.count("refused") > len(found) // 4
    assert "loaded" in found  # a changed comment or an equal value is no damage


def test_damaged_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, range(36), monkeypatch)


@pytest.mark.slow
def test_many_damaged_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, range(1000, 2000), monkeypatch)
