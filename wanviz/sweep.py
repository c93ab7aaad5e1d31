"""`wanviz sweep prompts.jsonl`: one trace for each prompt of a file, on one process or on many.

Each line is a JSON object with a "prompt" and, where it likes, more arguments of the pipeline: "seed",
"negative_prompt", "height", … Under torchrun each process takes every so-manieth line. A trace that is there
already and made from the same line, wherever that stood, is left alone, so that the same command resumes. At the
end the first process writes `index.parquet`, one row for each line.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from wanviz.capture import capture
from wanviz.errors import CaptureError, OptionError, ReportError, WanvizError
from wanviz.files import write_whole
from wanviz.trace import Trace

INDEX = "index.parquet"
SEED = 7  # of a line that has none, as in `wanviz explain`
NOT_OURS = {  # arguments of a pipeline that a line cannot have
    "generator": "JSON cannot hold: give a seed",
    "latents": "JSON cannot hold: give a seed",
    "prompt_embeds": "JSON cannot hold: give a prompt",
    "callback_on_step_end": "JSON cannot hold",
    "num_videos_per_prompt": "would give one line several traces: give several lines",
}
Draw = Callable[..., Any]  # draw(prompt, seed=…, **asked): calls the pipeline
Row = dict[str, Any]  # of the index


@dataclass(frozen=True)
class Line:
    """One line of the file."""

    number: int  # from 1
    prompt: str
    asked: dict[str, Any]  # more arguments of the pipeline
    made_with: str = ""  # model and options of the command, so that other ones make other traces
    occurrence: int = 1  # of several that are alike

    @property
    def digest(self) -> str:
        """A hash of all that was asked."""
        text = json.dumps([self.prompt, self.asked, self.made_with], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    @property
    def name(self) -> str:
        """The name of its files, wherever it stands."""
        return f"{self.digest}-{self.occurrence}"


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
    lines, seen = list[Line](), Counter[str]()
    hint = 'write e.g. {"prompt": "a dog runs", "seed": 1}'
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
        if asked.get("seed") is None:
            asked["seed"] = SEED
        line = Line(number, found["prompt"], asked, made_with)
        seen[line.digest] += 1
        lines.append(replace(line, occurrence=seen[line.digest]))
    if not lines:
        raise OptionError(f"{str(path)!r} has no prompts: {hint}")
    return lines


def sweep(
    load: Callable[[], tuple[Any, Draw]],
    lines: Iterable[Line],
    folder: Path,
    options: dict[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
    progress_bar: bool = True,
) -> list[Row]:
    """Draw and watch this process's lines; a line that fails is noted and does not stop the others.

    Args:
        load: gives the pipeline, and what calls it with a prompt and what else was asked; called only where a
            trace is missing.
        lines: all lines.
        folder: where the traces go; made if missing.
        options: of `capture`.
        rank: of this process.
        world: number of processes.
        progress_bar: whether to show one.

    Returns:
        A row of the index for each of these lines; its "error" is None where all of it was captured.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mine = [line for place, line in enumerate(lines) if place % world == rank]
    files = _files(mine, folder)
    rows = {line.number: _row_of_file(line, *files[line.number]) for line in mine}
    missing = [line for line in mine if rows[line.number] is None]
    if missing:
        pipe, draw = load()
    for line in tqdm(missing, desc="prompts", unit="prompt", disable=not progress_bar):
        rows[line.number] = _draw(pipe, draw, line, *files[line.number], options or {})
    return [row for row in rows.values() if row is not None]


def write_index(rows: Iterable[Row], folder: Path) -> Path:
    """Write what was asked in each line, where its trace is, and why it is not whole.

    Args:
        rows: of `sweep`, of all processes.
        folder: of the traces.

    Returns:
        The Parquet file.

    Raises:
        OptionError: pyarrow, which writes Parquet, is missing.
    """
    check_parquet()
    import pandas as pd

    target, draft = folder / INDEX, folder / f".{INDEX}.{os.getpid()}"
    try:
        table = pd.DataFrame(sorted(rows, key=lambda row: row["line"]))
        table.to_parquet(draft, index=False)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def check_parquet() -> None:
    """See that the index can be written.

    Raises:
        OptionError: pyarrow, which writes Parquet, is missing.
    """
    try:
        import pandas  # noqa: F401
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise OptionError(
            f"the index needs {error.name}: pip install 'wanviz[wan]', and run the same command again"
        ) from error


def _files(lines: Iterable[Line], folder: Path) -> dict[int, tuple[Path, Path]]:
    """By a line's number, its trace and the note of its error; an older wanviz put the number before the hash."""
    older: dict[str, list[str]] = {}
    for stem in sorted({path.name.partition(".")[0] for path in folder.glob("[0-9]*-*.*")}):
        older.setdefault(stem.partition("-")[2], []).append(stem)
    files = {}
    for line in lines:
        stems = dict(enumerate(older.get(line.digest, []), start=1))
        stem = stems.get(line.occurrence, line.name)
        files[line.number] = folder / f"{stem}.trace", folder / f"{stem}.error.txt"
    return files


def _row_of_file(line: Line, path: Path, note: Path) -> Row | None:
    """The row of a line whose trace is there; one that is broken, or has a note, is made again."""
    if note.exists() or not path.exists():
        return None
    try:
        return _row(line) | _row_of(Trace.load(path), path)
    except WanvizError:
        return None


def _draw(
    pipe: Any, draw: Draw, line: Line, path: Path, note: Path, options: dict[str, Any]
) -> Row:
    """Draw one line, and save its trace or a note of the error; or both, where a part could not be captured."""
    row, began = _row(line), time.perf_counter()
    trace, problem = None, None
    try:
        try:
            with capture(pipe, **options) as trace:
                draw(line.prompt, **line.asked)
        except CaptureError as error:  # the video was drawn; what was captured is worth a file
            if trace is None or trace.frames is None:
                raise
            problem = error
        trace.record["seconds"] = round(time.perf_counter() - began, 3)
        trace.save(path)
        row |= _row_of(trace, path)
        if problem is not None:
            raise problem
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        write_whole(note, text.encode(), "the error", ReportError)
        row["error"] = text.strip().splitlines()[-1]
    else:
        note.unlink(missing_ok=True)
    return row


def _row(line: Line) -> Row:
    """What is known of a line beforehand."""
    asked = json.dumps(line.asked, ensure_ascii=False, sort_keys=True)
    return {
        "line": line.number,
        "prompt": line.prompt,
        "trace": None,
        "error": None,
        "asked": asked,
    }


def _row_of(trace: Trace, path: Path) -> Row:
    """What a trace tells."""
    masses = None if "words" in trace.record["failed"] else trace.special[()]
    row: Row = {
        "trace": path.name,
        "words": [word.text for word in trace.words],
        "nbytes": trace.nbytes,
        "seed": trace.record["seed"],
        "model": trace.record["model"],
        "seconds": trace.record.get("seconds"),
    }
    for kind in ("padding", "end_of_text"):
        row[f"{kind}_mass"] = None if masses is None else float(masses.sel(kind=kind).mean())
    return row
