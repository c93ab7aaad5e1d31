"""`python -m tinywan.train`: from nothing to a checkpoint, resumable after a kill at any moment.

    python -m tinywan.train --out runs/tiny                      # VAE, then denoiser
    torchrun --nproc-per-node 2 -m tinywan.train --out runs/tiny # faster on two CPU cores

A run folder holds `vae/` and `denoiser/`, each with its state, TensorBoard logs and sample pictures, the
denoiser also with `snapshots/` of its averaged weights,
and at the end `checkpoint/`, which `TextToVideoPipeline.from_pretrained` reads.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from tinywan import theatre
from tinywan.batches import Phase
from tinywan.errors import ConfigError, TinywanError
from tinywan.pipeline import TextToVideoPipeline, find_device
from tinywan.presets import PRESETS, ModelConfig, preset
from tinywan.train_denoiser import UNDIVIDED, DenoiserRecipe, train_denoiser
from tinywan.train_vae import VAERecipe, train_vae
from tinywan.trainer import TrainerConfig, keep_freed_memory, rank_and_world
from tinywan.vae import CausalVAE

VAE_STEPS = 1300  # from nothing, unless the command line says otherwise


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Args:
        arguments: words after the command; None takes the process's own.

    Returns:
        The options.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tinywan.train",
        description="Train tinywan from nothing; the same command resumes.",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/tiny"), help="folder of the run")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="sizes; tiny by default")
    parser.add_argument(
        "--vae-steps",
        type=int,
        help="steps of the VAE; 1300 by default, none where --start-from brings one",
    )
    parser.add_argument(
        "--freeze-encoder",
        action="store_true",
        help="of the VAE of --start-from: only its decoder goes on learning, and the denoiser's "
        "latents stay what they are",
    )
    parser.add_argument(
        "--decoder-widths",
        type=int,
        nargs=2,
        metavar=("FINE", "COARSE"),
        help="channels of the VAE's decoder; one of other widths begins anew",
    )
    parser.add_argument(
        "--decoder-depth",
        type=int,
        metavar="BLOCKS",
        help="residual blocks per level of the VAE's decoder; those that come on top begin without effect",
    )
    parser.add_argument(
        "--freeze-decoder",
        action="store_true",
        help="of the VAE of --start-from: only its encoder goes on learning, and what is drawn stays what it is",
    )
    parser.add_argument(
        "--encoder-depth",
        type=int,
        metavar="BLOCKS",
        help="residual blocks at the end of the VAE's encoder; those that come on top begin without effect",
    )
    parser.add_argument(
        "--encoder-widths",
        type=int,
        nargs=2,
        metavar=("FINE", "COARSE"),
        help="channels of the VAE's encoder; those that come on top begin without effect",
    )
    parser.add_argument(
        "--vae-anchor",
        type=float,
        default=0.0,
        help="weight of the distance of the latents from those of --start-from, e.g. 0.05",
    )
    parser.add_argument(
        "--vae-flow-loss",
        type=float,
        default=0.0,
        help="weight of keeping colours along the motion in what the VAE draws, e.g. 2",
    )
    parser.add_argument(
        "--vae-errors",
        type=float,
        nargs=2,
        default=(1.0, 4.0),
        metavar=("ABSOLUTE", "SQUARED"),
        help="weights of the two errors of what the VAE draws: 1 4 by default; 0 10 shows more of rain and snow, "
        "which are rare and small, and the absolute error would rather leave out",
    )
    parser.add_argument("--vae-batch", type=int, default=4, help="crops per step of the VAE")
    parser.add_argument("--vae-lr", type=float, default=2e-3, help="of AdamW for the VAE")
    parser.add_argument("--vae-muon-lr", type=float, default=0.02, help="of Muon for the VAE")
    parser.add_argument(
        "--start-from",
        type=Path,
        help="go on from this checkpoint's weights; its VAE is kept as it is unless --vae-steps is given",
    )
    parser.add_argument(
        "--noise-experts",
        action="store_true",
        help="fork the denoiser of --start-from in two and train each on its side of the boundary",
    )
    parser.add_argument(
        "--train-only",
        choices=("high", "low"),
        help="the noise expert that learns; the other one and the text encoder stay as they are",
    )
    parser.add_argument(
        "--world",
        choices=("first", "whole"),
        help="of the theatre; 'whole', that of all presets but debug, adds camera, look, companion and wind",
    )
    parser.add_argument(
        "--keyframes",
        action="store_true",
        help="also learn to obey keyframes, where --start-from or --preset debug knows none",
    )
    parser.add_argument(
        "--router",
        choices=("plain", "text"),
        help="'text' also sees what a token read in the prompt; plain by default",
    )
    parser.add_argument(
        "--no-windows", action="store_true", help="every layer sees the whole clip, to compare"
    )
    parser.add_argument("--image-steps", type=int, default=900, help="steps on single pictures")
    parser.add_argument("--video-steps", type=int, default=1100, help="steps on clips")
    parser.add_argument("--image-batch", type=int, default=24, help="pictures per step")
    parser.add_argument("--video-batch", type=int, default=8, help="clips per step")
    parser.add_argument("--micro-batch", type=int, default=2, help="clips per backward pass")
    parser.add_argument(
        "--grounding",
        type=float,
        default=1.0,
        help="weight of reading words where their objects are; 0 leaves cross-attention alone",
    )
    parser.add_argument(
        "--flow-loss", type=float, default=0.0, help="weight of the optical-flow loss, e.g. 0.5"
    )
    parser.add_argument(
        "--flow-sigma",
        type=float,
        default=0.5,
        help="noise level up to which the flow loss is asked for, where a guess already shows what moves",
    )
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="matrix products in bfloat16: on GPUs, and on CPUs with AMX, some 1.5 times as fast",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="fuse what blocks do: minutes at first, then a third less time; needs a C++ compiler",
    )
    parser.add_argument(
        "--training-shift",
        type=float,
        default=2.0,
        help="of the noise levels in training; more than the 1.1 of sampling shows more noise",
    )
    parser.add_argument(
        "--takes",
        type=int,
        default=4,
        help="clips of one scene under one noise that differ in what happens alone; 1 is all different",
    )
    parser.add_argument(
        "--practise",
        choices=theatre.STAGING,
        help="two of three scenes are about this, and their takes differ in it alone",
    )
    parser.add_argument(
        "--contrast",
        type=float,
        default=4.0,
        help="extra weight, near pure noise (with --practise at all noise levels), of what differs between the takes of a scene",
    )
    parser.add_argument(
        "--identity",
        type=float,
        default=1.0,
        help="weight of telling each token of the prompt from its embedding",
    )
    parser.add_argument(
        "--recall",
        type=float,
        default=1.0,
        help="weight of telling what the caption says from the middle of the denoiser, near pure noise",
    )
    parser.add_argument(
        "--focus",
        type=float,
        default=3.0,
        help="extra weight of those who act and what they carry, which is small",
    )
    parser.add_argument("--lr", type=float, default=1.5e-3, help="of AdamW")
    parser.add_argument("--muon-lr", type=float, default=0.02, help="of Muon")
    parser.add_argument("--sample-every", type=int, default=250, help="steps between pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes",
        type=float,
        help="to spend at most, on the VAE if it is trained and on the denoiser each: the rate falls in time; "
        "the steps are then an upper bound",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="processes that render ahead; a GPU needs some ten, on a CPU training is slower than rendering",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, ...")
    parser.add_argument("--threads", type=int, help="CPU threads of each process")
    return parser.parse_args(arguments)


AT_LEAST_1 = (
    "vae_batch", "image_batch", "video_batch", "micro_batch", "sample_every", "takes", "threads",
    "decoder_depth", "encoder_depth", "decoder_widths", "encoder_widths",
)  # fmt: skip
AT_LEAST_0 = (
    "vae_steps", "image_steps", "video_steps", "workers", "lr", "muon_lr", "vae_lr", "vae_muon_lr",
    "vae_anchor", "vae_flow_loss", "vae_errors", "grounding", "flow_loss", "contrast", "identity",
    "recall", "focus",
)  # fmt: skip
ABOVE_0 = ("training_shift", "minutes")
SEEDS = 2**32  # as many as seed every generator


def check_options(options: argparse.Namespace) -> None:
    """Refuse numbers that cannot work, before anything is read or trained.

    Args:
        options: from `parse_arguments`.

    Raises:
        ConfigError: naming the first of them, and what would work.
    """
    rules: tuple[tuple[Sequence[str], Callable[[float], bool], str], ...] = (
        (AT_LEAST_1, lambda number: number >= 1, "1 or more"),
        (AT_LEAST_0, lambda number: number >= 0, "0 or more"),
        (ABOVE_0, lambda number: number > 0, "more than 0"),
        (("flow_sigma",), lambda number: 0 < number <= 1, "more than 0, and at most 1"),
        (("seed",), lambda number: 0 <= number < SEEDS, f"0 to {SEEDS - 1}"),
    )
    for names, fits, range_of in rules:
        for name in names:
            given = getattr(options, name)
            numbers = given if isinstance(given, list | tuple) else [given]
            for number in numbers:
                if number is not None and not (math.isfinite(number) and fits(number)):
                    shown = " ".join(map(str, numbers))
                    raise ConfigError(f"{name}={shown}: use a finite number, {range_of}")
    if max(options.vae_errors) == 0:
        raise ConfigError("vae_errors=0.0 0.0: use more than 0 for one of them")


def find_config(options: argparse.Namespace, start: TextToVideoPipeline | None) -> ModelConfig:
    """The sizes to train.

    Args:
        options: from `parse_arguments`.
        start: what to go on from, if anything.

    Returns:
        A preset with what was asked for, or what `start` has, with what was asked for.

    Raises:
        ConfigError: for options that cannot go together.
    """
    config = preset(options.preset or "tiny") if start is None else start.config
    if start is not None:
        if options.preset not in (None, config.name):
            raise ConfigError(
                f"--start-from goes on with a {config.name!r}, and --preset asks for "
                f"{options.preset!r}: leave --preset out"
            )
        if (options.router, config.dit.router) == ("plain", "text"):
            raise ConfigError(
                "--start-from goes on with a router that sees what was read, and --router asks for a plain "
                "one: leave --router out, or train from nothing"
            )
    elif options.noise_experts:
        raise ConfigError(
            "--noise-experts forks a trained denoiser: name one with --start-from, e.g. "
            "--start-from model/tinywan/weights/tiny"
        )
    divided = start is not None and start.transformer_2 is not start.transformer
    if options.train_only and not (divided or options.noise_experts):
        raise ConfigError(UNDIVIDED)
    if start is None and options.world is not None:
        config = replace(config, world=options.world)
    elif options.world not in (None, config.world):
        raise ConfigError(
            f"--start-from goes on in the {config.world} world, whose words its tokenizer knows, and "
            f"--world asks for the {options.world} one: train from nothing"
        )
    still = theatre.STAGING[:2]
    if config.world == "first" and options.practise not in (None, *still):
        raise ConfigError(
            f"--practise {options.practise} needs the whole world, and this one is the first: use "
            f"{' or '.join(still)}, or train from nothing with --world whole"
        )
    dit = config.dit
    if options.keyframes:
        channels = CausalVAE.stride[0] + config.vae.latent_channels
        dit = replace(dit, condition_channels=channels)
    if options.no_windows:
        everything = (None,) * dit.num_layers
        dit = replace(dit, spatial_windows=everything, temporal_windows=everything)
    vae = config.vae
    if options.decoder_widths:
        vae = replace(vae, decoder_widths=tuple(options.decoder_widths))
    if options.decoder_depth is not None:
        vae = replace(vae, decoder_depth=options.decoder_depth)
    if options.encoder_depth is not None:
        vae = replace(vae, encoder_depth=options.encoder_depth)
    if options.encoder_widths:
        vae = replace(vae, encoder_widths=tuple(options.encoder_widths))
    if vae != config.vae and start is not None and not options.vae_steps:
        raise ConfigError(
            "--decoder-widths, --decoder-depth, --encoder-widths and --encoder-depth ask for another VAE, which "
            "has to learn: give --vae-steps"
        )
    widths = list(zip(vae.encoder_widths, config.vae.encoder_widths, strict=True))
    if start is not None and any(found < known for found, known in widths):
        raise ConfigError(
            f"--encoder-widths {' '.join(map(str, vae.encoder_widths))} would take channels away from the encoder "
            f"of --start-from: use {' '.join(map(str, config.vae.encoder_widths))} or more"
        )
    for half in ("encoder", "decoder"):
        found, known = (getattr(each, f"{half}_depth") for each in (vae, config.vae))
        if start is not None and found < known:
            raise ConfigError(
                f"--{half}-depth {found} would take blocks away from the {half} of --start-from: use "
                f"{known} or more"
            )
    if options.freeze_decoder:
        old = config.vae
        if options.freeze_encoder or start is None or not options.vae_steps:
            raise ConfigError(
                "--freeze-decoder keeps the decoder of a checkpoint while its encoder learns: name one with "
                "--start-from, give --vae-steps, and leave --freeze-encoder out"
            )
        if replace(vae, decoder_widths=old.decoder_widths, decoder_depth=old.decoder_depth) != vae:
            raise ConfigError("--freeze-decoder keeps the decoder: leave its widths and depth out")
    if options.vae_flow_loss and start is not None and not options.vae_steps:
        raise ConfigError(
            "--vae-flow-loss is asked of a VAE that learns, and that of --start-from stays as it is: give "
            "--vae-steps"
        )
    if options.vae_anchor and (start is None or not options.vae_steps):
        raise ConfigError(
            "--vae-anchor holds the latents of a VAE that learns near those of a checkpoint: name one with "
            "--start-from, and give --vae-steps"
        )
    if options.freeze_encoder and (start is None or not options.vae_steps):
        raise ConfigError(
            "--freeze-encoder keeps the encoder of a checkpoint while its decoder learns: name one with "
            "--start-from, and give --vae-steps"
        )
    return replace(config, vae=vae, dit=replace(dit, router=options.router or dit.router))


def obtain_vae(
    options: argparse.Namespace, config: ModelConfig, device: str, start: CausalVAE | None = None
) -> CausalVAE:
    """Train the VAE, resume it, or take the one that there is.

    Args:
        options: from `parse_arguments`.
        config: sizes.
        device: where it goes.
        start: what to go on from, if anything.

    Returns:
        The VAE in evaluation mode.
    """
    if start is not None and not options.vae_steps:
        return start.to(device)
    recipe = VAERecipe(
        TrainerConfig(
            steps=VAE_STEPS if options.vae_steps is None else options.vae_steps,
            lr=options.vae_lr,
            muon_lr=options.vae_muon_lr,
            bfloat16=options.bfloat16,
            sample_every=1000,
            minutes=options.minutes,
        ),
        batch=options.vae_batch,
        num_frames=config.num_frames,
        workers=options.workers,
        freeze_encoder=options.freeze_encoder,
        freeze_decoder=options.freeze_decoder,
        absolute=options.vae_errors[0],
        square=options.vae_errors[1],
        flow=options.vae_flow_loss,
        anchor=options.vae_anchor,
        seed=options.seed,
        world=config.world,
        bfloat16=options.bfloat16,
        compiled=options.compile,
        size=config.height,
        crop=min(64, config.height),
    )
    return train_vae(options.out / "vae", recipe, config.vae, device, start)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train.

    Args:
        arguments: words after the command; None takes the process's own.

    Returns:
        0 when the checkpoint is written, 130 after Ctrl-C, 2 for options that cannot work.
    """
    options = parse_arguments(arguments)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    try:
        check_options(options)
        device, shared = options.device, int(os.environ.get("WORLD_SIZE", "1")) > 1
        on_gpu = find_device(device).type == "cuda"
        if shared and device == "cuda":
            device = str(find_device(f"cuda:{os.environ['LOCAL_RANK']}"))
        if on_gpu:
            torch.backends.cudnn.benchmark = True  # sizes stay the same from step to step
            torch.set_float32_matmul_precision("high")
        if shared:
            if on_gpu:
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if on_gpu else "gloo")
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        start, separate = None, False
        if options.start_from is not None:
            start = TextToVideoPipeline.from_pretrained(options.start_from)
            separate = start.transformer_2 is not start.transformer
        config = find_config(options, start)
        vae = obtain_vae(options, config, device, None if start is None else start.vae)
        frames = config.num_frames
        phases = (
            Phase(options.image_steps, 1, options.image_batch, 4 * options.micro_batch),
            Phase(options.video_steps, frames, options.video_batch, options.micro_batch),
        )
        steps = options.image_steps + options.video_steps
        recipe = DenoiserRecipe(
            TrainerConfig(
                steps=steps,
                lr=options.lr,
                muon_lr=options.muon_lr,
                bfloat16=options.bfloat16,
                sample_every=options.sample_every,
                minutes=options.minutes,
            ),
            phases,
            workers=options.workers,
            two_experts=options.noise_experts or separate,
            only=options.train_only,
            bfloat16=options.bfloat16,
            compiled=options.compile,
            shift=options.training_shift,
            takes=options.takes,
            practise=options.practise,
            contrast=options.contrast,
            identity=options.identity,
            recall=options.recall,
            focus=options.focus,
            flow=options.flow_loss,
            flow_sigma=options.flow_sigma,
            grounding=options.grounding,
            seed=options.seed,
        )
        config = replace(config, vae=vae.config)
        pipe = train_denoiser(options.out / "denoiser", recipe, config, vae, device, start)
        if rank_and_world()[0] == 0:
            pipe.save_pretrained(options.out / "checkpoint")
            print(
                f"wrote {options.out / 'checkpoint'}; use it with "
                f"TextToVideoPipeline.from_pretrained({str(options.out / 'checkpoint')!r})"
            )
    except (TinywanError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        if rank_and_world()[0] == 0:
            left = str(stop) or "stopped while nothing was trained; the same command goes on"
            print(f"\n{left}", file=sys.stderr)
        return 130
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
