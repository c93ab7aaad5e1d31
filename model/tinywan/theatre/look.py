"""Looks: how a clip is developed, as warm old film or in black and white."""

from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image

_GRAIN = 9  # levels of light that a speck of film may add
_TILE = 512  # rows and columns of specks; each frame takes a window of them
# Film: darkest and brightest of red, green and blue: faded blacks, warm whites. Grain comes on top.
_FILM = ((22, 240), (16, 226), (20, 188))


def develop(frames: npt.NDArray[np.uint8], look: str, seed: int) -> npt.NDArray[np.uint8]:
    """Give a clip its look.

    Args:
        frames: uint8 [F, H, W, 3].
        look: one of `LOOKS`.
        seed: where the grain of each frame is.
    """
    if look == "plain":
        return frames
    count, height, width = frames.shape[:3]
    picture = Image.fromarray(frames.reshape(count * height, width, 3))
    if look == "monochrome":
        gray = np.asarray(picture.convert("L").point(_contrast()))
        return np.repeat(gray, 3).reshape(frames.shape)
    toned = np.asarray(picture.point(_tones())).reshape(count, height, width * 3)
    film = (toned * _vignette(height, width) >> 8).astype(np.uint8)
    specks = _specks(height, width)
    places = np.random.default_rng([seed, 6]).integers(0, _TILE, (count, 2)).tolist()
    for frame, (row, column) in zip(film, places, strict=True):
        frame += specks[row : row + height, 3 * column : 3 * (column + width)]
    return film.reshape(frames.shape)


@cache
def _tones() -> list[int]:
    """What film makes of each value of red, green and blue."""
    levels = np.arange(256) / 255
    return [
        int(value + 0.5)
        for dark, bright in _FILM
        for value in dark
        + (bright - dark) * (0.7 * levels + 0.3 * levels * levels * (3 - 2 * levels))
    ]


@cache
def _contrast() -> list[int]:
    """Black and white with a bit more contrast."""
    levels = np.arange(256) / 255
    curve = 0.6 * levels + 0.4 * levels * levels * (3 - 2 * levels)
    return [int(255 * value + 0.5) for value in curve]


@cache
def _vignette(height: int, width: int) -> npt.NDArray[np.uint16]:
    """How bright the picture stays towards its corners, [H, W·3] in 256ths."""
    y = (2 * (np.arange(height) + 0.5) / height - 1)[:, None] ** 2
    x = (2 * (np.arange(width) + 0.5) / width - 1) ** 2
    far = (x + y) / 2
    bright = 256 - np.round(256 * 0.46 * far * (0.4 + 0.6 * far))
    return np.repeat(bright.astype(np.uint16), 3, axis=1)


@cache
def _specks(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Grain, [row, column·3], that repeats after a tile, so that a window at each of its places fits."""
    tile = np.random.default_rng(0).integers(0, _GRAIN + 1, (_TILE, _TILE), np.uint8)
    rows, columns = np.arange(_TILE + height) % _TILE, np.arange(_TILE + width) % _TILE
    return np.repeat(tile[rows][:, columns], 3, axis=1)
