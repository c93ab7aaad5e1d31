"""Rain, snow, and water that drips from eaves: particles on whole pixels."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tinywan.theatre.scene import Scene

COLORS = {
    "rain": np.array((222, 232, 242), np.float32),
    "snow": np.array((250, 251, 253), np.float32),
    "drips": np.array((232, 240, 248), np.float32),
}
OPACITY = {"rain": np.float32(0.62), "snow": np.float32(0.94), "drips": np.float32(0.85)}
_FALL = {"rain": 4.0, "snow": 1.0}  # units (1/96 of the shorter side) per frame


@dataclass(frozen=True)
class Particles:
    """Where particles are, frame by frame.

    Args:
        name: "rain", "snow" or "drips".
        frame: [point] the frame of each covered pixel.
        row: [point] its row.
        column: [point] its column.
        velocity: [point, 2] (dx, dy) in pixels per frame.
    """

    name: str
    frame: npt.NDArray[np.intp]
    row: npt.NDArray[np.intp]
    column: npt.NDArray[np.intp]
    velocity: npt.NDArray[np.float32]

    @property
    def index(self) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]:
        """Index of the covered pixels into [F, H, W, ...]."""
        return self.frame, self.row, self.column


def fall(
    scene: Scene, num_frames: int, height: int, width: int, share: float, rng: np.random.Generator
) -> Particles | None:
    """Let rain or snow fall, all of it at one velocity; leaving the picture it enters again opposite.

    Args:
        scene: its weather decides what falls; None is returned where nothing does.
        num_frames: frames.
        height: pixels.
        width: pixels.
        share: how much of the full density falls.
        rng: where the particles are.
    """
    wind = int(rng.integers(-1, 2))
    if scene.weather == "clear":
        return None
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
        speed = (round(wind * unit), down)
    else:
        thick = max(1, round(2 * unit))
        count = round(64 * share * area * min(1.0, 2 * unit / thick))
        body = [(row, column) for row in range(thick) for column in range(thick)]
        speed = (wind if unit >= 0.6 else 0, down)
    rows = rng.integers(0, height, count)
    columns = rng.integers(0, width, count)
    offsets = np.array(body)
    times = np.arange(num_frames)[:, None, None]
    row = (rows[:, None] + offsets[:, 0] + speed[1] * times) % height
    column = (columns[:, None] + offsets[:, 1] + speed[0] * times) % width
    frame = np.broadcast_to(times, row.shape)
    velocity = np.broadcast_to(np.array(speed, np.float32), (row.size, 2))
    return Particles(scene.weather, frame.ravel(), row.ravel(), column.ravel(), velocity)


def drip(
    places: tuple[tuple[float, float], ...],
    num_frames: int,
    height: int,
    width: int,
    rng: np.random.Generator,
) -> Particles | None:
    """Let water drip from the eaves: every drop gathers, then falls a bit faster each frame.

    Args:
        places: (x, y) in 96ths of the picture; None is returned where there are none.
        num_frames: frames.
        height: pixels.
        width: pixels.
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
    ages = (np.arange(num_frames)[:, None] + start) % age
    tall = max(2, round(2.6 * unit))
    thick = max(1, round(1.4 * unit))
    rows = np.array([int(y * height / 96) for _, y in chosen]) + fallen[ages]
    columns = np.array([min(int(x * width / 96), width - thick) for x, _ in chosen])
    speed = fallen[ages + 1] - fallen[ages]
    offsets = np.array([(row, column) for row in range(tall) for column in range(thick)])
    row = rows[:, :, None] + offsets[:, 0]
    column = np.broadcast_to(columns[:, None] + offsets[:, 1], row.shape)
    frame = np.broadcast_to(np.arange(num_frames)[:, None, None], row.shape)
    dy = np.broadcast_to(speed[:, :, None], row.shape)
    inside = (row < height) & (column >= 0)
    velocity = np.stack([np.zeros(int(inside.sum())), dy[inside]], axis=-1).astype(np.float32)
    return Particles("drips", frame[inside], row[inside], column[inside], velocity)
