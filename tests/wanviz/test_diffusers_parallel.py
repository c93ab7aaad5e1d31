"""Two processes that share one video (Ulysses) find the maps that one process finds, and fail together."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import wanviz
from tests.wanviz import real_wan as real

pytest.importorskip("transformers", reason="diffusers' WanPipeline needs it for its text encoder")

ROOT = Path(__file__).resolve().parents[2]
SIZE = {"height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 2}  # 72 tokens, 36 each
BEGIN = """
import json, sys
from datetime import timedelta
from unittest import mock
sys.path.insert(0, "tests/wanviz")
import numpy as np, torch, torch.distributed as dist
import real_wan as real, wanviz
from diffusers import ContextParallelConfig
dist.init_process_group("gloo", timeout=timedelta(seconds=60))
torch.set_num_threads(1)
pipe = real.wan21()
size = json.loads(sys.argv[1])
plain = real.draw(pipe, output_type="latent", **size)
with mock.patch("torch.accelerator.device_count", return_value=2):
    pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
alone = real.draw(pipe, output_type="latent", **size)
"""
FOUND = """
for frames in ("exact", "sampled"):
    with wanviz.capture(pipe, keep=[("layer", "step", "head"), ()], frames=frames) as trace:
        shared = real.draw(pipe, output_type="latent", **size)
    trace.save(f"{sys.argv[2]}/{frames}{dist.get_rank()}.trace")
    assert torch.equal(alone, shared)
print(json.dumps({"same as one process": bool(torch.equal(plain, shared))}))
dist.destroy_process_group()
"""
FAILED = """
from wanviz import frame_masses
from wanviz.frame_masses import FrameMasses

def once(module, name, call):
    \"\"\"A function of the second process that is out of memory in one of its calls.\"\"\"
    original, calls = getattr(module, name), []

    def failing(*args):
        calls.append(1)
        found = original(*args)
        if len(calls) == call and dist.get_rank() == 1:
            raise MemoryError("too little here")
        return found

    return mock.patch.object(module, name, failing)

# queries, keys, and what is made of both
PLACES = [(frame_masses, "turned", 1), (frame_masses, "turned", 4), (FrameMasses, "consume", 2)]
for frames in ("exact", "sampled"):
    for place in PLACES:
        try:
            with once(*place), wanviz.capture(pipe, keep=[()], frames=frames) as trace:
                shared = real.draw(pipe, output_type="latent", **size)
        except wanviz.CaptureError as error:
            told = str(error)
        assert torch.equal(alone, shared)
        reason = ("it failed in another process", "too little here")[dist.get_rank()]
        assert "frames could not be captured" in told and reason in told, told
        assert np.isfinite(trace.word_map("rain")).all()
dist.destroy_process_group()
"""


def run_twice(script: str, folder: Path) -> None:
    """A script in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    path = folder / "shared.py"
    path.write_text(script)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port),
        str(path), json.dumps(SIZE), str(folder),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_find_the_maps_of_one(tmp_path):
    run_twice(BEGIN + FOUND, tmp_path)
    pipe: Any = real.wan21()
    for frames in ("exact", "sampled"):
        with wanviz.capture(pipe, keep=[("layer", "step", "head"), ()], frames=frames) as one:
            real.draw(pipe, output_type="latent", **SIZE)
        for rank in range(2):
            two = wanviz.Trace.load(tmp_path / f"{frames}{rank}.trace")
            assert two.contents.arrays.keys() == one.contents.arrays.keys()
            for name, array in one.contents.arrays.items():
                np.testing.assert_allclose(
                    two.contents.arrays[name], array, atol=1e-6, err_msg=name
                )


@pytest.mark.slow
def test_what_fails_in_one_process_is_told_by_both_and_the_video_is_safe(tmp_path):
    run_twice(BEGIN + FAILED, tmp_path)
