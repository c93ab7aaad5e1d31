"""The four places: muted scenery, drawn once per clip.

Lengths are in 96ths of the picture: x of its width rightwards, y of its height downwards.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from tinywan.theatre.palette import RGB, Paints, mix
from tinywan.theatre.scene import Scene


@dataclass(frozen=True)
class Backdrop:
    """A place without actors.

    Args:
        color: uint8 [H, W, 3].
        parts: part -> bool [H, W].
        drips: (x, y) in 96ths where water drips from the eaves; empty elsewhere.
    """

    color: npt.NDArray[np.uint8]
    parts: dict[str, npt.NDArray[np.bool_]]
    drips: tuple[tuple[float, float], ...]


_DULL: RGB = (84, 92, 106)
_SNOW: RGB = (226, 231, 238)
_GROUND = ("road", "lawn", "sand")


class _Set:
    """Draws scenery in 96ths; mixes every paint for the weather."""

    def __init__(
        self, scene: Scene, height: int, width: int, grain: int, rng: np.random.Generator
    ) -> None:
        self.weather = scene.weather
        self.rng = rng
        self.paints = Paints()
        self.image = Image.new("L", (width * grain, height * grain), 0)
        self._draw = ImageDraw.Draw(self.image)
        self._sx, self._sy = width * grain / 96, height * grain / 96
        self.drips: list[tuple[float, float]] = []

    def paint(self, color: RGB, part: str, snowy: float | None = None) -> int:
        """Mix a paint for the weather; `snowy` says how much snow lies on it."""
        if self.weather == "rain":
            color = mix(color, _DULL, 0.34)
        elif self.weather == "snow":
            lies = snowy if snowy is not None else 0.55 if part in _GROUND else 0.0
            color = mix(mix(color, _DULL, 0.16), _SNOW, lies)
        return self.paints.add(color, part)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def _at(self, x: float, y: float) -> tuple[int, int]:
        return int(x * self._sx + 0.5), int(y * self._sy + 0.5)

    def box(self, paint: int, left: float, top: float, right: float, bottom: float) -> None:
        (x0, y0), (x1, y1) = self._at(left, top), self._at(right, bottom)
        if x1 > x0 and y1 > y0:
            self._draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=paint)

    def shape(self, paint: int, *points: tuple[float, float]) -> None:
        self._draw.polygon([self._at(x, y) for x, y in points], fill=paint)

    def disc(self, paint: int, x: float, y: float, rx: float, ry: float) -> None:
        self._draw.ellipse((*self._at(x - rx, y - ry), *self._at(x + rx, y + ry)), fill=paint)

    def line(self, paint: int, width: float, *points: tuple[float, float]) -> None:
        thick = max(1, int(width * min(self._sx, self._sy) + 0.5))
        self._draw.line([self._at(x, y) for x, y in points], fill=paint, width=thick)

    def specks(self, paint: int, count: int, top: float, bottom: float) -> None:
        """Short dashes strewn over a band."""
        for x, y in self.rng.random((count, 2)).tolist():
            x, y = 96 * x, top + (bottom - top) * y
            self.box(paint, x, y, x + 1.6, y + 1.0)


def _alley(stage: _Set) -> None:
    """A Jiangnan stone alley: whitewashed walls, tiled eaves, slabs that meet in the distance."""
    gap = stage.between(36, 60)
    half = stage.between(5.5, 8.5)
    left_end, right_end = gap - half, gap + half
    low = stage.between(65.5, 69.0)
    stage.box(stage.paint((192, 200, 208), "sky"), 0, 0, 96, 96)
    far = stage.paint((176, 180, 182), "wall")
    stage.box(far, left_end, 34, right_end, low)
    tile = stage.paint((62, 68, 78), "eaves", 0.3)
    ridge = stage.paint((92, 98, 108), "eaves", 0.45)
    rim = stage.paint((44, 48, 56), "eaves", 0.1)
    stage.shape(tile, (left_end - 2, 36), (gap, 29), (right_end + 2, 36))
    wood = stage.paint((92, 80, 74), "window")
    dark = stage.paint((64, 58, 58), "window")
    plinth = stage.paint((138, 140, 140), "wall")
    stain = stage.paint((186, 187, 184), "wall")
    for side, color in ((-1, (212, 211, 206)), (1, (202, 202, 198))):
        wall = stage.paint(color, "wall")
        start, stop = (0.0, left_end) if side < 0 else (right_end, 96.0)
        stage.box(wall, start, 14, stop, low)
        stage.box(plinth, start, low - 4.5, stop, low)
        for _ in range(4):
            x, y = stage.between(start, stop - 3), stage.between(22, 50)
            stage.box(stain, x, y, min(x + stage.between(1.5, 3.5), stop), y + stage.between(4, 12))
        middle = stage.between(start + 9, stop - 12) if stop - start > 24 else (start + stop) / 2
        if (side < 0) == (stage.rng.random() < 0.5):
            stage.box(wood, middle - 6, 37, middle + 6, low)
            stage.box(dark, middle - 4.6, 39, middle - 0.5, low)
            stage.box(dark, middle + 0.5, 39, middle + 4.6, low)
        else:
            stage.box(wood, middle - 6, 32, middle + 6, 45)
            for step in range(3):
                stage.box(dark, middle - 5 + 3.6 * step, 33.2, middle - 2.2 + 3.6 * step, 43.8)
        _eaves(stage, side, start, stop, (tile, ridge, rim))
    stone = stage.paint((130, 137, 138), "road")
    joint = stage.paint((100, 107, 110), "road")
    pale = stage.paint((146, 153, 154), "road")
    stage.box(stone, 0, low, 96, 96)
    rows = [low + (96 - low) * share for share in (0.0, 0.14, 0.34, 0.62, 1.0)]
    for number in range(4):
        top, bottom = rows[number], rows[number + 1]
        near, far_off = (13 + (y - low) * 0.5 for y in (bottom, top))  # widths of a slab
        for slab in range(-5, 6):
            shift = slab + 0.5 * (number % 2)
            upper, lower = gap + shift * far_off, gap + shift * near
            if stage.rng.random() < 0.3:
                corners = (
                    (upper, top),
                    (upper + far_off, top),
                    (lower + near, bottom),
                    (lower, bottom),
                )
                stage.shape(pale, *corners)
            stage.line(joint, 0.9, (upper, top), (lower, bottom))
        stage.line(joint, 1.0, (0, top), (96, top))
    stage.line(joint, 0.9, (0, low), (96, low))


def _eaves(stage: _Set, side: int, start: float, stop: float, paints: tuple[int, int, int]) -> None:
    """One tiled roof along the top whose inner corner curls up over the alley."""
    tile, ridge, rim = paints
    top, edge = stage.between(3.5, 6.0), stage.between(16.5, 19.0)
    inner = stop + 3.5 if side < 0 else start - 3.5
    outer = -2.0 if side < 0 else 98.0
    step = side  # from the corner outwards
    stage.shape(
        tile,
        (outer, top),
        (inner + 9 * step, top),
        (inner + 4.5 * step, edge - 6),
        (inner - 2.0 * step, edge - 5.5),
        (inner + 1.5 * step, edge),
        (outer, edge),
    )
    stage.box(
        ridge, min(outer, inner + 9 * step), top - 1.6, max(outer, inner + 9 * step), top + 0.8
    )
    x = inner + 4.0 * step
    while 0 < x < 96:
        stage.line(ridge, 0.9, (x + 1.2 * step, top + 1), (x, edge - 1))
        stage.disc(rim, x + 1.9 * step, edge + 0.2, 1.5, 1.5)
        stage.drips.append((x + 1.9 * step, edge + 2.0))
        x += 3.8 * step


def _park(stage: _Set) -> None:
    """Lawn, a path, and round trees."""
    horizon = stage.between(52, 57)
    path = stage.between(75, 78)
    stage.box(stage.paint((190, 204, 212), "sky"), 0, 0, 96, 96)
    hedge = stage.paint((118, 134, 116), "tree", 0.3)
    for step in range(9):
        stage.disc(hedge, step * 12 + stage.between(-2, 2), horizon - 2, 9, stage.between(6, 12))
    stage.box(stage.paint((136, 150, 106), "lawn", 0.62), 0, horizon, 96, 96)
    stage.specks(stage.paint((116, 132, 90), "lawn", 0.4), 34, horizon + 2, 95)
    trunk = stage.paint((98, 84, 72), "tree", 0.1)
    crown = stage.paint((84, 108, 80), "tree", 0.22)
    leaf = stage.paint((104, 126, 94), "tree", 0.55)
    first = stage.between(8, 24)
    for x in (first, first + stage.between(28, 36), first + stage.between(58, 68)):
        foot, r = horizon + stage.between(3, 10), stage.between(11, 14.5)
        stage.box(trunk, x - 2, foot - 22, x + 2, foot)
        y = foot - 30
        for dx, dy, share in ((-0.55, 0.25, 0.7), (0.55, 0.25, 0.7), (0.0, -0.2, 0.9)):
            stage.disc(crown, x + dx * r, y + dy * r, r * share, r * share)
        for dx, dy, share in ((-0.5, -0.05, 0.38), (0.25, -0.55, 0.42)):
            stage.disc(leaf, x + dx * r, y + dy * r, r * share, r * share * 0.8)
    bend = stage.between(-2, 2)
    stage.shape(
        stage.paint((184, 174, 154), "road"),
        (0, path),
        (48, path + bend),
        (96, path - bend),
        (96, 93),
        (48, 93 + bend),
        (0, 92),
    )
    stage.specks(stage.paint((166, 156, 136), "road"), 16, path + 3, 90)


def _beach(stage: _Set) -> None:
    """Sky, sea and sand, with a sail far out."""
    horizon = stage.between(40, 46)
    shore = stage.between(64, 69)
    stage.box(stage.paint((196, 208, 218), "sky"), 0, 0, 96, 96)
    cloud = stage.paint((220, 225, 228), "sky")
    for _ in range(3):
        x, y = stage.between(6, 90), stage.between(6, 26)
        for dx, r in ((-6, 3.4), (0, 5.0), (6, 3.2)):
            stage.disc(cloud, x + dx, y, r * 1.6, r * 0.8)
    stage.box(stage.paint((104, 134, 156), "sea"), 0, horizon, 96, 96)
    stage.box(stage.paint((122, 150, 168), "sea"), 0, (horizon + shore) / 2, 96, 96)
    wave = stage.paint((150, 172, 184), "sea")
    for x, y in stage.rng.random((22, 2)).tolist():
        x, y = 96 * x, horizon + 2 + (shore - horizon - 6) * y
        stage.box(wave, x, y, x + 6, y + 0.9)
    x = stage.between(12, 84)
    stage.shape(
        stage.paint((224, 224, 220), "sail"),
        (x, horizon - 13),
        (x, horizon - 2),
        (x + 8, horizon - 2),
    )
    stage.shape(
        stage.paint((96, 88, 84), "sail"),
        (x - 4, horizon - 1.4),
        (x + 8, horizon - 1.4),
        (x + 5, horizon + 1.6),
        (x - 2, horizon + 1.6),
    )
    curl = [(12.0 * step, shore + stage.between(-1.4, 1.4)) for step in range(9)]
    stage.shape(
        stage.paint((216, 224, 226), "sea"),
        (0, shore - 2.4),
        *[(x, y - 1.6) for x, y in curl],
        (96, 96),
        (0, 96),
    )
    stage.shape(
        stage.paint((186, 174, 150), "road"), *[(x, y + 1.2) for x, y in curl], (96, 96), (0, 96)
    )
    stage.shape(
        stage.paint((212, 201, 176), "road"), *[(x, y + 4.6) for x, y in curl], (96, 96), (0, 96)
    )
    stage.specks(stage.paint((188, 176, 152), "road"), 26, shore + 8, 95)


def _street(stage: _Set) -> None:
    """A street at night: houses with lit windows, a lamp, a dark road."""
    low = stage.between(69, 72)
    stage.box(stage.paint((40, 46, 66), "sky", 0.06), 0, 0, 96, 96)
    if stage.weather == "clear":
        pale = stage.paint((214, 212, 196), "sky")
        stage.disc(pale, stage.between(14, 82), stage.between(7, 10), 4.2, 4.2)
        for x, y in stage.rng.random((9, 2)).tolist():
            stage.box(pale, 96 * x, 20 * y, 96 * x + 0.9, 20 * y + 0.9)
    lit = stage.paint((164, 142, 104), "window")
    unlit = stage.paint((66, 72, 92), "window")
    shades = [stage.paint(color, "wall") for color in ((54, 60, 78), (64, 64, 82), (48, 54, 72))]
    cap = stage.paint((36, 40, 56), "wall", 0.6)
    x, number = -stage.between(0, 8), int(stage.rng.integers(3))
    while x < 96:
        wide, top = stage.between(20, 28), stage.between(14, 32)
        stage.box(shades[number % 3], x, top, x + wide, low)
        stage.box(cap, x - 0.6, top - 1.6, x + wide + 0.6, top + 0.6)
        columns = 3 if wide > 24 else 2
        for row in range(4):
            for column in range(columns):
                left = x + (column + 0.5) * wide / columns - 2.3
                y = top + 5 + 10.5 * row
                if y + 6 < low - 2:
                    stage.box(
                        lit if stage.rng.random() < 0.6 else unlit, left, y, left + 4.6, y + 6
                    )
        x, number = x + wide + stage.between(0, 1.5), number + 1
    stage.box(stage.paint((92, 96, 106), "wall", 0.45), 0, low, 96, 77)
    stage.box(stage.paint((60, 64, 74), "road", 0.3), 0, 76, 96, 96)
    stage.box(stage.paint((112, 116, 124), "road", 0.5), 0, 76, 96, 77.2)
    dash = stage.paint((140, 141, 138), "road", 0.2)
    start = stage.between(-12, 0)
    for step in range(6):
        stage.box(dash, start + 20 * step, 92.4, start + 20 * step + 10, 94)
    post = stage.paint((30, 34, 44), "lamp")
    x, side = stage.between(12, 84), 1 if stage.rng.random() < 0.5 else -1
    glow = stage.paint((118, 110, 98), "lamp")
    bulb = stage.paint((226, 214, 182), "lamp")
    stage.box(post, x - 1, 28, x + 1, 77)
    stage.line(post, 1.6, (x, 28.5), (x + 7 * side, 26))
    stage.disc(glow, x + 8 * side, 29, 5.6, 5.6)
    stage.disc(bulb, x + 8 * side, 29, 3.4, 3.4)


_PLACES = {"alley": _alley, "park": _park, "beach": _beach, "street": _street}


def draw_backdrop(
    scene: Scene, height: int, width: int, grain: int, rng: np.random.Generator
) -> Backdrop:
    """Draw the place of a scene in its weather.

    Args:
        scene: where and in which weather.
        height: pixels.
        width: pixels.
        grain: how many drawn points make a pixel, along each axis.
        rng: the layout.
    """
    stage = _Set(scene, height, width, grain, rng)
    _PLACES[scene.place](stage)
    points = np.asarray(stage.image)
    area = grain * grain
    color = ((stage.paints.pixels(points, grain)[..., :3] + area // 2) // area).astype(np.uint8)
    names = stage.paints.parts
    kinds = list(dict.fromkeys(name for name in names if name))
    number = np.array([kinds.index(name) if name else 255 for name in names], dtype=np.uint8)
    # The part of a pixel is that of its lower right middle point.
    owner = number[points[grain // 2 :: grain, grain // 2 :: grain]]
    parts = {name: owner == place for place, name in enumerate(kinds)}
    return Backdrop(color, parts, tuple(stage.drips) if scene.weather == "rain" else ())
