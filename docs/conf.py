"""How the site is made: sphinx-build -W docs site. Nothing is fetched, neither now nor when it is read."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import pages  # noqa: E402

import ddsim  # noqa: E402

project, author, release = "ddsim", "the ddsim authors", ddsim.__version__
project_copyright = "the ddsim authors, Apache-2.0"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["**.ipynb_checkpoints"]
nitpicky = True
default_role = "py:obj"
smartquotes = False  # --load would become –load
maximum_signature_line_length = 88

# Docstrings: their own words say what a parameter is, so that signatures stay short.
autosummary_generate = False
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_use_admonition_for_examples = False

# Notebooks are shown with the outputs that were committed.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
suppress_warnings = ["myst.xref_ambiguous"]

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "ddsim"
html_static_path = ["_static", "../ddsim/templates/sort.js"]
html_js_files = [("site.js", {"defer": "defer"}), ("sort.js", {"defer": "defer"})]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # it fetches pages, which browsers refuse where they are read from disk
html_math_renderer = "mathml"


def setup(app):  # type: ignore[no-untyped-def]
    return pages.setup(app)
