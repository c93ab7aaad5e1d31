"""The three ways of looking: within a frame, across frames, and at the words.

One class computes all of them, with PyTorch's fused kernel; only on a GPU, where lines of few
frames would leave that nearly empty, `attend_few` stands in. The `nn.Identity` submodules `q`, `k`,
`v` and `out` are taps: they cost nothing, and a forward hook on them sees (or replaces) the tensor
that attention really uses.
"""

from functools import lru_cache
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from tinywan.norms import RMSNorm
from tinywan.rope import rotate

Grid = tuple[int, int, int]  # latent frames, rows, columns, in tokens
Pattern = Literal["full", "spatial", "temporal", "cross"]


@lru_cache(maxsize=64)
@torch.inference_mode(mode=False)  # what is remembered must serve training too
def window_mask(sizes: tuple[int, ...], radius: int) -> Tensor:
    """Which positions of a line or a plane lie within `radius` of each other, along every axis.

    Args:
        sizes: `(frames,)` or `(rows, columns)`.
        radius: largest distance that is still attended, in tokens.

    Returns:
        bool `[positions, positions]`, True where attention is allowed.
    """
    axes = [torch.arange(size) for size in sizes]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, -2)
    return ((places[:, None] - places[None, :]).abs() <= radius).all(-1)


def biased(mask: Tensor | None, bias: Tensor | None) -> Tensor | None:
    """What is added to the logits: a bias, and minus infinity where a bool mask is False.

    Args:
        mask: bool, True where attention is allowed; None allows it everywhere.
        bias: float, of a form that broadcasts with that of the mask; None adds nothing.

    Returns:
        The bias with minus infinity in it, in the form that both broadcast to; the one as it is where the other
        is None, and None where both are.
    """
    if mask is None or bias is None:
        return mask if bias is None else bias
    return torch.where(mask, bias, float("-inf"))


def mean_attention(q: Tensor, k: Tensor, attended: Tensor | None = None) -> Tensor:
    """The whole attention matrix, averaged over heads: for losses that look at it, never to attend.

    Args:
        q: `[b, n, l, d]` queries.
        k: `[b, n, p, d]` keys.
        attended: bool `[b, p]`, False on keys to leave out.

    Returns:
        float32 `[b, l, p]`, rows sum to 1.
    """
    logits = (q.float() @ k.float().mT) * q.shape[-1] ** -0.5  # b n l p
    if attended is not None:
        logits = logits.masked_fill(~attended[:, None, None], float("-inf"))
    return logits.float().softmax(-1).mean(1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """PyTorch's fused attention.

    On a CPU its backward pass takes five times as long in bfloat16 as in float32 (torch 2.13), so
    that training attends in float32 there.

    Args:
        q: `[b, n, l, d]` queries.
        k: `[b, n, s, d]` keys.
        v: `[b, n, s, d]` values.
        mask: broadcasts to `[b, n, l, s]`: bool, True where attention is allowed; or what is added to the logits.

    Returns:
        `[b, n, l, d]`.
    """
    if q.device.type == "cpu" and torch.is_autocast_enabled("cpu") and q.requires_grad:
        with torch.autocast("cpu", enabled=False):
            return scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)


FEW = 8  # positions of a line up to which a GPU is better off without the fused kernel


def attend_few(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """The same for very short lines, of which there are very many: frames at one place.

    The fused kernels work on tiles of 64 queries, and a clip of five latent frames leaves nearly all of each
    empty: on an H200 they took a third of a training step.

    Args:
        q: `[b, n, l, d]` queries.
        k: `[b, n, s, d]` keys.
        v: `[b, n, s, d]` values.
        mask: bool `[l, s]`, True where attention is allowed.

    Returns:
        `[b, n, l, d]` in v's dtype.
    """
    q = q.float() * q.shape[-1] ** -0.5
    logits = (q[..., :, None, :] * k.float()[..., None, :, :]).sum(-1)  # b n l s
    if mask is not None:
        logits = logits.masked_fill(~mask, float("-inf"))
    mass = logits.softmax(-1).to(v.dtype)
    return (mass[..., None] * v[..., None, :, :]).sum(-2)


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys, as in Wan.

    Source: Vaswani et al. 2017, arXiv 1706.03762; query-key norm: Wan, arXiv 2503.20314. Splitting
    space from time: ViViT, arXiv 2103.15691.

    Args:
        dim: width of the tokens.
        num_heads: number of heads.
        pattern: "full" and "cross" attend to every key; "spatial" stays within a latent frame;
            "temporal" stays at one row and column.
        window: radius in tokens for "spatial" and "temporal"; None attends to all of them.
        eps: of the query and key norms.
        head_dim: width of one head; None shares `dim` out among them.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        pattern: Pattern,
        window: int | None = None,
        eps: float = 1e-6,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.pattern, self.window = num_heads, pattern, window
        inner = dim if head_dim is None else num_heads * head_dim
        self.to_q = nn.Linear(dim, inner)
        self.to_k = nn.Linear(dim, inner)
        self.to_v = nn.Linear(dim, inner)
        self.norm_q = RMSNorm(inner, eps)
        self.norm_k = RMSNorm(inner, eps)
        self.to_out = nn.Linear(inner, dim)
        self.q, self.k, self.v, self.out = (nn.Identity() for _ in range(4))  # taps
        self.keeps_read = False  # whether cross-attention leaves its whole matrix in `read`
        self.read: Tensor | None = None  # [b l p], see `mean_attention`

    def keys_values(self, source: Tensor) -> tuple[Tensor, Tensor]:
        """Project what is looked at: `[b, s, c]` -> keys and values `[b, n, s, d]`."""
        k = rearrange(self.norm_k(self.to_k(source)), "b s (n d) -> b n s d", n=self.num_heads)
        v = rearrange(self.to_v(source), "b s (n d) -> b n s d", n=self.num_heads)
        return k, v

    def forward(
        self,
        x: Tensor,
        keys_values: tuple[Tensor, Tensor] | None = None,
        grid: Grid | None = None,
        rotary: Tensor | None = None,
        attended: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Let every token gather what it looks at.

        Args:
            x: `[b, l, c]` video tokens.
            keys_values: for cross-attention, from `keys_values` on the prompt; else taken from x.
            grid: (f, h, w) with f·h·w = l, needed by "spatial" and "temporal".
            rotary: from `rope.rotary_table`; None leaves queries and keys unrotated.
            attended: for cross-attention, bool `[b, p]`, False on keys to leave out.
            bias: added to the logits, for whoever intervenes: of a form that broadcasts to `[b, n, l, s]`; in
                "spatial" and "temporal" attention, where one frame or one place stands for itself, to
                `[…, queries, keys]` of the rows and columns, or of the frames.

        Returns:
            `[b, l, c]`.
        """
        q = rearrange(self.norm_q(self.to_q(x)), "b l (n d) -> b n l d", n=self.num_heads)
        k, v = self.keys_values(x) if keys_values is None else keys_values
        if rotary is not None:
            q, k = rotate(q, rotary), rotate(k, rotary)
        q, k, v = self.q(q), self.k(k), self.v(v)
        if self.keeps_read and self.pattern == "cross":
            self.read = mean_attention(q, k, attended)
        if self.pattern in ("full", "cross"):
            mask = None if attended is None else attended[:, None, None]  # b 1 1 p
            mixed = attend(q, k, v, biased(mask, bias))
        else:
            assert grid is not None
            mixed = self._attend_apart(q, k, v, grid, bias)
        return self.out(self.to_out(rearrange(mixed, "b n l d -> b l (n d)")))

    def _attend_apart(
        self, q: Tensor, k: Tensor, v: Tensor, grid: Grid, bias: Tensor | None
    ) -> Tensor:
        f, h, w = grid
        sizes: tuple[int, ...]
        if self.pattern == "temporal" and f == 1:  # a picture: every token sees itself alone
            return v
        if self.pattern == "spatial":
            apart, sizes = "b n (f s) d -> (b f) n s d", (h, w)
            together = "(b f) n s d -> b n (f s) d"
        else:
            apart, sizes = "b n (f s) d -> (b s) n f d", (f,)
            together = "(b s) n f d -> b n (f s) d"
        q, k, v = (rearrange(x, apart, f=f) for x in (q, k, v))
        mask = None
        if self.window is not None and self.window < max(sizes) - 1:
            mask = window_mask(sizes, self.window).to(q.device)
        few = q.is_cuda and self.pattern == "temporal" and f <= FEW and bias is None
        mixed = (attend_few if few else attend)(q, k, v, biased(mask, bias))
        known = {"f": f} if self.pattern == "spatial" else {"s": h * w}
        return rearrange(mixed, together, **known)
