"""Rain, snow, what the wind whirls up, and water that drips from eaves: particles on whole pixels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinywan.theatre.scene import Scene

COLORS = {
    "rain": np.array((222, 232, 242), np.float32),
    "snow": np.array((250, 251, 253), np.float32),
    "drips": np.array((232, 240, 248), np.float32),
    "wind": np.array((240, 244, 250), np.float32),
}
OPACITY = {
    "rain": np.float32(0.62),
    "snow": np.float32(0.94),
    "drips": np.float32(0.85),
    "wind": np.float32(0.5),
}
_FALL = {"rain": 4.0, "snow": 1.0}  # units (1/96 of the shorter side) per frame
_WIND = 3  # units per frame, sideways; calm air drifts by at most one
_GUST = 4  # units per frame, of what is whirled up
_HIGHEST, _LOWEST = 0.36, 0.94  # of the picture's height, between which it flies


@dataclass(frozen=True)
class Particles:
    """Where particles are, frame by frame.

    Args:
        name: "rain", "snow", "drips", or "wind" for the spray or snow that it whirls up.
        index: [point] where each covered pixel is in a flat [F, H, W], in order of the frames.
        velocity: complex64 [moving point], dx + i·dy in pixels to the next frame, of the points that are
            not in the last frame.
    """

    name: str
    index: npt.NDArray[np.intp]
    velocity: npt.NDArray[np.complex64]


def fall(
    scene: Scene,
    height: int,
    width: int,
    pan: npt.NDArray[np.intp],
    share: float,
    rng: np.random.Generator,
) -> Particles | None:
    """Let rain or snow fall, all of it at one velocity; leaving the picture it enters again opposite.

    Args:
        scene: its weather and wind decide what falls and how; None is returned where nothing does.
        height: pixels.
        width: pixels.
        pan: [F] pixels that the picture is right of the middle of the world.
        share: how much of the full density falls.
        rng: where the particles are.
    """
    wind = int(rng.integers(-1, 2))
    if scene.weather == "clear":
        return None
    if scene.wind == "windy":
        wind = _toward(scene) * _WIND
    unit = min(height, width) / 96
    down = max(1, round(_FALL[scene.weather] * unit))
    area = height * width / (unit * unit * 9216)
    if scene.weather == "rain":
        length, thick = max(3, round(6 * unit)), max(1, round(unit))
        count = round(78 * share * area * min(1.0, unit / thick))  # a whole pixel may be too much
        steps = np.arange(length)
        body = [
            (int(step), int(step) * wind // 4 + extra) for step in steps for extra in range(thick)
        ]
        across = round(wind * unit)
    else:
        thick = max(1, round(2 * unit))
        count = round(64 * share * area * min(1.0, 2 * unit / thick))
        body = [(row, column) for row in range(thick) for column in range(thick)]
        across = round(wind * unit) if scene.wind == "windy" else wind if unit >= 0.6 else 0
    rows = rng.integers(0, height, count)
    columns = rng.integers(0, width, count)
    return _driven(scene.weather, (rows, columns), body, (down, across), height, width, pan)


def blow(
    scene: Scene, height: int, width: int, pan: npt.NDArray[np.intp], rng: np.random.Generator
) -> Particles | None:
    """Let the wind whirl up spray or snow: long streaks that sweep over the ground.

    Args:
        scene: None is returned where there is no wind.
        height: pixels.
        width: pixels.
        pan: [F] pixels that the picture is right of the middle of the world.
        rng: where the streaks are.
    """
    if scene.wind == "none":
        return None
    unit = min(height, width) / 96
    toward = _toward(scene)
    length, thick = round(56 * unit), max(1, round(3 * unit))
    count = round(14 * 3 * unit / thick * height * width / (unit * unit * 9216))
    rows = rng.integers(round(_HIGHEST * height), round(_LOWEST * height) - thick, count)
    columns = rng.integers(0, width, count)
    # The upper side of a streak is ahead of the lower one.
    body = [(row, step - 3 * toward * row) for row in range(thick) for step in range(length)]
    across = toward * max(1, round(_GUST * unit))
    return _driven("wind", (rows, columns), body, (0, across), height, width, pan)


def _toward(scene: Scene) -> int:
    """Where the wind blows: 1 to the right, -1 to the left."""
    return 1 if scene.seed % 2 else -1


def _driven(
    name: str,
    places: tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]],
    body: list[tuple[int, int]],
    velocity: tuple[int, int],
    height: int,
    width: int,
    pan: npt.NDArray[np.intp],
) -> Particles:
    """Move particles of one shape, all at one velocity; leaving the picture they enter again opposite.

    Args:
        name: of the particles.
        places: rows and columns in the first frame, in the middle of the world.
        body: (row, column) of the pixels that one covers.
        velocity: (down, across) in pixels per frame.
        height: pixels.
        width: pixels.
        pan: [F] pixels that the picture is right of the middle of the world.
    """
    (rows, columns), (down, across) = places, velocity
    offsets = np.array(body)
    times = np.arange(len(pan))[:, None, None]
    row = (rows[:, None] + offsets[:, 0] + down * times) % height
    column = (columns[:, None] + offsets[:, 1] + across * times - pan[:, None, None]) % width
    each = len(rows) * len(offsets)
    moved = (across - np.diff(pan) + 1j * down).astype(np.complex64).repeat(each)
    return Particles(name, ((times * height + row) * width + column).ravel(), moved)


def drip(
    places: tuple[tuple[float, float], ...],
    height: int,
    width: int,
    pan: npt.NDArray[np.intp],
    margin: int,
    rng: np.random.Generator,
) -> Particles | None:
    """Let water drip from the eaves: every drop gathers, then falls a bit faster each frame.

    Args:
        places: (x, y) in 96ths of the picture; None is returned where there are none.
        height: pixels.
        width: pixels.
        pan: [F] pixels that the picture is right of the middle of the world.
        margin: pixels of the world beyond the middle picture.
        rng: which places drip, and when.
    """
    if not places:
        return None
    unit = min(height, width) / 96
    age = 12
    chosen = [place for place in places if rng.random() < 0.55] or list(places[:1])
    start = rng.integers(0, age, len(chosen))
    # Heights fallen at each age, in whole pixels: gather for two frames, then fall.
    fallen = np.array([round(unit * 0.42 * max(0, a - 1) ** 2) for a in range(age + 1)])
    times = np.arange(len(pan))[:, None]
    ages = (times + start) % age
    tall = max(2, round(2.6 * unit))
    thick = max(1, round(1.4 * unit))
    rows = np.array([int(y * height / 96) for _, y in chosen]) + fallen[ages]
    columns = np.array([min(int(x * width / 96), width + margin - thick) for x, _ in chosen])
    offsets = np.array([(row, column) for row in range(tall) for column in range(thick)])
    row = rows[:, :, None] + offsets[:, 0]
    column = columns[:, None] + offsets[:, 1] - pan[:, None, None]
    inside = (row < height) & (column >= 0) & (column < width)
    index = ((times[:, :, None] * height + row) * width + column)[inside]
    down = (fallen[ages + 1] - fallen[ages])[:-1]
    speed = (1j * down - np.diff(pan)[:, None]).astype(np.complex64)
    velocity = np.broadcast_to(speed[:, :, None], inside[:-1].shape)[inside[:-1]]
    return Particles("drips", index, velocity)
