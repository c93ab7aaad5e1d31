"""Adapters: what wanviz must know of one kind of pipeline, in one file each.

An adapter is chosen by the package that the pipeline's class comes from and loaded only then, so
wanviz imports neither tinywan nor diffusers unless such a pipeline is given.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol

from wanviz.errors import OptionError
from wanviz.events import Event, Moment, Request
from wanviz.hooks import HookSet
from wanviz.layout import Anatomy
from wanviz.words import EncodedPrompt

_MODULES = {  # package of the pipeline's class -> adapter
    "tinywan": "wanviz.adapters.tinywan",
    "diffusers": "wanviz.adapters.diffusers_wan",
}


class Sink(Protocol):
    """What a capture offers to the adapter that feeds it."""

    def begin(self, moment: Moment) -> None:
        """A denoiser call starts; what this raises stops the generation."""

    def consume(self, event: Event) -> None:
        """One layer did something; never raises."""

    def video(self, frames: Any, number: int = 0) -> None:
        """A decoded video, F frames of float [H, W, 3] in [0, 1]; never raises."""


class Adapter(Protocol):
    """One kind of pipeline, in wanviz's terms."""

    default_keep: tuple[tuple[str, ...], ...]
    frame_modes: tuple[str, ...]

    def hook_names(self) -> tuple[str, ...]:
        """The hooks that this pipeline offers, in the order in which they fire in a block."""

    def request(self) -> Request | None:
        """The generation that runs now, if any; the same object during one generation."""

    def planned_request(
        self,
        prompt: str,
        negative_prompt: str,
        height: int | None,
        width: int | None,
        num_frames: int | None,
        num_inference_steps: int | None,
    ) -> Request:
        """A generation that could run; None takes the pipeline's own default."""

    def anatomy(self, request: Request) -> Anatomy:
        """The model's sizes for a generation."""

    def encode(self, prompt: str) -> EncodedPrompt:
        """The prompt's tokens, as the pipeline makes them."""

    def attach(self, sink: Sink, hooks: HookSet, branches: tuple[str, ...]) -> None:
        """Register the hooks that feed a sink."""

    def provenance(self) -> dict[str, Any]:
        """Model, device, dtype and versions, as JSON."""


def adapter_for(pipe: Any) -> Adapter:
    """The adapter of a pipeline.

    Raises:
        OptionError: wanviz does not know this kind of object.
    """
    for kind in type(pipe).__mro__:
        module = _MODULES.get(kind.__module__.partition(".")[0])
        if module is not None:
            make: Callable[[Any], Adapter] = importlib.import_module(module).make_adapter
            return make(pipe)
    raise OptionError(
        f"wanviz cannot watch a {type(pipe).__module__}.{type(pipe).__qualname__}: "
        "give a tinywan.TextToVideoPipeline, or a WanPipeline of diffusers"
    )


def hook_names(pipe: Any) -> tuple[str, ...]:
    """The names of the hooks that a pipeline offers, e.g. "blocks.0.cross_attn.q"."""
    return adapter_for(pipe).hook_names()
