"""The report in a real browser, opened from disk with the network blocked."""

import base64
import os
import shutil

import numpy as np
import pytest

from wanviz import views
from wanviz.report import report
from wanviz.show import frame

pytestmark = pytest.mark.browser
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
HOSTILE = "<img src=x onerror=alert(1)> </script><script>alert(2)</script> \u202edog\u202c " * 99


EMOJI = "😀👩🏽‍🚀 a woman 🌂 in rain 🐶 is lost"


@pytest.fixture(scope="module")
def chromium():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sentence = "this test drives a browser through Playwright, which is not installed"
        if os.environ.get("CI"):
            pytest.fail(f"{sentence}; in CI it must be")
        pytest.skip(sentence)
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(found for name in names if (found := shutil.which(name)))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(painted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    report(painted(), folder / "plain.html")
    report(painted(HOSTILE, truncated_at=200), folder / "hostile.html")
    report(painted(video=False, keep=((),), frames=None), folder / "bare.html")
    report(painted(EMOJI, truncated_at=19), folder / "emoji.html")
    (folder / "cell.html").write_text(f"<!doctype html>{frame(painted())}", "utf-8")
    return folder


@pytest.fixture
def visit(chromium, pages):
    """Opens a page; afterwards checks that it asked for nothing and complained of nothing."""
    contexts, troubles = [], []

    def open_page(name, *, width=1100, motion="reduce", scheme="light"):
        context = chromium.new_context(
            viewport={"width": width, "height": 900},
            reduced_motion=motion,
            color_scheme=scheme,
            offline=True,
            locale="en-US",
        )
        contexts.append(context)
        page = context.new_page()
        url = (pages / f"{name}.html").as_uri()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(dialog.message))
        page.on("request", lambda request: request.url == url or troubles.append(request.url))
        page.goto(url)
        if name != "cell":
            page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def pixels(page, selector="#screen"):
    size = page.evaluate(
        f"(({{width, height}}) => [height, width])(document.querySelector('{selector}'))"
    )
    data = page.evaluate(
        f"""() => {{
          const canvas = document.querySelector('{selector}');
          const copy = new OffscreenCanvas(canvas.width, canvas.height);
          const context = copy.getContext('2d', {{willReadFrequently: true}});
          context.drawImage(canvas, 0, 0);
          const {{data}} = context.getImageData(0, 0, canvas.width, canvas.height);
          let text = '';
          for (const byte of data) text += String.fromCharCode(byte);
          return btoa(text);
        }}"""
    )
    return np.frombuffer(base64.b64decode(data), np.uint8).reshape(*size, 4)[..., :3].astype(int)


def chip(page, word):
    return page.locator(".chip", has_text=word).first


def test_hovering_a_word_paints_its_map_over_the_frame(visit, painted):
    trace, page = painted(), visit("plain")
    assert np.abs(pixels(page) - trace.frames[0]).max() == 0
    chip(page, "旗袍").hover()
    mass = trace.word_map("旗袍").values
    expected = views.overlay(trace.frames[0], mass[0], views.Scale.of(mass)).astype(int)
    assert np.abs(pixels(page) - expected).max() <= 4
    assert page.locator("#high").inner_text() == f"{mass.max():.2g}"
    page.mouse.move(5, 5)
    assert np.abs(pixels(page) - trace.frames[0]).max() == 0


def test_a_layer_a_frame_and_a_shared_scale_paint_what_the_trace_has(visit, painted):
    trace, page = painted(), visit("plain")
    chip(page, "伞").click()
    page.select_option("#layer", label="layer 2")
    page.select_option("#scale", "all")
    page.locator("#strip button").nth(3).click()
    mass = trace.word_map("伞", layer=2).values
    peak = max(float(trace.word_map(word, layer=2).max()) for word in trace.words)
    shown = views.overlay(trace.frames[11], mass[3], views.Scale(0, peak)).astype(int)
    assert page.locator("#where").inner_text() == "frame 11 / 16"
    assert np.abs(pixels(page) - shown).max() <= 4


def test_the_keyboard_reaches_words_plays_and_steps(visit):
    from playwright.sync_api import expect  # `visit` has seen to it that it is there

    page = visit("plain")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#where").inner_text() == "frame 2 / 16"
    page.keyboard.press("ArrowLeft")
    assert page.locator("#where").inner_text() == "frame 1 / 16"
    plain = pixels(page)
    for _ in range(4):  # two languages, the prompt, the first word
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className").startswith("chip")
    assert np.abs(pixels(page) - plain).max() > 20
    page.keyboard.press("Enter")
    assert page.locator('.chip[aria-pressed="true"]').count() == 1
    page.keyboard.press("Escape")
    assert page.locator('.chip[aria-pressed="true"]').count() == 0
    page.locator("h1").click()
    page.keyboard.press("Space")
    expect(page.locator("#where")).not_to_have_text("frame 1 / 16")  # page scripts may not eval
    page.keyboard.press("Space")
    assert page.locator("#play").get_attribute("aria-label") == "Play"


def test_a_video_starts_by_itself_unless_motion_is_to_be_reduced(visit):
    assert visit("plain").locator("#play").get_attribute("aria-label") == "Play"
    moving = visit("plain", motion="no-preference")
    assert moving.locator("#play").get_attribute("aria-label") == "Pause"


def test_a_hostile_prompt_is_shown_as_text_and_runs_nothing(visit):
    page = visit("hostile", width=360)
    assert page.locator("#prompt img, #prompt script").count() == 0
    shown = page.locator("#prompt").inner_text()
    assert "onerror" in shown and "U+202E" in shown and "\u202e" not in shown
    assert "first 200 characters" in page.locator("#cut").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_a_page_fits_its_window_in_both_themes(visit, width, scheme):
    page = visit("plain", width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = np.mean([int(n) for n in paper.strip("rgb()").split(",")])
    assert brightness > 200 if scheme == "light" else brightness < 60


def test_an_emoji_counts_as_one_character(visit):
    page = visit("emoji")
    assert page.locator("#prompt .chip").all_inner_texts() == ["a", "woman", "in"]
    assert page.locator("#prompt .lost").all_inner_texts() == ["rain 🐶 is lost"]
    shown = page.locator("#prompt").inner_text().replace("U+200D", "\u200d")
    assert shown.split() == EMOJI.split()


def test_the_language_can_be_changed(visit):
    page = visit("plain")
    page.click("#zh")
    assert page.evaluate("document.documentElement.lang") == "zh"
    assert page.locator("h1").inner_text() == "wanviz 每个词做了什么"
    assert page.locator("#kinds .chip").all_inner_texts() == ["文本结束符", "填充"]


def test_a_bare_trace_says_what_is_missing(visit):
    page = visit("bare")
    assert "not decoded" in page.locator("#reading").inner_text()
    assert 'frames="exact"' in page.locator("#frames-note").inner_text()


def test_the_page_works_inside_a_notebooks_sandboxed_frame(visit):
    page = visit("cell")
    inside = page.frame_locator("iframe")
    inside.locator("html[data-ready]").wait_for()
    inside.locator(".chip", has_text="旗袍").hover()
    assert inside.locator("#now-word").inner_text() == "旗袍"
