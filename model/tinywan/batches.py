"""What the denoiser is trained on: freshly rendered clips, their captions, noise and keyframes.

A batch is made of (seed, step) alone. No clip is seen twice, nothing is stored, and a resumed run
sees what an unbroken one would have seen. `Stage` makes what needs no VAE, in processes of its own if a
GPU would have to wait for it; `Clips` adds the latents.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from tinywan import flow, theatre
from tinywan.grounding import Regions, cover, part_regions, span_tokens, stack_regions
from tinywan.keyframes import latent_place, place_keyframes, random_frames
from tinywan.motion import Motion, true_motion
from tinywan.presets import ModelConfig
from tinywan.probes import FACTORS
from tinywan.text import UnigramTokenizer
from tinywan.trainer import rank_and_world
from tinywan.vae import CausalVAE

ACTING = ("subject", "prop", "companion")  # small parts of the picture that captions are about
UNTOLD = -100  # what a loss passes over
_TOGETHER = 8  # clips that the VAE encodes at a time; bounds the memory


@dataclass(frozen=True)
class Phase:
    """One part of the curriculum."""

    steps: int
    num_frames: int  # pixel frames, 1 + 4k; 1 is a picture
    batch: int  # clips per step
    micro_batch: (
        int  # clips per backward pass, takes of one scene always together; bounds the memory
    )


@dataclass(frozen=True)
class Batch:
    """Clips to learn from.

    Args:
        ids: `[b, p]` tokens of the captions.
        mask: `[b, p]`, True on tokens.
        latents: `[b, c, f, h, w]` clean.
        noise: the same shape, standard normal.
        sigma: `[b]` noise levels.
        scene: `[b]` numbers; takes of one scene have the same.
        told: `[b, factor]` which value of each of `probes.FACTORS` the caption tells, or `UNTOLD`.
        condition: `[b, 4 + c, f, h, w]` mask and latents of keyframes; None without any.
        motion: of the clips; None where it is not asked for.
        regions: where the words of the captions are; None where it is not asked for.
        deeds: `[b, deed, p]` which tokens tell of action, direction, camera and wind; None as for regions.
        focus: `[b, 1, f, h, w]` share of each latent that those who act cover; None where it is not
            asked for.
    """

    ids: Tensor
    mask: Tensor
    latents: Tensor
    noise: Tensor
    sigma: Tensor
    scene: Tensor
    told: Tensor
    condition: Tensor | None = None
    motion: Motion | None = None
    regions: Regions | None = None
    deeds: Tensor | None = None
    focus: Tensor | None = None

    def rows(self, chosen: Tensor) -> "Batch":
        """Some of the clips."""
        return Batch(
            self.ids[chosen],
            self.mask[chosen],
            self.latents[chosen],
            self.noise[chosen],
            self.sigma[chosen],
            self.scene[chosen],
            self.told[chosen],
            None if self.condition is None else self.condition[chosen],
            None if self.motion is None else self.motion.rows(chosen),
            None if self.regions is None else self.regions.rows(chosen),
            None if self.deeds is None else self.deeds[chosen],
            None if self.focus is None else self.focus[chosen],
        )

    def __len__(self) -> int:
        """How many clips."""
        return len(self.latents)


@dataclass(frozen=True)
class Staged:
    """A batch before the VAE has seen it; everything lies on the CPU.

    Args:
        frames: uint8 `[b, F, H, W, 3]`.
        given: for each clip the pixel frames that are keyframes; None without any.
        flow: `[b, F-1, H, W, 2]`, how pixels move; None where it is not asked for.
        particles: bool `[b, F, H, W]`, drops, flakes and spray; None as for flow.
        ids, mask, noise, sigma, scene, told, regions, deeds, focus: as in `Batch`.
    """

    frames: Tensor
    ids: Tensor
    mask: Tensor
    noise: Tensor
    sigma: Tensor
    scene: Tensor
    told: Tensor
    given: tuple[tuple[int, ...], ...] | None = None
    flow: Tensor | None = None
    particles: Tensor | None = None
    regions: Regions | None = None
    deeds: Tensor | None = None
    focus: Tensor | None = None

    def pin_memory(self) -> "Staged":
        """The same in memory from which a GPU copies while it computes."""
        return self._each(Tensor.pin_memory)

    def to(self, device: torch.device) -> "Staged":
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Staged":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = change(value)
            elif isinstance(value, Regions):
                values[name] = Regions(*map(change, value))
        return Staged(**values)


class Stage:
    """Renders scenes and tells what they show.

    Args:
        config: of the model; tells the sizes and whether keyframes are given.
        tokenizer: for the captions.
        seed: of the run.
        drop_prompt: share of captions replaced by "", for guidance.
        motion: whether batches of clips tell how they move.
        regions: whether batches tell where the words of their captions are.
        focus: whether batches tell where those who act are, and what they carry.
        shift: of the noise levels; None takes the one that the model samples with.
        takes: how many clips of a batch are one scene that is staged again under the same noise. What
            they share cancels out of the difference of their gradients, and what is left tells of the words
            that differ: near pure noise left and right are a thousandth of the loss, and are lost in it
            otherwise. Common random numbers, Glasserman & Yao 1992, doi 10.1287/mnsc.38.6.884.
        practise: one of `theatre.STAGING` that two of three scenes are about: drawn until they can show it,
            with takes that differ in it alone. None practises nothing in particular.
        between: the lowest and the highest noise level.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: UnigramTokenizer,
        seed: int = 0,
        drop_prompt: float = 0.1,
        motion: bool = False,
        regions: bool = False,
        focus: bool = False,
        shift: float | None = None,
        takes: int = 1,
        practise: str | None = None,
        between: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.seed, self.drop_prompt = seed, drop_prompt
        self.motion, self.regions, self.focus = motion, regions, focus
        self.shift = config.shift if shift is None else shift
        self.takes, self.practise, self.between = takes, practise, between
        self.rank, self.world = rank_and_world()  # processes that render ahead could not tell

    def staged(self, step: int, phase: Phase) -> Staged:
        """This process's share of the batch of a step, see `Clips.batch`."""
        config = self.config
        frames, captions, given, regions, focus, deeds = [], [], [], [], [], []
        flows, particles = list[Tensor](), list[Tensor]()
        numbers = torch.arange(phase.batch)
        mine = numbers[numbers // self.takes % self.world == self.rank]
        scene_of = mine // self.takes
        for number in mine.tolist():
            rng = np.random.default_rng([self.seed, 2, step, number, 1])
            scene = self._scene(step, number)
            language = ("en", "zh")[int(rng.integers(2))]
            told = theatre.caption(scene, language, rng)  # type: ignore[arg-type]
            captions.append("" if rng.random() < self.drop_prompt else told.text)
            clip = theatre.render(scene, phase.num_frames, config.height, config.width)
            frames.append(torch.from_numpy(clip.frames))
            given.append(
                random_frames(phase.num_frames, rng) if config.dit.condition_channels else ()
            )
            if self.regions:
                # each deed apart: who acts should read both what is done and to which side
                does = [("subject", (span,)) for span in told.deeds]
                told_of = [*told.spans.items(), *told.colors.items(), *does]
                moves = [*told.deeds, *told.camera, *told.spans.get("wind", ())]
                if not captions[-1]:
                    told_of, moves = [], []
                offsets = self.tokenizer.encode(captions[-1]).offsets[:-1]
                regions.append(part_regions(told_of, clip.masks, offsets, config.text.text_len))
                deeds.append(span_tokens(moves, offsets, config.text.text_len))
            if self.focus:
                acting = [clip.masks[name] for name in ACTING if name in clip.masks]
                focus.append(cover(torch.from_numpy(np.logical_or.reduce(acting))[None]))
            if self.motion and phase.num_frames > 1:
                flows.append(torch.from_numpy(clip.flow))
                particles.append(torch.from_numpy(clip.particles))
        stride_f, stride_h, stride_w = CausalVAE.stride
        latent = (
            (phase.num_frames - 1) // stride_f + 1,
            config.height // stride_h,
            config.width // stride_w,
        )
        scenes = math.ceil(phase.batch / self.takes)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        shape = (scenes, config.vae.latent_channels, *latent)
        noise = torch.randn(shape, generator=generator)[scene_of]
        levels = flow.sample_sigma(scenes, self.shift, generator, self.between)
        # in any order, so that what a scene is about tells nothing of its noise level
        sigma = levels[torch.randperm(scenes, generator=generator)][scene_of]
        ids, mask = self.tokenizer(captions)
        if config.dit.mask_padding:  # nobody attends to it, so nobody needs to compute it
            longest = int(mask.sum(1).max())
            ids, mask = ids[:, :longest], mask[:, :longest]
        return Staged(
            frames=torch.stack(frames),
            ids=ids,
            mask=mask,
            noise=noise,
            sigma=sigma,
            scene=scene_of,
            told=torch.tensor([told_factors(text) for text in captions]),
            given=tuple(given) if config.dit.condition_channels else None,
            flow=torch.stack(flows) if flows else None,
            particles=torch.stack(particles) if particles else None,
            regions=stack_regions(regions, ids.shape[1]) if regions else None,
            deeds=pad_sequence(deeds, True)[..., : ids.shape[1]] if deeds else None,
            focus=torch.stack(focus).view(-1, 1, *latent) if focus else None,
        )

    def _scene(self, step: int, number: int) -> theatre.Scene:
        """What clip `number` of a step shows: a scene, or one of its other takes."""
        first, take = number - number % self.takes, number % self.takes
        rng = np.random.default_rng([self.seed, 2, step, first])
        only = self.practise if (step + first // self.takes) % 3 else None
        scene = theatre.sample_scene(rng, world=self.config.world)
        while only == "wind" and scene.weather == "clear":  # nothing that it could blow
            scene = theatre.sample_scene(rng, world=self.config.world)
        for _ in range(take):
            again = theatre.restage(scene, rng, self.config.world, only)
        return again if take else scene


class _Steps(Dataset[Staged]):
    """The batches of a run by step, for a `DataLoader`."""

    def __init__(self, stage: Stage, phase_of: Callable[[int], Phase]) -> None:
        self.stage, self.phase_of = stage, phase_of

    def __getitem__(self, step: int) -> Staged:
        return self.stage.staged(step, self.phase_of(step))


class Clips:
    """Makes batches.

    Args:
        config: of the model.
        tokenizer: for the captions.
        vae: frozen, for the latents.
        bfloat16: encode in half precision.
        staging: what is shown and told, see `Stage`.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: UnigramTokenizer,
        vae: CausalVAE,
        bfloat16: bool = False,
        **staging: Any,
    ) -> None:
        self.stage, self.vae, self.bfloat16 = Stage(config, tokenizer, **staging), vae, bfloat16

    def batch(self, step: int, phase: Phase) -> Batch:
        """This process's share of the batch of a step.

        Args:
            step: batches of different steps differ, those of one step are the same.
            phase: how many clips of how many frames.

        Returns:
            The scenes number rank, rank + world, … of the batch, all takes of each.
        """
        return self.encoded(self.stage.staged(step, phase))

    def batches(
        self, first: int, steps: int, phase_of: Callable[[int], Phase], workers: int = 0
    ) -> Iterator[Batch]:
        """The batches of a run, one after the other; the same whatever the number of workers.

        Args:
            first: step to begin with.
            steps: of the whole run.
            phase_of: part of the curriculum of each step.
            workers: processes that render ahead; 0 renders when a batch is asked for.
        """
        staged = DataLoader(
            _Steps(self.stage, phase_of),
            batch_size=None,
            sampler=range(first, steps),
            num_workers=workers,
            pin_memory=self.vae.mean.is_cuda and workers > 0,
        )
        return map(self.encoded, staged)

    def encoded(self, staged: Staged) -> Batch:
        """A batch with its latents, where the VAE is."""
        device = self.vae.mean.device
        there = staged.to(device)
        video = there.frames.permute(0, 4, 1, 2, 3) / 127.5 - 1
        latents = self._encode(video)
        condition = None
        if staged.given is not None:
            pictures = [
                {latent_place(frame): video[number, :, frame] for frame in frames}
                for number, frames in enumerate(staged.given)
            ]
            condition = place_keyframes(self.vae, pictures, latents.shape[2], *video.shape[3:])
        motion = None
        if there.flow is not None and there.particles is not None:
            needed = (video, there.flow, there.particles)
            parts = zip(*(each.split(_TOGETHER) for each in needed), strict=True)
            moved = [true_motion(shown, way, falling) for shown, way, falling in parts]
            motion = Motion(*map(torch.cat, zip(*moved, strict=True)))
        return Batch(
            ids=there.ids,
            mask=there.mask,
            latents=latents,
            noise=there.noise,
            sigma=there.sigma,
            scene=there.scene,
            told=there.told,
            condition=condition,
            regions=there.regions,
            deeds=there.deeds,
            motion=motion,
            focus=there.focus,
        )

    @torch.no_grad()
    def _encode(self, videos: Tensor) -> Tensor:
        together = _TOGETHER if videos.device.type == "cpu" else 8 * _TOGETHER
        with torch.autocast(videos.device.type, torch.bfloat16, enabled=self.bfloat16):
            parts = [self.vae.encode(part) for part in videos.split(together)]
        return torch.cat(parts).float()


def told_factors(caption: str) -> list[int]:
    """Which value of each of `probes.FACTORS` a caption tells; `UNTOLD` where it tells none."""
    told = theatre.parse(caption)
    return [
        values.index(told[name]) if told.get(name) in values else UNTOLD
        for name, values in FACTORS.items()
    ]
