"""Capture beside everything that people do to a Wan pipeline: it changes no bit, and it tells what ran."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import linear

import wanviz
from tests.wanviz import real_wan as real
from tests.wanviz.test_diffusers_interventions import columns_of, outputs
from tests.wanviz.test_diffusers_wan import fingerprint
from wanviz.attribution import rank_words
from wanviz.interventions import reweight

pytest.importorskip("transformers", reason="diffusers' WanPipeline needs it for its text encoder")
pytest.importorskip("peft", reason="LoRA in diffusers needs it")

Prepare = Callable[[Any], Any]


def fused(model: Any) -> None:
    model.fuse_qkv_projections()


def other_backend(model: Any) -> None:
    model.set_attention_backend("_native_math")


def group_offload(model: Any, kind: str = "block_level") -> None:
    cpu = torch.device("cpu")
    model.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type=kind,
        **({"num_blocks_per_group": 1} if kind == "block_level" else {}),
    )  # fmt: skip


def leaf_offload(model: Any) -> None:
    group_offload(model, "leaf_level")


def layerwise_casting(model: Any) -> None:
    model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=model.dtype)


def lora(model: Any) -> None:
    from peft import LoraConfig

    torch.manual_seed(3)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))


def training_mode(model: Any) -> None:
    model.train()


FEATURES: dict[str, Prepare] = {
    "fused projections": fused,
    "another attention backend": other_backend,
    "group offload by block": group_offload,
    "group offload by leaf": leaf_offload,
    "fp8 layerwise casting": layerwise_casting,
    "LoRA": lora,
    "training mode": training_mode,
}


def each_transformer(pipe: Any, prepare: Prepare) -> Any:
    for model in (pipe.transformer, pipe.transformer_2):
        if model is not None:
            prepare(model)
    return pipe


@pytest.fixture(autouse=True)
def native_backend() -> Any:
    """Backends are also set for the whole process: put the usual one back."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    yield
    _AttentionBackendRegistry.set_active_backend(AttentionBackendName.NATIVE)


CHANGES_THE_MODEL = ("fp8 layerwise casting", "LoRA")
OPTIONS: dict[str, Any] = {
    "keep": [("layer", "step", "head")],
    "branches": ("cond", "uncond"),
    "frames": "exact",
}


def masses(trace: wanviz.Trace) -> np.ndarray:
    """Every mass of both branches on tokens, end of text and padding."""
    parts = []
    for branch in ("cond", "uncond"):
        part = trace.branch(branch)
        own = part.maps["layer", "step", "head"].values
        rest = part.special["layer", "step", "head"].values
        parts.append(np.concatenate([own, rest], axis=3))
    return np.concatenate(parts, axis=3)


@pytest.fixture(scope="module")
def usual() -> np.ndarray:
    """The masses of a pipeline to which nothing was done."""
    with wanviz.capture(pipe := real.wan22(), **OPTIONS) as trace:
        real.draw(pipe)
    return masses(trace)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_keeps_its_bits_its_structure_and_its_maps(name, dtype, usual):
    pipe = each_transformer(real.wan22(), lambda model: model.to(dtype))
    each_transformer(pipe, FEATURES[name])
    plain, before = real.draw(pipe), fingerprint(pipe)
    with wanviz.capture(pipe, **OPTIONS) as trace:
        watched = real.draw(pipe)
    assert np.array_equal(plain, watched)
    assert fingerprint(pipe) == before
    assert np.array_equal(plain, real.draw(pipe))
    assert trace.record["not_computed"] == {}
    np.testing.assert_allclose(masses(trace).sum(axis=3), 2.0, atol=1e-4)  # of two branches
    if name not in CHANGES_THE_MODEL and dtype == torch.float32:
        np.testing.assert_allclose(masses(trace), usual, atol=1e-5)


@pytest.mark.parametrize("name", ["fused projections", "LoRA", "group offload by block"])
def test_a_feature_that_comes_while_watching_keeps_its_maps(name, usual):
    pipe = real.wan22()
    with wanviz.capture(pipe, **OPTIONS) as trace:
        each_transformer(pipe, FEATURES[name])
        watched = real.draw(pipe)
    assert np.array_equal(watched, real.draw(pipe))
    if name not in CHANGES_THE_MODEL:
        np.testing.assert_allclose(masses(trace), usual, atol=1e-5)


def checkpointed(model: Any) -> list[str]:
    """Gradient checkpointing, which tells of each block that it computes so."""
    blocks: list[str] = []

    def checkpoint(block: Any, *args: Any) -> Any:
        blocks.append(type(block).__name__)
        return torch.utils.checkpoint.checkpoint(block, *args, use_reentrant=False)

    model.enable_gradient_checkpointing(checkpoint)
    return blocks


def test_blocks_that_are_computed_again_on_the_way_back_are_watched_once():
    """A pipeline that runs with gradients, as where a LoRA learns from what a reward says of the video."""
    pipe = real.wan21()

    def latents_and_gradient(pipe: Any) -> tuple[torch.Tensor, torch.Tensor]:
        pipe.transformer.zero_grad()
        latents = type(pipe).__call__.__wrapped__(  # the pipeline's own turns gradients off
            pipe, real.ENGLISH, negative_prompt="blurred", generator=torch.Generator().manual_seed(7),
            **{**real.SIZE, "output_type": "latent"},
        ).frames  # fmt: skip
        latents.square().sum().backward()
        return latents.detach(), pipe.transformer.proj_out.weight.grad.clone()

    with wanviz.capture(pipe, **OPTIONS) as usual:
        real.draw(pipe, output_type="latent")
    blocks = checkpointed(pipe.transformer)
    plain = latents_and_gradient(pipe)
    assert len(blocks) == 2 * 3 * 2  # layers, steps, branches
    with wanviz.capture(pipe, **OPTIONS) as trace:
        watched = latents_and_gradient(pipe)
    assert len(blocks) == 2 * 2 * 3 * 2
    assert all(map(torch.equal, plain, watched))
    np.testing.assert_allclose(masses(trace), masses(usual), atol=1e-5)


@pytest.mark.parametrize("method", ["saliency", "integrated_gradients"])
def test_gradient_checkpointing_changes_no_attribution_and_stays_on(method, rng):
    asked = {
        "video": rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8),
        "sigmas": (0.5,),
        "progress_bar": False,
    }
    region = np.ones((2, 4, 4))

    def both(pipe: Any) -> tuple[Any, Any]:
        found = wanviz.attribute(pipe, real.ENGLISH, ["umbrella"], method=method, **asked)
        words = ["umbrella", "rain"]
        ranks = rank_words(
            pipe, real.ENGLISH, words, region=region, method=method, steps=2, **asked
        )
        return found.values, ranks

    pipe = real.wan21()
    expected = both(pipe)
    blocks = checkpointed(pipe.transformer)
    found = both(pipe)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert not blocks
    assert pipe.transformer.is_gradient_checkpointing


@pytest.mark.parametrize("method", ["attention_value", "output_space"])
def test_what_a_word_brings_counts_what_lora_adds(method, rng):
    asked = {
        "video": rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8),
        "method": method,
        "sigmas": (0.5,),
        "progress_bar": False,
    }
    pipe = each_transformer(real.wan22(), lora)
    found = wanviz.attribute(pipe, real.ENGLISH, ["umbrella"], **asked)
    each_transformer(pipe, lambda model: model.fuse_lora())
    fused_in = wanviz.attribute(pipe, real.ENGLISH, ["umbrella"], **asked)
    without = wanviz.attribute(real.wan22(), real.ENGLISH, ["umbrella"], **asked)
    np.testing.assert_allclose(found.values, fused_in.values, atol=1e-4)
    assert not np.allclose(found.values, without.values, atol=1e-3)


def test_blocks_that_a_cache_skips_are_not_computed():
    from diffusers import FirstBlockCacheConfig

    pipe = real.wan22(num_layers=3)
    each_transformer(pipe, lambda m: m.enable_cache(FirstBlockCacheConfig(threshold=10.0)))
    plain, before = real.draw(pipe, num_inference_steps=6), fingerprint(pipe)
    with (
        pytest.warns(wanviz.CaptureWarning, match="were not computed for layer"),
        wanviz.capture(pipe, **OPTIONS) as trace,
    ):
        watched = real.draw(pipe, num_inference_steps=6)
    assert np.array_equal(plain, watched)
    assert fingerprint(pipe) == before
    skipped = trace.record["not_computed"]["cond/words"]
    assert {layer for layer, _ in skipped} == {1, 2}  # the first block decides, and always works
    maps = trace.maps["layer", "step", "head"].values
    for layer in range(3):
        for step in range(6):
            assert np.isnan(maps[layer, step]).all() == ([layer, step] in skipped)
    assert np.isfinite(trace.word_map("rain")).all()


def test_attention_that_is_broadcast_is_not_computed():
    from diffusers import PyramidAttentionBroadcastConfig

    pipe = real.wan21()
    pipe.transformer.enable_cache(
        PyramidAttentionBroadcastConfig(
            cross_attention_block_skip_range=2,
            cross_attention_timestep_skip_range=(0, 1001),
            current_timestep_callback=lambda: int(pipe._current_timestep or 0),
            cross_attention_block_identifiers=("blocks",),
        )
    )
    plain = real.draw(pipe, num_inference_steps=4, guidance_scale=1.0)
    with pytest.warns(wanviz.CaptureWarning), wanviz.capture(pipe, keep=[("step",)]) as trace:
        watched = real.draw(pipe, num_inference_steps=4, guidance_scale=1.0)
    assert np.array_equal(plain, watched)
    computed = np.isfinite(trace.maps["step"].values).all(axis=(1, 2, 3, 4))
    assert list(computed) == [True, False, True, False]  # each second call repeats the one before
    skipped = [[layer, step] for layer in range(2) for step in (1, 3)]
    assert trace.record["not_computed"] == {"cond/words": skipped}


def caches() -> dict[str, Callable[[], Any]]:
    """What else diffusers offers to save work from step to step, and runs with Wan."""
    import diffusers.hooks as hooks

    return {
        "MagCache": lambda: hooks.MagCacheConfig(
            threshold=1.0, retention_ratio=0.1, num_inference_steps=6, mag_ratios=[1.0] * 12
        ),
        "SeaCache": lambda: hooks.SeaCacheConfig(threshold=100.0),
        "TaylorSeer": lambda: hooks.TaylorSeerCacheConfig(
            cache_interval=2, disable_cache_before_step=1
        ),
        "TextKV": lambda: hooks.TextKVCacheConfig(),
    }


@pytest.mark.filterwarnings("ignore::wanviz.CaptureWarning")
@pytest.mark.parametrize("name", ["MagCache", "SeaCache", "TaylorSeer", "TextKV"])
def test_other_caches_keep_their_bits_and_what_they_skip_is_not_computed(name):
    pipe = real.wan21(num_layers=3)
    pipe.transformer.enable_cache(caches()[name]())
    plain = real.draw(pipe, num_inference_steps=6)
    ran: list[int] = []
    handles = [
        block.attn2.norm_k.register_forward_hook(lambda m, a, out, layer=layer: ran.append(layer))
        for layer, block in enumerate(pipe.transformer.blocks)
    ]
    with wanviz.capture(pipe, **OPTIONS) as trace:
        watched = real.draw(pipe, num_inference_steps=6)
    for handle in handles:
        handle.remove()
    assert np.array_equal(plain, watched)
    assert np.array_equal(plain, real.draw(pipe, num_inference_steps=6))
    computed = sum(
        int(np.isfinite(trace.branch(branch).maps["layer", "step"].values).all((2, 3, 4, 5)).sum())
        for branch in ("cond", "uncond")
    )
    assert computed == len(ran)
    skipped = sum(
        len(found) for key, found in trace.record["not_computed"].items() if "words" in key
    )
    assert computed + skipped == 3 * 6 * 2


COMPILED: dict[str, Callable[[Any], None]] = {
    "torch.compile": lambda pipe: setattr(
        pipe, "transformer", torch.compile(pipe.transformer, backend="eager")
    ),
    "compile in place": lambda pipe: pipe.transformer.compile(backend="eager"),
    "repeated blocks": lambda pipe: pipe.transformer.compile_repeated_blocks(backend="eager"),
    "fullgraph": lambda pipe: pipe.transformer.compile(backend="eager", fullgraph=True),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", COMPILED)
def test_a_compiled_model_is_watched_eagerly_and_runs_compiled_again(name, dtype):
    torch._dynamo.reset()
    eager = real.draw(each_transformer(real.wan21(), lambda model: model.to(dtype)))
    pipe = each_transformer(real.wan21(), lambda model: model.to(dtype))
    COMPILED[name](pipe)
    compiled = real.draw(pipe)
    with wanviz.capture(pipe, **OPTIONS) as trace:
        watched = real.draw(pipe)
    assert np.array_equal(watched, eager)
    assert np.array_equal(real.draw(pipe), compiled)
    np.testing.assert_allclose(masses(trace).sum(axis=3), 2.0, atol=1e-4)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", COMPILED)
def test_a_model_that_is_compiled_while_watched_runs_eagerly_until_the_end(name):
    torch._dynamo.reset()
    eager, pipe = real.draw(real.wan21()), real.wan21()
    with wanviz.capture(pipe, **OPTIONS) as trace:
        COMPILED[name](pipe)
        watched = real.draw(pipe)
    assert np.array_equal(watched, eager)
    assert trace.record["not_computed"] == {}
    np.testing.assert_allclose(masses(trace).sum(axis=3), 2.0, atol=1e-4)
    torch._dynamo.reset()


def draw_from_image(pipe: Any, **options: Any) -> np.ndarray:
    asked = {"image": Image.new("RGB", (48, 32), "red"), "negative_prompt": "blurred", **real.SIZE}
    return pipe(
        prompt=real.ENGLISH, generator=torch.Generator().manual_seed(1), **asked, **options
    ).frames


def image_to_video(**changes: Any) -> Any:
    from diffusers import WanImageToVideoPipeline

    model = real.transformer(in_channels=36, out_channels=16, **changes)
    return real.quiet(
        WanImageToVideoPipeline(
            **real.parts(), transformer=model, image_encoder=None, image_processor=None
        )
    )


def test_image_to_video_is_watched_like_text_to_video():
    """Wan2.2's image-to-video reads the image beside the latents."""
    pipe = image_to_video()
    plain = draw_from_image(pipe)
    with wanviz.capture(pipe, **OPTIONS) as trace:
        assert np.array_equal(draw_from_image(pipe), plain)
    assert (trace.record["seed"], trace.record["num_frames"]) == (1, 9)
    assert [word.text for word in trace.words][:2] == ["a", "woman"]


def test_image_keys_stand_apart_from_the_words(monkeypatch):
    """Wan2.1's image-to-video looks at an image with a softmax of its own: the words still sum to one."""
    pipe = image_to_video(image_dim=8, added_kv_proj_dim=24)
    image = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(pipe, "encode_image", lambda *a: image)  # in place of a CLIP of 1 GB
    plain = draw_from_image(pipe)
    keys = []
    norm = pipe.transformer.blocks[0].attn2.norm_k
    handle = norm.register_forward_hook(lambda m, a, out: keys.append(out.shape[1]))
    with wanviz.capture(pipe, **OPTIONS) as trace:
        assert np.array_equal(draw_from_image(pipe), plain)
    handle.remove()
    assert set(keys) == {512}
    assert trace.record["image_keys"] == "attended apart"
    np.testing.assert_allclose(masses(trace).sum(axis=3), 2.0, atol=1e-4)


def test_a_factor_leaves_the_keys_of_an_image_alone(monkeypatch):
    """Wan2.1's image-to-video looks at words and at an image in one attention, with a softmax for each."""
    pipe = image_to_video(image_dim=8, added_kv_proj_dim=24)
    image = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(pipe, "encode_image", lambda *a: image)  # in place of a CLIP of 1 GB
    part = pipe.transformer.blocks[0].attn2
    with (
        reweight(pipe, real.ENGLISH, {"umbrella": 0, "rain": 9}),
        outputs(part.norm_q) as qs,
        outputs(part.norm_k) as ks,
        outputs(part.to_v) as vs,
        outputs(part.norm_added_k) as image_ks,
        outputs(part.add_v_proj) as image_vs,
        outputs(part) as outs,
    ):
        draw_from_image(pipe)
    calls = zip(qs, ks, vs, image_ks, image_vs, strict=True)
    q, k, v, image_k, image_v = (
        x.double().unflatten(2, (2, -1)).transpose(1, 2) for x in next(calls)
    )  # b n l d
    factor = torch.ones(k.shape[2])
    factor[columns_of(pipe, "umbrella")] = 0
    factor[columns_of(pipe, "rain")] = 9
    share = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) * factor
    of_image = (q @ image_k.mT / q.shape[-1] ** 0.5).softmax(-1)
    answer = share / share.sum(-1, True) @ v + of_image @ image_v
    answer = answer.transpose(1, 2).flatten(2)
    expected = linear(answer, part.to_out[0].weight.double(), part.to_out[0].bias.double())
    torch.testing.assert_close(outs[0].double(), expected, atol=1e-5, rtol=0.0)


def test_expanded_timesteps_are_one_noise_level():
    """Wan2.2-TI2V-5B tells every token its own timestep."""
    pipe = real.wan21()
    pipe.register_to_config(expand_timesteps=True)
    plain = real.draw(pipe)
    with wanviz.capture(pipe, **OPTIONS) as trace:
        assert np.array_equal(real.draw(pipe), plain)
    assert trace.record["fps"] == 24
    assert [step["timestep"] for step in trace.record["steps"]] == [
        float(t) for t in pipe.scheduler.timesteps
    ]
    video = np.zeros((9, 32, 48, 3), np.uint8)
    looked = wanviz.observe(pipe, video, real.ENGLISH, sigmas=(0.5,))
    assert looked.record["not_computed"] == {}
