"""Where and when an intervention acts, and how it comes and goes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wanviz.adapters import Adapter, adapter_for
from wanviz.adapters.stage import BlockPart, Stage
from wanviz.eager import eager
from wanviz.errors import OptionError
from wanviz.hooks import HookSet
from wanviz.words import EncodedPrompt


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


@dataclass
class Named:
    """The prompt that the user of an intervention says is drawn, held against what is drawn."""

    reached: Reach
    prompt: str
    encoded: EncodedPrompt
    right: tuple[str | None, ...] = ()  # what was drawn last, and found to be this prompt

    def check(self) -> None:
        """Called while the denoiser runs.

        Raises:
            OptionError: another prompt is drawn, so that tokens would be those of other words.
        """
        drawn = self.reached.stage.prompts(self.reached.scope.branch)
        if drawn == self.right:
            return
        for text in drawn:
            if text is None or text == self.prompt:
                continue
            if not text.strip() or not self._same(self.reached.adapter.encode(text)):
                raise OptionError(
                    f"the words are those of {self.prompt!r}, and the model reads {text!r}: name the prompt that is "
                    "drawn, and the branch that reads it"
                )
        self.right = drawn

    def _same(self, other: EncodedPrompt) -> bool:
        """Whether another prompt has the same tokens; spaces around it do not count."""
        mine, others = ([token.text for token in one.tokens] for one in (self.encoded, other))
        return mine == others


def named(reached: Reach, prompt: str) -> Named:
    """A prompt with its tokens, to be checked while the denoiser runs."""
    return Named(reached, prompt, reached.adapter.encode(prompt))


@contextmanager
def reach(
    pipe: Any,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    branch: str = "cond",
) -> Iterator[Reach]:
    """Hooks can be added inside; all of them are gone afterwards, whatever happens.

    A warning tells which of the steps never ran.

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
        asked = chosen_numbers("steps", steps)
        scope = Scope(chosen_numbers("layers", layers, count), asked, branch)
        ran = set[int | None]()
        for block in stage.blocks:
            if asked is not None and block.layer == 0:
                hooks.after(block.stream, lambda _output: ran.add(stage.step()))
        yield Reach(adapter, stage, hooks, scope)
        if asked is not None and asked - ran:
            known = sorted(step for step in ran if step is not None)
            found = f"{len(known)} steps, {known[0]} to {known[-1]}" if known else "nothing"
            warnings.warn(
                f"steps={sorted(asked - ran)} never ran: inside the block ran {found}",
                stacklevel=5,  # the block of who intervenes, behind two context managers
            )


def chosen_numbers(
    name: str, numbers: Iterable[int] | None, count: int | None = None
) -> frozenset[int] | None:
    """Whole numbers from 0, below `count` where that is known; None stays None, which means all."""
    if numbers is None:
        return None
    found = list(numbers) if isinstance(numbers, Iterable) and not isinstance(numbers, str) else []
    if not found or not all(map(is_whole, found)) or (count is not None and max(found) >= count):
        most = "" if count is None else f" below {count}"
        raise OptionError(f"{name}={numbers!r}: give whole numbers from 0{most}, e.g. {name}=[0]")
    return frozenset(int(n) for n in found)


def is_whole(number: Any) -> bool:
    """Whether something is a whole number from 0, NumPy's too."""
    return isinstance(number, Integral) and not isinstance(number, bool) and int(number) >= 0


def factor_of(name: str, value: Any) -> float:
    """A factor: finite, 0 or more."""
    if (
        isinstance(value, bool)
        or not isinstance(value, Real)
        or not 0 <= float(value) < float("inf")
    ):
        raise OptionError(f"{name} is scaled by {value!r}: use 0 (ablate), 1 (leave) or more")
    return float(value)


def placed_factors(factors: Any, what: str) -> dict[tuple[int, int], float]:
    """Factors by (layer, head) or (layer, token expert).

    Raises:
        OptionError: there are none, or they are not by pairs of whole numbers.
    """
    found = dict(factors) if isinstance(factors, Mapping) else {}
    pairs = all(isinstance(key, tuple) and len(key) == 2 for key in found)
    if not found or not pairs or not all(is_whole(number) for key in found for number in key):
        raise OptionError(
            f"factors={factors!r}: give a factor by (layer, {what}), both from 0, e.g. {{(0, 3): 0}}"
        )
    return {
        (int(layer), int(number)): factor_of(f"{what} {number} of layer {layer}", factor)
        for (layer, number), factor in found.items()
    }


def to_rows(tensor: Tensor, rows: slice, changed: Tensor) -> Tensor:
    """A copy of a tensor in which some rows of the batch are others."""
    copy = tensor.clone()
    copy[rows] = changed.to(copy)
    return copy


def as_numbers(name: str, given: Any) -> Tensor:
    """An array, a DataArray, a tensor or nested lists, in float32 on the CPU.

    Raises:
        OptionError: it is none of these.
    """
    try:
        array = given.numpy(force=True) if isinstance(given, Tensor) else given
        return torch.from_numpy(np.array(array, dtype=np.float32))
    except (TypeError, ValueError):
        raise OptionError(f"{name}={given!r}: give an array of numbers") from None


def grid_mask(where: Any, grid: tuple[int, int, int]) -> Tensor:
    """Places of the token grid as float32 `[l]` in [0, 1].

    Args:
        where: bool or numbers in [0, 1] over (frame, row, column), an array or a DataArray.
        grid: (f, h, w).

    Raises:
        OptionError: it is of another shape, or has other numbers.
    """
    found = as_numbers("where", where)
    if tuple(found.shape) != grid:
        raise OptionError(
            f"where is shaped {tuple(found.shape)}, and this video has {grid} tokens (frames, rows, columns), as "
            "trace.word_map(…): give one number in [0, 1] for each"
        )
    if not bool(((found >= 0) & (found <= 1)).all()):
        raise OptionError("where has numbers outside [0, 1]: 1 is acted on, 0 is left alone")
    return found.flatten()
