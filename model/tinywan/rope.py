"""Rotary positions in three dimensions: how far apart two tokens are in frames, rows and columns.

Source: RoFormer, arXiv 2104.09864; the split of the head width over the three axes is Wan's.
"""

from functools import lru_cache

import torch
from torch import Tensor


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Split a head's width over (frame, row, column); 128 gives (44, 42, 42), as in Wan.

    Args:
        head_dim: width of one attention head, even.

    Returns:
        Three even widths that sum to `head_dim`.
    """
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


@lru_cache(maxsize=32)
@torch.inference_mode(mode=False)  # what is remembered must serve training too
def rotary_table(grid: tuple[int, int, int], head_dim: int, theta: float = 1e4) -> Tensor:
    """Cosines and sines of every token's rotation angles.

    Args:
        grid: latent frames, rows and columns (f, h, w) in tokens.
        head_dim: width of one attention head.
        theta: base of the geometric series of wavelengths.

    Returns:
        `[2, l, head_dim / 2]` float32, cosine first, l = f·h·w frame-major.
    """
    f, h, w = grid
    angles = []
    for size, width in zip(grid, axis_widths(head_dim), strict=True):
        exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
        positions = torch.arange(size, dtype=torch.float64)
        angles.append(torch.outer(positions, theta**-exponents))  # [size, width / 2]
    frame, row, column = angles
    table = torch.cat(
        [
            frame[:, None, None].expand(f, h, w, -1),
            row[None, :, None].expand(f, h, w, -1),
            column[None, None, :].expand(f, h, w, -1),
        ],
        dim=-1,
    ).reshape(f * h * w, head_dim // 2)
    return torch.stack([table.cos(), table.sin()]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each pair of neighbouring features by its token's angle.

    Args:
        x: `[b, n, l, d]` queries or keys.
        table: from `rotary_table`, on x's device.

    Returns:
        `[b, n, l, d]` in x's dtype.
    """
    cos, sin = table
    if x.device.type == "cpu" and not torch.compiler.is_compiling():  # twice as fast, same bits
        pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))  # b n l d/2
        turned = torch.view_as_real(pairs * torch.complex(cos, sin))
        return turned.flatten(-2).to(x.dtype)
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # [b, n, l, d / 2] each
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
