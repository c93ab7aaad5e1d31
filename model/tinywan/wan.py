"""Wan's own weights in this code: the proof that what is read here is what Wan computes.

A folder `transformer/` (or `transformer_2/`) of a Wan2.1 or Wan2.2 text-to-video model in diffusers' format
holds `config.json` and one or several safetensors files. Configured after the first, `dit.py` takes the
weights of the others; only their names differ. Text encoder, VAE and scheduler stay with diffusers.
"""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from tqdm.auto import tqdm

from tinywan.dit import DiT, DiTConfig
from tinywan.errors import CheckpointError, ConfigError, DeviceError

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"

# diffusers' names -> ours; what is not listed has one name in both
_NAMES = (
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedder.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedder.2."),
    (r"^condition_embedder\.time_proj\.", "time_proj.1."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedder.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedder.2."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_out\.0\.", ".to_out."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.up."),
    (r"\.ffn\.net\.2\.", ".ffn.down."),
)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# What diffusers keeps in float32 when the rest is half precision.
_PRECISE = re.compile(r"time_embedder|scale_shift_table|norm2")
_UNREAD = re.compile(r"norm_added_q")  # is in some files and used by nobody


def wan_name(name: str) -> str:
    """What a weight of diffusers' `WanTransformer3DModel` is called in `DiT`."""
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name


def wan_config(fields: dict[str, Any]) -> DiTConfig:
    """The configuration of a Wan transformer, after its `config.json`.

    Args:
        fields: of diffusers' `WanTransformer3DModel.config`.

    Returns:
        What `DiT` takes.

    Raises:
        ConfigError: for what `dit.py` has no part for, such as keys made of an image.
    """
    kind = fields.get("_class_name", "WanTransformer3DModel")
    if kind != "WanTransformer3DModel":
        raise ConfigError(f"this is the configuration of a {kind}: give a WanTransformer3DModel")
    for name, only in (
        ("image_dim", None), ("added_kv_proj_dim", None), ("pos_embed_seq_len", None),
        ("cross_attn_norm", True), ("qk_norm", "rms_norm_across_heads"),
    ):  # fmt: skip
        if fields.get(name, only) != only:
            raise ConfigError(
                f"{name}={fields[name]!r}: dit.py knows {name}={only!r} alone, that of Wan's text-to-video "
                "models"
            )
    try:
        heads, width = int(fields["num_attention_heads"]), int(fields["attention_head_dim"])
        channels = fields["out_channels"] or fields["in_channels"]
        pf, ph, pw = fields["patch_size"]
        return DiTConfig(
            dim=heads * width,
            num_heads=heads,
            num_layers=int(fields["num_layers"]),
            ffn_dim=int(fields["ffn_dim"]),
            in_channels=channels,
            condition_channels=fields["in_channels"] - channels,
            patch_size=(pf, ph, pw),
            text_dim=fields["text_dim"],
            text_len=512,
            freq_dim=fields["freq_dim"],
            eps=fields["eps"],
            attention="full",
            absolute_positions=False,
            mask_padding=False,
            num_experts=0,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"this is not the configuration of a Wan transformer: {error!r}"
        ) from error


def load_wan(
    folder: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    progress_bar: bool = True,
) -> DiT:
    """Wan's transformer with its weights, one tensor at a time: the model is never held twice.

    Args:
        folder: `transformer/` or `transformer_2/` of a model in diffusers' format.
        device: where the weights go.
        dtype: of the weights; None leaves each as it is stored. Half precision leaves the time embedding,
            modulation tables and norms of the residual stream in float32, as diffusers does.
        progress_bar: whether to show one.

    Returns:
        The denoiser, in evaluation mode. `DiT.forward` takes the same latents, timesteps in [0, 1000] and
        prompt embeddings as diffusers' transformer.

    Raises:
        CheckpointError: where files are missing, damaged or do not fit each other.
        ConfigError: for a transformer that `dit.py` has no parts for, or a dtype that is none of weights.
        DeviceError: where this machine has no such device.
    """
    if dtype not in (None, *DTYPES):
        raise ConfigError(
            f"dtype={dtype!r}: use {', '.join(map(str, DTYPES))}, or None to leave each as it is stored"
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DeviceError(
            f"this machine has no device {str(device)!r} that PyTorch can use: use cpu, or cuda or mps "
            "where there is one"
        ) from error
    folder = Path(folder)
    model = _empty(wan_config(_read_json(folder / CONFIG)))
    missing = {name for name, _ in model.named_parameters()}
    with tqdm(total=len(missing), disable=not progress_bar, desc=folder.name) as bar:
        for path, name, stored in _stored(folder, torch.device(device)):
            ours = wan_name(name)
            if ours not in missing:
                raise CheckpointError(
                    f"{path} holds {name!r}, which a model of this {CONFIG} does not have"
                )
            _place(model, ours, stored, path, dtype)
            missing.remove(ours)
            bar.update()
    if missing:
        shown = ", ".join(sorted(missing)[:3])
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the model's tensors, e.g. {shown}: fetch it anew"
        )
    return model.eval()


def _empty(config: DiTConfig) -> DiT:
    """A denoiser whose weights take no memory."""
    with torch.device("meta"):
        return DiT(config)


def _place(model: DiT, name: str, stored: Tensor, path: Path, dtype: torch.dtype | None) -> None:
    """Put one stored tensor into the model, in place of the one that takes no memory."""
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    expected = getattr(module, last)
    if name == "patch_embedding.weight" and stored.ndim == 5:  # of a convolution: c, then the patch
        stored = stored.flatten(1)
    if stored.shape != expected.shape:
        raise CheckpointError(
            f"{path} holds {name} shaped {tuple(stored.shape)}, and this {CONFIG} asks for "
            f"{tuple(expected.shape)}"
        )
    if dtype is not None:
        half = torch.finfo(dtype).bits < 32
        stored = stored.to(torch.float32 if half and _PRECISE.search(name) else dtype)
    setattr(module, last, nn.Parameter(stored.contiguous()))


def _stored(folder: Path, device: torch.device) -> Iterator[tuple[Path, str, Tensor]]:
    """Every tensor of a folder, one at a time."""
    for path in _shards(folder):
        try:
            with safe_open(path, framework="pt", device=str(device)) as shard:
                for name in shard.keys():
                    if not _UNREAD.search(name):
                        yield path, name, shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}): fetch it anew") from error


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX
    names = [WEIGHTS]
    if index.exists():
        try:
            names = sorted(set(_read_json(index)["weight_map"].values()))
        except (KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{index} is damaged, it has no weight_map: fetch it anew"
            ) from error
    paths = [folder / name for name in names]
    for path in paths:
        if not path.exists():
            raise CheckpointError(
                f"there is no {path}: name the transformer's folder of a Wan model in diffusers' format, "
                "with safetensors files"
            )
    return paths


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"there is no {path} ({error.strerror}): name the transformer's folder of a Wan model in "
            "diffusers' format"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged, it is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} is damaged, it is not a JSON object")
    return fields


def wan_parameters(config: DiTConfig) -> int:
    """How many numbers a denoiser of this size learns; allocates nothing."""
    return sum(math.prod(p.shape) for p in _empty(config).parameters())
