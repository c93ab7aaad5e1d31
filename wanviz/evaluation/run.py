"""Every method on the same clips: scores, faithfulness and cost, one line of JSON for each clip, to be resumed.

Clips are rendered from combinations that the model never saw, noised at a few levels, and each word's map is held against the
mask of what it names. Methods that need many forwards see fewer clips, and fewer words of each.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tinywan import TextToVideoPipeline
from tqdm import tqdm

from wanviz.adapters import adapter_for
from wanviz.attribution import METHODS
from wanviz.attribution.ask import SIGMAS
from wanviz.attribution.attention import Maps
from wanviz.attribution.case import open_case
from wanviz.attribution.faithfulness import curves, infidelity, sensitivity
from wanviz.attribution.perturbation import Target
from wanviz.capture import make_clip, observe, pixels
from wanviz.evaluation import scores
from wanviz.evaluation.baselines import baselines, with_random_denoisers
from wanviz.evaluation.truth import Sample, Told
from wanviz.events import Clip
from wanviz.trace import Trace

LOOKING = (
    "attention", "attention_share", "attention_layers", "attention_heads", "attention_frames",
    "attention_value", "output_space",
)  # fmt: skip
DISTURBING = ("word_ablation", "knockout")
CHEAP = (*LOOKING, *DISTURBING)
DEAR = (
    "saliency", "input_x_gradient", "integrated_gradients", "shapley", "occlusion",
    "occlusion_latents",
)  # fmt: skip
PARAMETERS: dict[str, dict[str, Any]] = {
    "shapley": {"samples": 3},
    "occlusion": {"window": 4, "stride": 3},
    "occlusion_latents": {"window": 4, "stride": 3},
}
FAITHFUL = (
    "attention_layers",
    "attention",
    "attention_value",
    "word_ablation",
    "integrated_gradients",
)
# Whose sensitivity is measured, on the clips on which the random weights are.
STEADY = (
    "attention_layers", "attention", "attention_value", "output_space", "word_ablation", "knockout",
)  # fmt: skip
DEAR_WORDS = 2  # of a clip
LATER_WORDS = 4  # of a clip that the dear methods do not see, for those that disturb the model once for each word
DEAR_LEVEL = (0.5,)  # the noise level of the methods that need many forwards, and of the curves


@dataclass(frozen=True)
class Plan:
    """How much is run.

    Attributes:
        clips: for all methods but the dear ones; every fourth chooses thresholds, the others are scored.
        dear: the first of them, for the dear methods and the curves.
        random: the first of them, for the model without learning.
        seed: of clips.
        heads: (layer, head) of `attention_heads`, chosen on other clips; none leaves it out.
    """

    clips: int = 270
    dear: int = 54
    random: int = 10
    seed: int = 5
    heads: tuple[tuple[int, int], ...] = ()


def run(
    pipe: TextToVideoPipeline,
    plan: Plan,
    path: Path,
    sample: Callable[[int], Sample],
    rank: int = 0,
    world: int = 1,
    progress_bar: bool = True,
) -> None:
    """Evaluate what the file does not hold yet; each clip is one line, so that a run may be stopped at any time.

    Args:
        pipe: a trained tinywan.
        plan: how much.
        path: JSON lines, of this process alone.
        sample: gives a clip by its number.
        rank: of this process; it takes every world-th clip.
        world: how many processes share the clips.
        progress_bar: show one.
    """
    done = {record["clip"] for record in read(path)}
    blank = with_random_denoisers(pipe)
    mine = [number for number in range(rank, plan.clips, world) if number not in done]
    with path.open("a", encoding="utf-8") as out:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            out.write("\n")  # behind a line that was cut off
        for number in tqdm(mine, path.stem, disable=not progress_bar):
            record = evaluate(pipe, blank, sample(number), plan)
            out.write(json.dumps(record, ensure_ascii=False) + "\n")
            out.flush()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The clips that a file holds; a line that was cut off is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def evaluate(
    pipe: TextToVideoPipeline, blank: TextToVideoPipeline, sample: Sample, plan: Plan
) -> dict[str, Any]:
    """One clip: for every method and word the scores; curves; time."""
    adapter = adapter_for(pipe)
    encoded = adapter.encode(sample.text)
    rows, columns = (size // 8 for size in sample.frames.shape[1:3])
    told = sample.words(encoded, rows, columns)
    rng = np.random.default_rng([plan.seed, sample.number])
    maps, cost = _maps(pipe, sample, told, LOOKING, SIGMAS, plan)
    some = told if sample.number < plan.dear else _few(told, LATER_WORDS, sample.number)
    disturbed, more = _maps(pipe, sample, some, DISTURBING, SIGMAS, plan)
    cost |= more
    trace = _trace(pipe, sample, SIGMAS)
    found = [("", maps, told), ("", disturbed, some)]
    found.append(("", baselines(trace, told, maps["attention_layers"], rng), told))
    record: dict[str, Any] = {"clip": sample.number, "language": sample.language}
    if sample.number < plan.dear:
        few = _few(told, DEAR_WORDS, sample.number)
        dear, dear_cost = _maps(pipe, sample, few, DEAR, DEAR_LEVEL, plan)
        level, _ = _maps(pipe, sample, few, CHEAP, DEAR_LEVEL, plan)
        found.append(("", dear, few))
        cost |= dear_cost
        record["curves"] = _curves(pipe, sample, few, level | dear, rng)
        record["agreement"] = _agreement(level | dear)
    if sample.number < plan.random:
        few = _few(told, DEAR_WORDS, sample.number)
        wild = _maps(blank, sample, few, CHEAP, SIGMAS, plan)[0]
        wild |= _maps(blank, sample, few, DEAR, DEAR_LEVEL, plan)[0]
        found.append((" (random weights)", wild, few))
        record["sensitivity"] = {
            name: _sensitivity(pipe, sample, few, name, plan) for name in STEADY
        }
    record["scores"] = [
        {"method": name + more, "word": one.phrase.text, "kind": one.kind} | _scores(values, one)
        for more, by_name, words in found
        for name, maps_ in by_name.items()
        for one, values in zip(words, maps_, strict=True)
    ]
    record["cost"] = cost
    return record


def _few(told: Sequence[Told], count: int, number: int) -> tuple[Told, ...]:
    """Some words of a clip, others in every clip."""
    start = number % max(1, len(told))
    return tuple([*told[start:], *told[:start]][:count])


def _scores(values: Any, one: Told) -> dict[str, Any]:
    return {
        "pointing": scores.pointing(values, one.truth),
        "precision": scores.precision(values, one.truth),
        "straying": scores.straying(values, one.truth),
        "overlap": [round(scores.overlap(values, one.truth, t), 5) for t in scores.THRESHOLDS],
    }


def _trace(pipe: Any, sample: Sample, sigmas: tuple[float, ...]) -> Trace:
    return observe(
        pipe, sample.frames, sample.text, sigmas=sigmas, keep=[("layer", "head")], routing=False
    )


def _maps(
    pipe: Any,
    sample: Sample,
    told: Sequence[Told],
    names: Sequence[str],
    sigmas: tuple[float, ...],
    plan: Plan,
) -> tuple[dict[str, Maps], dict[str, list[float]]]:
    """Maps by method, and for each how many forwards and seconds they took (a trace is shared)."""
    phrases = tuple(one.phrase for one in told)
    maps: dict[str, Maps] = {}
    cost: dict[str, list[float]] = {}
    started = time.perf_counter()
    trace = _trace(pipe, sample, sigmas)
    looked = time.perf_counter() - started
    for name in names:
        method = METHODS[name]
        parameters = (
            {"heads": plan.heads} if name == "attention_heads" else PARAMETERS.get(name, {})
        )
        if name == "attention_heads" and not plan.heads:
            continue
        started = time.perf_counter()
        if method.from_trace:
            maps[name] = method.run(trace, phrases, **parameters)
            cost[name] = [len(sigmas), looked + time.perf_counter() - started]
            continue
        with open_case(pipe, clip_of(sample, sigmas), phrases, lambda _: None) as case:
            made = method.run(case, **parameters)
            maps[name] = made[0] if isinstance(made, tuple) else made
            cost[name] = [case.forwards, time.perf_counter() - started]
            if isinstance(made, tuple):
                cost[name].append(made[1]["completeness_delta"])
    return maps, cost


def clip_of(sample: Sample, sigmas: tuple[float, ...]) -> Clip:
    """A sample as the adapter takes it."""
    return make_clip(pixels(sample.frames), sample.text, sigmas, sample.number)


def _curves(
    pipe: Any, sample: Sample, few: Sequence[Told], maps: dict[str, Maps], rng: Any
) -> list[dict[str, Any]]:
    """Deletion and insertion for some words, by some methods, in random order and from the centre."""
    phrases = tuple(one.phrase for one in few)
    found = []
    with open_case(pipe, clip_of(sample, DEAR_LEVEL), phrases, lambda _: None) as case:
        for number, one in enumerate(few):
            target = Target(case, 0, one.phrase, held=False)
            orders = {name: maps[name][number] for name in FAITHFUL}
            shape = case.denoiser.grid.shape
            orders["random order"] = rng.random(shape)
            orders["centre first"] = _from_centre(shape)
            orders["the object itself"] = one.truth.ideal
            for name, values in orders.items():
                there = curves(target, values)
                deletion, insertion = there.areas
                found.append(
                    {
                        "method": name, "kind": one.kind, "deletion": deletion, "insertion": insertion,
                        "effect": target.norm / float(case.full(0).square().sum().sqrt()),
                        "infidelity": infidelity(target, values) if name in FAITHFUL else None,
                        "left": there.deletion, "there": there.insertion,
                    }
                )  # fmt: skip
    return found


def _from_centre(shape: tuple[int, int, int]) -> Any:
    _, row, column = np.indices(shape)
    return -np.hypot(row - (shape[1] - 1) / 2, column - (shape[2] - 1) / 2)


def _sensitivity(pipe: Any, sample: Sample, few: Sequence[Told], name: str, plan: Plan) -> float:
    def explain(video: torch.Tensor) -> torch.Tensor:
        frames = ((video[0].permute(1, 2, 3, 0) + 1) / 2).numpy()
        moved = replace(sample, frames=frames)
        return torch.from_numpy(_maps(pipe, moved, few, (name,), DEAR_LEVEL, plan)[0][name])[None]

    return sensitivity(explain, clip_of(sample, DEAR_LEVEL).video)


def _agreement(maps: dict[str, Maps]) -> dict[str, float]:
    """Rank correlation over tokens between the maps of two methods, mean over words."""
    ranks = {
        name: np.argsort(np.argsort(found.reshape(len(found), -1), axis=1), axis=1)
        for name, found in maps.items()
    }
    return {
        f"{first} / {second}": float(
            np.mean(
                [np.corrcoef(a, b)[0, 1] for a, b in zip(ranks[first], ranks[second], strict=True)]
            )
        )
        for i, first in enumerate(ranks)
        for second in list(ranks)[i + 1 :]
    }
