"""The denoiser: a diffusion transformer over video tokens that reads the prompt in every block.

Read bottom-up: `Modulation`, one `Block`, then `DiT`. Source: DiT, arXiv 2212.09748; Wan, arXiv
2503.20314, section 4.2. Configured with full attention, a dense feed-forward and no absolute positions, this
file is Wan's transformer; factorised, with token experts, it is small enough for a laptop.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from tinywan.attention import Attention, Grid
from tinywan.errors import ConfigError
from tinywan.moe import FeedForward, MixtureOfExperts, Router
from tinywan.norms import LayerNorm
from tinywan.positions import NUM_FEATURES, position_features
from tinywan.rope import rotary_table


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the denoiser; the defaults are those of `tiny`."""

    dim: int = 192  # width of a video token
    num_heads: int = 6
    num_layers: int = 6
    ffn_dim: int = 768  # of a dense feed-forward; unused with token experts
    in_channels: int = 32  # of the latents, in and out
    condition_channels: int = 0  # read beside the latents: mask and latents of keyframes
    patch_size: Grid = (1, 1, 1)  # latent frames, rows and columns per token
    text_dim: int = 192  # width of prompt_embeds
    text_len: int = 96  # prompt tokens with padding
    freq_dim: int = 256  # of the sinusoidal timestep
    eps: float = 1e-6
    attention: Literal["factorised", "full"] = "factorised"
    spatial_head_dim: int = 16  # factorised, attention runs twice: together they are about as wide
    temporal_head_dim: int = 16  # as one of width dim
    spatial_windows: tuple[int | None, ...] = (2, 3, 4, 6, None, None)  # radius per layer
    temporal_windows: tuple[int | None, ...] = (1, 1, 2, 2, None, None)  # None sees everything
    absolute_positions: bool = True  # beside rotary ones, which are relative and all that Wan has
    mask_padding: bool = True  # prompts are short here; Wan attends to its padding as well
    num_experts: int = 10  # token experts per layer; 0 is a dense feed-forward
    top_k: int = 3  # token experts that work on one token
    expert_dim: int = 256  # 4/3·dim: three together are as wide as a dense 4·dim
    router: Router = "plain"  # "text" also sees what a token read in the prompt

    def __post_init__(self) -> None:
        for name, least in (
            ("dim", 1), ("num_heads", 1), ("num_layers", 1), ("in_channels", 1), ("condition_channels", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least {least}")
        if self.dim % self.num_heads or self.head_dim % 2:
            raise ConfigError(
                f"dim={self.dim} cannot be split into num_heads={self.num_heads} heads of even "
                f"width: use a multiple of {2 * self.num_heads}"
            )
        if self.attention not in ("factorised", "full"):
            raise ConfigError(f"attention={self.attention!r}: use 'factorised' or 'full'")
        if self.attention == "factorised":
            for name, least in (("spatial_head_dim", 6), ("temporal_head_dim", 2)):
                if (width := getattr(self, name)) < least or width % 2:
                    raise ConfigError(
                        f"{name}={width} has no room for rotary positions, which turn pairs: use an even "
                        f"number from {least} on"
                    )
            for name in ("spatial_windows", "temporal_windows"):
                windows: tuple[int | None, ...] = getattr(self, name)
                if len(windows) != self.num_layers:
                    raise ConfigError(
                        f"{name} names {len(windows)} layers and num_layers is "
                        f"{self.num_layers}: give one radius (or None) per layer"
                    )
                for radius in windows:
                    if radius is not None and radius < 0:
                        raise ConfigError(
                            f"{name} names {radius}: use a radius of 0 tokens or more, or None for all of them"
                        )
        if self.router not in ("plain", "text"):
            raise ConfigError(f"router={self.router!r}: use 'plain' or 'text'")
        if self.num_experts and not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(
                f"top_k={self.top_k} of num_experts={self.num_experts}: use 1..{self.num_experts}"
            )

    @property
    def head_dim(self) -> int:
        """Width of a head of cross-attention, and of full self-attention."""
        return self.dim // self.num_heads

    @property
    def self_attention_widths(self) -> dict[str, int]:
        """Width of a head of each self-attention of a block, by its name."""
        if self.attention == "full":
            return {"self_attn": self.head_dim}
        return {"spatial_attn": self.spatial_head_dim, "temporal_attn": self.temporal_head_dim}


CHOOSY = 2.0  # initial query weight towards the words: from an even mixture choosing is not learnt


class Context(NamedTuple):
    """A prompt as the blocks' cross-attention reads it: the same at every denoising step."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]  # per layer, each [b n p d]
    attended: Tensor | None  # bool [b p], False on padding; None attends to all

    def rows(self, which: slice) -> "Context":
        """Of some prompts of the batch alone."""
        attended = None if self.attended is None else self.attended[which]
        return Context(tuple((k[which], v[which]) for k, v in self.keys_values), attended)


class Modulation(NamedTuple):
    """How the noise level steers one sublayer; each `[b, 1, c]` or `[1, 1, c]`, in float32."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def into(self, norm: LayerNorm, x: Tensor) -> Tensor:
        """What goes into the sublayer: normalised, scaled and shifted.

        Args:
            norm: in front of the sublayer.
            x: `[b, l, c]` the residual stream.

        Returns:
            `[b, l, c]` in the dtype of x.
        """
        normed: Tensor = norm(x, self.scale, self.shift)
        return normed

    def add(self, x: Tensor, answer: Tensor) -> Tensor:
        """Add the sublayer's answer to the residual stream, as much of it as the gate lets through.

        Args:
            x: `[b, l, c]` the residual stream.
            answer: `[b, l, c]` of the sublayer.

        Returns:
            `[b, l, c]` in the dtype of x; the sum is done in float32.
        """
        return torch.addcmul(x.float(), self.gate, answer.float()).to(x.dtype)


class Block(nn.Module):
    """Look around, look at the words, think; each step added to the residual stream.

    Args:
        config: sizes.
        layer: index of this block, which selects its windows.
    """

    def __init__(self, config: DiTConfig, layer: int) -> None:
        super().__init__()
        dim, heads, eps = config.dim, config.num_heads, config.eps
        self.norm1 = LayerNorm(dim, eps, elementwise_affine=False)
        if config.attention == "full":
            self.self_attn = Attention(dim, heads, "full", eps=eps)
            self.looks: tuple[str, ...] = ("self_attn",)
        else:
            self.spatial_attn = Attention(
                dim, heads, "spatial", config.spatial_windows[layer], eps, config.spatial_head_dim
            )
            self.temporal_attn = Attention(
                dim,
                heads,
                "temporal",
                config.temporal_windows[layer],
                eps,
                config.temporal_head_dim,
            )
            self.looks = ("spatial_attn", "temporal_attn")
        self.norm2 = LayerNorm(dim, eps, elementwise_affine=True)
        self.cross_attn = Attention(dim, heads, "cross", eps=eps)
        nn.init.constant_(self.cross_attn.norm_q.weight, CHOOSY)
        self.norm3 = LayerNorm(dim, eps, elementwise_affine=False)
        if config.num_experts:
            self.moe = MixtureOfExperts(
                dim, config.expert_dim, config.num_experts, config.top_k, config.router
            )
        else:
            self.ffn = FeedForward(dim, config.ffn_dim)
        self.num_sublayers = len(self.looks) + 1  # modulated ones; cross-attention is not
        self.scale_shift_table = nn.Parameter(
            torch.randn(1, 3 * self.num_sublayers, dim) / math.sqrt(dim)
        )
        self.resid_pre, self.resid_post = nn.Identity(), nn.Identity()  # taps

    def forward(
        self,
        x: Tensor,
        keys_values: tuple[Tensor, Tensor],
        attended: Tensor | None,
        time: Tensor,
        rotary: dict[str, Tensor],
        grid: Grid,
    ) -> Tensor:
        """One round of attention and thought.

        Args:
            x: `[b, l, c]` video tokens.
            keys_values: of the prompt for this block, each `[b, n, p, d]`.
            attended: bool `[b, p]`, False on padding; None attends to all of them.
            time: `[b, 3·sublayers, c]` the noise level, shared by all blocks; or one row for all.
            rotary: positions for each self-attention by its name, from `rope.rotary_table`.
            grid: (f, h, w), f·h·w = l.

        Returns:
            `[b, l, c]`.
        """
        x = self.resid_pre(x)
        rows = (self.scale_shift_table.float() + time).chunk(3 * self.num_sublayers, dim=1)
        *looking, thinking = (
            Modulation(*rows[i : i + 3]) for i in range(0, 3 * self.num_sublayers, 3)
        )
        for name, modulation in zip(self.looks, looking, strict=True):
            attend = getattr(self, name)
            seen = attend(modulation.into(self.norm1, x), grid=grid, rotary=rotary[name])
            x = modulation.add(x, seen)
        read = self.cross_attn(self.norm2(x), keys_values, attended=attended)
        x = x + read
        normed = thinking.into(self.norm3, x)
        thought = self.moe(normed, read) if hasattr(self, "moe") else self.ffn(normed)
        return self.resid_post(thinking.add(x, thought))


class DiT(nn.Module):
    """Predict the velocity `noise - video` of noisy latents under a prompt.

    Args:
        config: sizes.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        patch = math.prod(config.patch_size)
        channels = config.in_channels + config.condition_channels
        self.patch_embedding = nn.Linear(channels * patch, dim)
        self.text_embedder = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim)
        )
        self.time_embedder = nn.Sequential(
            nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim)
        )
        self.time_embed = nn.Identity()  # tap
        if config.absolute_positions:
            self.position_embedding = nn.Linear(NUM_FEATURES, dim, bias=False)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.middle = nn.Identity()  # the stream after half of the blocks, for recall in training
        sublayers = 3 if config.attention == "factorised" else 2
        self.time_proj = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * sublayers * dim))
        self.norm_out = LayerNorm(dim, config.eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / math.sqrt(dim))
        self.proj_out = nn.Linear(dim, config.in_channels * patch)
        self._initialise()

    def _initialise(self) -> None:
        """Xavier for every matrix, N(0, 0.02) for time, zero for positions and the output."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for part in (self.time_embedder, self.time_proj):
            for module in part:
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02)
        if self.config.absolute_positions:
            nn.init.zeros_(self.position_embedding.weight)
        nn.init.zeros_(self.proj_out.weight)  # it starts silent

    def read(self, prompt_embeds: Tensor) -> Context:
        """Keys and values of the prompt for every block, to be computed once per video.

        Args:
            prompt_embeds: `[b, p, text_dim]`; rows of padding are zero.

        Returns:
            What `forward` takes in place of `prompt_embeds`.
        """
        prompt = self.text_embedder(prompt_embeds)  # b p c
        attended = prompt_embeds.any(-1) if self.config.mask_padding else None  # b p
        blocks = (block for block in self.blocks if isinstance(block, Block))
        return Context(tuple(b.cross_attn.keys_values(prompt) for b in blocks), attended)

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        prompt_embeds: Tensor | Context,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Predict the velocity.

        Args:
            latents: `[b, c, f, h, w]` noisy latents.
            timestep: `[b]` in [0, 1000]: 1000 times sigma; `[1]` holds for the whole batch.
            prompt_embeds: `[b, p, text_dim]`, rows of padding zero; or what `read` made of them.
            condition: `[b, condition_channels, f, h, w]`; zeros where nothing is given.

        Returns:
            `[b, c, f, h, w]` velocity.

        Raises:
            ConfigError: where the latents do not fit `patch_size` or `in_channels`, or the condition does not
                fit `condition_channels`.
        """
        grid = self.grid(latents)
        pf, ph, pw = self.config.patch_size
        channels = self.config.condition_channels
        if condition is not None and condition.shape[1] != channels:
            raise ConfigError(
                f"condition has {condition.shape[1]} channels, and this denoiser reads {channels}: "
                + ("give as many" if channels else "leave it out, or use one made for keyframes")
            )
        if channels:
            if condition is None:
                condition = latents.new_zeros(len(latents), channels, *latents.shape[2:])
            latents = torch.cat([latents, condition.to(latents.dtype)], dim=1)
        x = rearrange(
            latents,
            "b c (f pf) (h ph) (w pw) -> b (f h w) (c pf ph pw)",
            pf=pf, ph=ph, pw=pw,
        )  # fmt: skip
        x = self.patch_embedding(x)  # b l c
        if self.config.absolute_positions:
            places = position_features(grid).to(x)  # l features
            x = x + self.position_embedding(places)
        context = prompt_embeds if isinstance(prompt_embeds, Context) else self.read(prompt_embeds)
        waves = sinusoids(timestep, self.config.freq_dim)
        precise = next(self.time_embedder.parameters())  # Wan's are float32, whatever the rest is
        embed = self.time_embed(self.time_embedder(waves.to(precise)).to(x.dtype))  # b c
        time = self.time_proj(embed).float().unflatten(1, (-1, self.config.dim))
        rotary = {
            name: rotary_table(grid, width).to(x.device)
            for name, width in self.config.self_attention_widths.items()
        }
        for layer, block in enumerate(self.blocks, start=1):
            keys_values = context.keys_values[layer - 1]
            x = block(x, keys_values, context.attended, time, rotary, grid)
            if layer == len(self.blocks) // 2:
                x = self.middle(x)
        shift, scale = (self.scale_shift_table.float() + embed.float()[:, None]).chunk(2, dim=1)
        x = self.norm_out(x, scale, shift)
        f, h, w = grid
        return rearrange(
            self.proj_out(x),
            "b (f h w) (pf ph pw c) -> b c (f pf) (h ph) (w pw)",
            f=f, h=h, w=w, pf=pf, ph=ph, pw=pw,
        )  # fmt: skip

    def grid(self, latents: Tensor) -> Grid:
        """Token grid (f, h, w) of latents `[b, c, f, h, w]`.

        Args:
            latents: what the denoiser is to be given.

        Returns:
            Frames, rows and columns in tokens.

        Raises:
            ConfigError: where the latents do not fit `patch_size` or `in_channels`.
        """
        sizes, patches = latents.shape[2:], self.config.patch_size
        if latents.ndim != 5 or latents.shape[1] != self.config.in_channels:
            raise ConfigError(
                f"latents are shaped {tuple(latents.shape)}; this denoiser takes "
                f"[b, {self.config.in_channels}, f, h, w]"
            )
        if any(size % patch for size, patch in zip(sizes, patches, strict=True)):
            raise ConfigError(
                f"latents of {tuple(sizes)} frames, rows, columns cannot be cut into patches of "
                f"{patches}: use multiples"
            )
        f, h, w = (size // patch for size, patch in zip(sizes, patches, strict=True))
        return f, h, w


def sinusoids(timestep: Tensor, dim: int) -> Tensor:
    """Cosines and sines of the timestep at geometric wavelengths, arXiv 1706.03762 section 3.5.

    Args:
        timestep: `[b]`.
        dim: even number of features.

    Returns:
        `[b, dim]` float32, cosines first.
    """
    half = dim // 2
    precise = torch.float32 if timestep.device.type == "mps" else torch.float64  # MPS lacks it
    exponents = torch.arange(half, dtype=precise, device=timestep.device) / half
    angles = timestep.to(precise)[:, None] * 1e4**-exponents
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()
