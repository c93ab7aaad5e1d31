"""Which places of one frame look at which of another: a reducer of frame attention from a few places to all tokens."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wanviz.errors import CaptureError
from wanviz.events import Event
from wanviz.frame_masses import turned
from wanviz.grid import link_places
from wanviz.layout import ArraySpec
from wanviz.running import Labels, RunningMean, chosen_heads, chunks


class Links:
    """Attention from some places of every frame to all tokens, mean over layers, heads and steps."""

    kinds = ("temporal_attn", "self_attn")

    def __init__(self, branch: str, specs: tuple[ArraySpec, ...], labels: Labels) -> None:
        """The mean of one branch."""
        spec = next(spec for spec in specs if spec.name == f"{branch}/links")
        self._mean = RunningMean(spec, labels)
        self._heads = list(labels["head"])

    def consume(self, event: Event) -> None:
        """softmax(q kᵀ / √d) of the rows of some places."""
        if event.shard is not None:
            raise CaptureError("links are not offered where several processes share one video")
        slot = self._mean.slot(event)  # f m f h w
        found = (
            _temporal(event, self._heads)
            if event.kind == "temporal_attn"
            else _full(event, self._heads)
        )
        slot.add_(found.to(slot.device))
        self._mean.count(event)

    def finish(self) -> dict[str, NDArray[np.float32]]:
        """[query frame, place, f, h, w]; each row sums to 1."""
        return {self._mean.spec.name: self._mean.finish()}


def _temporal(event: Event, heads: list[int]) -> Tensor:
    """[f m f h w] of attention that stays at one row and column."""
    grid, places = event.grid, link_places(event.grid)
    assert event.q is not None and event.k is not None
    q, k = (turned(chosen_heads(x, heads), event.rotary).float() for x in (event.q, event.k))
    q = q * q.shape[-1] ** -0.5
    here = torch.tensor([row * grid.columns + column for row, column in places], device=q.device)
    q, k = (
        x.unflatten(1, (grid.frames, -1))[:, :, here].transpose(1, 2) for x in (q, k)
    )  # n m f d
    logits = q @ k.transpose(2, 3)
    if event.window is not None:
        frames = torch.arange(grid.frames, device=q.device)
        apart = (frames[:, None] - frames).abs()
        logits = logits.masked_fill(apart > event.window, -torch.inf)
    mass = logits.softmax(dim=-1).mean(dim=0)  # m f f
    found = torch.zeros(grid.frames, len(places), *grid.shape, device=q.device)
    for number, (row, column) in enumerate(places):
        found[:, number, :, row, column] = mass[number]
    return found


def _full(event: Event, heads: list[int]) -> Tensor:
    """[f m f h w] of attention from any token to any token, one head at a time."""
    grid, places = event.grid, link_places(event.grid)
    size = grid.rows_and_columns
    rows = torch.tensor([
        frame * size + row * grid.columns + column
        for frame in range(grid.frames)
        for row, column in places
    ])  # fmt: skip
    assert event.q is not None and event.k is not None
    found = torch.zeros(len(rows), grid.tokens, device=event.q.device)
    here, turn = rows.to(event.q.device), event.rotary
    q = turned(event.q[:, here], None if turn is None else (turn[0][here], turn[1][here])).float()
    q = q * q.shape[-1] ** -0.5  # n (f m) d
    for head in heads:
        k = turned(event.k[head], turn).float()
        for span in chunks(len(rows), 4 * grid.tokens, q.device):
            found[span] += (q[head, span] @ k.T).softmax(dim=-1)
    return (found / len(heads)).view(grid.frames, len(places), *grid.shape)
