"""Which arrays a capture keeps, and how large each is: one list for the plan and for the capture."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from wanviz.errors import OptionError
from wanviz.events import Kind
from wanviz.grid import Grid, link_places
from wanviz.words import EncodedPrompt

# The order in which axes are stored. Head comes last, so that what one event adds is contiguous.
AXES = ("layer", "step", "head")
SPECIAL = ("end_of_text", "padding")  # the columns after the prompt's own tokens …
OTHER = "other_words"  # … and after them, where only some words are kept, all others together
STDERR = "frames_stderr"  # standard errors of sampled frame masses
NO_PADDING = "none attended"  # what a record says of padding that the model does not see
_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", 1):
    _UNITS[f"{_letter}b"] = 1000**_power
    _UNITS[f"{_letter}ib"] = 1024**_power


@dataclass(frozen=True)
class Anatomy:
    """The sizes of one model at one video size: all that a plan must know."""

    grid: Grid
    layers: int
    heads: int
    head_width: int  # d of cross-attention
    frame_head_width: int  # d where frames look at each other
    text_length: int  # p, keys of the cross-attention, padding included
    frame_kind: Kind  # where frames look at each other: temporal_attn or self_attn
    token_experts: int  # 0 for a dense feed-forward
    topk: int  # token experts that work on one token
    forward_flops: int  # one denoiser forward of one branch, estimated
    device: str = "cpu"  # type of the device that it runs on


@dataclass(frozen=True)
class Subject:
    """What is captured: a model's sizes, a number of steps, each branch's prompt, a video."""

    anatomy: Anatomy
    steps: int
    prompts: dict[str, EncodedPrompt]  # branch -> its encoded prompt
    video: tuple[int, int, int] | None  # F, H, W in pixels; None for latent output
    size: tuple[int, int]  # H, W in pixels

    def labels(self, options: Options) -> dict[str, tuple[int, ...]]:
        """The layers, steps and heads that are watched.

        Raises:
            OptionError: one that the model does not have was selected.
        """
        sizes = {"layer": self.anatomy.layers, "step": self.steps, "head": self.anatomy.heads}
        found = {}
        for axis, size in sizes.items():
            asked = options.select.get(axis, tuple(range(size)))
            for index in asked:
                if index >= size:
                    raise OptionError(
                        f"select asks for {axis} {index}: this generation has {axis} 0 to {size - 1}"
                    )
            found[axis] = asked
        return found


@dataclass(frozen=True)
class Options:
    """What to keep, checked."""

    keep: tuple[tuple[str, ...], ...]
    frames: Literal["exact", "sampled"] | None
    routing: bool
    branches: tuple[str, ...]
    select: dict[str, tuple[int, ...]] = field(default_factory=dict)  # axis -> what to watch
    words: tuple[str, ...] | None = None  # phrases whose tokens are kept; None keeps all
    previews: bool = False  # whether what each step predicts is decoded
    links: bool = False  # whether it is followed where some places of each frame look


@dataclass(frozen=True)
class ArraySpec:
    """One array that a capture keeps."""

    name: str  # "cond/words/layer+head", "cond/frames/layer", "cond/load", "video" …
    axes: tuple[str, ...]  # the kept axes, in the order of AXES
    shape: tuple[int, ...]
    dtype: str  # a numpy name

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def array_name(branch: str, what: str, axes: tuple[str, ...]) -> str:
    """The name of a kept array, e.g. "cond/words/layer+head"."""
    return f"{branch}/{what}/{'+'.join(axes) or 'all'}"


def special_columns(encoded: EncodedPrompt) -> tuple[str, ...]:
    """What stands behind a prompt's own tokens."""
    return (*SPECIAL, OTHER) if encoded.omitted else SPECIAL


def layout(subject: Subject, options: Options) -> tuple[ArraySpec, ...]:
    """Every array that a capture of this subject keeps."""
    anatomy = subject.anatomy
    sizes = {axis: len(labels) for axis, labels in subject.labels(options).items()}
    f, h, w = anatomy.grid.shape
    specs = []
    for branch in options.branches:
        encoded = subject.prompts[branch]
        columns = len(encoded.tokens) + len(special_columns(encoded))
        for axes in options.keep:
            kept = tuple(sizes[axis] for axis in axes)
            name = array_name(branch, "words", axes)
            specs.append(ArraySpec(name, axes, (*kept, columns, f, h, w), "float32"))
        if options.frames is not None:
            for axes in options.keep:
                kept = tuple(sizes[axis] for axis in axes)
                for what in ("frames", STDERR)[: 1 + (options.frames == "sampled")]:
                    name = array_name(branch, what, axes)
                    specs.append(ArraySpec(name, axes, (*kept, f, f), "float32"))
        if options.links:
            shape = (f, len(link_places(anatomy.grid)), f, h, w)
            specs.append(ArraySpec(f"{branch}/links", (), shape, "float32"))
        if options.routing and anatomy.token_experts:
            layers, experts = sizes["layer"], anatomy.token_experts
            load, where = (layers, sizes["step"], experts), (layers, experts, f, h, w)
            specs.append(ArraySpec(f"{branch}/load", ("layer", "step"), load, "float32"))
            specs.append(ArraySpec(f"{branch}/where", ("layer",), where, "float32"))
            together = (layers, experts, experts)
            specs.append(ArraySpec(f"{branch}/together", ("layer",), together, "float32"))
    if options.previews:
        pictures = (sizes["step"], f, *subject.size, 3)
        specs.append(ArraySpec("previews", ("step",), pictures, "uint8"))
    if subject.video is not None:
        specs.append(ArraySpec("video", (), (*subject.video, 3), "uint8"))
    return tuple(specs)


def make_options(
    keep: object,
    frames: object,
    routing: object,
    branches: object,
    select: object = None,
    words: object = None,
    previews: object = False,
    links: object = False,
    *,
    default_keep: tuple[tuple[str, ...], ...],
    frame_modes: tuple[str, ...],
    can_preview: bool = False,
) -> Options:
    """Check what the user asked for.

    Args:
        keep: a list of axis tuples, or None for the model's default.
        frames: "exact", "sampled", None, or "auto" for the model's default.
        routing: whether to count token experts.
        branches: "cond" and/or "uncond".
        select: axis -> indices to watch; None watches all.
        words: phrases of the prompt to keep; None keeps all.
        previews: whether to decode what each step predicts.
        links: whether to follow where some places of each frame look.
        default_keep: what keep=None means for this model.
        frame_modes: what frames can be for this model, besides None; the first is its default.
        can_preview: whether this model's steps can be decoded.

    Returns:
        The options, each axis set in the order of AXES, none twice.

    Raises:
        OptionError: something cannot be acted on; the sentence says what would work.
    """
    if frames == "auto":
        frames = frame_modes[0]
    if frames is not None and frames not in frame_modes:
        known = frames in ("exact", "sampled")
        raise OptionError(
            f"frames={frames!r} is not {'offered for this model' if known else 'known'}: use "
            + " or ".join([*map(repr, frame_modes), "None"])
        )
    if not isinstance(routing, bool):
        raise OptionError(f"routing={routing!r}: use True or False")
    if not isinstance(previews, bool):
        raise OptionError(f"previews={previews!r}: use True or False")
    if not isinstance(links, bool):
        raise OptionError(f"links={links!r}: use True or False")
    if previews and not can_preview:
        raise OptionError("previews=True is offered for tinywan alone so far: leave it out")
    if isinstance(branches, str) or not isinstance(branches, list | tuple) or not branches:
        raise OptionError(f"branches={branches!r}: use ('cond',) or ('cond', 'uncond')")
    for branch in branches:
        if branch not in ("cond", "uncond") or branches.count(branch) > 1:
            raise OptionError(f"branches={branches!r}: name 'cond' and 'uncond' at most once each")
    return Options(
        keep=default_keep if keep is None else _axis_sets(keep),
        frames=frames,  # type: ignore[arg-type]
        routing=routing,
        branches=tuple(branches),
        select=_selection(select),
        words=_phrases(words),
        previews=previews,
        links=links,
    )


def _selection(select: object) -> dict[str, tuple[int, ...]]:
    hint = "write e.g. select={'layer': [0, 20, 39], 'step': range(0, 40, 5)}"
    if select is None:
        return {}
    if not isinstance(select, Mapping):
        raise OptionError(f"select={select!r} is not a dict of axes: {hint}")
    found = {}
    for axis, asked in select.items():
        if axis not in AXES:
            raise OptionError(f"select has {axis!r}: use {', '.join(AXES)}; {hint}")
        if isinstance(asked, str) or not isinstance(asked, Iterable):
            raise OptionError(
                f"select has {axis!r}: {asked!r}, which is no list of numbers: {hint}"
            )
        indices = list(asked)
        for index in indices:
            if isinstance(index, bool) or not isinstance(index, int | np.integer) or index < 0:
                raise OptionError(f"select has {axis} {index!r}: use whole numbers from 0; {hint}")
        if not indices or len(set(indices)) < len(indices):
            raise OptionError(
                f"select has {axis!r}: {indices!r}: name at least one, and none twice"
            )
        found[axis] = tuple(sorted(int(index) for index in indices))
    return found


def _phrases(words: object) -> tuple[str, ...] | None:
    if words is None:
        return None
    hint = "write a list of phrases of the prompt, e.g. words=['umbrella', 'red dress']"
    if isinstance(words, str) or not isinstance(words, list | tuple) or not words:
        raise OptionError(f"words={words!r}: {hint}")
    for word in words:
        if not isinstance(word, str) or not word.strip():
            raise OptionError(f"words has {word!r}, which is no phrase: {hint}")
    return tuple(dict.fromkeys(words))


def _axis_sets(keep: object) -> tuple[tuple[str, ...], ...]:
    hint = "write a list of tuples, e.g. keep=[('layer', 'head'), ('layer', 'step')]"
    if not isinstance(keep, list | tuple) or not keep:
        raise OptionError(f"keep={keep!r} is not a list of axis tuples: {hint}")
    sets = []
    for axes in keep:
        if not isinstance(axes, list | tuple):
            raise OptionError(f"keep has {axes!r}, which is not a tuple of axes: {hint}")
        for axis in axes:
            if axis not in AXES or axes.count(axis) > 1:
                raise OptionError(
                    f"keep has {tuple(axes)!r}: each of {', '.join(AXES)} at most once; {hint}"
                )
        sets.append(tuple(axis for axis in AXES if axis in axes))
    return tuple(dict.fromkeys(sets))


def parse_bytes(budget: object) -> int:
    """A number of bytes from 1073741824, "1GiB" or "512 MB".

    Raises:
        OptionError: it is not a positive number of bytes.
    """
    hint = 'write a number of bytes, or e.g. "512MiB" or "1GiB"'
    if isinstance(budget, int) and not isinstance(budget, bool) and budget > 0:
        return budget
    match = isinstance(budget, str) and re.fullmatch(
        r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", budget.lower()
    )
    if not match or match[2] not in _UNITS or float(match[1]) <= 0:
        raise OptionError(f"budget={budget!r} is not a size: {hint}")
    return int(float(match[1]) * _UNITS[match[2]])


def format_bytes(count: float) -> str:
    """A size as people read it: "3.2 MiB"."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
