"""Root-mean-square normalisation, in float32 whatever the input."""

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """Divide by the root mean square over the last axis, then scale.

    Source: Zhang & Sennrich 2019, arXiv 1910.07467. Wan puts it on queries and keys over the whole
    width, before the heads are split.

    Args:
        dim: width of the last axis.
        eps: added to the mean square; Wan uses 1e-6.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """[... dim] -> [... dim], in x's dtype."""
        wide, weight = x.float(), self.weight.float()
        if wide.device.type != "cpu":
            return nn.functional.rms_norm(wide, x.shape[-1:], weight, self.eps).to(x.dtype)
        # on a CPU PyTorch's own (2.13) takes more than twice as long as this
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = torch.rsqrt(length.square() / x.shape[-1] + self.eps)
        return (wide * scale * weight).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` computed in float32 and cast back, as Wan does under bfloat16.

    Without weights of its own it can be told how to scale and shift what it normalised: adaptive layer
    norm, DiT, arXiv 2212.09748, section 3.2.
    """

    def forward(
        self, input: Tensor, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        """Normalise, and modulate where that is asked for.

        Args:
            input: `[b, l, c]`, or any shape that ends in the width.
            scale: `[b, 1, c]`, float32, or `[1, 1, c]` for the whole batch; 1 is added to it.
            shift: the same.

        Returns:
            The same shape, in the input's dtype.
        """
        x, shape = input.float(), self.normalized_shape
        if scale is None or shift is None:
            weight = None if self.weight is None else self.weight.float()
            bias = None if self.bias is None else self.bias.float()
            out = nn.functional.layer_norm(x, shape, weight, bias, self.eps)
        elif len(scale) == 1:  # in one pass
            weight, bias = 1 + scale.flatten(), shift.flatten()
            out = nn.functional.layer_norm(x, shape, weight, bias, self.eps)
        else:
            out = torch.addcmul(shift, nn.functional.layer_norm(x, shape, eps=self.eps), 1 + scale)
        return out.to(input.dtype)
