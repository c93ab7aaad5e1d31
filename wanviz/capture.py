"""`capture`: watch one generation and keep what was asked for; `plan`: what that will cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any, Literal

import torch

from wanviz.adapters import Adapter, adapter_for
from wanviz.eager import eager
from wanviz.errors import OptionError
from wanviz.events import Clip
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
    previews: bool = False,
    links: bool = False,
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
        previews: as for `capture`.
        links: as for `capture`.
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
    options = _options(adapter, keep, frames, routing, branches, select, words, previews, links)
    one_prompt(prompt)
    one_prompt(negative_prompt, "negative_prompt")
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
    previews: bool = False,
    links: bool = False,
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
        previews: whether to decode what each step predicts, one picture for each latent frame, see `Trace.previews`;
            it takes as long as decoding the video once more for each step.
        links: whether to follow where sixteen places of every latent frame look in the others, see `Trace.links`.
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
    options = _options(adapter, keep, frames, routing, branches, select, words, previews, links)
    session = Session(adapter, options, _prompts(prompt), parse_bytes(budget))
    with _watching(adapter, session, options):
        yield session.trace


def observe(
    pipe: Any,
    video: Any,
    prompt: str,
    *,
    sigmas: Sequence[float] = (0.9, 0.7, 0.5),
    seed: int = 0,
    negative_prompt: str = "",
    keep: Keep | None = None,
    frames: Frames = "auto",
    routing: bool = True,
    branches: tuple[str, ...] = ("cond",),
    select: Select | None = None,
    words: list[str] | None = None,
    budget: int | str = "1GiB",
) -> Trace:
    """What a model sees in a video that exists already: encoded, noised, and given to the denoiser once per level.

    The attention is that of the denoiser at a noise level of a run that would lead to this video; nothing is
    drawn. The noise is the same at every level.

    Args:
        pipe: the pipeline.
        video: `[F, H, W, 3]`, uint8 or float in [0, 1], with 1 + 4k frames and sides that fit the model.
        prompt: the words to look for, usually a description of the video.
        sigmas: noise levels in (0, 1]; each takes the place of a step, the noisiest first.
        seed: of the noise.
        negative_prompt: what the "uncond" branch reads.
        keep: as for `capture`.
        frames: as for `capture`.
        routing: as for `capture`.
        branches: as for `capture`.
        select: as for `capture`.
        words: as for `capture`.
        budget: as for `capture`.

    Returns:
        A trace; its `frames` are the video that was given.

    Raises:
        OptionError: a prompt, an option, a noise level or the video cannot be used.
        BudgetError: more would be kept than the budget allows.
        PhraseError: one of `words` is not in the prompt.
        CaptureError: no layer was seen, or a reducer failed.
    """
    adapter = adapter_for(pipe)
    options = _options(adapter, keep, frames, routing, branches, select, words)
    session = Session(adapter, options, None, parse_bytes(budget), observed=True)
    one_prompt(prompt)
    one_prompt(negative_prompt, "negative_prompt")
    shown, levels, number = pixels(video), noise_levels(sigmas), one_seed(seed)
    clip = make_clip(shown, prompt, levels, number, negative_prompt, options.branches)
    with _watching(adapter, session, options):
        adapter.observe(clip)
        session.video(shown)
    return session.trace


def make_clip(
    shown: torch.Tensor,
    prompt: str,
    levels: tuple[float, ...],
    seed: int,
    negative_prompt: str = "",
    branches: tuple[str, ...] = ("cond",),
) -> Clip:
    """A video of `pixels` at some `noise_levels`, as the adapter takes it."""
    video = shown.movedim(-1, 0)[None] * 2 - 1
    return Clip(video, prompt, negative_prompt, levels, seed, branches)


def one_prompt(prompt: object, name: str = "prompt") -> None:
    """Refuse what is not one prompt."""
    if not isinstance(prompt, str):
        raise OptionError(f"{name}={prompt!r}: give a str, one prompt")


def one_seed(seed: object) -> int:
    """The seed of a generator.

    Raises:
        OptionError: something else than a whole number that can seed one.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= int(seed) < 2**63:
        raise OptionError(f"seed={seed!r}: give a whole number from 0, e.g. 7")
    return int(seed)


def pixels(video: Any) -> torch.Tensor:
    """A video as float32 [F, H, W, 3] in [0, 1]."""
    shown = torch.as_tensor(video)
    if shown.ndim != 4 or shown.shape[-1] != 3:
        raise OptionError(
            f"video is shaped {tuple(shown.shape)}: give [F, H, W, 3], e.g. pipe(…).frames[0]"
        )
    if shown.dtype == torch.uint8:
        return shown.float() / 255
    if not shown.is_floating_point() or not 0 <= float(shown.min()) <= float(shown.max()) <= 1:
        raise OptionError(
            f"video has {str(shown.dtype).removeprefix('torch.')} from {shown.min()} to {shown.max()}: give "
            "uint8, or floats in [0, 1]"
        )
    return shown.float()


def noise_levels(sigmas: object) -> tuple[float, ...]:
    """Noise levels as they are used: the highest first.

    Raises:
        OptionError: something else than numbers in (0, 1].
    """
    hint = "give noise levels in (0, 1], e.g. sigmas=(0.9, 0.7, 0.5)"
    if not isinstance(sigmas, list | tuple) or not sigmas:
        raise OptionError(f"sigmas={sigmas!r}: {hint}")
    for sigma in sigmas:
        if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 < sigma <= 1:
            raise OptionError(f"sigmas has {sigma!r}: {hint}")
    return tuple(sorted((float(sigma) for sigma in sigmas), reverse=True))


@contextmanager
def _watching(adapter: Adapter, session: Session, options: Options) -> Iterator[None]:
    """Hooks are in place inside, and gone afterwards; then the trace is filled."""
    broken = True
    try:
        with HookSet() as hooks, eager():
            adapter.attach(session, hooks, options.branches, options.previews)
            yield
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
    previews: object = False,
    links: object = False,
) -> Options:
    return make_options(
        keep,
        frames,
        routing,
        branches,
        select,
        words,
        previews,
        links,
        default_keep=adapter.default_keep,
        frame_modes=adapter.frame_modes,
        can_preview=adapter.can_preview,
    )


def _prompts(prompt: object) -> tuple[str, ...] | None:
    if prompt is None:
        return None
    told = (prompt,) if isinstance(prompt, str) else prompt
    if not isinstance(told, list | tuple) or not told or not all(isinstance(p, str) for p in told):
        raise OptionError(f"prompt={prompt!r}: give a str, or a list with one for each video")
    return tuple(told)
