"""The `wanviz` command: draw a video from a prompt and explain it, or open a saved trace."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from wanviz.errors import BudgetError, CaptureError, OptionError, ReportError, WanvizError

if TYPE_CHECKING:  # torch and matplotlib take seconds: `wanviz --help` must not
    from wanviz.trace import Trace

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130
ROOM = 48 << 20  # bytes that the files of one video may take, found free before it is drawn
FRAMES_PER_SECOND = 8  # where a record does not say
FILES = {
    "trace": "video.trace",
    "video": "video.mp4",
    "storyboard": "storyboard.png",
    "report": "report.html",
}


class Parser(argparse.ArgumentParser):
    """Says in one line what was wrong."""

    def error(self, message: str) -> NoReturn:
        """Leave with code 2."""
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 2 for bad input, 130 for Ctrl-C."""
    arguments = _parser().parse_args(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped is stopped: clean up
    try:
        if arguments.command == "sweep":
            return sweep_prompts(arguments)
        {"explain": explain, "open": open_trace}[arguments.command](arguments)
    except KeyboardInterrupt:
        print("\nwanviz: stopped; no unfinished file was left behind", file=sys.stderr)
        return INTERRUPTED
    except (WanvizError, OSError) as error:
        return _sentence(error)
    except Exception as error:
        tinywan = sys.modules.get("tinywan.errors")
        if tinywan is not None and isinstance(error, tinywan.TinywanError):
            return _sentence(error)
        raise
    return 0


def explain(arguments: argparse.Namespace) -> None:
    """`wanviz explain`: draw, watch, and write video, report, trace and storyboard."""
    _check(arguments)
    folder: Path = arguments.out
    with _prepared(folder) as drafts:
        _say("loading the model")
        import wanviz
        from wanviz.adapters import adapter_for

        pipe, draw = _load(arguments)
        adapter = adapter_for(pipe)
        small = adapter.can_preview  # what is asked for on top costs little there
        watched = {"words": arguments.words, "previews": small, "links": small}
        sizes = {
            "negative_prompt": arguments.negative,
            "height": arguments.height,
            "width": arguments.width,
            "num_frames": arguments.num_frames,
            "num_inference_steps": arguments.steps,
        }
        planned = wanviz.plan(pipe, arguments.prompt, **watched, **sizes)
        _check_budget(planned.nbytes, arguments.budget)
        asked = {**sizes, "guidance_scale": arguments.guidance, "seed": arguments.seed}
        if arguments.keyframe:
            request = adapter.planned_request(arguments.prompt, **sizes)
            asked["keyframes"] = {
                frame: _picture(path, request.width, request.height)
                for frame, path in arguments.keyframe
            }
        given = {name: value for name, value in asked.items() if value is not None}
        _say("drawing the video and watching its attention")
        if arguments.weight:
            _say("word maps show what is read before the weights are put on")
        started = time.perf_counter()
        trace, problem = None, None
        with _warnings_as_sentences():
            try:
                with (
                    _weighted(pipe, arguments.prompt, arguments.weight),
                    wanviz.capture(pipe, **watched, budget=arguments.budget) as trace,
                ):
                    draw(arguments.prompt, **given)
            except CaptureError as error:  # the video was drawn; what was captured is worth a file
                if trace is None or trace.frames is None:
                    raise
                problem = error
        for name, said in (
            ("word_weights", dict(arguments.weight or ())),
            ("keyframes", [frame for frame, _ in arguments.keyframe or ()]),
        ):
            if said:
                trace.record[name] = said
        _say(f"drawn in {time.perf_counter() - started:.1f} s; writing the files")
        for name, write in files_of(trace, arguments.subtitles).items():
            write(drafts / name)
            (drafts / name).replace(folder / name)  # each whole; should a later one fail, it stays
    _tell(folder)
    if problem is not None:
        raise problem


def _weighted(
    pipe: Any, prompt: str, weights: list[tuple[str, float]] | None
) -> AbstractContextManager[None]:
    """Inside, words count as much as was asked."""
    if not weights:
        return nullcontext()
    from wanviz.interventions import reweight

    return reweight(pipe, prompt, dict(weights))


def _picture(path: Path, width: int, height: int) -> Any:
    """The pixels of a picture file, at the size of the video; says so where it has another one."""
    import numpy as np
    from PIL import Image, ImageOps

    found = _read_picture(path)
    if found.size != (width, height):
        _say(
            f"fitting {path}, {found.width} x {found.height} pixels, into {width} x {height}: scaled, and cut at the edges"
        )
        found = ImageOps.fit(found, (width, height), Image.Resampling.LANCZOS)
    return np.asarray(found)


def _read_picture(path: Path) -> Any:
    """A picture file, upright, in red, green and blue."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise OptionError(
            f"--keyframe: cannot read a picture from {str(path)!r} ({error})"
        ) from error


def _check(arguments: argparse.Namespace) -> None:
    """Find what no model can do before one is loaded."""
    from wanviz.adapters import is_diffusers
    from wanviz.grid import TEMPORAL_STRIDE, token_grid
    from wanviz.layout import parse_bytes

    parse_bytes(arguments.budget)
    for name in ("weight", "keyframe"):
        given = [what for what, _ in getattr(arguments, name) or ()]
        for what in given:
            if given.count(what) > 1:
                raise OptionError(
                    f"--{name} {what}=… was given {given.count(what)} times: give it once"
                )
    if arguments.keyframe and is_diffusers(arguments.model):
        raise OptionError("--keyframe is for tinywan; real Wan has pipelines of its own for it")
    for _, path in arguments.keyframe or ():
        _read_picture(path)
    if arguments.steps is not None and arguments.steps < 1:
        raise OptionError(f"--steps {arguments.steps}: use a whole number from 1")
    if not 0 <= arguments.seed < 2**63:
        raise OptionError(f"--seed {arguments.seed}: use a whole number from 0 below 2**63, e.g. 7")
    if arguments.guidance is not None and not math.isfinite(arguments.guidance):
        raise OptionError(f"--guidance {arguments.guidance}: use a finite number, e.g. 5")
    if arguments.num_frames is not None:  # the sides are the model's matter
        stride, patch = (TEMPORAL_STRIDE, 1, 1), (1, 1, 1)
        token_grid(arguments.num_frames, 1, 1, vae_stride=stride, patch_size=patch)


def _check_budget(needed: int, budget: str) -> None:
    """Refuse what capture would refuse, in options that the command has."""
    from wanviz.layout import format_bytes, parse_bytes

    if needed > parse_bytes(budget):
        raise BudgetError(
            f"{format_bytes(needed)} would be kept and --budget is {format_bytes(parse_bytes(budget))}: keep a few "
            "words (--words cat,rain), draw less (--steps, --num-frames, --height, --width), or raise --budget"
        )


def sweep_prompts(arguments: argparse.Namespace) -> int:
    """`wanviz sweep`: a trace for every prompt of a file; under torchrun, shared among the processes."""
    from wanviz.adapters import is_diffusers
    from wanviz.layout import parse_bytes
    from wanviz.sweep import check_parquet, read_lines, sweep, write_index

    parse_bytes(arguments.budget)
    check_parquet()
    rank, world = (
        int(os.environ.get(name, least)) for name, least in (("RANK", 0), ("WORLD_SIZE", 1))
    )
    asked = {name: getattr(arguments, name) for name in ("model", "dtype", "frames")}
    lines = read_lines(arguments.prompts, made_with=json.dumps(asked))
    if world > 1:
        import torch
        import torch.distributed as dist

        dist.init_process_group(
            "gloo", timeout=timedelta(days=30)
        )  # the slowest line may take long
        if arguments.device_map is not None:
            raise OptionError("each process has a GPU of its own: leave --device-map out")
        if arguments.device is None and is_diffusers(arguments.model):
            arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
        if (arguments.device or "").startswith("cuda"):
            arguments.device = f"cuda:{os.environ['LOCAL_RANK']}"

    def load() -> tuple[Any, Callable[..., Any]]:
        if rank == 0:
            _say("loading the model")
        return _load(arguments)

    options = {"budget": arguments.budget, "frames": arguments.frames or None}
    with _warnings_as_sentences():
        rows = sweep(load, lines, arguments.out, options, rank, world, progress_bar=rank == 0)
    if world > 1:
        everybody: list[Any] = [None] * world
        dist.all_gather_object(everybody, rows)
        dist.destroy_process_group()
        rows = [row for part in everybody for row in part]
    failed = sum(row["error"] is not None for row in rows)
    if rank == 0:
        print(f"index    {write_index(rows, arguments.out)}")
        print(f"traces   {len(lines) - failed} of {len(lines)} in {arguments.out}")
        if failed:
            print(
                f"wanviz: {failed} lines failed, see the *.error.txt beside the traces; the same command "
                "tries them again",
                file=sys.stderr,
            )
    return FAILED if failed else 0


def _load(arguments: argparse.Namespace) -> tuple[Any, Callable[..., Any]]:
    from wanviz.adapters import load_pipeline

    return load_pipeline(
        arguments.model, arguments.device, arguments.dtype, arguments.offload, arguments.device_map
    )


def files_of(trace: Trace, subtitles: str | None = None) -> dict[str, Callable[[Path], object]]:
    """The files that explain a trace, and what writes each; the trace first, it is worth most."""
    from wanviz.report import report

    return {
        FILES["trace"]: trace.save,
        FILES["video"]: partial(write_video, trace, subtitles=subtitles),
        FILES["storyboard"]: partial(write_storyboard, trace),
        FILES["report"]: partial(report, trace),
    }


def write_storyboard(trace: Trace, path: Path) -> None:
    """Write the storyboard of a trace as PNG; for a prompt without words, one plain frame."""
    from wanviz.plots import plot_storyboard
    from wanviz.show import poster

    if any(word.tokens for word in trace.words) and "words" not in trace.record["failed"]:
        plot_storyboard(trace).savefig(path)
    else:
        path.write_bytes(poster(trace))


def write_video(trace: Trace, path: Path, subtitles: str | None = None) -> None:
    """Write a trace's video; its prompt as subtitles "soft", a track, or "burn", drawn into it."""
    from wanviz import delivery

    if trace.frames is None:
        raise OptionError("this trace has no decoded video: capture a call that decodes")
    fps = trace.record.get("fps", FRAMES_PER_SECOND)
    cues = delivery.passages([(trace.prompt, len(trace.frames))], fps) if subtitles else ()
    delivery.write_video(trace.frames, path, fps, subtitles=cues, burn=subtitles == "burn")


def open_trace(arguments: argparse.Namespace) -> None:
    """`wanviz open`: write the report of a saved trace and show it in the browser."""
    from wanviz.report import report
    from wanviz.trace import Trace

    source: Path = arguments.trace
    _say(f"reading {source}")
    trace = Trace.load(source)
    target: Path = arguments.out or source.with_suffix(".html")
    if target.resolve() == source.resolve():
        raise OptionError(
            f"the report would overwrite the trace {str(source)!r}: name another file with --out"
        )
    _say("writing the report")
    beside = None if arguments.beside is None else Trace.load(arguments.beside)
    path = report(trace, target, beside=beside)
    print(f"report   {path}")
    if arguments.browser and _has_screen():
        import webbrowser

        if webbrowser.open(path.resolve().as_uri()):
            return
    print("Open it in any browser; it needs no network.")


def _parser() -> Parser:
    parser = Parser(prog="wanviz", description="See what each word of a prompt does in a video.")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="explain | sweep | open"
    )
    draw = commands.add_parser(
        "explain", help="draw a video from a prompt, and write what each word did"
    )
    draw.add_argument("prompt", type=_prompt, help="what to draw, in English or Chinese")
    draw.add_argument(
        "--out", type=Path, default=Path("out"), help="folder to write (default: out)"
    )
    draw.add_argument("--seed", type=int, default=7, help="same seed, same video (default: 7)")
    draw.add_argument("--steps", type=int, help="denoising steps")
    draw.add_argument("--guidance", type=float, help="how strictly to follow the prompt")
    draw.add_argument("--negative", default="", help="what to keep out of the video")
    draw.add_argument(
        "--words",
        type=_phrases,
        action="extend",
        help="phrases of the prompt to keep maps of, e.g. cat,rain; all others together (default: every word)",
    )
    draw.add_argument(
        "--weight",
        type=_weight,
        action="append",
        metavar="PHRASE=FACTOR",
        help="how strongly a phrase is read, e.g. red=0.1; 0 is not at all (may be given several times)",
    )
    draw.add_argument(
        "--keyframe",
        type=_keyframe,
        action="append",
        metavar="FRAME=PICTURE",
        help="a picture file that the video passes through, e.g. 0=first.png or last=end.png (tinywan)",
    )
    draw.add_argument(
        "--subtitles",
        choices=("soft", "burn"),
        help="the prompt as subtitles: a track that can be switched on, or drawn into the picture",
    )
    draw.add_argument("--num-frames", type=int, help="frames to draw: 1 + 4k, e.g. 17")
    draw.add_argument("--height", type=int, help="pixel rows")
    draw.add_argument("--width", type=int, help="pixel columns")
    _model_options(draw)
    many = commands.add_parser(
        "sweep", help="draw every prompt of a file, and keep a trace of each"
    )
    many.add_argument("prompts", type=Path, help='JSON lines, each {"prompt": "…", "seed": 1, …}')
    many.add_argument(
        "--out", type=Path, default=Path("sweep"), help="folder to write (default: sweep)"
    )
    many.add_argument(
        "--frames",
        default="auto",
        choices=("auto", "sampled", "exact", ""),
        help="attention between frames (default: auto; '' for none)",
    )
    _model_options(many)
    show = commands.add_parser("open", help="show the report of a saved trace")
    show.add_argument("trace", type=Path, help="a file that Trace.save or explain wrote")
    show.add_argument("--out", type=Path, help="report to write (default: beside the trace)")
    show.add_argument("--beside", type=Path, help="another trace, to compare with")
    show.add_argument(
        "--no-browser", dest="browser", action="store_false", help="only write the report"
    )
    return parser


def _model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        help="a tinywan checkpoint, or real Wan: a folder in diffusers' format or its id on the hub, e.g. "
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers (default: the tinywan that is shipped)",
    )
    parser.add_argument(
        "--device", help="cpu, cuda, … (default: cpu for tinywan, else a GPU if any)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of the weights (default: float32 for tinywan, bfloat16 for real Wan)",
    )
    parser.add_argument(
        "--offload",
        choices=("model", "group", "sequential"),
        help="real Wan: what does not work waits in main memory; later ones need less of the GPU, and time",
    )
    parser.add_argument("--device-map", choices=("balanced",), help="real Wan: over all GPUs")
    parser.add_argument("--budget", default="1GiB", help="most bytes to keep (default: 1GiB)")


def _prompt(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: say in words what to draw")
    return text


def _phrases(text: str) -> list[str]:
    found = [phrase.strip() for phrase in re.split("[,，、]", text) if phrase.strip()]
    if not found:
        raise argparse.ArgumentTypeError("it names no phrase of the prompt: write e.g. cat,rain")
    return found


def _weight(text: str) -> tuple[str, float]:
    phrase, _, factor = text.rpartition("=")
    try:
        return phrase.strip() or _nothing(), float(factor)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: write PHRASE=FACTOR, e.g. red=0.1") from error


def _keyframe(text: str) -> tuple[int, Path]:
    frame, _, path = text.partition("=")
    try:
        return -1 if frame.strip() == "last" else int(frame), Path(path or _nothing())
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r}: write FRAME=PICTURE, e.g. 0=first.png"
        ) from error


def _nothing() -> NoReturn:
    raise ValueError("nothing was given")


@contextmanager
def _prepared(folder: Path) -> Iterator[Path]:
    """A draft folder inside the output folder, with room; gone afterwards, whatever happens."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    drafts = None
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            drafts = Path(tempfile.mkdtemp(prefix=".wanviz-", dir=folder))
            _reserve(drafts / "room")
        except OSError as error:
            raise ReportError(
                f"cannot write to --out {str(folder)!r} ({error.strerror or error}): "
                f"name a folder that is writable and has {ROOM >> 20} MB free"
            ) from error
        yield drafts
    finally:
        if drafts is not None:
            shutil.rmtree(drafts, ignore_errors=True)
        for path in missing:  # folders that we made and did not fill
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _reserve(path: Path) -> None:
    """See that the disk takes as much as we shall write; OSError where it does not."""
    if shutil.disk_usage(path.parent).free < ROOM:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    path.write_bytes(bytes(1 << 20))  # quotas and read-only mounts show only on a real write
    path.unlink()


def _has_screen() -> bool:
    """Whether a browser window could appear; text browsers would take the terminal over."""
    if sys.platform in ("win32", "darwin"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _tell(folder: Path) -> None:
    print(f"video       {folder / FILES['video']}")
    print(f"report      {folder / FILES['report']}")
    print(f"storyboard  {folder / FILES['storyboard']}")
    print(f"trace       {folder / FILES['trace']}")
    print("Open the report in any browser and hover its words; it needs no network.")
    print(f"Again later: wanviz open {folder / FILES['trace']}")


@contextmanager
def _warnings_as_sentences() -> Iterator[None]:
    """Print what this generation warns of as one line each, without the place in the code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        try:
            yield
        finally:
            for sentence in dict.fromkeys(str(warning.message) for warning in caught):
                print(f"wanviz: note: {' '.join(sentence.split())}", file=sys.stderr)


def _say(text: str) -> None:
    print(f"wanviz: {text} …", file=sys.stderr, flush=True)


def _sentence(error: BaseException) -> int:
    print(f"wanviz: {' '.join(str(error).split())}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
