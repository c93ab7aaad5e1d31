"""What a capture keeps and costs, told before it runs."""

from __future__ import annotations

from dataclasses import dataclass

from wanviz.adapters import Adapter
from wanviz.errors import OptionError
from wanviz.events import Request
from wanviz.frame_masses import SAMPLED_ROWS, frame_work_bytes
from wanviz.grid import link_places
from wanviz.layout import STDERR, ArraySpec, Options, Subject, format_bytes, layout
from wanviz.running import work_bytes, work_rows
from wanviz.words import only_words


@dataclass(frozen=True)
class Plan:
    """What a capture keeps and costs, told before it runs."""

    arrays: tuple[ArraySpec, ...]
    extra_flops: int  # arithmetic that the capture adds
    model_flops: int  # arithmetic of the generation's denoiser, estimated
    work_bytes: int  # largest buffers that exist for a moment, about; on the model's device, as what is kept
    decodings: int  # of the whole video, which previews add; not in `extra_flops`

    @property
    def nbytes(self) -> int:
        """Bytes kept: exactly the trace's `nbytes`."""
        return sum(spec.nbytes for spec in self.arrays)

    def __repr__(self) -> str:
        """The figures in one sentence."""
        groups: dict[str, int] = {}
        for spec in self.arrays:
            what = (*spec.name.split("/"), "")[1] or spec.name
            what = {
                "load": "routing",
                "where": "routing",
                "together": "routing",
                STDERR: "frames",
            }.get(what, what)
            groups[what] = groups.get(what, 0) + spec.nbytes
        parts = ", ".join(f"{what} {format_bytes(count)}" for what, count in groups.items())
        share = 100 * self.extra_flops / self.model_flops
        decoded = f" · {self.decodings} × decoding the video" if self.decodings else ""
        return (
            f"Plan: keeps {format_bytes(self.nbytes)} ({parts}) · about "
            f"{format_bytes(self.work_bytes)} of work space · {share:.2g} % more arithmetic{decoded}"
        )


def make_subject(adapter: Adapter, request: Request, options: Options, video: bool) -> Subject:
    """The first video of a request, in sizes and tokens.

    Args:
        adapter: of the pipeline.
        request: what was asked; its prompts are known.
        options: what to keep of it.
        video: whether it will be decoded.

    Returns:
        What a plan is made of.

    Raises:
        OptionError: the number of steps cannot be used.
    """
    steps = request.num_inference_steps
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise OptionError(f"num_inference_steps={steps!r}: use a whole number from 1")
    prompts = {
        name: adapter.encode(text) for name, text in request.prompts[0].items() if text is not None
    }
    if options.words is not None:
        first = options.branches[0]
        for name in options.branches:
            absent = "error" if name == first else "ignore"
            prompts[name] = only_words(prompts[name], options.words, absent)  # type: ignore[arg-type]
    return Subject(
        anatomy=adapter.anatomy(request),
        steps=steps,
        prompts=prompts,
        video=(request.num_frames, request.height, request.width) if video else None,
        size=(request.height, request.width),
    )


def make_plan(subject: Subject, options: Options, request: Request) -> Plan:
    """What a capture of one video keeps and costs."""
    a = subject.anatomy
    labels = subject.labels(options)
    heads, layers, steps = (len(labels[axis]) for axis in ("head", "layer", "step"))
    whole = a.frame_kind == "self_attn"
    keys = sum(subject.prompts[branch].num_tokens + 2 for branch in options.branches)
    per_event = 2 * heads * a.grid.tokens * keys * a.head_width  # operations of q·k
    seen = a.grid.tokens if whole else a.grid.frames
    per_row = len(options.branches) * 2 * heads * seen * a.frame_head_width  # q·k of one query
    rows = a.grid.tokens
    if options.frames == "sampled":
        rows = a.grid.frames * min(SAMPLED_ROWS, a.grid.rows_and_columns)
    if options.frames is not None:
        # fused attention multiplies twice, by keys and by one-hot values, for each group of d frames
        fused = whole and (rows == a.grid.tokens or a.device == "cpu")
        per_event += rows * per_row * (2 * -(-a.grid.frames // a.frame_head_width) if fused else 1)
    looking = a.grid.frames * len(link_places(a.grid)) if options.links else 0  # queries
    per_event += looking * per_row
    guided = any(scale is not None and scale > 1 for scale in request.guidance.values())
    logits = 4 * a.heads * a.grid.tokens * (a.text_length + a.head_width)
    work = 2 * min(work_bytes(a.device), logits)
    if options.frames is not None and whole:
        width, frames = a.frame_head_width, a.grid.frames
        work = max(work, frame_work_bytes(a.grid.tokens, width, frames, rows, a.device))
    if options.links and whole:  # they twice, and of one head q, k and logits
        at_once = 2 * looking + 2 * work_rows(looking, 4 * a.grid.tokens, a.device)
        work = max(work, 4 * a.grid.tokens * (at_once + 4 * a.frame_head_width))
    return Plan(
        arrays=layout(subject, options),
        extra_flops=steps * layers * per_event,
        model_flops=subject.steps * a.forward_flops * (2 if guided else 1),
        work_bytes=work,
        decodings=steps if options.previews else 0,
    )
