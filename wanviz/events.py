"""The one thing that every adapter tells: what one layer did at one moment, for one branch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from wanviz.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["cross_attn", "temporal_attn", "self_attn", "expert_ids"]


@dataclass(frozen=True)
class Moment:
    """One call of the denoiser."""

    step: int
    sigma: float
    timestep: float
    noise_expert: str  # "high" or "low"
    branches: tuple[str, ...]  # which share the batch, in order


@dataclass(frozen=True)
class Event:
    """What one layer did at one moment, for one branch and one video."""

    kind: Kind
    layer: int
    moment: Moment
    branch: str
    grid: Grid
    q: Tensor | None = None  # n l d, after normalisation and rotary position
    k: Tensor | None = None  # n p d in cross-attention, n l d in self-attention
    window: int | None = None  # temporal radius in latent frames; None: every frame
    expert_ids: Tensor | None = None  # l topk int64


@dataclass(frozen=True)
class Request:
    """What was asked of the pipeline, as far as it is known."""

    prompts: dict[str, str]  # branch -> its prompt
    num_videos: int
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance: dict[str, float | None]  # guidance_scale, guidance_scale_2
    seed: int | None
