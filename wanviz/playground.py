"""Knobs that draw again: a prompt, a seed, steps and guidance, and below them the views of what came out."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import ipywidgets as widgets
import torch

from wanviz.adapters import adapter_for
from wanviz.capture import capture
from wanviz.errors import CaptureError
from wanviz.trace import Trace
from wanviz.widget import TraceWidget

WIDE = {"description_width": "9em"}
NOTHING = "Press Draw. Change one knob, tick “compare”, and draw again."


class Playground(widgets.VBox):  # type: ignore[misc]
    """Draw videos from a notebook by turning knobs, and see what each word did.

    Args:
        pipe: a pipeline that `wanviz.capture` can watch.
        prompt: what the first video is to show.
        options: more arguments of the pipeline's call, the same for every video, e.g. `height=…`.

    Attributes:
        trace: of the last video; None before the first.
    """

    def __init__(self, pipe: Any, prompt: str = "", **options: Any) -> None:
        self._pipe, self._options = pipe, options
        self._previews = adapter_for(pipe).can_preview
        self.trace: Trace | None = None
        whole = widgets.Layout(width="min(100%, 46em)")
        self.prompt = widgets.Textarea(
            prompt, description="prompt", placeholder="a woman in a red qipao walks in the rain",
            layout=whole, style=WIDE,
        )  # fmt: skip
        self.negative = widgets.Text("", description="negative prompt", layout=whole, style=WIDE)
        self.seed = widgets.BoundedIntText(7, 0, 2**31 - 1, description="seed", style=WIDE)
        self.steps = widgets.IntSlider(12, 2, 50, description="steps", style=WIDE)
        self.guidance = widgets.FloatSlider(
            4.0, min=1.0, max=12.0, step=0.5, description="guidance", style=WIDE
        )
        self.compare = widgets.Checkbox(
            False, description="compare with the video before", indent=False
        )
        self.draw = widgets.Button(description="Draw", icon="play", button_style="primary")
        self.said = widgets.HTML("")
        self._say(NOTHING)
        self._views = widgets.VBox()
        self.draw.on_click(self._draw)
        knobs = widgets.HBox([self.draw, self.compare], layout=widgets.Layout(align_items="center"))
        super().__init__([
            self.prompt, self.negative, self.seed, self.steps, self.guidance, knobs, self.said, self._views,
        ])  # fmt: skip

    def _draw(self, _: Any) -> None:
        """Draw once; what goes wrong becomes a sentence, and the last video stays."""
        self.draw.disabled = True
        self._say("Drawing … (interrupt the kernel to stop)")
        started = time.perf_counter()
        try:
            trace, problem = self._watched()
            self._show(trace)
            drawn = f"Drawn in {time.perf_counter() - started:.1f} s. {trace!r}"
            self._say(drawn if problem is None else f"{drawn} {problem}")
        except KeyboardInterrupt:
            self._say("Stopped; nothing was changed.")
        except Exception as error:
            self._say(f"{type(error).__name__}: {error}")
        finally:
            self.draw.disabled = False

    def _watched(self) -> tuple[Trace, CaptureError | None]:
        """What the knobs ask for, and what of it could not be captured though the video was made."""
        trace = None
        try:
            with capture(self._pipe, previews=self._previews, links=self._previews) as trace:
                self._pipe(prompt=self.prompt.value, **self._asked(), **self._options)
        except CaptureError as error:
            if trace is None or trace.frames is None:
                raise
            return trace, error
        return trace, None

    def _show(self, trace: Trace) -> None:
        """Put the views of a trace in place of the last ones, which would else live as long as the kernel."""
        before = self.trace if self.compare.value else None
        views = TraceWidget(trace) if before is None else TraceWidget(before, beside=trace)
        last, self._views.children = self._views.children, [views]
        for view in last:
            view.close()
        self.trace = trace

    def _asked(self) -> dict[str, Any]:
        asked: dict[str, Any] = {
            "negative_prompt": self.negative.value,
            "num_inference_steps": self.steps.value,
            "guidance_scale": self.guidance.value,
        }
        if type(self._pipe).__module__.startswith("tinywan"):
            return asked | {"seed": self.seed.value}
        return asked | {"generator": torch.Generator().manual_seed(self.seed.value)}

    def _say(self, sentence: str) -> None:
        """Show a sentence as text: a prompt may stand in it."""
        self.said.value = f"<span style='overflow-wrap:anywhere'>{escape(sentence)}</span>"
