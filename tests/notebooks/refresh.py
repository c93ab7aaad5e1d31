"""Run every notebook from top to bottom and store its outputs: `make notebooks`, or with paths, only those.

What would change without need from run to run (cell ids, timings, versions, widget state) is normalised or left out,
so that a diff shows what changed for the reader.
"""

import os
import re
import sys
from pathlib import Path
from uuid import UUID

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
CELL_TIMEOUT = 600  # seconds, as under pytest
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
RANDOM_ID = re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")  # in xarray's HTML
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}


def normalise(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Leave in a notebook only what its reader sees, and number its cells and their identifiers."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number:02d}"
        cell.metadata = {k: v for k, v in cell.metadata.items() if k in {"tags", "solution"}}
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET_VIEW, None)  # without its state it shows an error
    text = nbformat.writes(notebook)
    for number, identifier in enumerate(dict.fromkeys(RANDOM_ID.findall(text)), start=1):
        text = text.replace(identifier, str(UUID(int=number)))
    return nbformat.reads(text, as_version=4)


def refresh(path: Path) -> None:
    """Run one notebook in its own folder and replace the file when all its cells have run."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,  # else a slow machine stores one output for each line
        store_widget_state=False,
        extra_arguments=["--IPKernelApp.log_level=ERROR"],  # no note on the kernel's transport
        resources={"metadata": {"path": str(path.parent)}},
    )
    client.execute()
    notebook = normalise(notebook)
    nbformat.validate(notebook)
    unfinished = path.with_suffix(".unfinished")
    nbformat.write(notebook, unfinished)
    unfinished.replace(path)


def main(arguments: list[str]) -> int:
    """Refresh the notebooks named, or all of them."""
    paths = [Path(a).resolve() for a in arguments] or sorted(NOTEBOOKS.glob("*.ipynb"))
    os.environ["PYTHONHASHSEED"] = "0"  # the kernels inherit it
    for path in paths:
        print(f"running {path.name} …", flush=True)
        refresh(path)
        print(f"stored  {path.name}, {path.stat().st_size / 1000:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
