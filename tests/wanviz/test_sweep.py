"""`wanviz sweep`: a trace for each line, the same with one process and with two."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tinywan

import wanviz
from wanviz import cli
from wanviz.reducers import WordMasses
from wanviz.sweep import read_lines, sweep, write_index

SMALL = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 2}
LINES = [
    {"prompt": "a woman in a red qipao walks", "seed": 1, **SMALL},
    {"prompt": "一只狗在跑", "seed": 2, **SMALL},
    {"prompt": "a child in the rain", "seed": 3, **SMALL},
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in LINES) + "\n\n", encoding="utf-8")
    return path


@pytest.fixture
def model(pipe, tmp_path: Path) -> Path:
    pipe.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def draw(pipe):
    return lambda prompt, **asked: pipe(prompt, progress_bar=False, **asked)


def drawing(pipe, tell=lambda prompt: None):
    """What loads a pipeline that tells each prompt that it draws."""

    def told(prompt, **asked):
        tell(prompt)
        return draw(pipe)(prompt, **asked)

    return lambda: (pipe, told)


def failed(rows):
    return [row["line"] for row in rows if row["error"] is not None]


def test_every_line_gets_a_trace_and_a_row(pipe, prompts, tmp_path):
    out = tmp_path / "out"
    rows = sweep(drawing(pipe), read_lines(prompts), out, progress_bar=False)
    assert failed(rows) == []
    table = pd.read_parquet(write_index(rows, out))
    assert list(table.prompt) == [line["prompt"] for line in LINES]
    assert list(table.seed) == [1, 2, 3]
    for row in table.itertuples():
        trace = wanviz.Trace.load(out / row.trace)
        assert trace.prompt == row.prompt
        assert [word.text for word in trace.words] == list(row.words)
        assert row.nbytes == trace.nbytes
        assert 0 < row.padding_mass < 1


def test_a_second_run_draws_only_what_is_missing_broken_or_changed(pipe, prompts, tmp_path):
    lines, out, drawn = read_lines(prompts), tmp_path / "out", []
    load = drawing(pipe, drawn.append)
    before = sweep(load, lines, out, progress_bar=False)
    assert sweep(load, lines, out, progress_bar=False) == before
    assert len(drawn) == 3
    first, second, _ = (out / f"{line.name}.trace" for line in lines)
    first.unlink()
    second.write_bytes(second.read_bytes()[:-10])
    sweep(load, lines, out, progress_bar=False)
    assert drawn[3:] == [LINES[0]["prompt"], LINES[1]["prompt"]]
    prompts.write_text(json.dumps({**LINES[0], "seed": 9}))
    sweep(load, read_lines(prompts), out, progress_bar=False)
    assert drawn[5:] == [LINES[0]["prompt"]]


def test_where_a_line_stands_does_not_matter(pipe, prompts, tmp_path):
    out, drawn = tmp_path / "out", []
    load = drawing(pipe, drawn.append)
    sweep(load, read_lines(prompts), out, progress_bar=False)
    moved = [*map(json.dumps, LINES[::-1]), json.dumps(LINES[0])]  # the first one twice
    prompts.write_text("\n" + "\n".join(moved))
    rows = sweep(load, read_lines(prompts), out, progress_bar=False)
    assert drawn[3:] == [LINES[0]["prompt"]]
    assert [row["line"] for row in rows] == [2, 3, 4, 5]
    assert len({row["trace"] for row in rows}) == 4


def test_traces_of_an_older_wanviz_are_found_by_their_content(pipe, prompts, tmp_path):
    """It named them by the number of the line, too."""
    out = tmp_path / "out"
    lines = read_lines(prompts)
    sweep(drawing(pipe), lines, out, progress_bar=False)
    for line in lines:
        new = out / f"{line.name}.trace"
        new.rename(out / f"{line.number + 7:05d}-{line.name.partition('-')[0]}.trace")
    (out / "00010-0123456789.trace").write_bytes(b"of another line")
    rows = sweep(None, lines, out, progress_bar=False)
    assert [row["trace"][:6] for row in rows] == ["00008-", "00009-", "00010-"]


def test_nothing_is_loaded_where_nothing_is_missing_and_each_trace_is_read_once(
    pipe, prompts, tmp_path, monkeypatch
):
    lines, out, read = read_lines(prompts), tmp_path / "out", []
    sweep(drawing(pipe), lines, out, progress_bar=False)
    load = wanviz.Trace.load
    monkeypatch.setattr(wanviz.Trace, "load", lambda path: read.append(path) or load(path))
    write_index(sweep(None, lines, out, progress_bar=False), out)
    assert len(read) == 3


def test_a_line_without_a_seed_is_drawn_from_one_that_is_recorded(pipe, prompts, tmp_path):
    unseeded = [{"prompt": "a dog runs", **SMALL}, {"prompt": "a dog", "seed": None, **SMALL}]
    prompts.write_text("\n".join(map(json.dumps, unseeded)))
    rows = sweep(drawing(pipe), read_lines(prompts), tmp_path / "out", progress_bar=False)
    assert [row["seed"] for row in rows] == [7, 7]


def test_what_was_captured_is_kept_when_a_part_of_it_failed_and_is_tried_again(
    pipe, prompts, tmp_path, monkeypatch
):
    out, lines, drawn = tmp_path / "out", read_lines(prompts)[:1], []
    load = drawing(pipe, drawn.append)

    def fail(self, event):
        raise ValueError("no room on the abacus")

    with monkeypatch.context() as patch:
        patch.setattr(WordMasses, "consume", fail)
        rows = sweep(load, lines, out, progress_bar=False)
    assert "no room on the abacus" in rows[0]["error"]
    trace = wanviz.Trace.load(out / rows[0]["trace"])
    assert trace.frames.shape == (9, 32, 48, 3)
    assert np.isfinite(trace.frame_attention().mass).any()
    assert pd.read_parquet(write_index(rows, out)).padding_mass.isna().all()
    assert sorted(file.suffix for file in out.iterdir()) == [".parquet", ".trace", ".txt"]
    rows = sweep(load, lines, out, progress_bar=False)
    assert failed(rows) == []
    assert len(drawn) == 2
    assert not list(out.glob("*.txt"))


def test_a_line_that_fails_is_told_and_stops_nobody(pipe, prompts, tmp_path):
    lines = [*LINES[:1], {"prompt": "a dog", **SMALL, "num_frames": 8}, *LINES[2:]]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    rows = sweep(drawing(pipe), read_lines(prompts), out, progress_bar=False)
    assert failed(rows) == [2]
    table = pd.read_parquet(write_index(rows, out))
    assert list(table.error.notna()) == [False, True, False]
    assert "num_frames=8" in table.error[1]
    assert list(table.trace.notna()) == [True, False, True]


def test_ctrl_c_leaves_whole_traces_alone(pipe, prompts, tmp_path):
    out, drawn = tmp_path / "out", []

    def impatient(prompt):
        drawn.append(prompt)
        if len(drawn) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(drawing(pipe, impatient), read_lines(prompts), out, progress_bar=False)
    assert len(list(out.iterdir())) == 1


def test_another_model_or_option_makes_other_traces(prompts):
    names = [{line.name for line in read_lines(prompts, made_with)} for made_with in ("a", "b")]
    assert not names[0] & names[1]


def test_line_breaks_inside_a_prompt_do_not_cut_it(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False), encoding="utf-8")
    assert [line.prompt for line in read_lines(path)] == ["a\u2028b"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no prompts"),
        ('{"prompt": "a"}\n{', "line 2 .* is not JSON"),
        ('{"prompt": 3}', 'line 1 .* has no "prompt"'),
        ('["a"]', 'has no "prompt"'),
        ('{"prompt": "a", "latents": []}', "'latents', which JSON cannot hold"),
    ],
)
def test_a_bad_file_gets_a_sentence(tmp_path, text, says):
    path = tmp_path / "p.jsonl"
    path.write_text(text)
    with pytest.raises(wanviz.OptionError, match=says):
        read_lines(path)


def test_the_command_writes_traces_and_index_and_tells_failures(prompts, model, tmp_path, capsys):
    out = tmp_path / "out"
    asked = ["sweep", str(prompts), "--out", str(out), "--model", str(model)]
    assert cli.main(asked) == 0
    assert "3 of 3" in capsys.readouterr().out
    prompts.write_text(json.dumps({"prompt": "a dog", "num_frames": 8}))
    assert cli.main(asked) == 1
    assert "1 lines failed" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["--budget apple", "no pyarrow"])
def test_what_would_fail_at_the_end_is_found_before_the_model_is_loaded(
    prompts, tmp_path, capsys, monkeypatch, fault
):
    monkeypatch.setattr(cli, "_load", lambda arguments: pytest.fail("it was loaded"))
    asked = ["sweep", str(prompts), "--out", str(tmp_path / "out")]
    if fault == "no pyarrow":
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    else:
        asked += fault.split()
    assert cli.main(asked) == 2
    said = capsys.readouterr().err
    assert (
        "pip install 'wanviz[wan]'" if fault == "no pyarrow" else "'apple' is not a size"
    ) in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_loads_no_model_where_nothing_is_missing(
    prompts, model, tmp_path, capsys, monkeypatch
):
    asked = ["sweep", str(prompts), "--out", str(tmp_path / "out"), "--model", str(model)]
    assert cli.main(asked) == 0
    monkeypatch.setattr(cli, "_load", lambda arguments: pytest.fail("it was loaded"))
    capsys.readouterr()
    assert cli.main(asked) == 0
    said = capsys.readouterr()
    assert "3 of 3" in said.out
    assert "loading" not in said.err


@pytest.mark.slow
def test_two_processes_make_the_traces_of_one(prompts, model, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out, alone = tmp_path / "two", tmp_path / "one"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port),
        "-m", "wanviz.cli", "sweep", str(prompts), "--out", str(out), "--model", str(model),
    ]  # fmt: skip
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    traces = [wanviz.Trace.load(path) for path in out.glob("*.trace")]
    lines, pipe = read_lines(prompts), tinywan.TextToVideoPipeline.from_pretrained(model)
    made_with = json.dumps({"model": str(model), "dtype": None, "frames": "auto"})
    for line in read_lines(prompts, made_with):
        assert (out / f"{line.name}.trace").exists()
    for row in sweep(drawing(pipe), lines, alone, progress_bar=False):
        one = wanviz.Trace.load(alone / row["trace"])
        (two,) = (t for t in traces if t.prompt == one.prompt)
        for name, array in one.contents.arrays.items():
            np.testing.assert_allclose(two.contents.arrays[name], array, atol=1e-6)
    assert len(pd.read_parquet(out / "index.parquet")) == 3
