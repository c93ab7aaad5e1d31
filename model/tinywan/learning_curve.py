"""The learning curve: how well prompts are obeyed, against what the model had seen.

`python -m tinywan.learning_curve --run runs/tiny --out DIR` draws held-out prompts with the weights that a
training run kept on the way, reads the clips with the probes, and writes `learning_curve.json` and `.png`.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from tinywan.errors import CheckpointError, TinywanError
from tinywan.evaluate import evaluate, sample_prompts
from tinywan.pipeline import TextToVideoPipeline
from tinywan.train_denoiser import SEEN, SNAPSHOTS

SHOWN = ("subject", "garment_color", "prop_color", "place", "action", "direction", "camera")


def measure_snapshots(
    run: Path, prompts: int, seed: int = 0, progress_bar: bool = True, device: str = "cpu"
) -> list[dict[str, Any]]:
    """Evaluate every snapshot of a run that has seen clips.

    Args:
        run: folder that training wrote into.
        prompts: how many, the same for each snapshot.
        seed: of the prompts.
        progress_bar: show one.
        device: to draw on.

    Returns:
        For each snapshot "pictures" and "clips" seen, the "mean" share right and that of each of "factors".

    Raises:
        CheckpointError: where the run kept none.
    """
    # what was seen is written last: a snapshot without it is not finished
    folders = sorted(p.parent for p in (run / "denoiser" / SNAPSHOTS).glob(f"step*/{SEEN}"))
    points = []
    for folder in tqdm(folders, "snapshots", disable=not progress_bar):
        shown = json.loads((folder / SEEN).read_text(encoding="utf-8"))
        if not shown["clips"]:
            continue
        pipe = TextToVideoPipeline.from_pretrained(folder, device)
        asked = sample_prompts(prompts, seed, "held_out", pipe.config.world)
        found = evaluate(pipe, asked, seed, 0, progress_bar=False)[0]["generated"]["all"]
        factors = {name: share["right"] for name, share in found["factors"].items()}
        points.append({**shown, "prompts": prompts, "mean": found["mean"], "factors": factors})
    if not points:
        raise CheckpointError(
            f"{run} has no snapshot that has seen clips: name the --out of a run of tinywan.train"
        )
    return points


def draw(points: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the curve.

    Args:
        points: from `measure_snapshots`.
        path: PNG file.
    """
    import matplotlib.pyplot as plt

    clips = np.array([point["clips"] for point in points]) / 1000
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for number, name in enumerate(SHOWN):
        shares = [100 * point["factors"].get(name, np.nan) for point in points]
        axes.plot(clips, shares, lw=1, marker=".", color=f"C{number}", label=name.replace("_", " "))
    axes.plot(clips, [100 * p["mean"] for p in points], lw=3, color="black", label="mean of all")
    axes.axhline(90, color="grey", ls=":")
    axes.set(xlabel="clips seen, in thousands", ylabel="right, of held-out prompts (%)")
    axes.set(ylim=(0, 102), title="Obedience against training")
    axes.legend(fontsize="small", loc="lower right", ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate the snapshots of a training run, and draw the learning curve."""
    parser = argparse.ArgumentParser(
        prog="python -m tinywan.learning_curve", description=main.__doc__
    )
    parser.add_argument("--run", type=Path, required=True, help="folder of a training run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--prompts", type=int, default=40, help="the same for each snapshot")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        points = measure_snapshots(
            options.run, options.prompts, options.seed, device=options.device
        )
        text = json.dumps(points, indent=1)
        (options.out / "learning_curve.json").write_text(text, encoding="utf-8")
        draw(points, options.out / "learning_curve.png")
    except (TinywanError, OSError) as error:
        print(f"tinywan.learning_curve: {error}", file=sys.stderr)
        return 2
    for point in points:
        print(f"{point['pictures']:8} pictures {point['clips']:8} clips  mean {point['mean']:.1%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
