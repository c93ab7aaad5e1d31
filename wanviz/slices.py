"""Which slices of a trace a page carries: for each pair of kept axes every choice and the means over them.

A page cannot average what it was not given, and need not be given what it can show in groups. So each *family* holds, for
one or two axes, the maps of all subjects (words, end of text, padding) for every choice on each axis, and at index 0 for the
mean over it. Where that would be too much, neighbouring layers, heads or steps are averaged in groups.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from wanviz.contents import kept_array, mean_frames, mean_stderr
from wanviz.errors import OptionError
from wanviz.layout import NO_PADDING, SPECIAL, STDERR, special_columns
from wanviz.words import phrase_spans, token_weights

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wanviz.contents import Contents
    from wanviz.trace import Trace
    from wanviz.words import Word

    Floats = NDArray[np.float32]

GROUPS = 8  # of an axis, where not every choice fits
PAIRS = (("layer", "head"), ("layer", "step"))  # of three kept axes


@dataclass(frozen=True)
class Group:
    """One choice on an axis: a layer, head or step, or some neighbours that are averaged."""

    name: str  # "3", or "0–4"
    places: tuple[int, ...]  # where they lie on the kept axis


@dataclass(frozen=True)
class Family:
    """What can be chosen on some axes; index 0 of an axis stands for the mean over it."""

    axes: tuple[str, ...]
    choices: tuple[tuple[Group, ...], ...]  # for each axis

    def sizes(self) -> tuple[int, ...]:
        """How many slices lie along each axis, the mean included."""
        return tuple(len(groups) + 1 for groups in self.choices)

    def slices(self, kept: tuple[str, ...], shape: Sequence[int]) -> Iterator[Any]:
        """Indices of an array over the `kept` axes, one for each slice, in the order of `sizes`."""
        chosen = [[None, *groups] for groups in self.choices]
        for groups in itertools.product(*chosen):
            of = dict(zip(self.axes, groups, strict=True))
            found = (of.get(axis) for axis in kept)
            yield np.ix_(
                *(
                    range(size) if group is None else group.places
                    for group, size in zip(found, shape, strict=False)
                )
            )


@dataclass(frozen=True)
class Subjects:
    """What a page can show maps of."""

    words: tuple[Word, ...]  # those that have tokens
    kinds: tuple[str, ...]  # "end_of_text", "padding" where the model attends to it, "other_words"


def subjects(trace: Trace) -> Subjects:
    """The words of a trace and what follows them; no words where their capture failed."""
    if "words" in trace.record["failed"]:
        return Subjects((), SPECIAL[:1])
    contents = trace.contents
    kinds = special_columns(contents.prompts[trace.branches[0]])
    padded = contents.record.get("padding_keys") != NO_PADDING
    words = tuple(word for word in trace.words if word.tokens)
    return Subjects(words, tuple(kind for kind in kinds if padded or kind != "padding"))


def families(trace: Trace, most: int) -> tuple[tuple[Family, ...], bool]:
    """What a page can carry of a trace.

    Args:
        trace: what a capture kept.
        most: bytes of all maps together, one for each number.

    Returns:
        The families; and whether something was grouped or left out to fit.
    """
    contents = trace.contents
    mean_alone = (Family((), ()),)
    if "words" in trace.record["failed"]:
        return mean_alone, False
    sets = _axis_sets(contents.keep)
    whole = sum(map(len, (subjects(trace).words, subjects(trace).kinds))) * contents.grid.tokens
    singles = _axis_sets([(axis,) for axes in sets for axis in axes])
    everything = _families(contents, sets, None)
    for found in (
        everything,
        _families(contents, sets, GROUPS),
        _families(contents, singles, GROUPS),
    ):
        if sum(math.prod(family.sizes()) for family in found) * whole <= most:
            return found, found != everything
    return mean_alone, mean_alone != everything


def _families(
    contents: Contents, sets: Sequence[tuple[str, ...]], most: int | None
) -> tuple[Family, ...]:
    return tuple(
        Family(axes, tuple(_groups(contents.labels[axis], most) for axis in axes)) for axes in sets
    )


def _axis_sets(keep: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Sets of at most two axes, none of which another one contains."""
    sets: list[tuple[str, ...]] = []
    for axes in keep:
        wanted = [axes] if len(axes) < 3 else PAIRS
        sets += [tuple(axis for axis in ("layer", "head", "step") if axis in w) for w in wanted]
    largest = sorted(dict.fromkeys(sets), key=len, reverse=True)
    kept: list[tuple[str, ...]] = []
    for found in largest:
        if not any(set(found) <= set(other) for other in kept):
            kept.append(found)
    return kept


def _groups(labels: Sequence[int], most: int | None) -> tuple[Group, ...]:
    parts = np.array_split(np.arange(len(labels)), min(len(labels), most or len(labels)))
    return tuple(
        Group(
            str(labels[part[0]])
            if len(part) == 1
            else f"{labels[int(part[0])]}–{labels[int(part[-1])]}",
            tuple(int(place) for place in part),
        )
        for part in parts
    )


def family_maps(trace: Trace, family: Family) -> Floats:
    """The maps of a family.

    Returns:
        Attention mass, float32 `[subject, *family.sizes(), f, h, w]`; NaN where not computed.
    """
    contents, branch = trace.contents, trace.branches[0]
    shown, sizes, grid = subjects(trace), family.sizes(), contents.grid.shape
    if "words" in trace.record["failed"]:
        return np.full((1, *sizes, *grid), np.nan, np.float32)
    encoded = contents.prompts[branch]
    array, kept = kept_array(contents, branch, "words", family.axes)
    weights = np.zeros((len(shown.words) + len(shown.kinds), array.shape[-4]), np.float32)
    for row, word in enumerate(shown.words):
        for token, share in token_weights(encoded, phrase_spans(encoded, word)):
            weights[row, token] = share
    every = special_columns(encoded)
    for row, kind in enumerate(shown.kinds, start=len(shown.words)):
        weights[row, len(encoded.tokens) + every.index(kind)] = 1
    by_subject = np.einsum("sp,...pfhw->...sfhw", weights, array)
    leading = tuple(range(len(kept)))
    found = [
        _mean(by_subject[place], leading)
        for place in family.slices(kept, by_subject.shape[: len(kept)])
    ]
    stacked = rearrange(np.stack(found), "slice s f h w -> s slice f h w")
    return stacked.reshape(len(weights), *sizes, *grid)


def _mean(array: Floats, axes: tuple[int, ...]) -> Floats:
    """The mean over some axes of what was computed; NaN where nothing was."""
    if not axes:
        return array
    computed = ~np.isnan(array)
    if computed.all():
        return np.asarray(array.mean(axis=axes, dtype=np.float32), np.float32)
    total = np.where(computed, array, 0).sum(axis=axes, dtype=np.float32)
    with np.errstate(invalid="ignore"):
        return np.asarray(total / computed.sum(axis=axes).astype(np.float32), np.float32)


def family_frames(trace: Trace, family: Family) -> tuple[Floats, Floats | None]:
    """How frames look at frames, for every slice of a family.

    Returns:
        Mass, float32 `[slice, f, f]`; and its standard errors where rows were sampled.

    Raises:
        KeepError: frames were not kept.
        CaptureError: their capture failed.
    """
    contents, branch = trace.contents, trace.branches[0]
    array, kept = kept_array(contents, branch, "frames", family.axes)
    shape = array.shape[: len(kept)]
    mass = np.stack([mean_frames(array[place]) for place in family.slices(kept, shape)])
    if contents.record["frames"] != "sampled":
        return mass, None
    errors, kept = kept_array(contents, branch, STDERR, family.axes)
    found = [mean_stderr(errors[place], kept) for place in family.slices(kept, shape)]
    return mass, np.stack(found)


def chosen_slice(contents: Contents, asked: Mapping[str, tuple[int, int] | None]) -> Family:
    """The family that has one selection, as its last slice.

    Args:
        contents: of the trace.
        asked: by axis the first place and how many neighbours are averaged; None averages all.

    Raises:
        OptionError: axes or places that the trace does not have.
    """
    axes, choices = [], []
    for axis, places in asked.items():
        if places is None:
            continue
        if axis not in contents.labels:
            raise OptionError(f"{axis!r} is no axis: use {', '.join(contents.labels)}")
        first, members = places
        count = len(contents.labels[axis])
        if not (0 <= first < first + members <= count):
            raise OptionError(
                f"{axis} {first} to {first + members - 1}: this trace has {count}, from 0"
            )
        axes.append(axis)
        choices.append((Group("", tuple(range(first, first + members))),))
    return Family(tuple(axes), tuple(choices))
