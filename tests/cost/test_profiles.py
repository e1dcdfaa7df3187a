"""Profiles: medians with bootstrap bars, files that come back bit for bit, bad input refused in one line."""

from __future__ import annotations

import json
import re
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddsim.cost.profile import (
    DraftSample,
    HostSample,
    Profile,
    VerifySample,
    _median_and_bar,
    read_profile,
    write_profile,
)
from ddsim.errors import DdsimError

seconds = st.lists(st.floats(1e-7, 10, allow_nan=False), min_size=1, max_size=6).map(tuple)


@st.composite
def profiles(draw: Any) -> Profile:
    places = draw(st.lists(st.tuples(st.integers(0, 9000), st.integers(1, 64)), min_size=1, max_size=3, unique=True))
    verify = [
        VerifySample(tokens, context, batch, draw(seconds))
        for context, batch in places
        for tokens in draw(st.lists(st.integers(batch, 2048), min_size=2, max_size=4, unique=True))
    ]
    return Profile(
        verify,
        [DraftSample(context, batch, draw(seconds)) for context, batch in places[:2]],
        [HostSample(draw(seconds), batch) for _, batch in places[:1]],
        {"device": draw(st.text(max_size=5)), "when": 1.5, "nested": {"a": [None, True]}},
        draw(st.none() | st.sets(st.integers(1, 2048), min_size=1, max_size=4).map(sorted)),
        weight_bytes=draw(st.none() | st.floats(1, 1e12)),
        flops_per_s=draw(st.none() | st.integers(1, 10**15)),
    )


@settings(max_examples=100, deadline=None)
@given(profiles())
def test_files_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, profile: Profile) -> None:
    path = tmp_path_factory.mktemp("p") / "profile.json"
    write_profile(profile, path)
    again = read_profile(path)
    assert again == profile and again.to_json() == profile.to_json()
    before, after = profile.points(), again.points()
    for name in before.__dataclass_fields__:
        assert getattr(before, name).tobytes() == getattr(after, name).tobytes()
    assert [p.name for p in path.parent.iterdir()] == ["profile.json"]


@settings(max_examples=100, deadline=None)
@given(profiles())
def test_points_are_medians_of_pooled_samples(profile: Profile) -> None:
    points = profile.points()
    keys = list(zip(points.batch.tolist(), points.context.tolist(), points.tokens.tolist(), strict=True))
    assert keys == sorted(set(keys))
    for i, (batch, context, tokens) in enumerate(keys):
        pool = [
            x for s in profile.verify if (s.batch, s.context, s.tokens) == (batch, context, tokens) for x in s.seconds
        ]
        assert points.seconds[i] == np.median(pool) and points.repeats[i] == len(pool)
        assert min(pool) <= points.low[i] <= points.seconds[i] <= points.high[i] <= max(pool)
        if len(set(pool)) == 1:
            assert points.error[i] <= 1e-12 * points.seconds[i]


def test_repeats_of_one_point_are_pooled_and_one_disturbed_repeat_hardly_counts() -> None:
    clean = (0.0100, 0.0101, 0.0102, 0.0101, 0.0100)
    parts = [VerifySample(1, 0, 1, clean), VerifySample(1, 0, 1, (0.5,)), VerifySample(2, 0, 1, clean)]
    points = Profile(parts).points()
    assert points.repeats.tolist() == [6, 5]
    assert points.seconds[0] == pytest.approx(0.0101, rel=1e-9)


def test_bootstrap_bars_shrink_with_repeats_and_cover_the_median() -> None:
    rng = np.random.default_rng(0)
    widths, covered = [], 0
    for repeats in (5, 20, 80):
        width = []
        for _ in range(60):
            sample = tuple(0.01 * np.exp(0.05 * rng.standard_normal(repeats)))
            points = Profile([VerifySample(t, 0, 1, sample) for t in (1, 2)]).points()
            width.append(points.high[0] - points.low[0])
            covered += repeats == 80 and bool(points.low[0] <= 0.01 <= points.high[0])
        widths.append(np.mean(width))
    assert widths[0] > 1.5 * widths[1] > 2 * widths[2]
    assert covered >= 50  # 95 % of 60 is 57


def test_the_bars_of_a_point_do_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(1)
    samples = [VerifySample(t, 0, 1, tuple(rng.uniform(0.01, 0.02, 5))) for t in (1, 4, 9)]
    all_of, some = Profile(samples).points(), Profile(samples[1:]).points()
    np.testing.assert_array_equal(all_of.high[1:], some.high)
    np.testing.assert_array_equal(all_of.error[1:], some.error)


def test_a_million_repeats_take_no_gigabytes() -> None:
    rng = np.random.default_rng(2)
    for n in (10**6, 10**6 + 1):
        sample = 0.01 * np.exp(0.05 * rng.standard_normal(n))
        tracemalloc.start()
        median, low, high, error = _median_and_bar(sample, 0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 64e6  # resampling indices took 6 GB
        assert median == np.median(sample) and low < median < high
        assert error == pytest.approx(1.2533 * 0.05 * 0.01 / n**0.5, rel=0.15)  # of a normal sample's median


@pytest.mark.parametrize("n", [1001, 1500])
def test_bars_of_many_repeats_are_those_of_resampling(n: int) -> None:
    """Order statistics against resampling, on a sample so ragged that the bars have no simple form."""
    rng = np.random.default_rng(3)
    sample = np.concatenate([rng.uniform(0.01, 0.02, n // 2), rng.uniform(0.03, 0.04, n - n // 2)])
    medians = np.median(sample[rng.integers(0, n, (4000, n))], axis=1)
    mine = np.array([_median_and_bar(sample, seed)[1:] for seed in range(20)]).mean(axis=0)
    want = np.array([*np.quantile(medians, (0.025, 0.975)), medians.std()])
    np.testing.assert_allclose(mine, want, rtol=0.03)


def document() -> dict[str, Any]:
    sample = [{"tokens": t, "context": 512, "batch": 1, "seconds": [0.01, 0.011]} for t in (1, 16)]
    return {
        "schema_version": 1,
        "kind": "ddsim-profile",
        "provenance": {"device": "test"},
        "buckets": [1, 16],
        "verify": sample,
        "draft": [{"context": 512, "batch": 1, "seconds": [0.001]}],
        "host": [{"seconds": [0.0002]}],
    }


def edited(*path: Any, value: Any) -> str:
    changed = document()
    place: Any = changed
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(changed)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps(document())[:-40], "not valid JSON.*truncated"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1, 2]", "not a ddsim-profile file"),
        (edited("kind", value="ddsim-trace"), "not a ddsim-profile file"),
        (edited("kind", value=["a"]), "not a ddsim-profile file"),
        (edited("schema_version", value=2), "schema version 2 is newer than this ddsim reads.*upgrade"),
        (edited("schema_version", value=1.0), "schema_version: must be a whole number"),
        (edited("schema_version", value=KeyError), '"schema_version" is missing'),
        (edited("seconds", value=[1]), 'unknown key "seconds"'),
        (edited("verify", 0, "token", value=1), r'verify\[0\]: unknown key "token"'),
        (edited("verify", value=KeyError), '"verify" is missing'),
        (edited("verify", value=[]), "verify: needs at least 1 entry, has 0"),
        (edited("verify", value=document()["verify"][:1]), "at least 2 token counts at context 512, batch 1; it has only 1"),
        (edited("verify", 1, "tokens", value=1), "at least 2 token counts"),
        (edited("verify", 1, "tokens", value=0), r"verify\[1\].tokens: must be at least 1"),
        (edited("verify", 1, "tokens", value=True), r"verify\[1\].tokens: must be a whole number"),
        (edited("verify", 1, "tokens", value=10**30), r"verify\[1\].tokens: is implausibly large"),
        (edited("verify", 1, "tokens", value=2**50), r"verify\[1\].tokens: 1125899906842624 is more than any pass verifies, in tokens"),
        (edited("verify", 1, "context", value=2**40), r"verify\[1\].context: 1099511627776 is more than any context"),
        (edited("draft", 0, "batch", value=2**30), r"draft\[0\].batch: 1073741824 is more than any batch"),
        (edited("verify", 0, "seconds", value=[0.01, 1e200]), r"verify\[0\].seconds: 1e\+200 is more than any pass takes, in seconds"),
        (edited("host", 0, "seconds", value=[4000]), r"host\[0\].seconds: 4000 is more than any pass takes"),
        (edited("buckets", value=[1, 2**40]), r"buckets\[1\]: 1099511627776 is more than any pass verifies"),
        (edited("verify", value=[{"tokens": t, "context": 0, "batch": 1, "seconds": [0.01]} for t in range(1, 5000)]),
         "verify has 4,999 token counts at context 0, batch 1; thin them out to at most 4,096"),
        (edited("verify", 1, "batch", value=17), r"verify\[1\]: 16 tokens for a batch of 17"),
        (edited("verify", 0, "seconds", value=[]), r"verify\[0\].seconds: needs at least 1 entry"),
        (edited("verify", 0, "seconds", value=[0.1, -0.1]), r"verify\[0\].seconds\[1\]: must be above 0"),
        (edited("verify", 0, "seconds", value=[0]), r"verify\[0\].seconds\[0\]: must be above 0"),
        (edited("verify", 0, "seconds", value=[float("nan")]), "holds NaN, which is no JSON number"),
        (edited("verify", 0, "seconds", value=[float("inf")]), "holds Infinity, which is no JSON number"),
        (edited("verify", 0, "seconds", value=[10**400]), "holds a whole number of 401 digits"),
        (edited("verify", 0, "seconds", value="0.1"), r"verify\[0\].seconds: must be a list"),
        (edited("verify", 0, "seconds", value=["0.1"]), r"verify\[0\].seconds\[0\]: must be a number"),
        (edited("verify", 0, value=3), r"verify\[0\]: must be an object"),
        (edited("draft", value=KeyError), '"draft" is missing'),
        (edited("draft", 0, "context", value=-1), r"draft\[0\].context: must be at least 0"),
        (edited("host", 0, "seconds", value=[None]), r"host\[0\].seconds\[0\]: must be a number"),
        (edited("buckets", value=[1, 16, 16]), r"buckets\[2\]: 16 does not exceed the 16 before it"),
        (edited("buckets", value=[16, 1]), r"buckets\[1\]: 1 does not exceed the 16 before it"),
        (edited("buckets", value=[]), "buckets: needs at least 1 entry"),
        (edited("buckets", value=[0, 4]), r"buckets\[0\]: must be at least 1"),
        (edited("weight_bytes", value=0), "weight_bytes: must be above 0"),
        (edited("provenance", value="H100"), "provenance: must be an object"),
    ],
)  # fmt: skip
def test_bad_files_get_one_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DdsimError) as error:
        read_profile(path)
    line = str(error.value)
    assert line.startswith(str(path)) and "\n" not in line
    assert re.search(words, line), line


def test_good_document_is_good(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(json.dumps(document()))
    profile = read_profile(tmp_path / "good.json")
    assert profile.buckets == (1, 16) and profile.host[0].batch == 1
    old = document()
    del old["host"], old["buckets"]  # both may be left out
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert read_profile(tmp_path / "old.json").buckets is None


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DdsimError, match="no such file"):
        read_profile(tmp_path / "none.json")
    with pytest.raises(DdsimError, match="is a folder; name a file"):
        read_profile(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DdsimError, match="JSON is read as UTF-8"):
        read_profile(tmp_path / "binary.json")


def test_profiles_built_by_hand_are_checked_too(tmp_path: Path) -> None:
    two = [VerifySample(1, 0, 1, (0.1,)), VerifySample(np.int64(2), 0, 1, np.array([0.1, 0.2]))]  # type: ignore[arg-type]
    profile = Profile(two)
    assert profile.verify[1] == VerifySample(2, 0, 1, (0.1, 0.2))
    with pytest.raises(DdsimError, match=r"profile: verify\[0\]: must be a VerifySample, is DraftSample"):
        Profile([DraftSample(0, 1, (0.1,))])  # type: ignore[list-item]
    with pytest.raises(DdsimError, match=r"verify\[0\].seconds\[0\]: must be above 0"):
        Profile([VerifySample(1, 0, 1, (-0.1,)), two[1]])
    odd = Profile(two, provenance={"when": object()})
    with pytest.raises(DdsimError, match="something in it is not JSON"):
        odd.save(tmp_path / "odd.json")
    with pytest.raises(DdsimError, match="can't be written"):
        profile.save(tmp_path / "no folder" / "p.json")
    assert not list(tmp_path.iterdir())
