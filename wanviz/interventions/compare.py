"""Draw twice from one seed, without and with a change, and see both."""

from __future__ import annotations

from collections.abc import Container
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanviz.adapters import adapter_for
from wanviz.capture import capture
from wanviz.errors import OptionError
from wanviz.trace import Trace


@dataclass(frozen=True)
class Comparison:
    """Two runs that differ in a change alone; at the end of a cell it shows them side by side."""

    before: Trace
    after: Trace

    @property
    def difference(self) -> NDArray[np.float32]:
        """How much each pixel changed, `[F, H, W]` in [0, 1], mean over colours."""
        first, second = self.before.frames, self.after.frames
        assert first is not None and second is not None  # `compare` draws pixels
        return np.abs(first.astype(np.float32) - second).mean(axis=-1) / 255

    def _repr_mimebundle_(
        self, include: Container[str] | None = None, exclude: Container[str] | None = None
    ) -> dict[str, Any]:
        show = import_module("wanviz.show")  # the views lie above
        made: dict[str, Any] = show.mimebundle(self.before, include, exclude, beside=self.after)
        return made

    def __repr__(self) -> str:
        """How much changed."""
        return f"Comparison: {self.difference.mean():.1%} of the pixels' range changed on average"


def compare(
    pipe: Any,
    prompt: str,
    change: AbstractContextManager[Any],
    *,
    seed: int = 0,
    instead: str | None = None,
    **options: Any,
) -> Comparison:
    """Draw a prompt from one seed without and with a change.

    Args:
        pipe: the pipeline.
        prompt: what to draw.
        change: an intervention, not entered yet, e.g. `reweight(pipe, prompt, {"umbrella": 0})`.
        seed: of both.
        instead: another prompt for the second run, e.g. for `inject`.
        options: more arguments of the pipeline's call, e.g. num_inference_steps=12.

    Returns:
        Both traces.

    Raises:
        OptionError: latents were asked for, which cannot be looked at.
    """
    if options.get("output_type") == "latent":
        raise OptionError("output_type='latent' leaves no pixels to compare: leave it out")
    draw = adapter_for(pipe).draw
    with capture(pipe) as before:
        draw(prompt, seed, **options)
    with change, capture(pipe) as after:  # in this order: it looks at what the change has made
        draw(prompt if instead is None else instead, seed, **options)
    return Comparison(before, after)
