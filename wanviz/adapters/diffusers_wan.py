"""The real Wan2.1 and Wan2.2 in diffusers, in wanviz's terms.

diffusers' Wan has no taps. What is read here is the least that tells everything: the outputs of each
attention's query and key norms, the rotary positions that it is given, and the calls by which the pipeline
encodes its prompt, draws its noise, announces a branch and hands out the video. Nothing is replaced on a
class, a module's forward or a processor; what an object had in place of its method it has again afterwards.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from diffusers import DiffusionPipeline, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor

from wanviz.adapters import Sink
from wanviz.adapters.diffusers_taps import Look, Reader, bound, parallel_mesh, takes_any
from wanviz.adapters.stage import ASKED, AttentionPart, BlockPart, asking
from wanviz.errors import CaptureError, OptionError
from wanviz.events import Clip, Kind, Moment, Request
from wanviz.grid import Grid, token_grid
from wanviz.hooks import Arguments, HookSet, Keywords
from wanviz.layout import Anatomy
from wanviz.words import EncodedPrompt, encoded_prompt

# Pipelines that say which branch they compute; by name, since importing the second one loads image models.
ANNOUNCING = {"WanPipeline", "WanImageToVideoPipeline"}
TEXT_LENGTH = 512  # keys of a prompt where the pipeline is called as usual
FRAMES_PER_SECOND = {False: 16, True: 24}  # Wan2.2-TI2V-5B expands timesteps and plays faster
ATTENTIONS: dict[str, Kind] = {"attn1": "self_attn", "attn2": "cross_attn"}


def make_adapter(pipe: Any) -> DiffusersWanAdapter:
    """The adapter of a diffusers pipeline around Wan's transformer.

    Raises:
        OptionError: it is another pipeline or a part of one, or it cannot run as it is.
    """
    if isinstance(pipe, WanTransformer3DModel):
        raise OptionError(
            "wanviz watches a whole pipeline, and this is its transformer: give the WanPipeline that it "
            "belongs to"
        )
    known = isinstance(pipe, DiffusionPipeline)
    if not known:
        raise OptionError(
            f"wanviz cannot watch a {type(pipe).__qualname__} of diffusers: give a WanPipeline"
        )
    both = [getattr(pipe, name, None) for name in ("transformer", "transformer_2")]
    there = [plain(model) for model in both if model is not None]
    if not there or not all(isinstance(model, WanTransformer3DModel) for model in there):
        kinds = ", ".join(type(model).__name__ for model in there) or "no transformer"
        raise OptionError(
            f"wanviz watches pipelines around a WanTransformer3DModel, and this {type(pipe).__name__} has "
            f"{kinds}"
        )
    if not {kind.__name__ for kind in type(pipe).__mro__} & ANNOUNCING:
        raise OptionError(
            f"a {type(pipe).__name__} does not say which branch it computes: wanviz watches WanPipeline and "
            "WanImageToVideoPipeline (and looks at a video that exists with `observe`)"
        )
    if pipe.config.get("boundary_ratio") is not None and None in both:
        raise OptionError(
            f"this pipeline has boundary_ratio={pipe.config.boundary_ratio} and one transformer alone, so that "
            "its run would fail at the boundary: load both noise experts, or, for a Wan2.1 that was converted "
            "with a boundary, pipe.register_to_config(boundary_ratio=None)"
        )
    return DiffusersWanAdapter(pipe)


def plain(model: Any) -> Any:
    """The module itself, where it is wrapped by torch.compile."""
    return getattr(model, "_orig_mod", model)


@dataclass
class _Run:
    """What is known of one call of the pipeline; it begins when the prompt is encoded."""

    prompts: list[str | None]  # per video
    negatives: list[str | None]
    lengths: dict[str, tuple[int, ...]]
    seeds: tuple[int | None, ...] = ()
    request: Request | None = None  # from the first denoiser call on
    grid: Grid | None = None
    steps: int = -1  # the step under way, counted where the pipeline does not tell
    timesteps: list[float] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)
    embeds: dict[str, Tensor] = field(
        default_factory=dict
    )  # branch -> what the first call was given
    branches: tuple[str, ...] | None = None  # None: as the pipeline's guidance has it
    changed: bool = False  # whether a warning about other embeddings was given


class DiffusersWanAdapter:
    """Reads a diffusers pipeline through hooks on its transformers' norms of queries and keys."""

    default_keep = (("layer",), ("step",))
    frame_modes = ("sampled", "exact")
    can_preview = False

    def __init__(self, pipe: Any) -> None:
        """Nothing is registered yet."""
        self._pipe = pipe
        self._run: _Run | None = None
        self._observing = False  # whether the prompt that is encoded now belongs to `observe`
        self._text_length = TEXT_LENGTH
        self._encoded: dict[tuple[str, int], EncodedPrompt] = {}

    def hook_names(self) -> tuple[str, ...]:
        """Queries and keys of every attention."""
        layers = max(len(model.blocks) for model in self._models().values())
        return tuple(
            f"blocks.{layer}.{kind}.{name}"
            for layer in range(layers)
            for kind in ATTENTIONS.values()
            for name in ("q", "k")
        )

    def request(self) -> Request | None:
        """The generation that runs now, or ran last."""
        return None if self._run is None else self._run.request

    def planned_request(
        self,
        prompt: str,
        negative_prompt: str,
        height: int | None,
        width: int | None,
        num_frames: int | None,
        num_inference_steps: int | None,
    ) -> Request:
        """A generation with the pipeline's own defaults."""
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(type(self._pipe).__call__).parameters.items()
        }

        def chosen(name: str, value: int | None, fallback: int) -> int:
            return int(defaults.get(name) or fallback) if value is None else value

        return Request(
            prompts=({"cond": prompt, "uncond": negative_prompt},),
            branches=("cond", "uncond"),
            height=chosen("height", height, 480),
            width=chosen("width", width, 832),
            num_frames=chosen("num_frames", num_frames, 81),
            num_inference_steps=chosen("num_inference_steps", num_inference_steps, 50),
            guidance={"guidance_scale": 5.0},  # on, as by default: two branches work
            seeds=(None,),
        )

    def anatomy(self, request: Request) -> Anatomy:
        """Sizes, and an estimate of the work: 2 operations per token and weight."""
        models = self._models()
        model = next(iter(models.values()))
        config = model.config
        heads, width = config.num_attention_heads, config.attention_head_dim
        grid = self.grid(request)
        weights = sum(p.numel() for p in model.blocks.parameters())
        keys = (grid.tokens + self._text_length) * heads * width
        return Anatomy(
            grid=grid,
            layers=max(len(m.blocks) for m in models.values()),
            heads=heads,
            head_width=width,
            frame_head_width=width,
            text_length=self._text_length,
            frame_kind="self_attn",
            token_experts=0,
            topk=0,
            forward_flops=int(
                2 * grid.tokens * weights + 4 * grid.tokens * keys * config.num_layers
            ),
            device=self.device().type,
        )

    def grid(self, request: Request) -> Grid:
        """The video tokens of a generation."""
        return self._grid(request.num_frames, request.height, request.width)

    def _grid(self, num_frames: int, height: int, width: int) -> Grid:
        model = next(iter(self._models().values()))
        spatial = self._pipe.vae_scale_factor_spatial
        return token_grid(
            num_frames,
            height,
            width,
            vae_stride=(self._pipe.vae_scale_factor_temporal, spatial, spatial),
            patch_size=tuple(model.config.patch_size),
        )

    def encode(self, prompt: str) -> EncodedPrompt:
        """The prompt's tokens, after the pipeline's own cleaning; characters are those of the cleaned text."""
        key = (prompt, self._text_length)
        if key not in self._encoded:
            self._encoded[key] = self._encode(prompt)
        return self._encoded[key]

    def _encode(self, prompt: str) -> EncodedPrompt:
        tokenizer, text = self._pipe.tokenizer, prompt_clean(prompt)
        if not getattr(tokenizer, "is_fast", False):
            raise OptionError(
                f"{type(tokenizer).__name__} does not tell which characters a token stands for: load the "
                "pipeline's tokenizer with AutoTokenizer, which gives a fast one"
            )
        found = tokenizer(
            text,
            add_special_tokens=True,
            truncation=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        pieces = tokenizer.convert_ids_to_tokens(found["input_ids"])[:-1]  # </s> is last
        offsets = list(found["offset_mapping"])[:-1]
        # a lone word mark stands for white space, whatever characters it claims
        offsets = [
            (a, a) if piece == "\u2581" else (a, b)
            for piece, (a, b) in zip(pieces, offsets, strict=True)
        ]
        room, cut = self._text_length - 1, None
        if len(offsets) > room:
            cut = max((b for a, b in offsets[:room] if b > a), default=0)
            offsets = offsets[:room]
        return encoded_prompt(text, tuple((int(a), int(b)) for a, b in offsets), cut)

    def embed(self, prompts: Sequence[str]) -> Tensor:
        """What the denoisers read of prompts, in the text encoder's own dtype."""
        return _embed(self._pipe, prompts, self.device())

    def text_encoder(self) -> Any:
        """The module that reads prompts; None where the pipeline was loaded without."""
        return getattr(self._pipe, "text_encoder", None)

    def device(self) -> torch.device:
        """Where the pipeline computes."""
        found: torch.device = self._pipe._execution_device
        return found

    def attach(self, sink: Sink, hooks: HookSet, branches: tuple[str, ...], previews: bool) -> None:
        """Listen to the pipeline, and look at the queries and keys of every block."""
        pipe = self._pipe
        hooks.around(pipe, "encode_prompt", self._encoding)
        hooks.around(pipe, "prepare_latents", self._noise)
        hooks.around(pipe.video_processor, "postprocess_video", partial(self._decoded, sink))
        meshes = {name: parallel_mesh(model) for name, model in self._models().items()}
        if len({mesh is None for mesh in meshes.values()}) > 1:
            raise OptionError(
                "one noise expert runs under context parallelism and the other does not, so that their maps cannot "
                "be joined: enable it for both"
            )
        for name, model in self._models().items():
            reader = Reader(self.started, sink, name, branches, meshes[name])
            hooks.around(model, "cache_context", reader.announce)
            named = partial(bound(type(model).forward), model)  # its own may have been wrapped
            hooks.before_call(model, partial(reader.begin, named))
            hooks.finally_after(model, reader.end)
            for layer, block in enumerate(model.blocks):
                for attribute, kind in ATTENTIONS.items():
                    attention = getattr(block, attribute)
                    look = Look(reader, kind, layer, attention.heads)
                    hooks.before_call(attention, look.positions)
                    hooks.after(attention.norm_q, look.queries)
                    hooks.after(attention.norm_k, look.keys)
                    hooks.finally_after(attention, look.forget)

    @torch.no_grad()
    def observe(self, clip: Clip) -> None:
        """Ask the noise expert of each level once for each branch."""
        try:
            self._observe(clip)
        finally:
            self._pipe.maybe_free_model_hooks()

    def _observe(self, clip: Clip) -> None:
        denoiser = self.denoiser(clip)
        self._observing = True
        try:
            embeds = self._pipe.encode_prompt(
                prompt=clip.prompt,
                negative_prompt=clip.negative_prompt,
                do_classifier_free_guidance="uncond" in clip.branches,
                max_sequence_length=TEXT_LENGTH,
                device=self.device(),
            )
        finally:
            self._observing = False
        run = self._run
        assert run is not None  # encode_prompt was listened to
        run.seeds, run.branches = (clip.seed,), clip.branches
        run.sigmas = list(clip.sigmas)
        run.timesteps = [denoiser.timestep(level) for level in range(len(clip.sigmas))]
        with asking({"cond": clip.prompt, "uncond": clip.negative_prompt}):
            for level in range(len(clip.sigmas)):
                for branch, rows in zip(("cond", "uncond"), embeds, strict=True):
                    if branch in clip.branches:
                        denoiser.ask(level, rows, None, branch)

    def denoiser(self, clip: Clip) -> WanDenoiser:
        """The denoiser at the noise levels of a clip."""
        model = next(iter(self._models().values()))
        if model.config.in_channels != model.config.out_channels:
            raise OptionError(
                f"this transformer reads {model.config.in_channels} channels, an image beside the latents: use a "
                "text-to-video pipeline here"
            )
        grid = self._grid(*clip.video.shape[2:])  # says what is wrong with a size
        return WanDenoiser(self._pipe, clip, self.encode(clip.prompt), grid, self.device())

    def stage(self, hooks: HookSet) -> WanStage:
        """The pipeline's parts; who computes which branch is overheard."""
        return WanStage(self._pipe, self._models(), hooks)

    def draw(self, prompt: str, seed: int, *, progress_bar: bool = True, **asked: Any) -> Any:
        """Call the pipeline with a generator on the CPU."""
        pipe, generator = self._pipe, torch.Generator().manual_seed(seed)
        before = getattr(pipe, "_progress_bar_config", None)
        if not progress_bar:
            pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
        try:
            return pipe(prompt=prompt, generator=generator, **asked)
        finally:
            if before is not None:
                pipe.set_progress_bar_config(**before)
            elif not progress_bar:
                del pipe._progress_bar_config

    @contextmanager
    def one_noise_expert(self, which: str) -> Iterator[None]:
        """Inside, the boundary between the noise experts lies below or above all noise levels."""
        pipe = self._pipe
        before = pipe.config.get("boundary_ratio")
        if before is None or len(self._models()) < 2:
            raise OptionError(
                "this pipeline has one denoiser for all noise levels: nothing to force"
            )
        if not 0 <= before <= 1:
            raise OptionError("a noise expert is forced already: leave that block first")
        pipe.register_to_config(boundary_ratio={"high": -1.0, "low": 2.0}[which])
        try:
            yield
        finally:
            pipe.register_to_config(boundary_ratio=before)

    def provenance(self) -> dict[str, Any]:
        """What made the video."""
        pipe = self._pipe
        expands = bool(pipe.config.get("expand_timesteps", False))
        model = next(iter(self._models().values()))
        scheduler = pipe.scheduler
        return {
            "model": str(pipe.config.get("_name_or_path") or type(pipe).__name__),
            "pipeline": type(pipe).__name__,
            "fps": FRAMES_PER_SECOND[expands],
            "boundary_ratio": pipe.config.get("boundary_ratio"),
            "image_keys": "attended apart" if model.config.image_dim else "none",
            "scheduler": type(scheduler).__name__,
            "flow_shift": scheduler.config.get("flow_shift", scheduler.config.get("shift")),
            "device": str(self.device()),
            "dtype": str(model.dtype).removeprefix("torch."),
            "versions": {
                "wanviz": version("wanviz"),
                "torch": torch.__version__,
                "diffusers": version("diffusers"),
                "transformers": _version("transformers"),
            },
        }

    def started(
        self, latents: Tensor, context: dict[str, Any], name: str, embeds: Tensor
    ) -> tuple[_Run, Moment] | None:
        """A denoiser call that the pipeline announced; None where it is of no call that was seen to begin."""
        run = self._run
        if run is None:
            return None
        branch = context["branch"]
        if run.request is None:
            self._begin(run, latents, context, embeds)
        if branch == "cond" or "cond" not in self._request_of(run).branches:
            run.steps += 1
        step = run.steps if context.get("step_index") is None else int(context["step_index"])
        both = len(self._models()) == 2
        sigma = context.get("sigma")
        return run, Moment(
            step=step,
            sigma=run.sigmas[step] if sigma is None else float(sigma),
            timestep=run.timesteps[step],
            noise_expert={"transformer": "high", "transformer_2": "low"}[name] if both else "",
            branches=(branch,),
        )

    def _begin(self, run: _Run, latents: Tensor, context: dict[str, Any], embeds: Tensor) -> None:
        """The first denoiser call tells the sizes."""
        pipe, videos = self._pipe, latents.shape[0]
        spatial = pipe.vae_scale_factor_spatial
        self._text_length = int(embeds.shape[1])
        config = next(iter(self._models().values())).config
        if config.added_kv_proj_dim is not None and self._text_length != TEXT_LENGTH:
            raise CaptureError(
                f"this transformer takes the last {TEXT_LENGTH} rows of what it reads for words and the rest for an "
                f"image, and its prompt has {self._text_length} rows: leave max_sequence_length at {TEXT_LENGTH}"
            )
        if not run.timesteps:
            run.timesteps = [float(t) for t in pipe.scheduler.timesteps]
            run.sigmas = [float(s) for s in pipe.scheduler.sigmas]

        def of_each(values: list[str | None]) -> list[str | None]:
            times = videos // max(1, len(values))
            return [value for value in values for _ in range(times)]

        prompts, negatives = of_each(run.prompts), of_each(run.negatives)
        if run.branches is None:
            guided = bool(pipe.do_classifier_free_guidance)
            run.branches = ("cond", "uncond") if guided else ("cond",)
            scales = pipe.guidance_scale, getattr(pipe, "_guidance_scale_2", None)
        else:
            scales = None, None
        run.request = Request(
            prompts=tuple(
                {"cond": prompt, "uncond": negative}
                for prompt, negative in zip(prompts, negatives, strict=True)
            ),
            branches=run.branches,
            height=latents.shape[3] * spatial,
            width=latents.shape[4] * spatial,
            num_frames=(latents.shape[2] - 1) * pipe.vae_scale_factor_temporal + 1,
            num_inference_steps=int(context.get("num_inference_steps") or len(run.timesteps)),
            guidance=dict(zip(("guidance_scale", "guidance_scale_2"), scales, strict=True)),
            seeds=run.seeds or (None,) * videos,
            lengths={
                branch: tuple(n for n in found for _ in range(videos // max(1, len(found))))
                for branch, found in run.lengths.items()
            },
        )
        run.grid = self.grid(run.request)

    @staticmethod
    def _request_of(run: _Run) -> Request:
        assert run.request is not None
        return run.request

    def _encoding(self, args: Arguments, kwargs: Keywords) -> Callable[[Any], None] | None:
        """The pipeline encodes its prompt: a call begins. A callback that encodes on the way begins none."""
        drawing = getattr(self._pipe, "_current_timestep", None) is not None  # or broke off there
        if drawing and not self._observing:
            return None
        asked = bound(type(self._pipe).encode_prompt)(self._pipe, *args, **kwargs)
        texts, negatives = _asked_texts(self._pipe, args, kwargs)
        times = int(asked.get("num_videos_per_prompt") or 1)

        def encoded(result: Any) -> None:
            lengths = {}
            for branch, embeds in zip(("cond", "uncond"), result[:2], strict=False):
                if embeds is not None:
                    rows = (embeds != 0).any(dim=-1).sum(dim=-1).tolist()
                    lengths[branch] = tuple(int(count) for count in rows)
            videos = len(lengths["cond"])
            told = negatives * videos if len(negatives) == 1 else _each(negatives, times, videos)
            self._run = _Run(_each(texts, times, videos), told, lengths)

        return encoded

    def _noise(self, args: Arguments, kwargs: Keywords) -> None:
        """The pipeline draws its noise: which seeds, where they tell it."""
        asked = bound(type(self._pipe).prepare_latents)(self._pipe, *args, **kwargs)
        if self._run is not None and asked.get("latents") is None:
            self._run.seeds = _seeds(asked.get("generator"), asked["batch_size"])

    def _decoded(self, sink: Sink, args: Arguments, kwargs: Keywords) -> None:
        """The pipeline hands out the video, [b, 3, F, H, W] in [-1, 1]; what a callback decodes on the way is none."""
        if getattr(self._pipe, "_current_timestep", None) is not None:
            return
        video = kwargs.get("video", args[0] if args else None)
        if isinstance(video, Tensor) and video.ndim == 5:
            for number, frames in enumerate(video):
                sink.video(_Frames(frames), number)

    def _models(self) -> dict[str, Any]:
        """The transformers by their names."""
        both = {name: getattr(self._pipe, name, None) for name in ("transformer", "transformer_2")}
        return {name: plain(model) for name, model in both.items() if model is not None}


class WanDenoiser:
    """See `stage.Denoiser`."""

    def __init__(
        self, pipe: Any, clip: Clip, encoded: EncodedPrompt, grid: Grid, device: torch.device
    ) -> None:
        """Encode the video and draw its noise, from a generator of its own."""
        self.grid, self.encoded, self.sigmas = grid, encoded, clip.sigmas
        self.keys = None
        self._pipe, self._device = pipe, device
        with torch.no_grad():
            video = clip.video.to(device, pipe.vae.dtype)
            encoded_video = pipe.vae.encode(video).latent_dist.mode()
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1).to(encoded_video)
            for values in (pipe.vae.config.latents_mean, pipe.vae.config.latents_std)
        )
        self.latents = ((encoded_video - mean) / std).float()
        generator = torch.Generator().manual_seed(clip.seed)
        self._noise = torch.randn(self.latents.shape, generator=generator).to(device)

    def embeds(self, prompts: Sequence[str]) -> Tensor:
        """See `stage.Denoiser`."""
        return _embed(self._pipe, prompts, self._device)

    def noisy(self, level: int) -> Tensor:
        """See `stage.Denoiser`."""
        sigma = self.sigmas[level]
        return (1 - sigma) * self.latents + sigma * self._noise

    def timestep(self, level: int) -> float:
        """The timestep of a noise level, as the scheduler counts."""
        return float(self._pipe.scheduler.config.num_train_timesteps * self.sigmas[level])

    def velocity(
        self,
        level: int,
        embeds: Tensor,
        latents: Tensor | None = None,
        text: str | None = None,
    ) -> Tensor:
        """See `stage.Denoiser`."""
        with asking({"cond": self.encoded.text if text is None else text}):
            return self.ask(level, embeds, latents, "cond")

    def ask(self, level: int, embeds: Tensor, latents: Tensor | None, branch: str) -> Tensor:
        """As `velocity`, announced as one of the branches."""
        pipe, sigma = self._pipe, self.sigmas[level]
        boundary = pipe.config.get("boundary_ratio")
        low = boundary is not None and sigma < boundary
        expert = pipe.transformer_2 if low else pipe.transformer
        dtype = plain(expert).dtype
        noisy = (self.noisy(level) if latents is None else latents).to(dtype)
        rows = max(len(embeds), len(noisy))
        timestep = torch.full((rows,), self.timestep(level), device=self._device)
        if pipe.config.get("expand_timesteps"):
            timestep = timestep[:, None].expand(rows, self.grid.tokens)
        told = {"step_index": level, "sigma": sigma, "num_inference_steps": len(self.sigmas)}
        if not takes_any(plain(expert).cache_context):  # diffusers before 0.41
            told = {}
        with expert.cache_context(branch, **told):
            velocity: Tensor = expert(
                hidden_states=noisy.expand(rows, -1, -1, -1, -1),
                timestep=timestep,
                encoder_hidden_states=embeds.to(dtype),
                return_dict=False,
            )[0]
        return velocity.float()


class WanStage:
    """See `stage.Stage`."""

    def __init__(self, pipe: Any, models: dict[str, Any], hooks: HookSet) -> None:
        """Listen to the branches that are announced, and look at the size of what the denoisers are given."""
        self._pipe = pipe
        self._next: dict[str, Any] = {}  # announced, and not yet followed by a call
        self._context: dict[str, Any] = {}
        self._grid: tuple[int, int, int] | None = None
        self._texts: dict[str, tuple[str | None, ...]] = {}  # of the generation, by branch
        hooks.around(pipe, "encode_prompt", self._encoding)
        both = {"transformer": "high", "transformer_2": "low"}
        for model in models.values():
            hooks.around(model, "cache_context", self._announced)
            hooks.before_call(model, partial(self._begin, tuple(model.config.patch_size)))
        self.blocks = tuple(
            BlockPart(
                noise_expert=both[name] if len(models) == 2 else "",
                layer=layer,
                attentions={
                    kind: _attention(kind, getattr(block, attribute))
                    for attribute, kind in ATTENTIONS.items()
                },
                stream=block,
                choice=None,
                router=None,
                experts=(),
            )
            for name, model in models.items()
            for layer, block in enumerate(model.blocks)
        )

    def _encoding(self, args: Arguments, kwargs: Keywords) -> None:
        """A call of the pipeline begins; what a callback encodes on the way is not drawn."""
        if getattr(self._pipe, "_current_timestep", None) is None:
            prompts, negatives = _asked_texts(self._pipe, args, kwargs)
            self._texts = {"cond": tuple(prompts), "uncond": tuple(negatives)}

    def prompts(self, branch: str) -> tuple[str | None, ...]:
        """See `stage.Stage`."""
        if (asked := ASKED.get()) is not None:
            return (asked[branch],) if branch in asked else ()
        return self._texts.get(branch, ())

    def _announced(self, args: Arguments, kwargs: Keywords) -> None:
        self._next = {"name": kwargs.get("name", args[0] if args else None), **kwargs}

    def _begin(self, patch: tuple[int, int, int], args: Arguments, kwargs: Keywords) -> None:
        """A forward starts; one that no pipeline announced is of no branch."""
        self._context, self._next = self._next, {}
        latents = args[0] if args else kwargs["hidden_states"]
        f, h, w = (size // part for size, part in zip(latents.shape[2:], patch, strict=True))
        self._grid = f, h, w

    def grid(self) -> tuple[int, int, int]:
        """See `stage.Stage`."""
        assert self._grid is not None  # asked inside a forward
        return self._grid

    def rows(self, branch: str, batch: int) -> slice | None:
        """See `stage.Stage`."""
        return slice(None) if self._context.get("name") == branch else None

    def step(self) -> int | None:
        """See `stage.Stage`."""
        told = self._context.get("step_index")
        if told is not None:
            return int(told)
        if ASKED.get() is not None:
            return None
        now = getattr(self._pipe, "_current_timestep", None)
        if now is None:
            return None
        timesteps = [float(t) for t in self._pipe.scheduler.timesteps]
        return timesteps.index(float(now))


def _attention(kind: Kind, module: Any) -> AttentionPart:
    return AttentionPart(
        kind=kind,
        module=module,
        heads=module.heads,
        q=module.norm_q,
        k=module.norm_k,
        v=module.to_v,
        mix=module.to_out[0],
        apart=False,
        window=None,
        split=lambda tensor: tensor.unflatten(2, (module.heads, -1)).transpose(1, 2),
        text_keys=partial(_text_keys, module),
        with_bias=_with_bias,
    )


def _text_keys(module: Any, args: Arguments, kwargs: Keywords) -> int:
    """The block calls attention(x, read, mask, rotary): what is read of an image stands before the text."""
    read = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
    return int(read.shape[1]) if module.add_k_proj is None else TEXT_LENGTH


def _with_bias(args: Arguments, kwargs: Keywords, bias: Tensor) -> tuple[Arguments, Keywords]:
    """The mask, the third argument, is what is added to the logits."""
    given = [*args, *[None] * (3 - len(args))]
    given[2] = bias if given[2] is None else given[2] + bias
    return tuple(given), kwargs


class _Frames:
    """A decoded video that is handed on frame by frame, so that it is never held twice."""

    def __init__(self, video: Tensor) -> None:
        """[3, F, H, W] in [-1, 1]."""
        self._video = video

    def __len__(self) -> int:
        return self._video.shape[1]

    def __getitem__(self, frame: int) -> Tensor:
        """[H, W, 3] in [0, 1]."""
        picture = self._video[:, frame].detach().float()
        return (picture * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0)


@torch.no_grad()
def _embed(pipe: Any, prompts: Sequence[str], device: torch.device) -> Tensor:
    """The pipeline's own encoding of prompts, `[b, 512, c]`."""
    found: Tensor = pipe.encode_prompt(
        prompt=list(prompts),
        do_classifier_free_guidance=False,
        max_sequence_length=TEXT_LENGTH,
        device=device,
    )[0]
    return found


def _asked_texts(
    pipe: Any, args: Arguments, kwargs: Keywords
) -> tuple[list[str | None], list[str | None]]:
    """What `encode_prompt` was asked to encode: prompts and negative prompts; None for what came encoded."""
    asked = bound(type(pipe).encode_prompt)(pipe, *args, **kwargs)
    texts = _texts(asked.get("prompt"), asked.get("prompt_embeds"))
    negative = asked.get("negative_prompt")
    if asked.get("negative_prompt_embeds") is not None:
        return texts, [None] * len(asked["negative_prompt_embeds"])
    return texts, list(negative) if isinstance(negative, list) else [negative or ""]


def _texts(prompt: Any, embeds: Any) -> list[str | None]:
    if prompt is None:
        return [None] * (1 if embeds is None else len(embeds))
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _each(values: list[str | None], times: int, videos: int) -> list[str | None]:
    """One value per video: those of one prompt lie together."""
    if len(values) == videos:
        return values
    repeated = [value for value in values for _ in range(times)]
    if len(repeated) != videos:
        raise CaptureError(
            f"{len(values)} prompts with {times} videos each are not the {videos} videos that were encoded"
        )
    return repeated


def _seeds(
    generator: torch.Generator | list[torch.Generator] | None, videos: int
) -> tuple[int | None, ...]:
    """The seed of each video; of those that one generator draws, it draws the first one again."""
    each = generator if isinstance(generator, list) else [generator] * videos
    return tuple(None if one in each[:row] else _seed(one) for row, one in enumerate(each))


def _seed(generator: torch.Generator | None) -> int | None:
    """The seed of a generator that has drawn nothing yet; None where it does not tell the noise."""
    if generator is None:
        return None
    seed = generator.initial_seed()
    fresh = torch.Generator(generator.device).manual_seed(seed)
    return seed if torch.equal(fresh.get_state(), generator.get_state()) else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
