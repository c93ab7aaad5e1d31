"""`wanviz sweep prompts.jsonl`: one trace for each prompt of a file, on one process or on many.

Each line is a JSON object with a "prompt" and, where it likes, more arguments of the pipeline: "seed",
"negative_prompt", "height", … Under torchrun each process takes every so-manieth line. A trace that is there
already and made from the same line is left alone, so that the same command resumes. At the end the first
process writes `index.parquet`, one row for each line.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from wanviz.capture import capture
from wanviz.errors import OptionError, ReportError, WanvizError
from wanviz.files import write_whole
from wanviz.trace import Trace

INDEX = "index.parquet"
NOT_OURS = {  # arguments of a pipeline that a line cannot have
    "generator": "JSON cannot hold: give a seed",
    "latents": "JSON cannot hold: give a seed",
    "prompt_embeds": "JSON cannot hold: give a prompt",
    "callback_on_step_end": "JSON cannot hold",
    "num_videos_per_prompt": "would give one line several traces: give several lines",
}
Draw = Callable[..., Any]  # draw(prompt, seed=…, **asked): calls the pipeline


@dataclass(frozen=True)
class Line:
    """One line of the file."""

    number: int  # from 1
    prompt: str
    asked: dict[str, Any]  # more arguments of the pipeline
    made_with: str = ""  # model and options of the command, so that other ones make other traces

    @property
    def name(self) -> str:
        """The name of its files: its number, and a hash of all that was asked."""
        text = json.dumps([self.prompt, self.asked, self.made_with], sort_keys=True)
        return f"{self.number:05d}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def read_lines(path: Path, made_with: str = "") -> list[Line]:
    """Every prompt of a file.

    Args:
        path: of JSON lines.
        made_with: what else tells traces apart: model and options.

    Raises:
        OptionError: the file is missing, or a line is not what it should be; its number is told.
    """
    try:
        texts = path.read_text(encoding="utf-8").split("\n")  # JSON may hold other line breaks
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(
            f"cannot read {str(path)!r} ({error}): give a file of JSON lines"
        ) from error
    lines, hint = [], 'write e.g. {"prompt": "a dog runs", "seed": 1}'
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            continue
        try:
            found = json.loads(text)
        except ValueError as error:
            raise OptionError(
                f"line {number} of {str(path)!r} is not JSON ({error}): {hint}"
            ) from None
        if not isinstance(found, dict) or not isinstance(found.get("prompt"), str):
            raise OptionError(f'line {number} of {str(path)!r} has no "prompt": {hint}')
        asked = {name: value for name, value in found.items() if name != "prompt"}
        for name, why in NOT_OURS.items():
            if name in asked:
                raise OptionError(f"line {number} of {str(path)!r} has {name!r}, which {why}")
        lines.append(Line(number, found["prompt"], asked, made_with))
    if not lines:
        raise OptionError(f"{str(path)!r} has no prompts: {hint}")
    return lines


def sweep(
    pipe: Any,
    draw: Draw,
    lines: Iterable[Line],
    folder: Path,
    options: dict[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
    progress_bar: bool = True,
) -> int:
    """Draw and watch this process's lines; a line that fails is noted and does not stop the others.

    Args:
        pipe: the pipeline.
        draw: calls it with a prompt and what else was asked.
        lines: all lines.
        folder: where the traces go; made if missing.
        options: of `capture`.
        rank: of this process.
        world: number of processes.
        progress_bar: whether to show one.

    Returns:
        How many lines failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mine = [line for place, line in enumerate(lines) if place % world == rank]
    failed = 0
    for line in tqdm(mine, desc="prompts", unit="prompt", disable=not progress_bar):
        path, note = folder / f"{line.name}.trace", folder / f"{line.name}.error.txt"
        if _is_whole(path):
            continue
        began = time.perf_counter()
        try:
            with capture(pipe, **(options or {})) as trace:
                draw(line.prompt, **line.asked)
            trace.record["line"] = line.number
            trace.record["seconds"] = round(time.perf_counter() - began, 3)
            trace.save(path)
        except Exception as error:
            failed += 1
            text = "".join(traceback.format_exception(error))
            write_whole(note, text.encode(), "the error", ReportError)
        else:
            note.unlink(missing_ok=True)
    return failed


def write_index(lines: Iterable[Line], folder: Path) -> Path:
    """One row for each line: what was asked, where its trace is, or why there is none.

    Args:
        lines: all lines.
        folder: of the traces.

    Returns:
        The Parquet file.

    Raises:
        OptionError: pyarrow, which writes Parquet, is missing.
    """
    try:
        import pandas as pd
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise OptionError(
            f"the index needs {error.name}: pip install 'wanviz[wan]', and run the same command again"
        ) from error
    rows = []
    for line in lines:
        row: dict[str, Any] = {
            "line": line.number,
            "prompt": line.prompt,
            "trace": None,
            "error": None,
        }
        row["asked"] = json.dumps(line.asked, ensure_ascii=False, sort_keys=True)
        path, note = folder / f"{line.name}.trace", folder / f"{line.name}.error.txt"
        if _is_whole(path):
            trace = Trace.load(path)
            row |= {
                "trace": path.name,
                "words": [word.text for word in trace.words],
                "nbytes": trace.nbytes,
                "seed": trace.record["seed"],
                "model": trace.record["model"],
                "seconds": trace.record.get("seconds"),
                "padding_mass": float(trace.special[()].sel(kind="padding").mean()),
                "end_of_text_mass": float(trace.special[()].sel(kind="end_of_text").mean()),
            }
        elif note.exists():
            row["error"] = note.read_text(encoding="utf-8").strip().splitlines()[-1]
        rows.append(row)
    target, draft = folder / INDEX, folder / f".{INDEX}.{os.getpid()}"
    try:
        pd.DataFrame(rows).to_parquet(draft, index=False)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def _is_whole(path: Path) -> bool:
    """Whether a trace is there; a broken one is made again."""
    if not path.exists():
        return False
    try:
        Trace.load(path)
    except WanvizError:
        return False
    return True
