"""The widget that asks its kernel: what it answers, and what it stores. The pictures are tested in JupyterLab."""

import numpy as np
import pytest

import wanviz
from wanviz.errors import OptionError
from wanviz.page import MISSING
from wanviz.widget import TraceWidget, branch_first, slice_of

EVERYTHING = (("layer", "head", "step"),)


def masses(trace, answer):
    levels, units, _ = answer
    units = np.frombuffer(units, "<f4")
    levels = (
        np.frombuffer(levels, np.uint8)
        .reshape(len(units), *trace.contents.grid.shape)
        .astype(float)
    )
    levels[levels == MISSING] = np.nan
    return levels * units[:, None, None, None], units


@pytest.mark.parametrize(
    "asked",
    [
        {"layer": [2, 1], "head": [1, 1], "step": [4, 1]},
        {"layer": None, "head": [0, 1], "step": [5, 1]},
        {"layer": [3, 1], "head": None, "step": None},
        {"layer": None, "head": None, "step": None},
    ],
)
def test_a_slice_is_the_traces_within_half_a_unit(painted, asked):
    trace = painted(keep=EVERYTHING)
    answer = slice_of(trace, asked)
    found, units = masses(trace, answer)
    places = {axis: None if chosen is None else chosen[0] for axis, chosen in asked.items()}
    for index, word in enumerate(trace.words):
        off = np.abs(found[index] - trace.word_map(word, **places).values)
        assert off.max() <= units[index] * 0.501 + 1e-7
    frames = np.array(answer[2]["mass"], float)
    expected = trace.frame_attention(**places).mass.values
    np.testing.assert_allclose(frames, expected, rtol=1e-3, atol=1e-4)


def test_neighbours_are_averaged(painted):
    trace = painted(keep=EVERYTHING)
    found, units = masses(trace, slice_of(trace, {"layer": [1, 3], "head": [1, 1], "step": None}))
    word = trace.words[3]
    each = [trace.word_map(word, layer=layer, head=1).values for layer in (1, 2, 3)]
    assert np.abs(found[3] - np.mean(each, axis=0)).max() <= units[3] * 0.501 + 1e-7


@pytest.mark.parametrize(
    "asked",
    [
        {"layer": [4, 1]},
        {"layer": [0, 0]},
        {"step": [-1, 1]},
        {"head": ["x", 1]},
        {"layer": 3},
        {"color": [0, 1]},
        [1],
    ],
)
def test_places_that_are_not_there_get_a_sentence(painted, asked):
    with pytest.raises(OptionError):
        slice_of(painted(keep=EVERYTHING), asked)


def told(widget, message):
    """What the widget sends when the page asks."""
    sent = []
    widget.send = lambda content, buffers=None: sent.append((content, buffers))
    widget._answer(widget, message, None)
    return sent


def test_what_was_not_kept_is_told_as_the_trace_tells_it(painted):
    widget = TraceWidget(painted())
    ((content, buffers),) = told(
        widget, {"side": 0, "id": 3, "ask": {"layer": [0, 1], "head": [1, 1], "step": None}}
    )
    assert content["id"] == 3 and buffers is None
    assert "would have kept it" in content["error"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("out of memory")])
def test_a_question_is_answered_also_when_the_kernel_fails(painted, monkeypatch, error):
    def broken(*_):
        raise error

    monkeypatch.setattr("wanviz.widget.slice_of", broken)
    ((content, buffers),) = told(TraceWidget(painted()), {"side": 0, "id": "a", "ask": {}})
    assert content["id"] == "a" and buffers is None
    assert content["error"].startswith(type(error).__name__)


def test_a_branch_that_was_interrupted_leaves_the_one_that_is_drawn(painted, monkeypatch):
    widget = TraceWidget(painted(keep=EVERYTHING, negative="模糊的画面"))

    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wanviz.widget.page_data", interrupted)
        with pytest.raises(KeyboardInterrupt):
            told(widget, {"side": 0, "branch": "uncond"})
    assert widget._traces[0].branches[0] == widget.data["first"]["branch"] == "cond"


def test_another_branch_is_shown_with_its_own_words(painted):
    trace = painted(keep=EVERYTHING, negative="模糊的画面")
    widget = TraceWidget(trace)
    assert widget.data["first"]["branch"] == "cond"
    assert told(widget, {"side": 0, "branch": "uncond"}) == []
    assert widget.data["first"]["prompt"] == "模糊的画面"
    assert trace.branches == ("cond", "uncond")  # the trace itself is as it was
    shown = branch_first(trace, "uncond")
    assert shown.word_map("画面").values.mean() == pytest.approx(2 / 7, abs=1e-6)


def test_two_traces_answer_each_for_itself(painted):
    plain, whole = painted(), painted(keep=EVERYTHING)
    widget = TraceWidget(plain, beside=whole)
    asked = {"layer": [0, 1], "head": [1, 1], "step": [2, 1]}
    assert "error" in told(widget, {"side": 0, "id": 0, "ask": asked})[0][0]
    content, buffers = told(widget, {"side": 1, "id": 1, "ask": asked})[0]
    assert "error" not in content
    found, units = masses(whole, (*buffers, None))
    off = np.abs(found[0] - whole.word_map(whole.words[0], layer=0, head=1, step=2).values)
    assert off.max() <= units[0] * 0.501 + 1e-7


def test_a_notebook_stores_a_poster_and_a_sentence_beside_the_widget(painted, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda thing, **more: shown.append(thing))
    trace = painted()
    wanviz.show(trace, live=True)
    bundle, _ = shown[0]._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle["text/plain"] == repr(trace)
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "text/html" not in bundle
