"""What a forward pass costs: `python tests/benchmarks/bench_model.py`, ours and others' in turn.

Four comparisons, each interleaved in one run, so that a busy machine disturbs both alike:

* the denoiser of a preset against diffusers' WanTransformer3DModel of the same width, depth and number of
  tokens, whose dense feed-forward is as wide as our active token experts together; "in a run" it is called as the
  pipeline calls it: keys and values of the prompt are at hand, and one noise level holds for both branches;
* a mixture-of-experts layer with 3 of 10 experts active against the same layer with all ten;
* the preset against itself with full attention everywhere, which is what the windows save;
* `dit.py` as Wan's transformer against diffusers' own, with the same weights, at a fraction of Wan2.1's size.
"""

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from tinywan.dit import DiT
from tinywan.moe import MixtureOfExperts
from tinywan.presets import PRESETS, ModelConfig
from tinywan.trainer import keep_freed_memory
from tinywan.wan import load_wan


def interleaved(kinds: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each of several functions, called in turn.

    Args:
        kinds: what to call, by name.
        runs: of each kind, after three to warm up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in kinds}
    with torch.inference_mode():
        for number in range(runs + 3):
            for name, call in kinds.items():
                began = time.perf_counter()
                call()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                if number >= 3:
                    seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def forward_against_diffusers(
    config: ModelConfig, batch: int, device: str, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """A forward pass of ours, and of Wan's transformer of the same size in diffusers."""
    from diffusers import WanTransformer3DModel

    dit = config.dit
    ours = DiT(dit).to(device, dtype).eval()
    theirs = (
        WanTransformer3DModel(
            patch_size=dit.patch_size,
            num_attention_heads=dit.num_heads,
            attention_head_dim=dit.head_dim,
            in_channels=dit.in_channels + dit.condition_channels,
            out_channels=dit.in_channels,
            text_dim=dit.text_dim,
            freq_dim=dit.freq_dim,
            ffn_dim=dit.top_k * dit.expert_dim if dit.num_experts else dit.ffn_dim,
            num_layers=dit.num_layers,
        )
        .to(device, dtype)
        .eval()
    )
    frames = (config.num_frames - 1) // 4 + 1
    grid = (frames, config.height // 8, config.width // 8)
    latents = torch.randn(batch, dit.in_channels, *grid, device=device, dtype=dtype)
    given = torch.randn(batch, dit.condition_channels, *grid, device=device, dtype=dtype)
    both = torch.cat([latents, given], dim=1)
    timestep = torch.full((batch,), 500.0, device=device)
    embeds = torch.randn(batch, dit.text_len, dit.text_dim, device=device, dtype=dtype)
    print(
        f"{config.name}: {grid[0]} x {grid[1]} x {grid[2]} tokens, width {dit.dim}, {dit.num_layers} layers, "
        f"batch {batch}, {device} {str(dtype).removeprefix('torch.')}"
    )
    given_or_none = given if given.shape[1] else None
    with torch.inference_mode():
        context = ours.read(embeds)
    return {
        "tinywan": lambda: ours(latents, timestep, embeds, given_or_none),
        "tinywan in a run": lambda: ours(latents, timestep[:1], context, given_or_none),
        "diffusers": lambda: theirs(both, timestep, embeds, return_dict=False),
    }


def sparse_against_all(
    config: ModelConfig, tokens: int, device: str, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """One mixture-of-experts layer with its usual number of experts at work, and with all of them."""
    dit = config.dit
    sparse = MixtureOfExperts(dit.dim, dit.expert_dim, dit.num_experts, dit.top_k)
    whole = MixtureOfExperts(dit.dim, dit.expert_dim, dit.num_experts, dit.num_experts)
    whole.load_state_dict(sparse.state_dict())
    x = torch.randn(1, tokens, dit.dim, device=device, dtype=dtype)
    sparse, whole = (layer.to(device, dtype).eval() for layer in (sparse, whole))
    return {
        f"{dit.top_k} of {dit.num_experts} active": lambda: sparse(x),
        f"all {dit.num_experts} active": lambda: whole(x),
    }


def windows_against_none(
    config: ModelConfig, device: str, dtype: torch.dtype
) -> dict[str, Callable[[], object]]:
    """The denoiser as it is, with every window opened, and with full attention over space and time."""
    everything = (None,) * config.dit.num_layers
    kinds = {
        "windows": config.dit,
        "no windows": replace(config.dit, spatial_windows=everything, temporal_windows=everything),
        "full attention": replace(config.dit, attention="full"),
    }
    frames = (config.num_frames - 1) // 4 + 1
    shape = (1, config.dit.in_channels, frames, config.height // 8, config.width // 8)
    latents = torch.randn(shape, device=device, dtype=dtype)
    embeds = torch.randn(1, config.dit.text_len, config.dit.text_dim, device=device, dtype=dtype)
    timestep = torch.full((1,), 500.0, device=device)
    models = {name: DiT(dit).to(device, dtype).eval() for name, dit in kinds.items()}
    return {
        name: lambda model=model: model(latents, timestep, embeds) for name, model in models.items()
    }


def wan_against_diffusers(
    device: str, dtype: torch.dtype, layers: int = 4
) -> dict[str, Callable[[], object]]:
    """The same weights in our code and in diffusers': 5 x 16 x 16 tokens, width 256, 128 prompt tokens."""
    from diffusers import WanTransformer3DModel

    theirs = WanTransformer3DModel(
        num_attention_heads=4, attention_head_dim=64, ffn_dim=1024, num_layers=layers, text_dim=256
    ).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = load_wan(folder, progress_bar=False)
    ours, theirs = ours.to(device, dtype), theirs.to(device, dtype)
    latents = torch.randn(1, 16, 5, 32, 32, device=device, dtype=dtype)
    embeds = torch.randn(1, 128, 256, device=device, dtype=dtype)
    timestep = torch.full((1,), 500.0, device=device)
    print(f"Wan's transformer: width 256, {layers} layers, 1280 tokens, {device} {dtype}")
    return {
        "tinywan": lambda: ours(latents, timestep, embeds),
        "diffusers": lambda: theirs(latents, timestep, embeds, return_dict=False),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS))
    parser.add_argument("--runs", type=int, default=30, help="of each kind")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true")
    options = parser.parse_args()
    config, device = PRESETS[options.preset], options.device
    dtype = torch.bfloat16 if options.bfloat16 else torch.float32
    keep_freed_memory()  # the same for all
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    tokens = ((config.num_frames - 1) // 4 + 1) * (config.height // 8) * (config.width // 8)
    for make in (
        lambda: forward_against_diffusers(config, 1, device, dtype),
        lambda: forward_against_diffusers(config, 2, device, dtype),
        lambda: sparse_against_all(config, 2 * tokens, device, dtype),
        lambda: windows_against_none(config, device, dtype),
        lambda: wan_against_diffusers(device, dtype),
    ):
        medians = interleaved(make(), options.runs)
        slowest = list(medians)[-1]
        for name, seconds in medians.items():
            ratio = seconds / medians[slowest]
            print(f"  {name:16} {1e3 * seconds:8.2f} ms   {ratio:5.3f} of {slowest}")


if __name__ == "__main__":
    main()
