"""What a model sees in a video that exists already."""

import math
from typing import Any

import numpy as np
import pytest
import torch

import wanviz
from tests.wanviz import real_wan as real
from tests.wanviz.test_diffusers_wan import fingerprint

PROMPT = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"
SIGMAS = (0.9, 0.4)
CLOSE = 1e-5


@pytest.fixture
def video(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)


def wan(kind: str) -> Any:
    pytest.importorskip("transformers", reason="diffusers' WanPipeline needs it")
    return real.wan22() if kind == "wan2.2" else real.wan21()


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_map_is_that_of_the_noised_video_in_tinywan(pipe, video, sigma):
    latents = pipe.vae.encode(torch.from_numpy(video).movedim(-1, 0)[None] / 127.5 - 1)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    model = pipe.transformer if sigma >= pipe.config.boundary_ratio else pipe.transformer_2
    seen = {}
    handles = [
        getattr(model.blocks[1].cross_attn, name).register_forward_hook(
            lambda m, a, out, name=name: seen.update({name: out[0].double()})
        )
        for name in ("q", "k")
    ]
    with torch.no_grad():
        noisy = (1 - sigma) * latents + sigma * noise
        model(noisy, torch.tensor([1000 * sigma]), pipe.encode_prompt([PROMPT]))
    for handle in handles:
        handle.remove()
    mass = (seen["q"] @ seen["k"].mT / math.sqrt(seen["q"].shape[-1])).softmax(-1).mean(0)
    trace = wanviz.observe(pipe, video, PROMPT, sigmas=SIGMAS, seed=3, keep=[("layer", "step")])
    step = SIGMAS.index(sigma)
    found = trace.maps["layer", "step"].values[1, step]
    expected = mass.mT[: len(trace.tokens)].unflatten(-1, found.shape[1:]).numpy()
    np.testing.assert_allclose(found, expected, atol=CLOSE)


@pytest.mark.parametrize("kind", ["wan2.1", "wan2.2"])
def test_the_map_is_that_of_the_noised_video_in_real_wan(kind, video):
    pipe = wan(kind)
    seen: list[Any] = []
    with torch.no_grad():
        pixels = torch.from_numpy(video).movedim(-1, 0)[None] / 127.5 - 1
        encoded = pipe.vae.encode(pixels).latent_dist.mode()
        mean, std = (
            torch.tensor(v).view(1, -1, 1, 1, 1)
            for v in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
        )
        latents = (encoded - mean) / std
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
        embeds, _ = pipe.encode_prompt(
            PROMPT, do_classifier_free_guidance=False, max_sequence_length=512
        )
        for sigma in SIGMAS:
            low = kind == "wan2.2" and sigma < 0.875
            model = pipe.transformer_2 if low else pipe.transformer
            slot: dict[str, Any] = {}
            attention = model.blocks[1].attn2
            handles = [
                getattr(attention, name).register_forward_hook(
                    lambda m, a, out, name=name, slot=slot: slot.update({name: out[0].double()})
                )
                for name in ("norm_q", "norm_k")
            ]
            model((1 - sigma) * latents + sigma * noise, torch.tensor([1000 * sigma]), embeds)
            for handle in handles:
                handle.remove()
            q, k = (slot[n].unflatten(-1, (2, -1)).transpose(0, 1) for n in ("norm_q", "norm_k"))
            seen.append((q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).mean(0))
    plain, before = real.draw(pipe), fingerprint(pipe)
    trace = wanviz.observe(pipe, video, PROMPT, sigmas=SIGMAS, seed=3, keep=[("layer", "step")])
    assert fingerprint(pipe) == before
    for step, mass in enumerate(seen):
        found = trace.maps["layer", "step"].values[1, step]
        expected = mass.mT[: len(trace.tokens)].unflatten(-1, found.shape[1:]).numpy()
        np.testing.assert_allclose(found, expected, atol=CLOSE)
    experts = ["high", "low"] if kind == "wan2.2" else ["", ""]
    assert [step["noise_expert"] for step in trace.record["steps"]] == experts
    assert np.array_equal(real.draw(pipe), plain)


def test_the_record_says_that_nothing_was_drawn(pipe, video):
    trace = wanviz.observe(pipe, video, PROMPT, sigmas=(0.4, 0.9), seed=3)
    assert trace.record["observed"]
    assert [step["sigma"] for step in trace.record["steps"]] == [0.9, 0.4]
    assert trace.record["seed"] == 3
    assert np.array_equal(trace.frames, video)
    assert trace.record["not_computed"] == {}


def test_floats_are_the_same_video(pipe, video):
    whole = wanviz.observe(pipe, video, PROMPT, sigmas=(0.5,))
    floats = wanviz.observe(pipe, video.astype(np.float32) / 255, PROMPT, sigmas=(0.5,))
    np.testing.assert_allclose(floats.word_map("旗袍"), whole.word_map("旗袍"), atol=1e-6)


def test_the_negative_prompt_is_observed_on_request(pipe, video):
    options = {"negative_prompt": "blurred", "sigmas": (0.8, 0.3)}
    both = wanviz.observe(pipe, video, PROMPT, branches=("cond", "uncond"), **options)
    cond = wanviz.observe(pipe, video, PROMPT, **options)
    assert both.branch("uncond").prompt == "blurred"
    np.testing.assert_allclose(both.word_map("旗袍"), cond.word_map("旗袍"), atol=1e-6)


def test_a_pipeline_is_offloaded_again_also_when_its_model_raises(video, monkeypatch):
    pipe, freed = wan("wan2.2"), []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(1), raising=False)
    wanviz.observe(pipe, video, PROMPT, sigmas=SIGMAS)
    assert len(freed) == 1

    def fail(*_):
        raise ZeroDivisionError

    for part in (pipe.vae.encoder, pipe.text_encoder, pipe.transformer_2.blocks[1]):
        handle = part.register_forward_hook(fail)
        with pytest.raises(ZeroDivisionError):
            wanviz.observe(pipe, video, PROMPT, sigmas=SIGMAS)
        handle.remove()
    assert len(freed) == 4


def test_options_of_capture_hold(pipe, video):
    trace = wanviz.observe(
        pipe, video, PROMPT, sigmas=(0.5,), words=["旗袍"], select={"layer": [1]}, frames=None
    )
    assert [word.text for word in trace.words] == ["旗袍"]
    with pytest.raises(wanviz.BudgetError):
        wanviz.observe(pipe, video, PROMPT, budget=100)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"pipe": "wan2.1", "video": np.zeros((8, 32, 48, 3), np.uint8)}, "num_frames=8"),
        ({"pipe": "wan2.1", "video": np.zeros((9, 36, 48, 3), np.uint8)}, "height=36"),
        ({"video": np.zeros((9, 32, 48), np.uint8)}, r"shaped \(9, 32, 48\)"),
        ({"video": np.full((9, 32, 48, 3), 2.0)}, "uint8, or floats in"),
        ({"video": np.zeros((8, 32, 48, 3), np.uint8)}, "num_frames=8"),
        ({"video": np.zeros((9, 30, 48, 3), np.uint8)}, "height=30"),
        ({"sigmas": ()}, "noise levels in"),
        ({"sigmas": (1.5,)}, "has 1.5"),
        *(
            ({**model, **change}, says)
            for model in ({}, {"pipe": "wan2.1"})
            for change, says in (
                ({"prompt": ["a"]}, r"prompt=\['a'\]: give a str"),
                ({"prompt": None}, "prompt=None: give a str"),
                ({"negative_prompt": None}, "negative_prompt=None: give a str"),
                ({"seed": "7"}, "seed='7': give a whole number from 0"),
                ({"seed": -1}, "seed=-1: give a whole number from 0"),
                ({"seed": 2**64}, "seed=18446744073709551616: give a whole number from 0"),
            )
        ),
    ],
)
def test_a_bad_video_or_level_gets_a_sentence(pipe, video, change, says):
    asked = {"video": video, "prompt": PROMPT, **change}
    watched = wan(asked.pop("pipe")) if "pipe" in asked else pipe
    with pytest.raises(wanviz.OptionError, match=says):
        wanviz.observe(watched, **asked)
    with wanviz.capture(pipe):  # and the pipeline is as it was
        pipe(
            PROMPT,
            seed=0,
            progress_bar=False,
            num_inference_steps=1,
            height=32,
            width=32,
            num_frames=5,
        )
