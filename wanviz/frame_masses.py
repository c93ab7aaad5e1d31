"""How frames look at each other: a reducer of self-attention, over all query tokens or over some that are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from wanviz.events import Event, Shard
from wanviz.grid import Grid
from wanviz.layout import STDERR, ArraySpec
from wanviz.running import (
    Labels,
    RunningMean,
    chosen_heads,
    chunks,
    tf32_products,
    work_bytes,
    work_rows,
)

SAMPLED_ROWS = 16  # query tokens of each frame, where frame attention is sampled


def heads_at_once(tokens: int, width: int, device: str) -> int:
    """How many heads of frame attention are reduced together: float32 copies and their rotation."""
    return max(1, work_bytes(device) // (16 * tokens * width))


def frame_work_bytes(tokens: int, width: int, frames: int, rows: int, device: str) -> int:
    """Memory that frame attention takes for a moment: keys, one-hot frames, and what comes out."""
    if device != "cpu" and rows < tokens:  # one head at a time, and a few of its rows
        return 16 * tokens * width + 8 * tokens * work_rows(rows, 4 * tokens, device)
    groups = -(-frames // width)
    heads = heads_at_once(tokens, width, device)
    return heads * (16 * tokens * width + 8 * rows * (width + frames)) + 4 * groups * tokens * width


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
            slot = kept.slot(event)  # the first event's device; another denoiser may have another
            slot.add_((mass if kept.per_head else mean).to(slot.device))
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
                        slot = array.slot(event)
                        slot.add_((value if per_head else value[0]).to(slot.device))
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


def sampled_rows(grid: Grid, layer: int, step: int) -> Tensor:
    """Which query tokens stand for their frame: one drawn from each of `SAMPLED_ROWS` equal stretches of it.

    Layers and steps draw apart, the same for the same numbers; no global generator is touched. Stretches
    of a frame differ, so that the error that is computed as if all rows had been drawn freely is rather too
    large than too small (Cochran, Sampling Techniques, section 5.6).

    Args:
        grid: of the video tokens.
        layer: number of the layer.
        step: number of the denoising step.

    Returns:
        int64 `[f, m]` indices of tokens, on the CPU; all of them where a frame has no more.
    """
    places, count = grid.rows_and_columns, SAMPLED_ROWS
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
    if (
        cos.dtype == torch.float32 and x.dtype != torch.float64
    ):  # the same but for a last bit, several times faster
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
        return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).to(x.dtype)
    even, odd = x[..., 0::2], x[..., 1::2]  # tables in half precision: every product is rounded
    out = torch.empty_like(x)
    out[..., 0::2] = even * cos - odd * sin
    out[..., 1::2] = even * sin + odd * cos
    return out


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
    for span in chunks(places, 4 * heads * frames * frames, q.device):
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
    shape = event.grid.frames, event.grid.rows_and_columns
    rows = torch.arange(event.grid.tokens)
    return _masses(event, chosen, rows, lambda mass: mass.unflatten(1, shape).mean(dim=2))


def _row_masses(event: Event, chosen: list[int], rows: Tensor) -> Tensor:
    """[n r f] of attention from some tokens to every token."""
    return _masses(event, chosen, rows, lambda mass: mass)


def _masses(
    event: Event, chosen: list[int], rows: Tensor, reduce: Callable[[Tensor], Tensor]
) -> Tensor:
    """`reduce` of the mass that some query tokens lay on each frame, [n r f], for a few heads at a time."""
    if event.shard is not None:
        return _shared_masses(event, event.shard, chosen, rows, reduce)
    return torch.cat([reduce(mass) for mass in _masses_by_heads(event, chosen, rows)])


def _masses_by_heads(event: Event, chosen: list[int], rows: Tensor) -> Iterator[Tensor]:
    """[n r f] for a few heads at a time: the mass that some query tokens lay on each frame.

    PyTorch's fused attention over values that are one-hot in the frame gives exactly that, and never holds the
    matrix. On a CPU it is fused only where values are as wide as keys, so that frames come in such groups. On a GPU
    it shares its work out by queries, and few of them leave most of it idle: there, few queries' logits are held.
    """
    assert event.q is not None and event.k is not None
    frames, places = event.grid.frames, event.grid.rows_and_columns
    device, (_, tokens, width) = event.k.device, event.k.shape
    everything = len(rows) == tokens
    here = slice(None) if everything else rows.to(device, non_blocking=True)  # a few kilobytes
    rotary = None if event.rotary is None else (event.rotary[0][here], event.rotary[1][here])
    if device.type != "cpu" and not everything:
        q = turned(event.q[:, here], rotary)  # n r d
        for head in chosen:
            yield few_row_masses(q[head], turned(event.k[head], event.rotary), frames)[None]
        return
    frame_of = torch.arange(tokens, device=device) // places
    groups = [
        (frame_of[:, None] == torch.arange(first, first + width, device=device)).float()
        for first in range(0, frames, width)
    ]  # each l d
    few = heads_at_once(tokens, width, device.type)
    for first in range(0, len(chosen), few):
        heads = chosen[first : first + few]
        k = turned(chosen_heads(event.k, heads), event.rotary).float()
        q = turned(chosen_heads(event.q, heads)[:, here], rotary).float()
        parts = [
            scaled_dot_product_attention(q[None], k[None], group.expand(1, len(heads), -1, -1))[0]
            for group in groups
        ]
        yield torch.cat(parts, dim=-1)[..., :frames]


def few_row_masses(q: Tensor, k: Tensor, frames: int) -> Tensor:
    """The mass that some query tokens lay on each frame, by the logits of all of them.

    Args:
        q: `[r, d]` queries.
        k: `[l, d]` keys of the same dtype, as many for each frame.
        frames: how many.

    Returns:
        float32 `[r, f]`, rows sum to 1.
    """
    found = []
    scale, half = q.shape[1] ** -0.5, k.dtype in (torch.bfloat16, torch.float16)
    q, k = q.float(), k.float()
    for span in chunks(len(q), 4 * len(k), q.device):
        rows = q[span]
        with tf32_products(q.device) if half else nullcontext():
            logits = rows.new_empty(len(rows), len(k)).addmm_(rows, k.T, beta=0, alpha=scale)
        logits = logits.unflatten(1, (frames, -1))  # r f (h w)
        # log Σ exp is what a log-softmax takes off each logit; fused, it reads them once, logsumexp six times
        total = logits[..., 0] - logits.log_softmax(dim=2)[..., 0]  # r f
        found.append(total.softmax(dim=1))
    return torch.cat(found)


class _Part:
    """The work of one process for all that share a video; once it failed it is NaN, since the others wait for it."""

    def __init__(self, device: torch.device) -> None:
        """Nothing has failed."""
        self._device = device
        self.failure: Exception | None = None

    def of(self, shape: tuple[int, ...], work: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """What some work makes of its inputs; `shape` is what the others expect, () for what stays here."""
        if self.failure is None:
            try:
                return work(*inputs)
            except Exception as error:  # without its frames, which hold the model's tensors
                self.failure = error.with_traceback(None)
        return torch.full(shape, torch.nan, device=self._device)


def _shared_masses(
    event: Event,
    shard: Shard,
    chosen: list[int],
    rows: Tensor,
    reduce: Callable[[Tensor], Tensor],
) -> Tensor:
    """As `_masses`, where each process holds a part of the queries and of the keys.

    What fails in one is raised when all is said, so that no other waits for it in vain.
    """
    assert event.q is not None
    part = _Part(event.q.device)
    found = []
    for head in chosen:
        mass = _shared_head_masses(event, shard, head, rows, part)  # r f
        found.append(part.of((), reduce, mass[None]))
    if part.failure is not None:
        raise part.failure
    return torch.cat(found)


def _shared_head_masses(event: Event, shard: Shard, head: int, rows: Tensor, part: _Part) -> Tensor:
    """[r f] of one head.

    Everybody is told the queries that are asked for, finds log Σ exp of their logits for each frame over its
    own keys, and these are joined: what travels is small beside the keys.
    """
    assert event.q is not None and event.k is not None
    q, k, rotary, group = event.q[head], event.k[head], event.rotary, shard.group
    (tokens, width), device = q.shape, q.device
    frames, places = event.grid.frames, event.grid.rows_and_columns
    start, stop = shard.start, shard.start + tokens

    def queries() -> Tensor:
        mine = (rows >= start) & (rows < stop)
        here = (rows[mine] - start).to(device)
        turn = None if rotary is None else (rotary[0][here], rotary[1][here])
        asked = torch.zeros(len(rows), width, device=device)
        asked[mine.to(device)] = turned(q[here], turn).float()
        return asked

    def sums(asked: Tensor, keys: Tensor) -> Tensor:
        logits = asked @ keys * width**-0.5  # r l
        found = torch.full((len(asked), frames), -torch.inf, device=device)
        for frame in range(start // places, -(-stop // places)):
            its = slice(max(0, frame * places - start), (frame + 1) * places - start)
            found[:, frame] = logits[:, its].logsumexp(dim=1)
        return found

    def joined(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).logsumexp(dim=0).softmax(dim=-1)

    asked = part.of((len(rows), width), queries)
    torch.distributed.all_reduce(asked, group=group)
    keys = part.of((), lambda: turned(k, rotary).float().T)  # d l, of this process
    found = []
    for span in chunks(len(rows), 4 * tokens, device):
        mine = part.of((span.stop - span.start, frames), sums, asked[span], keys)
        parts = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size(group))]
        torch.distributed.all_gather(parts, mine, group=group)
        found.append(part.of((), joined, parts))
    return part.of((), torch.cat, found)
