"""What the denoiser is trained on: freshly rendered clips, their captions, noise and keyframes.

A batch is made of (seed, step) alone. No clip is seen twice, nothing is stored, and a resumed run
sees what an unbroken one would have seen.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

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
    micro_batch: int  # clips per backward pass; bounds the memory


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
        deeds: `[b, deed, p]` which tokens tell of action, direction and camera; None as for regions.
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


class Clips:
    """Makes batches.

    Args:
        config: of the model; tells the sizes, the shift and whether keyframes are given.
        tokenizer: for the captions.
        vae: frozen, for the latents.
        seed: of the run.
        drop_prompt: share of captions replaced by "", for guidance.
        motion: whether batches of clips tell how they move.
        regions: whether batches tell where the words of their captions are.
        focus: whether batches tell where those who act are, and what they carry.
        shift: of the noise levels; None takes the one that the model samples with.
        bfloat16: encode in half precision.
        takes: how many clips of a batch are one scene that is staged again under the same noise. What
            they share cancels out of the difference of their gradients, and what is left tells of the words
            that differ: near pure noise left and right are a thousandth of the loss, and are lost in it
            otherwise. Common random numbers, Glasserman & Yao 1992, doi 10.1287/mnsc.38.6.884.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: UnigramTokenizer,
        vae: CausalVAE,
        seed: int = 0,
        drop_prompt: float = 0.1,
        motion: bool = False,
        regions: bool = False,
        focus: bool = False,
        shift: float | None = None,
        bfloat16: bool = False,
        takes: int = 1,
    ) -> None:
        self.config, self.tokenizer, self.vae = config, tokenizer, vae
        self.seed, self.drop_prompt = seed, drop_prompt
        self.motion, self.regions, self.focus = motion, regions, focus
        self.shift = config.shift if shift is None else shift
        self.bfloat16, self.takes = bfloat16, takes

    def batch(self, step: int, phase: Phase) -> Batch:
        """This process's share of the batch of a step.

        Args:
            step: batches of different steps differ, those of one step are the same.
            phase: how many clips of how many frames.

        Returns:
            The scenes number rank, rank + world, … of the batch, all takes of each.
        """
        config, device = self.config, self.vae.mean.device
        size = (config.height, config.width)
        rank, world = rank_and_world()
        videos, captions, keyframes, motions, regions, focus, deeds = [], [], [], [], [], [], []
        numbers = torch.arange(phase.batch)
        mine = numbers[numbers // self.takes % world == rank]
        scene_of = mine // self.takes
        for number in mine.tolist():
            rng = np.random.default_rng([self.seed, 2, step, number, 1])
            scene = self._scene(step, number)
            language = ("en", "zh")[int(rng.integers(2))]
            told = theatre.caption(scene, language, rng)  # type: ignore[arg-type]
            captions.append("" if rng.random() < self.drop_prompt else told.text)
            clip = theatre.render(scene, phase.num_frames, *size)
            video = torch.from_numpy(clip.frames).to(device).permute(3, 0, 1, 2)[None] / 127.5 - 1
            videos.append(video)
            if config.dit.condition_channels:
                given = random_frames(phase.num_frames, rng)
                keyframes.append({latent_place(frame): video[0, :, frame] for frame in given})
            if self.regions:
                # each deed apart: who acts should read both what is done and to which side
                does = [("subject", (span,)) for span in told.deeds]
                told_of = [*told.spans.items(), *told.colors.items(), *does]
                moves = [*told.deeds, *told.camera]
                if not captions[-1]:
                    told_of, moves = [], []
                offsets = self.tokenizer.encode(captions[-1]).offsets[:-1]
                regions.append(part_regions(told_of, clip.masks, offsets, config.text.text_len))
                deeds.append(span_tokens(moves, offsets, config.text.text_len))
            if self.focus:
                acting = [clip.masks[name] for name in ACTING if name in clip.masks]
                focus.append(cover(torch.from_numpy(np.logical_or.reduce(acting))[None]))
            if self.motion and phase.num_frames > 1:
                motions.append(true_motion(video, torch.from_numpy(clip.flow).to(device)[None]))
        latents = self._encode(torch.cat(videos))
        scenes = math.ceil(phase.batch / self.takes)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        noise = torch.randn((scenes, *latents.shape[1:]), generator=generator)[scene_of].to(device)
        sigma = flow.sample_sigma(scenes, self.shift, generator)[scene_of].to(device)
        condition = None
        if keyframes:
            condition = place_keyframes(self.vae, keyframes, latents.shape[2], *size)
        ids, mask = self.tokenizer(captions)
        if config.dit.mask_padding:  # nobody attends to it, so nobody needs to compute it
            longest = int(mask.sum(1).max())
            ids, mask = ids[:, :longest], mask[:, :longest]
        return Batch(
            ids=ids.to(device),
            mask=mask.to(device),
            latents=latents,
            noise=noise,
            sigma=sigma,
            scene=scene_of.to(device),
            told=torch.tensor([told_factors(text) for text in captions], device=device),
            condition=condition,
            regions=_on(device, stack_regions(regions, ids.shape[1])) if regions else None,
            deeds=pad_sequence(deeds, True)[..., : ids.shape[1]].to(device) if deeds else None,
            motion=Motion(*map(torch.cat, zip(*motions, strict=True))) if motions else None,
            focus=torch.stack(focus).view(-1, 1, *latents.shape[2:]).to(device) if focus else None,
        )

    def _scene(self, step: int, number: int) -> theatre.Scene:
        """What clip `number` of a step shows: a scene, or one of its other takes."""
        first, take = number - number % self.takes, number % self.takes
        rng = np.random.default_rng([self.seed, 2, step, first])
        scene = theatre.sample_scene(rng, world=self.config.world)
        for _ in range(take):
            again = theatre.restage(scene, rng, self.config.world)
        return again if take else scene

    @torch.no_grad()
    def _encode(self, videos: Tensor) -> Tensor:
        with torch.autocast(videos.device.type, torch.bfloat16, enabled=self.bfloat16):
            parts = [self.vae.encode(part) for part in videos.split(_TOGETHER)]
        return torch.cat(parts).float()


def told_factors(caption: str) -> list[int]:
    """Which value of each of `probes.FACTORS` a caption tells; `UNTOLD` where it tells none."""
    told = theatre.parse(caption)
    return [
        values.index(told[name]) if told.get(name) in values else UNTOLD
        for name, values in FACTORS.items()
    ]


def _on(device: torch.device, regions: Regions) -> Regions:
    return Regions(regions.tokens.to(device), regions.covered.to(device))
