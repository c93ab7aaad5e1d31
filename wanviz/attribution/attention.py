"""Attention as an attribution: what was read where, in six ways.

- `attention`: the mass on the word, mean over heads, layers and noise levels (DAAM: Tang et al. 2023, arXiv 2210.04885).
- `attention_share`: the word's part of the mass on all words of the prompt, which leaves out what rests on the end of
  the text and on padding (attention sinks: Xiao et al. 2024, arXiv 2309.17453).
- `attention_layers`: each layer's map is first brought to its own peak in the clip, so that a layer that reads the word little
  counts as much as one that reads it much.
- `attention_heads`: the mean over chosen heads alone.
- `attention_value`: the length of what a token gets from the word, attention times the projected value (Kobayashi et al. 2020,
  arXiv 2004.10102, equation 3).
- `attention_frames`: a word's map carried along by frame attention, a token being told by all frames that its frame looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wanviz.adapters.stage import BlockPart
from wanviz.attribution.case import Case
from wanviz.attribution.result import Phrase
from wanviz.errors import OptionError
from wanviz.layout import OTHER
from wanviz.running import chunks
from wanviz.trace import Trace

Maps = NDArray[np.float32]
Heads = Sequence[tuple[int, int]]


def mean_attention(trace: Trace, phrases: Sequence[Phrase]) -> Maps:
    """`attention`: float32 `[word, f, h, w]` from a trace."""
    return _sum_tokens(trace.maps[()].values, phrases)


def attention_share(trace: Trace, phrases: Sequence[Phrase]) -> Maps:
    """`attention_share`: of the mass on the prompt's own tokens, how much is on the word."""
    masses, special = trace.maps[()].values, trace.special[()]
    words = masses.sum(axis=0) + special.values[special["kind"] == OTHER].sum(axis=0)
    return _sum_tokens(masses, phrases) / np.maximum(words, 1e-12)


def layer_attention(trace: Trace, phrases: Sequence[Phrase]) -> Maps:
    """`attention_layers`: the mean over layers of maps that each have the peak 1; over those that were computed."""
    layers = trace.maps["layer"].values
    maps = np.stack([_sum_tokens(masses, phrases) for masses in layers])  # layer word f h w
    known = ~np.isnan(maps)  # a run that was stopped may lack layers
    maps = np.where(known, maps, 0)
    peaks = maps.max(axis=(2, 3, 4), keepdims=True)
    count = known.sum(axis=0)
    total = (maps / np.maximum(peaks, 1e-12)).sum(axis=0)
    return np.where(count, total / np.maximum(count, 1), np.nan).astype(np.float32)


def head_attention(trace: Trace, phrases: Sequence[Phrase], heads: Heads) -> Maps:
    """`attention_heads`: the mean over some heads.

    Args:
        trace: that kept ("layer", "head").
        phrases: the words.
        heads: (layer, head) of each.

    Raises:
        OptionError: a head that the trace does not have.
    """
    masses = trace.maps["layer", "head"]
    try:
        chosen = [masses.sel(layer=layer, head=head).values for layer, head in heads]
    except KeyError as error:
        raise OptionError(
            f"heads={list(heads)!r}: this model has layers {masses['layer'].values.tolist()} and heads "
            f"{masses['head'].values.tolist()}"
        ) from error
    if not chosen:
        raise OptionError("heads is empty: give (layer, head) pairs, e.g. heads=[(2, 0)]")
    return _sum_tokens(np.mean(chosen, axis=0), phrases)


def carried_attention(trace: Trace, phrases: Sequence[Phrase]) -> Maps:
    """`attention_frames`: each frame's map mixed with those of the frames that it looks at."""
    looks = np.nan_to_num(trace.frame_attention()["mass"].values)  # f f
    looks = looks / np.maximum(looks.sum(axis=1, keepdims=True), 1e-12)
    return np.einsum("ij,wjrc->wirc", looks, mean_attention(trace, phrases)).astype(np.float32)


def value_attention(case: Case) -> Maps:
    """`attention_value`: |Σ_heads a · W_o v|, mean over layers and noise levels."""
    found = np.zeros((len(case.phrases), case.denoiser.grid.tokens), np.float64)
    count = 0

    def look(block: BlockPart, q: Tensor, k: Tensor, v: Tensor) -> None:
        nonlocal count
        count += 1
        given = projected(block, v)  # n p c
        for span in chunks(q.shape[1], 4 * len(q) * (k.shape[1] + q.shape[2]), q.device):
            mass = masses(q[:, span].float(), k.float())
            for row, phrase in enumerate(case.phrases):
                sent: Tensor | float = 0.0
                for index, share in phrase.tokens:
                    sent = sent + share * torch.einsum("nl,nc->lc", mass[:, index], given[:, index])
                assert isinstance(sent, Tensor)
                found[row, span] += sent.norm(dim=-1).double().cpu().numpy()

    for level in case.levels:
        case.read(level, look)
    return shaped(case, found / count)


def masses(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) over the keys: `[n, l, d]`, `[n, p, d]` -> `[n, p, l]`."""
    return (k * k.shape[-1] ** -0.5 @ q.mT).softmax(dim=1)


def projected(block: BlockPart, v: Tensor) -> Tensor:
    """What each key adds to the residual stream through each head, `[n, p, d]` -> `[n, p, c]` in float32.

    The layer behind the heads is asked itself, since its weights may be quantised, adapted or elsewhere.
    """
    mix = block.attentions["cross_attn"].mix
    heads, keys, width = v.shape
    silence = v.new_zeros(1, keys, heads, width)

    def said(spoken: Tensor) -> Tensor:
        answer: Tensor = mix(spoken.flatten(2))[0].float()
        return answer

    given = []
    for head, values in enumerate(v):
        spoken = silence.clone()
        spoken[0, :, head] = values
        given.append(said(spoken))
    return torch.stack(given) - said(silence)


def shaped(case: Case, values: Iterable[object]) -> Maps:
    """`[word, l]` to float32 `[word, f, h, w]`."""
    return np.asarray(values, np.float32).reshape(len(case.phrases), *case.denoiser.grid.shape)


def _sum_tokens(masses: NDArray[np.float32], phrases: Sequence[Phrase]) -> Maps:
    maps = [sum(share * masses[index] for index, share in phrase.tokens) for phrase in phrases]
    return np.asarray(maps, np.float32)
