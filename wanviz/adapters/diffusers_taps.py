"""Hooks on one transformer of diffusers' Wan: from the norms of queries and keys to events."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from wanviz.adapters import Sink
from wanviz.errors import CaptureWarning, OptionError
from wanviz.events import Event, Kind, Moment, Shard
from wanviz.grid import Grid
from wanviz.hooks import Arguments, Keywords


class Run(Protocol):
    """What the adapter knows of the call under way."""

    grid: Grid | None
    embeds: dict[str, Tensor]  # branch -> what the first denoiser call was given
    changed: bool  # whether a warning about other embeddings was given


Started = Callable[[Tensor, dict[str, Any], str, Tensor], tuple[Run, Moment] | None]


class Reader:
    """What one transformer tells its sink."""

    def __init__(
        self,
        started: Started,
        sink: Sink,
        name: str,
        branches: tuple[str, ...],
        mesh: Any,
    ) -> None:
        self._started, self._sink, self._name, self._branches = started, sink, name, branches
        self._mesh = mesh  # of the processes that share the tokens; None where nobody does
        self._context: dict[str, Any] | None = None  # announced, and not yet followed by a call
        self.moment: Moment | None = None
        self.grid: Grid | None = None

    def announce(self, args: Arguments, kwargs: Keywords) -> None:
        """The pipeline says which branch comes next: cache_context("cond", step_index=…, sigma=…)."""
        branch = kwargs.get("name", args[0] if args else None)
        told = {name: kwargs.get(name) for name in ("step_index", "sigma", "num_inference_steps")}
        self._context = {"branch": branch, **told}

    def begin(
        self, named: Callable[..., dict[str, Any]], args: Arguments, kwargs: Keywords
    ) -> None:
        """A forward starts; one that no pipeline announced is none of ours."""
        context, self._context, self.moment = self._context, None, None
        if context is None or context["branch"] not in ("cond", "uncond"):
            return
        asked = named(*args, **kwargs)
        embeds = asked["encoder_hidden_states"]
        found = self._started(asked["hidden_states"], context, self._name, embeds)
        if found is None:
            return
        run, moment = found
        self._sink.begin(moment)
        branch = context["branch"]
        if branch not in self._branches:
            return
        first = run.embeds.setdefault(branch, embeds)
        if embeds is not first and not _same(embeds, first):
            if not run.changed:
                run.changed = True
                warnings.warn(
                    f"at step {moment.step} the pipeline reads other embeddings than it began with, so that "
                    "the words of its prompt are not what it reads: nothing is kept from there on",
                    CaptureWarning,
                    stacklevel=2,
                )
            return
        self.moment, self.grid = moment, run.grid

    def end(self) -> None:
        """The forward is over; what gradient checkpointing computes again on the way back is none of its layers."""
        self.moment = None

    def emit(self, kind: Kind, layer: int, heads: int, q: Tensor, k: Tensor, rotary: Any) -> None:
        """Queries and keys `[b, l, n·d]` of one attention; never raises."""
        if self.moment is None or self.grid is None:
            return
        for video in range(len(q)):
            try:
                event = self._event(kind, layer, heads, q[video], k[video % len(k)], rotary, video)
            except Exception as error:
                self._sink.failed(video, "words" if kind == "cross_attn" else "frames", error)
            else:
                self._sink.consume(event)

    def _event(
        self, kind: Kind, layer: int, heads: int, q: Tensor, k: Tensor, rotary: Any, video: int
    ) -> Event:
        """Of one video: q and k are `[l, n·d]`."""
        moment, grid = self.moment, self.grid
        assert moment is not None and grid is not None
        turn, shard, parts = None, None, 1
        if rotary is not None:  # each [1, l, 1, d], every angle twice
            turn = rotary[0][0, :, 0, 0::2], rotary[1][0, :, 0, 1::2]
        if self._mesh is not None:  # equal parts, in the order of the processes
            shard = Shard(self._mesh.get_local_rank() * len(q), self._mesh.get_group())
            parts = self._mesh.size()
        if len(q) * parts != grid.tokens:
            raise ValueError(
                f"layer {layer} has {len(q)} queries in {parts} parts, and the video {grid.tokens} tokens"
            )
        return Event(
            kind=kind,
            layer=layer,
            moment=moment,
            branch=moment.branches[0],
            grid=grid,
            video=video,
            q=q.unflatten(-1, (heads, -1)).transpose(0, 1),
            k=k.unflatten(-1, (heads, -1)).transpose(0, 1),
            rotary=turn,
            shard=shard,
        )


class Look:
    """The queries of one attention until its keys come."""

    def __init__(self, reader: Reader, kind: Kind, layer: int, heads: int) -> None:
        self._reader, self._kind, self._layer, self._heads = reader, kind, layer, heads
        self._rotary: Any = None
        self._q: Tensor | None = None

    def positions(self, args: Arguments, kwargs: Keywords) -> None:
        """The rotary positions that the attention is given; cross-attention has none."""
        self._rotary = kwargs.get("rotary_emb", args[3] if len(args) > 3 else None)

    def queries(self, q: Tensor) -> None:
        """What the norm of the queries made."""
        self._q = q.detach()

    def keys(self, k: Tensor) -> None:
        """What the norm of the keys made: now both are there."""
        if self._q is not None:
            self._reader.emit(
                self._kind, self._layer, self._heads, self._q, k.detach(), self._rotary
            )
            self._q = None

    def forget(self) -> None:
        """The attention is done, or broke off."""
        self._q = self._rotary = None


def parallel_mesh(model: Any) -> Any:
    """The processes that share a transformer's tokens; None where there is but one.

    Raises:
        OptionError: they share in a way whose parts cannot be told.
    """
    parallel = getattr(model, "_parallel_config", None)
    if parallel is None:
        return None
    context = getattr(parallel, "context_parallel_config", None)
    uneven = [
        name for name in ("ulysses_anything", "ring_anything") if getattr(context, name, False)
    ]
    if context is None or uneven:
        raise OptionError(
            "wanviz watches context parallelism with equal parts of the tokens, and this transformer runs "
            f"with {uneven[0] if uneven else 'another kind of parallelism'}: leave it out"
        )
    return context._flattened_mesh


def bound(function: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Arguments of a function by their names, with defaults."""
    signature = inspect.signature(function)

    def named(*args: Any, **kwargs: Any) -> dict[str, Any]:
        found = signature.bind_partial(*args, **kwargs)
        found.apply_defaults()
        return dict(found.arguments)

    return named


def takes_any(function: Callable[..., Any]) -> bool:
    """Whether a function takes keyword arguments that it does not name."""
    kinds = [p.kind for p in inspect.signature(function).parameters.values()]
    return inspect.Parameter.VAR_KEYWORD in kinds


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other)
