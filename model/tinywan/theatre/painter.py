"""From a scene to a clip: frames, a mask for every part, and the true optical flow."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinywan.errors import ConfigError
from tinywan.theatre.camera import enlarge
from tinywan.theatre.cast import PHASES, phase_at
from tinywan.theatre.look import develop
from tinywan.theatre.moves import Moves, plan_moves
from tinywan.theatre.palette import ACTORS, LABELS
from tinywan.theatre.scene import Scene
from tinywan.theatre.stage import Backdrop, draw_backdrop
from tinywan.theatre.strip import Strip, draw_companion_strip, draw_strip
from tinywan.theatre.weather import COLORS, OPACITY, Particles, blow, drip, fall

FPS = 8
_SMALLEST = 32
_OUT_OF_STEP = 3  # frames that the companion is ahead in its stride


@dataclass(frozen=True)
class Clip:
    """A rendered scene, at `FPS` frames per second.

    Args:
        frames: uint8 [F, H, W, 3].
        masks: part -> bool [F, H, W], its visible pixels. "subject" is the whole person or dog
            (garment included, prop not), "companion" whoever is beside, "wind" what it whirls up behind
            them; "place" is all scenery that nothing covers.
        flow: float32 [F - 1, H, W, 2], (dx, dy) in pixels from frame t to t + 1 of what is visible
            at frame t; scenery rests unless the camera moves.
    """

    frames: npt.NDArray[np.uint8]
    masks: dict[str, npt.NDArray[np.bool_]]
    flow: npt.NDArray[np.float32]

    @property
    def particles(self) -> npt.NDArray[np.bool_]:
        """Bool [F, H, W]: drops, flakes and spray, all together."""
        found = [mask for name, mask in self.masks.items() if name in COLORS]
        return np.logical_or.reduce([np.zeros(self.frames.shape[:3], np.bool_), *found])


@dataclass(frozen=True)
class _Canvas:
    """A clip in the making: what each pixel shows, in which colour, and where it goes.

    Args:
        frames: uint8 [F, H, W, 3].
        labels: uint8 [F, H, W], a part of the scenery or out of `LABELS`.
        flow: complex64 [F - 1, H, W], dx + i·dy in pixels.
    """

    frames: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]
    flow: npt.NDArray[np.complex64]


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
    size, grain = min(height, width), 2 if min(height, width) >= 64 else 4
    layout, path, sky, drops, gusts = (
        np.random.default_rng([scene.seed, stream]) for stream in (0, 1, 2, 3, 7)
    )
    moves = plan_moves(scene, num_frames, height, width, path)
    backdrop = draw_backdrop(scene, height, width, moves.margin, grain, layout)
    canvas = _open_on(backdrop, moves, width)

    far = fall(scene, height, width, moves.pan, 0.75, sky)
    near = fall(scene, height, width, moves.pan, 0.25, sky)
    drips = drip(backdrop.drips, height, width, moves.pan, moves.margin, drops)
    gust = blow(scene, height, width, moves.pan, gusts)
    _sprinkle(canvas, gust)
    _sprinkle(canvas, far)
    _sprinkle(canvas, drips)
    if scene.companion != "none":
        used, shown = _phases(scene, num_frames, _OUT_OF_STEP)
        strip = draw_companion_strip(scene, size, grain, used)
        _perform(canvas, strip, shown, moves.columns + moves.beside, moves.row - size // 48)
    used, shown = _phases(scene, num_frames, 0)
    strip = draw_strip(scene, size, grain, used)
    _perform(canvas, strip, shown, moves.columns, moves.row)
    _sprinkle(canvas, near)

    if moves.zoom is not None:
        enlarge(canvas.frames, canvas.labels, canvas.flow, moves.zoom)
    particles = [found.name for found in (gust, drips, far) if found is not None]
    masks = _masks(canvas.labels, scene, particles, backdrop.parts)
    flow = canvas.flow.view(np.float32).reshape(*canvas.flow.shape, 2)
    return Clip(develop(canvas.frames, scene.look, scene.seed), masks, flow)


def _check(num_frames: int, height: int, width: int) -> None:
    if num_frames < 1:
        raise ConfigError(f"num_frames={num_frames} cannot be drawn: use 1 or more, e.g. 17")
    if min(height, width) < _SMALLEST:
        raise ConfigError(
            f"{height}x{width} pixels are too few for the theatre: use {_SMALLEST} or more, e.g. 96"
        )


def _open_on(backdrop: Backdrop, moves: Moves, width: int) -> _Canvas:
    """Show the empty place to the camera."""
    count, height = len(moves.pan), len(backdrop.labels)
    frames = np.empty((count, height, width, 3), np.uint8)
    labels = np.empty((count, height, width), np.uint8)
    for frame, left in enumerate((moves.margin + moves.pan).tolist()):
        frames[frame] = backdrop.color[:, left : left + width]
        labels[frame] = backdrop.labels[:, left : left + width]
    flow = np.empty((count - 1, height, width), np.complex64)
    flow[:] = (moves.pan[:-1] - moves.pan[1:])[:, None, None]
    return _Canvas(frames, labels, flow)


def _phases(scene: Scene, num_frames: int, ahead: int) -> tuple[tuple[int, ...], list[int]]:
    """The phases that are shown at all, and which of them each frame shows."""
    shown = [phase_at(scene.action, frame + ahead) for frame in range(num_frames)]
    used = sorted(set(shown))
    phases = tuple(PHASES[scene.action][phase] for phase in used)
    return phases, [used.index(phase) for phase in shown]


def _sprinkle(canvas: _Canvas, particles: Particles | None) -> None:
    """Paint particles over what is there."""
    if particles is not None:
        pixels, index = canvas.frames.reshape(-1, 3), particles.index
        under = pixels[index].astype(np.float32)
        opacity = OPACITY[particles.name]
        pixels[index] = (under + (COLORS[particles.name] - under) * opacity + 0.5).astype(np.uint8)
        canvas.labels.reshape(-1)[index] = LABELS[particles.name]
        moving = particles.velocity
        canvas.flow.reshape(-1)[index[: len(moving)]] = moving


def _perform(
    canvas: _Canvas, strip: Strip, phases: list[int], columns: npt.NDArray[np.intp], row: int
) -> None:
    """Put a subject or companion into every frame."""
    rows, wide = strip.bare.shape[1:3]
    top = row - strip.anchor[1]
    skip = max(0, -top)
    for frame, phase in enumerate(phases):
        left = int(columns[frame]) - strip.anchor[0]
        window = (frame, slice(top + skip, top + rows), slice(left, left + wide))
        view = canvas.frames[window]
        seen = slice(skip, skip + view.shape[0])
        view[:] = (view * strip.bare[phase, seen] + strip.color[phase, seen]) >> strip.bits
        shown = strip.shown[phase, seen]
        np.copyto(canvas.labels[window], strip.labels[phase, seen], where=shown)
        if frame < len(canvas.flow):
            moved = np.complex64(columns[frame + 1] - columns[frame])
            np.copyto(canvas.flow[window], moved, where=shown)


def _masks(
    labels: npt.NDArray[np.uint8], scene: Scene, particles: list[str], parts: tuple[str, ...]
) -> dict[str, npt.NDArray[np.bool_]]:
    """The mask of every part that the scene holds."""
    garment = labels == LABELS["garment"]
    masks = {"subject": (labels == LABELS["subject"]) | garment, "garment": garment}
    held = [name for name in ("prop", "companion") if getattr(scene, name) != "none"]
    for name in (*held, *particles):
        masks[name] = labels == LABELS[name]
    masks["place"] = labels < ACTORS
    for number, name in enumerate(parts):
        masks[name] = labels == number
    return masks
