"""What ablating every word costs: `python tests/benchmarks/bench_attribution.py`, in turn with plain denoiser calls.

For a prompt of twelve words, `word_ablation` asks the denoiser 12 + 1 times for each noise level. Prints the median time
of as many plain calls, in batches of one, of an ablation, and their ratio; what is beside the calls is the encoding of the
video and of thirteen prompts.
"""

import argparse
import platform
import statistics
import time

import numpy as np
import tinywan
import torch

import wanviz
from wanviz.adapters import adapter_for
from wanviz.events import Clip

PROMPT = "a woman in a red qipao walks in rain with an umbrella"
SIGMAS = (0.8, 0.5, 0.2)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="of each kind")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    pipe = tinywan.TextToVideoPipeline.from_pretrained(device=options.device)
    config = pipe.config
    shape = (config.num_frames, config.height, config.width, 3)
    video = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels = torch.from_numpy(video).movedim(-1, 0)[None] / 127.5 - 1
    denoiser = adapter_for(pipe).denoiser(Clip(pixels, PROMPT, "", SIGMAS, 0, ("cond",)))
    embeds = denoiser.embeds([PROMPT])
    forwards = len(SIGMAS) * 13

    @torch.no_grad()
    def plain() -> None:
        for call in range(forwards):
            denoiser.velocity(call % len(SIGMAS), embeds)

    def ablated() -> wanviz.Attribution:
        return wanviz.attribute(
            pipe, PROMPT, method="word_ablation", video=video, sigmas=SIGMAS, progress_bar=False
        )

    plain()
    assert ablated().checks["forwards"] == forwards
    seconds: dict[str, list[float]] = {"plain": [], "ablation": []}
    for _ in range(options.runs):
        for name, ask in (("plain", plain), ("ablation", ablated)):
            began = time.perf_counter()
            ask()
            if options.device != "cpu":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    print(f"{forwards} forwards: 12 words and the prompt, at {len(SIGMAS)} noise levels")
    for name, values in seconds.items():
        print(f"{name:9} {medians[name]:6.2f} s   ({', '.join(f'{v:.2f}' for v in values)})")
    print(f"ratio     {medians['ablation'] / medians['plain']:6.3f}")


if __name__ == "__main__":
    main()
