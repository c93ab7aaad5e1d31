import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from tinywan.dit import DiT
from tinywan.errors import ConfigError, DeviceError, PromptError
from tinywan.pipeline import OVERLAP, DenoiserCall, GenerationRequest, TextToVideoPipeline
from tinywan.text import PromptTruncatedWarning

PROMPT = "a woman in a red qipao"
OTHER = "一只狗在雪里奔跑"
BATCHED = 1e-4  # products of another batch size are rounded otherwise
HALF_PRECISION = 0.1  # bfloat16 denoiser against float32, relative
QUICK = {"num_frames": 5, "num_inference_steps": 3, "progress_bar": False}


@pytest.fixture(scope="module")
def pipe() -> TextToVideoPipeline:
    return TextToVideoPipeline.from_preset("debug", seed=2)


def draw(pipe, prompt=PROMPT, **options) -> torch.Tensor:
    """Latents of a short clip; seed 7 unless told otherwise."""
    if "generator" not in options:
        options.setdefault("seed", 7)
    return pipe(prompt, **{**QUICK, "output_type": "latent", **options}).frames


def calls_of(pipe, **options) -> list[DenoiserCall]:
    """What `current_call` says at every call of a denoiser."""
    calls, hooks = [], []
    for transformer in {pipe.transformer, pipe.transformer_2}:
        hooks.append(
            transformer.register_forward_pre_hook(lambda *_: calls.append(pipe.current_call))
        )
    try:
        draw(pipe, **options)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def test_the_same_seed_draws_the_same_bits(pipe):
    assert torch.equal(draw(pipe), draw(pipe))


def test_another_seed_another_prompt_and_another_negative_prompt_draw_another_video(pipe):
    plain = draw(pipe)
    for options in ({"seed": 8}, {"prompt": OTHER}, {"negative_prompt": "snow"}):
        assert (draw(pipe, **options) - plain).abs().max() > 1e-4


def test_frames_are_float32_pixels_between_0_and_1(pipe):
    frames = pipe(PROMPT, seed=1, num_inference_steps=2, progress_bar=False).frames
    assert isinstance(frames, np.ndarray)
    assert frames.dtype == np.float32
    assert frames.shape == (1, 9, 32, 32, 3)  # the preset's own size
    assert frames.flags["C_CONTIGUOUS"]
    assert 0 <= frames.min() < frames.max() <= 1


def test_frames_are_the_decoded_latents(pipe):
    frames = pipe(PROMPT, seed=7, **QUICK).frames
    expected = ((pipe.vae.decode(draw(pipe)) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(
        torch.from_numpy(frames), expected.permute(0, 2, 3, 4, 1), atol=1e-6, rtol=0
    )


def test_sizes_may_differ_from_the_presets(pipe):
    assert draw(pipe, height=40, width=24, num_frames=13).shape == (1, 16, 4, 5, 3)


def test_several_prompts_draw_what_each_draws_alone(pipe):
    together = draw(pipe, [PROMPT, OTHER], generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)  # the noise of the second follows the first's
    alone = torch.cat([draw(pipe, text, generator=generator) for text in (PROMPT, OTHER)])
    torch.testing.assert_close(together, alone, atol=BATCHED, rtol=0)


def test_each_of_several_prompts_may_have_its_negative_prompt(pipe):
    options = {"generator": torch.Generator().manual_seed(3)}
    together = draw(pipe, [PROMPT, OTHER], negative_prompt=["snow", "night"], **options)
    generator = torch.Generator().manual_seed(3)
    alone = [
        draw(pipe, text, negative_prompt=negative, generator=generator)
        for text, negative in ((PROMPT, "snow"), (OTHER, "night"))
    ]
    torch.testing.assert_close(together, torch.cat(alone), atol=BATCHED, rtol=0)


def test_a_generator_does_what_its_seed_does(pipe):
    assert torch.equal(draw(pipe, generator=torch.Generator().manual_seed(7)), draw(pipe))


def test_a_seeded_run_leaves_the_global_generators_alone(pipe):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    draw(pipe)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_without_a_seed_the_global_generator_decides(pipe):
    torch.manual_seed(7)
    first = draw(pipe, seed=None)
    assert not torch.equal(draw(pipe, seed=None), first)
    torch.manual_seed(7)
    assert torch.equal(draw(pipe, seed=None), first)


def test_guidance_leads_from_the_negative_prompt_towards_the_prompt(pipe):
    conditional, unconditional = [], []

    def split(module, args, output):
        half = output.chunk(2)
        conditional.append(half[0])
        unconditional.append(half[1])

    seen = []
    hooks = [
        pipe.taps["noise_pred"].register_forward_hook(lambda m, a, output: seen.append(output)),
        *(
            transformer.register_forward_hook(split)
            for transformer in (pipe.transformer, pipe.transformer_2)
        ),
    ]
    draw(pipe, guidance_scale=3.0, guidance_scale_2=5.0)
    for hook in hooks:
        hook.remove()
    for scale, found, cond, uncond in zip((3, 5, 5), seen, conditional, unconditional, strict=True):
        torch.testing.assert_close(found, uncond + scale * (cond - uncond), atol=1e-5, rtol=0)


def test_with_guidance_both_branches_run_as_one_batch(pipe):
    assert {call.branches for call in calls_of(pipe)} == {("cond", "uncond")}


def test_one_branch_after_the_other_draws_what_one_batch_does_in_half_of_its_rows(pipe):
    rows = []
    hooks = [
        transformer.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
        for transformer in (pipe.transformer, pipe.transformer_2)
    ]
    options = {"prompt": [PROMPT, OTHER], "negative_prompt": ["snow", "night"]}
    together = draw(pipe, **options)
    apart = draw(pipe, batch_cond_uncond=False, **options)
    for hook in hooks:
        hook.remove()
    assert rows == [4, 4, 4, 2, 2, 2, 2, 2, 2]
    torch.testing.assert_close(apart, together, atol=BATCHED, rtol=0)


def test_one_branch_after_the_other_is_told_call_by_call(pipe):
    calls = calls_of(pipe, batch_cond_uncond=False, guidance_scale=1.0, guidance_scale_2=4.0)
    assert [(call.step, call.noise_expert, call.branches) for call in calls] == [
        (0, "high", ("cond",)),
        *((step, "low", (branch,)) for step in (1, 2) for branch in ("cond", "uncond")),
    ]
    assert len({id(call) for call in calls}) == len(calls)


def test_without_guidance_only_the_prompt_is_asked(pipe):
    calls = calls_of(pipe, guidance_scale=1.0)
    assert {call.branches for call in calls} == {("cond",)}
    plain = draw(pipe, guidance_scale=1.0)
    assert torch.equal(draw(pipe, guidance_scale=1.0, negative_prompt="snow"), plain)


def test_each_noise_expert_has_its_own_guidance(pipe):
    calls = calls_of(pipe, guidance_scale=1.0, guidance_scale_2=4.0)
    asked = [(call.noise_expert, call.branches) for call in calls]
    assert asked == [("high", ("cond",)), *[("low", ("cond", "uncond"))] * 2]


def test_noise_experts_switch_at_the_boundary(pipe):
    calls = calls_of(pipe, num_inference_steps=8)
    assert [call.step for call in calls] == list(range(8))
    for call in calls:
        assert call.noise_expert == ("high" if call.sigma >= 0.875 else "low")
        assert call.timestep == pytest.approx(1000 * call.sigma)
    assert {call.noise_expert for call in calls} == {"high", "low"}


def test_each_noise_expert_is_asked_on_its_side_alone(pipe):
    asked = []
    hooks = [
        transformer.register_forward_pre_hook(
            lambda module, args, name=name: asked.append((name, pipe.current_call.noise_expert))
        )
        for name, transformer in (("high", pipe.transformer), ("low", pipe.transformer_2))
    ]
    draw(pipe)
    for hook in hooks:
        hook.remove()
    assert asked == [("high", "high"), ("low", "low"), ("low", "low")]


def test_a_prompt_is_read_once_by_each_noise_expert(pipe):
    read = []
    for name in ("transformer", "transformer_2"):
        block = getattr(pipe, name).blocks[0]
        block.cross_attn.to_k.register_forward_hook(lambda *_, name=name: read.append(name))
    pipe("a dog", num_inference_steps=6, seed=1, progress_bar=False)
    assert sorted(read) == ["transformer", "transformer_2"]


def test_no_negative_prompt_is_an_empty_one(pipe):
    first, second = (
        pipe("a dog", negative_prompt=nothing, seed=1, progress_bar=False).frames.tobytes()
        for nothing in (None, "")
    )
    assert first == second


def test_given_embeddings_draw_what_their_prompts_draw_and_no_text_encoder_is_asked(pipe):
    prompts, negatives = [PROMPT, OTHER], ["snow", "rain"]
    asked = {"generator": None, "seed": 7}
    plain = draw(pipe, prompts, negative_prompt=negatives, **asked)
    embeds, negative = pipe.encode_prompt(prompts), pipe.encode_prompt(negatives)

    def refuse(*_):
        raise AssertionError("the text encoder was asked")

    hook = pipe.text_encoder.register_forward_pre_hook(refuse)
    try:
        given = {"prompt_embeds": embeds, "negative_prompt_embeds": negative}
        assert torch.equal(draw(pipe, None, **given, **asked), plain)
        one = {"prompt_embeds": embeds, "negative_prompt_embeds": negative[:1]}
        for_all = draw(pipe, None, **one, **asked)
    finally:
        hook.remove()
    assert torch.equal(for_all, draw(pipe, prompts, negative_prompt="snow", **asked))
    assert torch.equal(
        draw(pipe, None, prompt_embeds=embeds, negative_prompt="snow", **asked), for_all
    )


def test_the_request_tells_how_much_of_given_embeddings_is_no_padding(pipe):
    requests = []

    def callback(pipe, step, timestep, tensors):
        requests.append(pipe.current_request)
        return tensors

    embeds = pipe.encode_prompt([PROMPT])
    draw(pipe, None, prompt_embeds=embeds, callback_on_step_end=callback)
    assert requests[0].prompts == (None,)
    assert requests[0].prompt_lengths == (len(pipe.tokenizer.encode(PROMPT).ids),)
    assert requests[0].negative_prompts == ("",)
    assert requests[0].negative_prompt_lengths is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": PROMPT, "prompt_embeds": torch.ones(1, 96, 64)}, "both given"),
        ({"prompt_embeds": torch.ones(96, 64)}, r"\(96, 64\): this model reads floats \[b, "),
        ({"prompt_embeds": torch.ones(1, 5, 64)}, "this model reads floats"),
        ({"prompt_embeds": [PROMPT]}, "is list: this model reads floats"),
        ({"prompt_embeds": "like"}, "rows are all zero"),
        ({"prompt_embeds": "nan"}, "not finite"),
        (
            {"prompt": PROMPT, "negative_prompt": "snow", "negative_prompt_embeds": "like"},
            "negative_prompt and negative_prompt_embeds were both given",
        ),
        ({"prompt": PROMPT, "negative_prompt_embeds": "two"}, "1 prompts and 2 negative prompts"),
    ],
)
def test_embeddings_that_cannot_work_get_a_sentence(pipe, options, message):
    right = torch.zeros_like(pipe.encode_prompt([PROMPT]))
    made = {"like": right, "nan": right + torch.nan, "two": right.repeat(2, 1, 1)}
    options = {k: made.get(v, v) if isinstance(v, str) else v for k, v in options.items()}
    with pytest.raises(PromptError, match=message):
        draw(pipe, options.pop("prompt", None), **options)


def test_the_request_says_what_was_asked_while_it_runs(pipe):
    requests = []

    def callback(pipe, step, timestep, tensors):
        requests.append(pipe.current_request)
        return tensors

    draw(pipe, negative_prompt="snow", guidance_scale=3.0, callback_on_step_end=callback)
    expected = GenerationRequest((PROMPT,), ("snow",), 32, 32, 5, 3, 3.0, 3.0, 7)
    assert requests == [expected] * 3
    assert pipe.current_request is None
    assert pipe.current_call is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_run_that_is_broken_off_leaves_nothing_behind(pipe, error, at):
    before = draw(pipe)

    def stop(pipe, step, timestep, tensors):
        if step == at:
            raise error("enough")
        return tensors

    with pytest.raises(error, match="enough"):
        draw(pipe, OTHER, seed=9, callback_on_step_end=stop)
    assert pipe.current_request is None
    assert pipe.current_call is None
    assert torch.equal(draw(pipe), before)


def test_the_callback_sees_every_step_and_its_latents_are_used(pipe):
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append((step, timestep))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else {}

    assert torch.equal(draw(pipe, callback_on_step_end=callback), torch.zeros(1, 16, 2, 4, 4))
    assert [step for step, _ in seen] == [0, 1, 2]
    assert seen[0][1] == 1000
    assert sorted(seen, key=lambda pair: -pair[1]) == seen


def test_the_taps_see_the_run(pipe):
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in pipe.taps}
    hooks = [
        tap.register_forward_hook(lambda m, a, output, name=name: seen[name].append(output))
        for name, tap in pipe.taps.items()
    ]
    frames = pipe(PROMPT, seed=7, **QUICK).frames
    for hook in hooks:
        hook.remove()
    assert {name: len(found) for name, found in seen.items()} == {
        "prompt_embeds": 1,
        "latents": 3,
        "noise_pred": 3,
        "frames": 1,
    }
    assert seen["prompt_embeds"][0].shape == (
        2,
        pipe.tokenizer.text_len,
        32,
    )  # prompt, then negative
    assert torch.equal(seen["frames"][0], torch.from_numpy(frames))
    noise = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(7))
    assert torch.equal(seen["latents"][0], noise)


def test_what_a_hook_puts_on_a_tap_is_used(pipe):
    hook = pipe.taps["noise_pred"].register_forward_hook(lambda m, a, output: 0 * output)
    noise = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(7))
    try:
        torch.testing.assert_close(draw(pipe), noise, atol=1e-4, rtol=0)  # nothing moves it
    finally:
        hook.remove()


def test_bfloat16_draws_nearly_the_same_and_decodes_in_float32(pipe):
    exact = draw(pipe)
    half = TextToVideoPipeline.from_preset("debug", seed=2).to("cpu", torch.bfloat16)
    rounded = draw(half)
    assert half.dtype == torch.bfloat16
    assert half.vae.decoder.head.weight.dtype == torch.float32
    assert (rounded - exact).norm() < HALF_PRECISION * exact.norm()
    assert torch.equal(draw(half), rounded)


def test_the_progress_bar_can_be_silenced(pipe, capfd):
    draw(pipe)
    assert capfd.readouterr().err == ""
    draw(pipe, progress_bar=True)
    assert "denoising" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"prompt": ""}, PromptError, "the prompt is empty: say what to draw, e.g. 'a woman"),
        ({"prompt": " \n\t　"}, PromptError, "the prompt is empty"),
        ({"prompt": "\x00\x1b\u200b"}, PromptError, "the prompt is empty"),
        ({"prompt": []}, PromptError, "the prompt is empty"),
        ({"prompt": [PROMPT, " "]}, PromptError, "the prompt is empty"),
        ({"prompt": [PROMPT, 5]}, PromptError, "prompt holds 5, which is no text: give a text"),
        ({"prompt": 5}, PromptError, "prompt=5 is no text: give a text, or one for each video"),
        ({"prompt": None}, PromptError, "prompt=None is no text"),
        ({"negative_prompt": 5}, PromptError, "negative_prompt=5 is no text"),
        ({"negative_prompt": [5]}, PromptError, "negative_prompt holds 5, which is no text"),
        (
            {"negative_prompt": ["a", "b"]},
            PromptError,
            "1 prompts and 2 negative prompts: give one for each, or a single one for all",
        ),
        (
            {"seed": -1},
            ConfigError,
            r"seed=-1 cannot seed a generator: use 0 to 2\*\*63 - 1, e.g. 7",
        ),
        ({"seed": 1.5}, ConfigError, "seed=1.5 is not a whole number: use one, e.g. 7"),
        ({"seed": "7"}, ConfigError, "seed='7' is not a whole number"),
        ({"num_frames": 5.0}, ConfigError, "num_frames=5.0 is not a whole number: .* e.g. 17"),
        ({"height": "32"}, ConfigError, "height='32' is not a whole number"),
        ({"num_inference_steps": True}, ConfigError, "num_inference_steps=True is not a whole"),
        ({"guidance_scale": None}, ConfigError, "guidance_scale=None cannot guide"),
        ({"guidance_scale_2": "4"}, ConfigError, "guidance_scale_2='4' cannot guide"),
        ({"seed": 2**64}, ConfigError, "seed=18446744073709551616 cannot seed a generator"),
        (
            {"generator": torch.Generator(), "seed": 1},
            ConfigError,
            "seed and generator were both given: use one of them",
        ),
        (
            {"generator": [torch.Generator(), torch.Generator()]},
            ConfigError,
            "generator is a list: give one torch.Generator, which draws the noise of all videos",
        ),
        (
            {"keyframes": np.zeros((2, 32, 32, 3))},
            ConfigError,
            "keyframes is a ndarray: give pictures by pixel frame, e.g. {0: picture}",
        ),
        ({"keyframes": [np.zeros((32, 32, 3))]}, ConfigError, "keyframes is a list: give pict"),
        (
            {"keyframes": {"0": np.zeros((32, 32, 3))}},
            ConfigError,
            "there is a keyframe for frame '0': name frames by whole numbers, e.g. {0: picture}",
        ),
        ({"num_frames": 16}, ConfigError, r"use 1 \+ 4k frames, e.g. 13 or 17"),
        ({"height": 50}, ConfigError, "height=50 does not fit the VAE: .* e.g. 48 or 56"),
        ({"width": 20}, ConfigError, "width=20 does not fit the VAE: .* e.g. 16 or 24"),
        ({"num_inference_steps": 0}, ConfigError, "num_inference_steps=0 makes no video"),
        ({"guidance_scale": 0.5}, ConfigError, r"guidance_scale=0.5 cannot guide: use 1 \(off\)"),
        ({"guidance_scale_2": float("nan")}, ConfigError, "guidance_scale_2=nan cannot guide"),
        ({"guidance_scale": float("inf")}, ConfigError, "guidance_scale=inf cannot guide"),
        ({"output_type": "pil"}, ConfigError, "output_type='pil': use 'np' or 'latent'"),
    ],
)
def test_what_cannot_be_drawn_gets_a_sentence_and_leaves_nothing_behind(
    pipe, options, error, sentence
):
    with pytest.raises(error, match=sentence):
        draw(pipe, **options)
    assert pipe.current_request is None
    assert pipe.current_call is None


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"prompt": " "}, PromptError, "the prompt is empty"),
        ({"prompt": [PROMPT] * 5}, PromptError, "5 texts for 20 frames, which are 4 windows"),
        ({"prompt_embeds": 1}, ConfigError, r"options \['prompt_embeds'\]"),
        ({"num_frames": "9"}, ConfigError, "num_frames='9' is not a whole number"),
        ({"num_frames": 2.5}, ConfigError, "num_frames=2.5 is not a whole number"),
        ({"num_frames": None}, ConfigError, "num_frames=None"),
        ({"num_frames": 0}, ConfigError, "num_frames=0"),
        ({"seed": "7"}, ConfigError, "seed='7' is not a whole number"),
        ({"seed": 2**70}, ConfigError, "cannot seed a generator: use 0 to"),
        ({"seed": -1}, ConfigError, "seed=-1 cannot seed a generator"),
        ({"guidance_scale": 0}, ConfigError, "guidance_scale=0 cannot guide"),
        ({"num_inference_steps": 0}, ConfigError, "num_inference_steps=0 makes no video"),
        ({"height": 33}, ConfigError, "height=33 does not fit the VAE"),
        ({"keyframes": np.zeros((32, 32, 3))}, ConfigError, "keyframes is a ndarray"),
        ({"keyframes": {99: np.zeros((32, 32, 3))}}, ConfigError, "keyframe for frame 99, and"),
        ({"colour": 1}, TypeError, "unexpected keyword argument 'colour'"),
    ],
)
def test_a_stream_that_cannot_be_is_refused_before_anything_is_drawn(
    pipe, options, error, sentence
):
    dit = replace(pipe.config.dit, condition_channels=20)
    reader = TextToVideoPipeline(
        replace(pipe.config, dit=dit), pipe.tokenizer, pipe.text_encoder, pipe.vae, *[DiT(dit)] * 2
    )
    with pytest.raises(error, match=sentence):
        reader.stream(**{"prompt": PROMPT, "num_frames": 20, **options})


def test_windows_that_are_all_overlap_are_refused(pipe):
    dit = replace(pipe.config.dit, condition_channels=20)
    config = replace(pipe.config, num_frames=OVERLAP, dit=dit)
    reader = TextToVideoPipeline(
        config, pipe.tokenizer, pipe.text_encoder, pipe.vae, *[DiT(dit)] * 2
    )
    options = {"seed": 1, "num_inference_steps": 1, "progress_bar": False}
    assert [len(part) for part in reader.stream(PROMPT, num_frames=4, **options)] == [4]
    with pytest.raises(ConfigError, match="draws 5 frames at a time, and every window of a longer"):
        reader.stream(PROMPT, num_frames=6, **options)


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "cpu:3", ""])
def test_a_device_that_is_not_there_gets_the_names_of_those_that_are(pipe, device):
    with pytest.raises(DeviceError, match=f"this machine has no device '{device}': use cpu"):
        pipe.to(device)
    assert pipe.device.type == "cpu"


def test_a_prompt_of_ten_thousand_characters_is_cut_with_a_warning(pipe):
    with pytest.warns(PromptTruncatedWarning, match="longer than 95 tokens: everything after"):
        latents = draw(pipe, "a red lantern " * 714 + "here", guidance_scale=1.0)
    assert latents.isfinite().all()


@pytest.mark.parametrize(
    "prompt",
    ["🧨🐉👩‍👩‍👧", "a\x00red\x1b[31m\u202eqipao", "امرأة في المطر", "אישה", "\ud83d", "ａ　ｂ"],
)
def test_any_other_text_draws_a_video_without_warning(pipe, prompt):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw(pipe, prompt).isfinite().all()


def test_whole_numbers_of_numpy_are_whole_numbers(pipe):
    plain = draw(pipe, seed=3, num_frames=5)
    assert np.array_equal(draw(pipe, seed=np.int64(3), num_frames=np.int32(5)), plain)
