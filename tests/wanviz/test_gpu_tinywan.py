"""tinywan watched, changed and explained on an NVIDIA GPU, as on a CPU."""

from typing import Any

import numpy as np
import pytest
import tinywan
import torch

import wanviz
from wanviz.interventions import (
    force_expert,
    reweight,
    reweight_frames,
    scale_experts,
    scale_heads,
)

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("without_tf32")]

PROMPT = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"
ASKED = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 2, "seed": 7}
LEFT = np.zeros((3, 4, 6))  # the left half of the video
LEFT[..., :3] = 1
CHANGES = {
    "words": lambda pipe: reweight(pipe, PROMPT, {"旗袍": 0, "雨": 9}, where=LEFT, heads=[1]),
    "heads": lambda pipe: scale_heads(pipe, {(0, 0): 0}, kind="spatial_attn"),
    "frames": lambda pipe: reweight_frames(pipe, np.eye(3)),
    "experts": lambda pipe: scale_experts(pipe, {(0, 1): 0, (1, 2): 3}),
    "one expert": lambda pipe: force_expert(pipe, 3, where=LEFT),
}


def both() -> tuple[Any, Any]:
    """The same weights on the CPU and on the GPU."""
    first, second = (tinywan.TextToVideoPipeline.from_preset("debug", seed=0) for _ in range(2))
    return first, second.to("cuda")


def draw(pipe: Any) -> torch.Tensor:
    found = pipe(PROMPT, output_type="latent", progress_bar=False, **ASKED).frames
    return found.float().cpu()


def test_a_trace_on_a_gpu_is_that_on_a_cpu():
    traces = []
    for pipe in both():
        with wanviz.capture(
            pipe, keep=[("layer", "step", "head")], branches=("cond", "uncond"), links=True, previews=True
        ) as trace:  # fmt: skip
            draw(pipe)
        traces.append(trace.contents.arrays)
    cpu, gpu = traces
    assert cpu.keys() == gpu.keys()
    for name, array in cpu.items():
        close = {"atol": 1} if name == "previews" else {"atol": 1e-4}
        np.testing.assert_allclose(gpu[name].astype(np.float32), array, err_msg=name, **close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gpu_draws_the_same_bits_when_watched(dtype):
    pipe = both()[1].to("cuda", dtype)
    plain = draw(pipe)
    with wanviz.capture(pipe, branches=("cond", "uncond"), words=["旗袍"], select={"head": [1]}):
        watched = draw(pipe)
    assert torch.equal(watched, plain)


@pytest.mark.parametrize("name", CHANGES)
def test_a_run_is_changed_on_a_gpu_as_on_a_cpu(name):
    cpu, gpu = both()
    plain = draw(cpu)
    with CHANGES[name](cpu):
        wanted = draw(cpu)
    with CHANGES[name](gpu):
        found = draw(gpu)
    assert (found - wanted).norm() < 0.01 * (wanted - plain).norm()


@pytest.mark.parametrize("method", ["integrated_gradients", "occlusion_latents", "output_space"])
def test_an_attribution_on_a_gpu_is_that_on_a_cpu(method, rng):
    video = rng.integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    cpu, gpu = (
        wanviz.attribute(
            pipe, PROMPT, ["旗袍", "雨"], method=method, video=video, sigmas=(0.5,), progress_bar=False
        ).values
        for pipe in both()
    )  # fmt: skip
    np.testing.assert_allclose(gpu, cpu, atol=0.02 * float(np.abs(cpu).max()))
