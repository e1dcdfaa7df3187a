"""Templates and tokenizers that run on, fail or need too much, and options that no machine could follow."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddsim.errors import DdsimError
from ddsim_reference import limits
from ddsim_reference.decode import decode_prompts
from ddsim_reference.limits import check_range, in_child
from ddsim_reference.model import workloads
from ddsim_reference.model.checkpoint import load_target
from ddsim_reference.model.workloads import choose_prompts, encode, encode_all
from ddsim_reference.profile import measure_profile
from ddsim_reference.record import record
from ddsim_reference.training.run import train_drafter
from tests.reference import tiny_models

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes can't fork here")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_models.save(tmp_path_factory.mktemp("models"))


def with_template(pair: tuple[Path, Path], template: str) -> Any:
    """The tiny target's tokenizer with another chat template."""
    tokenizer = load_target(str(pair[0]))[2]
    tokenizer.chat_template = template
    return tokenizer


@needs_fork
@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "failed (Range too big"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "ran for more than 1 s"),
        ("{{ 'word ' * 10 ** 11 }}", ""),
        ("{{ messages[7]['content'] }}", "failed ("),
        ("{% if %}", "failed ("),
        ("{{ raise_exception('no user turns\nhere') }}", "failed (no user turns"),
        ("{{ messages.__class__.__mro__ }}", ""),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "failed ("),
        ("{{ '' }}", "has no tokens"),
    ],
)
def test_templates_that_fail_or_run_on(
    pair: tuple[Path, Path], template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workloads, "in_child", lambda work, what: in_child(work, what, seconds=1))
    began = time.monotonic()
    with pytest.raises(DdsimError) as caught:
        encode(with_template(pair, template), "word1")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert time.monotonic() - began < 20


@needs_fork
def test_a_child_returns_json_and_its_failures_and_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    fork = os.fork

    def counted() -> int:
        if pid := fork():
            made.append(pid)
        return pid

    monkeypatch.setattr(limits.os, "fork", counted)
    assert in_child(lambda: [1, "é", None], "it") == [1, "é", None]
    failures: list[tuple[Callable[[], Any], str]] = [
        (lambda: 1 / 0, r"it failed \(division by zero\)"),
        (lambda: os._exit(3), "it ran for more than 20 s or took too much memory"),
        (lambda: object(), "it failed"),
        (lambda: b"x" * (limits.CHILD_BYTES * 8), "it (failed|ran)"),
        (lambda: "x" * (limits.CHILD_BYTES >> 3), r"it makes \d+ MB and more of a prompt"),
    ]
    for work, message in failures:
        with pytest.raises(DdsimError, match=message):
            in_child(work, "it")
    assert len(made) == 6
    for pid in made:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def test_prompts_are_held_against_the_model(pair: tuple[Path, Path]) -> None:
    config, _, tokenizer = load_target(str(pair[0]))
    assert encode_all(tokenizer, ["word1 word2"], config, 500) == [[0, 4, 5, 1]]
    with pytest.raises(
        DdsimError, match="its 4 tokens and 509 new ones exceed the 512 positions that the target was made"
    ):
        encode_all(tokenizer, ["word1 word2"], config, 509)
    smaller = type(config)(**(vars(config) | {"vocab_size": 5}))
    with pytest.raises(DdsimError, match="its tokenizer made token 5 of it, but the target's vocabulary has 5"):
        encode_all(tokenizer, ["word1 word2"], smaller, 1)


def test_prompts_are_chosen_by_workload_and_named_once(tmp_path: Path) -> None:
    lines = [{"id": f"{i}", "workload": "ab"[i % 2], "prompt": f"p{i}"} for i in range(6)]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert [(p.workload, p.id) for p in choose_prompts([path], 1)] == [("a", "0"), ("b", "1")]
    with pytest.raises(DdsimError, match=r"prompt 0 of a is in .*p\.jsonl too; name it once"):
        choose_prompts([path, path], 1)
    for limit in (0, -1):
        with pytest.raises(DdsimError, match=f"limit {limit}: must be at least 1"):
            choose_prompts([path], limit)
    for bad, message in ((b'{"id": "\xff"}', "line 1: not UTF-8"), (b'{"id": "\\ud800", "workload": "w", "prompt": "x"}', "half a surrogate"),
                         (b'{"id": %s}' % (b"1" * 5000), "line 1: not JSON")):  # fmt: skip
        path.write_bytes(bad)
        with pytest.raises(DdsimError, match=message):
            choose_prompts([path])


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        (
            "max_new_tokens",
            99_999_999_999,
            "max_new_tokens 99999999999: must be from 1 to 1,048,576; models' contexts end",
        ),
        ("max_new_tokens", 600, "exceed the 512 positions"),
        pytest.param("max_new_tokens", 10**5000, "max_new_tokens of 10^5000: must be", id="digits"),
        ("batch", 10**24, "batch of 10^24: must be from 1 to 65,536"),
        ("batch", 0, "batch 0: must be from 1"),
        ("seed", -1, "seed -1: must be from 0 to"),
        ("seed", 2**64, "seed 18446744073709551616: must be from 0 to"),
        ("temperature", float("nan"), "temperature nan: must be"),
        ("temperature", float("inf"), "temperature inf: must be"),
        ("limit", 0, "limit 0: must be at least 1"),
    ],
)
def test_options_beyond_bounds(
    pair: tuple[Path, Path], tmp_path: Path, option: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"id": "1", "workload": "w", "prompt": "word1"}))
    models = {"target": str(pair[0]), "drafter": str(pair[1]), "prompts": [str(prompts)]}
    settings: dict[str, Any] = {"max_new_tokens": 4, option: value}
    with pytest.raises(DdsimError) as caught:
        record(**models, out=tmp_path / "t", max_budget=8, **settings)
    assert message in str(caught.value) and len(str(caught.value)) < 400
    assert not (tmp_path / "t").exists()
    with pytest.raises(DdsimError) as again:
        next(decode_prompts(**models, policy="DDTree:4", max_budget=8, **settings))
    assert option in str(again.value) or message in str(again.value)


def test_memory_that_is_not_there(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(json.dumps({"id": "1", "workload": "w", "prompt": "word1"}))
    models = {"target": str(pair[0]), "drafter": str(pair[1]), "prompts": [str(prompts)]}
    for module in ("model.device", "record", "engine.engine"):
        with monkeypatch.context() as patch:
            patch.setattr(f"ddsim_reference.{module}.free_memory", lambda device: 1000.0)
            with pytest.raises(DdsimError, match=r"memory") as caught:
                if module == "engine.engine":
                    next(decode_prompts(**models, policy="DDTree:4", max_budget=8))
                else:
                    record(**models, out=tmp_path / "t")
            assert "GB" in str(caught.value) and "GPU" not in str(caught.value)
    assert limits.free_memory(limits.torch.device("cpu")) > 1e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_seconds": float("inf")}, "train_seconds inf: must be from 0"),
        ({"data_seconds": float("nan")}, "data_seconds nan"),
        ({"rate": float("nan")}, "rate nan"),
        ({"block_size": 10**9}, "block_size 1000000000: must be from 2 to 64"),
        ({"layers": 10**9}, "layers 1000000000: must be"),
        ({"layers": 5}, "layers 5: must be from 1 to 4; a drafter has no more layers than its target"),
        ({"seed": 10**30}, "seed of 10"),
    ],
)
def test_training_options_beyond_bounds(pair: tuple[Path, Path], tmp_path: Path, options: Any, message: str) -> None:
    given = {"target": str(pair[0]), "out": tmp_path / "d", "work": tmp_path / "w", "mask_token_id": 3, "device": "cpu"}
    with pytest.raises(DdsimError, match=message):
        train_drafter(**(given | options))


def test_profiling_options_beyond_bounds(pair: tuple[Path, Path], tmp_path: Path) -> None:
    given = {"target": str(pair[0]), "out": tmp_path / "p.json", "device": "cpu", "dtype": "float32", "max_tokens": 4}
    for options in ({"repeats": 10**24}, {"seed": 2**65}, {"batches": [10**24]}, {"contexts": [10**15]}):
        with pytest.raises(DdsimError) as caught:
            measure_profile(**(given | options))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "p.json").exists()


def test_ranges_say_what_is_allowed() -> None:
    check_range("n", 3, 1, 3)
    with pytest.raises(DdsimError, match=r"n 4: must be from 1 to 3; take 3"):
        check_range("n", 4, 1, 3, "; take 3")
    with pytest.raises(DdsimError, match="n nan: must be 0 or more"):
        check_range("n", float("nan"), 0, float("inf"))
