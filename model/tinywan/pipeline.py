"""From a prompt to a video: encode the words, walk from noise to latents, decode them.

The call follows diffusers' `WanPipeline`. What differs is said in model/README.md; the largest
difference is that guidance runs both branches as one batch, unless it is asked not to.
"""

import itertools
import math
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from tinywan import checkpoint
from tinywan.dit import Context, DiT
from tinywan.errors import ConfigError, DeviceError, PromptError
from tinywan.flow import NUM_TRAIN_TIMESTEPS
from tinywan.keyframes import Keyframes, encode_keyframes, guidance_by_frame
from tinywan.presets import ModelConfig, preset
from tinywan.sampling import make_sampler, sigmas_for
from tinywan.text import TextEncoder, UnigramTokenizer
from tinywan.vae import CausalVAE, check_video_size

OVERLAP = 5  # pixel frames, two latent ones, that a window of `stream` shares with the one before
GUIDANCE_SCALE = 4.0  # unless the caller says otherwise

NoiseExpert = Literal["high", "low"]
Branch = Literal["cond", "uncond"]
StepCallback = Callable[["TextToVideoPipeline", int, float, dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class GenerationRequest:
    """What was asked of the pipeline, for those who watch it."""

    prompts: tuple[str | None, ...]  # None where prompt_embeds were given
    negative_prompts: tuple[str | None, ...]
    height: int  # pixels
    width: int
    num_frames: int  # pixel frames, 1 + 4k
    num_inference_steps: int
    guidance_scale: float  # of the high-noise expert
    guidance_scale_2: float  # of the low-noise expert
    seed: int | None
    keyframes: tuple[int, ...] = ()  # pixel frames that were given
    prompt_lengths: tuple[int, ...] | None = None  # rows of given prompt_embeds that are not zero
    negative_prompt_lengths: tuple[int, ...] | None = None


@dataclass(frozen=True)
class DenoiserCall:
    """Which call of the denoiser is under way, for those who watch it."""

    step: int  # 0-based
    sigma: float  # noise level in [0, 1]
    timestep: float  # 1000·sigma
    noise_expert: NoiseExpert
    branches: tuple[Branch, ...]  # the rows of the batch are split evenly among them, in order


@dataclass(frozen=True)
class VideoOutput:
    """What the pipeline returns.

    Args:
        frames: float32 numpy `[b, F, H, W, 3]` in [0, 1]; or latents, torch `[b, c, f, h, w]`.
    """

    frames: Any


class TextToVideoPipeline:
    """A text-to-video model, ready to draw.

    Args:
        config: sizes and defaults.
        tokenizer: splits prompts.
        text_encoder: reads them.
        vae: between pixels and latents; stays in float32.
        transformer: the denoiser of high noise levels.
        transformer_2: the denoiser of low noise levels; may be the same object.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokenizer: UnigramTokenizer,
        text_encoder: TextEncoder,
        vae: CausalVAE,
        transformer: DiT,
        transformer_2: DiT,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.text_encoder = text_encoder.eval()
        self.vae = vae.eval()
        self.transformer = transformer.eval()
        self.transformer_2 = transformer_2.eval()
        self.scheduler = make_sampler(config.sampler, config.shift)
        names = ("prompt_embeds", "latents", "noise_pred", "frames")
        self.taps = nn.ModuleDict({name: nn.Identity() for name in names})
        self.current_request: GenerationRequest | None = None
        self.current_call: DenoiserCall | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> "TextToVideoPipeline":
        """Load a checkpoint; without a path the one that comes with the package.

        Args:
            path: folder that `save_pretrained` or training wrote.
            device: "cpu", "cuda", "cuda:1", "mps", …
            dtype: of the text encoder and the denoiser.

        Returns:
            A pipeline.

        Raises:
            CheckpointError: where the folder is missing, damaged or foreign.
            DeviceError: where this machine has no such device.
        """
        find_device(device)  # before anything is read
        folder = checkpoint.SHIPPED if path is None else Path(path)
        config, sums = checkpoint.read_config(folder)
        tokenizer = checkpoint.load_tokenizer(folder, sums)
        pipe = cls._build(config, tokenizer, "transformer_2.safetensors" in sums)
        for name, module in pipe._modules().items():
            checkpoint.load_module(folder, name, module, sums)
        return pipe.to(device, dtype)

    @classmethod
    def from_preset(cls, name: str, seed: int = 0) -> "TextToVideoPipeline":
        """Random weights at a preset's sizes, with the shipped tokenizer.

        Args:
            name: "debug", "tiny", "small".
            seed: of the weights; the global generator is left as it was.

        Returns:
            A pipeline in float32 on the CPU.
        """
        config = preset(name)
        tokenizer = UnigramTokenizer.from_pretrained(checkpoint.SHIPPED)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            pipe = cls._build(checkpoint.fitted(config, tokenizer), tokenizer, two_experts=True)
            for transformer in (pipe.transformer, pipe.transformer_2):
                nn.init.normal_(transformer.proj_out.weight, std=0.02)  # else it stays silent
        return pipe

    @classmethod
    def _build(
        cls, config: ModelConfig, tokenizer: UnigramTokenizer, two_experts: bool
    ) -> "TextToVideoPipeline":
        transformer = DiT(config.dit)
        return cls(
            config,
            tokenizer,
            TextEncoder(config.text),
            CausalVAE(config.vae),
            transformer,
            DiT(config.dit) if two_experts else transformer,
        )

    def _modules(self) -> dict[str, nn.Module]:
        modules: dict[str, nn.Module] = {
            "text_encoder": self.text_encoder,
            "vae": self.vae,
            "transformer": self.transformer,
        }
        if self.transformer_2 is not self.transformer:
            modules["transformer_2"] = self.transformer_2
        return modules

    def save_pretrained(self, path: str | Path, dtype: torch.dtype = torch.float16) -> None:
        """Write a checkpoint that `from_pretrained` reads.

        Args:
            path: folder, made if missing.
            dtype: in which the weights are stored.
        """
        checkpoint.save_checkpoint(Path(path), self.config, self.tokenizer, self._modules(), dtype)

    def to(
        self, device: str | torch.device, dtype: torch.dtype | None = None
    ) -> "TextToVideoPipeline":
        """Move the model.

        Args:
            device: "cpu", "cuda", …
            dtype: of text encoder and denoiser; None keeps it.

        Returns:
            This pipeline.

        Raises:
            DeviceError: where this machine has no such device.
        """
        found = find_device(device)
        dtype = self.dtype if dtype is None else dtype
        for name, module in self._modules().items():
            module.to(found, torch.float32 if name == "vae" else dtype)
        return self

    @property
    def device(self) -> torch.device:
        """Where the denoiser is."""
        return self.transformer.proj_out.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """In which the denoiser computes."""
        return self.transformer.proj_out.weight.dtype

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Tensor:
        """What the denoiser reads of the prompts.

        Args:
            prompts: texts in English or Chinese.

        Returns:
            `[b, p, c]` prompt_embeds; rows after end-of-text are zero.
        """
        ids, mask = self.tokenizer(list(prompts))
        return self.text_encoder(ids.to(self.device), mask.to(self.device))

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = GUIDANCE_SCALE,
        guidance_scale_2: float | None = None,
        keyframes: Keyframes | None = None,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        output_type: Literal["np", "latent"] = "np",
        callback_on_step_end: StepCallback | None = None,
        progress_bar: bool = True,
        batch_cond_uncond: bool = True,
    ) -> VideoOutput:
        """Draw a video, or one for each of several prompts.

        Args:
            prompt: what to draw.
            negative_prompt: what to stay away from, nothing by default; used where guidance is on, so not in
                latent frames that a keyframe is given for.
            prompt_embeds: `[b, p, c]` that `encode_prompt` made, in place of prompt: the text encoder is not asked.
            negative_prompt_embeds: the same in place of negative_prompt; one row for all videos, or one for each.
            height: pixels, a multiple of 8; the model's own by default, as are the next three.
            width: pixels, a multiple of 8.
            num_frames: 1 + 4k.
            num_inference_steps: calls of the denoiser.
            guidance_scale: of the high-noise expert; 1 is off (arXiv 2207.12598), as it always is in latent
                frames that a keyframe is given for, see `guidance_by_frame`.
            guidance_scale_2: of the low-noise expert; as the other by default.
            keyframes: pictures `[H, W, 3]` by pixel frame that the clip has to pass through; -1 is
                the last frame, {0: picture} is image-to-video.
            seed: for the same video again; instead of `generator`.
            generator: source of the first noise, on the CPU or on the device.
            output_type: "np" for pixels, "latent" for normalised latents.
            callback_on_step_end: called as `f(pipe, step, timestep, {"latents": …})` after each
                step; latents in the dict that it returns replace the current ones.
            progress_bar: show one.
            batch_cond_uncond: with guidance, ask the denoiser for the prompt and the negative prompt in one batch;
                False asks one after the other, in about half of the memory, and draws the same but for rounding.

        Returns:
            The frames.

        Raises:
            PromptError: for an empty prompt, what is no text, embeddings that do not fit this model, or a text and
                its embeddings at once.
            ConfigError: for sizes, steps, keyframes, a seed or a generator that cannot work.
        """
        request = self._request(
            prompt,
            negative_prompt=negative_prompt,
            prompt_embeds=prompt_embeds,
            negative_prompt_embeds=negative_prompt_embeds,
            height=height,
            width=width,
            num_frames=num_frames,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            guidance_scale_2=guidance_scale_2,
            keyframes=keyframes,
            seed=seed,
        )
        if generator is not None and not isinstance(generator, torch.Generator):
            raise ConfigError(
                f"generator is a {type(generator).__name__}: give one torch.Generator, which draws the noise of "
                "all videos in turn"
            )
        if seed is not None and generator is not None:
            raise ConfigError("seed and generator were both given: use one of them")
        if output_type not in ("np", "latent"):
            raise ConfigError(f"output_type={output_type!r}: use 'np' or 'latent'")
        self.current_request = request
        try:
            condition = self._condition(request, keyframes)
            noise = self._noise(request, generator)
            embeds = self._embeds(request, prompt_embeds, negative_prompt_embeds)
            latents = self._denoise(
                request,
                embeds,
                noise,
                condition,
                callback_on_step_end,
                progress_bar,
                batch_cond_uncond,
            )
            if output_type == "latent":
                return VideoOutput(latents)
            video = (self.vae.decode(latents) + 1) / 2
            frames = self.taps["frames"](rearrange(video.clamp(0, 1), "b c F H W -> b F H W c"))
            return VideoOutput(np.ascontiguousarray(frames.cpu().numpy()))
        finally:
            self.current_request = self.current_call = None

    def stream(
        self,
        prompt: str | Sequence[str],
        *,
        num_frames: int,
        seed: int | None = None,
        **options: Any,
    ) -> Iterator[NDArray[np.float32]]:
        """Draw a video of any length, window by window, in the memory of one window.

        Each window begins with the last five frames of the one before, two of them as keyframes.

        Args:
            prompt: what to draw; or a story, a text for each window, of which the last goes on to the end.
            num_frames: pixel frames in all, any number from 1 on.
            seed: for the same video again.
            options: of a call, as for one window: `height`, `guidance_scale`, `keyframes` …; the
                last are of the first window.

        Returns:
            An iterator that draws a window whenever it is asked for the next: float32 `[frames, H, W, 3]` in
            [0, 1], the frames that follow those before.

        Raises:
            PromptError: for an empty prompt, or more texts than there are windows.
            ConfigError: where the model was not trained with keyframes, or its windows are no longer than what
                they share, or for bad options; at once, before anything is drawn.
        """
        unfit = {"generator", "output_type", "prompt_embeds"} & options.keys()
        total = _whole("num_frames", num_frames)
        story = _texts("prompt", prompt)
        if unfit or total is None or total < 1:
            raise ConfigError(
                "stream draws num_frames=1 or more, as pixels from a seed; found "
                f"num_frames={num_frames}, options {sorted(unfit)}"
            )
        how = {"callback_on_step_end", "progress_bar", "batch_cond_uncond"}
        asked = {name: value for name, value in options.items() if name not in how}
        requests = [self._request(text, seed=seed, **asked) for text in story or ("",)]
        window, windows = requests[0], 1
        if total > window.num_frames:
            self._check_keyframes()
            if window.num_frames <= OVERLAP:
                raise ConfigError(
                    f"this model draws {window.num_frames} frames at a time, and every window of a longer clip "
                    f"begins with the last {OVERLAP} of the one before: use num_frames={window.num_frames} or less"
                )
            windows += math.ceil((total - window.num_frames) / (window.num_frames - OVERLAP))
        if len(story) > windows:
            raise PromptError(
                f"{len(story)} texts for {total} frames, which are {windows} windows, the first of {window.num_frames} frames "
                f"and each later one of {window.num_frames - OVERLAP} new ones: use fewer texts, or more frames"
            )
        self._condition(window, options.get("keyframes"))  # refuses pictures that do not fit
        return self._windows(story, total, window.seed, options)

    def _windows(
        self,
        story: tuple[str | None, ...],
        num_frames: int,
        seed: int | None,
        options: dict[str, Any],
    ) -> Iterator[NDArray[np.float32]]:
        """What `stream` gives, once it is known to work."""
        generator = torch.Generator()
        generator.manual_seed(seed) if seed is not None else generator.seed()
        keyframes: Keyframes | None = options.pop("keyframes", None)
        old = 0  # frames of a window that the one before has shown
        for number in itertools.count():
            prompt = story[min(number, len(story) - 1)]
            (clip,) = self(prompt, generator=generator, keyframes=keyframes, **options).frames
            new = clip[old:][:num_frames]
            num_frames -= len(new)
            keyframes, old = {0: clip[-OVERLAP], OVERLAP - 1: clip[-1]}, OVERLAP
            yield new
            if num_frames <= 0:
                return

    def _check_keyframes(self) -> None:
        wanted = self.vae.stride[0] + self.vae.config.latent_channels
        if self.config.dit.condition_channels != wanted:
            raise ConfigError(
                f"this model ({self.config.name}) was not trained with keyframes "
                f"(condition_channels={self.config.dit.condition_channels}, not {wanted}): use a "
                "checkpoint that was, or train one"
            )

    def _condition(self, request: GenerationRequest, keyframes: Keyframes | None) -> Tensor | None:
        """`[1, condition_channels, f, h, w]`, the same for all prompts; None without keyframes."""
        if not keyframes:
            return None
        self._check_keyframes()
        return encode_keyframes(
            self.vae, keyframes, request.num_frames, request.height, request.width
        )

    def _request(
        self,
        prompt: str | Sequence[str] | None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        height: int | None = None,
        width: int | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float = GUIDANCE_SCALE,
        guidance_scale_2: float | None = None,
        keyframes: Keyframes | None = None,
        seed: int | None = None,
    ) -> GenerationRequest:
        """What is asked, with the model's defaults, once it is known to work."""
        prompts, lengths = self._asked("prompt", prompt, prompt_embeds)
        if not prompts or not all(text is None or _is_visible(text) for text in prompts):
            raise PromptError(
                "the prompt is empty: say what to draw, e.g. "
                "'a woman in a red qipao walks in the rain with an umbrella'"
            )
        negatives, negative_lengths = self._asked(
            "negative_prompt", negative_prompt, negative_prompt_embeds
        )
        if len(negatives) == 1 and (negative_prompt is None or isinstance(negative_prompt, str)):
            negatives *= len(prompts)
            negative_lengths = negative_lengths and negative_lengths * len(prompts)
        if len(negatives) != len(prompts):
            raise PromptError(
                f"{len(prompts)} prompts and {len(negatives)} negative prompts: give one for "
                "each, or a single one for all"
            )
        height, width, num_frames, num_inference_steps, seed = (
            _whole(name, number)
            for name, number in (
                ("height", height),
                ("width", width),
                ("num_frames", num_frames),
                ("num_inference_steps", num_inference_steps),
                ("seed", seed),
            )
        )
        if seed is not None and not 0 <= seed < 2**63:
            raise ConfigError(f"seed={seed} cannot seed a generator: use 0 to 2**63 - 1, e.g. 7")
        if keyframes is not None:
            _check_mapping(keyframes)
        config = self.config
        request = GenerationRequest(
            prompts=prompts,
            negative_prompts=negatives,
            height=config.height if height is None else height,
            width=config.width if width is None else width,
            num_frames=config.num_frames if num_frames is None else num_frames,
            num_inference_steps=(
                config.num_inference_steps if num_inference_steps is None else num_inference_steps
            ),
            guidance_scale=guidance_scale,
            guidance_scale_2=guidance_scale if guidance_scale_2 is None else guidance_scale_2,
            seed=seed,
            keyframes=tuple(keyframes or ()),
            prompt_lengths=lengths,
            negative_prompt_lengths=negative_lengths,
        )
        check_video_size(request.num_frames, request.height, request.width)
        sigmas_for(request.num_inference_steps, config.shift)  # refuses steps that make no video
        for name in ("guidance_scale", "guidance_scale_2"):
            scale = getattr(request, name)
            if not (isinstance(scale, Real) and math.isfinite(scale) and float(scale) >= 1):
                raise ConfigError(f"{name}={scale!r} cannot guide: use 1 (off) or more, e.g. 4")
        return request

    def _asked(
        self, name: str, text: Any, embeds: Any
    ) -> tuple[tuple[str | None, ...], tuple[int, ...] | None]:
        """Texts; where embeddings came in their place None for each, and how many rows of each are not zero."""
        if embeds is None:
            nothing = name == "negative_prompt" and text is None
            return _texts(name, "" if nothing else text), None
        if text is not None:
            raise PromptError(f"{name} and {name}_embeds were both given: use one of them")
        rows, width = self.config.dit.text_len, self.config.dit.text_dim
        if not (
            isinstance(embeds, Tensor)
            and embeds.is_floating_point()
            and embeds.ndim == 3
            and len(embeds) > 0
            and embeds.shape[1:] == (rows, width)
        ):
            found = tuple(embeds.shape) if isinstance(embeds, Tensor) else type(embeds).__name__
            raise PromptError(
                f"{name}_embeds is {found}: this model reads floats [b, {rows}, {width}], as encode_prompt gives them"
            )
        lengths = embeds.any(-1).sum(-1).tolist()
        if not embeds.isfinite().all():
            raise PromptError(f"{name}_embeds holds values that are not finite")
        if name == "prompt" and not all(lengths):
            raise PromptError("prompt_embeds has a prompt whose rows are all zero: nothing to draw")
        return (None,) * len(embeds), tuple(lengths)

    def _embeds(
        self, request: GenerationRequest, given: Tensor | None, negative: Tensor | None
    ) -> Tensor:
        """`[b, p, c]` of the prompts; where guidance is on, those of the negative prompts behind them."""
        parts = [(request.prompts, given)]
        if max(request.guidance_scale, request.guidance_scale_2) > 1:
            parts.append((request.negative_prompts, negative))
        found = [
            self.encode_prompt([text or "" for text in texts])
            if embeds is None
            else embeds.to(self.device, self.dtype).expand(len(texts), -1, -1)
            for texts, embeds in parts
        ]
        return self.taps["prompt_embeds"](torch.cat(found))

    def _noise(self, request: GenerationRequest, generator: torch.Generator | None) -> Tensor:
        if request.seed is not None:
            generator = torch.Generator().manual_seed(request.seed)
        stride_f, stride_h, stride_w = self.vae.stride
        shape = (
            len(request.prompts),
            self.config.dit.in_channels,
            (request.num_frames - 1) // stride_f + 1,
            request.height // stride_h,
            request.width // stride_w,
        )
        source = "cpu" if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=source).to(self.device)

    def _denoise(
        self,
        request: GenerationRequest,
        embeds: Tensor,
        latents: Tensor,
        condition: Tensor | None,
        callback: StepCallback | None,
        progress_bar: bool,
        batch_cond_uncond: bool,
    ) -> Tensor:
        self.scheduler.set_timesteps(request.num_inference_steps, self.device)
        scales = {"high": request.guidance_scale, "low": request.guidance_scale_2}
        contexts: dict[DiT, Context] = {}  # a prompt is read once by each noise expert
        sigmas = self.scheduler.sigmas.tolist()
        timesteps = self.scheduler.timesteps.tolist()
        for step, timestep in enumerate(
            tqdm(timesteps, desc="denoising", unit="step", disable=not progress_bar)
        ):
            high = timestep >= self.config.boundary_ratio * NUM_TRAIN_TIMESTEPS
            expert: NoiseExpert = "high" if high else "low"
            guided = scales[expert] > 1
            branches: tuple[Branch, ...] = ("cond", "uncond") if guided else ("cond",)
            batches = [branches] if batch_cond_uncond else [(branch,) for branch in branches]
            calls = [DenoiserCall(step, sigmas[step], timestep, expert, part) for part in batches]
            self.current_call = calls[0]
            latents = self.taps["latents"](latents)
            transformer = self.transformer if high else self.transformer_2
            if transformer not in contexts:
                contexts[transformer] = transformer.read(embeds)
            answers = []
            for call in calls:
                self.current_call = call
                rows = len(call.branches) * len(request.prompts)
                first = 0 if "cond" in call.branches else len(request.prompts)
                answer = transformer(
                    latents.repeat(len(call.branches), 1, 1, 1, 1).to(self.dtype),
                    torch.full((1,), timestep, device=self.device),
                    contexts[transformer].rows(slice(first, first + rows)),
                    None if condition is None else condition.expand(rows, -1, -1, -1, -1),
                )
                answers.append(answer.float())
            predicted = torch.cat(answers)
            if guided:
                cond, uncond = predicted.chunk(2)
                scale = scales[expert]
                strength = scale if condition is None else guidance_by_frame(scale, condition)
                predicted = uncond + strength * (cond - uncond)
            predicted = self.taps["noise_pred"](predicted)
            latents = self.scheduler.step(predicted, step, latents)
            if callback is not None:
                changed = callback(self, step, timestep, {"latents": latents}) or {}
                latents = changed.get("latents", latents)
        return latents


def _texts(name: str, given: Any) -> tuple[str, ...]:
    """One text or several as a tuple."""
    texts = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    for text in texts:
        if not isinstance(text, str):
            found = f"{name}={text!r} is" if text is given else f"{name} holds {text!r}, which is"
            raise PromptError(f"{found} no text: give a text, or one for each video")
    return texts


def _check_mapping(keyframes: Any) -> None:
    """Whether pictures are given by pixel frame; whether they fit, `encode_keyframes` says."""
    if not isinstance(keyframes, Mapping):
        raise ConfigError(
            f"keyframes is a {type(keyframes).__name__}: give pictures by pixel frame, e.g. {{0: picture}}"
        )
    for frame in keyframes:
        if isinstance(frame, bool) or not isinstance(frame, Integral):
            raise ConfigError(
                f"there is a keyframe for frame {frame!r}: name frames by whole numbers, e.g. {{0: picture}}"
            )


def _whole(name: str, number: Any) -> int | None:
    """A whole number, NumPy's too, as Python's; None stays None."""
    if number is None:
        return None
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise ConfigError(f"{name}={number!r} is not a whole number: use one, e.g. {_USUAL[name]}")
    return int(number)


_USUAL = {"height": 96, "width": 96, "num_frames": 17, "num_inference_steps": 20, "seed": 7}


def _is_visible(text: str) -> bool:
    """Whether anything is left to read without spaces, control and format characters."""
    return any(not c.isspace() and unicodedata.category(c) not in ("Cc", "Cf") for c in text)


def find_device(device: str | torch.device) -> torch.device:
    """Check that this machine has a device.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps", …

    Returns:
        The device.

    Raises:
        DeviceError: naming those that there are.
    """
    have = ["cpu"]
    if torch.cuda.is_available():
        have += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        have.append("mps")
    if str(device) not in have:
        raise DeviceError(f"this machine has no device {str(device)!r}: use {', '.join(have)}")
    return torch.device(device)
