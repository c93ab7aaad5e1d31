"""The whole world: camera, look, companion and wind, on top of a first world that stays as it was."""

import hashlib
from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from tinywan import theatre
from tinywan.errors import ConfigError
from tinywan.theatre import (
    CAMERAS,
    COMPANION_COLORS,
    Clip,
    Scene,
    caption,
    is_held_out,
    parse,
    render,
    sample_scene,
)

FLAGSHIP = Scene("woman", "qipao", "red", "umbrella", "yellow", "alley", "rain", "walk", "left", 7)
CLEAR = replace(FLAGSHIP, place="park", weather="clear", direction="right")
ACTORS = ("subject", "prop", "companion")
PARTICLES = ("rain", "snow", "drips", "wind")
FURS = {"white": 238, "brown": 116, "black": 48}  # how bright each is, 0..255


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(30)
    return [sample_scene(rng, "all", "whole") for _ in range(80)]


@pytest.fixture(scope="module")
def clips(scenes: list[Scene]) -> list[Clip]:
    return [render(scene) for scene in scenes]


def _center(mask: npt.NDArray[np.bool_]) -> float:
    return float(np.nonzero(mask)[1].mean())


# The first world stays


def test_the_first_world_is_drawn_and_told_as_before_there_was_a_whole_one() -> None:
    """The digests were taken from the theatre before it had camera, look, companion and wind."""
    told, drawn = hashlib.sha256(), hashlib.sha256()
    for number, split in enumerate(("train", "held_out", "all")):
        rng, words = np.random.default_rng(number), np.random.default_rng(100 + number)
        for place in range(60):
            scene = sample_scene(rng, split)  # type: ignore[arg-type]
            told.update(repr((*scene.factors, scene.seed, is_held_out(scene))).encode())
            ways = (("random", None), ("random", words), ("short", None), ("long", words))
            for language, (detail, chooser) in product(("en", "zh"), ways):
                tale = caption(scene, language, chooser, detail)  # type: ignore[arg-type]
                found = sorted(parse(tale.text).items())
                told.update(repr((tale.text, sorted(tale.spans.items()), found)).encode())
            if place < 12:
                size = ((96, 96), (64, 80), (48, 32))[place % 3]
                clip = render(scene, (17, 5, 1)[place // 3 % 3], *size)
                drawn.update(clip.frames.tobytes())
                drawn.update((clip.flow + 0).tobytes())
                for name, mask in clip.masks.items():
                    drawn.update(name.encode() + mask.tobytes())
    assert told.hexdigest() == "6f9c911c6d842add0a084c7963ac36c638267aeecae6c3327e6230428ba3e178"
    assert drawn.hexdigest() == "8495a679c788bbfe1fee983561c95c5eaa199f79af44e6b03e3f145696cc7cd6"


def test_a_held_out_combination_is_held_out_in_every_look_and_company() -> None:
    rng = np.random.default_rng(31)
    for _ in range(300):
        scene = sample_scene(rng, "all", "whole")
        usual = replace(
            scene, camera="still", look="plain", companion="none", companion_color="none",
            wind="none",
        )  # fmt: skip
        assert is_held_out(scene) == is_held_out(usual)
    assert not any(is_held_out(sample_scene(rng, "train", "whole")) for _ in range(300))
    assert all(is_held_out(sample_scene(rng, "held_out", "whole")) for _ in range(60))


def test_the_whole_world_draws_every_factor_in_its_share() -> None:
    rng = np.random.default_rng(32)
    sample = [sample_scene(rng, world="whole") for _ in range(6000)]
    for name, value, share, among in (
        *[("camera", camera, 0.25, sample) for camera in CAMERAS],
        ("look", "plain", 0.5, sample),
        ("look", "film", 0.25, sample),
        ("look", "monochrome", 0.25, sample),
        ("companion", "none", 0.4, sample),
        *[
            ("companion", kind, 0.3, [scene for scene in sample if scene.subject == "dog"])
            for kind in ("cat", "child")
        ],
        *[
            ("companion_color", color, 1 / 3, [s for s in sample if s.companion != "none"])
            for color in COMPANION_COLORS
        ],
        ("wind", "windy", 0.5, [scene for scene in sample if scene.weather != "clear"]),
    ):
        found = np.mean([getattr(scene, name) == value for scene in among])
        assert found == pytest.approx(share, abs=0.045), (name, value)
    assert all(scene.companion != scene.subject for scene in sample)


# Any camera, look, companion and wind


def test_whole_scenes_are_drawn_the_same_each_time(scenes: list[Scene], clips: list[Clip]) -> None:
    for scene, clip in zip(scenes[:12], clips, strict=False):
        again = render(scene)
        np.testing.assert_array_equal(again.frames, clip.frames)
        np.testing.assert_array_equal(again.flow, clip.flow)
        assert all((again.masks[name] == mask).all() for name, mask in clip.masks.items())


def test_pixels_of_the_whole_world_are_the_same_on_every_machine() -> None:
    scene = replace(
        FLAGSHIP, camera="zoom in", look="film", companion="dog", companion_color="white",
        wind="windy",
    )  # fmt: skip
    clip = render(scene)
    assert (
        hashlib.sha256(clip.frames.tobytes()).hexdigest()
        == "96a0908381dfa4cf490a4e94e8de3f767d1a05e7d1e2b196c72489e8d2676c37"
    )


def test_short_clip_of_the_whole_world_is_the_beginning_of_the_usual_one(
    scenes: list[Scene], clips: list[Clip]
) -> None:
    for scene, clip in zip(scenes[:24], clips, strict=False):
        for count in (1, 6):
            start = render(scene, count)
            np.testing.assert_array_equal(start.frames, clip.frames[:count])
            np.testing.assert_array_equal(start.flow, clip.flow[: count - 1])
            for name, mask in start.masks.items():
                np.testing.assert_array_equal(mask, clip.masks[name][:count])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 48), (64, 96), (96, 96), (128, 128)])
def test_masks_of_the_whole_world_are_complete_at_every_size(height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    for _ in range(16):
        scene = sample_scene(rng, "all", "whole")
        clip = render(scene, 17, height, width)
        empty = [part for part, mask in clip.masks.items() if not mask.any()]
        assert not empty, f"{empty} never seen in {scene}"
        assert ("companion" in clip.masks) == (scene.companion != "none")
        owners = [clip.masks[name] for name in (*ACTORS, *PARTICLES, "place") if name in clip.masks]
        np.testing.assert_array_equal(np.sum(owners, axis=0), 1)
        known = ("subject", "garment", "prop", "companion", *PARTICLES, "place")
        scenery = np.sum([clip.masks[name] for name in clip.masks if name not in known], axis=0)
        np.testing.assert_array_equal(scenery, clip.masks["place"], err_msg=repr(scene))


# Look


def test_look_changes_colours_only() -> None:
    plain = render(FLAGSHIP)
    for look in ("film", "monochrome"):
        clip = render(replace(FLAGSHIP, look=look))
        np.testing.assert_array_equal(clip.flow, plain.flow)
        assert all((clip.masks[name] == mask).all() for name, mask in plain.masks.items())
        assert (clip.frames != plain.frames).mean() > 0.9


def test_monochrome_is_gray_and_keeps_light_and_dark() -> None:
    plain, gray = render(FLAGSHIP), render(replace(FLAGSHIP, look="monochrome"))
    assert not np.ptp(gray.frames, axis=-1).any()
    before, after = plain.frames.mean(axis=-1).ravel(), gray.frames[..., 0].ravel()
    assert np.corrcoef(before, after)[0, 1] > 0.9


def test_film_is_warm_dark_in_the_corners_and_grainy() -> None:
    scene = replace(CLEAR, place="street", action="stand")
    plain, film = (
        render(replace(scene, look=look)).frames.astype(float) for look in ("plain", "film")
    )
    warmth = [(frames[..., 0] - frames[..., 2]).mean() for frames in (plain, film)]
    assert warmth[1] > warmth[0] + 15
    bright = film.mean(axis=(0, 3)) / (plain.mean(axis=(0, 3)) + 20)
    corners = np.mean([bright[:12, :12], bright[:12, -12:], bright[-12:, :12], bright[-12:, -12:]])
    assert corners < 0.75 * bright[36:60, 36:60].mean()
    grain = np.diff(film, axis=0)[:, :30, :30].std()  # nothing moves there
    assert 2 < grain < 8
    assert np.diff(plain, axis=0)[:, :30, :30].std() == 0


def test_garment_keeps_its_colour_name_on_film(scenes: list[Scene], clips: list[Clip]) -> None:
    from tinywan.theatre.palette import COSTUME

    for scene, clip in zip(scenes, clips, strict=True):
        if scene.look == "film":
            red, green, blue = np.median(clip.frames[clip.masks["garment"]], axis=0)
            found = np.array((red / 230, green / 215, blue / 175)) * 255
            near = {name: np.abs(found - color).sum() for name, color in COSTUME.items()}
            assert min(near, key=near.__getitem__) == scene.garment_color, scene


# Companion


@pytest.mark.parametrize("subject", theatre.SUBJECTS)
def test_companion_is_seen_beside_the_subject_in_its_colour(subject: str) -> None:
    for kind, color in product(theatre.companions_of(subject)[:-1], COMPANION_COLORS):
        garment = theatre.GARMENTS[subject][0]
        scene = replace(
            CLEAR, subject=subject, garment=garment, prop="none", prop_color="none", companion=kind,
            companion_color=color,
        )  # fmt: skip
        clip = render(scene)
        mask = clip.masks["companion"]
        assert (mask.sum(axis=(1, 2)) > 150).all()
        between = abs(_center(mask[8]) - _center(clip.masks["subject"][8]))
        assert 10 < between < 45
        bright = np.median(clip.frames[mask].mean(axis=-1))
        if kind != "child":  # whose face and trousers have colours of their own
            assert min(FURS, key=lambda name: abs(FURS[name] - bright)) == color
        assert np.ptp(clip.frames[mask].astype(int), axis=-1).max() < 125  # never like a garment


def test_companions_differ_in_shape_and_children_in_the_colour_of_their_clothes() -> None:
    seen = {
        kind: render(
            replace(CLEAR, companion=kind, companion_color="white"), 1
        ).masks["companion"].any(axis=(0, 2)).sum()
        for kind in ("dog", "cat", "child")
    }  # fmt: skip
    assert seen["dog"] + 2 <= seen["cat"] < seen["child"] - 8
    masks = [
        render(replace(CLEAR, companion="child", companion_color=color), 1)
        for color in COMPANION_COLORS
    ]
    bright = [clip.frames[clip.masks["companion"]].mean() for clip in masks]
    assert bright[0] - 8 > bright[2] > bright[1] + 8  # of which the sweater is a part


@pytest.mark.parametrize("action", theatre.ACTIONS)
def test_companion_goes_with_the_subject(action: str) -> None:
    scene = replace(CLEAR, action=action, companion="cat", companion_color="black")
    clip = render(scene)
    for t in range(16):
        speeds = {
            float(dx)
            for name in ACTORS
            for dx in np.unique(clip.flow[t][clip.masks[name][t]][:, 0])
        }
        assert len(speeds) == 1
    legs = clip.masks["companion"].any(axis=1).sum(axis=1)
    if action != "stand":
        assert len(set(legs.tolist())) > 1  # it moves its legs


def test_companion_is_now_ahead_and_now_behind() -> None:
    sides = set()
    for seed in range(12):
        masks = render(replace(CLEAR, seed=seed, companion="dog", companion_color="white"), 1).masks
        sides.add(_center(masks["companion"][0]) > _center(masks["garment"][0]))
        lantern = replace(
            CLEAR, prop="lantern", seed=seed, companion="dog", companion_color="white"
        )
        masks = render(lantern, 1).masks
        assert _center(masks["companion"][0]) < _center(masks["garment"][0])
    assert sides == {True, False}


# Wind


@pytest.mark.parametrize(("weather", "down"), [("rain", 4), ("snow", 1)])
def test_wind_drives_rain_and_snow_sideways(weather: str, down: int) -> None:
    for seed in range(8):
        scene = replace(CLEAR, weather=weather, seed=seed)
        calm, windy = (
            np.unique(clip.flow[clip.masks[weather][:-1]], axis=0)
            for clip in (render(scene), render(replace(scene, wind="windy")))
        )
        assert np.abs(calm[:, 0]).max() <= 1
        np.testing.assert_array_equal(windy, [[3 if seed % 2 else -3, down]])


def test_rain_in_the_wind_is_drawn_slanted() -> None:
    """One pixel lower, a streak goes on to the side to which it falls."""
    for seed, side in ((0, -1), (1, 1)):
        clip = render(replace(CLEAR, weather="rain", wind="windy", seed=seed))
        rain = clip.masks["rain"]
        along = (rain[:, :-3] & np.roll(rain, -2 * side, axis=2)[:, 3:]).sum()
        against = (rain[:, :-3] & np.roll(rain, 2 * side, axis=2)[:, 3:]).sum()
        assert along > 3 * against


@pytest.mark.parametrize("weather", ["rain", "snow"])
def test_wind_sweeps_spray_over_the_ground_to_the_side_to_which_it_blows(weather: str) -> None:
    for seed in range(8):
        scene = replace(CLEAR, weather=weather, seed=seed)
        calm, windy = render(scene), render(replace(scene, wind="windy"))
        assert "wind" not in calm.masks
        spray = windy.masks["wind"]
        moved = np.unique(windy.flow[spray[:-1]], axis=0)
        np.testing.assert_array_equal(moved, [[4 if seed % 2 else -4, 0]])
        rows = np.nonzero(spray)[1]
        assert 96 * 0.36 <= rows.min() and rows.max() < 96 * 0.94
        assert 0.06 < spray.mean() < 0.3


def test_what_the_wind_whirls_up_is_behind_those_who_act(
    scenes: list[Scene], clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinywan.theatre.painter.blow", lambda *_: None)
    windy = 0
    for scene, clip in zip(scenes, clips, strict=True):
        if scene.wind == "none":
            continue
        windy += 1
        without = render(scene)
        assert "wind" in clip.masks and "wind" not in without.masks
        for name in {*ACTORS, "rain", "snow", "drips"} & clip.masks.keys():
            np.testing.assert_array_equal(clip.masks[name], without.masks[name])
    assert windy > 15


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"camera": "dolly"}, "camera='dolly' is not in the theatre: use one of still, pan left"),
        ({"look": "sepia"}, "look='sepia' .* use one of plain, film, monochrome"),
        (
            {"companion": "horse"},
            "companion of a woman='horse' .* use one of dog, cat, child, none",
        ),
        ({"companion": "cat"}, "companion_color='none' .* use one of white, black, brown"),
        ({"companion_color": "white"}, "companion_color='white' .* use one of none"),
        ({"weather": "clear", "wind": "windy"}, "wind='windy' .* use one of none"),
    ],
)
def test_scene_outside_the_whole_world_gets_a_sentence(
    change: dict[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(FLAGSHIP, **change)  # type: ignore[arg-type]


def test_two_of_one_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"companion of a child='child' .* use one of dog, cat"):
        replace(
            FLAGSHIP, subject="child", garment="raincoat", companion="child",
            companion_color="white",
        )  # fmt: skip


def test_unknown_world_gets_a_sentence() -> None:
    with pytest.raises(ConfigError, match="world='new' is unknown: use one of first, whole"):
        sample_scene(np.random.default_rng(0), world="new")  # type: ignore[arg-type]
