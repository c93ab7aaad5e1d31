"""How good clips are, whatever they show: sharpness of the VAE, flicker, smooth ways, keyframes kept, experts used.

`evaluate.py` prints these beside the factors. All of them are measured on pixels, or on what the router chose.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from tinywan.errors import ConfigError
from tinywan.moe import MixtureOfExperts
from tinywan.pipeline import TextToVideoPipeline
from tinywan.theatre import Scene, render, sample_scene
from tinywan.theatre.scene import World
from tinywan.vae import CausalVAE

REACH = 4  # pixels that a block may have moved from one frame to the next
BLOCK = 8  # rows and columns of a block


def psnr(found: npt.ArrayLike, true: npt.ArrayLike) -> float:
    """Peak signal-to-noise ratio.

    Args:
        found: float in [0, 1], any shape.
        true: the same shape.

    Returns:
        Decibels; infinite where they agree.
    """
    square = float(np.mean((np.asarray(found, np.float64) - np.asarray(true, np.float64)) ** 2))
    return float("inf") if square == 0 else -10 * float(np.log10(square))


def sample_scenes(count: int, seed: int, world: World) -> list[Scene]:
    """Scenes of the held-out split, in any look and weather.

    Args:
        count: of scenes.
        seed: at least 0.
        world: of the theatre, "first" or "whole".

    Returns:
        As many scenes, the same for the same seed.
    """
    rng = np.random.default_rng([seed, 7])
    return [sample_scene(rng, "held_out", world) for _ in range(count)]


@torch.no_grad()
def vae_psnr(
    vae: CausalVAE, scenes: Sequence[Scene], num_frames: int, size: int, refine: int = 0
) -> list[float]:
    """How well rendered clips come through encoder and decoder.

    Args:
        vae: in evaluation mode.
        scenes: to render.
        num_frames: pixel frames, 1 + 4k.
        size: rows and columns in pixels.
        refine: steps in which the encoder's latents are improved, see `CausalVAE.refine`.

    Returns:
        Decibels for each scene.
    """
    found = []
    for scene in scenes:
        frames = render(scene, num_frames, size, size).frames / np.float32(255)
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(vae.mean.device) * 2 - 1
        latents = vae.encode(video)
        if refine:
            latents = vae.refine(video, latents, refine)
        seen = (vae.decode(latents).clamp(-1, 1) + 1) / 2
        found.append(psnr(seen[0].permute(1, 2, 3, 0).cpu().numpy(), frames))
    return found


def flicker(frames: npt.NDArray[Any]) -> float:
    """How much changes from frame to frame that no motion explains.

    Every block of a frame is looked for in the frame before, at most `REACH` pixels away; what is left of the
    difference at the best place is counted. Particles and what gets uncovered are counted too, so compare with
    rendered clips of the same scenes. A warping error (arXiv 1808.00449) with motion found by block matching.

    Args:
        frames: `[F, H, W, 3]`, uint8, or float in [0, 1]; two frames or more.

    Returns:
        Mean absolute difference in 0..255.

    Raises:
        ConfigError: for a single frame.
    """
    if len(frames) < 2:
        raise ConfigError("one frame cannot flicker: give a clip of two or more")
    video = torch.from_numpy(np.ascontiguousarray(frames)).float()
    video = rearrange(video if frames.dtype == np.uint8 else video * 255, "F H W c -> F c H W")
    before = F.pad(video[:-1], (REACH,) * 4, mode="replicate")
    height, width = video.shape[-2:]
    least: Tensor | None = None
    for y in range(2 * REACH + 1):
        for x in range(2 * REACH + 1):
            moved = before[:, :, y : y + height, x : x + width]
            away = (video[1:] - moved).abs().mean(1, keepdim=True)
            away = F.avg_pool2d(away, BLOCK, ceil_mode=True)
            least = away if least is None else torch.minimum(least, away)
    assert least is not None
    return float(least.mean())


def unsteadiness(region: npt.NDArray[np.bool_]) -> float:
    """How much what is shown jumps about: the mean size of the change of its velocity.

    Args:
        region: bool `[F, H, W]`, where it is in each frame.

    Returns:
        Pixels per frame and frame; NaN where fewer than three frames in a row show it.
    """
    rows, columns = np.arange(region.shape[1])[:, None], np.arange(region.shape[2])
    area = region.sum((1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.stack([(region * axis).sum((1, 2)) / area for axis in (rows, columns)], axis=1)
    bends = np.linalg.norm(np.diff(centre, n=2, axis=0), axis=1)
    bends = bends[np.isfinite(bends)]
    return float(bends.mean()) if len(bends) else float("nan")


def keyframe_psnr(
    pipe: TextToVideoPipeline,
    prompts: Sequence[tuple[Scene, str]],
    seed: int,
    **options: Any,
) -> dict[str, list[float]]:
    """How well a clip keeps the first and the last frame that it was given.

    Args:
        pipe: trained with keyframes.
        prompts: scenes whose first and last frames are given, and what to say of them.
        seed: of the first clip; each next one has the next.
        options: of a call, e.g. `num_inference_steps`.

    Returns:
        "first" and "last" -> decibels for each scene, against the rendered picture.
    """
    found: dict[str, list[float]] = {"first": [], "last": []}
    config = pipe.config
    for number, (scene, text) in enumerate(prompts):
        clip = render(scene, config.num_frames, config.height, config.width)
        given = clip.frames[[0, -1]] / np.float32(255)
        (made,) = pipe(
            text,
            seed=seed + number,
            keyframes={0: given[0], -1: given[1]},
            progress_bar=False,
            **options,
        ).frames
        found["first"].append(psnr(made[0], given[0]))
        found["last"].append(psnr(made[-1], given[1]))
    return found


@contextmanager
def count_token_experts(pipe: TextToVideoPipeline) -> Iterator[dict[str, Tensor]]:
    """Count what the routers choose while this block runs.

    Args:
        pipe: with token experts, or without.

    Yields:
        By name of the layer, `transformer.blocks.0.moe` …, how many tokens each expert was given, int64
        `[expert]`; filled as the pipeline draws.
    """
    counts: dict[str, Tensor] = {}
    handles = []
    denoisers = {"transformer": pipe.transformer}
    if pipe.transformer_2 is not pipe.transformer:
        denoisers["transformer_2"] = pipe.transformer_2

    def count(name: str, number: int) -> Any:
        def hook(_: Any, __: Any, ids: Tensor) -> None:
            found = ids.flatten().bincount(minlength=number).cpu()
            counts[name] = counts[name] + found if name in counts else found

        return hook

    for prefix, denoiser in denoisers.items():
        for name, module in denoiser.named_modules():
            if isinstance(module, MixtureOfExperts):
                hook = count(f"{prefix}.{name}", module.num_experts)
                handles.append(module.expert_ids.register_forward_hook(hook))
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()
