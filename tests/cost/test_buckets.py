"""Buckets: the sizes to pad to, against all sets of them; curves that aren't padded; what fit and refusals say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsim.cli.main import main
from ddsim.cost.buckets import bucket_loss, choose_buckets, unpadded_curve
from ddsim.cost.profile import DraftSample, Profile, VerifySample
from ddsim.errors import DdsimError
from tests.naive import cost as naive_cost


def tiles(tokens: int) -> float:
    """A pass in tiles of 16 tokens, and twice the step at 96."""
    return 1.0 + 0.1 * -(-tokens // 16) + (0.3 if tokens > 96 else 0.0)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 2), st.booleans())
def test_no_set_of_buckets_loses_less(data: Any, m: int, contexts: int, worst: bool) -> None:
    tokens = sorted(data.draw(st.lists(st.integers(1, 99), min_size=m, max_size=m, unique=True)))
    seconds = data.draw(
        st.lists(
            st.lists(st.sampled_from([1.0, 1.25, 1.5, 2.0, 3.0]), min_size=contexts, max_size=contexts),
            min_size=m,
            max_size=m,
        )
    )
    count, beside = data.draw(st.integers(1, m + 1)), data.draw(st.sampled_from([0.0, 0.5]))
    weights = data.draw(st.lists(st.integers(0, 3), min_size=m, max_size=m).filter(any))
    options: dict[str, Any] = {"beside": beside, "weights": weights, "worst": worst}
    found = choose_buckets(tokens, seconds, count, **options)
    least, fewest = naive_cost.least_padding(tokens, seconds, count, beside, weights, worst)
    lost = naive_cost.padding_loss(tokens, seconds, found, beside, weights, worst)
    assert lost == pytest.approx(least, abs=1e-12) and len(found) == fewest
    assert found == tuple(sorted(set(found))) and set(found) <= set(tokens) and found[-1] == tokens[-1]
    assert bucket_loss(tokens, seconds, found, **options) == pytest.approx(lost, abs=1e-12)


def test_steps_are_found_where_they_are() -> None:
    sizes = list(range(1, 257))
    curve = [tiles(t) for t in sizes]
    ends = choose_buckets(sizes, curve, 16)
    assert ends == tuple(range(16, 257, 16)) and bucket_loss(sizes, curve, ends) == 0.0
    assert choose_buckets(sizes, curve, 99) == ends  # no more than are needed
    few = choose_buckets(sizes, curve, 4)
    assert 96 in few and few[-1] == 256 and few[0] < 64  # the tall step, and small sizes count as much as large ones
    assert bucket_loss(sizes, curve, few) < bucket_loss(sizes, curve, [64, 128, 192, 256])
    assert choose_buckets(sizes, curve, 1) == (256,)
    # Where a round takes long anyway, padding matters less, and what is never asked for not at all.
    assert bucket_loss(sizes, curve, few, beside=10.0) < bucket_loss(sizes, curve, few) / 4
    assert choose_buckets(sizes, curve, 3, weights=[float(t <= 32) for t in sizes])[:2] == (16, 32)
    assert bucket_loss([16, 64], [1.0, 2.0], [40, 64]) == bucket_loss([16, 64], [1.0, 2.0], [64])  # 40 wasn't measured


def profiled() -> Profile:
    sizes = (1, 16, 32, 48, 64, 96, 128)
    verify = [VerifySample(t, c, 1, (tiles(t) * (1 + c / 1e4),)) for t in (*sizes, 17, 33, 97) for c in (512, 4096)]
    return Profile(verify, [DraftSample(512, 1, (0.4,))], buckets=sizes)


def test_curves_are_those_of_the_profiles_buckets() -> None:
    sizes, table = unpadded_curve(profiled())
    assert sizes.tolist() == [1, 16, 32, 48, 64, 96, 128]
    np.testing.assert_allclose(table, [[tiles(int(t)) * (1 + c / 1e4) for c in (512, 4096)] for t in sizes])
    bare = Profile([VerifySample(t, 512, b, (tiles(t),)) for t in (2, 9, 30) for b in (1, 2)])
    assert unpadded_curve(bare)[0].tolist() == [2, 9, 30] and unpadded_curve(bare, 2)[1].shape == (3, 1)
    with pytest.raises(DdsimError, match="fewer than 2 sizes"):
        unpadded_curve(Profile([VerifySample(t, 512, 1, (1.0,)) for t in (2, 3)], buckets=[3, 9]))


def test_fit_chooses_buckets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profiled().save(tmp_path / "p.json")
    words = ["fit", str(tmp_path / "p.json"), "--kind", "steps", "--choose-buckets"]
    assert main([*words, "3"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--buckets " in text and "of a round on average" in text
    assert main([*words, "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["buckets"]
    assert len(found["buckets"]) == 3 and found["buckets"][-1] == 128 and 0 < found["loss"] < 1
    sizes, table = unpadded_curve(profiled())
    assert tuple(found["buckets"]) == choose_buckets(sizes, table, 3, beside=0.4)
    assert main([*words, "0"]) == 2 and main(["fit", str(tmp_path / "c.json"), "--choose-buckets", "3"]) == 2
    capsys.readouterr()
    assert main(["fit", str(tmp_path / "p.json"), "-o", str(tmp_path / "c.json")]) == 0
    capsys.readouterr()
    assert main(["fit", str(tmp_path / "c.json"), "--choose-buckets", "3"]) == 2
    assert "holds a fitted model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tokens", "seconds", "more", "says"),
    [
        ([1, 2], [1.0], {}, "as many seconds as sizes"),
        ([2, 1], [1.0, 2.0], {}, "ascend"),
        ([1, 2], [1.0, 0.0], {}, "above 0"),
        ([1, 2], [1.0, 2.0], {"weights": [1.0]}, "as many as sizes"),
        ([1, 2], [1.0, 2.0], {"weights": [0.0, 0.0]}, "some above"),
        ([1, 2], [1.0, 2.0], {"beside": -1.0}, "above 0"),
    ],
)
def test_bad_curves_are_refused(tokens: Any, seconds: Any, more: dict[str, Any], says: str) -> None:
    with pytest.raises(DdsimError, match=says):
        choose_buckets(tokens, seconds, 1, **more)
    with pytest.raises(DdsimError, match=says):
        bucket_loss(tokens, seconds, [2], **more)


def test_bad_counts_and_buckets_are_refused() -> None:
    with pytest.raises(DdsimError, match="at least 1"):
        choose_buckets([1, 2], [1.0, 2.0], 0)
    with pytest.raises(DdsimError, match="must hold 2 tokens"):
        bucket_loss([1, 2], [1.0, 2.0], [1])
