"""`capture`: watch one generation and keep what was asked for; `plan`: what that will cost."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch

from wanviz.adapters import Adapter, adapter_for
from wanviz.errors import OptionError
from wanviz.hooks import HookSet
from wanviz.layout import Options, make_options, parse_bytes
from wanviz.planning import Plan, make_plan, make_subject
from wanviz.session import Session
from wanviz.trace import Trace

Keep = list[tuple[str, ...]] | tuple[tuple[str, ...], ...]
Frames = Literal["auto", "exact", "sampled"] | None
Select = Mapping[str, Iterable[int]]


def plan(
    pipe: Any,
    prompt: str,
    *,
    keep: Keep | None = None,
    frames: Frames = "auto",
    routing: bool = True,
    branches: tuple[str, ...] = ("cond",),
    select: Select | None = None,
    words: list[str] | None = None,
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
        select: as for `capture`.
        words: as for `capture`.
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
        PhraseError: one of `words` is not in the prompt.
    """
    adapter = adapter_for(pipe)
    options = _options(adapter, keep, frames, routing, branches, select, words)
    if not isinstance(prompt, str):
        raise OptionError(f"prompt={prompt!r} is not one prompt: give a str")
    if output_type not in ("np", "latent"):
        raise OptionError(f"output_type={output_type!r}: use 'np' or 'latent'")
    request = adapter.planned_request(
        prompt, negative_prompt, height, width, num_frames, num_inference_steps
    )
    subject = make_subject(adapter, request, options, video=output_type == "np")
    return make_plan(subject, options, request)


@contextmanager
def capture(
    pipe: Any,
    *,
    keep: Keep | None = None,
    frames: Frames = "auto",
    routing: bool = True,
    branches: tuple[str, ...] = ("cond",),
    select: Select | None = None,
    words: list[str] | None = None,
    prompt: str | list[str] | None = None,
    budget: int | str = "1GiB",
) -> Iterator[Trace]:
    """Watch the one call of the pipeline that runs inside the `with` block.

    The output is what it would be without. A compiled model runs eagerly inside the block. Where the call
    makes several videos, each has a trace of its own in `trace.videos`.

    Args:
        pipe: the pipeline.
        keep: sets of axes out of layer, step, head; each gives one array of word masses and one
            of frame masses, averaged over the axes not named. None takes the model's default.
        frames: "exact" frame attention; "sampled" from some query tokens of each frame, with standard errors,
            where offered; None for none. "auto" samples where the exact one is too dear, in real Wan.
        routing: whether to count token experts.
        branches: "cond" (the prompt) and/or "uncond" (the negative prompt); never mixed.
        select: which layers, steps and heads to watch, e.g. {"layer": [0, 20, 39], "step": range(0, 40, 5)};
            averages are over these. Axes that are not named are watched whole.
        words: phrases of the prompt whose masses to keep, the others together; None keeps every token.
        prompt: needed only where the pipeline is given embeddings; a list where it makes several videos.
        budget: the most bytes to keep, e.g. "512MiB"; checked before anything is kept.

    Yields:
        A trace, filled when the block ends.

    Raises:
        OptionError: an option cannot be used.
        BudgetError: more would be kept than the budget allows.
        PhraseError: one of `words` is not in the prompt.
        CaptureError: the block held no generation, or more than one; or a reducer failed, which never
            disturbs the generation and is told at the end.
    """
    adapter = adapter_for(pipe)
    options = _options(adapter, keep, frames, routing, branches, select, words)
    session = Session(adapter, options, _prompts(prompt), parse_bytes(budget))
    broken = True
    try:
        with HookSet() as hooks, _eager():
            adapter.attach(session, hooks, options.branches)
            yield session.trace
        broken = False
    finally:
        session.end(broken)


def _options(
    adapter: Adapter,
    keep: object,
    frames: object,
    routing: object,
    branches: object,
    select: object,
    words: object,
) -> Options:
    return make_options(
        keep,
        frames,
        routing,
        branches,
        select,
        words,
        default_keep=adapter.default_keep,
        frame_modes=adapter.frame_modes,
    )


def _prompts(prompt: object) -> tuple[str, ...] | None:
    if prompt is None:
        return None
    told = (prompt,) if isinstance(prompt, str) else prompt
    if not isinstance(told, list | tuple) or not told or not all(isinstance(p, str) for p in told):
        raise OptionError(f"prompt={prompt!r}: give a str, or a list with one for each video")
    return tuple(told)


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
