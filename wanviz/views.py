"""What every picture of a trace starts from: maps of its words, frames they stand for, overlays.

One rule for colour holds everywhere (plots and report): a map is attention mass, a fraction of what
a video position spends on all keys, end of text and padding included; `Scale` says which mass is drawn darkest and brightest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from wanviz.contents import steps_watched
from wanviz.grid import pixel_frames as pixel_frames_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wanviz.trace import Trace

    Floats = NDArray[np.float32]

COLOR_MAP = "magma"
LUMA = np.array([0.30, 0.59, 0.11])  # of red, green, blue, as a canvas takes colour out
LEAST_ALPHA, MOST_ALPHA = 0.25, 0.80  # how much of the video a map covers at the scale's two ends


@dataclass(frozen=True)
class Scale:
    """The attention masses that are drawn with the first and the last colour."""

    low: float
    high: float

    def __call__(self, mass: Floats) -> Floats:
        """Positions in [0, 1] of masses on this scale; a flat scale gives zeros."""
        if self.high <= self.low:
            return np.zeros_like(mass)
        position: Floats = np.clip((mass - self.low) / (self.high - self.low), 0, 1)
        return position

    @classmethod
    def of(cls, mass: Floats) -> Scale:
        """From zero to the highest mass of a clip, so that one scale serves all its frames."""
        return cls(0.0, float(np.nan_to_num(mass).max(initial=0.0)))


def pixel_frames(trace: Trace) -> list[range]:
    """The video frames that each latent frame stands for."""
    return [pixel_frames_of(frame) for frame in range(trace.contents.grid.frames)]


def steps_that_ran(trace: Trace) -> str:
    """'2 of 20 steps' where a run was stopped on its way, '' where it is whole."""
    ran, asked = steps_watched(trace.contents), len(trace.contents.labels["step"])
    return f"{ran} of {asked} steps" if ran < asked else ""


def shown_frame(span: range) -> int:
    """The video frame that stands for a latent frame in still pictures: its middle one."""
    return span[len(span) // 2]


def picture(trace: Trace, span: range) -> NDArray[np.uint8]:
    """The video frame of a span, [H, W, 3]; plain grey where a trace has no decoded video."""
    if trace.frames is None:
        rows, columns = trace.contents.grid.shape[1:]
        return np.full((8 * rows, 8 * columns, 3), 96, np.uint8)
    return np.asarray(trace.frames[shown_frame(span)])


def span_label(frames: range) -> str:
    """'0' or '1–4', for people."""
    return str(frames[0]) if len(frames) == 1 else f"{frames[0]}–{frames[-1]}"


def upsample(mass: Floats, height: int, width: int) -> Floats:
    """Bilinear, between the centres of cells: [row, column] to [height, width]."""
    rows, row_weight = _neighbours(mass.shape[0], height)
    columns, column_weight = _neighbours(mass.shape[1], width)
    upper, lower = mass[rows[0]], mass[rows[1]]
    mixed = upper + (lower - upper) * row_weight[:, None]
    left, right = mixed[:, columns[0]], mixed[:, columns[1]]
    blended: Floats = (left + (right - left) * column_weight).astype(np.float32)
    return blended


def overlay(frame: NDArray[np.uint8], mass: Floats, scale: Scale) -> NDArray[np.uint8]:
    """Lay a map over a video frame without its colours, which could be taken for the map's.

    Dim where the mass is low, bright where it is high.

    Args:
        frame: [H, W, 3].
        mass: [row, column].
        scale: which masses get the first and the last colour.

    Returns:
        [H, W, 3].
    """
    position = scale(upsample(mass, *frame.shape[:2]))
    color = colors()[np.rint(position * 255).astype(int)]
    alpha = (LEAST_ALPHA + (MOST_ALPHA - LEAST_ALPHA) * position)[..., None]
    grey = (frame @ LUMA)[..., None]
    laid: NDArray[np.uint8] = np.rint(grey * (1 - alpha) + color * alpha).astype(np.uint8)
    return laid


def colors(name: str = COLOR_MAP) -> NDArray[np.uint8]:
    """A colour map as a table, [256, 3]."""
    import matplotlib as mpl

    table: NDArray[np.uint8] = mpl.colormaps[name](np.arange(256), bytes=True)[:, :3]
    return table


def _neighbours(cells: int, pixels: int) -> tuple[NDArray[np.intp], Floats]:
    """For each pixel the two nearest cells, [2, pixels], and the weight of the second."""
    position = np.clip((np.arange(pixels) + 0.5) * cells / pixels - 0.5, 0, cells - 1)
    first = np.floor(position).astype(np.intp)
    second = np.minimum(first + 1, cells - 1)
    return np.stack([first, second]), (position - first).astype(np.float32)
