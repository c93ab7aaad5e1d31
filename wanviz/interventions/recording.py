"""Activations of one run, put into another: attention injected, or the residual stream patched.

With cross-attention it is prompt-to-prompt (Hertz et al. 2022, arXiv 2208.01626, section 3.2) for video: the new
words go where the old ones went. With the residual stream it is causal tracing (Meng et al. 2022, arXiv 2202.05262,
section 2.1): what of one run carries over to the other through these places, layers and steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from wanviz.adapters.stage import BlockPart
from wanviz.errors import CaptureError, OptionError
from wanviz.hooks import Hookable
from wanviz.interventions.scope import Reach, grid_mask, named, reach, to_rows
from wanviz.layout import format_bytes, parse_bytes

Place = tuple[str, int, int, str]  # noise expert, layer, step, what


class Recording:
    """What some activations were in a run, by (noise expert, layer, step, what)."""

    def __init__(self, what: str, tokens: int) -> None:
        """Nothing is recorded yet.

        Args:
            what: "stream" or a kind of attention.
            tokens: of the prompt that is read.
        """
        self.what, self.tokens = what, tokens
        self.tensors: dict[Place, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that were recorded."""
        return tuple(sorted({step for _, _, step, _ in self.tensors}))

    def __repr__(self) -> str:
        """What, how much."""
        return f"Recording of {self.what} in {len(self.steps)} steps, {format_bytes(self.nbytes)}"


@contextmanager
def record(
    pipe: Any,
    prompt: str,
    what: str = "cross_attn",
    *,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    branch: str = "cond",
    budget: int | str = "1GiB",
) -> Iterator[Recording]:
    """Keep activations of the run inside the block, on the CPU.

    Args:
        pipe: the pipeline.
        prompt: that is drawn inside.
        what: "cross_attn" (queries and keys at the words), "self_attn", in a factorised model "spatial_attn" or
            "temporal_attn"; or "stream", the residual stream behind each block.
        layers: of which layers; None is all.
        steps: of which denoising steps; None is all.
        branch: "cond" or "uncond".
        budget: the most bytes to keep.

    Yields:
        A recording, filled while the block runs, for `inject`.

    Raises:
        OptionError: something that this model does not have; or, with "cross_attn", another prompt is drawn inside.
        CaptureError: more would be kept than the budget allows, or nothing ran.
    """
    most = parse_bytes(budget)
    with reach(pipe, layers, steps, branch) as reached:
        told = named(reached, prompt)
        kept = Recording(what, len(told.encoded.tokens))

        def keep(place: tuple[str, int, str], tensor: Tensor) -> None:
            rows = reached.scope.rows(reached.stage, len(tensor))
            step = reached.stage.step()
            if rows is None or step is None:
                return
            if what == "cross_attn":
                told.check()
            part = tensor[rows].detach()
            if kept.nbytes + part.nbytes > most:
                raise CaptureError(
                    f"the recording needs more than its budget of {format_bytes(most)}: choose layers and steps, or "
                    "raise it"
                )
            expert, layer, name = place
            kept.tensors[expert, layer, step, name] = part.to("cpu", copy=True)

        for block, name, module in _modules(reached, what):

            def look(output: Tensor, place: Any = (block.noise_expert, block.layer, name)) -> None:
                keep(place, output)

            reached.hooks.after(module, look)
        yield kept
        if not kept.tensors:
            raise CaptureError(
                "nothing ran inside the block, or none of the steps: call the pipeline in it"
            )


@contextmanager
def inject(
    pipe: Any,
    recording: Recording,
    prompt: str,
    *,
    where: Any = None,
    layers: Iterable[int] | None = None,
    steps: Iterable[int] | None = None,
    branch: str = "cond",
) -> Iterator[None]:
    """Put what was recorded into the run inside the block, at the same layers and steps.

    Args:
        pipe: the pipeline.
        recording: of `record`.
        prompt: that is drawn inside.
        where: with "stream", over (frame, row, column): 1 where to patch; None is everywhere.
        layers: in which of the recorded layers; None is all.
        steps: in which of the recorded steps; None is all.
        branch: "cond" or "uncond".

    Raises:
        OptionError: an argument that cannot be; with "cross_attn", prompts of different lengths (their keys do not
            correspond), or another prompt is drawn inside.
        CaptureError: the run is of another size than the recording.
    """
    if where is not None and recording.what != "stream":
        raise OptionError(
            "where goes with a recording of 'stream': attention is injected as a whole"
        )
    with reach(pipe, layers, steps, branch) as reached:
        told = named(reached, prompt)
        tokens = len(told.encoded.tokens)
        if recording.what == "cross_attn" and tokens != recording.tokens:
            raise OptionError(
                f"the recorded prompt has {recording.tokens} tokens and this one {tokens}, so that their keys do not "
                "correspond: choose words with equally many tokens"
            )
        for block, name, module in _modules(reached, recording.what):

            def change(
                output: Tensor, place: Any = (block.noise_expert, block.layer), name: str = name
            ) -> Tensor | None:
                rows, step = reached.scope.rows(reached.stage, len(output)), reached.stage.step()
                if rows is None or step is None:
                    return None
                if recording.what == "cross_attn":
                    told.check()
                found = recording.tensors.get((*place, step, name))
                if found is None:
                    return None
                now = output[rows]
                if found.shape != now.shape:
                    raise CaptureError(
                        f"the recording is of another size ({tuple(found.shape)}) than this run "
                        f"({tuple(now.shape)}): draw both with the same frames, height, width and prompts"
                    )
                found = found.to(now)
                if where is not None:
                    mask = grid_mask(where, reached.stage.grid()).to(now)[:, None]  # l 1
                    found = torch.lerp(now, found, mask)
                return to_rows(output, rows, found)

            reached.hooks.change(module, change)
        yield


def _modules(reached: Reach, what: str) -> list[tuple[BlockPart, str, Hookable]]:
    blocks = reached.scope.blocks(reached.stage)
    kinds = list(blocks[0].attentions)
    if what == "stream":
        return [(block, "stream", block.stream) for block in blocks]
    if what not in kinds:
        raise OptionError(f"what={what!r}: this model has 'stream', {', '.join(map(repr, kinds))}")
    return [
        (block, name, getattr(block.attentions[what], name))
        for block in blocks
        for name in ("q", "k")
    ]
