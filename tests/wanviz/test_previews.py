"""What each step predicts the finished video to be."""

import numpy as np
import pytest
import torch

import wanviz
from tests.wanviz import real_wan

MIDDLE = [0, 3, 7]  # of the pixel frames that each latent frame stands for
ROUNDED = 1  # of 255


def predictions(pipe, generate, **options):
    """Decoded latents less sigma times the velocity, by step and video, taken from the taps."""
    seen = {"latents": [], "noise_pred": []}
    handles = [
        pipe.taps[name].register_forward_hook(lambda m, i, o, found=found: found.append(o.clone()))
        for name, found in seen.items()
    ]
    sigmas = []
    handles.append(
        pipe.taps["latents"].register_forward_hook(
            lambda m, i, o: sigmas.append(pipe.current_call.sigma)
        )
    )
    generate(**options)
    for handle in handles:
        handle.remove()
    pictures = []
    with torch.no_grad():
        for latents, velocity, sigma in zip(*seen.values(), sigmas, strict=True):
            video = (pipe.vae.decode(latents - sigma * velocity) + 1) / 2
            pictures.append(video[:, :, MIDDLE].clamp(0, 1).permute(0, 2, 3, 4, 1).numpy() * 255)
    return np.stack(pictures)  # step b f H W c


def test_previews_are_the_decoded_clean_predictions_of_every_step(pipe, generate, tmp_path):
    expected = predictions(pipe, generate)[:, 0]
    with wanviz.capture(pipe, previews=True) as trace:
        generate()
    assert trace.previews.dims == ("step", "frame", "pixel_row", "pixel_column", "color")
    assert trace.previews.dtype == np.uint8
    assert np.abs(trace.previews.values - expected).max() <= ROUNDED
    assert trace.previews.sigma.values.tolist() == [s["sigma"] for s in trace.record["steps"]]
    trace.save(tmp_path / "a.trace")
    again = wanviz.Trace.load(tmp_path / "a.trace")
    assert np.array_equal(again.previews.values, trace.previews.values)


def test_the_last_step_predicts_the_finished_video(pipe, generate):
    with wanviz.capture(pipe, previews=True) as trace:
        generate()
    last = trace.previews.values[-1].astype(int)
    assert np.abs(last - trace.frames[MIDDLE]).max() <= ROUNDED


def test_each_video_has_its_own_previews_and_steps_can_be_chosen(pipe, generate):
    prompts = ["a dog", "a woman"]
    expected = predictions(pipe, generate, prompt=prompts)
    with wanviz.capture(pipe, previews=True, select={"step": [1, 3]}) as trace:
        generate(prompts)
    for number, video in enumerate(trace.videos):
        assert video.previews.step.values.tolist() == [1, 3]
        assert np.abs(video.previews.values - expected[[1, 3], number]).max() <= ROUNDED


def test_latent_output_has_previews_too(pipe, generate):
    with wanviz.capture(pipe, previews=True) as trace:
        pipe(
            "a dog",
            seed=1,
            progress_bar=False,
            output_type="latent",
            height=32,
            width=48,
            num_frames=9,
        )
    assert trace.frames is None
    assert trace.previews.shape[1:] == (3, 32, 48, 3)
    assert trace.previews.values.any()


def test_without_being_asked_nothing_is_decoded(pipe, generate, monkeypatch):
    with wanviz.capture(pipe) as trace:
        generate()
    with pytest.raises(wanviz.KeepError, match=r"capture with previews=True \(tinywan alone"):
        _ = trace.previews


def test_a_decoder_that_fails_is_told_at_the_end_and_the_video_is_safe(pipe, generate, monkeypatch):
    before = generate()
    decode, calls = pipe.vae.decode, []

    def broken(latents, *rest):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("no memory")
        return decode(latents, *rest)

    monkeypatch.setattr(pipe.vae, "decode", broken)
    with pytest.raises(wanviz.CaptureError, match=r"previews could not be captured .*no memory"):
        with wanviz.capture(pipe, previews=True) as trace:
            after = generate()
    assert np.array_equal(before, after)
    with pytest.raises(wanviz.CaptureError, match="previews were not captured"):
        _ = trace.previews
    assert trace.word_map("旗袍").notnull().all()


def test_real_wan_says_that_it_offers_none():
    with pytest.raises(
        wanviz.OptionError, match="previews=True is offered for tinywan alone so far"
    ):
        with wanviz.capture(real_wan.wan21(), previews=True):
            pass
