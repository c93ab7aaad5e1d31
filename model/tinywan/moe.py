"""Feed-forward layers: one dense network, or ten small ones of which three work on each token.

Source: Shazeer et al. 2017, arXiv 1701.06538; load balancing: Switch Transformer, arXiv 2101.03961,
equation 4; z-loss: ST-MoE, arXiv 2202.08906, equation 5. Wan2.2's own "mixture of experts" is
another thing, two whole denoisers switched by noise level: see pipeline.py.

The router is "plain" when it sees the token alone; a "text" router also sees what the token has
just read in the prompt, the output of its cross-attention.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from tinywan.norms import RMSNorm

Router = Literal["plain", "text"]

_ALIGNED = 8  # numbers in 16 bytes: rows and widths in a grouped product are multiples of it
_FILLED = 128  # rows of an expert's slice are a multiple of it where that is faster


def _in_bfloat16(device: torch.device) -> bool:
    """Whether autocast multiplies in bfloat16 there, on a GPU that has grouped products (Ampere and later)."""
    return (
        device.type == "cuda"
        and torch.is_autocast_enabled("cuda")
        and torch.get_autocast_dtype("cuda") == torch.bfloat16
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


class RouterLosses(NamedTuple):
    """What training adds to keep the router healthy; scalars, zero for dense layers."""

    balance: Tensor  # 1 when every token expert gets the same share, num_experts when one gets all
    z: Tensor  # mean squared log-partition of the router, keeps its logits small


class FeedForward(nn.Module):
    """Two linear layers around a tanh-GELU.

    Args:
        dim: width of the tokens.
        hidden: width in between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.activation = nn.GELU(approximate="tanh")
        self.down = nn.Linear(hidden, dim)
        self.out = nn.Identity()  # tap

    def forward(self, x: Tensor) -> Tensor:
        """[... c] -> [... c]."""
        return self.out(self.down(self.activation(self.up(x))))


class MixtureOfExperts(nn.Module):
    """A router sends each token to its `top_k` token experts and mixes their answers.

    Only the chosen experts are computed: tokens are sorted by expert and each expert sees one
    contiguous slice, so there is no loop over tokens.

    Args:
        dim: width of the tokens.
        hidden: width of one expert.
        num_experts: how many there are.
        top_k: how many work on a token.
        router: "plain", or "text" for one that also sees what the token read in the prompt.
    """

    def __init__(
        self, dim: int, hidden: int, num_experts: int, top_k: int, router: Router = "plain"
    ) -> None:
        super().__init__()
        self.num_experts, self.top_k = num_experts, top_k
        self.can_group = dim % _ALIGNED == hidden % _ALIGNED == 0
        self.router = nn.Linear(dim, num_experts, bias=False)
        if router == "text":
            self.norm_text = RMSNorm(dim)
            self.router_text = nn.Linear(dim, num_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(dim, hidden) for _ in range(num_experts))
        self.router_logits, self.expert_ids, self.out = (nn.Identity() for _ in range(3))  # taps
        self.losses: RouterLosses | None = None  # of the last forward in training mode

    def forward(self, x: Tensor, read: Tensor | None = None) -> Tensor:
        """Route, compute, and mix.

        Args:
            x: `[b, l, c]` tokens.
            read: `[b, l, c]` what each token got from the prompt; used by a "text" router.

        Returns:
            `[b, l, c]`.
        """
        wishes = self.router(x)
        if hasattr(self, "router_text"):
            assert read is not None
            wishes = wishes + self.router_text(self.norm_text(read))
        logits = self.router_logits(wishes.float())  # [b, l, expert]
        ids = self.expert_ids(logits.topk(self.top_k, dim=-1).indices)  # [b, l, topk]
        weights = logits.gather(-1, ids).softmax(-1).to(x.dtype)  # [b, l, topk], sums to 1
        if self.training:
            self.losses = self._losses(logits, ids)

        tokens = x.flatten(0, -2)  # [b·l, c]
        ids, weights = ids.flatten(0, -2), weights.flatten(0, -2)  # [b·l, topk]
        if not torch.is_grad_enabled():
            mix = self._mix_in_turn
        elif self.training and self.can_group and _in_bfloat16(tokens.device):
            mix = self._mix_grouped
        else:
            mix = self._mix_whole
        return self.out(mix(tokens, ids, weights).view_as(x))

    def _mix_in_turn(self, tokens: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """One expert after the other, so that what it works on stays in the cache."""
        order = ids.flatten().argsort(stable=True)  # slots of one expert become neighbours
        sizes = ids.flatten().bincount(minlength=self.num_experts).tolist()
        rows = (order // self.top_k).split(sizes)
        answers = tokens.new_empty(len(order), tokens.shape[1])  # [b·l·topk, c] expert by expert
        for expert, row, part in zip(self.experts, rows, answers.split(sizes), strict=True):
            if len(row):
                part.copy_(expert(tokens.index_select(0, row)))
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        return nn.functional.embedding_bag(  # a weighted sum of rows, in one pass
            places.view_as(ids), answers, per_sample_weights=weights, mode="sum"
        )

    def _mix_whole(self, tokens: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """All slices in one tensor: the way back would fill a whole gradient for each of them."""
        rows, places, sizes = self._sort(ids.flatten())
        # index_select: its way back is several times faster on a CPU than that of tokens[rows]
        slices = tokens.index_select(0, rows).split(sizes)
        answers = torch.cat(
            [expert(part) for expert, part in zip(self.experts, slices, strict=True) if len(part)]
        )
        # Back in the order of tokens; index_add would sum in another order in every run on CUDA.
        answers = answers.index_select(0, places).unflatten(0, (-1, self.top_k))  # [b·l, topk, c]
        return (answers * weights[..., None]).sum(1)  # [b·l, c]

    def _mix_grouped(self, tokens: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """All experts in one product each way, in bfloat16: a GPU would wait for ten calls to be made.

        Nothing is asked of the GPU on the way, so slices have a place to grow: each is filled up with the first
        token to a multiple of 8 rows, which the product wants, and the last one to the end. It wants the same of the
        widths: others go the whole way. The taps of single experts are passed by, which is why this is for training
        alone.
        """
        slots = ids.flatten()
        among = torch.arange(self.num_experts, device=ids.device)
        counts = (slots == among[:, None]).sum(1)
        sizes = counts + -counts % _ALIGNED
        ends = sizes.cumsum(0)
        most = len(slots) + self.num_experts * _ALIGNED  # rows, however the slots are shared out
        rows_in_all = most + -most % _ALIGNED
        ends[-1] = rows_in_all
        order = slots.argsort(stable=True)  # slots of one expert become neighbours
        gaps = (sizes - counts).cumsum(0) - (sizes - counts)  # rows that were filled up before
        line = torch.arange(len(slots), device=ids.device)
        places = torch.empty_like(slots).scatter_(0, order, line + gaps[slots[order]])
        rows = torch.zeros(rows_in_all, dtype=slots.dtype, device=ids.device)
        rows.scatter_(0, places, line // self.top_k)
        mine = (torch.arange(rows_in_all, device=ids.device)[:, None] >= ends[:-1]).sum(1)
        one_hot = (mine[:, None] == among).bfloat16()

        def apply(layer: str, x: Tensor) -> Tensor:
            chosen = [getattr(expert, layer) for expert in self.experts]
            weight = torch.stack([part.weight for part in chosen]).bfloat16()
            bias = torch.stack([part.bias for part in chosen]).bfloat16()
            product = nn.functional.grouped_mm(x, weight.mT, offs=ends.int())
            return torch.addmm(product, one_hot, bias)

        hidden = apply("up", tokens.bfloat16().index_select(0, rows))
        answers = apply("down", nn.functional.gelu(hidden, approximate="tanh"))
        answers = answers.index_select(0, places).unflatten(0, (-1, self.top_k))  # [b·l, topk, c]
        return (answers * weights[..., None]).sum(1)  # [b·l, c]

    def _sort(self, ids: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Bring together what one expert works on.

        Half precision on a CPU prepares a kernel for every new number of rows, and that takes longer
        than to multiply; so there the slices are filled up with the first token, to few lengths.

        Args:
            ids: `[slot]` expert of each slot; token i has the slots i·topk to i·topk + topk - 1.

        Returns:
            The token behind each row, the row of each slot, and the number of rows of each expert.
        """
        counts = ids.bincount(minlength=self.num_experts)
        halved = ids.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        sizes = counts + -counts % (_FILLED if halved else 1)
        order = ids.argsort(stable=True)  # slots of one expert become neighbours
        starts = sizes.cumsum(0) - sizes  # of each expert's rows
        gaps = starts - (counts.cumsum(0) - counts)
        places = torch.empty_like(ids)
        places[order] = torch.arange(len(ids), device=ids.device) + gaps[ids[order]]
        filled = int(sizes.sum()) if halved else len(ids)
        rows = torch.zeros(filled, dtype=ids.dtype, device=ids.device)
        rows[places] = torch.arange(len(ids), device=ids.device) // self.top_k
        return rows, places, sizes.tolist()

    def _losses(self, logits: Tensor, ids: Tensor) -> RouterLosses:
        share = ids.flatten().bincount(minlength=self.num_experts) / ids.numel()
        wish = logits.softmax(-1).flatten(0, -2).mean(0)
        return RouterLosses(
            balance=self.num_experts * (share * wish).sum(),
            z=logits.logsumexp(-1).square().mean(),
        )
