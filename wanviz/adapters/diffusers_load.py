"""A Wan pipeline from a folder or the hub, placed where it fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.pipelines import pipeline_utils

from wanviz.adapters import Draw
from wanviz.adapters.diffusers_wan import DiffusersWanAdapter, make_adapter
from wanviz.errors import OptionError, WanvizError


def load_pipeline(
    model: str, device: str | None, dtype: str | None, offload: str | None, device_map: str | None
) -> tuple[Any, Draw]:
    """A pipeline from a folder or the hub, and how to call it.

    Raises:
        OptionError: it cannot be loaded, or it is of another kind; or this machine has no such device.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    _check_device(device)
    if offload not in (None, *OFFLOADS):
        raise OptionError(f"offload={offload!r}: use {', '.join(OFFLOADS)}")
    if offload is not None and device_map is not None:
        raise OptionError("offload and device_map both place the model: give one of them")
    # the VAE's small numbers suffer in half precision, and it is small
    dtypes = {"default": getattr(torch, dtype or "bfloat16"), "vae": torch.float32}
    name = "dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype"  # its older name
    try:
        pipe = DiffusionPipeline.from_pretrained(model, device_map=device_map, **{name: dtypes})
    except (OSError, ValueError, ImportError) as error:
        raise OptionError(
            f"cannot load {model!r} ({error}): give a folder in diffusers' format or the id of one, e.g. "
            "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
        ) from error
    adapter = make_adapter(pipe)  # says what is wrong with it
    if offload is not None:
        OFFLOADS[offload](pipe, torch.device(device))
    elif device_map is None:
        pipe.to(device)

    def draw(prompt: str, seed: int | None = None, **asked: Any) -> Any:
        try:
            _check_call(adapter, asked)
            generator = None if seed is None else torch.Generator().manual_seed(seed)
            return pipe(prompt=prompt, generator=generator, **asked)
        except WanvizError:
            raise
        except (ValueError, TypeError) as error:
            raise OptionError(f"the pipeline refuses what was asked: {error}") from error

    return pipe, draw


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch was built without it
        there = torch.accelerator.current_accelerator(check_available=True)
        have = "cpu" if there is None else f"cpu or {there.type}"
        raise OptionError(f"this machine has no device {device!r}: use {have}") from error


def _check_call(adapter: DiffusersWanAdapter, asked: dict[str, Any]) -> None:
    """What the pipeline would round, or fail at once the prompt is read."""
    names = ("height", "width", "num_frames", "num_inference_steps")
    request = adapter.planned_request("", "", *(asked.get(name) for name in names))
    adapter.grid(request)
    if request.num_inference_steps < 1:
        steps = request.num_inference_steps
        raise OptionError(f"num_inference_steps={steps}: use a whole number from 1")
    for name in ("guidance_scale", "guidance_scale_2"):
        scale = asked.get(name)
        if scale is not None and not math.isfinite(scale):
            raise OptionError(f"{name}={scale}: use a finite number, e.g. 5")


def _offload_groups(pipe: Any, device: torch.device) -> None:
    if not hasattr(pipe, "enable_group_offload"):
        raise OptionError("offload='group' needs diffusers 0.36: use 'model', or update diffusers")
    pipe.enable_group_offload(
        onload_device=device, offload_type="leaf_level", use_stream=device.type == "cuda"
    )


OFFLOADS: dict[str, Callable[[Any, torch.device], None]] = {
    "model": lambda pipe, device: pipe.enable_model_cpu_offload(device=device),
    "group": _offload_groups,
    "sequential": lambda pipe, device: pipe.enable_sequential_cpu_offload(device=device),
}
