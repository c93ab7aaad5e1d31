"""The stage: a place in its weather, drawn once per clip."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinywan.theatre.brush import Brush
from tinywan.theatre.places import PLACES
from tinywan.theatre.scene import Scene


@dataclass(frozen=True)
class Backdrop:
    """A place without actors; W is the width of the picture and of what lies beyond it on both sides.

    Args:
        color: uint8 [H, W, 3].
        labels: uint8 [H, W], index into `parts`.
        parts: what the scenery is made of.
        drips: (x, y) in 96ths of the picture where water drips from the eaves; empty elsewhere.
    """

    color: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    parts: tuple[str, ...]
    drips: tuple[tuple[float, float], ...]


def draw_backdrop(
    scene: Scene, height: int, width: int, margin: int, grain: int, rng: np.random.Generator
) -> Backdrop:
    """Draw the place of a scene in its weather.

    Args:
        scene: where and in which weather.
        height: pixels.
        width: pixels of the picture.
        margin: pixels to draw beyond the picture on each side.
        grain: how many drawn points make a pixel, along each axis.
        rng: the layout.
    """
    brush = Brush(scene, height, width, margin, grain, rng)
    PLACES[scene.place](brush)
    points = np.asarray(brush.image)
    area = grain * grain
    color = ((brush.paints.pixels(points, grain)[..., :3] + area // 2) // area).astype(np.uint8)
    names = brush.paints.parts
    parts = tuple(dict.fromkeys(name for name in names if name))
    number = np.array([parts.index(name) if name else len(parts) for name in names], np.uint8)
    # The part of a pixel is that of its lower right middle point.
    labels = number[points[grain // 2 :: grain, grain // 2 :: grain]]
    return Backdrop(color, labels, parts, tuple(brush.drips) if scene.weather == "rain" else ())
