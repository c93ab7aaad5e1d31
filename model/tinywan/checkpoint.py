"""Checkpoints: one folder of safetensors files and a `config.json` that knows their checksums.

Nothing is unpickled. A missing, truncated, foreign or bit-flipped file is refused by name.
"""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import nn

from tinywan.errors import CheckpointError
from tinywan.presets import ModelConfig
from tinywan.text import UnigramTokenizer

FORMAT = "tinywan-1"
SHIPPED = Path(__file__).parent / "weights" / "tiny"  # comes with the package


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file in one step, so that a reader sees the old or the new one, whole.

    Args:
        path: file to write.
        content: all of it.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def save_checkpoint(
    folder: Path,
    config: ModelConfig,
    tokenizer: UnigramTokenizer,
    modules: dict[str, nn.Module],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a checkpoint, all of it or nothing; other files of the folder stay where they are.

    Args:
        folder: made if missing; a checkpoint in it is replaced.
        config: of the model.
        tokenizer: goes into `tokenizer.json`.
        modules: by file stem, e.g. "vae", "text_encoder", "transformer".
        dtype: in which the weights are stored.
    """
    # beside the folder, or in it where it may be all that can be written to
    around = folder if folder.exists() else folder.parent
    around.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=around) as part:
        new = Path(part) / "new"
        tokenizer.save_pretrained(new)
        sums = {"tokenizer.json": _sha256((new / "tokenizer.json").read_bytes())}
        fields = config.to_dict()
        sums["model"] = _sha256_of_fields(fields)
        for name, module in modules.items():
            tensors = {k: v.to("cpu", dtype).contiguous() for k, v in module.state_dict().items()}
            content = save_safetensors(tensors, metadata={"format": FORMAT})
            (new / f"{name}.safetensors").write_bytes(content)
            sums[f"{name}.safetensors"] = _sha256(content)
        header = {"format": FORMAT, "model": fields, "sha256": sums}
        text = json.dumps(header, indent=1, ensure_ascii=False) + "\n"
        (new / "config.json").write_text(text, encoding="utf-8")
        if folder.exists():
            _exchange(folder, new, Path(part) / "old")
        else:
            new.rename(folder)


def _exchange(folder: Path, new: Path, old: Path) -> None:
    """Put the files of `new` in place of the checkpoint in `folder`, or leave it as it was."""
    try:
        known = read_config(folder)[1].keys() - {"model"}  # which is no file
    except CheckpointError:  # none, or one that nobody can read
        known = set()
    names = [path.name for path in new.iterdir()]
    old.mkdir()
    try:
        for path in list(folder.iterdir()):
            if path.name in {*names, *known}:
                path.rename(old / path.name)
        for name in names:
            (new / name).rename(folder / name)
    except BaseException:  # Ctrl-C, too
        for name in names:
            if not (new / name).exists():
                (folder / name).unlink()
        for path in list(old.iterdir()):
            path.rename(folder / path.name)
        raise


def read_config(folder: Path) -> tuple[ModelConfig, dict[str, str]]:
    """Read `config.json`.

    Args:
        folder: of a checkpoint.

    Returns:
        The configuration, and the checksum of every file.

    Raises:
        CheckpointError: where there is none, it is damaged, or it is not tinywan's.
    """
    path = folder / "config.json"
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(
            f"there is no checkpoint in {folder} ({path.name}: {error.strerror}): name a folder "
            "that `save_pretrained` wrote, or none for the shipped one"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged, it is not JSON: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else type(header).__name__
        raise CheckpointError(f"{path} has format {found!r}; this tinywan reads {FORMAT!r}")
    fields, sums = header.get("model"), header.get("sha256")
    if not isinstance(fields, dict) or not isinstance(sums, dict):
        raise CheckpointError(f"{path} is damaged, it lacks 'model' or 'sha256': fetch it anew")
    if _sha256_of_fields(fields) != sums.get("model"):
        raise CheckpointError(f"{path} is damaged, 'model' differs from its SHA-256: fetch it anew")
    return ModelConfig.from_dict(fields), sums


def load_tokenizer(folder: Path, sums: dict[str, str]) -> UnigramTokenizer:
    """Read the tokenizer of a checkpoint.

    Args:
        folder: of the checkpoint.
        sums: from `read_config`.

    Raises:
        CheckpointError: where the file is missing or damaged.
    """
    _read_verified(folder / "tokenizer.json", sums)
    return UnigramTokenizer.from_pretrained(folder)


def load_module(folder: Path, name: str, module: nn.Module, sums: dict[str, str]) -> None:
    """Fill a module with a checkpoint's weights.

    Args:
        folder: of the checkpoint.
        name: file stem.
        module: built from the checkpoint's configuration.
        sums: from `read_config`.

    Raises:
        CheckpointError: where the file is missing, damaged or made for another module.
    """
    path = folder / f"{name}.safetensors"
    content = _read_verified(path, sums)
    try:
        module.load_state_dict(load_safetensors(content))
    except Exception as error:
        raise CheckpointError(f"{path} does not fit this configuration: {error}") from error


def fitted(config: ModelConfig, tokenizer: UnigramTokenizer) -> ModelConfig:
    """The configuration with the tokenizer's number of ids and length.

    Args:
        config: of the model.
        tokenizer: that it will use.

    Returns:
        A copy that fits.
    """
    text = replace(config.text, vocab_size=tokenizer.vocab_size, text_len=tokenizer.text_len)
    dit = replace(config.dit, text_len=tokenizer.text_len)
    return replace(config, text=text, dit=dit)


def _read_verified(path: Path, sums: dict[str, str]) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"the checkpoint lacks {path}: {error.strerror}") from error
    if _sha256(content) != sums.get(path.name):
        raise CheckpointError(
            f"{path} is damaged or is not the file of this checkpoint ({len(content)} bytes, "
            f"SHA-256 {_sha256(content)[:12]}…, config.json says "
            f"{str(sums.get(path.name))[:12]}…): fetch it anew"
        )
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sha256_of_fields(fields: dict[str, Any]) -> str:
    return _sha256(json.dumps(fields, sort_keys=True).encode())
