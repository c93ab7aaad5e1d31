"""The learning curve is drawn from what a run kept on the way."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tinywan import learning_curve
from tinywan.batches import Phase
from tinywan.pipeline import TextToVideoPipeline
from tinywan.train_denoiser import SEEN, SNAPSHOTS, DenoiserRecipe
from tinywan.trainer import TrainerConfig


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a snapshot of pictures alone, and two that have seen clips."""
    folder = tmp_path_factory.mktemp("run")
    pipe = TextToVideoPipeline.from_preset("debug")
    for step, clips in ((10, 0), (30, 80), (20, 40)):
        snapshot = folder / "denoiser" / SNAPSHOTS / f"step{step:06d}"
        pipe.save_pretrained(snapshot)
        (snapshot / SEEN).write_text(json.dumps({"pictures": 100, "clips": clips}))
    return folder


@pytest.fixture(autouse=True)
def better_and_better(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stands for the evaluation: each model that is asked is a little better than the one before."""
    asked: list[Any] = []

    def evaluate(pipe: Any, prompts: Any, seed: int, judge_clips: int, progress_bar: bool) -> Any:
        asked.append([told.text for _, told in prompts])
        share = 0.5 + 0.1 * len(asked)
        shares = {"subject": {"asked": 3, "right": share}, "place": {"asked": 3, "right": 1.0}}
        return {"generated": {"all": {"factors": shares, "mean": (share + 1) / 2}}}, []

    monkeypatch.setattr(learning_curve, "evaluate", evaluate)
    return asked


def test_snapshots_that_saw_clips_are_asked_the_same_in_their_order(
    run: Path, better_and_better: list[Any]
) -> None:
    points = learning_curve.measure_snapshots(run, 4, seed=2, progress_bar=False)
    assert [point["clips"] for point in points] == [40, 80]
    assert [point["mean"] for point in points] == pytest.approx([0.8, 0.85])
    assert [point["factors"]["subject"] for point in points] == pytest.approx([0.6, 0.7])
    assert len(better_and_better) == 2
    assert better_and_better[0] == better_and_better[1]
    assert len(better_and_better[0]) == 4


def test_the_command_writes_the_curve_and_a_picture(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", str(run), "--out", str(tmp_path / "curve"), "--prompts", "2"]
    assert learning_curve.main(arguments) == 0
    points = json.loads((tmp_path / "curve/learning_curve.json").read_text())
    assert [point["clips"] for point in points] == [40, 80]
    picture = Image.open(tmp_path / "curve/learning_curve.png")
    assert picture.width > 500
    assert "80 clips  mean 85.0%" in capsys.readouterr().out


def test_a_run_without_snapshots_gets_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert learning_curve.main(["--run", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "has no snapshot that has seen clips" in capsys.readouterr().err


def test_what_was_seen_is_counted_phase_by_phase() -> None:
    phases = (Phase(10, 1, 24, 24), Phase(5, 17, 8, 8))
    recipe = DenoiserRecipe(TrainerConfig(steps=15), phases)
    assert recipe.seen(0) == {"pictures": 0, "clips": 0}
    assert recipe.seen(4) == {"pictures": 96, "clips": 0}
    assert recipe.seen(12) == {"pictures": 240, "clips": 16}
    assert recipe.seen(99) == {"pictures": 240, "clips": 40}


def test_the_folder_is_made_before_anything_is_drawn(
    run: Path, tmp_path: Path, better_and_better: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert learning_curve.main(["--run", str(run), "--out", str(tmp_path / "file" / "curve")]) == 2
    assert "Not a directory" in capsys.readouterr().err
    assert not better_and_better


def test_snapshots_draw_on_the_device_that_is_named(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--run", str(run), "--out", str(tmp_path), "--device", "tpu"]
    assert learning_curve.main(arguments) == 2
    assert "this machine has no device 'tpu': use cpu" in capsys.readouterr().err
