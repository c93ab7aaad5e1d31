"""How strongly words are read, and where: attention to them is scaled inside the softmax.

A factor 0 knocks a word out (Geva et al. 2023, arXiv 2304.14767, section 4: attention knockout), between 0
and 1 weakens it, above 1 strengthens it, as the re-weighting of prompt-to-prompt does (Hertz et al. 2022, arXiv
2208.01626, section 3.2); the rows still sum to 1. What other words know of a word, from the text encoder, stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from wanviz.adapters.stage import AttentionPart
from wanviz.errors import OptionError
from wanviz.hooks import Arguments, Keywords
from wanviz.interventions.scope import Reach, chosen_numbers, factor_of, grid_mask, named, reach
from wanviz.trace import Occurrence
from wanviz.words import EncodedPrompt, Word, phrase_spans, token_weights

LEAST = 1e-6  # a factor below it is one of 0, and the logarithm of a gradient's path stays finite


@contextmanager
def reweight(
    pipe: Any,
    prompt: str,
    weights: Mapping[str | Word, float],
    *,
    where: Any = None,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    branch: str = "cond",
) -> Iterator[None]:
    """Inside the block, words of the prompt are read more, less, or not at all.

    Args:
        pipe: the pipeline.
        prompt: that will be drawn; of the negative prompt's branch, that one.
        weights: factor by phrase; every occurrence of it is meant. 0 ablates, 1 leaves as it is.
        where: over (frame, row, column) of the token grid, where to act: 1 there, 0 elsewhere; None is everywhere.
        layers: in which layers; None is all.
        heads: in which heads; None is all.
        steps: in which denoising steps; None is all.
        branch: "cond" or "uncond".

    Raises:
        OptionError: a factor, a layer or a head that cannot be; or another prompt is drawn inside.
        PhraseError: a phrase that is not in the prompt.
    """
    if not weights or not isinstance(weights, Mapping):
        raise OptionError(
            f"weights={weights!r}: say which words to scale, and how much, e.g. {{'umbrella': 0}}"
        )
    with reach(pipe, layers, steps, branch) as reached:
        told = named(reached, prompt)
        factors = {
            index: factor_of(repr(str(getattr(phrase, "text", phrase))), factor)
            for phrase, factor in weights.items()
            for index in tokens_of(told.encoded, phrase)
        }
        tokens = tuple(factors)

        def gates(_places: int) -> Tensor | None:  # [token, 1 or l]
            told.check()
            if set(factors.values()) == {1.0}:
                return None  # with a bias other kernels compute, whose last bits may differ
            gate = torch.tensor([[factors[token]] for token in tokens])
            if where is None:
                return gate
            return 1 + (gate - 1) * grid_mask(where, reached.stage.grid())

        gate_words(reached, tokens, gates, heads)
        yield


def tokens_of(encoded: EncodedPrompt, phrase: str | Word) -> tuple[int, ...]:
    """The tokens that every occurrence of a phrase touches."""
    occurrence: Occurrence = None if isinstance(phrase, Word) else "all"
    return tuple(
        index for index, _ in token_weights(encoded, phrase_spans(encoded, phrase, occurrence))
    )


def gate_words(
    reached: Reach,
    tokens: Sequence[int],
    gates: Any,
    heads: Iterable[int] | None = None,
) -> None:
    """Scale the attention to some tokens by gates that may differ between places, and carry gradients.

    Args:
        reached: the pipeline, with its scope.
        tokens: of the prompt.
        gates: called with l, the number of video tokens; gives `[token, 1 or l]`, 0 or more, or one such for each row
            of the batch, `[b, token, 1 or l]`; or None, which changes nothing.
        heads: in which heads; None is all.
    """
    columns = list(tokens)
    parts = [block.attentions["cross_attn"] for block in reached.scope.blocks(reached.stage)]
    chosen = chosen_numbers("heads", heads, parts[0].heads)
    for part in parts:

        def change(
            args: Arguments, kwargs: Keywords, part: AttentionPart = part
        ) -> tuple[Arguments, Keywords] | None:
            x = args[0]
            rows = reached.scope.rows(reached.stage, len(x))
            if rows is None:
                return None
            gate = gates(x.shape[1])
            if gate is None:
                return None
            gate = gate.to(x.device)
            logs = torch.where(gate < LEAST, -torch.inf, gate.clamp_min(LEAST).log()).mT
            keys = part.text_keys(args, kwargs)
            heads = 1 if chosen is None else part.heads
            bias = logs.new_zeros(len(x), heads, logs.shape[-2], keys)
            bias[rows, ..., columns] = logs if logs.ndim == 2 else logs[:, None]  # … l token
            if chosen is not None:
                others = [n for n in range(part.heads) if n not in chosen]
                bias[:, others] = 0
            return part.with_bias(args, kwargs, bias.to(x.dtype))

        reached.hooks.change_call(part.module, change)
