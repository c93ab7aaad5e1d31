import pytest
import torch
from einops import rearrange
from tinywan.norms import LayerNorm, RMSNorm
from tinywan.positions import NUM_FEATURES, position_features
from tinywan.rope import axis_widths, rotary_table, rotate
from torch import Tensor

EXACT = 1e-6  # float32 against float64
GRID = (3, 4, 5)
HEAD_DIM = 16


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 7, 24) * 3 + 1


def scores_by_place(query: Tensor, key: Tensor) -> Tensor:
    """Scores [f h w f h w] of one query and one key [d], the same at every place."""
    table = rotary_table(GRID, HEAD_DIM)
    tokens = table.shape[1]
    q = rotate(query.expand(1, 1, tokens, -1), table)[0, 0]
    k = rotate(key.expand(1, 1, tokens, -1), table)[0, 0]
    f, h, _ = GRID
    return rearrange(q @ k.T, "(f h w) (g i j) -> f h w g i j", f=f, h=h, g=f, i=h)


def test_rms_norm_is_the_formula(x):
    norm = RMSNorm(24, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight.double()
    torch.testing.assert_close(norm(x).double(), expected, atol=10 * EXACT, rtol=0)


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
def test_norms_of_bfloat16_are_computed_in_float32_and_rounded_once(kind, x):
    norm = kind(24)
    torch.nn.init.normal_(norm.weight)
    half = kind(24).bfloat16()
    half.load_state_dict(norm.state_dict())
    norm.load_state_dict(half.state_dict())  # the rounded weights
    rounded = x.bfloat16()
    assert half(rounded).dtype == torch.bfloat16
    assert torch.equal(half(rounded), norm(rounded.float()).bfloat16())


def test_layer_norm_is_that_of_torch_in_float32(x):
    ours, theirs = LayerNorm(24, elementwise_affine=False), torch.nn.LayerNorm(24)
    torch.testing.assert_close(ours(x), theirs(x), atol=EXACT, rtol=0)


def test_a_head_of_128_splits_as_in_wan():
    assert axis_widths(128) == (44, 42, 42)


@pytest.mark.parametrize("head_dim", [2, 6, 12, 16, 32, 48, 64, 96, 128])
def test_axis_widths_are_even_and_sum_to_the_head(head_dim):
    widths = axis_widths(head_dim)
    assert sum(widths) == head_dim
    assert all(width % 2 == 0 for width in widths)


def test_scores_depend_on_the_distance_alone():
    scores = scores_by_place(*torch.randn(2, HEAD_DIM))
    moved = (
        (scores[1:, :, :, 1:], scores[:-1, :, :, :-1]),
        (scores[:, 1:, :, :, 1:], scores[:, :-1, :, :, :-1]),
        (scores[:, :, 1:, :, :, 1:], scores[:, :, :-1, :, :, :-1]),
    )
    for there, here in moved:
        torch.testing.assert_close(there, here, atol=10 * EXACT, rtol=0)


def test_scores_differ_with_the_distance_along_every_axis():
    scores = scores_by_place(*torch.randn(2, HEAD_DIM))[0, 0, 0]  # seen from the first token
    for axis in (scores[:, 0, 0], scores[0, :, 0], scores[0, 0, :]):
        assert axis.diff().abs().min() > 1e-3


def test_each_pair_turns_by_place_times_its_frequency():
    x = torch.randn(1, 1, 60, HEAD_DIM)
    turned = rotate(x, rotary_table(GRID, HEAD_DIM))
    widths = axis_widths(HEAD_DIM)
    place = (2, 1, 4)  # frame, row, column
    token = (place[0] * GRID[1] + place[1]) * GRID[2] + place[2]
    angles = torch.cat(
        [
            p * 1e4 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
            for p, width in zip(place, widths, strict=True)
        ]
    )
    pairs = torch.view_as_complex(x[0, 0, token].double().view(-1, 2))
    expected = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten()
    torch.testing.assert_close(turned[0, 0, token].double(), expected, atol=EXACT, rtol=0)


def test_the_first_token_is_not_turned_and_no_token_changes_its_length():
    x = torch.randn(2, 3, 60, HEAD_DIM)
    turned = rotate(x, rotary_table(GRID, HEAD_DIM))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), atol=10 * EXACT, rtol=0)


def test_rotation_is_done_in_float32_and_returned_in_the_dtype_of_its_input():
    x, table = torch.randn(1, 1, 60, HEAD_DIM).bfloat16(), rotary_table(GRID, HEAD_DIM)
    assert torch.equal(rotate(x, table), rotate(x.float(), table).bfloat16())


def test_a_table_first_made_in_inference_mode_serves_training_too():
    grid = (1, 2, 7)  # no other test asks for this one: the table is remembered
    with torch.inference_mode():
        rotary_table(grid, HEAD_DIM)
    x = torch.randn(1, 1, 14, HEAD_DIM, requires_grad=True)
    rotate(x, rotary_table(grid, HEAD_DIM)).sum().backward()
    assert x.grad is not None


def test_every_token_has_its_own_absolute_position_and_a_mirror_image_another():
    features = position_features(GRID)
    assert features.shape == (60, NUM_FEATURES)
    assert features.abs().max() <= 1
    apart = torch.cdist(features, features) + torch.eye(60)
    assert apart.min() > 0.2
    f, h, w = GRID
    mirrored = features.view(f, h, w, -1).flip(2)
    assert (mirrored - features.view(f, h, w, -1))[..., 0, :].abs().max() > 0.5


def test_absolute_rows_and_columns_are_shares_of_the_picture_and_frames_are_counted():
    small, large = position_features((2, 2, 3)), position_features((4, 4, 9))
    small, large = small.view(2, 2, 3, -1), large.view(4, 4, 9, -1)
    middle = small[0, 0, 1, 14:]  # of the columns
    torch.testing.assert_close(middle, large[0, 0, 4, 14:], atol=EXACT, rtol=0)
    torch.testing.assert_close(small[1, 0, 0, :8], large[1, 0, 0, :8], atol=EXACT, rtol=0)
    assert torch.equal(small[0, 0, 0, 8:14], small[1, 0, 2, 8:14])  # rows know nothing else
