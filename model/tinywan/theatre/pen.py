"""The pen that draws the cast, and the numbers of its paints."""

from PIL import ImageDraw

# Paint numbers. Those of the prop come last: the outline takes the side of the larger number.
(LINE, SKIN, CHEEK, HAIR, SHOE, FAR, CLOTH, FUR, FUR_FAR, MUZZLE, GARMENT, SHADE, LIGHT, TRIM) = (
    range(1, 15)
)
(PROP_LINE, PROP, PROP_SHADE, PROP_LIGHT, WOOD) = range(15, 20)


class Pen:
    """Draws in units on an image of paint numbers."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, scale: float, x: float, y: float, lean: float
    ) -> None:
        self._draw, self._scale, self._x, self._y, self._lean = draw, scale, x, y, lean

    def scaled(self, share: float) -> "Pen":
        """A pen at the same point that draws everything at a share of the size."""
        return Pen(self._draw, self._scale * share, self._x, self._y, self._lean)

    def _at(self, x: float, y: float) -> tuple[int, int]:
        scale = self._scale
        return int(self._x + (x + self._lean * y) * scale + 0.5), int(self._y - y * scale + 0.5)

    def shape(self, paint: int, *points: tuple[float, float]) -> None:
        """Fill a polygon."""
        self._draw.polygon([self._at(x, y) for x, y in points], fill=paint)

    def disc(self, paint: int, x: float, y: float, rx: float, ry: float) -> None:
        """Fill an ellipse."""
        left, top = self._at(x, y)
        dx, dy = rx * self._scale, ry * self._scale
        self._draw.ellipse(
            (int(left - dx + 0.5), int(top - dy + 0.5), int(left + dx), int(top + dy)), fill=paint
        )

    def stroke(self, paint: int, width: float, *points: tuple[float, float]) -> None:
        """Draw a line of a width with round joints."""
        pixels = [self._at(x, y) for x, y in points]
        thick = max(1, int(width * self._scale + 0.5))
        self._draw.line(pixels, fill=paint, width=thick, joint="curve" if thick > 3 else None)
