"""What all reducers share: running means, float32 products, and buffers that stay small."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wanviz.events import Event
from wanviz.layout import ArraySpec

WORK_BYTES = {"cpu": 16 * 2**20}  # of one buffer of logits: what fits a processor's cache …
OTHER_WORK_BYTES = 128 * 2**20  # … and on accelerators, whose kernels are few and large

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


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Float32 products on a GPU's tensor cores, for numbers that come from half precision.

    TF32 keeps ten bits behind the point, float16 has as many and bfloat16 fewer: every product is whole, sums are float32.
    """
    if device.type != "cuda":
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def chosen_heads(x: Tensor, heads: list[int]) -> Tensor:
    """[n l d] of some heads; all of them are not copied."""
    return x if len(heads) == x.shape[0] else x[heads]


def work_rows(rows: int, per_row: int, device: str = "cpu") -> int:
    """How many rows of `per_row` bytes are taken at a time."""
    return max(1, min(rows, work_bytes(device) // max(1, per_row)))


def chunks(rows: int, per_row: int, device: torch.device) -> Iterator[slice]:
    """Rows in pieces whose `per_row` bytes fit the work space of a device."""
    size = work_rows(rows, per_row, device.type)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
