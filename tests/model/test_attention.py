import math
from itertools import product

import pytest
import torch
from tinywan.attention import Attention, attend, attend_few, biased, window_mask
from tinywan.norms import RMSNorm
from tinywan.rope import axis_widths, rotary_table
from torch import Tensor, nn

GRID = (4, 3, 5)
TOKENS = math.prod(GRID)
DIM, HEADS, HEAD_DIM = 48, 3, 16
PROMPT = 7
TOLERANCE = 1e-5  # float32, fused, against float64, explicit
PATTERNS = [
    ("full", None),
    ("spatial", None),
    ("spatial", 1),
    ("spatial", 2),
    ("temporal", None),
    ("temporal", 1),
    ("temporal", 2),
    ("cross", None),
]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, TOKENS, DIM)


@pytest.fixture
def prompt() -> Tensor:
    words = torch.randn(2, PROMPT, DIM)
    words[:, 4:] = words[:1, 4:5]  # padding: identical rows, attended all the same
    return words


def make(pattern: str, window: int | None) -> Attention:
    attention = Attention(DIM, HEADS, pattern, window)
    for module in attention.modules():
        if isinstance(module, RMSNorm):  # one at the start, which would hide a norm left out
            nn.init.uniform_(module.weight, 0.5, 3)
    return attention.eval()


def run(attention: Attention, x: Tensor, prompt: Tensor) -> Tensor:
    if attention.pattern == "cross":
        return attention(x, attention.keys_values(prompt))
    return attention(x, grid=GRID, rotary=rotary_table(GRID, HEAD_DIM))


def sees(pattern: str, window: int | None) -> Tensor:
    """Who sees whom, [l, s], by looking at every pair of places."""
    if pattern == "cross":
        return torch.ones(TOKENS, PROMPT, dtype=torch.bool)
    radius = 10**6 if window is None else window
    places = list(product(*(range(size) for size in GRID)))
    seen = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for i, (frame, row, column) in enumerate(places):
        for j, (other_frame, other_row, other_column) in enumerate(places):
            if pattern == "full":
                seen[i, j] = True
            elif pattern == "spatial":
                near = abs(row - other_row) <= radius and abs(column - other_column) <= radius
                seen[i, j] = frame == other_frame and near
            else:
                near = abs(frame - other_frame) <= radius
                seen[i, j] = (row, column) == (other_row, other_column) and near
    return seen


def turn(x: Tensor) -> Tensor:
    """Rotary positions in complex numbers: [b n l d] float64."""
    frequencies = [
        1e4 ** -(torch.arange(0, w, 2, dtype=torch.float64) / w) for w in axis_widths(HEAD_DIM)
    ]
    places = product(*(range(size) for size in GRID))
    angles = torch.stack(
        [torch.cat([p * f for p, f in zip(ps, frequencies, strict=True)]) for ps in places]
    )
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def slow_attention(attention: Attention, x: Tensor, prompt: Tensor) -> Tensor:
    """The whole layer in float64, with the softmax written out."""

    def project(name: str, source: Tensor) -> Tensor:
        layer = getattr(attention, f"to_{name}")
        y = source.double() @ layer.weight.double().T + layer.bias.double()
        norm = getattr(attention, f"norm_{name}", None)
        if norm is not None:
            y = y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
        return y.reshape(*y.shape[:2], HEADS, HEAD_DIM).transpose(1, 2)

    source = prompt if attention.pattern == "cross" else x
    q, k, v = project("q", x), project("k", source), project("v", source)
    if attention.pattern != "cross":
        q, k = turn(q), turn(k)
    weights = (q @ k.mT / math.sqrt(HEAD_DIM)).exp() * sees(attention.pattern, attention.window)
    mixed = (weights / weights.sum(-1, keepdim=True)) @ v  # b n l d
    return mixed.transpose(1, 2).flatten(2) @ attention.to_out.weight.double().T + (
        attention.to_out.bias.double()
    )


@pytest.mark.parametrize(("pattern", "window"), PATTERNS)
def test_every_pattern_is_an_explicit_softmax(pattern, window, x, prompt):
    attention = make(pattern, window)
    expected = slow_attention(attention, x, prompt)
    found = run(attention, x, prompt).double()
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("pattern", "window"), PATTERNS)
def test_the_taps_see_what_attention_uses(pattern, window, x, prompt):
    attention, seen = make(pattern, window), {}
    for name in ("q", "k", "v", "out"):
        getattr(attention, name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output})
        )
    result = run(attention, x, prompt)
    keys = PROMPT if pattern == "cross" else TOKENS
    assert seen["q"].shape == (2, HEADS, TOKENS, HEAD_DIM)
    assert seen["k"].shape == seen["v"].shape == (2, HEADS, keys, HEAD_DIM)
    assert torch.equal(seen["out"], result)
    q, k, v = (seen[name].double() for name in "qkv")
    logits = q @ k.mT / math.sqrt(HEAD_DIM)
    logits = logits.masked_fill(~sees(pattern, window), -math.inf)
    mixed = (logits.softmax(-1) @ v).float().transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.to_out(mixed), result, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("pattern", "window"), PATTERNS)
def test_queries_replaced_by_zero_look_evenly_at_all_they_may_see(pattern, window, x, prompt):
    attention = make(pattern, window)
    attention.q.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    source = prompt if pattern == "cross" else x
    even = sees(pattern, window).float()
    even = even / even.sum(-1, keepdim=True)
    expected = attention.to_out(even @ attention.to_v(source))
    torch.testing.assert_close(run(attention, x, prompt), expected, atol=TOLERANCE, rtol=0)


def test_what_a_hook_puts_on_values_and_out_is_used(x, prompt):
    attention = make("full", None)
    attention.v.register_forward_hook(lambda module, args, output: torch.ones_like(output))
    expected = attention.to_out(torch.ones(2, TOKENS, DIM))
    torch.testing.assert_close(run(attention, x, prompt), expected, atol=TOLERANCE, rtol=0)
    attention.out.register_forward_hook(lambda module, args, output: 2 * output)
    torch.testing.assert_close(run(attention, x, prompt), 2 * expected, atol=TOLERANCE, rtol=0)


def test_words_that_are_masked_might_as_well_not_be_there(x, prompt):
    attention = make("cross", None)
    attended = torch.arange(PROMPT).expand(2, -1) < torch.tensor([[4], [PROMPT]])
    found = attention(x, attention.keys_values(prompt), attended=attended)
    short = attention(x[:1], attention.keys_values(prompt[:1, :4]))
    whole = attention(x[1:], attention.keys_values(prompt[1:]))
    torch.testing.assert_close(found, torch.cat([short, whole]), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("pattern", "size"), [("spatial", 5), ("temporal", 4)])
def test_a_window_as_wide_as_the_clip_sees_everything(pattern, size, x, prompt):
    wide, narrow = make(pattern, size - 1), make(pattern, size - 2)
    everything = make(pattern, None)
    for attention in (wide, narrow):
        attention.load_state_dict(everything.state_dict())
    assert torch.equal(run(wide, x, prompt), run(everything, x, prompt))
    assert not torch.allclose(run(narrow, x, prompt), run(everything, x, prompt), atol=TOLERANCE)


@pytest.mark.parametrize("radius", [None, 1])
def test_short_lines_are_attended_as_long_ones_are(radius):
    q, k, v = (torch.randn(7, 3, 5, 6, requires_grad=True) for _ in range(3))
    mask = None if radius is None else window_mask((5,), radius)
    answers = [way(q, k, v, mask) for way in (attend, attend_few)]
    torch.testing.assert_close(*answers, atol=1e-6, rtol=0)
    grads = [torch.autograd.grad(answer.square().sum(), (q, k, v)) for answer in answers]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_window_is_a_square_around_each_place():
    mask = window_mask((3, 4), 1).view(3, 4, 3, 4)
    assert mask[0, 0].int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert mask[1, 2].int().tolist() == [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1]]


def test_a_mask_first_made_in_inference_mode_serves_training_too():
    sizes = (2, 7)  # no other test asks for this one: the mask is remembered
    with torch.inference_mode():
        window_mask(sizes, 1)
    bias = torch.zeros(14, 14, requires_grad=True)
    biased(window_mask(sizes, 1), bias).exp().sum().backward()
    assert bias.grad is not None


def test_clips_of_a_batch_do_not_see_each_other(x, prompt):
    for pattern, window in PATTERNS:
        attention = make(pattern, window)
        alone = run(attention, x[:1], prompt[:1])
        together = run(attention, x, prompt)[:1]
        torch.testing.assert_close(together, alone, atol=TOLERANCE, rtol=0)
