"""Quantised weights. torchao is fetched for this test alone: beside it, diffusers complains at every import."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.wanviz.wheels import unpacked

pytest.importorskip("transformers", reason="diffusers' WanPipeline needs it for its text encoder")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_int8_weights_are_watched_explained_and_changed_like_others(tmp_path):
    folder = unpacked("torchao==0.18.0", tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "tests/wanviz/quantised.py",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert done.stdout.splitlines()[-1].startswith("8 passed")
