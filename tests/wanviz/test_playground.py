"""Knobs that draw again."""

import numpy as np
import pytest

import wanviz
from tests.wanviz import real_wan
from wanviz.playground import Playground
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
