"""Long clips: `python tests/benchmarks/bench_stream.py`, 30 seconds in the memory of 2?

Draws 2 seconds and 30 seconds of the same prompt with `pipe.stream`, each in a process of its own, and compares
their peak memory. Then lets the probes read the first and the last two seconds of several long clips: are subject
and place still those of the prompt?
"""

import argparse
import resource
import subprocess
import sys

import numpy as np
import tinywan
from tinywan.evaluate import sample_prompts
from tinywan.probes import load_probe

SHORT, LONG = 17, 241  # pixel frames at 8 per second
PROMPT = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"


def peak_memory(frames: int, checkpoint: str | None) -> int:
    """Peak resident memory in bytes of a process that draws so many frames and lets each go."""
    command = [sys.executable, __file__, "--child", str(frames)]
    command += ["--checkpoint", checkpoint] if checkpoint else []
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(found.stdout.split()[-1])


def child(frames: int, checkpoint: str | None) -> None:
    """Draw, and print the peak memory of this process in bytes."""
    pipe = tinywan.TextToVideoPipeline.from_pretrained(checkpoint)
    drawn = sum(
        len(part) for part in pipe.stream(PROMPT, num_frames=frames, seed=0, progress_bar=False)
    )
    assert drawn == frames
    print(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=6, help="long clips that the probes read")
    parser.add_argument("--checkpoint", help="the shipped one by default")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.checkpoint)
        return
    short, long = (peak_memory(frames, options.checkpoint) for frames in (SHORT, LONG))
    print(
        f"{SHORT} frames {short / 1e6:.0f} MB, {LONG} frames {long / 1e6:.0f} MB, ratio {long / short:.3f}"
    )
    pipe = tinywan.TextToVideoPipeline.from_pretrained(options.checkpoint)
    probe = load_probe()
    kept = {"subject": [0, 0], "place": [0, 0]}
    for number, (scene, told) in enumerate(
        sample_prompts(options.clips, 0, "held_out", pipe.config.world)
    ):
        parts = list(pipe.stream(told.text, num_frames=LONG, seed=number, progress_bar=False))
        clip = np.concatenate(parts)
        seen = [probe.read(clip[:SHORT]), probe.read(clip[-SHORT:])]
        for name, counts in kept.items():
            for end in (0, 1):
                counts[end] += seen[end][name] == getattr(scene, name)
        print(f"  {told.text}: " + ", ".join(f"{k} {seen[0][k]} -> {seen[1][k]}" for k in kept))
    for name, (first, last) in kept.items():
        print(
            f"{name} as in the prompt: first {SHORT} frames {first}, last {last} of {options.clips}"
        )


if __name__ == "__main__":
    main()
