"""The cast: every subject with its garment and prop, drawn as a strip of animation phases.

Lengths are in units of 1/96 of the picture's shorter side; x points forward (subjects are drawn facing
right), y points up from the ground between the feet.
"""

from dataclasses import dataclass

from tinywan.theatre.pen import (
    CHEEK,
    CLOTH,
    FAR,
    FUR,
    FUR_FAR,
    GARMENT,
    HAIR,
    LIGHT,
    MUZZLE,
    PROP,
    PROP_LIGHT,
    PROP_SHADE,
    SHADE,
    SHOE,
    SKIN,
    TRIM,
    WOOD,
    Pen,
)
from tinywan.theatre.scene import Scene

# Eight phases of a stride: forward swing and lift of the near foot (a sine and a cosine, by table so that
# no platform's maths library can differ).
_SWING = (0.0, 0.7, 1.0, 0.7, 0.0, -0.7, -1.0, -0.7)
_LIFT = (1.0, 0.7, 0.0, 0.0, 0.0, 0.0, 0.0, 0.7)
PHASES = {"walk": (0, 1, 2, 3, 4, 5, 6, 7), "run": (0, 2, 4, 6), "stand": (0, 1)}
_HOLD = {"walk": 1, "run": 1, "stand": 6}  # frames that a phase is shown


@dataclass(frozen=True)
class Body:
    """How much room a subject takes, in units, facing right."""

    back: float
    front: float
    top: float


def phase_at(action: str, frame: int) -> int:
    """Index into `PHASES[action]` shown at `frame`."""
    return frame // _HOLD[action] % len(PHASES[action])


@dataclass(frozen=True)
class Pose:
    """Where limbs and hems are in one phase."""

    swing: float  # of the near foot, -1..1; the far foot does the opposite
    lift_near: float  # 0..1
    lift_far: float
    stride: float  # of a foot to each side, in units for a body of 50
    sway: float  # of hems, hair and tails


def pose_of(action: str, phase: int) -> Pose:
    """The pose of one of the eight phases of a stride, or of the two of standing."""
    if action == "stand":
        return Pose(0.0, 0.0, 0.0, 0.0, 0.5 if phase else -0.5)
    opposite = (phase + 4) % 8
    stride = 7.0 if action == "walk" else 10.0
    return Pose(_SWING[phase], _LIFT[phase], _LIFT[opposite], stride, -0.9 * _SWING[opposite])


def _legs(
    pen: Pen, pose: Pose, hip: float, width: float, near: int, far: int, size: float = 1.0
) -> None:
    for side, paint in ((-1.0, far), (1.0, near)):
        lift = (pose.lift_near if side > 0 else pose.lift_far) * pose.stride * 0.45 * size
        rest = 0.0 if pose.stride else 2.2 * side
        foot = (pose.swing * side * pose.stride + rest) * size
        knee = foot * 0.45 + lift * 0.9 + 0.4
        pen.stroke(
            paint, width, (rest * 0.6, hip), (knee, hip * 0.5 + lift * 0.4), (foot, 1.6 + lift)
        )
        toe = foot + 3.4 * size
        pen.shape(
            SHOE, (foot - 1.8, lift), (toe, lift), (toe - 0.8, lift + 2.2), (foot - 1.6, lift + 2.8)
        )


def _face(pen: Pen, x: float, y: float, r: float) -> None:
    pen.disc(SKIN, x, y, r * 0.92, r)
    pen.disc(CHEEK, x + r * 0.3, y - r * 0.38, r * 0.26, r * 0.2)
    pen.stroke(HAIR, 1.1, (x + r * 0.48, y + r * 0.2), (x + r * 0.48, y - r * 0.12))


def _arm(
    pen: Pen, scene: Scene, shoulder: tuple[float, float], hand: tuple[float, float], width: float
) -> None:
    """The near arm: a sleeve of the garment's shade, then a hand of skin."""
    x, y = shoulder
    elbow = (
        (x + hand[0]) / 2 + (-1.4 if scene.prop == "none" else 0.6),
        min(y, hand[1]) + 0.28 * abs(y - hand[1]) - 1.6,
    )
    pen.stroke(SHADE, width, shoulder, elbow, hand)
    pen.disc(SKIN, hand[0], hand[1], width * 0.55, width * 0.55)


def _umbrella(
    pen: Pen, hand: tuple[float, float], x: float, y: float, rx: float, ry: float
) -> None:
    """A canopy whose rim is centred at (x, y), with ribs and a pole down to the hand."""
    pen.stroke(WOOD, 1.3, (hand[0], hand[1] - 4.0), (x, y + ry + 1.6))
    rim = [(x - rx * (1 - i / 4), y - (0.0 if i % 2 else 1.4)) for i in range(9)]
    arc = (1.0, 0.93, 0.78, 0.6, 0.4, 0.2)
    rise = (0.0, 0.38, 0.64, 0.82, 0.93, 0.985)
    left = [(x - rx * a, y + ry * r) for a, r in zip(arc, rise, strict=True)]
    right = [(x + rx * a, y + ry * r) for a, r in zip(arc[::-1], rise[::-1], strict=True)]
    pen.shape(PROP, *left, (x, y + ry), *right, *rim[::-1])
    pen.shape(PROP_SHADE, left[0], left[1], (x - rx * 0.62, y + ry * 0.42), rim[2], rim[1])
    pen.shape(
        PROP_LIGHT,
        (x + rx * 0.08, y + ry * 0.9),
        (x + rx * 0.34, y + ry * 0.84),
        (x + rx * 0.44, y + 0.5),
        (x + 0.5, y + 0.5),
    )
    for to in (-0.5, 0.0, 0.5):
        pen.stroke(PROP_SHADE, 0.6, (x, y + ry), (x + rx * to, y - 0.8))


def _lantern(
    pen: Pen, hand: tuple[float, float], tip: tuple[float, float], rx: float, ry: float
) -> None:
    """A paper lantern that hangs from the tip of a stick."""
    x, y = tip[0], tip[1] - ry - 2.2
    pen.stroke(WOOD, 1.2, hand, tip)
    pen.stroke(WOOD, 0.7, tip, (x, y + ry))
    pen.disc(PROP, x, y, rx, ry)
    pen.disc(PROP_LIGHT, x, y, rx * 0.55, ry * 0.86)
    pen.stroke(PROP_SHADE, 0.6, (x, y - ry), (x, y + ry))
    for end in (-1.0, 1.0):
        pen.stroke(WOOD, 1.3, (x - rx * 0.5, y + end * ry), (x + rx * 0.5, y + end * ry))
    pen.stroke(WOOD, 0.8, (x, y - ry), (x, y - ry - 2.6))


def _carry(
    pen: Pen,
    scene: Scene,
    pose: Pose,
    shoulder: tuple[float, float],
    size: float,
    arm: float,
    rim: float,
) -> None:
    """The near arm with what it carries; `rim` is the height of the umbrella's rim."""
    x, y = shoulder
    if scene.prop == "umbrella":
        hand = (x + 5.6 * size, y - 3.4 * size)
        _umbrella(pen, hand, 3.0 * size, rim, 17.5 * max(size, 0.86), 10.5 * size)
        _arm(pen, scene, shoulder, hand, arm)
    elif scene.prop == "lantern":
        hand = (x + 7.6 * size, y - 5.6 * size)
        _lantern(
            pen, hand, (x + 13.6 * size, y + 1.4 * size), 5.8 * max(size, 0.9), 6.8 * max(size, 0.9)
        )
        _arm(pen, scene, shoulder, hand, arm)
    else:
        hand = (x - pose.swing * pose.stride * 0.55 * size + 0.8, y - 12.5 * size)
        _arm(pen, scene, shoulder, hand, arm)


def _woman(pen: Pen, scene: Scene, pose: Pose) -> None:
    sway = pose.sway
    if scene.garment == "qipao":
        _legs(pen, pose, 16.0, 3.2, SKIN, CHEEK)
        hem, flare = 9.5, 6.4
    else:
        _legs(pen, pose, 18.0, 3.8, FAR, SHOE)
        hem, flare = 15.0, 8.6
    if scene.garment == "coat":  # long hair falls down the back
        pen.shape(HAIR, (-5.2, 47.0), (-7.2 + sway, 33.0), (-2.4, 32.0), (0.0, 46.0))
    left = [(-1.8, 42.0), (-5.4, 39.8), (-4.5, 32.0), (-6.8, 25.0), (-flare + sway, hem)]
    right = [(flare + sway, hem), (6.8, 25.0), (4.6, 32.0), (5.2, 39.8), (1.8, 42.0)]
    pen.shape(GARMENT, *left, *right)
    pen.shape(
        SHADE,
        left[1],
        left[2],
        left[3],
        left[4],
        (-flare * 0.5 + sway, hem),
        (-3.6, 25.0),
        (-2.2, 33.0),
    )
    pen.shape(LIGHT, (2.4, 30.0), (4.0, 25.0), (3.2 + sway, hem + 3), (1.6 + sway, hem + 3))
    if scene.garment == "qipao":
        pen.shape(SKIN, (3.6 + sway, hem - 0.4), (5.4 + sway, hem - 0.4), (4.6, 18.5))
        pen.stroke(TRIM, 0.8, (-0.6, 41.0), (3.2, 37.4), (4.4, 34.0))
        pen.shape(GARMENT, (-2.2, 43.8), (2.2, 43.8), (2.6, 40.8), (-2.6, 40.8))
    else:
        pen.stroke(SHADE, 1.4, (-4.6, 31.0), (4.7, 31.0))
        pen.stroke(TRIM, 0.8, (1.6, 41.0), (1.6, 34.0))
        pen.stroke(SKIN, 2.4, (0.0, 42.0), (0.0, 43.5))
    _face(pen, 0.6, 47.6, 5.2)
    pen.shape(
        HAIR,
        (-4.4, 44.4),
        (-5.2, 48.0),
        (-3.6, 52.0),
        (0.6, 53.4),
        (4.0, 52.2),
        (5.2, 49.4),
        (1.6, 50.4),
        (-1.2, 48.2),
        (-2.2, 44.8),
    )
    if scene.garment == "qipao":
        pen.disc(HAIR, -5.0, 51.6, 3.0, 3.0)
        pen.stroke(TRIM, 0.8, (-7.4, 53.6), (-3.6, 50.6))
    _carry(pen, scene, pose, (2.2, 38.2), 1.0, 2.9, 55.0)


def _man(pen: Pen, scene: Scene, pose: Pose) -> None:
    sway = pose.sway * 0.6
    coat = scene.garment == "coat"
    _legs(pen, pose, 24.0, 4.8, CLOTH, FAR)
    hem, flare = (15.5, 9.4) if coat else (24.0, 7.6)
    left = [(-2.4, 45.0), (-8.0, 42.6), (-7.4, 30.0), (-flare + sway, hem)]
    right = [(flare + sway, hem), (7.2, 30.0), (7.6, 42.6), (2.4, 45.0)]
    pen.shape(GARMENT, *left, *right)
    pen.shape(
        SHADE, left[1], left[2], left[3], (-flare * 0.52 + sway, hem), (-4.2, 30.0), (-4.6, 41.0)
    )
    if coat:
        pen.stroke(SHADE, 0.9, (2.4, 44.0), (2.4 + sway, hem))
        pen.shape(TRIM, (0.2, 45.0), (3.8, 45.0), (2.2, 39.6))
        pen.stroke(LIGHT, 1.4, (5.0, 38.0), (5.8, 19.0))
    else:
        pen.stroke(SHOE, 1.4, (-7.0, 24.2), (7.0, 24.2))
        pen.stroke(TRIM, 1.0, (1.8, 44.4), (1.8, 27.0))
        pen.stroke(LIGHT, 1.4, (4.8, 39.0), (4.8, 28.0))
    pen.stroke(SKIN, 3.4, (0.2, 44.6), (0.2, 46.4))
    _face(pen, 0.8, 50.4, 5.3)
    pen.shape(
        HAIR,
        (-4.4, 49.4),
        (-4.6, 53.0),
        (-2.4, 56.0),
        (2.4, 56.6),
        (5.6, 54.6),
        (5.2, 53.0),
        (0.6, 53.4),
        (-2.4, 51.4),
        (-2.6, 49.0),
    )
    _carry(pen, scene, pose, (2.4, 40.2), 1.04, 3.8, 58.2)


def _child(pen: Pen, scene: Scene, pose: Pose) -> None:
    sway = pose.sway * 0.6
    raincoat = scene.garment == "raincoat"
    _legs(pen, pose, 11.0, 4.0, CLOTH, FAR, 0.62)
    hem, flare = (7.0, 8.8) if raincoat else (10.4, 6.8)
    left = [(-2.6, 26.0), (-6.0, 24.2), (-6.4, 16.0), (-flare + sway, hem)]
    right = [(flare + sway, hem), (6.4, 16.0), (5.8, 24.2), (2.6, 26.0)]
    pen.shape(GARMENT, *left, *right)
    pen.shape(
        SHADE, left[1], left[2], left[3], (-flare * 0.5 + sway, hem), (-3.4, 16.0), (-3.4, 24.0)
    )
    if raincoat:
        pen.disc(GARMENT, 0.0, 31.6, 7.6, 7.8)
        pen.disc(SHADE, -3.2, 30.8, 3.8, 5.6)
        _face(pen, 2.4, 31.0, 5.6)
        pen.shape(HAIR, (-1.2, 33.6), (0.6, 36.4), (4.4, 36.4), (6.6, 34.0), (3.6, 34.6))
        for y in (21.0, 16.5, 12.0):
            pen.disc(TRIM, 2.6, y, 0.8, 0.8)
    else:
        pen.stroke(TRIM, 1.2, (-6.2, 15.4), (6.2, 15.4))
        pen.stroke(LIGHT, 1.2, (-5.6, 19.4), (5.6, 19.4))
        _face(pen, 0.8, 31.6, 6.6)
        pen.shape(
            HAIR,
            (-5.4, 30.0),
            (-5.8, 34.6),
            (-2.8, 38.4),
            (2.6, 39.2),
            (6.6, 36.4),
            (6.8, 33.8),
            (2.2, 35.6),
            (-2.0, 33.4),
            (-3.2, 29.4),
        )
    _carry(pen, scene, pose, (1.8, 22.6), 0.78, 3.2, 40.6)


def _dog(pen: Pen, scene: Scene, pose: Pose) -> None:
    swing = pose.swing * (pose.stride * 0.62)
    rest = 0.0 if pose.stride else 1.0
    for base, sign, paint in (
        (-12.0, 1, FUR_FAR),
        (8.5, -1, FUR_FAR),
        (-10.0, -1, FUR),
        (10.5, 1, FUR),
    ):
        foot = base + sign * swing
        lift = max(0.0, pose.lift_near if sign > 0 else pose.lift_far) * pose.stride * 0.3
        pen.stroke(
            paint,
            3.8,
            (base, 13.0),
            (base + sign * swing * 0.4 + lift * 0.4 - rest, 6.6),
            (foot, 1.4 + lift),
        )
        pen.shape(
            paint,
            (foot - 1.8, lift),
            (foot + 3.2, lift),
            (foot + 2.4, lift + 2.4),
            (foot - 1.8, lift + 2.8),
        )
    pen.stroke(FUR, 3.2, (-13.5, 19.5), (-17.0, 23.5), (-17.6 + pose.sway * 1.6, 28.5))
    pen.disc(FUR, -8.4, 16.4, 7.0, 6.2)
    pen.disc(FUR, 8.0, 17.0, 6.8, 6.6)
    pen.shape(FUR, (5.0, 20.0), (10.4, 27.0), (16.0, 26.0), (13.6, 14.0))
    pen.shape(
        GARMENT,
        (-10.4, 23.0),
        (7.2, 24.0),
        (10.2, 18.0),
        (8.6, 11.0),
        (4.0, 9.8),
        (-9.6, 9.8),
        (-12.2, 15.6),
    )
    pen.shape(
        SHADE, (-12.2, 15.6), (-9.6, 9.8), (4.0, 9.8), (8.6, 11.0), (8.8, 12.8), (-11.0, 13.0)
    )
    pen.stroke(LIGHT, 1.6, (-7.6, 20.6), (5.4, 21.4))
    pen.stroke(TRIM, 1.3, (7.4, 24.0), (10.2, 18.0), (8.8, 11.2))
    pen.disc(FUR, 14.6, 28.6, 6.2, 6.0)
    pen.shape(MUZZLE, (16.4, 30.2), (23.2, 28.2), (22.8, 25.0), (15.6, 24.0))
    pen.disc(HAIR, 22.8, 28.4, 1.4, 1.3)
    pen.disc(HAIR, 17.2, 30.6, 1.0, 1.1)
    pen.shape(FUR_FAR, (9.2, 33.8), (13.4, 34.2), (12.4, 25.6), (8.6, 26.4))
    if scene.prop == "lantern":
        _lantern(pen, (17.6, 25.4), (25.6, 24.8), 5.8, 6.4)


CAST = {"woman": _woman, "man": _man, "child": _child, "dog": _dog}
_TOPS = {"woman": 55.5, "man": 57.5, "child": 40.5, "dog": 35.5}
_UMBRELLA_TOPS = {"woman": 68.0, "man": 72.0, "child": 52.0}
LEAN = {"walk": 0.02, "run": 0.14, "stand": 0.0}


def body_of(scene: Scene) -> Body:
    """The room that the subject and its prop take in any phase."""
    lean = LEAN[scene.action]
    top = _UMBRELLA_TOPS[scene.subject] if scene.prop == "umbrella" else _TOPS[scene.subject]
    back, front = {
        "woman": (11.0, 13.0),
        "man": (11.5, 14.0),
        "child": (10.5, 10.5),
        "dog": (22.0, 25.5),
    }[scene.subject]
    if scene.action == "run":
        back, front = back + 1.5, front + 1.0
    if scene.prop == "umbrella":
        back, front = max(back, 16.0 - 0.7 * lean * top), max(front, 22.0 + lean * top)
    elif scene.prop == "lantern":
        reach = {"woman": 22.8, "man": 23.8, "child": 18.6, "dog": 33.0}[scene.subject]
        front = max(front, reach + lean * _TOPS[scene.subject] * 0.8)
    else:
        front = max(front, 7.0 + lean * top, 25.0 + lean * 32.0 if scene.subject == "dog" else 0.0)
    return Body(back, front, top)
