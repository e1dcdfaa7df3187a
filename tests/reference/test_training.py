"""Training on the CPU: a tiny target writes text, a tiny drafter learns it in two calls, and the result loads."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from ddsim.errors import DdsimError
from ddsim_reference.model import forward
from ddsim_reference.model.checkpoint import load_drafter, load_target, save_target
from ddsim_reference.model.config import ModelConfig, Weights, drafter_config
from ddsim_reference.training import attention as patterns
from ddsim_reference.training import batches, data, run, trainer
from ddsim_reference.training import loss as losses
from ddsim_reference.training.data import PromptPool, looping

CONFIG = ModelConfig(
    arch="llama", hidden_size=32, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=8, intermediate_size=64,
    vocab_size=48, rms_norm_eps=1e-5, rope_theta=10_000.0, tie_word_embeddings=True, eos_token_ids=(2,),
    max_position_embeddings=512, qk_norm=False,
)  # fmt: skip


def tiny_weights(seed: int = 0) -> Weights:
    generator = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * 0.25

    hidden, inner, dim = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.head_dim
    weights = {"model.embed_tokens.weight": matrix(CONFIG.vocab_size, hidden), "model.norm.weight": torch.ones(hidden)}
    for i in range(CONFIG.num_layers):
        at = f"model.layers.{i}."
        weights |= {
            at + "input_layernorm.weight": torch.ones(hidden),
            at + "post_attention_layernorm.weight": torch.ones(hidden),
            at + "self_attn.q_proj.weight": matrix(CONFIG.num_heads * dim, hidden),
            at + "self_attn.k_proj.weight": matrix(CONFIG.num_kv_heads * dim, hidden),
            at + "self_attn.v_proj.weight": matrix(CONFIG.num_kv_heads * dim, hidden),
            at + "self_attn.o_proj.weight": matrix(hidden, CONFIG.num_heads * dim),
            at + "mlp.gate_proj.weight": matrix(inner, hidden),
            at + "mlp.up_proj.weight": matrix(inner, hidden),
            at + "mlp.down_proj.weight": matrix(hidden, inner),
        }
    return weights


def tiny_pool() -> PromptPool:
    generator = np.random.default_rng(0)
    prompts = [[1, 5, *generator.integers(3, 48, 6).tolist(), 2, 6, 1, 7] for _ in range(12)]
    return PromptPool.build(prompts, [1, 5], [6, 1, 7], 2, 0.25)


@pytest.fixture
def target(tmp_path: Path) -> str:
    save_target(tmp_path / "target", CONFIG, tiny_weights())
    return str(tmp_path / "target")


OPTIONS = {
    "mask_token_id": 3, "block_size": 4, "layers": 2, "slots": 8, "row_length": 64, "longest": 40, "rows": 4,
    "anchors": 16, "held_out": 4, "device": "cpu",
}  # fmt: skip


def test_phases_continue_and_the_drafter_learns(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()
    # By this clock every look takes a twentieth of a second, however busy the machine is: same text, same steps.
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 20, strftime=time.strftime)
    for module in (trainer, run, data):
        monkeypatch.setattr(module, "time", clock)
    work, out = tmp_path / "work", tmp_path / "drafter"
    work.mkdir()
    tiny_pool().save(work / "pool.npz")
    lines: list[str] = []
    options = OPTIONS | {"target": target, "out": out, "work": work, "data_seconds": 2, "progress": lines.append}
    options["rate"] = 1e-2
    assert run.train_drafter(train_seconds=10, stop_after=5, **options) is None
    text = (work / "text.npz").read_bytes()
    assert not out.exists()
    assert run.train_drafter(train_seconds=10, **options) == out
    assert (work / "text.npz").read_bytes() == text  # the second call went on where the first stopped
    config, weights = load_drafter(str(out))
    assert (config.block_size, config.mask_token_id, config.target_layer_ids) == (4, 3, (1, 3))
    assert all(bool(torch.isfinite(w).all()) for w in weights.values())
    losses = [float(line.split("held out ")[1].split(",")[0]) for line in lines if "held out" in line]
    # A further run can start from that drafter: no steps, and the same drafter comes out, the features' scale undone and redone.
    (work / "state.safetensors").unlink()
    again = options | {"out": tmp_path / "again"}
    run.train_drafter(train_seconds=0, start=str(out), **again)
    for name, weight in load_drafter(str(tmp_path / "again"))[1].items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-2, atol=1e-6)
    with pytest.raises(DdsimError, match="another drafter"):
        run.train_drafter(start=str(out), **(again | {"block_size": 8}))
    # A random target's text is close to noise: uniform guesses cost log(48), and some of it can still be learnt in seconds.
    assert losses[-1] < np.log(CONFIG.vocab_size) - 0.2


def test_no_text_is_written_twice(target: str) -> None:
    """An instruction is answered greedily once and sampled after that; users' turns are nobody's to draft."""
    config, weights, _ = load_target(target, with_tokenizer=False)
    pool = tiny_pool()
    written = data.generate(config, weights, pool, seconds=0, slots=16, length=96, longest=40)
    openings = {tuple(pool.tokens[i, : pool.lengths[i]]) for i in np.flatnonzero(~pool.self_written)}
    documents, greedy = [], 0
    layers = forward.target_layers(config, weights)
    for tokens, starts, generated in zip(*(written[name] for name in ("tokens", "starts", "generated")), strict=True):
        for start in np.unique(starts):
            own = starts == start
            text, drafted = tokens[own].astype(np.int64), generated[own]
            prompt = int(drafted.argmax()) if drafted.any() else len(text)
            if len(text) - prompt < 12:
                continue  # cut off by the row's end
            assert drafted[prompt:].all()
            known = tuple(text[:prompt]) in openings
            # An instruction of the pool, or a turn of the target's own, closed and followed by the assistant's opening.
            assert known or (text[:2].tolist() == [1, 5] and text[prompt - 3 : prompt].tolist() == [6, 1, 7])
            hidden, _ = forward.target_features(
                config, weights, layers, torch.tensor(text)[None], torch.arange(len(text))[None], forward.causal_attention,
                (config.num_layers - 1,),
            )  # fmt: skip
            choice = (
                forward.rms_norm(hidden[0], weights["model.norm.weight"], config.rms_norm_eps)
                @ weights["lm_head.weight"].T
            )
            is_greedy = choice.argmax(-1)[prompt - 1 : -1].tolist() == text[prompt:].tolist()
            greedy += is_greedy
            if known:
                documents.append((tuple(text[:prompt]), is_greedy))
    assert greedy > 5
    first_answers = [opening for opening, is_greedy in documents if is_greedy]
    assert len(first_answers) == len(set(first_answers))
    assert len(documents) > len(set(first_answers))  # some instructions came up again


def test_bad_mask_token_is_refused(target: str, tmp_path: Path) -> None:
    options = OPTIONS | {"mask_token_id": 48}
    with pytest.raises(DdsimError, match="mask token 48"):
        run.train_drafter(target=target, out=tmp_path / "d", work=tmp_path / "w", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_said_in_one_line(target: str, tmp_path: Path) -> None:
    options = OPTIONS | {"device": "cuda"}
    with pytest.raises(DdsimError, match="finds no GPU"):
        run.train_drafter(target=target, out=tmp_path / "d", work=tmp_path / "w", **options)


def test_prompts_of_ones_own_are_single_messages_that_nothing_is_judged_on(tmp_path: Path) -> None:
    path = tmp_path / "asked.txt"
    path.write_text("Hi\nMore\n")
    assert run._asked([str(path)]) == ["Hi", "More"]
    with pytest.raises(DdsimError, match="--prompts chat: drafters are judged on it"):
        run._asked([str(path), "chat"])
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    (tmp_path / "turns.jsonl").write_text(json.dumps({"messages": turns}))
    with pytest.raises(DdsimError, match="prompt turns 1: is a conversation"):
        run._asked([str(tmp_path / "turns.jsonl")])


def test_the_same_seed_writes_the_same_text(target: str) -> None:
    """Whatever else in this process draws random numbers: a run that went wrong can be had again."""
    config, weights, _ = load_target(target, with_tokenizer=False)
    written = []
    for state in (1, 2):
        torch.manual_seed(state)
        written.append(
            data.generate(config, weights, tiny_pool(), seconds=0, slots=8, length=32, longest=20, progress=str)
        )
    assert all(np.array_equal(written[0][name], written[1][name]) for name in written[0])
    other = data.generate(config, weights, tiny_pool(), seconds=0, slots=8, length=32, longest=20, seed=1, progress=str)
    assert not np.array_equal(written[0]["tokens"], other["tokens"])


def tiny_trainer(target: str, answers: np.ndarray) -> trainer.Trainer:
    """A trainer on rows of made-up text; ``answers``, bool [rows], says which hold tokens of an answer."""
    config, weights, _ = load_target(target, with_tokenizer=False)
    tokens = np.random.default_rng(0).integers(3, 48, (len(answers), 32)).astype(np.uint16)
    generated = np.repeat(answers[:, None], 32, axis=1)
    text = {"tokens": tokens, "starts": np.zeros_like(tokens), "generated": generated}
    shape = drafter_config(config, layers=2, block_size=4, mask_token_id=3)
    return trainer.Trainer(config, weights, shape, batches.Corpus(text, "cpu"), rows=2, anchors=4, held_out=4)


def test_rows_without_an_answer_teach_nothing(target: str) -> None:
    """A batch of them once had a loss of 0 / 0, and the drafter was NaN from there on."""
    answers = np.arange(8) < 2  # the first two rows held out, and none that is trained on
    taught = tiny_trainer(target, answers)
    before = {name: parameter.detach().clone() for name, parameter in taught.parameters.items()}
    lines: list[str] = []
    taught.run(0.2, 1, lines.append, every=1)
    assert taught.step > 0 and float(taught.last_loss) == 0
    assert all(torch.equal(parameter, before[name]) for name, parameter in taught.parameters.items())
    assert np.isfinite(taught.evaluate()).all() and lines and not any("nan" in line for line in lines)


def test_held_out_rows_have_something_to_judge_by(target: str) -> None:
    with pytest.raises(DdsimError, match="no token of an answer in the 4 rows held out; generate more"):
        tiny_trainer(target, np.arange(8) >= 4)


def naive_repeated(tokens: list[int], longest_period: int) -> list[bool]:
    return [
        any(
            all(t - i - p >= 0 and tokens[t - i] == tokens[t - i - p] for i in range(max(3 * p, 36)))
            for p in range(1, longest_period + 1)
        )
        for t in range(len(tokens))
    ]


def test_repetitions_are_found() -> None:
    generator = np.random.default_rng(1)
    rows = [generator.integers(0, 9, 160).tolist() for _ in range(4)]
    rows[1][20:120] = [4] * 100
    rows[2][10:150] = [1, 2, 3, 4, 5, 6, 7] * 20
    rows[3][60:] = (generator.integers(0, 9, 13).tolist() * 8)[:100]
    found = batches.repeated(torch.tensor(rows), longest_period=20)
    assert found.tolist() == [naive_repeated(row, 20) for row in rows]
    assert found[1].any() and found[2].any() and found[3].any() and not found[0].any()
    assert looping(torch.tensor(rows)[:, :110], 20).tolist() == [naive_repeated(row[:110], 20)[-1] for row in rows]


def test_labels_stop_at_the_documents_end() -> None:
    tokens = torch.arange(10)[None]
    starts = torch.tensor([[0, 0, 0, 0, 4, 4, 4, 4, 4, 4]])
    batch = batches.Batch(tokens, starts, torch.tensor([[1, 5, 8]]), torch.tensor([[True, True, False]]))
    labels, weights = batches.labels_and_weights(batch, 3, 7.0)
    assert labels[0, :2].tolist() == [[2, 3, 4], [6, 7, 8]]
    assert (weights[0] > 0).tolist() == [[True, True, False], [True, True, True], [False, False, False]]
    assert weights[0, 1].tolist() == pytest.approx([1, np.exp(-1 / 7), np.exp(-2 / 7)])


def test_head_loss_matches_autograd() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(12, 8, requires_grad=True)
    head, labels, weights = torch.randn(20, 8), torch.randint(0, 20, (12,)), torch.rand(12)
    loss, hits = losses.HeadLoss.apply(hidden, head, labels, weights)
    loss.backward()
    mine = hidden.grad.clone()
    hidden.grad = None
    logits = hidden @ head.T
    other = (torch.nn.functional.cross_entropy(logits, labels, reduction="none") * weights).sum()
    other.backward()
    assert float(loss) == pytest.approx(float(other), rel=1e-5)
    torch.testing.assert_close(mine, hidden.grad, rtol=1e-4, atol=1e-6)
    assert hits.tolist() == (logits.argmax(-1) == labels).float().tolist()


@pytest.mark.parametrize("seed", range(4))
def test_block_tables_of_a_gpu_cover_the_masks(seed: int) -> None:
    """FlexAttention skips blocks by these tables: none that a mask needs may be missing, nor called whole when it isn't."""
    torch.manual_seed(seed)
    rows, length, anchors, block = 2, 256, 32, 16
    cuts = torch.randint(0, length, (rows, 3)).sort(1).values
    index = torch.arange(length)
    starts = torch.stack([sum((index >= cut) * (cut - last) for last, cut in pairs(cuts[r])) for r in range(rows)])
    picked = torch.stack([torch.randperm(length - 1)[:anchors].sort().values for _ in range(rows)])
    batch = batches.Batch(
        torch.zeros(rows, length, dtype=torch.long), starts.long(), picked, torch.ones(rows, anchors) > 0
    )
    attention = patterns.Attention(rows, length, anchors, block, "cpu")
    attention.flex = True
    attention.update(batch)
    q_target, q_drafter = torch.arange(length)[:, None], torch.arange(anchors * block)[:, None]
    k_target, k_drafter = torch.arange(length)[None], torch.arange(length + anchors * block)[None]
    for table, rule, q, k in (
        (attention.target_mask, attention._causal, q_target, k_target),
        (attention.drafter_mask, attention._blocks, q_drafter, k_drafter),
    ):
        for b in range(rows):
            dense = rule(b, 0, q, k).view(len(q) // 128, 128, -1, 128).transpose(1, 2)
            needed, whole = dense.any(-1).any(-1), dense.all(-1).all(-1)
            for i in range(len(needed)):
                partial = table.kv_indices[b, 0, i, : table.kv_num_blocks[b, 0, i]].tolist()
                full = table.full_kv_indices[b, 0, i, : table.full_kv_num_blocks[b, 0, i]].tolist()
                assert not set(partial) & set(full)
                assert set(torch.where(needed[i])[0].tolist()) <= set(partial) | set(full)
                assert all(bool(whole[i, j]) for j in full)


def pairs(cuts: torch.Tensor) -> list[tuple[int, int]]:
    values = [0, *cuts.tolist()]
    return list(itertools.pairwise(values))


TWO_PROCESSES = """
import sys, torch, torch.distributed as dist
from ddsim_reference.training import run, trainer

class Watched(trainer.Trainer):
    def save(self, path):
        super().save(path)
        Watched.saved = True
    def run(self, *arguments):
        super().run(*arguments)
        flat = torch.cat([p.detach().flatten() for p in self.parameters.values()])
        rows = int(self.corpus.tokens.sum())
        everyone = [None, None]
        dist.all_gather_object(everyone, (flat.tolist(), self.step, rows))
        (one, steps, text), (two, other_steps, other_text) = everyone
        assert one == two and steps == other_steps > 0, (steps, other_steps)
        assert text != other_text

run.Trainer = Watched
out = run.train_drafter(target=sys.argv[1], out=sys.argv[2] + "/out", work=sys.argv[2], data_seconds=0, train_seconds=3,
    mask_token_id=3, block_size=4, layers=2, slots=8, row_length=64, longest=40, rows=4, anchors=16, held_out=4, device="cpu",
    progress=lambda line: print(line, flush=True))
assert str(out) == sys.argv[2] + "/out"
"""


def test_writers_side_by_side_share_the_prompts() -> None:
    pool = tiny_pool()
    parts = [pool.share(rank, 3) for rank in range(3)]

    def listed(part: PromptPool) -> list[tuple[int, ...]]:
        return [(*row[:n], w) for row, n, w in zip(part.tokens.tolist(), part.lengths, part.self_written, strict=True)]

    assert sorted(row for part in parts for row in listed(part)) == sorted(listed(pool))


def test_two_processes_train_one_drafter(target: str, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    tiny_pool().save(work / "pool.npz")
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run([*command, target, str(work)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len([line for line in done.stdout.splitlines() if line.startswith("wave 1")]) == 1  # one process reports
    provenance = json.loads((work / "out" / "config.json").read_text())["ddsim_provenance"]
    assert provenance["blocks_per_step"] == 2 * 4 * 16
    assert provenance["text_tokens"] == 2 * 8 * 64
    assert sorted(p.name for p in work.iterdir()) == ["out", "pool.npz", "state.safetensors", "text-1.npz", "text.npz"]
