"""The judge is right on clips whose truth is known, and the evaluation counts what it says."""

import json
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tinywan import evaluate as evaluation
from tinywan.errors import ConfigError
from tinywan.judge import degrade, find_region, measure
from tinywan.probes import Probe, accuracy
from tinywan.theatre import PLACES, Scene, is_held_out, parse, render, sample_scene

SCENE = Scene("woman", "qipao", "red", "umbrella", "yellow", "alley", "rain", "walk", "left", 7)
CLIPS = 100


def overlap(found: np.ndarray, true: np.ndarray) -> float:
    """Intersection over union."""
    return float((found & true).sum() / (found | true).sum())


class Painter:
    """Stands for a model: renders the scene that its prompt asks for, or one changed by `lie`."""

    def __init__(self, **lie: str) -> None:
        self.lie = lie
        self.seeds: list[int] = []

    def __call__(self, prompt: str, *, seed: int, progress_bar: bool, **options: Any) -> Any:
        self.seeds.append(seed)
        usual = {field.name: getattr(SCENE, field.name) for field in fields(Scene)}
        named = parse(prompt)
        if named["subject"] == "dog" or "prop" not in named:
            usual |= {"prop": "none", "prop_color": "none"}
        scene = Scene(**{**usual, "seed": seed, **named, **self.lie})
        return SimpleNamespace(frames=render(scene).frames[None] / np.float32(255))


class OneAnswer(Probe):
    """Sees the same scene in every clip."""

    def read(self, frames: np.ndarray) -> dict[str, str]:
        assert frames.shape == (17, 96, 96, 3)
        return {name: getattr(SCENE, name) for name in self.factors}


@pytest.fixture(autouse=True)
def probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "load_probe", lambda: OneAnswer().eval())


@pytest.mark.parametrize(("blur", "noise"), [(None, None), (1.0, 6.0), (2.0, 10.0)])
def test_judge_is_right_on_held_out_clips(blur: float | None, noise: float | None) -> None:
    rng = np.random.default_rng(11)
    right = []
    for _ in range(CLIPS):
        scene = sample_scene(rng, "held_out")
        frames = render(scene, 5).frames
        if blur is not None and noise is not None:
            frames = degrade(frames, rng, blur, noise)
        found = measure(frames)
        right.append((found.garment_color == scene.garment_color, found.place == scene.place))
    garment, place = np.mean(right, axis=0)
    assert garment >= 0.98
    assert place >= 0.98


@pytest.mark.parametrize("size", [32, 64, 128])
def test_judge_is_right_at_other_sizes(size: int) -> None:
    rng = np.random.default_rng(12)
    scenes = [sample_scene(rng, "held_out") for _ in range(40)]
    found = [measure(render(scene, 5, size, size).frames) for scene in scenes]
    pairs = zip(scenes, found, strict=True)
    right = [(scene.garment_color, scene.place) == (m.garment_color, m.place) for scene, m in pairs]
    assert np.mean(right) >= 0.95


def test_judge_sees_the_prop_and_where_both_are() -> None:
    rng = np.random.default_rng(13)
    right, garments, props = [], [], []
    for _ in range(60):
        scene = sample_scene(rng, "held_out")
        clip = render(scene, 5)
        found = measure(clip.frames)
        right.append(found.prop_color == scene.prop_color)
        garments.append(overlap(found.garment_region, clip.masks["garment"]))
        if scene.prop != "none":
            props.append(overlap(found.prop_region, clip.masks["prop"]))
    assert np.mean(right) >= 0.97
    assert np.mean(garments) > 0.8
    assert np.mean(props) > 0.6


def test_judge_reads_uint8_and_float_alike() -> None:
    frames = render(SCENE, 5).frames
    first, second = measure(frames), measure(frames / np.float32(255))
    assert (first.garment_color, first.place) == (second.garment_color, second.place)
    np.testing.assert_array_equal(first.garment_region, second.garment_region)


def test_judge_finds_no_garment_in_grey_or_noise_free_scenery() -> None:
    found = measure(np.full((3, 96, 96, 3), 128, np.uint8))
    assert found.garment_color == found.prop_color == "none"
    assert not found.garment_region.any()


@pytest.mark.parametrize("place", PLACES)
def test_judge_follows_the_pixels_when_the_garment_is_repainted(place: str) -> None:
    """It must not know the colour from anything else than the garment."""
    clip = render(replace(SCENE, place=place, weather="clear"), 3)
    frames = clip.frames.copy()
    frames[clip.masks["garment"]] = (24, 156, 66)
    assert measure(frames).garment_color == "green"


def test_region_of_each_colour_is_the_thing_that_has_it() -> None:
    clip = render(SCENE)
    umbrella, garment = (
        find_region(clip.frames, "yellow", "umbrella"),
        find_region(clip.frames, "red"),
    )
    assert overlap(umbrella, clip.masks["prop"]) > 0.6
    assert overlap(garment, clip.masks["garment"]) > 0.8
    assert not find_region(clip.frames, "green").any()


def test_umbrella_and_garment_of_one_colour_are_told_apart_by_height() -> None:
    clip = render(replace(SCENE, prop_color="red", weather="clear"))
    umbrella = find_region(clip.frames, "red", "umbrella")
    garment = find_region(clip.frames, "red", "garment")
    assert overlap(umbrella, clip.masks["prop"]) > 0.6
    assert overlap(garment, clip.masks["garment"]) > 0.8
    assert not (umbrella & garment).any()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((96, 96, 3), np.uint8), r"shape \(96, 96, 3\) are not a clip"),
        (np.zeros((1, 96, 96, 3), np.int64), "int64 cannot be judged: use uint8, or float"),
        (np.full((1, 96, 96, 3), 2.0, np.float32), r"reach outside \[0, 1\]"),
        (np.full((1, 96, 96, 3), np.nan, np.float32), r"reach outside \[0, 1\]"),
    ],
)
def test_what_is_no_clip_gets_a_sentence(frames: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure(frames)


def test_unknown_colour_and_role_get_a_sentence() -> None:
    frames = render(SCENE, 1).frames
    with pytest.raises(ConfigError, match="color='teal' is not in the theatre: use one of red"):
        find_region(frames, "teal")
    with pytest.raises(ConfigError, match="role='hat' cannot be looked for"):
        find_region(frames, "red", "hat")  # type: ignore[arg-type]


def test_degrading_blurs_and_adds_noise_of_the_given_strength(rng: np.random.Generator) -> None:
    grey = np.full((4, 64, 64, 3), 128, np.uint8)
    assert degrade(grey, rng, noise=6.0).std() == pytest.approx(6.0, rel=0.05)
    point = np.zeros((1, 33, 33, 3), np.uint8)
    point[0, 16, 16] = 255
    peak = degrade(point, rng, blur=1.0, noise=0.0)[0, 16, 16, 0]
    assert peak == pytest.approx(255 / (2 * np.pi), abs=1.5)


@pytest.mark.parametrize("blur", [0.0, -1.0, float("nan")])
def test_a_blur_of_nothing_gets_a_sentence(rng: np.random.Generator, blur: float) -> None:
    with pytest.raises(ConfigError, match=f"blur={blur} cannot blur: use more than 0 pixels"):
        degrade(np.zeros((1, 8, 8, 3), np.uint8), rng, blur=blur)


# The evaluation


def test_prompts_are_held_out_half_chinese_and_name_what_is_judged() -> None:
    prompts = evaluation.sample_prompts(20, seed=3)
    assert [told.language for _, told in prompts] == ["en", "zh"] * 10
    for scene, told in prompts:
        assert is_held_out(scene)
        named = parse(told.text)
        assert (named["place"], named["garment_color"]) == (scene.place, scene.garment_color)
        assert named.get("prop_color", "none") == scene.prop_color
    assert prompts == evaluation.sample_prompts(20, seed=3)
    assert prompts != evaluation.sample_prompts(20, seed=4)


def test_painter_that_obeys_scores_full_marks() -> None:
    pipe = Painter()
    prompts = evaluation.sample_prompts(8)
    findings, pictures = evaluation.evaluate(pipe, prompts, 5, judge_clips=2, progress_bar=False)
    found = findings["generated"]["all"]
    assert (found["clips"], found["garment_color"], found["place"]) == (8, 1.0, 1.0)
    assert findings["generated"]["zh"]["clips"] == 4
    assert pipe.seeds == list(range(5, 13))
    assert len(pictures) == 8
    assert pictures[0].shape == (96, 96, 3)


def test_prompts_of_either_split_are_of_that_split() -> None:
    for split in ("train", "held_out"):
        prompts = evaluation.sample_prompts(12, seed=3, split=split)  # type: ignore[arg-type]
        assert all(is_held_out(scene) == (split == "held_out") for scene, _ in prompts)


def test_factors_are_counted_where_the_prompt_names_them() -> None:
    prompts = evaluation.sample_prompts(12, seed=3)
    findings, _ = evaluation.evaluate(Painter(), prompts, judge_clips=2, progress_bar=False)
    for language in ("en", "zh", "all"):
        told = [(s, parse(t.text)) for s, t in prompts if language in (t.language, "all")]
        factors = findings["generated"][language]["factors"]
        for name in ("subject", "garment_color", "prop", "place", "weather", "direction"):
            asked = [getattr(s, name) == getattr(SCENE, name) for s, named in told if name in named]
            assert factors[name] == {"asked": len(asked), "right": pytest.approx(np.mean(asked))}
        assert "camera" not in factors  # the first world does not tell it
    directions = findings["generated"]["all"]["factors"]["direction"]["asked"]
    assert 0 < directions < 12
    text = evaluation.table(findings)
    assert f"direction{directions:>17}" in text
    assert "mean of the factors" in text


def test_painter_that_ignores_the_place_is_found_out() -> None:
    prompts = evaluation.sample_prompts(8)
    wrong = [
        evaluation.evaluate(Painter(place=place), prompts, judge_clips=1, progress_bar=False)[0]
        for place in PLACES
    ]
    scores = [findings["generated"]["all"]["place"] for findings in wrong]
    asked = [np.mean([scene.place == place for scene, _ in prompts]) for place in PLACES]
    assert scores == pytest.approx(asked)
    assert all(findings["generated"]["all"]["garment_color"] == 1.0 for findings in wrong)


def test_table_shows_the_judge_beside_the_model() -> None:
    findings, _ = evaluation.evaluate(
        Painter(), evaluation.sample_prompts(1), judge_clips=3, progress_bar=False
    )
    text = evaluation.table(findings)
    assert "generated, en" in text
    assert "judge on blurred clips" in text
    assert "generated, zh                  0               -        -" in text


def test_command_writes_findings_and_sheet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    painter = Painter()
    config = SimpleNamespace(world="first", num_frames=17, height=96)
    painter.config = SimpleNamespace(**vars(config), dit=SimpleNamespace(condition_channels=0))
    painter.vae = SimpleNamespace()
    monkeypatch.setattr(
        evaluation,
        "TextToVideoPipeline",
        SimpleNamespace(from_pretrained=lambda path, device: painter),
    )
    monkeypatch.setattr(evaluation, "count_token_experts", lambda pipe: nullcontext({}))
    monkeypatch.setattr(evaluation, "accuracy", lambda probe, clips, vae: accuracy(probe, clips))
    monkeypatch.setattr(
        evaluation, "vae_psnr", lambda vae, scenes, frames, size, refine=0: [30.0 + refine, 34.0]
    )
    command = ["--prompts", "4", "--judge-clips", "2", "--seen", "2", "--flagship", "3"]
    assert evaluation.main([*command, "--out", str(tmp_path / "found")]) == 0
    findings = json.loads((tmp_path / "found" / "evaluation.json").read_text(encoding="utf-8"))
    assert len(findings["prompts"]) == 4
    assert findings["prompts"][1]["prompt"] == evaluation.sample_prompts(4)[1][1].text
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == [
        "evaluation.json",
        "evaluation.md",
        "evaluation.png",
        "flagship.png",
    ]
    assert findings["seen"]["all"]["clips"] == 2
    assert findings["vae"]["clips"] == 2 and findings["vae"]["psnr"] == 32.0
    assert findings["vae"]["refined"] == 32 + evaluation.REFINE / 2
    assert findings["flagship"]["right"]["place"] == 3
    card = (tmp_path / "found" / "evaluation.md").read_text(encoding="utf-8")
    assert "| place | 4 |" in card
    assert "* VAE: 32.0 dB on 2 rendered clips" in card
    shown = capsys.readouterr().out
    assert "generated, all" in shown
    assert "VAE: 32.0 dB on 2 rendered clips" in shown
    assert "flagship: all of it in 3 of 3 clips" in shown


def test_a_clip_that_is_the_truth_flickers_and_moves_as_the_truth() -> None:
    prompts = evaluation.sample_prompts(6, seed=3, world="whole")

    class Truth(Painter):
        def __call__(self, prompt: str, *, seed: int, progress_bar: bool, **options: Any) -> Any:
            scene = next(scene for scene, told in prompts if told.text == prompt)
            return SimpleNamespace(frames=render(scene).frames[None] / np.float32(255))

    findings, _ = evaluation.evaluate(Truth(), prompts, judge_clips=1, progress_bar=False)
    everything = findings["generated"]["all"]
    for name in ("flicker", "unsteadiness"):
        assert everything[name]["generated"] == pytest.approx(everything[name]["rendered"])
    looks = {scene.look for scene, _ in prompts}
    assert looks > {"plain"}  # colours of the others are not judged
    judged = [record["garment_color_right"] is not None for record in findings["prompts"]]
    assert judged == [scene.look == "plain" for scene, _ in prompts]


@pytest.mark.parametrize("arguments", [["--seen", "-1"], ["--vae-clips", "-1"]])
def test_command_refuses_counts_below_zero_before_it_draws(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluation.main([*arguments, "--out", str(tmp_path / "none")]) == 2
    assert "use 0, which leaves it out, or more" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("arguments", [["--prompts", "0"], ["--seed", "-1"]])
def test_command_answers_bad_input_with_a_sentence(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluation.main([*arguments, "--out", str(tmp_path)]) == 2
    assert "use a count of 1 or more and a seed of 0 or more" in capsys.readouterr().err
