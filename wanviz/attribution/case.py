"""One video, one prompt, some words: what every method that runs the model starts from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from wanviz.adapters.stage import BlockPart, Denoiser
from wanviz.attribution.result import Phrase
from wanviz.errors import CaptureError, OptionError
from wanviz.events import Clip
from wanviz.hooks import Arguments, HookSet, Keywords
from wanviz.interventions.scope import Reach, is_whole, reach
from wanviz.interventions.words import gate_words


@dataclass(frozen=True)
class Visible:
    """Where one phrase can be read."""

    phrase: Phrase
    where: Tensor  # [b, l] in [0, 1]
    layers: frozenset[int] | None = (
        None  # of what reads it; None: every layer; it is visible in the others
    )


Look = Callable[[BlockPart, Tensor, Tensor, Tensor], None]


@dataclass
class Case:
    """A denoiser at some noise levels of a video, with gates on the words.

    Attributes:
        reached: the pipeline; hooks added here go when the case ends.
        denoiser: to be asked.
        embeds: of the prompt, `[1, p, c]`.
        phrases: the words that are asked for.
        tick: called once for each forward, for a progress bar.
        seed: of what a method draws by chance.
        forwards: how many rows were computed so far.
    """

    reached: Reach
    denoiser: Denoiser
    embeds: Tensor
    phrases: tuple[Phrase, ...]
    tick: Callable[[int], None]
    seed: int = 0
    forwards: int = 0
    _gates: Tensor | None = None  # b token l
    _seen: Visible | None = None
    _level: int = 0  # that is being asked about
    _held: bool = False  # whether token experts are those of the full answer
    _mixing: bool = False  # whether a cross-attention is being asked for its second answer
    _called: tuple[Arguments, Keywords] | None = None  # with what it was asked for its first one
    _full: dict[int, Tensor] = field(default_factory=dict)
    _chosen: dict[tuple[int, int], Tensor] = field(
        default_factory=dict
    )  # level, layer -> of the full answer

    @property
    def levels(self) -> range:
        """Indices of the noise levels."""
        return range(len(self.denoiser.sigmas))

    @property
    def tokens(self) -> tuple[int, ...]:
        """Every token of the prompt's own."""
        return tuple(range(len(self.denoiser.encoded.tokens)))

    def velocity(
        self,
        level: int,
        *,
        gates: Tensor | None = None,
        seen: Visible | None = None,
        held: bool = False,
        embeds: Tensor | None = None,
        latents: Tensor | None = None,
        text: str | None = None,
    ) -> Tensor:
        """The denoiser's answer, float32 `[b, c, f, h, w]`.

        Args:
            level: of noise.
            gates: `[b, token, 1 or l]` over every token of the prompt: 1 as it is, 0 not read.
            seen: where one phrase is visible; between 0 and 1, cross-attention's answers with and without it are mixed.
            held: whether each token is worked on by the token experts of the full answer, so that nothing jumps.
            embeds: `[b, p, c]`; None is the prompt.
            text: that was embedded; None is the prompt.
            latents: noisy ones, `[b, c, f, h, w]`; None is the video.

        Raises:
            OptionError: a gradient is wanted, and the model gives none.
        """
        given = [found for found in (gates, latents) if found is not None]
        rows = max([1, *map(len, given), len(seen.where) if seen else 1])
        read = self.embeds if embeds is None else embeds
        self._gates, self._seen, self._level, self._held = gates, seen, level, held
        try:
            answer = self.denoiser.velocity(
                level, read.expand(max(rows, len(read)), -1, -1), latents, text
            )
        finally:
            self._gates, self._seen, self._held = None, None, False
        self.forwards += len(answer)
        self.tick(len(answer))
        sought = [*given, read, *([seen.where] if seen else [])]
        wanted = torch.is_grad_enabled() and any(one.requires_grad for one in sought)
        if wanted and not answer.requires_grad:
            raise OptionError(
                "no gradient comes back through this model, as where its activations are quantised: use a method that "
                'asks again instead, e.g. method="word_ablation"'
            )
        return answer

    def full(self, level: int) -> Tensor:
        """The answer with everything read, computed once."""
        if level not in self._full:
            with torch.no_grad():
                self._full[level] = self.velocity(level)  # the first of its level: `choose` listens
        return self._full[level]

    def choose(self, block: BlockPart, experts: Tensor) -> Tensor | None:
        """Token experts of a block, `[b, l, topk]`: remembered from the full answer, or replaced by these."""
        if self._held:
            return self._chosen[self._level, block.layer].expand_as(experts)
        self._chosen.setdefault((self._level, block.layer), experts[:1].detach())
        return None

    def heard(self, args: Arguments, kwargs: Keywords) -> None:
        """A cross-attention is called; interventions that are in place have not changed its arguments yet."""
        self._called = args, kwargs

    def mix(
        self, block: BlockPart, _args: Arguments, _kwargs: Keywords, answer: Tensor
    ) -> Tensor | None:
        """Cross-attention's answer `[b, l, c]`, with the phrase where it is visible and without it elsewhere."""
        if self._seen is None or self._mixing:
            return None
        if self._seen.layers is not None and block.layer not in self._seen.layers:
            return None
        part = block.attentions["cross_attn"]
        assert self._called is not None
        args, kwargs = self._called
        self._mixing, self._gates = True, self.gates(self._seen.phrase, torch.zeros(1, 1))
        try:
            without = part.module(*args, **kwargs)  # type: ignore[operator]
        finally:
            self._mixing, self._gates = False, None
        where = self._seen.where.to(answer)[..., None]  # b l 1
        return without + where * (answer - without)

    def gates(self, phrase: Phrase, visible: Tensor) -> Tensor:
        """Gates that scale one phrase by `visible` `[b, 1 or l]`, and leave the other tokens."""
        gate = torch.ones(len(visible), len(self.tokens), visible.shape[1])
        mine = torch.zeros(len(self.tokens), 1)
        for index, share in phrase.tokens:
            mine[index] = share
        return gate + (visible[:, None].cpu() - 1) * mine

    def without(self, level: int, phrase: Phrase) -> Tensor:
        """The answer with a phrase knocked out everywhere."""
        with torch.no_grad():
            return self.velocity(level, gates=self.gates(phrase, torch.zeros(1, 1)))

    def needs(self, rows: int, held_by_word: int = 0) -> int:
        """Bytes that a method holds beside the model's run.

        Args:
            rows: that it asks about at once.
            held_by_word: how many answers it keeps of each word.
        """
        grid, keys = self.denoiser.grid, self.embeds.shape[1]
        answer = 4 * self.denoiser.latents.numel()
        held = len(self.denoiser.sigmas) + 2 + 2 * rows + held_by_word * len(self.phrases)
        gates = 4 * rows * grid.tokens * (keys + len(self.tokens))
        return held * answer + gates + 8 * len(self.phrases) * grid.tokens

    def pooled(self, per_latent: Tensor) -> Tensor:
        """`[b, f, h', w']` over latents to `[b, f, h, w]` over tokens, means."""
        return F.adaptive_avg_pool3d(per_latent[:, None], self.denoiser.grid.shape)[:, 0]

    def read(self, level: int, look: Look) -> None:
        """One forward, in which look(block, q, k, v) sees every cross-attention, `[n, s, d]` each, as it is computed."""
        waiting: dict[int, dict[str, Tensor]] = {}
        seen = False

        def arrived(block: BlockPart, name: str, output: Tensor) -> None:
            nonlocal seen
            part = block.attentions["cross_attn"]
            found = waiting.setdefault(id(block), {})
            found[name] = part.split(output)[0]
            if len(found) == 3:
                del waiting[id(block)]
                keys = self.denoiser.keys
                q, k, v = (found[n] for n in ("q", "k", "v"))
                seen = True
                look(block, q, k[:, :keys], v[:, :keys])

        with HookSet() as hooks, torch.no_grad():
            for block in self.reached.stage.blocks:
                for name in ("q", "k", "v"):
                    module = getattr(block.attentions["cross_attn"], name)
                    hooks.after(module, partial(arrived, block, name))
            self.velocity(level)
        if not seen:
            raise CaptureError(
                "no cross-attention told its queries, keys and values: are its projections fused? Unfuse them first"
            )


def raise_below(name: str, number: Any, least: int) -> None:
    """Refuse what is no whole number from `least` on."""
    if not is_whole(number) or number < least:
        raise OptionError(f"{name}={number!r}: use {least} or more")


@contextmanager
def open_case(
    pipe: Any, clip: Clip, phrases: tuple[Phrase, ...], tick: Callable[[int], None]
) -> Iterator[Case]:
    """A case; its hooks are gone afterwards."""
    with torch.inference_mode(False), reach(pipe) as reached, torch.no_grad():
        denoiser = reached.adapter.denoiser(clip)
        case = Case(reached, denoiser, denoiser.embeds([clip.prompt]), phrases, tick, clip.seed)
        gate_words(reached, case.tokens, lambda _: case._gates)
        for block in reached.stage.blocks:
            cross = block.attentions["cross_attn"]
            reached.hooks.before_call(cross.module, case.heard, first=True)
            reached.hooks.change_answer(cross.module, partial(case.mix, block))
            if block.choice is not None:
                reached.hooks.change(block.choice, partial(case.choose, block))
        with torch.enable_grad(), _frozen(pipe):
            yield case


@contextmanager
def _frozen(pipe: Any) -> Iterator[None]:
    """Weights keep no gradients inside, and no block is computed again on the way back, when other gates are set."""
    models = [m for m in vars(pipe).values() if isinstance(m, torch.nn.Module)]
    asking = [p for model in models for p in model.parameters() if p.requires_grad]
    again = [m for model in models for m in model.modules() if _checkpoints(m)]
    for parameter in asking:
        parameter.requires_grad_(False)
    for module in again:
        module.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
        for module in again:
            module.gradient_checkpointing = True  # type: ignore[assignment]


def _checkpoints(module: torch.nn.Module) -> bool:
    """By the name that diffusers and transformers have for it."""
    return getattr(module, "gradient_checkpointing", False) is True
