"""Rectified flow: a straight road from video to noise, and a model that knows its direction.

Source: Liu et al. 2022, arXiv 2209.03003; Lipman et al. 2022, arXiv 2210.02747; the shift towards
noise: Esser et al. 2024, arXiv 2403.03206, equation 23.
"""

import torch
from torch import Tensor

NUM_TRAIN_TIMESTEPS = 1000  # timestep = 1000·sigma, as in Wan


def shift_sigma(sigma: Tensor, shift: float) -> Tensor:
    """Spend more of the way near pure noise.

    Args:
        sigma: noise levels in [0, 1].
        shift: 1 leaves them; larger values push them towards 1.

    Returns:
        Shifted noise levels in [0, 1].
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def add_noise(latents: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Walk `sigma` of the way from latents to noise.

    Args:
        latents: `[b, ...]` clean.
        noise: `[b, ...]` standard normal.
        sigma: `[b]` in [0, 1].

    Returns:
        `(1 - sigma)·latents + sigma·noise`.
    """
    sigma = sigma.view(-1, *[1] * (latents.ndim - 1))
    return (1 - sigma) * latents + sigma * noise


def velocity(latents: Tensor, noise: Tensor) -> Tensor:
    """Direction of the road from video to noise, what the denoiser learns to predict.

    Args:
        latents: `[b, ...]` clean.
        noise: `[b, ...]` standard normal.

    Returns:
        `[b, ...]` noise - latents, the same all along the road.
    """
    return noise - latents


def predicted_clean(noisy: Tensor, predicted_velocity: Tensor, sigma: Tensor | float) -> Tensor:
    """Where the road would end if the predicted direction were right all the way.

    Args:
        noisy: `[b, ...]` latents at noise level `sigma`.
        predicted_velocity: `[b, ...]`.
        sigma: noise level, a number or one that broadcasts.

    Returns:
        `[b, ...]` estimate of the clean latents.
    """
    return noisy - sigma * predicted_velocity


def sample_sigma(
    batch: int,
    shift: float,
    generator: torch.Generator,
    between: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Noise levels for training: uniform, then shifted, and spread evenly over the batch.

    Args:
        batch: how many.
        shift: see `shift_sigma`.
        generator: source of randomness.
        between: the lowest and the highest noise level; of all levels those between them are drawn.

    Returns:
        `[batch]` float32 in (0, 1).
    """
    strata = torch.arange(batch) + torch.rand(batch, generator=generator)
    first, last = (level / (shift - (shift - 1) * level) for level in between)  # before the shift
    uniform = first + (last - first) * (strata / batch)
    return shift_sigma(uniform.clamp(1e-4, 1 - 1e-4), shift)
