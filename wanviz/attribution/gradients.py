"""Gradients with respect to where a word is read, with captum.

A word is given a visibility at every token: 1 where it is read as it is, 0 where attention to it is blocked. The target
is how much of the word's effect on the predicted velocity is there (`perturbation.Target`), so that one way back tells for
all tokens at once how much each contributes by reading the word.

- `saliency`: |gradient| (Simonyan et al. 2014, arXiv 1312.6034).
- `input_x_gradient`: the gradient where everything is visible (Shrikumar et al. 2017, arXiv 1605.01713).
- `integrated_gradients`: the mean gradient on the way from nowhere visible to everywhere; its sum is the whole effect
  (Sundararajan et al. 2017, arXiv 1703.01365); `checks["completeness_delta"]` is how far it is off.

With `layers=[…]` the word can be hidden from these layers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from captum.attr import InputXGradient, IntegratedGradients, Saliency

from wanviz.attribution.attention import Maps, shaped
from wanviz.attribution.case import Case, raise_below
from wanviz.attribution.perturbation import Target
from wanviz.interventions.scope import chosen_numbers

Layers = Sequence[int] | None


def saliency(case: Case, layers: Layers = None) -> Maps:
    """`saliency`: two forwards and a way back for each word and noise level."""
    return _each(case, layers, lambda target, z: Saliency(target).attribute(z, abs=True))


def input_x_gradient(case: Case, layers: Layers = None) -> Maps:
    """`input_x_gradient`: as `saliency`, with its sign."""
    return _each(case, layers, lambda target, z: InputXGradient(target).attribute(z))


def integrated_gradients(
    case: Case, steps: int = 8, layers: Layers = None
) -> tuple[Maps, dict[str, float]]:
    """`integrated_gradients`: `steps` + 3 forwards and `steps` ways back for each word and noise level.

    Args:
        case: what to ask.
        steps: points on the way, by Gauss and Legendre.
        layers: whose reading is asked about; None is all.

    Returns:
        The maps, and completeness_delta: the largest distance of a map's sum from the word's whole effect, as a part
        of it.
    """
    raise_below("steps", steps, 2)
    worst = 0.0

    def attribute(target: Target, z: torch.Tensor) -> torch.Tensor:
        nonlocal worst
        found, delta = IntegratedGradients(target).attribute(
            z, baselines=0, n_steps=steps, internal_batch_size=4, return_convergence_delta=True
        )
        worst = max(worst, float(delta.abs().max()))
        return found

    maps = _each(case, layers, attribute)
    return maps, {"completeness_delta": worst}


def _each(
    case: Case, layers: Layers, attribute: Callable[[Target, torch.Tensor], torch.Tensor]
) -> Maps:
    count = 1 + max(block.layer for block in case.reached.stage.blocks)
    chosen = chosen_numbers("layers", layers, count)
    total = np.zeros((len(case.phrases), case.denoiser.grid.tokens), np.float32)
    for level in case.levels:
        for row, phrase in enumerate(case.phrases):
            z = torch.ones(1, case.denoiser.grid.tokens, requires_grad=True)
            found = attribute(Target(case, level, phrase, layers=chosen), z)
            total[row] += found.detach().flatten().float().numpy()
    return shaped(case, total / len(case.levels))
