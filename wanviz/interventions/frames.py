"""How much latent frames look at each other, scaled inside the softmax."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wanviz.errors import OptionError
from wanviz.hooks import Arguments, Keywords
from wanviz.interventions.scope import reach
from wanviz.layout import format_bytes, parse_bytes


@contextmanager
def reweight_frames(
    pipe: Any,
    factors: Any,
    *,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    branch: str = "cond",
    budget: int | str = "1GiB",
) -> Iterator[None]:
    """Inside the block, frames look at each other more, less, or not at all.

    Args:
        pipe: the pipeline.
        factors: `[query_frame, key_frame]` over latent frames, 0 or more; 0 blocks, 1 leaves as it is. A frame must
            be left something to look at.
        layers: in which layers; None is all.
        steps: in which denoising steps; None is all.
        branch: "cond" or "uncond".
        budget: the most bytes that the factors may take, where frames look at each other token by token, as in Wan.

    Raises:
        OptionError: factors that cannot be, or are too many for the budget.
    """
    scale = np.asarray(getattr(factors, "values", factors), dtype=np.float32)
    square = scale.ndim == 2 and scale.shape[0] == scale.shape[1]
    if not square or not np.isfinite(scale).all() or scale.min() < 0 or not scale.any(axis=1).all():
        raise OptionError(
            f"factors is shaped {scale.shape}: give a square of finite numbers from 0, a row for each latent frame "
            "that looks, with at least one number above 0"
        )
    logs = torch.from_numpy(scale).log()  # f f
    most = parse_bytes(budget)
    with reach(pipe, layers, steps, branch) as reached:
        for block in reached.scope.blocks(reached.stage):
            part = block.attentions.get("temporal_attn") or block.attentions["self_attn"]

            def change(
                args: Arguments, kwargs: Keywords, part: Any = part
            ) -> tuple[Arguments, Keywords] | None:
                x = args[0]  # b l c
                rows = reached.scope.rows(reached.stage, len(x))
                if rows is None:
                    return None
                f, per_frame = len(logs), x.shape[1] // len(logs)
                if f * per_frame != x.shape[1] or (part.apart and kwargs["grid"][0] != f):
                    raise OptionError(f"factors has {f} latent frames, and this video has others")
                bias = _bias(logs.to(x.device), per_frame, part.apart, len(x), rows, most)
                return part.with_bias(args, kwargs, bias.to(x.dtype))

            reached.hooks.change_call(part.module, change)
        yield


def _bias(logs: Tensor, per_frame: int, apart: bool, batch: int, rows: slice, most: int) -> Tensor:
    """For frames apart `[(b s), 1, f, f]`, for all tokens together `[b, 1, l, l]`."""
    if not apart:
        tokens = len(logs) * per_frame
        if (needed := 4 * batch * tokens * tokens) > most:
            raise OptionError(
                f"{tokens} tokens that all look at each other need {format_bytes(needed)} of factors and the budget "
                f"is {format_bytes(most)}: raise it, or use a smaller video"
            )
        logs = logs.repeat_interleave(per_frame, 0).repeat_interleave(per_frame, 1)
    bias = logs.new_zeros(batch, 1, *logs.shape)
    bias[rows, 0] = logs
    return bias.repeat_interleave(per_frame, 0) if apart else bias
