"""What the site makes of files outside of docs/: documents of the repository, the public names, the commands."""

from __future__ import annotations

import contextlib
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import ddsim

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "RESULTS.md": "results.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
}
"""Documents of the repository, and the pages that show them."""
LOG = logging.getLogger(__name__)
END = "<!-- site: to here -->"


def expand(app: Sphinx, name: str, source: list[str]) -> None:
    """Put in place of ``<!-- KIND: words -->`` what it stands for."""
    if app.env.doc2path(name, base=False).suffix != ".md":
        return
    kinds = {"document": document, "api": api, "commands": commands}
    folder = Path(app.srcdir, name).parent

    def put(found: re.Match[str]) -> str:
        return kinds[found[1]](app, folder, *found[2].split())

    text = re.sub(rf"<!-- ({'|'.join(kinds)}):(.*?)-->", put, source[0], flags=re.S)
    # docs/notebooks is a link to the folder beside docs/, and Sphinx would look for it there.
    source[0] = re.sub(r"\[([^]]*)\]\((?:\.\./)*(notebooks/\w+)\.ipynb\)", r"{doc}`\1 </\2>`", text)


def document(app: Sphinx, folder: Path, name: str) -> str:
    """A document of the repository, with links that lead to its pages."""
    path = ROOT / name
    app.env.note_dependency(str(path))
    if not path.exists():
        return f"# {path.stem.title()}"
    text = path.read_text(encoding="utf-8").split(END)[0]
    if name == "README.md" and END not in path.read_text(encoding="utf-8"):
        text = text.split("\n## How to read")[0]

    def link(found: re.Match[str]) -> str:
        image, label, target, anchor = found.groups()
        if not (ROOT / target).exists():
            raise ValueError(f"{name}: links to {target}, which isn't there")
        if target in PAGES:
            page = app.srcdir / PAGES[target]
        elif target.startswith(("docs/", "notebooks/")) and not target.endswith(".json"):
            page = app.srcdir / target.removeprefix("docs/")
        else:
            return label if label.startswith("`") else f"{label} (`{target}`)" if label != target else f"`{label}`"
        return f"{image}[{label}]({os.path.relpath(page, folder)}{anchor or ''})"

    return re.sub(r"(!?)\[([^]]*)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)", link, text)


def api(app: Sphinx, folder: Path, *names: str) -> str:
    """A table of public names, and what their docstrings say. ``Name+`` shows its methods, too."""
    module = "ddsim.plot" if names[0].startswith("plot.") else "ddsim"
    shown = [name.removeprefix("plot.") for name in names]
    lines = [
        f".. currentmodule:: {module}",
        "",
        ".. autosummary::",
        "   :nosignatures:",
        "",
        *(f"   {name.rstrip('+')}" for name in shown),
        "",
    ]
    for name in shown:
        thing = getattr(import_module(module), name.rstrip("+"))
        kind = "function" if not isinstance(thing, type) else "exception" if issubclass(thing, Exception) else "class"
        lines += [
            f".. auto{kind}:: {name.rstrip('+')}",
            *(["   :members:", "   :inherited-members:"] if name.endswith("+") else []),
            "",
        ]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def commands(app: Sphinx, folder: Path) -> str:
    """Every command with its options, as the program knows them."""
    from rich.text import Text
    from typer.main import get_command

    from ddsim.cli import main  # noqa: F401 (commands register themselves)
    from ddsim.cli.app import app as program

    def plain(text: str | None) -> str:
        return Text.from_markup(text or "").plain

    def cell(text: str) -> str:
        return re.sub(r"(?<![\w-])--[a-z][a-z-]*", r"`\g<0>`", re.sub(r"([|<*_$])", r"\\\1", text))

    rooms: dict[str, list[str]] = {}
    for name, command in get_command(program).commands.items():  # type: ignore[attr-defined]
        if command.hidden:
            continue
        lines = [f"(command-{name})=", f"### ddsim {name}", "", cell(plain(command.help)), ""]
        given = [line for line in (command.epilog or "").splitlines() if line.startswith("[bold]")]
        lines += ["```sh", *(plain(line) for line in given), "```", ""]
        for option in command.params:
            argument = option.param_type_name == "argument"
            words = [option.metavar] if argument else [*option.opts, *option.secondary_opts]
            spelt = ", ".join(f"`{word}`" for word in words)
            if not argument and not option.is_flag:
                spelt += f" *{option.metavar or 'number'}*"
                if option.default is not None and not callable(option.default):
                    spelt += f", by default {cell(str(option.default))}"
            spelt += ", required" if option.required and not argument else ""
            lines += [spelt, f": {cell(plain(option.help))}", ""]
        rooms.setdefault(str(command.rich_help_panel or "Commands"), []).extend([*lines, ""])
    return "\n".join(line for room, lines in rooms.items() for line in (f"## {room}", "", *lines))


# --- references, formulas, figures ------------------------------------------------------------------------------------


def public(target: str) -> bool:
    """Whether a name in backticks or in a type stands for something of ddsim's, not for a parameter or another library."""
    return target.partition(".")[0] in {"ddsim", *ddsim.__all__}


class OtherNames(SphinxPostTransform):
    """What isn't a name of ddsim's stays text: Sphinx would look for methods of that name."""

    default_priority = 5

    def run(self, **words: Any) -> None:
        for node in list(self.document.findall(pending_xref)):
            if node.get("refdomain") == "py" and not public(node["reftarget"]):
                node.replace_self(node.children)


def resolve(app: Sphinx, env: Any, node: pending_xref, shown: nodes.Element) -> nodes.Node | None:
    """Where the page of a name is that a docstring gives by its module. A name without a page must at least be there."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"]
    last = target.rpartition(".")[2]
    for page in (f"ddsim.{last}", f"ddsim.plot.{last}"):
        found = env.get_domain("py").objects.get(page)
        if found is not None and named(target) is named(page):
            return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, shown, page)
    return shown if named(target) is not None or named(f"ddsim.{target}") is not None else None


def named(name: str) -> Any:
    """What a dotted name leads to; None where it leads nowhere."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        with contextlib.suppress(ImportError):
            thing = import_module(".".join(parts[:i]))
            for part in parts[i:]:
                thing = getattr(thing, part, None)
            return thing
    return None


def formula(translator: Any, node: nodes.Element) -> None:
    """MathML in place of LaTeX: browsers draw it themselves."""
    block = isinstance(node, nodes.math_block)
    code = convert(node.astext(), display="block" if block else "inline")
    if "\\" in code:
        LOG.warning("a formula that can't be drawn: %s", node.astext(), location=node)
    translator.body.append(f'<div class="formula">{code}</div>' if block else code)
    raise nodes.SkipNode


class Finish(SphinxPostTransform):
    """A figure of a notebook is described by the paragraph before it; dashes are dashes."""

    default_priority = 5

    def run(self, **words: Any) -> None:
        said = "a figure"
        for node in list(self.document.findall()):
            if isinstance(node, nodes.paragraph) and node.astext().strip():
                said = " ".join(node.astext().split())
            elif isinstance(node, nodes.image) and not node.get("alt"):
                node["alt"] = f"Figure: {said[:400]}"
            elif isinstance(node, nodes.Text) and node == " -- ":  # between a parameter and what it is
                node.parent.replace(node, nodes.Text(" – "))
            elif isinstance(node, nodes.literal) and re.fullmatch(r"--?[\w-]+", node.astext()):
                node["classes"].append("option")  # which isn't broken after its hyphens
            elif isinstance(node, nodes.field_name) and node.astext() == "Variables":
                node[:] = [nodes.Text("Attributes")]


def undivided(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes what stands before a colon in a property's first line for its type: put it back."""
    if what == "property" and lines and lines[-1].startswith(":type: "):
        lines[0] = f"{lines.pop().removeprefix(':type: ')}: {lines[0]}"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", expand)
    app.connect("autodoc-process-docstring", undivided, priority=600)  # after Napoleon
    app.connect("missing-reference", resolve)
    app.add_post_transform(OtherNames)
    app.add_post_transform(Finish)
    app.add_html_math_renderer("mathml", inline_renderers=(formula, None), block_renderers=(formula, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
