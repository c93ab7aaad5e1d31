"""Two processes that share one video (Ulysses) find the maps that one process finds."""

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
SHARED = """
import json, sys
from unittest import mock
sys.path.insert(0, "tests/wanviz")
import numpy as np, torch, torch.distributed as dist
import real_wan as real, wanviz
from diffusers import ContextParallelConfig
dist.init_process_group("gloo")
torch.set_num_threads(1)
pipe = real.wan21()
size = json.loads(sys.argv[1])
plain = real.draw(pipe, output_type="latent", **size)
with mock.patch("torch.accelerator.device_count", return_value=2):
    pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=2))
alone = real.draw(pipe, output_type="latent", **{**size})
for frames in ("exact", "sampled"):
    with wanviz.capture(pipe, keep=[("layer", "step", "head"), ()], frames=frames) as trace:
        shared = real.draw(pipe, output_type="latent", **size)
    trace.save(f"{sys.argv[2]}/{frames}{dist.get_rank()}.trace")
    assert torch.equal(alone, shared)
print(json.dumps({"same as one process": bool(torch.equal(plain, shared))}))
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_find_the_maps_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port),
        str(script), json.dumps(SIZE), str(tmp_path),
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=400,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
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
