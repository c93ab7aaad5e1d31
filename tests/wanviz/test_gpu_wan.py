"""Real Wan's pipeline, tiny and random, on an NVIDIA GPU: the promises hold there, too."""

from typing import Any

import numpy as np
import pytest
import torch

import wanviz
from tests.wanviz import real_wan as real
from wanviz.attribution import METHODS, rank_words

pytest.importorskip("transformers", reason="diffusers' WanPipeline needs it for its text encoder")
pytestmark = pytest.mark.gpu

KEEP = [("layer", "step", "head")]
PARAMETERS = {"attention_heads": {"heads": [(0, 0)]}, "shapley": {"samples": 1}}


def on_gpu(dtype: torch.dtype) -> Any:
    pipe = real.wan22().to("cuda")
    for model in (pipe.transformer, pipe.transformer_2):
        model.to(dtype)
    return pipe


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frames", ["exact", "sampled", None])
def test_output_is_bit_identical_on_a_gpu(dtype, frames):
    pipe = on_gpu(dtype)
    plain = real.draw(pipe)
    with wanviz.capture(pipe, frames=frames, branches=("cond", "uncond")):
        watched = real.draw(pipe)
    assert np.array_equal(plain, watched)
    assert np.array_equal(plain, real.draw(pipe))


def test_maps_on_a_gpu_are_those_on_a_cpu():
    traces = []
    for pipe in (real.wan22(), on_gpu(torch.float32)):
        with wanviz.capture(pipe, keep=KEEP, frames="exact") as trace:
            real.draw(
                pipe, num_inference_steps=1
            )  # later steps differ by what the first one rounds
        traces.append(trace)
    cpu, gpu = traces
    for name, array in cpu.contents.arrays.items():
        if name != "video":
            np.testing.assert_allclose(gpu.contents.arrays[name], array, atol=1e-4, err_msg=name)


def test_observing_on_a_gpu_uses_the_noise_of_a_cpu(rng):
    video = rng.integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
    cpu, gpu = (
        wanviz.observe(pipe, video, real.ENGLISH, sigmas=(0.9, 0.4))
        for pipe in (real.wan22(), on_gpu(torch.float32))
    )
    np.testing.assert_allclose(gpu.word_map("rain"), cpu.word_map("rain"), atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_an_attribution_on_a_gpu_is_that_on_a_cpu(method, rng):
    video = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    cpu, gpu = (
        wanviz.attribute(
            pipe, real.ENGLISH, ["umbrella", "rain"], method=method, video=video, sigmas=(0.9, 0.4),
            progress_bar=False, **PARAMETERS.get(method, {}),
        )
        for pipe in (real.wan22(), on_gpu(torch.float32))
    )  # fmt: skip
    scale = float(np.abs(cpu.values).max())
    np.testing.assert_allclose(gpu.values, cpu.values, atol=0.02 * scale)
    assert gpu.checks.keys() == cpu.checks.keys()


@pytest.mark.parametrize("method", ["integrated_gradients", "saliency", "word_ablation", "shapley"])
def test_words_are_ranked_on_a_gpu_as_on_a_cpu(method, rng):
    video = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    cpu, gpu = (
        rank_words(
            pipe, real.ENGLISH, ["umbrella", "rain"], region=np.ones((2, 4, 4)), method=method,
            video=video, sigmas=(0.9, 0.4), steps=4, samples=1, progress_bar=False,
        )
        for pipe in (real.wan22(), on_gpu(torch.float32))
    )  # fmt: skip
    scale = float(np.abs(cpu).max())
    np.testing.assert_allclose(gpu.sel(word=cpu.word), cpu, atol=0.02 * scale)
