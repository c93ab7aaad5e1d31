"""A scene that is staged once more."""

from dataclasses import replace

import numpy as np
import pytest
from tinywan import theatre

MOVES = ("action", "direction", "camera", "wind")


@pytest.mark.parametrize("world", ["first", "whole"])
def test_only_what_moves_is_drawn_anew(world):
    rng = np.random.default_rng(3)
    changed = set()
    for _ in range(60):
        scene = theatre.sample_scene(rng, world=world)
        other = theatre.restage(scene, rng, world)
        assert replace(other, **{name: getattr(scene, name) for name in MOVES}) == scene
        assert not theatre.is_held_out(other)
        changed |= {name for name in MOVES if getattr(scene, name) != getattr(other, name)}
    assert changed == (set(MOVES) if world == "whole" else {"action", "direction"})


def test_wind_blows_only_where_rain_or_snow_shows_it():
    rng = np.random.default_rng(4)
    scenes = [theatre.sample_scene(rng, world="whole") for _ in range(80)]
    clear = [scene for scene in scenes if scene.weather == "clear"]
    assert clear and all(theatre.restage(s, rng, "whole").wind == "none" for s in clear)
