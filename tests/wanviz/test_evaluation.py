"""The evaluation of attributions: the pointing game, the table and the run, on answers that are known."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tinywan
import xarray as xr
from tinywan import theatre

from wanviz.attribution.faithfulness import PARTS
from wanviz.errors import OptionError
from wanviz.evaluation import __main__ as command
from wanviz.evaluation import belongs_to_another, evaluate_pointing, peak_pixels, point, table
from wanviz.evaluation import run as running
from wanviz.evaluation.heads import choose_heads
from wanviz.evaluation.run import CHEAP, DEAR, FAITHFUL, Plan, read, run
from wanviz.evaluation.scores import THRESHOLDS
from wanviz.evaluation.truth import rendered


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


def score(method, value, word="umbrella", kind="prop", overlaps=None):
    """What is noted of one word: every score the same number."""
    return {
        "method": method, "word": word, "kind": kind, "pointing": value, "precision": value,
        "straying": value, "overlap": overlaps or [value] * len(THRESHOLDS),
    }  # fmt: skip


def curve(method, value):
    parts = np.linspace(value, 1 - value, len(PARTS) + 2).tolist()
    return {
        "method": method, "kind": "prop", "deletion": value, "insertion": 1 - value, "effect": 0.1,
        "infidelity": None if method == "random order" else value, "left": parts,
        "there": parts[::-1],
    }  # fmt: skip


def clips(values, *more, count=8):
    """Records of some clips: by method a value, or a function of the clip."""
    return [
        {
            "clip": clip,
            "language": "en",
            "scores": [score(m, v(clip) if callable(v) else v, *more) for m, v in values.items()],
            "cost": {m: [3, 0.5 + clip] for m in values},
        }
        for clip in range(count)
    ]


def cell(found, method, kind="placed", measure="precision"):
    one = found[
        (found["method"] == method) & (found["kind"] == kind) & (found["measure"] == measure)
    ]
    assert len(one) == 1
    return one.iloc[0]


def test_the_threshold_is_chosen_on_every_fourth_clip_and_these_are_not_scored():
    records = clips({"attention": 0.5})
    for record in records:
        overlaps = np.full(len(THRESHOLDS), 0.1)
        tunes = record["clip"] % 4 == 0
        overlaps[3] = 0.9 if tunes else 0.2  # best where it is chosen
        overlaps[7] = 0.3 if tunes else 0.8  # best where it is scored: must not count
        record["scores"] = [score("attention", 1.0 if tunes else 0.25, overlaps=overlaps.tolist())]
    found = table.rows(records)
    overlap = cell(found, "attention", measure="overlap")
    assert overlap["mean"] == pytest.approx(0.2)
    assert overlap["threshold"] == THRESHOLDS[3]
    assert (overlap["clips"], overlap["words"]) == (6, 6)  # of clips 1 2 3 5 6 7
    assert cell(found, "attention")["mean"] == 0.25


def test_weather_is_among_all_words_and_not_among_those_that_have_a_place():
    records = clips({"attention": 0.5})
    for record in records:
        record["scores"].append(score("attention", 0.1, "rain", "weather"))
    found = table.rows(records)
    assert cell(found, "attention", "all")["mean"] == pytest.approx(0.3)
    assert cell(found, "attention", "placed")["mean"] == 0.5
    assert cell(found, "attention", "weather")["mean"] == pytest.approx(0.1)
    assert cell(found, "attention", "prop")["mean"] == 0.5
    assert cell(found, "attention", "garment")["words"] == 0


def test_two_methods_are_compared_on_the_words_that_both_were_scored_on():
    records = clips({"knockout": 0.25, "attention": 0.5})
    for record in records:
        if record["clip"] % 4 == 0:
            record["scores"][0] = score("knockout", 1.0)  # a clip that chooses thresholds
        record["scores"].append(score("attention", 1.0, "qipao", "garment"))  # of one alone
        record["scores"] += [score(m, 0.9, "rain", "weather") for m in ("knockout", "attention")]
    for measure in ("precision", "pointing", "overlap"):
        found = table.against(records, "attention", "knockout", measure)
        assert (found.mean, found.low, found.high, found.clips) == (0.25, 0.25, 0.25, 6)
    assert table.against(records, "knockout", "attention").mean == -0.25


def test_each_of_two_methods_is_compared_at_its_own_threshold():
    records = clips({})
    for record in records:
        first, second = np.full((2, len(THRESHOLDS)), 0.1)
        first[2], second[9] = 0.9, 0.6
        record["scores"] = [
            score("attention", 0.0, overlaps=first.tolist()),
            score("knockout", 0.0, overlaps=second.tolist()),
        ]
    assert table.against(records, "attention", "knockout", "overlap").mean == pytest.approx(0.3)


@pytest.fixture
def records():
    """A few clips with everything that a run writes."""
    made = clips(
        {
            "ceiling": 0.8, "attention": lambda clip: 0.4 + 0.01 * clip, "attention_layers": 0.6,
            "centre": 0.3, "chance": 0.1, "knockout": float("nan"),
            "attention (random weights)": 0.2,
        }
    )  # fmt: skip
    for record in made[:4]:
        record["curves"] = [curve("attention_layers", 0.25), curve("random order", 0.5)]
        record["agreement"] = {"attention / knockout": 0.5 + record["clip"] / 8}
        record["cost"]["integrated_gradients"] = [34, 1.0, 0.01 * record["clip"]]
    return made


def test_the_markdown_has_methods_by_precision_the_share_of_the_ceiling_and_what_they_cost(records):
    text = table.markdown(records)
    lines = {
        line.split("|")[1].strip(): line for line in reversed(text.splitlines()) if "|" in line
    }
    names = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| `")]
    assert names[:3] == ["`ceiling`", "`attention_layers`", "`attention`"]
    assert names.index("`centre`") > names.index("`knockout`")  # guesses stand last
    row = lines["`attention_layers`"].split(" | ")
    assert row[1:5] == ["60.0 [60.0, 60.0]", "60.0 [60.0, 60.0]", "75.0", "60.0 [60.0, 60.0]"]
    assert row[6:8] == ["3", "4.00"]  # forwards, and the median of the seconds
    assert "| `attention` | 44.0" in text
    assert "| `attention_layers` | 0.250 [0.250, 0.250] | 0.750 [0.750, 0.750] | 0.250" in text
    assert "| `random order` | 0.500 [0.500, 0.500] | 0.500 [0.500, 0.500] | –" in text
    assert "random weights" in text


def test_costs_are_medians_and_completeness_the_worst(records):
    found = table.cost(records).set_index("method")
    assert found.loc["attention", "seconds"] == 4
    assert found.loc["integrated_gradients", "forwards"] == 34
    assert found.loc["integrated_gradients", "completeness_delta"] == pytest.approx(0.03)


def test_agreement_is_a_symmetric_table_of_means(records):
    found = table.agreement(records)
    assert found.loc["attention", "knockout"] == found.loc["knockout", "attention"] == 0.6875
    assert found.loc["attention", "attention"] == 1


def test_the_figure_shows_each_method_and_the_curves_that_there_are(records):
    left, right = table.figure(records).axes
    names = [text.get_text() for text in left.get_yticklabels()]
    assert names == ["chance", "centre", "attention", "attention_layers", "ceiling", "knockout"]
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    assert legend == ["attention_layers", "random order"]
    assert table.figure([{k: v for k, v in r.items() if k != "curves"} for r in records])


def test_four_files_are_written_and_can_be_read(records, tmp_path):
    table.write(records, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert sorted(path.name for path in folder.iterdir()) == [
        "agreement.csv", "figure.png", "table.md", "table.parquet",
    ]  # fmt: skip
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "table.parquet"), table.rows(records))
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def debug():
    return tinywan.TextToVideoPipeline.from_preset("debug", seed=0)


@pytest.fixture
def counted(monkeypatch):
    """A run that notes which clips it evaluated, and evaluates none."""
    seen = []

    def evaluate(pipe, blank, sample, plan):
        seen.append(sample)
        number = getattr(sample, "number", sample)
        return {"clip": number, "text": "红色的伞", "scores": [], "cost": {}}

    monkeypatch.setattr(running, "evaluate", evaluate)
    return seen


def of(path):
    return [record["clip"] for record in read(path)]


def test_a_run_goes_on_behind_the_clips_that_are_there(counted, debug, tmp_path):
    path = tmp_path / "clips.jsonl"
    run(debug, Plan(clips=2), path, lambda i: i, progress_bar=False)
    run(debug, Plan(clips=5), path, lambda i: i, progress_bar=False)
    assert counted == of(path) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("cut", ["in its number", "in a character", "before its end"])
def test_a_line_that_was_cut_off_is_left_out_and_done_again(counted, debug, tmp_path, cut):
    path = tmp_path / "clips.jsonl"
    run(debug, Plan(clips=3), path, lambda i: i, progress_bar=False)
    first, second, third = path.read_bytes().splitlines(keepends=True)
    where = {
        "in its number": 8,
        "in a character": third.index("伞".encode()) + 1,
        "before its end": -1,  # whole, but for the end of the line
    }
    path.write_bytes(first + second + third[: where[cut]])
    there = of(path)
    assert there == ([0, 1, 2] if cut == "before its end" else [0, 1])
    run(debug, Plan(clips=4), path, lambda i: i, progress_bar=False)
    assert sorted(of(path)) == [0, 1, 2, 3]
    assert counted == [0, 1, 2, *range(len(there), 4)]


def test_a_file_that_is_not_there_holds_no_clips(tmp_path):
    assert of(tmp_path / "none.jsonl") == []


def test_clips_are_shared_out_among_processes_each_once(counted, debug, tmp_path):
    for rank in range(3):
        path = tmp_path / f"rendered.{rank}.jsonl"
        run(debug, Plan(clips=8), path, lambda i: i, rank, 3, progress_bar=False)
        assert of(path) == list(range(rank, 8, 3))
    assert sorted(counted) == list(range(8))
    assert [r["clip"] for r in command.records(tmp_path, "rendered")] == list(range(8))
    assert command.records(tmp_path, "drawn") == []


def test_a_clip_is_evaluated_by_every_method_that_was_planned(debug, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "SIGMAS", (0.6, 0.3))
    sample = rendered(1, 5, "held_out", 5, 32)
    path = tmp_path / "clips.jsonl"
    plan = Plan(clips=2, dear=2, random=2, heads=((0, 1),))
    run(debug, plan, path, lambda _: sample, rank=1, world=2, progress_bar=False)
    (record,) = read(path)
    by_method = {}
    for one in record["scores"]:
        by_method.setdefault(one["method"], []).append(one)
    wild = {f"{name} (random weights)" for name in (*CHEAP, *DEAR)}
    assert set(by_method) == {*CHEAP, *DEAR, *wild, *table.BASELINES, "ceiling"}
    assert {len(by_method[name]) for name in (*DEAR, *wild)} == {2}
    assert len({len(by_method[name]) for name in (*CHEAP, *table.BASELINES, "ceiling")}) == 1
    for one in record["scores"]:
        assert 0 <= one["pointing"] <= 1
        assert 0 < one["precision"] <= 1
        assert len(one["overlap"]) == len(THRESHOLDS)
    for name in (*CHEAP, *table.BASELINES):  # no map beats the ceiling by more than its ties
        for one, best in zip(by_method[name], by_method["ceiling"], strict=True):
            assert one["precision"] <= best["precision"] + 0.03
    orders = {*FAITHFUL, "random order", "centre first", "the object itself"}
    assert {one["method"] for one in record["curves"]} == orders
    assert all(one["left"][0] == one["there"][-1] == 1 for one in record["curves"])
    assert set(record["cost"]) == {*CHEAP, *DEAR}
    assert record["cost"]["attention"][0] == 2  # noise levels
    assert record["cost"]["integrated_gradients"][2] < 0.02
    assert all(-1 <= value <= 1 for value in record["agreement"].values())
    table.write([record], tmp_path / "out")


def test_heads_are_left_out_as_long_as_that_helps(debug):
    heads = choose_heads(debug, clips=2, sigmas=(0.5,), progress_bar=False)
    config = debug.transformer.config
    everything = {(a, b) for a in range(config.num_layers) for b in range(config.num_heads)}
    assert set(heads) <= everything
    assert len(set(heads)) == len(heads) >= 1


@pytest.fixture
def debug_command(monkeypatch, debug):
    """The command, with the debug preset in place of the shipped checkpoint."""
    loader = SimpleNamespace(from_pretrained=lambda *_: debug)
    monkeypatch.setattr(command, "TextToVideoPipeline", loader)
    return command.main


NOTHING = ("--clips", "0", "--drawn", "0", "--prompts", "0")


def test_nothing_to_do_writes_nothing(debug_command, tmp_path, capsys):
    assert debug_command([*NOTHING, "--out", str(tmp_path / "out")]) == 0
    assert list((tmp_path / "out").iterdir()) == []
    assert capsys.readouterr().out == ""


def test_the_command_writes_tables_and_goes_on_where_it_was(
    debug_command, counted, tmp_path, capsys, monkeypatch, records
):
    monkeypatch.setattr(running, "evaluate", lambda p, b, sample, plan: records[sample.number])
    (tmp_path / "heads.json").write_text("[[1, 0]]")  # chosen before, and not again
    words = ["--dear", "1", "--random", "0", "--prompts", "0", "--out", str(tmp_path)]
    assert debug_command(["--clips", "2", *words]) == 0
    assert of(tmp_path / "rendered.0.jsonl") == [0, 1]
    assert debug_command(["--clips", "4", *words]) == 0
    assert of(tmp_path / "rendered.0.jsonl") == [0, 1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "rendered").iterdir()) == [
        "agreement.csv", "figure.png", "table.md", "table.parquet",
    ]  # fmt: skip
    assert "attention_layers less attention" in capsys.readouterr().out
    assert (tmp_path / "heads.json").read_text() == "[[1, 0]]"


def test_a_process_of_several_takes_its_part_and_leaves_the_tables_to_the_first(
    debug_command, counted, tmp_path, monkeypatch
):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    (tmp_path / "heads.json").write_text("[[1, 0]]")
    assert debug_command(["--clips", "4", "--out", str(tmp_path)]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["heads.json", "rendered.1.jsonl"]
    assert [sample.number for sample in counted] == [1, 3]


def test_the_pointing_game_is_played_on_request(debug_command, tmp_path, capsys):
    assert debug_command(["--clips", "0", "--prompts", "2", "--out", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "pointing.json").read_text(encoding="utf-8"))
    assert set(told["summary"]) == {"garment", "umbrella"}
    assert {clip["language"] for clip in told["clips"]} == {"en", "zh"}
    assert "peak of map" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["clips", "dear", "random", "drawn", "prompts", "seed"])
def test_a_negative_number_is_an_error_that_says_what_would_work(
    debug_command, tmp_path, capsys, name
):
    assert debug_command([*NOTHING, f"--{name}", "-1", "--out", str(tmp_path / "out")]) == 2
    assert f"error: --{name} -1: use 0 or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_there_and_a_folder_that_cannot_be_are_errors(tmp_path, capsys):
    missing = [*NOTHING, "--checkpoint", str(tmp_path / "none"), "--out", str(tmp_path / "out")]
    assert command.main(missing) == 2
    (tmp_path / "file").write_text("")
    assert command.main([*NOTHING, "--out", str(tmp_path / "file" / "out")]) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert all(line.startswith("error: ") for line in told)


def test_a_user_who_interrupts_is_told_how_to_go_on(debug_command, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(running, "evaluate", interrupt)
    (tmp_path / "heads.json").write_text("[[1, 0]]")
    assert debug_command(["--clips", "2", "--out", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err
