"""tinywan's taps, in wanviz's terms."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import tinywan
import torch
from torch import Tensor

from wanviz.adapters import Draw, Sink
from wanviz.adapters.stage import ASKED, AttentionPart, BlockPart, asking
from wanviz.errors import OptionError
from wanviz.events import Clip, Event, Kind, Moment, Request
from wanviz.grid import Grid, pixel_frames, token_grid
from wanviz.hooks import Arguments, HookSet, Keywords
from wanviz.layout import Anatomy
from wanviz.words import EncodedPrompt, encoded_prompt

VAE_STRIDE = (4, 8, 8)
_TAP = re.compile(
    r"time_embed|blocks\.\d+\.(?:"
    r"(?:self|spatial|temporal|cross)_attn\.(?:q|k|v|out)"
    r"|moe\.(?:router_logits|expert_ids|out)|ffn\.out|resid_pre|resid_post)"
)


def make_adapter(pipe: Any) -> TinywanAdapter:
    """The adapter of a tinywan pipeline.

    Raises:
        OptionError: it is something else of tinywan.
    """
    if not isinstance(pipe, tinywan.TextToVideoPipeline):
        raise OptionError(
            f"wanviz watches a whole pipeline, and this is a tinywan {type(pipe).__name__}: "
            "give the tinywan.TextToVideoPipeline that it belongs to"
        )
    return TinywanAdapter(pipe)


def load_pipeline(
    path: str | None, device: str, dtype: str
) -> tuple[tinywan.TextToVideoPipeline, Draw]:
    """The pipeline of a checkpoint folder, which is called as it is; None is the shipped checkpoint."""
    pipe = tinywan.TextToVideoPipeline.from_pretrained(path, device, getattr(torch, dtype))
    return pipe, pipe


class TinywanAdapter:
    """Reads a `tinywan.TextToVideoPipeline` through forward hooks on its taps."""

    default_keep = (("layer", "head"), ("layer", "step"))
    frame_modes = ("exact",)  # at these sizes sampling would save nothing
    can_preview = True

    def __init__(self, pipe: tinywan.TextToVideoPipeline) -> None:
        """Nothing is registered yet."""
        self._pipe = pipe
        self._running: tinywan.GenerationRequest | None = None  # the request told last
        self._call: tinywan.DenoiserCall | None = None  # the denoiser call told last
        self._request: Request | None = None
        self._observed: Request | None = None  # of a video that is looked at, not drawn
        self._counted: dict[str, int] = {}  # prompt -> its keys

    def hook_names(self) -> tuple[str, ...]:
        """The pipeline's taps, then the denoiser's, without the name of the noise expert."""
        names = [*self._pipe.taps]
        for model in self._denoisers():
            names += [name for name, _ in model.named_modules() if _TAP.fullmatch(name)]
        return tuple(dict.fromkeys(names))

    def request(self) -> Request | None:
        """The generation that runs now."""
        if self._observed is not None:
            return self._observed
        running = self._pipe.current_request
        if running is None:
            return None
        if self._request is None or running is not self._running:
            self._running = running
            scales = (running.guidance_scale, running.guidance_scale_2)
            self._request = Request(
                prompts=tuple(
                    {"cond": prompt, "uncond": negative}
                    for prompt, negative in zip(
                        running.prompts, running.negative_prompts, strict=True
                    )
                ),
                branches=("cond", "uncond") if max(scales) > 1 else ("cond",),
                height=running.height,
                width=running.width,
                num_frames=running.num_frames,
                num_inference_steps=running.num_inference_steps,
                guidance={
                    "guidance_scale": running.guidance_scale,
                    "guidance_scale_2": running.guidance_scale_2,
                },
                # the noise of the others comes behind that of the first
                seeds=(running.seed, *[None] * (len(running.prompts) - 1)),
                lengths={
                    branch: lengths
                    for branch, lengths in (
                        ("cond", running.prompt_lengths),
                        ("uncond", running.negative_prompt_lengths),
                    )
                    if lengths is not None
                },
            )
        return self._request

    def planned_request(
        self,
        prompt: str,
        negative_prompt: str,
        height: int | None,
        width: int | None,
        num_frames: int | None,
        num_inference_steps: int | None,
    ) -> Request:
        """A generation with the model's own defaults."""
        config = self._pipe.config
        return Request(
            prompts=({"cond": prompt, "uncond": negative_prompt},),
            branches=("cond", "uncond"),
            height=config.height if height is None else height,
            width=config.width if width is None else width,
            num_frames=config.num_frames if num_frames is None else num_frames,
            num_inference_steps=(
                config.num_inference_steps if num_inference_steps is None else num_inference_steps
            ),
            guidance={"guidance_scale": 4.0},  # on, as by default: two branches work
            seeds=(None,),
        )

    def grid(self, request: Request) -> Grid:
        """The video tokens of a generation."""
        return token_grid(
            request.num_frames,
            request.height,
            request.width,
            vae_stride=VAE_STRIDE,
            patch_size=self._pipe.transformer.config.patch_size,
        )

    def anatomy(self, request: Request) -> Anatomy:
        """Sizes, and an estimate of the work: 2 operations per token and weight in use."""
        model = self._pipe.transformer
        config = model.config
        grid = self.grid(request)
        full = config.attention == "full"
        share = config.top_k / config.num_experts if config.num_experts else 1.0
        weights = sum(
            p.numel() * (share if ".moe.experts." in name else 1.0)
            for name, p in model.blocks.named_parameters(prefix="blocks")
        )
        seen = {
            "self_attn": grid.tokens,
            "spatial_attn": grid.rows_and_columns,
            "temporal_attn": grid.frames,
        }
        widths = config.self_attention_widths
        keys = sum(seen[name] * config.num_heads * width for name, width in widths.items())
        keys += config.text_len * config.dim
        attention = 4 * grid.tokens * keys * config.num_layers
        return Anatomy(
            grid=grid,
            layers=config.num_layers,
            heads=config.num_heads,
            head_width=config.head_dim,
            frame_head_width=widths["self_attn" if full else "temporal_attn"],
            text_length=config.text_len,
            frame_kind="self_attn" if full else "temporal_attn",
            token_experts=config.num_experts,
            topk=config.top_k if config.num_experts else 0,
            forward_flops=int(2 * grid.tokens * weights + attention),
            device=self._pipe.device.type,
        )

    def encode(self, prompt: str) -> EncodedPrompt:
        """The prompt's tokens; that it was cut, the pipeline says itself."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = self._pipe.tokenizer.encode(prompt)
        return encoded_prompt(prompt, found.offsets[:-1], found.truncated_at)  # </s> is last

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """What the denoiser reads of prompts."""
        return self._pipe.encode_prompt(prompts)

    def text_encoder(self) -> Any:
        """The module that reads prompts."""
        return self._pipe.text_encoder

    def device(self) -> torch.device:
        """Where the pipeline computes."""
        return self._pipe.device

    def attended(self, request: Request, branch: str, video: int) -> int | None:
        """How many keys of a prompt cross-attention sees, </s> included; None where it sees all.

        tinywan's own sizes mask the padding; where it is attended, as in Wan, all keys count.
        """
        if not self._pipe.transformer.config.mask_padding:
            return None
        prompt = request.prompts[video][branch]
        if prompt is None:  # embeddings were given
            assert request.lengths is not None
            return request.lengths[branch][video]
        if prompt not in self._counted:
            self._counted[prompt] = len(self.encode(prompt).tokens) + 1
        return self._counted[prompt]

    def attach(self, sink: Sink, hooks: HookSet, branches: tuple[str, ...], previews: bool) -> None:
        """Look at the queries and keys of every block, at its expert ids, and at the video."""
        for model in self._denoisers():
            reader = _Reader(self, sink, branches)
            hooks.before(model, reader.begin)
            for layer, block in enumerate(model.blocks):
                for kind in ("cross_attn", "temporal_attn", "self_attn"):
                    attention = getattr(block, kind, None)
                    if attention is not None:
                        pair = partial(reader.pair, kind, layer, attention)
                        hooks.after(attention.q, partial(pair, "q"))
                        hooks.after(attention.k, partial(pair, "k"))
                if hasattr(block, "moe"):
                    hooks.after(block.moe.expert_ids, partial(reader.routing, layer))

        def decoded(frames: Tensor) -> None:
            for number, video in enumerate(frames):
                sink.video(video, number)

        hooks.after(self._pipe.taps["frames"], decoded)
        if previews:
            latents = list[Tensor]()

            def began(noisy: Tensor) -> None:
                latents[:] = [noisy.detach()]

            def predicted(velocity: Tensor) -> None:
                call = self._pipe.current_call
                if call is not None and latents:
                    clean = latents[0].float() - call.sigma * velocity.detach().float()
                    sink.preview(call.step, partial(self._pictures, clean.to(latents[0].dtype)))

            hooks.after(self._pipe.taps["latents"], began)
            hooks.after(self._pipe.taps["noise_pred"], predicted)

    def _pictures(self, latents: Tensor) -> Tensor:
        """Clean latents `[b, c, f, h, w]` to float `[b, f, H, W, 3]`, the middle picture of each latent frame."""
        with torch.no_grad():
            video = (self._pipe.vae.decode(latents) + 1) / 2
        spans = [pixel_frames(frame) for frame in range(latents.shape[2])]
        middle = [span[len(span) // 2] for span in spans]
        return video[:, :, middle].clamp(0, 1).permute(0, 2, 3, 4, 1)

    def observe(self, clip: Clip) -> None:
        """Ask the noise expert of each level once, all branches in one batch."""
        self._observed = Request(
            prompts=({"cond": clip.prompt, "uncond": clip.negative_prompt},),
            branches=clip.branches,
            height=clip.video.shape[3],
            width=clip.video.shape[4],
            num_frames=clip.video.shape[2],
            num_inference_steps=len(clip.sigmas),
            guidance={"guidance_scale": None, "guidance_scale_2": None},
            seeds=(clip.seed,),
        )
        prompts = {"cond": clip.prompt, "uncond": clip.negative_prompt}
        with torch.inference_mode():
            denoiser = self.denoiser(clip)
            embeds = denoiser.embeds([prompts[branch] for branch in clip.branches])
            with asking(prompts):
                for level in range(len(clip.sigmas)):
                    denoiser.ask(level, embeds, None, clip.branches)

    def denoiser(self, clip: Clip) -> TinywanDenoiser:
        """The denoiser at the noise levels of a clip."""
        return TinywanDenoiser(self._pipe, clip, self.encode(clip.prompt))

    def stage(self, hooks: HookSet) -> TinywanStage:
        """The pipeline's parts; tinywan tells by itself what it is doing, and its denoiser is given the size."""
        return TinywanStage(self._pipe, hooks)

    def draw(self, prompt: str, seed: int, *, progress_bar: bool = True, **asked: Any) -> Any:
        """Call the pipeline."""
        return self._pipe(prompt, seed=seed, progress_bar=progress_bar, **asked)

    @contextmanager
    def one_noise_expert(self, which: str) -> Iterator[None]:
        """Inside, the boundary between the noise experts lies below or above all noise levels."""
        pipe = self._pipe
        if pipe.transformer is pipe.transformer_2:
            raise OptionError("this model has one denoiser for all noise levels: nothing to force")
        before = pipe.config
        if not 0 <= before.boundary_ratio <= 1:
            raise OptionError("a noise expert is forced already: leave that block first")
        pipe.config = replace(before, boundary_ratio={"high": -1.0, "low": 2.0}[which])
        try:
            yield
        finally:
            pipe.config = before

    def provenance(self) -> dict[str, Any]:
        """What made the video."""
        return {
            "model": f"tinywan {self._pipe.config.name}",
            "fps": self._pipe.config.fps,
            "device": str(self._pipe.device),
            "dtype": str(self._pipe.dtype).removeprefix("torch."),
            "versions": {
                "wanviz": version("wanviz"),
                "tinywan": version("wanviz"),  # they are one distribution
                "torch": torch.__version__,
            },
        }

    def next_moment(self) -> Moment | None:
        """The pipeline's denoiser call, once; None for a forward that somebody else makes."""
        call = self._pipe.current_call
        if call is None or call is self._call:
            return None
        self._call = call
        return Moment(
            step=call.step,
            sigma=call.sigma,
            timestep=call.timestep,
            noise_expert=call.noise_expert,
            branches=call.branches,
        )

    def _denoisers(self) -> tuple[Any, ...]:
        return tuple(denoisers(self._pipe))


def denoisers(pipe: tinywan.TextToVideoPipeline) -> dict[Any, str]:
    """The denoisers and the noise levels that they work at; both noise experts may be one module."""
    if pipe.transformer is pipe.transformer_2:
        return {pipe.transformer: ""}
    return {pipe.transformer: "high", pipe.transformer_2: "low"}


class TinywanDenoiser:
    """See `stage.Denoiser`."""

    def __init__(
        self, pipe: tinywan.TextToVideoPipeline, clip: Clip, encoded: EncodedPrompt
    ) -> None:
        """Encode the video and draw its noise, from a generator of its own."""
        num_frames, height, width = clip.video.shape[2:]
        self.grid = token_grid(
            num_frames,
            height,
            width,
            vae_stride=VAE_STRIDE,
            patch_size=pipe.transformer.config.patch_size,
        )
        self.encoded, self.sigmas = encoded, clip.sigmas
        masked = pipe.transformer.config.mask_padding
        self.keys = len(encoded.tokens) + 1 if masked else None
        self._pipe = pipe
        with torch.no_grad():
            self.latents = pipe.vae.encode(clip.video.to(pipe.device)).float()
        generator = torch.Generator().manual_seed(clip.seed)
        self._noise = torch.randn(self.latents.shape, generator=generator).to(self.latents)

    def embeds(self, prompts: Sequence[str]) -> Tensor:
        """See `stage.Denoiser`."""
        return self._pipe.encode_prompt(list(prompts))

    def noisy(self, level: int) -> Tensor:
        """See `stage.Denoiser`."""
        sigma = self.sigmas[level]
        return (1 - sigma) * self.latents + sigma * self._noise

    def velocity(
        self,
        level: int,
        embeds: Tensor,
        latents: Tensor | None = None,
        text: str | None = None,
    ) -> Tensor:
        """See `stage.Denoiser`."""
        with asking({"cond": self.encoded.text if text is None else text}):
            return self.ask(level, embeds, latents, ("cond",))

    def ask(
        self, level: int, embeds: Tensor, latents: Tensor | None, branches: tuple[str, ...]
    ) -> Tensor:
        """As `velocity`, for branches that share the rows out evenly; the pipeline tells of the call while it runs."""
        pipe, sigma = self._pipe, self.sigmas[level]
        high = sigma >= pipe.config.boundary_ratio
        latents = self.noisy(level) if latents is None else latents
        told: Any = branches  # "cond" and "uncond"
        before = pipe.current_call
        pipe.current_call = tinywan.DenoiserCall(
            level, sigma, 1000 * sigma, "high" if high else "low", told
        )
        try:
            model = pipe.transformer if high else pipe.transformer_2
            rows = latents.expand(len(embeds), -1, -1, -1, -1).to(pipe.dtype)
            timestep = torch.full((1,), 1000 * sigma, device=pipe.device)
            velocity: Tensor = model(rows, timestep, embeds.to(pipe.dtype))
        finally:
            pipe.current_call = before
        return velocity.float()


class TinywanStage:
    """See `stage.Stage`."""

    def __init__(self, pipe: tinywan.TextToVideoPipeline, hooks: HookSet) -> None:
        """Look at the size of what the denoisers are given."""
        self._pipe = pipe
        self._grid: tuple[int, int, int] | None = None
        for model in denoisers(pipe):
            hooks.before_call(model, partial(self._begin, model))
        self.blocks = tuple(
            BlockPart(
                noise_expert=expert,
                layer=layer,
                attentions={
                    kind: _attention(kind, getattr(block, kind))
                    for kind in ("cross_attn", "self_attn", "spatial_attn", "temporal_attn")
                    if hasattr(block, kind)
                },
                stream=block.resid_post,
                choice=block.moe.expert_ids if hasattr(block, "moe") else None,
                router=block.moe.router_logits if hasattr(block, "moe") else None,
                experts=tuple(e.out for e in block.moe.experts) if hasattr(block, "moe") else (),
            )
            for model, expert in denoisers(pipe).items()
            for layer, block in enumerate(model.blocks)
        )

    def _begin(self, model: Any, args: Arguments, kwargs: Keywords) -> None:
        self._grid = model.grid(args[0] if args else kwargs["latents"])

    def grid(self) -> tuple[int, int, int]:
        """See `stage.Stage`."""
        assert self._grid is not None  # asked inside a forward
        return self._grid

    def rows(self, branch: str, batch: int) -> slice | None:
        """See `stage.Stage`."""
        call = self._pipe.current_call
        branches = ("cond",) if call is None else call.branches
        if branch not in branches:
            return None
        each = batch // len(branches)
        first = branches.index(branch) * each
        return slice(first, first + each)

    def prompts(self, branch: str) -> tuple[str | None, ...]:
        """See `stage.Stage`."""
        if (asked := ASKED.get()) is not None:
            return (asked[branch],) if branch in asked else ()
        running = self._pipe.current_request
        if running is None:
            return ()
        return tuple(running.prompts if branch == "cond" else running.negative_prompts)

    def step(self) -> int | None:
        """See `stage.Stage`."""
        return None if self._pipe.current_call is None else self._pipe.current_call.step


def _attention(kind: Any, module: Any) -> AttentionPart:
    return AttentionPart(
        kind=kind,
        module=module,
        heads=module.num_heads,
        q=module.q,
        k=module.k,
        v=module.v,
        mix=module.to_out,
        apart=module.pattern in ("spatial", "temporal"),
        window=module.window,
        split=lambda tensor: tensor,  # they have their heads already
        text_keys=lambda args, _: args[1][0].shape[-2],  # of (keys, values), each `[b, n, p, d]`
        with_bias=_with_bias,
    )


def _with_bias(args: Arguments, kwargs: Keywords, bias: Tensor) -> tuple[Arguments, Keywords]:
    there = kwargs.get("bias")
    return args, {**kwargs, "bias": bias if there is None else there + bias}


class _Reader:
    """Pairs the queries and keys of one denoiser and tells its sink."""

    def __init__(self, adapter: TinywanAdapter, sink: Sink, branches: tuple[str, ...]) -> None:
        self._adapter, self._sink, self._branches = adapter, sink, branches
        self._moment: Moment | None = None
        self._waiting: dict[tuple[str, int], dict[str, Tensor]] = {}
        self._grid: Grid | None = None
        self._videos = 1
        self._attended: dict[tuple[str, int], int | None] = {}  # branch, video -> keys; None is all

    def begin(self) -> None:
        """A forward starts; one that no pipeline called is none of ours."""
        self._waiting.clear()  # of a forward that broke off between q and k
        self._moment = self._adapter.next_moment()
        request = self._adapter.request()
        if self._moment is None or request is None:
            self._moment = None
            return
        self._grid = self._adapter.grid(request)
        self._videos = len(request.prompts)
        self._attended = {
            (name, video): self._adapter.attended(request, name, video)
            for name in self._branches
            for video in range(self._videos)
        }
        self._sink.begin(self._moment)

    def pair(self, kind: Kind, layer: int, attention: Any, name: str, tensor: Tensor) -> None:
        """One of q and k; the second completes an event."""
        if self._moment is None:
            return
        waiting = self._waiting.setdefault((kind, layer), {})
        waiting[name] = tensor.detach()
        if len(waiting) == 2:
            del self._waiting[kind, layer]
            window = getattr(attention, "window", None)
            self._emit(kind, layer, window=window, **waiting)

    def routing(self, layer: int, expert_ids: Tensor) -> None:
        """The token experts of one layer."""
        if self._moment is not None:
            self._emit("expert_ids", layer, expert_ids=expert_ids)

    def _emit(self, kind: Kind, layer: int, window: int | None = None, **tensors: Tensor) -> None:
        moment, grid = self._moment, self._grid
        assert moment is not None and grid is not None
        for branch in self._branches:
            if branch in moment.branches:
                first = moment.branches.index(branch) * self._videos  # a branch's rows lie together
                for video in range(self._videos):
                    seen = {name: tensor[first + video] for name, tensor in tensors.items()}
                    if kind == "cross_attn":
                        seen["k"] = seen["k"][:, : self._attended[branch, video]]
                    event = Event(
                        kind=kind,
                        layer=layer,
                        moment=moment,
                        branch=branch,
                        grid=grid,
                        video=video,
                        window=window,
                        q=seen.get("q"),
                        k=seen.get("k"),
                        expert_ids=seen.get("expert_ids"),
                    )
                    self._sink.consume(event)
