"""Sphinx configuration. The build reads nothing from the network and runs no notebook."""

import shutil
from functools import partial
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent / "notebooks"
CHAPTERS = HERE / "notebooks"  # a copy, ignored by git: Sphinx reads only what lies below docs/


def copy_notebooks() -> None:
    """Bring docs/notebooks in step with ../notebooks, touching only files that changed."""
    CHAPTERS.mkdir(exist_ok=True)
    originals = {path.name: path for path in NOTEBOOKS.glob("*.ipynb")}
    for copy in CHAPTERS.glob("*.ipynb"):
        if copy.name not in originals:
            copy.unlink()
    for name, path in originals.items():
        copy = CHAPTERS / name
        if not copy.exists() or copy.read_bytes() != path.read_bytes():
            shutil.copyfile(path, copy)


copy_notebooks()

project = "wanviz"
author = "The wanviz authors"
copyright = "The wanviz authors, Apache-2.0"
release = installed_version("wanviz")
version = release

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}

# The notebooks are committed executed, and validated by nbval; here they are only shown.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # no script from a content network: each widget has a picture beside it
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Types in signatures: other projects' cannot be looked up offline, and inner ones have no page. Public names must resolve.
nitpick_ignore_regex = [(r"py:.*", r"(?!(wanviz|tinywan)\.\w+$).*")]

html_theme = "sphinx_book_theme"
html_title = "wanviz"
html_static_path = ["style", "../wanviz/static/font"]
html_css_files = ["pages.css"]
html_theme_options = {"show_toc_level": 2, "use_download_button": False}
html_math_renderer = (
    "mathml"  # which browsers draw by themselves; MathJax would come from a content network
)


def visit_math(translator: Any, node: nodes.Element, block: bool) -> None:
    """Write a formula as MathML."""
    translator.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Tell Sphinx how formulas become HTML."""
    app.add_html_math_renderer(
        "mathml", (partial(visit_math, block=False), None), (partial(visit_math, block=True), None)
    )
