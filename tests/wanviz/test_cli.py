"""The command: bad input costs a sentence and nothing else; good input leaves four whole files."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import imageio_ffmpeg
import numpy as np
import pytest
import tinywan
from PIL import Image
from tinywan.errors import ConfigError

import wanviz
import wanviz.adapters
from wanviz import cli
from wanviz.errors import CaptureError
from wanviz.trace import Trace

FILES = ["report.html", "storyboard.png", "video.mp4", "video.trace"]


class Watched:
    """Stands in for `wanviz.capture`: its trace is there at once."""

    def __init__(self, trace):
        self.trace = trace

    def __call__(self, pipe, **options):
        self.options = options
        return self

    def __enter__(self):
        return self.trace

    def __exit__(self, *error):
        return False


@pytest.fixture
def calls(monkeypatch, painted):
    """Replaces the model by a painted trace; lists what the pipeline was asked."""
    asked = []

    def pipe(prompt, **options):
        asked.append({"prompt": prompt, **options})
        if options.get("height") == 90:
            raise ConfigError("height=90 does not fit the VAE:\nuse a multiple of 8")

    pipeline = SimpleNamespace(from_pretrained=lambda path, device, dtype: pipe)
    monkeypatch.setattr(tinywan, "TextToVideoPipeline", pipeline, raising=False)
    monkeypatch.setattr(wanviz, "capture", Watched(painted()), raising=False)
    monkeypatch.setattr(
        wanviz, "plan", lambda pipe, prompt, **options: SimpleNamespace(nbytes=0), raising=False
    )
    drawn = SimpleNamespace(
        can_preview=True,
        planned_request=lambda prompt, **sizes: SimpleNamespace(width=96, height=96),
    )
    monkeypatch.setattr(wanviz.adapters, "adapter_for", lambda found: drawn)
    return asked


def test_explain_writes_and_names_four_whole_files(calls, tmp_path, capsys, painted):
    out = tmp_path / "new" / "out"
    prompt = "一位穿红色旗袍的女子"
    asked = [
        "--seed",
        "3",
        "--steps",
        "6",
        "--guidance",
        "2",
        "--negative",
        "雪",
        "--num-frames",
        "17",
    ]
    assert cli.main(["explain", prompt, "--out", str(out), *asked]) == 0
    assert sorted(file.name for file in out.iterdir()) == FILES
    said = capsys.readouterr().out
    assert all(str(out / name) in said for name in FILES)
    assert calls == [
        {
            "prompt": prompt,
            "negative_prompt": "雪",
            "num_frames": 17,
            "num_inference_steps": 6,
            "guidance_scale": 2.0,
            "seed": 3,
        }
    ]
    assert wanviz.capture.options == {
        "words": None,
        "previews": True,
        "links": True,
        "budget": "1GiB",
    }
    assert np.array_equal(Trace.load(out / "video.trace").frames, painted().frames)
    frames = imageio_ffmpeg.count_frames_and_secs(str(out / "video.mp4"))
    assert frames[0] == 17
    reader = imageio_ffmpeg.read_frames(str(out / "video.mp4"))
    assert next(reader)["size"] == (480, 480)
    first = np.frombuffer(next(reader), np.uint8).reshape(96, 5, 96, 5, 3).mean((1, 3))
    assert np.abs(first - painted().frames[0]).mean() < 12  # H.264 halves the colour's sharpness
    reader.close()
    assert Image.open(out / "storyboard.png").width > 500


def test_keyframes_are_read_and_the_prompt_becomes_a_track_of_subtitles(
    calls, tmp_path, painted, capsys
):
    Image.fromarray(painted().frames[0]).save(tmp_path / "first=1.png")
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 95:205] = 220, 30, 30
    Image.fromarray(wide).save(tmp_path / "last.png")
    asked = ["--keyframe", f"0={tmp_path / 'first=1.png'}", "--subtitles", "soft"]
    asked += ["--keyframe", f"last={tmp_path / 'last.png'}"]
    assert cli.main(["explain", "a dog", "--out", str(tmp_path / "out"), *asked]) == 0
    (given,) = (call["keyframes"] for call in calls)
    assert given.keys() == {0, -1}
    assert np.array_equal(given[0], painted().frames[0])
    assert given[-1].shape == (96, 96, 3)  # the middle of a wide picture, scaled
    assert np.abs(given[-1].astype(int) - (220, 30, 30)).max() < 3
    assert "300 x 100 pixels, into 96 x 96" in capsys.readouterr().err
    assert Trace.load(tmp_path / "out" / "video.trace").record["keyframes"] == [0, -1]
    ffmpeg = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / "out" / "video.mp4"]
    track = subprocess.run([*ffmpeg, "-f", "srt", "-"], capture_output=True, check=True).stdout
    assert painted().prompt in track.decode()


def test_weights_count_while_the_video_is_drawn_and_are_said(calls, tmp_path, capsys, monkeypatch):
    asked = []

    @contextmanager
    def reweight(pipe, prompt, weights):
        asked.append((prompt, weights, len(calls)))
        yield
        asked.append(len(calls))

    monkeypatch.setattr("wanviz.interventions.reweight", reweight)
    weights = ["--weight", "dog=1.5", "--weight", "a = b=0"]
    assert cli.main(["explain", "a dog", "--out", str(tmp_path), *weights]) == 0
    assert asked == [("a dog", {"dog": 1.5, "a = b": 0.0}, 0), 1]
    assert "before the weights" in capsys.readouterr().err
    told = Trace.load(tmp_path / "video.trace").record["word_weights"]
    assert told == {"dog": 1.5, "a = b": 0.0}
    assert "word weights" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        (["--weight", "dog=2", "--weight", "dog=0"], "--weight dog=… was given 2 times"),
        (["--keyframe", "last=a", "--keyframe", "last=b"], "--keyframe -1=… was given 2 times"),
        (["--keyframe", "0=a.png", "--model", "Wan-AI/Wan2.2"], "--keyframe is for tinywan"),
    ],
)
def test_controls_that_cannot_be_are_refused_before_a_model_is_loaded(
    calls, tmp_path, capsys, monkeypatch, asked, sentence
):
    def load(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(wanviz.adapters, "load_pipeline", load)
    assert cli.main(["explain", "a dog", "--out", str(tmp_path / "out"), *asked]) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, b"no picture"])
def test_a_keyframe_that_cannot_be_read_gets_a_sentence(calls, tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    asked = ["--keyframe", f"0={tmp_path / 'a.png'}"]
    assert cli.main(["explain", "a dog", "--out", str(tmp_path / "out"), *asked]) == 2
    assert "cannot read a picture" in capsys.readouterr().err
    assert calls == [] and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "required: explain | sweep | open"),
        (["explain"], "required: prompt"),
        (["explain", "  "], "it is empty: say in words what to draw"),
        (["explain", "a dog", "--seed", "seven"], "invalid int value: 'seven'"),
        (["explain", "a dog", "--guidance", "much"], "invalid float value: 'much'"),
        (["explain", "a dog", "--words", ", "], "it names no phrase of the prompt"),
        (["explain", "a dog", "--weight", "dog"], "'dog': write PHRASE=FACTOR, e.g. red=0.1"),
        (["explain", "a dog", "--weight", "=2"], "'=2': write PHRASE=FACTOR"),
        (["explain", "a dog", "--keyframe", "a.png"], "'a.png': write FRAME=PICTURE"),
        (["explain", "a dog", "--keyframe", "0="], "'0=': write FRAME=PICTURE"),
        (["explain", "a dog", "--subtitles", "loud"], "invalid choice: 'loud'"),
        (["draw", "a dog"], "invalid choice: 'draw'"),
    ],
)
def test_bad_arguments_get_one_line_and_code_2(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_what_the_model_refuses_gets_one_line_and_leaves_no_folder(calls, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["explain", "a dog", "--out", str(out), "--height", "90"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "wanviz: height=90 does not fit the VAE: use a multiple of 8"
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--steps 0", "--steps 0: use a whole number from 1"),
        ("--steps -1", "--steps -1: use"),
        ("--seed -1", "--seed -1: use a whole number from 0 below 2**63"),
        (f"--seed {2**70}", f"--seed {2**70}: use"),
        ("--guidance nan", "--guidance nan: use a finite number"),
        ("--guidance inf", "--guidance inf: use a finite number"),
        ("--num-frames -3", "num_frames=-3 does not fit the VAE: use 1 + 4k frames, e.g. 1 or 5"),
        ("--num-frames 10", "num_frames=10 does not fit the VAE: use 1 + 4k frames, e.g. 9 or 13"),
        ("--budget apple", "budget='apple' is not a size"),
    ],
)
def test_what_no_model_can_do_is_found_before_one_is_loaded(
    monkeypatch, tmp_path, capsys, arguments, sentence
):
    monkeypatch.setattr(cli, "_load", lambda arguments: pytest.fail("it was loaded"))
    out = tmp_path / "out"
    assert cli.main(["explain", "a dog", "--out", str(out), *arguments.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"wanviz: {sentence}")
    assert said.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("given", "phrases"),
    [
        (["--words", "dog,red ball"], ["dog", "red ball"]),
        (["--words", "dog,", "--words", " red ball "], ["dog", "red ball"]),
        (["--words", "狗，红球、雨"], ["狗", "红球", "雨"]),
    ],
)
def test_words_to_keep_are_named_with_commas_or_one_by_one(calls, tmp_path, given, phrases):
    assert cli.main(["explain", "a dog", "--out", str(tmp_path), *given]) == 0
    assert wanviz.capture.options["words"] == phrases


def test_a_capture_over_budget_is_told_in_options_of_the_command(
    calls, tmp_path, capsys, monkeypatch
):
    planned = SimpleNamespace(nbytes=3 << 20)
    monkeypatch.setattr(wanviz, "plan", lambda pipe, prompt, **options: planned)
    asked = ["explain", "a dog", "--out", str(tmp_path / "out"), "--budget", "2MiB"]
    assert cli.main(asked) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("wanviz: 3.0 MiB would be kept and --budget is 2.0 MiB: ")
    assert all(f"--{name}" in said for name in ("words", "steps", "num-frames", "budget"))
    assert not any(option in said for option in ("keep=", "select=", "words="))
    assert calls == []


def test_an_unwritable_folder_is_found_before_anything_is_drawn(calls, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert cli.main(["explain", "a dog", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "cannot write to --out" in capsys.readouterr().err
    assert calls == []
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_found_before_anything_is_drawn(calls, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    assert cli.main(["explain", "a dog", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert os.strerror(errno.ENOSPC) in said and "48 MB free" in said
    assert calls == []
    assert list(tmp_path.iterdir()) == []


def test_when_a_later_file_fails_the_trace_is_kept(calls, tmp_path, capsys, monkeypatch):
    def fail(trace, path, subtitles):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cli, "write_video", fail)
    assert cli.main(["explain", "a dog", "--out", str(tmp_path)]) == 2
    assert os.strerror(errno.ENOSPC) in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["video.trace"]


def test_ctrl_c_says_so_and_leaves_the_folder_as_it_was(calls, tmp_path, capsys, monkeypatch):
    def interrupted(trace, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    (tmp_path / "video.mp4").write_text("older")
    monkeypatch.setattr(Trace, "save", interrupted)
    assert cli.main(["explain", "a dog", "--out", str(tmp_path)]) == 130
    assert "stopped" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["video.mp4"]
    assert (tmp_path / "video.mp4").read_text() == "older"


SLEEPER = """
import signal, sys, time
from types import SimpleNamespace
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs behind a shell inherit that it is ignored
import tinywan, wanviz, wanviz.adapters
from contextlib import nullcontext
def pipe(prompt, **options):
    print("drawing", flush=True)
    time.sleep(60)
tinywan.TextToVideoPipeline = SimpleNamespace(from_pretrained=lambda path, device, dtype: pipe)
wanviz.capture = lambda pipe, **options: nullcontext()
wanviz.plan = lambda pipe, prompt, **options: SimpleNamespace(nbytes=0)
wanviz.adapters.adapter_for = lambda pipe: SimpleNamespace(can_preview=False)
from wanviz.cli import main
sys.exit(main(["explain", "a dog", "--out", sys.argv[1]]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals for one process")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_stopped_while_drawing_ends_with_130_and_leaves_nothing(stop, tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "drawing\n"
    process.send_signal(stop)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert not out.exists()


def test_open_writes_the_report_beside_the_trace(tmp_path, capsys, painted, monkeypatch):
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    painted().save(tmp_path / "a.trace")
    assert cli.main(["open", str(tmp_path / "a.trace"), "--no-browser"]) == 0
    assert str(tmp_path / "a.html") in capsys.readouterr().out
    assert "<title>wanviz report" in (tmp_path / "a.html").read_text("utf-8")
    elsewhere = ["--out", str(tmp_path / "b.html")]
    assert cli.main(["open", str(tmp_path / "a.trace"), "--no-browser", *elsewhere]) == 0
    assert (tmp_path / "b.html").read_bytes() == (tmp_path / "a.html").read_bytes()


def test_open_shows_the_report_where_there_is_a_screen(tmp_path, painted, monkeypatch):
    opened = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or True)
    painted().save(tmp_path / "a.trace")
    assert cli.main(["open", str(tmp_path / "a.trace")]) == 0
    assert opened == [(tmp_path / "a.html").as_uri()]


@pytest.mark.parametrize("fault", ["missing", "foreign", "cut short"])
def test_open_says_what_is_wrong_with_a_file(fault, tmp_path, capsys, painted):
    path = tmp_path / "a.trace"
    painted().save(path)
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(b"GIF89a" if fault == "foreign" else path.read_bytes()[:-100])
    assert cli.main(["open", str(path)]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"wanviz: reading .*a\.trace …\nwanviz: .*a\.trace.*\n", said)
    assert not (tmp_path / "a.html").exists()


def test_help_does_not_wait_for_torch():
    code = (
        "import sys\nfrom wanviz.cli import main\ntry:\n    main(['--help'])\n"
        "except SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'matplotlib', 'xarray', 'tinywan') if name in sys.modules])"
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.splitlines()[-1] == "[]"
    assert "explain" in done.stdout
    assert time.perf_counter() - started < 5  # 0.2 s on an idle machine; this one may be busy


@pytest.mark.parametrize("out", [None, "umbrella.html"])
def test_open_never_overwrites_the_trace(out, tmp_path, capsys, painted):
    path = tmp_path / "umbrella.html"
    painted().save(path)
    before = path.read_bytes()
    asked = ["open", str(path), "--no-browser"]
    assert cli.main(asked if out is None else [*asked, "--out", str(tmp_path / out)]) == 2
    assert path.read_bytes() == before
    assert "would overwrite the trace" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "."])
def test_a_trace_without_a_name_gets_a_sentence(name, capsys):
    assert cli.main(["open", name]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_what_was_captured_is_written_when_a_part_of_it_failed(
    calls, monkeypatch, tmp_path, capsys, painted
):
    class Failing(Watched):
        def __exit__(self, *error):
            raise CaptureError("the video was made, but words could not be captured")

    trace = painted()
    trace.record["failed"] = {"words": "RuntimeError: no"}
    monkeypatch.setattr(wanviz, "capture", Failing(trace), raising=False)
    assert cli.main(["explain", "a dog", "--out", str(tmp_path)]) == 2
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES
    assert "words could not be captured" in capsys.readouterr().err


def test_a_warning_is_one_line_without_a_place_in_the_code(calls, monkeypatch, tmp_path, capsys):
    def pipe(prompt, **options):
        warnings.warn("the prompt was cut\nat character 7", UserWarning, stacklevel=2)

    monkeypatch.setattr(tinywan.TextToVideoPipeline, "from_pretrained", lambda *_, **__: pipe)
    assert cli.main(["explain", "a dog", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert "wanviz: note: the prompt was cut at character 7\n" in said
    assert ".py" not in said


@pytest.fixture(scope="module")
def real_model(tmp_path_factory):
    """A tiny random Wan2.2 in diffusers' format, saved to a folder."""
    pytest.importorskip("transformers", reason="diffusers' WanPipeline needs it")
    from tests.wanviz import real_wan

    folder = tmp_path_factory.mktemp("wan") / "model"
    real_wan.wan22().save_pretrained(folder)
    return folder


SMALL_RUN = ["--height", "32", "--width", "48", "--num-frames", "9", "--steps", "3"]


@pytest.mark.parametrize("more", [[], ["--offload", "group"], ["--dtype", "bfloat16"]])
def test_explain_draws_with_real_wan_from_a_folder(real_model, tmp_path, more):
    more = ["--dtype", "float32", *more]
    asked = ["explain", "a cat in the rain", "--model", str(real_model), "--out", str(tmp_path)]
    assert cli.main([*asked, "--device", "cpu", *SMALL_RUN, *more]) == 0
    trace = wanviz.Trace.load(tmp_path / "video.trace")
    assert trace.record["pipeline"] == "WanPipeline"
    assert trace.record["dtype"] == ("bfloat16" if "bfloat16" in more else "float32")
    assert {step["noise_expert"] for step in trace.record["steps"]} == {"high", "low"}
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(cli.FILES.values())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--device banana", "this machine has no device 'banana': use cpu"),
        ("--device cuda:99", "this machine has no device 'cuda:99': use cpu"),
        ("--device meta", "this machine has no device 'meta': use cpu"),
    ],
)
def test_a_device_that_is_not_there_is_found_before_real_wan_is_loaded(
    real_model, tmp_path, capsys, monkeypatch, arguments, sentence
):
    from diffusers import DiffusionPipeline

    monkeypatch.setattr(
        DiffusionPipeline, "from_pretrained", lambda *a, **k: pytest.fail("it was loaded")
    )
    asked = ["explain", "a cat", "--model", str(real_model), "--out", str(tmp_path / "out")]
    assert cli.main([*asked, *arguments.split()]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"wanviz: {sentence}")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_frames": 10}, "num_frames=10 does not fit the VAE"),
        ({"num_frames": -3}, "num_frames=-3 does not fit the VAE"),
        ({"height": 40}, "height=40 is not a multiple of 16 pixels"),
        ({"num_inference_steps": 0}, "num_inference_steps=0"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
        ({"seed": 2**70}, "refuses what was asked"),
        ({"num_frames": "nine"}, "refuses what was asked"),
    ],
)
def test_what_real_wan_would_round_or_fail_at_is_refused_before_it_draws(
    real_model, changes, sentence
):
    """Of a line of a sweep, too, where no command line was looked at."""
    _, draw = wanviz.adapters.load_pipeline(str(real_model), "cpu", "float32")
    asked = {"height": 32, "width": 48, "num_frames": 9, "num_inference_steps": 1, "seed": 1}
    with pytest.raises(wanviz.OptionError, match=sentence):
        draw("a cat", **{**asked, **changes})


def test_words_and_sizes_are_looked_at_before_real_wan_draws(
    real_model, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(wanviz, "capture", lambda *a, **k: pytest.fail("it was drawn"))
    asked = ["explain", "a cat in the rain", "--model", str(real_model), "--device", "cpu"]
    asked += ["--out", str(tmp_path / "out"), *SMALL_RUN]
    assert cli.main([*asked, "--words", "rain,dog"]) == 2
    assert "'dog'" in capsys.readouterr().err.splitlines()[-1]
    assert cli.main([*asked, "--height", "40"]) == 2
    assert "height=40 is not a multiple of 16" in capsys.readouterr().err.splitlines()[-1]
    assert cli.main([*asked, "--budget", "9KiB"]) == 2
    assert "--budget is 9.0 KiB" in capsys.readouterr().err.splitlines()[-1]


def test_words_shrink_what_explain_keeps_of_real_wan(real_model, tmp_path):
    asked = ["explain", "a cat in the rain", "--model", str(real_model), "--device", "cpu"]
    assert cli.main([*asked, "--out", str(tmp_path), *SMALL_RUN, "--words", "rain"]) == 0
    trace = wanviz.Trace.load(tmp_path / "video.trace")
    assert "".join(token.text for token in trace.tokens).strip() == "rain"
    assert list(trace.special[()].kind.values) == ["end_of_text", "padding", "other_words"]


@pytest.mark.parametrize(
    ("model", "more", "says"),
    [
        (None, ["--offload", "group"], "for real Wan"),
        ("folder", ["--offload", "group", "--device-map", "balanced"], "give one of them"),
    ],
)
def test_options_that_do_not_go_with_a_model_get_a_sentence(
    real_model, tmp_path, capsys, model, more, says
):
    chosen = [] if model is None else ["--model", str(real_model)]
    assert cli.main(["explain", "a cat", "--out", str(tmp_path / "out"), *chosen, *more]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_kind_gets_a_sentence(real_model, tmp_path, capsys):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(real_model, broken)
    (broken / "transformer" / "config.json").unlink()
    assert cli.main(["explain", "a cat", "--out", str(tmp_path / "o"), "--model", str(broken)]) == 2
    assert "cannot load" in capsys.readouterr().err
