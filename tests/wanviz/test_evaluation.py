"""The pointing game, on maps and regions whose answer is known."""

import numpy as np
import pytest
import xarray as xr
from tinywan import theatre

from wanviz.errors import OptionError
from wanviz.evaluation import belongs_to_another, evaluate_pointing, peak_pixels, point


def word_map(values: np.ndarray) -> xr.DataArray:
    return xr.DataArray(values.astype(np.float32), dims=("frame", "row", "column"))


def test_the_peak_is_the_middle_of_the_largest_token():
    values = np.zeros((2, 12, 12))
    values[0, 3, 7] = values[1, 11, 0] = 1
    assert peak_pixels(word_map(values), 96, 96).tolist() == [[28, 60], [92, 4]]


def test_a_map_made_of_the_mask_points_at_it_and_a_moved_one_does_not():
    scene = theatre.Scene(
        "woman", "qipao", "red", "umbrella", "blue", "alley", "rain", "walk", "right", seed=3
    )
    region = theatre.render(scene).masks["garment"]
    latent = region[[0, 2, 6, 10, 14]]  # one pixel frame out of each latent frame's
    share = latent.reshape(5, 12, 8, 12, 8).mean(axis=(2, 4))
    hit, centre = point(word_map(share), region)
    assert hit.mean() > 0.9
    assert hit.shape == centre.shape == (17,)
    away, _ = point(word_map(np.roll(share, 6, axis=2)), region)
    assert away.mean() < 0.1


def test_frames_without_the_object_are_no_hits():
    region = np.zeros((5, 96, 96), dtype=bool)
    hit, centre = point(word_map(np.random.default_rng(0).random((2, 12, 12))), region)
    assert not hit.any()
    assert not centre.any()


def test_a_coat_in_the_umbrellas_colour_is_noticed():
    scene = theatre.Scene(
        "man", "coat", "yellow", "umbrella", "blue", "park", "clear", "stand", "left", seed=3
    )
    frames = theatre.render(scene).frames
    assert not belongs_to_another(frames, "yellow", "garment")
    assert not belongs_to_another(frames, "blue", "umbrella")
    assert belongs_to_another(frames, "yellow", "umbrella")
    assert belongs_to_another(frames, "blue", "garment")


def test_no_prompts_is_an_error_that_says_what_to_do():
    with pytest.raises(OptionError, match="use 1 or more"):
        evaluate_pointing(None, prompts=0)  # type: ignore[arg-type]
