"""A subject or companion in all its phases: outlined, reduced to pixels, with labels."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from tinywan.theatre.cast import CAST, LEAN, body_of, pose_of
from tinywan.theatre.companion import body_of_companion, draw_companion, paints_of_companion
from tinywan.theatre.palette import COSTUME, LABELS, Paints, darker, lighter
from tinywan.theatre.pen import LINE, PROP_LINE, Pen
from tinywan.theatre.scene import Scene


@dataclass(frozen=True)
class Strip:
    """All phases of one subject or companion, reduced to pixels.

    Args:
        color: uint16 [phase, rows, columns, 3], sums over the points that make a pixel, plus half of them.
        bare: uint16 [phase, rows, columns, 1], how many of a pixel's points the subject leaves free.
        labels: uint8 [phase, rows, columns], out of `LABELS`.
        shown: bool [phase, rows, columns], where at least half a pixel is covered.
        anchor: column and row of the point between the feet.
        bits: 2 ** bits points make a pixel.
    """

    color: npt.NDArray[np.uint16]
    bare: npt.NDArray[np.uint16]
    labels: npt.NDArray[np.uint8]
    shown: npt.NDArray[np.bool_]
    anchor: tuple[int, int]
    bits: int


@dataclass(frozen=True)
class _Drawing:
    """All phases of a figure in points, facing right.

    Args:
        points: uint8 [phase, rows, columns], numbers of paints.
        left: pixels before the point between the feet.
        right: pixels after it.
        up: pixels above it.
    """

    points: npt.NDArray[np.uint8]
    left: int
    right: int
    up: int


# What a drawing does not depend on.
_ANYWHERE: dict[str, Any] = {
    "garment_color": "red",
    "place": "park",
    "weather": "clear",
    "direction": "right",
    "seed": 0,
}


def _paints(scene: Scene) -> Paints:
    cloth = COSTUME[scene.garment_color]
    prop = COSTUME.get(scene.prop_color, (0, 0, 0))
    paints = Paints()
    table = (
        ((44, 38, 52), "subject"), ((240, 204, 176), "subject"), ((226, 178, 158), "subject"),
        ((42, 34, 38), "subject"), ((52, 46, 54), "subject"), ((58, 56, 68), "subject"),
        ((74, 74, 90), "subject"), ((182, 156, 130), "subject"), ((140, 116, 98), "subject"),
        ((214, 200, 182), "subject"), (cloth, "garment"), (darker(cloth), "garment"),
        (lighter(cloth), "garment"), ((240, 232, 214), "garment"), ((44, 38, 52), "prop"),
        (prop, "prop"), (darker(prop), "prop"), (lighter(prop, 0.25), "prop"), ((104, 82, 66), "prop"),
    )  # fmt: skip
    for color, part in table:
        paints.add(color, part)
    return paints


def draw_strip(scene: Scene, size: int, grain: int, phases: tuple[int, ...]) -> Strip:
    """Draw the subject of a scene in the given phases.

    Args:
        scene: who, in what, with what, doing what.
        size: the shorter side of the picture in pixels.
        grain: how many drawn points make a pixel, along each axis; a power of 2, at most 4.
        phases: out of `PHASES[scene.action]`.
    """
    figure = Scene(
        subject=scene.subject,
        garment=scene.garment,
        prop=scene.prop,
        prop_color="none" if scene.prop == "none" else "red",
        action=scene.action,
        **_ANYWHERE,
    )
    return _reduced(_drawn(figure, size, grain, phases), _paints(scene), scene, grain)


def draw_companion_strip(scene: Scene, size: int, grain: int, phases: tuple[int, ...]) -> Strip:
    """Draw the companion of a scene, with the arguments of `draw_strip`."""
    figure = Scene(
        subject="woman",
        garment="coat",
        prop="none",
        prop_color="none",
        action=scene.action,
        companion=scene.companion,
        companion_color="white",
        **_ANYWHERE,
    )
    return _reduced(_drawn(figure, size, grain, phases), paints_of_companion(scene), scene, grain)


@lru_cache(maxsize=128)
def _drawn(figure: Scene, size: int, grain: int, phases: tuple[int, ...]) -> _Drawing:
    """Draw the companion of a scene, or the subject where there is none, facing right.

    There are few figures and they are costly to draw, so they are kept. Colours come later.
    """
    alone = figure.companion == "none"
    body = body_of(figure) if alone else body_of_companion(figure)
    draw_figure = CAST[figure.subject] if alone else draw_companion
    unit = size / 96
    left, right, up, down = (
        int(length * unit) + 2 for length in (body.back, body.front, body.top, 1.0)
    )
    columns, rows = left + right, up + down
    image = Image.new("L", (columns * grain * len(phases), rows * grain), 0)
    draw = ImageDraw.Draw(image)
    for place, phase in enumerate(phases):
        pen = Pen(
            draw, unit * grain, (place * columns + left) * grain, up * grain, LEAN[figure.action]
        )
        draw_figure(pen, figure, pose_of(figure.action, phase))
    points = np.asarray(image).reshape(rows * grain, len(phases), columns * grain).swapaxes(0, 1)
    points = _outlined(points)
    points.flags.writeable = False
    return _Drawing(points, left, right, up)


def _reduced(drawing: _Drawing, paints: Paints, scene: Scene, grain: int) -> Strip:
    """Colour a drawing, turn it where the scene goes, and reduce it to pixels."""
    points, left = drawing.points, drawing.left
    if scene.direction == "left":
        points, left = points[:, :, ::-1], drawing.right
    kinds = (("subject", "garment", "companion"), ("garment",), ("prop",))
    sums = paints.pixels(points, grain, kinds)
    counts = sums[..., 3]
    body_count, garment, prop = counts & 31, (counts >> 5) & 31, counts >> 10
    cover = body_count + prop
    half = grain * grain // 2
    is_prop = (prop >= half) & (prop > body_count)
    shown = cover >= half
    whole = LABELS["companion" if "companion" in paints.parts else "subject"]
    labels = np.where(garment >= half, np.uint8(LABELS["garment"]), np.uint8(whole))
    labels[is_prop] = LABELS["prop"]
    bare = np.uint16(grain * grain) - cover
    return Strip(
        color=sums[..., :3] + np.uint16(half),
        bare=bare[..., None],
        labels=labels,
        shown=shown,
        anchor=(left, drawing.up),
        bits=(grain * grain).bit_length() - 1,
    )


def _outlined(points: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Put a dark line of one point around what is drawn, [phase, rows, columns]."""
    near = np.zeros_like(points)
    np.maximum(near[:, 1:], points[:, :-1], out=near[:, 1:])
    np.maximum(near[:, :-1], points[:, 1:], out=near[:, :-1])
    np.maximum(near[:, :, 1:], points[:, :, :-1], out=near[:, :, 1:])
    np.maximum(near[:, :, :-1], points[:, :, 1:], out=near[:, :, :-1])
    line = np.where(near >= PROP_LINE, np.uint8(PROP_LINE), np.uint8(LINE))
    return np.where((points == 0) & (near > 0), line, points)
