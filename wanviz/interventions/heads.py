"""What heads of attention add to the residual stream, scaled; a factor 0 ablates a head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from wanviz.errors import OptionError
from wanviz.hooks import Arguments, Keywords
from wanviz.interventions.scope import placed_factors, reach, to_rows


@contextmanager
def scale_heads(
    pipe: Any,
    factors: Mapping[tuple[int, int], float],
    *,
    kind: str = "cross_attn",
    steps: Iterable[int] | None = None,
    branch: str = "cond",
) -> Iterator[None]:
    """Inside the block, the answers of some heads are scaled before they are mixed.

    Args:
        pipe: the pipeline.
        factors: by (layer, head), both from 0; 0 ablates, 1 leaves as it is.
        kind: "cross_attn", "self_attn"; in a factorised model "spatial_attn" or "temporal_attn".
        steps: in which denoising steps; None is all.
        branch: "cond" or "uncond".

    Raises:
        OptionError: a head, a kind or a factor that cannot be.
    """
    asked = placed_factors(factors, "head")
    with reach(pipe, {layer for layer, _ in asked}, steps, branch) as reached:
        for block in reached.scope.blocks(reached.stage):
            if kind not in block.attentions:
                raise OptionError(f"kind={kind!r}: this model has {', '.join(block.attentions)}")
            part = block.attentions[kind]
            scale = torch.ones(part.heads)
            for (layer, head), factor in asked.items():
                if head >= part.heads:
                    raise OptionError(
                        f"head {head} of layer {layer}: this model has {part.heads} heads, from 0"
                    )
                if layer == block.layer:
                    scale[head] = factor

            def change(
                args: Arguments, kwargs: Keywords, scale: torch.Tensor = scale
            ) -> tuple[Arguments, Keywords] | None:
                x = args[0]  # b l n·d
                rows = reached.scope.rows(reached.stage, len(x))
                if rows is None:
                    return None
                apart = x[rows].unflatten(-1, (len(scale), -1))
                scaled = (apart * scale.to(x)[:, None]).flatten(-2)
                return (to_rows(x, rows, scaled), *args[1:]), kwargs

            reached.hooks.change_call(part.mix, change)
        yield
