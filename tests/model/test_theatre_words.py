"""What is told of the whole world, in both languages, and how it is counted and shown."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fontTools.ttLib import TTFont
from tinywan.errors import ConfigError
from tinywan.theatre import Scene, caption, contact_sheet, parse, render, sample_scene
from tinywan.theatre.census import FACTORS, count_pairs, count_values, report
from tinywan.theatre.sheet import FONT_PATH, picture_sheet
from tinywan.theatre.wordings import ZH_COLOR, ZH_COMPANION_COLOR

FLAGSHIP = Scene("woman", "qipao", "red", "umbrella", "yellow", "alley", "rain", "walk", "left", 7)
WHOLE = replace(
    FLAGSHIP, camera="zoom in", look="film", companion="dog", companion_color="white", wind="windy",
)  # fmt: skip
COMPANION_WORDS = {
    "dog",
    "puppy",
    "cat",
    "kitten",
    "child",
    "kid",
    "小狗",
    "狗",
    "小猫",
    "猫",
    "孩子",
    "小孩",
}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = np.random.default_rng(40)
    return [sample_scene(rng, "all", "whole") for _ in range(400)]


@pytest.mark.parametrize(
    ("language", "wanted"),
    [
        (
            "en",
            "a woman in a red qipao and a white dog walk in a Jiangnan alley in the wind and rain "
            "with an umbrella, the camera slowly zooms in, shot on old film",
        ),
        (
            "zh",
            "一位穿红色旗袍的女子和一只白色的小狗在江南小巷里撑伞漫步，刮着风下着雨，镜头慢慢推近，胶片质感",
        ),
    ],
)
def test_usual_wording_of_a_whole_scene(language: str, wanted: str) -> None:
    assert caption(WHOLE, language, detail="short").text == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("detail", ["random", "short", "long"])
def test_prompt_of_the_whole_world_is_parsed_back_to_its_scene(
    scenes: list[Scene], language: str, detail: str
) -> None:
    rng = np.random.default_rng(41)
    for scene in scenes:
        text = caption(scene, language, rng, detail).text  # type: ignore[arg-type]
        found = parse(text)
        wrong = {name: value for name, value in found.items() if getattr(scene, name) != value}
        assert not wrong, text
        always = {"subject", "garment", "action"}
        always |= {"garment_color"} if scene.look != "monochrome" else set()
        always |= {"camera"} if scene.camera != "still" else set()
        always |= {"look"} if scene.look != "plain" else set()
        always |= {"companion", "companion_color"} if scene.companion != "none" else set()
        if detail != "random" or "weather" in found:
            always |= {"weather", "wind"} if scene.wind != "none" else set()
        assert always <= set(found), text


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_is_as_usual_is_not_told(language: str) -> None:
    rng = np.random.default_rng(42)
    for _ in range(300):
        found = parse(caption(sample_scene(rng, "all"), language, rng).text)  # type: ignore[arg-type]
        assert not set(found) & {"camera", "look", "companion", "companion_color", "wind"}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_monochrome_tells_no_colour_that_it_hides(scenes: list[Scene], language: str) -> None:
    rng = np.random.default_rng(43)
    for scene in scenes:
        if scene.look == "monochrome":
            told = caption(scene, language, rng).text  # type: ignore[arg-type]
            words = told.lower().replace(",", " ").split() if language == "en" else told
            hidden = ("red", "yellow", "green", "blue", "purple", "pink", *"红黄绿蓝紫粉")
            assert not [word for word in hidden if word in words], told
            assert " a o" not in told  # an overcoat


def test_spans_of_the_whole_world_point_at_visible_parts(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(44)
    for scene in scenes[:60]:
        parts = set(render(scene).masks)
        for language in ("en", "zh"):
            for detail in ("random", "short", "long"):
                told = caption(scene, language, rng, detail)  # type: ignore[arg-type]
                assert set(told.spans) <= parts, told.text
                assert ("companion" in told.spans) == (scene.companion != "none")
                for start, stop in told.spans.get("companion", ()):
                    assert told.text[start:stop] in COMPANION_WORDS, told.text


def test_colours_are_told_of_the_part_that_has_them(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(46)
    chinese = {**ZH_COLOR, **ZH_COMPANION_COLOR}
    told_of = set()
    for scene in scenes:
        for language in ("en", "zh"):
            told = caption(scene, language, rng)  # type: ignore[arg-type]
            assert ("garment" in told.colors) == (scene.look != "monochrome"), told.text
            assert ("companion" in told.colors) == (scene.companion != "none"), told.text
            for part, spans in told.colors.items():
                color = getattr(scene, f"{part}_color")
                for start, stop in spans:
                    word = told.text[start:stop].lower()
                    names = (color,) if language == "en" else (chinese[color], chinese[color][0])
                    assert word in names, told.text
            told_of |= set(told.colors)
            assert not set(told.spans) & {"garment_color", "prop_color", "companion_color"}
    assert told_of == {"garment", "prop", "companion"}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_captions_of_the_whole_world_have_no_marks_left_and_vary(language: str) -> None:
    rng = np.random.default_rng(45)
    texts = {caption(WHOLE, language, rng).text for _ in range(300)}  # type: ignore[arg-type]
    assert len(texts) > 250
    assert not any(set(text) & set("[]{}:") or "  " in text for text in texts)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "A black and white film: an old man and his little black cat run left, camera panning to the right",
            {"subject": "man", "companion": "cat", "companion_color": "black", "action": "run",
             "direction": "left", "camera": "pan right", "look": "monochrome"},
        ),
        (
            "a woman with a child dressed in white in the windy snow, zooming in, static street lamps",
            {"subject": "woman", "companion": "child", "companion_color": "white", "weather": "snow",
             "wind": "windy", "place": "street", "camera": "zoom in"},
        ),
        (
            "老电影风格，一位女士牵着一条棕色小狗在海边散步，背景是白墙，镜头缓缓向左平移",
            {"subject": "woman", "companion": "dog", "companion_color": "brown", "place": "beach",
             "action": "walk", "camera": "pan left", "look": "film"},
        ),
        (
            "风雪里，一个男人和一个穿着黑衣服的小女孩站在街上，固定镜头",
            {"subject": "man", "companion": "child", "companion_color": "black", "weather": "snow",
             "wind": "windy", "action": "stand", "place": "street", "camera": "still"},
        ),
        ("一只穿红色背心的狗和一只猫", {"subject": "dog", "garment": "vest", "garment_color": "red", "companion": "cat"}),
        ("a pan of window glass, its style unwind", {}),
    ],
)  # fmt: skip
def test_prompts_of_people_about_the_whole_world_are_parsed(
    text: str, wanted: dict[str, str]
) -> None:
    assert parse(text) == wanted


# Counts and sheet


def test_census_counts_every_scene_once_per_factor(scenes: list[Scene]) -> None:
    counts = count_values(scenes)
    assert set(counts) == set(FACTORS)
    assert "seed" not in counts
    assert {sum(values.values()) for values in counts.values()} == {len(scenes)}
    dogs = sum(scene.companion == "dog" and scene.companion_color == "white" for scene in scenes)
    assert count_pairs(scenes, "companion", "companion_color")["dog", "white"] == dogs > 0


def test_report_tells_values_and_pairs() -> None:
    text = report([FLAGSHIP, WHOLE, replace(WHOLE, camera="still"), replace(WHOLE, look="plain")])
    assert "4 scenes" in text
    assert "camera          still 2 (50.0%), zoom in 2 (50.0%)" in text
    table = text[text.index("camera by look") :].splitlines()
    assert table[1].split() == ["film", "plain"]
    assert table[2].split() == ["still", "25.0", "25.0"]
    assert table[3].split() == ["zoom", "in", "25.0", "25.0"]
    assert "subject by" not in text  # there is one subject only


def test_sheet_shows_the_frames_asked_for_side_by_side() -> None:
    one, three = (contact_sheet([WHOLE], frames=frames, scale=1) for frames in ((4,), (0, 4, 8)))
    assert three.width - one.width == 2 * 97
    shown = np.asarray(three)[8 : 8 + 96, 8 + 97 : 8 + 97 + 96]
    np.testing.assert_array_equal(shown, render(WHOLE, 9).frames[4])
    with pytest.raises(ConfigError, match=r"frames=\(\) cannot be shown"):
        contact_sheet([WHOLE], frames=())


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_font_of_a_sheet_has_every_character_of_the_captions(language):
    known = TTFont(FONT_PATH).getBestCmap()
    rng = np.random.default_rng(24)
    for _ in range(400):
        text = caption(sample_scene(rng, world="whole"), language, rng).text
        assert not [letter for letter in text if ord(letter) not in known]


def test_a_chinese_caption_is_drawn_below_its_picture() -> None:
    blank, told = (
        np.asarray(picture_sheet([np.zeros((96, 96, 3), np.uint8)], [text], scale=1))
        for text in ("", "撑伞漫步")
    )
    ink = (told[104 : 104 + 17] != blank[0, 0]).any(-1)
    assert (blank[104 : 104 + 17] == blank[0, 0]).all()
    assert all(ink[:, 8 + 13 * n : 8 + 13 * (n + 1)].sum() > 25 for n in range(4))  # each a square


def test_command_counts_both_worlds(tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    command = [sys.executable, "-m", "tinywan.theatre", "--count", "2", "--out", str(out)]
    done = subprocess.run([*command, "--sample", "300"], capture_output=True, text=True, check=True)
    first, whole = done.stdout.split("The first world: ")[1].split("The whole world: ")
    assert "still 300 (100.0%)" in first
    assert "camera by look" not in first
    for line in ("subject by companion", "camera by look", "weather by wind", "pan left"):
        assert line in whole
    assert out.stat().st_size > 1000
    failed = subprocess.run(
        [*command, "--sample", "0"], capture_output=True, text=True, check=False
    )
    assert failed.returncode == 2
    assert "--sample 0 leaves nothing to count" in failed.stderr


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_words_of_the_camera_are_known(language):
    rng = np.random.default_rng(22)
    cameras = {"pan left": ("left", "左"), "pan right": ("right", "右"), "zoom in": ("zoom", "近")}
    for _ in range(60):
        scene = sample_scene(rng, world="whole")
        told = caption(scene, language, rng)
        words = [told.text[start:stop] for start, stop in told.camera]
        if scene.camera == "still":
            assert words == []
            continue
        assert len(words) == 1
        assert any(word in words[0] for word in cameras[scene.camera])
        assert words[0][0] not in "，, "


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_words_of_the_wind_are_known(language):
    rng = np.random.default_rng(23)
    windy = 0
    for _ in range(120):
        scene = sample_scene(rng, world="whole")
        told = caption(scene, language, rng)
        words = [told.text[start:stop] for start, stop in told.spans.get("wind", ())]
        if "wind" in parse(told.text):
            assert words in (["wind"], ["windy"], ["风"])
            windy += 1
        else:
            assert words == []
    assert windy > 10


@pytest.mark.parametrize("language", ["en", "zh"])
def test_deeds_are_the_words_for_what_is_done_and_to_which_side(language):
    rng = np.random.default_rng(21)
    verbs = {
        "walk": ("walk", "stroll", "走", "步"),
        "run": ("run", "跑"),
        "stand": ("stand", "站"),
    }
    sides = {"left": ("left", "左"), "right": ("right", "右")}
    sided = 0
    for _ in range(80):
        scene = sample_scene(rng, world="whole")
        told = caption(scene, language, rng)
        words = [told.text[start:stop] for start, stop in told.deeds]
        assert any(verb in words[0] for verb in verbs[scene.action])
        if len(words) > 1:
            assert any(side in words[1] for side in sides[scene.direction])
            sided += 1
        assert len(words) == 1 + ("direction" in parse(told.text))
    assert 0 < sided < 80
