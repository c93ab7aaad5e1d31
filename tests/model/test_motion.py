import numpy as np
import pytest
import torch
from tinywan import theatre
from tinywan.motion import Motion, true_motion, warp_back, warping_error

ROUNDING = 1e-5


def video_of(clip: theatre.Clip) -> torch.Tensor:
    return torch.from_numpy(clip.frames).permute(3, 0, 1, 2)[None] / 127.5 - 1


@pytest.fixture
def clip() -> theatre.Clip:
    scene = theatre.sample_scene(np.random.default_rng(4))
    return theatre.render(scene, 9, 64, 64)


def test_pixels_are_fetched_from_where_they_went():
    """A dot at row 1, column 1 goes two to the right and one down."""
    video = torch.zeros(1, 3, 2, 6, 7)
    video[:, :, 0, 1, 1] = video[:, :, 1, 2, 3] = 1
    flow = torch.zeros(1, 1, 6, 7, 2)
    flow[..., 0], flow[..., 1] = 2, 1
    back = warp_back(video, flow)
    assert back.shape == (1, 3, 1, 6, 7)
    torch.testing.assert_close(back[0, :, 0], video[0, :, 0], atol=ROUNDING, rtol=0)


def test_half_a_pixel_is_interpolated():
    video = torch.zeros(1, 3, 2, 4, 4)
    video[:, :, 1, :, 2] = 1
    flow = torch.zeros(1, 1, 4, 4, 2)
    flow[..., 0] = 0.5
    back = warp_back(video, flow)[0, 0, 0]
    torch.testing.assert_close(back[:, 1], torch.full((4,), 0.5), atol=ROUNDING, rtol=0)
    torch.testing.assert_close(back[:, 0], torch.zeros(4), atol=ROUNDING, rtol=0)


def test_a_rendered_clip_keeps_its_colours_along_its_flow(clip):
    flow = torch.from_numpy(clip.flow)[None]
    exact, apart = (true_motion(video_of(clip), flow, around=around) for around in (0, 3))
    assert exact.visible.float().mean() > 0.8
    assert not (apart.visible & ~exact.visible).any()
    for motion in (exact, apart):
        assert warping_error(video_of(clip), motion) < 0.01


def test_flicker_raises_the_warping_error_by_its_size(clip):
    video = video_of(clip)
    motion = true_motion(video, torch.from_numpy(clip.flow)[None])
    flicker = torch.zeros_like(video)
    flicker[:, :, ::2] = 0.2
    raised = warping_error(video + flicker, motion) - warping_error(video, motion)
    assert raised.item() == pytest.approx(0.2, abs=0.02)


def test_what_gets_covered_and_what_is_beside_it_do_not_count():
    video = torch.zeros(1, 3, 2, 4, 8)
    video[:, :, 1, :, 5:] = 1  # a curtain falls over the right side
    still = torch.zeros(1, 1, 4, 8, 2)
    for around in (0, 2):
        motion = true_motion(video, still, around=around)
        seen = 5 - around
        assert motion.visible[0, 0, 0].tolist() == [True] * seen + [False] * (8 - seen)
        assert warping_error(video, motion) == 0


def test_drops_and_what_is_around_them_do_not_count():
    """A drop falls two rows; it is left out with the pixels around it, where it was and where it comes from."""
    video, flow = torch.zeros(1, 3, 2, 11, 11), torch.zeros(1, 1, 11, 11, 2)
    drops = torch.zeros(1, 2, 11, 11, dtype=torch.bool)
    drops[0, 0, 1, 1] = drops[0, 1, 3, 1] = True
    flow[0, 0, 1, 1, 1] = 2
    assert true_motion(video, flow).visible.all()
    for around, rows, columns in ((1, 5, 3), (2, 6, 4)):
        counted = true_motion(video, flow, drops, around).visible[0, 0]
        assert not counted[:rows, :columns].any()
        assert counted[rows:].all()
        assert counted[:, columns:].all()


def test_where_nothing_is_visible_the_error_is_zero_and_not_nan():
    motion = Motion(torch.zeros(1, 1, 4, 4, 2), torch.zeros(1, 1, 4, 4, dtype=torch.bool))
    assert warping_error(torch.randn(1, 3, 2, 4, 4), motion) == 0


def test_descending_the_error_removes_flicker(clip):
    video = video_of(clip)
    motion = true_motion(video, torch.from_numpy(clip.flow)[None])
    guess = (video + 0.1 * torch.randn_like(video)).requires_grad_()
    before = warping_error(guess, motion)
    before.backward()
    after = warping_error(guess - 0.02 * guess.grad.sign(), motion)
    assert after < 0.95 * before
