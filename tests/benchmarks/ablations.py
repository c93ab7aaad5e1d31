"""What single choices are worth: `python tests/benchmarks/ablations.py --out runs/ablations`.

Every arm goes on from the same checkpoint with the same clips, noise and number of steps, and differs in one choice:
the optical-flow loss, a router that also sees what was read, or no windows. Two arms let the low-noise expert alone
learn, on its own noise levels, others do so with the flow loss, and two let the decoder alone learn, for 1,500 steps of 4
crops: such arms are to be compared with each other. Then all are measured alike: obedience,
flicker and unsteadiness on the same held-out prompts, the velocity's error on the same held-out clips, and the time
of a forward pass. The trunk was trained without the choices that the arms add, so a small difference says little, and
an arm without windows has more to unlearn than to gain. The same command resumes; finished arms are not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tinywan.checkpoint import SHIPPED
from tinywan.evaluate import evaluate, sample_prompts
from tinywan.noise_levels import LEVELS, held_out_clips, velocity_errors
from tinywan.pipeline import TextToVideoPipeline

DECODER = (
    "--video-steps 0 --freeze-encoder --vae-steps 1500 --vae-lr 1e-3 --vae-muon-lr 0.01".split()
)
ARMS = {
    "as it is": [],
    "flow loss": ["--flow-loss", "0.5"],
    "strong flow loss": ["--flow-loss", "4"],
    "low-noise expert alone": ["--train-only", "low"],
    "flow loss on it": ["--train-only", "low", "--flow-loss", "4"],
    "flow loss on it in low noise": "--train-only low --flow-loss 8 --flow-sigma 0.3".split(),
    "decoder alone": DECODER,
    "flow loss on the decoder": [*DECODER, "--vae-flow-loss", "2"],
    "text router": ["--router", "text"],
    "no windows": ["--no-windows"],
}


def train(folder: Path, arm: str, options: argparse.Namespace) -> None:
    """Train an arm in a process of its own; one that is finished returns at once."""
    command = [sys.executable, "-m", "tinywan.train", "--out", str(folder)]
    command += ["--start-from", str(options.checkpoint), "--image-steps", "0", "--seed", "1"]
    command += ["--video-steps", str(options.steps), "--video-batch", str(options.batch)]
    command += ["--micro-batch", str(options.batch), "--sample-every", str(options.steps)]
    command += ["--lr", str(options.lr), "--muon-lr", str(options.muon_lr), *ARMS[arm]]
    command += ["--bfloat16"] * options.bfloat16 + ["--compile"] * options.compile
    subprocess.run(command, check=True)


def forward_seconds(pipe: TextToVideoPipeline, runs: int = 15) -> float:
    """Median time of the denoiser for one clip, without guidance."""
    dit, config = pipe.transformer, pipe.config
    frames = (config.num_frames - 1) // 4 + 1
    shape = (1, config.dit.in_channels, frames, config.height // 8, config.width // 8)
    latents, timestep = torch.randn(shape), torch.tensor([500.0])
    found = []
    with torch.inference_mode():
        context = dit.read(pipe.encode_prompt(["a dog runs"]))
        for _ in range(runs + 3):
            began = time.perf_counter()
            dit(latents, timestep, context)
            found.append(time.perf_counter() - began)
    return statistics.median(found[3:])


def measure(folder: Path, prompts: int, clips: int) -> dict[str, Any]:
    """Everything that is compared."""
    pipe = TextToVideoPipeline.from_pretrained(folder / "checkpoint")
    asked = sample_prompts(prompts, 0, "held_out", pipe.config.world)
    everything = evaluate(pipe, asked, 0, 0)[0]["generated"]["all"]
    experts = {"high": pipe.transformer, "low": pipe.transformer_2}
    errors = velocity_errors(experts, held_out_clips(pipe, clips))
    own = [
        errors["high" if level >= pipe.config.boundary_ratio else "low"][row].mean()
        for row, level in enumerate(LEVELS)
    ]
    return {
        "obedience": everything["mean"],
        "factors": {name: found["right"] for name, found in everything["factors"].items()},
        "action": everything["factors"]["action"]["right"],
        "direction": everything["factors"]["direction"]["right"],
        "flicker": everything["flicker"],
        "unsteadiness": everything["unsteadiness"],
        "velocity_error": float(np.mean(own)),
        "forward_seconds": forward_seconds(pipe),
    }


def table(found: dict[str, dict[str, Any]]) -> str:
    """The arms side by side, in Markdown."""
    rows = [
        "| arm | factors right | action | direction | flicker | unsteadiness | velocity error | forward |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm, m in found.items():
        rows.append(
            f"| {arm} | {m['obedience']:.1%} | {m['action']:.1%} | {m['direction']:.1%} "
            f"| {m['flicker']['generated']:.2f} | {m['unsteadiness']['generated']:.2f} "
            f"| {m['velocity_error']:.4f} | {1e3 * m['forward_seconds']:.0f} ms |"
        )
    rendered = next(iter(found.values()))
    rows.append(
        f"| rendered clips | | | | {rendered['flicker']['rendered']:.2f} "
        f"| {rendered['unsteadiness']['rendered']:.2f} | | |"
    )
    return "\n".join(rows) + "\n"


def main() -> None:
    """Train, measure, and write `ablations.json` and `ablations.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED, help="where all go on from")
    parser.add_argument("--steps", type=int, default=300, help="of training, for every arm")
    parser.add_argument("--batch", type=int, default=12, help="clips per step")
    parser.add_argument("--lr", type=float, default=5e-4, help="of AdamW")
    parser.add_argument("--muon-lr", type=float, default=0.007, help="of Muon")
    parser.add_argument("--prompts", type=int, default=60, help="held-out prompts")
    parser.add_argument("--clips", type=int, default=32, help="held-out clips")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    for arm in options.arms:
        folder = options.out / arm.replace(" ", "_")
        train(folder, arm, options)
        asked = {k: str(v) for k, v in vars(options).items() if k not in ("out", "arms")}
        done = folder / "measured.json"
        kept = json.loads(done.read_text()) if done.exists() else {}
        if kept.get("asked") != asked:
            kept = {"asked": asked, "found": measure(folder, options.prompts, options.clips)}
            done.write_text(json.dumps(kept))
        found[arm] = kept["found"]
        print(table(found), flush=True)
    (options.out / "ablations.json").write_text(json.dumps(found, indent=1))
    (options.out / "ablations.md").write_text(table(found))


if __name__ == "__main__":
    main()
