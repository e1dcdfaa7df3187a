"""Heads that know the token before: against a naive twin, in files, and trained on the CPU."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import compare_heads
import ddsim
from ddsim.errors import DdsimError
from ddsim_reference.model.checkpoint import load_drafter, load_head, save_drafter, save_head, save_target
from ddsim_reference.model.heads import FORMS, HeadConfig, head_shapes, initial_head, largest, lattice, marginals
from ddsim_reference.training import data, run, trainer
from ddsim_reference.training.loss import candidate_loss
from tests.naive import heads as naive
from tests.reference import tiny
from tests.reference.test_training import CONFIG, OPTIONS, tiny_pool, tiny_weights

EVERY = [HeadConfig(form, 12, tables, reach) for form in FORMS for tables in (False, True) for reach in (0, 1, 2)]


def random_head(head: HeadConfig, seed: int) -> dict[str, torch.Tensor]:
    shape = tiny.drafter_config(tiny.target_config())
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(size, generator=generator) * (0.5 if len(size) == 1 else size[-1] ** -0.5)
        for name, size in head_shapes(head, shape).items()
    }


@given(st.sampled_from(EVERY), st.integers(0, 2**31 - 1), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_lattices_match_the_naive_twin(head: HeadConfig, seed: int, count: int) -> None:
    config, target = tiny.target(seed=seed % 3)
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(3, 5, config.hidden_size, generator=generator)
    weights = random_head(head, seed)
    embedding, target_head = target["model.embed_tokens.weight"], target["lm_head.weight"] * 0.3
    ids, first, transitions = lattice(head, weights, hidden, embedding, target_head, count)
    arrays = {name: weight.double().numpy() for name, weight in weights.items()}
    for b in range(3):
        wanted = naive.lattice(
            head, arrays, hidden[b].double().numpy(), embedding.double().numpy(),
            target_head.double().numpy(), count,
        )  # fmt: skip
        assert ids[b].tolist() == wanted[0].tolist()
        np.testing.assert_allclose(first[b], wanted[1], atol=2e-4)
        np.testing.assert_allclose(transitions[b], wanted[2], atol=2e-4)


@given(st.integers(0, 2**31 - 1), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_the_largest_by_groups_are_the_largest(seed: int, count: int) -> None:
    logits = torch.randn(3, 2, 40 * count, generator=torch.Generator().manual_seed(seed))
    values, ids = largest(logits, count, group=8)
    wanted = logits.topk(count)
    assert torch.equal(values, wanted.values) and torch.equal(ids, wanted.indices)


def test_candidates_and_the_rest_are_a_distribution() -> None:
    config, target = tiny.target()
    hidden = torch.randn(2, 5, config.hidden_size, generator=torch.Generator().manual_seed(5))
    head = target["lm_head.weight"] * 0.2
    cut = marginals(hidden, head, 7, chunk=1)
    logits = hidden @ head.T
    torch.testing.assert_close(torch.logaddexp(cut.logits.logsumexp(-1), cut.rest), logits.logsumexp(-1))
    assert torch.equal(cut.parents, cut.ids[:, :-1])
    labels = torch.stack((cut.ids[:, :, 2], logits.argmin(-1)))
    weights = torch.rand(2, 5)
    logprobs = logits.log_softmax(-1)
    loss, hits = candidate_loss(cut.logits, cut.rest, cut.ids, labels[0], weights)
    wanted = -(logprobs.gather(-1, labels[0][..., None])[..., 0] * weights).sum()
    torch.testing.assert_close(loss, wanted)
    assert not hits.any()
    other, _ = candidate_loss(cut.logits, cut.rest, cut.ids, labels[1], weights)
    share = 1 - logprobs.gather(-1, cut.ids).exp().sum(-1)
    torch.testing.assert_close(other, -(share.log() * weights).sum())


@pytest.mark.parametrize("head", EVERY[::5], ids=str)
def test_a_head_is_read_as_it_was_written(head: HeadConfig, tmp_path: Path) -> None:
    config, _ = tiny.target()
    shape, weights = tiny.drafter(config)
    save_drafter(tmp_path, shape, weights, {})
    assert load_head(str(tmp_path), shape) is None
    before = (tmp_path / "model.safetensors").read_bytes()
    mine = {name: weight.bfloat16().float() for name, weight in random_head(head, 0).items()}
    save_head(tmp_path, head, mine, {"made_by": "a test"})
    found = load_head(str(tmp_path), shape)
    assert found is not None and found[0] == head
    assert found[1].keys() == mine.keys() and all(torch.equal(found[1][name], mine[name]) for name in mine)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert load_drafter(str(tmp_path))[0] == shape  # the drafter's own loader doesn't take it for the drafter's


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"form": "magic"}, "form is 'magic', but must be one of static, gated"),
        ({"form": None}, "'form' is missing"),
        ({"width": 0}, "width is 0"),
        ({"width": 13}, "has shape"),
        ({"reach": 99}, "reach is 99"),
        ({"reach": 1}, "tensor 'bias' is missing, and so are 3 more|has no place|has shape"),
        ({"tables": 3}, "tables is 3"),
        ({"layers": 2}, "field 'layers' is unknown to this version"),
    ],
)
def test_heads_that_are_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    config, _ = tiny.target()
    shape, weights = tiny.drafter(config)
    save_drafter(tmp_path, shape, weights, {})
    save_head(tmp_path, HeadConfig("gated", 12), random_head(HeadConfig("gated", 12), 0), {})
    path = tmp_path / "head" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DdsimError, match=message) as caught:
        load_head(str(tmp_path), shape)
    assert "\n" not in str(caught.value)


def test_half_a_head_is_refused(tmp_path: Path) -> None:
    config, _ = tiny.target()
    shape, weights = tiny.drafter(config)
    save_drafter(tmp_path, shape, weights, {})
    save_head(tmp_path, EVERY[0], random_head(EVERY[0], 0), {})
    described = (tmp_path / "head" / "config.json").rename(tmp_path / "elsewhere.json")
    with pytest.raises(DdsimError, match=r"head/config\.json: no such file"):
        load_head(str(tmp_path), shape)
    described = (tmp_path / "elsewhere.json").rename(tmp_path / "head" / "config.json")
    (described.parent / "model.safetensors").unlink()
    with pytest.raises(DdsimError, match=r"head: holds no \*\.safetensors"):
        load_head(str(tmp_path), shape)


@pytest.fixture(scope="module")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """A target, a drafter that some steps have trained, and the folder with the text."""
    folder = tmp_path_factory.mktemp("heads")
    save_target(folder / "target", CONFIG, tiny_weights())
    work = folder / "work"
    work.mkdir()
    tiny_pool().save(work / "pool.npz")
    with pytest.MonkeyPatch.context() as patch:
        _steady_clock(patch)
        run.train_drafter(
            target=str(folder / "target"), out=folder / "drafter", work=work, data_seconds=3, train_seconds=5,
            progress=lambda line: None, **OPTIONS,
        )  # fmt: skip
    (work / "state.safetensors").unlink()
    return str(folder / "target"), folder / "drafter", work


def _steady_clock(patch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count()  # every look takes a twentieth of a second, however busy the machine is
    clock = SimpleNamespace(perf_counter=lambda: next(ticks) / 20, strftime=time.strftime)
    for module in (trainer, run, data):
        patch.setattr(module, "time", clock)


@pytest.mark.parametrize("form", FORMS)
def test_a_head_learns_what_follows_and_leaves_the_drafter_alone(
    form: str, drafted: tuple[str, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, drafter, work = drafted
    _steady_clock(monkeypatch)
    out = tmp_path / "out"
    run.train_drafter(
        target=target, out=out, work=work, train_seconds=8, start=str(drafter), head=form, head_only=True, rate=1e-2,
        progress=lambda line: None, **OPTIONS,
    )  # fmt: skip
    (work / "state.safetensors").unlink()
    assert (out / "model.safetensors").read_bytes() == (drafter / "model.safetensors").read_bytes()
    assert (out / "config.json").read_bytes() == (drafter / "config.json").read_bytes()
    described = json.loads((out / "head" / "config.json").read_text())
    assert (described["form"], described["width"]) == (form, CONFIG.hidden_size)
    known = described["ddsim_provenance"]
    # Text of a random target follows its last token closely: what the marginals can't know a head learns in few steps.
    assert known["held_out_loss"] < known["held_out_loss_of_marginals"] - 0.1
    assert load_head(str(out), load_drafter(str(out))[0]) is not None


def test_several_heads_train_as_if_alone(drafted: tuple[str, Path, Path]) -> None:
    """One pass of the drafter serves several heads, and each gets the steps that it would get by itself."""
    target, drafter, work = drafted
    config, weights, _ = run.load_target(target, with_tokenizer=False)
    shape, frozen = load_drafter(str(drafter))
    with np.load(work / "text.npz") as file:
        corpus = trainer.Corpus({name: file[name] for name in file.files}, "cpu")
    heads = [HeadConfig("gated", 16, reach=1), HeadConfig("static", 8, tables=True), HeadConfig("gated", 24)]

    def trained(which: list[HeadConfig]) -> list[dict[str, torch.Tensor]]:
        mine = trainer.Trainer(
            config, weights, shape, corpus, rows=4, anchors=8, held_out=4, heads=which, frozen=frozen
        )
        for _ in range(4):
            mine.batch = trainer.draw(corpus, mine._next_rows(), mine.anchors, mine.generator)
            mine._update()
        return [mine.head_weights(i) for i in range(len(which))]

    together = trained(heads)
    for head, mine in zip(heads, together, strict=True):
        (alone,) = trained([head])
        for name in mine:
            torch.testing.assert_close(mine[name], alone[name], rtol=1e-5, atol=1e-6)


def test_drafter_and_head_train_together(
    drafted: tuple[str, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, drafter, work = drafted
    _steady_clock(monkeypatch)
    lines: list[str] = []
    run.train_drafter(
        target=target, out=tmp_path / "out", work=work, train_seconds=2, start=str(drafter), head="gated",
        head_width=16, progress=lines.append, **OPTIONS,
    )  # fmt: skip
    (work / "state.safetensors").unlink()
    shape, weights = load_drafter(str(tmp_path / "out"))
    found = load_head(str(tmp_path / "out"), shape)
    assert found is not None and found[0] == HeadConfig("gated", 16, reach=1)
    assert not torch.equal(weights["fc.weight"], load_drafter(str(drafter))[1]["fc.weight"])
    assert "head 1: held out" in lines[-1]


def test_the_joint_gradient_reaches_the_drafter_through_candidates(drafted: tuple[str, Path, Path]) -> None:
    target, _, work = drafted
    config, weights, _ = run.load_target(target, with_tokenizer=False)
    with np.load(work / "text.npz") as file:
        corpus = trainer.Corpus({name: file[name] for name in file.files}, "cpu")
    shape = tiny_shape(config)
    mine = trainer.Trainer(
        config, weights, shape, corpus, rows=4, anchors=8, held_out=4, heads=[HeadConfig("gated", 16)], candidates=48
    )
    found, _ = mine.losses(mine.batch)
    (slopes,) = torch.autograd.grad(found[1][0], [mine.parameters["norm.weight"]], retain_graph=True)
    (wanted,) = torch.autograd.grad(found[0][0], [mine.parameters["norm.weight"]])
    # A head that changes nothing yet, with all tokens as candidates, is the marginals: the same loss, and the same gradient.
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slopes, wanted, rtol=1e-3, atol=1e-5)


def test_a_state_of_another_training_is_refused(drafted: tuple[str, Path, Path], tmp_path: Path) -> None:
    target, drafter, work = drafted
    options = OPTIONS | {"target": target, "start": str(drafter), "work": work, "train_seconds": 0}
    run.train_drafter(out=tmp_path / "a", head="gated", head_only=True, progress=lambda line: None, **options)
    with pytest.raises(DdsimError, match="is the state of another training"):
        run.train_drafter(out=tmp_path / "b", head="static", head_only=True, progress=lambda line: None, **options)
    (work / "state.safetensors").unlink()


def tiny_shape(config: trainer.ModelConfig) -> trainer.DrafterConfig:
    from ddsim_reference.model.config import drafter_config

    return drafter_config(config, layers=2, block_size=4, mask_token_id=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "magic"}, "head 'magic': unknown; use one of static, gated"),
        ({"head_only": True}, "head_only: needs the drafter"),
        ({"head": "gated", "head_only": True}, "head_only: needs the drafter"),
        ({"head": "gated", "head_width": 10**9}, "head_width 1000000000"),
    ],
)
def test_training_options_that_are_refused(
    options: dict[str, object], message: str, drafted: tuple[str, Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(DdsimError, match=message):
        run.train_drafter(target=drafted[0], out=tmp_path / "o", work=tmp_path / "w", **(OPTIONS | options))


def test_rounds_are_those_of_a_walk_by_hand(drafted: tuple[str, Path, Path]) -> None:
    """Tokens a round of the comparison: a head that changes nothing has the marginals' rounds; trees against those drawn by name."""
    target, drafter, _ = drafted
    config, weights, _ = run.load_target(target, with_tokenizer=False)
    shape, frozen = load_drafter(str(drafter))
    idle = compare_heads.parsed("gated:8:reach=1")
    assert idle == HeadConfig("gated", 8, reach=1)
    generator = torch.Generator().manual_seed(0)
    busy = compare_heads.parsed("static:8:tables")
    nothing = initial_head(idle, shape, generator, "cpu")
    something = {name: torch.randn(size, generator=generator) for name, size in head_shapes(busy, shape).items()}
    prompts = [[1, 5, 9], [1, 5, 30, 31]]
    tokens, counts = compare_heads.judge(
        config, weights, shape, frozen, [None, (idle, nothing), (busy, something)], prompts, names=["a", "b"],
        max_new_tokens=20, candidates=6, budgets=(1, 4, 20),
    )  # fmt: skip
    assert counts.shape == (3, len(tokens), 4)
    assert counts[0].tolist() == counts[1].tolist() != counts[2].tolist()
    assert (counts[:, :, 1:3] >= counts[:, :, 2:]).all() and (counts[0] <= np.array(tokens)[:, None]).all()
    figures = compare_heads.gains(tokens, counts)
    assert figures[0]["gain"] == figures[1]["gain"] == [0.0] * 4
    assert figures[2]["tokens_a_round"] == pytest.approx((sum(tokens) / counts[2].sum(0)).tolist(), abs=1e-3)


def test_what_a_tree_and_a_chain_have_right() -> None:
    proposal = ddsim.Lattice([[7, 8], [5, 6]], np.log([0.6, 0.2]), np.log([[[0.5, 0.3], [0.1, 0.8]]]))
    # Nodes by probability: 7 (.6), 7 5 (.3), 8 (.2), 7 6 (.18), 8 6 (.16), 8 5 (.02).
    for truth, wanted in (
        ([7, 5, 1], [2, 1, 2, 2, 2]), ([8, 6], [0, 0, 0, 1, 1]), ([7, 6], [1, 1, 1, 1, 2]), ([9], [0] * 5),
    ):  # fmt: skip
        assert compare_heads.accepted(proposal, truth, (1, 2, 3, 4)) == wanted
    assert compare_heads.rounds([proposal] * 4, [3, 7, 5, 8, 6], (1, 4)) == [2, 3, 2]
