"""Adapters: what wanviz must know of one kind of pipeline, in one file each.

An adapter is chosen by the package that the pipeline's class comes from and loaded only then, so
wanviz imports neither tinywan nor diffusers unless such a pipeline is given.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wanviz.adapters.stage import Denoiser, Stage
from wanviz.errors import OptionError
from wanviz.events import Clip, Event, Moment, Request
from wanviz.hooks import HookSet
from wanviz.layout import Anatomy
from wanviz.words import EncodedPrompt

if TYPE_CHECKING:
    import torch
    from torch import Tensor

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

    def failed(self, video: int, what: str, error: Exception) -> None:
        """An event of "words" or "frames" could not be told; never raises."""

    def video(self, frames: Any, number: int = 0) -> None:
        """A decoded video, F frames of float [H, W, 3] in [0, 1]; never raises."""

    def preview(self, step: int, decode: Callable[[], Any]) -> None:
        """What a step predicts: decode() gives float [b, f, H, W, 3] in [0, 1], a picture per latent frame; never raises."""


class Adapter(Protocol):
    """One kind of pipeline, in wanviz's terms."""

    default_keep: tuple[tuple[str, ...], ...]
    frame_modes: tuple[str, ...]
    can_preview: bool  # whether what a step predicts can be decoded on the way

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

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """What the denoiser reads of prompts, `[b, p, c]`, rows of padding zero."""

    def text_encoder(self) -> Any:
        """The module that reads prompts; None where the pipeline was loaded without."""

    def device(self) -> torch.device:
        """Where the pipeline computes."""

    def attach(self, sink: Sink, hooks: HookSet, branches: tuple[str, ...], previews: bool) -> None:
        """Register the hooks that feed a sink."""

    def observe(self, clip: Clip) -> None:
        """Give the denoiser a noised video, once for each noise level, while hooks are attached."""

    def denoiser(self, clip: Clip) -> Denoiser:
        """The denoiser at the noise levels of a clip, to be asked again and again."""

    def stage(self, hooks: HookSet) -> Stage:
        """The pipeline's parts by their roles; what has to be overheard is registered in `hooks`."""

    def draw(self, prompt: str, seed: int, *, progress_bar: bool = True, **asked: Any) -> Any:
        """Call the pipeline, with a seed and a progress bar in its own way."""

    def one_noise_expert(self, which: str) -> AbstractContextManager[None]:
        """Inside, the "high" or the "low" noise expert does all steps."""

    def provenance(self) -> dict[str, Any]:
        """Model, device, dtype and versions, as JSON."""


Draw = Callable[..., Any]  # draw(prompt, seed=…, **more arguments of the pipeline)


def load_pipeline(
    model: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    offload: str | None = None,
    device_map: str | None = None,
) -> tuple[Any, Draw]:
    """A pipeline, and how to call it.

    Args:
        model: a checkpoint of tinywan; a folder in diffusers' format, or the id of one on the Hugging Face hub; None
            is the tinywan that is shipped.
        device: "cpu", "cuda", …; None takes a GPU for real Wan where there is one.
        dtype: "float32", "bfloat16" or "float16"; None is float32 for tinywan and bfloat16 for real Wan.
        offload: for real Wan, "model", "group" or "sequential": what waits in main memory.
        device_map: for real Wan, "balanced" spreads it over all GPUs.

    Returns:
        The pipeline, and draw(prompt, seed=…, **more).

    Raises:
        OptionError: there is no such model, or an option does not go with it.
    """
    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise OptionError(f"dtype={dtype!r}: use float32, bfloat16 or float16")
    if is_diffusers(model):
        try:
            module = importlib.import_module("wanviz.adapters.diffusers_load")
        except ImportError as error:
            raise OptionError(f"real Wan needs {error.name}: pip install 'wanviz[wan]'") from error
        return module.load_pipeline(model, device, dtype, offload, device_map)
    if offload is not None or device_map is not None:
        raise OptionError("offload and device_map are for real Wan; tinywan fits anywhere")
    module = importlib.import_module(_MODULES["tinywan"])
    return module.load_pipeline(model, device or "cpu", dtype or "float32")


def is_diffusers(model: str | None) -> bool:
    """A folder with a model_index.json, or what looks like the id of a model on the hub."""
    if model is None:
        return False
    path = Path(model)
    if path.exists():
        return (path / "model_index.json").exists()
    return re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None


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
