"""Concepts compared in the space of attention's outputs, where they are sharper than attention itself.

ConceptAttention (Helbling et al. 2025, arXiv 2502.04320, section 4) lets concept tokens run through a model whose text
stream is updated in every block, and compares their outputs with those of the picture. In Wan and tinywan the
text is read and never rewritten, so a concept has no output of its own. What is closest to it, and used here, is
what cross-attention *would* add to a token that read this word alone; it is compared with what cross-attention does
add to each token. What all words have in common is taken away first. Concepts have to be words of the prompt.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from wanviz.adapters.stage import BlockPart
from wanviz.attribution.attention import Maps, masses, projected, shaped
from wanviz.attribution.case import Case
from wanviz.running import chunks


def output_space(case: Case) -> Maps:
    """`output_space`: cosine of what was read and what the word alone would say, mean over layers and noise levels."""
    found = np.zeros((len(case.phrases), case.denoiser.grid.tokens), np.float64)
    own = len(case.denoiser.encoded.tokens)
    count = 0

    def look(block: BlockPart, q: Tensor, k: Tensor, v: Tensor) -> None:
        nonlocal count
        count += 1
        given = projected(block, v)  # n p c
        alone = given.sum(0)  # p c, what a token gets that reads one key alone
        common = alone[:own].mean(0)
        words = torch.stack(
            [
                sum(
                    (share * alone[index] for index, share in phrase.tokens),
                    torch.zeros_like(common),
                )
                / sum(share for _, share in phrase.tokens)
                for phrase in case.phrases
            ]
        )
        words = torch.nn.functional.normalize(words - common, dim=-1)
        for span in chunks(q.shape[1], 4 * len(q) * (k.shape[1] + q.shape[2]), q.device):
            got = torch.einsum("npl,npc->lc", masses(q[:, span].float(), k.float()), given) - common
            cosine = words @ torch.nn.functional.normalize(got, dim=-1).T  # word l
            found[:, span] += cosine.double().cpu().numpy()

    for level in case.levels:
        case.read(level, look)
    return shaped(case, found / count)
