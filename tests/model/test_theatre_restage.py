"""A scene that is staged once more."""

from dataclasses import replace

import numpy as np
import pytest
from tinywan import theatre
from tinywan.errors import ConfigError

MOVES = theatre.STAGING


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


@pytest.mark.parametrize("only", MOVES)
def test_one_thing_alone_can_be_drawn_anew(only):
    rng = np.random.default_rng(5)
    changed = 0
    for _ in range(60):
        scene = theatre.sample_scene(rng, world="whole")
        other = theatre.restage(scene, rng, "whole", only)
        assert replace(other, **{only: getattr(scene, only)}) == scene
        assert not theatre.is_held_out(other)
        changed += other != scene
    assert changed > 15


@pytest.mark.parametrize(("world", "only"), [("first", "wind"), ("whole", "place")])
def test_what_cannot_be_drawn_anew_is_refused(rng, world, only):
    with pytest.raises(
        ConfigError, match=f"only='{only}' is not in the theatre: use one of action"
    ):
        theatre.restage(theatre.sample_scene(rng, world=world), rng, world, only)
