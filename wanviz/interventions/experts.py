"""Token experts ablated, scaled or forced; and one noise expert forced to do all the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from wanviz.adapters import adapter_for
from wanviz.adapters.stage import BlockPart
from wanviz.errors import OptionError
from wanviz.interventions.scope import Reach, grid_mask, is_whole, placed_factors, reach, to_rows


@contextmanager
def scale_experts(
    pipe: Any, factors: Mapping[tuple[int, int], float], *, steps: Iterable[int] | None = None
) -> Iterator[None]:
    """Inside the block, the answers of some token experts are scaled, in both branches: an expert answers for all at once.

    Args:
        pipe: a pipeline with token experts.
        factors: by (layer, token expert), both from 0; 0 ablates: the expert is still chosen and says nothing.
        steps: in which denoising steps; None is all.

    Raises:
        OptionError: a model without token experts, an expert or a factor that cannot be.
    """
    asked = placed_factors(factors, "token expert")
    with reach(pipe, {layer for layer, _ in asked}, steps) as reached:
        for block in _with_experts(reached):
            for (layer, expert), scale in asked.items():
                _check_expert(block, expert)
                if layer != block.layer:
                    continue

                def change(answer: Tensor, scale: float = scale) -> Tensor | None:
                    chosen = reached.scope.steps
                    if chosen is not None and reached.stage.step() not in chosen:
                        return None
                    return answer * scale

                reached.hooks.change(block.experts[expert], change)
        yield


@contextmanager
def force_expert(
    pipe: Any,
    expert: int,
    *,
    where: Any = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    branch: str = "cond",
) -> Iterator[None]:
    """Inside the block, one token expert does the work of all that were chosen.

    Args:
        pipe: a pipeline with token experts.
        expert: which, from 0.
        where: over (frame, row, column) of the token grid, 1 where it is forced; None is everywhere.
        layers: in which layers; None is all.
        steps: in which denoising steps; None is all.
        branch: "cond" or "uncond".

    Raises:
        OptionError: a model without token experts, or an expert that it does not have.
    """
    with reach(pipe, layers, steps, branch) as reached:
        for block in _with_experts(reached):
            _check_expert(block, expert)

            def change(logits: Tensor) -> Tensor | None:  # b l expert
                rows = reached.scope.rows(reached.stage, len(logits))
                if rows is None:
                    return None
                forced = logits[rows].clone()
                forced[..., expert] = logits.max() + 1e4  # the others' shares vanish
                if where is not None:
                    kept = grid_mask(where, reached.stage.grid()).to(logits)[:, None] < 0.5
                    forced = torch.where(kept, logits[rows], forced)
                return to_rows(logits, rows, forced)

            reached.hooks.change(block.router, change)  # type: ignore[arg-type]
        yield


@contextmanager
def force_noise_expert(pipe: Any, which: Literal["high", "low"]) -> Iterator[None]:
    """Inside the block, one of the two denoisers does all steps.

    Args:
        pipe: a pipeline with two noise experts.
        which: "high", trained on high noise levels, or "low".

    Raises:
        OptionError: another name, or a model with one denoiser.
    """
    if which not in ("high", "low"):
        raise OptionError(f"which={which!r}: use 'high' or 'low'")
    with adapter_for(pipe).one_noise_expert(which):
        yield


def _with_experts(reached: Reach) -> list[BlockPart]:
    blocks = reached.scope.blocks(reached.stage)
    if any(block.router is None for block in blocks):
        raise OptionError("this model has no token experts: its feed-forward layers are dense")
    return blocks


def _check_expert(block: BlockPart, expert: int) -> None:
    if not is_whole(expert) or expert >= len(block.experts):
        raise OptionError(
            f"token expert {expert!r}: this model has {len(block.experts)} in each layer, from 0"
        )
