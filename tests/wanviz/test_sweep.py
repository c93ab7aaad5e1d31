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


def test_every_line_gets_a_trace_and_a_row(pipe, prompts, tmp_path):
    lines, out = read_lines(prompts), tmp_path / "out"
    assert sweep(pipe, draw(pipe), lines, out, progress_bar=False) == 0
    table = pd.read_parquet(write_index(lines, out))
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

    def counting(prompt, **asked):
        drawn.append(prompt)
        return draw(pipe)(prompt, **asked)

    sweep(pipe, counting, lines, out, progress_bar=False)
    sweep(pipe, counting, lines, out, progress_bar=False)
    assert len(drawn) == 3
    first, second, _ = sorted(out.glob("*.trace"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-10])
    sweep(pipe, counting, lines, out, progress_bar=False)
    assert drawn[3:] == [LINES[0]["prompt"], LINES[1]["prompt"]]
    prompts.write_text(json.dumps({**LINES[0], "seed": 9}))
    sweep(pipe, counting, read_lines(prompts), out, progress_bar=False)
    assert drawn[5:] == [LINES[0]["prompt"]]


def test_a_line_that_fails_is_told_and_stops_nobody(pipe, prompts, tmp_path):
    lines = [*LINES[:1], {"prompt": "a dog", **SMALL, "num_frames": 8}, *LINES[2:]]
    prompts.write_text("\n".join(map(json.dumps, lines)))
    out = tmp_path / "out"
    assert sweep(pipe, draw(pipe), read_lines(prompts), out, progress_bar=False) == 1
    table = pd.read_parquet(write_index(read_lines(prompts), out))
    assert list(table.error.notna()) == [False, True, False]
    assert "num_frames=8" in table.error[1]
    assert list(table.trace.notna()) == [True, False, True]


def test_ctrl_c_leaves_whole_traces_alone(pipe, prompts, tmp_path):
    out, drawn = tmp_path / "out", []

    def impatient(prompt, **asked):
        drawn.append(prompt)
        if len(drawn) == 2:
            raise KeyboardInterrupt
        return draw(pipe)(prompt, **asked)

    with pytest.raises(KeyboardInterrupt):
        sweep(pipe, impatient, read_lines(prompts), out, progress_bar=False)
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
    lines, pipe = read_lines(prompts), tinywan.TextToVideoPipeline.from_pretrained(model)
    sweep(pipe, draw(pipe), lines, alone, progress_bar=False)
    for line in lines:
        one, two = (
            wanviz.Trace.load(next(d.glob(f"{line.number:05d}-*.trace"))) for d in (alone, out)
        )
        for name, array in one.contents.arrays.items():
            np.testing.assert_allclose(two.contents.arrays[name], array, atol=1e-6)
    assert len(pd.read_parquet(out / "index.parquet")) == 3
