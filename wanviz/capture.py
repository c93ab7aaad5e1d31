"""`capture`: watch one generation and keep what was asked for; `plan`: what that will cost."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from wanviz.adapters import Adapter, adapter_for
from wanviz.contents import Contents
from wanviz.errors import BudgetError, CaptureError, CaptureWarning, OptionError
from wanviz.events import Event, Moment, Request
from wanviz.grid import pixel_frame_label
from wanviz.hooks import HookSet
from wanviz.layout import (
    NO_PADDING,
    ArraySpec,
    Options,
    Subject,
    format_bytes,
    layout,
    make_options,
    parse_bytes,
)
from wanviz.reducers import WORK_BYTES, AnyReducer, WordMasses, full_precision, make_reducers
from wanviz.trace import Trace
from wanviz.words import split_words

Keep = list[tuple[str, ...]] | tuple[tuple[str, ...], ...]
Frames = Literal["exact", "sampled"] | None


@dataclass(frozen=True)
class Plan:
    """What a capture keeps and costs, told before it runs."""

    arrays: tuple[ArraySpec, ...]
    extra_flops: int  # arithmetic that the capture adds
    model_flops: int  # arithmetic of the generation's denoiser, estimated
    work_bytes: int  # largest buffers that exist for a moment, about

    @property
    def nbytes(self) -> int:
        """Bytes kept: exactly the trace's `nbytes`."""
        return sum(spec.nbytes for spec in self.arrays)

    def __repr__(self) -> str:
        """The figures in one sentence."""
        groups: dict[str, int] = {}
        for spec in self.arrays:
            what = (*spec.name.split("/"), "")[1] or spec.name
            what = "routing" if what in ("load", "where") else what
            groups[what] = groups.get(what, 0) + spec.nbytes
        parts = ", ".join(f"{what} {format_bytes(count)}" for what, count in groups.items())
        share = 100 * self.extra_flops / self.model_flops
        return (
            f"Plan: keeps {format_bytes(self.nbytes)} ({parts}) · about "
            f"{format_bytes(self.work_bytes)} of work space · {share:.2g} % more arithmetic"
        )


def plan(
    pipe: Any,
    prompt: str,
    *,
    keep: Keep | None = None,
    frames: Frames = "exact",
    routing: bool = True,
    branches: tuple[str, ...] = ("cond",),
    negative_prompt: str = "",
    height: int | None = None,
    width: int | None = None,
    num_frames: int | None = None,
    num_inference_steps: int | None = None,
    output_type: Literal["np", "latent"] = "np",
) -> Plan:
    """What a capture would keep and cost; runs nothing.

    Args:
        pipe: the pipeline.
        prompt: what will be drawn.
        keep: as for `capture`.
        frames: as for `capture`.
        routing: as for `capture`.
        branches: as for `capture`.
        negative_prompt: what the "uncond" branch reads.
        height: pixel rows; None takes the pipeline's default, as below.
        width: pixel columns.
        num_frames: pixel frames, 1 + 4k.
        num_inference_steps: denoising steps.
        output_type: "np" keeps the video too, "latent" does not.

    Returns:
        Bytes and arithmetic.

    Raises:
        OptionError: an option or a size cannot be used.
    """
    adapter = adapter_for(pipe)
    options = _options(adapter, keep, frames, routing, branches)
    if not isinstance(prompt, str):
        raise OptionError(f"prompt={prompt!r} is not one prompt: give a str")
    if output_type not in ("np", "latent"):
        raise OptionError(f"output_type={output_type!r}: use 'np' or 'latent'")
    request = adapter.planned_request(
        prompt, negative_prompt, height, width, num_frames, num_inference_steps
    )
    return _plan(_subject(adapter, request, video=output_type == "np"), options, request)


@contextmanager
def capture(
    pipe: Any,
    *,
    keep: Keep | None = None,
    frames: Frames = "exact",
    routing: bool = True,
    branches: tuple[str, ...] = ("cond",),
    prompt: str | None = None,
    budget: int | str = "1GiB",
) -> Iterator[Trace]:
    """Watch the one generation that runs inside the `with` block.

    The output is what it would be without. A compiled model runs eagerly inside the block.

    Args:
        pipe: the pipeline.
        keep: sets of axes out of layer, step, head; each gives one array of word masses and one
            of frame masses, averaged over the axes not named. None takes the model's default.
        frames: "exact" frame attention, "sampled" where offered, or None for none.
        routing: whether to count token experts.
        branches: "cond" (the prompt) and/or "uncond" (the negative prompt); never mixed.
        prompt: needed only where the pipeline is given embeddings.
        budget: the most bytes to keep, e.g. "512MiB"; checked before anything is kept.

    Yields:
        A trace, filled when the block ends.

    Raises:
        OptionError: an option cannot be used.
        BudgetError: more would be kept than the budget allows.
        CaptureError: the block held no generation, more than one, or one of several videos; or
            a reducer failed, which never disturbs the generation and is told at the end.
    """
    adapter = adapter_for(pipe)
    options = _options(adapter, keep, frames, routing, branches)
    session = _Session(adapter, options, prompt, parse_bytes(budget))
    broken = True
    try:
        with HookSet() as hooks, _eager():
            adapter.attach(session, hooks, options.branches)
            yield session.trace
        broken = False
    finally:
        session.end(broken)


def _options(
    adapter: Adapter, keep: object, frames: object, routing: object, branches: object
) -> Options:
    return make_options(
        keep,
        frames,
        routing,
        branches,
        default_keep=adapter.default_keep,
        frame_modes=adapter.frame_modes,
    )


def _subject(adapter: Adapter, request: Request, video: bool) -> Subject:
    steps = request.num_inference_steps
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise OptionError(f"num_inference_steps={steps!r}: use a whole number from 1")
    return Subject(
        anatomy=adapter.anatomy(request),
        steps=steps,
        prompts={name: adapter.encode(text) for name, text in request.prompts.items()},
        video=(request.num_frames, request.height, request.width) if video else None,
    )


def _plan(subject: Subject, options: Options, request: Request) -> Plan:
    a = subject.anatomy
    per_width = 2 * a.heads * a.grid.tokens  # operations of q·k for each key and number of a head
    whole = a.frame_kind == "self_attn"
    keys = sum(len(subject.prompts[branch].tokens) + 2 for branch in options.branches)
    work = keys * a.head_width
    if options.frames is not None:
        seen = a.grid.tokens if whole else a.grid.frames
        work += len(options.branches) * seen * a.frame_head_width
    rows = a.text_length if options.frames is None or not whole else a.grid.tokens
    guided = any(scale is not None and scale > 1 for scale in request.guidance.values())
    return Plan(
        arrays=layout(subject, options),
        extra_flops=subject.steps * a.layers * per_width * work,
        model_flops=subject.steps * a.forward_flops * (2 if guided else 1),
        work_bytes=2 * min(WORK_BYTES, 4 * a.heads * a.grid.tokens * rows),
    )


class _Session:
    """One running capture: checks the generation, feeds the reducers, fills the trace."""

    def __init__(self, adapter: Adapter, options: Options, prompt: str | None, budget: int) -> None:
        self.trace = Trace()
        self._adapter, self._options = adapter, options
        self._prompt, self._budget = prompt, budget
        self._request: Request | None = None  # the one generation that is watched
        self._subject: Subject | None = None
        self._reducers: dict[tuple[str, str], AnyReducer] = {}  # branch, what
        self._seen: dict[tuple[str, str], set[tuple[int, int]]] = {}  # … -> layer, step
        self._expected: dict[str, set[int]] = {}  # branch -> steps in which it ran
        self._steps: dict[int, dict[str, Any]] = {}
        self._video: NDArray[np.uint8] | None = None
        self._failures: dict[str, Exception] = {}
        self._why_empty = "no generation ran in the `with` block: call the pipeline inside it"

    def begin(self, moment: Moment) -> None:
        """A denoiser call; the first checks everything before anything is kept."""
        request = self._adapter.request()
        assert request is not None
        if self._request is None:
            try:
                self._start(request, moment)
            except Exception as error:
                self._why_empty = f"nothing was captured: {error}"
                raise
        elif request is not self._request:
            raise CaptureError(
                "one capture holds one video, and the pipeline was called twice in one `with` "
                "block: give the second call a capture of its own (the first is kept)"
            )
        self._steps[moment.step] = {
            "step": moment.step,
            "sigma": moment.sigma,
            "timestep": moment.timestep,
            "noise_expert": moment.noise_expert,
        }
        for branch in moment.branches:
            self._expected.setdefault(branch, set()).add(moment.step)

    def _start(self, request: Request, moment: Moment) -> None:
        if request.num_videos != 1:
            raise CaptureError(
                f"this call makes {request.num_videos} videos and one capture holds one: pass one "
                "prompt, and capture each in a `with` block of its own"
            )
        if self._prompt is not None and self._prompt != request.prompts["cond"]:
            raise CaptureError(
                f"capture was given prompt={self._prompt!r}, the pipeline {request.prompts['cond']!r}"
                ": leave prompt out, it is needed only where the pipeline is given embeddings"
            )
        scales = [s for s in request.guidance.values() if s is not None]
        for branch in self._options.branches:
            if branch not in moment.branches and max(scales, default=1.0) <= 1:
                raise CaptureError(
                    f"branches={self._options.branches!r} asks for {branch!r}, and this generation "
                    f"runs without guidance (guidance_scale={scales[0]}): use a guidance_scale "
                    "above 1, or branches=('cond',)"
                )
        subject = _subject(self._adapter, request, video=True)
        planned = _plan(subject, self._options, request)
        if planned.nbytes > self._budget:
            raise BudgetError(_over_budget(planned, subject, self._options, self._budget))
        for branch in self._options.branches:
            tokens = len(subject.prompts[branch].tokens)
            for what, reducer in make_reducers(branch, tokens, planned.arrays).items():
                self._reducers[branch, what] = reducer
                self._seen[branch, what] = set()
        self._request, self._subject = request, subject

    def consume(self, event: Event) -> None:
        """Reduce one event; a failure switches that reducer off and is told at the end."""
        for (branch, what), reducer in self._reducers.items():
            if branch != event.branch or event.kind not in reducer.kinds:
                continue
            if what in self._failures:
                continue
            tensor = event.q if event.q is not None else event.expert_ids
            assert tensor is not None
            try:
                with full_precision(tensor.device):
                    reducer.consume(event)
            except Exception as error:
                self._failures[what] = error
            else:
                self._seen[branch, what].add((event.layer, event.moment.step))

    def video(self, frames: torch.Tensor) -> None:
        """Keep the decoded video as bytes; it can only belong to the watched generation."""
        if self._request is None or self._adapter.request() is not self._request:
            return
        try:
            self._video = (frames.detach() * 255).round().clamp(0, 255).byte().cpu().numpy()
        except Exception as error:
            self._failures["video"] = error

    def end(self, broken: bool) -> None:
        """Fill the trace; `broken` says that another exception is on its way."""
        if self._subject is not None and not any(self._seen.values()) and not self._failures:
            self._subject = None
            self._why_empty = (
                f"the denoiser ran {len(self._steps)} steps and no layer was seen: was the model "
                "compiled inside the `with` block, or its blocks replaced? Do that before it"
            )
        if self._subject is None or self._request is None:
            self.trace.leave_empty(self._why_empty)
            if not broken:
                raise CaptureError(self._why_empty)
            return
        arrays: dict[str, NDArray[Any]] = {}
        for (_, what), reducer in self._reducers.items():
            if what not in self._failures:
                try:
                    arrays |= reducer.finish()
                except Exception as error:
                    self._failures[what] = error
        if self._video is not None:
            arrays["video"] = self._video
        prompts = {name: self._subject.prompts[name] for name in self._options.branches}
        gaps = self._gaps()
        self.trace.fill(
            Contents(
                arrays=arrays,
                keep=self._options.keep,
                grid=self._subject.anatomy.grid,
                sizes=self._subject.sizes(),
                prompts=prompts,
                words={name: split_words(prompt) for name, prompt in prompts.items()},
                record=self._record(gaps),
            )
        )
        if not broken:
            self._tell(gaps)

    def _gaps(self) -> dict[str, list[list[int]]]:
        """Which (layer, step) of the steps that ran were not computed, by what is missing."""
        assert self._subject is not None
        gaps = {}
        for (branch, what), seen in self._seen.items():
            wanted = {
                (layer, step)
                for layer in range(self._subject.anatomy.layers)
                for step in self._expected.get(branch, ())
            }
            if what not in self._failures and wanted - seen:
                gaps[f"{branch}/{what}"] = [list(place) for place in sorted(wanted - seen)]
        return gaps

    def _tell(self, gaps: dict[str, list[list[int]]]) -> None:
        """Raise or warn about what is missing, now that the generation is done."""
        for what, error in self._failures.items():
            raise CaptureError(
                f"the video was made, but {what} could not be captured "
                f"({type(error).__name__}: {error}); the rest of the trace is there"
            ) from error
        for name, places in gaps.items():
            shown = ", ".join(f"layer {layer} in step {step}" for layer, step in places[:3])
            more = f" and {len(places) - 3} more" if len(places) > 3 else ""
            warnings.warn(
                f"{name} were not computed for {shown}{more}: the trace has NaN where nothing "
                "was computed, and averages leave it out",
                CaptureWarning,
                stacklevel=5,
            )

    def _record(self, gaps: dict[str, list[list[int]]]) -> dict[str, Any]:
        request, subject = self._request, self._subject
        assert request is not None and subject is not None
        words = [r for r in self._reducers.values() if isinstance(r, WordMasses)]
        if not any(r.pads for r in words):
            padding = NO_PADDING
        elif all(r.pads_equal for r in words):
            padding = "equal, counted once"
        else:
            padding = "not equal, all computed"
        return {
            "prompt": request.prompts["cond"],
            "negative_prompt": request.prompts["uncond"],
            "truncated_at": subject.prompts["cond"].truncated_at,
            "seed": request.seed,
            "height": request.height,
            "width": request.width,
            "num_frames": request.num_frames,
            "num_inference_steps": request.num_inference_steps,
            **request.guidance,
            "steps": [self._steps[step] for step in sorted(self._steps)],
            "frame_to_pixel": [pixel_frame_label(i) for i in range(subject.anatomy.grid.frames)],
            "frames": self._options.frames,
            "routing": self._options.routing,
            "padding_keys": padding,
            "not_computed": gaps,
            "failed": {what: f"{type(e).__name__}: {e}" for what, e in self._failures.items()},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **self._adapter.provenance(),
        }


def _over_budget(planned: Plan, subject: Subject, options: Options, budget: int) -> str:
    said = (
        f"this capture would keep {format_bytes(planned.nbytes)} and its budget is "
        f"{format_bytes(budget)}: "
    )
    for keep in ((("layer",), ("step",)), (("layer",),), ((),)):
        smaller = Options(keep, options.frames, options.routing, options.branches)
        size = sum(spec.nbytes for spec in layout(subject, smaller))
        if size <= budget:
            return f"{said}keep={list(keep)} needs {format_bytes(size)}, or raise the budget"
    smallest = Options(((),), None, False, options.branches)
    size = sum(spec.nbytes for spec in layout(subject, smallest))
    return f"{said}raise it; the least is {size} bytes, with keep=[()], frames=None, routing=False"


_stance_lock = threading.Lock()
_stance_users = 0
_stance: Any = None


@contextmanager
def _eager() -> Iterator[None]:
    """Hooks of a compiled model are silent, so it runs eagerly; captures may end in any order.

    Without torch._dynamo in memory nothing is compiled, and the two seconds of its import are saved.
    """
    global _stance, _stance_users
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with _stance_lock:
        if _stance_users == 0:
            _stance = torch.compiler.set_stance("force_eager")
        _stance_users += 1
    try:
        yield
    finally:
        with _stance_lock:
            _stance_users -= 1
            if _stance_users == 0:
                _stance.__exit__(None, None, None)
                _stance = None
