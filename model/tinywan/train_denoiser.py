"""Train the text encoder and the denoiser together, first on pictures, then on clips.

A picture costs a fifth of a clip and teaches the words; motion comes after. Wan is trained in the
same order (arXiv 2503.20314, section 4.4). Latents come from the frozen VAE as training goes, so
that no clip is seen twice and nothing is stored.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from tinywan import flow, theatre
from tinywan.attention import Attention
from tinywan.batches import UNTOLD, Batch, Clips, Phase
from tinywan.checkpoint import fitted, write_atomically
from tinywan.dit import Block, DiT
from tinywan.errors import ConfigError
from tinywan.grounding import outside_share, unheard_share, unread_share
from tinywan.moe import MixtureOfExperts
from tinywan.motion import Motion, warping_error
from tinywan.pipeline import TextToVideoPipeline
from tinywan.presets import ModelConfig
from tinywan.probes import FACTORS
from tinywan.text import TextEncoder, UnigramTokenizer
from tinywan.theatre.scene import World
from tinywan.trainer import Trainer, TrainerConfig, check_shareable, rank_and_world
from tinywan.vae import CausalVAE

Expert = Literal["high", "low"]
UNDIVIDED = (
    "one denoiser works on all noise levels, so that neither side can be trained alone: ask for two "
    "(--noise-experts) or go on from a checkpoint that has them"
)


@dataclass(frozen=True)
class DenoiserRecipe:
    """What the denoiser sees, and what it is asked for."""

    trainer: TrainerConfig
    phases: tuple[Phase, ...]
    drop_prompt: float = 0.1  # share of captions replaced by "", for guidance
    two_experts: bool = False  # one denoiser for high noise levels, one for low ones
    only: Expert | None = None  # of the two, the one that learns; all else stays as it is
    bfloat16: bool = False  # matrix products in half precision, where the processor has it
    compiled: bool = False  # the blocks through torch.compile: minutes at first, then faster steps
    shift: float | None = None  # of the noise levels; None takes the one that is sampled with
    takes: int = 1  # clips of one scene under one noise, see batches.py
    practise: str | None = None  # what two of three scenes are about, see batches.py
    contrast: float = 0.0  # extra weight of what differs between them near pure noise; where one practises, always
    identity: float = 0.0  # weight of telling each token from its embedding
    recall: float = 0.0  # weight of telling the caption from the middle of the denoiser
    focus: float = 0.0  # extra weight of those who act and what they carry, which is small
    flow: float = 0.0  # weight of the optical-flow loss
    workers: int = 0  # processes that render ahead, where a GPU would have to wait
    flow_sigma: float = 0.5  # noise level up to which it is asked for
    grounding: float = 0.0  # weight of reading words where their objects are, see grounding.py
    balance: float = 0.01  # weight of the router's load balance
    z: float = 0.001  # weight of the router's z-loss
    seed: int = 0

    def phase(self, step: int) -> Phase:
        """The part of the curriculum that `step` belongs to."""
        for phase in self.phases:
            if step < phase.steps:
                return phase
            step -= phase.steps
        return self.phases[-1]

    def seen(self, steps: int) -> dict[str, int]:
        """How many "pictures" and "clips" were shown after so many steps."""
        shown = {"pictures": 0, "clips": 0}
        for phase in self.phases:
            shown["pictures" if phase.num_frames == 1 else "clips"] += phase.batch * min(
                steps, phase.steps
            )
            steps = max(0, steps - phase.steps)
        return shown


DEAF = ("position_embedding.weight", "router_text.weight")  # of zeros, they have no effect
SNAPSHOTS, SEEN = "snapshots", "seen.json"  # of a run: weights on the way, and what they had seen

# Chinese is written without spaces; these stay tokens of their own, so that 雨 in 雨巷 is the rain.
WORDS = tuple(
    "旗袍 大衣 外套 衬衫 雨衣 毛衣 背心 雨伞 伞 灯笼 女子 女人 女士 姑娘 男子 男人 先生 孩子 小孩 儿童 小狗 狗 "
    "红色 黄色 绿色 蓝色 紫色 粉色 江南 雨 雪 巷 小巷 巷子 公园 海滩 沙滩 海边 街道 街头 街 夜晚 "
    "漫步 散步 奔跑 跑步 走 跑 站 站着 向左 向右 撑 打着 提着 穿 穿着 晴 晴朗 "
    "背景 青石板路 石板路 屋檐 滴水 白墙 树 草地 小路 大海 海 沙 天空 窗 路灯 楼 "
    "小猫 猫 白 黑 棕 白色 黑色 棕色 身边 跟着 带着 一起 衣服 风 风雨 镜头 左移 右移 移动 推近 拉近 左 右 "
    "胶片 老电影 复古 黑白 画面 影像".split()
)

PROBE_PROMPTS = (
    "一位穿红色旗袍的女子在江南雨巷撑伞漫步",
    "a man in a green coat walks to the left on a beach with a purple lantern in clear weather",
    "一个穿黄色雨衣的孩子在公园里撑着一把蓝色的伞站着，下着雪",
    "a dog in a pink vest runs to the right on a street at night while it rains",
    "一个穿蓝色衬衫的男子在公园里提着红色的灯笼向右走，天色晴朗",
    "a woman in a purple coat stands on a beach under a yellow umbrella, it is snowing",
)


class Denoiser(nn.Module):
    """What is trained: the reader of the prompt and the one who draws, or the two who do.

    Args:
        config: sizes, and the noise level at which two experts part.
        two_experts: whether there are two; then each sees its own side of the boundary alone.
    """

    def __init__(self, config: ModelConfig, two_experts: bool = False) -> None:
        super().__init__()
        self.boundary_ratio = config.boundary_ratio
        self.text_encoder = TextEncoder(config.text)
        self.transformer = DiT(config.dit)
        self.transformer_2 = DiT(config.dit) if two_experts else None
        width = config.dit.dim
        self.recall = nn.ModuleDict({n: nn.Linear(width, len(v)) for n, v in FACTORS.items()})

    def teach_only(self, expert: Expert) -> tuple[float, float]:
        """Let one noise expert learn, and leave the other and the text encoder as they are.

        So each of Wan2.2's was trained by itself; and what is asked of the low-noise one alone cannot cost any
        obedience that is settled in high noise.

        Args:
            expert: "high" or "low".

        Returns:
            The lowest and the highest noise level that it works on.

        Raises:
            ConfigError: where there are no two.
        """
        if self.transformer_2 is None:
            raise ConfigError(UNDIVIDED)
        resting = self.transformer_2 if expert == "high" else self.transformer
        resting.requires_grad_(False)
        self.text_encoder.requires_grad_(False)
        return (self.boundary_ratio, 1.0) if expert == "high" else (0.0, self.boundary_ratio)

    def load_pipeline(self, pipe: TextToVideoPipeline) -> None:
        """Take over weights; two experts that were one so far both start from it.

        Args:
            pipe: of the same sizes; what only this one has (keyframes, absolute positions, a router that
                sees what was read) begins without effect.
        """
        self.text_encoder.load_state_dict(pipe.text_encoder.state_dict())
        for mine, theirs in (
            (self.transformer, pipe.transformer),
            (self.transformer_2, pipe.transformer_2),
        ):
            if mine is not None:
                state = theirs.state_dict()
                known = state["patch_embedding.weight"]
                more = mine.patch_embedding.in_features - known.shape[1]
                state["patch_embedding.weight"] = F.pad(known, (0, more))
                for name, value in mine.state_dict().items():
                    if name not in state and name.endswith(DEAF):
                        state[name] = torch.zeros_like(value)
                    elif name not in state and name.endswith("norm_text.weight"):
                        state[name] = torch.ones_like(value)
                mine.load_state_dict(state)

    def pipeline(
        self, config: ModelConfig, tokenizer: UnigramTokenizer, vae: CausalVAE
    ) -> TextToVideoPipeline:
        """A pipeline that draws with these very weights."""
        low = self.transformer if self.transformer_2 is None else self.transformer_2
        return TextToVideoPipeline(config, tokenizer, self.text_encoder, vae, self.transformer, low)

    def forward(
        self, noisy: Tensor, sigma: Tensor, embeds: Tensor, condition: Tensor | None = None
    ) -> Tensor:
        """Predict the velocity.

        Args:
            noisy: `[b, c, f, h, w]` latents.
            sigma: `[b]` noise levels.
            embeds: `[b, p, c]` of the prompts.
            condition: `[b, condition_channels, f, h, w]` of the keyframes.

        Returns:
            `[b, c, f, h, w]`.
        """
        timestep = sigma * flow.NUM_TRAIN_TIMESTEPS
        predicted = torch.empty_like(noisy)
        for rows, expert in self.sides(sigma):
            given = None if condition is None else condition[rows]
            answer = expert(noisy[rows], timestep[rows], embeds[rows], given)
            predicted[rows] = answer.to(predicted.dtype)
        return predicted

    def recalled(self, stream: Tensor, told: Tensor) -> Tensor:
        """How badly the caption's factors can be told from the middle of the denoiser.

        Args:
            stream: `[b, l, c]` after half of the blocks.
            told: `[b, factor]`, see `Batch.told`.

        Returns:
            Mean over clips of the mean cross-entropy over what was told, in nats; 0 where nothing was.
        """
        seen = F.layer_norm(stream.float(), stream.shape[-1:]).mean(1)  # b c
        errors = [
            F.cross_entropy(head(seen), told[:, number], ignore_index=UNTOLD, reduction="none")
            for number, head in enumerate(self.recall.values())
        ]
        return (torch.stack(errors).sum(0) / (told != UNTOLD).sum(1).clamp(min=1)).mean()

    def sides(self, sigma: Tensor) -> list[tuple[Tensor, DiT]]:
        """Who works on which rows of a batch.

        Args:
            sigma: `[b]` noise levels.

        Returns:
            bool `[b]` and a denoiser, for each that has work.
        """
        if self.transformer_2 is None:
            return [(torch.ones_like(sigma, dtype=torch.bool), self.transformer)]
        high = sigma >= self.boundary_ratio
        both = [(high, self.transformer), (~high, self.transformer_2)]
        return [(rows, expert) for rows, expert in both if rows.any()]


def is_hidden_matrix(name: str) -> bool:
    """Whether Muon trains this 2-D parameter: the matrices inside the denoiser's blocks, routers excepted.

    Its steps have a fixed size, and the text encoder's weights grew under them until attention was
    one-hot and its answer drowned: words lost their order, and colours their nouns.
    """
    return (
        name.startswith("transformer")
        and "blocks." in name
        and name.endswith("weight")
        and not ("router" in name or "embedding" in name or "bias" in name)
    )


def train_tokenizer(
    world: World = "whole", text_len: int = 96, captions: int = 6000
) -> UnigramTokenizer:
    """Learn the tokens from captions of the theatre.

    Args:
        world: of the theatre.
        text_len: tokens of a prompt with padding.
        captions: how many scenes to describe in each language.

    Returns:
        A tokenizer in which every word of the theatre's lexicon is one token.
    """
    rng = np.random.default_rng(0)
    scenes = [theatre.sample_scene(rng, world=world) for _ in range(captions)]
    texts = [theatre.caption(s, language, rng).text for s in scenes for language in ("en", "zh")]
    return UnigramTokenizer.train(texts, vocab_size=1024, text_len=text_len, words=WORDS)


def denoiser_loss(
    model: Denoiser, batch: Batch, recipe: DenoiserRecipe, vae: CausalVAE | None = None
) -> tuple[Tensor, dict[str, float]]:
    """Squared error of the predicted velocity, and what else the recipe asks for.

    The less noise, the better it can be known what will be where, and the more grounding and focus
    count: where nobody can know yet, more weight on those who act would paint several of them.

    Every part is a mean over clips, so that it does not matter in which portions a batch is gone through, as
    long as takes of a scene stay together. Only the router's balance is that of a portion.

    Source: rectified flow, arXiv 2209.03003, equation 1; router: see moe.py; flow: see motion.py.

    Args:
        model: in training.
        batch: what to learn from.
        recipe: weights of the losses.
        vae: frozen; needed for the flow loss alone.

    Returns:
        The loss, and its parts for the log.
    """
    experts = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    for module in experts:  # one that is not asked now must not answer with what it said before
        module.losses = None
    grounds = recipe.grounding > 0 and batch.regions is not None
    for look in (module for module in model.modules() if isinstance(module, Attention)):
        look.keeps_read, look.read = grounds, None
    noisy = flow.add_noise(batch.latents, batch.noise, batch.sigma)
    kind, middles = noisy.device.type, list[Tensor]()
    hook = model.transformer.middle.register_forward_hook(lambda m, i, x: middles.append(x))
    try:
        with torch.autocast(kind, dtype=torch.bfloat16, enabled=recipe.bfloat16):
            embeds = model.text_encoder(batch.ids, batch.mask)
            predicted = model(noisy, batch.sigma, embeds, batch.condition).float()
    finally:
        hook.remove()
    error = predicted - flow.velocity(batch.latents, batch.noise)
    square = error.square()
    parts = {"velocity": square.mean()}
    loss = parts["velocity"]
    if recipe.focus and batch.focus is not None:
        known = (1 - batch.sigma).view(-1, 1, 1, 1, 1)
        weight = 1 + recipe.focus * known * batch.focus
        loss = (weight / weight.mean((1, 2, 3, 4), keepdim=True) * square).mean()
    if recipe.identity and embeds.requires_grad:  # not where the text encoder stays as it is
        table = model.text_encoder.embed.weight
        parts["identity"] = mistaken(embeds, batch.ids, batch.mask, table)
        loss = loss + recipe.identity * parts["identity"]
    near = batch.sigma >= model.boundary_ratio
    told_apart = near if recipe.practise is None else torch.ones_like(near)
    if recipe.contrast and told_apart.any():
        parts["contrast"] = apart(error, batch.scene)[told_apart].mean()
        loss = loss + recipe.contrast * told_apart.float().mean() * parts["contrast"]
    if recipe.recall and near.any():
        (middle,) = middles
        middle = middle if model.transformer_2 is not None else middle[near]
        parts["recall"] = model.recalled(middle, batch.told[near])
        loss = loss + recipe.recall * near.float().mean() * parts["recall"]
    routers = [module.losses for module in experts if module.losses is not None]
    if routers:
        parts["balance"] = torch.stack([r.balance for r in routers]).mean()
        parts["z"] = torch.stack([r.z for r in routers]).mean()
        loss = loss + recipe.balance * parts["balance"] + recipe.z * parts["z"]
    if grounds and batch.regions is not None:
        outside, unread, unheard = (torch.zeros_like(batch.sigma) for _ in range(3))
        for rows, expert in model.sides(batch.sigma):
            here = batch.regions.rows(rows)
            reads = [m.read for m in expert.modules() if isinstance(m, Attention)]
            looks = [look for look in reads if look is not None]
            outside[rows] = torch.stack([outside_share(look, here) for look in looks]).mean(0)
            mean = torch.stack(looks).mean(0)
            unread[rows] = unread_share(mean, here)
            if batch.deeds is not None:
                unheard[rows] = unheard_share(mean, batch.deeds[rows])
        parts |= {"outside": outside.mean(), "unread": unread.mean(), "unheard": unheard.mean()}
        grounded = (1 - batch.sigma) * (outside + unread) + near * unheard
        loss = loss + recipe.grounding * grounded.mean()
    clear = batch.sigma <= recipe.flow_sigma  # noisier guesses have no motion to speak of yet
    if recipe.flow and vae is not None and batch.motion is not None and clear.any():
        sigma = batch.sigma[clear].view(-1, 1, 1, 1, 1)
        guess = flow.predicted_clean(noisy[clear], predicted[clear], sigma)
        shown, moved = vae.decode(guess, chunk=None), batch.motion.rows(clear)
        one_by_one = [
            warping_error(video[None], Motion(way[None], seen[None]))
            for video, way, seen in zip(shown, *moved, strict=True)
        ]
        parts["flow"] = torch.stack(one_by_one).mean()
        share = clear.sum() / len(clear)
        loss = loss + recipe.flow * share * parts["flow"]
    parts = {"loss": loss, **parts}
    values = torch.stack([part.detach().float() for part in parts.values()]).tolist()
    return loss, dict(zip(parts, values, strict=True))


def apart(error: Tensor, scene: Tensor) -> Tensor:
    """How far the errors of a scene's takes are from their mean.

    The mean error is about what the takes share: place, people, layout. The rest is about what their words
    tell apart. Near pure noise all takes are equally unknown, so weighing the rest more moves the best answer
    little, and makes it much easier to learn.

    Args:
        error: `[b, ...]` of the predicted velocity.
        scene: `[b]` numbers of the scenes.

    Returns:
        The squared distances, `[b, ...]`; 0 for a scene with a single take.
    """
    same = (scene[:, None] == scene).to(error.dtype)
    mean = (same / same.sum(1, keepdim=True)) @ error.flatten(1)
    return (error - mean.view_as(error)).square()


SHARP = 16.0  # logits of a token are its cosines times this


def mistaken(embeds: Tensor, ids: Tensor, mask: Tensor, table: Tensor) -> Tensor:
    """How badly each token can be told from its embedding, by the angle to those of the vocabulary.

    A text encoder that learns from video alone lets go of words whose use is learnt late: left and right
    become one. UMT5 has to know each token, since it was trained to fill in text; this asks for the same.

    Args:
        embeds: `[b, p, c]` of the prompts.
        ids: `[b, p]` their tokens.
        mask: `[b, p]`, True on tokens.
        table: `[v, c]` embeddings of the vocabulary, before the text encoder's blocks.

    Returns:
        Mean over prompts of the mean cross-entropy of their tokens, in nats.
    """
    cosines = F.normalize(embeds.float(), dim=-1) @ F.normalize(table, dim=-1).T  # b p v
    errors = F.cross_entropy(SHARP * cosines.mT, ids, reduction="none")  # b p
    return ((errors * mask).sum(1) / mask.sum(1)).mean()


def compile_blocks(model: Denoiser, backend: str = "inductor") -> None:
    """Let PyTorch fuse what a block does between its matrix products.

    Block by block, since the router's counts break a graph anyway. Weights keep their names.

    Args:
        model: in training; its blocks are compiled in place, at their first call.
        backend: of `torch.compile`.
    """
    # one graph for each window, for pictures and clips, for one and for many lengths of prompts
    torch._dynamo.config.recompile_limit = 64
    for block in (module for module in model.modules() if isinstance(module, Block)):
        block.compile(backend=backend)


def train_denoiser(
    folder: Path,
    recipe: DenoiserRecipe,
    config: ModelConfig,
    vae: CausalVAE,
    device: str = "cpu",
    start: TextToVideoPipeline | None = None,
) -> TextToVideoPipeline:
    """Train or resume, and return a pipeline with averaged weights.

    Args:
        folder: of the run.
        recipe: what to see and how long.
        config: sizes; the VAE's part is taken from `vae`.
        vae: trained, in evaluation mode.
        device: "cpu", "cuda", …
        start: take its tokenizer and weights instead of fresh ones.

    Returns:
        The pipeline; `save_pretrained` makes a checkpoint of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rank, world = rank_and_world()
    for phase in recipe.phases:
        check_shareable(phase.batch, recipe.takes)
    if not (folder / "tokenizer.json").exists():
        # the same in every process
        made = (
            train_tokenizer(config.world, config.text.text_len)
            if start is None
            else start.tokenizer
        )
        if rank == 0:
            made.save_pretrained(folder)
    if world > 1:
        dist.barrier()
    tokenizer = UnigramTokenizer.from_pretrained(folder)
    config = fitted(config, tokenizer)
    torch.manual_seed(recipe.seed)
    model = Denoiser(config, recipe.two_experts)
    if start is not None:
        model.load_pipeline(start)
    between = (0.0, 1.0) if recipe.only is None else model.teach_only(recipe.only)
    model.to(device).train()
    if recipe.compiled:
        compile_blocks(model)
    vae.to(device).requires_grad_(False)  # the flow loss looks through it
    trainer = Trainer(
        folder, model, recipe.trainer, is_hidden_matrix, [recipe, config.dit],
        [] if start is None else [start.text_encoder, start.transformer, start.transformer_2],
    )  # fmt: skip
    trainer.resume()
    clips = Clips(
        config, tokenizer, vae, recipe.bfloat16, seed=recipe.seed, drop_prompt=recipe.drop_prompt,
        motion=recipe.flow > 0, regions=recipe.grounding > 0, focus=recipe.focus > 0,
        shift=recipe.shift, takes=recipe.takes, practise=recipe.practise, between=between,
    )  # fmt: skip
    batches = clips.batches(trainer.step, recipe.trainer.steps, recipe.phase, recipe.workers)

    def loss_of(step: int) -> tuple[Tensor, dict[str, float]]:
        phase = recipe.phase(step)
        batch = next(batches)
        together = math.ceil(phase.micro_batch / recipe.takes) * recipe.takes
        parts = torch.arange(len(batch)).split(together)
        means: dict[str, float] = {}
        for i, part in enumerate(parts):
            loss, figures = denoiser_loss(model, batch.rows(part), recipe, vae)
            weight = len(part) / len(batch)
            for name, value in figures.items():
                means[name] = means.get(name, 0.0) + weight * value
            share = loss * weight
            if i < len(parts) - 1:
                share.backward()
        return share, means

    def look(step: int) -> None:
        frames = recipe.phase(step - 1).num_frames
        pipe = model.pipeline(config, tokenizer, vae)
        with torch.compiler.set_stance("force_eager"):  # not worth compiling for
            draw_samples(pipe, folder / f"step{step:06d}.png", frames)
        snapshot = folder / SNAPSHOTS / f"step{step:06d}"
        pipe.save_pretrained(snapshot)
        write_atomically(snapshot / SEEN, json.dumps(recipe.seen(step)).encode())

    with trainer:
        trainer.run(loss_of, look)
    with trainer.averaged():
        finished = Denoiser(config, recipe.two_experts)
        finished.load_state_dict({k: v.clone() for k, v in model.state_dict().items()})
    return finished.pipeline(config, tokenizer, vae).to(device)


def draw_samples(pipe: TextToVideoPipeline, path: Path, num_frames: int) -> None:
    """A few prompts, one column each; first, middle and last frame below each other.

    Args:
        pipe: to draw with.
        path: PNG file to write.
        num_frames: of each clip.
    """
    columns = []
    for seed, prompt in enumerate(PROBE_PROMPTS):
        out = pipe(
            prompt, num_frames=num_frames, num_inference_steps=12, seed=seed, progress_bar=False
        )
        frames = (out.frames[0] * 255).round().astype(np.uint8)
        shown = sorted({0, num_frames // 2, num_frames - 1})
        columns.append(np.concatenate([frames[i] for i in shown]))
    sheet = Image.fromarray(np.concatenate(columns, axis=1))
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.Resampling.NEAREST).save(path)
