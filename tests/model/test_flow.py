import pytest
import torch
from tinywan import flow

CLIPS = (4, 3, 2, 2, 2)
EXACT = 1e-6


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def test_the_road_is_straight_and_its_ends_are_video_and_noise():
    x0, noise = torch.randn(2, *CLIPS)
    assert torch.equal(flow.add_noise(x0, noise, torch.zeros(4)), x0)
    assert torch.equal(flow.add_noise(x0, noise, torch.ones(4)), noise)
    near, far = (flow.add_noise(x0, noise, torch.full((4,), s)) for s in (0.3, 0.7))
    torch.testing.assert_close((far - near) / 0.4, flow.velocity(x0, noise), atol=EXACT, rtol=1e-5)


def test_every_clip_of_a_batch_has_its_own_noise_level():
    x0, noise = torch.zeros(CLIPS), torch.ones(CLIPS)
    sigma = torch.tensor([0.1, 0.2, 0.5, 0.9])
    found = flow.add_noise(x0, noise, sigma)
    for clip, level in zip(found, sigma, strict=True):
        assert torch.equal(clip, torch.full_like(clip, level.item()))


@pytest.mark.parametrize("sigma", [0.0, 0.25, 0.999, 1.0])
def test_the_true_velocity_leads_back_to_the_clean_latents(sigma):
    x0, noise = torch.randn(2, *CLIPS)
    noisy = flow.add_noise(x0, noise, torch.full((4,), sigma))
    found = flow.predicted_clean(noisy, flow.velocity(x0, noise), sigma)
    torch.testing.assert_close(found, x0, atol=EXACT, rtol=0)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 12.0])
def test_shift_keeps_the_ends_and_the_order(shift):
    sigma = torch.linspace(0, 1, 50)
    shifted = flow.shift_sigma(sigma, shift)
    assert shifted[0] == 0
    assert shifted[-1] == 1
    assert (shifted.diff() > 0).all()


def test_shift_one_changes_nothing_and_shift_three_lifts_a_half_to_three_quarters():
    sigma = torch.linspace(0, 1, 50)
    torch.testing.assert_close(flow.shift_sigma(sigma, 1.0), sigma, atol=EXACT, rtol=0)
    assert flow.shift_sigma(torch.tensor(0.5), 3.0).item() == pytest.approx(0.75)


def test_noise_levels_of_a_batch_fall_one_into_each_equal_part(generator):
    batch = 16
    for _ in range(20):
        sigma = flow.sample_sigma(batch, 1.0, generator)
        assert (sigma * batch).floor().tolist() == list(range(batch))


def test_noise_levels_are_shifted_uniform_ones(generator):
    sigma = torch.cat([flow.sample_sigma(50, 3.0, generator) for _ in range(100)])
    even = sigma / (3 - 2 * sigma)  # the shift undone
    assert even.mean().item() == pytest.approx(0.5, abs=0.005)
    assert even.std().item() == pytest.approx(12**-0.5, abs=0.005)
    assert 0 < sigma.min() < sigma.max() < 1


def test_noise_levels_between_two_are_those_of_all_that_lie_there():
    low, high = (
        torch.cat(
            [
                flow.sample_sigma(50, 3.0, torch.Generator().manual_seed(s), between)
                for s in range(100)
            ]
        )
        for between in ((0.0, 0.75), (0.75, 1.0))
    )
    assert low.max() < 0.75 <= high.min()
    both = torch.cat([low, high])  # 0.75 is 0.5 before the shift: as many lie below as above
    even = both / (3 - 2 * both)
    assert even.mean().item() == pytest.approx(0.5, abs=0.005)
    assert even.std().item() == pytest.approx(12**-0.5, abs=0.005)


def test_noise_levels_come_from_the_generator_alone():
    draws = [flow.sample_sigma(8, 3.0, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
