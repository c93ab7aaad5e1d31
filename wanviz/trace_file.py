"""A trace on disk: one safetensors file with a JSON header, checked when read, written whole."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from wanviz.errors import TraceFileError
from wanviz.files import write_whole

FORMAT = 2
Arrays = dict[str, NDArray[Any]]


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON has not, so that an odd option costs nobody the trace."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_trace(path: str | os.PathLike[str], arrays: Arrays, header: dict[str, Any]) -> None:
    """Write a trace so that a reader sees the old file or the whole new one, never a part.

    Raises:
        TraceFileError: the path names no file, or the folder is missing, unwritable or full.
    """
    told = {"format": FORMAT, **_finite(header)}
    text = json.dumps(told, ensure_ascii=True, allow_nan=False)
    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    metadata = {"wanviz": text, "sha256": _digest(text, whole)}
    write_whole(path, safetensors.numpy.save(whole, metadata), "the trace", TraceFileError)


def read_trace(path: str | os.PathLike[str]) -> tuple[Arrays, dict[str, Any]]:
    """The arrays and the header of a trace, after its checksum was found right.

    Raises:
        TraceFileError: there is no such file, it is not a trace, or it is damaged.
    """
    shown = repr(str(path))
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TraceFileError(
            f"cannot read {shown} ({error.strerror or error}): name a file that Trace.save wrote"
        ) from error
    try:
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size])["__metadata__"]
        text, digest = metadata["wanviz"], metadata["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise TraceFileError(_foreign(shown, data)) from None
    try:
        arrays: Arrays = safetensors.numpy.load(data)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TraceFileError(
            f"{shown} is a damaged trace ({error}): it was cut short or changed after it was "
            "saved; copy it again, or capture again"
        ) from None
    if _digest(text, arrays) != digest:
        raise TraceFileError(
            f"{shown} is a damaged trace (its checksum differs): it was changed after it was "
            "saved; copy it again, or capture again"
        )
    header = json.loads(text)
    if header.get("format") != FORMAT:
        raise TraceFileError(
            f"{shown} has trace format {header.get('format')!r}, this wanviz reads {FORMAT}: "
            "open it with the wanviz that wrote it, or update wanviz"
        )
    return arrays, header


def _foreign(shown: str, data: bytes) -> str:
    would = "a file that Trace.save wrote would work"
    if not data:
        return f"{shown} is empty: {would}"
    if b'"wanviz"' in data[:4096]:
        return (
            f"{shown} is a damaged trace (its header cannot be read): it was cut short or "
            "changed after it was saved; copy it again, or capture again"
        )
    return f"{shown} is not a trace (it begins with {data[:8]!r}): {would}"


def _digest(text: str, arrays: Arrays) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
