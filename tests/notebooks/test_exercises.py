"""Every exercise runs in both states: blank it says so and breaks nothing, solved it is found right."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
import tinywan
import torch

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
EXERCISES = [
    pytest.param(path.name, number, id=f"{path.stem}-{number}")
    for path in sorted(NOTEBOOKS.glob("*.ipynb"))
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells)
    if "exercise" in cell.metadata.get("tags", [])
]


@pytest.fixture
def surroundings():
    """What the cells before an exercise leave behind, as far as exercises use it."""
    pipe = tinywan.TextToVideoPipeline.from_preset("debug")
    return {"np": np, "torch": torch, "pipe": pipe, "rows": []}


@pytest.fixture
def cell(request):
    name, number = request.param
    return nbformat.read(NOTEBOOKS / name, as_version=4).cells[number]


both_states = pytest.mark.parametrize(
    "cell", [(p.values[0], p.values[1]) for p in EXERCISES], ids=[p.id for p in EXERCISES],
    indirect=True,
)  # fmt: skip


def test_the_first_two_chapters_have_an_exercise_each():
    assert {p.values[0][:2] for p in EXERCISES} >= {"01", "02"}


@both_states
def test_a_blank_exercise_says_that_it_is_not_answered_yet(cell, surroundings, capsys):
    exec(cell.source, surroundings)
    assert capsys.readouterr().out == "not answered yet\n"


@both_states
def test_the_solution_in_the_metadata_is_found_right(cell, surroundings, capsys):
    exec(cell.metadata["solution"], surroundings)
    assert capsys.readouterr().out.startswith("✓")


@pytest.mark.parametrize(("name", "number"), EXERCISES)
def test_the_solution_is_folded_up_below_its_exercise(name, number):
    cell, below = nbformat.read(NOTEBOOKS / name, as_version=4).cells[number : number + 2]
    answer = cell.metadata["solution"].split("\n\n\n", 1)[0]
    assert below.source == (
        f"<details><summary>Solution 答案</summary>\n\n```python\n{answer}\n```\n\n</details>"
    )


@both_states
def test_a_wrong_answer_is_found_wrong(cell, surroundings):
    answer, check = cell.source.split("\n\n\n", 1)
    exec(answer.replace("...", "7"), surroundings)
    with pytest.raises(AssertionError, match="not yet"):
        exec(check, surroundings)


@both_states
def test_the_solution_changes_the_answer_and_not_the_check(cell):
    blank, solved = (text.split("\n\n\n", 1) for text in (cell.source, cell.metadata["solution"]))
    assert blank[1] == solved[1]
    assert blank[0] != solved[0]
