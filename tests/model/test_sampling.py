import math

import pytest
import torch
from tinywan.errors import ConfigError
from tinywan.sampling import EulerSampler, UniPCSampler, make_sampler, sigmas_for
from torch import Tensor

# Computed once with diffusers 0.42.1: UniPCMultistepScheduler(prediction_type="flow_prediction",
# use_flow_sigmas=True, flow_shift=shift, num_train_timesteps=1000) on `curved_velocity` from START.
START = (-1.5, -0.4, 0.0, 0.7, 2.1)
DIFFUSERS = {  # (steps, shift): end of the run, sigmas
    (8, 3.0): (
        (-0.020555, 0.097508, 0.120575, 0.170702, 1.954476),
        (0.999999, 0.954595, 0.90012, 0.833555, 0.750375, 0.643469, 0.500999, 0.301678, 0.0),
    ),
    (5, 12.0): (
        (0.465559, 0.369687, 0.166866, -0.152529, 1.543227),
        (0.999999, 0.979617, 0.947451, 0.889135, 0.750935, 0.0),
    ),
    (2, 3.0): ((0.453765, 0.274155, 0.145866, -0.108304, 1.461944), (0.999999, 0.750375, 0.0)),
    (1, 1.0): ((0.441117, 1.017354, 0.3, -0.685448, 1.171579), (0.999999, 0.0)),
}
GAUSSIAN_MEAN, GAUSSIAN_STD = 0.7, 1.5


def curved_velocity(x: Tensor, sigma: float) -> Tensor:
    return torch.sin(2 * x) + sigma * x - 0.3


def gaussian_velocity(x: Tensor, sigma: float) -> Tensor:
    """Exact velocity E[noise - x0 | x] for x0 ~ N(mean, std^2): noise z ends at mean + std z."""
    variance = ((1 - sigma) * GAUSSIAN_STD) ** 2 + sigma**2
    surprise = (x - (1 - sigma) * GAUSSIAN_MEAN) / variance
    return sigma * surprise - (GAUSSIAN_MEAN + (1 - sigma) * GAUSSIAN_STD**2 * surprise)


def run(sampler: EulerSampler | UniPCSampler, velocity, start: Tensor, steps: int) -> Tensor:
    sampler.set_timesteps(steps)
    x = start
    for i in range(steps):
        x = sampler.step(velocity(x, float(sampler.sigmas[i])), i, x)
    return x


def gaussian_error(name: str, shift: float, steps: int) -> float:
    noise = torch.tensor([-1.0, 0.5, 2.0])
    end = run(make_sampler(name, shift), gaussian_velocity, noise, steps)
    return (end - (GAUSSIAN_MEAN + GAUSSIAN_STD * noise)).abs().max().item()


@pytest.mark.parametrize("case", DIFFUSERS)
def test_unipc_gives_the_numbers_of_diffusers(case):
    end, _ = DIFFUSERS[case]
    steps, shift = case
    found = run(make_sampler("unipc", shift), curved_velocity, torch.tensor([START]), steps)
    # diffusers begins at sigma 0.999999, we at 1.
    torch.testing.assert_close(found, torch.tensor([end]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", DIFFUSERS)
def test_sigmas_are_those_of_diffusers(case):
    _, sigmas = DIFFUSERS[case]
    torch.testing.assert_close(sigmas_for(*case), torch.tensor(sigmas), atol=2e-6, rtol=0)


def test_sigmas_fall_from_one_to_exactly_zero():
    sigmas = sigmas_for(20, 5.0)
    assert sigmas.shape == (21,)
    assert sigmas.dtype == torch.float32
    assert sigmas[0] == 1
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_forty_steps_with_shift_12_give_wans_high_noise_expert_26():
    assert int((sigmas_for(40, 12.0)[:-1] >= 0.875).sum()) == 26


def test_timesteps_are_a_thousand_sigma():
    sampler = make_sampler("euler", 3.0)
    sampler.set_timesteps(4)
    assert sampler.timesteps.shape == (4,)
    torch.testing.assert_close(sampler.timesteps, 1000 * sampler.sigmas[:4])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_converges_with_order_one(shift):
    order = math.log2(gaussian_error("euler", shift, 32) / gaussian_error("euler", shift, 128)) / 2
    assert 0.9 < order < 1.1


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_unipc_converges_with_order_two_or_better(shift):
    order = math.log2(gaussian_error("unipc", shift, 32) / gaussian_error("unipc", shift, 128)) / 2
    assert order > 1.9


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_unipc_is_ten_times_nearer_than_euler_in_32_steps(shift):
    assert gaussian_error("unipc", shift, 32) < 0.1 * gaussian_error("euler", shift, 32)


@pytest.mark.parametrize("name", ["euler", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_straight_paths_end_exactly_at_the_clean_latents(name, steps):
    x0, noise = torch.randn(2, 1, 4, 2, 3, 3)
    end = run(make_sampler(name, 3.0), lambda x, sigma: noise - x0, noise, steps)
    torch.testing.assert_close(end, x0, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_a_second_run_is_not_touched_by_the_first(name):
    sampler = make_sampler(name, 3.0)
    start = torch.tensor([START])
    fresh = run(sampler, curved_velocity, start, 6)
    sampler.set_timesteps(9)
    sampler.step(curved_velocity(start, 1.0), 0, start)  # a run that was broken off
    assert torch.equal(run(sampler, curved_velocity, start, 6), fresh)


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_half_precision_latents_keep_their_dtype_and_differ_by_rounding_alone(name):
    start = torch.tensor([START])
    exact = run(make_sampler(name, 3.0), curved_velocity, start, 8)
    rounded = run(make_sampler(name, 3.0), curved_velocity, start.bfloat16(), 8)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0)


def test_unipc_refuses_steps_out_of_order():
    sampler = make_sampler("unipc", 3.0)
    sampler.set_timesteps(4)
    x = torch.zeros(1)
    sampler.step(x, 0, x)
    with pytest.raises(ConfigError, match="step_index=2 comes out of order: UniPC expects 1"):
        sampler.step(x, 2, x)


@pytest.mark.parametrize("name", ["euler", "unipc"])
def test_a_step_needs_a_schedule_and_must_be_inside_it(name):
    sampler = make_sampler(name, 3.0)
    x = torch.zeros(1)
    with pytest.raises(ConfigError, match="call set_timesteps"):
        sampler.step(x, 0, x)
    sampler.set_timesteps(4)
    with pytest.raises(ConfigError, match="step_index=4 is outside this run: use 0 to 3"):
        sampler.step(x, 4, x)


@pytest.mark.parametrize(
    ("steps", "shift", "sentence"),
    [
        (0, 3.0, "num_inference_steps=0 makes no video: use 1 or more"),
        (-2, 3.0, "num_inference_steps=-2 makes no video"),
        (2.5, 3.0, "num_inference_steps=2.5 must be a whole number"),
        (True, 3.0, "num_inference_steps=True must be a whole number"),
        (4, 0.0, "shift=0.0 must be a positive number"),
        (4, float("nan"), "shift=nan must be a positive number"),
    ],
)
def test_a_schedule_that_cannot_be_gets_a_sentence(steps, shift, sentence):
    with pytest.raises(ConfigError, match=sentence):
        sigmas_for(steps, shift)


def test_an_unknown_sampler_gets_the_nearest_name():
    with pytest.raises(ConfigError, match=r"'UniPC2'.*use 'euler' or 'unipc'; nearest: 'unipc'"):
        make_sampler("UniPC2", 3.0)
