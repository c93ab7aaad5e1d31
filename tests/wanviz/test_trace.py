"""A trace is a labelled thing in one safe file."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import wanviz

PROMPT = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"


def test_a_trace_survives_its_file_unchanged(trace, tmp_path):
    trace.save(tmp_path / "a.trace")
    again = wanviz.Trace.load(tmp_path / "a.trace")
    assert again.words == trace.words
    assert again.tokens == trace.tokens
    assert again.record == trace.record
    assert again.branches == trace.branches
    assert again.nbytes == trace.nbytes
    assert repr(again) == repr(trace)
    for name, array in trace.contents.arrays.items():
        np.testing.assert_array_equal(again.contents.arrays[name], array)
    assert again.maps["layer", "head"].identical(trace.maps["layer", "head"])
    assert again.routing.identical(trace.routing)
    assert os.listdir(tmp_path) == ["a.trace"]  # noqa: PTH208


def test_a_trace_opens_without_the_model(trace, tmp_path):
    trace.save(tmp_path / "a.trace")
    code = (
        "import sys; sys.modules['tinywan'] = None\n"
        f"import wanviz; t = wanviz.Trace.load({str(tmp_path / 'a.trace')!r})\n"
        "print(float(t.word_map('旗袍').sum()) > 0, t.prompt)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert done.stdout.strip() == f"True {PROMPT}", done.stderr


def test_the_file_holds_no_pickle_and_a_json_header(trace, tmp_path):
    trace.save(tmp_path / "a.trace")
    data = (tmp_path / "a.trace").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["wanviz"])["record"]["seed"] == 7
    assert set(safetensors.numpy.load(data)) == set(trace.contents.arrays)


def test_every_flipped_bit_is_noticed(trace, tmp_path, rng):
    path = tmp_path / "a.trace"
    trace.save(path)
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    places = [*rng.integers(0, header, 150), *rng.integers(header, len(data), 50), 0, 7, 8]
    for place in places:
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(wanviz.TraceFileError, match=re.escape(str(path))):
            wanviz.Trace.load(path)


@pytest.mark.parametrize("keep", [0, 4, 8, 200, 0.5, 0.999])
def test_a_truncated_file_is_noticed(trace, tmp_path, keep):
    path = tmp_path / "a.trace"
    trace.save(path)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(wanviz.TraceFileError, match=r"empty|damaged|not a trace"):
        wanviz.Trace.load(path)


def test_a_foreign_file_gets_a_sentence(tmp_path):
    for name, data in {
        "picture.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "weights.safetensors": safetensors.numpy.save({"w": np.zeros(3)}),
        "text": b"hello, this is no trace at all",
        "list": (2).to_bytes(8, "little") + b"[]",
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(wanviz.TraceFileError, match=r"is not a trace.*Trace\.save"):
            wanviz.Trace.load(tmp_path / name)


def test_a_missing_file_or_a_folder_gets_a_sentence(tmp_path):
    with pytest.raises(wanviz.TraceFileError, match="No such file"):
        wanviz.Trace.load(tmp_path / "none.trace")
    with pytest.raises(wanviz.TraceFileError, match="cannot read"):
        wanviz.Trace.load(tmp_path)


def test_a_newer_format_is_refused_with_a_sentence(trace, tmp_path, monkeypatch):
    monkeypatch.setattr("wanviz.trace_file.FORMAT", 99)
    trace.save(tmp_path / "a.trace")
    monkeypatch.undo()
    with pytest.raises(wanviz.TraceFileError, match="format 99, this wanviz reads 2"):
        wanviz.Trace.load(tmp_path / "a.trace")


def test_a_file_is_replaced_whole_or_not_at_all(trace, tmp_path, monkeypatch):
    path = tmp_path / "a.trace"
    path.write_bytes(b"the old one")

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(wanviz.TraceFileError, match="No space left on device"):
        trace.save(path)
    assert path.read_bytes() == b"the old one"
    assert os.listdir(tmp_path) == ["a.trace"]  # noqa: PTH208


def test_an_odd_number_in_the_record_does_not_cost_the_trace(trace, tmp_path, monkeypatch):
    odd = [float("nan"), {"high": float("inf"), "low": 4.0}]
    monkeypatch.setitem(trace.record, "guidance_scale", odd)
    trace.save(tmp_path / "a.trace")
    again = wanviz.Trace.load(tmp_path / "a.trace")
    assert again.record["guidance_scale"] == [None, {"high": None, "low": 4.0}]


def test_an_unwritable_place_gets_a_sentence(trace, tmp_path):
    for path in (tmp_path / "none" / "a.trace", tmp_path, Path("/proc/a.trace")):
        with pytest.raises(wanviz.TraceFileError, match="cannot write the trace"):
            trace.save(path)
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_a_prompt_of_any_characters_survives_the_file(pipe, generate, tmp_path):
    prompt = '</script><b>"\\ \u2028 🌂 \x07雨 \ud83c'
    with wanviz.capture(pipe) as trace:
        generate(prompt)
    trace.save(tmp_path / "a.trace")
    assert wanviz.Trace.load(tmp_path / "a.trace").prompt == prompt


def test_arrays_are_labelled(trace):
    maps = trace.maps["layer", "head"]
    assert maps.dims == ("layer", "head", "token", "frame", "row", "column")
    assert maps.dtype == np.float32
    assert list(maps.token.values) == [token.text for token in trace.tokens]
    assert trace.maps["step"].coords["noise_expert"].dims == ("step",)
    assert trace.word_map("旗袍").dims == ("frame", "row", "column")
    assert trace.word_map("旗袍").dtype == np.float32
    assert dict(trace.frame_attention(layer=1).sizes) == {"query_frame": 3, "key_frame": 3}
    assert list(trace.maps) == [("layer", "head"), ("layer", "step")]


def test_one_value_along_an_axis_is_the_same_as_selecting_it(trace):
    step = trace.maps["layer", "step"].sel(layer=1, step=2).values
    tokens = next(word.tokens for word in trace.words if word.text == "女子")
    found = trace.word_map("女子", layer=1, step=2).values
    np.testing.assert_allclose(found, step[list(tokens)].sum(0), atol=1e-7)
    head = trace.maps["head"].sel(head=1).values
    found = trace.word_map("女子", head=1).values
    np.testing.assert_allclose(found, head[list(tokens)].sum(0), atol=1e-6)


def test_an_axis_that_was_not_kept_is_an_error_that_says_which_keep_would_have(trace):
    for ask in (
        lambda: trace.maps["step", "head"],
        lambda: trace.word_map("旗袍", head=0, step=1),
        lambda: trace.frame_attention(head=0, step=1),
    ):
        with pytest.raises(wanviz.KeepError, match=r"keep=\[\('step', 'head'\)\] would have"):
            ask()


def test_frame_attention_that_was_not_asked_for_is_an_error(pipe, generate):
    with wanviz.capture(pipe, frames=None, routing=False) as trace:
        generate()
    with pytest.raises(wanviz.KeepError, match="leave frames=None out"):
        trace.frame_attention()
    assert list(trace.routing.data_vars) == ["noise_expert"]


@pytest.mark.parametrize("index", [-1, 2, 1.0, True, "1"])
def test_an_index_that_is_not_there_gets_a_sentence(trace, index):
    with pytest.raises(wanviz.OptionError, match="layer="):
        trace.word_map("旗袍", layer=index)


def test_an_unknown_axis_or_branch_gets_a_sentence(trace):
    with pytest.raises(wanviz.OptionError, match="layer, step, head"):
        trace.maps["layers"]
    with pytest.raises(wanviz.KeepError, match="'neutral' was not captured"):
        trace.branch("neutral")


def test_a_word_that_hardly_anybody_reads_is_not_among_the_clearest(painted):
    trace = painted()
    silent = next(word for word in trace.words if word.text == "的")
    masses = trace.contents.arrays["cond/words/layer"]
    masses[:, list(silent.tokens)] = 1e-6
    masses[:, list(silent.tokens), 0, 0, 0] = 1e-3  # a thousand times its mean
    told = [word.text for word in trace.clearest(len(trace.words))]
    assert len(told) == len(trace.words)
    assert told[-1] == "的"
    assert trace.clearest(1)[0].text in repr(trace)
    maps = [trace.word_map(word) for word in trace.clearest(3)]
    heights = [float(each.max() - each.mean()) for each in maps]
    assert heights == sorted(heights, reverse=True)


def test_a_trace_tells_about_itself_in_one_line(trace):
    words = len(trace.words)
    assert re.fullmatch(
        rf"Trace: {words} words · 2 layers x 2 heads x 4 steps · 3x4x6 tokens · "
        r"peaks \S+ at frame \d row \d column \d, .* · branches cond, uncond",
        repr(trace),
    )
