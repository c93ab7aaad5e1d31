"""What a capture makes of the model's queries and keys, at once, so that they need not be kept.

Each reducer eats events and gives running means. All arithmetic is float32 whatever the model's
dtype, and no reducer draws random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wanviz.errors import CaptureError
from wanviz.events import Event
from wanviz.frame_masses import FrameMasses
from wanviz.layout import ArraySpec
from wanviz.links import Links
from wanviz.running import Labels, RunningMean, chunks
from wanviz.words import EncodedPrompt


class _Places:
    """Some places of an axis; their index is sent to a device once, so that no event waits for it."""

    def __init__(self, places: Sequence[int]) -> None:
        self._count = len(places)
        self._index = {torch.device("cpu"): torch.tensor(places, dtype=torch.long)}

    def of(self, x: Tensor, dim: int) -> Tensor:
        """These places of one axis; all of them are not copied."""
        if self._count == x.shape[dim]:
            return x
        if x.device not in self._index:
            self._index[x.device] = self._index[torch.device("cpu")].to(x.device)
        return x.index_select(dim, self._index[x.device])


class WordMasses:
    """Cross-attention: the mass on each token of the prompt, on </s> and on the padding."""

    kinds = ("cross_attn",)

    def __init__(
        self, branch: str, prompt: EncodedPrompt, specs: tuple[ArraySpec, ...], labels: Labels
    ) -> None:
        """Means for every kept axis set of one branch.

        Args:
            branch: "cond" or "uncond".
            prompt: its tokens; </s> is the key after them, then come the pads.
            specs: the kept arrays of all reducers.
            labels: the watched layers, steps and heads.
        """
        prefix = f"{branch}/words/"
        self._used = prompt.num_tokens + 1
        self._kept = None if prompt.columns is None else _Places(prompt.columns)  # None keeps all
        self._heads = _Places(labels["head"])
        self._once: dict[tuple[str, int], bool] = {}  # noise expert, layer -> pads counted once
        self._alike: dict[tuple[str, int], Tensor] = {}  # … -> whether they were in every event
        self.pads_equal = True  # whether every event's padding keys were one and the same
        self.pads = 0  # most padding keys that any event attended to; 0 where they are masked
        self._means = [RunningMean(s, labels) for s in specs if s.name.startswith(prefix)]
        self._by_head = any(m.per_head for m in self._means)
        self._by_mean = any(not m.per_head for m in self._means)

    def consume(self, event: Event) -> None:
        """softmax(q kᵀ / √d) over all keys, in chunks of queries."""
        assert event.q is not None and event.k is not None
        q, k = self._heads.of(event.q, 0), self._heads.of(event.k, 0).float()
        heads, tokens, width = q.shape  # n l d, n p d
        pads = k.shape[1] - self._used
        if pads < 0:
            raise ValueError(
                f"the prompt has {self._used} tokens with </s>, the model {k.shape[1]} keys"
            )
        self.pads = max(self.pads, pads)
        # Padding rows are zeros before the text projection, so their keys are one and the same
        # and can be counted once: Σ exp(s) over m equal logits is exp(s + log m). Where the keys
        # are not equal bit for bit, every one is computed.
        once = pads > 1 and self._count_once(event, k[:, self._used :])
        self.pads_equal &= once or pads < 2
        keys = k[:, : self._used + 1] if once else k
        keys = keys * width**-0.5
        slots = [(m, m.slot(event).flatten(-3)) for m in self._means]  # … token l
        start = 0 if event.shard is None else event.shard.start
        for span in chunks(tokens, 4 * heads * (keys.shape[1] + width), q.device):
            logits = keys @ q[:, span].float().transpose(1, 2)  # n p l
            if once:
                logits[:, self._used] += math.log(pads)
            mass = self._columns(logits.softmax(dim=1), single_pad=once or pads == 1)
            mean = mass.mean(dim=0) if self._by_mean else mass
            for kept, slot in slots:
                place = slice(start + span.start, start + span.stop)
                slot[..., place] += (mass if kept.per_head else mean).to(slot.device)
        for kept, _ in slots:
            kept.group = None if event.shard is None else event.shard.group
            kept.count(event)

    def _count_once(self, event: Event, pads: Tensor) -> bool:
        """Whether a layer's padding keys [n m d] are one and the same, which is asked once: a GPU is waited for.

        They come from one embedding in every step; that they stay alike is looked at on the way and read at the end.
        """
        place = event.moment.noise_expert, event.layer
        alike = (pads == pads[:, :1]).all()
        if place not in self._once:
            self._once[place], self._alike[place] = bool(alike), alike
        elif self._once[place]:
            self._alike[place] = self._alike[place] & alike
        return self._once[place]

    def _columns(self, mass: Tensor, single_pad: bool) -> Tensor:
        """[n p l] over all keys -> [n, kept tokens, </s>, padding and (others) , l]."""
        used = self._used
        padding = mass[:, used:]
        if not single_pad:
            padding = padding.sum(dim=1, keepdim=True)
        if self._kept is None:
            return mass if single_pad else torch.cat((mass[:, :used], padding), dim=1)
        kept = self._kept.of(mass, 1)
        own = mass[:, : used - 1].sum(dim=1, keepdim=True)
        others = own - kept.sum(dim=1, keepdim=True)
        return torch.cat((kept, mass[:, used - 1 : used], padding, others.clamp_(min=0)), dim=1)

    def finish(self) -> dict[str, NDArray[np.float32]]:
        """[kept axes …, token and special, f, h, w].

        Raises:
            CaptureError: padding keys that were counted once differed later.
        """
        found = {mean.spec.name: mean.finish() for mean in self._means}
        if any(self._once[place] and not alike for place, alike in self._alike.items()):
            raise CaptureError(
                "the padding's keys were alike in the first step, and so counted once, and differed in a later one: "
                "let what changes them act from the first step on"
            )
        return found


class RoutingCounts:
    """Token experts: how often each is chosen, where, and which two for the same token."""

    kinds = ("expert_ids",)

    def __init__(self, branch: str, specs: tuple[ArraySpec, ...], labels: Labels) -> None:
        """Means of one branch."""
        by_name = {spec.name: spec for spec in specs}
        self._load = RunningMean(by_name[f"{branch}/load"], labels)
        self._where = RunningMean(by_name[f"{branch}/where"], labels)
        self._together = RunningMean(by_name[f"{branch}/together"], labels)

    @property
    def _means(self) -> tuple[RunningMean, ...]:
        return self._load, self._where, self._together

    def consume(self, event: Event) -> None:
        """Count the experts of one layer."""
        assert event.expert_ids is not None
        ids = event.expert_ids.transpose(0, 1)  # topk l
        topk, tokens = ids.shape
        where = self._where.slot(event).flatten(1)  # expert l
        chosen = torch.zeros_like(where).scatter_(0, ids, 1.0)
        where += chosen
        self._load.slot(event).add_(chosen.sum(dim=1) / (topk * tokens))
        self._together.slot(event).add_(chosen @ chosen.T / tokens)  # expert expert
        for mean in self._means:
            mean.count(event)

    def finish(self) -> dict[str, NDArray[np.float32]]:
        """Load [layer, step, expert] sums to 1; where [layer, expert, f, h, w] to topk; together [layer, expert, expert]."""
        return {mean.spec.name: mean.finish() for mean in self._means}


AnyReducer = WordMasses | FrameMasses | RoutingCounts | Links


def make_reducers(
    branch: str,
    prompt: EncodedPrompt,
    specs: tuple[ArraySpec, ...],
    labels: Labels,
    sampled: bool,
) -> dict[str, AnyReducer]:
    """The reducers that the kept arrays of one branch call for, by what they make."""
    reducers: dict[str, AnyReducer] = {"words": WordMasses(branch, prompt, specs, labels)}
    names = [spec.name for spec in specs]
    if any(name.startswith(f"{branch}/frames/") for name in names):
        reducers["frames"] = FrameMasses(branch, specs, labels, sampled)
    if f"{branch}/links" in names:
        reducers["links"] = Links(branch, specs, labels)
    if f"{branch}/load" in names:
        reducers["routing"] = RoutingCounts(branch, specs, labels)
    return reducers
