"""A Trace: what a capture kept, as labelled arrays, with the record of how it was made."""

from __future__ import annotations

import os
from collections.abc import Container, Iterator
from importlib import import_module
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wanviz.contents import (
    Contents,
    attrs,
    axis_coords,
    chosen_places,
    kept_array,
    mean_frames,
    mean_over,
    mean_stderr,
    places,
    raise_if_failed,
    steps_watched,
)
from wanviz.errors import CaptureError, KeepError, TraceFileError
from wanviz.grid import link_places, pixel_frame_label
from wanviz.layout import STDERR, special_columns
from wanviz.trace_file import read_trace, write_trace
from wanviz.words import Token, Word, phrase_spans, token_weights

Occurrence = int | Literal["all"] | None


class Masses:
    """Attention masses by the axes that were kept: masses["layer", "head"], masses[()]."""

    def __init__(self, contents: Contents, branch: str, special: bool) -> None:
        """The prompt's own tokens, or end of text and padding."""
        self._contents, self._branch, self._special = contents, branch, special

    def __getitem__(self, axes: str | tuple[str, ...]) -> xr.DataArray:
        """Masses over the named axes, averaged over all others.

        Args:
            axes: any of layer, step, head that one kept array has; () averages over all.

        Returns:
            float32 over (axes …, token or kind, frame, row, column).

        Raises:
            KeepError: no kept array has these axes.
        """
        asked = (axes,) if isinstance(axes, str) else tuple(axes)
        array, kept = kept_array(self._contents, self._branch, "words", asked)
        tokens = len(self._contents.prompts[self._branch].tokens)
        at = len(kept)
        part = slice(tokens, None) if self._special else slice(tokens)
        array = mean_over(array[(slice(None),) * at + (part,)], kept, asked)
        columns: dict[str, Any]
        if self._special:
            encoded = self._contents.prompts[self._branch]
            name, columns = "kind", {"kind": list(special_columns(encoded))}
        else:
            texts = [token.text for token in self._contents.prompts[self._branch].tokens]
            name = "token"
            columns = {"token": np.array(texts, dtype=object if not texts else None)}
        return xr.DataArray(
            array,
            dims=(*asked, name, "frame", "row", "column"),
            coords={**axis_coords(self._contents, asked), **columns, **places(self._contents)},
            name="mass",
            attrs=attrs(self._branch),
        )

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        """The axis sets that were kept."""
        return iter(self._contents.keep)

    def __len__(self) -> int:
        """How many axis sets were kept."""
        return len(self._contents.keep)

    def __repr__(self) -> str:
        """What was kept."""
        return "attention masses kept over " + ", ".join(map(str, self._contents.keep))


class BranchTrace:
    """One branch of a trace: the prompt's ("cond") or the negative prompt's ("uncond")."""

    def __init__(self, contents: Contents, branch: str) -> None:
        """The part of a trace's contents that belongs to a branch."""
        self._contents = contents
        self._encoded = contents.prompts[branch]
        self.name = branch
        self.prompt = self._encoded.text
        self.tokens: tuple[Token, ...] = self._encoded.tokens
        self.words: tuple[Word, ...] = contents.words[branch]
        self.maps = Masses(contents, branch, special=False)
        self.special = Masses(contents, branch, special=True)

    def word_map(
        self,
        phrase: str | Word,
        *,
        layer: int | None = None,
        head: int | None = None,
        step: int | None = None,
        occurrence: Occurrence = None,
    ) -> xr.DataArray:
        """See `Trace.word_map`."""
        spans = phrase_spans(self._encoded, phrase, occurrence)
        weights = token_weights(self._encoded, spans)
        asked = {"layer": layer, "head": head, "step": step}
        chosen = chosen_places(self._contents, **asked)
        array, kept = kept_array(self._contents, self.name, "words", tuple(chosen))
        array = array[tuple(chosen.get(axis, slice(None)) for axis in kept)]
        rest = tuple(axis for axis in kept if axis not in chosen)
        array = np.take(array, [index for index, _ in weights], axis=-4)
        factors = np.array([f for _, f in weights], dtype=np.float32)
        mass = np.einsum("...pfhw,p->...fhw", array, factors)
        text = phrase.text if isinstance(phrase, Word) else phrase.strip()
        return xr.DataArray(
            mean_over(mass, rest, ()),
            dims=("frame", "row", "column"),
            coords=places(self._contents),
            name="mass",
            attrs={
                **attrs(self.name),
                "phrase": text,
                **{axis: index for axis, index in asked.items() if index is not None},
            },
        )

    def frame_attention(
        self, *, layer: int | None = None, head: int | None = None, step: int | None = None
    ) -> xr.Dataset:
        """See `Trace.frame_attention`."""
        asked = {"layer": layer, "head": head, "step": step}
        chosen = chosen_places(self._contents, **asked)
        array, kept = kept_array(self._contents, self.name, "frames", tuple(chosen))
        place = tuple(chosen.get(axis, slice(None)) for axis in kept)
        dims = ("query_frame", "key_frame")
        found = {"mass": (dims, mean_frames(array[place]))}
        if self._contents.record["frames"] == "sampled":
            errors, _ = kept_array(self._contents, self.name, STDERR, tuple(chosen))
            rest = tuple(axis for axis in kept if axis not in chosen)
            found["stderr"] = (dims, mean_stderr(errors[place], rest))
        frames = np.arange(self._contents.grid.frames)
        labels = [pixel_frame_label(int(i)) for i in frames]
        return xr.Dataset(
            found,
            coords={
                "query_frame": frames,
                "key_frame": frames,
                "query_pixel_frames": ("query_frame", labels),
                "key_pixel_frames": ("key_frame", labels),
            },
            attrs={
                "branch": self.name,
                "method": self._contents.record["frames"],
                **{axis: index for axis, index in asked.items() if index is not None},
            },
        )

    @property
    def links(self) -> xr.DataArray:
        """See `Trace.links`."""
        contents = self._contents
        raise_if_failed(contents, "links")
        found = contents.arrays.get(f"{self.name}/links")
        if found is None:
            raise KeepError(
                "where places look in other frames was not followed: capture with links=True"
            )
        rows, columns = zip(*link_places(contents.grid), strict=True)
        return xr.DataArray(
            found,
            dims=("query_frame", "place", "frame", "row", "column"),
            coords={
                "query_frame": np.arange(contents.grid.frames),
                "query_row": ("place", list(rows)),
                "query_column": ("place", list(columns)),
                **places(contents),
            },
            name="mass",
            attrs=attrs(self.name),
        )

    @property
    def routing(self) -> xr.Dataset:
        """See `Trace.routing`."""
        contents = self._contents
        coords = axis_coords(contents, ("step",))
        noise_expert = coords.pop("noise_expert")
        data: dict[str, Any] = {"noise_expert": noise_expert}
        raise_if_failed(contents, "routing")
        load = contents.arrays.get(f"{self.name}/load")
        if load is not None:
            where = contents.arrays[f"{self.name}/where"]
            experts = load.shape[-1]
            with np.errstate(divide="ignore", invalid="ignore"):
                terms = np.where(load == 0, 0, -load * np.log(load)) / np.log(max(experts, 2))
            data |= {
                "load": (("layer", "step", "token_expert"), load),
                "where": (("layer", "token_expert", "frame", "row", "column"), where),
                "entropy": (("layer", "step"), terms.sum(axis=-1, dtype=np.float32)),
            }
            coords |= {"token_expert": np.arange(experts), **places(contents)}
            coords |= axis_coords(contents, ("layer",))
            together = contents.arrays.get(f"{self.name}/together")
            if together is not None:  # a trace that was written before it was counted has none
                data["together"] = (("layer", "token_expert", "other_token_expert"), together)
                coords["other_token_expert"] = coords["token_expert"]
        dataset = xr.Dataset(data, coords=coords, attrs={"branch": self.name})
        if load is not None:
            dataset["load"].attrs["long_name"] = "share of the layer's token-expert places"
            dataset["where"].attrs["long_name"] = "share of steps in which the expert is chosen"
            if "together" in dataset:
                dataset["together"].attrs["long_name"] = "share of tokens that both experts work on"
            dataset["entropy"].attrs["long_name"] = "entropy of the load / log(token experts)"
        return dataset


class Trace:
    """What a capture kept of one generation; open one from a file with `Trace.load`."""

    def __init__(self, contents: Contents | None = None) -> None:
        """A trace of these contents, or one that a running capture will fill."""
        self._contents = contents
        self._videos: tuple[Trace, ...] = ()  # where several were made at once
        self._empty = "this trace is still being captured: read it after the `with` block"

    def fill(self, *contents: Contents) -> None:
        """Give a running capture's trace its contents, one for each video that was made at once."""
        if len(contents) == 1:
            (self._contents,) = contents
        else:
            self._videos = tuple(Trace(one) for one in contents)
            self._empty = (
                f"this call made {len(contents)} videos at once, each with a trace of its own: take "
                f"trace.videos[0] to trace.videos[{len(contents) - 1}]"
            )

    def leave_empty(self, why: str) -> None:
        """Say why a capture's trace has no contents."""
        self._empty = why

    @property
    def contents(self) -> Contents:
        """Everything, or a CaptureError while there is nothing."""
        if self._contents is None:
            raise CaptureError(self._empty)
        return self._contents

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, Any]:
        """What a notebook shows; the views lie above a trace, so they are looked up by name."""
        made: dict[str, Any] = import_module("wanviz.show").mimebundle(self, include, exclude)
        return made

    @property
    def videos(self) -> tuple[Trace, ...]:
        """One trace for each video that the call made at once: usually this one alone."""
        if not self._videos:
            _ = self.contents  # says why there is nothing
            return (self,)
        return self._videos

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that were captured; the first is what the trace shows."""
        return tuple(self.contents.prompts)

    def branch(self, name: str) -> BranchTrace:
        """One branch, with its own prompt, words, maps, frame attention and routing."""
        if name not in self.branches:
            raise KeepError(
                f"branch={name!r} was not captured; this trace has "
                f"{', '.join(map(repr, self.branches))}: capture with "
                f"branches={tuple(dict.fromkeys((*self.branches, str(name))))!r}"
            )
        return BranchTrace(self.contents, name)

    @property
    def _first(self) -> BranchTrace:
        return BranchTrace(self.contents, self.branches[0])

    @property
    def prompt(self) -> str:
        """The prompt of the first branch, as it was tokenised: real Wan cleans it; record["prompt"] is as given."""
        return self._first.prompt

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of the prompt that the model saw."""
        return self._first.words

    @property
    def tokens(self) -> tuple[Token, ...]:
        """The prompt's own tokens."""
        return self._first.tokens

    @property
    def maps(self) -> Masses:
        """Attention mass on the prompt's tokens: maps["layer", "head"], maps["step"], maps[()]."""
        return self._first.maps

    @property
    def special(self) -> Masses:
        """Attention mass on end of text and padding; with `maps` it sums to 1."""
        return self._first.special

    @property
    def routing(self) -> xr.Dataset:
        """noise_expert(step); if captured, load, where, together and entropy of the token experts."""
        return self._first.routing

    @property
    def frames(self) -> NDArray[np.uint8] | None:
        """The video made, uint8 [F, H, W, 3]; None for latent output."""
        return self.contents.arrays.get("video")

    @property
    def previews(self) -> xr.DataArray:
        """What each step predicts the clean video to be: latents less sigma times the velocity, decoded.

        Returns:
            uint8 over (step, frame, pixel_row, pixel_column, color); of each latent frame the picture in the
            middle of those that it stands for. With guidance it is the guided prediction.

        Raises:
            KeepError: the capture was not asked for it.
        """
        contents = self.contents
        raise_if_failed(contents, "previews")
        found = contents.arrays.get("previews")
        if found is None:
            raise KeepError(
                "what each step predicts was not decoded: capture with previews=True (tinywan alone so far)"
            )
        frames = np.arange(contents.grid.frames)
        return xr.DataArray(
            found,
            dims=("step", "frame", "pixel_row", "pixel_column", "color"),
            coords={**axis_coords(contents, ("step",)), "frame": frames},
            name="previews",
        )

    @property
    def links(self) -> xr.DataArray:
        """Frame attention from sixteen places of every latent frame to all tokens, mean over layers, heads and steps.

        Returns:
            float32 over (query_frame, place, frame, row, column), each row sums to 1; query_row and query_column say
            where the places are. In a factorised model frames look at each other within one place alone.

        Raises:
            KeepError: the capture was not asked for it.
        """
        return self._first.links

    @property
    def record(self) -> dict[str, Any]:
        """How the video was made: prompt, seed, steps, guidance, versions and more."""
        return self.contents.record

    @property
    def nbytes(self) -> int:
        """Bytes of all kept arrays."""
        return sum(array.nbytes for array in self.contents.arrays.values())

    def word_map(
        self,
        phrase: str | Word,
        layer: int | None = None,
        head: int | None = None,
        step: int | None = None,
        occurrence: Occurrence = None,
        branch: str | None = None,
    ) -> xr.DataArray:
        """Attention mass on a phrase: the sum over its tokens, by overlap at the edges.

        Args:
            phrase: characters of the prompt, or one of `words`.
            layer: one layer, from 0; None averages.
            head: one head, from 0; None averages.
            step: one denoising step, from 0; None averages.
            occurrence: which one (from 1, or "all") where the phrase occurs more than once.
            branch: "cond" or "uncond"; None is the first captured.

        Returns:
            float32 over (frame, row, column); NaN where not computed.

        Raises:
            PhraseError: the phrase is absent or ambiguous.
            KeepError: no kept array has the axes asked for.
        """
        part = self._first if branch is None else self.branch(branch)
        return part.word_map(phrase, layer=layer, head=head, step=step, occurrence=occurrence)

    def frame_attention(
        self,
        layer: int | None = None,
        head: int | None = None,
        step: int | None = None,
        branch: str | None = None,
    ) -> xr.Dataset:
        """How much each latent frame looks at each other.

        Where layers with different windows are averaged, a layer that cannot look somewhere
        counts there as mass 0; NaN stands where none of them looks.

        Args:
            layer: one layer, from 0; None averages.
            head: one head, from 0; None averages.
            step: one denoising step, from 0; None averages.
            branch: "cond" or "uncond"; None is the first captured.

        Returns:
            mass float32 over (query_frame, key_frame); where rows were sampled, also their stderr.

        Raises:
            KeepError: frames or the axes asked for were not kept.
        """
        part = self._first if branch is None else self.branch(branch)
        return part.frame_attention(layer=layer, head=head, step=step)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the trace to one file; a reader sees all of it or nothing."""
        contents = self.contents
        write_trace(path, contents.arrays, contents.header())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Open a trace without a model or a GPU; no pickle is read.

        Raises:
            TraceFileError: the file is missing, foreign or damaged.
        """
        arrays, header = read_trace(path)
        try:
            return cls(Contents.from_header(arrays, header))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TraceFileError(
                f"{str(path)!r} has a trace header that cannot be understood ({error!r}): "
                "open it with the wanviz that wrote it"
            ) from error

    def __repr__(self) -> str:
        """Sizes, what was kept, and where the clearest words peak."""
        if self._contents is None:
            return f"Trace: empty ({self._empty})"
        contents = self._contents
        sizes = {axis: len(labels) for axis, labels in contents.labels.items()}
        ran = steps_watched(contents)
        steps = str(sizes["step"]) if ran == sizes["step"] else f"{ran} of {sizes['step']}"
        parts = [
            f"Trace: {len(self.words)} words",
            f"{sizes['layer']} layers x {sizes['head']} heads x {steps} steps",
            "x".join(map(str, contents.grid.shape)) + " tokens",
        ]
        if "words" not in contents.record["failed"]:
            parts.append("peaks " + (self._peaks() or "none"))
        if len(self.branches) > 1:
            parts.append("branches " + ", ".join(self.branches))
        cut = contents.prompts[self.branches[0]].truncated_at
        if cut is not None:
            parts.append(f"prompt cut at character {cut}")
        if contents.record["failed"]:
            parts.append("failed: " + ", ".join(contents.record["failed"]))
        return " · ".join(parts)

    def clearest(self, count: int) -> list[Word]:
        """The words whose maps stand out most: by how much the peak exceeds the mean, in attention mass.

        Not by how many times it does: a word that nobody reads has a high ratio of tiny masses.

        Args:
            count: at most so many.

        Returns:
            Words, the clearest first; without those that have no tokens, or whose map has holes.
        """
        masses = self.maps[()].values
        found = []
        for word in self.words:
            mass = masses[list(word.tokens)].sum(axis=0)
            if word.tokens and np.isfinite(mass).all():
                found.append((float(mass.max() - mass.mean()), word))
        found.sort(key=lambda item: -item[0])
        return [word for _, word in found[:count]]

    def _peaks(self, count: int = 3) -> str:
        told = []
        for word in self.clearest(count):
            mass = self.maps[()].values[list(word.tokens)].sum(axis=0)
            f, h, w = (int(i) for i in np.unravel_index(mass.argmax(), mass.shape))
            told.append(f"{word.text} at frame {f} row {h} column {w}")
        return ", ".join(told)
