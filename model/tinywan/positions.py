"""Absolute positions: where in the clip a token stands, told before the first block.

Rotary positions (rope.py) tell two tokens how far apart they are, and nothing else. In pure noise all
tokens are alike, so a denoiser that has only them cannot know which half of the picture, or which
frame, a token belongs to: trained that way, tinywan's first guess was a mirror-symmetric still. Absolute
positions make it possible to draw what a prompt says of left, right and motion; it has to be learnt all the
same. Wan has rotary positions alone and must find the edges by itself.

Source of the waves: Vaswani et al. 2017, arXiv 1706.03762, section 3.5; along rows and columns they are
cosines of the whole picture, as in a discrete cosine transform, so that other sizes fit.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

_WAVES = 6  # half waves across the height and the width, 1 to 6
_PERIODS = (4.0, 12.0, 36.0, 108.0)  # latent frames
NUM_FEATURES = 2 * _WAVES + 2 * len(_PERIODS)


@lru_cache(maxsize=32)
@torch.inference_mode(mode=False)  # what is remembered must serve training too
def position_features(grid: tuple[int, int, int]) -> Tensor:
    """Smooth functions of frame, row and column.

    Args:
        grid: latent frames, rows and columns (f, h, w) in tokens.

    Returns:
        `[l, NUM_FEATURES]` float32 in [-1, 1], l = f·h·w frame-major.
    """
    frames, height, width = grid
    turns = torch.outer(torch.arange(frames), 2 * math.pi / torch.tensor(_PERIODS))
    halves = math.pi * torch.arange(1, _WAVES + 1)
    rows = torch.outer((torch.arange(height) + 0.5) / height, halves)
    columns = torch.outer((torch.arange(width) + 0.5) / width, halves)
    features = [
        turns.cos()[:, None, None].expand(-1, height, width, -1),
        turns.sin()[:, None, None].expand(-1, height, width, -1),
        rows.cos()[None, :, None].expand(frames, -1, width, -1),
        columns.cos()[None, None, :].expand(frames, height, -1, -1),
    ]
    return torch.cat(features, dim=-1).flatten(0, 2)
