"""The brush that paints scenery, in 96ths of the picture: x of its width, y of its height downwards.

A moving camera sees more than the picture is wide: then the image reaches beyond both sides. What is painted
there is drawn from a second generator, so that the picture itself stays the one of the still camera.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageDraw

from tinywan.theatre.palette import RGB, Paints, mix
from tinywan.theatre.scene import Scene

_DULL: RGB = (84, 92, 106)
_SNOW: RGB = (226, 231, 238)
_GROUND = ("road", "lawn", "sand")


class Brush:
    """Paints scenery, and mixes every paint for the weather.

    Args:
        scene: its weather and seed.
        height: pixels of the picture.
        width: pixels of the picture.
        margin: pixels to paint beyond the picture on the left and on the right.
        grain: how many drawn points make a pixel, along each axis.
        rng: the layout of the picture.
    """

    def __init__(
        self,
        scene: Scene,
        height: int,
        width: int,
        margin: int,
        grain: int,
        rng: np.random.Generator,
    ) -> None:
        self.weather = scene.weather
        self.rng = rng
        self.paints = Paints()
        self.image = Image.new("L", ((width + 2 * margin) * grain, height * grain), 0)
        self.wide = margin > 0
        seen = 96 * (margin + self.wide) / width  # one pixel more, as what is left of 0 is cut off
        self.left, self.right = -seen, 96 + seen
        self.drips: list[tuple[float, float]] = []
        self._draw = ImageDraw.Draw(self.image)
        self._sx, self._sy, self._x0 = width * grain / 96, height * grain / 96, margin * grain
        self._beyond = np.random.default_rng([scene.seed, 5]) if self.wide else rng

    @contextmanager
    def beyond(self) -> Iterator[None]:
        """Inside, chance is that of what lies beyond the picture."""
        inside, self.rng = self.rng, self._beyond
        try:
            yield
        finally:
            self.rng = inside

    def paint(self, color: RGB, part: str, snowy: float | None = None) -> int:
        """Mix a paint for the weather; `snowy` says how much snow lies on it."""
        if self.weather == "rain":
            color = mix(color, _DULL, 0.34)
        elif self.weather == "snow":
            lies = snowy if snowy is not None else 0.55 if part in _GROUND else 0.0
            color = mix(mix(color, _DULL, 0.16), _SNOW, lies)
        return self.paints.add(color, part)

    def between(self, low: float, high: float) -> float:
        """A number by chance."""
        return low + (high - low) * float(self.rng.random())

    def strewn(self, count: int, wide: float) -> list[tuple[float, float]]:
        """Places (x in 96ths, y in 0..1) of things of a width: `count` of them to a picture."""
        places = [(96 * x, y) for x, y in self.rng.random((count, 2)).tolist()]
        if self.wide:
            more = round(2 * count * (self.right - 96) / 96)
            for number, (x, y) in enumerate(self._beyond.random((more, 2)).tolist()):
                places.append(
                    (96 + (self.right - 96) * x if number % 2 else self.left * x - wide, y)
                )
        return places

    def _at(self, x: float, y: float) -> tuple[int, int]:
        return int(x * self._sx + 0.5) + self._x0, int(y * self._sy + 0.5)

    def box(self, paint: int, left: float, top: float, right: float, bottom: float) -> None:
        """Fill a rectangle."""
        (x0, y0), (x1, y1) = self._at(left, top), self._at(right, bottom)
        if x1 > x0 and y1 > y0:
            self._draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=paint)

    def band(self, paint: int, top: float, bottom: float = 96) -> None:
        """Fill a rectangle as wide as the world."""
        self.box(paint, self.left, top, self.right, bottom)

    def shape(self, paint: int, *points: tuple[float, float]) -> None:
        """Fill a polygon."""
        self._draw.polygon([self._at(x, y) for x, y in points], fill=paint)

    def disc(self, paint: int, x: float, y: float, rx: float, ry: float) -> None:
        """Fill an ellipse."""
        self._draw.ellipse((*self._at(x - rx, y - ry), *self._at(x + rx, y + ry)), fill=paint)

    def line(self, paint: int, width: float, *points: tuple[float, float]) -> None:
        """Draw a line of a width."""
        thick = max(1, int(width * min(self._sx, self._sy) + 0.5))
        self._draw.line([self._at(x, y) for x, y in points], fill=paint, width=thick)

    def specks(self, paint: int, count: int, top: float, bottom: float) -> None:
        """Short dashes strewn over a band."""
        for x, y in self.strewn(count, 1.6):
            y = top + (bottom - top) * y
            self.box(paint, x, y, x + 1.6, y + 1.0)
