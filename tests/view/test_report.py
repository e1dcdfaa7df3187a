"""The report: what it says is what plan says; one file; it works in a real browser, on a telephone and on paper."""

from __future__ import annotations

import html
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from ddsim.cost.model import CostModel, ProfileWarning, fit_cost
from ddsim.errors import DdsimError
from ddsim.replay.plan import plan
from ddsim.trace.calibrate import cross_calibrate
from ddsim.trace.trace import Trace
from ddsim.view.report import report
from tests import made_up
from tests.view import browser

FIGURES = ["budgets", "policies", "distribution", "tree", "cost", "acceptance", "probability", "depth"]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return made_up.saved(tmp_path_factory.mktemp("report") / "some & trace", sequences=12)


@pytest.fixture(scope="module")
def page(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    told: list[tuple[int, int]] = []
    text = report(
        trace, made_up.profile(), path, bootstrap=200, progress=lambda done, total: told.append((done, total))
    )
    assert path.read_text(encoding="utf-8") == text
    assert told == [(i, 5) for i in range(1, 6)]
    return path


@pytest.fixture(scope="module")
def few() -> Trace:
    """A trace whose report is made quickly."""
    return made_up.trace(sequences=4, length=20, horizon=4, max_budget=16)


def test_the_recommendation_comes_first_and_is_that_of_plan(page: Path, trace: Trace) -> None:
    text = html.unescape(page.read_text())
    answer = plan(trace, fit_cost(made_up.profile()), bootstrap=200)
    assert f'id="answer">{answer.sentence}</p>' in text
    assert len(answer.details) >= 3 and all(f"<li>{line}</li>" in text for line in answer.details)
    order = [
        text.index(s) for s in ("<h1>", answer.sentence, "<h2>Policies", "<h2>Cost", "<h2>Acceptance", "<h2>Provenance")
    ]
    assert order == sorted(order)
    row = answer.table().set_index("policy").loc[answer.choice]
    assert f"{row['speedup']:.2f}×" in text
    assert f"95 % interval {row['speedup_low']:.2f} to {row['speedup_high']:.2f}" in text
    assert trace.fingerprint in text
    assert "some & trace" in text and "some &amp; trace" in page.read_text()


def test_the_page_needs_nothing_else(page: Path) -> None:
    text = page.read_text()
    assert not re.search(r'(?:src|href)\s*=\s*"(?!#)', text)
    assert not re.search(r"@import|url\((?!#)", text)
    addresses = set(re.findall(r"https?://[^\s\"'<)]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert str(page.parent) not in text
    assert len(text) < 600_000


def test_figures_have_a_text_alternative_and_names_of_their_own(page: Path) -> None:
    text = page.read_text()
    found = re.findall(r"<svg.*?</svg>", text, re.S)
    names = []
    for code in found:
        svg = ElementTree.fromstring(code)
        assert svg.get("role") == "img"
        by_id = {e.get("id"): e for e in svg.iter() if e.get("id")}
        title, said = (by_id[i] for i in svg.attrib["aria-labelledby"].split())
        assert title.text and said.text and len(said.text) > 30
        names.append(svg.attrib["aria-labelledby"].split("-")[0])
        for element in svg.iter():  # everything that is referred to is there
            for value in element.attrib.values():
                for target in re.findall(r"(?:^|url\()#([^)]+)", value):
                    assert target in by_id
    assert sorted(names) == sorted(FIGURES)
    ids = re.findall(r'\sid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_the_same_page_again(page: Path, trace: Trace) -> None:
    assert report(trace, made_up.profile(), bootstrap=200) == page.read_text()


def test_what_was_extrapolated_is_said(few: Trace) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # on the page, and nowhere else
        warnings.simplefilter("ignore", ProfileWarning)  # the made-up sizes can't tell where steps lie
        text = report(few, made_up.profile(contexts=(1024, 2048)), bootstrap=10)
    assert "<li>Cost extrapolated: context" in text


def test_nothing_is_said_to_be_extrapolated_that_is_not(few: Trace) -> None:
    text = report(few, made_up.profile(batches=(1, 8)), bootstrap=10)  # batch 8 was measured further than batch 1
    assert "extrapolated" not in text


def test_a_cost_typed_in_one_prompt_and_no_text_of_tokens() -> None:
    logprobs = np.log(np.full((9, 2, 2), [0.6, 0.3]))
    small = Trace.from_arrays(np.arange(9) % 3, np.full((9, 2, 2), [1, 2]), logprobs, max_budget=6, workload="<b>&")
    text = report(small, CostModel.from_table([1, 8], [0.010, 0.012], draft_seconds=0.001), bootstrap=50)
    assert "one prompt only: no interval" in text
    assert not re.search(r"\bnan\b", text, re.I)
    assert "<b>&" not in text and "&lt;b&gt;&amp;" in text


def test_texts_shorter_than_the_horizon() -> None:
    logprobs = np.log(np.full((3, 4, 2), [0.6, 0.3]))
    short = Trace.from_arrays([0, 1, 2], np.full((3, 4, 2), [1, 2]), logprobs, max_budget=6)
    text = report(short, CostModel.from_table([1, 8], [0.010, 0.012]), bootstrap=50)
    assert "<h2>Acceptance" not in text and "<h2>Provenance" in text


def test_a_cost_at_which_drafting_never_pays(few: Trace) -> None:
    text = report(few, CostModel.from_table([1, 100], [0.010, 1.0], draft_seconds=1.0), bootstrap=10)
    assert "Don&#39;t draft" in text
    assert 'id="tree"' not in text


@pytest.mark.parametrize("kind", ["isotonic", "temperature"])
def test_calibrated_policies_are_shown(few: Trace, kind: str) -> None:
    cost = CostModel.from_table([1, 8, 64], [0.010, 0.011, 0.02], draft_seconds=0.001)
    text = report(few, cost, calibration=cross_calibrate(few, kind), bootstrap=10)
    assert "LongRun calibrated" in text
    assert "predicted, calibrated" in text


def test_a_file_that_cannot_be_written(few: Trace, tmp_path: Path) -> None:
    cost = CostModel.from_table([1, 100], [0.010, 1.0], draft_seconds=1.0)
    with pytest.raises(DdsimError, match=r"^.*no/report\.html: can't be written \(No such file or directory\)$"):
        report(few, cost, tmp_path / "no" / "report.html", bootstrap=10)


# --- in the browser -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium(page: Path) -> Iterator[browser.Browser]:
    if browser.MISSING:
        pytest.skip(browser.MISSING)
    with browser.Browser() as window:
        window.open(page)
        yield window


def test_nothing_is_fetched_and_nothing_complained_of(chromium: browser.Browser, page: Path) -> None:
    chromium.requests()
    chromium.console()
    chromium.open(page)
    chromium.run("document.querySelectorAll('thead button').forEach((b) => b.click())")
    assert chromium.requests() == [page.resolve().as_uri()]
    assert chromium.console() == []


@pytest.mark.parametrize("width", [400, 1400])
def test_every_figure_is_seen_and_nothing_overflows(chromium: browser.Browser, width: int, tmp_path: Path) -> None:
    chromium.resize(width)
    assert chromium.run("return document.documentElement.scrollWidth") <= width
    boxes = chromium.run(
        "return [...document.querySelectorAll('figure')].map((f) => {"
        " const r = f.querySelector('svg').getBoundingClientRect(); return [f.id, r.width, r.height]; })"
    )
    assert [name for name, _, _ in sorted(boxes)] == sorted(FIGURES)
    for name, wide, high in boxes:
        assert wide >= 300 and high >= 100, name
    # Whatever is wider than its box scrolls inside the box.
    beyond = chromium.run(
        "return [...document.querySelectorAll('main *')].filter((e) => !e.closest('.box, .wide .drawing') &&"
        " !(e instanceof SVGElement) && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert beyond == []
    chromium.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 50_000


@pytest.mark.parametrize("width", [400, 1400])
@pytest.mark.parametrize("dark", [False, True])
def test_letters_stand_out_by_day_and_by_night(
    chromium: browser.Browser, width: int, dark: bool, tmp_path: Path
) -> None:
    chromium.resize(width, dark=dark)
    try:
        assert chromium.run("return matchMedia('(prefers-color-scheme: dark)').matches") is dark
        ground = chromium.run("return getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 300) is dark
        assert chromium.run(browser.FAINT, "p, td, th, dt, dd, h1, h2, h3, figcaption, li, button") == []
        # Figures are drawn in dark ink, whatever the page is: they lie on white.
        grounds = chromium.run(
            "return [...document.querySelectorAll('.drawing')].map((e) => getComputedStyle(e).backgroundColor)"
        )
        assert set(grounds) == {"rgb(255, 255, 255)" if dark else "rgba(0, 0, 0, 0)"}
        assert chromium.run("return document.documentElement.scrollWidth") <= width
    finally:
        chromium.resize(1400)


@pytest.mark.parametrize("width", [400, 1400])
def test_letters_can_be_read(chromium: browser.Browser, width: int) -> None:
    chromium.resize(width)
    sizes = chromium.run(
        "return [...document.querySelectorAll('main p, td, th, figcaption, dd, dt, svg text')].map((e) => {"
        " const scale = e instanceof SVGElement ? Math.hypot(e.getScreenCTM().a, e.getScreenCTM().b) : 1;"
        " return [e.textContent, parseFloat(getComputedStyle(e).fontSize) * scale, !!e.closest('#tree')]; })"
    )
    assert len(sizes) > 200
    smallest = {tree: min(size for _, size, inside in sizes if inside == tree) for tree in (False, True)}
    assert smallest[False] >= 9  # pixels
    assert smallest[True] >= 7.5


COLUMN = (
    "const t = document.querySelectorAll('table')[arguments[0]];"
    " return [...t.tBodies[0].rows].map((r) => r.cells[arguments[1]].textContent)"
)
SORT = (
    "const b = document.querySelectorAll('table')[arguments[0]].querySelectorAll('thead button')[arguments[1]];"
    " b.click(); return [...b.closest('tr').children].map((h) => h.getAttribute('aria-sort'))"
)


def table_named(chromium: browser.Browser, title: str) -> int:
    titles = chromium.run("return [...document.querySelectorAll('.table h3')].map((h) => h.textContent)")
    return int(titles.index(title))


def test_tables_sort_by_click(chromium: browser.Browser) -> None:
    table = table_named(chromium, "By workload")
    heading = chromium.run(
        "return [...document.querySelectorAll('table')[arguments[0]].querySelectorAll('th button')].map((b) => b.textContent)", table
    )  # fmt: skip
    rate = heading.index("tokens/s")
    before = chromium.run(COLUMN, table, rate)
    state = chromium.run(SORT, table, rate)
    assert state[rate] == "descending" and set(state) == {"descending", "none"}
    numbers = [float(v.replace(",", "")) for v in chromium.run(COLUMN, table, rate)]
    assert numbers == sorted(numbers, reverse=True)
    assert sorted(chromium.run(COLUMN, table, rate)) == sorted(before)  # no row is lost
    assert chromium.run(SORT, table, rate)[rate] == "ascending"
    assert [float(v.replace(",", "")) for v in chromium.run(COLUMN, table, rate)] == sorted(numbers)
    assert chromium.run(SORT, table, 0)[0] == "ascending"
    names = chromium.run(COLUMN, table, 0)
    assert names == sorted(names) and len(set(names)) == 2
    assert chromium.run(SORT, table, 1)[1] == "ascending"  # policies, a column of text in the middle
    assert chromium.run(COLUMN, table, 1) == sorted(chromium.run(COLUMN, table, 1), key=str.lower)


def test_tables_sort_by_keyboard(chromium: browser.Browser) -> None:
    table = table_named(chromium, "All prompts")
    chromium.run("document.querySelectorAll('table')[arguments[0]].querySelectorAll('thead button')[0].focus()", table)
    chromium.press("Tab")
    assert chromium.run("return document.activeElement.textContent") == "tokens/s"
    chromium.press("Enter")
    rates = [float(v.replace(",", "")) for v in chromium.run(COLUMN, table, 1)]
    assert rates == sorted(rates, reverse=True)


def test_it_prints(chromium: browser.Browser, tmp_path: Path) -> None:
    chromium.pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert browser.pages_without_ink((tmp_path / "report.pdf").read_bytes()) == []
    chromium.resize(700, media="print")  # A4 without margins, in CSS pixels
    try:
        assert chromium.run("return document.documentElement.scrollWidth") <= 700
        cut = chromium.run(
            "return [...document.querySelectorAll('.box, .drawing')].filter((e) => e.scrollWidth > e.clientWidth + 1).map((e) => e.textContent.slice(0, 60))"
        )
        assert cut == []
    finally:
        chromium.resize(1400)
