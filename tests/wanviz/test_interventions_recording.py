"""Activations put from one run into another, two runs compared, and bad use of interventions."""

import numpy as np
import pytest
import torch

import wanviz
from tests.wanviz.test_interventions import BLUE, GRID, LEFT, PROMPT, outputs, whole
from wanviz.attribution import rank_words
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

EVERY_AXIS = {"keep": [("layer", "step", "head")]}


def maps(trace):
    return trace.maps["layer", "step", "head"].values


@pytest.mark.parametrize("what", ["cross_attn", "spatial_attn", "temporal_attn", "stream"])
def test_a_run_injected_into_itself_keeps_its_bits(pipe, generate, what):
    with record(pipe, PROMPT, what) as kept:
        plain = generate()
    assert kept.steps == (0, 1, 2, 3)
    with inject(pipe, kept, PROMPT):
        assert np.array_equal(generate(), plain)


@pytest.mark.parametrize("what", ["cross_attn", "spatial_attn", "temporal_attn", "stream"])
def test_another_run_changes_what_it_is_injected_into(pipe, generate, what):
    plain = generate()
    with record(pipe, BLUE, what) as kept:
        generate(BLUE, seed=3)
    with inject(pipe, kept, PROMPT):
        assert not np.allclose(generate(), plain, atol=1e-3)


def test_the_whole_stream_of_another_run_gives_its_video(pipe, generate):
    short = "a dog"  # the stream knows no words: any prompt will do
    with record(pipe, PROMPT, "stream") as kept:
        video = generate(guidance_scale=1)
    with inject(pipe, kept, short):
        np.testing.assert_allclose(generate(short, guidance_scale=1), video, atol=1e-6)
    with (
        record(pipe, PROMPT, "stream") as cond,
        record(pipe, "snow", "stream", branch="uncond") as uncond,
    ):
        video = generate(negative_prompt="snow")
    with inject(pipe, cond, short), inject(pipe, uncond, short, branch="uncond"):
        np.testing.assert_allclose(generate(short), video, atol=1e-6)


def test_the_stream_is_patched_where_the_mask_says_in_the_chosen_layers_and_steps(pipe, generate):
    stream = pipe.transformer.blocks[0].resid_post
    with outputs(stream) as theirs:
        kept = whole(pipe, BLUE, lambda prompt: generate(prompt, seed=3))
    with outputs(stream) as own:
        generate()
    with (
        inject(pipe, kept, PROMPT, where=LEFT, layers=[0], steps=[0]),
        outputs(stream) as found,
        outputs(pipe.transformer.blocks[1].resid_post) as after,
    ):
        generate()
    left = torch.from_numpy(LEFT.flatten() == 1)
    torch.testing.assert_close(found[0][0, left], theirs[0][0, left])
    assert torch.equal(found[0][0, ~left], own[0][0, ~left])
    assert torch.equal(found[0][1], own[0][1])
    assert not torch.allclose(found[1][0, left], theirs[1][0, left], atol=1e-3)
    assert not torch.equal(after[0][0], kept.tensors["high", 1, 0, "stream"][0])


def test_a_recording_keeps_the_chosen_layers_steps_and_branch(pipe, generate):
    scope = {"layers": [1], "steps": [0, 3], "branch": "uncond"}
    with (
        record(pipe, PROMPT, "stream", **scope) as kept,
        outputs(pipe.transformer.blocks[1].resid_post) as seen,
    ):
        generate()
    assert set(kept.tensors) == {("high", 1, 0, "stream"), ("low", 1, 3, "stream")}
    assert torch.equal(kept.tensors["high", 1, 0, "stream"], seen[0][1:])
    assert kept.nbytes == 2 * 72 * 32 * 4
    assert repr(kept) == "Recording of stream in 2 steps, 18.0 KiB"


def test_injected_attention_is_what_a_capture_inside_sees(pipe, generate):
    with record(pipe, PROMPT) as kept, wanviz.capture(pipe, **EVERY_AXIS) as theirs:
        generate()
    with inject(pipe, kept, BLUE), wanviz.capture(pipe, **EVERY_AXIS) as inside:
        generate(BLUE)
    np.testing.assert_allclose(maps(inside), maps(theirs), atol=1e-6)


def test_masses_inside_reweight_are_of_q_and_k_before_the_factor(pipe, generate):
    with wanviz.capture(pipe, **EVERY_AXIS) as plain:
        generate()
    with reweight(pipe, PROMPT, {"旗袍": 0}), wanviz.capture(pipe, **EVERY_AXIS) as changed:
        generate()
    assert np.array_equal(maps(changed)[0, 0], maps(plain)[0, 0])  # nothing has come before
    assert not np.allclose(maps(changed)[1, 0], maps(plain)[1, 0], atol=1e-3)
    assert (changed.word_map("旗袍") > 0).all()


def test_a_recording_beyond_its_budget_is_refused(pipe, generate):
    one = 72 * 32 * 4
    with record(pipe, PROMPT, "stream", steps=[0], layers=[0], budget=one):
        generate()
    with (
        pytest.raises(wanviz.CaptureError, match=r"budget of 9\.0 KiB.*choose layers and steps"),
        record(pipe, PROMPT, "stream", budget=one),
    ):
        generate()


def test_a_recording_of_nothing_is_an_error(pipe, generate):
    with pytest.raises(wanviz.CaptureError, match="nothing ran"), record(pipe, PROMPT):
        pass
    with pytest.raises(wanviz.CaptureError, match="none of the steps"):
        with record(pipe, PROMPT, steps=[4]):
            generate()


def test_what_does_not_fit_a_recording_gets_a_sentence(pipe, generate):
    with record(pipe, PROMPT) as words:
        generate()
    stream = whole(pipe, run=generate)
    for kept, prompt, options, size, error, sentence in (
        (words, "a dog", {}, {}, wanviz.OptionError, "13 tokens and this one 2"),
        (words, PROMPT, {"where": LEFT}, {}, wanviz.OptionError, "goes with a recording of"),
        (stream, PROMPT, {"where": LEFT.T}, {}, wanviz.OptionError, r"shaped \(6, 4, 3\)"),
        (stream, PROMPT, {}, {"num_frames": 5}, wanviz.CaptureError, "of another size"),
    ):
        with pytest.raises(error, match=sentence), inject(pipe, kept, prompt, **options):
            generate(prompt, **size)


SIZE = {"height": 32, "width": 48, "num_frames": 9, "progress_bar": False}


def test_a_comparison_holds_both_runs_and_their_difference(pipe, generate):
    plain = generate()
    with reweight(pipe, PROMPT, {"旗袍": 0}):
        changed = generate()
    found = compare(pipe, PROMPT, reweight(pipe, PROMPT, {"旗袍": 0}), seed=7, **SIZE)
    first, second = (np.rint(255 * frames[0]) for frames in (plain, changed))
    assert np.array_equal(found.before.frames, first)
    assert np.array_equal(found.after.frames, second)
    np.testing.assert_allclose(found.difference, np.abs(first - second).mean(-1) / 255, atol=1e-6)
    assert found.difference.dtype == np.float32
    share = f"{found.difference.mean():.1%}"
    assert repr(found) == f"Comparison: {share} of the pixels' range changed on average"
    assert "text/html" in found._repr_mimebundle_()


def test_a_change_of_nothing_makes_no_difference(pipe):
    found = compare(pipe, PROMPT, reweight(pipe, PROMPT, {"旗袍": 1}), **SIZE)
    assert not found.difference.any()
    np.testing.assert_array_equal(found.before.word_map("旗袍"), found.after.word_map("旗袍"))


def test_a_comparison_shows_another_prompt_with_the_attention_that_was_injected(pipe, generate):
    with record(pipe, PROMPT) as kept:
        generate(seed=0)
    found = compare(pipe, PROMPT, inject(pipe, kept, BLUE), instead=BLUE, **SIZE)
    assert (found.before.prompt, found.after.prompt) == (PROMPT, BLUE)
    np.testing.assert_allclose(
        found.after.word_map("蓝色"), found.before.word_map("红色"), atol=1e-6
    )
    assert found.difference.any()


BAD = {
    "no words": (lambda p: reweight(p, PROMPT, {}), "say which words"),
    "words without factors": (lambda p: reweight(p, PROMPT, ["旗袍"]), "how much"),
    "a negative factor": (lambda p: reweight(p, PROMPT, {"旗袍": -1}), "'旗袍' is scaled by -1"),
    "an endless factor": (lambda p: scale_heads(p, {(0, 0): np.inf}), "head 0 of layer 0 is"),
    "no numbers": (lambda p: reweight(p, PROMPT, {"旗袍": 0}, where="all"), "array of numbers"),
    "too large a mask": (lambda p: force_expert(p, 0, where=2 * LEFT), r"outside \[0, 1\]"),
    "a turned mask": (lambda p: reweight(p, PROMPT, {"雨": 0}, where=LEFT.T), r"\(3, 4, 6\) tok"),
    "a mask of lists": (lambda p: force_expert(p, 0, where=[[1]]), r"shaped \(1, 1\)"),
    "a layer too many": (lambda p: reweight(p, PROMPT, {"雨": 0}, layers=[2]), "below 2"),
    "a head too many": (lambda p: reweight(p, PROMPT, {"雨": 0}, heads=[2]), "heads=.*below 2"),
    "a negative step": (lambda p: reweight_frames(p, np.eye(3), steps=[-1]), "steps="),
    "a step in words": (lambda p: record(p, PROMPT, steps="first"), "steps='first'"),
    "another branch": (lambda p: scale_heads(p, {(0, 0): 0}, branch="both"), "use 'cond'"),
    "no heads": (lambda p: scale_heads(p, {}), r"by \(layer, head\)"),
    "heads without layers": (lambda p: scale_heads(p, {3: 0}), r"by \(layer, head\)"),
    "a head in words": (lambda p: scale_heads(p, {(0, "last"): 0}), r"by \(layer, head\)"),
    "head 2 of 2": (lambda p: scale_heads(p, {(0, 2): 0}), "has 2 heads"),
    "another kind": (lambda p: scale_heads(p, {(0, 0): 0}, kind="self_attn"), "spatial_attn"),
    "no experts": (lambda p: scale_experts(p, {}), r"by \(layer, token expert\)"),
    "expert 10 of 10": (lambda p: scale_experts(p, {(0, 10): 0}), "has 10 in each layer"),
    "force expert 10 of 10": (lambda p: force_expert(p, 10), "has 10 in each layer"),
    "a middle expert": (lambda p: force_noise_expert(p, "middle"), "'high' or 'low'"),
    "two frames": (lambda p: reweight_frames(p, np.eye(2)), "2 latent frames and this video 3"),
    "no square": (lambda p: reweight_frames(p, np.ones((3, 2))), r"shaped \(3, 2\)"),
    "an empty square": (lambda p: reweight_frames(p, np.ones((0, 0))), r"shaped \(0, 0\)"),
    "nothing to look at": (lambda p: reweight_frames(p, 1 - np.tri(3)), "look"),
    "nothing in sight": (lambda p: reweight_frames(p, np.eye(3)[::-1]), "sees 1 frames to each"),
    "another activation": (lambda p: record(p, PROMPT, "ffn"), "'stream', 'cross_attn'"),
    "another budget": (lambda p: record(p, PROMPT, budget="much"), "1GiB"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_argument_gets_a_sentence(pipe, generate, name):
    make, sentence = BAD[name]
    with pytest.raises(wanviz.OptionError, match=sentence), make(pipe):
        generate()


def test_steps_that_never_ran_are_told_at_the_end(pipe, generate, recwarn):
    plain = generate()
    with (
        pytest.warns(UserWarning, match=r"steps=\[7, 99\] never ran.*4 steps, 0 to 3") as told,
        scale_heads(pipe, {(0, 0): 0}, steps=[99, 7]),
    ):
        assert np.array_equal(generate(), plain)
    assert told[0].filename == __file__
    with (
        pytest.warns(UserWarning, match=r"steps=\[99\] never ran"),
        scale_experts(pipe, {(0, 0): 0}, steps=[99, 0]),
    ):
        generate()
    with (
        pytest.warns(UserWarning, match=r"steps=\[0\] never ran.*nothing"),
        reweight_frames(pipe, np.eye(3), steps=[0]),
    ):
        pass
    recwarn.clear()
    with scale_heads(pipe, {(0, 0): 0}, steps=[0, 3]):
        generate()
    assert not [one for one in recwarn if "never ran" in str(one.message)]


def test_latents_cannot_be_compared(pipe):
    change = scale_heads(pipe, {(0, 0): 0})
    with pytest.raises(wanviz.OptionError, match=r"output_type='latent'.*leave it out"):
        compare(pipe, PROMPT, change, output_type="latent", **SIZE)


def test_a_phrase_that_is_not_in_the_prompt_gets_the_candidates(pipe):
    with pytest.raises(wanviz.PhraseError, match="旗袍"), reweight(pipe, PROMPT, {"旗跑": 0}):
        pass


def test_numbers_and_masks_of_numpy_xarray_and_torch_are_taken(pipe, generate):
    with wanviz.capture(pipe) as trace:
        generate()
    found = []
    mask = trace.word_map("旗袍").copy(data=LEFT)
    for where, zero, layers in (
        (LEFT, 0, [0]), (LEFT == 1, np.float32(0), np.arange(1)), (mask, np.int64(0), {0}),
        (torch.from_numpy(LEFT), 0.0, range(1)), (LEFT.tolist(), 0, (0,)),
    ):  # fmt: skip
        with reweight(pipe, PROMPT, {"旗袍": zero}, where=where, layers=layers):
            found.append(generate())
    assert all(np.array_equal(video, found[0]) for video in found)
    assert mask.shape == GRID


def test_a_model_with_one_denoiser_has_no_noise_expert_to_force(pipe):
    pipe.transformer_2 = pipe.transformer
    with pytest.raises(wanviz.OptionError, match="one denoiser"), force_noise_expert(pipe, "low"):
        pass


@pytest.mark.parametrize("drawn", [BLUE, "a dog"])
@pytest.mark.parametrize("name", ["reweight", "record", "inject"])
def test_words_of_another_prompt_than_the_one_that_is_drawn_are_an_error(
    pipe, generate, name, drawn
):
    with record(pipe, PROMPT) as kept:
        generate()
    plain = generate(drawn)
    changes = {
        "reweight": lambda: reweight(pipe, PROMPT, {"旗袍": 0}),
        "record": lambda: record(pipe, PROMPT),
        "inject": lambda: inject(pipe, kept, PROMPT),
    }
    with pytest.raises(wanviz.OptionError, match="name the prompt that is drawn"), changes[name]():
        generate(drawn)
    assert np.array_equal(generate(drawn), plain)
    with changes[name]():
        generate()


def test_the_negative_prompt_is_the_one_of_its_branch(pipe, generate):
    with reweight(pipe, "snow", {"snow": 0}, branch="uncond"):
        generate(negative_prompt="snow")
    with (
        pytest.raises(wanviz.OptionError, match="and the branch that reads it"),
        reweight(pipe, PROMPT, {"旗袍": 0}, branch="uncond"),
    ):
        generate(negative_prompt="snow")


def test_what_is_asked_inside_is_held_against_the_prompt_too(pipe, generate):
    video = generate(num_frames=9)[0]
    asked = {"video": video, "sigmas": (0.5,), "progress_bar": False, "method": "knockout"}
    with reweight(pipe, PROMPT, {"旗袍": 0}):
        wanviz.attribute(pipe, PROMPT, ["伞"], **asked)
        wanviz.observe(pipe, video, PROMPT, sigmas=(0.5,))
        with pytest.raises(wanviz.OptionError, match="name the prompt that is drawn"):
            wanviz.observe(pipe, video, BLUE, sigmas=(0.5,))
        with pytest.raises(wanviz.OptionError, match="name the prompt that is drawn"):
            wanviz.attribute(pipe, "a dog", ["dog"], **asked)
        with pytest.raises(wanviz.OptionError, match="name the prompt that is drawn"):
            wanviz.attribute(pipe, PROMPT, ["伞"], **asked | {"method": "word_ablation"})
        region = np.ones(GRID)
        rank_words(pipe, PROMPT, region=region, **asked | {"method": "shapley", "samples": 1})
        with pytest.raises(wanviz.OptionError, match="name the prompt that is drawn"):
            rank_words(pipe, PROMPT, region=region, **asked | {"method": "word_ablation"})


def test_spaces_around_a_prompt_make_no_other_one(pipe, generate):
    with reweight(pipe, PROMPT, {"旗袍": 0}):
        expected = generate()
        assert np.array_equal(generate(f" {PROMPT} "), expected)
