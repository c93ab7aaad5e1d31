"""Writing a file so that a reader sees the old one or the whole new one, never a part."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from wanviz.errors import EncodingError, ReportError, TraceFileError


def write_whole(
    path: str | os.PathLike[str],
    content: bytes,
    what: str,
    error: type[TraceFileError] | type[ReportError] | type[EncodingError],
) -> Path:
    """Write beside the target, then take its place in one rename.

    Args:
        path: the file to write.
        content: all of it.
        what: the content's name in a sentence, e.g. "the trace".
        error: to raise where it cannot be written.

    Returns:
        The path written.

    Raises:
        WanvizError: of the given kind; the path names no file, or its folder is missing, unwritable
            or full.
    """
    target = Path(path)
    if not target.name:
        raise error(f"cannot write {what} to {str(path)!r}, which names no file: name one")
    draft = target.with_name(f".{target.name[:64]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        try:
            with draft.open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as problem:
        raise error(
            f"cannot write {what} to {str(target)!r} ({problem.strerror or problem}): "
            "name a file in a folder that exists, is writable and has room"
        ) from problem
    return target
