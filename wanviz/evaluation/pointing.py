"""Does the map of a word point at its object in the clips that the model draws?

Clips are generated for held-out prompts of the theatre. The region of the garment and of the
umbrella is found in each clip by colour, without a look at any map; then one asks, frame by frame,
whether the peak of the word's map lies inside it (the pointing game, Zhang et al. 2016, arXiv
1608.00507). A guess at the centre of the frame, and the share of the frame that the region covers,
stand beside: a map that does not beat them says nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tinywan import TextToVideoPipeline
from tinywan.evaluate import find_region, measure, sample_prompts
from tqdm import tqdm
from xarray import DataArray

from wanviz.capture import capture
from wanviz.errors import OptionError
from wanviz.grid import latent_frame


@dataclass(frozen=True)
class Pointing:
    """How often something pointed at an object; every share is over frames that show it."""

    frames: int  # pixel frames in which the object was found
    missing: int  # pixel frames of clips that should show it, and in which it was not found
    peak: float  # share of frames whose peak of the word's map lies in the object
    centre: float  # share of frames whose centre does
    area: float  # mean share of the frame that the object covers: what a random guess hits
    mistaken: int  # clips in which another object has its colour; they count all the same


def peak_pixels(word_map: DataArray, height: int, width: int) -> NDArray[np.intp]:
    """Where a word's map is largest, in each latent frame.

    Args:
        word_map: (frame, row, column), as `Trace.word_map` gives it.
        height: of the video in pixels.
        width: of the video in pixels.

    Returns:
        `[frame, 2]` row and column of the pixel in the middle of the largest token.
    """
    values = np.asarray(word_map.values)
    frames, rows, columns = values.shape
    best = values.reshape(frames, -1).argmax(axis=1)
    row, column = np.unravel_index(best, (rows, columns))
    middle = np.stack(
        [(2 * row + 1) * height // (2 * rows), (2 * column + 1) * width // (2 * columns)]
    )
    return middle.T


def point(
    word_map: DataArray, region: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Play the pointing game on one clip.

    Args:
        word_map: (frame, row, column) on latent frames.
        region: bool `[F, H, W]` where the object is.

    Returns:
        Two bool `[F]`: whether the map's peak, and whether the centre, lies in the region; both
        False in frames without the object.
    """
    num_frames, height, width = region.shape
    peaks = peak_pixels(word_map, height, width)
    latent = [latent_frame(i) for i in range(num_frames)]
    row, column = peaks[latent].T
    return region[np.arange(num_frames), row, column], region[:, height // 2, width // 2]


def belongs_to_another(frames: NDArray[np.uint8], color: str, name: str) -> bool:
    """Whether another object than the one looked for has its colour, e.g. the coat the umbrella's.

    Args:
        frames: uint8 `[F, H, W, 3]`.
        color: of the object looked for.
        name: "garment" or "umbrella".

    Returns:
        True where `find_region` finds the other object.
    """
    seen = measure(frames)
    return color == (seen.prop_color if name == "garment" else seen.garment_color)


def evaluate_pointing(
    pipe: TextToVideoPipeline, prompts: int = 60, seed: int = 0, progress_bar: bool = True
) -> tuple[dict[str, Pointing], list[dict[str, Any]]]:
    """Play the pointing game over generated clips of held-out prompts.

    Args:
        pipe: a trained tinywan.
        prompts: how many, English and Chinese in turn.
        seed: of prompts and clips.
        progress_bar: show one.

    Returns:
        By object ("garment", "umbrella") what was found, and one record per clip and object.

    Raises:
        OptionError: for no prompts at all.
    """
    if prompts < 1:
        raise OptionError(f"prompts={prompts}: use 1 or more")
    told = sample_prompts(prompts, seed)
    records: list[dict[str, Any]] = []
    for number, (scene, sentence) in enumerate(
        tqdm(told, "pointing", disable=not progress_bar, unit="clip")
    ):
        with capture(pipe, keep=[()], frames=None, routing=False) as trace:
            pipe(sentence.text, seed=seed + number, progress_bar=False)
        assert trace.frames is not None
        objects = [("garment", scene.garment_color, "garment")]
        if scene.prop == "umbrella":
            objects.append(("umbrella", scene.prop_color, "prop"))
        for name, color, part in objects:
            start, stop = sentence.spans[part][0]
            phrase = sentence.text[start:stop]
            word_map = trace.word_map(phrase, occurrence=_occurrence(sentence.text, phrase, start))
            region = find_region(
                trace.frames, color, "umbrella" if name == "umbrella" else "garment"
            )
            hit, centre = point(word_map, region)
            shown = region.any(axis=(1, 2))
            records.append(
                {
                    "object": name,
                    "prompt": sentence.text,
                    "language": sentence.language,
                    "phrase": phrase,
                    "seed": seed + number,
                    "frames": int(shown.sum()),
                    "missing": int((~shown).sum()),
                    "peak": int(hit[shown].sum()),
                    "centre": int(centre[shown].sum()),
                    "area": float(region[shown].mean(axis=(1, 2)).sum()),
                    "mistaken": int(belongs_to_another(trace.frames, color, name)),
                }
            )
    return {name: _summary(records, name) for name in ("garment", "umbrella")}, records


def _occurrence(text: str, phrase: str, start: int) -> int | None:
    """Which one of several equal phrases begins at `start`, 1-based; None where there is one."""
    return text[:start].count(phrase) + 1 if text.count(phrase) > 1 else None


def _summary(records: Iterable[dict[str, Any]], name: str) -> Pointing:
    chosen = [record for record in records if record["object"] == name]
    counted = ("frames", "missing", "peak", "centre", "area", "mistaken")
    total = {k: sum(r[k] for r in chosen) for k in counted}
    frames = max(1, total["frames"])
    return Pointing(
        frames=total["frames"],
        missing=total["missing"],
        peak=total["peak"] / frames,
        centre=total["centre"] / frames,
        area=total["area"] / frames,
        mistaken=total["mistaken"],
    )
