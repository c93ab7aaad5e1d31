"""What a capture makes of the model's queries and keys, at once, so that they need not be kept.

Each reducer eats events and gives running means. All arithmetic is float32 whatever the model's
dtype, and no reducer draws random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from wanviz.events import Event, Shard
from wanviz.grid import Grid
from wanviz.layout import STDERR, ArraySpec
from wanviz.words import EncodedPrompt

WORK_BYTES = {"cpu": 16 * 2**20}  # of one buffer of logits: what fits a processor's cache …
OTHER_WORK_BYTES = 128 * 2**20  # … and on accelerators, whose kernels are few and large
SAMPLED_ROWS = 16  # query tokens of each frame, where frame attention is sampled

Labels = dict[str, tuple[int, ...]]


def work_bytes(device: str) -> int:
    """How large one buffer of logits may be on a type of device."""
    return WORK_BYTES.get(device, OTHER_WORK_BYTES)


class RunningMean:
    """The mean of what events add to one kept array, over the axes that it does not keep."""

    def __init__(self, spec: ArraySpec, labels: Labels) -> None:
        """An empty mean of the array that `spec` describes; `labels` are the watched layers and steps."""
        self.spec = spec
        self.per_head = "head" in spec.axes
        self._outer = tuple(axis for axis in spec.axes if axis != "head")
        self._place = {
            axis: {label: place for place, label in enumerate(labels[axis])}
            for axis in ("layer", "step")
        }
        self.counts = np.zeros(spec.shape[: len(self._outer)], dtype=np.float32)
        self.group: Any = (
            None  # of torch.distributed, where each process adds for a part of the tokens
        )
        self._total: Tensor | None = None

    def index(self, event: Event) -> tuple[int, ...]:
        """Which part of the array an event belongs to."""
        where = {"layer": event.layer, "step": event.moment.step}
        return tuple(self._place[axis][where[axis]] for axis in self._outer)

    def slot(self, event: Event) -> Tensor:
        """Where an event is to be added: [n ...] or, if heads are averaged, [...]."""
        if self._total is None:
            device = next(t for t in (event.q, event.expert_ids) if t is not None).device
            with torch.inference_mode(False):  # an inference tensor could not be added to later
                self._total = torch.zeros(self.spec.shape, device=device)
        return self._total[self.index(event)]

    def count(self, event: Event) -> None:
        """An event is complete in its slot."""
        self.counts[self.index(event)] += 1

    def finish(self) -> NDArray[np.float32]:
        """The mean; NaN where no event came."""
        if self._total is None:
            return np.full(self.spec.shape, np.nan, dtype=np.float32)
        if self.group is not None:  # the other tokens are zeros here
            torch.distributed.all_reduce(self._total, group=self.group)
        total: NDArray[np.float32] = self._total.cpu().numpy()
        count = self.counts.reshape(self.counts.shape + (1,) * (total.ndim - self.counts.ndim))
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
        self._kept = prompt.columns  # None keeps every token
        self._heads = list(labels["head"])
        self.pads_equal = True  # whether every event's padding keys were one and the same
        self.pads = 0  # most padding keys that any event attended to; 0 where they are masked
        self._means = [RunningMean(s, labels) for s in specs if s.name.startswith(prefix)]
        self._by_head = any(m.per_head for m in self._means)
        self._by_mean = any(not m.per_head for m in self._means)

    def consume(self, event: Event) -> None:
        """softmax(q kᵀ / √d) over all keys, in chunks of queries."""
        assert event.q is not None and event.k is not None
        q, k = chosen_heads(event.q, self._heads), chosen_heads(event.k, self._heads).float()
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
        once = pads > 1 and torch.equal(
            k[:, self._used :], k[:, self._used : self._used + 1].expand(-1, pads, -1)
        )
        self.pads_equal &= once or pads < 2
        keys = k[:, : self._used + 1] if once else k
        keys = keys * width**-0.5
        slots = [(m, m.slot(event).flatten(-3)) for m in self._means]  # … token l
        start = 0 if event.shard is None else event.shard.start
        for span in _chunks(tokens, 4 * heads * (keys.shape[1] + width), q.device):
            logits = keys @ q[:, span].float().transpose(1, 2)  # n p l
            if once:
                logits[:, self._used] += math.log(pads)
            mass = self._columns(logits.softmax(dim=1), single_pad=once or pads == 1)
            mean = mass.mean(dim=0) if self._by_mean else mass
            for kept, slot in slots:
                place = slice(start + span.start, start + span.stop)
                slot[..., place] += mass if kept.per_head else mean
        for kept, _ in slots:
            kept.group = None if event.shard is None else event.shard.group
            kept.count(event)

    def _columns(self, mass: Tensor, single_pad: bool) -> Tensor:
        """[n p l] over all keys -> [n, kept tokens, </s>, padding and (others) , l]."""
        used = self._used
        padding = mass[:, used:]
        if not single_pad:
            padding = padding.sum(dim=1, keepdim=True)
        if self._kept is None:
            return mass if single_pad else torch.cat((mass[:, :used], padding), dim=1)
        kept = mass[:, list(self._kept)]
        own = mass[:, : used - 1].sum(dim=1, keepdim=True)
        others = own - kept.sum(dim=1, keepdim=True)
        return torch.cat((kept, mass[:, used - 1 : used], padding, others.clamp_(min=0)), dim=1)

    def finish(self) -> dict[str, NDArray[np.float32]]:
        """[kept axes …, token and special, f, h, w]."""
        return {mean.spec.name: mean.finish() for mean in self._means}


class FrameMasses:
    """Self-attention: how much mass the tokens of one frame lay on another frame."""

    kinds = ("temporal_attn", "self_attn")

    def __init__(
        self, branch: str, specs: tuple[ArraySpec, ...], labels: Labels, sampled: bool = False
    ) -> None:
        """Means for every kept axis set of one branch; of all rows, or of some that are drawn."""
        prefix, errors = f"{branch}/frames/", f"{branch}/{STDERR}/"
        self._heads = list(labels["head"])
        self._sampled = sampled
        self._means = [RunningMean(s, labels) for s in specs if s.name.startswith(prefix)]
        self._looked = [np.zeros(m.spec.shape, dtype=bool) for m in self._means]
        self._errors = [RunningMean(s, labels) for s in specs if s.name.startswith(errors)]

    def consume(self, event: Event) -> None:
        """Mean over the query frame's rows and columns, sum over the key frame's."""
        if self._sampled:
            self._sample(event)
            return
        temporal = event.kind == "temporal_attn"
        reduce = _temporal_masses if temporal else _full_masses
        mass = reduce(event, self._heads)  # n f f
        mean = mass.mean(dim=0)
        window = _window(event.grid.frames, event.window)
        for kept, looked in zip(self._means, self._looked, strict=True):
            kept.slot(event).add_(mass if kept.per_head else mean)
            kept.count(event)
            looked[kept.index(event)] |= window

    def _sample(self, event: Event) -> None:
        """The same from some rows of each frame, with the variance of what was found."""
        grid = event.grid
        rows = sampled_rows(grid, event.layer, event.moment.step)  # f m
        drawn = rows.shape[1]
        mass = _row_masses(event, self._heads, rows.flatten())  # n (f m) f
        mass = mass.unflatten(1, tuple(rows.shape))  # n f m f
        left = 1 - drawn / grid.rows_and_columns  # what was not looked at, 0 for all rows
        for heads in (mass, mass.mean(dim=0, keepdim=True)):
            mean = heads.mean(dim=2)
            spread = heads.var(dim=2) if drawn > 1 else torch.zeros_like(mean)
            spread = spread * (left / drawn)
            per_head = heads is mass
            for kept, error, looked in zip(self._means, self._errors, self._looked, strict=True):
                if kept.per_head == per_head:
                    for array, value in ((kept, mean), (error, spread)):
                        array.slot(event).add_(value if per_head else value[0])
                        array.count(event)
                    looked[kept.index(event)] = True

    def finish(self) -> dict[str, NDArray[np.float32]]:
        """[kept axes …, query frame, key frame]; NaN where no layer looks."""
        arrays = {}
        for kept, looked in zip(self._means, self._looked, strict=True):
            array = kept.finish()
            array[~looked] = np.nan
            arrays[kept.spec.name] = array
        for kept in self._errors:  # of the mean of `counts` independent draws
            variance = kept.finish()
            counts = kept.counts.reshape(
                kept.counts.shape + (1,) * (variance.ndim - kept.counts.ndim)
            )
            with np.errstate(invalid="ignore", divide="ignore"):
                arrays[kept.spec.name] = np.sqrt(variance / counts)
        return arrays


class RoutingCounts:
    """Token experts: how often each is chosen, and where."""

    kinds = ("expert_ids",)

    def __init__(self, branch: str, specs: tuple[ArraySpec, ...], labels: Labels) -> None:
        """Means of one branch."""
        by_name = {spec.name: spec for spec in specs}
        self._load = RunningMean(by_name[f"{branch}/load"], labels)
        self._where = RunningMean(by_name[f"{branch}/where"], labels)

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
    if f"{branch}/load" in names:
        reducers["routing"] = RoutingCounts(branch, specs, labels)
    return reducers


def chosen_heads(x: Tensor, heads: list[int]) -> Tensor:
    """[n l d] of some heads; all of them are not copied."""
    return x if len(heads) == x.shape[0] else x[heads]


def sampled_rows(grid: Grid, layer: int, step: int, count: int = SAMPLED_ROWS) -> Tensor:
    """Which query tokens stand for their frame: one drawn from each of `count` equal stretches of it.

    Layers and steps draw apart, the same for the same numbers; no global generator is touched. Stretches
    of a frame differ, so that the error that is computed as if all rows had been drawn freely is rather too
    large than too small (Cochran, Sampling Techniques, section 5.6).

    Args:
        grid: of the video tokens.
        layer: number of the layer.
        step: number of the denoising step.
        count: rows of each frame; all where a frame has no more.

    Returns:
        int64 `[f, m]` indices of tokens, on the CPU.
    """
    places = grid.rows_and_columns
    starts = torch.arange(grid.frames)[:, None] * places
    if places <= count:
        return starts + torch.arange(places)
    generator = torch.Generator().manual_seed(1_000_003 * layer + step)
    edges = torch.linspace(0, places, count + 1, dtype=torch.float64).round().long()
    drawn = torch.rand((grid.frames, count), generator=generator, dtype=torch.float64)
    return starts + edges[:-1] + (drawn * edges.diff()).long()


def turned(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Apply rotary positions as the model does, rounded to its dtype: pairs are neighbouring features.

    Args:
        x: `[… l d]`.
        rotary: cosines and sines, each `[l, d/2]`; None leaves x as it is.

    Returns:
        The same shape and dtype.
    """
    if rotary is None:
        return x
    cos, sin = rotary
    even, odd = x[..., 0::2], x[..., 1::2]
    out = torch.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


def work_rows(rows: int, per_row: int, device: str = "cpu") -> int:
    """How many rows of `per_row` bytes are taken at a time."""
    return max(1, min(rows, work_bytes(device) // max(1, per_row)))


def _chunks(rows: int, per_row: int, device: torch.device) -> Iterator[slice]:
    size = work_rows(rows, per_row, device.type)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))


def _window(frames: int, radius: int | None) -> NDArray[np.bool_]:
    distance = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames)))
    return distance <= (frames if radius is None else radius)


def _temporal_masses(event: Event, chosen: list[int]) -> Tensor:
    """[n f f] of attention that stays at one row and column."""
    assert event.q is not None and event.k is not None
    frames, places = event.grid.frames, event.grid.rows_and_columns
    both = [chosen_heads(turned(x, event.rotary), chosen) for x in (event.q, event.k)]
    heads, _, width = both[0].shape
    q, k = (  # n (h w) f d
        x.float().reshape(heads, frames, places, width).transpose(1, 2) for x in both
    )
    total = torch.zeros(heads, frames, frames, device=q.device)
    outside = torch.from_numpy(~_window(frames, event.window)).to(q.device)[..., None]
    for span in _chunks(places, 4 * heads * frames * frames, q.device):
        logits = torch.bmm(
            (q[:, span] * width**-0.5).reshape(-1, frames, width),
            k[:, span].reshape(-1, frames, width).transpose(1, 2),
        )  # (n h w) f f
        # places last: a softmax over a few frames is quick only with a long axis inside it
        logits = logits.view(heads, -1, frames * frames).transpose(1, 2)
        logits = logits.reshape(heads, frames, frames, -1).masked_fill(outside, -torch.inf)
        total += logits.softmax(dim=2).sum(dim=-1)
    return total / places


def _full_masses(event: Event, chosen: list[int]) -> Tensor:
    """[n f f] of attention from every token to every token."""
    places = event.grid.rows_and_columns
    rows = torch.arange(event.grid.tokens)
    found = [
        mass.unflatten(1, (event.grid.frames, places)).mean(dim=2)
        for mass in _masses_by_heads(event, chosen, rows)
    ]
    return torch.cat(found)


def _row_masses(event: Event, chosen: list[int], rows: Tensor) -> Tensor:
    """[n r f] of attention from some tokens to every token."""
    return torch.cat(list(_masses_by_heads(event, chosen, rows)))


def _masses_by_heads(event: Event, chosen: list[int], rows: Tensor) -> Iterator[Tensor]:
    """[n r f] for a few heads at a time: the mass that some query tokens lay on each frame.

    PyTorch's fused attention over values that are one-hot in the frame gives exactly that, and never holds the
    matrix. On a CPU it is fused only where values are as wide as keys, so that frames come in such groups.
    """
    assert event.q is not None and event.k is not None
    if event.shard is not None:
        for head in chosen:
            yield torch.cat(list(_shared_head_masses(event, event.shard, head, rows)))[None]
        return
    frames, places = event.grid.frames, event.grid.rows_and_columns
    device, (_, tokens, width) = event.k.device, event.k.shape
    everything = len(rows) == tokens
    here = slice(None) if everything else rows.to(device)
    rotary = None if event.rotary is None else (event.rotary[0][here], event.rotary[1][here])
    frame_of = torch.arange(tokens, device=device) // places
    groups = [
        (frame_of[:, None] == torch.arange(first, first + width, device=device)).float()
        for first in range(0, frames, width)
    ]  # each l d
    few = max(1, work_bytes(device.type) // (4 * tokens * width))
    for first in range(0, len(chosen), few):
        heads = chosen[first : first + few]
        k = turned(chosen_heads(event.k, heads), event.rotary).float()
        q = turned(chosen_heads(event.q, heads)[:, here], rotary).float()
        parts = [
            scaled_dot_product_attention(q[None], k[None], group.expand(1, len(heads), -1, -1))[0]
            for group in groups
        ]
        yield torch.cat(parts, dim=-1)[..., :frames]


def _shared_head_masses(event: Event, shard: Shard, head: int, rows: Tensor) -> Iterator[Tensor]:
    """[r f] chunk by chunk of one head, where each process holds a part of the queries and of the keys.

    Everybody is told the queries that are asked for, finds log Σ exp of their logits for each frame over its
    own keys, and these are joined: what travels is small beside the keys.
    """
    assert event.q is not None and event.k is not None
    frames, places = event.grid.frames, event.grid.rows_and_columns
    q, group = event.q, shard.group
    held = range(shard.start, shard.start + q.shape[1])
    mine = (rows >= held.start) & (rows < held.stop)
    local = (rows[mine] - held.start).to(q.device)
    rotary = None if event.rotary is None else (event.rotary[0][local], event.rotary[1][local])
    asked = torch.zeros(len(rows), q.shape[-1], device=q.device)
    asked[mine.to(q.device)] = turned(q[head, local], rotary).float()
    torch.distributed.all_reduce(asked, group=group)
    keys = turned(event.k[head], event.rotary).float().T  # d l, of this process
    frame_of = (torch.arange(held.start, held.stop) // places).to(q.device)
    for span in _chunks(len(rows), 4 * keys.shape[1], q.device):
        logits = asked[span] @ keys * keys.shape[0] ** -0.5  # r l
        sums = torch.full((logits.shape[0], frames), -torch.inf, device=q.device)
        for frame in frame_of.unique().tolist():
            sums[:, frame] = logits[:, frame_of == frame].logsumexp(dim=1)
        parts = [torch.empty_like(sums) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(parts, sums, group=group)
        yield torch.stack(parts).logsumexp(dim=0).softmax(dim=-1)  # r f
