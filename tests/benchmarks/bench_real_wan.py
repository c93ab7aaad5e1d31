"""What watching real Wan costs, beside the usual way: `python tests/benchmarks/bench_real_wan.py`.

Random weights, diffusers' own pipeline, a small text encoder and VAE; what is measured is the denoiser's run.

* On a CPU: 4 layers, 21 x 16 x 16 video tokens, 512 text tokens. Plain, watched, and the *naive* way of DAAM and
  its kin, own re-implementation on the same model: an attention processor that computes every probability of
  cross-attention and keeps it. Each run in a process of its own, interleaved, one thread; CPU seconds, since the
  machine may be shared, and peak memory over what the process held before the run.
* `--gpu 480p` or `--gpu 720p`: Wan2.2-T2V-A14B's shapes, 81 frames, both noise experts in turn, bfloat16; time of a
  step by CUDA events and peak memory, 12 words, all 40 layers, with and without sampled frames. `--layers` makes it
  smaller, to try it.
"""

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "wanviz"))

import real_wan
import torch
from diffusers import WanPipeline

import wanviz

WORDS = "a woman in a red qipao walks in the rain with an umbrella".split()[:12]
PROMPT = " ".join(WORDS)
CPU = {"height": 256, "width": 256, "num_frames": 81}
SIZES = {"480p": (480, 832), "720p": (720, 1280), "toy": (64, 96)}
RUNS = ("plain", "watched", "naive")


class NaiveProcessor:
    """Cross-attention the slow way: the whole matrix in float32, kept for later."""

    def __init__(self, kept: list[torch.Tensor]) -> None:
        self._kept = kept

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
    ) -> torch.Tensor:
        q = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        k, v = attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states)
        k = attn.norm_k(k).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        v = v.unflatten(2, (attn.heads, -1)).transpose(1, 2)
        mass = (q.float() @ k.float().mT * q.shape[-1] ** -0.5).softmax(-1)  # b n l p
        self._kept.append(mass)
        mixed = (mass.to(v.dtype) @ v).transpose(1, 2).flatten(2)
        return attn.to_out[1](attn.to_out[0](mixed))


def peak_bytes() -> int:
    """Most memory that this process ever held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def now_bytes() -> int:
    """Memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def child(kind: str, steps: int) -> dict[str, Any]:
    """One measured run on the CPU."""
    torch.set_num_threads(1)
    pipe = real_wan.wan21(num_attention_heads=4, attention_head_dim=32, ffn_dim=512, num_layers=4)
    kept: list[torch.Tensor] = []
    asked = {**CPU, "output_type": "latent", "guidance_scale": 1.0, "num_inference_steps": steps}
    if kind == "naive":
        for block in pipe.transformer.blocks:
            block.attn2.set_processor(NaiveProcessor(kept))
    # Warm: what is loaded once in a process (a dictionary of Chinese words, kernels) is no cost of a run.
    with wanviz.capture(pipe) if kind == "watched" else nullcontext():
        real_wan.draw(pipe, PROMPT, **{**asked, "num_inference_steps": 1})
    kept.clear()
    before, began, nbytes = now_bytes(), time.process_time(), 0
    if kind == "watched":
        with wanviz.capture(pipe) as trace:
            latents = real_wan.draw(pipe, PROMPT, **asked)
        nbytes = trace.nbytes
    else:
        latents = real_wan.draw(pipe, PROMPT, **asked)
    return {
        "seconds": time.process_time() - began,
        "peak": peak_bytes() - before,
        "kept": nbytes + sum(mass.nbytes for mass in kept),
        "sum": float(latents.double().sum()),
    }


def on_cpu(repeats: int, steps: int) -> None:
    """All kinds of run, interleaved; medians and ratios."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in RUNS}
    for _ in range(repeats):
        for kind in RUNS:
            command = [sys.executable, __file__, "--child", kind, "--steps", str(steps)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found[kind].append(json.loads(said.splitlines()[-1]))
    middle = {
        kind: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for kind, runs in found.items()
    }
    plain = middle["plain"]
    print(f"{repeats} interleaved runs of {steps} steps, one thread, medians")
    for kind, m in middle.items():
        print(
            f"{kind:8} {m['seconds']:6.2f} CPU s, ratio {m['seconds'] / plain['seconds']:.3f}; peak "
            f"{m['peak'] / 1e6:6.0f} MB, {(m['peak'] - plain['peak']) / 1e6:6.0f} more; keeps "
            f"{m['kept'] / 1e6:8.2f} MB; output {'the same' if m['sum'] == plain['sum'] else 'differs'}"
        )
    ours, naive = middle["watched"], middle["naive"]
    added = max(0.0, ours["peak"] - plain["peak"]) / (naive["peak"] - plain["peak"])
    print(f"kept: 1/{naive['kept'] / ours['kept']:.0f} of naive; added peak: {added:.3f} of naive")


def random_a14b(layers: int, device: str) -> Any:
    """Wan2.2-T2V-A14B's two denoisers in bfloat16, of so many layers, with a small text encoder and VAE."""
    sizes = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824}
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            both = [
                real_wan.transformer(seed, **sizes, num_layers=layers, text_dim=32)
                for seed in (0, 2)
            ]
    finally:
        torch.set_default_dtype(usual)
    pipe = WanPipeline(
        **real_wan.parts(), transformer=both[0], transformer_2=both[1], boundary_ratio=0.9
    )
    return real_wan.quiet(pipe.to(device))


class Clock:
    """When each denoising step ended, on the GPU's own clock where there is one."""

    def __init__(self, device: str) -> None:
        self.cuda, self.marks = device.startswith("cuda"), list[Any]()

    def __call__(self, pipe: Any, step: int, timestep: Any, kwargs: Any) -> dict[str, Any]:
        if self.cuda:
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
        else:
            self.marks.append(time.perf_counter())
        return {}

    def seconds(self) -> list[float]:
        """Of each step but the first."""
        pairs = list(itertools.pairwise(self.marks))
        return [a.elapsed_time(b) / 1e3 if self.cuda else b - a for a, b in pairs]


def on_gpu(size: str, layers: int, steps: int, rounds: int, device: str) -> None:
    """Plain, words, and words with sampled frames at A14B's shapes, in turn."""
    height, width = SIZES[size]
    pipe = random_a14b(layers, device)
    cuda = device.startswith("cuda")
    ways: dict[str, dict[str, Any] | None] = {
        "plain": None,
        "words": {"frames": None},
        "words and sampled frames": {"frames": "sampled"},
    }
    asked = {"height": height, "width": width, "num_frames": 81, "output_type": "latent"}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    peaks, kept = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0)
    for number, name in enumerate(["plain", *[*ways] * rounds]):  # the first run warms up
        clock, options = Clock(device), ways[name]
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        run = {
            **asked,
            "num_inference_steps": steps if number else 2,
            "callback_on_step_end": clock,
        }
        watch = nullcontext() if options is None else wanviz.capture(pipe, budget="4GiB", **options)
        with watch as trace:
            real_wan.draw(pipe, PROMPT, **run)
        if cuda:
            torch.cuda.synchronize()
            peaks[name] = max(peaks[name], torch.cuda.max_memory_allocated())
        if number:
            seconds[name] += clock.seconds()
        kept[name] = 0 if trace is None else trace.nbytes
        print(f"  {name}: {[round(s, 3) for s in clock.seconds()]} s", flush=True)
    card = torch.cuda.get_device_name() if cuda else device
    print(
        f"{card}, torch {torch.__version__}: {size}, 81 frames, {layers} of 40 layers, both experts"
    )
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    for name in ways:
        print(
            f"{name:25} step {middle[name]:7.3f} s, ratio {middle[name] / middle['plain']:.4f}; peak "
            f"{peaks[name] / 1e9:6.2f} GB, {(peaks[name] - peaks['plain']) / 1e9:6.3f} more; keeps "
            f"{kept[name] / 1e6:.1f} MB",
            flush=True,
        )
    print(wanviz.plan(pipe, PROMPT, **asked, num_inference_steps=steps))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, help="runs of each kind: 5 on the CPU, 2 on a GPU")
    parser.add_argument("--steps", type=int, help="denoising steps: 2 on the CPU, 4 on a GPU")
    parser.add_argument("--gpu", choices=list(SIZES), help="A14B's shapes on a GPU instead")
    parser.add_argument("--layers", type=int, default=40, help="of the GPU benchmark")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--child", choices=RUNS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.steps)))
    elif options.gpu:
        on_gpu(
            options.gpu, options.layers, options.steps or 4, options.repeats or 2, options.device
        )
    else:
        on_cpu(options.repeats or 5, options.steps or 2)


if __name__ == "__main__":
    main()
