"""The report in a real browser, opened from disk with the network blocked."""

import time
from dataclasses import replace

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from matplotlib import colormaps
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output

from tests.browser.pages import chip, choose, pixels
from wanviz import views
from wanviz.attribution import attribute
from wanviz.contents import Contents
from wanviz.grid import Grid
from wanviz.report import report
from wanviz.show import frame, mimebundle
from wanviz.trace import Trace
from wanviz.words import encoded_prompt, split_words

pytestmark = pytest.mark.browser
HOSTILE = "<img src=x onerror=alert(1)> </script><script>alert(2)</script> \u202edog\u202c " * 99


OTHER = "一位穿红色旗袍的女子撑着红色的伞站在公园里"
# A level of 254 moves the colour by at most 3, blending rounds once more.
COLOR_STEPS = 4
MOST_PAGE = 16_000_000  # bytes
MOST_SECONDS = 2.0
WEBP_LOSS = 6  # levels of light, of pictures with small losses
EVERY_SLICE = (("layer", "head"), ("layer", "step"))
GROUPED = "grouped", 5 * 9  # a page, and how many maps of each subject it has room for
APART = "apart", 5 + 3
EMOJI = "😀👩🏽‍🚀 a woman 🌂 in rain 🐶 is lost"


def watched(trace, *steps):
    """What a capture with select={"step": steps} keeps of a trace that kept all steps by layer."""
    contents, places = trace.contents, list(steps)
    arrays = dict(contents.arrays)
    for name in ("cond/words/layer+step", "cond/frames/layer+step", "cond/load"):
        arrays[name] = arrays[name][:, places]
    if "previews" in arrays:
        arrays["previews"] = arrays["previews"][places]
    return Trace(replace(contents, arrays=arrays, labels=contents.labels | {"step": steps}))


def stopped(trace, after):
    """A trace whose run ended early."""
    record = trace.record | {"steps": trace.record["steps"][:after]}
    return Trace(replace(trace.contents, record=record))


def looking_away(trace):
    """A trace whose first frame never looks at the fourth."""
    arrays = dict(trace.contents.arrays)
    arrays["cond/links"] = arrays["cond/links"].copy()
    arrays["cond/links"][0, :, 3] = 0
    return Trace(replace(trace.contents, arrays=arrays))


@pytest.fixture(scope="module")
def pages(painted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    report(painted(), folder / "plain.html")
    report(painted(keep=EVERY_SLICE), folder / "slices.html")
    report(painted(keep=EVERY_SLICE, previews=True, links=True), folder / "steps.html")
    report(painted(), folder / "two.html", beside=painted(OTHER, keep=EVERY_SLICE))
    report(painted(HOSTILE, truncated_at=200), folder / "hostile.html")
    some = watched(painted(keep=EVERY_SLICE, previews=True), 1, 3, 5)
    report(some, folder / "some.html")
    report(some, folder / "some-and-all.html", beside=painted(keep=EVERY_SLICE, previews=True))
    report(stopped(painted(keep=EVERY_SLICE, previews=True), 3), folder / "stopped.html")
    report(painted(keep=(("layer", "head"),), previews=True), folder / "predictions.html")
    report(looking_away(painted(links=True)), folder / "away.html")
    for (name, maps), trace in (
        (GROUPED, painted(keep=(("layer", "step"),), steps=12, previews=True)),
        (APART, painted(keep=(("layer", "head"),))),
    ):
        room = maps * (len(trace.words) + 2) * trace.contents.grid.tokens
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("wanviz.page.MOST_MAP_BYTES", room)
            report(trace, folder / f"{name}.html")
    report(painted(video=False, keep=((),), frames=None), folder / "bare.html")
    report(painted(EMOJI, truncated_at=19), folder / "emoji.html")
    report(attribute(painted()).as_trace(), folder / "attribution.html")
    other = attribute(painted(), method="attention").as_trace()
    report(painted(), folder / "methods.html", beside=other)
    (folder / "cell.html").write_text(
        f"<!doctype html><meta charset=utf-8>{frame(painted())}", "utf-8"
    )
    return folder


@pytest.fixture
def visit(chromium, pages):
    """Opens a page; afterwards checks that it asked for nothing and complained of nothing."""
    contexts, troubles = [], []

    def open_page(name, *, width=1100, motion="reduce", scheme="light", until="html[data-ready]"):
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
            page.wait_for_selector(until, state="attached")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert troubles == []


def test_hovering_a_word_paints_its_map_over_the_frame(visit, painted):
    trace, page = painted(), visit("plain")
    assert np.abs(pixels(page) - trace.frames[0]).max() == 0
    chip(page, "旗袍").hover()
    mass = trace.word_map("旗袍").values
    expected = views.overlay(trace.frames[0], mass[0], views.Scale.of(mass)).astype(int)
    assert np.abs(pixels(page) - expected).max() <= 4
    assert page.locator("[data-id=high]").inner_text() == f"{mass.max():.2g}"
    page.mouse.move(5, 5)
    assert np.abs(pixels(page) - trace.frames[0]).max() == 0


def test_a_layer_a_frame_and_a_shared_scale_paint_what_the_trace_has(visit, painted):
    trace, page = painted(), visit("plain")
    chip(page, "伞").click()
    page.select_option("[data-id=layer]", label="2")
    page.select_option("[data-id=scale]", "all")
    page.locator("[data-id=strip] button").nth(3).click()
    mass = trace.word_map("伞", layer=2).values
    peak = max(float(trace.word_map(word, layer=2).max()) for word in trace.words)
    shown = views.overlay(trace.frames[11], mass[3], views.Scale(0, peak)).astype(int)
    assert page.locator("[data-id=where]").inner_text() == "frame 11 / 16"
    assert np.abs(pixels(page) - shown).max() <= 4


def test_the_keyboard_reaches_words_plays_and_steps(visit):
    from playwright.sync_api import expect  # `visit` has seen to it that it is there

    page = visit("plain")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("[data-id=where]").inner_text() == "frame 2 / 16"
    page.keyboard.press("ArrowLeft")
    assert page.locator("[data-id=where]").inner_text() == "frame 1 / 16"
    plain = pixels(page)
    for _ in range(4):  # two languages, the prompt, the first word
        page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className").startswith("wv-chip")
    assert np.abs(pixels(page) - plain).max() > 20
    page.keyboard.press("Enter")
    assert page.locator('.wv-chip[aria-pressed="true"]').count() == 1
    page.keyboard.press("Escape")
    assert page.locator('.wv-chip[aria-pressed="true"]').count() == 0
    page.locator("h1").click()
    page.keyboard.press("Space")
    expect(page.locator("[data-id=where]")).not_to_have_text(
        "frame 1 / 16"
    )  # page scripts may not eval
    page.keyboard.press("Space")
    assert page.locator("[data-id=play]").get_attribute("aria-label") == "Play"


@pytest.mark.parametrize("name", ["predicted", "baseline"])
def test_the_space_bar_ticks_a_box_that_has_the_focus_and_plays_nothing(visit, name):
    page = visit("steps")
    box = page.locator(f"[data-id={name}]")
    before = box.is_checked()
    box.focus()
    page.keyboard.press("Space")
    assert box.is_checked() != before
    assert page.locator("[data-id=play]").get_attribute("aria-label") == "Play"


def test_no_video_starts_by_itself(visit):
    page = visit("plain", motion="no-preference")
    assert page.locator("[data-id=play]").get_attribute("aria-label") == "Play"
    page.click("[data-id=play]")
    assert page.locator("[data-id=play]").get_attribute("aria-label") == "Pause"


def test_a_hostile_prompt_is_shown_as_text_and_runs_nothing(visit):
    page = visit("hostile", width=360)
    assert page.locator("[data-id=prompt] img, #prompt script").count() == 0
    shown = page.locator("[data-id=prompt]").inner_text()
    assert "onerror" in shown and "U+202E" in shown and "\u202e" not in shown
    assert "first 200 characters" in page.locator("[data-id=cut]").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["slices", "steps", "two", "hostile", "bare"])
def test_a_machine_that_looks_for_barriers_finds_none(visit, name, scheme):
    page = visit(name, scheme=scheme)
    for state in ("nothing chosen", "a word explained, a region, an expert, in Chinese"):
        if state != "nothing chosen":
            page.locator(".wv-chip").first.click()
            page.keyboard.press("r")
            if name != "two":
                page.locator("[data-id=load] .wv-cell").first.click()
            page.locator("[data-id=zh]").first.click()
            if name != "bare":
                page.locator("[data-id=explain]").first.click()
        found = Axe().run(page).response["violations"]
        told = [
            (one["id"], one["help"], [node["html"][:99] for node in one["nodes"]]) for one in found
        ]
        assert told == [], state


def test_two_hundred_places_have_the_colour_of_the_traces_value(visit, painted, rng):
    trace, page = painted(keep=EVERY_SLICE), visit("slices")
    for _ in range(40):
        word = trace.words[rng.integers(len(trace.words))].text
        number = int(rng.integers(len(trace.frames)))
        layer = int(rng.integers(4))
        choose(page, layer=layer)
        page.locator("[data-id=scrub]").fill(str(number))
        chip(page, word).hover()
        mass = trace.word_map(word, layer=layer, occurrence="all").values
        shown = views.overlay(trace.frames[number], mass[(number + 3) // 4], views.Scale.of(mass))
        rows, columns = rng.integers(0, 96, (2, 5))
        off = pixels(page)[rows, columns] - shown[rows, columns].astype(int)
        assert np.abs(off).max() <= COLOR_STEPS, (word, number, layer)
        page.mouse.move(5, 5)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1100, 360])
def test_a_page_fits_its_window_in_both_themes(visit, width, scheme):
    page = visit("plain", width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    paper = page.evaluate("getComputedStyle(document.querySelector('.wv')).backgroundColor")
    brightness = np.mean([int(n) for n in paper.strip("rgb()").split(",")])
    assert brightness > 200 if scheme == "light" else brightness < 60


def test_an_emoji_counts_as_one_character(visit):
    page = visit("emoji")
    assert page.locator("[data-id=prompt] .wv-chip").all_inner_texts() == ["a", "woman", "in"]
    assert page.locator("[data-id=prompt] .wv-lost").all_inner_texts() == ["rain 🐶 is lost"]
    shown = page.locator("[data-id=prompt]").inner_text().replace("U+200D", "\u200d")
    assert shown.split() == EMOJI.split()


def test_the_language_can_be_changed(visit):
    page = visit("plain")
    page.click("[data-id=zh]")
    assert page.evaluate("document.documentElement.lang") == "zh"
    assert page.locator("h1").inner_text() == "wanviz 每个词做了什么"
    assert page.locator("[data-id=kinds] .wv-chip").all_inner_texts() == ["文本结束符", "填充"]


def test_a_bare_trace_says_what_is_missing(visit):
    page = visit("bare")
    assert "not decoded" in page.locator("[data-id=reading]").inner_text()
    assert 'frames="exact"' in page.locator("[data-id=frames-note]").inner_text()


def test_the_page_works_inside_a_notebooks_sandboxed_frame(visit):
    page = visit("cell")
    inside = page.frame_locator("iframe")
    inside.locator("html[data-ready]").wait_for()
    inside.locator(".wv-chip", has_text="旗袍").hover()
    assert inside.locator("[data-id=now-word]").inner_text() == "旗袍"


@pytest.mark.parametrize(
    "place", [{"layer": 3, "head": 1}, {"layer": 0, "step": 5}, {"head": 0}, {"step": 2}]
)
def test_every_slice_paints_what_the_trace_has(visit, painted, place):
    trace, page = painted(keep=EVERY_SLICE), visit("slices")
    choose(page, **place)
    for word, number in (("旗袍", 0), ("伞", 11), ("雨", 16)):
        page.locator("[data-id=scrub]").fill(str(number))
        chip(page, word).hover()
        mass = trace.word_map(word, **place).values
        shown = views.overlay(trace.frames[number], mass[(number + 3) // 4], views.Scale.of(mass))
        assert np.abs(pixels(page) - shown.astype(int)).max() <= 4
        page.mouse.move(5, 5)


def test_a_slice_that_the_page_lacks_is_said_to_be_absent(visit, painted):
    page = visit("slices")
    chip(page, "旗袍").click()
    choose(page, layer=1, head=1, step=3)
    page.mouse.move(5, 5)
    assert "not in the page" in page.locator("[data-id=now-text]").inner_text()
    assert np.abs(pixels(page) - painted().frames[0]).max() == 0


def test_several_words_are_kept_in_colours_of_their_own(visit, painted):
    trace, page = painted(), visit("plain")
    for word in ("旗袍", "雨"):
        chip(page, word).click()
    page.mouse.move(5, 5)
    assert page.locator("[data-id=now-word]").inner_text() == "2 words together"
    seen = pixels(page)
    colors = {"旗袍": (213, 94, 0), "雨": (0, 158, 115)}
    for word, color in colors.items():
        others = [trace.word_map(other).values[0] for other in colors if other != word]
        mass = trace.word_map(word).values
        share = mass[0] / mass.max() - sum(other / other.max() for other in others)
        row, column = np.unravel_index(share.argmax(), share.shape)
        grey = trace.frames[0][8 * row + 4, 8 * column + 4] @ views.LUMA
        found = seen[8 * row + 4, 8 * column + 4] - grey
        assert found @ (np.array(color) - grey) > 0.8 * np.linalg.norm(found) * np.linalg.norm(
            np.array(color) - grey
        )
        assert str(color[0]) in chip(page, word).evaluate("e => e.style.getPropertyValue('--pin')")


def test_dragging_over_the_video_ranks_the_words_of_that_region(visit, painted):
    trace, page = painted(), visit("plain")
    box = page.locator("[data-id=screen]").bounding_box()
    cell = box["width"] / 12

    def at(row, column):
        return box["x"] + (column + 0.5) * cell, box["y"] + (row + 0.5) * cell

    page.mouse.move(*at(5, 3))
    page.mouse.down()
    page.mouse.move(*at(8, 6), steps=4)
    page.mouse.up()
    region = np.s_[0, 5:9, 3:7]
    words = [word for word in trace.words if word.tokens]
    masses = [trace.word_map(word).values[region].mean() for word in words]
    behind = [kind.values[region].mean() for kind in trace.special[()]]
    wanted = sorted([*masses, *behind], reverse=True)
    lines = page.locator("[data-id=ranks] li")
    assert lines.count() == len(wanted)
    shares = [
        float(text.split(" %")[0].strip("< "))
        for text in lines.locator(".wv-rank-text").all_inner_texts()
    ]
    assert np.allclose(shares, 100 * np.array(wanted), atol=0.06 + 100 * 0.5 * max(wanted) / 254)
    page.keyboard.press("Shift+ArrowDown")
    page.keyboard.press("ArrowUp")
    assert "rows 4–8, columns 3–6" in page.locator("[data-id=ranks]").inner_text()
    page.keyboard.press("Escape")
    assert page.locator("[data-id=ranks]").is_hidden()


def test_a_step_shows_what_it_predicted_and_where_a_word_was_read(visit, painted):
    trace, page = painted(keep=EVERY_SLICE, previews=True), visit("steps")
    assert page.locator("[data-id=steps] button").count() == 6
    page.locator("[data-id=step-slider]").fill("4")
    assert (
        page.locator("[data-id=step-said]").inner_text() == "step 4: sigma 0.28, low-noise expert"
    )
    assert page.locator("[data-id=step]").input_value() == "4"
    page.locator("[data-id=scrub]").fill("10")
    assert np.abs(pixels(page) - trace.previews.values[4, 3]).mean() < WEBP_LOSS
    page.uncheck("[data-id=predicted]")
    assert np.abs(pixels(page) - trace.frames[10]).max() == 0
    chip(page, "伞").hover()
    mass = trace.word_map("伞", step=4).values
    shown = views.overlay(trace.frames[10], mass[3], views.Scale.of(mass)).astype(int)
    assert np.abs(pixels(page) - shown).max() <= COLOR_STEPS
    page.mouse.move(5, 5)
    page.check("[data-id=predicted]")
    page.locator("[data-id=steps] button").nth(0).click()
    assert page.locator("[data-id=step]").input_value() == "0"
    assert np.abs(pixels(page) - 128).max() <= WEBP_LOSS
    page.locator("[data-id=steps] button").nth(0).click()  # once more lets it go
    assert page.locator("[data-id=step-said]").inner_text().startswith("finished video")
    thumb = pixels(page, "[data-id=steps] button:nth-child(6) canvas")
    assert np.abs(thumb - trace.previews.values[5, 3]).mean() < WEBP_LOSS


def assert_predicted(page, trace, step):
    """The player shows what a step of the trace predicted, in frame 10."""
    place = trace.contents.labels["step"].index(step)
    assert np.abs(pixels(page) - trace.previews.values[place, 3]).mean() < WEBP_LOSS


@pytest.mark.parametrize(
    ("name", "ran", "place"), [("some", (1, 3, 5), 1), ("stopped", (0, 1, 2), 2)]
)
def test_the_strip_has_the_steps_that_were_watched_and_ran(visit, painted, name, ran, place):
    whole, page = painted(keep=EVERY_SLICE, previews=True), visit(name)
    page.locator("[data-id=scrub]").fill("10")
    assert page.locator("[data-id=steps] button").all_inner_texts() == list(map(str, ran))
    page.locator("[data-id=steps] button").nth(place).click()
    step = ran[place]
    assert page.locator("[data-id=step] option:checked").inner_text() == str(step)
    assert page.locator("[data-id=step-said]").inner_text().startswith(f"step {step}: ")
    assert_predicted(page, whole, step)
    page.uncheck("[data-id=predicted]")
    chip(page, "伞").hover()
    mass = whole.word_map("伞", step=step).values
    shown = views.overlay(whole.frames[10], mass[3], views.Scale.of(mass)).astype(int)
    assert np.abs(pixels(page) - shown).max() <= COLOR_STEPS


def test_a_group_of_steps_has_the_finished_video_and_each_step_its_prediction(visit, painted):
    page = visit(GROUPED[0])
    trace = painted(keep=(("layer", "step"),), steps=12, previews=True)
    page.locator("[data-id=scrub]").fill("10")
    choose(page, step="6–7")
    assert page.locator("[data-id=step-said]").inner_text() == "steps 6–7"
    assert np.abs(pixels(page) - trace.frames[10]).max() == 0
    assert page.locator("[data-id=steps] button").count() == 12
    page.locator("[data-id=steps] button").nth(6).click()
    assert page.locator("[data-id=step] option:checked").inner_text() == "6"
    assert_predicted(page, trace, 6)
    assert "groups of steps" in page.locator("[data-id=steps-note]").inner_text()


def test_predictions_are_shown_without_maps_by_steps(visit, painted):
    trace, page = painted(previews=True), visit("predictions")
    page.locator("[data-id=scrub]").fill("10")
    page.locator("[data-id=steps] button").nth(4).click()
    assert_predicted(page, trace, 4)
    assert '("layer", "step")' in page.locator("[data-id=steps-note]").inner_text()
    page.uncheck("[data-id=predicted]")
    assert np.abs(pixels(page) - trace.frames[10]).max() == 0


def test_a_page_without_steps_or_previews_says_how_to_get_them(visit):
    page = visit("plain")
    assert '("layer", "step")' in page.locator("[data-id=steps-note]").inner_text()
    page = visit("slices")
    assert "previews=True" in page.locator("[data-id=steps-note]").inner_text()
    assert page.locator("[data-id=predicted]").is_hidden()


def test_the_load_follows_the_step_and_tells_who_works_together(visit, painted):
    trace, page = painted(keep=EVERY_SLICE), visit("slices")
    load = trace.routing["load"]
    cell = page.locator("[data-id=load] .wv-cell").nth(13)  # ten to a layer
    assert f"{load.mean('step').values[1, 3]:.1%}".replace("%", " %") in cell.get_attribute(
        "aria-label"
    )
    choose(page, step=5)
    assert f"{load.values[1, 5, 3]:.1%}".replace("%", " %") in cell.get_attribute("aria-label")
    cell.click()
    pairs = trace.routing["together"].values[1]
    lift = pairs[3] / (pairs[3, 3] * np.diag(pairs))
    lift[3] = 0
    best = int(lift.argmax())
    said = page.locator("[data-id=expert-mates]").inner_text()
    assert f"chance: token expert {best} ({float(f'{lift[best]:.2g}'):g} ×)" in said


def test_the_grid_of_heads_is_sorted_and_leads_to_the_video(visit, painted):
    trace, page = painted(keep=EVERY_SLICE), visit("slices")
    grid = page.locator("[data-id=heads] button")
    assert page.locator("[data-id=heads]").is_hidden()
    chip(page, "伞").click()
    assert grid.count() == 8
    page.select_option("[data-id=order]", "mass")
    shares = {
        (layer, head): float(trace.word_map("伞", layer=layer, head=head).mean())
        for layer in range(4)
        for head in range(2)
    }
    best = max(shares, key=shares.get)
    assert grid.first.inner_text() == f"{best[0]}·{best[1]}"
    grid.first.click()
    assert (
        page.locator("[data-id=unit]")
        .inner_text()
        .startswith(f"attention mass (layer {best[0]}, head {best[1]})")
    )
    page.mouse.move(5, 5)
    mass = trace.word_map("伞", layer=best[0], head=best[1]).values
    shown = views.overlay(trace.frames[0], mass[0], views.Scale.of(mass)).astype(int)
    assert np.abs(pixels(page) - shown).max() <= 4


def test_a_page_without_heads_says_how_to_get_them(visit):
    page = visit("plain")
    chip(page, "伞").click()
    assert '("layer", "head")' in page.locator("[data-id=heads-note]").inner_text()


def test_heads_that_were_kept_and_do_not_fit_are_not_asked_for_again(visit):
    page = visit(APART[0])
    assert page.locator("[data-id=head] option").all_inner_texts() == ["mean", "0", "1"]
    assert "too large for a page" in page.locator("[data-id=heads-note]").inner_text()
    assert "not combined" in page.locator("[data-id=reading]").inner_text()


def test_distance_is_subtracted_from_how_frames_look_at_frames(visit, painted):
    trace, page = painted(), visit("plain")
    mass = trace.frame_attention().mass.values
    away = np.abs(np.subtract.outer(range(5), range(5)))
    rest = mass - np.array([[mass[away == d].mean() for d in row] for row in away])
    cells = page.locator("[data-id=frames] .wv-in-cell")
    assert [float(text) for text in cells.all_text_contents()] == pytest.approx(
        mass.ravel().tolist(), abs=0.006
    )
    page.check("[data-id=baseline]")
    found = [float(text) for text in cells.all_text_contents()]
    assert found == pytest.approx(rest.ravel().tolist(), abs=0.006)


def test_the_keyboard_goes_from_cell_to_cell_of_the_frames(visit, painted):
    trace, page = painted(), visit("plain")
    mass = trace.frame_attention().mass.values
    where = page.locator("[data-id=where]").inner_text()
    page.locator("[data-id=scrub]").focus()
    page.locator("[data-id=frames] svg").focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowUp", "ArrowUp"):
        page.keyboard.press(key)
    said = page.locator("[data-id=frames-note]").inner_text()
    assert said == f"frame 0 → frames 1–4: {float(f'{mass[0, 1]:.2g}'):g}"
    assert page.locator("[data-id=where]").inner_text() == where  # the video did not move
    page.keyboard.press("Tab")
    assert "Row: the frames that look" in page.locator("[data-id=frames-note]").inner_text()


def test_a_cell_of_the_frames_shows_which_places_look_where(visit, painted):
    trace, page = painted(keep=EVERY_SLICE, previews=True, links=True), visit("steps")
    page.locator("[data-id=frames] rect").nth(3).hover()  # frame 0 looks at the fourth
    left, right = (pixels(page, f".wv-pair canvas:nth-child({i})") for i in (1, 2))
    plain = trace.frames[[0, 11]].repeat(2, 1).repeat(2, 2).astype(int)  # 96 pixels on 192
    mass = trace.links.values[0, :, 3]
    largest = int(mass.sum((1, 2)).argmax())
    row, column = np.unravel_index(mass[largest].argmax(), (12, 12))
    spot = np.s_[16 * row + 4 : 16 * row + 12, 16 * column + 4 : 16 * column + 12]
    color = colormaps["viridis"](round(largest / 15 * 255), bytes=True)[:3]
    assert np.abs(right[spot] - color).mean() < 30  # a dot of full size; others may lie on it
    assert np.abs(right[spot] - plain[1][spot]).mean() > 30
    for r, c in ((1, 1), (10, 10)):
        assert np.abs(left[16 * r + 8, 16 * c + 8] - plain[0][16 * r + 8, 16 * c + 8]).max() > 20
    assert "sixteen places" in page.locator("[data-id=links-note]").inner_text()
    assert "links=True" in visit("plain").locator("[data-id=links-note]").inner_text()


def test_places_that_look_nowhere_in_a_frame_have_no_dots_there(visit, painted):
    trace, page = painted(), visit("away")
    page.locator("[data-id=frames] rect").nth(3).hover()  # frame 0 looks at the fourth
    plain = trace.frames[[0, 11]].repeat(2, 1).repeat(2, 2).astype(int)  # 96 pixels on 192
    for i in (0, 1):
        assert np.abs(pixels(page, f".wv-pair canvas:nth-child({i + 1})") - plain[i]).max() <= 1


def test_a_token_expert_shows_where_it_works(visit, painted):
    trace, page = painted(), visit("plain")
    cell = page.locator("[data-id=load] .wv-cell").nth(13)  # ten to a layer
    cell.click()
    page.mouse.move(5, 5)
    where = trace.routing["where"].values[1, 3]
    shown = views.overlay(trace.frames[0], where[0], views.Scale(0, 1)).astype(int)
    assert np.abs(pixels(page) - shown).max() <= 4
    assert page.locator("[data-id=now-word]").inner_text() == "layer 1, token expert 3"
    assert "these words are read" in page.locator("[data-id=expert-words]").inner_text()
    cell.click()
    page.mouse.move(5, 5)
    assert np.abs(pixels(page) - trace.frames[0]).max() == 0


def test_every_part_that_takes_focus_keeps_jupyterlabs_hands_off_its_keys(visit):
    page = visit("slices")
    chip(page, "伞").click()
    left = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, a[href], [tabindex]')]
          .filter((e) => e.getAttribute('data-lm-suppress-shortcuts') !== 'true').length"""
    )
    assert left == 0


def test_two_traces_are_linked_in_time_and_word_and_subtracted(visit, painted):
    first, second = painted(), painted(OTHER, keep=EVERY_SLICE)
    page = visit("two")
    left, right = (page.locator(f"[data-side={side}]") for side in ("first", "second"))
    assert "Choose a word" in page.locator("[data-id=difference-note]").inner_text()
    left.locator("[data-id=scrub]").fill("11")
    assert right.locator("[data-id=where]").inner_text() == "frame 11 / 16"
    right.locator(".wv-chip", has_text="旗袍").hover()
    assert left.locator("[data-id=now-word]").inner_text() == "旗袍"
    masses = [trace.word_map("旗袍").values for trace in (first, second)]
    for side, trace, mass in zip(("first", "second"), (first, second), masses, strict=True):
        shown = views.overlay(trace.frames[11], mass[3], views.Scale.of(mass)).astype(int)
        assert np.abs(pixels(page, f"[data-side={side}] [data-id=screen]") - shown).max() <= 4
    top = max(mass.max() for mass in masses)
    off = (views.upsample(masses[0][3] - masses[1][3], 96, 96) / top).clip(-1, 1)
    color = views.colors("PuOr")[np.rint((0.5 + off / 2) * 255).astype(int)]
    alpha = (views.LEAST_ALPHA + (views.MOST_ALPHA - views.LEAST_ALPHA) * np.abs(off))[..., None]
    wanted = (first.frames[11] @ views.LUMA)[..., None] * (1 - alpha) + color * alpha
    assert np.abs(pixels(page, "[data-id=difference]") - wanted).max() <= 5
    right.locator(".wv-chip", has_text="公园").hover()  # the first prompt has no park
    assert right.locator("[data-id=now-word]").inner_text() == "公园"
    assert left.locator("[data-id=now-word]").inner_text() == "No word chosen"
    right.locator(".wv-chip", has_text="公园").click()
    assert right.locator('.wv-chip[aria-pressed="true"]').count() == 1


def test_two_traces_are_linked_by_the_name_of_a_step_and_show_finished_videos(visit, painted):
    trace, page = painted(), visit("some-and-all")
    left, right = (page.locator(f"[data-side={side}]") for side in ("first", "second"))
    note = page.locator("[data-id=difference-note]")
    left.locator(".wv-chip", has_text="伞").click()
    page.mouse.move(5, 5)
    choose(left, step=3)  # the second of those that the first has
    assert right.locator("[data-id=step] option:checked").inner_text() == "3"
    assert note.inner_text().startswith("First less second")
    choose(right, step=4)
    assert left.locator("[data-id=step] option:checked").inner_text() == "mean"
    assert "first: mean over layers, heads and steps; second: step 4" in note.inner_text()
    choose(left, step=5, layer=1)
    choose(left, head=1)
    assert "not in the page" in note.inner_text()
    left.locator(".wv-chip", has_text="伞").click()
    page.mouse.move(5, 5)
    assert "Choose a word" in note.inner_text()
    for side in ("first", "second"):
        screen = f"[data-side={side}] [data-id=screen]"
        assert np.abs(pixels(page, screen) - trace.frames[0]).max() == 0


def real_size() -> Trace:
    """A trace of 81 frames of 480 x 832 with 12 words, 40 layers and 40 steps, smooth in time and place."""
    rng = np.random.default_rng(1)
    grid, layers, steps = Grid(21, 30, 52), 40, 40
    prompt = "a woman in a red qipao walks through rainy alleys with umbrella"
    encoded = encoded_prompt(
        prompt,
        tuple(
            word.span
            for word in split_words(
                encoded_prompt(prompt, tuple((i, i + 1) for i in range(len(prompt))), None)
            )
        ),
        None,
    )
    columns = len(encoded.tokens) + 2
    arrays = {}
    for axis, count in (("layer", layers), ("step", steps)):
        coarse = rng.random((count, columns, 6, 8, 13), np.float32)
        places = [
            np.linspace(0, n - 1, m) for n, m in zip(coarse.shape[2:], grid.shape, strict=True)
        ]
        for dim, place in enumerate(places, start=2):
            low = np.floor(place).astype(int)
            high, part = (
                np.minimum(low + 1, coarse.shape[dim] - 1),
                (place - low).astype(np.float32),
            )
            shape = [1] * 5
            shape[dim] = -1
            coarse = np.take(coarse, low, dim) * (1 - part.reshape(shape)) + np.take(
                coarse, high, dim
            ) * part.reshape(shape)
        noisy = coarse + rng.random(coarse.shape, np.float32) / 20
        arrays[f"cond/words/{axis}"] = noisy / noisy.sum(1, keepdims=True)
        looks = rng.random((count, 21, 21)).astype(np.float32)
        arrays[f"cond/frames/{axis}"] = looks / looks.sum(-1, keepdims=True)
    y, x, f = np.ogrid[:480, :832, :81]
    waves = [np.sin(x / (29 + 9 * c) + f / 7) + np.cos(y / (23 + 5 * c) - f / 9) for c in range(3)]
    video = np.stack([127 + 60 * wave for wave in waves], -1).transpose(2, 0, 1, 3)
    arrays["video"] = (video + rng.normal(0, 4, video.shape)).clip(0, 255).astype(np.uint8)
    sigmas = np.linspace(1, 0.02, steps)
    record = {
        "prompt": prompt, "negative_prompt": "", "truncated_at": None, "seed": 1, "model": "of real size", "fps": 16,
        "steps": [{"step": i, "sigma": float(s), "timestep": 1000 * float(s), "noise_expert": "high" if s > 0.875 else "low"} for i, s in enumerate(sigmas)],
        "frames": "exact", "routing": False, "failed": {}, "versions": {"wanviz": "0"},
    }  # fmt: skip
    return Trace(
        Contents(
            arrays=arrays, keep=(("layer",), ("step",)), grid=grid,
            labels={"layer": tuple(range(layers)), "step": tuple(range(steps)), "head": tuple(range(40))},
            prompts={"cond": encoded}, words={"cond": split_words(encoded)}, record=record,
        )
    )  # fmt: skip


@pytest.mark.slow
def test_a_trace_of_real_size_makes_a_page_that_can_be_sent_and_opens_at_once(visit, pages):
    trace = real_size()
    assert len(trace.words) == 12
    path = report(trace, pages / "large.html")
    assert path.stat().st_size <= MOST_PAGE
    took = []
    for _ in range(3):  # whatever else runs can only make it slower
        before = time.perf_counter()
        page = visit("large", until="[data-drawn]")
        took.append(time.perf_counter() - before)
    print(f"{path.stat().st_size / 1e6:.1f} MB, opened in {min(took):.2f} s")
    assert min(took) <= MOST_SECONDS
    assert page.locator("[data-id=layer] option").count() - 1 <= 8
    chip(page, "qipao").hover()
    mass = trace.word_map("qipao").values
    assert page.locator("[data-id=high]").inner_text() == f"{mass.max():.2g}"


def test_a_notebook_that_nbconvert_made_a_page_of_works_without_a_network(
    chromium, painted, tmp_path
):
    trace = painted()
    cell = new_code_cell(
        "trace", outputs=[new_output("display_data", mimebundle(trace, exclude=("image/png",)))]
    )
    page_text, _ = HTMLExporter().from_notebook_node(new_notebook(cells=[cell]))
    (tmp_path / "notebook.html").write_text(page_text, "utf-8")
    context = chromium.new_context(offline=True, locale="en-US")
    page = context.new_page()
    page.goto((tmp_path / "notebook.html").as_uri(), wait_until="domcontentloaded")
    frame = page.wait_for_selector("iframe[title='wanviz report']").content_frame()
    frame.wait_for_selector("html[data-ready]", state="attached")
    chip(frame, "旗袍").hover()
    mass = trace.word_map("旗袍").values
    shown = views.overlay(trace.frames[0], mass[0], views.Scale.of(mass)).astype(int)
    assert np.abs(pixels(frame) - shown).max() <= COLOR_STEPS
    context.close()


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_of_an_attribution_does_not_call_its_maps_attention(visit, painted, language):
    page = visit("attribution")
    page.click(f"button[lang={language}]")
    word = next(word.text for word in painted().words if word.tokens)
    chip(page, word).click()
    said = page.inner_text("main")
    assert "attention_layers" in page.inner_text(".wv-stage")
    for name in (
        "attention mass (",
        "of all attention",
        "end of text",
        "注意力质量（",
        "全部注意力",
    ):
        assert name not in said
    assert page.locator("[data-panel]").count() == 0  # neither frames nor experts were asked about
    page.keyboard.press("r")
    ranked = page.locator(".wv-ranks li, [data-id=ranks] li, ol li")
    assert ranked.count() == len([w for w in painted().words if w.tokens])
    assert "×" in ranked.first.inner_text() or "倍" in ranked.first.inner_text()


def explained(trace, word):
    return attribute(trace, word).values.values[0]


def test_explain_paints_what_the_default_method_says_of_a_word(visit, painted):
    trace, page = painted(), visit("plain")
    chip(page, "旗袍").hover()
    read = pixels(page)
    page.click("[data-id=explain]")
    assert page.get_attribute("[data-id=explain]", "aria-pressed") == "true"
    assert page.get_attribute("[data-id=attention]", "aria-pressed") == "false"
    mass = explained(trace, "旗袍")
    page.locator("[data-id=strip] button").nth(2).click()
    chip(page, "旗袍").hover()
    frame_ = int(page.input_value("[data-id=scrub]"))
    shown = views.overlay(trace.frames[frame_], mass[2], views.Scale.of(mass)).astype(int)
    assert np.abs(pixels(page) - shown).max() <= COLOR_STEPS
    assert page.inner_text("[data-id=high]") == f"{mass.max():.2g}"
    said = page.inner_text(".wv-stage")
    assert "attention_layers" in said
    assert "docs/attribution.md" in said
    for name in ("attention mass (", "of all attention", "Where the attention goes"):
        assert name not in said
    assert not page.locator("[data-id=kinds]").is_visible()
    about = page.inner_text("[data-id=reading]")
    assert "not attention masses" in about
    assert "share of attention" not in about
    page.locator("[data-id=strip] button").nth(0).click()
    page.keyboard.press("e")
    chip(page, "旗袍").hover()
    assert np.abs(pixels(page) - read).max() == 0
    assert "of all attention" in page.inner_text(".wv-stage")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_region_is_explained_by_words_alone(visit, painted, language):
    trace, page = painted(), visit("plain")
    page.click(f"[data-id={language}]")
    page.locator("[data-id=screen]").focus()
    page.keyboard.press("r")
    page.keyboard.press("e")
    words = [word for word in trace.words if word.tokens]
    maps = [explained(trace, word) for word in words]
    rows = columns = np.s_[4:7]  # a quarter of twelve, in the middle
    lifts = [found[0, rows, columns].mean() / found.mean() for found in maps]
    lines = page.locator("[data-id=ranks] li")
    shown = [int(index) for index in lines.evaluate_all("all => all.map((li) => li.dataset.index)")]
    assert sorted(shown) == list(range(len(words)))
    np.testing.assert_allclose([lifts[i] for i in shown], sorted(lifts, reverse=True), rtol=0.02)
    bars = lines.evaluate_all(
        "all => all.map((li) => parseFloat(li.querySelector('.wv-rank-bar').style.width))"
    )
    np.testing.assert_allclose(bars, 100 * np.sort(lifts)[::-1] / max(lifts), rtol=0.02)
    best = float(lines.first.locator(".wv-rank-text").inner_text().split()[0])
    np.testing.assert_allclose(best, max(lifts), rtol=0.06)  # two digits are shown


def test_a_slice_that_is_chosen_ends_the_explanation(visit, painted):
    trace, page = painted(keep=EVERY_SLICE), visit("slices")
    chip(page, "旗袍").click()
    page.select_option("[data-id=head]", label="1")
    page.click("[data-id=explain]")
    assert page.input_value("[data-id=head]") == ""
    page.select_option("[data-id=layer]", label="2")
    assert page.get_attribute("[data-id=attention]", "aria-pressed") == "true"
    mass = trace.word_map("旗袍", layer=2).values
    shown = views.overlay(trace.frames[0], mass[0], views.Scale.of(mass)).astype(int)
    assert np.abs(pixels(page) - shown).max() <= COLOR_STEPS
    page.click("[data-id=explain]")
    heads = page.locator("[data-id=heads] button")
    heads.nth(0).click()
    assert page.get_attribute("[data-id=attention]", "aria-pressed") == "true"
    assert heads.nth(0).get_attribute("aria-pressed") == "true"


def test_where_layers_were_not_kept_explain_says_so(visit):
    page = visit("bare")
    assert page.is_disabled("[data-id=explain]")
    assert "keep=" in page.inner_text("[data-id=mode-note]")
    assert "E explains" not in page.inner_text(".wv-keys")
    page.locator(".wv-chip").first.click()
    before = pixels(page)
    page.keyboard.press("e")
    assert np.abs(pixels(page) - before).max() == 0


def test_two_traces_are_explained_together(visit, painted):
    traces = painted(), painted(OTHER, keep=EVERY_SLICE)
    page = visit("two")
    page.locator("[data-side=second] [data-id=explain]").click()
    page.locator("[data-side=first] .wv-chip", has_text="旗袍").click()
    masses = [explained(trace, "旗袍") for trace in traces]
    for side, trace, mass in zip(("first", "second"), traces, masses, strict=True):
        shown = views.overlay(trace.frames[0], mass[0], views.Scale.of(mass)).astype(int)
        found = pixels(page, f"[data-side={side}] [data-id=screen]")
        assert np.abs(found - shown).max() <= COLOR_STEPS
    assert "First less second" in page.inner_text("[data-id=difference-note]")
    page.locator("[data-side=second] [data-id=layer]").select_option(label="2")
    for side in ("first", "second"):
        button = page.locator(f"[data-side={side}] [data-id=explain]")
        assert button.get_attribute("aria-pressed") == "false"


def test_what_follows_the_words_is_not_explained(visit):
    page = visit("plain")
    chip(page, "旗袍").click()
    behind = page.locator("[data-id=kinds] .wv-chip").first
    behind.focus()
    page.keyboard.press("Enter")
    assert page.inner_text("[data-id=now-word]") == "2 words together"
    page.keyboard.press("e")
    assert page.inner_text("[data-id=now-word]") == "旗袍"
    assert page.evaluate("document.activeElement.dataset.id") == "explain"  # not lost
    page.keyboard.press("e")
    assert page.inner_text("[data-id=now-word]") == "2 words together"


def test_maps_of_two_methods_are_not_subtracted(visit):
    page = visit("methods")
    page.locator("[data-side=first] .wv-chip", has_text="旗袍").click()
    note = page.locator("[data-id=difference-note]")
    assert "first: Attention; second: attention)" in note.inner_text()
    page.locator("[data-side=first] [data-id=explain]").click()
    assert "first: attention_layers; second: attention)" in note.inner_text()


def test_an_explanation_has_no_slice_on_either_side(visit):
    page = visit("two")  # the second alone has heads with layers, and steps
    page.locator("[data-side=second] .wv-chip", has_text="旗袍").click()
    page.locator("[data-side=second] [data-id=head]").select_option(label="1")
    page.locator("[data-side=first] [data-id=explain]").click()
    assert page.locator("[data-side=second] [data-id=head]").input_value() == ""
    assert "First less second" in page.inner_text("[data-id=difference-note]")
