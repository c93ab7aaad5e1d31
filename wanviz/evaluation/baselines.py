"""Maps that know nothing, or the wrong thing: what an attribution has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tinywan import TextToVideoPipeline

from wanviz.attribution.attention import Maps
from wanviz.evaluation.truth import Told
from wanviz.trace import Trace


def baselines(
    trace: Trace, told: Sequence[Told], attended: Maps, rng: np.random.Generator
) -> dict[str, Maps]:
    """Float32 `[word, f, h, w]` by name.

    Args:
        trace: that kept ("layer", "head").
        told: the words.
        attended: their maps by the method whose words are shuffled.
        rng: for chance, the head, and the word.
    """
    shape = attended.shape
    masses = trace.maps["layer", "head"].values
    head = masses[rng.integers(masses.shape[0]), rng.integers(masses.shape[1])]
    return {
        "ceiling": np.stack([t.truth.ideal for t in told]).astype(np.float32),
        "centre": np.broadcast_to(_nearness(shape[2], shape[3]), shape).astype(np.float32),
        "everything": np.ones(shape, np.float32),
        "chance": rng.random(shape, np.float32),
        "random_head": np.stack(
            [sum(share * head[i] for i, share in t.phrase.tokens) for t in told]
        ).astype(np.float32),
        "shuffled_word": attended[_others(told, rng)],
    }


def _nearness(rows: int, columns: int) -> NDArray[np.float64]:
    """The less far from the middle of the frame, the more."""
    row, column = np.indices((rows, columns))
    return -np.hypot((row + 0.5) / rows - 0.5, (column + 0.5) / columns - 0.5)


def _others(told: Sequence[Told], rng: np.random.Generator) -> list[int]:
    """For each word one that names another part of the scene, where there is one."""
    chosen = []
    for number, one in enumerate(told):
        others = [i for i, other in enumerate(told) if other.part != one.part]
        chosen.append(int(rng.choice(others)) if others else number)
    return chosen


def with_random_denoisers(pipe: TextToVideoPipeline, seed: int = 0) -> TextToVideoPipeline:
    """The same tokenizer, text encoder and VAE, and denoisers that learned nothing (arXiv 1810.03292: sanity checks)."""
    fresh = TextToVideoPipeline.from_preset(pipe.config.name, seed)
    fresh.text_encoder, fresh.vae = pipe.text_encoder, pipe.vae
    fresh.config = pipe.config
    return fresh
