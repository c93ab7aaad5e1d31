"""Which denoiser is better at which noise level? `python -m tinywan.noise_levels --out DIR`.

Wan2.2 draws with two noise experts, one for high noise levels and one for low ones. Whether the
split was worth it shows in the error of the predicted velocity, level by level, on clips that none
of the denoisers was trained on, with the same noise for all of them.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from tinywan import flow, theatre
from tinywan.checkpoint import write_atomically
from tinywan.dit import DiT
from tinywan.errors import ConfigError, TinywanError
from tinywan.pipeline import TextToVideoPipeline

LEVELS = (0.05, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.85, 0.9, 0.94, 0.97, 0.99)


def held_out_clips(
    pipe: TextToVideoPipeline, count: int, seed: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """Latents and prompts of rendered scenes from the held-out split, English and Chinese in turn.

    Args:
        pipe: whose VAE and text encoder are used.
        count: clips.
        seed: of the scenes.

    Returns:
        Pairs of `[1, c, f, h, w]` latents and `[1, p, c]` prompt_embeds.

    Raises:
        ConfigError: for no clips at all.
    """
    if count < 1:
        raise ConfigError(f"{count} clips tell nothing: use 1 or more")
    config, rng, clips = pipe.config, np.random.default_rng([seed, 3]), []
    for number in range(count):
        scene = theatre.sample_scene(rng, "held_out", config.world)
        text = theatre.caption(scene, "zh" if number % 2 else "en", rng).text
        frames = theatre.render(scene, config.num_frames, config.height, config.width).frames
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 127.5 - 1
        with torch.no_grad():
            latents = pipe.vae.encode(video.to(pipe.device))
        clips.append((latents, pipe.encode_prompt([text])))
    return clips


@torch.no_grad()
def velocity_errors(
    denoisers: Mapping[str, DiT],
    clips: Sequence[tuple[Tensor, Tensor]],
    levels: Sequence[float] = LEVELS,
    progress_bar: bool = True,
) -> dict[str, NDArray[np.float64]]:
    """Mean squared error of the velocity at each noise level.

    Args:
        denoisers: by name.
        clips: from `held_out_clips`.
        levels: noise levels in (0, 1).
        progress_bar: show one.

    Returns:
        By name float64 `[level, clip]`; clip number i has the same noise everywhere.
    """
    found = {name: np.zeros((len(levels), len(clips))) for name in denoisers}
    for number, (latents, embeds) in enumerate(
        tqdm(clips, "noise levels", disable=not progress_bar, unit="clip")
    ):
        generator = torch.Generator().manual_seed(number)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        truth = flow.velocity(latents, noise)
        for name, denoiser in denoisers.items():
            context = denoiser.read(embeds)
            for row, level in enumerate(levels):
                sigma = torch.tensor([level], device=latents.device)
                noisy = flow.add_noise(latents, noise, sigma)
                predicted = denoiser(noisy, sigma * flow.NUM_TRAIN_TIMESTEPS, context)
                found[name][row, number] = (predicted - truth).square().mean().item()
    return found


def plot_errors(
    errors: Mapping[str, NDArray[np.float64]], levels: Sequence[float], boundary: float
) -> Figure:
    """Error by noise level, each as a share of the first denoiser's.

    Args:
        errors: from `velocity_errors`; the first is what the others are compared with.
        levels: the same noise levels.
        boundary: noise level at which the experts part.

    Returns:
        A figure, noise on the left; the band is two standard errors over clips.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    first = next(iter(errors.values()))
    for (name, values), style in zip(errors.items(), ("-", "--", "-.", ":"), strict=False):
        ratio = values / first.mean(1, keepdims=True)
        mean = ratio.mean(1)
        spread = 2 * (values - first).std(1) / first.mean(1) / np.sqrt(values.shape[1])
        (line,) = axes.plot(levels, mean, style, marker="o", markersize=3, label=name)
        axes.fill_between(levels, mean - spread, mean + spread, color=line.get_color(), alpha=0.2)
    axes.axvline(boundary, color="grey", linewidth=1)
    axes.annotate(
        f"boundary_ratio {boundary}", (boundary, 1), (-4, -12), xycoords=("data", "axes fraction"),
        textcoords="offset points", ha="right", color="grey",
    )  # fmt: skip
    axes.invert_xaxis()  # from noise to video, as a clip is drawn
    axes.set_xlabel("noise level sigma; band: two standard errors over clips")
    axes.set_ylabel(f"velocity error / that of {next(iter(errors))}")
    axes.legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare the noise experts of a checkpoint with each other and with the trunk they came from."""
    parser = argparse.ArgumentParser(prog="python -m tinywan.noise_levels", description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="of the noise experts; the shipped one")
    parser.add_argument("--trunk", type=Path, help="checkpoint that they were forked from")
    parser.add_argument("--clips", type=int, default=32, help="held-out clips")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    options = parser.parse_args(arguments)
    try:
        pipe = TextToVideoPipeline.from_pretrained(options.checkpoint, options.device)
        clips = held_out_clips(pipe, options.clips)
        errors = dict[str, NDArray[np.float64]]()
        options.out.mkdir(parents=True, exist_ok=True)
        if options.trunk is not None:
            trunk = TextToVideoPipeline.from_pretrained(options.trunk, options.device)
            its_own = held_out_clips(trunk, options.clips)  # prompts as its text encoder tells them
            if any(not torch.equal(a, b) for (a, _), (b, _) in zip(clips, its_own, strict=True)):
                raise ConfigError(
                    f"{options.trunk} has other latents, so that its errors cannot be compared: use the trunk "
                    "that these noise experts were forked from, with the same VAE and of the same world"
                )
            errors |= velocity_errors({"trunk": trunk.transformer}, its_own)
        denoisers: dict[str, DiT] = {}
        if pipe.transformer is pipe.transformer_2:
            denoisers["one denoiser"] = pipe.transformer
        else:
            denoisers["high-noise expert"] = pipe.transformer
            denoisers["low-noise expert"] = pipe.transformer_2
        errors |= velocity_errors(denoisers, clips)
        boundary = pipe.config.boundary_ratio
        content: dict[str, Any] = {
            "levels": LEVELS,
            "boundary_ratio": boundary,
            "clips": len(clips),
            "errors": {name: values.mean(1).tolist() for name, values in errors.items()},
        }
        text = json.dumps(content, indent=1) + "\n"
        write_atomically(options.out / "noise_levels.json", text.encode())
        plot_errors(errors, LEVELS, boundary).savefig(options.out / "noise_levels.png", dpi=150)
    except (TinywanError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'sigma':>6}" + "".join(f"{name:>20}" for name in errors))
    for row, level in enumerate(LEVELS):
        print(f"{level:6.2f}" + "".join(f"{v[row].mean():20.4f}" for v in errors.values()))
    print(f"wrote {options.out / 'noise_levels.json'} and {options.out / 'noise_levels.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
