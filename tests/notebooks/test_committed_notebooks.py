"""What a reader finds on opening a notebook that nobody has run on this machine."""

import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SIZE_CAP = 3_000_000  # bytes of one notebook: one trace with every slice takes 1.6 million
PICTURE_CAP = 250_000  # bytes of base64 of one picture
PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
BARE_REPR = re.compile(r"^<[^<>]*>$|^\s*$|^\w+\(\)$")  # <Figure size 640x480 with 1 Axes>, Player()


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


@pytest.fixture
def code_cells(notebook):
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def texts(output):
    """The text forms of one output of a cell."""
    if output.output_type == "stream":
        return [output.text]
    plain = output.get("data", {}).get("text/plain", "")
    return [] if BARE_REPR.match(plain) else [plain]


def test_the_first_two_chapters_are_there():
    assert {"01_first_video", "02_words_and_regions"} <= {path.stem for path in PATHS}


def test_names_are_numbered_lower_snake_case():
    assert [p.name for p in PATHS if not re.fullmatch(r"\d\d_[a-z0-9_]+\.ipynb", p.name)] == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_stays_small(path):
    assert path.stat().st_size <= SIZE_CAP


def test_every_code_cell_was_run_once_from_top_to_bottom(code_cells):
    assert [c.execution_count for c in code_cells] == list(range(1, len(code_cells) + 1))


def test_the_kernel_is_the_one_that_every_jupyter_has(notebook):
    assert notebook.metadata.kernelspec.name == "python3"


def test_neither_widgets_nor_their_state_are_stored(notebook, code_cells):
    kinds = {kind for c in code_cells for o in c.outputs for kind in o.get("data", {})}
    assert "widgets" not in notebook.metadata
    assert [kind for kind in kinds if kind.endswith("widget-view+json")] == []


def test_no_error_is_stored_unless_the_cell_announces_it(code_cells):
    unannounced = [
        c.source
        for c in code_cells
        if any(o.output_type == "error" for o in c.outputs)
        and not (
            "NBVAL_RAISES_EXCEPTION" in c.source or "raises-exception" in c.metadata.get("tags", [])
        )
    ]
    assert unannounced == []


def test_nbval_skips_no_cell_and_ignores_at_most_a_quarter(code_cells):
    sources = [
        c.source + " ".join(c.metadata.get("tags", [])).upper().replace("-", "_")
        for c in code_cells
    ]
    assert not any("NBVAL_SKIP" in s for s in sources)
    assert sum("NBVAL_IGNORE_OUTPUT" in s for s in sources) <= len(sources) / 4


def test_every_cell_that_shows_something_says_it_in_text_too(code_cells):
    shown = [c for c in code_cells if any("data" in o for o in c.outputs)]
    mute = [c.source for c in shown if not any(text for o in c.outputs for text in texts(o))]
    assert mute == []


def test_pictures_stay_small(code_cells):
    encoded = [
        o.data["image/png"]
        for c in code_cells
        for o in c.outputs
        if "image/png" in o.get("data", {})
    ]
    assert [len(e) for e in encoded if len(e) > PICTURE_CAP] == []


def test_no_path_of_one_machine_is_stored(code_cells):
    stored = "".join(str(o) for c in code_cells for o in c.outputs)
    assert re.findall(r"/(?:home|root|Users|work)/[^\s'\"]*", stored) == []
