"""Clips whose words have masks: rendered scenes of combinations that the model never saw, and clips that it drew."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tinywan import TextToVideoPipeline, theatre
from tinywan.evaluate import find_region, sample_prompts

from wanviz.attribution.result import Phrase
from wanviz.evaluation.scores import Truth, truth_of
from wanviz.words import EncodedPrompt, token_weights

WEATHER = ("rain", "snow", "drips")  # drops and flakes, far smaller than a token
CLASSES = ("subject", "garment", "prop", "companion", "color", "scenery", "wind", "weather")


@dataclass(frozen=True)
class Told:
    """A word of a caption, and where what it names is."""

    kind: str  # out of CLASSES
    part: str  # of the scene
    phrase: Phrase
    truth: Truth


@dataclass(frozen=True)
class Sample:
    """A clip with its caption, and where things are in it."""

    number: int
    language: str
    text: str
    frames: NDArray[Any]  # F H W 3, uint8 or float in [0, 1]
    scene: theatre.Scene
    caption: theatre.Caption
    masks: dict[str, NDArray[np.bool_]]

    def words(self, encoded: EncodedPrompt, rows: int, columns: int) -> tuple[Told, ...]:
        """Every word that has a place in this clip, with the words for colours.

        Words of two parts that share a token, as 风 and 雨 in 风雨, are left out: one map cannot be right for both.

        Args:
            encoded: the caption, as the model's tokenizer splits it.
            rows: of the token grid.
            columns: of the token grid.
        """
        told = [(_kind(part), part, spans) for part, spans in self.caption.spans.items()]
        told += [("color", part, spans) for part, spans in self.caption.colors.items()]
        weights = [token_weights(encoded, spans) for _, _, spans in told]
        parts_of: dict[int, set[str]] = defaultdict(set)  # token -> parts that it tells of
        for (_, part, _), found in zip(told, weights, strict=True):
            for token, _ in found:
                parts_of[token].add(part)
        return tuple(
            Told(
                kind,
                part,
                Phrase(self.text[slice(*spans[0])], found, spans),
                truth_of(self.masks[part], rows, columns),
            )
            for (kind, part, spans), found in zip(told, weights, strict=True)
            if part in self.masks
            and self.masks[part].any()
            and all(parts_of[token] == {part} for token, _ in found)
        )


def rendered(
    number: int,
    seed: int,
    split: Literal["train", "held_out"],
    num_frames: int = 17,
    size: int = 96,
) -> Sample:
    """A rendered clip; even numbers are told in English, odd ones in Chinese.

    Args:
        number: which one.
        seed: of scenes and wordings.
        split: "held_out" combinations of factors were never trained on.
        num_frames: pixel frames.
        size: pixels of a side.
    """
    rng = np.random.default_rng([seed, number, 77])
    scene = theatre.sample_scene(rng, split=split, world="whole")
    language: Literal["en", "zh"] = "zh" if number % 2 else "en"
    caption = theatre.caption(scene, language, rng=rng)
    clip = theatre.render(scene, num_frames, size, size)
    return Sample(number, language, caption.text, clip.frames, scene, caption, clip.masks)


def generated(pipe: TextToVideoPipeline, number: int, count: int, seed: int) -> Sample:
    """A clip that the model drew for a held-out prompt; its garment and umbrella are found by their colours.

    Args:
        pipe: a trained tinywan.
        number: which one, below `count`.
        count: how many prompts there are in all.
        seed: of prompts and clips.
    """
    scene, caption = sample_prompts(count, seed)[number]
    frames = pipe(caption.text, seed=seed + number, progress_bar=False).frames[0]
    pictures = (frames * 255).round().astype(np.uint8)
    masks = {"garment": find_region(pictures, scene.garment_color, "garment")}
    if scene.prop == "umbrella":
        masks["prop"] = find_region(pictures, scene.prop_color, "umbrella")
    return Sample(number, caption.language, caption.text, pictures, scene, caption, masks)


def _kind(part: str) -> str:
    if part in WEATHER:
        return "weather"
    return part if part in CLASSES else "scenery"
