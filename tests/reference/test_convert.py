"""Folders for engines: what is in them says what the pair said, computed as engines compute it; whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from ddsim.errors import DdsimError
from ddsim_reference import convert as module
from ddsim_reference.convert import convert
from ddsim_reference.model import forward, widen
from ddsim_reference.model.checkpoint import load_drafter, load_head, load_target, save_drafter, save_head, save_target
from ddsim_reference.model.config import ModelConfig
from tests.naive import served
from tests.reference import tiny, tiny_models

BIG = widen.Shape(96, 6, 16, 4, 32, 160, 100)
TEXT = torch.randint(3, 60, (19,), generator=torch.Generator().manual_seed(3)).tolist()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A tiny Llama and its drafter on disk, and prompts as token ids."""
    monkeypatch.setitem(widen.SHAPES, "big", BIG)
    config, weights = tiny.target("llama")
    shape, draft_weights = tiny.drafter(config)
    save_target(tmp_path / "llama", config, weights)
    save_drafter(tmp_path / "dflash", shape, draft_weights, {}, dtype=torch.float32)
    save_head(tmp_path / "dflash", *tiny.head(shape), {}, torch.float32)
    lines = [json.dumps({"id": f"p{i}", "workload": "toy", "prompt": f"prompt {i}"}) for i in range(6)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    # Random hidden states have no common direction; without one the extra rows are the mean row, never the largest logit.
    monkeypatch.setattr(module, "direction_away", lambda *_: torch.zeros(config.hidden_size))
    return {
        "target": str(tmp_path / "llama"),
        "out": tmp_path / "out",
        "prompts": [str(tmp_path / "prompts.jsonl")],
        "dtype": "float32",
        "encoded": {("toy", f"p{i}"): ids for i, ids in enumerate(tiny.prompts(6, 61, seed=4))},
    }


def test_the_widened_pair_says_the_same_as_engines_compute_it(job: dict[str, Any], tmp_path: Path) -> None:
    written = convert(**job, drafter=str(tmp_path / "dflash"), widen="big", shard=60_000)
    target, drafter = served.read(Path(written["target"])), served.read(Path(written["drafter"]))
    assert target[0]["max_position_embeddings"] == drafter[0]["max_position_embeddings"] == 512
    assert target[0]["hidden_size"] == 96 and target[0]["vocab_size"] == drafter[0]["vocab_size"] == 100
    assert len(list(Path(written["target"]).glob("model-000*-of-000*.safetensors"))) > 4
    config, weights, _ = load_target(job["target"])
    wanted, drafted = tiny.passes(config, weights, *load_drafter(str(tmp_path / "dflash")), TEXT)
    found, _ = served.target(target, TEXT)
    torch.testing.assert_close(found[:, :61].float(), wanted, rtol=1e-4, atol=1e-4)
    assert found.argmax(-1).max() < 61
    # The floor below a head's mean square is another share of it in the wide heads.
    torch.testing.assert_close(served.drafter(drafter, target, TEXT)[:, :61].float(), drafted, rtol=1e-3, atol=1e-3)
    # Our own loader reads the folders too, and computes what engines do.
    config, weights, _ = load_target(written["target"])
    shape, draft_weights = load_drafter(written["drafter"])
    for mine, theirs in zip(
        tiny.passes(config, weights, shape, draft_weights, TEXT),
        (found, served.drafter(drafter, target, TEXT)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs.float(), rtol=1e-4, atol=1e-4)
    assert load_head(written["drafter"], shape) is not None
    assert written["provenance"]["label"] == "llama text at big cost"
    assert target[0]["ddsim_provenance"] == drafter[0]["ddsim_provenance"] == written["provenance"]


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_transformers_reads_what_was_written(arch: str, tmp_path: Path) -> None:
    """Out of a GGUF file, in shards."""
    from transformers import AutoModelForCausalLM

    config, weights = tiny_models.save_gguf(tmp_path / "tiny.gguf", arch, rope_theta=50_000.0, eos_token_ids=())
    written = convert(
        target=str(tmp_path / "tiny.gguf"), out=tmp_path / "out", dtype="float32", shard=40_000, tokenizer=False
    )
    assert written["target"] == str(tmp_path / "out") and written["drafter"] is None
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.float32
    tokens, here = torch.tensor([TEXT]), torch.arange(len(TEXT))[None]
    layers = forward.target_layers(config, weights)
    _, hidden = forward.target_features(config, weights, layers, tokens, here, forward.causal_attention, (0,))
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens).logits, hidden @ weights["lm_head.weight"].T, rtol=1e-4, atol=1e-4, check_dtype=True
        )


def test_a_pair_keeps_its_values_its_head_and_its_tokenizer(tmp_path: Path) -> None:
    target, drafter = tiny_models.save(tmp_path)
    written = convert(target=str(target), drafter=str(drafter), out=tmp_path / "new" / "pair")
    assert written["tokenizer"] and sorted(p.name for p in (tmp_path / "new").iterdir()) == ["pair"]
    old, new = load_target(str(target), dtype=torch.bfloat16), load_target(written["target"], dtype=torch.bfloat16)
    assert old[0] == new[0] and all(torch.equal(old[1][name], new[1][name]) for name in old[1])
    assert old[2]("user word3 word9")["input_ids"] == new[2]("user word3 word9")["input_ids"]
    assert old[2].chat_template == new[2].chat_template
    settings = json.loads(Path(written["target"], "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    one, other = load_drafter(str(drafter)), load_drafter(written["drafter"])
    assert one[0] == other[0] and all(torch.equal(one[1][name], other[1][name]) for name in one[1])
    assert written["bytes"] == sum(2 * t.numel() for name, t in old[1].items())


def test_nothing_half_written_takes_the_name(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*args: Any, **kwargs: Any) -> tuple[ModelConfig, Iterator[tuple[str, torch.Tensor]]]:
        config, tensors = widen.stream_target(*args, **kwargs)

        def some() -> Iterator[tuple[str, torch.Tensor]]:
            for i, one in enumerate(tensors):
                if i == 20:
                    raise KeyboardInterrupt
                yield one

        return config, some()

    monkeypatch.setattr(module, "stream_target", cut)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        convert(**job, drafter=str(tmp_path / "dflash"), widen="big", shard=60_000)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"widen": "gpt"}, "unknown shape"),
        ({"widen": "big"}, "needs the drafter"),
        ({"dtype": "int4"}, "unknown; use float32 or bfloat16"),
        ({"shard": 0}, "1 byte or more"),
        ({"drafter": "nowhere"}, "no such folder"),
        ({"out": "llama"}, "isn't empty; name a new folder"),
        ({"out": "prompts.jsonl"}, "is a file; name a folder"),
    ],
)
def test_what_does_not_fit_is_refused(job: dict[str, Any], tmp_path: Path, change: dict[str, Any], says: str) -> None:
    before = sorted(p.name for p in tmp_path.iterdir())
    if "out" in change:
        change = {"out": tmp_path / change["out"]}
    with pytest.raises(DdsimError, match=says):
        convert(**(job | change))
    assert sorted(p.name for p in tmp_path.iterdir()) == before
