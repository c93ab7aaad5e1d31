"""Does attention tell the truth? Four questions about the inside of tinywan, on clips whose words have masks.

1. Do heads whose map of a word agrees with the word's causal effect (integrated gradients) stand somewhere: in which layer, at which
   noise level? And does a head that reads an object's word much also matter much, where the object is?
2. What do token experts specialise in: how much does the choice of an expert tell of what is at the token (mutual information), beyond
   chance?
3. Does temporal attention follow objects: does a place look more at frames in which the same object is there than the distance between
   frames explains? In a factorised model it can only look at its own place.
4. What does ablating a token expert do, and does its load foretell it?
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tinywan import TextToVideoPipeline
from torch import Tensor
from tqdm import tqdm

from wanviz.adapters import adapter_for
from wanviz.attribution.case import Case, open_case
from wanviz.attribution.gradients import integrated_gradients
from wanviz.attribution.result import Phrase
from wanviz.capture import observe
from wanviz.evaluation.run import clip_of
from wanviz.evaluation.truth import Sample, Told, rendered
from wanviz.hooks import HookSet
from wanviz.interventions import scale_experts, scale_heads

LEVELS = (0.8, 0.5, 0.2)
LEVEL = (0.5,)  # where only one is asked
KINDS = ("subject", "garment", "prop", "companion")
Matrix = NDArray[np.float64]


def ranked(first: Matrix, second: Matrix) -> float:
    """Spearman's rank correlation of two arrays of equal size."""
    a, b = (np.argsort(np.argsort(x.ravel())) for x in (first, second))
    return float(np.corrcoef(a, b)[0, 1])


def _of(kept: NDArray[np.float32], phrase: Phrase) -> Matrix:
    """A phrase's maps `[layer, head, f, h, w]` from those of all tokens `[layer, head, p, f, h, w]`."""
    columns = [index for index, _ in phrase.tokens]
    shares = np.array([share for _, share in phrase.tokens])
    return np.einsum("xhpijk,p->xhijk", kept[:, :, columns], shares)


def head_agreement(pipe: TextToVideoPipeline, sample: Sample, told: Sequence[Told]) -> Matrix:
    """Rank correlation of every head's map with integrated gradients, `[layer, head, level]`, mean over words."""
    phrases = tuple(one.phrase for one in told)
    trace = observe(
        pipe, sample.frames, sample.text, sigmas=LEVELS, keep=[("layer", "step", "head")], frames=None,
        routing=False,
    )  # fmt: skip
    kept = trace.maps["layer", "head", "step"].values  # layer head level p f h w
    found = np.zeros(kept.shape[:3])
    for level, sigma in enumerate(LEVELS):
        with open_case(pipe, clip_of(sample, (sigma,)), phrases, lambda _: None) as case:
            causal, _ = integrated_gradients(case, steps=4)
        for row, phrase in enumerate(phrases):
            maps = _of(kept[:, :, level], phrase)
            for layer, head in np.ndindex(*maps.shape[:2]):
                found[layer, head, level] += ranked(maps[layer, head], causal[row]) / len(phrases)
    return found


@torch.no_grad()
def head_effects(
    pipe: TextToVideoPipeline, sample: Sample, told: Sequence[Told]
) -> tuple[Matrix, Matrix]:
    """What each head reads of objects' words where the objects are, and what its absence changes there.

    Returns:
        `[word, layer, head]` mean attention to the word within the object, and root mean square change of the predicted
        velocity within it when the head of cross-attention is ablated.
    """
    phrases = tuple(one.phrase for one in told)
    inside = torch.from_numpy(
        np.stack([one.truth.ideal for one in told]).reshape(len(told), -1)
    ).float()
    inside = inside / inside.sum(1, keepdim=True)
    trace = observe(
        pipe,
        sample.frames,
        sample.text,
        sigmas=LEVEL,
        keep=[("layer", "head")],
        frames=None,
        routing=False,
    )
    kept = trace.maps["layer", "head"].values
    layers, heads = kept.shape[:2]
    read = np.stack(
        [
            np.einsum(
                "xhl,l->xh",
                _of(kept, p).reshape(layers, heads, -1),
                w,
            )
            for p, w in zip(phrases, inside.numpy(), strict=True)
        ]
    )
    changed = np.zeros_like(read)
    with open_case(pipe, clip_of(sample, LEVEL), phrases, lambda _: None) as case:
        full = case.full(0)
        for layer, head in np.ndindex(layers, heads):
            with scale_heads(pipe, {(layer, head): 0.0}):
                answer = case.velocity(0)
            square = case.pooled((answer - full).square().mean(1)).flatten()
            changed[:, layer, head] = (inside @ square.cpu()).sqrt().numpy()
    return read.astype(float), changed.astype(float)


def labels_of(
    sample: Sample, grid: tuple[int, int, int], told: Sequence[Told]
) -> NDArray[np.int64]:
    """Which of `KINDS` each token shows, by the largest covered part; len(KINDS) is scenery. `[f, h, w]`."""
    cover = np.zeros((len(KINDS) + 1, *grid))
    cover[-1] = 0.25  # an object has to cover a quarter of a token
    for one in told:
        if one.kind in KINDS:
            place = KINDS.index(one.kind)
            cover[place] = np.maximum(cover[place], one.truth.ideal)
    cover[KINDS.index("subject")] *= 0.99  # the garment is a part of the subject, and wins
    found: NDArray[np.int64] = cover.argmax(axis=0)
    return found


def expert_counts(where: Matrix, labels: NDArray[np.int64]) -> Matrix:
    """How often each expert works on tokens of each label: `[layer, expert, label]` from `[layer, expert, f, h, w]`."""
    one_hot = np.eye(len(KINDS) + 1)[labels]  # f h w label
    return np.einsum("xefhw,fhwk->xek", where, one_hot)


def information(counts: Matrix) -> float:
    """Mutual information of expert and label, in parts of the label's entropy: 0 tells nothing, 1 everything."""
    joint = counts / counts.sum()
    expert, label = joint.sum(1, keepdims=True), joint.sum(0, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(joint > 0, joint * np.log(joint / (expert * label)), 0)
        entropy = -np.where(label > 0, label * np.log(label), 0).sum()
    return float(terms.sum() / entropy)


@torch.no_grad()
def following(case: Case, labels: NDArray[np.int64]) -> tuple[Matrix, Matrix]:
    """Temporal attention from places with an object to other frames, by whether the object is there, too.

    Returns:
        Sums and counts `[layer, distance, same or not]` of the mass; pairs outside a layer's window are left out.
    """
    f, h, w = labels.shape
    flat = torch.from_numpy(labels.reshape(f, h * w))
    blocks = [b for b in case.reached.stage.blocks if "temporal_attn" in b.attentions]
    count = 1 + max(b.layer for b in blocks)
    sums, counts = np.zeros((count, f, 2)), np.zeros((count, f, 2))
    waiting: dict[tuple[int, str], Tensor] = {}

    def seen(layer: int, name: str, window: int | None, tensor: Tensor) -> None:
        waiting[layer, name] = tensor[0].float()
        if name == "k":
            q, k = (waiting.pop((layer, n)) for n in ("q", "k"))
            q, k = (x.unflatten(1, (f, h * w)).transpose(1, 2) for x in (q, k))  # n s f d
            logits = q @ k.mT * q.shape[-1] ** -0.5  # n s f f
            apart = (torch.arange(f)[:, None] - torch.arange(f)).abs()
            if window is not None:
                logits = logits.masked_fill(apart > window, float("-inf"))
            mass = logits.softmax(-1).mean(0)  # s query key
            same = flat.T[:, :, None] == flat.T[:, None]  # s query key
            objects = (flat.T < len(KINDS))[:, :, None].expand_as(same)
            for distance in range(1, f if window is None else min(f, window + 1)):
                for kind, chosen in enumerate((same, ~same)):
                    pairs = objects & chosen & (apart == distance)
                    sums[layer, distance, kind] += float(mass[pairs].sum())
                    counts[layer, distance, kind] += int(pairs.sum())

    with HookSet() as hooks:
        for block in blocks:
            part = block.attentions["temporal_attn"]
            window = getattr(part.module, "window", None)
            for name in ("q", "k"):
                hooks.after(getattr(part, name), partial(seen, block.layer, name, window))
        case.velocity(0)
    return sums, counts


@torch.no_grad()
def expert_effects(pipe: TextToVideoPipeline, case: Case) -> Matrix:
    """What ablating each token expert changes: `[layer, expert]`, in parts of the velocity's length."""
    full = case.full(0)
    blocks = [b for b in case.reached.stage.blocks if b.experts]
    layers, experts = 1 + max(b.layer for b in blocks), len(blocks[0].experts)
    size = float(full.square().mean().sqrt())
    changed = np.zeros((layers, experts))
    for layer, expert in np.ndindex(layers, experts):
        with scale_experts(pipe, {(layer, expert): 0.0}):
            square = (case.velocity(0) - full).square().mean(1)
        changed[layer, expert] = float(square.mean().sqrt()) / size
    return changed


def find(
    pipe: TextToVideoPipeline, clips: int = 8, seed: int = 9, progress_bar: bool = True
) -> dict[str, Any]:
    """Answer the four questions.

    Args:
        pipe: a trained tinywan.
        clips: rendered, of held-out combinations.
        seed: of them.
        progress_bar: show one.

    Returns:
        Arrays as nested lists, for JSON; `figure` draws them.
    """
    adapter, rng = adapter_for(pipe), np.random.default_rng(seed)
    agreements, read, changed, counts, effects, loads = [], [], [], [], [], []
    sums, pairs = np.zeros(()), np.zeros(())
    shuffled = []
    for number in tqdm(range(clips), "clips", disable=not progress_bar):
        sample = rendered(number, seed, "held_out", pipe.config.num_frames, pipe.config.height)
        rows, columns = (size // 8 for size in sample.frames.shape[1:3])
        told = sample.words(adapter.encode(sample.text), rows, columns)
        objects = [one for one in told if one.kind in KINDS][:3]
        agreements.append(head_agreement(pipe, sample, objects[:2]))
        one, other = head_effects(pipe, sample, objects)
        read.append(one)
        changed.append(other)
        trace = observe(pipe, sample.frames, sample.text, sigmas=LEVEL, keep=[()], frames=None)
        where = trace.routing["where"].values.astype(float)
        labels = labels_of(sample, where.shape[2:], told)
        counts.append(expert_counts(where, labels))
        shuffled.append(expert_counts(where, rng.permutation(labels.ravel()).reshape(labels.shape)))
        with open_case(pipe, clip_of(sample, LEVEL), (), lambda _: None) as case:
            made = following(case, labels)
            sums, pairs = sums + made[0], pairs + made[1]
            effects.append(expert_effects(pipe, case))
        loads.append(trace.routing["load"].mean("step").values.astype(float))
    total, chance = np.sum(counts, axis=0), np.sum(shuffled, axis=0)
    with np.errstate(invalid="ignore"):
        mean = np.asarray(sums) / np.asarray(pairs)
    return {
        "clips": clips,
        "levels": LEVELS,
        "agreement": np.mean(agreements, axis=0).tolist(),  # layer head level
        "read_and_changed": [
            [ranked(a[i], b[i]) for i in range(len(a))] for a, b in zip(read, changed, strict=True)
        ],
        "read": np.mean([x.mean(0) for x in read], axis=0).tolist(),
        "changed": np.mean([x.mean(0) for x in changed], axis=0).tolist(),
        "information": [information(c) for c in total],
        "information_of_chance": [information(c) for c in chance],
        "experts": (
            total / np.maximum(total.sum(axis=1, keepdims=True), 1)
        ).tolist(),  # layer expert label
        "labels": [*KINDS, "scenery"],
        "following": _known(mean),  # layer distance same/not
        "following_pairs": np.asarray(pairs).tolist(),
        "expert_effect": np.mean(effects, axis=0).tolist(),
        "expert_load": np.mean(loads, axis=0).tolist(),
        "load_and_effect": [
            ranked(a, b)
            for a, b in zip(np.mean(loads, axis=0), np.mean(effects, axis=0), strict=True)
        ],
    }


def _known(values: Matrix) -> Any:
    """Nested lists with None in place of NaN, which JSON does not know."""
    filled = values.astype(object)
    filled[np.isnan(values)] = None
    return filled.tolist()


def figure(found: dict[str, Any]) -> Figure:
    """The four answers, one panel each."""
    made = Figure(figsize=(12, 8), layout="constrained")
    ((a, b), (c, d)) = made.subplots(2, 2)
    agreement = np.array(found["agreement"])
    layers, heads = agreement.shape[:2]
    for level, sigma in enumerate(found["levels"]):
        a.plot(
            range(layers),
            agreement[:, :, level].mean(1),
            "o-",
            label=f"σ {sigma}",
            color=COLORS[level],
        )
    for head in range(heads):
        a.plot(range(layers), agreement[:, head].mean(-1), ".", color="#999", zorder=0)
    a.set(
        xlabel="layer",
        ylabel="rank correlation",
        title="Attention and causal effect (dots: single heads)",
    )
    a.legend(frameon=False)
    b.scatter(
        np.ravel(found["read"]),
        np.ravel(found["changed"]),
        c=np.repeat(np.arange(layers), heads),
        cmap="cividis",
    )
    rank = np.concatenate(found["read_and_changed"])
    b.set(
        xscale="log", yscale="log", xlabel="attention to the object's word, in the object",
        ylabel="change there if the head is ablated",
        title=f"Heads: reading and mattering (rank correlation {rank.mean():.2f})",
    )  # fmt: skip
    width = 0.4
    place = np.arange(layers)
    c.bar(
        place - width / 2,
        found["information"],
        width,
        color="#0072b2",
        label="what is at the token",
    )
    c.bar(place + width / 2, found["information_of_chance"], width, color="#bbb", label="shuffled")
    c.set(
        xlabel="layer",
        ylabel="mutual information / entropy",
        title="What the choice of token experts tells",
    )
    c.legend(frameon=False)
    follow = np.array(found["following"], dtype=float)  # None is NaN
    for layer in range(layers):
        gain = follow[layer, 1:, 0] / follow[layer, 1:, 1]
        d.plot(
            range(1, follow.shape[1]),
            gain,
            "o-",
            label=f"layer {layer}",
            color=COLORS[layer % len(COLORS)],
        )
    d.set_xticks(range(1, follow.shape[1]))
    d.axhline(1, color="#777", linewidth=1)
    d.set(
        xlabel="distance in latent frames", ylabel="mass, same object / other",
        title="Does a place look at frames with the same object?",
    )  # fmt: skip
    d.legend(frameon=False, ncols=2)
    return made


COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def main() -> None:
    """`python -m wanviz.evaluation.findings OUT`: findings.json and findings.png."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    found = find(TextToVideoPipeline.from_pretrained())
    (folder / "findings.json").write_text(json.dumps(found, indent=1))
    figure(found).savefig(folder / "findings.png", dpi=110)


if __name__ == "__main__":
    main()
