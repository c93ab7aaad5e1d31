"""What interventions do to a stock diffusers WanPipeline, tiny and random: answers that are known beforehand."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

import wanviz
from tests.wanviz import real_wan as real
from wanviz.interventions import (
    compare,
    force_expert,
    force_noise_expert,
    inject,
    record,
    reweight,
    reweight_frames,
    scale_experts,
    scale_heads,
)

pytest.importorskip("transformers", reason="diffusers' WanPipeline needs it for its text encoder")

PROMPT = real.ENGLISH
SWAPPED = "a umbrella in a red qipao walks in the rain with an woman"  # as many tokens
LEFT = np.zeros((3, 2, 3))  # acts on the left column alone
LEFT[..., 0] = 1
CLOSE = {"atol": 1e-5, "rtol": 0.0}
SIZE = {name: value for name, value in real.SIZE.items() if name != "output_type"}


@pytest.fixture
def pipe():
    return real.wan22()


@contextmanager
def outputs(module):
    """What a module returns, call by call: those of the two branches take turns."""
    seen = []
    handle = module.register_forward_hook(
        lambda m, i, output: seen.append(
            (output[0] if isinstance(output, tuple) else output).clone()
        )
    )
    yield seen
    handle.remove()


def columns_of(pipe, phrase):
    """The tokens of a phrase, by its letters."""
    found = pipe.tokenizer(PROMPT, return_offsets_mapping=True)["offset_mapping"]
    start = PROMPT.index(phrase)
    return [i for i, (a, b) in enumerate(found[:-1]) if a < start + len(phrase) and b > start]


SCOPED = {
    "reweight": lambda pipe, **scope: reweight(pipe, PROMPT, {"umbrella": 0, "rain": 9}, **scope),
    "scale_heads": lambda pipe, **scope: scale_heads(pipe, {(0, 0): 0}, **scope),
    "reweight_frames": lambda pipe, **scope: reweight_frames(pipe, np.eye(3), **scope),
}
FACTOR_ONE = {
    "reweight": lambda pipe: reweight(pipe, PROMPT, {"umbrella": 1}),
    "scale_heads": lambda pipe: scale_heads(pipe, {(0, 1): 1.0}, kind="self_attn"),
    "reweight_frames": lambda pipe: reweight_frames(pipe, np.ones((3, 3))),
}


@pytest.mark.parametrize("name", FACTOR_ONE)
def test_a_factor_of_one_changes_no_bit(pipe, name):
    plain = real.draw(pipe)
    with FACTOR_ONE[name](pipe):
        assert np.array_equal(real.draw(pipe), plain)


@pytest.mark.parametrize("heads", [None, [1]])
@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_factors_multiply_a_words_share_and_rows_still_sum_to_one(pipe, branch, heads):
    part = pipe.transformer.blocks[0].attn2
    scope = {"where": LEFT, "heads": heads, "branch": branch}
    with (
        reweight(pipe, PROMPT, {"umbrella": 0, "rain": 9}, **scope),
        outputs(part.norm_q) as qs,
        outputs(part.norm_k) as ks,
        outputs(part.to_v) as vs,
        outputs(part) as outs,
    ):
        real.draw(pipe, negative_prompt=PROMPT)
    turn = ("cond", "uncond").index(branch)
    for call, (*qkv, out) in enumerate(zip(qs, ks, vs, outs, strict=True)):
        q, k, v = (x.double().unflatten(2, (2, -1)).transpose(1, 2) for x in qkv)  # b n l d
        share = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        if call % 2 == turn:
            factor = torch.ones_like(share)
            factor[..., columns_of(pipe, "umbrella")] = 0
            factor[..., columns_of(pipe, "rain")] = 9
            factor[:, :, LEFT.flatten() == 0] = 1
            factor[:, :1] = 1 if heads else factor[:, :1]
            share = share * factor / (share * factor).sum(-1, True)
        answer = (share @ v).transpose(1, 2).flatten(2)
        expected = linear(answer, part.to_out[0].weight.double(), part.to_out[0].bias.double())
        torch.testing.assert_close(out.double(), expected, **CLOSE)


def test_frames_that_see_themselves_alone_mix_their_own_values(pipe):
    part = pipe.transformer.blocks[1].attn1
    number = torch.arange(3.0).repeat_interleave(6)[:, None]  # each token's value: its frame
    handle = part.to_v.register_forward_hook(lambda m, i, out: number.expand_as(out))
    seen = []
    with reweight_frames(pipe, np.eye(3)):
        mix = part.to_out[0].register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
        real.draw(pipe)
    handle.remove()
    mix.remove()
    for cond, uncond in zip(seen[::2], seen[1::2], strict=True):
        torch.testing.assert_close(cond[0], number.expand_as(cond[0]), **CLOSE)
        assert not torch.allclose(uncond[0], number.expand_as(uncond[0]), **CLOSE)


@pytest.mark.parametrize(("kind", "attribute"), [("cross_attn", "attn2"), ("self_attn", "attn1")])
def test_without_its_heads_an_attention_answers_its_bias(pipe, kind, attribute):
    part = getattr(pipe.transformer.blocks[1], attribute)
    with scale_heads(pipe, {(1, 0): 0, (1, 1): 0}, kind=kind), outputs(part) as seen:
        real.draw(pipe)
    for cond in seen[::2]:
        assert torch.equal(cond, part.to_out[0].bias.expand_as(cond))
    assert not torch.allclose(seen[1], part.to_out[0].bias.expand_as(seen[1]))


@pytest.mark.parametrize("branch", ["cond", "uncond"])
@pytest.mark.parametrize("name", SCOPED)
def test_only_the_chosen_branch_and_steps_are_changed(name, branch):
    pipe = real.wan21()
    with outputs(pipe.transformer) as velocity:
        real.draw(pipe, negative_prompt=PROMPT)
        with SCOPED[name](pipe, branch=branch, steps=[1]):
            real.draw(pipe, negative_prompt=PROMPT)
    same = [torch.equal(a, b) for a, b in zip(velocity[:4], velocity[6:10], strict=True)]
    assert same == [True, True, branch != "cond", branch != "uncond"]


def test_only_the_chosen_layers_are_changed(pipe):
    first, second = pipe.transformer.blocks
    with outputs(first) as early, outputs(second) as late:
        real.draw(pipe)
        with SCOPED["reweight"](pipe, layers=[1]):
            real.draw(pipe)
    half = len(early) // 2
    assert torch.equal(early[0], early[half])
    assert not torch.equal(late[0], late[half])


def test_a_denoiser_call_of_nobodys_is_left_alone(pipe):
    given = torch.Generator().manual_seed(0)
    latents, text = (
        torch.randn(shape, generator=given) for shape in ((1, 16, 3, 4, 6), (1, 512, 32))
    )

    def ask():
        with torch.no_grad():
            return pipe.transformer(latents, torch.tensor([500.0]), text, return_dict=False)[0]

    plain = ask()
    with reweight(pipe, PROMPT, {"umbrella": 0}):
        real.draw(pipe, guidance_scale=1.0)
        assert torch.equal(ask(), plain)


@pytest.mark.parametrize("which", ["high", "low"])
def test_a_forced_noise_expert_does_all_steps(pipe, which):
    config = dict(pipe.config)
    with force_noise_expert(pipe, which), wanviz.capture(pipe) as trace:
        real.draw(pipe)
    assert [step["noise_expert"] for step in trace.record["steps"]] == [which] * 3
    assert dict(pipe.config) == config
    with wanviz.capture(pipe) as trace:
        real.draw(pipe)
    assert {step["noise_expert"] for step in trace.record["steps"]} == {"high", "low"}


@pytest.mark.parametrize("what", ["cross_attn", "self_attn", "stream"])
def test_a_run_injected_into_itself_keeps_its_bits_and_another_does_not(pipe, what):
    with record(pipe, PROMPT, what) as kept:
        plain = real.draw(pipe)
    assert kept.steps == (0, 1, 2)
    with inject(pipe, kept, PROMPT):
        assert np.array_equal(real.draw(pipe), plain)
        assert not np.array_equal(real.draw(pipe, seed=8), plain)
    other = real.draw(pipe, SWAPPED)
    with inject(pipe, kept, SWAPPED):
        assert not np.array_equal(real.draw(pipe, SWAPPED), other)


def test_the_whole_stream_of_another_run_gives_its_video(pipe):
    with record(pipe, PROMPT, "stream") as kept:
        video = real.draw(pipe, guidance_scale=1.0)
    with inject(pipe, kept, real.CHINESE):
        changed = real.draw(pipe, real.CHINESE, guidance_scale=1.0)
    np.testing.assert_allclose(changed, video, atol=1e-6)


def test_the_stream_is_patched_where_the_mask_says(pipe):
    left = torch.from_numpy(LEFT.flatten() == 1)
    with record(pipe, SWAPPED, "stream", layers=[0], steps=[0]) as kept:
        real.draw(pipe, SWAPPED, seed=3)
    block = pipe.transformer.blocks[0]
    with outputs(block) as own:
        real.draw(pipe)
    with inject(pipe, kept, PROMPT, where=LEFT), outputs(block) as found:
        real.draw(pipe)
    theirs = kept.tensors["high", 0, 0, "stream"]
    torch.testing.assert_close(found[0][:, left], theirs[:, left])
    assert torch.equal(found[0][:, ~left], own[0][:, ~left])
    assert torch.equal(found[1], own[1])  # of the negative prompt


def test_a_comparison_shows_another_prompt_with_the_attention_that_was_injected(pipe):
    with record(pipe, PROMPT) as kept:
        real.draw(pipe, seed=0, negative_prompt=None)
    found = compare(pipe, PROMPT, inject(pipe, kept, SWAPPED), instead=SWAPPED, **SIZE)
    np.testing.assert_allclose(found.after.maps[()].values, found.before.maps[()].values, atol=1e-6)
    assert (found.before.prompt, found.after.prompt) == (PROMPT, SWAPPED)
    assert found.difference.shape == (9, 32, 48)


BAD = {
    "no token experts to scale": (lambda p: scale_experts(p, {(0, 0): 0}), "no token experts"),
    "no token expert to force": (lambda p: force_expert(p, 0), "no token experts"),
    "another kind": (lambda p: scale_heads(p, {(0, 0): 0}, kind="temporal_attn"), "self_attn"),
    "two frames": (lambda p: reweight_frames(p, np.eye(2)), "2 latent frames and this video 3"),
    "too many factors": (lambda p: reweight_frames(p, np.eye(3), budget=1000), "the budget is"),
    "a turned mask": (
        lambda p: reweight(p, PROMPT, {"rain": 0}, where=LEFT.swapaxes(1, 2)),
        "this video has .3, 2, 3. tokens",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_gets_a_sentence(pipe, name):
    make, sentence = BAD[name]
    with pytest.raises(wanviz.OptionError, match=sentence), make(pipe):
        real.draw(pipe)


def test_what_does_not_fit_a_recording_gets_a_sentence(pipe):
    with record(pipe, PROMPT) as kept:
        real.draw(pipe)
    with pytest.raises(wanviz.OptionError, match="22 tokens and this one"):
        inject(pipe, kept, "a cat").__enter__()
    with pytest.raises(wanviz.CaptureError, match="another size"), inject(pipe, kept, PROMPT):
        real.draw(pipe, num_frames=5)
    with pytest.raises(wanviz.CaptureError, match="budget"), record(pipe, PROMPT, budget=1000):
        real.draw(pipe)


def test_a_model_with_one_denoiser_has_no_noise_expert_to_force():
    with (
        pytest.raises(wanviz.OptionError, match="one denoiser"),
        force_noise_expert(real.wan21(), "low"),
    ):
        pass


def test_words_of_another_prompt_than_the_one_that_is_drawn_are_an_error(pipe):
    plain = real.draw(pipe, prompt=SWAPPED)
    with (
        pytest.raises(wanviz.OptionError, match="name the prompt that is drawn"),
        reweight(pipe, PROMPT, {"rain": 0}),
    ):
        real.draw(pipe, prompt=SWAPPED)
    assert np.array_equal(real.draw(pipe, prompt=SWAPPED), plain)
    with reweight(pipe, f"  {PROMPT}\n", {"rain": 0}):  # the pipeline cleans it
        cleaned = real.draw(pipe)
    assert not np.allclose(cleaned, real.draw(pipe), atol=1e-3)
    embeds, _ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False)
    known = real.draw(pipe, prompt_embeds=embeds)
    with reweight(pipe, PROMPT, {"rain": 0}):  # embeddings do not tell what they are of
        assert not np.allclose(real.draw(pipe, prompt_embeds=embeds), known, atol=1e-3)


def test_what_is_asked_inside_is_held_against_the_prompt_too(pipe):
    video = (real.draw(pipe)[0] * 255).astype(np.uint8)
    asked = {"video": video, "sigmas": (0.5,), "progress_bar": False, "method": "knockout"}
    with reweight(pipe, PROMPT, {"rain": 0}):
        wanviz.attribute(pipe, PROMPT, ["umbrella"], **asked)
        wanviz.observe(pipe, video, PROMPT, sigmas=(0.5,))
        with pytest.raises(wanviz.OptionError, match="name the prompt that is drawn"):
            wanviz.observe(pipe, video, SWAPPED, sigmas=(0.5,))
        with pytest.raises(wanviz.OptionError, match="name the prompt that is drawn"):
            wanviz.attribute(pipe, PROMPT, ["umbrella"], **asked | {"method": "word_ablation"})


def test_a_run_that_broke_off_does_not_confuse_what_is_asked_next(pipe):
    video = (real.draw(pipe)[0] * 255).astype(np.uint8)
    asked = {"video": video, "sigmas": (0.5,), "progress_bar": False, "method": "knockout"}
    expected = wanviz.attribute(pipe, PROMPT, ["umbrella"], **asked).values
    seen = wanviz.observe(pipe, video, PROMPT, sigmas=(0.5,)).word_map("umbrella").values
    with pytest.raises(wanviz.OptionError), reweight(pipe, PROMPT, {"rain": 0}):
        real.draw(pipe, prompt=SWAPPED)
    now = wanviz.observe(pipe, video, PROMPT, sigmas=(0.5,)).word_map("umbrella").values
    np.testing.assert_array_equal(now, seen)
    np.testing.assert_array_equal(
        wanviz.attribute(pipe, PROMPT, ["umbrella"], **asked).values, expected
    )
    with (
        pytest.raises(wanviz.OptionError, match="name the prompt that is drawn"),
        reweight(pipe, PROMPT, {"rain": 0}),
    ):
        wanviz.attribute(pipe, SWAPPED, ["umbrella"], **asked)
