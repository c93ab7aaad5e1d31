"""Pytest plugin: nbval without the gaps through which a wrong notebook passes.

`--nbval` compares text, but not pictures, and lets a cell that was never run pass. This plugin, loaded for every run
by pyproject.toml, compares pictures too and fails un-run cells. Numbers, times and addresses are made comparable by
`sanitize.cfg` beside it.
"""

import base64
import io
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from nbval.plugin import IPyNbCell
from PIL import Image

PICTURES = ("image/png", "image/jpeg")
THUMBNAIL = (
    16  # pixels: a re-encoded or slightly shifted picture keeps it, another picture does not
)
COLOR_TOLERANCE = 16  # of 255, for any channel of any thumbnail pixel
SIZE_TOLERANCE = 0.02  # of width and height


def pytest_configure(config: pytest.Config) -> None:
    """Give nbval the sanitize file, wherever pytest was started from."""
    if config.option.nbval_sanitize_with is None:
        config.option.nbval_sanitize_with = str(Path(__file__).with_name("sanitize.cfg"))


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let every notebook cell compare its pictures as well."""
    if isinstance(item, IPyNbCell):
        item.compare_outputs = partial(compare_outputs, item)


def pytest_runtest_call(item: pytest.Item) -> None:
    """Fail a cell that was never run: nbval would compare it with nothing and pass it."""
    if isinstance(item, IPyNbCell) and item.cell.source.strip() and not item.cell.execution_count:
        item.raise_cell_error("The stored cell was never run: run 'make notebooks' and commit it")


def compare_outputs(
    cell: IPyNbCell, test: list, ref: list, skip_compare: tuple | None = None
) -> bool:
    """Compare what a cell puts out now (`test`) with what is stored (`ref`), pictures included."""
    if not IPyNbCell.compare_outputs(cell, test, ref, skip_compare):
        return False
    now, stored = list(pictures(test)), list(pictures(ref))
    if len(now) != len(stored):
        cell.comparison_traceback.append(f"{len(stored)} pictures are stored, {len(now)} came out")
        return False
    for number, (new, old) in enumerate(zip(now, stored, strict=True), start=1):
        if difference := picture_difference(new, old):
            cell.comparison_traceback.append(f"picture {number} of the cell differs: {difference}")
            return False
    return True


def pictures(outputs: Iterable[dict]) -> Iterable[Image.Image]:
    """Yield the pictures among a cell's outputs, in order, on white."""
    for output in outputs:
        for kind in PICTURES:
            if encoded := output.get("data", {}).get(kind):
                picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                yield Image.alpha_composite(white, picture).convert("RGB")


def picture_difference(new: Image.Image, old: Image.Image) -> str:
    """Say how two pictures differ; empty where they show the same thing."""
    if any(abs(a - b) > SIZE_TOLERANCE * b for a, b in zip(new.size, old.size, strict=True)):
        return f"it is {new.size} pixels now and {old.size} as stored"
    thumbnails = [
        np.asarray(p.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), int) for p in (new, old)
    ]
    worst = int(np.abs(thumbnails[0] - thumbnails[1]).max())
    return (
        f"its {THUMBNAIL}x{THUMBNAIL} thumbnail is off by {worst} of 255"
        if worst > COLOR_TOLERANCE
        else ""
    )
