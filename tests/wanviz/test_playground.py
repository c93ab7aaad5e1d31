"""Knobs that draw again."""

import gc
import weakref

import numpy as np
import pytest

import wanviz
from tests.wanviz import real_wan
from wanviz.playground import Playground
from wanviz.reducers import WordMasses
from wanviz.widget import TraceWidget

SMALL = {"height": 32, "width": 48, "num_frames": 9}


@pytest.fixture
def knobs(pipe):
    made = Playground(pipe, "a dog runs", progress_bar=False, **SMALL)
    made.steps.value = 2
    return made


def views(knobs):
    return knobs.children[-1].children


def test_a_press_draws_what_the_knobs_say(knobs, pipe):
    assert views(knobs) == () and knobs.trace is None
    knobs.seed.value, knobs.guidance.value, knobs.negative.value = 11, 2.5, "snow"
    knobs.draw.click()
    expected = pipe(
        "a dog runs", negative_prompt="snow", seed=11, guidance_scale=2.5, num_inference_steps=2,
        progress_bar=False, **SMALL,
    ).frames  # fmt: skip
    assert np.array_equal(knobs.trace.frames, np.rint(expected[0] * 255))
    assert knobs.trace.previews.sizes["step"] == 2
    (shown,) = views(knobs)
    assert isinstance(shown, TraceWidget)
    assert shown.data["first"]["prompt"] == "a dog runs" and shown.data["second"] is None
    assert not knobs.draw.disabled
    assert "Drawn in" in knobs.said.value


def test_the_video_before_can_stand_beside(knobs):
    knobs.draw.click()
    knobs.prompt.value, knobs.compare.value = "a dog stands", True
    knobs.draw.click()
    (shown,) = views(knobs)
    assert [shown.data[side]["prompt"] for side in ("first", "second")] == [
        "a dog runs",
        "a dog stands",
    ]


def test_what_goes_wrong_is_a_sentence_and_the_last_video_stays(knobs, monkeypatch):
    knobs.draw.click()
    before = views(knobs)

    def broken(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(knobs._pipe), "__call__", broken)
        knobs.draw.click()
    assert "Stopped" in knobs.said.value
    assert views(knobs) is before or views(knobs) == before
    assert not knobs.draw.disabled
    bad = Playground(knobs._pipe, "<b>", height=33)
    bad.draw.click()
    assert "height=33" in bad.said.value
    assert views(bad) == ()


def test_the_last_video_is_let_go_once_another_is_shown(knobs):
    knobs.draw.click()
    last = weakref.ref(knobs.trace), weakref.ref(views(knobs)[0])
    knobs.draw.click()
    gc.collect()
    assert [found() for found in last] == [None, None]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), KeyError("colour")])
def test_what_goes_wrong_while_the_views_are_made_is_a_sentence(knobs, monkeypatch, error):
    def broken(*args, **options):
        raise error

    knobs.draw.click()
    before = views(knobs), knobs.trace
    with monkeypatch.context() as patch:
        patch.setattr("wanviz.playground.TraceWidget", broken)
        knobs.draw.click()
    said = "Stopped" if isinstance(error, KeyboardInterrupt) else "KeyError"
    assert said in knobs.said.value
    assert (views(knobs), knobs.trace) == before
    assert not knobs.draw.disabled


def test_a_trace_that_lacks_a_part_is_shown_with_a_sentence(knobs, monkeypatch):
    def fail(self, event):
        raise ValueError("no room on the abacus")

    monkeypatch.setattr(WordMasses, "consume", fail)
    knobs.draw.click()
    assert "no room on the abacus" in knobs.said.value and "Drawn in" in knobs.said.value
    (shown,) = views(knobs)
    assert shown.data["first"]["video"]["count"] == 9
    assert np.isfinite(knobs.trace.frame_attention().mass).all()


def test_several_videos_at_once_get_a_sentence():
    pipe = real_wan.wan21()
    pipe.set_progress_bar_config(disable=True)
    knobs = Playground(pipe, "a dog", height=32, width=32, num_frames=5, num_videos_per_prompt=2)
    knobs.steps.value = 2
    knobs.draw.click()
    assert "trace.videos[0]" in knobs.said.value
    assert views(knobs) == () and knobs.trace is None


def test_real_wan_is_drawn_with_a_generator():
    pipe = real_wan.wan21()
    pipe.set_progress_bar_config(disable=True)
    knobs = Playground(pipe, "a dog", height=32, width=32, num_frames=5)
    knobs.steps.value = 2
    knobs.draw.click()
    assert "Drawn in" in knobs.said.value, knobs.said.value
    with pytest.raises(wanviz.KeepError):
        _ = knobs.trace.previews


def test_something_that_is_no_pipeline_is_refused_at_once():
    with pytest.raises(wanviz.OptionError, match="cannot watch"):
        Playground("pipe")
