"""Real Wan's pipeline, tiny and random, on an NVIDIA GPU: the promises hold there, too."""

from typing import Any

import numpy as np
import pytest
import torch

import wanviz
from tests.wanviz import real_wan as real
from wanviz.attribution import METHODS, rank_words
from wanviz.frame_masses import few_row_masses
from wanviz.interventions import inject, record, reweight, reweight_frames, scale_heads

pytest.importorskip("transformers", reason="diffusers' WanPipeline needs it for its text encoder")
pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("without_tf32")]

KEEP = [("layer", "step", "head")]
LARGE = {"height": 64, "width": 96}  # 24 tokens in a frame, of which sampling draws 16
LEFT = np.zeros((3, 2, 3))  # the left column of a small video
LEFT[..., 0] = 1
CHANGES = {
    "words": lambda pipe: reweight(
        pipe, real.ENGLISH, {"umbrella": 0, "rain": 9}, where=LEFT, heads=[1]
    ),
    "heads": lambda pipe: scale_heads(pipe, {(0, 0): 0}),
    "frames": lambda pipe: reweight_frames(pipe, np.eye(3)),
}
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
    plain = real.draw(pipe, **LARGE)
    with wanviz.capture(pipe, frames=frames, branches=("cond", "uncond")):
        watched = real.draw(pipe, **LARGE)
    assert np.array_equal(plain, watched)
    assert np.array_equal(plain, real.draw(pipe, **LARGE))


@pytest.mark.parametrize("frames", ["exact", "sampled"])
def test_maps_on_a_gpu_are_those_on_a_cpu(frames):
    traces = []
    for pipe in (real.wan22(), on_gpu(torch.float32)):
        with wanviz.capture(pipe, keep=KEEP, frames=frames, links=True) as trace:
            real.draw(pipe, num_inference_steps=1, **LARGE)  # later ones differ by what it rounds
        traces.append(trace)
    cpu, gpu = traces
    for name, array in cpu.contents.arrays.items():
        if name != "video":
            np.testing.assert_allclose(gpu.contents.arrays[name], array, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_rows_on_a_gpu_lay_the_mass_of_a_float64_softmax_on_each_frame(dtype):
    q, k = (2 * torch.randn(rows, 128, device="cuda").to(dtype) for rows in (336, 21 * 1560))
    wanted = (q.double() @ k.double().T / 128**0.5).softmax(-1).unflatten(1, (21, -1)).sum(-1)
    torch.testing.assert_close(few_row_masses(q, k, 21).double(), wanted, atol=1e-5, rtol=0)


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


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_is_changed_on_a_gpu_as_on_a_cpu(name):
    asked = {"num_inference_steps": 1, "output_type": "latent"}
    cpu, gpu = real.wan22(), on_gpu(torch.float32)
    plain = real.draw(cpu, **asked)
    with CHANGES[name](cpu):
        wanted = real.draw(cpu, **asked)
    with CHANGES[name](gpu):
        found = real.draw(gpu, **asked).cpu()
    assert (found - wanted).norm() < 0.01 * (wanted - plain).norm()


@pytest.mark.parametrize("what", ["cross_attn", "stream"])
def test_what_was_recorded_on_a_gpu_is_put_back_to_the_same_bits(what):
    pipe = on_gpu(torch.float32)
    with record(pipe, real.ENGLISH, what) as kept:
        first = real.draw(pipe)
    assert {tensor.device.type for tensor in kept.tensors.values()} == {"cpu"}
    with inject(pipe, kept, real.ENGLISH):
        assert np.array_equal(real.draw(pipe), first)
