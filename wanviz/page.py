"""What the views of a page draw, as plain data: video, words, maps in bytes, frames, experts, record."""

from __future__ import annotations

import base64
import io
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from wanviz import views
from wanviz.attribution import attribute
from wanviz.errors import CaptureError, KeepError
from wanviz.layout import AXES
from wanviz.slices import Family, Subjects, families, family_frames, family_maps, subjects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from wanviz.trace import Trace

FRAMES_PER_SECOND = 8  # where a record does not say
MOST_LEVEL, MISSING = 254, 255  # of the bytes that maps are stored in
MOST_MAP_BYTES = 10 << 20  # of all maps of a page, before they are deflated
MOST_PLACE_BYTES = 1 << 20  # of the maps of token experts
LOSSLESS_PIXELS = 1 << 20  # of a whole clip; larger clips are stored with small losses
DRAWN_ELSEWHERE = ("prompt", "truncated_at", "steps", "frame_to_pixel")  # of a record
COLOR_MAPS = (views.COLOR_MAP, "viridis", "cividis")
DIVERGING = "PuOr"


def page_data(trace: Trace) -> dict[str, Any]:
    """Everything that the views of a trace draw, ready for JSON.

    Args:
        trace: what a capture kept.

    Returns:
        Numbers, strings, lists and dicts; maps and pictures as base64.
    """
    shown = subjects(trace)
    found, grouped = families(trace, MOST_MAP_BYTES)
    maps, worst = _maps(trace, found)
    labels = trace.contents.labels["layer"]
    return {
        "prompt": trace.prompt,
        "facts": _facts(trace),
        "method": trace.record.get("attribution", {}).get("method"),
        "cut": trace.contents.prompts[trace.branches[0]].truncated_at,
        "words": [
            {"text": word.text, "start": word.span[0], "stop": word.span[1]} for word in shown.words
        ],
        "kinds": [{"name": kind} for kind in shown.kinds],
        "grid": trace.contents.grid.shape,
        "spans": [[span[0], span[-1]] for span in views.pixel_frames(trace)],
        "fps": trace.record.get("fps", FRAMES_PER_SECOND),
        "video": _video(trace),
        "layers": labels,
        "labels": {axis: trace.contents.labels[axis] for axis in AXES},
        "keep": trace.contents.keep,
        "branches": trace.branches,
        "branch": trace.branches[0],
        "maps": {
            "families": maps,
            "most": MOST_LEVEL,
            "missing": MISSING,
            "error": f"{worst / 2:.1g}",
            "grouped": grouped,
        },
        **_explanation(trace, shown),
        "alpha": [views.LEAST_ALPHA, views.MOST_ALPHA],
        "colors": {name: _base64(views.colors(name).tobytes()) for name in COLOR_MAPS},
        "diverging": _base64(views.colors(DIVERGING).tobytes()),
        "previews": _previews(trace),
        "links": _links(trace),
        "frames": _frames(trace, found),
        "steps": [
            {name: step[name] for name in ("step", "sigma", "noise_expert")}
            for step in trace.record["steps"]
        ],
        **_routing(trace),
        "routing": bool(trace.record.get("routing")),
        "record": _record(trace),
    }


def quantise(masses: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Masses as bytes, each slice with its own unit: mass = level * unit.

    Args:
        masses: [..., frame, row, column], not negative; NaN where not computed.

    Returns:
        The levels 0 to 254, 255 for NaN; and the units, [...]. A level is off by at most half a unit.
    """
    known = np.nan_to_num(masses)
    unit = known.max(axis=(-3, -2, -1), initial=0).astype(np.float64) / MOST_LEVEL
    levels = np.rint(known / np.where(unit > 0, unit, 1)[..., None, None, None])
    return np.where(np.isnan(masses), MISSING, levels).astype(np.uint8), unit


def _maps(trace: Trace, found: Sequence[Family]) -> tuple[list[dict[str, Any]], float]:
    """The families in bytes, and the largest unit of all."""
    stored, worst = [], 0.0
    for family in found:
        levels, unit = quantise(family_maps(trace, family))
        worst = max(worst, float(unit.max(initial=0)))
        stored.append(
            {
                "axes": family.axes,
                "choices": _choices(family),
                "levels": _deflated(levels.tobytes()),
                "units": _deflated(unit.astype("<f4").tobytes()),
            }
        )
    return stored, worst


def _explanation(trace: Trace, shown: Subjects) -> dict[str, Any]:
    """A map of each word by the default method of `attribute`; or what the trace lacks for it."""
    nobody: dict[str, Any] = {"explanation": None, "unexplained": "words"}
    if "attribution" in trace.record or not shown.words:
        return nobody
    try:
        found = attribute(trace, shown.words)
    except KeepError:
        return nobody | {"unexplained": "layers"}
    if not np.isfinite(found.values.values).any():  # the run was stopped before the first layer
        return nobody
    levels, unit = quantise(found.values.values)
    nothing = np.full((len(shown.kinds), *trace.contents.grid.shape), MISSING, np.uint8)
    explanation = {
        "method": found.method,
        "levels": _deflated(np.concatenate([levels, nothing]).tobytes()),
        "units": _deflated(np.append(unit, np.zeros(len(shown.kinds))).astype("<f4").tobytes()),
        "error": f"{unit.max() / 2:.1g}",
    }
    return {"explanation": explanation, "unexplained": None}


def _choices(family: Family) -> list[list[dict[str, Any]]]:
    return [
        [
            {"name": group.name, "first": group.places[0], "members": len(group.places)}
            for group in groups
        ]
        for groups in family.choices
    ]


def _frames(trace: Trace, found: Sequence[Family]) -> list[dict[str, Any]] | None:
    stored = []
    try:
        for family in found:
            mass, errors = family_frames(trace, family)
            entry = {"axes": family.axes, "choices": _choices(family), "mass": matrices(mass)}
            stored.append(entry if errors is None else entry | {"stderr": matrices(errors)})
    except (KeepError, CaptureError):  # not asked for, or failed; the page says so
        return None
    return stored


def matrices(values: NDArray[np.float32]) -> list[Any]:
    """Numbers of four digits, ready for JSON; null where not computed."""
    return [
        [[None if np.isnan(mass) else float(f"{mass:.4g}") for mass in row] for row in matrix]
        for matrix in values
    ]


def _video(trace: Trace) -> dict[str, Any]:
    spans = views.pixel_frames(trace)
    video: dict[str, Any] = {"count": spans[-1][-1] + 1, "lossless": True, "frames": None}
    if trace.frames is None:
        height, width = views.picture(trace, spans[0]).shape[:2]
        return video | {"height": height, "width": width}
    count, height, width, _ = trace.frames.shape
    lossless = count * height * width <= LOSSLESS_PIXELS
    return {
        "count": count,
        "height": height,
        "width": width,
        "lossless": lossless,
        "frames": [_webp(frame, lossless) for frame in trace.frames],
    }


def _links(trace: Trace) -> dict[str, Any] | None:
    """For every pair of frames: where each place of the first looks most in the second, and how much it looks there."""
    try:
        links = trace.links
    except (KeepError, CaptureError):
        return None
    mass = links.values.reshape(*links.shape[:3], -1)  # query frame, place, frame, cell
    return {
        "places": np.stack([links.query_row.values, links.query_column.values], 1).tolist(),
        "cells": np.nan_to_num(mass).argmax(-1).tolist(),
        "mass": [matrices(one[None])[0] for one in mass.sum(-1)],
    }


def _previews(trace: Trace) -> list[list[str] | None] | None:
    """What each watched step predicts, a picture for each latent frame; None for a step that did not run."""
    try:
        pictures = trace.previews.values
    except (KeepError, CaptureError):
        return None
    ran = {step["step"] for step in trace.record["steps"]}
    watched = zip(trace.contents.labels["step"], pictures, strict=True)
    return [
        [_webp(picture, False) for picture in video] if step in ran else None
        for step, video in watched
    ]


def _webp(picture: NDArray[np.uint8], lossless: bool) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if lossless else {"quality": 85}
    Image.fromarray(picture).save(buffer, "webp", method=4, **options)
    return _base64(buffer.getvalue())


def _routing(trace: Trace) -> dict[str, Any]:
    """The load of the token experts, where each of them is chosen, and which two for the same tokens."""
    nothing: dict[str, Any] = {"load": None, "loadBySteps": None, "where": None, "together": None}
    try:
        routing = trace.routing
    except CaptureError:  # it failed
        return nothing
    if "load" not in routing:
        return nothing
    mean = routing["load"].mean("step").transpose("layer", "token_expert").values
    if not np.isfinite(mean).all():
        return nothing
    where = routing["where"].values
    levels = np.rint(np.nan_to_num(where).clip(0, 1) * MOST_LEVEL).astype(np.uint8)
    fits = levels.size <= MOST_PLACE_BYTES
    return {
        "load": matrices(mean[None])[0],
        "loadBySteps": matrices(routing["load"].transpose("step", "layer", "token_expert").values),
        "together": matrices(routing["together"].values) if "together" in routing else None,
        "where": {"levels": _base64(levels.tobytes()), "most": MOST_LEVEL} if fits else None,
    }


def _facts(trace: Trace) -> str:
    """One line under the title: model, seed, steps, size."""
    record = trace.record
    high = sum(step["noise_expert"] == "high" for step in record["steps"])
    total = len(record["steps"])
    ran = views.steps_that_ran(trace) or f"{total} steps"
    two = any(step["noise_expert"] for step in record["steps"])
    parts = (
        [f"{ran} ({high} high-noise, {total - high} low-noise)" if two else ran] if total else []
    )
    if record.get("seed") is not None:
        parts.insert(0, f"seed {record['seed']}")
    kept = f"{trace.nbytes / 2**20:.1f} MiB kept"
    return " · ".join([str(record.get("model", "unknown model")), *parts, kept])


def _record(trace: Trace) -> list[tuple[str, str]]:
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
    return lines


def _deflated(data: bytes) -> str:
    return _base64(zlib.compress(data, 9))


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
