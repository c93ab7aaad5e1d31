"""What an attribution found: a map for each word, how it was made, and how far it can be trusted."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from importlib import import_module
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from wanviz.contents import Contents
from wanviz.errors import OptionError, PhraseError
from wanviz.grid import Grid, pixel_frame_label
from wanviz.interventions.scope import as_numbers
from wanviz.layout import array_name, special_columns
from wanviz.trace import Trace
from wanviz.words import EncodedPrompt, Token, Word


@dataclass(frozen=True)
class Phrase:
    """A word or phrase whose region is asked for."""

    text: str
    tokens: tuple[
        tuple[int, float], ...
    ]  # index, fraction of the token's characters that are meant
    spans: tuple[tuple[int, int], ...]  # characters [start, stop) of the prompt


def region_weights(region: Any, grid: tuple[int, ...]) -> NDArray[np.float32]:
    """How much each token belongs to a region, `[f, h, w]`.

    Raises:
        OptionError: it is of another shape, empty, or has numbers below 0.
    """
    weights = as_numbers("region", region).numpy()
    if weights.shape != grid or not (weights >= 0).all() or not weights.any():
        raise OptionError(
            f"region is shaped {weights.shape}: give weights from 0 over {grid} (frames, rows, columns), some of "
            "them above 0"
        )
    return weights


@dataclass(frozen=True)
class Attribution:
    """Which word is behind which region, by one method; at the end of a cell it shows itself as a trace does.

    Attributes:
        values: float32 over (word, frame, row, column) of the token grid; in the method's own unit, negative where a
            word is at work against what is drawn.
        method: its name in `METHODS`.
        parameters: how it was asked.
        checks: its own figures, e.g. "completeness_delta", "forwards"; see the method.
        prompt: with its tokens.
        phrases: of the words, in the order of `values`.
        frames: uint8 `[F, H, W, 3]`, the video; None where there is none.
        record: how the video was made, as in a trace.
    """

    values: xr.DataArray
    method: str
    parameters: dict[str, Any]
    checks: dict[str, float]
    prompt: EncodedPrompt
    phrases: tuple[Phrase, ...]
    frames: NDArray[np.uint8] | None = None
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> tuple[str, ...]:
        """The words and phrases that were asked for."""
        return tuple(phrase.text for phrase in self.phrases)

    def map(self, word: str | Word) -> xr.DataArray:
        """The map of one of the words over (frame, row, column).

        Raises:
            PhraseError: it was not asked for, or there are several with its text.
        """
        text, spans = (word.text, (word.span,)) if isinstance(word, Word) else (word, None)
        found = [
            row
            for row, phrase in enumerate(self.phrases)
            if phrase.text == text and spans in (None, phrase.spans)
        ]
        if not found:
            raise PhraseError(
                f"{text!r} is none of the words that were asked for: {', '.join(map(repr, self.words))}"
            )
        if len(found) > 1:
            raise PhraseError(
                f"{text!r} is {len(found)} of the words that were asked for: give one of trace.words, which knows "
                "its place"
            )
        return self.values[found[0]]

    def rank(self, region: Any) -> xr.DataArray:
        """Which words are behind a region: the inverse question.

        Args:
            region: over (frame, row, column) of the token grid, bool or weights from 0; a whole frame is a region, too.

        Returns:
            float32 over word, the highest first: the mean of each word's map over the region, less its mean over the
            whole clip, so that a word that is read everywhere does not win everywhere.

        Raises:
            OptionError: a region of another shape, or an empty one.
        """
        weights = region_weights(region, self.values.shape[1:])
        inside = (self.values.values * weights).sum(axis=(1, 2, 3)) / weights.sum()
        score = inside - self.values.values.mean(axis=(1, 2, 3))
        order = np.argsort(-score, kind="stable")
        return xr.DataArray(
            score[order].astype(np.float32),
            dims=("word",),
            coords={"word": np.array(self.words, dtype=object)[order]},
            name="score",
        )

    def as_trace(self) -> Trace:
        """The maps in a trace, for every view and for `wanviz.report`; negative values are drawn as 0.

        Its tokens are the words that were asked for, each with its map in every place where it occurs.

        Raises:
            OptionError: two of the words overlap in the prompt, so that their maps cannot be told apart there.
        """
        grid = self.values.shape[1:]
        spans = [(span, number) for number, p in enumerate(self.phrases) for span in p.spans]
        spans.sort()
        for ((_, stop), first), ((start, _), second) in pairwise(spans):
            if start < stop:
                one, other = (self.phrases[number].text for number in (first, second))
                raise OptionError(
                    f"{one!r} and {other!r} overlap in the prompt: ask for one of them to see it"
                )
        tokens = tuple(Token(self.prompt.text[slice(*span)], span) for span, _ in spans)
        prompt = EncodedPrompt(self.prompt.text, tokens, self.prompt.truncated_at)
        maps = np.maximum(self.values.values, 0)[[number for _, number in spans]]
        columns = np.concatenate(
            [maps, np.zeros((len(special_columns(prompt)), *grid), np.float32)]
        )
        arrays: dict[str, Any] = {array_name("cond", "words", ()): columns}
        if self.frames is not None:
            arrays["video"] = self.frames
        record = {
            "prompt": self.prompt.text,
            "steps": [],
            "frame_to_pixel": [pixel_frame_label(i) for i in range(grid[0])],
            **self.record,
            "frames": None,
            "routing": False,
            "failed": {},
            "model": f"{self.record.get('model', 'model')} · {self.method}",
            "attribution": {"method": self.method, **self.parameters},
        }
        words = tuple(Word(token.text, token.span, (i,)) for i, token in enumerate(tokens))
        return Trace(
            Contents(
                arrays=arrays,
                keep=((),),
                grid=Grid(*grid),
                labels={"layer": (0,), "step": (0,), "head": (0,)},
                prompts={"cond": prompt},
                words={"cond": words},
                record=record,
            )
        )

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, Any]:
        show = import_module("wanviz.show")  # the views lie above
        try:
            trace = self.as_trace()
        except OptionError as error:
            return {"text/plain": f"{self!r}\n{error}"}
        made: dict[str, Any] = show.mimebundle(trace, include, exclude)
        if "text/plain" in made:
            made["text/plain"] = repr(self)
        return made

    def __repr__(self) -> str:
        """Method, words, checks."""
        told = ", ".join(f"{name} {value:.3g}" for name, value in self.checks.items())
        return f"Attribution by {self.method}: {', '.join(self.words)}" + (
            f" · {told}" if told else ""
        )
