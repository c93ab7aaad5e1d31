"""What interventions and attribution need of a pipeline: its parts by their roles, and a denoiser that can be asked.

Capture looks; these change, or ask the same question many times. Each adapter answers both questions with the
classes of this file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from wanviz.events import Kind
from wanviz.grid import Grid
from wanviz.hooks import Arguments, Hookable, Keywords
from wanviz.words import EncodedPrompt

# What the denoiser is asked about while no pipeline draws, or while one waits: prompt by branch.
ASKED: ContextVar[Mapping[str, str] | None] = ContextVar("wanviz_asked", default=None)


@contextmanager
def asking(prompts: Mapping[str, str]) -> Iterator[None]:
    """Inside, the denoiser reads these prompts, whatever the pipeline draws."""
    token = ASKED.set(prompts)
    try:
        yield
    finally:
        ASKED.reset(token)


@dataclass(frozen=True)
class AttentionPart:
    """One attention of one block; the modules are those whose outputs are what their names say."""

    kind: Kind
    module: Hookable
    heads: int
    q: Hookable
    k: Hookable
    v: Hookable
    mix: Any  # the linear layer behind the heads: its input is `[b, l, n·d]`
    apart: bool  # whether frames are computed one by one, so that logits are frames × frames
    window: int | None  # frames or places that are seen to each side; None is all
    split: Callable[[Tensor], Tensor]  # what q, k and v give -> `[b, n, s, d]`
    text_keys: Callable[[Arguments, Keywords], int]  # of a call of cross-attention: keys of text
    with_bias: Callable[[Arguments, Keywords, Tensor], tuple[Arguments, Keywords]]


@dataclass(frozen=True)
class BlockPart:
    """One block of one denoiser."""

    noise_expert: str  # "high" or "low"; "" for a model that has but one denoiser
    layer: int
    attentions: dict[str, AttentionPart]  # by kind: cross_attn, and self_attn or temporal_attn
    stream: Hookable  # its output is the residual stream `[b, l, c]` behind the block
    choice: (
        Hookable | None
    )  # its output is `[b, l, topk]`, the token experts that work on each token
    router: Hookable | None  # its output is `[b, l, expert]`, the wish for each token expert
    experts: tuple[Hookable, ...]  # their outputs are their answers


class Stage(Protocol):
    """A pipeline's parts, and what its denoiser is doing now."""

    blocks: tuple[BlockPart, ...]

    def rows(self, branch: str, batch: int) -> slice | None:
        """Which rows of the running forward's batch belong to a branch; None where it has none of it."""

    def grid(self) -> tuple[int, int, int]:
        """Frames, rows and columns of the running forward's tokens."""

    def prompts(self, branch: str) -> tuple[str | None, ...]:
        """What the running forward reads in a branch; None for what came as embeddings."""

    def step(self) -> int | None:
        """The denoising step of the running forward, from 0; None where no pipeline runs."""


class Denoiser(Protocol):
    """The denoiser at chosen noise levels of one video, to be asked again and again."""

    grid: Grid
    encoded: EncodedPrompt  # the prompt that the video is looked at with
    keys: (
        int | None
    )  # how many keys of the prompt cross-attention sees, </s> included; None: all, with padding
    sigmas: tuple[float, ...]
    latents: Tensor  # 1 c f h w, clean and normalised, float32

    def embeds(self, prompts: Sequence[str]) -> Tensor:
        """What the denoiser reads of some prompts: `[b, p, c]`, without gradients."""

    def noisy(self, level: int) -> Tensor:
        """The video at one of the noise levels, `[1, c, f, h, w]`."""

    def velocity(
        self,
        level: int,
        embeds: Tensor,
        latents: Tensor | None = None,
        text: str | None = None,
    ) -> Tensor:
        """The predicted velocity `[b, c, f, h, w]` in float32; gradients flow where they are enabled.

        Args:
            level: index into `sigmas`.
            embeds: `[b, p, c]` from `embeds`, or something near it.
            latents: noisy `[1 or b, c, f, h, w]`; None takes `noisy(level)`.
            text: that was embedded; None is the prompt.
        """
