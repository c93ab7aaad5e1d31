"""The inverse question: which words are behind a region, or a frame.

`Attribution.rank` answers it from maps. Here the model is asked about the region itself: the target is the part of the way,
within the region, from what the denoiser predicts without any words to what it predicts with all of them.

- `integrated_gradients`: with respect to the word embeddings that the denoiser reads, from embeddings that say nothing (the end of
  an empty prompt, in every place) to those of the prompt, with captum (arXiv 1703.01365).
- `saliency`: the length of the gradient at the prompt (arXiv 1312.6034).
- `word_ablation`: how much of the target is lost if the word is cut out of the prompt.
- `shapley`: the target shared out among the words, by sampled orders, with captum; words are blocked in cross-attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from captum.attr import IntegratedGradients, Saliency, ShapleyValueSampling
from torch import Tensor
from tqdm import tqdm

from wanviz.adapters import adapter_for
from wanviz.attribution.ask import SIGMAS, drawn, find_phrases
from wanviz.attribution.case import Case, open_case, raise_below
from wanviz.attribution.perturbation import cut_out, present
from wanviz.attribution.result import region_weights
from wanviz.capture import make_clip, noise_levels, one_prompt, one_seed, pixels
from wanviz.errors import OptionError

Rank = Literal["integrated_gradients", "saliency", "word_ablation", "shapley"]


class RegionTarget:
    """How far an answer has gone, within a region, from the empty prompt's to the prompt's: 0 to 1."""

    def __init__(self, case: Case, level: int, region: Tensor) -> None:
        """Two forwards, of which the full one is shared.

        Args:
            case: what to ask.
            level: of noise.
            region: weights from 0 over tokens, `[f, h, w]`.
        """
        self._case, self._level = case, level
        self.nothing = silent(case)
        full = case.full(level)
        with torch.no_grad():
            self._from = case.velocity(level, embeds=self.nothing, held=True)
        weights = torch.nn.functional.interpolate(region[None, None], size=full.shape[2:])
        way = full - self._from
        direction = way * weights.to(full)
        self._direction = direction / (direction * way).sum().clamp_min(1e-12)

    def of(self, answer: Tensor) -> Tensor:
        """`[b, c, f, h, w]` -> `[b]`."""
        return ((answer - self._from) * self._direction).flatten(1).sum(1)

    def of_embeds(self, embeds: Tensor) -> Tensor:
        """`[b, p, c]` -> `[b]`; token experts are those of the full answer."""
        return self.of(self._case.velocity(self._level, embeds=embeds, held=True))


def silent(case: Case) -> Tensor:
    """Embeddings that say nothing, in as many places as the prompt has: `[1, p, c]`."""
    end = case.denoiser.embeds([" "])[:, :1]  # the end of an empty prompt
    used = case.embeds.any(-1, keepdim=True)
    return torch.where(used, end, torch.zeros_like(case.embeds))


def rank_words(
    pipe: Any,
    prompt: str,
    words: Any = None,
    *,
    region: Any,
    method: Rank = "integrated_gradients",
    video: Any = None,
    seed: int = 0,
    sigmas: Sequence[float] = SIGMAS,
    steps: int = 16,
    samples: int = 8,
    progress_bar: bool = True,
) -> xr.DataArray:
    """Which words are behind what the model draws in a region of a video.

    Args:
        pipe: the pipeline.
        prompt: that describes the video.
        words: phrases of it, or `Word`; None is every word.
        region: over (frame, row, column) of the token grid, bool or weights from 0; one frame set to 1 asks about a
            frame.
        method: see above.
        video: `[F, H, W, 3]`; None draws the prompt first.
        seed: of the video that is drawn, of the noise, and of the orders of shapley.
        sigmas: noise levels; the answer is the mean over them.
        steps: of integrated_gradients.
        samples: of shapley.
        progress_bar: show one.

    Returns:
        float32 over word, the highest first, in parts of the way from no words to all; attrs: method, and for
        integrated_gradients completeness_delta, the distance of the sum over all tokens from the whole way.

    Raises:
        OptionError: a method, a prompt or a region that cannot be.
        PhraseError: a word that is not in the prompt.
    """
    if method not in ("integrated_gradients", "saliency", "word_ablation", "shapley"):
        raise OptionError(
            f"method={method!r}: use 'integrated_gradients', 'saliency', 'word_ablation' or 'shapley'"
        )
    raise_below("steps", steps, 2)
    raise_below("samples", samples, 1)
    one_prompt(prompt)
    levels, seed = noise_levels(sigmas), one_seed(seed)
    adapter = adapter_for(pipe)
    phrases = find_phrases(adapter.encode(prompt), words)
    shown = pixels(drawn(pipe, adapter, prompt, seed, progress_bar) if video is None else video)
    clip = make_clip(shown, prompt, levels, seed)
    bar = tqdm(desc=f"rank by {method}", unit="forward", disable=not progress_bar)
    attrs: dict[str, Any] = {"method": method}
    with bar, open_case(pipe, clip, phrases, bar.update) as case:
        inside = torch.from_numpy(region_weights(region, case.denoiser.grid.shape))
        total = np.zeros(len(phrases))
        for level in case.levels:
            target = RegionTarget(case, level, inside)
            if method in ("integrated_gradients", "saliency"):
                scores, delta = _by_gradients(case, target, method, steps)
                if method == "integrated_gradients":
                    attrs["completeness_delta"] = max(delta, attrs.get("completeness_delta", 0.0))
            elif method == "word_ablation":
                scores = _by_ablation(case, target, level)
            else:
                scores = _by_shapley(case, target, level, samples)
            total += scores
    score = total / len(case.levels)
    order = np.argsort(-score, kind="stable")
    texts = np.array([phrase.text for phrase in phrases], dtype=object)
    return xr.DataArray(
        score[order].astype(np.float32),
        dims=("word",),
        coords={"word": texts[order]},
        name="score",
        attrs=attrs,
    )


def _by_gradients(
    case: Case, target: RegionTarget, method: Rank, steps: int
) -> tuple[np.ndarray[Any, Any], float]:
    embeds = case.embeds.detach().clone().requires_grad_()
    delta = 0.0
    if method == "saliency":
        found = Saliency(target.of_embeds).attribute(embeds).square().sum(-1).sqrt()
    else:
        found, error = IntegratedGradients(target.of_embeds).attribute(
            embeds, baselines=target.nothing, n_steps=steps, internal_batch_size=4,
            return_convergence_delta=True,
        )  # fmt: skip
        found, delta = found.sum(-1), float(error.abs().max())
    return _per_word(case, found[0].detach()), delta


@torch.no_grad()
def _by_ablation(case: Case, target: RegionTarget, level: int) -> np.ndarray[Any, Any]:
    prompt = case.denoiser.encoded.text
    others = [cut_out(prompt, p) or " " for p in case.phrases]
    embeds = case.denoiser.embeds(others)
    left = [
        float(target.of(case.velocity(level, embeds=row[None], text=text))[0])
        for row, text in zip(embeds, others, strict=True)
    ]
    return 1 - np.array(left)


@torch.no_grad()
def _by_shapley(case: Case, target: RegionTarget, level: int, samples: int) -> np.ndarray[Any, Any]:
    def value(z: Tensor) -> Tensor:
        return target.of(case.velocity(level, gates=present(case, z)))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        found = ShapleyValueSampling(value).attribute(
            torch.ones(1, len(case.phrases)), baselines=0, n_samples=samples
        )
    scores: np.ndarray[Any, Any] = found.flatten().double().numpy()
    return scores


def _per_word(case: Case, tokens: Tensor) -> np.ndarray[Any, Any]:
    return np.array(
        [sum(share * float(tokens[index]) for index, share in p.tokens) for p in case.phrases]
    )
