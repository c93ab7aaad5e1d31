"""The documentation builds without a warning and without a network."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.browser.pages import pixels

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
def test_no_page_loads_a_script_or_a_style_from_elsewhere_and_formulas_are_drawn(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|link)[^>]*(?:src|href)="https?:[^"]*"', text), page
    attention = (site / "notebooks" / "03_inside_the_block.html").read_text(encoding="utf-8")
    assert "<msqrt>" in attention
    assert "\\frac" not in attention


@pytest.mark.slow
def test_the_glossary_explains_attention_mass(site):
    assert 'id="term-attention-mass"' in (site / "glossary.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.browser
def test_the_views_work_in_a_chapter_without_a_network(site, chromium):
    context = chromium.new_context(viewport={"width": 1300, "height": 900}, locale="en-US")
    context.route(
        lambda url: not url.startswith(("file:", "data:", "blob:")), lambda route: route.abort()
    )
    page = context.new_page()
    page.goto((site / "notebooks" / "01_first_video.html").as_uri())
    element = page.wait_for_selector("iframe[title='wanviz report']")
    element.scroll_into_view_if_needed()
    frame = element.content_frame()
    frame.wait_for_selector("html[data-ready]", state="attached")
    before = pixels(frame)
    frame.locator(".wv-chip", has_text="伞").first.hover()
    assert frame.locator("[data-id=now-word]").inner_text() == "伞"
    assert np.abs(pixels(frame) - before).max() > 20
    context.close()
