"""From noise to latents: sigma schedules, and the Euler and UniPC solvers of the flow's ODE.

Everywhere x_sigma = (1 - sigma) x0 + sigma noise, velocity = dx/dsigma = noise - x0, and timestep =
1000 sigma. A sampler walks sigma from 1 to 0 and asks the model for one velocity per step.
"""

from __future__ import annotations

import difflib
import math

import torch
from torch import Tensor

from tinywan.errors import ConfigError
from tinywan.flow import NUM_TRAIN_TIMESTEPS, shift_sigma

LARGEST_SIGMA = 1 - 1e-6  # in logarithms only, infinite at 1; diffusers cuts there too


def sigmas_for(num_inference_steps: int, shift: float) -> Tensor:
    """Noise levels of a run, from 1 to exactly 0.

    The spacing is that of diffusers' UniPCMultistepScheduler with `use_flow_sigmas`, the scheduler
    of Wan2.2: even from 1 to 1/1000 with the end left out, then shifted, then 0. Both samplers use
    it. (FlowMatchEulerDiscreteScheduler keeps that end: its last step begins close to 0.)

    Source: Esser et al. 2024, arXiv 2403.03206, equation 23, for the shift.

    Args:
        num_inference_steps: number of steps, at least 1.
        shift: above 1 spends more steps at high noise; Wan2.2-T2V-A14B uses 12, 1 is even.

    Returns:
        float32 [steps + 1], falling.

    Raises:
        ConfigError: no step, or a shift that is not positive.
    """
    if isinstance(num_inference_steps, bool) or not isinstance(num_inference_steps, int):
        raise ConfigError(
            f"num_inference_steps={num_inference_steps!r} must be a whole number, e.g. 20"
        )
    if num_inference_steps < 1:
        raise ConfigError(
            f"num_inference_steps={num_inference_steps} makes no video: use 1 or more, e.g. 20"
        )
    if not (math.isfinite(shift) and shift > 0):
        raise ConfigError(
            f"shift={shift} must be a positive number: use 1 for none, Wan uses 3 to 12"
        )
    even = torch.linspace(1, 1 / NUM_TRAIN_TIMESTEPS, num_inference_steps + 1, dtype=torch.float64)[
        :-1
    ]
    return torch.cat([shift_sigma(even, shift), torch.zeros(1, dtype=torch.float64)]).float()


class Sampler:
    """The schedule, which both samplers share; call `set_timesteps` before a run's first `step`.

    Args:
        shift: see `sigmas_for`.

    Attributes:
        sigmas: float32 [steps + 1], from 1 to 0.
        timesteps: float32 [steps], 1000 sigma, what the model is told.
    """

    def __init__(self, shift: float) -> None:
        sigmas_for(1, shift)
        self.shift = shift
        self.sigmas = torch.empty(0)
        self.timesteps = torch.empty(0)
        self._levels: list[float] = []  # sigmas as Python floats: no step waits for the device

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str = "cpu") -> None:
        """Begin a run; what a previous one left is forgotten.

        Args:
            num_inference_steps: number of steps, at least 1.
            device: of `sigmas` and `timesteps`.

        Raises:
            ConfigError: no step, or no whole number of them.
        """
        sigmas = sigmas_for(num_inference_steps, self.shift)
        self._levels = sigmas.tolist()
        self.sigmas = sigmas.to(device)
        self.timesteps = self.sigmas[:-1] * NUM_TRAIN_TIMESTEPS

    def _levels_at(self, step_index: int) -> tuple[float, float]:
        """Sigma now and sigma after the step."""
        steps = len(self._levels) - 1
        if steps < 1:
            raise ConfigError(
                "the sampler has no schedule yet: call set_timesteps(num_inference_steps) first"
            )
        if not 0 <= step_index < steps:
            raise ConfigError(f"step_index={step_index} is outside this run: use 0 to {steps - 1}")
        return self._levels[step_index], self._levels[step_index + 1]


class EulerSampler(Sampler):
    """One straight line per step; first order, exact where paths are straight."""

    def step(self, velocity: Tensor, step_index: int, latents: Tensor) -> Tensor:
        """Latents at the next sigma.

        Args:
            velocity: the model's output at `latents`, same shape.
            step_index: which step of the run, from 0.
            latents: any shape; the sum is done in float32.

        Returns:
            Latents of the same shape and dtype.

        Raises:
            ConfigError: before `set_timesteps`, or `step_index` is outside the run.
        """
        sigma, sigma_next = self._levels_at(step_index)
        return (latents.float() + (sigma_next - sigma) * velocity.float()).to(latents.dtype)


class UniPCSampler(Sampler):
    """Predictor-corrector of order 2 on the predicted clean latents, B(h) = exp(h) - 1 ("bh2").

    Each new velocity first corrects the latents it was computed at (UniC), then predicts the next
    (UniP): accuracy rises without another call of the model. First and last step are of order 1.

    Source: Zhao et al. 2023, arXiv 2302.04867, in its data-prediction form. lambda = log((1 -
    sigma) / sigma) is half the log signal-to-noise ratio, h its increase over a step. Same numbers
    as diffusers' UniPCMultistepScheduler with prediction_type="flow_prediction",
    use_flow_sigmas=True and flow_shift=shift.
    """

    def __init__(self, shift: float) -> None:
        super().__init__(shift)
        self._forget()

    def _forget(self) -> None:
        self._x0s: list[Tensor] = []  # predicted clean latents of the two steps before, latest last
        self._last: Tensor | None = None  # corrected latents at which the latest step began
        self._order = 1  # of the latest predictor; its corrector uses the same
        self._next_index = 0

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str = "cpu") -> None:
        """Begin a run; what a previous one left is forgotten.

        Args:
            num_inference_steps: number of steps, at least 1.
            device: of `sigmas` and `timesteps`.

        Raises:
            ConfigError: no step, or no whole number of them.
        """
        super().set_timesteps(num_inference_steps, device)
        self._forget()

    def step(self, velocity: Tensor, step_index: int, latents: Tensor) -> Tensor:
        """Latents at the next sigma; steps must come in order, as each remembers the two before.

        Args:
            velocity: the model's output at `latents`, same shape.
            step_index: which step of the run, from 0.
            latents: what the previous step returned; the sums are done in float32.

        Returns:
            Latents of the same shape and dtype.

        Raises:
            ConfigError: before `set_timesteps`, or `step_index` is outside the run or not the next one.
        """
        sigma, sigma_next = self._levels_at(step_index)
        if step_index != self._next_index:
            raise ConfigError(
                f"step_index={step_index} comes out of order: UniPC expects {self._next_index}; "
                "call set_timesteps to begin anew"
            )
        x = latents.float()
        x0 = x - sigma * velocity.float()
        if self._last is not None:
            x = self._correct(x0, step_index)
        self._x0s = [*self._x0s[-1:], x0]
        self._last = x
        self._next_index = step_index + 1
        self._order = 1 if step_index == 0 or sigma_next == 0 else 2
        if sigma_next == 0:  # h is infinite, and the predictor is x0 itself
            return x0.to(latents.dtype)
        h = log_snr(sigma_next) - log_snr(sigma)
        difference = torch.zeros_like(x0)  # D1 / r1, the slope of x0 over lambda in units of h
        if self._order == 2:
            r1 = (log_snr(self._levels[step_index - 1]) - log_snr(sigma)) / h
            difference = 0.5 * (self._x0s[-2] - x0) / r1
        alpha_next, big_b = 1 - sigma_next, math.expm1(-h)
        x = sigma_next / sigma * x - alpha_next * big_b * (x0 + difference)
        return x.to(latents.dtype)

    def _correct(self, x0: Tensor, step_index: int) -> Tensor:
        """UniC: the latest step done again, now that x0 at its end is known too."""
        assert self._last is not None
        before, sigma = self._levels[step_index - 1], self._levels[step_index]
        h = log_snr(sigma) - log_snr(before)
        big_b = math.expm1(-h)
        difference = x0 - self._x0s[-1]
        if self._order == 1:
            slope = 0.5 * difference
        else:
            r1 = (log_snr(self._levels[step_index - 2]) - log_snr(before)) / h
            phi_2 = big_b / -h - 1
            phi_3 = phi_2 / -h - 0.5
            b1, b2 = phi_2 / big_b, 2 * phi_3 / big_b
            rho1 = (b1 - b2) / (1 - r1)  # solves rho1 + rho2 = b1, r1 rho1 + rho2 = b2
            slope = rho1 * (self._x0s[-2] - self._x0s[-1]) / r1 + (b1 - rho1) * difference
        return sigma / before * self._last - (1 - sigma) * big_b * (self._x0s[-1] + slope)


def log_snr(sigma: float) -> float:
    """lambda: half the log signal-to-noise ratio of x_sigma, a number that rises as noise goes."""
    sigma = min(sigma, LARGEST_SIGMA)
    return math.log1p(-sigma) - math.log(sigma)


SAMPLERS: dict[str, type[EulerSampler] | type[UniPCSampler]] = {
    "euler": EulerSampler,
    "unipc": UniPCSampler,
}


def make_sampler(name: str, shift: float) -> EulerSampler | UniPCSampler:
    """The sampler of that name.

    Args:
        name: "euler" or "unipc".
        shift: of its noise levels, see `sigmas_for`.

    Returns:
        A sampler without a schedule: call `set_timesteps` before its first step.

    Raises:
        ConfigError: there is no such sampler, or the shift is not positive.
    """
    if name not in SAMPLERS:
        nearest = difflib.get_close_matches(str(name).lower(), SAMPLERS, n=1, cutoff=0.4)
        hint = f"; nearest: {nearest[0]!r}" if nearest else ""
        raise ConfigError(
            f"no sampler is called {name!r}: use {' or '.join(map(repr, SAMPLERS))}{hint}"
        )
    return SAMPLERS[name](shift)
