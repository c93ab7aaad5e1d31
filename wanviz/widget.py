"""The views as a widget that stays linked to its kernel: what a page cannot carry is asked for when it is chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import anywidget
import traitlets

from wanviz.errors import OptionError, WanvizError
from wanviz.page import matrices, page_data, quantise
from wanviz.report import STATIC, font_face, views_script
from wanviz.slices import chosen_slice, family_frames, family_maps
from wanviz.trace import Trace


class TraceWidget(anywidget.AnyWidget):
    """A trace, or two beside each other, in a notebook whose kernel runs.

    Args:
        trace: what a capture kept.
        beside: another trace to compare with.
        still: by MIME type what readers see who have no kernel.
    """

    _esm = f"{views_script()}\n{(STATIC / 'widget.js').read_text('utf-8')}"
    _css = (STATIC / "views.css").read_text("utf-8")
    data = traitlets.Dict().tag(sync=True)
    font = traitlets.Unicode().tag(sync=True)

    def __init__(
        self, trace: Trace, *, beside: Trace | None = None, still: Mapping[str, Any] | None = None
    ) -> None:
        self._still = {} if still is None else dict(still)
        self._traces = [trace, *([] if beside is None else [beside])]
        shown = _shown(self._traces)
        super().__init__(data=shown, font=font_face(shown))
        self.on_msg(self._answer)

    def _answer(self, _: Any, content: dict[str, Any], __: Any) -> None:
        """Give a slice that was asked for, or show another branch."""
        side = min(int(content["side"]), len(self._traces) - 1)
        trace = self._traces[side]
        if "branch" in content:
            traces = [*self._traces]
            traces[side] = branch_first(trace, str(content["branch"]))
            shown = _shown(traces)
            self._traces, self.font, self.data = traces, font_face(shown), shown
            return
        reply: dict[str, Any] = {"id": content["id"]}
        try:
            levels, units, frames = slice_of(trace, content["ask"])
        except WanvizError as error:
            self.send(reply | {"error": str(error)})
            return
        except (Exception, KeyboardInterrupt) as error:  # who asked waits, and must hear of it
            self.send(reply | {"error": f"{type(error).__name__}: {error}"})
            return
        self.send(reply | {"frames": frames}, [levels, units])

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The widget, and what readers see who have no kernel: a poster and a sentence."""
        made = super()._repr_mimebundle_(**kwargs)
        if made is None:
            return made
        bundle, more = made if isinstance(made, tuple) else (made, {})
        return {**bundle, **self._still}, more


def _shown(traces: Sequence[Trace]) -> dict[str, Any]:
    pages = [page_data(trace) for trace in traces]
    return {"first": pages[0], "second": pages[1] if len(pages) > 1 else None}


def branch_first(trace: Trace, name: str) -> Trace:
    """The same trace, showing another of its branches."""
    contents = trace.contents
    trace.branch(name)  # says what there is, where it is not
    others = {other: found for other, found in contents.prompts.items() if other != name}
    return Trace(replace(contents, prompts={name: contents.prompts[name], **others}))


def slice_of(
    trace: Trace, asked: dict[str, list[int] | None]
) -> tuple[bytes, bytes, dict[str, Any] | None]:
    """One slice of a trace, as a page stores it.

    Args:
        trace: what a capture kept.
        asked: by axis the first place and how many neighbours are averaged; None averages all.

    Returns:
        Levels, one byte each, [subject, f, h, w]; units, little-endian float32, [subject]; and how frames look at
        frames, None where that was not kept.

    Raises:
        OptionError: the selection makes no sense.
        KeepError: no kept array has these axes.
    """
    try:
        places = {
            axis: None if found is None else (int(found[0]), int(found[1]))
            for axis, found in asked.items()
        }
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        raise OptionError(
            f"a selection is a pair of numbers by axis, and this is {asked!r}"
        ) from error
    family = chosen_slice(trace.contents, places)
    maps = family_maps(trace, family)
    chosen = maps.reshape(len(maps), -1, *maps.shape[-3:])[:, -1]
    levels, units = quantise(chosen)
    frames = None
    try:
        mass, errors = family_frames(trace, family)
        frames = {"mass": matrices(mass[-1:])[0]}
        if errors is not None:
            frames["stderr"] = matrices(errors[-1:])[0]
    except WanvizError:  # not kept, which the view of frames says
        pass
    return levels.tobytes(), units.astype("<f4").tobytes(), frames
