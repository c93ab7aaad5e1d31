"""Probes: small classifiers that read every factor of the theatre off a clip, blind to the prompt.

Where judge.py measures colours and places directly on the pixels, a probe was trained: one
convolutional network with a linear head per factor, on rendered clips of the training split, half of
them blurred, noisy and off in brightness, as a model's clips are. `python -m tinywan.probes` trains
it anew; its own accuracy on held-out rendered clips stands beside every score that it gives.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from tinywan import theatre
from tinywan.checkpoint import write_atomically
from tinywan.errors import CheckpointError, ConfigError, TinywanError
from tinywan.judge import degrade
from tinywan.theatre import Scene
from tinywan.vae import CausalVAE

FORMAT = "tinywan-probes-1"
SHIPPED_PROBES = Path(__file__).parent / "weights" / "probes.safetensors"
FACTORS: dict[str, tuple[str, ...]] = {
    "subject": theatre.SUBJECTS,
    "garment": tuple(sorted({g for kinds in theatre.GARMENTS.values() for g in kinds})),
    "garment_color": theatre.COLORS,
    "prop": theatre.PROPS,
    "prop_color": (*theatre.COLORS, "none"),
    "place": theatre.PLACES,
    "weather": theatre.WEATHERS,
    "action": theatre.ACTIONS,
    "direction": theatre.DIRECTIONS,
    "camera": theatre.CAMERAS,
    "look": theatre.LOOKS,
    "companion": theatre.COMPANIONS,
    "companion_color": (*theatre.COMPANION_COLORS, "none"),
    "wind": theatre.WINDS,
}
_UNSEEN = -100  # label that the loss passes over
SIZE = 96  # pixels that clips are brought to
FRAMES = 17  # that the probe looks at: all of a clip, since rain moves far from one to the next


class Probe(nn.Module):
    """Reads all factors at once.

    Motion is looked for first, in three frames and five pixels at a time, and then where it is, with all times
    in the channels: of frames put side by side at once, a first layer cannot tell how rain moves.

    Args:
        factors: by name their values.
        width: channels for each time of the first layer.
    """

    def __init__(self, factors: Mapping[str, Sequence[str]] = FACTORS, width: int = 24) -> None:
        super().__init__()
        self.factors = {name: tuple(values) for name, values in factors.items()}
        self.motion = nn.Sequential(
            nn.Conv3d(3, width, (3, 5, 5), stride=2, padding=(0, 2, 2)),
            nn.GroupNorm(4, width),
            nn.GELU(),
        )
        times = (FRAMES - 3) // 2 + 1
        widths = [times * width, 64, 96, 128, 128]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=2, padding=1),
                nn.GroupNorm(8, after),
                nn.GELU(),
            ]
        cells = (SIZE // 2 ** len(widths)) ** 2
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * cells, 256))
        heads = {name: nn.Linear(256, len(values)) for name, values in self.factors.items()}
        self.heads = nn.ModuleDict(heads)

    def forward(self, shown: Tensor) -> dict[str, Tensor]:
        """Clips `[b, 3, 17, 96, 96]`, from `prepare`, to logits by factor."""
        moving = rearrange(self.motion(shown), "b c F h w -> b (F c) h w")
        seen = F.gelu(self.body(moving))
        return {name: head(seen) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, frames: NDArray[Any]) -> dict[str, str]:
        """What a clip shows.

        Args:
            frames: `[F, H, W, 3]`, uint8, or float in [0, 1]; 17 frames or more.

        Returns:
            By factor one of its values.
        """
        logits = self(prepare(frames)[None])
        return {name: self.factors[name][int(found.argmax())] for name, found in logits.items()}


def prepare(frames: NDArray[Any]) -> Tensor:
    """What the probe looks at of a clip.

    Args:
        frames: `[F, H, W, 3]`, uint8, or float in [0, 1]; 17 or more, of which the first 17 are taken.

    Returns:
        float32 `[3, 17, 96, 96]` in [-1, 1].

    Raises:
        ConfigError: where it is no clip of 17 frames.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or len(frames) < FRAMES:
        raise ConfigError(
            f"the probes read clips [F, H, W, 3] of {FRAMES} frames or more; found {tuple(frames.shape)}"
        )
    chosen = torch.from_numpy(np.ascontiguousarray(frames[:FRAMES])).float()
    chosen = chosen / 127.5 - 1 if frames.dtype == np.uint8 else chosen * 2 - 1
    pictures = rearrange(chosen, "F H W c -> F c H W")
    if pictures.shape[-2:] != (SIZE, SIZE):
        pictures = F.interpolate(pictures, (SIZE, SIZE), mode="bilinear", antialias=True)
    return pictures.transpose(0, 1).contiguous()


def examples(rng: np.random.Generator, split: str = "train") -> Iterator[tuple[Tensor, Scene]]:
    """Rendered clips of the whole theatre without end, every second one degraded.

    Args:
        rng: source of scenes and of what is done to them.
        split: of the scenes.

    Yields:
        What `prepare` makes of a clip, and its scene.
    """
    while True:
        for worse in (False, True):
            scene = theatre.sample_scene(rng, split, "whole")  # type: ignore[arg-type]
            frames = theatre.render(scene).frames
            yield prepare(worsened(frames, rng) if worse else frames), scene


def worsened(frames: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The frames, blurred, noisy, and off in contrast and brightness."""
    frames = degrade(frames, rng, blur=rng.uniform(0.3, 1.3), noise=rng.uniform(1, 8))
    return _tinted(frames, rng)


def _tinted(frames: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Contrast and brightness a little off."""
    values = (frames.astype(np.float32) - 128) * rng.uniform(0.85, 1.1) + 128
    values += rng.uniform(-10, 10, 3)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


class _Rendered(IterableDataset[tuple[Tensor, Tensor]]):
    """Examples with the numbers of what they show, one for each factor of a probe."""

    def __init__(self, probe: Probe, seed: int) -> None:
        self.probe, self.seed = probe, seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for shown, scene in examples(np.random.default_rng([self.seed, 4])):
            yield shown, torch.tensor([_label(self.probe, n, scene) for n in self.probe.factors])


def train_probe(
    steps: int,
    batch: int = 32,
    seed: int = 0,
    progress_bar: bool = True,
    apart: bool = False,
    start: Probe | None = None,
) -> Probe:
    """Train on fresh clips of the training split.

    Args:
        steps: batches to see.
        batch: clips in each.
        seed: of everything.
        progress_bar: show one.
        apart: render in a process of its own, meanwhile; the clips are the same.
        start: a probe of the same factors whose weights to begin with, where the theatre has changed a little.

    Returns:
        The probe, in evaluation mode.
    """
    torch.manual_seed(seed)
    probe = Probe()
    if start is not None:
        probe.load_state_dict(start.state_dict())
    optimizer = torch.optim.AdamW(probe.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    clips = DataLoader(
        _Rendered(probe, seed), batch, num_workers=int(apart), prefetch_factor=4 if apart else None
    )
    bar = tqdm(range(steps), "probes", disable=not progress_bar, unit="batch")
    for _, (shown, labels) in zip(bar, clips, strict=False):
        found = probe(shown).values()
        loss = torch.stack(
            [
                F.cross_entropy(logits, labels[:, number], ignore_index=_UNSEEN, reduction="sum")
                for number, logits in enumerate(found)
            ]
        ).sum()
        loss = loss / batch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    return probe.eval()


def _label(probe: Probe, factor: str, scene: Scene) -> int:
    """Number of the scene's value; `_UNSEEN` for colours that a monochrome clip does not show."""
    if scene.look == "monochrome" and factor in ("garment_color", "prop_color"):
        return _UNSEEN
    return probe.factors[factor].index(getattr(scene, factor))


def accuracy(
    probe: Probe, clips: int, seed: int = 1, vae: CausalVAE | None = None
) -> dict[str, dict[str, float]]:
    """How often the probe is right on rendered clips of the held-out split.

    Args:
        probe: trained.
        clips: how many of each kind.
        seed: of the scenes.
        vae: to see what is left when a clip has been through it, as every generated clip has.

    Returns:
        "rendered", "degraded" (blurred, noisy, tinted) and, with a VAE, "decoded" -> factor -> share right; NaN
        where no clip showed it.
    """
    kinds = ("rendered", "degraded") if vae is None else ("rendered", "degraded", "decoded")
    right: dict[str, dict[str, list[bool]]] = {
        kind: {name: [] for name in probe.factors} for kind in kinds
    }
    rng = np.random.default_rng([seed, 5])
    for _ in range(clips):
        scene = theatre.sample_scene(rng, "held_out", "whole")
        frames = theatre.render(scene).frames
        shown = {"rendered": prepare(frames), "degraded": prepare(worsened(frames, rng))}
        if vae is not None:
            shown["decoded"] = prepare(_through(vae, frames))
        for kind, pictures in shown.items():
            with torch.no_grad():
                logits = probe(pictures[None])
            for name, found in logits.items():
                label = _label(probe, name, scene)
                if label != _UNSEEN:
                    right[kind][name].append(bool(found.argmax() == label))
    return {
        kind: {name: sum(v) / len(v) if v else math.nan for name, v in by_factor.items()}
        for kind, by_factor in right.items()
    }


@torch.no_grad()
def _through(vae: CausalVAE, frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A clip after encoder and decoder."""
    video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].to(vae.mean.device) / 127.5 - 1
    seen = vae.decode(vae.encode(video))[0].permute(1, 2, 3, 0)
    found: NDArray[np.uint8] = ((seen.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
    return found


def save_probe(probe: Probe, path: Path) -> None:
    """Write a probe to one file, in half precision.

    Args:
        probe: trained.
        path: a safetensors file.
    """
    tensors = {name: value.half().contiguous() for name, value in probe.state_dict().items()}
    metadata = {"format": FORMAT, "factors": json.dumps(probe.factors)}
    write_atomically(path, save(tensors, metadata))


def load_probe(path: Path = SHIPPED_PROBES) -> Probe:
    """Read a probe.

    Args:
        path: that `save_probe` wrote; the shipped one by default.

    Returns:
        The probe, in evaluation mode.

    Raises:
        CheckpointError: where the file is missing, damaged or made for another theatre.
    """
    probe = Probe()
    try:
        with safe_open(path, framework="pt") as file:
            _compare(file.metadata() or {}, probe)
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}
        probe.load_state_dict(tensors)
    except Exception as error:
        raise CheckpointError(
            f"cannot read the probes {path} ({error!s:.200}): train them with "
            "`python -m tinywan.probes`"
        ) from error
    return probe.eval()


def _compare(metadata: Mapping[str, str], probe: Probe) -> None:
    """Refuse a file in which numbers stand for other values than in the probe."""
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"it has format {metadata.get('format')!r}; this tinywan reads {FORMAT!r}"
        )
    told = json.loads(metadata["factors"])
    names = [*probe.factors, *(told.keys() - probe.factors.keys())]
    other = [name for name in names if told.get(name) != list(probe.factors.get(name, ()))]
    if other:
        raise CheckpointError(f"it tells other values of {', '.join(other)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the probes and tell how good they are."""
    parser = argparse.ArgumentParser(prog="python -m tinywan.probes", description=main.__doc__)
    parser.add_argument("--steps", type=int, default=1600, help="batches of 32 clips")
    parser.add_argument("--clips", type=int, default=400, help="rendered clips to be judged on")
    parser.add_argument("--start-from", type=Path, help="probes whose weights to begin with")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the clips, and of weights that begin anew"
    )
    parser.add_argument("--out", type=Path, default=SHIPPED_PROBES, help="file to write")
    options = parser.parse_args(arguments)
    if options.steps < 1 or options.clips < 1 or options.seed < 0:
        print("error: use 1 step and 1 clip, or more, and a seed of 0 or more", file=sys.stderr)
        return 2
    try:
        start = None if options.start_from is None else load_probe(options.start_from)
        if options.out.is_dir():
            raise ConfigError(f"{options.out} is a folder: name a file")
        options.out.parent.mkdir(parents=True, exist_ok=True)
    except (TinywanError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    probe = train_probe(options.steps, seed=options.seed, apart=True, start=start)
    found = accuracy(probe, options.clips)
    print(f"{'':14}{'rendered':>10}{'degraded':>10}")
    for name in probe.factors:
        print(f"{name:14}{found['rendered'][name]:10.1%}{found['degraded'][name]:10.1%}")
    save_probe(probe, options.out)
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
