"""The promises of `capture` on a stock diffusers WanPipeline, tiny and random."""

import json
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text

import wanviz
from wanviz.delivery import PromptCache
from wanviz.errors import EncodingError

pytest.importorskip("transformers", reason="diffusers' WanPipeline needs it for its text encoder")

from tests.wanviz import real_wan as real

EVERY_AXIS = [("layer", "step", "head"), ("layer",), ("step",), ()]
CLOSE = 1e-5


@pytest.fixture
def wan21() -> Any:
    return real.wan21()


@pytest.fixture
def wan22() -> Any:
    return real.wan22()


def fingerprint(pipe: Any) -> dict[str, Any]:
    """Everything that a hook or a patch could leave behind: instance dicts, hooks, processors."""
    found: dict[str, Any] = {
        "pipe": sorted(vars(pipe)),
        "processor": sorted(vars(pipe.video_processor)),
    }
    for name in ("transformer", "transformer_2", "text_encoder", "vae"):
        model = getattr(pipe, name, None)
        if model is None:
            continue
        for path, module in model.named_modules():
            hooks = {
                key: len(value)
                for key, value in vars(module).items()
                if key.endswith("_hooks") and value is not None
            }
            rest = sorted(key for key in vars(module) if not key.endswith("_hooks"))
            processor = getattr(module, "processor", None)
            found[f"{name}.{path}"] = (type(module), hooks, rest, type(processor), id(processor))
    return found


def attention_of(pipe: Any, model: Any, **options: Any) -> dict[str, list[Any]]:
    """What diffusers' attention is really given: kind -> (layer, q, k) of every call, float64, n l d."""
    from diffusers.models.transformers import transformer_wan

    seen: dict[str, list[Any]] = {"attn1": [], "attn2": []}
    place: dict[str, Any] = {}
    handles = []
    for layer, block in enumerate(model.blocks):
        for kind in seen:
            handles.append(
                getattr(block, kind).register_forward_pre_hook(
                    lambda m, a, layer=layer, kind=kind: place.update(layer=layer, kind=kind)
                )
            )
    original = transformer_wan.dispatch_attention_fn

    def spy(query, key, value, **kwargs):
        if place:
            q, k = (x.transpose(1, 2).double() for x in (query, key))
            seen[place["kind"]].append((place["layer"], q, k))
        return original(query, key, value, **kwargs)

    transformer_wan.dispatch_attention_fn = spy
    try:
        real.draw(pipe, **options)
    finally:
        transformer_wan.dispatch_attention_fn = original
        for handle in handles:
            handle.remove()
    return seen


def softmax(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [real.wan21, real.wan22])
def test_output_is_bit_identical_and_nothing_is_left(make, dtype):
    pipe = make()
    pipe.transformer.to(dtype)
    if pipe.transformer_2 is not None:
        pipe.transformer_2.to(dtype)
    plain, before = real.draw(pipe), fingerprint(pipe)
    state = torch.get_rng_state()
    for frames in ("sampled", "exact"):
        with wanviz.capture(pipe, keep=EVERY_AXIS, frames=frames, branches=("cond", "uncond")):
            watched = real.draw(pipe)
        assert np.array_equal(plain, watched)
    assert torch.equal(torch.get_rng_state(), state)
    assert fingerprint(pipe) == before
    assert np.array_equal(plain, real.draw(pipe))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_maps_equal_a_float64_softmax_of_what_attention_was_given(wan21, branch, dtype):
    wan21.transformer.to(dtype)
    reference = attention_of(wan21, wan21.transformer, num_inference_steps=2)
    with wanviz.capture(
        wan21, keep=EVERY_AXIS, frames="exact", branches=("cond", "uncond")
    ) as trace:
        real.draw(wan21, num_inference_steps=2)
    part = trace.branch(branch)
    calls = range(("cond", "uncond").index(branch), 4, 2)  # two calls a step, never batched
    for step, call in enumerate(calls):
        for layer in range(2):
            where = [i for i, found in enumerate(reference["attn2"]) if found[0] == layer][call]
            _, q, k = reference["attn2"][where]
            mass = softmax(q[0], k[0]).mT.unflatten(-1, (3, 2, 3)).numpy()  # n p f h w
            tokens = len(part.tokens)
            maps = part.maps["layer", "step", "head"].values[layer, step]
            np.testing.assert_allclose(maps, mass[:, :tokens], atol=CLOSE)
            special = part.special["layer", "step", "head"].values[layer, step]
            np.testing.assert_allclose(special[:, 0], mass[:, tokens], atol=CLOSE)
            np.testing.assert_allclose(special[:, 1], mass[:, tokens + 1 :].sum(1), atol=CLOSE)
            _, q, k = reference["attn1"][where]
            mass = softmax(q[0], k[0]).unflatten(-1, (3, 6)).sum(-1)
            mass = mass.unflatten(-2, (3, 6)).mean(-2).numpy()  # n f f
            for head in range(2):
                found = part.frame_attention(layer=layer, step=step, head=head).mass
                np.testing.assert_allclose(found, mass[head], atol=CLOSE)


def test_padding_is_counted_once_and_most_of_the_mass_of_random_weights(wan21):
    with wanviz.capture(wan21) as trace:
        real.draw(wan21)
    assert trace.record["padding_keys"] == "equal, counted once"
    total = trace.maps[()].sum("token") + trace.special[()].sum("kind")
    np.testing.assert_allclose(total.values, 1.0, atol=CLOSE)
    assert float(trace.special[()].sel(kind="padding").min()) > 0.8


def test_sampled_frames_lie_within_three_standard_errors_of_the_exact_ones():
    pipe = real.wan21()
    size = {"height": 128, "width": 192, "num_frames": 17, "num_inference_steps": 4}
    inside, entries, ratios = 0, 0, []
    for seed in range(4):
        keep = [("layer", "step", "head"), ()]
        with wanviz.capture(pipe, keep=keep, frames="exact") as exact:
            real.draw(pipe, seed=seed, output_type="latent", **size)
        with wanviz.capture(pipe, keep=keep) as sampled:
            real.draw(pipe, seed=seed, output_type="latent", **size)
        assert sampled.record["frames"] == "sampled"
        places = [{}] + [
            {"layer": layer, "step": step, "head": head}
            for layer in range(2) for step in range(4) for head in range(2)
        ]  # fmt: skip
        for place in places:
            true = exact.frame_attention(**place).mass
            found = sampled.frame_attention(**place)
            off = np.abs(found.mass - true) / found.stderr
            inside += int((off <= 3).sum())
            entries += off.size
            ratios.append(float((off**2).mean()))
            assert float(found.stderr.min()) > 0
    assert inside / entries >= 0.99
    assert np.mean(ratios) > 0.1  # nor are the errors so large that they say nothing


def test_words_of_both_branches_never_mix(wan22):
    with wanviz.capture(wan22, branches=("cond", "uncond"), keep=[("step",)]) as both:
        real.draw(wan22, negative_prompt=real.CHINESE)
    with wanviz.capture(wan22, keep=[("step",)]) as cond:
        real.draw(wan22, negative_prompt=real.CHINESE)
    assert (both.branch("cond").prompt, both.branch("uncond").prompt) == (
        real.ENGLISH,
        real.CHINESE,
    )
    np.testing.assert_array_equal(both.maps["step"].values, cond.maps["step"].values)
    assert [word.text for word in both.branch("uncond").words][:3] == ["一位", "穿", "红色"]


def test_the_record_tells_steps_sigmas_and_noise_experts(wan22):
    with wanviz.capture(wan22) as trace:
        real.draw(wan22, seed=5, num_inference_steps=4)
    timesteps = [float(t) for t in wan22.scheduler.timesteps]
    steps = trace.record["steps"]
    assert [step["timestep"] for step in steps] == timesteps
    assert [step["noise_expert"] for step in steps] == [
        "high" if t >= 875 else "low" for t in timesteps
    ]
    assert {"high", "low"} == {step["noise_expert"] for step in steps}
    np.testing.assert_allclose(
        [step["sigma"] for step in steps], [float(s) for s in wan22.scheduler.sigmas[:4]]
    )
    for name, value in (
        ("seed", 5), ("height", 32), ("width", 48), ("num_frames", 9), ("num_inference_steps", 4),
        ("guidance_scale", 5.0), ("pipeline", "WanPipeline"), ("boundary_ratio", 0.875), ("fps", 16),
    ):  # fmt: skip
        assert trace.record[name] == value
    assert set(trace.record["versions"]) == {"wanviz", "torch", "diffusers", "transformers"}


def test_the_video_is_the_pipelines_own(wan21):
    with wanviz.capture(wan21) as trace:
        frames = real.draw(wan21)
    assert np.array_equal(trace.frames, np.rint(frames[0] * 255).astype(np.uint8))


def test_latent_output_gives_a_trace_without_a_video(wan21):
    with wanviz.capture(wan21) as trace:
        real.draw(wan21, output_type="latent")
    assert trace.frames is None
    assert len(trace.words) == 13


def look_at_it(pipe, step, timestep, kwargs):
    """What people do to watch a run: decode its latents, and make pictures of them."""
    video = pipe.vae.decode(kwargs["latents"].to(pipe.vae.dtype), return_dict=False)[0]
    pipe.video_processor.postprocess_video(video, output_type="np")
    return {}


def test_pictures_of_a_callback_are_not_the_video(wan21):
    with wanviz.capture(wan21) as trace:
        real.draw(wan21, output_type="latent", callback_on_step_end=look_at_it)
    assert trace.frames is None
    with wanviz.capture(wan21) as trace:
        frames = real.draw(wan21, callback_on_step_end=look_at_it)
    assert np.array_equal(trace.frames, np.rint(frames[0] * 255).astype(np.uint8))


def test_a_plan_tells_the_kept_bytes_to_the_byte(wan22):
    size = {k: v for k, v in real.SIZE.items() if k != "output_type"}
    for options in ({}, {"frames": "exact"}, {"words": ["rain"]}, {"select": {"step": [0, 2]}}):
        planned = wanviz.plan(wan22, real.ENGLISH, **options, **size)
        with wanviz.capture(wan22, **options) as trace:
            real.draw(wan22)
        assert planned.nbytes == trace.nbytes
    assert wanviz.plan(wan22, real.ENGLISH).nbytes > planned.nbytes  # of the pipeline's own size


def test_each_video_of_a_batch_has_its_trace(wan21):
    with wanviz.capture(wan21, keep=[("layer", "head")]) as trace:
        frames = real.draw(
            wan21, [real.ENGLISH, real.CHINESE], negative_prompt=["a", "b"], num_videos_per_prompt=2
        )
    assert [video.prompt for video in trace.videos] == [real.ENGLISH] * 2 + [real.CHINESE] * 2
    for number, video in enumerate(trace.videos):
        assert np.array_equal(video.frames, np.rint(frames[number] * 255).astype(np.uint8))
    first, second = (video.maps["layer", "head"].values for video in trace.videos[:2])
    assert not np.allclose(first, second)  # of the same words in other noise


def test_guidance_off_has_one_branch(wan21):
    with wanviz.capture(wan21) as trace:
        real.draw(wan21, guidance_scale=1.0)
    assert [step["step"] for step in trace.record["steps"]] == [0, 1, 2]
    with (
        pytest.raises(wanviz.CaptureError, match=r"guidance_scale=1\.0"),
        wanviz.capture(wan21, branches=("cond", "uncond")),
    ):
        real.draw(wan21, guidance_scale=1.0)


def test_guidance_of_the_second_expert_alone_runs_no_second_branch(wan22):
    with (
        pytest.raises(wanviz.CaptureError, match="runs without guidance"),
        wanviz.capture(wan22, branches=("cond", "uncond")),
    ):
        real.draw(wan22, guidance_scale=1.0, guidance_scale_2=3.0)


def embeds_of(pipe: Any, prompt: str) -> dict[str, torch.Tensor]:
    cond, uncond = pipe.encode_prompt(prompt, "blurred", max_sequence_length=64)
    return {"prompt_embeds": cond, "negative_prompt_embeds": uncond, "negative_prompt": None}


def test_precomputed_embeddings_ask_for_their_words(wan21):
    embeds = embeds_of(wan21, real.ENGLISH)
    with (
        pytest.raises(wanviz.CaptureError, match=r"given prompt_embeds.*prompt='…'"),
        wanviz.capture(wan21),
    ):
        real.draw(wan21, **embeds)
    with wanviz.capture(wan21, prompt=real.ENGLISH) as trace:
        real.draw(wan21, **embeds)
    assert trace.prompt == real.ENGLISH
    with wanviz.capture(wan21) as told:
        real.draw(wan21, max_sequence_length=64)
    np.testing.assert_allclose(trace.word_map("rain"), told.word_map("rain"), atol=1e-6)


def test_kept_encodings_draw_the_same_video_without_a_text_encoder(wan22, tmp_path):
    plain = real.draw(wan22, real.CHINESE)
    encodings = PromptCache(tmp_path)
    given = encodings(wan22, real.CHINESE, "blurred") | {"negative_prompt": None}
    assert np.array_equal(real.draw(wan22, **given), plain)
    reader, wan22.text_encoder = wan22.text_encoder, None
    try:
        bare = encodings(wan22, real.CHINESE, "blurred") | {"negative_prompt": None}
        with wanviz.capture(wan22, prompt=real.CHINESE) as trace:
            assert np.array_equal(real.draw(wan22, **bare), plain)
        with pytest.raises(EncodingError, match=r"no text encoder, and .* no encoding of 'a cat'"):
            encodings(wan22, "a cat")
    finally:
        wan22.text_encoder = reader
    assert trace.word_map("伞").sum() > 0
    size = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert size < bare["prompt_embeds"].nbytes / 4  # padding is not kept


def test_encodings_by_several_encoders_are_not_chosen_between(wan21, wan22, tmp_path):
    with torch.no_grad():
        next(wan22.text_encoder.parameters()).add_(1e-3)
    encodings = PromptCache(tmp_path)
    for pipe in (wan21, wan22):
        encodings(pipe, real.ENGLISH)
    wan21.text_encoder = None
    with pytest.raises(EncodingError, match="by 2 text encoders"):
        encodings(wan21, real.ENGLISH)


def test_a_text_encoder_whose_weights_are_elsewhere_is_not_taken_for_another(wan21, tmp_path):
    wan21.text_encoder.to("meta")
    with pytest.raises(wanviz.OptionError, match="before sequential offload"):
        PromptCache(tmp_path)(wan21, real.ENGLISH)


def test_precomputed_embeddings_may_make_several_videos(wan21):
    embeds = embeds_of(wan21, real.ENGLISH) | {"num_videos_per_prompt": 2}
    plain = real.draw(wan21, **embeds)
    with wanviz.capture(wan21, prompt=real.ENGLISH) as trace:
        frames = real.draw(wan21, **embeds)
    assert np.array_equal(frames, plain)
    for number, video in enumerate(trace.videos):
        assert video.prompt == real.ENGLISH
        assert np.array_equal(video.frames, np.rint(frames[number] * 255).astype(np.uint8))
    first, second = (video.maps["step"].values for video in trace.videos)
    assert not np.allclose(first, second)  # of the same words in other noise


def test_a_seed_is_recorded_for_the_video_that_it_draws_again(wan21):
    def seeds(generator):
        with wanviz.capture(wan21) as trace:
            frames = wan21(
                [real.ENGLISH, real.CHINESE], negative_prompt="blurred", generator=generator, **real.SIZE
            ).frames  # fmt: skip
        recorded = [video.record["seed"] for video in trace.videos]
        for prompt, seed, drawn in zip((real.ENGLISH, real.CHINESE), recorded, frames, strict=True):
            if seed is not None:
                np.testing.assert_allclose(real.draw(wan21, prompt, seed)[0], drawn, atol=1e-4)
        return recorded

    def of(seed):
        return torch.Generator().manual_seed(seed)

    used, shared = of(5), of(6)
    torch.rand(1, generator=used)
    assert seeds(of(3)) == [3, None]
    assert seeds([of(3), of(4)]) == [3, 4]
    assert seeds([shared, shared]) == [6, None]
    assert seeds([used, of(4)]) == [None, 4]
    assert seeds(None) == [None, None]


def test_words_that_the_embeddings_cannot_be_of_are_refused(wan21):
    embeds = embeds_of(wan21, real.ENGLISH)
    with (
        pytest.raises(wanviz.CaptureError, match="they are of another prompt"),
        wanviz.capture(wan21, prompt="a cat"),
    ):
        real.draw(wan21, **embeds)


def steps_kept(pipe: Any, swap: Any) -> list[bool]:
    """Which of three steps have maps, where a callback exchanges the embeddings; that it did is told."""
    with (
        pytest.warns(wanviz.CaptureWarning) as told,
        wanviz.capture(pipe, keep=[("step",)]) as trace,
    ):
        real.draw(pipe, max_sequence_length=64, callback_on_step_end=swap)
    assert any("reads other embeddings" in str(w.message) for w in told)
    return list(np.isfinite(trace.maps["step"].values).all(axis=(1, 2, 3, 4)))


def test_embeddings_that_change_on_the_way_are_not_attributed(wan21):
    other = embeds_of(wan21, "a cat and a dog")["prompt_embeds"]

    def swap(pipe, step, timestep, kwargs):
        return {"prompt_embeds": other} if step == 1 else {}

    assert steps_kept(wan21, swap) == [True, True, False]


def test_embeddings_that_change_in_a_branch_that_nobody_watches_are_none_of_ours(wan21):
    other = embeds_of(wan21, "a cat and a dog")["prompt_embeds"]

    def swap(pipe, step, timestep, kwargs):
        return {"negative_prompt_embeds": other} if step == 1 else {}

    with warnings.catch_warnings():
        warnings.simplefilter("error", wanviz.CaptureWarning)
        with wanviz.capture(wan21, keep=[("step",)]) as trace:
            real.draw(wan21, max_sequence_length=64, callback_on_step_end=swap)
    assert np.isfinite(trace.maps["step"]).all()


def test_a_prompt_longer_than_the_model_reads_is_told(wan21):
    with wanviz.capture(wan21) as trace:
        real.draw(wan21, max_sequence_length=16)
    cut = trace.record["truncated_at"]
    assert 0 < cut < len(real.ENGLISH)
    assert len(trace.tokens) == 15
    with pytest.raises(wanviz.PhraseError, match="saw only the first"):
        trace.word_map("umbrella")


def test_a_model_that_raises_leaves_nothing_behind(wan21):
    plain, before, calls = real.draw(wan21), fingerprint(wan21), []

    def fail(module, args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    handle = wan21.transformer.blocks[1].attn2.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt), wanviz.capture(wan21) as trace:
        real.draw(wan21)
    handle.remove()
    assert fingerprint(wan21) == before
    assert trace.record["steps"][0]["step"] == 0
    with wanviz.capture(wan21):
        assert np.array_equal(real.draw(wan21), plain)


@pytest.mark.parametrize("first_ends_first", [True, False])
def test_two_captures_nest_and_end_in_any_order(wan21, first_ends_first):
    real.draw(wan21)  # a run leaves notes of its own on the pipeline
    before = fingerprint(wan21)
    outer, inner = wanviz.capture(wan21), wanviz.capture(wan21, frames="exact")
    one, two = outer.__enter__(), inner.__enter__()
    real.draw(wan21)
    for context in (outer, inner) if first_ends_first else (inner, outer):
        context.__exit__(None, None, None)
    np.testing.assert_array_equal(one.word_map("rain"), two.word_map("rain"))
    assert fingerprint(wan21) == before


def test_two_calls_in_one_block_are_an_error_and_the_first_is_kept(wan21):
    with (
        pytest.raises(wanviz.CaptureError, match="one call of the pipeline"),
        wanviz.capture(wan21) as trace,
    ):
        real.draw(wan21)
        real.draw(wan21, real.CHINESE)
    assert trace.prompt == real.ENGLISH


def test_a_denoiser_call_of_nobodys_is_not_captured(wan21):
    latents = torch.randn(1, 16, 3, 4, 6)
    with wanviz.capture(wan21) as trace:
        real.draw(wan21)
        with torch.no_grad():
            wan21.transformer(latents, torch.tensor([500.0]), torch.randn(1, 64, 32))
    assert trace.record["not_computed"] == {}


def test_hook_names_are_queries_and_keys(wan22):
    names = wanviz.hook_names(wan22)
    assert names[:4] == (
        "blocks.0.self_attn.q", "blocks.0.self_attn.k", "blocks.0.cross_attn.q",
        "blocks.0.cross_attn.k",
    )  # fmt: skip
    assert len(names) == 8


def test_a_part_of_a_pipeline_and_a_foreign_one_get_a_sentence(wan21):
    with pytest.raises(wanviz.OptionError, match="give the WanPipeline that it belongs to"):
        wanviz.hook_names(wan21.transformer)
    with pytest.raises(wanviz.OptionError, match="of diffusers: give a WanPipeline"):
        wanviz.hook_names(wan21.scheduler)


def test_a_boundary_without_a_second_expert_is_told_before_the_run(wan21):
    wan21.register_to_config(boundary_ratio=0.875)
    with pytest.raises(wanviz.OptionError, match=r"boundary_ratio=None"):
        wanviz.hook_names(wan21)


def test_a_trace_of_real_wan_survives_a_file_and_makes_a_report(wan22, tmp_path):
    with wanviz.capture(wan22) as trace:
        real.draw(wan22, real.CHINESE)
    trace.save(tmp_path / "wan.trace")
    again = wanviz.Trace.load(tmp_path / "wan.trace")
    np.testing.assert_array_equal(again.word_map("旗袍"), trace.word_map("旗袍"))
    np.testing.assert_array_equal(
        again.frame_attention(layer=1).stderr, trace.frame_attention(layer=1).stderr
    )
    wanviz.report(trace, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert json.dumps("旗袍").strip('"') in page


@pytest.mark.parametrize("words", [["rain"], ["a woman", "rain"]])
def test_kept_words_leave_the_other_branch_what_it_has(wan22, words):
    with wanviz.capture(wan22, words=words, branches=("cond", "uncond"), keep=[()]) as trace:
        real.draw(wan22, negative_prompt="")
    assert trace.branch("uncond").tokens == ()
    for branch in ("cond", "uncond"):
        part = trace.branch(branch)
        total = part.maps[()].sum("token") + part.special[()].sum("kind")
        np.testing.assert_allclose(total.values, 1.0, atol=CLOSE)


def test_a_prompt_that_is_kept_whole_has_no_others(wan21):
    with wanviz.capture(wan21, words=["rain"], keep=[()]) as trace:
        real.draw(wan21, "rain")
    assert list(trace.special[()].kind.values) == ["end_of_text", "padding"]


def test_a_callback_may_encode_another_prompt_on_the_way(wan21):
    def swap(pipe, step, timestep, kwargs):
        embeds, _ = pipe.encode_prompt("a cat", "blurred", max_sequence_length=64)
        return {"prompt_embeds": embeds} if step == 0 else {}

    assert steps_kept(wan21, swap) == [True, False, False]


def test_guidance_that_comes_on_the_way_keeps_the_steps(wan21, monkeypatch):
    """Older pipelines do not tell the step; here none does."""
    from wanviz.adapters.diffusers_taps import Reader

    announce = Reader.announce
    monkeypatch.setattr(Reader, "announce", lambda self, args, kwargs: announce(self, args, {}))
    embeds = embeds_of(wan21, real.ENGLISH)

    def guide(pipe, step, timestep, kwargs):
        pipe._guidance_scale = 3.0 if step == 0 else pipe._guidance_scale
        return {}

    with wanviz.capture(wan21, prompt=real.ENGLISH, keep=[("step",)]) as trace:
        real.draw(wan21, guidance_scale=1.0, callback_on_step_end=guide, **embeds)
    assert [step["step"] for step in trace.record["steps"]] == [0, 1, 2]
    assert np.isfinite(trace.maps["step"].values).all()


def test_the_negative_branch_alone_needs_no_words_of_the_other(wan21):
    embeds = embeds_of(wan21, real.ENGLISH)
    with wanviz.capture(wan21, branches=("uncond",)) as trace:
        real.draw(
            wan21, prompt_embeds=embeds["prompt_embeds"], negative_prompt="blurred",
            max_sequence_length=64,
        )  # fmt: skip
    assert trace.prompt == "blurred"
    assert trace.record["prompt"] is None


def test_a_reducer_that_fails_holds_no_tensor(wan21, monkeypatch):
    def fail(self, event):
        raise ValueError("no")

    monkeypatch.setattr("wanviz.frame_masses.FrameMasses.consume", fail)
    with pytest.raises(wanviz.CaptureError, match="frames could not be captured") as error:
        with wanviz.capture(wan21) as trace:
            real.draw(wan21)
    assert error.value.__cause__.__traceback__ is None
    assert np.isfinite(trace.word_map("rain")).all()


def test_a_pipeline_that_does_not_tell_its_branches_is_refused(wan21):
    from diffusers import WanVideoToVideoPipeline

    parts = {
        name: getattr(wan21, name) for name in ("tokenizer", "text_encoder", "vae", "scheduler")
    }
    other = WanVideoToVideoPipeline(**parts, transformer=wan21.transformer)
    with pytest.raises(wanviz.OptionError, match="does not say which branch"):
        wanviz.hook_names(other)


def test_one_denoiser_is_called_so_in_pictures_and_report(wan21, tmp_path):
    with wanviz.capture(wan21) as trace:
        real.draw(wan21)
    assert "one denoiser for all" in wanviz.plot_routing(trace).summary
    wanviz.report(trace, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "high-noise, " not in page
    assert '"routing": true' in page or '"routing":true' in page  # asked for, and there are none


def test_a_picture_of_sampled_frames_tells_their_error():
    pipe = real.wan21()
    with wanviz.capture(pipe) as trace:
        real.draw(pipe, height=128, width=192, num_inference_steps=1)
    texts = [text.get_text() for text in wanviz.plot_frames(trace).findobj(match=Text)]
    assert any("standard errors up to" in text for text in texts)
