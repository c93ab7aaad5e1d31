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
    check_rate,
    draw_subtitles,
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
            several, up to about 480.
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
    target = Path(path)
    if target.suffix != ".mp4":
        raise OptionError(f"a video as {target.suffix!r}: use .mp4")
    if burn and not subtitles:
        raise OptionError("burn=True and no subtitles: nothing to draw")
    shown = as_bytes(frames)
    times = max(1, LARGEST_SIDE // max(shown.shape[1:3]))
    shown = shown.repeat(times, 1).repeat(times, 2)
    if burn:
        shown = draw_subtitles(shown, subtitles, fps)
    with tempfile.TemporaryDirectory(prefix="wanviz-") as folder:
        draft = Path(folder) / "video.mp4"
        _encode(shown, draft, fps)
        if subtitles and not burn:
            draft = _with_track(draft, subtitles)
        return write_whole(target, draft.read_bytes(), "the video", ReportError)


def _encode(frames: NDArray[np.uint8], path: Path, fps: float) -> None:
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    writer = imageio_ffmpeg.write_frames(
        str(path),
        (width, height),
        fps=fps,
        codec="libx264",
        macro_block_size=2,
        output_params=["-crf", "16", "-preset", "fast", "-movflags", "+faststart"],
    )
    writer.send(None)
    try:
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()


def _with_track(video: Path, subtitles: Sequence[Cue]) -> Path:
    """The same video with a track of subtitles."""
    import imageio_ffmpeg

    texts, both = video.with_name("subtitles.srt"), video.with_name("both.mp4")
    texts.write_text(as_text(subtitles, ".srt"), encoding="utf-8", errors="replace")
    run = subprocess.run(
        [
            imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", video.name, "-i", texts.name, "-c:v", "copy",
            "-c:s", "mov_text", "-movflags", "+faststart", both.name,
        ],
        cwd=video.parent, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    if run.returncode:
        raise ReportError(f"ffmpeg could not add the subtitles: {run.stderr.strip()[-300:]}")
    return both
