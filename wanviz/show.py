"""How a trace shows itself in a notebook: the report in a sandboxed frame, a poster, a sentence."""

from __future__ import annotations

import base64
import html
import io
from functools import cache
from typing import TYPE_CHECKING, Any

from wanviz.plots import plot_storyboard
from wanviz.report import render

if TYPE_CHECKING:
    from collections.abc import Callable, Container

    from wanviz.trace import Trace

FRAME_HEIGHT = 900  # CSS pixels; the page scrolls inside
NOT_TRUSTED = (
    "A picture, since this notebook is not trusted yet: run the cell, or trust the notebook, to play the video and hover its "
    "words. 这是静态图片：运行该单元格或信任此笔记本，即可播放视频并查看每个词。"
)
POSTER_WORDS = 2
POSTER_COLORS = 96
POSTER_DPI = 80  # so that a notebook stays small


def show(trace: Trace, *, beside: Trace | None = None, live: bool = False) -> None:
    """Show a trace in a notebook: play the video, hover its words. In a terminal: one sentence.

    Args:
        trace: what a capture kept.
        beside: another trace to compare with, linked in time and word.
        live: link the views to this kernel: they ask it for slices that a page cannot carry (layer with head and
            step, each of many layers, the other branch). Needs the kernel to go on running; without it the views
            are whole in the stored notebook.
    """
    from IPython.display import display

    if live:
        from wanviz.widget import TraceWidget

        still = mimebundle(trace, exclude=("text/html",), beside=beside)
        display(TraceWidget(trace, beside=beside, still=still))  # type: ignore[no-untyped-call]
        return
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
        text/html: the report in a frame that may run its script and nothing else, over a poster for notebooks
        that are not trusted, from which JupyterLab removes frames; image/png: the poster for readers that
        know no HTML; text/plain: the trace in one sentence.
    """
    still = cache(lambda: poster(trace))
    makers: dict[str, Callable[[], Any]] = {
        "text/plain": lambda: repr(trace) if beside is None else f"{trace!r}\nbeside {beside!r}",
        "image/png": still,
        "text/html": lambda: frame(trace, beside, still()),
    }
    return {
        kind: make()
        for kind, make in makers.items()
        if (include is None or kind in include) and (exclude is None or kind not in exclude)
    }


def frame(trace: Trace, beside: Trace | None = None, still: bytes | None = None) -> str:
    """The report as an iframe with an origin of its own, and under it what is seen where frames are removed."""
    page = html.escape(render(trace, beside), quote=True)
    picture = base64.b64encode(poster(trace) if still is None else still).decode("ascii")
    return (
        '<div style="display:grid"><figure style="grid-area:1/1;margin:0">'
        f'<img alt="{html.escape(repr(trace), quote=True)}" src="data:image/png;base64,{picture}">'
        f'<figcaption>{NOT_TRUSTED}</figcaption></figure><iframe title="wanviz report" sandbox="allow-scripts" srcdoc="{page}" '
        f'style="grid-area:1/1;width:100%;height:{FRAME_HEIGHT}px;border:0;border-radius:12px"></iframe></div>'
    )


def poster(trace: Trace) -> bytes:
    """A small PNG: the words whose maps stand out most, over the video."""
    from PIL import Image

    clearest = [] if "words" in trace.record["failed"] else trace.clearest(POSTER_WORDS)
    if not clearest:
        return _plain_poster(trace)
    clearest.sort(key=lambda word: word.span)
    figure = plot_storyboard(trace, clearest)
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
