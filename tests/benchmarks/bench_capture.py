"""What watching costs: `python tests/benchmarks/bench_capture.py`, plain and captured in turn.

Prints the median wall time of a plain and of a captured generation of the shipped model, their
ratio, whether the two videos are the same bit for bit, and whether what was kept is what `plan`
declared. One run interleaves both, so that a busy machine disturbs them alike.
"""

import argparse
import platform
import statistics
import time

import numpy as np
import tinywan
import torch

import wanviz

PROMPT = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each kind")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    pipe = tinywan.TextToVideoPipeline.from_pretrained(device=options.device)
    planned = wanviz.plan(pipe, PROMPT).nbytes

    def plain() -> np.ndarray:
        return pipe(PROMPT, seed=7, progress_bar=False).frames

    def watched() -> tuple[np.ndarray, wanviz.Trace]:
        with wanviz.capture(pipe) as trace:
            video = pipe(PROMPT, seed=7, progress_bar=False).frames
        return video, trace

    plain(), watched()  # warm up
    seconds: dict[str, list[float]] = {"plain": [], "captured": []}
    same, kept = True, True
    for _ in range(options.runs):
        began = time.perf_counter()
        reference = plain()
        seconds["plain"].append(time.perf_counter() - began)
        began = time.perf_counter()
        video, trace = watched()
        seconds["captured"].append(time.perf_counter() - began)
        same &= bool((video == reference).all())
        kept &= trace.nbytes == planned
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    for name, values in seconds.items():
        print(f"{name:9} {medians[name]:6.2f} s   ({', '.join(f'{v:.2f}' for v in values)})")
    print(f"ratio     {medians['captured'] / medians['plain']:6.3f}")
    print(f"same bits {same};  kept {planned} bytes as planned: {kept}")


if __name__ == "__main__":
    main()
