"""The judge: what a clip shows, measured on its pixels, blind to the prompt.

It finds saturated pixels (only costumes and props are saturated in the theatre;
through film or in black and white it cannot judge colours), groups them by hue, and
tells garment from prop by shape; the place is read off a coarse grid of mean colours by a linear probe that
is fitted on rendered training scenes.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from tinywan.errors import ConfigError
from tinywan.theatre import COLORS, PLACES, render, sample_scene
from tinywan.theatre.palette import COSTUME

Frames = npt.NDArray[np.uint8] | npt.NDArray[np.floating[Any]]
Region = npt.NDArray[np.bool_]

_SATURATED = (
    78.0  # chroma (largest less smallest channel, 0..255) of costumes; skin has 64, scenery less
)
_SMALLEST = 0.004  # share of a picture that a garment or prop covers at least
_GRID = 8  # cells along each side that the place is read off
_RIDGE = 30.0


@dataclass(frozen=True)
class Measurement:
    """What the pixels of a clip show.

    Args:
        garment_color: one of `COLORS`, or "none" where nothing is saturated.
        prop_color: one of `COLORS`, or "none".
        place: one of `PLACES`.
        garment_region: bool [F, H, W].
        prop_region: bool [F, H, W].
    """

    garment_color: str
    prop_color: str
    place: str
    garment_region: Region
    prop_region: Region


def measure(frames: Frames) -> Measurement:
    """Judge a clip without knowing its prompt.

    Args:
        frames: [F, H, W, 3], uint8 or float in [0, 1].

    Raises:
        ConfigError: something else than a clip.
    """
    pixels = _pixels(frames)
    kinds, saturated = _hues(pixels)
    regions = {color: saturated & (kinds == number) for number, color in enumerate(COLORS)}
    least = _SMALLEST * saturated.size
    largest = sorted(
        (color for color in COLORS if regions[color].sum() >= least),
        key=lambda color: -regions[color].sum(),
    )
    empty = np.zeros_like(saturated)
    if len(largest) < 2:
        garment, prop = (largest[0] if largest else "none"), "none"
    else:
        garment, prop = largest[:2]
        if _is_umbrella_over(regions[garment], regions[prop]):
            garment, prop = prop, garment
    return Measurement(
        garment_color=garment,
        prop_color=prop,
        place=PLACES[int(np.argmax(_features(pixels) @ _place_probe()))],
        garment_region=regions.get(garment, empty),
        prop_region=regions.get(prop, empty),
    )


def find_region(
    frames: Frames, color: str, role: Literal["garment", "umbrella"] = "garment"
) -> Region:
    """Find a garment or an umbrella by its colour.

    Where the colour lies in two bands one above the other, as when both are of one colour, the umbrella
    is the upper and the garment the lower one.

    Args:
        frames: [F, H, W, 3], uint8 or float in [0, 1].
        color: one of `COLORS`.
        role: "garment" or "umbrella".

    Returns:
        bool [F, H, W]; nowhere true in frames that do not show it.

    Raises:
        ConfigError: something else than a clip, or a colour or role that does not exist.
    """
    if color not in COLORS:
        raise ConfigError(f"color={color!r} is not in the theatre: use one of {', '.join(COLORS)}")
    if role not in ("garment", "umbrella"):
        raise ConfigError(f"role={role!r} cannot be looked for: use 'garment' or 'umbrella'")
    kinds, saturated = _hues(_pixels(frames))
    region: Region = saturated & (kinds == COLORS.index(color))
    for picture in region:
        per_row = picture.sum(axis=1)
        rows = np.nonzero(per_row > max(1, 0.02 * picture.shape[1]))[0]
        gaps = np.diff(rows)
        if len(gaps) and gaps.max() >= max(3, 0.05 * len(picture)):
            middle = int(rows[int(gaps.argmax())] + gaps.max() // 2)
            upper, lower = per_row[:middle].sum(), per_row[middle:].sum()
            if min(upper, lower) > _SMALLEST * picture.size:
                picture[middle:] &= role == "garment"
                picture[:middle] &= role == "umbrella"
    return region


def _pixels(frames: Frames) -> npt.NDArray[np.float32]:
    """Frames as float32 in 0..255."""
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise ConfigError(f"frames of shape {frames.shape} are not a clip: use [F, H, W, 3]")
    if frames.dtype == np.uint8:
        return frames.astype(np.float32)
    if not np.issubdtype(frames.dtype, np.floating):
        raise ConfigError(
            f"frames of {frames.dtype} cannot be judged: use uint8, or float in [0, 1]"
        )
    if not (np.isfinite(frames).all() and frames.min() >= 0 and frames.max() <= 1):
        raise ConfigError("float frames reach outside [0, 1]: clamp them, or give uint8")
    return frames.astype(np.float32) * 255


def _chroma(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Largest less smallest channel, [..., 3] -> [...]."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    largest = np.maximum(np.maximum(red, green), blue)
    smallest: npt.NDArray[np.float32] = np.minimum(np.minimum(red, green), blue)
    return largest - smallest


def _hue(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Angle in radians around the axis of greys, [..., 3] -> [...]."""
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    angle: npt.NDArray[np.float32] = np.arctan2(
        math.sqrt(3) * (green - blue), 2 * red - green - blue
    )
    return angle


def _hues(pixels: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.intp], Region]:
    """For each pixel the number of the costume colour nearest in hue, and whether it is saturated."""
    saturated = _chroma(pixels) > _SATURATED
    costumes = _hue(np.array([COSTUME[color] for color in COLORS], np.float32))
    away = np.angle(np.exp(1j * (_hue(pixels[saturated])[:, None] - costumes)))
    kinds = np.full(saturated.shape, -1, np.intp)
    kinds[saturated] = np.abs(away).argmin(axis=-1)
    return kinds, saturated


def _is_umbrella_over(region: Region, other: Region) -> bool:
    """Whether `region` lies above `other` and is wider than high, as an umbrella over its bearer."""
    votes = []
    for upper, lower in zip(region, other, strict=True):
        if upper.sum() > 4 and lower.sum() > 4:
            top, bottom, left, right = _extent(upper)
            other_top = _extent(lower)[0]
            votes.append(
                bottom <= other_top + 0.03 * len(upper) and right - left > 1.25 * (bottom - top)
            )
    return bool(votes) and float(np.mean(votes)) > 0.5


def _extent(region: Region) -> tuple[float, float, float, float]:
    """Top, bottom, left and right of a picture's region, less its outermost twentieths."""
    rows, columns = np.nonzero(region)
    top, bottom = np.quantile(rows, (0.05, 0.95))
    left, right = np.quantile(columns, (0.05, 0.95))
    return float(top), float(bottom), float(left), float(right)


def _features(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Mean colours of a grid over the clip, costumes left out, and a constant, [3 · cells + 1]."""
    muted = _chroma(pixels) <= _SATURATED
    weight = muted.sum(axis=0).astype(np.float64)
    total = (pixels * muted[..., None]).sum(axis=0, dtype=np.float64)
    height, width = weight.shape
    rows, columns = np.arange(_GRID) * height // _GRID, np.arange(_GRID) * width // _GRID
    cells = np.add.reduceat(np.add.reduceat(total, rows, axis=0), columns, axis=1)
    counts = np.add.reduceat(np.add.reduceat(weight, rows, axis=0), columns, axis=1)
    overall = total.sum(axis=(0, 1)) / max(weight.sum(), 1.0)
    means = np.where(counts[..., None] > 0, cells / np.maximum(counts, 1)[..., None], overall)
    return np.append((means / 128 - 1).ravel(), 1.0)


@cache
def _place_probe() -> npt.NDArray[np.float64]:
    """Ridge regression from features to places, fitted on rendered training scenes, [feature, place].

    Half of the scenes are drawn with changed brightness and contrast, as a model's may be.
    """
    rng = np.random.default_rng(0)
    features, wanted = [], []
    for number in range(480):
        scene = sample_scene(rng, "train")
        pixels = render(scene, num_frames=1).frames.astype(np.float32)
        if number % 2:
            pixels = (
                (pixels - 128) * rng.uniform(0.8, 1.1)
                + 128
                + rng.uniform(-12, 12, 3).astype(np.float32)
            )
        features.append(_features(pixels))
        wanted.append(np.eye(len(PLACES))[PLACES.index(scene.place)])
    x, y = np.array(features), np.array(wanted)
    return np.linalg.solve(x.T @ x + _RIDGE * np.eye(x.shape[1]), x.T @ y)


def degrade(
    frames: npt.NDArray[np.uint8], rng: np.random.Generator, blur: float = 1.0, noise: float = 6.0
) -> npt.NDArray[np.uint8]:
    """Blur and add noise, as a small VAE would.

    Args:
        frames: uint8 [F, H, W, 3].
        rng: of the noise.
        blur: standard deviation of the Gaussian in pixels, above 0.
        noise: standard deviation in 0..255.

    Returns:
        uint8 [F, H, W, 3].

    Raises:
        ConfigError: a blur that is not above 0.
    """
    if not blur > 0:
        raise ConfigError(f"blur={blur} cannot blur: use more than 0 pixels, e.g. 1.0")
    reach = max(1, math.ceil(3 * blur))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / blur) ** 2)
    kernel /= kernel.sum()
    soft = frames.astype(np.float32)
    for axis in (1, 2):
        pad = [(reach, reach) if number == axis else (0, 0) for number in range(4)]
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(soft, pad, mode="edge"), len(kernel), axis
        )
        soft = windows @ kernel.astype(np.float32)
    noisy = soft + noise * rng.standard_normal(soft.shape, np.float32)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
