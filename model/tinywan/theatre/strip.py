"""A subject in all its phases: outlined, reduced to pixels, with masks."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from tinywan.theatre.cast import CAST, LEAN, body_of, pose_of
from tinywan.theatre.palette import COSTUME, Paints, darker, lighter
from tinywan.theatre.pen import LINE, PROP_LINE, Pen
from tinywan.theatre.scene import Scene


@dataclass(frozen=True)
class Strip:
    """All phases of one subject, reduced to pixels.

    Args:
        color: uint16 [phase, rows, columns, 3], sums over the points that make a pixel, plus half of them.
        bare: uint16 [phase, rows, columns, 1], how many of a pixel's points the subject leaves free.
        parts: part -> bool [phase, rows, columns].
        anchor: column and row of the point between the feet.
        area: how many points make a pixel.
    """

    color: npt.NDArray[np.uint16]
    bare: npt.NDArray[np.uint16]
    parts: dict[str, npt.NDArray[np.bool_]]
    anchor: tuple[int, int]
    area: int


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
        grain: how many drawn points make a pixel, along each axis.
        phases: out of `PHASES[scene.action]`.
    """
    body = body_of(scene)
    unit = size / 96
    left, right, up, down = (
        int(length * unit) + 2 for length in (body.back, body.front, body.top, 1.0)
    )
    columns, rows = left + right, up + down
    image = Image.new("L", (columns * grain * len(phases), rows * grain), 0)
    draw = ImageDraw.Draw(image)
    for place, phase in enumerate(phases):
        pen = Pen(
            draw, unit * grain, (place * columns + left) * grain, up * grain, LEAN[scene.action]
        )
        CAST[scene.subject](pen, scene, pose_of(scene.action, phase))
    points = np.asarray(image).reshape(rows * grain, len(phases), columns * grain).swapaxes(0, 1)
    points = _outlined(points)
    if scene.direction == "left":
        points = points[:, :, ::-1]
        left, right = right, left
    sums = _paints(scene).pixels(points, grain, (("subject", "garment"), ("garment",), ("prop",)))
    counts = sums[..., 3]
    body_count, garment, prop = counts & 31, (counts >> 5) & 31, counts >> 10
    cover = body_count + prop
    half = grain * grain // 2
    is_prop = (prop >= half) & (prop > body_count)
    is_subject = (cover >= half) & ~is_prop
    parts = {"subject": is_subject, "garment": is_subject & (garment >= half)}
    if scene.prop != "none":
        parts["prop"] = is_prop
    bare = np.uint16(grain * grain) - cover
    return Strip(sums[..., :3] + np.uint16(half), bare[..., None], parts, (left, up), grain * grain)


def _outlined(points: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Put a dark line of one point around what is drawn, [phase, rows, columns]."""
    near = np.zeros_like(points)
    np.maximum(near[:, 1:], points[:, :-1], out=near[:, 1:])
    np.maximum(near[:, :-1], points[:, 1:], out=near[:, :-1])
    np.maximum(near[:, :, 1:], points[:, :, :-1], out=near[:, :, 1:])
    np.maximum(near[:, :, :-1], points[:, :, 1:], out=near[:, :, :-1])
    line = np.where(near >= PROP_LINE, np.uint8(PROP_LINE), np.uint8(LINE))
    return np.where((points == 0) & (near > 0), line, points)
