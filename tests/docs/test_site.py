"""The site: built without a warning, whole, and read from disk in a real browser, on a telephone and on paper, light and dark."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import pytest

import ddsim
from tests.view import browser

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """What a page refers to, is called by, and says."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag == "a" and found.get("href"):
            self.links.append(str(found["href"]))
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.fetched.append(str(found["href"]))
        if tag in ("img", "script", "iframe", "source") and found.get("src"):
            self.fetched.append(str(found["src"]))
        if tag == "img":
            self.images.append(found)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if any(importlib.util.find_spec(name) is None for name in ("sphinx", "furo", "myst_nb", "latex2mathml")):
        pytest.skip('needs the extra docs: pip install -c constraints.txt ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    words = ["-q", "-W", "--keep-going", "-j", "2", "-b", "html", str(ROOT / "docs"), str(folder / "html")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "ERROR" not in done.stderr, done.stdout + done.stderr
    return folder / "html"


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if "_static" not in path.parts}


def test_all_pages_can_be_reached(site: Path, pages: dict[Path, Page]) -> None:
    reached, waiting = set(), [site / "index.html"]
    while waiting:
        path = waiting.pop()
        if path in reached or path not in pages:
            continue
        reached.add(path)
        waiting += [
            (path.parent / unquote(urldefrag(link)[0])).resolve() for link in pages[path].links if "://" not in link
        ]
    assert {path.name for path in set(pages) - reached} == {
        "genindex.html",
        "search.html",
    }  # made for readers' own words
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert site / "notebooks" / f"{notebook.stem}.html" in reached


def test_every_link_and_anchor_leads_somewhere(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links + page.fetched:
            if re.match(r"(?:https?|mailto|data):", link):
                continue
            target, anchor = urldefrag(link)
            there = (path.parent / unquote(re.sub(r"\?.*", "", target))).resolve() if target else path
            if not there.exists() or (anchor and there in pages and unquote(anchor) not in pages[there].ids):
                broken.append((path.name, link))
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    assert [link for page in pages.values() for link in page.fetched if "://" in link] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?https?:", style.read_text(encoding="utf-8")), style.name
    for path in pages:
        assert "MathJax" not in path.read_text(encoding="utf-8")


def test_pages_have_a_title_and_headings_in_order_and_ids_of_their_own(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert path.name == "search.html" or (page.headings.count(1) == 1 and page.headings[0] == 1), path.name
        steps = [b - a for a, b in zip(page.headings, page.headings[1:], strict=False)]
        assert max(steps, default=0) <= 1, (path.name, page.headings)
        assert len(page.ids) == len(set(page.ids)), path.name


def test_figures_have_text_alternatives(pages: dict[Path, Page]) -> None:
    found = [(path.name, image) for path, page in pages.items() for image in page.images]
    assert len(found) > 25
    assert [(name, image["src"]) for name, image in found if len(image.get("alt") or "") < 15] == []


def test_every_public_name_is_described_once(site: Path) -> None:
    lines = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    names = {line.split(" py:")[0]: line.split()[-2] for line in lines if " py:" in line}
    wanted = {f"ddsim.{name}" for name in set(ddsim.__all__) - {"__version__", "plot"}}
    drawn = {f"ddsim.plot.{name}" for name in ddsim.plot.__all__ if not name.isupper()}
    assert wanted | drawn <= set(names)


def test_every_command_and_option_is_described(site: Path) -> None:
    from typer.main import get_command

    from ddsim.cli import main  # noqa: F401 (commands register themselves)
    from ddsim.cli.app import app

    text = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        section = re.search(rf'<section id="command-{name}">.*?</section>', text, re.S)
        assert section, name
        for option in command.params:
            assert all(f">{word}<" in section[0] for word in option.opts if word.startswith("--")), (name, option.opts)


def test_formulas_are_drawn_by_the_browser_itself(site: Path) -> None:
    assert sum(path.read_text(encoding="utf-8").count("<math") for path in (site / "ideas").glob("*.html")) > 10


# --- in the browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chromium() -> Iterator[browser.Browser]:
    if browser.MISSING:
        pytest.skip(browser.MISSING)
    with browser.Browser() as window:
        yield window


def test_pages_fit_can_be_read_and_complain_of_nothing(
    site: Path, pages: dict[Path, Page], chromium: browser.Browser
) -> None:
    wrong = []
    for path in pages:
        chromium.resize(400)
        chromium.open(path)
        for width in (400, 1400):
            for dark in (False, True):
                chromium.resize(width, dark=dark)
                where = (path.name, width, "dark" if dark else "light")
                if chromium.run("return document.documentElement.scrollWidth") > width:
                    wrong.append((*where, "scrolls sideways"))
                ground = chromium.run("return getComputedStyle(document.body).backgroundColor")
                if (sum(map(int, re.findall(r"\d+", ground)[:3])) < 300) is not dark:
                    wrong.append((*where, ground))
                wrong += [
                    (*where, *faint)
                    for faint in chromium.run(
                        browser.FAINT,
                        "article p, article li, article th, article td, article dd, article h1, article h2",
                    )
                ]
        wrong += [(path.name, said) for said in chromium.console()]
        wrong += [(path.name, url) for url in chromium.requests() if not url.startswith(("file:", "data:", "chrome:"))]
    assert wrong == []


def test_search_works_from_disk(site: Path, chromium: browser.Browser) -> None:
    chromium.resize(1400)
    chromium.open(site / "search.html", "?q=bucket")
    links = chromium.run(
        "return new Promise((done) => { const look = (left) => {"
        " const found = [...document.querySelectorAll('#search-results li a')].map((a) => a.href);"
        " found.length > 2 || !left ? done(found) : setTimeout(look, 50, left - 1); }; look(100); })"
    )
    assert len(links) > 2
    for link in links:
        assert Path(unquote(urldefrag(link)[0].removeprefix("file://"))).exists()
    assert chromium.console() == []


def test_tables_with_numbers_sort(site: Path, chromium: browser.Browser) -> None:
    chromium.resize(1400)
    chromium.open(site / "results.html")
    column = (
        "const [t, c] = arguments; return [...document.querySelectorAll('table:has(button)')[t].tBodies[0].rows]"
        ".map((r) => [r.cells[c].dataset.value, 'text' in r.cells[c].dataset, r.textContent])"
    )
    click = (
        "const [t, c] = arguments; const h = document.querySelectorAll('table:has(button)')[t].tHead.rows[0].cells[c];"
        " h.firstChild.click(); return h.getAttribute('aria-sort')"
    )
    widths = chromium.run(
        "return [...document.querySelectorAll('table:has(button)')].map((t) => t.tHead.rows[0].cells.length)"
    )
    assert len(widths) > 3
    for table, width in enumerate(widths):
        for c in range(width):
            before = chromium.run(column, table, c)
            order = chromium.run(click, table, c)
            after = chromium.run(column, table, c)
            assert sorted(before) == sorted(after)  # no row is lost
            if after[0][1]:
                assert order == "ascending"
            else:
                numbers = [float(value) for value, _, _ in after if value]
                assert order == "descending" and numbers == sorted(numbers, reverse=True)
    assert chromium.console() == []


def test_pages_print(site: Path, chromium: browser.Browser, tmp_path: Path) -> None:
    chromium.resize(1400, dark=True)
    for name in ("index", "reference/commands", "ideas/trees", "notebooks/03_how_big_should_the_tree_be"):
        chromium.open(site / f"{name}.html")
        chromium.pdf(tmp_path / "page.pdf")
        assert browser.pages_without_ink((tmp_path / "page.pdf").read_bytes()) == [], name
        chromium.resize(700, media="print")
        assert chromium.run("return document.documentElement.scrollWidth") <= 700, name
        chromium.resize(1400, dark=True)
