"""The one thing that every adapter tells: what one layer did at one moment, for one branch of one video."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from wanviz.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["cross_attn", "spatial_attn", "temporal_attn", "self_attn", "expert_ids"]


@dataclass(frozen=True)
class Moment:
    """One call of the denoiser."""

    step: int
    sigma: float
    timestep: float
    noise_expert: str  # "high" or "low"; "" for a model that has but one denoiser
    branches: tuple[str, ...]  # which share the batch, in order


@dataclass(frozen=True)
class Shard:
    """Which part of the video tokens a process works on, where several share one video."""

    start: int  # the first of its tokens; they lie together
    group: Any  # of torch.distributed: those who share


@dataclass(frozen=True)
class Event:
    """What one layer did at one moment, for one branch and one video."""

    kind: Kind
    layer: int
    moment: Moment
    branch: str
    grid: Grid
    video: int = 0  # of those that are made at once
    q: Tensor | None = None  # n l d, after normalisation
    k: Tensor | None = None  # n p d in cross-attention, n l d in self-attention
    rotary: tuple[Tensor, Tensor] | None = (
        None  # cosines and sines [l, d/2] that q and k still lack
    )
    window: int | None = None  # temporal radius in latent frames; None: every frame
    expert_ids: Tensor | None = None  # l topk int64
    shard: Shard | None = None  # where q, and k of self-attention, are a part of all tokens


@dataclass(frozen=True)
class Clip:
    """An existing video that is to be looked at, and how."""

    video: Tensor  # 1 3 F H W in [-1, 1], float32
    prompt: str
    negative_prompt: str
    sigmas: tuple[float, ...]  # noise levels, falling
    seed: int  # of the noise, the same at every level
    branches: tuple[str, ...]


@dataclass(frozen=True)
class Request:
    """What was asked of the pipeline, as far as it is known."""

    prompts: tuple[
        dict[str, str | None], ...
    ]  # per video: branch -> prompt; None: embeddings were given
    branches: tuple[str, ...]  # that this generation runs
    height: int
    width: int
    num_frames: int
    num_inference_steps: int
    guidance: dict[str, float | None]  # guidance_scale, guidance_scale_2
    seeds: tuple[int | None, ...]  # per video
    lengths: dict[str, tuple[int, ...]] | None = (
        None  # branch -> per video, keys that are no padding
    )
