"""One typeface for plots and reports, so that Chinese is legible on every machine.

Source: a subset of Noto Sans CJK SC (static/font/README.md, licence beside it).
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path

FONT_PATH = Path(__file__).parent / "static" / "font" / "WanvizSans-Regular.otf"
FONT_FAMILY = "Wanviz Sans"
FALLBACK_FAMILY = "DejaVu Sans"  # comes with matplotlib
MISSING = "□"
MOST_EMBEDDED = 2000  # characters in one page; beyond that the reader's own fonts step in


@contextmanager
def figure_style() -> Iterator[None]:
    """Draw matplotlib figures in our typeface; the user's rcParams are as before afterwards."""
    import matplotlib as mpl
    from matplotlib import font_manager

    if FONT_FAMILY not in {entry.name for entry in font_manager.fontManager.ttflist}:
        font_manager.fontManager.addfont(FONT_PATH)
    with mpl.rc_context(
        {"font.family": [FONT_FAMILY, FALLBACK_FAMILY], "axes.unicode_minus": True}
    ):
        yield


def legible(text: str, only: Path | None = None) -> str:
    """The text with every character that our fonts, or only one of them, cannot draw shown as a hollow box.

    Control and formatting characters (right-to-left marks, joiners, newlines) get the box too, so
    that a picture shows that they are there and none of them rearranges its surroundings.
    """
    drawable = _drawable() if only is None else _characters(only)
    return "".join(
        character
        if ord(character) in drawable and not unicodedata.category(character).startswith("C")
        else MISSING
        for character in text
    )


@lru_cache(maxsize=4)
def embedded_font(characters: str) -> bytes:
    """A WOFF file with just the characters that a page uses.

    Args:
        characters: any text; repeated characters count once, and of very many different ones only
            the first `MOST_EMBEDDED` are taken.

    Returns:
        The bytes of the font; a hundred characters make about 20 kB.
    """
    from fontTools import subset
    from fontTools.ttLib import TTFont

    options = subset.Options(layout_features=["ccmp", "kern"], notdef_outline=True, hinting=False)
    with TTFont(FONT_PATH, lazy=True, recalcTimestamp=False) as font:  # same text, same bytes
        cut = subset.Subsetter(options)
        cut.populate(unicodes=[ord(c) for c in list(dict.fromkeys(characters))[:MOST_EMBEDDED]])
        cut.subset(font)
        font.flavor = "woff"
        buffer = io.BytesIO()
        font.save(buffer)
    return buffer.getvalue()


@cache
def _drawable() -> frozenset[int]:
    """Code points that our font, or matplotlib's own, can draw."""
    return _characters(FONT_PATH) | _characters(fallback_path())


@cache
def fallback_path() -> Path:
    """The file of the typeface that comes with matplotlib."""
    import matplotlib as mpl

    return Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _characters(path: Path) -> frozenset[int]:
    """Code points that a font can draw."""
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(path)).get_charmap())
