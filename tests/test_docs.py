"""The documentation builds without a warning and without a network."""

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built pages; a warning, or a name that does not resolve, fails the build."""
    folder = tmp_path_factory.mktemp("site")
    flags = ("-W", "-n", "--keep-going", "-q", "-b", "html", "-d", folder / "doctrees")
    # Any proxy that is asked refuses: the build must not ask.
    closed = dict.fromkeys(
        ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"
    )
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *flags, DOCS, folder / "html"],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", **closed},
    )
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.mark.slow
def test_the_reference_explains_capture(site):
    assert 'id="wanviz.capture"' in (site / "reference" / "wanviz.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_every_notebook_is_a_chapter(site):
    chapters = {path.stem for path in (site / "notebooks").glob("*.html")}
    assert chapters == {path.stem for path in (DOCS.parent / "notebooks").glob("*.ipynb")}


@pytest.mark.slow
def test_the_glossary_explains_attention_mass(site):
    assert 'id="term-attention-mass"' in (site / "glossary.html").read_text(encoding="utf-8")
