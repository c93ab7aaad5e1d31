"""The promises of `capture`: it changes nothing, tells the truth, and bad use gets a sentence."""

import json
import sys

import numpy as np
import pytest
import tinywan
import torch

import wanviz
from wanviz import running
from wanviz.frame_masses import few_row_masses, turned
from wanviz.reducers import WordMasses

PROMPT = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"
ENGLISH = "a woman in a red qipao and a child in a blue coat walk in the rain"

EVERY_AXIS = [("layer", "head", "step"), ("layer",), ()]


def blocks_of(pipe):
    """(layer, block) of both noise experts."""
    return [
        place
        for model in (pipe.transformer, pipe.transformer_2)
        for place in enumerate(model.blocks)
    ]


def attention_of(pipe, generate, row=0, **options):
    """Queries and keys of one row of the batch: kind -> list of (layer, q, k) in float64."""
    seen = {"cross_attn": [], "temporal_attn": []}
    handles = []
    for layer, block in blocks_of(pipe):
        for kind, found in seen.items():
            taps, slot = getattr(block, kind), {}

            def look(name, output, kind=kind, layer=layer, slot=slot, found=found):
                slot[name] = output[row].double()
                if len(slot) == 2:
                    found.append((layer, slot["q"], slot["k"]))
                    slot.clear()

            for name in ("q", "k"):
                handles.append(
                    getattr(taps, name).register_forward_hook(
                        lambda m, i, o, name=name, look=look: look(name, o)
                    )
                )
    generate(**options)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_output_is_bit_identical_with_capture_on_off_and_afterwards(pipe, generate, dtype):
    pipe.to("cpu", dtype)
    before = generate()
    with wanviz.capture(
        pipe, keep=EVERY_AXIS, branches=("cond", "uncond"), previews=True, links=True
    ) as trace:
        watched = generate()
    after = generate()
    assert np.array_equal(before, watched)
    assert np.array_equal(before, after)
    assert trace.record["dtype"] == str(dtype).removeprefix("torch.")


def test_capture_draws_no_random_number(pipe, generate):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    with wanviz.capture(pipe, previews=True):
        generate(seed=1)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("branch", ["cond", "uncond"])
def test_maps_equal_a_float64_softmax_of_the_models_queries_and_keys(pipe, generate, dtype, branch):
    pipe.to("cpu", dtype)
    row = ("cond", "uncond").index(branch)
    reference = attention_of(pipe, generate, row, prompt=ENGLISH, negative_prompt="a dog in snow")
    with wanviz.capture(pipe, keep=EVERY_AXIS, branches=("cond", "uncond")) as trace:
        generate(ENGLISH, negative_prompt="a dog in snow")
    part = trace.branch(branch)
    maps = part.maps["layer", "step", "head"].values
    special = part.special["layer", "step", "head"].values
    tokens = len(part.tokens)
    steps = [0] * maps.shape[0]
    for layer, q, k in reference["cross_attn"]:
        mass = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)  # n l p
        mass = mass.transpose(1, 2).unflatten(-1, maps.shape[-3:]).numpy()
        step = steps[layer]
        steps[layer] += 1
        np.testing.assert_allclose(maps[layer, step], mass[:, :tokens], atol=1e-5, rtol=0)
        np.testing.assert_allclose(special[layer, step][:, 0], mass[:, tokens], atol=1e-5, rtol=0)
        padding = mass[:, tokens + 1 :].sum(1)
        np.testing.assert_allclose(special[layer, step][:, 1], padding, atol=1e-5, rtol=0)
    assert steps == [4] * len(steps)


def test_kept_axes_are_running_means_of_all_the_rest(pipe, generate):
    with wanviz.capture(
        pipe, keep=[("head", "step", "layer"), ("layer", "head"), ("step",), ()]
    ) as t:
        generate()
    whole = t.maps["layer", "step", "head"]
    turned = t.maps["head", "layer"].transpose("layer", "head", ...)  # asked for in any order
    np.testing.assert_allclose(turned.values, t.maps["layer", "head"].values, atol=1e-6)
    for axes in (("layer", "head"), ("step",), ()):
        gone = [axis for axis in ("layer", "step", "head") if axis not in axes]
        np.testing.assert_allclose(t.maps[axes].values, whole.mean(gone).values, atol=1e-6)
    words = t.word_map("旗袍", layer=1, head=0, step=2).values
    tokens = [i for w in t.words if w.text == "旗袍" for i in w.tokens]
    np.testing.assert_allclose(words, whole.values[1, 2, 0][tokens].sum(0), atol=1e-6)


def test_words_end_of_text_and_padding_stand_apart_and_sum_to_one(trace):
    for branch in trace.branches:
        part = trace.branch(branch)
        total = part.maps["layer", "head"].sum("token") + part.special["layer", "head"].sum("kind")
        np.testing.assert_allclose(total.values, 1, atol=1e-5)
        assert list(part.special[()].kind.values) == ["end_of_text", "padding"]
        assert (part.special[()] > 0).all()


def test_padding_keys_that_differ_are_computed_one_by_one(pipe, generate):
    def disturb(module, inputs, output):
        output = output.clone()
        output[:, :, -1] += 1.0  # the last key is a pad
        return output

    handles = [b.cross_attn.k.register_forward_hook(disturb) for _, b in blocks_of(pipe)]
    reference = attention_of(pipe, generate)
    with wanviz.capture(pipe, keep=[("layer", "step", "head")]) as trace:
        generate()
    for handle in handles:
        handle.remove()
    assert trace.record["padding_keys"] == "not equal, all computed"
    padding = trace.special["layer", "step", "head"].sel(kind="padding").values
    layer, q, k = reference["cross_attn"][0]
    mass = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    expected = mass[..., len(trace.tokens) + 1 :].sum(-1).unflatten(-1, padding.shape[-3:])
    np.testing.assert_allclose(padding[layer, 0], expected.numpy(), atol=1e-5)


def test_large_layers_are_reduced_in_chunks_with_the_same_result(pipe, generate, monkeypatch):
    with wanviz.capture(pipe) as whole:
        generate()
    monkeypatch.setattr("wanviz.running.WORK_BYTES", {"cpu": 1000})
    with wanviz.capture(pipe) as chunked:
        generate()
    np.testing.assert_allclose(
        chunked.maps["layer", "head"], whole.maps["layer", "head"], atol=1e-6
    )
    np.testing.assert_allclose(
        chunked.frame_attention(layer=0).mass, whole.frame_attention(layer=0).mass, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sharpness", [1, 30])  # logits that differ by 5, and by 100
def test_few_rows_lay_the_mass_of_a_float64_softmax_on_each_frame(monkeypatch, dtype, sharpness):
    monkeypatch.setitem(running.WORK_BYTES, "cpu", 4 * 30 * 4)  # four rows at a time
    q, k = torch.randn(10, 6).to(dtype), (sharpness * torch.randn(30, 6)).to(dtype)
    logits = q.double() @ k.double().T / 6**0.5
    wanted = logits.softmax(-1).unflatten(1, (5, 6)).sum(-1)
    found = few_row_masses(q, k, frames=5)
    torch.testing.assert_close(found.double(), wanted, atol=5e-6, rtol=0)


@pytest.mark.parametrize("tables", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_are_turned_as_the_model_turns_them(dtype, tables):
    x = torch.randn(7, 3 * 4).to(dtype).unflatten(-1, (3, 4)).transpose(0, 1)  # n l d, as in Wan
    angles = 30 * torch.randn(7, 4)
    cos, sin = angles.cos().to(tables)[:, 0::2], angles.sin().to(tables)[:, 0::2]
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)  # diffusers' words
    wanted = torch.empty_like(x)
    wanted[..., 0::2] = first * cos - second * sin
    wanted[..., 1::2] = first * sin + second * cos
    last_bit = 0.0 if tables == torch.bfloat16 else torch.finfo(dtype).eps
    found = turned(x, (cos, sin))
    torch.testing.assert_close(found, wanted, rtol=last_bit, atol=min(last_bit, 1e-6))


@pytest.fixture(params=["none", "ieee", "tf32"])
def matmul(request):
    """PyTorch's switch for products on a GPU, which is there without one."""
    switch = torch.backends.cuda.matmul
    before, switch.fp32_precision = switch.fp32_precision, request.param
    yield switch
    switch.fp32_precision = before


def test_products_of_halves_may_be_tf32_and_no_others(matmul):
    before, gpu = matmul.fp32_precision, torch.device("cuda")
    with pytest.raises(ZeroDivisionError), running.full_precision(gpu):
        assert matmul.fp32_precision != "tf32"
        with running.tf32_products(gpu):
            assert matmul.fp32_precision == "tf32"
        assert matmul.fp32_precision != "tf32"
        with running.tf32_products(gpu):
            raise ZeroDivisionError
    assert matmul.fp32_precision == before


def test_frame_attention_equals_a_float64_softmax_and_is_nan_outside_the_window(pipe, generate):
    for layer, block in blocks_of(pipe):
        block.temporal_attn.window = (1, None)[layer]
    reference = attention_of(pipe, generate)
    with wanviz.capture(pipe, keep=[("layer", "step", "head")]) as trace:
        generate()
    frames = 3
    far = np.abs(np.subtract.outer(np.arange(frames), np.arange(frames))) > 1
    for layer, q, k in reference["temporal_attn"][: len(pipe.transformer.blocks)]:  # step 0
        q, k = (x.unflatten(1, (frames, -1)).transpose(1, 2) for x in (q, k))  # n s f d
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if layer == 0:
            logits = logits.masked_fill(torch.from_numpy(far), -torch.inf)
        expected = logits.softmax(-1).mean((0, 1)).numpy()
        found = trace.frame_attention(layer=layer, step=0).mass.values
        if layer == 0:
            assert np.array_equal(np.isnan(found), far)
            expected[far] = np.nan
        np.testing.assert_allclose(found, expected, atol=1e-5)
    both = trace.frame_attention().mass
    np.testing.assert_allclose(both.sum("key_frame").values, 1, atol=1e-5)


def test_routing_counts_the_models_own_experts(pipe, generate):
    ids = []
    handles = [
        block.moe.expert_ids.register_forward_hook(lambda m, i, o: ids.append(o[0]))
        for layer, block in blocks_of(pipe)
        if layer == 1
    ]
    with wanviz.capture(pipe) as trace:
        generate()
    for handle in handles:
        handle.remove()
    routing = trace.routing
    experts = routing.sizes["token_expert"]
    for step, chosen in enumerate(ids):
        load = np.bincount(chosen.flatten().numpy(), minlength=experts) / chosen.numel()
        np.testing.assert_allclose(routing["load"].sel(layer=1, step=step).values, load, atol=1e-6)
    often = torch.stack([(torch.stack(ids) == e).any(-1).float().mean(0) for e in range(experts)])
    where = routing["where"].sel(layer=1).values
    np.testing.assert_allclose(where.reshape(experts, -1), often.numpy(), atol=1e-6)
    one_hot = torch.stack([(torch.stack(ids) == e).any(-1).float() for e in range(experts)])
    pairs = torch.einsum("esl,fsl->ef", one_hot, one_hot) / one_hot[0].numel()
    together = routing["together"].sel(layer=1).values
    np.testing.assert_allclose(together, pairs.numpy(), atol=1e-6)
    assert set(routing["noise_expert"].values) <= {"high", "low"}
    assert ((routing["entropy"] >= 0) & (routing["entropy"] <= 1 + 1e-6)).all()


def test_branches_are_never_mixed(pipe, generate):
    with wanviz.capture(pipe, branches=("uncond", "cond")) as both:
        generate(ENGLISH, negative_prompt=PROMPT)
    with wanviz.capture(pipe) as alone:
        generate(ENGLISH, negative_prompt=PROMPT)
    assert both.prompt == PROMPT
    cond = both.branch("cond").maps["layer", "head"]
    assert np.array_equal(cond, alone.maps["layer", "head"])
    with pytest.raises(wanviz.KeepError, match=r"'uncond' was not captured.*'cond'"):
        alone.word_map("woman", branch="uncond")


def test_a_skipped_block_is_not_computed_rather_than_stale(pipe, generate):
    for layer, block in blocks_of(pipe):
        if layer == 1:
            original = block.cross_attn.forward

            def skip_in_step_two(x, *args, original=original, **kwargs):
                skip = pipe.current_call.step == 2
                return torch.zeros_like(x) if skip else original(x, *args, **kwargs)

            block.cross_attn.forward = skip_in_step_two
    with (
        pytest.warns(wanviz.CaptureWarning, match="layer 1 in step 2"),
        wanviz.capture(pipe, keep=[("layer", "step"), ("head",)]) as trace,
    ):
        generate()
    maps = trace.maps["layer", "step"]
    assert np.isnan(maps.sel(layer=1, step=2)).all()
    assert np.isfinite(maps.sel(layer=0)).all()
    rest = maps.sel(layer=1).isel(step=[0, 1, 3]).mean("step")
    np.testing.assert_allclose(trace.maps["layer"].sel(layer=1), rest, atol=1e-6)
    assert np.isfinite(trace.maps["head"]).all()
    assert trace.record["not_computed"] == {"cond/words": [[1, 2]]}


def test_the_record_says_how_the_video_was_made(pipe, generate):
    calls = []
    handle = pipe.taps["noise_pred"].register_forward_hook(
        lambda m, i, o: calls.append(pipe.current_call)
    )
    with wanviz.capture(pipe) as trace:
        video = generate(negative_prompt="blurred", seed=5, guidance_scale=3.0)
    handle.remove()
    record = trace.record
    assert record["prompt"] == trace.prompt == PROMPT
    assert record["negative_prompt"] == "blurred"
    assert (record["seed"], record["guidance_scale"]) == (5, 3.0)
    assert [(s["step"], s["sigma"], s["noise_expert"]) for s in record["steps"]] == [
        (c.step, c.sigma, c.noise_expert) for c in calls
    ]
    assert set(record["versions"]) == {"wanviz", "tinywan", "torch"}
    assert record["frame_to_pixel"] == ["0", "1-4", "5-8"]
    assert list(trace.maps["step"].sigma.values) == [c.sigma for c in calls]
    assert list(trace.maps[()].pixel_frames.values) == ["0", "1-4", "5-8"]
    assert json.loads(json.dumps(record)) == record
    assert np.array_equal(trace.frames, np.rint(video[0] * 255).astype(np.uint8))


def test_latent_output_gives_a_trace_without_a_video(pipe, generate):
    with wanviz.capture(pipe) as trace:
        generate(output_type="latent")
    assert trace.frames is None
    assert np.isfinite(trace.maps[()]).all()


def test_a_compiled_block_is_captured_and_compiled_again_afterwards(pipe, generate):
    import torch._dynamo  # loads the compiler, so that capture has a stance to take

    eager, compiled_runs = generate(num_inference_steps=2), []

    def backend(graph, inputs):
        return lambda *args: compiled_runs.append(1) or graph(*args)

    block = pipe.transformer.blocks[0].cross_attn
    block.compile(backend=backend)
    generate(num_inference_steps=2)
    runs = len(compiled_runs)
    with wanviz.capture(pipe) as trace:
        watched = generate(num_inference_steps=2)
    assert len(compiled_runs) == runs > 0  # ran eagerly inside
    assert np.array_equal(watched, eager)
    assert np.isfinite(trace.maps[()]).all()
    generate(num_inference_steps=2)
    assert len(compiled_runs) == 2 * runs
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_capture_leaves_the_compiler_alone_while_none_is_loaded(pipe, generate, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    with wanviz.capture(pipe):
        generate()
    assert "torch._dynamo" not in sys.modules


def test_a_failing_reducer_is_told_at_the_end_and_the_video_is_safe(pipe, generate, monkeypatch):
    expected, made, calls = generate(), [], []

    def fail(self, event):
        calls.append(event.layer)
        raise ValueError("no room on the abacus")

    monkeypatch.setattr(WordMasses, "consume", fail)
    with (
        pytest.raises(wanviz.CaptureError, match=r"video was made.*words.*no room on the abacus"),
        wanviz.capture(pipe) as trace,
    ):
        made.append(generate())
    assert np.array_equal(made[0], expected)
    assert calls == [0]  # switched off after its first failure
    assert np.isfinite(trace.frame_attention(layer=1).mass).all()
    with pytest.raises(wanviz.CaptureError, match="no room on the abacus"):
        trace.word_map("旗袍")
    assert "failed: words" in repr(trace)


def test_an_interrupted_generation_keeps_what_was_seen(pipe, generate):
    def stop(pipe, step, *rest):
        if step == 1:
            raise KeyboardInterrupt
        return rest[-1] if rest else {}

    with pytest.raises(KeyboardInterrupt), wanviz.capture(pipe) as trace:
        generate(callback_on_step_end=stop)
    assert len(trace.record["steps"]) == 2
    computed = np.isfinite(trace.maps["step"].values).all(axis=(1, 2, 3, 4))
    assert list(computed) == [True, True, False, False]


def test_a_trace_that_cannot_be_made_does_not_hide_what_was_raised(pipe, generate, monkeypatch):
    def fail(prompt):
        raise MemoryError("too little")

    monkeypatch.setattr("wanviz.session.split_words", fail)
    with pytest.raises(KeyError, match="mine"), wanviz.capture(pipe) as trace:
        generate()
        raise KeyError("mine")
    with pytest.raises(wanviz.CaptureError, match=r"the run broke off.*too little"):
        trace.word_map("旗袍")
    with pytest.raises(MemoryError), wanviz.capture(pipe):
        generate()


def test_a_trace_cannot_be_read_before_the_block_ends(pipe, generate):
    with wanviz.capture(pipe) as trace:
        generate()
        with pytest.raises(wanviz.CaptureError, match="still being captured"):
            trace.words  # noqa: B018
    assert trace.words


def test_a_block_without_a_generation_is_an_error(pipe):
    with pytest.raises(wanviz.CaptureError, match="no generation ran"), wanviz.capture(pipe) as t:
        pass
    with pytest.raises(wanviz.CaptureError, match="call the pipeline inside"):
        t.save("never.trace")


def test_two_generations_in_one_block_are_an_error_and_the_first_is_kept(pipe, generate):
    with (
        pytest.raises(wanviz.CaptureError, match="one capture holds one call"),
        wanviz.capture(pipe) as trace,
    ):
        first = generate(seed=1)
        generate(ENGLISH, seed=2)
    assert (trace.prompt, trace.record["seed"]) == (PROMPT, 1)
    assert np.array_equal(trace.frames, np.rint(first[0] * 255).astype(np.uint8))


def test_each_of_several_videos_has_a_trace_of_its_own(pipe, generate):
    options = {"keep": EVERY_AXIS, "branches": ("cond", "uncond")}
    with wanviz.capture(pipe, **options) as both:
        frames = generate([PROMPT, ENGLISH])
    assert [video.prompt for video in both.videos] == [PROMPT, ENGLISH]
    for number, prompt in enumerate((PROMPT, ENGLISH)):
        with wanviz.capture(pipe, **options) as alone:
            # the same noise: the second prompt of a call is drawn with the second noise of its seed
            generate([prompt] * 2)
        for branch in ("cond", "uncond"):
            np.testing.assert_allclose(
                both.videos[number].branch(branch).maps["layer", "head", "step"].values,
                alone.videos[number].branch(branch).maps["layer", "head", "step"].values,
                atol=1e-5,
            )
        video = both.videos[number].frames
        assert np.array_equal(video, np.rint(frames[number] * 255).astype(np.uint8))


def test_of_several_videos_the_seed_draws_the_first_again_and_no_other(pipe, generate):
    with wanviz.capture(pipe) as both:
        frames = generate([PROMPT, ENGLISH], seed=3)
    assert [video.record["seed"] for video in both.videos] == [3, None]
    np.testing.assert_allclose(generate(PROMPT, seed=3)[0], frames[0], atol=1e-4)
    assert not np.allclose(generate(ENGLISH, seed=3)[0], frames[1], atol=1e-2)


def test_a_trace_of_several_videos_says_where_they_are(pipe, generate):
    with wanviz.capture(pipe) as both:
        generate([PROMPT, ENGLISH])
    with pytest.raises(wanviz.CaptureError, match=r"take trace\.videos\[0\] to trace\.videos\[1\]"):
        both.word_map("旗袍")
    assert "2 videos" in repr(both)


def test_the_budget_counts_all_videos_of_a_call(pipe, generate):
    one = wanviz.plan(pipe, PROMPT, height=32, width=48, num_frames=9, num_inference_steps=4).nbytes
    with pytest.raises(wanviz.BudgetError), wanviz.capture(pipe, budget=one + 1000):
        generate([PROMPT, PROMPT])
    with wanviz.capture(pipe, budget=2 * one):
        generate([PROMPT, PROMPT])


def test_one_video_is_its_own_list(trace):
    assert trace.videos == (trace,)


def test_selected_layers_steps_and_heads_are_those_of_a_whole_capture(pipe, generate):
    with wanviz.capture(pipe, keep=EVERY_AXIS) as whole:
        generate()
    with wanviz.capture(
        pipe, keep=EVERY_AXIS, select={"layer": [1], "step": range(0, 4, 3), "head": [1]}
    ) as part:
        generate()
    maps = part.maps["layer", "head", "step"]
    assert (list(maps.layer.values), list(maps.step.values)) == ([1], [0, 3])
    expected = whole.maps["layer", "head", "step"].sel(layer=[1], step=[0, 3], head=[1])
    np.testing.assert_allclose(maps.values, expected.values, atol=1e-7)
    np.testing.assert_array_equal(maps.sigma.values, expected.sigma.values)
    np.testing.assert_allclose(
        part.word_map("旗袍", layer=1, step=3, head=1),
        whole.word_map("旗袍", layer=1, step=3, head=1),
        atol=1e-7,
    )
    frames = part.frame_attention(layer=1, step=3, head=1).mass
    np.testing.assert_allclose(
        frames, whole.frame_attention(layer=1, step=3, head=1).mass, atol=1e-7
    )
    assert part.routing["load"].sizes["step"] == 2
    assert part.nbytes < whole.nbytes
    with pytest.raises(wanviz.OptionError, match="this trace has layer 1"):
        part.word_map("旗袍", layer=0)


def test_what_is_selected_must_exist(pipe, generate):
    with (
        pytest.raises(wanviz.OptionError, match="layer 9: this generation has layer 0 to 1"),
        wanviz.capture(pipe, select={"layer": [0, 9]}),
    ):
        generate()


@pytest.mark.parametrize("keep", [[()], EVERY_AXIS])
def test_kept_words_are_those_of_a_whole_capture_and_the_rest_stands_together(pipe, generate, keep):
    with wanviz.capture(pipe, keep=keep) as whole:
        generate()
    with wanviz.capture(pipe, keep=keep, words=["旗袍", "雨"]) as part:
        generate()
    assert [word.text for word in part.words] == ["旗袍", "雨"]
    for phrase in ("旗袍", "雨"):
        np.testing.assert_allclose(part.word_map(phrase), whole.word_map(phrase), atol=1e-7)
    assert list(part.special[()].kind.values) == ["end_of_text", "padding", "other_words"]
    total = part.maps[()].sum("token") + part.special[()].sum("kind")
    np.testing.assert_allclose(total.values, 1.0, atol=1e-5)
    with pytest.raises(wanviz.PhraseError, match=r"'红色' was not kept.*words="):
        part.word_map("红色")


def test_kept_words_survive_a_file(pipe, generate, tmp_path):
    with wanviz.capture(pipe, words=["旗袍"], select={"layer": [1]}) as trace:
        generate()
    trace.save(tmp_path / "some.trace")
    again = wanviz.Trace.load(tmp_path / "some.trace")
    np.testing.assert_array_equal(again.word_map("旗袍", layer=1), trace.word_map("旗袍", layer=1))
    assert again.words == trace.words
    with pytest.raises(wanviz.PhraseError, match="was not kept"):
        again.word_map("女子")


def test_the_unconditional_branch_without_guidance_is_an_error(pipe, generate):
    with (
        pytest.raises(wanviz.CaptureError, match=r"guidance_scale=1\.0"),
        wanviz.capture(pipe, branches=("cond", "uncond")),
    ):
        generate(guidance_scale=1.0)


def test_another_prompt_than_the_pipelines_is_an_error(pipe, generate):
    with pytest.raises(wanviz.CaptureError, match="leave prompt out"):
        with wanviz.capture(pipe, prompt=ENGLISH):
            generate(PROMPT)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"select": {"frame": [1]}}, "use layer, step, head"),
        ({"select": [1]}, "not a dict"),
        ({"select": {"layer": 3}}, "no list of numbers"),
        ({"select": {"layer": [-1]}}, "whole numbers from 0"),
        ({"select": {"layer": [1, 1]}}, "none twice"),
        ({"words": "旗袍"}, "list of phrases"),
        ({"words": [""]}, "no phrase"),
        ({"prompt": 3}, "give a str"),
        ({"keep": "layer"}, "list of tuples"),
        ({"keep": ["layer"]}, "not a tuple of axes"),
        ({"keep": [("layer", "layers")]}, "layer, step, head"),
        ({"keep": []}, "list of tuples"),
        ({"frames": "sampled"}, "not offered for this model: use 'exact' or None"),
        ({"frames": "all"}, "not known: use 'exact' or None"),
        ({"routing": "yes"}, "True or False"),
        ({"previews": 1}, "True or False"),
        ({"links": "yes"}, "True or False"),
        ({"branches": "cond"}, r"\('cond',\)"),
        ({"branches": ("both",)}, "'cond' and 'uncond'"),
        ({"budget": "much"}, "1GiB"),
        ({"budget": -1}, "1GiB"),
    ],
)
def test_a_bad_option_gets_a_sentence(pipe, options, sentence):
    with pytest.raises(wanviz.OptionError, match=sentence), wanviz.capture(pipe, **options):
        pass


def test_something_that_is_no_pipeline_gets_a_sentence(pipe):
    with pytest.raises(wanviz.OptionError, match=r"cannot watch a builtins\.str"):
        wanviz.hook_names("pipe")
    with pytest.raises(wanviz.OptionError, match=r"give the tinywan\.Text"):
        wanviz.hook_names(pipe.transformer)


def test_masked_padding_gets_no_mass_and_the_rest_sums_to_one():
    pipe = tinywan.TextToVideoPipeline.from_preset("tiny")  # its padding is masked
    with wanviz.capture(pipe, keep=[()]) as trace:
        pipe(
            "a red dog", height=32, width=32, num_frames=5, num_inference_steps=1, seed=0,
            progress_bar=False,
        )  # fmt: skip
    special = trace.special[()]
    total = trace.maps[()].sum("token") + special.sel(kind="end_of_text")
    np.testing.assert_allclose(total.values, 1.0, atol=1e-5)
    assert float(special.sel(kind="padding").max()) == 0.0
    assert trace.record["padding_keys"] == "none attended"
