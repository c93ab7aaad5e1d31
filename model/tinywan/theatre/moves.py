"""Who is where in each frame, and what the camera does: all movements of a clip, in whole pixels."""

from dataclasses import dataclass
from math import copysign

import numpy as np
import numpy.typing as npt

from tinywan.theatre.cast import body_of
from tinywan.theatre.companion import body_of_companion, place_of_companion
from tinywan.theatre.scene import Scene

_USUAL_FRAMES = 17
# Units (1/96 of the picture's shorter side) per frame.
_SPEED = {"walk": 1.0, "run": 2.0, "stand": 0.0}
_PAN_SPEED = 1.0
_LONGEST_PAN = 32.0  # units: a long clip pans more slowly
_ZOOM = 1.25  # how much larger the last frame shows everything than the first


@dataclass(frozen=True)
class Zoom:
    """A camera that comes nearer.

    Args:
        scale: [F], from 1 upwards.
        x: column that stays where it is, in pixels from the picture's left edge.
        y: row that stays where it is, in pixels from the picture's upper edge.
    """

    scale: npt.NDArray[np.float64]
    x: float
    y: float


@dataclass(frozen=True)
class Moves:
    """The movements of a clip.

    Args:
        columns: [F] column in the picture of the point between the subject's feet, before any zoom.
        row: its row.
        beside: columns from there to the companion's feet.
        pan: [F] how many pixels the picture is right of the middle of the world.
        margin: pixels of the world that are seen beyond the middle picture, on either side at most.
        zoom: how the camera comes nearer, or None where it does not.
    """

    columns: npt.NDArray[np.intp]
    row: int
    beside: int
    pan: npt.NDArray[np.intp]
    margin: int
    zoom: Zoom | None


def plan_moves(
    scene: Scene, num_frames: int, height: int, width: int, rng: np.random.Generator
) -> Moves:
    """Move subject, companion and camera such that nobody leaves the picture.

    Where the picture is too narrow for the subject's way across it, subject and camera slow down alike.
    """
    unit = min(height, width) / 96
    body = body_of(scene)
    start, ground = rng.random(2).tolist()
    back, front, top, place = body.back, body.front, body.top, 0.0
    if scene.companion != "none":
        place = place_of_companion(scene, scene.prop != "lantern" and rng.random() < 0.5)
        beside = body_of_companion(scene)
        back, front = max(back, beside.back - place), max(front, beside.front + place)
        top = max(top, beside.top + 2.0)
    back, front = int(back * unit) + 2, int(front * unit) + 2
    room = width - back - front
    steps = max(num_frames, _USUAL_FRAMES) - 1
    facing = 1 if scene.direction == "right" else -1
    turn = {"pan left": -1, "pan right": 1}.get(scene.camera, 0)
    # Forward is where the subject faces: its way across the picture is its own less the camera's.
    pan = turn * facing * min(_PAN_SPEED * unit * steps, _LONGEST_PAN * unit)
    travel = _SPEED[scene.action] * unit * steps - pan
    if abs(travel) > room:
        pan *= room / abs(travel)
        travel = copysign(room, travel)
    first = back + start * (room - abs(travel)) + max(0.0, -travel)
    columns = np.array([int(first + travel * frame / steps) for frame in range(steps + 1)])
    row = int(height - (6.0 + 3.0 * ground) * unit)
    if facing < 0:
        columns = width - columns
        back, front = front, back
    panned = int(abs(pan))
    offsets = np.array([int(abs(pan) * frame / steps) for frame in range(num_frames)])
    zoom = None
    if scene.camera == "zoom in":
        last = int(columns[-1])
        room_taken = (last - back, row - int(top * unit) - 2, last + front, row + int(unit) + 2)
        zoom = _zoom_on(room_taken, np.arange(num_frames) / steps, height, width)
    return Moves(
        columns=columns[:num_frames],
        row=row,
        beside=facing * int(place * unit),
        pan=turn * (offsets - panned // 2),
        margin=panned - panned // 2,
        zoom=zoom,
    )


def _zoom_on(
    box: tuple[int, int, int, int], times: npt.NDArray[np.float64], height: int, width: int
) -> Zoom:
    """Come nearer such that the box (left, top, right, bottom) just keeps its place in the picture.

    The point that stays divides the box as the box divides the picture, so all margins shrink alike.
    """
    left, top, right, bottom = box
    scale = max(1.0, min(_ZOOM, (width - 2) / (right - left), (height - 2) / (bottom - top)))
    x = left + (right - left) * left / max(1, left + width - right)
    y = top + (bottom - top) * top / max(1, top + height - bottom)
    return Zoom(1.0 + (scale - 1.0) * times, x, y)
