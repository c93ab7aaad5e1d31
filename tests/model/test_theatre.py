"""The training world: what it draws, what it says about it, and that both agree."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tinywan import theatre
from tinywan.errors import ConfigError
from tinywan.theatre import Scene, caption, is_held_out, parse, render, sample_scene
from tinywan.theatre.palette import COSTUME

FLAGSHIP = Scene(
    subject="woman",
    garment="qipao",
    garment_color="red",
    prop="umbrella",
    prop_color="yellow",
    place="alley",
    weather="rain",
    action="walk",
    direction="left",
    seed=7,
)
PARTICLES = ("rain", "snow", "drips")


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(20)
    return [sample_scene(rng, "all") for _ in range(60)]


@pytest.fixture(scope="module")
def clips(scenes: list[Scene]) -> list[theatre.Clip]:
    return [render(scene) for scene in scenes]


def test_clip_has_the_shapes_of_the_contract() -> None:
    clip = render(FLAGSHIP, num_frames=5, height=64, width=80)
    assert clip.frames.shape == (5, 64, 80, 3)
    assert clip.frames.dtype == np.uint8
    assert clip.flow.shape == (4, 64, 80, 2)
    assert clip.flow.dtype == np.float32
    assert {mask.shape for mask in clip.masks.values()} == {(5, 64, 80)}
    assert {mask.dtype for mask in clip.masks.values()} == {np.dtype(bool)}


def test_pixels_are_the_same_on_every_machine() -> None:
    clip = render(FLAGSHIP)
    flow = clip.flow + 0  # a zero has no sign
    digest = hashlib.sha256(clip.frames.tobytes() + flow.tobytes()).hexdigest()
    assert digest == "dc613cc2517e46523771c20cfaabe7ba357ff8ea37aaf824c21ee7387b128541"


def test_render_does_not_depend_on_earlier_calls_or_global_randomness() -> None:
    first = render(FLAGSHIP)
    np.random.seed(3)  # noqa: NPY002  (the global generator is what must not matter)
    render(replace(FLAGSHIP, seed=8))
    again = render(FLAGSHIP)
    np.testing.assert_array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, render(replace(FLAGSHIP, seed=8)).frames)


@pytest.mark.parametrize("action", theatre.ACTIONS)
def test_short_clip_is_the_beginning_of_the_usual_one(action: str) -> None:
    scene = replace(FLAGSHIP, action=action)
    whole, start, still = render(scene), render(scene, num_frames=5), render(scene, num_frames=1)
    np.testing.assert_array_equal(whole.frames[:5], start.frames)
    np.testing.assert_array_equal(whole.frames[:1], still.frames)
    assert still.flow.shape == (0, 96, 96, 2)


@pytest.mark.parametrize("size", [32, 48, 64, 96, 128])
def test_every_mask_is_seen_at_every_size(size: int) -> None:
    rng = np.random.default_rng(size)
    for _ in range(12):
        scene = sample_scene(rng, "all")
        clip = render(scene, 5, size, size)
        empty = [part for part, mask in clip.masks.items() if not mask.any()]
        assert not empty, f"{empty} never seen in {scene}"


def test_masks_name_what_the_scene_holds(scenes: list[Scene], clips: list[theatre.Clip]) -> None:
    for scene, clip in zip(scenes, clips, strict=True):
        parts = set(clip.masks)
        assert {"subject", "garment", "road", "place", "sky"} <= parts
        assert ("prop" in parts) == (scene.prop != "none")
        assert ("eaves" in parts) == (scene.place == "alley")
        assert {name for name in ("rain", "snow") if name in parts} == {scene.weather} - {"clear"}
        assert ("drips" in parts) == (scene.place == "alley" and scene.weather == "rain")


def test_every_pixel_has_exactly_one_owner(clips: list[theatre.Clip]) -> None:
    for clip in clips:
        owners = [
            clip.masks[name]
            for name in ("subject", "prop", "place", *PARTICLES)
            if name in clip.masks
        ]
        np.testing.assert_array_equal(np.sum(owners, axis=0), 1)
        assert not (clip.masks["garment"] & ~clip.masks["subject"]).any()


def test_subject_and_prop_stay_inside_the_picture(clips: list[theatre.Clip]) -> None:
    for clip in clips:
        body = clip.masks["subject"] | clip.masks.get("prop", np.False_)
        for border in (body[:, 0], body[:, -1], body[:, :, 0], body[:, :, -1]):
            assert not border.any()


def test_garment_pixels_have_the_garment_colour(
    scenes: list[Scene], clips: list[theatre.Clip]
) -> None:
    for scene, clip in zip(scenes, clips, strict=True):
        median = np.median(clip.frames[clip.masks["garment"]], axis=0)
        nearest = min(COSTUME, key=lambda name: np.abs(np.array(COSTUME[name]) - median).sum())
        assert nearest == scene.garment_color, scene


def test_scenery_is_muted_and_costume_is_not(clips: list[theatre.Clip]) -> None:
    for clip in clips:
        pixels = clip.frames[clip.masks["place"]].astype(int)
        away = pixels[np.ptp(pixels, axis=-1) > 80]  # edges of the costume may blend into it
        assert len(away) < 0.01 * len(pixels)
        garment = clip.frames[clip.masks["garment"]].astype(int)
        assert np.median(np.ptp(garment, axis=-1)) > 100


def test_the_six_colours_are_far_apart() -> None:
    names = list(COSTUME)
    for place, name in enumerate(names):
        for other in names[place + 1 :]:
            assert np.linalg.norm(np.subtract(COSTUME[name], COSTUME[other])) > 80, (name, other)


def test_flow_carries_each_frame_into_the_next(clips: list[theatre.Clip]) -> None:
    """Where nothing gets covered or uncovered, the colour arrives where the flow says."""
    for clip in clips:
        owner = np.zeros(clip.frames.shape[:3], np.uint8)
        for number, name in enumerate(("subject", "prop", "place", *PARTICLES)):
            owner[clip.masks.get(name, np.zeros(owner.shape, bool))] = number
        same = total = 0
        for t in range(len(clip.flow)):
            rows, columns = np.mgrid[0:96, 0:96]
            to_row = (rows + clip.flow[t, ..., 1]).astype(int)
            to_column = (columns + clip.flow[t, ..., 0]).astype(int)
            inside = (to_row >= 0) & (to_row < 96) & (to_column >= 0) & (to_column < 96)
            to_row, to_column = to_row[inside], to_column[inside]
            kept = owner[t][inside] == owner[t + 1][to_row, to_column]
            change = np.abs(
                clip.frames[t][inside].astype(int)
                - clip.frames[t + 1][to_row, to_column].astype(int)
            ).max(axis=-1)
            assert kept.mean() > 0.85
            same += int((change[kept] < 48).sum())
            total += int(kept.sum())
        assert same / total > 0.97


def test_flow_of_a_walker_is_his_own_movement() -> None:
    clip = render(replace(FLAGSHIP, weather="clear"))
    center = [np.nonzero(mask)[1].mean() for mask in clip.masks["garment"]]
    flow = [clip.flow[t, ..., 0][clip.masks["garment"][t]].mean() for t in range(16)]
    np.testing.assert_allclose(np.sum(flow), center[-1] - center[0], atol=0.6)
    assert np.sum(flow) == pytest.approx(-16, abs=1)  # to the left, one pixel a frame
    assert not clip.flow[:, clip.masks["place"][:-1].all(axis=0)].any()


@pytest.mark.parametrize(("action", "pixels"), [("stand", 0), ("walk", 16), ("run", 32)])
def test_runners_go_twice_as_far_as_walkers(action: str, pixels: int) -> None:
    for direction, sign in (("left", -1), ("right", 1)):
        scene = replace(FLAGSHIP, action=action, direction=direction, weather="clear")
        garment = render(scene).masks["garment"]
        first, last = (np.nonzero(garment[t])[1].mean() for t in (0, 16))
        assert last - first == pytest.approx(sign * pixels, abs=1.5)


@pytest.mark.parametrize(("weather", "pixels"), [("rain", 4), ("snow", 1)])
def test_rain_and_snow_fall(weather: str, pixels: int) -> None:
    clip = render(replace(FLAGSHIP, place="park", weather=weather))
    falling = clip.flow[clip.masks[weather][:-1]]
    np.testing.assert_array_equal(falling[:, 1], pixels)


def test_mirrored_direction_faces_the_other_way() -> None:
    """A lantern is carried in front."""
    for direction, sign in (("left", -1), ("right", 1)):
        masks = render(replace(FLAGSHIP, prop="lantern", direction=direction), num_frames=1).masks
        ahead = np.nonzero(masks["prop"])[2].mean() - np.nonzero(masks["garment"])[2].mean()
        assert sign * ahead > 8


def test_umbrella_is_above_the_garment(scenes: list[Scene], clips: list[theatre.Clip]) -> None:
    for scene, clip in zip(scenes, clips, strict=True):
        if scene.prop == "umbrella":
            prop, garment = (np.nonzero(clip.masks[name])[1].mean() for name in ("prop", "garment"))
            assert prop < garment - 10


# Captions


def test_flagship_prompts_are_in_the_language_of_the_theatre() -> None:
    short, long = (caption(FLAGSHIP, "zh", detail=detail).text for detail in ("short", "long"))
    assert short == "一位穿红色旗袍的女子在江南雨巷撑伞漫步"
    assert long == "一位穿红色旗袍的女子在江南雨巷撑伞漫步，背景有青石板路和屋檐滴水"


@pytest.mark.parametrize(
    ("language", "detail", "scene", "wanted"),
    [
        ("zh", "short", FLAGSHIP, "一位穿红色旗袍的女子在江南雨巷撑伞漫步"),
        ("en", "random", FLAGSHIP, "a woman in a red qipao walks in the rain with an umbrella"),
        (
            "zh",
            "random",
            replace(
                FLAGSHIP,
                subject="man",
                garment="coat",
                garment_color="blue",
                place="park",
                weather="snow",
            ),
            "一个穿蓝色大衣的男子在公园里打着黄色的伞向左走，下着雪",
        ),
    ],
)
def test_natural_sentences_come_up_at_random(
    language: str, detail: str, scene: Scene, wanted: str
) -> None:
    rng = np.random.default_rng(0)
    assert any(caption(scene, language, rng, detail).text == wanted for _ in range(30000))


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("detail", ["random", "short", "long"])
def test_prompt_is_parsed_back_to_its_scene(language: str, detail: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(400):
        scene = sample_scene(rng, "all")
        text = caption(scene, language, rng, detail).text
        found = parse(text)
        wrong = {name: value for name, value in found.items() if getattr(scene, name) != value}
        assert not wrong, text
        assert {"subject", "garment", "garment_color", "action"} <= set(found), text
        assert ("prop" in found) == (scene.prop != "none"), text
        if detail != "random":
            assert {"place", "weather"} <= set(found), text


def test_prompts_of_people_are_parsed() -> None:
    assert parse("A lady wearing a long blue coat strolls along the seaside under a small pink parasol, it is snowing") == {
        "subject": "woman", "garment": "coat", "garment_color": "blue", "prop": "umbrella", "prop_color": "pink",
        "place": "beach", "weather": "snow", "action": "walk",
    }  # fmt: skip
    assert parse("穿黄雨衣的小孩提着红灯笼在街上往右跑") == {
        "subject": "child", "garment": "raincoat", "garment_color": "yellow", "prop": "lantern",
        "prop_color": "red", "place": "street", "action": "run", "direction": "right",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "🙂", "a train of thought", "trained in the raincoat", "İ" * 9 + "\x00"]
)
def test_parse_finds_nothing_that_is_not_said(text: str) -> None:
    found = parse(text)
    assert set(found) <= {"garment"}, found
    assert "weather" not in found


def test_spans_point_at_the_words_of_visible_parts(
    scenes: list[Scene], clips: list[theatre.Clip]
) -> None:
    words = {
        "garment": set("袍衣衫心") | {"qipao", "cheongsam", "coat", "overcoat", "shirt", "raincoat", "sweater", "jumper", "vest"},
        "prop": set("伞笼") | {"umbrella", "lantern"},
        "rain": {"雨", "rain", "rainy", "rains", "raining"},
        "snow": {"雪", "花", "snow", "snowy", "snows", "snowing"},
        "eaves": {"檐", "eaves"},
    }  # fmt: skip
    rng = np.random.default_rng(2)
    for scene, clip in zip(scenes, clips, strict=True):
        for language in ("en", "zh"):
            for detail in ("random", "short", "long"):
                told = caption(scene, language, rng, detail)
                assert {"subject", "garment"} <= set(told.spans)
                assert set(told.spans) <= set(clip.masks)
                for part, spans in told.spans.items():
                    for start, stop in spans:
                        word = told.text[start:stop]
                        assert word.strip() == word != ""
                        ending = word if language == "en" else word[-1]
                        assert ending in words.get(part, {ending}), told.text


def test_captions_have_no_marks_left_and_vary() -> None:
    rng = np.random.default_rng(3)
    for language in ("en", "zh"):
        texts = {caption(FLAGSHIP, language, rng).text for _ in range(300)}
        assert len(texts) > 150
        assert not any(set(text) & set("[]{}:") or "  " in text for text in texts)


def test_caption_without_a_generator_follows_from_the_scene() -> None:
    assert caption(FLAGSHIP, "en") == caption(FLAGSHIP, "en")


# The split


def test_a_tenth_of_the_scenes_is_held_out() -> None:
    rng = np.random.default_rng(4)
    share = np.mean([is_held_out(sample_scene(rng, "all")) for _ in range(10000)])
    assert 0.08 < share < 0.12


def test_held_out_scenes_are_never_trained_on() -> None:
    rng = np.random.default_rng(5)
    assert not any(is_held_out(sample_scene(rng, "train")) for _ in range(2000))
    assert all(is_held_out(sample_scene(rng, "held_out")) for _ in range(200))


def test_seed_does_not_decide_what_is_held_out() -> None:
    rng = np.random.default_rng(6)
    for _ in range(50):
        scene = sample_scene(rng, "all")
        assert is_held_out(scene) == is_held_out(replace(scene, seed=scene.seed + 1))


def test_factors_are_balanced_and_prop_and_garment_differ_in_colour() -> None:
    rng = np.random.default_rng(7)
    sample = [sample_scene(rng) for _ in range(6000)]
    for name, values in (
        ("subject", theatre.SUBJECTS), ("garment_color", theatre.COLORS), ("place", theatre.PLACES),
        ("weather", theatre.WEATHERS), ("action", theatre.ACTIONS), ("direction", theatre.DIRECTIONS),
    ):  # fmt: skip
        shares = [np.mean([getattr(scene, name) == value for scene in sample]) for value in values]
        np.testing.assert_allclose(shares, 1 / len(values), atol=0.03, err_msg=name)
    assert all(scene.garment_color != scene.prop_color for scene in sample)


# Bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subject": "cat"}, "subject='cat' is not in the theatre: use one of woman, man"),
        ({"garment": "vest"}, "garment of a woman='vest' .* use one of qipao, coat"),
        ({"prop": "none"}, "prop_color='yellow' .* use one of none"),
        ({"garment_color": "teal"}, "garment_color='teal' .* use one of red"),
        ({"seed": -1}, "seed=-1 cannot seed a scene: use 0 or more"),
    ],
)
def test_scene_outside_the_theatre_gets_a_sentence(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(FLAGSHIP, **change)


def test_dog_carries_no_umbrella() -> None:
    with pytest.raises(ConfigError, match="use one of lantern, none"):
        replace(FLAGSHIP, subject="dog", garment="vest")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames=0 cannot be drawn: use 1 or more"),
        ({"height": 16}, "16x96 pixels are too few .* use 32 or more"),
    ],
)
def test_size_that_cannot_be_drawn_gets_a_sentence(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        render(FLAGSHIP, **options)


def test_unknown_split_language_and_detail_get_a_sentence() -> None:
    with pytest.raises(
        ConfigError, match="split='test' is unknown: use one of train, held_out, all"
    ):
        sample_scene(np.random.default_rng(0), "test")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"language='fr' .* use 'en' or 'zh'"):
        caption(FLAGSHIP, "fr")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="detail='full' is unknown"):
        caption(FLAGSHIP, "en", detail="full")  # type: ignore[arg-type]


def test_command_draws_a_sheet_and_counts_factors(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tinywan.theatre", "--count", "3", "--sample", "50"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "sheet.png"], capture_output=True, text=True, check=True
    )
    assert "garment_color" in done.stdout
    assert (tmp_path / "sheet.png").stat().st_size > 1000
    failed = subprocess.run(
        [*command, "--out", tmp_path / "absent" / "sheet.png"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode == 2
    assert "sheet.png" in failed.stderr
    assert "Traceback" not in failed.stderr
