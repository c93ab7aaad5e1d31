"""What a trace holds, and how one array of it is chosen, averaged and labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanviz.errors import CaptureError, KeepError, OptionError
from wanviz.grid import Grid, pixel_frame_label
from wanviz.layout import AXES, STDERR, array_name
from wanviz.trace_file import Arrays
from wanviz.words import EncodedPrompt, Token, Word


@dataclass(frozen=True)
class Contents:
    """All that a trace holds."""

    arrays: Arrays  # by the names of `layout`
    keep: tuple[tuple[str, ...], ...]
    grid: Grid
    labels: dict[str, tuple[int, ...]]  # axis -> the layers, steps, heads that were watched
    prompts: dict[str, EncodedPrompt]  # branch -> prompt
    words: dict[str, tuple[Word, ...]]  # branch -> words
    record: dict[str, Any]  # JSON: prompt, seed, steps, versions …

    def header(self) -> dict[str, Any]:
        """Everything but the arrays, as JSON."""
        return {
            "keep": self.keep,
            "grid": self.grid.shape,
            "labels": self.labels,
            "branches": {
                name: {
                    "prompt": prompt.text,
                    "truncated_at": prompt.truncated_at,
                    "tokens": [[t.text, *t.span] for t in prompt.tokens],
                    "omitted": [[t.text, *t.span] for t in prompt.omitted],
                    "columns": prompt.columns,
                    "words": [[w.text, *w.span, w.tokens] for w in self.words[name]],
                }
                for name, prompt in self.prompts.items()
            },
            "record": self.record,
        }

    @classmethod
    def from_header(cls, arrays: Arrays, header: dict[str, Any]) -> Contents:
        """The inverse of `header`."""
        branches = header["branches"]
        return cls(
            arrays=arrays,
            keep=tuple(tuple(axes) for axes in header["keep"]),
            grid=Grid(*header["grid"]),
            labels={axis: tuple(found) for axis, found in header["labels"].items()},
            prompts={
                name: EncodedPrompt(
                    text=branch["prompt"],
                    tokens=tuple(Token(text, (a, b)) for text, a, b in branch["tokens"]),
                    truncated_at=branch["truncated_at"],
                    omitted=tuple(Token(text, (a, b)) for text, a, b in branch["omitted"]),
                    columns=None if branch["columns"] is None else tuple(branch["columns"]),
                )
                for name, branch in branches.items()
            },
            words={
                name: tuple(Word(text, (a, b), tuple(t)) for text, a, b, t in branch["words"])
                for name, branch in branches.items()
            },
            record=header["record"],
        )


def raise_if_failed(contents: Contents, what: str) -> None:
    """Say that a reducer failed, where it did."""
    what = what.partition("_")[0]  # errors fail with what they belong to
    if why := contents.record["failed"].get(what):
        raise CaptureError(f"{what} were not captured: {why}")


def steps_watched(contents: Contents) -> int:
    """How many of the steps that were to be watched ran."""
    return sum(entry["step"] in contents.labels["step"] for entry in contents.record["steps"])


def kept_array(
    contents: Contents, branch: str, what: str, asked: tuple[str, ...]
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """The smallest kept array that has the asked axes, and its axes."""
    for axis in asked:
        if axis not in AXES or asked.count(axis) > 1:
            raise OptionError(f"{asked!r} names axes: use each of {', '.join(AXES)} at most once")
    raise_if_failed(contents, what)
    if what in ("frames", STDERR) and contents.record["frames"] is None:
        raise KeepError("frame attention was not captured: leave frames=None out of the capture")
    fitting = [axes for axes in contents.keep if set(asked) <= set(axes)]
    if not fitting:
        ordered = tuple(axis for axis in AXES if axis in asked)
        raise KeepError(
            f"{' with '.join(map(repr, asked))} was not kept; this capture kept "
            f"{', '.join(map(str, contents.keep))}: keep=[{ordered}] would have kept it"
        )
    arrays = [contents.arrays[array_name(branch, what, axes)] for axes in fitting]
    best = min(range(len(fitting)), key=lambda i: arrays[i].size)
    return arrays[best], fitting[best]


def mean_over(
    array: NDArray[np.float32], kept: tuple[str, ...], asked: tuple[str, ...]
) -> NDArray[np.float32]:
    """Average the kept axes that were not asked for, leave out what was not computed."""
    gone = tuple(i for i, axis in enumerate(kept) if axis not in asked)
    left = [axis for axis in kept if axis in asked]
    if gone:
        computed = ~np.isnan(array)
        with np.errstate(invalid="ignore"):
            if computed.all():
                array = array.mean(axis=gone, dtype=np.float32)
            else:
                total = np.where(computed, array, 0).sum(axis=gone, dtype=np.float32)
                array = total / computed.sum(axis=gone).astype(np.float32)
    order = [left.index(axis) for axis in asked]
    return array.transpose(*order, *range(len(left), array.ndim))


def mean_frames(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean of some frame x frame matrices; all-NaN ones were not computed."""
    matrices = array.reshape(-1, *array.shape[-2:])
    looked = ~np.isnan(matrices)
    computed = looked.any(axis=(1, 2))
    if not computed.any():
        return np.full(array.shape[-2:], np.nan, dtype=np.float32)
    mean = np.where(looked, matrices, 0)[computed].mean(axis=0, dtype=np.float32)
    mean[~looked.any(axis=0)] = np.nan
    return np.asarray(mean, dtype=np.float32)


def mean_stderr(array: NDArray[np.float32], kept: tuple[str, ...]) -> NDArray[np.float32]:
    """The standard error of the mean of some sampled frame x frame matrices.

    Layers and steps draw their rows apart from each other; heads share them, so that their errors are
    averaged as if they all pointed the same way: a bound from above.

    Args:
        array: standard errors, `[kept …, f, f]`; NaN where not computed.
        kept: names of the leading axes.

    Returns:
        `[f, f]`.
    """
    if "head" in kept:
        array = array.mean(axis=kept.index("head"))
    matrices = array.reshape(-1, *array.shape[-2:])
    computed = ~np.isnan(matrices)
    there = computed.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = (np.where(computed, matrices, 0).astype(np.float64) ** 2).sum(axis=0)
        return (np.sqrt(squares) / there).astype(np.float32)


def chosen_places(contents: Contents, **places: int | None) -> dict[str, int]:
    """Where on the kept axes one layer, step or head lies; an OptionError says which there are."""
    chosen = {}
    for axis, index in places.items():
        if index is None:
            continue
        there = contents.labels[axis]
        shown = ", ".join(map(str, there))
        if there == tuple(range(len(there))):
            shown = f"0 to {len(there) - 1}"
        if isinstance(index, bool) or not isinstance(index, int | np.integer):
            raise OptionError(f"{axis}={index!r} is not a number: use {shown}, or None")
        if index not in there:
            raise OptionError(f"{axis}={index}: this trace has {axis} {shown}")
        chosen[axis] = there.index(int(index))
    return chosen


def axis_coords(contents: Contents, axes: tuple[str, ...]) -> dict[str, Any]:
    """Labels of the kept axes; steps also carry sigma and noise expert."""
    coords: dict[str, Any] = {axis: np.array(contents.labels[axis]) for axis in axes}
    if "step" in axes:
        ran = {entry["step"]: entry for entry in contents.record["steps"]}
        steps = [
            ran.get(step) for step in contents.labels["step"]
        ]  # None: the run did not get so far
        sigma = np.array([np.nan if step is None else step["sigma"] for step in steps])
        noise_expert = ["" if step is None else step["noise_expert"] for step in steps]
        coords |= {"sigma": ("step", sigma), "noise_expert": ("step", noise_expert)}
    return coords


def places(contents: Contents) -> dict[str, Any]:
    """Labels of the video tokens; frames also carry the pixel frames they stand for."""
    f, h, w = contents.grid.shape
    return {
        "frame": np.arange(f),
        "pixel_frames": ("frame", [pixel_frame_label(i) for i in range(f)]),
        "row": np.arange(h),
        "column": np.arange(w),
    }


def attrs(branch: str) -> dict[str, Any]:
    """What a map says of itself."""
    return {
        "branch": branch,
        "normalisation": "softmax over all keys: tokens, end_of_text and padding sum to 1",
    }
