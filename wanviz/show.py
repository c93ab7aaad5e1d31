"""How a trace shows itself in a notebook: the report in a sandboxed frame, a poster, a sentence."""

from __future__ import annotations

import html
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from wanviz.plots import plot_storyboard
from wanviz.report import render

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from wanviz.trace import Trace

FRAME_HEIGHT = 900  # CSS pixels; the page scrolls inside
POSTER_WORDS = 2
POSTER_COLORS = 96
POSTER_DPI = 80  # so that a notebook stays small


def show(trace: Trace, *, beside: Trace | None = None) -> None:
    """Show a trace in a notebook: play the video, hover its words. In a terminal: one sentence.

    Args:
        trace: what a capture kept.
        beside: another trace to compare with, linked in time and word.
    """
    from IPython.display import display

    display(mimebundle(trace, beside=beside), raw=True)  # type: ignore[no-untyped-call]


def mimebundle(
    trace: Trace,
    include: Container[str] | None = None,
    exclude: Container[str] | None = None,
    beside: Trace | None = None,
) -> dict[str, Any]:
    """What a notebook stores of a trace.

    Args:
        trace: what a capture kept.
        include: MIME types wanted; None is all.
        exclude: MIME types not wanted.
        beside: another trace to compare with.

    Returns:
        text/html: the report in a frame that may run its script and nothing else; image/png: a
        poster for readers that run no scripts; text/plain: the trace in one sentence.
    """
    makers: dict[str, Callable[[], Any]] = {
        "text/plain": lambda: repr(trace) if beside is None else f"{trace!r}\nbeside {beside!r}",
        "image/png": lambda: poster(trace),
        "text/html": lambda: frame(trace, beside),
    }
    return {
        kind: make()
        for kind, make in makers.items()
        if (include is None or kind in include) and (exclude is None or kind not in exclude)
    }


def frame(trace: Trace, beside: Trace | None = None) -> str:
    """The report as an iframe with an origin of its own."""
    page = html.escape(render(trace, beside), quote=True)
    return (
        f'<iframe title="wanviz report" sandbox="allow-scripts" srcdoc="{page}" '
        f'style="width:100%;height:{FRAME_HEIGHT}px;border:0;border-radius:12px"></iframe>'
    )


def poster(trace: Trace) -> bytes:
    """A small PNG: the words whose maps are most concentrated, over the video."""
    from PIL import Image

    words = [word for word in trace.words if word.tokens]
    if not words or "words" in trace.record["failed"]:
        return _plain_poster(trace)
    maps = [np.nan_to_num(trace.word_map(word).values) for word in words]
    focus = [mass.max() / max(float(mass.mean()), 1e-12) for mass in maps]
    best = sorted(np.argsort(focus, kind="stable")[-POSTER_WORDS:])
    figure = plot_storyboard(trace, [words[i] for i in best])
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=POSTER_DPI)
    return _small_png(Image.open(buffer).convert("RGB"))


def _plain_poster(trace: Trace) -> bytes:
    from PIL import Image

    from wanviz import views

    first = views.picture(trace, views.pixel_frames(trace)[0])
    return _small_png(Image.fromarray(first))


def _small_png(image: Any) -> bytes:
    buffer = io.BytesIO()
    image.quantize(POSTER_COLORS, dither=0, kmeans=1).save(buffer, "png", optimize=True)
    return buffer.getvalue()
