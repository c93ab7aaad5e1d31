"""One running capture: it checks the generation, feeds the reducers, and fills the trace."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wanviz.adapters import Adapter
from wanviz.contents import Contents
from wanviz.errors import BudgetError, CaptureError, CaptureWarning
from wanviz.events import Event, Moment, Request
from wanviz.grid import pixel_frame_label
from wanviz.layout import NO_PADDING, Options, Subject, format_bytes, layout
from wanviz.planning import make_plan, make_subject
from wanviz.reducers import AnyReducer, WordMasses, make_reducers
from wanviz.running import full_precision
from wanviz.trace import Trace
from wanviz.words import split_words


@dataclass
class _Video:
    """One of the videos that are made at once, and what is made of it."""

    subject: Subject
    labels: dict[str, tuple[int, ...]]
    reducers: dict[tuple[str, str], AnyReducer]  # branch, what
    seen: dict[tuple[str, str], set[tuple[int, int]]]  # … -> layer, step
    frames: NDArray[np.uint8] | None = None
    previews: list[tuple[int, NDArray[np.uint8]]] = field(
        default_factory=list
    )  # place of the step, [f, H, W, 3]
    failures: dict[str, Exception] = field(default_factory=dict)
    devices: set[torch.device] = field(default_factory=set)  # where its tensors came from
    group: Any = None  # of torch.distributed, where processes share the video

    def consume(self, event: Event) -> None:
        """Reduce one event; a failure is told at the end, and switches that reducer off where no other waits for it."""
        watched = event.layer in self.labels["layer"] and event.moment.step in self.labels["step"]
        for (branch, what), reducer in self.reducers.items():
            if not watched or branch != event.branch or event.kind not in reducer.kinds:
                continue
            if what in self.failures and event.shard is None:
                continue
            tensor = event.q if event.q is not None else event.expert_ids
            assert tensor is not None
            self.devices.add(tensor.device)
            try:
                with full_precision(tensor.device):
                    reducer.consume(event)
            except Exception as error:  # without its frames, which hold the model's tensors
                self.failures.setdefault(what, error.with_traceback(None))
            else:
                self.seen[branch, what].add((event.layer, event.moment.step))
        if event.shard is not None:
            self.group = event.shard.group

    def agree(self, broken: bool) -> None:
        """Where several processes share a video, what failed in one has failed in all."""
        if self.group is None:
            return
        if broken:  # the others may never come: do not wait for them
            self.failures["words"] = CaptureError("the run broke off while processes shared it")
            return
        kinds = sorted({what for _, what in self.reducers})
        flags = torch.tensor([float(what in self.failures) for what in kinds])
        flags = flags.to(next(iter(self.devices), "cpu"))
        torch.distributed.all_reduce(flags, group=self.group)
        for what, failed in zip(kinds, flags.tolist(), strict=True):
            if failed and what not in self.failures:
                self.failures[what] = CaptureError("it failed in another process")

    def finish(self) -> dict[str, NDArray[Any]]:
        """Every kept array."""
        arrays: dict[str, NDArray[Any]] = {}
        for (_, what), reducer in self.reducers.items():
            if what not in self.failures:
                try:
                    arrays |= reducer.finish()
                except Exception as error:
                    self.failures[what] = error
        if self.previews and "previews" not in self.failures:
            size = len(self.labels["step"])
            arrays["previews"] = np.zeros((size, *self.previews[0][1].shape), np.uint8)
            for place, pictures in self.previews:
                arrays["previews"][place] = pictures
        if self.frames is not None:
            arrays["video"] = self.frames
        return arrays

    def gaps(self, ran: dict[str, set[int]]) -> dict[str, list[list[int]]]:
        """Which (layer, step) of the steps that ran were not computed, by what is missing."""
        gaps = {}
        for (branch, what), seen in self.seen.items():
            steps = ran.get(branch, set()) & set(self.labels["step"])
            wanted = {(layer, step) for layer in self.labels["layer"] for step in steps}
            if what not in self.failures and wanted - seen:
                gaps[f"{branch}/{what}"] = [list(place) for place in sorted(wanted - seen)]
        return gaps

    def padding(self) -> str:
        """What became of the keys of padding."""
        words = [r for r in self.reducers.values() if isinstance(r, WordMasses)]
        if not any(r.pads for r in words):
            return NO_PADDING
        same = all(r.pads_equal for r in words)
        return "equal, counted once" if same else "not equal, all computed"


class Session:
    """What an adapter feeds while a capture runs; see `adapters.Sink`."""

    def __init__(
        self,
        adapter: Adapter,
        options: Options,
        prompts: tuple[str, ...] | None,
        budget: int,
        observed: bool = False,
    ) -> None:
        """Nothing is watched yet.

        Args:
            adapter: of the pipeline.
            options: what to keep.
            prompts: said by the user, where the pipeline is given embeddings; one per video, or one for all.
            budget: most bytes to keep.
            observed: whether the video was there already.
        """
        self.trace = Trace()
        self._adapter, self._options = adapter, options
        self._said, self._budget, self._observed = prompts, budget, observed
        self._request: Request | None = None  # the one generation that is watched
        self._videos: list[_Video] = []
        self._ran: dict[str, set[int]] = {}  # branch -> steps in which it ran
        self._steps: dict[int, dict[str, Any]] = {}
        self._why_empty = "no generation ran in the `with` block: call the pipeline inside it"

    def begin(self, moment: Moment) -> None:
        """A denoiser call; the first checks everything before anything is kept."""
        request = self._adapter.request()
        assert request is not None
        if self._request is None:
            try:
                self._start(request)
            except Exception as error:
                self._why_empty = f"nothing was captured: {error}"
                raise
        elif request is not self._request:
            raise CaptureError(
                "one capture holds one call of the pipeline, and it was called twice in one `with` "
                "block: give the second call a capture of its own (the first is kept)"
            )
        self._steps[moment.step] = {
            "step": moment.step,
            "sigma": moment.sigma,
            "timestep": moment.timestep,
            "noise_expert": moment.noise_expert,
        }
        for branch in moment.branches:
            self._ran.setdefault(branch, set()).add(moment.step)

    def _start(self, request: Request) -> None:
        for branch in self._options.branches:
            if branch not in request.branches:
                scale = next(s for s in request.guidance.values() if s is not None)
                raise CaptureError(
                    f"branches={self._options.branches!r} asks for {branch!r}, and this generation "
                    f"runs without guidance (guidance_scale={scale}): use a guidance_scale "
                    "above 1, or branches=('cond',)"
                )
        subjects = []
        for number in range(len(request.prompts)):
            prompts = self._prompts_of(request, number)
            subject = make_subject(
                self._adapter, replace(request, prompts=(prompts,)), self._options, video=True
            )
            self._check_lengths(request, number, subject)
            subjects.append(subject)
        planned = [make_plan(subject, self._options, request) for subject in subjects]
        needed = sum(plan.nbytes for plan in planned)
        if needed > self._budget:
            raise BudgetError(_over_budget(needed, subjects, self._options, self._budget))
        for subject, plan in zip(subjects, planned, strict=True):
            labels = subject.labels(self._options)
            video = _Video(subject, labels, {}, {})
            for branch in self._options.branches:
                sampled = self._options.frames == "sampled"
                made = make_reducers(branch, subject.prompts[branch], plan.arrays, labels, sampled)
                for what, reducer in made.items():
                    video.reducers[branch, what] = reducer
                    video.seen[branch, what] = set()
            self._videos.append(video)
        self._request = request

    def _prompts_of(self, request: Request, number: int) -> dict[str, str | None]:
        """The prompts of one video; where embeddings were given, what the user says that they are of."""
        told, count = dict(request.prompts[number]), len(request.prompts)
        if self._said is not None:
            if len(self._said) not in (1, count):
                raise CaptureError(
                    f"capture was given {len(self._said)} prompts, and this call makes {count} videos: "
                    "give one prompt for each, or one for all"
                )
            said = self._said[number if len(self._said) > 1 else 0]
            if told["cond"] not in (None, said):
                raise CaptureError(
                    f"capture was given prompt={said!r}, the pipeline {told['cond']!r}"
                    ": leave prompt out, it is needed only where the pipeline is given embeddings"
                )
            told["cond"] = said
        for branch in self._options.branches:
            if told[branch] is None:
                what = "prompt_embeds" if branch == "cond" else "negative_prompt_embeds"
                raise CaptureError(
                    f"the pipeline was given {what}, which do not tell their words: "
                    + (
                        "say them, capture(pipe, prompt='…')"
                        if branch == "cond"
                        else "give it the negative_prompt as text, or leave 'uncond' out of branches"
                    )
                )
        return told

    def _check_lengths(self, request: Request, number: int, subject: Subject) -> None:
        """Whether the embeddings can be of these words; maps on the wrong words are worse than none."""
        for branch in self._options.branches:
            found = (request.lengths or {}).get(branch)
            tokens = subject.prompts[branch].num_tokens + 1
            if found is not None and found[number] != tokens:
                raise CaptureError(
                    f"the prompt {subject.prompts[branch].text!r} has {tokens} tokens with </s>, and the "
                    f"embeddings of {branch!r} have {found[number]} rows that are not zero: they are of "
                    "another prompt, or were changed"
                )

    def failed(self, video: int, what: str, error: Exception) -> None:
        """The adapter could not tell an event."""
        if video < len(self._videos):
            self._videos[video].failures.setdefault(what, error.with_traceback(None))

    def consume(self, event: Event) -> None:
        """Reduce one event; never raises."""
        if event.video < len(self._videos):
            self._videos[event.video].consume(event)

    def video(self, frames: Sequence[torch.Tensor] | torch.Tensor, number: int = 0) -> None:
        """Keep a decoded video as bytes; it can only belong to the watched generation."""
        if self._request is None or self._adapter.request() is not self._request:
            return
        video = self._videos[number]
        try:
            video.frames = np.stack(
                [
                    (frames[i].detach() * 255).round().clamp(0, 255).byte().cpu().numpy()
                    for i in range(len(frames))
                ]
            )
        except Exception as error:
            video.failures["video"] = error

    def preview(self, step: int, decode: Callable[[], torch.Tensor]) -> None:
        """Keep what a step predicts; it can only belong to the watched generation."""
        if self._request is None or self._adapter.request() is not self._request:
            return
        steps = self._videos[0].labels["step"]
        if step not in steps or any("previews" in video.failures for video in self._videos):
            return
        try:
            pictures = (decode().detach() * 255).round().clamp(0, 255).byte().cpu().numpy()
        except Exception as error:
            for video in self._videos:
                video.failures.setdefault("previews", error.with_traceback(None))
            return
        for video, seen in zip(self._videos, pictures, strict=True):
            video.previews.append((steps.index(step), seen))

    def end(self, broken: bool) -> None:
        """Fill the trace; `broken` says that another exception is on its way, which is not to be hidden."""
        try:
            self._fill(broken)
        except Exception as error:
            if not broken:
                raise
            self.trace.leave_empty(
                f"the run broke off, and no trace could be made of it ({type(error).__name__}: {error})"
            )
        if not broken:
            self._tell()

    def _fill(self, broken: bool) -> None:
        request = self._request
        silent = not any(any(v.seen.values()) or v.failures for v in self._videos)
        if request is not None and silent and not self._nothing_selected_ran():
            request = None
            self._why_empty = (
                f"the denoiser ran {len(self._steps)} steps and no layer was seen: were its blocks "
                "replaced inside the `with` block, or compiled there? Do that before it"
            )
        if request is None:
            self.trace.leave_empty(self._why_empty)
            if not broken:
                raise CaptureError(self._why_empty)
            return
        for video in self._videos:
            video.agree(broken)
        self.trace.fill(*(self._contents(request, number) for number in range(len(self._videos))))

    def _nothing_selected_ran(self) -> bool:
        """Whether a run ended before the first step that was to be watched."""
        return all(not set(self._steps) & set(video.labels["step"]) for video in self._videos)

    def _contents(self, request: Request, number: int) -> Contents:
        video = self._videos[number]
        arrays = video.finish()
        prompts = {name: video.subject.prompts[name] for name in self._options.branches}
        return Contents(
            arrays=arrays,
            keep=self._options.keep,
            grid=video.subject.anatomy.grid,
            labels=video.labels,
            prompts=prompts,
            words={name: split_words(prompt) for name, prompt in prompts.items()},
            record=self._record(request, number),
        )

    def _tell(self) -> None:
        """Raise or warn about what is missing, now that the generation is done."""
        for video in self._videos:
            for what, error in video.failures.items():
                raise CaptureError(
                    f"the video was made, but {what} could not be captured "
                    f"({type(error).__name__}: {error}); the rest of the trace is there"
                ) from error
        for name, places in self._videos[0].gaps(self._ran).items():
            shown = ", ".join(f"layer {layer} in step {step}" for layer, step in places[:3])
            more = f" and {len(places) - 3} more" if len(places) > 3 else ""
            warnings.warn(
                f"{name} were not computed for {shown}{more}: the trace has NaN where nothing "
                "was computed, and averages leave it out",
                CaptureWarning,
                stacklevel=5,
            )

    def _record(self, request: Request, number: int) -> dict[str, Any]:
        video = self._videos[number]
        told = self._prompts_of(request, number)
        return {
            "observed": self._observed,
            "prompt": told["cond"],
            "negative_prompt": told.get("uncond"),
            "truncated_at": video.subject.prompts[self._options.branches[0]].truncated_at,
            "seed": request.seeds[number],
            "height": request.height,
            "width": request.width,
            "num_frames": request.num_frames,
            "num_inference_steps": request.num_inference_steps,
            **request.guidance,
            "steps": [self._steps[step] for step in sorted(self._steps)],
            "frame_to_pixel": [
                pixel_frame_label(i) for i in range(video.subject.anatomy.grid.frames)
            ],
            "frames": self._options.frames,
            "routing": self._options.routing,
            "padding_keys": video.padding(),
            "not_computed": video.gaps(self._ran),
            "failed": {what: f"{type(e).__name__}: {e}" for what, e in video.failures.items()},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            **self._adapter.provenance(),
        }


def _over_budget(needed: int, subjects: list[Subject], options: Options, budget: int) -> str:
    said = (
        f"this capture would keep {format_bytes(needed)} and its budget is {format_bytes(budget)}: "
    )

    def size(smaller: Options) -> int:
        return sum(spec.nbytes for subject in subjects for spec in layout(subject, smaller))

    for keep in ((("layer",), ("step",)), (("layer",),), ((),)):
        smaller = replace(options, keep=keep)
        if size(smaller) <= budget:
            return (
                f"{said}keep={list(keep)} needs {format_bytes(size(smaller))}; or keep a few words "
                "(words=[…]), or some layers and steps (select={…}), or raise the budget"
            )
    smallest = replace(options, keep=((),), frames=None, routing=False, previews=False, links=False)
    off = "".join(f", {name}=False" for name in ("previews", "links") if getattr(options, name))
    return (
        f"{said}raise it, or keep a few words (words=[…]); with all words the least is "
        f"{size(smallest)} bytes, with keep=[()], frames=None, routing=False{off}"
    )
