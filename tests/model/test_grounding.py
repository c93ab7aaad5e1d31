import numpy as np
import pytest
import torch
from tinywan import theatre
from tinywan.attention import Attention, mean_attention
from tinywan.checkpoint import SHIPPED
from tinywan.grounding import (
    READ,
    Regions,
    outside_share,
    part_regions,
    span_tokens,
    stack_regions,
    unheard_share,
    unread_share,
)
from tinywan.text import UnigramTokenizer

EXACT = 1e-6


def test_the_mean_attention_is_the_softmax_averaged_over_heads():
    q, k = torch.randn(2, 3, 5, 4), torch.randn(2, 3, 6, 4)
    attended = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    found = mean_attention(q, k, attended)
    assert found.shape == (2, 5, 6)
    for b in range(2):
        logits = torch.einsum("nld,npd->nlp", q[b], k[b]) / 2
        kept = logits[..., : attended[b].sum()].softmax(-1).mean(0)
        torch.testing.assert_close(found[b, :, : kept.shape[1]], kept, atol=EXACT, rtol=0)
        assert (found[b, :, kept.shape[1] :] == 0).all()


def test_attention_keeps_what_it_read_where_it_is_asked_to():
    look = Attention(8, 2, "cross")
    x, prompt = torch.randn(1, 5, 8), torch.randn(1, 6, 8)
    look(x, look.keys_values(prompt))
    assert look.read is None
    look.keeps_read = True
    look(x, look.keys_values(prompt))
    torch.testing.assert_close(look.read.sum(-1), torch.ones(1, 5), atol=EXACT, rtol=0)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_parts_are_found_in_the_caption_and_in_the_latent_frames(language):
    rng = np.random.default_rng(8)
    scene = theatre.sample_scene(rng)
    told = theatre.caption(scene, language, rng)
    clip = theatre.render(scene, 9, 64, 64)
    tokenizer = UnigramTokenizer.from_pretrained(SHIPPED)
    encoded = tokenizer.encode(told.text)
    mentions = [*told.spans.items(), *told.colors.items()]
    tokens, covered = part_regions(mentions, clip.masks, encoded.offsets[:-1], 64)
    named = [part for part, _ in mentions if part in clip.masks and clip.masks[part].any()]
    assert tokens.shape == (len(named), 64)
    assert covered.shape == (len(named), 3, 64)
    row = named.index("garment")
    words = "".join(told.text[slice(*encoded.offsets[i])] for i in tokens[row].nonzero().flatten())
    start, stop = told.spans["garment"][0]
    assert words.replace(" ", "") == told.text[start:stop].replace(" ", "")
    color = len(named) - 1 - named[::-1].index("garment")  # told after the names
    (start, stop) = told.colors["garment"][0]
    read = "".join(told.text[slice(*encoded.offsets[i])] for i in tokens[color].nonzero().flatten())
    assert color > row
    assert read.replace(" ", "") == told.text[start:stop]
    assert torch.equal(covered[color], covered[row])
    mask = torch.from_numpy(clip.masks["garment"]).float()
    for latent, frames in ((0, slice(0, 1)), (2, slice(5, 9))):
        expected = mask[frames].unflatten(1, (8, 8)).unflatten(3, (8, 8)).mean((0, 2, 4))
        torch.testing.assert_close(covered[row, latent], expected.flatten(), atol=EXACT, rtol=0)


def test_a_token_that_tells_of_two_parts_is_looked_for_in_both():
    """风雨, wind and rain, is one token of the shipped tokenizer."""
    text = "风雨中，一只狗站着"
    tokenizer = UnigramTokenizer.from_pretrained(SHIPPED)
    offsets = tokenizer.encode(text).offsets[:-1]
    assert (0, 2) in offsets
    masks = {part: np.zeros((1, 8, 32), bool) for part in ("wind", "rain", "dog")}
    for column, mask in enumerate(masks.values()):
        mask[..., 8 * column : 8 * column + 8] = True
    told = [("wind", ((0, 1),)), ("rain", ((1, 2),)), ("dog", ((6, 7),))]
    tokens, covered = part_regions(told, masks, offsets, 16)
    assert torch.equal(tokens[0], tokens[1])
    assert covered[:, 0].tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0]]


def regions() -> Regions:
    """One clip of one frame of 4 places: token 1 names a part that covers places 0 and 1."""
    return Regions(torch.tensor([[[0.0, 1, 0]]]), torch.tensor([[[[1.0, 0.5, 0, 0]]]]))


@pytest.mark.parametrize(
    ("masses", "expected"), [([1, 1, 0, 0], 0.0), ([0, 0, 1, 1], 1.0), ([1, 1, 1, 1], 0.25)]
)
def test_the_loss_is_the_squared_share_of_a_words_attention_outside_its_part(masses, expected):
    read = torch.zeros(1, 4, 3)
    read[0, :, 1] = 0.3 * torch.tensor(masses)
    read[0, :, 0] = 0.5  # what other words get plays no part
    assert outside_share(read, regions()).item() == pytest.approx(expected, abs=1e-5)


def test_a_frame_that_does_not_show_the_part_does_not_count():
    tokens = torch.tensor([[[0.0, 1, 0]]])
    covered = torch.zeros(1, 1, 2, 4)
    covered[0, 0, 0, 0] = 1
    read = torch.zeros(1, 8, 3)
    read[0, 0, 1] = 1  # in place in the first frame
    read[0, 7, 1] = 1  # somewhere in the second, where the part is not
    assert outside_share(read, Regions(tokens, covered)).item() == pytest.approx(0, abs=1e-5)


def test_captions_with_fewer_parts_are_filled_up_and_one_with_none_costs_nothing():
    one = (torch.tensor([[0.0, 1, 0, 0]]), torch.tensor([[[1.0, 0.5, 0, 0]]]))
    none = (torch.zeros(0, 4), torch.zeros(0, 1, 4))
    found = stack_regions([one, none], text_len=3)
    assert found.tokens.shape == (2, 1, 3)
    assert found.covered.shape == (2, 1, 1, 4)
    read = torch.full((2, 4, 3), 1 / 3)
    assert outside_share(read, found).tolist() == pytest.approx([0.25, 0])
    assert stack_regions([none, none], text_len=3).tokens.shape == (2, 1, 3)


def test_descending_the_loss_moves_attention_into_the_part():
    q, k = torch.randn(1, 2, 4, 8), torch.randn(1, 2, 3, 8)
    q.requires_grad_()
    for _ in range(60):
        loss = outside_share(mean_attention(q, k), regions()).sum()
        (grad,) = torch.autograd.grad(loss, q)
        q = (q - 5 * grad).detach().requires_grad_()
    mass = mean_attention(q, k)[0, :, 1]
    assert mass[:2].sum() > 3 * mass[2:].sum()


def test_a_part_whose_words_were_cut_off_does_not_count():
    told = regions()
    two = Regions(
        torch.cat([told.tokens, torch.zeros(1, 1, 3)], dim=1), told.covered.repeat(1, 2, 1, 1)
    )
    read = torch.full((1, 4, 3), 1 / 3)
    assert outside_share(read, two).item() == pytest.approx(0.25)


def test_a_batch_in_which_no_caption_names_anything_costs_nothing():
    clip = theatre.render(theatre.sample_scene(np.random.default_rng(8)), 9, 64, 64)
    empty = part_regions([], clip.masks, (), 64)
    read = torch.full((2, 3 * 64, 5), 0.2)
    assert outside_share(read, stack_regions([empty, empty], 5)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("inside", "expected"), [(0.0, 1.0), (READ / 2, 0.25), (READ, 0.0), (3 * READ, 0.0)]
)
def test_places_of_a_part_are_asked_to_read_its_words_up_to_a_share(inside, expected):
    read = torch.zeros(1, 4, 3)
    read[0, :2, 1] = inside
    read[0, 2:, 0] = 1  # places elsewhere may do what they like
    assert unread_share(read, regions()).item() == pytest.approx(expected, abs=1e-6)


def test_what_is_read_is_averaged_over_parts_that_are_seen_and_told():
    tokens = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]]])
    covered = torch.tensor([[[[1.0, 0, 0, 0]], [[0, 1, 1, 0]], [[1, 1, 1, 1]], [[0.4, 0, 0, 0]]]])
    read = torch.zeros(1, 4, 3)
    read[0, 0, 0] = 1  # the first part is read, of the second a half, the others do not count
    read[0, 1, 1] = 1
    assert unread_share(read, Regions(tokens, covered)).item() == pytest.approx(0.25)


def test_nothing_is_unread_where_a_caption_names_nothing():
    clip = theatre.render(theatre.sample_scene(np.random.default_rng(8)), 9, 64, 64)
    empty = part_regions([], clip.masks, (), 64)
    read = torch.full((2, 3 * 64, 5), 0.2)
    assert unread_share(read, stack_regions([empty, empty], 5)).tolist() == [0, 0]


def test_unheard_is_the_shortfall_of_every_place_for_every_deed_that_is_told():
    read = torch.zeros(2, 3, 4)
    read[0, :, 1] = torch.tensor([0.0, READ / 2, 1.0])
    read[0, :, 2] = 2 * READ
    deeds = torch.zeros(2, 3, 4)
    deeds[0, 0, 1] = deeds[0, 1, 2] = 1  # the third row tells of nothing, and neither does clip 1
    first = (1.0 + 0.25 + 0.0) / 3
    torch.testing.assert_close(
        unheard_share(read, deeds), torch.tensor([first / 2, 0.0]), atol=1e-6, rtol=0
    )


def test_tokens_of_a_span_are_those_that_it_touches():
    offsets = [(0, 3), (3, 8), (9, 12)]
    found = span_tokens([(4, 10), (12, 14)], offsets, 5)
    assert found.tolist() == [[0, 1, 1, 0, 0], [0] * 5]
    assert span_tokens([], offsets, 5).shape == (0, 5)
