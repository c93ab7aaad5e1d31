"""Does the model agree with a map? Places are hidden from a word, in the map's order, and the word's effect is watched.

- Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421): a word becomes invisible at more and more tokens, those
  with the highest values first; the faster its effect on the predicted velocity goes, the better the map. Insertion is the other
  way round. An area under the curve over the part of the tokens, so both lie about in [0, 1].
- Infidelity (Yeh et al. 2019, arXiv 1901.09392, with captum): how far the map's sum over hidden tokens is from the effect
  that is really lost; the map is first brought to the scale that fits best, since attention has another unit.
- Sensitivity (the same paper, section 5, with captum): how far a map moves when the pixels move a little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from captum.metrics import infidelity as captum_infidelity
from captum.metrics import sensitivity_max
from numpy.typing import NDArray
from torch import Tensor

from wanviz.attribution.perturbation import Target

PARTS = (0.02, 0.05, 0.1, 0.2, 0.4)  # of the tokens, between none and all


@dataclass(frozen=True)
class Curves:
    """A word's effect against the part of the tokens that is hidden, or shown.

    Attributes:
        parts: of the tokens, from 0 to 1.
        deletion: the effect that is left when the first tokens of the order are hidden.
        insertion: the effect that is there when they alone are visible.
    """

    parts: tuple[float, ...]
    deletion: tuple[float, ...]
    insertion: tuple[float, ...]

    @property
    def areas(self) -> tuple[float, float]:
        """Under deletion (the less the better) and insertion (the more the better)."""
        return (
            float(np.trapezoid(self.deletion, self.parts)),
            float(np.trapezoid(self.insertion, self.parts)),
        )


@torch.no_grad()
def curves(target: Target, values: NDArray[np.floating], parts: Sequence[float] = PARTS) -> Curves:
    """Hide and show tokens in the order of a map.

    Args:
        target: a word's effect.
        values: `[f, h, w]`, the highest first.
        parts: of the tokens, above 0 and below 1, rising; two forwards each.
    """
    flat = torch.from_numpy(np.array(values, np.float32).ravel())
    order = flat.argsort(descending=True, stable=True)
    shown = torch.zeros(len(parts), len(flat))
    for row, part in enumerate(parts):
        shown[row, order[: max(1, round(part * len(flat)))]] = 1
    there = [float(target(row[None])[0]) for row in shown]
    left = [float(target(1 - row[None])[0]) for row in shown]
    return Curves((0.0, *parts, 1.0), (1.0, *left, 0.0), (0.0, *there, 1.0))


@torch.no_grad()
def infidelity(
    target: Target, values: NDArray[np.floating], samples: int = 5, seed: int = 0
) -> float:
    """How badly a map foretells what is lost when random halves of the tokens are hidden from the word.

    Args:
        target: a word's effect.
        values: `[f, h, w]`.
        samples: random halves, one forward each.
        seed: of the halves; the global generator is left as it was.

    Returns:
        Mean squared error as a part of the mean square of what is lost; 1 is no better than foretelling nothing.
    """

    def hide(z: Tensor) -> tuple[Tensor, Tensor]:
        hidden = (torch.rand_like(z) < 0.5).float() * z
        return hidden, z - hidden  # infidelity subtracts what is hidden

    z = torch.ones(1, values.size)
    scores = torch.from_numpy(np.array(values, np.float32).ravel())[None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        error = captum_infidelity(
            target,
            hide,
            z,
            scores,
            n_perturb_samples=samples,
            max_examples_per_batch=2,
            normalize=True,
        )
        torch.manual_seed(seed)
        nothing = captum_infidelity(
            target,
            hide,
            z,
            torch.zeros_like(scores),
            n_perturb_samples=samples,
            max_examples_per_batch=2,
        )
    return float(error / nothing.clamp_min(1e-12))


@torch.no_grad()
def sensitivity(
    explain: Callable[[Tensor], Tensor],
    video: Tensor,
    radius: float = 0.02,
    samples: int = 4,
    seed: int = 0,
) -> float:
    """The largest change of a map, in parts of its length, over random small changes of the video.

    Args:
        explain: gives a map `[1, …]` of a video `[1, 3, F, H, W]`.
        video: in [-1, 1]; changed ones are clipped to it.
        radius: by how much each number is changed at most.
        samples: changed videos, one map each.
        seed: of the changes; the global generator is left as it was.
    """

    def each(inputs: tuple[Tensor]) -> tuple[Tensor]:  # captum hands out and expects tuples
        (videos,) = inputs
        return (torch.cat([explain(one[None].clamp(-1, 1)) for one in videos]),)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found = sensitivity_max(each, video, perturb_radius=radius, n_perturb_samples=samples)
    return float(found.max())
