"""The lowest diffusers that pyproject allows: the same maps as with the one that is installed."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

import wanviz
from tests.wanviz import real_wan as real
from tests.wanviz.wheels import unpacked

pytest.importorskip("transformers", reason="diffusers' WanPipeline needs it for its text encoder")

ROOT = Path(__file__).resolve().parents[2]
WATCH = """
import json, sys
sys.path.insert(0, "tests/wanviz")
import diffusers, numpy as np, real_wan as real, wanviz
found = {"version": diffusers.__version__}
for name, pipe in (("wan2.1", real.wan21()), ("wan2.2", real.wan22())):
    plain = real.draw(pipe)
    # the first step: what comes after also depends on the version's scheduler
    with wanviz.capture(pipe, frames="exact", select={"step": [0]}) as trace:
        watched = real.draw(pipe)
    assert np.array_equal(plain, watched)
    assert np.array_equal(plain, real.draw(pipe))
    found[name] = {
        "map": trace.word_map("umbrella", layer=1).values.tolist(),
        "frames": trace.frame_attention(layer=1).mass.values.tolist(),
        "steps": trace.record["steps"],
        "seed": trace.record["seed"],
    }
print(json.dumps(found))
"""


def lowest() -> str:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    (bound,) = (
        re.fullmatch(r"diffusers>=([\d.]+)", item) for item in extras["wan"] if "diffusers" in item
    )
    assert bound is not None
    return bound[1] if bound[1].count(".") == 2 else bound[1] + ".0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lowest version, unpacked beside the installed packages."""
    return unpacked(f"diffusers=={lowest()}", tmp_path_factory.mktemp("diffusers"))


@pytest.mark.slow
def test_the_lowest_diffusers_gives_the_same_maps(folder):
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", WATCH], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"] == lowest()
    for name, pipe in (("wan2.1", real.wan21()), ("wan2.2", real.wan22())):
        with wanviz.capture(pipe, frames="exact", select={"step": [0]}) as trace:
            real.draw(pipe)
        told = found[name]
        np.testing.assert_allclose(told["map"], trace.word_map("umbrella", layer=1), atol=1e-5)
        np.testing.assert_allclose(told["frames"], trace.frame_attention(layer=1).mass, atol=1e-5)
        for before, now in zip(told["steps"], trace.record["steps"], strict=True):
            assert (before["step"], before["noise_expert"]) == (now["step"], now["noise_expert"])
            assert abs(before["sigma"] - now["sigma"]) < 2e-3
        assert told["seed"] == trace.record["seed"]
