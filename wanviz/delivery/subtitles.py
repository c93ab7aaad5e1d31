"""Subtitles: texts with times, as files that players read, or drawn into the frames.

The two formats are written here and not by a library: those that were tried read braces or angle brackets of a prompt as markup, and
drop what stands between them.
"""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wanviz.errors import OptionError, ReportError
from wanviz.files import write_whole
from wanviz.font import FONT_PATH, MISSING, fallback_path, legible

FRAMES_PER_SECOND = 8  # tinywan's; Wan plays at 16
LEAST_TIME = 0.001  # seconds; files count in thousandths
LEAST_SIZE = 9  # pixels of a letter that can still be read
MOST_OF_FRAME = 0.5  # of its height that subtitles may cover
# Where a line may break: behind white space, and beside Chinese characters and kana, but not before their punctuation.
_PIECE = re.compile(
    r"\s+|[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff][\u3000-\u3002\uff00-\uff0f\uff1a-\uff20”’》）]*"
    r"|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


@dataclass(frozen=True)
class Cue:
    """One text and when it is shown.

    Attributes:
        start: second at which it appears, from 0.
        end: second at which it is gone again.
        text: may hold newlines, e.g. between two languages.
    """

    start: float
    end: float
    text: str

    def __post_init__(self) -> None:
        times = (self.start, self.end)
        if not (
            all(isinstance(time, Real) for time in times)
            and 0 <= self.start < self.end < math.inf
            and self.end - self.start >= LEAST_TIME
        ):
            raise OptionError(
                f"a cue from {self.start!r} to {self.end!r} s: give seconds, the end a thousandth or more behind the start"
            )
        if not isinstance(self.text, str) or not self.text.strip():
            raise OptionError(f"a cue of {self.text!r}: give a text")


def passages(parts: Iterable[tuple[str, int]], fps: float = FRAMES_PER_SECOND) -> tuple[Cue, ...]:
    """Cues for texts that follow one another.

    Args:
        parts: each a text and for how many pixel frames it is shown; an empty text shows nothing.
        fps: frames per second.

    Returns:
        A cue for each text that is not empty.

    Raises:
        OptionError: no frames, or no rate.
    """
    check_rate(fps)
    cues, begun = list[Cue](), 0
    for part in parts if isinstance(parts, Iterable) else [parts]:
        if not (isinstance(part, Sequence) and len(part) == 2 and isinstance(part[0], str)):
            raise OptionError(f"a passage of {part!r:.60}: give a text and its number of frames")
        text, frames = part
        if isinstance(frames, bool) or not isinstance(frames, Integral) or frames < 1:
            raise OptionError(f"{text!r:.40} for {frames!r} frames: use a whole number from 1")
        if text.strip():
            cues.append(Cue(begun / float(fps), (begun + int(frames)) / float(fps), text))
        begun += int(frames)
    return tuple(cues)


def write_subtitles(cues: Sequence[Cue], path: str | os.PathLike[str]) -> Path:
    """Write a file of subtitles.

    Args:
        cues: at least one.
        path: ending in .vtt (WebVTT, for `<track>` of a page) or .srt (SubRip, for players).

    Returns:
        The path written.

    Raises:
        OptionError: another ending, or no cue.
        ReportError: it cannot be written.
    """
    check_cues(cues)
    target = path_of(path)
    content = as_text(cues, target.suffix)
    return write_whole(target, content.encode("utf-8", "replace"), "subtitles", ReportError)


def as_text(cues: Sequence[Cue], suffix: str) -> str:
    """The content of a file of subtitles."""
    if suffix not in (".vtt", ".srt"):
        raise OptionError(f"subtitles as {suffix!r}: use .vtt or .srt")
    if not cues:
        raise OptionError("there is no cue: nothing to write")
    web = suffix == ".vtt"
    blocks = ["WEBVTT"] if web else []
    for number, cue in enumerate(sorted(cues, key=lambda cue: (cue.start, cue.end)), 1):
        times = f"{_clock(cue.start, web)} --> {_clock(cue.end, web)}"
        lines = [line for line in cue.text.splitlines() if line.strip()]  # an empty one ends a cue
        # SubRip has no escapes: an invisible word joiner keeps players from reading markup
        text = "\n".join(
            html.escape(line, quote=False) if web else re.sub("([<{\\\\])", "\\1\u2060", line)
            for line in lines
        )
        blocks.append(f"{number}\n{times}\n{text}")
    return "\n\n".join(blocks) + "\n"


def draw_subtitles(
    frames: NDArray[Any], cues: Sequence[Cue], fps: float = FRAMES_PER_SECOND
) -> NDArray[np.uint8]:
    """Draw cues into the frames, white with a dark edge, at the foot of the picture.

    Args:
        frames: `[F, H, W, 3]`, uint8, or float in [0, 1]. In small ones a text of some length finds no room: enlarge them first,
            as `write_video` does.
        cues: those of one moment stand above each other.
        fps: frames per second.

    Returns:
        uint8 `[F, H, W, 3]`; the frames given are left as they are.

    Raises:
        OptionError: what is no video, or a text that finds no room.
    """
    check_rate(fps)
    check_cues(cues)
    shown = as_bytes(frames).copy()
    height, width = shown.shape[1:3]
    for number, picture in enumerate(shown):
        now = (number + 0.5) / float(fps)
        texts = tuple(cue.text for cue in cues if cue.start <= now < cue.end)
        if texts:
            letters, edge = _layer("\n".join(texts), width, height)
            picture[edge] = 0
            picture[:] = (picture * (1 - letters) + 255 * letters).round()
    return shown


@lru_cache(maxsize=8)
def _layer(text: str, width: int, height: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """How much of each pixel is letter, `[H, W, 1]`, and which pixels are edge or letter, `[H, W]`."""
    told = [_set(line) for line in text.splitlines() if line.strip()]
    small = sum(ImageFont.truetype(path, LEAST_SIZE).getlength(line) for line, path in told)
    least = small / width * 1.3 * LEAST_SIZE  # pixel rows that it needs at the very least
    size = max(LEAST_SIZE, round(min(height, width) / 20))
    while True:
        step = round(1.3 * size)
        lines = [
            (row, font)
            for line, path in (told if least <= MOST_OF_FRAME * height else [])
            for font in [ImageFont.truetype(path, size)]
            for row in _wrapped(line, font, 0.94 * width)
        ]
        fits = lines and len(lines) * step <= MOST_OF_FRAME * height
        if fits and max(font.getlength(line) for line, font in lines) <= width:
            break
        if size == LEAST_SIZE or not lines:
            raise OptionError(
                f"a subtitle of {len(text)} characters finds no room in {width} x {height} pixels: share it out among several cues, "
                "enlarge the frames, or keep it beside the video (write_subtitles)"
            )
        size -= 1
    edge = max(1, round(size / 12))
    whole, inner = (Image.new("L", (width, height)) for _ in range(2))
    for row, (line, font) in enumerate(reversed(lines)):
        place = width / 2, height - 0.5 * step - row * step
        options: dict[str, Any] = {"font": font, "anchor": "ms", "fill": 255}
        ImageDraw.Draw(whole).text(place, line, stroke_width=edge, **options)
        ImageDraw.Draw(inner).text(place, line, **options)
    letters = np.asarray(inner, np.float32)[..., None] / np.float32(255)
    return letters, np.asarray(whole) > 127


def _set(line: str) -> tuple[str, Path]:
    """A line with boxes for what its typeface lacks, and the typeface: ours, or the other one where that has more of it."""
    ours, other = (legible(line, only=path) for path in (FONT_PATH, fallback_path()))
    if other.count(MISSING) < ours.count(MISSING):
        return other, fallback_path()
    return ours, FONT_PATH


def _wrapped(line: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The line in as few rows of at most this many pixels as can be, about equally long."""
    rows = _filled(line, font, width)
    narrower = font.getlength(line) / len(rows)
    while narrower < width:
        even = _filled(line, font, narrower)
        if len(even) == len(rows):
            return even
        narrower *= 1.05
    return rows


def _filled(line: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The line in rows, each as full as it may be."""
    rows = [""]
    for piece in _PIECE.findall(line):
        if rows[-1] and font.getlength((rows[-1] + piece).rstrip()) > width:
            rows.append(piece.lstrip())
        else:
            rows[-1] += piece
    return [row.strip() for row in rows if row.strip()]


def as_bytes(frames: NDArray[Any]) -> NDArray[np.uint8]:
    """Frames `[F, H, W, 3]` as uint8.

    Raises:
        OptionError: what is no video.
    """
    try:
        pixels = np.asarray(frames)
    except (TypeError, RuntimeError, ValueError) as error:
        raise OptionError(
            f"a video is a NumPy array [F, H, W, 3]; this is none: {error}"
        ) from error
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or 0 in pixels.shape:
        raise OptionError(
            f"a video is [F, H, W, 3]; this is {list(pixels.shape)}: give one video of a call, frames[0]"
        )
    if pixels.dtype == np.uint8:
        return pixels
    if not np.issubdtype(pixels.dtype, np.floating) or not np.isfinite(pixels).all():
        raise OptionError(
            f"frames hold {pixels.dtype} values: use uint8, or finite floats in [0, 1]"
        )
    if pixels.min() < -0.01 or pixels.max() > 1.01:
        raise OptionError(
            f"frames hold values from {pixels.min():.3g} to {pixels.max():.3g}: floats are taken as [0, 1]"
        )
    found: NDArray[np.uint8] = (pixels.clip(0, 1) * 255).round().astype(np.uint8)
    return found


def check_rate(fps: float) -> None:
    """Whether frames can follow one another so fast."""
    if isinstance(fps, bool) or not isinstance(fps, Real) or not 0.01 <= fps <= 1000:
        raise OptionError(f"fps={fps!r}: use frames per second from 0.01 to 1000, e.g. 8")


def check_cues(cues: Sequence[Cue]) -> None:
    """Whether these are cues."""
    if isinstance(cues, Cue) or not isinstance(cues, Sequence) or isinstance(cues, str):
        raise OptionError(f"cues are {cues!r:.60}: give a list of Cue, as passages makes them")
    for cue in cues:
        if not isinstance(cue, Cue):
            raise OptionError(f"{cue!r:.60} is no Cue: passages makes them of texts and frames")


def path_of(path: str | os.PathLike[str]) -> Path:
    """The path of a file to be written."""
    if not isinstance(path, str | os.PathLike):
        raise OptionError(f"path={path!r:.60}: name a file")
    return Path(path)


def _clock(seconds: float, web: bool) -> str:
    total = round(1000 * seconds)
    hours, rest = divmod(total, 3_600_000)
    minutes, rest = divmod(rest, 60_000)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{'.' if web else ','}{rest % 1000:03}"
