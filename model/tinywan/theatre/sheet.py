"""A contact sheet: some frames of each of many scenes, enlarged, with the caption below."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from tinywan.errors import ConfigError
from tinywan.theatre.caption import Language, caption
from tinywan.theatre.painter import render
from tinywan.theatre.scene import Scene

FONT_PATH = Path(__file__).parent / "font" / "TheatreSans.otf"
_PAPER, _INK = (250, 248, 243), (40, 38, 44)


def picture_sheet(
    pictures: Sequence[npt.NDArray[np.uint8]],
    captions: Sequence[str],
    columns: int = 4,
    scale: int = 3,
) -> Image.Image:
    """Lay out pictures with a caption below each.

    Args:
        pictures: uint8 [H, W, 3] each, all of one size.
        captions: one each, in the words of the theatre; other Chinese characters are shown as boxes.
        columns: pictures in a row.
        scale: each pixel is drawn this large.

    Raises:
        ConfigError: there is nothing to lay out.
    """
    if not pictures or columns < 1 or scale < 1:
        raise ConfigError(
            f"a sheet of {len(pictures)} pictures in {columns} columns at scale {scale} "
            "cannot be drawn: use at least one of each"
        )
    height, width = (side * scale for side in pictures[0].shape[:2])
    gap, size = 8, 13
    line = size + 4
    wrapped = [_wrap(text, size, width) for text in captions]
    foot = line * max(len(lines) for lines in wrapped) + 4
    rows = -(-len(pictures) // columns)
    wide = min(columns, len(pictures)) * (width + gap) + gap
    sheet = Image.new("RGB", (wide, rows * (height + foot + gap) + gap), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.truetype(FONT_PATH, size)
    for number, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        x = gap + number % columns * (width + gap)
        y = gap + number // columns * (height + foot + gap)
        enlarged = Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (x, y))
        for place, text in enumerate(lines):
            draw.text((x, y + height + 1 + place * line), text, fill=_INK, font=font)
    return sheet


def _wrap(text: str, size: int, width: int) -> list[str]:
    """Break a caption into lines, English at spaces, Chinese anywhere."""
    lines, current = [], ""
    for piece in text.replace(" ", " \n").split("\n") if text.isascii() else list(text):
        wide = sum(
            0.56 * size if letter.isascii() else size for letter in (current + piece).rstrip()
        )
        if current and wide > width:
            lines.append(current.rstrip())
            current = ""
        current += piece
    return [*lines, current.rstrip()]


def contact_sheet(
    scenes: Sequence[Scene],
    language: Language = "en",
    columns: int = 4,
    frames: Sequence[int] = (8,),
    size: int = 96,
    scale: int = 3,
) -> Image.Image:
    """Draw some frames of each scene, side by side, with its caption.

    Args:
        scenes: what to draw.
        language: of the captions, "en" or "zh".
        columns: scenes in a row.
        frames: which frames, from 0, at least one; several show how the camera moves.
        size: height and width of a clip in pixels.
        scale: each pixel is drawn this large.

    Raises:
        ConfigError: no frame, or a negative one.
    """
    if not frames or min(frames) < 0:
        raise ConfigError(f"frames={tuple(frames)} cannot be shown: use some from 0, e.g. (0, 8)")
    gap = np.full((size, 1, 3), _PAPER, np.uint8)
    pictures = []
    for scene in scenes:
        clip = render(scene, max(frames) + 1, size, size).frames
        shown = [piece for frame in frames for piece in (gap, clip[frame])]
        pictures.append(np.concatenate(shown[1:], axis=1))
    return picture_sheet(
        pictures, [caption(scene, language).text for scene in scenes], columns, scale
    )
