"""Video files: H.264 in MP4, small videos enlarged, with subtitles that can be switched on, or that are drawn into the picture."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wanviz.delivery.subtitles import (
    FRAMES_PER_SECOND,
    Cue,
    as_bytes,
    as_text,
    check_cues,
    check_rate,
    draw_subtitles,
    path_of,
)
from wanviz.errors import OptionError, ReportError
from wanviz.files import write_whole

LARGEST_SIDE = 480  # small videos are enlarged to about this many pixels, each a clear square


def write_video(
    frames: NDArray[Any],
    path: str | os.PathLike[str],
    fps: float = FRAMES_PER_SECOND,
    *,
    subtitles: Sequence[Cue] = (),
    burn: bool = False,
) -> Path:
    """Write a video file.

    Args:
        frames: `[F, H, W, 3]`, uint8, or float in [0, 1]; where both sides are below 241 pixels, every pixel becomes a square of
            several, up to about 480. H.264 wants even sides: an odd one gets its last row or column twice.
        path: ending in .mp4.
        fps: frames per second; tinywan's 8 by default, Wan plays at 16.
        subtitles: a track that players can switch on.
        burn: draw them into the picture instead.

    Returns:
        The path written; an older file is replaced whole.

    Raises:
        OptionError: what is no video, another ending, or subtitles that find no room.
        ReportError: it cannot be written.
    """
    check_rate(fps)
    check_cues(subtitles)
    target = path_of(path)
    if target.suffix != ".mp4":
        raise OptionError(f"a video as {target.suffix!r}: use .mp4")
    if burn and not subtitles:
        raise OptionError("burn=True and no subtitles: nothing to draw")
    shown = as_bytes(frames)
    times = max(1, LARGEST_SIDE // max(shown.shape[1:3]))
    shown = shown.repeat(times, 1).repeat(times, 2)
    odd = [side % 2 for side in shown.shape[1:3]]
    shown = np.pad(shown, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)), "edge")
    if burn:
        shown = draw_subtitles(shown, subtitles, fps)
    with tempfile.TemporaryDirectory(prefix="wanviz-") as folder:
        draft = Path(folder) / "video.mp4"
        _encode(shown, draft, fps)
        if subtitles and not burn:
            draft = _with_track(draft, subtitles)
        return write_whole(target, draft.read_bytes(), "the video", ReportError)


def _encode(frames: NDArray[np.uint8], path: Path, fps: float) -> None:
    height, width = frames.shape[1:3]
    _ffmpeg(
        [
            "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{float(fps):.6f}", "-i", "-",
            "-an", "-c:v", "libx264", "-pix_fmt", "yuv420p", "-crf", "16", "-preset", "fast", "-movflags", "+faststart", path.name,
        ],
        path.parent, np.ascontiguousarray(frames),
    )  # fmt: skip


def _with_track(video: Path, subtitles: Sequence[Cue]) -> Path:
    """The same video with a track of subtitles."""
    texts, both = video.with_name("subtitles.srt"), video.with_name("both.mp4")
    texts.write_text(as_text(subtitles, ".srt"), encoding="utf-8", errors="replace")
    inputs = ["-i", video.name, "-i", texts.name]
    _ffmpeg(
        [*inputs, "-c:v", "copy", "-c:s", "mov_text", "-movflags", "+faststart", both.name],
        video.parent,
    )
    return both


def _ffmpeg(arguments: list[str], folder: Path, given: NDArray[np.uint8] | None = None) -> None:
    """Run ffmpeg in a folder; ReportError where it does not come to its end."""
    import imageio_ffmpeg

    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        run = subprocess.run(
            [program, "-v", "error", "-y", *arguments],
            cwd=folder,
            input=b"" if given is None else given.data,
            capture_output=True,
            check=False,
        )
    except (OSError, RuntimeError) as error:
        raise ReportError(f"ffmpeg cannot be run ({error}): pip install imageio-ffmpeg") from error
    if run.returncode:
        said = run.stderr.decode(errors="replace").strip()[-300:]
        raise ReportError(f"ffmpeg could not write the video: {said or run.returncode}")
