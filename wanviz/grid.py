"""Where a video token lies: latent frames, rows and columns, and the pixel frames they stand for.

The causal video VAE (Wan, arXiv 2503.20314, section 4.1) codes pixel frame 0 alone and then
every four pixel frames together: latent frame i > 0 stands for pixel frames 4i-3 .. 4i.
"""

from __future__ import annotations

from dataclasses import dataclass

from wanviz.errors import OptionError

TEMPORAL_STRIDE = 4


@dataclass(frozen=True)
class Grid:
    """The video tokens of one generation, frame-major: l = f·h·w."""

    frames: int  # f, latent frames
    rows: int  # h, token rows
    columns: int  # w, token columns

    @property
    def shape(self) -> tuple[int, int, int]:
        """(f, h, w)."""
        return (self.frames, self.rows, self.columns)

    @property
    def tokens(self) -> int:
        """l, the number of video tokens."""
        return self.frames * self.rows * self.columns

    @property
    def rows_and_columns(self) -> int:
        """h·w, the tokens of one latent frame."""
        return self.rows * self.columns


def token_grid(
    num_frames: int,
    height: int,
    width: int,
    *,
    vae_stride: tuple[int, int, int],
    patch_size: tuple[int, int, int],
) -> Grid:
    """The token grid of a video of this size.

    Args:
        num_frames: pixel frames F, 1 + 4k.
        height: pixel rows H.
        width: pixel columns W.
        vae_stride: pixels per latent along (frames, rows, columns).
        patch_size: latents per token along (frames, rows, columns).

    Returns:
        The grid of video tokens.

    Raises:
        OptionError: a side is not a whole number of tokens.
    """
    stride = vae_stride[0] * patch_size[0]
    if num_frames < 1 or (num_frames - 1) % stride:
        below = max(0, (num_frames - 1) // stride) * stride + 1
        raise OptionError(
            f"num_frames={num_frames} does not fit the VAE: use 1 + {stride}k frames, "
            f"e.g. {below} or {below + stride}"
        )
    for name, size, step in (
        ("height", height, vae_stride[1] * patch_size[1]),
        ("width", width, vae_stride[2] * patch_size[2]),
    ):
        if size < step or size % step:
            below = max(1, size // step) * step
            raise OptionError(
                f"{name}={size} is not a multiple of {step} pixels: use {below} or {below + step}"
            )
    return Grid(
        frames=1 + (num_frames - 1) // stride,
        rows=height // (vae_stride[1] * patch_size[1]),
        columns=width // (vae_stride[2] * patch_size[2]),
    )


def pixel_frames(latent_frame: int) -> range:
    """The pixel frames that one latent frame stands for: 0 -> 0, i -> 4i-3 .. 4i."""
    if latent_frame < 0:
        raise OptionError(f"latent_frame={latent_frame} is negative: latent frames count from 0")
    if latent_frame == 0:
        return range(1)
    return range(TEMPORAL_STRIDE * (latent_frame - 1) + 1, TEMPORAL_STRIDE * latent_frame + 1)


def latent_frame(pixel_frame: int) -> int:
    """The latent frame in which one pixel frame lies."""
    if pixel_frame < 0:
        raise OptionError(f"pixel_frame={pixel_frame} is negative: pixel frames count from 0")
    return -(-pixel_frame // TEMPORAL_STRIDE)


def pixel_frame_label(frame: int) -> str:
    """The pixel frames of a latent frame as people read them: "0", "1-4", "5-8"."""
    span = pixel_frames(frame)
    return str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}"


LINK_SIDE = 4  # rows and columns of the places of each frame whose looks are followed


def link_places(grid: Grid) -> list[tuple[int, int]]:
    """(row, column) of the places of a frame that are followed: the centres of equal parts, the same in every frame."""
    lines = [
        [int((i + 0.5) * size / parts) for i in range(parts)]
        for size in (grid.rows, grid.columns)
        for parts in (min(size, LINK_SIDE),)
    ]
    return [(row, column) for row in lines[0] for column in lines[1]]
