"""What interventions do to tinywan: each against an answer that is known beforehand."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

import wanviz
from wanviz.interventions import (
    force_expert,
    force_noise_expert,
    inject,
    record,
    reweight,
    reweight_frames,
    scale_experts,
    scale_heads,
)

PROMPT = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"
BLUE = "一位穿蓝色旗袍的女子在江南雨巷撑伞漫步"  # as many tokens
TWICE = "a red dog and a red ball"
GRID = (3, 4, 6)
CLOSE = {"atol": 1e-5, "rtol": 0.0}
LEFT = np.zeros(GRID)  # acts on the left half alone
LEFT[..., :3] = 1


@contextmanager
def outputs(module):
    """What a module returns, call by call."""
    seen = []
    handle = module.register_forward_hook(lambda m, i, output: seen.append(output.clone()))
    yield seen
    handle.remove()


@contextmanager
def attention(part):
    """Queries, keys, values and the answer of one attention, call by call, in float64."""
    with outputs(part.q) as q, outputs(part.k) as k, outputs(part.v) as v, outputs(part.out) as out:
        seen = []
        yield seen
    seen += [[x.double() for x in call] for call in zip(q, k, v, out, strict=True)]


def attentions(pipe, kind="cross_attn"):
    """Every attention of a kind, of both noise experts."""
    return [
        getattr(b, kind) for model in (pipe.transformer, pipe.transformer_2) for b in model.blocks
    ]


def mixed(part, mass, v):
    """What an attention answers whose rows look so: `[b, n, l, s]`."""
    weight, bias = part.to_out.weight.double(), part.to_out.bias.double()
    return linear((mass @ v).transpose(1, 2).flatten(2), weight, bias)


def tokens_of(pipe, prompt, phrase):
    """The tokens of every occurrence of a phrase, by their characters."""
    starts = [i for i in range(len(prompt)) if prompt.startswith(phrase, i)]
    return [
        index
        for index, (a, b) in enumerate(pipe.tokenizer.encode(prompt).offsets[:-1])
        if any(a < start + len(phrase) and b > start for start in starts)
    ]


def whole(pipe, prompt=PROMPT, run=None, **options):
    """A recording of the residual stream of a run."""
    with record(pipe, prompt, "stream", **options) as kept:
        run(prompt)
    return kept


FACTOR_ONE = {
    "reweight": lambda pipe: reweight(pipe, PROMPT, {"旗袍": 1}),
    "scale_heads": lambda pipe: scale_heads(pipe, {(0, 1): 1.0}),
    "reweight_frames": lambda pipe: reweight_frames(pipe, np.ones((3, 3))),
    "scale_experts": lambda pipe: scale_experts(pipe, {(1, e): 1 for e in range(10)}),
}
SCOPED = {  # what takes steps, and a branch where it has one
    "reweight": lambda pipe, **scope: reweight(pipe, PROMPT, {"旗袍": 0, "雨": 3}, **scope),
    "scale_heads": lambda pipe, **scope: scale_heads(pipe, {(0, 0): 0}, **scope),
    "reweight_frames": lambda pipe, **scope: reweight_frames(pipe, np.eye(3), **scope),
    "force_expert": lambda pipe, **scope: force_expert(pipe, 2, **scope),
}


@pytest.mark.parametrize("name", FACTOR_ONE)
def test_a_factor_of_one_changes_no_bit(pipe, generate, name):
    plain = generate()
    with FACTOR_ONE[name](pipe):
        assert np.array_equal(generate(), plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_word_that_is_knocked_out_leaves_the_softmax_of_the_other_keys(pipe, generate, dtype):
    pipe.to("cpu", dtype)
    for prompt, phrase, part in ((PROMPT, "旗袍", 0), (TWICE, "red", 1)):  # every occurrence
        part = pipe.transformer.blocks[part].cross_attn
        with reweight(pipe, prompt, {phrase: 0}), attention(part) as calls:
            generate(prompt)
        gone = tokens_of(pipe, prompt, phrase)
        left = [i for i in range(calls[0][1].shape[2]) if i not in gone]
        assert len(gone) >= phrase.isascii() + 1
        for q, k, v, out in calls:
            logits = q @ k.mT / q.shape[-1] ** 0.5
            expected = mixed(part, logits[..., left].softmax(-1), v[:, :, left])
            expected[1] = mixed(part, logits.softmax(-1), v)[1]  # of the negative prompt
            limits = CLOSE if dtype == torch.float32 else {"atol": 0.02, "rtol": 0.02}
            torch.testing.assert_close(out, expected, **limits)


@pytest.mark.parametrize("branch", ["cond", "uncond"])
@pytest.mark.parametrize("heads", [lambda: None, lambda: [1], lambda: iter([1])])
def test_factors_multiply_a_words_share_of_some_heads_and_places(pipe, generate, heads, branch):
    part, row = pipe.transformer.blocks[1].cross_attn, ("cond", "uncond").index(branch)
    scope = {"where": LEFT, "heads": heads(), "branch": branch}
    with reweight(pipe, PROMPT, {"旗袍": 3, "雨": 0.25}, **scope), attention(part) as calls:
        generate(negative_prompt=PROMPT)
    for q, k, v, out in calls:
        share = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)  # b n l p
        factor = torch.ones_like(share[row])
        factor[..., tokens_of(pipe, PROMPT, "旗袍")] = 3
        factor[..., tokens_of(pipe, PROMPT, "雨")] = 0.25
        factor[:, LEFT.flatten() == 0] = 1
        if heads() is not None:
            factor[0] = 1
        share[row] *= factor
        torch.testing.assert_close(out, mixed(part, share / share.sum(-1, True), v), **CLOSE)


def test_one_of_two_equal_words_can_be_meant(pipe, generate):
    with wanviz.capture(pipe) as trace:
        generate(TWICE)
    second = [word for word in trace.words if word.text == "red"][1]
    part = pipe.transformer.blocks[0].cross_attn
    with reweight(pipe, TWICE, {second: 0}), attention(part) as calls:
        generate(TWICE)
    q, k, v, out = calls[0]
    logits = q @ k.mT / q.shape[-1] ** 0.5
    logits[0, ..., list(second.tokens)] = -torch.inf
    torch.testing.assert_close(out, mixed(part, logits.softmax(-1), v), **CLOSE)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("cross_attn", lambda pipe: reweight(pipe, PROMPT, {"旗袍": 0, "雨": 7}, where=LEFT)),
        ("temporal_attn", lambda pipe: reweight_frames(pipe, np.eye(3) + np.tri(3))),
    ],
)
def test_rows_still_sum_to_one(pipe, generate, kind, change):
    parts = attentions(pipe, kind)
    handles = [p.v.register_forward_hook(lambda m, i, out: torch.ones_like(out)) for p in parts]
    with change(pipe), outputs(parts[0].to_out) as seen:
        generate()
    for handle in handles:
        handle.remove()
    ones = torch.ones_like(seen[0])[..., :1].expand(-1, -1, parts[0].to_out.in_features)
    for answer in seen:
        torch.testing.assert_close(answer, parts[0].to_out(ones).detach(), **CLOSE)


def test_places_outside_the_mask_are_left_alone_in_the_first_layer(pipe, generate):
    part = pipe.transformer.blocks[0].cross_attn
    with outputs(part.out) as plain:
        generate()
    with reweight(pipe, PROMPT, {"旗袍": 0}, where=LEFT), outputs(part.out) as changed:
        generate()
    differs = ((plain[0] - changed[0]).abs() > 1e-6).any(-1)  # b l, in step 0
    assert not differs[1].any()
    assert torch.equal(differs[0], torch.from_numpy(LEFT.flatten() == 1))


@pytest.mark.parametrize("name", SCOPED)
def test_only_the_chosen_steps_are_changed(pipe, generate, name):
    with outputs(pipe.taps["noise_pred"]) as plain:
        generate()
    with SCOPED[name](pipe, steps=[2]), outputs(pipe.taps["noise_pred"]) as changed:
        generate()
    same = [torch.equal(a, b) for a, b in zip(plain, changed, strict=True)]
    assert same == [True, True, False, False]  # the last one draws on what the third one made


@pytest.mark.parametrize("name", ["reweight", "reweight_frames", "force_expert"])
def test_only_the_chosen_layers_are_changed(pipe, generate, name):
    first, second = (block.resid_post for block in pipe.transformer.blocks)
    with outputs(first) as early, outputs(second) as late:
        generate()
        with SCOPED[name](pipe, layers=[1]):
            generate()
    half = len(early) // 2
    assert torch.equal(early[0], early[half])
    assert not torch.equal(late[0], late[half])


@pytest.mark.parametrize("branch", ["cond", "uncond"])
@pytest.mark.parametrize("name", [*SCOPED, "inject"])
def test_only_the_chosen_branch_is_changed(pipe, generate, name, branch):
    other = whole(
        pipe,
        run=lambda prompt: generate(prompt, negative_prompt=PROMPT, seed=1),
        branch=branch,
    )
    changes = {**SCOPED, "inject": lambda pipe, **scope: inject(pipe, other, PROMPT, **scope)}
    with outputs(pipe.transformer) as velocity:
        generate(negative_prompt=PROMPT)
        with changes[name](pipe, branch=branch):
            generate(negative_prompt=PROMPT)
    before, after = velocity[0], velocity[len(velocity) // 2]
    row = ("cond", "uncond").index(branch)
    assert not torch.allclose(after[row], before[row], **CLOSE)
    torch.testing.assert_close(after[1 - row], before[1 - row], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", SCOPED)
def test_a_branch_that_does_not_run_is_not_changed(pipe, generate, name):
    plain = generate(guidance_scale=1)
    with SCOPED[name](pipe, branch="uncond"):
        assert np.array_equal(generate(guidance_scale=1), plain)


def test_two_changes_of_one_word_multiply(pipe, generate):
    with reweight(pipe, PROMPT, {"旗袍": 6}):
        once = generate()
    with reweight(pipe, PROMPT, {"旗袍": 12}, heads=[0, 1]), reweight(pipe, PROMPT, {"旗袍": 0.5}):
        np.testing.assert_allclose(generate(), once, atol=1e-4)


def test_frames_that_see_themselves_alone_get_their_own_values(pipe, generate):
    for part in attentions(pipe, "temporal_attn"):
        with reweight_frames(pipe, np.eye(3)), attention(part) as calls:
            generate()
        for _, _, v, out in calls:
            own = mixed(part, torch.eye(v.shape[2], dtype=v.dtype), v)
            torch.testing.assert_close(out[0], own[0], **CLOSE)
            assert not torch.allclose(out[1], own[1], **CLOSE)  # of the negative prompt


def test_frame_factors_multiply_shares_within_the_window(pipe, generate, rng):
    factors = rng.uniform(0, 3, (3, 3))
    factors[2, 1] = 0
    scale = torch.from_numpy(factors.astype(np.float32)).double()
    for layer, part in enumerate(attentions(pipe, "temporal_attn")[:2]):  # windows 1 and none
        with reweight_frames(pipe, factors), attention(part) as calls:
            generate(guidance_scale=1)
        q, k, v, out = calls[0]
        q, k, v = (x.unflatten(2, (3, -1)).transpose(2, 3) for x in (q, k, v))  # b n s f d
        share = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) * scale
        share = share.triu(-1).tril(1) if layer == 0 else share
        answer = (share / share.sum(-1, True)) @ v
        answer = answer.transpose(2, 3).flatten(2, 3).transpose(1, 2).flatten(2)  # b l n·d
        expected = linear(answer, part.to_out.weight.double(), part.to_out.bias.double())
        torch.testing.assert_close(out, expected, **CLOSE)


@pytest.mark.parametrize("kind", ["cross_attn", "spatial_attn", "temporal_attn"])
def test_without_its_heads_an_attention_answers_its_bias(pipe, generate, kind):
    part = getattr(pipe.transformer.blocks[1], kind)
    torch.nn.init.normal_(part.to_out.bias)
    with scale_heads(pipe, {(1, 0): 0, (1, 1): 0}, kind=kind), outputs(part.out) as seen:
        generate()
    for out in seen:
        assert torch.equal(out[0], part.to_out.bias.expand_as(out[0]))
        assert not torch.allclose(out[1], part.to_out.bias.expand_as(out[1]))


def test_the_answer_of_a_head_is_scaled_alone(pipe, generate):
    part = pipe.transformer.blocks[0].cross_attn
    with scale_heads(pipe, {(0, 1): 2.5}), attention(part) as calls:
        generate(guidance_scale=1)
    for q, k, v, out in calls:
        v[:, 1] *= 2.5
        share = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        torch.testing.assert_close(out, mixed(part, share, v), **CLOSE)


def experts_of(moe, x, logits, factors):
    """What a mixture of experts answers, token by token, with each expert's answer scaled."""
    weights, ids = logits.topk(moe.top_k, dim=-1)
    answers = torch.stack([e.down(e.activation(e.up(x))) for e in moe.experts], dim=-2)
    answers = answers * torch.tensor(factors)[:, None]
    chosen = answers.gather(-2, ids[..., None].expand(*ids.shape, x.shape[-1]))
    return (chosen * weights.softmax(-1)[..., None]).sum(-2)


@torch.no_grad()
def mixture(pipe, generate, change, factors):
    """Calls of a mixture inside a change: (input, what it answered, what it should answer)."""
    moe, inputs = pipe.transformer.blocks[0].moe, []
    handle = moe.register_forward_pre_hook(lambda m, args: inputs.append(args[0].clone()))
    with outputs(moe.out) as out, outputs(moe.router_logits) as logits, change:
        generate()
    handle.remove()
    return [
        (x, answer, experts_of(moe, x, wish, factors))
        for x, answer, wish in zip(inputs, out, logits, strict=True)
    ]


def test_the_answer_of_a_token_expert_is_scaled_alone_in_both_branches(pipe, generate):
    factors = [1.0] * 10
    factors[3], factors[5] = 0.0, 2.5
    change = scale_experts(pipe, {(0, 3): 0, (0, 5): 2.5})
    for _, answer, expected in mixture(pipe, generate, change, factors):
        torch.testing.assert_close(answer, expected, **CLOSE)


def test_without_its_token_experts_a_mixture_says_nothing(pipe, generate):
    change = scale_experts(pipe, {(0, e): 0 for e in range(10)})
    for _, answer, _ in mixture(pipe, generate, change, [0.0] * 10):
        assert not answer.any()


def test_token_experts_are_scaled_in_the_chosen_steps_alone(pipe, generate):
    change = scale_experts(pipe, {(0, e): 0 for e in range(10)}, steps=[0])
    calls = mixture(pipe, generate, change, [1.0] * 10)
    assert not calls[0][1].any()
    for _, answer, expected in calls[1:]:
        torch.testing.assert_close(answer, expected, **CLOSE)


def test_a_forced_token_expert_works_everywhere_and_alone(pipe, generate):
    with force_expert(pipe, 4), wanviz.capture(pipe) as trace:
        generate()
    assert (trace.routing["where"].sel(token_expert=4) == 1).all()
    expert = pipe.transformer.blocks[0].moe.experts[4]
    for x, answer, _ in mixture(pipe, generate, force_expert(pipe, 4), [1.0] * 10):
        own = expert.down(expert.activation(expert.up(x)))
        torch.testing.assert_close(answer[0], own[0].detach(), **CLOSE)  # its share is 1
        assert not torch.allclose(answer[1], own[1], **CLOSE)


def test_a_token_expert_is_forced_where_the_mask_says(pipe, generate):
    ids = pipe.transformer.blocks[0].moe.expert_ids
    with outputs(ids) as seen:
        generate()
        with force_expert(pipe, 4, where=LEFT):
            generate()
    before, after = seen[0][0], seen[len(seen) // 2][0]
    left = torch.from_numpy(LEFT.flatten() == 1)
    assert (after[left][:, 0] == 4).all()
    assert torch.equal(after[~left], before[~left])


@pytest.mark.parametrize("which", ["high", "low"])
def test_a_forced_noise_expert_does_all_steps(pipe, generate, which):
    config = pipe.config
    with force_noise_expert(pipe, which), wanviz.capture(pipe) as trace:
        generate(num_inference_steps=9)  # down to low noise
    assert list(trace.routing["noise_expert"].values) == [which] * 9
    assert pipe.config is config
    with wanviz.capture(pipe) as trace:
        generate()
    assert set(trace.routing["noise_expert"].values) == {"high", "low"}
