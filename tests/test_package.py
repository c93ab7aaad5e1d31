"""What a user gets from a built wheel, and who may import whom in it."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
STARTED_FROM_THE_WHEEL = """
import tinywan, wanviz
print(tinywan.__file__)
print(wanviz.__file__)
pipe = tinywan.TextToVideoPipeline.from_pretrained()
print(pipe("a dog runs", num_inference_steps=1, seed=0, progress_bar=False).frames.shape)
"""


def run(*command, **options):
    """Run a command and return what it printed; its own words are the failure message."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this source tree, built without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
        ROOT,
        cwd=folder,
    )
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def tracked(folder):
    """The files below a folder that belong to the project, relative to its parent."""
    return {
        path.relative_to(folder.parent).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_both_packages(names):
    missing = (tracked(ROOT / "wanviz") | tracked(ROOT / "model" / "tinywan")) - names
    assert missing == set()


def test_the_wheel_holds_weights_static_files_and_type_marks(names):
    assert any(n.startswith("tinywan/weights/") and n.endswith(".safetensors") for n in names)
    assert any(n.startswith("wanviz/static/") for n in names)
    assert {"wanviz/py.typed", "tinywan/py.typed"} <= names


def test_the_wheel_holds_nothing_else(names):
    assert {n.split("/")[0] for n in names} == {"wanviz", "tinywan", "wanviz-0.1.0.dist-info"}


def test_the_wheel_brings_the_license_and_the_command(wheel, names):
    assert "wanviz-0.1.0.dist-info/licenses/LICENSE" in names
    with zipfile.ZipFile(wheel) as archive:
        commands = archive.read("wanviz-0.1.0.dist-info/entry_points.txt").decode()
    assert "wanviz = wanviz.cli:main" in commands


def test_check_wheel_contents_finds_nothing(wheel):
    run(BIN / "check-wheel-contents", "--config", ROOT / "pyproject.toml", wheel)


@pytest.mark.slow
def test_the_model_draws_when_imported_from_the_wheel(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n{STARTED_FROM_THE_WHEEL}"
    lines = run(sys.executable, "-I", "-c", program, cwd=tmp_path).splitlines()
    assert all(line.startswith(str(tmp_path)) for line in lines[:2])
    assert lines[2] == "(1, 17, 96, 96, 3)"


def test_imports_run_one_way():
    run(BIN / "lint-imports", "--no-cache", cwd=ROOT)
