"""Motion: what moves must look the same where it arrives.

The theatre knows the true optical flow of its clips. Bring frame t + 1 back along it and it should
be frame t, wherever nothing gets covered: the difference is the warping error of Lai et al. 2018,
arXiv 1808.00449, section 3.2. As a training loss it is asked of the frames that the VAE draws, and
of those that the denoiser's present guess would decode to. Drops and flakes are left out: a decoder
blurs them, and where each will be cannot be told from noise, so that a guess shows it nowhere or in
several places. Who is asked to keep that steady leaves the rain out. So is what gets covered, and legs
and arms that swing: a decoder smears them over their neighbours, and asked to keep these steady, it
let some who run look as if they walked.
"""

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

ROUNDING = 1e-3  # of a pixel that interpolation takes from elsewhere by rounding alone
BLUR = 3  # pixels around what does not count that do not count either: decoder and guess smear it
SAME_COLOR = 0.1  # of 2: a true clip's colours that differ more along the flow were covered


class Motion(NamedTuple):
    """How the pixels of clips move."""

    flow: Tensor  # [b, F-1, H, W, 2], (dx, dy) in pixels from frame t to t + 1
    visible: Tensor  # bool [b, F-1, H, W], True where a pixel of frame t is seen in t + 1

    def rows(self, chosen: Tensor) -> "Motion":
        """Of some clips of the batch."""
        return Motion(self.flow[chosen], self.visible[chosen])


def warp_back(video: Tensor, flow: Tensor) -> Tensor:
    """Fetch every pixel of frames 0 to F-2 from where it went, between pixels by interpolation.

    Args:
        video: `[b, c, F, H, W]`.
        flow: `[b, F-1, H, W, 2]` in pixels.

    Returns:
        `[b, c, F-1, H, W]`: frame t as frame t + 1 tells it.
    """
    height, width = video.shape[-2:]
    rows = torch.arange(height, device=video.device, dtype=flow.dtype)
    columns = torch.arange(width, device=video.device, dtype=flow.dtype)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    to = flow + torch.stack([x, y], dim=-1)
    size = torch.tensor([width, height], device=flow.device, dtype=flow.dtype)
    places = (2 * to + 1) / size - 1  # pixel centres lie half a pixel inside the edges
    fetched = F.grid_sample(
        rearrange(video[:, :, 1:], "b c F H W -> (b F) c H W"),
        rearrange(places, "b F H W xy -> (b F) H W xy").to(video.dtype),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    return rearrange(fetched, "(b F) c H W -> b c F H W", b=len(video))


def true_motion(
    video: Tensor, flow: Tensor, particles: Tensor | None = None, around: int = BLUR
) -> Motion:
    """The motion of rendered clips, and where it can be followed.

    Args:
        video: `[b, 3, F, H, W]` in [-1, 1].
        flow: `[b, F-1, H, W, 2]`.
        particles: bool `[b, F, H, W]`, drops, flakes and spray, which do not count; None counts everything.
        around: pixels, within which what is near them, or near a colour that does not arrive, does not count either.

    Returns:
        The motion; a pixel is visible where its colour, and all colours around it, arrive where the flow says.
    """
    away = (warp_back(video, flow) - video[:, :, :-1]).abs().amax(1)
    visible = _grown(away > SAME_COLOR, around) == 0
    if particles is not None:
        near = _grown(particles, around)
        arriving = warp_back(near[:, None], flow)[:, 0]
        visible &= (near[:, :-1] == 0) & (arriving < ROUNDING)
    return Motion(flow, visible)


def _grown(mask: Tensor, around: int) -> Tensor:
    """A mask `[b, F, H, W]` and all pixels within `around` of it, as 0 and 1."""
    return F.max_pool2d(mask.float(), 2 * around + 1, stride=1, padding=around)


def warping_error(video: Tensor, motion: Motion) -> Tensor:
    """How much colours change along the flow.

    Args:
        video: `[b, 3, F, H, W]` in [-1, 1], of two frames or more.
        motion: of the clips that the video shows.

    Returns:
        Mean absolute difference over visible pixels and channels; a scalar.
    """
    away = (warp_back(video, motion.flow) - video[:, :, :-1]).abs().mean(1)
    return (away * motion.visible).sum() / motion.visible.sum().clamp(min=1)
