"""How well a map finds an object, on the token grid: pointing, overlap, precision, and how steadily it follows.

A map has one value for each token, the truth one bit for each pixel. Everything is counted in pixels: a token that is
chosen brings all of its pixels, so that no map can be perfect, and the ceiling of the grid is the score of the truth itself,
averaged over tokens. Pointing game: Zhang et al. 2016, arXiv 1608.00507.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanviz.grid import latent_frame

Values = NDArray[np.floating]
THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(1, 20))  # parts of a map's range


@dataclass(frozen=True)
class Truth:
    """Where one object is.

    Attributes:
        inside: pixels of the object in each token, `[F, h, w]`, one row for each pixel frame.
        per_token: pixels of a token.
        latent: latent frame of each pixel frame, `[F]`.
    """

    inside: NDArray[np.int64]
    per_token: int
    latent: NDArray[np.int64]

    @property
    def clip(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pixels of the object, and of all, in each token of the latent grid `[f, h, w]`."""
        frames = int(self.latent.max()) + 1
        inside = np.zeros((frames, *self.inside.shape[1:]), np.int64)
        np.add.at(inside, self.latent, self.inside)
        counts = np.bincount(self.latent, minlength=frames) * self.per_token
        return inside, np.broadcast_to(counts[:, None, None], inside.shape)

    @property
    def ideal(self) -> NDArray[np.float64]:
        """The best map that the grid allows, ties aside: the part of each token that the object covers."""
        inside, total = self.clip
        return inside / total


def truth_of(mask: NDArray[np.bool_], rows: int, columns: int) -> Truth:
    """Count an object's pixels by token.

    Args:
        mask: bool `[F, H, W]`.
        rows: tokens along H.
        columns: tokens along W.
    """
    frames, height, width = mask.shape
    tall, wide = height // rows, width // columns
    inside = mask.reshape(frames, rows, tall, columns, wide).sum(axis=(2, 4))
    latent = np.array([latent_frame(i) for i in range(frames)])
    return Truth(inside.astype(np.int64), tall * wide, latent)


def pointing(values: Values, truth: Truth) -> float:
    """Part of the frames that show the object in which the token of the map's peak holds some of it.

    Args:
        values: `[f, h, w]`.
        truth: of the object.
    """
    peaks = values.reshape(len(values), -1).argmax(axis=1)[truth.latent]  # F
    flat = truth.inside.reshape(len(truth.inside), -1)
    shown = flat.any(axis=1)
    return float((flat[np.arange(len(flat)), peaks] > 0)[shown].mean())


def overlap(values: Values, truth: Truth, threshold: float) -> float:
    """Intersection over union of the object and the tokens above a threshold, over the clip.

    Args:
        values: `[f, h, w]`.
        truth: of the object.
        threshold: part of the way from the map's least to its largest value in the clip.
    """
    inside, total = truth.clip
    low, high = float(values.min()), float(values.max())
    chosen = values >= low + threshold * (high - low)
    hit = inside[chosen].sum()
    return float(hit / (total[chosen].sum() + inside[~chosen].sum()))


def precision(values: Values, truth: Truth) -> float:
    """Average precision of the object's pixels, ranked by their tokens' values; ties count as one.

    Args:
        values: `[f, h, w]`.
        truth: of the object.
    """
    inside, total = (part.ravel() for part in truth.clip)
    order = np.argsort(-values.ravel(), kind="stable")
    hits, seen = inside[order].cumsum(), total[order].cumsum()
    ranked = values.ravel()[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of equal values
    recall, exact = hits[last] / hits[-1], hits[last] / seen[last]
    return float((np.diff(recall, prepend=0) * exact).sum())


def straying(values: Values, truth: Truth) -> float:
    """How far the map's centre moves otherwise than the object's, in tokens per latent frame; 0 is as one.

    Args:
        values: `[f, h, w]`; what is below a frame's mean counts as nothing.
        truth: of the object; latent frames without it are left out.
    """
    inside, _ = truth.clip
    above = np.maximum(values - values.mean(axis=(1, 2), keepdims=True), 0)
    steps = np.diff(_centre(above), axis=0) - np.diff(_centre(inside), axis=0)
    length = np.hypot(*steps.T)
    return float(np.nanmean(length)) if np.isfinite(length).any() else float("nan")


def _centre(weights: NDArray[Any]) -> NDArray[np.float64]:
    """Row and column of each frame's centre of mass, `[f, 2]`; NaN where there is none."""
    rows, columns = np.indices(weights.shape[1:])
    mass = weights.sum(axis=(1, 2)).astype(float)
    mass[mass == 0] = np.nan
    return np.stack([(weights * axis).sum(axis=(1, 2)) / mass for axis in (rows, columns)], axis=1)


@dataclass(frozen=True)
class Interval:
    """A mean over clips, and where it lies with 95 % confidence."""

    mean: float
    low: float
    high: float
    clips: int

    def __str__(self) -> str:
        """Mean and interval in percent."""
        return f"{100 * self.mean:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def interval(values: Sequence[float], clips: Sequence[int], seed: int = 0) -> Interval:
    """Mean and bootstrap interval; whole clips are drawn again, since words of one clip are not independent.

    Args:
        values: of each word.
        clips: which clip it belongs to.
        seed: of the draws.
    """
    found = np.asarray(values, float)
    usable = np.isfinite(found)
    numbers, place = np.unique(np.asarray(clips)[usable], return_inverse=True)
    if not len(numbers):
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    sums = np.bincount(place, found[usable], len(numbers))
    counts = np.bincount(place, minlength=len(numbers))
    drawn = np.random.default_rng(seed).integers(len(numbers), size=(2000, len(numbers)))
    means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(found[usable].mean()), float(low), float(high), len(numbers))
