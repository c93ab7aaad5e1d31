"""How fast training goes: `python tests/benchmarks/bench_training.py`.

Prints clips per second of the theatre alone (two processes), of batches with their latents, and of whole training
steps, and which share of this machine's matrix-product peak the steps reach. The peak is that of one large product
in the same precision; the work of a step is counted by PyTorch's flop counter, forward and backward.
"""

import argparse
import platform
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch
from tinywan import theatre
from tinywan.batches import Clips, Phase
from tinywan.pipeline import TextToVideoPipeline
from tinywan.train_denoiser import Denoiser, DenoiserRecipe, compile_blocks, denoiser_loss
from tinywan.trainer import TrainerConfig, keep_freed_memory
from torch.utils.flop_counter import FlopCounterMode


def render_some(seed: int, clips: int = 200) -> int:
    """Paint clips of the whole world."""
    rng = np.random.default_rng(seed)
    for _ in range(clips):
        theatre.render(theatre.sample_scene(rng, world="whole"))
    return clips


def peak_flops(device: str, dtype: torch.dtype, side: int = 4096) -> float:
    """Floating-point operations per second of a large matrix product, the best of three."""
    a = torch.randn(side, side, device=device).to(dtype)
    best = 0.0
    for _ in range(4):
        began = time.perf_counter()
        a @ a
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=12, help="clips per step")
    parser.add_argument("--steps", type=int, default=8, help="to measure")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_flush_denormal(True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")

    with ProcessPoolExecutor(2) as pool:
        list(pool.map(render_some, (8, 9), (4, 4)))  # warm up
        began = time.perf_counter()
        painted = sum(pool.map(render_some, (0, 1)))
    print(f"theatre         {painted / (time.perf_counter() - began):8.1f} clips/s, two processes")

    pipe = TextToVideoPipeline.from_pretrained(device=options.device)
    config = pipe.config
    clips = Clips(
        config, pipe.tokenizer, pipe.vae, regions=True, focus=True, bfloat16=options.bfloat16
    )
    phase = Phase(1, config.num_frames, options.batch, options.batch)
    batch = clips.batch(0, phase)
    began = time.perf_counter()
    for step in range(3):
        clips.batch(step, phase)
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()
    print(f"with latents    {3 * options.batch / (time.perf_counter() - began):8.1f} clips/s")

    model = Denoiser(config)
    model.load_pipeline(pipe)
    model.to(options.device).train()
    recipe = DenoiserRecipe(
        TrainerConfig(1), (), bfloat16=options.bfloat16, grounding=1.0, focus=3.0
    )

    def go() -> None:
        model.zero_grad(set_to_none=True)
        denoiser_loss(model, batch, recipe)[0].backward()

    with FlopCounterMode(display=False) as counter:
        go()
    if options.compile:
        compile_blocks(model)
    for _ in range(3):
        go()
    began = time.perf_counter()
    for _ in range(options.steps):
        go()
    if options.device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / options.steps
    work = counter.get_total_flops()
    peak = peak_flops(options.device, torch.bfloat16 if options.bfloat16 else torch.float32)
    print(
        f"forward, back   {options.batch / seconds:8.1f} clips/s, {seconds:.2f} s for {options.batch}"
    )
    print(
        f"work            {work / options.batch / 1e9:8.1f} GFLOP a clip, {work / seconds / 1e9:.0f} GFLOP/s"
    )
    print(
        f"peak            {peak / 1e9:8.0f} GFLOP/s in a large product: {work / seconds / peak:.1%} reached"
    )


if __name__ == "__main__":
    main()
