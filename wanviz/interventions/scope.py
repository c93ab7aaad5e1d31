"""Where and when an intervention acts, and how it comes and goes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wanviz.adapters import Adapter, adapter_for
from wanviz.adapters.stage import BlockPart, Stage
from wanviz.eager import eager
from wanviz.errors import OptionError
from wanviz.hooks import HookSet


@dataclass(frozen=True)
class Scope:
    """The layers, steps and branch in which something is changed."""

    layers: frozenset[int] | None  # None: every layer
    steps: frozenset[int] | None
    branch: str

    def blocks(self, stage: Stage) -> list[BlockPart]:
        """The blocks of all denoisers in these layers."""
        return [b for b in stage.blocks if self.layers is None or b.layer in self.layers]

    def rows(self, stage: Stage, batch: int) -> slice | None:
        """Which rows of the running forward are meant; None for none of them."""
        if self.steps is not None and stage.step() not in self.steps:
            return None
        return stage.rows(self.branch, batch)


@dataclass(frozen=True)
class Reach:
    """A pipeline that is being changed."""

    adapter: Adapter
    stage: Stage
    hooks: HookSet
    scope: Scope


@contextmanager
def reach(
    pipe: Any,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    branch: str = "cond",
) -> Iterator[Reach]:
    """Hooks can be added inside; all of them are gone afterwards, whatever happens.

    Raises:
        OptionError: a layer that the model does not have, or an unknown branch.
    """
    adapter = adapter_for(pipe)
    if branch not in ("cond", "uncond"):
        raise OptionError(
            f"branch={branch!r}: use 'cond' (the prompt) or 'uncond' (the negative prompt)"
        )
    with HookSet() as hooks, eager():
        stage = adapter.stage(hooks)
        count = 1 + max(block.layer for block in stage.blocks)
        chosen = chosen_numbers("layers", layers, count)
        yield Reach(adapter, stage, hooks, Scope(chosen, chosen_numbers("steps", steps), branch))


def chosen_numbers(
    name: str, numbers: Iterable[int] | None, count: int | None = None
) -> frozenset[int] | None:
    """Whole numbers from 0, below `count` where that is known; None stays None, which means all."""
    if numbers is None:
        return None
    found = list(numbers) if isinstance(numbers, Iterable) and not isinstance(numbers, str) else []
    whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in found)
    if not found or not whole or (count is not None and max(found) >= count):
        most = "" if count is None else f" below {count}"
        raise OptionError(f"{name}={numbers!r}: give whole numbers from 0{most}, e.g. {name}=[0]")
    return frozenset(found)


def factor_of(name: str, value: Any) -> float:
    """A factor: finite, 0 or more."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < float("inf")
    ):
        raise OptionError(f"{name} is scaled by {value!r}: use 0 (ablate), 1 (leave) or more")
    return float(value)


def to_rows(tensor: Tensor, rows: slice, changed: Tensor) -> Tensor:
    """A copy of a tensor in which some rows of the batch are others."""
    copy = tensor.clone()
    copy[rows] = changed.to(copy)
    return copy


def grid_mask(where: Any, shape: tuple[int, int, int]) -> Tensor:
    """Places of the token grid as float32 `[l]` in [0, 1].

    Args:
        where: bool or numbers in [0, 1] over (frame, row, column), an array or a DataArray.
        shape: (f, h, w) of the grid.

    Raises:
        OptionError: it is of another shape, or has other numbers.
    """
    found = torch.as_tensor(getattr(where, "values", where)).float()
    if tuple(found.shape) != shape:
        raise OptionError(
            f"where is shaped {tuple(found.shape)}, and this video has {shape} tokens (frames, rows, columns): "
            "give one number in [0, 1] for each"
        )
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise OptionError("where has numbers outside [0, 1]: 1 is acted on, 0 is left alone")
    return found.flatten()
