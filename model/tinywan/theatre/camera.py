"""The camera that comes nearer: a clip is enlarged, its labels and its flow with it."""

import numpy as np
import numpy.typing as npt
from PIL import Image

from tinywan.theatre.moves import Zoom


def enlarge(
    frames: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.uint8],
    flow: npt.NDArray[np.complex64],
    zoom: Zoom,
) -> None:
    """Enlarge a clip in place, each frame by its own scale, about one point.

    Args:
        frames: uint8 [F, H, W, 3], interpolated.
        labels: uint8 [F, H, W], taken from the nearest pixel.
        flow: complex64 [F - 1, H, W], dx + i·dy in pixels. What is at p in frame t comes from
            q = c + (p - c) / s_t, moves to q + flow, and is seen at c + (q + flow - c)·s_t+1.
        zoom: scale of each frame, and the point c that stays.
    """
    count, height, width = labels.shape
    x = np.arange(width) + 0.5 - zoom.x
    y = np.arange(height) + 0.5 - zoom.y
    scales = zoom.scale[:, None]
    columns = (x / scales + zoom.x).astype(np.intp)
    rows = (y / scales + zoom.y).astype(np.intp)
    reel = Image.fromarray(frames.reshape(count * height, width, 3))
    enlarged = reel.copy()
    for frame, scale in enumerate(zoom.scale.tolist()):
        if scale == 1.0:
            continue
        left, top = zoom.x * (1 - 1 / scale), zoom.y * (1 - 1 / scale)
        picture = reel.crop((0, frame * height, width, (frame + 1) * height)).resize(
            (width, height),
            Image.Resampling.HAMMING,  # as smooth as it must be, as sharp as it can
            (left, top, left + width / scale, top + height / scale),
        )
        enlarged.paste(picture, (0, frame * height))
        nearest = rows[frame, :, None] * width + columns[frame]
        labels[frame] = labels[frame].take(nearest, mode="clip")
        if frame < len(flow):
            flow[frame] = flow[frame].take(nearest, mode="clip")
    frames[:] = np.asarray(enlarged).reshape(frames.shape)
    following = zoom.scale[1:, None, None].astype(np.float32)
    away = (zoom.scale[1:] / zoom.scale[:-1] - 1)[:, None]
    flow.real *= following
    flow.real += (x * away).astype(np.float32)[:, None, :]
    flow.imag *= following
    flow.imag += (y * away).astype(np.float32)[:, :, None]
