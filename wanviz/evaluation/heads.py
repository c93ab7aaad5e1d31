"""Which heads to trust: chosen on clips of the training split, to be judged on others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tinywan import TextToVideoPipeline
from tqdm import tqdm

from wanviz.adapters import adapter_for
from wanviz.attribution.ask import SIGMAS
from wanviz.capture import observe
from wanviz.evaluation.scores import overlap, precision
from wanviz.evaluation.truth import rendered

THRESHOLD = 0.4


def choose_heads(
    pipe: TextToVideoPipeline,
    clips: int = 24,
    seed: int = 1,
    sigmas: Sequence[float] = SIGMAS,
    progress_bar: bool = True,
) -> tuple[tuple[int, int], ...]:
    """Leave out the head whose absence helps most, until none does.

    Args:
        pipe: a trained tinywan.
        clips: of the training split.
        seed: of the clips.
        sigmas: noise levels.
        progress_bar: show one.

    Returns:
        (layer, head) of those that are left.
    """
    maps, truths = [], []
    adapter = adapter_for(pipe)
    size, frames = pipe.config.height, pipe.config.num_frames
    for sample in tqdm(
        (rendered(i, seed, "train", frames, size) for i in range(clips)),
        "heads",
        clips,
        disable=not progress_bar,
    ):
        trace = observe(
            pipe, sample.frames, sample.text, sigmas=tuple(sigmas), keep=[("layer", "head")],
            frames=None, routing=False,
        )  # fmt: skip
        masses = trace.maps["layer", "head"].values
        for told in sample.words(adapter.encode(sample.text), *masses.shape[-2:]):
            if told.kind != "weather":  # no map finds a drop
                maps.append(sum(share * masses[:, :, i] for i, share in told.phrase.tokens))
                truths.append(told.truth)
    stacked = np.stack(maps)  # word layer head f h w

    def score(heads: Sequence[tuple[int, int]]) -> float:
        layers, numbers = zip(*heads, strict=True)
        means = stacked[:, layers, numbers].mean(axis=1)
        return float(
            np.mean(
                [
                    precision(m, t) + overlap(m, t, THRESHOLD)
                    for m, t in zip(means, truths, strict=True)
                ]
            )
        )

    chosen = [
        (layer, head) for layer in range(stacked.shape[1]) for head in range(stacked.shape[2])
    ]
    best = score(chosen)
    while len(chosen) > 1:
        without = {head: score([h for h in chosen if h != head]) for head in chosen}
        worst = max(without, key=lambda head: without[head])
        if without[worst] <= best:
            break
        best = without[worst]
        chosen.remove(worst)
    return tuple(chosen)
