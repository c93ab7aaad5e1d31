"""A trace as one HTML file: video, words to hover, maps over it; no server, no network, no risk.

The prompt is untrusted. It travels as JSON in a data block with every `<`, `>` and `&` escaped,
reaches the page only through textContent, and a strict Content-Security-Policy lets nothing run
but the one script whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wanviz import views
from wanviz.errors import CaptureError, KeepError, ReportError
from wanviz.files import write_whole
from wanviz.font import FONT_FAMILY, embedded_font

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from wanviz.trace import Trace

STATIC = Path(__file__).parent / "static"
FRAMES_PER_SECOND = 8  # where a record does not say
MOST_LEVEL, MISSING = 254, 255  # of the bytes that maps are stored in
MOST_MAP_BYTES = 6 << 20  # beyond that a page carries only the mean over layers
LOSSLESS_PIXELS = 1 << 20  # of a whole clip; larger clips are stored with small losses
DRAWN_ELSEWHERE = ("prompt", "truncated_at", "steps", "frame_to_pixel")  # of a record
CJK = "U+2E80-9FFF, U+F900-FAFF, U+FE30-FE4F, U+FF00-FFEF, U+20000-3FFFF"


def report(trace: Trace, path: str | os.PathLike[str]) -> Path:
    """Write a trace as one self-contained, interactive HTML page.

    Args:
        trace: what a capture kept.
        path: the file to write; a reader sees the old one or the whole new one.

    Returns:
        The path written.

    Raises:
        ReportError: the path names no file, or the folder is missing, unwritable or full.
    """
    return write_whole(path, render(trace).encode("utf-8"), "the report", ReportError)


def render(trace: Trace) -> str:
    """The page of a trace, as text."""
    data = json.dumps(page_data(trace), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        data = data.replace(character, f"\\u{ord(character):04x}")
    script = (STATIC / "report.js").read_text("utf-8")
    style = (STATIC / "report.css").read_text("utf-8")
    style = style.replace("{{font}}", _font_face(json.loads(data), script))
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
    page = (STATIC / "report.html").read_text("utf-8")
    parts = {"csp": policy, "css": style, "js": script, "data": data}
    for name, text in parts.items():
        before, _, after = page.partition(f"{{{{{name}}}}}")  # once: data may hold any text
        page = before + text + after
    return page


def page_data(trace: Trace) -> dict[str, Any]:
    """Everything that the page's script draws, ready for JSON."""
    maps = views.word_maps(trace)
    masses = np.concatenate([maps.maps, maps.special])
    layers = maps.layers
    if masses.size > MOST_MAP_BYTES:
        masses, layers = masses[:, :1], ()
    levels, unit = quantise(masses)
    shares = np.nan_to_num(masses.mean(axis=(3, 4), dtype=np.float64)).mean(axis=2)
    peaks = np.nan_to_num(masses).max(axis=(3, 4)).argmax(axis=2)
    words: list[dict[str, Any]] = [
        {"text": word.text, "start": word.span[0], "stop": word.span[1]} for word in maps.words
    ]
    kinds: list[dict[str, Any]] = [{"name": kind} for kind in maps.kinds]
    for subject, own_shares, own_peaks in zip([*words, *kinds], shares, peaks, strict=True):
        subject |= {"shares": _rounded(own_shares), "peaks": own_peaks.tolist()}
    return {
        "prompt": trace.prompt,
        "facts": _facts(trace),
        "cut": trace.record.get("truncated_at"),
        "words": words,
        "kinds": kinds,
        "grid": masses.shape[2:],
        "spans": [[span[0], span[-1]] for span in views.pixel_frames(trace)],
        "fps": trace.record.get("fps", FRAMES_PER_SECOND),
        "video": _video(trace),
        "layers": layers,
        "maps": {
            "levels": _base64(levels.tobytes()),
            "unit": [[float(f"{value:.7g}") for value in row] for row in unit],
            "most": MOST_LEVEL,
            "missing": MISSING,
            "error": f"{unit.max(initial=0) / 2:.1g}",
        },
        "alpha": [views.LEAST_ALPHA, views.MOST_ALPHA],
        "colors": _base64(views.colors().tobytes()),
        "frames": _frame_matrices(trace, layers),
        "framesError": _frame_errors(trace, layers),
        "steps": [
            {name: step[name] for name in ("step", "sigma", "noise_expert")}
            for step in trace.record["steps"]
        ],
        "load": _load(trace),
        "routing": bool(trace.record.get("routing")),
        "record": _record(trace, left_out=len(maps.layers) - len(layers)),
    }


def quantise(masses: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Masses as bytes, each word and layer with its own unit: mass = level * unit.

    Args:
        masses: [word, layer, frame, row, column], not negative; NaN where not computed.

    Returns:
        The levels 0 to 254, 255 for NaN; and the units, [word, layer]. A level is off by at most
        half a unit.
    """
    unit = np.nan_to_num(masses).max(axis=(2, 3, 4), initial=0).astype(np.float64) / MOST_LEVEL
    divisor = np.where(unit > 0, unit, 1)[..., None, None, None]
    levels = np.rint(np.nan_to_num(masses) / divisor)
    return np.where(np.isnan(masses), MISSING, levels).astype(np.uint8), unit


def _video(trace: Trace) -> dict[str, Any]:
    spans = views.pixel_frames(trace)
    video: dict[str, Any] = {"count": spans[-1][-1] + 1, "lossless": True, "frames": None}
    if trace.frames is None:
        height, width = views.picture(trace, spans[0]).shape[:2]
        return video | {"height": height, "width": width}
    from PIL import Image

    count, height, width, _ = trace.frames.shape
    lossless = count * height * width <= LOSSLESS_PIXELS
    encoded = []
    for frame in trace.frames:
        buffer = io.BytesIO()
        options: dict[str, Any] = {"lossless": True} if lossless else {"quality": 85}
        Image.fromarray(frame).save(buffer, "webp", method=4, **options)
        encoded.append(_base64(buffer.getvalue()))
    return {
        "count": count,
        "height": height,
        "width": width,
        "lossless": lossless,
        "frames": encoded,
    }


def _frame_matrices(trace: Trace, layers: tuple[int, ...]) -> list[Any] | None:
    try:
        matrices = [trace.frame_attention(layer=layer)["mass"] for layer in (None, *layers)]
    except (KeepError, CaptureError):  # not asked for, or failed; the page says so
        return None
    return [
        [
            [None if np.isnan(mass) else float(f"{mass:.4g}") for mass in row]
            for row in matrix.values
        ]
        for matrix in matrices
    ]


def _frame_errors(trace: Trace, layers: tuple[int, ...]) -> list[str] | None:
    """The largest standard error of each matrix, where rows were sampled."""
    try:
        found = [trace.frame_attention(layer=layer) for layer in (None, *layers)]
    except (KeepError, CaptureError):
        return None
    if any("stderr" not in one for one in found):
        return None
    return [f"{float(np.nan_to_num(one['stderr']).max()):.1g}" for one in found]


def _load(trace: Trace) -> list[list[float]] | None:
    try:
        load = trace.routing.get("load")
    except CaptureError:  # it failed
        load = None
    if load is None:
        return None
    mean = load.mean("step").transpose("layer", "token_expert").values
    return [_rounded(row) for row in mean] if np.isfinite(mean).all() else None


def _facts(trace: Trace) -> str:
    """One line under the title: model, seed, steps, size."""
    record = trace.record
    high = sum(step["noise_expert"] == "high" for step in record["steps"])
    total = len(record["steps"])
    ran = views.steps_that_ran(trace) or f"{total} steps"
    two = any(step["noise_expert"] for step in record["steps"])
    parts = [f"{ran} ({high} high-noise, {total - high} low-noise)" if two else ran]
    if record.get("seed") is not None:
        parts.insert(0, f"seed {record['seed']}")
    return " · ".join([str(record.get("model", "unknown model")), *parts])


def _record(trace: Trace, left_out: int) -> list[tuple[str, str]]:
    """What the record says, as lines for people; the prompt and the steps are drawn elsewhere."""
    lines = []
    for name, value in trace.record.items():
        if name in DRAWN_ELSEWHERE or value in (None, "", {}, []):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)
        elif isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        lines.append((name.replace("_", " "), str(value)))
    if left_out:
        lines.append(("layers", f"{left_out} left out to keep the page small; the trace has them"))
    return lines


def _font_face(data: Any, script: str) -> str:
    used = sorted({c for c in json.dumps(data, ensure_ascii=False) + script if ord(c) >= 0x2E80})
    if not used:
        return ""
    font = _base64(embedded_font("".join(used)))
    return (
        f'@font-face {{ font-family: "{FONT_FAMILY}"; unicode-range: {CJK}; '
        f"src: url(data:font/woff;base64,{font}) format('woff'); }}"
    )


def _rounded(values: NDArray[Any]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _hash(text: str) -> str:
    return "sha256-" + _base64(hashlib.sha256(text.encode("utf-8")).digest())
