"""What a GPU draws is what the CPU draws; skipped with a sentence where there is none."""

from dataclasses import replace

import pytest
import torch
from tinywan.batches import Phase
from tinywan.dit import DiT
from tinywan.moe import MixtureOfExperts
from tinywan.pipeline import TextToVideoPipeline
from tinywan.presets import preset
from tinywan.train_denoiser import DenoiserRecipe, train_denoiser
from tinywan.train_vae import measure_latents
from tinywan.trainer import TrainerConfig

TOLERANCE = 2e-3  # float32 sums in another order, over four steps with guidance
HALF_PRECISION = 0.1  # bfloat16 against float32, relative
QUICK = {"num_frames": 9, "num_inference_steps": 4, "seed": 7, "progress_bar": False}
PROMPT = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("without_tf32")]


@pytest.fixture
def pipes() -> tuple[TextToVideoPipeline, TextToVideoPipeline]:
    """The same weights on the CPU and on the GPU."""
    first, second = (TextToVideoPipeline.from_preset("debug", seed=2) for _ in range(2))
    return first, second.to("cuda")


def test_the_gpu_draws_the_latents_of_the_cpu(pipes):
    on_cpu, on_gpu = (pipe(PROMPT, output_type="latent", **QUICK).frames for pipe in pipes)
    assert on_gpu.is_cuda
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=TOLERANCE, rtol=0)


def test_the_gpu_draws_the_pixels_of_the_cpu(pipes):
    on_cpu, on_gpu = (torch.from_numpy(pipe(PROMPT, **QUICK).frames) for pipe in pipes)
    torch.testing.assert_close(on_gpu, on_cpu, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gpu_draws_the_same_bits_twice(pipes, dtype):
    pipe = pipes[1].to("cuda", dtype)
    first, second = (pipe(PROMPT, **QUICK).frames.tobytes() for _ in range(2))
    assert first == second


def test_bfloat16_on_the_gpu_stays_near_float32(pipes):
    exact = pipes[0](PROMPT, output_type="latent", **QUICK).frames
    rounded = pipes[1].to("cuda", torch.bfloat16)(PROMPT, output_type="latent", **QUICK).frames
    assert (rounded.float().cpu() - exact).norm() < HALF_PRECISION * exact.norm()


def test_a_generator_may_live_on_the_gpu(pipes):
    options = {**QUICK, "seed": None, "output_type": "latent"}
    first, second = (
        pipes[1](PROMPT, generator=torch.Generator("cuda").manual_seed(3), **options).frames
        for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("to_train", [True, False])
def test_token_experts_mix_to_the_same_bits_every_time(to_train):
    moe = MixtureOfExperts(192, 256, 10, 3).cuda().eval()
    x = torch.randn(2, 720, 192, device="cuda")
    with torch.set_grad_enabled(to_train):  # there is a way for each
        first = moe(x)
        assert all(torch.equal(moe(x), first) for _ in range(5))


@pytest.mark.parametrize("expert_dim", [44, 48])  # that fit no grouped product, and that do
def test_a_training_step_in_bfloat16_is_that_of_the_cpu_but_for_rounding(expert_dim):
    config = replace(preset("debug").dit, expert_dim=expert_dim)
    noise, latents, embeds = (
        torch.randn(2, 16, 3, 4, 4),
        torch.randn(2, 16, 3, 4, 4),
        torch.randn(2, 9, 32),
    )
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(3)
        model = DiT(config).train()
        torch.nn.init.normal_(model.proj_out.weight, std=0.02)
        model.to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            answer = model(
                noise.to(device), torch.full((1,), 500.0, device=device), embeds.to(device)
            )
            loss = (answer.float() - latents.to(device)).square().mean()
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
        assert all(weight.isfinite().all() for weight in model.parameters())
        found.append(loss.item())
    assert found[1] == pytest.approx(found[0], rel=HALF_PRECISION)


def test_latents_are_measured_alike(pipes):
    on_cpu, on_gpu = (
        torch.tensor(measure_latents(pipe.vae, 32, str(pipe.device), clips=2)) for pipe in pipes
    )
    torch.testing.assert_close(on_gpu, on_cpu, atol=TOLERANCE, rtol=0)


def test_training_on_a_gpu_is_saved_and_goes_on(tmp_path):
    start = TextToVideoPipeline.from_preset("debug", seed=3)  # on the CPU, its VAE too
    for steps in (1, 2):
        recipe = DenoiserRecipe(
            TrainerConfig(steps=steps, warmup=1), (Phase(2, 5, 2, 2),), bfloat16=True, flow=0.1
        )
        pipe = train_denoiser(tmp_path, recipe, start.config, start.vae, "cuda", start)
    weights = list(pipe.transformer.parameters())
    assert all(weight.is_cuda and weight.isfinite().all() for weight in weights)
