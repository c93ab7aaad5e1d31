"""Grounding: teach cross-attention to read a word where its object is.

In a world of some thirty words per caption an even mixture of all of them tells every token enough, and
cross-attention stays flat: the words are obeyed, and its maps show nothing. The theatre knows the
mask of every word, so two things can be asked for: that the attention a word gets lies inside its mask
(`outside_share`, the token loss of TokenCompose, Wang et al. 2023, arXiv 2312.03626, equation 2, frame by
frame), and that places inside it do read the word (`unread_share`), instead of all resting on the end of
the text, where the colours of garment and prop are easily confused. Maps of a model that was trained so
are taught, not found: model/README.md says what that means.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tinywan.keyframes import latent_place
from tinywan.vae import CausalVAE

READ = 0.15  # attention that a place inside a part should give to its name, and to its colour

Mention = tuple[str, Sequence[tuple[int, int]]]  # part of a scene, characters that tell of it


class Regions(NamedTuple):
    """Where the words of captions are; parts are padded with zeros."""

    tokens: Tensor  # [b, part, p] 1 where a token names the part, or tells its colour
    covered: Tensor  # [b, part, f, l/f] share of each video token that the part covers

    def rows(self, chosen: Tensor) -> "Regions":
        """Of some clips of the batch."""
        return Regions(self.tokens[chosen], self.covered[chosen])


def part_regions(
    mentions: Iterable[Mention],
    masks: Mapping[str, NDArray[np.bool_]],
    offsets: Sequence[tuple[int, int]],
    text_len: int,
) -> tuple[Tensor, Tensor]:
    """Tokens and places of what a caption mentions.

    Args:
        mentions: names of parts, words that tell their colours (a colour that is read where its
            object is does not run over into another), and what the subject does.
        masks: bool `[F, H, W]` by part.
        offsets: characters of each token.
        text_len: tokens of a prompt with padding.

    Returns:
        `[part, p]` and `[part, f, l/f]`, see `Regions`; one row for each mention that is seen. A token that
        tells of two parts, as 风雨 of wind and rain, is looked for in both of them.
    """
    seen = [(part, spans) for part, spans in mentions if part in masks and masks[part].any()]
    tokens = torch.zeros(len(seen), text_len)
    for row, (_, spans) in enumerate(seen):
        tokens[row] = span_tokens(spans, offsets, text_len).amax(0)
    size = next(iter(masks.values())).shape  # a caption that names nothing has places, too
    shapes = np.array([masks[part] for part, _ in seen]).reshape(-1, *size)
    shares = (tokens @ tokens.T > 0).numpy()  # part part, each with itself
    together = [shapes[others].any(0) for others in shares]
    return tokens, cover(torch.from_numpy(np.array(together).reshape(-1, *size)))


def span_tokens(
    spans: Iterable[tuple[int, int]], offsets: Sequence[tuple[int, int]], text_len: int
) -> Tensor:
    """Which tokens each span of characters touches.

    Args:
        spans: (start, stop) characters.
        offsets: characters of each token.
        text_len: tokens of a prompt with padding.

    Returns:
        float32 `[span, p]`, 1 or 0.
    """
    chosen = list(spans)
    tokens = torch.zeros(len(chosen), text_len)
    for row, (start, stop) in enumerate(chosen):
        for column, (first, last) in enumerate(offsets):
            if first < stop and last > start:
                tokens[row, column] = 1
    return tokens


def cover(shapes: Tensor) -> Tensor:
    """The share of each video token that a shape covers.

    Args:
        shapes: bool `[part, F, H, W]`.

    Returns:
        float32 `[part, f, l/f]`.
    """
    pooled = F.avg_pool2d(shapes.float(), CausalVAE.stride[1:]).flatten(2)  # part F l/f
    latent = torch.tensor([latent_place(frame)[0] for frame in range(pooled.shape[1])])
    groups = F.one_hot(latent).float()  # F f
    return torch.einsum("aFs,Ff->afs", pooled, groups / groups.sum(0))


def stack_regions(regions: Sequence[tuple[Tensor, Tensor]], text_len: int) -> Regions:
    """Put the parts of several clips into one batch.

    Args:
        regions: from `part_regions`, of clips of one size.
        text_len: tokens to keep of each prompt.

    Returns:
        All of them; clips with fewer parts get empty ones.
    """
    most = max(1, *(len(tokens) for tokens, _ in regions))
    shape = regions[0][1].shape[1:]
    tokens = torch.zeros(len(regions), most, text_len)
    places = torch.zeros(len(regions), most, *shape)
    for row, (named, covered) in enumerate(regions):
        if len(named):
            tokens[row, : len(named)] = named[:, :text_len]
            places[row, : len(named)] = covered
    return Regions(tokens, places)


def outside_share(read: Tensor, regions: Regions) -> Tensor:
    """How much of the attention that words get lies outside of what they name.

    Args:
        read: `[b, l, p]` attention of video tokens to prompt tokens.
        regions: of the same clips.

    Returns:
        `[b]` in [0, 1]: the squared share outside, averaged over parts and the frames that show
        them; 0 where a caption names nothing that is seen.
    """
    mass = torch.einsum("blp,bap->bal", read, regions.tokens)
    mass = mass.unflatten(2, regions.covered.shape[2:])  # b part f l/f
    inside = (2 * regions.covered).clamp(max=1)  # a token that is half covered counts as whole
    share = (mass * inside).sum(-1) / mass.sum(-1).clamp(min=1e-6)  # b part f
    seen = (inside.amax(-1) >= 0.5) & regions.tokens.any(-1)[..., None]
    away = (1 - share).square() * seen
    return away.sum((1, 2)) / seen.sum((1, 2)).clamp(min=1)


def unread_share(read: Tensor, regions: Regions) -> Tensor:
    """How much less than `READ` the places of a part read the words that tell of it.

    Args:
        read: `[b, l, p]` attention of video tokens to prompt tokens, averaged over layers, so that
            some of them may read and others rest.
        regions: of the same clips.

    Returns:
        `[b]` in [0, 1]: the squared shortfall, averaged over parts; 0 where a caption names nothing
        that is seen.
    """
    mass = torch.einsum("blp,bap->bal", read, regions.tokens)
    inside = (regions.covered.flatten(2) >= 0.5) & regions.tokens.any(-1)[..., None]  # b part l
    short = (1 - mass / READ).clamp(min=0).square() * inside
    of_part = short.sum(-1) / inside.sum(-1).clamp(min=1)  # b part
    seen = inside.any(-1)
    return (of_part * seen).sum(1) / seen.sum(1).clamp(min=1)


def unheard_share(read: Tensor, deeds: Tensor) -> Tensor:
    """How much less than `READ` the places of a clip read each of the words that tell of motion.

    Near pure noise nobody can know where anybody is, so every place is asked.

    Args:
        read: `[b, l, p]` attention of video tokens to prompt tokens, averaged over layers.
        deeds: `[b, deed, p]` 1 where a token tells of the deed; rows of zeros are none.

    Returns:
        `[b]` in [0, 1]: the squared shortfall, averaged over places and deeds; 0 where none is told.
    """
    mass = torch.einsum("blp,bdp->bdl", read, deeds)
    told = deeds.any(-1).float()  # b deed
    short = (1 - mass / READ).clamp(min=0).square().mean(-1)
    return (short * told).sum(1) / told.sum(1).clamp(min=1)
