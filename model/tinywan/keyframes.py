"""Keyframes: pictures that a clip has to pass through.

Wan's image-to-video models read, beside the noisy latents, a mask of the frames that are given and
the latents of what is given (arXiv 2503.20314, section 5.1). So does this one: 4 channels of mask,
one for each pixel frame that a latent frame stands for, and the latents of each keyframe. Here a
keyframe is encoded as a picture of its own, where Wan encodes a clip that is grey elsewhere: a
picture needs no past, and its latents do not depend on how many frames came before it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from einops import rearrange
from numpy.typing import ArrayLike
from torch import Tensor

from tinywan.errors import ConfigError
from tinywan.vae import CausalVAE

Keyframes = Mapping[int, ArrayLike]  # pixel frame -> picture, H W 3


def latent_place(frame: int, stride: int = CausalVAE.stride[0]) -> tuple[int, int]:
    """Where a pixel frame stands in time.

    Args:
        frame: pixel frame, from 0.
        stride: pixel frames per latent frame.

    Returns:
        Its latent frame, and its place among the `stride` pixel frames of that one; pixel frame 0
        is alone in latent frame 0 and counts as its last.
    """
    return (frame + stride - 1) // stride, (frame + stride - 1) % stride


def as_pixels(picture: Any, height: int, width: int, frame: int) -> Tensor:
    """Read a picture in any of the usual forms.

    Args:
        picture: PIL image or array `[H, W, 3]`; uint8 in 0..255 or float in [0, 1].
        height: in pixels that it must have.
        width: in pixels that it must have.
        frame: that it is for, to be named in errors.

    Returns:
        float32 `[3, H, W]` in [-1, 1].

    Raises:
        ConfigError: where it is no such picture.
    """
    values = np.asarray(picture)
    if values.shape != (height, width, 3):
        raise ConfigError(
            f"the keyframe for frame {frame} is shaped {values.shape}; a clip of {height} x {width} "
            f"pixels takes a picture of [{height}, {width}, 3]: resize it, or ask for its size "
            "with height= and width="
        )
    if values.dtype == np.uint8:
        values = values.astype(np.float32) / 255
    if not np.issubdtype(values.dtype, np.floating) or not (
        np.isfinite(values).all() and values.min() >= -1e-3 and values.max() <= 1 + 1e-3
    ):
        raise ConfigError(
            f"the keyframe for frame {frame} has {values.dtype} values from {values.min()} to "
            f"{values.max()}: use uint8 in 0..255 or floats in 0..1"
        )
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1) * 2 - 1


def encode_keyframes(
    vae: CausalVAE, keyframes: Keyframes, num_frames: int, height: int, width: int
) -> Tensor:
    """What the denoiser reads of the keyframes.

    Args:
        vae: that made the latents.
        keyframes: by pixel frame; -1 is the last one.
        num_frames: pixel frames of the clip, 1 + 4k.
        height: of the clip in pixels.
        width: of the clip in pixels.

    Returns:
        `[1, 4 + c, f, h, w]`: for each pixel frame of a latent frame 1 where it is given, then the
        latents of the picture; zero in latent frames without a keyframe.

    Raises:
        ConfigError: for a frame outside the clip, two in one latent frame, or a bad picture.
    """
    places: dict[int, int] = {}  # latent frame -> the pixel frame that was given for it
    pictures: dict[tuple[int, int], Tensor] = {}
    for asked, picture in keyframes.items():
        frame = asked + num_frames if asked < 0 else asked
        if not 0 <= frame < num_frames:
            raise ConfigError(
                f"there is a keyframe for frame {asked}, and the clip has frames 0 to "
                f"{num_frames - 1}"
            )
        latent, slot = latent_place(frame)
        if latent in places:
            raise ConfigError(
                f"keyframes {places[latent]} and {frame} fall into one latent frame, which has "
                "room for one: keep them 4 frames apart"
            )
        places[latent] = frame
        pictures[latent, slot] = as_pixels(picture, height, width, frame)
    return place_keyframes(vae, [pictures], (num_frames - 1) // vae.stride[0] + 1, height, width)


@torch.no_grad()
def place_keyframes(
    vae: CausalVAE,
    clips: Sequence[Mapping[tuple[int, int], Tensor]],
    latent_frames: int,
    height: int,
    width: int,
) -> Tensor:
    """Encode pictures, all at once, and put them where they belong.

    Args:
        vae: that made the latents.
        clips: for each the pictures `[3, H, W]` in [-1, 1], by latent frame and place in it (see
            `latent_place`).
        latent_frames: of a clip.
        height: of a clip in pixels.
        width: of a clip in pixels.

    Returns:
        `[b, 4 + c, f, h, w]`.
    """
    stride_f, stride_h, stride_w = vae.stride
    device = vae.mean.device
    condition = torch.zeros(
        len(clips),
        stride_f + vae.config.latent_channels,
        latent_frames,
        height // stride_h,
        width // stride_w,
        device=device,
    )
    places = [(b, *place) for b, pictures in enumerate(clips) for place in pictures]
    if places:
        pictures = [picture for pictures in clips for picture in pictures.values()]
        encoded = vae.encode(torch.stack(pictures)[:, :, None].to(device))[:, :, 0]  # k c h w
        clip, latent, slot = torch.tensor(places, device=device).T
        condition[clip, slot, latent] = 1
        condition[:, stride_f:][clip, :, latent] = encoded.to(condition.dtype)
    return condition


def guidance_by_frame(scale: float, condition: Tensor) -> Tensor:
    """Guidance for clips with keyframes: none in latent frames of which a pixel frame is given.

    Guidance goes beyond what the model expects, to where the prompt counts for more. What was given is known, and
    the words cannot add to it: going beyond drives the clip away from the picture. The other pixel frames of the
    same latent frame, up to three, go without guidance, too. Stable Video Diffusion also lets guidance differ from
    frame to frame: it rises from the given one on (arXiv 2311.15127).

    Args:
        scale: of the frames that are free, 1 or more.
        condition: `[b, 4 + c, f, h, w]` from `encode_keyframes`.

    Returns:
        `[b, 1, f, 1, 1]`, 1 or `scale`.
    """
    given = condition[:, : CausalVAE.stride[0]].amax((1, 3, 4))  # b f
    return rearrange(1 + (scale - 1) * (1 - given), "b f -> b 1 f 1 1")


def random_frames(num_frames: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Which frames of a training clip are given: none, first, last, both ends, any, or an overlap.

    Args:
        num_frames: pixel frames of the clip.
        rng: source of randomness.

    Returns:
        Pixel frames, no two in one latent frame; half of the time none, and none for a picture.
    """
    last = num_frames - 1
    if last < 8 or rng.random() < 0.5:
        return ()
    kind = rng.random()
    if kind < 0.35:
        return (0,)
    if kind < 0.5:
        return (last,)
    if kind < 0.65:
        return (0, last)
    if kind < 0.85:
        return (0, 4)  # as `stream` overlaps its windows
    latents = rng.choice(last // 4, size=int(rng.integers(1, 3)), replace=False)
    return tuple(int(4 * i + rng.integers(1, 5)) for i in latents)
