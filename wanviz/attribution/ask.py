"""`attribute`: one call for every method."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from tqdm import tqdm

from wanviz.adapters import Adapter, adapter_for
from wanviz.attribution import attention, gradients, output_space, perturbation
from wanviz.attribution.attention import Maps
from wanviz.attribution.case import open_case
from wanviz.attribution.result import Attribution, Phrase
from wanviz.capture import capture, make_clip, noise_levels, observe, one_seed, pixels
from wanviz.contents import places
from wanviz.errors import BudgetError, OptionError
from wanviz.layout import format_bytes, parse_bytes
from wanviz.trace import Trace
from wanviz.words import EncodedPrompt, Word, phrase_spans, split_words, token_weights

SIGMAS = (0.8, 0.5, 0.2)


@dataclass(frozen=True)
class Method:
    """How a method is run."""

    run: Callable[..., Any]  # of a trace and phrases, or of a case; plus its own parameters
    from_trace: bool = False  # whether a trace is all that it needs
    frames: bool = False  # whether it also needs frame attention
    axes: tuple[tuple[str, ...], ...] = ((),)  # what a trace must have kept
    rows: int = 1  # of a batch that the denoiser is asked about at once
    held: int = 0  # answers that are kept of each word


METHODS: dict[str, Method] = {
    "attention": Method(attention.mean_attention, from_trace=True),
    "attention_share": Method(attention.attention_share, from_trace=True),
    "attention_layers": Method(attention.layer_attention, from_trace=True, axes=(("layer",),)),
    "attention_heads": Method(attention.head_attention, from_trace=True, axes=(("layer", "head"),)),
    "attention_frames": Method(attention.carried_attention, from_trace=True, frames=True),
    "attention_value": Method(attention.value_attention),
    "output_space": Method(output_space.output_space),
    "saliency": Method(gradients.saliency),
    "input_x_gradient": Method(gradients.input_x_gradient),
    "integrated_gradients": Method(gradients.integrated_gradients, rows=4),
    "word_ablation": Method(perturbation.word_ablation),
    "knockout": Method(perturbation.knockout),
    "occlusion": Method(perturbation.occlusion, rows=8),
    "occlusion_latents": Method(perturbation.occlusion_latents, rows=8, held=3),
    "shapley": Method(perturbation.shapley),
}
DEFAULT = "attention_layers"


def attribute(
    source: Any,
    *asked: Any,
    method: str = DEFAULT,
    video: Any = None,
    seed: int = 0,
    sigmas: Sequence[float] = SIGMAS,
    budget: int | str = "1GiB",
    progress_bar: bool = True,
    **parameters: Any,
) -> Attribution:
    """Which region of which frame each word is behind.

    `attribute(trace, words)` for methods that need a trace alone, `attribute(pipe, prompt, words)` for all of them: the
    denoiser is then asked about a video at a few noise levels, see `observe`.

    Args:
        source: a trace, or a pipeline.
        asked: with a trace: words; with a pipeline: the prompt, and words. Words are phrases of the prompt, or `Word`;
            left out, all words of the prompt are meant. A phrase that occurs more than once is meant every time.
        method: one of `METHODS`; docs/attribution.md says how each is defined, what it costs and how often it is right.
        video: `[F, H, W, 3]` to look at, uint8 or float in [0, 1]; None draws the prompt first.
        seed: of the video that is drawn, of the noise, and of what a method draws by chance.
        sigmas: noise levels in (0, 1]; maps are means over them.
        budget: the most bytes that the method's own tensors may take beside the model's run; checked before it asks
            anything.
        progress_bar: show one.
        parameters: of the method, e.g. steps=32, heads=[(2, 0)], neutral="thing"; the video is drawn with the pipeline's
            defaults.

    Returns:
        The attribution.

    Raises:
        OptionError: an unknown method or parameter, or a trace where the model is needed.
        PhraseError: a word that is not in the prompt.
        KeepError: the trace did not keep what the method needs.
        BudgetError: the method needs more than the budget.
    """
    most = parse_bytes(budget)
    if method not in METHODS:
        raise OptionError(f"method={method!r}: use one of {', '.join(METHODS)}")
    chosen = METHODS[method]
    _check(chosen, method, parameters)
    if isinstance(source, Trace):
        (words,) = _positions(asked, "attribute(trace, words)", 1)
        if not chosen.from_trace:
            fit = ", ".join(name for name, m in METHODS.items() if m.from_trace)
            raise OptionError(
                f"{method} asks the model again, and a trace has none: give the pipeline, "
                f"attribute(pipe, prompt, words, method={method!r}); a trace is enough for {fit}"
            )
        return _of_trace(source, words, method, parameters)
    prompt, words = _positions(asked, "attribute(pipe, prompt, words)", 2)
    if not isinstance(prompt, str):
        raise OptionError(f"prompt={prompt!r}: give a str, attribute(pipe, prompt, words)")
    levels, seed = noise_levels(sigmas), one_seed(seed)
    adapter = adapter_for(source)
    phrases = find_phrases(adapter.encode(prompt), words)
    if video is None:
        video = drawn(source, adapter, prompt, seed, progress_bar)
    if chosen.from_trace:
        trace = observe(
            source, video, prompt, sigmas=levels, seed=seed, keep=list(chosen.axes),
            frames="auto" if chosen.frames else None,
            routing=False, budget=most,
        )  # fmt: skip
        return _of_trace(trace, words, method, parameters)
    return _of_model(
        source,
        adapter,
        prompt,
        phrases,
        method,
        video,
        seed,
        levels,
        most,
        progress_bar,
        parameters,
    )


def find_phrases(
    encoded: EncodedPrompt, words: str | Word | Sequence[str | Word] | None
) -> tuple[Phrase, ...]:
    """The words that are asked for; None is every word of the prompt.

    Raises:
        PhraseError: one is not in the prompt.
        OptionError: there is none.
    """
    if isinstance(words, str | Word):
        words = [words]
    if words is None:
        words = [word for word in split_words(encoded) if word.tokens]
    if not words:
        raise OptionError("no words to look for: name some, or give a prompt that has words")
    found = []
    for word in words:
        spans = phrase_spans(encoded, word, None if isinstance(word, Word) else "all")
        text = word.text if isinstance(word, Word) else word.strip()
        found.append(Phrase(text, token_weights(encoded, spans), spans))
    return tuple(found)


def _of_trace(trace: Trace, words: Any, method: str, parameters: dict[str, Any]) -> Attribution:
    contents = trace.contents
    encoded = contents.prompts[trace.branches[0]]
    phrases = find_phrases(encoded, words)
    maps = METHODS[method].run(trace, phrases, **parameters)
    return _made(
        maps, places(contents), method, parameters, {}, encoded, phrases, trace.frames, trace.record
    )


def _of_model(
    pipe: Any,
    adapter: Adapter,
    prompt: str,
    phrases: tuple[Phrase, ...],
    method: str,
    video: Any,
    seed: int,
    levels: tuple[float, ...],
    budget: int,
    progress_bar: bool,
    parameters: dict[str, Any],
) -> Attribution:
    shown = pixels(video)
    clip = make_clip(shown, prompt, levels, seed)
    bar = tqdm(desc=method, unit="forward", disable=not progress_bar)
    with bar, open_case(pipe, clip, phrases, bar.update) as case:
        needed = case.needs(METHODS[method].rows, METHODS[method].held)
        if needed > budget:
            raise BudgetError(
                f"{method} of {len(phrases)} words in this video needs {format_bytes(needed)} beside the model and the "
                f"budget is {format_bytes(budget)}: raise it, ask for fewer words, or use a smaller video"
            )
        found = METHODS[method].run(case, **parameters)
        maps, checks = found if isinstance(found, tuple) else (found, {})
        checks = {**checks, "forwards": case.forwards}
        frames, rows, columns = case.denoiser.grid.shape
        encoded = case.denoiser.encoded
    coords = {"frame": range(frames), "row": range(rows), "column": range(columns)}
    record = {
        **adapter.provenance(),
        "observed": True,
        "seed": seed,
        "steps": [],
        "sigmas": list(levels),
    }
    bytes_ = (shown * 255).round().byte().numpy()
    return _made(maps, coords, method, parameters, checks, encoded, phrases, bytes_, record)


def _check(method: Method, name: str, parameters: dict[str, Any]) -> None:
    """Say what a method does not know, or what it lacks, before anything is drawn."""
    given = (None, None) if method.from_trace else (None,)
    try:
        inspect.signature(method.run).bind(*given, **parameters)
    except TypeError as error:
        raise OptionError(f"{name} cannot be asked with {parameters}: {error}") from error


def _made(
    maps: Maps,
    coords: Any,
    method: str,
    parameters: dict[str, Any],
    checks: dict[str, float],
    encoded: EncodedPrompt,
    phrases: tuple[Phrase, ...],
    frames: Any,
    record: dict[str, Any],
) -> Attribution:
    values = xr.DataArray(
        np.asarray(maps, np.float32),
        dims=("word", "frame", "row", "column"),
        coords={"word": np.array([p.text for p in phrases], dtype=object), **dict(coords)},
        name=method,
    )
    return Attribution(
        values, method, dict(parameters), checks, encoded, phrases, frames, dict(record)
    )


def drawn(pipe: Any, adapter: Adapter, prompt: str, seed: int, progress_bar: bool) -> Any:
    """The video of a prompt, as the pipeline makes it by default."""
    with capture(pipe, keep=[()], frames=None, routing=False) as trace:
        adapter.draw(prompt, seed, progress_bar=progress_bar)
    return trace.frames


def _positions(asked: tuple[Any, ...], usage: str, most: int) -> tuple[Any, ...]:
    if len(asked) > most or (most == 2 and not asked):
        raise OptionError(f"{len(asked)} arguments behind the first: call {usage}")
    return (*asked, *[None] * (most - len(asked)))
