"""A configuration whose parts cannot work together is refused where it is made."""

import json
from dataclasses import replace
from typing import Any

import pytest
from tinywan.checkpoint import SHIPPED, read_config
from tinywan.errors import CheckpointError, ConfigError
from tinywan.presets import PRESETS, ModelConfig, preset


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"boundary_ratio": 5},
            "boundary_ratio=5 is no noise level: use 0 to 1, e.g. 0.875; -1 leaves all of them to the high-noise "
            "expert, 2 to the low-noise one",
        ),
        ({"boundary_ratio": -0.5}, "boundary_ratio=-0.5 is no noise level"),
        ({"boundary_ratio": float("nan")}, "boundary_ratio=nan is no noise level"),
        ({"num_frames": 16}, "num_frames=16 does not fit the VAE"),
        ({"height": 33}, "height=33 does not fit the VAE"),
        ({"width": 0}, "width=0 does not fit the VAE"),
    ],
)
def test_defaults_that_nobody_could_draw_with_get_a_sentence(
    change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        replace(preset("debug"), **change)


def test_parts_that_do_not_fit_each_other_get_a_sentence() -> None:
    config = preset("debug")
    with pytest.raises(ConfigError, match=r"text\.dim=32 and dit\.text_dim=48: use one number"):
        replace(config, dit=replace(config.dit, text_dim=48))
    sentence = r"vae\.latent_channels=16 and dit\.in_channels=20: use one number for both"
    with pytest.raises(ConfigError, match=sentence):
        replace(config, dit=replace(config.dit, in_channels=20))


@pytest.mark.parametrize("boundary", [-1.0, 0, 0.5, 1, 2.0])
def test_a_boundary_may_lie_anywhere_or_leave_all_levels_to_one_noise_expert(
    boundary: float,
) -> None:
    assert replace(preset("debug"), boundary_ratio=boundary).boundary_ratio == boundary


def test_a_stored_patch_is_read_where_it_is_the_one_that_there_is() -> None:
    stored = json.loads((SHIPPED / "config.json").read_text(encoding="utf-8"))["model"]
    stored["vae"]["patch"] = 4  # written as long as it could be chosen
    assert ModelConfig.from_dict(stored) == read_config(SHIPPED)[0]
    stored["vae"]["patch"] = 2
    with pytest.raises(
        CheckpointError, match="the VAE folds 2 x 2 pixels, and this tinywan's 4 x 4"
    ):
        ModelConfig.from_dict(stored)


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_written_names_no_patch(name: str) -> None:
    assert "patch" not in preset(name).to_dict()["vae"]
