"""The widget in a real browser, its kernel in this process; JupyterLab around it is tested beside this."""

import base64
import json

import numpy as np
import pytest
from playwright.sync_api import expect

from tests.browser.pages import chip, choose, pixels
from wanviz import views
from wanviz import widget as widget_module
from wanviz.widget import TraceWidget

pytestmark = pytest.mark.browser
COLOR_STEPS = 4
EVERYTHING = (("layer", "head", "step"),)
# What a notebook gives a widget: a model that every view of it shares.
MODEL = """
const listeners = {};
window.state = STATE;
window.sent = [];
window.tell = (name, ...more) => (listeners[name] ?? []).forEach((listener) => listener(...more));
window.buffer = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const model = {
  get: (name) => state[name],
  send: (message) => sent.push(message),
  on: (name, listener) => (listeners[name] ??= new Set()).add(listener),
  off: (name, listener) => listeners[name].delete(listener),
};
for (const el of document.querySelectorAll("[data-view]")) await widget.render({ model, el });
"""


class Notebook:
    """A page with views of one widget, and the widget's kernel, which answers when it is told to."""

    def __init__(self, page, widget, path, views):
        self.page, self.widget = page, widget
        widget.send = self._send
        state = json.dumps({"data": widget.data, "font": widget.font})
        script = TraceWidget._esm.replace("export default", "const widget =")
        model = MODEL.replace("STATE", state.replace("<", "\\u003c"))
        places = "".join(f"<div data-view={view}></div>" for view in views)
        path.write_text(
            f"<!doctype html><meta charset=utf-8><style>{TraceWidget._css}</style>{places}"
            f"<script type=module>{script}\n{model}</script>",
            "utf-8",
        )
        page.goto(path.as_uri())
        expect(page.locator(".wv[data-ready]")).to_have_count(len(views))

    def answer(self):
        """Answers what was asked since the last time; returns the questions."""
        asked = self.page.evaluate("sent.splice(0)")
        for message in asked:
            before = self.widget.data
            self.widget._answer(self.widget, message, None)
            if self.widget.data is not before:
                self.page.evaluate(
                    "(data) => { state.data = data; tell('change:data'); }", self.widget.data
                )
        return asked

    def _send(self, content, buffers=()):
        told = [base64.b64encode(buffer).decode() for buffer in buffers]
        self.page.evaluate(
            "([content, buffers]) => tell('msg:custom', content, buffers.map(buffer))",
            [content, told],
        )


@pytest.fixture
def notebook(chromium, tmp_path):
    """Opens views of a widget; afterwards checks that the page complained of nothing."""
    contexts, troubles = [], []

    def open_views(widget, views="a"):
        context = chromium.new_context(offline=True, locale="en-US")
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        return Notebook(page, widget, tmp_path / "views.html", views)

    yield open_views
    for context in contexts:
        context.close()
    assert troubles == []


def room_for(monkeypatch, trace, slices):
    """Let a page carry this many maps of each subject of a trace."""
    subjects = len(trace.words) + 2
    monkeypatch.setattr(
        "wanviz.page.MOST_MAP_BYTES", slices * subjects * trace.contents.grid.tokens
    )


def assert_painted(page, trace, word, **place):
    mass = trace.word_map(word, **place).values
    wanted = views.overlay(trace.frames[0], mass[0], views.Scale.of(mass)).astype(int)
    assert np.abs(pixels(page) - wanted).max() <= COLOR_STEPS


def test_each_view_of_a_widget_gets_the_answers_to_its_own_questions(notebook, painted):
    trace = painted(keep=EVERYTHING)
    shown = notebook(TraceWidget(trace), "ab")
    for view, layer in (("a", 1), ("b", 3)):
        place = shown.page.locator(f"[data-view={view}]")
        place.locator(".wv-chip", has_text="旗袍").click()
        choose(place, layer=layer, head=1)
        choose(place, step=2)
    assert len(shown.answer()) == 2
    for view, layer in (("a", 1), ("b", 3)):
        peak = trace.word_map("旗袍", layer=layer, head=1, step=2).values.max()
        high = shown.page.locator(f"[data-view={view}] [data-id=high]")
        assert high.inner_text() == f"{float(f'{peak:.2g}'):g}"


def test_a_step_of_a_grouped_trace_is_the_same_step_in_strip_select_and_question(
    notebook, painted, monkeypatch
):
    trace = painted(keep=(("layer", "step"),), steps=12)
    room_for(monkeypatch, trace, slices=5 * 9)
    shown = notebook(TraceWidget(trace))
    page = shown.page
    chip(page, "旗袍").click()
    page.locator("[data-id=steps] button", has_text="7").click()
    assert page.locator("[data-id=step] option:checked").inner_text() == "7"
    assert page.locator("[data-id=step-said]").inner_text().startswith("step 7: ")
    assert page.locator("[data-id=step-slider]").input_value() == "7"
    pressed = page.locator('[data-id=steps] [aria-pressed="true"]')
    assert pressed.all_inner_texts() == ["7"]
    (question,) = shown.answer()
    assert question["ask"]["step"] == [7, 1]
    assert_painted(page, trace, "旗袍", step=7)
    page.locator("[data-id=step-slider]").fill("2")
    assert page.locator("[data-id=step] option:checked").inner_text() == "2"
    choose(page, step="0–1")
    assert page.locator("[data-id=step-said]").inner_text() == "steps 0–1"
    assert pressed.count() == 0


def test_what_is_not_grouped_is_listed_once_in_a_grouped_trace(notebook, painted, monkeypatch):
    trace = painted(keep=(("layer", "head"),), layers=12)
    room_for(monkeypatch, trace, slices=9 * 3)
    page = notebook(TraceWidget(trace)).page
    assert page.locator("[data-id=head] option").all_inner_texts() == ["mean", "0", "1"]
    groups = "0–1 2–3 4–5 6–7 8 9 10 11".split()
    layers = [*groups, *"01234567"]  # 8 to 11 are single already
    assert page.locator("[data-id=layer] option").all_inner_texts() == ["mean", *layers]
    chip(page, "旗袍").click()
    names = page.locator("[data-id=heads] button").all_inner_texts()
    assert names == [f"{group}·{head}" for group in groups for head in (0, 1)]
    page.locator("[data-id=load] .wv-cell").nth(33).click()  # ten to a layer
    assert "(layers 2–3)" in page.locator("[data-id=expert-words]").inner_text()


def test_a_trace_of_which_the_page_carries_the_mean_alone_can_be_asked_for_the_rest(
    notebook, painted, monkeypatch
):
    trace = painted(keep=EVERYTHING)
    room_for(monkeypatch, trace, slices=1)
    shown = notebook(TraceWidget(trace))
    chip(shown.page, "旗袍").click()
    assert "too large for a page" in shown.page.locator("[data-id=heads-note]").inner_text()
    choose(shown.page, layer=2, head=1)
    shown.answer()
    assert_painted(shown.page, trace, "旗袍", layer=2, head=1)


def test_a_question_that_failed_is_asked_again(notebook, painted, monkeypatch):
    trace = painted(keep=EVERYTHING)
    shown = notebook(TraceWidget(trace))
    page, said = shown.page, shown.page.locator("[data-id=now-text]")
    chip(page, "旗袍").click()
    choose(page, layer=2, head=1)
    choose(page, step=3)
    assert "Asked the kernel" in said.inner_text()

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(widget_module, "slice_of", interrupted)
        shown.answer()
    assert "KeyboardInterrupt" in said.inner_text()
    choose(page, step=None)
    choose(page, step=3)
    assert len(shown.answer()) == 1
    assert_painted(page, trace, "旗袍", layer=2, head=1, step=3)


def test_the_branch_that_is_named_is_the_one_that_is_drawn(notebook, painted):
    shown = notebook(TraceWidget(painted(keep=EVERYTHING, negative="模糊的画面")))
    page, branch = shown.page, shown.page.locator("[data-id=branch]")
    page.click("[data-id=zh]")
    page.locator("[data-id=scrub]").fill("11")
    page.select_option("[data-id=colors]", "viridis")
    page.click("[data-id=explain]")
    branch.focus()
    branch.select_option("uncond")
    assert branch.input_value() == "cond"  # the kernel has not answered
    shown.answer()
    expect(page.locator(".wv[data-ready] [data-id=prompt]")).to_have_text("模糊的画面")
    assert branch.input_value() == "uncond"
    assert page.locator("h1").inner_text() == "wanviz 每个词做了什么"
    expect(branch).to_be_focused()
    assert page.locator("[data-id=scrub]").input_value() == "11"  # what one looks at is kept
    assert page.locator("[data-id=colors]").input_value() == "viridis"
    assert page.get_attribute("[data-id=explain]", "aria-pressed") == "true"
