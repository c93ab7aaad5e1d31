"""A trace as one HTML file: video, words to hover, maps over it; no server, no network, no risk.

The prompt is untrusted. It travels as JSON in a data block with every `<`, `>` and `&` escaped,
reaches the page only through textContent, and a strict Content-Security-Policy lets nothing run
but the one script whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wanviz.errors import ReportError
from wanviz.files import write_whole
from wanviz.font import FONT_FAMILY, embedded_font
from wanviz.page import page_data

if TYPE_CHECKING:
    from wanviz.trace import Trace

STATIC = Path(__file__).parent / "static"
MODULES = (
    "kit",
    "texts",
    "player",
    "heads",
    "denoise",
    "frames",
    "experts",
    "dashboard",
    "compare",
)  # each uses those before it
CJK = "U+2E80-9FFF, U+F900-FAFF, U+FE30-FE4F, U+FF00-FFEF, U+20000-3FFFF"


def report(trace: Trace, path: str | os.PathLike[str], *, beside: Trace | None = None) -> Path:
    """Write a trace as one self-contained, interactive HTML page.

    Args:
        trace: what a capture kept.
        path: the file to write; a reader sees the old one or the whole new one.
        beside: another trace to compare with, linked in time and word.

    Returns:
        The path written.

    Raises:
        ReportError: the path names no file, or the folder is missing, unwritable or full.
    """
    page = render(trace, beside)
    return write_whole(path, page.encode("utf-8"), "the report", ReportError)


def render(trace: Trace, beside: Trace | None = None) -> str:
    """The page of a trace, or of two beside each other, as text."""
    shown = {"first": page_data(trace), "second": None if beside is None else page_data(beside)}
    data = json.dumps(shown, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    script = f'"use strict";\n(() => {{\n{views_script()}\n{(STATIC / "page.js").read_text("utf-8")}}})();'
    styles = [(STATIC / name).read_text("utf-8") for name in ("page.css", "views.css")]
    style = "\n".join([font_face(shown), *styles])
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data: blob:",
            "font-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    page = (STATIC / "page.html").read_text("utf-8")
    parts = {"csp": policy, "css": style, "js": script, "data": data}
    for name, text in parts.items():
        before, _, after = page.partition(f"{{{{{name}}}}}")  # once: data may hold any text
        page = before + text + after
    return page


@cache
def views_script() -> str:
    """The views' modules in one text: what they import stands before them, so that imports can go."""
    text = "\n".join((STATIC / "views" / f"{name}.js").read_text("utf-8") for name in MODULES)
    text = re.sub(r"^import \{[^}]*\} from \"\./\w+\.js\";\n", "", text, flags=re.M)
    return re.sub(r"^export (?=(?:async )?(?:function|class|const) )", "", text, flags=re.M)


def font_face(shown: Any) -> str:
    """A CSS rule with the Chinese letters that the views and the data of a page use."""
    written = json.dumps(shown, ensure_ascii=False) + views_script()
    used = sorted({letter for letter in written if ord(letter) >= 0x2E80})
    font = base64.b64encode(embedded_font("".join(used))).decode("ascii")
    return (
        f'@font-face {{ font-family: "{FONT_FAMILY}"; unicode-range: {CJK}; '
        f"src: url(data:font/woff;base64,{font}) format('woff'); }}"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode(
        "ascii"
    )
