"""From a scene to a clip: frames, a mask for every part, and the true optical flow."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinywan.errors import ConfigError
from tinywan.theatre.cast import PHASES, body_of, phase_at
from tinywan.theatre.scene import Scene
from tinywan.theatre.stage import draw_backdrop
from tinywan.theatre.strip import Strip, draw_strip
from tinywan.theatre.weather import COLORS, OPACITY, Particles, drip, fall

FPS = 8
_SMALLEST = 32
_USUAL_FRAMES = 17
_SPEED = {"walk": 1.0, "run": 2.0, "stand": 0.0}  # units (1/96 of the shorter side) per frame


@dataclass(frozen=True)
class Clip:
    """A rendered scene, at `FPS` frames per second.

    Args:
        frames: uint8 [F, H, W, 3].
        masks: part -> bool [F, H, W], its visible pixels. "subject" is the whole person or dog
            (garment included, prop not); "place" is all scenery that nothing covers.
        flow: float32 [F - 1, H, W, 2], (dx, dy) in pixels from frame t to t + 1 of what is visible
            at frame t; scenery rests.
    """

    frames: npt.NDArray[np.uint8]
    masks: dict[str, npt.NDArray[np.bool_]]
    flow: npt.NDArray[np.float32]


def render(scene: Scene, num_frames: int = 17, height: int = 96, width: int = 96) -> Clip:
    """Draw a scene. Up to 17 frames, a shorter clip is the beginning of a longer one.

    Args:
        scene: what to draw; the same scene always gives the same clip.
        num_frames: frames, at least 1.
        height: pixels, at least 32.
        width: pixels, at least 32.

    Raises:
        ConfigError: a size or a number of frames that cannot be drawn.
    """
    _check(num_frames, height, width)
    grain = 2 if min(height, width) >= 64 else 4
    layout, path, sky, drops = (np.random.default_rng([scene.seed, stream]) for stream in range(4))
    backdrop = draw_backdrop(scene, height, width, grain, layout)
    columns, row = _positions(scene, num_frames, height, width, path)
    shown = [phase_at(scene.action, frame) for frame in range(num_frames)]
    used = sorted(set(shown))
    strip = draw_strip(
        scene, min(height, width), grain, tuple(PHASES[scene.action][phase] for phase in used)
    )
    far = fall(scene, num_frames, height, width, 0.75, sky)
    near = fall(scene, num_frames, height, width, 0.25, sky)
    drips = drip(backdrop.drips, num_frames, height, width, drops)

    frames = np.empty((num_frames, height, width, 3), np.uint8)
    frames[:] = backdrop.color
    flow = np.zeros((num_frames - 1, height, width, 2), np.float32)
    _sprinkle(frames, far)
    _sprinkle(frames, drips)
    masks = _perform(frames, flow, strip, [used.index(phase) for phase in shown], columns, row)
    _sprinkle(frames, near)

    covered = masks["subject"] | masks["prop"] if "prop" in masks else masks["subject"].copy()
    for particles, front in (
        (drips, False),
        (far, False),
        (near, True),
    ):  # drips fall before the far rain
        if particles is not None:
            _cover(masks, covered, flow, particles, front)
    place = ~covered
    masks["place"] = place
    for name, part in backdrop.parts.items():
        masks[name] = part & place
    return Clip(frames, masks, flow)


def _check(num_frames: int, height: int, width: int) -> None:
    if num_frames < 1:
        raise ConfigError(f"num_frames={num_frames} cannot be drawn: use 1 or more, e.g. 17")
    if min(height, width) < _SMALLEST:
        raise ConfigError(
            f"{height}x{width} pixels are too few for the theatre: use {_SMALLEST} or more, e.g. 96"
        )


def _positions(
    scene: Scene, num_frames: int, height: int, width: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.intp], int]:
    """Column of the feet at each frame, and their row, such that the subject stays in the picture."""
    unit = min(height, width) / 96
    body = body_of(scene)
    start, ground = rng.random(2).tolist()
    back, front = int(body.back * unit) + 2, int(body.front * unit) + 2
    room = width - back - front
    steps = max(num_frames, _USUAL_FRAMES) - 1
    travel = min(_SPEED[scene.action] * unit * steps, room)
    first = back + start * (room - travel)
    columns = np.array([int(first + travel * frame / steps) for frame in range(num_frames)])
    if scene.direction == "left":
        columns = width - columns
    return columns, int(height - (6.0 + 3.0 * ground) * unit)


def _sprinkle(frames: npt.NDArray[np.uint8], particles: Particles | None) -> None:
    """Paint particles over what is there."""
    if particles is not None:
        opacity = OPACITY[particles.name]
        under = frames[particles.index].astype(np.float32)
        frames[particles.index] = (under + (COLORS[particles.name] - under) * opacity + 0.5).astype(
            np.uint8
        )


def _perform(
    frames: npt.NDArray[np.uint8],
    flow: npt.NDArray[np.float32],
    strip: Strip,
    phases: list[int],
    columns: npt.NDArray[np.intp],
    row: int,
) -> dict[str, npt.NDArray[np.bool_]]:
    """Put the subject into every frame and into the flow, and return its masks."""
    masks = {name: np.zeros(frames.shape[:3], bool) for name in strip.parts}
    rows, wide = strip.bare.shape[1:3]
    top = row - strip.anchor[1]
    skip = max(0, -top)
    for frame, phase in enumerate(phases):
        left = int(columns[frame]) - strip.anchor[0]
        window = (frame, slice(top + skip, top + rows), slice(left, left + wide))
        view = frames[window]
        seen = slice(skip, skip + view.shape[0])
        view[:] = (view * strip.bare[phase, seen] + strip.color[phase, seen]) // strip.area
        moving = strip.parts["subject"][phase, seen]
        if "prop" in strip.parts:
            moving = moving | strip.parts["prop"][phase, seen]
        for name, part in strip.parts.items():
            masks[name][window] = part[phase, seen]
        if frame < len(flow) and columns[frame + 1] != columns[frame]:
            flow[window][..., 0] = moving * np.float32(columns[frame + 1] - columns[frame])
    return masks


def _cover(
    masks: dict[str, npt.NDArray[np.bool_]],
    covered: npt.NDArray[np.bool_],
    flow: npt.NDArray[np.float32],
    particles: Particles,
    front: bool,
) -> None:
    """Enter particles into masks and flow, in front of the subject or only where it is not."""
    frame, row, column = particles.index
    velocity = particles.velocity
    if front:
        for mask in masks.values():
            mask[frame, row, column] = False
    else:
        seen = ~covered[frame, row, column]
        frame, row, column, velocity = frame[seen], row[seen], column[seen], velocity[seen]
    mask = masks.setdefault(particles.name, np.zeros(covered.shape, bool))
    mask[frame, row, column] = True
    covered[frame, row, column] = True
    last = frame < len(flow)
    flow[frame[last], row[last], column[last]] = velocity[last]
