"""Recording: answers, marginals, and a recording that goes on where it was cut off."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

import ddsim
import ddsim_reference.record as module
from ddsim.errors import DdsimError
from ddsim.policy.rules import Autoregressive
from ddsim.trace.trace import Trace, open_trace
from ddsim_reference.decode import decode
from ddsim_reference.engine.engine import Engine
from ddsim_reference.model import forward
from ddsim_reference.model.checkpoint import load_drafter, load_head, load_target, save_drafter, save_head, save_target
from ddsim_reference.model.sampling import uniforms
from ddsim_reference.record import lattices, prompt_digest, record, write_answers
from tests.reference import tiny, tiny_models


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    """Arguments of a small recording: 7 prompts, given as token ids since the tiny target has no tokenizer."""
    config, weights = tiny.target("llama", eos_token_ids=(7, 8))
    shape, draft_weights = tiny.drafter(config)
    save_target(tmp_path / "target", config, weights)
    save_drafter(tmp_path / "drafter", shape, draft_weights, {})
    lines = [json.dumps({"id": f"p{i}", "workload": "toy", "prompt": f"prompt {i}"}) for i in range(7)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return {
        "target": str(tmp_path / "target"),
        "drafter": str(tmp_path / "drafter"),
        "prompts": [str(tmp_path / "prompts.jsonl")],
        "out": tmp_path / "trace",
        "max_new_tokens": 10,
        "max_budget": 20,
        "batch": 3,
        "encoded": {("toy", f"p{i}"): ids for i, ids in enumerate(tiny.prompts(7, 61, seed=4))},
    }


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_recording_holds_the_targets_answers(job: dict[str, Any], temperature: float) -> None:
    told: list[tuple[int, int]] = []
    path = record(**job, temperature=temperature, seed=5, progress=lambda done, total: told.append((done, total)))
    trace = open_trace(path)
    assert told == [(i, 7) for i in range(1, 8)]
    assert (trace.horizon, trace.max_budget, trace.meta["vocab_size"]) == (5, 20, 61)
    provenance = trace.meta["provenance"]
    assert provenance["seed"] == 5 and provenance["dtype"] == "float32" and len(provenance["drafter_sha256"]) == 64
    assert provenance["versions"]["ddsim"] == ddsim.__version__
    config, weights, _ = load_target(job["target"])
    engine = Engine(config, weights, max_context=64)
    answers = decode(
        engine, list(job["encoded"].values()), Autoregressive(), max_new_tokens=10, temperature=temperature, seed=5,
        prompt_ids=[f"p{i}" for i in range(7)],
    )  # fmt: skip
    (block,) = trace.blocks()
    for s, (info, answer) in enumerate(zip(trace.sequences, answers, strict=True)):
        assert (info.prompt_id, info.workload) == (f"p{s}", "toy")
        assert info.temperature == pytest.approx(temperature)
        assert block.tokens[block.starts[s] : block.starts[s + 1]].tolist() == answer.tokens
    assert any(a.tokens[-1] in (7, 8) for a in answers)  # stop tokens are part of the text


def test_a_head_records_lattices(job: dict[str, Any], tmp_path: Path) -> None:
    """As plain passes make them one sequence at a time; the marginals of the same drafter beside them."""
    config, weights, _ = load_target(job["target"])
    shape, draft_weights = load_drafter(job["drafter"])
    save_head(job["drafter"], *tiny.head(shape, reach=1), {})
    head = load_head(job["drafter"], shape)
    assert head is not None
    trace = open_trace(record(**job, lattice_width=8))
    provenance = trace.meta["provenance"]
    assert trace.kind == "lattice" and provenance["lattice_width"] == 8 and len(provenance["head_sha256"]) == 64
    assert provenance["head_config"] == {"form": "gated", "width": 12, "tables": False, "reach": 1}
    models = config, weights, forward.target_layers(config, weights), shape, draft_weights, head
    (block,) = trace.blocks()
    texts = [block.tokens[a:b] for a, b in pairwise(block.starts)]
    found = [lattices(*models, p, x.tolist(), width=8) for p, x in zip(job["encoded"].values(), texts, strict=True)]
    (wanted,) = Trace.from_lattice(texts, *zip(*found, strict=True), max_budget=20, vocab_size=61).blocks()
    for name, column in wanted.proposal.candidates().items():
        assert np.array_equal(block.proposal.candidates()[name], column)
    with pytest.raises(DdsimError, match="can't be one trace"):
        record(**job, head=False)
    plain = open_trace(record(**(job | {"out": tmp_path / "plain"}), head=False))
    assert plain.kind == "rows" and "head_config" not in plain.meta["provenance"]
    assert np.array_equal(next(plain.blocks()).tokens, block.tokens)


@pytest.mark.parametrize("head", [False, True])
def test_shorter_blocks_are_those_of_a_drafter_of_that_size(job: dict[str, Any], head: bool, tmp_path: Path) -> None:
    """Other marginals than the leading ones of long blocks, whose slots see each other."""
    shape, weights = load_drafter(job["drafter"])
    if head:
        save_head(job["drafter"], *tiny.head(shape, reach=1), {})
    whole = open_trace(record(**job))
    short = open_trace(record(**job | {"out": tmp_path / "short"}, block_size=4))
    save_drafter(tmp_path / "other", replace(shape, block_size=4), weights, {})
    if head:
        save_head(tmp_path / "other", *tiny.head(shape, reach=1), {})
    other = open_trace(record(**job | {"out": tmp_path / "own", "drafter": str(tmp_path / "other")}))
    assert short.horizon == other.horizon == 3 and short.meta["provenance"]["drafter_config"]["block_size"] == 4
    assert [info.digest for info in short.sequences] == [info.digest for info in other.sequences]
    first = [next(t.blocks()).proposal.candidates() for t in (whole, short)]
    at_root = [part["logprob"][(part["position"] == 0) & (part["depth"] == 1)][:10] for part in first]
    assert not np.array_equal(*at_root)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_answers_side_by_side_are_those_written_alone(arch: str, temperature: float) -> None:
    """Prompts of many lengths, and answers that end at many steps: slots are dropped on the way."""
    config, weights = tiny.target(arch, eos_token_ids=(7, 8))
    prompts = tiny.prompts(9, 61, seed=4)
    names = [f"p{i}" for i in range(9)]
    random = None if temperature == 0 else [uniforms(3, name, 50) for name in names]
    told = write_answers(config, weights, prompts, max_new_tokens=50, temperature=temperature, random=random)
    alone = decode(
        Engine(config, tiny.copies(weights), max_context=80), prompts, Autoregressive(), max_new_tokens=50,
        temperature=temperature, seed=3, prompt_ids=names,
    )  # fmt: skip
    assert told == [answer.tokens for answer in alone]
    assert len({len(answer) for answer in told}) > 2 and max(map(len, told)) > 32


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_recording_that_was_cut_off_goes_on(job: dict[str, Any], stop_at: int, tmp_path: Path) -> None:
    def pull_the_plug(done: int, total: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(**job, progress=pull_the_plug)
    kept = len(open_trace(job["out"]).sequences)
    assert kept >= stop_at // 3 * 3  # whole batches at least
    again = open_trace(record(**job))
    whole = open_trace(record(**(job | {"out": tmp_path / "whole"})))
    assert again.fingerprint == whole.fingerprint
    assert [i.prompt_id for i in again.sequences] == [f"p{i}" for i in range(7)]
    files = sorted(Path(job["out"]).iterdir())
    assert open_trace(record(**job)).fingerprint == whole.fingerprint  # nothing left to do
    assert sorted(Path(job["out"]).iterdir()) == files


def edit(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def other_weights(folder: str, name: str) -> None:
    path = Path(folder) / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {name: tensors[name] * 1.5}, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_new_tokens": 11}, "recorded with max_new_tokens 10, this run has 11"),
        ({"max_budget": 10}, "recorded with max_budget 20, this run has 10"),
        ({"seed": 1}, "recorded with seed 0, this run has 1"),
        ({"batch": 2}, "recorded with batch 3, this run has 2"),
        ({"dtype": "bfloat16"}, 'recorded with dtype "float32", this run has "bfloat16"'),
        (lambda job: other_weights(job["target"], "model.norm.weight"), "recorded with target_sha256 "),
        (lambda job: other_weights(job["drafter"], "norm.weight"), "recorded with drafter_sha256 "),
        (
            lambda job: edit(Path(job["drafter"]) / "config.json", rope_theta=20000.0),
            "recorded with drafter_config.rope_theta 10000.0, this run has 20000.0",
        ),
        (
            lambda job: edit(Path(job["target"]) / "config.json", rms_norm_eps=1e-3),
            "recorded with target_config.rms_norm_eps 1e-05, this run has 0.001",
        ),
        (
            lambda job: edit(Path(job["target"]) / "config.json", eos_token_id=[7]),
            "recorded with target_config.eos_token_ids [7, 8], this run has [7]",
        ),
        (
            lambda job: job["encoded"].update({("toy", "p1"): [1, 2, 3]}),
            "prompt p1 of toy was recorded as other tokens (hash ",
        ),
    ],
)
def test_another_recording_in_the_same_folder_is_refused(job: dict[str, Any], change: Any, message: str) -> None:
    record(**job, limit=2)
    before = {path: path.read_bytes() for path in job["out"].iterdir()}
    if callable(change):
        change(job)
    else:
        job |= change
    with pytest.raises(DdsimError) as caught:
        record(**job)
    assert message in str(caught.value) and str(job["out"]) in str(caught.value)
    assert {path: path.read_bytes() for path in job["out"].iterdir()} == before


def test_a_recording_goes_on_with_more_prompts_and_other_spellings_of_its_config(job: dict[str, Any]) -> None:
    record(**job, limit=2)
    path = Path(job["target"]) / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"torch_dtype": "float32"}, indent=7))
    trace = open_trace(record(**job))
    assert [info.prompt_digest for info in trace.sequences] == [
        prompt_digest(job["encoded"]["toy", f"p{i}"]) for i in range(7)
    ]
    trace.save(job["out"].parent / "copy")
    assert open_trace(job["out"].parent / "copy").sequences == trace.sequences


def test_recordings_without_hashes_are_read_and_not_continued(job: dict[str, Any], monkeypatch: Any) -> None:
    whole = module.provenance
    added = ("target_sha256", "target_config", "drafter_config")
    monkeypatch.setattr(module, "provenance", lambda *a: {k: v for k, v in whole(*a).items() if k not in added})
    record(**job, limit=2)
    monkeypatch.setattr(module, "provenance", whole)
    assert len(open_trace(job["out"]).sequences) == 2
    with pytest.raises(
        DdsimError, match=r"recorded without drafter_config\.block_size \(by an older ddsim\?\), so .* choose another"
    ):
        record(**job)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 1}, "a trace needs answers of at least 2 tokens"),
        ({"temperature": -1.0}, "temperature -1.0: must be from 0"),
        ({"dtype": "int8"}, "dtype 'int8': unknown; use float32 or bfloat16"),
        ({"dtype": "nn"}, "dtype 'nn': unknown"),
        ({"prompts": ["nowhere.jsonl"]}, "nowhere.jsonl: no such prompt file"),
        ({"target": "nowhere"}, "nowhere: no such folder"),
        ({"drafter": "nowhere"}, "nowhere: no such folder"),
        ({"device": "gpu"}, "device 'gpu': unknown"),
        ({"max_budget": -1}, "max_budget"),
        ({"block_size": 7}, "block_size 7: must be from 2 to the 6 that "),
        ({"lattice_width": 65}, "lattice_width 65: must be from 1 to 64"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    job: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DdsimError) as caught:
        record(**(job | changes))
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not Path(job["out"]).exists()


def test_a_drafter_of_another_target_is_refused(job: dict[str, Any], tmp_path: Path) -> None:
    other, _ = tiny.target("llama", vocab_size=50)
    shape, weights = tiny.drafter(other)
    save_drafter(tmp_path / "other", shape, weights, {})
    with pytest.raises(
        DdsimError, match=r"other: vocabulary size 50, but the target's is 61; use the drafter made for"
    ):
        record(**(job | {"drafter": str(tmp_path / "other")}))
    assert not Path(job["out"]).exists()
    assert np.isfinite(load_drafter(job["drafter"])[1]["fc.weight"].numpy()).all()


def process(monkeypatch: pytest.MonkeyPatch, rank: Any, count: Any) -> None:
    """Be one of several processes that torchrun started."""
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(count))


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_processes_record_what_one_does(
    job: dict[str, Any], tmp_path: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit; one of them is cut off on the way, and one process finishes what two began."""
    whole = open_trace(record(**(job | {"out": tmp_path / "whole"}), temperature=temperature))
    job |= {"temperature": temperature, "batch": 2}
    one = open_trace(record(**(job | {"out": tmp_path / "one"})))
    told: list[tuple[int, int]] = []

    def pull_the_plug(done: int, total: int) -> None:
        told.append((done, total))
        if len(told) == 3:
            raise KeyboardInterrupt

    process(monkeypatch, 1, 2)
    with pytest.raises(KeyboardInterrupt):
        record(**job, progress=pull_the_plug)
    assert told == [(1, 7), (2, 7), (3, 7)]
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    two = open_trace(record(**job))
    assert [i.digest for i in two.sequences] == [i.digest for i in one.sequences] and two.fingerprint == one.fingerprint
    assert [i.prompt_id for i in whole.sequences] == [i.prompt_id for i in two.sequences]
    job["out"] = tmp_path / "both"
    told.clear()
    process(monkeypatch, 1, 2)
    with pytest.raises(KeyboardInterrupt):
        record(**job, progress=pull_the_plug)
    process(monkeypatch, 0, 2)
    record(**job)
    assert open_trace(job["out"]).fingerprint == one.fingerprint


def test_processes_say_who_they_are(job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    process(monkeypatch, 1, 2)
    with pytest.raises(DdsimError, match="process 1 of 2: max_new_tokens 1: a trace needs answers"):
        record(**job | {"max_new_tokens": 1})
    for rank, count, line in (
        ("x", 2, "RANK='x': must be a whole number"),
        ("9" * 5000, 2, "RANK=.9999.*: must be a whole number"),
        (2, 2, "RANK=2: must be less than WORLD_SIZE=2"),
    ):
        process(monkeypatch, rank, count)
        with pytest.raises(DdsimError, match=line):
            record(**job)

    def another_fails(done: int, total: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    process(monkeypatch, 1, 2)
    with pytest.raises(DdsimError, match=r"process 1 of 2: .*trace: ended by a signal, .* start the command again"):
        record(**job, progress=another_fails)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


@pytest.mark.slow
def test_torchrun_records_what_one_process_does(job: dict[str, Any], tmp_path: Path) -> None:
    """Two real processes on the CPU; then one is killed, and the command given again."""
    script = tmp_path / "run.py"
    script.write_text(
        "import pickle, sys, os, time, torch\ntorch.set_num_threads(1)\n"
        "from ddsim_reference.record import record\njob = pickle.load(open(sys.argv[1], 'rb'))\n"
        "def told(done, total):\n    if os.environ.get('DIE') == os.environ['RANK'] and done > 2: os.kill(os.getpid(), 9)\n"
        "record(**job, progress=told)\n"
    )
    job |= {"batch": 1, "out": tmp_path / "one"}
    torch.set_num_threads(1)
    one = open_trace(record(**job))
    job["out"] = tmp_path / "two"
    (tmp_path / "job").write_bytes(pickle.dumps(job))
    words = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "0",
        str(script),
        str(tmp_path / "job"),
    ]
    first = subprocess.run(words, env=os.environ | {"DIE": "1"}, capture_output=True, timeout=120, check=False)
    assert first.returncode != 0
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert open_trace(job["out"]).fingerprint == one.fingerprint


@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_long_prompts_are_fed_in_parts(arch: str) -> None:
    """Answers to a prompt of thousands of tokens, and features of it, are those of one dense pass over the whole text."""
    config, weights = tiny.target(arch, max_position_embeddings=8192)
    shape, _ = tiny.drafter(config)
    prompt = (np.arange(2 * forward.PART + 300) * 7 % 61).tolist()
    layers = forward.target_layers(config, weights)
    (answer,) = write_answers(config, weights, [prompt], max_new_tokens=4)
    text = torch.tensor([[*prompt, *answer]])
    here = torch.arange(text.shape[1])[None]
    features, hidden = forward.target_features(
        config, weights, layers, text, here, forward.causal_attention, shape.target_layer_ids
    )
    logits = hidden[0, len(prompt) - 1 : -1] @ weights["lm_head.weight"].T
    assert logits.argmax(-1).tolist() == answer
    parts = forward.text_features(config, weights, layers, text, shape.target_layer_ids)
    torch.testing.assert_close(parts, features, rtol=1e-3, atol=1e-3)
    few = forward.text_features(config, weights, layers, text[:, :50], shape.target_layer_ids, part=7)
    torch.testing.assert_close(few, features[:, :50], rtol=1e-3, atol=1e-3)


def test_conversations_and_other_files_are_recorded(tmp_path: Path) -> None:
    """Whatever a prompt comes in, it is recorded as the tokens that the chat template makes of all that was said."""
    target, drafter = tiny_models.save(tmp_path)
    turns = [
        {"role": r, "content": c}
        for r, c in (("user", "word1"), ("assistant", "word2"), ("user", "word3"), ("assistant", "word4"))
    ]
    pq.write_table(pa.Table.from_pylist([{"messages": turns, "id": "a"}]), tmp_path / "chats.parquet")
    (tmp_path / "lines.txt").write_text("word5 word6\n")
    options: dict[str, Any] = {"target": str(target), "drafter": str(drafter), "max_new_tokens": 4, "max_budget": 8}
    files = [str(tmp_path / "chats.parquet"), str(tmp_path / "lines.txt")]
    trace = open_trace(record(**options, prompts=files, out=tmp_path / "one"))
    said = [(i.workload, i.prompt_id, i.prompt_digest) for i in trace.sequences]
    words = ["user", "assistant", "?", *(f"word{i}" for i in range(57))]
    asked = ["user word1 assistant word2 user word3 assistant", "user word5 word6 assistant"]
    digests = [prompt_digest([words.index(word) for word in text.split()]) for text in asked]
    assert said == [("chats", "a", digests[0]), ("lines", "1", digests[1])]


def test_texts_too_long_for_the_target(job: dict[str, Any]) -> None:
    """They are an error that names the prompt and both lengths, or left out where that is asked for."""
    job["encoded"]["toy", "p3"] = [5] * 600
    says = "prompt toy p3: its 600 tokens and 10 new ones exceed the 512 positions"
    with pytest.raises(DdsimError, match=says):
        record(**job)
    with pytest.warns(UserWarning, match="left out 1 of 7 texts, longer than the 512 positions"):
        trace = open_trace(record(**job, skip_long=True))
    assert [info.prompt_id for info in trace.sequences] == ["p0", "p1", "p2", "p4", "p5", "p6"]
