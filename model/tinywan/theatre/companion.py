"""The companion: a small dog, a cat or a child at the subject's side, in units as in cast.py."""

from dataclasses import replace

from tinywan.theatre.cast import CAST, Body, Pose
from tinywan.theatre.palette import RGB, Paints, darker, lighter, mix
from tinywan.theatre.pen import FUR, FUR_FAR, HAIR, MUZZLE, TRIM, Pen
from tinywan.theatre.scene import Scene

_COATS: dict[str, RGB] = {"white": (238, 236, 230), "black": (48, 46, 54), "brown": (152, 112, 84)}
_BODIES = {"dog": Body(12.5, 16.5, 21.0), "cat": Body(12.5, 13.5, 24.0), "child": Body(9, 9, 35.5)}
_SCALE = {"dog": 1.0, "cat": 1.0, "child": 0.9}
# How far a companion stands behind or before the subject's feet, less its own half.
_BEHIND = {"woman": 9.0, "man": 10.0, "child": 9.0, "dog": 16.0}
_BEFORE = {"woman": 9.5, "man": 10.5, "child": 9.0, "dog": 22.0}


def body_of_companion(scene: Scene) -> Body:
    """The room that the companion takes in any phase."""
    body = _BODIES[scene.companion]
    more = 2.0 if scene.action == "run" else 0.0
    reach = 4.0 if scene.action == "run" and scene.companion == "child" else 0.0
    return Body(body.back + more, body.front + more + reach, body.top)


def place_of_companion(scene: Scene, ahead: bool) -> float:
    """Units from the subject's feet to the companion's, forward positive."""
    body = _BODIES[scene.companion]
    return (
        _BEFORE[scene.subject] + body.back if ahead else -_BEHIND[scene.subject] - body.front + 2.0
    )


def paints_of_companion(scene: Scene) -> Paints:
    """Paints in the order of pen.py's numbers, all of the part "companion"."""
    coat = _COATS[scene.companion_color]
    black = scene.companion_color == "black"
    line = (112, 112, 122) if black else (44, 38, 52)  # a black coat must show at night, too
    shade, light = darker(coat, 0.22), lighter(coat, 0.2)
    eye = (206, 206, 196) if black and scene.companion != "child" else (42, 34, 38)
    colors: tuple[RGB, ...] = (
        line, (240, 204, 176), (226, 178, 158), eye, (52, 46, 54), (58, 56, 68), (74, 74, 90),
        coat, shade, mix(light, (255, 255, 255), 0.2), coat, shade, light, (150, 158, 170),
    )  # fmt: skip
    paints = Paints()
    for color in colors:
        paints.add(color, "companion")
    return paints


def _legs(pen: Pen, pose: Pose, back: float, front: float, hip: float, width: float) -> None:
    swing = pose.swing * pose.stride * 0.34
    for base, sign, paint in (
        (back - 1.2, 1, FUR_FAR),
        (front - 1.2, -1, FUR_FAR),
        (back + 1.0, -1, FUR),
        (front + 1.0, 1, FUR),
    ):
        lift = (pose.lift_near if sign > 0 else pose.lift_far) * pose.stride * 0.16
        foot = base + sign * swing
        pen.stroke(paint, width, (base, hip), (foot, 0.9 + lift))
        pen.shape(
            paint,
            (foot - 1.2, lift),
            (foot + 2.0, lift),
            (foot + 1.6, lift + 1.7),
            (foot - 1.2, lift + 1.8),
        )


def _dog(pen: Pen, scene: Scene, pose: Pose) -> None:
    _legs(pen, pose, -5.2, 4.8, 8.0, 2.6)
    pen.stroke(FUR, 2.4, (-7.4, 11.0), (-10.6, 14.4), (-9.2 + pose.sway * 1.6, 18.0))
    pen.disc(FUR, -0.6, 9.6, 8.0, 4.4)
    pen.disc(FUR_FAR, -1.4, 7.2, 5.6, 1.8)
    pen.disc(FUR, 5.4, 10.8, 4.2, 4.8)
    pen.stroke(TRIM, 1.6, (4.4, 14.2), (9.0, 11.2))
    pen.disc(FUR, 8.6, 16.0, 4.7, 4.4)
    pen.shape(MUZZLE, (10.6, 17.0), (15.2, 15.4), (15.0, 13.0), (10.0, 12.2))
    pen.disc(HAIR, 15.0, 15.6, 1.1, 1.0)
    pen.disc(HAIR, 10.6, 17.2, 0.9, 1.0)
    pen.shape(FUR_FAR, (4.6, 19.4), (7.8, 20.2), (7.6, 14.2), (4.4, 13.4))


def _cat(pen: Pen, scene: Scene, pose: Pose) -> None:
    sway = pose.sway * 1.6
    _legs(pen, pose, -4.8, 4.4, 7.0, 2.2)
    pen.stroke(FUR, 2.2, (-6.6, 9.0), (-9.8, 13.0), (-9.2 + sway, 18.5), (-11.0 + sway, 22.5))
    pen.disc(FUR, -0.6, 8.4, 7.4, 3.7)
    for x in (-4.0, -1.2, 1.6):
        pen.stroke(FUR_FAR, 1.0, (x, 11.8), (x - 0.4, 8.6))
    pen.disc(FUR, 4.6, 9.6, 3.4, 4.0)
    pen.shape(FUR, (3.4, 14.6), (3.0, 21.2), (7.0, 17.8))
    pen.shape(FUR, (8.0, 17.8), (11.6, 21.2), (12.0, 14.6))
    pen.shape(FUR_FAR, (4.2, 16.4), (4.0, 19.4), (6.0, 17.4))
    pen.disc(FUR, 7.6, 14.2, 5.0, 4.3)
    pen.disc(MUZZLE, 10.0, 12.6, 2.4, 1.7)
    pen.disc(HAIR, 11.8, 13.4, 0.8, 0.7)
    for x in (7.0, 10.4):
        pen.stroke(HAIR, 1.1, (x, 15.6), (x, 14.4))
    pen.stroke(TRIM, 1.3, (3.8, 11.6), (7.8, 10.0))


def _child(pen: Pen, scene: Scene, pose: Pose) -> None:
    CAST["child"](
        pen,
        replace(
            scene, subject="child", garment="sweater", companion="none", companion_color="none"
        ),
        pose,
    )


_FIGURES = {"dog": _dog, "cat": _cat, "child": _child}


def draw_companion(pen: Pen, scene: Scene, pose: Pose) -> None:
    """Draw the companion in one pose."""
    _FIGURES[scene.companion](pen.scaled(_SCALE[scene.companion]), scene, pose)
