"""Causal 3-D VAE: video in, one latent frame for the first picture and one for every four after it.

The temporal convolutions look only backwards, so latent frame 0 depends on pixel frame 0 alone and
latent frame i on pixel frames up to 4i. Each convolution remembers the last frames it saw, which
makes it possible to encode and decode long clips piece by piece, in constant memory, with the same
result as all at once. Source: Wan, arXiv 2503.20314, section 4.1 (causal convolutions with a
feature cache); VAE: arXiv 1312.6114.
"""

import math
from dataclasses import dataclass
from itertools import groupby
from numbers import Integral
from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from tinywan.errors import ConfigError

Cache = dict[nn.Module, Tensor]  # what each temporal layer must remember of earlier frames


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of the VAE; stride is (4, 8, 8): a 4x4 patch, then one more halving in space."""

    patch: ClassVar[int] = 4  # pixels folded into channels before the first layer
    latent_channels: int = 32  # Wan2.1 has 16, Wan2.2's 5B model 48
    encoder_widths: tuple[int, int] = (64, 128)  # at stride 4, at stride 8
    decoder_widths: tuple[int, int] = (96, 160)  # at stride 4, at stride 8
    encoder_depth: int = 2  # residual blocks at stride 8 with all time folded
    decoder_depth: int = 2  # residual blocks per level of the decoder
    latents_mean: tuple[float, ...] = (0.0,) * 32  # per channel, measured after training
    latents_std: tuple[float, ...] = (1.0,) * 32

    def __post_init__(self) -> None:
        if not len(self.latents_mean) == len(self.latents_std) == self.latent_channels:
            raise ConfigError(
                f"latents_mean and latents_std need one number for each of the "
                f"{self.latent_channels} latent channels; found {len(self.latents_mean)} "
                f"and {len(self.latents_std)}"
            )


class CausalConv(nn.Module):
    """3-D convolution that sees no future frame.

    The weight is kept as a matrix `[out, in·kt·kh·kw]`, so that the optimiser can treat it as one.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        kernel: (frames, rows, columns), odd.
        stride: (frames, rows, columns); 1 + 2k frames become 1 + k at stride 2.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: tuple[int, int, int] = (1, 1, 1),
        stride: tuple[int, int, int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.shape = (channels_out, channels_in, *kernel)
        self.kernel, self.stride = kernel, stride
        fan_in = channels_in * math.prod(kernel)
        self.weight = nn.Parameter(torch.randn(channels_out, fan_in) / math.sqrt(fan_in))
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def grow_from(self, other: "CausalConv") -> None:
        """Take over the weights of one with as many channels, or fewer: of those on top, none says anything yet."""
        rows, columns = other.shape[:2]
        with torch.no_grad():
            self.bias.zero_()[:rows] = other.bias
            grown = self.weight.normal_(std=self.weight.shape[1] ** -0.5).view(self.shape)
            grown[rows:] = 0
            grown[:rows, :columns] = other.weight.view(other.shape)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        """[b c f h w] -> [b c' f' h' w']."""
        kt, kh, kw = self.kernel
        if kt > 1:
            past = cache.get(self)
            if past is None:  # nothing came before: repeat the first frame
                past = x[:, :, :1].expand(-1, -1, kt - 1, -1, -1)
            x = torch.cat([past, x], dim=2)
            cache[self] = x[:, :, x.shape[2] - (kt - self.stride[0]) :]
        weight = self.weight.view(self.shape)
        return F.conv3d(x, weight, self.bias, self.stride, padding=(0, kh // 2, kw // 2))


class ChannelNorm(nn.Module):
    """RMS norm over the channels of one place at one time, so that no frame leaks into another."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def grow_from(self, other: "ChannelNorm") -> None:
        """Take over the weights of one of as many channels, or fewer: those on top are 0, which lowers the mean."""
        known = len(other.weight)
        with torch.no_grad():
            self.weight.fill_(1)[:known] = other.weight * math.sqrt(known / len(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        """[b c f h w] -> [b c f h w]."""
        scale = torch.rsqrt(x.float().square().mean(1, keepdim=True) + 1e-6)
        return (x.float() * scale * self.weight.view(-1, 1, 1, 1)).to(x.dtype)


class ResBlock(nn.Module):
    """Look around in space, then back in time, and add what was found."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels)
        self.space = CausalConv(channels, channels, (1, 3, 3))
        self.time = CausalConv(channels, channels, (3, 1, 1))
        nn.init.zeros_(self.time.weight)

    def grow_from(self, other: "ResBlock") -> None:
        """Take over the weights of one of as many channels, or fewer."""
        self.norm.grow_from(other.norm)
        self.space.grow_from(other.space)
        self.time.grow_from(other.time)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        """[b c f h w] -> [b c f h w]."""
        h = F.silu(self.space(F.silu(self.norm(x)), cache))
        return x + self.time(h, cache)


class TimeUp(nn.Module):
    """Double the frame rate: every frame becomes two, but the very first stays one."""

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, 2 * channels_out, (3, 1, 1))

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        """[b c f h w] -> [b c' 2f h w]."""
        first = self.conv not in cache
        x = rearrange(self.conv(x, cache), "b (two c) f h w -> b c (f two) h w", two=2)
        return x[:, :, 1:] if first else x


class SpaceUp(nn.Module):
    """Double rows and columns, each place from its own channels."""

    def __init__(self, channels: int, channels_out: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, 4 * channels_out, (1, 1, 1))

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        """[b c f h w] -> [b c' f 2h 2w]."""
        return rearrange(self.conv(x, cache), "b (c p q) f h w -> b c f (h p) (w q)", p=2, q=2)


class _Half(nn.Module):
    """What encoder and decoder share: layers, and a head behind a norm."""

    layers: nn.ModuleList
    norm: ChannelNorm
    head: CausalConv

    def grow_from(self, other: "_Half") -> None:
        """Take over the weights of another one that is as deep and wide, or less; of decoders, as wide.

        Residual blocks that it lacks stand behind those of their level and begin without effect, channels that it
        lacks begin silent, so that both answer alike. Source: Net2Net, arXiv 1511.05641, section 2.
        """
        theirs, mine = (
            [list(layers) for _, layers in groupby(half.layers, key=type)] for half in (other, self)
        )
        for few, many in zip(theirs, mine, strict=True):
            for old, new in zip(few, many, strict=False):
                if isinstance(new, CausalConv) and isinstance(old, CausalConv):
                    new.grow_from(old)
                elif isinstance(new, ResBlock) and isinstance(old, ResBlock):
                    new.grow_from(old)
                else:
                    new.load_state_dict(old.state_dict())
            for new in many[len(few) :]:
                assert isinstance(new, ResBlock)
                nn.init.zeros_(new.time.weight)
                nn.init.zeros_(new.time.bias)
        self.norm.grow_from(other.norm)
        self.head.grow_from(other.head)


class Encoder(_Half):
    """Frames to the mean and log-variance of the latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        fine, coarse = config.encoder_widths
        self.layers = nn.ModuleList(
            [
                CausalConv(3 * config.patch**2, fine, (1, 3, 3)),
                ResBlock(fine),
                CausalConv(fine, coarse, (3, 3, 3), (2, 2, 2)),
                ResBlock(coarse),
                CausalConv(coarse, coarse, (3, 1, 1), (2, 1, 1)),
                *(ResBlock(coarse) for _ in range(config.encoder_depth)),
            ]
        )
        self.norm = ChannelNorm(coarse)
        self.head = CausalConv(coarse, 2 * config.latent_channels)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        """[b 3·p² F H/p W/p] -> [b 2c f h w]."""
        for layer in self.layers:
            x = layer(x, cache)
        return self.head(F.silu(self.norm(x)), cache)


class Decoder(_Half):
    """Latents to frames."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        fine, coarse = config.decoder_widths
        depth = config.decoder_depth
        self.layers = nn.ModuleList(
            [
                CausalConv(config.latent_channels, coarse, (1, 3, 3)),
                *(ResBlock(coarse) for _ in range(depth)),
                TimeUp(coarse, coarse),
                *(ResBlock(coarse) for _ in range(depth)),
                TimeUp(coarse, coarse),
                SpaceUp(coarse, fine),
                *(ResBlock(fine) for _ in range(depth)),
            ]
        )
        self.norm = ChannelNorm(fine)
        self.head = CausalConv(fine, 3 * config.patch**2, (1, 3, 3))

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        """[b c f h w] -> [b 3·p² F H/p W/p]."""
        for layer in self.layers:
            x = layer(x, cache)
        return self.head(F.silu(self.norm(x)), cache)


class CausalVAE(nn.Module):
    """Encoder and decoder; the latents that others see have mean 0 and at most variance 1."""

    stride = (4, 8, 8)  # pixel frames, rows and columns per latent one

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        shape = (1, -1, 1, 1, 1)
        mean, std = torch.tensor(config.latents_mean), torch.tensor(config.latents_std)
        self.register_buffer("mean", mean.view(shape), persistent=False)
        self.register_buffer("std", std.view(shape), persistent=False)
        self.mean: Tensor
        self.std: Tensor

    def posterior(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the unnormalised latents, for training.

        Args:
            video: `[b, 3, F, H, W]` in [-1, 1].

        Returns:
            Two tensors `[b, c, f, h, w]`.
        """
        return self._encode(video, {}).chunk(2, dim=1)  # type: ignore[return-value]

    def _encode(self, video: Tensor, cache: Cache) -> Tensor:
        p = self.config.patch
        folded = rearrange(video, "b c F (h p) (w q) -> b (c p q) F h w", p=p, q=p)
        return self.encoder(folded, cache)

    def _decode(self, latents: Tensor, cache: Cache) -> Tensor:
        p = self.config.patch
        folded = self.decoder(latents, cache)
        return rearrange(folded, "b (c p q) F h w -> b c F (h p) (w q)", p=p, q=p)

    def reconstruct(self, unnormalised: Tensor) -> Tensor:
        """Unnormalised latents `[b, c, f, h, w]`, as `posterior` gives them, to video."""
        return self._decode(unnormalised, {})

    def encode(self, video: Tensor, chunk: int | None = None) -> Tensor:
        """Video to normalised latents (the mean of the posterior).

        Args:
            video: `[b, 3, F, H, W]` in [-1, 1]; F = 1 + 4k, H and W multiples of 8.
            chunk: latent frames to work on at a time; None takes all at once.

        Returns:
            `[b, c, f, h, w]`, f = (F - 1) / 4 + 1, mean 0 and at most variance 1 over the training world.

        Raises:
            ConfigError: for sizes that do not fit the stride, or a chunk below 1.
        """
        frames, height, width = video.shape[2:]
        check_video_size(frames, height, width)
        _check_chunk(chunk)
        cache: Cache = {}
        sizes = [1, *[4] * ((frames - 1) // 4)]
        parts = [video] if chunk is None else video.split(_grouped(sizes, chunk), dim=2)
        mean = torch.cat([self._encode(part, cache).chunk(2, dim=1)[0] for part in parts], dim=2)
        return (mean - self.mean) / self.std

    def refine(self, video: Tensor, latents: Tensor, steps: int = 10, lr: float = 0.03) -> Tensor:
        """Latents that decode to a video more exactly: some steps of gradient descent through the decoder.

        The encoder guesses in one pass for every video; this looks for the best latents of one, and lets each
        latent frame know of later pixels, which the encoder does not. Source: semi-amortised
        inference, Kim et al. 2018, arXiv 1802.02550, section 3. Takes as long as training on the clip for as many
        steps, and as much memory.

        Args:
            video: `[b, 3, F, H, W]` in [-1, 1].
            latents: `[b, c, f, h, w]` from `encode`.
            steps: of Adam, 1 or more.
            lr: its rate, in units of normalised latents.

        Returns:
            `[b, c, f, h, w]`, without gradients; the weights are untouched.

        Raises:
            ConfigError: fewer than one step.
        """
        if steps < 1:
            raise ConfigError(f"steps={steps} refine nothing: use 1 or more, e.g. 10")
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        for weight in weights:
            weight.requires_grad_(False)
        try:
            with torch.inference_mode(False), torch.enable_grad():
                goal, found = video.clone(), latents.detach().clone().requires_grad_()
                optimizer = torch.optim.Adam([found], lr=lr, betas=(0.8, 0.95))
                for _ in range(steps):
                    optimizer.zero_grad()
                    (self.decode(found, chunk=None) - goal).square().mean().backward()
                    optimizer.step()
        finally:
            for weight in weights:
                weight.requires_grad_(True)
        return found.detach()

    def decode(self, latents: Tensor, chunk: int | None = 4) -> Tensor:
        """Normalised latents to video.

        Args:
            latents: `[b, c, f, h, w]`.
            chunk: latent frames to work on at a time, which bounds the memory; None takes all.

        Returns:
            `[b, 3, F, H, W]`, F = 1 + 4(f - 1), about in [-1, 1], not clipped.

        Raises:
            ConfigError: for a chunk below 1.
        """
        _check_chunk(chunk)
        cache: Cache = {}
        x = latents * self.std + self.mean
        parts = [x] if chunk is None else x.split(chunk, dim=2)
        return torch.cat([self._decode(part, cache) for part in parts], dim=2)


def _check_chunk(chunk: int | None) -> None:
    if chunk is not None and not (isinstance(chunk, Integral) and chunk >= 1):
        raise ConfigError(
            f"chunk={chunk} cuts nothing: use 1 latent frame or more, or None for all at once"
        )


def _grouped(sizes: list[int], chunk: int) -> list[int]:
    return [sum(sizes[i : i + chunk]) for i in range(0, len(sizes), chunk)]


def check_video_size(num_frames: int, height: int, width: int) -> None:
    """Refuse what the VAE's stride (4, 8, 8) cannot hold.

    Args:
        num_frames: pixel frames.
        height: pixel rows.
        width: pixel columns.

    Raises:
        ConfigError: naming the nearest sizes that fit.
    """
    if num_frames < 1 or num_frames % 4 != 1:
        below = max(1, (num_frames - 1) // 4 * 4 + 1)
        raise ConfigError(
            f"num_frames={num_frames} does not fit the VAE: use 1 + 4k frames, "
            f"e.g. {below} or {below + 4}"
        )
    for name, size in (("height", height), ("width", width)):
        if size < 8 or size % 8:
            below = max(8, size // 8 * 8)
            raise ConfigError(
                f"{name}={size} does not fit the VAE: use a multiple of 8, "
                f"e.g. {below} or {below + 8}"
            )
