"""What changes where, if a word is taken away: the model is asked again without it.

- `word_ablation`: the word is cut out of the prompt (or another is put in its place), the text encoder reads the rest, and
  the map is how much the predicted velocity changes at each token. The whole effect of the word, also what the
  text encoder told other words of it; in distribution, since the shorter prompt is one, too (unlike zeroed inputs: Hooker et
  al. 2019, arXiv 1806.10758).
- `knockout`: attention to the word is blocked everywhere (Geva et al. 2023, arXiv 2304.14767), the prompt stays.
- `occlusion`: attention to the word is blocked in one window after the other (Zeiler & Fergus 2014, arXiv 1311.2901, with
  captum): how much of the word's effect is lost when this window does not read it.
- `occlusion_latents`: one window of the noisy video after the other is emptied, in the same way: how much of the word's effect is
  lost when the model does not see what is drawn there.
- `shapley`: the velocity's change from no word to all words, shared out among the words fairly, place by place (Castro et al. 2009,
  by sampled orders, with captum). Words are blocked, as in `knockout`.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch
from captum.attr import Occlusion, ShapleyValueSampling
from torch import Tensor

from wanviz.attribution.attention import Maps, shaped
from wanviz.attribution.case import Case, Visible, raise_below
from wanviz.attribution.result import Phrase
from wanviz.errors import OptionError
from wanviz.interventions.scope import is_whole


def change(case: Case, level: int, answer: Tensor) -> Tensor:
    """How far an answer is from the full one, at each token: `[b, l]`, root mean square over channels."""
    square = (answer - case.full(level)).square().mean(dim=1)
    return case.pooled(square).sqrt().flatten(1)


def cut_out(prompt: str, phrase: Phrase, neutral: str = "") -> str:
    """The prompt without a phrase, or with something neutral in its place; spaces and commas stay tidy."""
    text = prompt
    for start, stop in sorted(phrase.spans, reverse=True):
        text = text[:start] + neutral + text[stop:]
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s+([,.，。])", r"\1", text)
    return re.sub(r"[,，]\s*(?=[,.，。])", "", text).strip(" ,，")


@torch.no_grad()
def word_ablation(case: Case, neutral: str = "") -> Maps:
    """`word_ablation`: one forward for each word and noise level.

    Args:
        case: what to ask.
        neutral: what is put in the word's place, e.g. "thing"; nothing by default. Of a prompt of one word, the
            empty prompt is left.
    """
    prompt = case.denoiser.encoded.text
    others = [cut_out(prompt, phrase, neutral) for phrase in case.phrases]
    others = [text or " " for text in others]
    embeds = case.denoiser.embeds(others)
    total: Tensor | float = 0.0
    for level in case.levels:
        found = [
            change(case, level, case.velocity(level, embeds=row[None], text=text))
            for row, text in zip(embeds, others, strict=True)
        ]
        total = total + torch.cat(found)
    assert isinstance(total, Tensor)
    return shaped(case, (total / len(case.levels)).cpu().numpy())


@torch.no_grad()
def knockout(case: Case) -> Maps:
    """`knockout`: one forward for each word and noise level."""
    total = torch.zeros(len(case.phrases), case.denoiser.grid.tokens)
    for level in case.levels:
        found = [change(case, level, case.without(level, phrase)) for phrase in case.phrases]
        total += torch.cat(found).cpu()
    return shaped(case, (total / len(case.levels)).numpy())


@torch.no_grad()
def occlusion(case: Case, window: int = 3, stride: int = 2) -> Maps:
    """`occlusion`: a forward for each window, word and noise level.

    Args:
        case: what to ask.
        window: rows and columns of a window, one latent frame deep.
        stride: rows and columns from one window to the next.

    Raises:
        OptionError: a window that does not fit.
    """
    check_window(case, window, stride)
    grid = case.denoiser.grid
    total = np.zeros((len(case.phrases), grid.tokens), np.float32)
    for level in case.levels:
        for row, phrase in enumerate(case.phrases):
            target = Target(case, level, phrase)
            found = Occlusion(lambda z, t=target: t(z.flatten(1))).attribute(
                torch.ones(1, *grid.shape),
                sliding_window_shapes=(1, window, window),
                strides=(1, stride, stride),
                baselines=0,
                perturbations_per_eval=8,
            )
            total[row] += found.flatten().float().numpy()
    return shaped(case, total / len(case.levels))


@torch.no_grad()
def occlusion_latents(case: Case, window: int = 3, stride: int = 2) -> Maps:
    """`occlusion_latents`: words + 1 forwards for each window and noise level.

    In a window the clean video gives way to the mean of all videos, 0 in normalised latents, and the noise stays: what the
    model finds there is as noisy as the rest.

    Args:
        case: what to ask.
        window: rows and columns of a window, one latent frame deep.
        stride: rows and columns from one window to the next.

    Raises:
        OptionError: a window that does not fit.
    """
    check_window(case, window, stride)
    grid, latents = case.denoiser.grid, case.denoiser.latents
    channels, frames, height, width = latents.shape[1:]
    deep, high, wide = frames // grid.frames, height // grid.rows, width // grid.columns
    nowhere = [case.gates(phrase, torch.zeros(1, 1)) for phrase in case.phrases]
    total = torch.zeros(len(case.phrases), grid.tokens)
    for level in case.levels:
        # of each word the way that its absence takes, so that the whole way is 1
        ways = torch.cat([case.full(level) - case.without(level, p) for p in case.phrases])
        ways /= ways.square().sum(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-24)

        def target(noisy: Tensor, level: int = level, ways: Tensor = ways) -> Tensor:
            full = case.velocity(level, latents=noisy)
            gone = noisy.new_empty(len(noisy), len(ways))
            for word, (gates, way) in enumerate(zip(nowhere, ways, strict=True)):
                effect = full - case.velocity(level, latents=noisy, gates=gates)
                gone[:, word] = effect.flatten(1) @ way.flatten()
            return gone

        noisy = case.denoiser.noisy(level)
        empty = noisy - (1 - case.denoiser.sigmas[level]) * latents
        lost = Occlusion(target).attribute(
            noisy,
            sliding_window_shapes=(channels, deep, window * high, window * wide),
            strides=(channels, deep, stride * high, stride * wide),
            baselines=empty,
            perturbations_per_eval=8,
        )  # word c f h w
        total += case.pooled(lost.float().mean(dim=1)).flatten(1).cpu()
    return shaped(case, (total / len(case.levels)).numpy())


def check_window(case: Case, window: int, stride: int) -> None:
    """Refuse a window that does not fit the grid, or a stride that leaves gaps."""
    grid = case.denoiser.grid
    fits = is_whole(window) and 1 <= window <= min(grid.rows, grid.columns)
    if not fits or not is_whole(stride) or not 1 <= stride <= window:
        raise OptionError(
            f"window={window!r}, stride={stride!r}: use 1 to {min(grid.rows, grid.columns)} tokens, and a stride that "
            "leaves no gap"
        )


@torch.no_grad()
def shapley(case: Case, samples: int = 8) -> Maps:
    """`shapley`: samples × (words + 1) forwards for each noise level.

    Args:
        case: what to ask.
        samples: random orders of the words; the global generator is left as it was.
    """
    count = len(case.phrases)
    raise_below("samples", samples, 1)
    total = torch.zeros(count, case.denoiser.grid.tokens)
    for level in case.levels:
        none = case.velocity(level, gates=present(case, torch.zeros(1, count)))
        direction = case.full(level) - none

        def effect(z: Tensor, level: int = level, direction: Tensor = direction) -> Tensor:
            answer = case.velocity(level, gates=present(case, z))
            along = (answer * direction).mean(dim=1)
            return case.pooled(along).flatten(1)  # b l

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            found: Any = ShapleyValueSampling(effect).attribute(
                torch.ones(1, count), baselines=0, n_samples=samples
            )
        total += found.reshape(-1, count).T.float().cpu()
    return shaped(case, (total / len(case.levels)).numpy())


def present(case: Case, z: Tensor) -> Tensor:
    """Gates `[b, token, 1]` for words that are read (1) or blocked (0): z is `[b, word]`."""
    gate = torch.ones(len(z), len(case.tokens), 1)
    for row, phrase in enumerate(case.phrases):
        for index, share in phrase.tokens:
            gate[:, index] = gate[:, index] * (1 + share * (z[:, row, None].cpu() - 1))
    return gate


class Target:
    """How much of a word's effect is there, if it is read only where it is visible: 0 nowhere, 1 everywhere.

    The effect of a word is the direction in which the predicted velocity moves when the word is knocked out; the
    target is the part of the way that the answer has gone in this direction. A router that changes its mind would
    make the target jump, which no gradient can tell; so, if `held`, each token stays with the token experts of the full
    answer.
    """

    def __init__(
        self,
        case: Case,
        level: int,
        phrase: Phrase,
        held: bool = True,
        layers: frozenset[int] | None = None,
    ) -> None:
        """Two forwards, of which the full one is shared."""
        self._case, self._level, self._phrase, self._held = case, level, phrase, held
        self._layers = layers
        full = case.full(level)
        nowhere = torch.zeros(1, case.denoiser.grid.tokens)
        with torch.no_grad():
            self.without = case.velocity(level, seen=Visible(phrase, nowhere, layers), held=held)
        direction = full - self.without
        self.norm = float(direction.square().sum().sqrt())
        self._direction = direction / max(self.norm, 1e-12) ** 2

    def __call__(self, visible: Tensor) -> Tensor:
        """`[b, l]` in [0, 1] -> `[b]`, on the device of what it is given."""
        seen = Visible(self._phrase, visible, self._layers)
        answer = self._case.velocity(self._level, seen=seen, held=self._held)
        return ((answer - self.without) * self._direction).flatten(1).sum(1).to(visible.device)
