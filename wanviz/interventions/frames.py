"""How much latent frames look at each other, scaled inside the softmax."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from wanviz.errors import OptionError
from wanviz.hooks import Arguments, Keywords
from wanviz.interventions.scope import as_numbers, reach
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
    scale = as_numbers("factors", factors)
    square = scale.ndim == 2 and 0 < scale.shape[0] == scale.shape[1]
    if not square or not scale.isfinite().all() or scale.min() < 0 or not scale.any(1).all():
        raise OptionError(
            f"factors is shaped {tuple(scale.shape)}: give a square of finite numbers from 0, a row for each latent frame "
            "that looks, with at least one number above 0"
        )
    logs = scale.log()  # f f
    most = parse_bytes(budget)
    with reach(pipe, layers, steps, branch) as reached:
        for block in reached.scope.blocks(reached.stage):
            part = block.attentions.get("temporal_attn") or block.attentions["self_attn"]
            if part.window is not None and not _near(scale, part.window).any(1).all():
                raise OptionError(
                    f"a frame of layer {block.layer} sees {part.window} frames to each side, and factors leaves one "
                    "nothing to look at there: give a number above 0 among those, e.g. to itself"
                )

            def change(
                args: Arguments, kwargs: Keywords, part: Any = part
            ) -> tuple[Arguments, Keywords] | None:
                x = args[0]  # b l c
                rows = reached.scope.rows(reached.stage, len(x))
                if rows is None:
                    return None
                f, h, w = reached.stage.grid()
                if f != len(logs):
                    raise OptionError(
                        f"factors has {len(logs)} latent frames and this video {f}: give a row and a column for each"
                    )
                if not logs.any():
                    return None  # with a bias other kernels compute, whose last bits may differ
                bias = _bias(logs.to(x.device), h * w, part.apart, len(x), rows, most)
                return part.with_bias(args, kwargs, bias.to(x.dtype))

            reached.hooks.change_call(part.module, change)
        yield


def _near(scale: Tensor, window: int) -> Tensor:
    """The factors of frames within a window, 0 elsewhere."""
    return scale.triu(-window).tril(window)


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
