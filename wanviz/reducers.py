"""What a capture makes of the model's queries and keys, at once, so that they need not be kept.

Each reducer eats events and gives running means. All arithmetic is float32 whatever the model's
dtype, and no reducer draws random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wanviz.events import Event
from wanviz.layout import ArraySpec

WORK_BYTES = 16 * 2**20  # of one buffer of logits; queries are taken in chunks that fit


class RunningMean:
    """The mean of what events add to one kept array, over the axes that it does not keep."""

    def __init__(self, spec: ArraySpec) -> None:
        """An empty mean of the array that `spec` describes."""
        self.spec = spec
        self.per_head = "head" in spec.axes
        self._outer = tuple(axis for axis in spec.axes if axis != "head")
        self._count = np.zeros(spec.shape[: len(self._outer)], dtype=np.float32)
        self._total: Tensor | None = None

    def index(self, event: Event) -> tuple[int, ...]:
        """Which part of the array an event belongs to."""
        where = {"layer": event.layer, "step": event.moment.step}
        return tuple(where[axis] for axis in self._outer)

    def slot(self, event: Event) -> Tensor:
        """Where an event is to be added: [n ...] or, if heads are averaged, [...]."""
        if self._total is None:
            device = next(t for t in (event.q, event.expert_ids) if t is not None).device
            with torch.inference_mode(False):  # an inference tensor could not be added to later
                self._total = torch.zeros(self.spec.shape, device=device)
        return self._total[self.index(event)]

    def count(self, event: Event) -> None:
        """An event is complete in its slot."""
        self._count[self.index(event)] += 1

    def finish(self) -> NDArray[np.float32]:
        """The mean; NaN where no event came."""
        if self._total is None:
            return np.full(self.spec.shape, np.nan, dtype=np.float32)
        total: NDArray[np.float32] = self._total.cpu().numpy()
        count = self._count.reshape(self._count.shape + (1,) * (total.ndim - self._count.ndim))
        with np.errstate(invalid="ignore"):  # 0 / 0 is "not computed"
            np.divide(total, count, out=total)
        return total


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Float32 products that are float32: no autocast, no TF32, no bfloat16 passes."""
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    before = backend.matmul.fp32_precision
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if before in ("none", "ieee"):
            yield
            return
        backend.matmul.fp32_precision = "ieee"
        try:
            yield
        finally:
            backend.matmul.fp32_precision = before


class WordMasses:
    """Cross-attention: the mass on each token of the prompt, on </s> and on the padding."""

    kinds = ("cross_attn",)

    def __init__(self, branch: str, tokens: int, specs: tuple[ArraySpec, ...]) -> None:
        """Means for every kept axis set of one branch.

        Args:
            branch: "cond" or "uncond".
            tokens: the prompt's own tokens; </s> is the key after them, then come the pads.
            specs: the kept arrays of all reducers.
        """
        prefix = f"{branch}/words/"
        self._used = tokens + 1
        self.pads_equal = True  # whether every event's padding keys were one and the same
        self.pads = 0  # most padding keys that any event attended to; 0 where they are masked
        self._means = [RunningMean(s) for s in specs if s.name.startswith(prefix)]
        self._by_head = any(m.per_head for m in self._means)
        self._by_mean = any(not m.per_head for m in self._means)

    def consume(self, event: Event) -> None:
        """softmax(q kᵀ / √d) over all keys, in chunks of queries."""
        assert event.q is not None and event.k is not None
        q, k = event.q.float(), event.k.float()  # n l d, n p d
        pads = k.shape[1] - self._used
        if pads < 0:
            raise ValueError(
                f"the prompt has {self._used} tokens with </s>, the model {k.shape[1]} keys"
            )
        self.pads = max(self.pads, pads)
        # Padding rows are zeros before the text projection, so their keys are one and the same
        # and can be counted once: Σ exp(s) over m equal logits is exp(s + log m). Where the keys
        # are not equal bit for bit, every one is computed.
        once = pads > 1 and torch.equal(
            k[:, self._used :], k[:, self._used : self._used + 1].expand(-1, pads, -1)
        )
        self.pads_equal &= once or pads < 2
        keys = k[:, : self._used + 1] if once else k
        keys = keys * keys.shape[-1] ** -0.5
        slots = [(m, m.slot(event).flatten(-3)) for m in self._means]  # … token l
        for span in _chunks(q.shape[1], per_row=4 * q.shape[0] * keys.shape[1]):
            logits = keys @ q[:, span].transpose(1, 2)  # n p l
            if once:
                logits[:, self._used] += math.log(pads)
            mass = logits.softmax(dim=1)
            if not once and pads != 1:
                padding = mass[:, self._used :].sum(dim=1, keepdim=True)
                mass = torch.cat((mass[:, : self._used], padding), dim=1)
            mean = mass.mean(dim=0) if self._by_mean else mass
            for kept, slot in slots:
                slot[..., span] += mass if kept.per_head else mean
        for kept, _ in slots:
            kept.count(event)

    def finish(self) -> dict[str, NDArray[np.float32]]:
        """[kept axes …, token and special, f, h, w]."""
        return {mean.spec.name: mean.finish() for mean in self._means}


class FrameMasses:
    """Self-attention: how much mass the tokens of one frame lay on another frame."""

    kinds = ("temporal_attn", "self_attn")

    def __init__(self, branch: str, specs: tuple[ArraySpec, ...]) -> None:
        """Means for every kept axis set of one branch."""
        prefix = f"{branch}/frames/"
        self._means = [RunningMean(s) for s in specs if s.name.startswith(prefix)]
        self._looked = [np.zeros(m.spec.shape, dtype=bool) for m in self._means]

    def consume(self, event: Event) -> None:
        """Mean over the query frame's rows and columns, sum over the key frame's."""
        temporal = event.kind == "temporal_attn"
        mass = _temporal_masses(event) if temporal else _full_masses(event)  # n f f
        mean = mass.mean(dim=0)
        window = _window(event.grid.frames, event.window)
        for kept, looked in zip(self._means, self._looked, strict=True):
            kept.slot(event).add_(mass if kept.per_head else mean)
            kept.count(event)
            looked[kept.index(event)] |= window

    def finish(self) -> dict[str, NDArray[np.float32]]:
        """[kept axes …, query frame, key frame]; NaN where no layer looks."""
        arrays = {}
        for kept, looked in zip(self._means, self._looked, strict=True):
            array = kept.finish()
            array[~looked] = np.nan
            arrays[kept.spec.name] = array
        return arrays


class RoutingCounts:
    """Token experts: how often each is chosen, and where."""

    kinds = ("expert_ids",)

    def __init__(self, branch: str, specs: tuple[ArraySpec, ...]) -> None:
        """Means of one branch."""
        by_name = {spec.name: spec for spec in specs}
        self._load = RunningMean(by_name[f"{branch}/load"])
        self._where = RunningMean(by_name[f"{branch}/where"])

    def consume(self, event: Event) -> None:
        """Count the experts of one layer."""
        assert event.expert_ids is not None
        ids = event.expert_ids.transpose(0, 1)  # topk l
        topk, tokens = ids.shape
        where = self._where.slot(event).flatten(1)  # expert l
        chosen = torch.zeros_like(where).scatter_(0, ids, 1.0)
        where += chosen
        self._load.slot(event).add_(chosen.sum(dim=1) / (topk * tokens))
        self._where.count(event)
        self._load.count(event)

    def finish(self) -> dict[str, NDArray[np.float32]]:
        """Load [layer, step, expert] sums to 1; where [layer, expert, f, h, w] to topk."""
        return {mean.spec.name: mean.finish() for mean in (self._load, self._where)}


AnyReducer = WordMasses | FrameMasses | RoutingCounts


def make_reducers(branch: str, tokens: int, specs: tuple[ArraySpec, ...]) -> dict[str, AnyReducer]:
    """The reducers that the kept arrays of one branch call for, by what they make."""
    reducers: dict[str, AnyReducer] = {"words": WordMasses(branch, tokens, specs)}
    names = [spec.name for spec in specs]
    if any(name.startswith(f"{branch}/frames/") for name in names):
        reducers["frames"] = FrameMasses(branch, specs)
    if f"{branch}/load" in names:
        reducers["routing"] = RoutingCounts(branch, specs)
    return reducers


def work_rows(rows: int, per_row: int) -> int:
    """How many rows of `per_row` bytes are taken at a time."""
    return max(1, min(rows, WORK_BYTES // max(1, per_row)))


def _chunks(rows: int, per_row: int) -> Iterator[slice]:
    size = work_rows(rows, per_row)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _window(frames: int, radius: int | None) -> NDArray[np.bool_]:
    distance = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
    return distance <= (frames if radius is None else radius)


def _temporal_masses(event: Event) -> Tensor:
    """[n f f] of attention that stays at one row and column."""
    assert event.q is not None and event.k is not None
    frames, places = event.grid.frames, event.grid.rows_and_columns
    heads, _, width = event.q.shape
    q, k = (  # n (h w) f d
        x.float().reshape(heads, frames, places, width).transpose(1, 2) for x in (event.q, event.k)
    )
    total = torch.zeros(heads, frames, frames, device=q.device)
    outside = torch.from_numpy(~_window(frames, event.window)).to(q.device)[..., None]
    for span in _chunks(places, per_row=4 * heads * frames * frames):
        logits = torch.bmm(
            (q[:, span] * width**-0.5).reshape(-1, frames, width),
            k[:, span].reshape(-1, frames, width).transpose(1, 2),
        )  # (n h w) f f
        # places last: a softmax over a few frames is quick only with a long axis inside it
        logits = logits.view(heads, -1, frames * frames).transpose(1, 2)
        logits = logits.reshape(heads, frames, frames, -1).masked_fill(outside, -torch.inf)
        total += logits.softmax(dim=2).sum(dim=-1)
    return total / places


def _full_masses(event: Event) -> Tensor:
    """[n f f] of attention from every token to every token."""
    assert event.q is not None and event.k is not None
    frames, places = event.grid.frames, event.grid.rows_and_columns
    heads, tokens, width = event.q.shape
    q, k = event.q.float(), event.k.float().transpose(1, 2)  # n l d, n d l
    frame_of = torch.arange(tokens, device=q.device) // places
    total = torch.zeros(heads, frames, frames, device=q.device)
    for span in _chunks(tokens, per_row=4 * heads * tokens):
        mass = ((q[:, span] * width**-0.5) @ k).softmax(dim=-1)  # n l l
        by_frame = mass.unflatten(-1, (frames, places)).sum(dim=-1)  # n l f
        total.index_add_(1, frame_of[span], by_frame)
    return total / places
