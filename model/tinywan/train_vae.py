"""Train the causal VAE on clips of the theatre, and measure its latents."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tinywan import theatre
from tinywan.motion import true_motion, warping_error
from tinywan.theatre.scene import World
from tinywan.trainer import Trainer, TrainerConfig, check_shareable, rank_and_world
from tinywan.vae import CausalVAE, ResBlock, VAEConfig


@dataclass(frozen=True)
class VAERecipe:
    """What the VAE sees, and what it is asked for."""

    trainer: TrainerConfig
    batch: int = 4  # crops per step
    num_frames: int = (
        17  # as many as are decoded: what lies further back than ever in training leaves ghosts
    )
    crop: int = 64  # pixels, of clips `size` wide
    size: int = 96
    kl: float = 1e-4  # weight of the Kullback-Leibler term per latent number
    absolute: float = (
        1.0  # weight of the absolute error: edges sharp, and what is rare and small left out
    )
    square: float = 4.0  # weight of the squared error, which shows faintly what may be there
    subject_weight: float = 2.0  # extra weight of pixels of the subject and its prop
    world: World = "first"
    bfloat16: bool = False  # convolutions in half precision, where the processor has it
    compiled: bool = False  # residual blocks through torch.compile
    workers: int = 0  # processes that render ahead
    freeze_encoder: bool = False  # latents stay what they are, for a denoiser that knows them
    freeze_decoder: bool = False  # what is drawn from given latents stays what it is
    flow: float = 0.0  # weight of the optical-flow loss, which keeps colours along the motion
    anchor: float = 0.0  # weight of the squared distance of the latents from those of the start
    seed: int = 0


class Crops(NamedTuple):
    """What a step of the VAE sees."""

    video: Tensor  # [b, 3, F, H, W] in [-1, 1]
    weight: Tensor  # [b, 1, F, H, W], mean 1
    flow: Tensor  # [b, F-1, H, W, 2] in pixels
    particles: Tensor  # bool [b, F, H, W], drops, flakes and spray

    def to(self, device: torch.device | str) -> "Crops":
        """The same on another device."""
        return Crops(*(each.to(device, non_blocking=True) for each in self))


def training_batch(recipe: VAERecipe, step: int) -> Crops:
    """Crops of freshly rendered clips.

    Args:
        recipe: sizes and seed.
        step: batches of different steps differ, those of one step are the same.

    Returns:
        The crops, their weights and their motion.
    """
    rank, world = rank_and_world()
    videos, weights, flows, particles = [], [], [], []
    for clip_index in range(rank, recipe.batch, world):
        rng = np.random.default_rng([recipe.seed, 1, step, clip_index])
        scene = theatre.sample_scene(rng, world=recipe.world)
        clip = theatre.render(scene, recipe.num_frames, recipe.size, recipe.size)
        important = clip.masks["subject"].copy()
        if "prop" in clip.masks:
            important |= clip.masks["prop"]
        y, x = rng.integers(0, recipe.size - recipe.crop + 1, size=2)
        window = np.s_[:, y : y + recipe.crop, x : x + recipe.crop]
        videos.append(clip.frames[window])
        weights.append(1 + recipe.subject_weight * important[window])
        flows.append(clip.flow[window])
        particles.append(clip.particles[window])
    video = torch.from_numpy(np.stack(videos)).permute(0, 4, 1, 2, 3) / 127.5 - 1
    weight = torch.from_numpy(np.stack(weights))[:, None].float()
    flow, falling = (torch.from_numpy(np.stack(each)) for each in (flows, particles))
    return Crops(video, weight / weight.mean(), flow, falling)


class _Steps(Dataset[Crops]):
    """The batches of a run by step, for a `DataLoader`."""

    def __init__(self, recipe: VAERecipe) -> None:
        self.recipe = recipe

    def __getitem__(self, step: int) -> Crops:
        return training_batch(self.recipe, step)


def vae_loss(
    vae: CausalVAE,
    crops: Crops,
    recipe: VAERecipe,
    generator: torch.Generator,
    start: CausalVAE | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Absolute and squared error of the picture, distance of the latents from a Gaussian, and what else is asked for.

    Source: Kingma & Welling, arXiv 1312.6114, equation 10; the flow loss, if it is asked for: see motion.py.

    Args:
        vae: in training.
        crops: to encode and to draw again.
        recipe: weights of the terms, and the precision.
        generator: for the sampled latents.
        start: frozen; whose latents hold those of `vae`, where the recipe has an anchor.

    Returns:
        The loss, and its parts for the log.
    """
    video, weight = crops.video, crops.weight
    with torch.autocast(video.device.type, torch.bfloat16, enabled=recipe.bfloat16):
        mean, logvar = (part.float() for part in vae.posterior(video))
        logvar = logvar.clamp(-20, 10)
        noise = torch.randn(mean.shape, generator=generator, device="cpu").to(mean.device)
        seen = vae.reconstruct(mean + noise * (0.5 * logvar).exp())
    error = seen.float() - video
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    absolute = (weight * error.abs()).mean()
    square = (weight * error.square()).mean()
    psnr = 10 * torch.log10(4 / error.detach().square().mean())
    loss = recipe.absolute * absolute + recipe.square * square + recipe.kl * kl
    parts = {"psnr": psnr, "kl": kl}
    if recipe.flow:
        motion = true_motion(video, crops.flow, crops.particles)
        parts["flow"] = warping_error(seen.float(), motion)
        loss = loss + recipe.flow * parts["flow"]
    if recipe.anchor and start is not None:
        with torch.no_grad():
            held = start.posterior(video)[0]
        parts["drift"] = (mean - held).square().mean()
        loss = loss + recipe.anchor * parts["drift"]
    parts = {"loss": loss, **parts}
    values = torch.stack([part.detach().float() for part in parts.values()]).tolist()
    return loss, dict(zip(parts, values, strict=True))


def train_vae(
    folder: Path,
    recipe: VAERecipe,
    config: VAEConfig,
    device: str = "cpu",
    start: CausalVAE | None = None,
) -> CausalVAE:
    """Train or resume, and return the VAE with averaged weights and measured latents.

    Args:
        folder: of the run.
        recipe: what to see and how long.
        config: sizes.
        device: "cpu", "cuda", …
        start: to go on from; its decoder is left behind where `config` asks for other widths.

    Returns:
        The VAE in evaluation mode.
    """
    check_shareable(recipe.batch)
    torch.manual_seed(recipe.seed)
    vae = CausalVAE(config).to(device).train()
    if start is not None:
        vae.encoder.grow_from(start.encoder)
        if _decoder_sizes(start.config) == _decoder_sizes(config):
            vae.decoder.grow_from(start.decoder)
        start = start.to(device).requires_grad_(False)
    vae.encoder.requires_grad_(not recipe.freeze_encoder)
    vae.decoder.requires_grad_(not recipe.freeze_decoder)
    if recipe.compiled:
        torch._dynamo.config.recompile_limit = 64  # one graph for each of the resolutions
        for block in (module for module in vae.modules() if isinstance(module, ResBlock)):
            block.compile()
    trainer = Trainer(
        folder, vae, recipe.trainer, lambda name: True, [recipe], [] if start is None else [start]
    )
    trainer.resume()
    batches = iter(
        DataLoader(
            _Steps(recipe),
            batch_size=None,
            sampler=range(trainer.step, recipe.trainer.steps),
            num_workers=recipe.workers,
            pin_memory=vae.mean.is_cuda and recipe.workers > 0,
        )
    )

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        crops = next(batches).to(device)
        rank, world = rank_and_world()
        seed = (recipe.seed * 1_000_003 + step) * world + rank
        generator = torch.Generator().manual_seed(seed)
        return vae_loss(vae, crops, recipe, generator, start)

    def look(step: int) -> None:
        with torch.compiler.set_stance("force_eager"):
            draw_reconstructions(vae, folder / f"step{step:06d}.png", recipe, device)

    with trainer:
        trainer.run(loss_of, look)
    with trainer.averaged():
        weights = {name: value.clone() for name, value in vae.state_dict().items()}
        mean, std = config.latents_mean, config.latents_std
        if not (recipe.freeze_encoder or recipe.freeze_decoder):  # neither moves the latents away
            with torch.compiler.set_stance("force_eager"):
                mean, std = measure_latents(vae, recipe.size, device, world=recipe.world)
    finished = CausalVAE(replace(config, latents_mean=mean, latents_std=std))
    finished.load_state_dict(weights)
    return finished.to(device).eval()


def _decoder_sizes(config: VAEConfig) -> tuple[object, ...]:
    return config.latent_channels, config.decoder_widths


@torch.no_grad()
def measure_latents(
    vae: CausalVAE, size: int, device: str, clips: int = 64, world: World = "first"
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every latent channel over rendered clips.

    The Kullback-Leibler term pulls towards 1; channels that spread less carry fine details, and are not blown up:
    they stay weak beside the noise, so that they are settled last.

    Args:
        vae: trained.
        size: pixels of a clip's side.
        device: where the VAE is.
        clips: how many to look at.
        world: of the theatre.

    Returns:
        Two tuples of one number per channel; deviations of 1 at least.
    """
    rng = np.random.default_rng(1)
    means = []
    for _ in range(clips):
        frames = theatre.render(theatre.sample_scene(rng, world=world), 17, size, size).frames
        video = torch.from_numpy(frames).to(device).permute(3, 0, 1, 2)[None] / 127.5 - 1
        means.append(vae.posterior(video)[0].transpose(0, 1).flatten(1))
    values = torch.cat(means, dim=1)
    return tuple(values.mean(1).tolist()), tuple(values.std(1).clamp(min=1).tolist())


@torch.no_grad()
def draw_reconstructions(vae: CausalVAE, path: Path, recipe: VAERecipe, device: str) -> None:
    """Clips above, what the VAE makes of them below.

    Args:
        vae: to draw with.
        path: PNG file to write.
        recipe: sizes and world.
        device: where the VAE is.
    """
    rng, size = np.random.default_rng(2), recipe.size
    columns = []
    for _ in range(6):
        scene = theatre.sample_scene(rng, world=recipe.world)
        frames = theatre.render(scene, 9, size, size).frames
        video = torch.from_numpy(frames).to(device).permute(3, 0, 1, 2)[None] / 127.5 - 1
        seen = vae.reconstruct(vae.posterior(video)[0])[0].permute(1, 2, 3, 0)
        drawn = ((seen.clamp(-1, 1) + 1) * 127.5).round().byte().cpu().numpy()
        columns.append(np.concatenate([frames[0], drawn[0], frames[6], drawn[6]]))
    sheet = Image.fromarray(np.concatenate(columns, axis=1))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(path)
