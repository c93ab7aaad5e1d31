"""Attributions that ask the model again: each against the same question asked by hand, and nothing is left behind."""

import random
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import tinywan
import torch
from torch import nn

import wanviz
from tests.wanviz import real_wan as real
from tests.wanviz.test_interventions_removal import structure
from wanviz.adapters import adapter_for
from wanviz.attribution import METHODS, attribute, rank_words
from wanviz.attribution.ask import find_phrases
from wanviz.attribution.case import Visible, open_case
from wanviz.attribution.faithfulness import PARTS, Curves, curves, infidelity, sensitivity
from wanviz.attribution.perturbation import Target, present
from wanviz.attribution.ranking import RegionTarget
from wanviz.events import Clip
from wanviz.interventions import reweight

pytest.importorskip("transformers", reason="diffusers' WanPipeline needs it for its text encoder")

PROMPT = real.ENGLISH
WORDS = ["qipao", "umbrella"]
TWELVE = "a woman in a red qipao walks in rain with an umbrella"
HIGH, LOW = 0.95, 0.4  # a noise level of each noise expert
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
WHOLE = 0.02  # how far a sum may be from the whole effect
GRID = (2, 4, 4)
RANKS = ("integrated_gradients", "saliency", "word_ablation", "shapley")


def clip_of(video, *sigmas, prompt=PROMPT, seed=0):
    pixels = torch.from_numpy(video).movedim(-1, 0)[None] / 127.5 - 1
    return Clip(pixels, prompt, "", sigmas, seed, ("cond",))


@contextmanager
def opened(pipe, video, *sigmas, words=WORDS, seed=0):
    """A case about a video."""
    phrases = find_phrases(adapter_for(pipe).encode(PROMPT), words)
    with open_case(pipe, clip_of(video, *sigmas, seed=seed), phrases, lambda _: None) as case:
        yield case


@pytest.fixture(scope="module")
def tiny():
    """The debug preset; its cross-attention speaks up, so that words matter and nothing is nearly linear."""
    pipe = tinywan.TextToVideoPipeline.from_preset("debug", seed=0)
    with torch.no_grad():
        for model in (pipe.transformer, pipe.transformer_2):
            for block in model.blocks:
                block.cross_attn.to_out.weight.mul_(3)
    return pipe


@pytest.fixture(scope="module")
def wan():
    pipe = real.wan22()
    real.draw(pipe)  # which leaves notes of its own
    return pipe


@pytest.fixture(params=["tiny", "wan"])
def pipe(request):
    """One of the two: tests share them, since each has to leave them as they were."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def video(pipe, rng):
    """Of 2 × 4 × 4 tokens, in both models."""
    side = 32 if isinstance(pipe, tinywan.TextToVideoPipeline) else 64
    return rng.integers(0, 256, (5, side, side, 3), dtype=np.uint8)


def asked(pipe, video, *sigmas, method, words=WORDS, **parameters):
    return attribute(
        pipe, PROMPT, words, method=method, video=video, sigmas=sigmas, progress_bar=False,
        **parameters,
    )  # fmt: skip


def answer(pipe, video, sigma, prompt=PROMPT):
    """The denoiser's answer, asked by hand."""
    denoiser = adapter_for(pipe).denoiser(clip_of(video, sigma))
    with torch.no_grad():
        return denoiser.velocity(0, denoiser.embeds([prompt]))


def change(one, other):
    """Root mean square over channels and what lies in a token, `[f, h, w]`."""
    square = (one - other).double().square().mean(1)[0]
    _, h, w = GRID
    return square.unflatten(2, (w, -1)).unflatten(1, (h, -1)).mean((2, 4)).sqrt().numpy()


# What attention says


@contextmanager
def attention(pipe):
    """Queries, keys, values and the answer of every cross-attention, in float64; tinywan alone."""
    calls, handles = [], []
    for model in (pipe.transformer, pipe.transformer_2):
        for block in model.blocks:
            part, seen = block.cross_attn, {}
            for name in ("q", "k", "v", "out"):

                def look(m, i, output, part=part, seen=seen, name=name):
                    seen[name] = output[0].double()
                    if name == "out":
                        calls.append((part, dict(seen)))

                handles.append(getattr(part, name).register_forward_hook(look))
    yield calls
    for handle in handles:
        handle.remove()


@pytest.fixture(params=[False, True], ids=["padding is read", "padding is masked"])
def masked(request, tiny, monkeypatch):
    """Whether the keys behind `</s>` are left out, as in the shipped model."""
    for model in (tiny.transformer, tiny.transformer_2):
        config = replace(model.config, mask_padding=request.param)
        monkeypatch.setattr(model, "config", config)
    return request.param


def by_hand(calls, keys, look):
    """The mean of something over the calls: look(mass, given, read), of the first keys or of all."""
    found = []
    for part, seen in calls:
        q, k, v = (seen[name] for name in "qkv")
        k, v = k[:, :keys], v[:, :keys]
        mass = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)  # n l p
        weight = part.to_out.weight.detach().double().unflatten(1, (len(q), -1))  # c n d
        given = torch.einsum("npd,cnd->npc", v, weight)
        found.append(look(mass, given, seen["out"] - part.to_out.bias.detach().double()))
    return torch.stack(found).mean(0).unflatten(-1, GRID).numpy()


@pytest.mark.parametrize("pipe", ["tiny"], indirect=True)
def test_attention_value_is_the_length_of_what_a_token_gets_from_a_word(pipe, video, masked):
    encoded = adapter_for(pipe).encode(PROMPT)
    tokens = [p.tokens for p in find_phrases(encoded, WORDS)]

    def length(mass, given, _):
        return torch.stack(
            [
                torch.stack(
                    [s * mass[n, :, i, None] * given[n, i] for n in range(len(mass)) for i, s in w]
                )
                .sum(0)
                .norm(dim=-1)
                for w in tokens
            ]
        )

    with attention(pipe) as calls:
        for sigma in (HIGH, LOW):
            answer(pipe, video, sigma)
    expected = by_hand(calls, len(encoded.tokens) + 1 if masked else None, length)
    found = asked(pipe, video, HIGH, LOW, method="attention_value")
    np.testing.assert_allclose(found.values, expected, **CLOSE)
    assert found.checks == {"forwards": 2}


@pytest.mark.parametrize("pipe", ["tiny"], indirect=True)
def test_output_space_is_the_cosine_of_what_was_read_and_what_the_word_would_say(
    pipe, video, masked
):
    encoded = adapter_for(pipe).encode(PROMPT)
    own = len(encoded.tokens)
    tokens = [p.tokens for p in find_phrases(encoded, WORDS)]

    def cosine(_, given, read):
        alone = given.sum(0)[:own]
        common = alone.mean(0)
        words = [sum(s * alone[i] for i, s in w) / sum(s for _, s in w) - common for w in tokens]
        return torch.stack(
            [torch.cosine_similarity(read - common, word[None], dim=-1) for word in words]
        )

    with attention(pipe) as calls:
        for sigma in (HIGH, LOW):
            answer(pipe, video, sigma)
    expected = by_hand(calls, own + 1 if masked else None, cosine)
    found = asked(pipe, video, HIGH, LOW, method="output_space")
    np.testing.assert_allclose(found.values, expected, **CLOSE)
    assert np.abs(found.values).max() <= 1


# What changes without a word


def test_knockout_is_the_change_under_reweight(pipe, video):
    found = asked(pipe, video, HIGH, LOW, method="knockout")
    for word in WORDS:
        expected = []
        for sigma in (HIGH, LOW):
            with reweight(pipe, PROMPT, {word: 0}):
                without = answer(pipe, video, sigma)
            expected.append(change(answer(pipe, video, sigma), without))
        np.testing.assert_allclose(found.map(word), np.mean(expected, axis=0), **CLOSE)
        assert found.map(word).values.min() > 1e-5
    assert found.checks == {"forwards": 2 * (1 + len(WORDS))}


@pytest.mark.parametrize("neutral", [None, "hat"])
def test_word_ablation_is_the_change_if_the_prompt_is_shorter(pipe, video, neutral):
    parameters = {} if neutral is None else {"neutral": neutral}
    found = asked(pipe, video, HIGH, LOW, method="word_ablation", **parameters)
    for word in WORDS:
        shorter = PROMPT.replace(f" {word}", "" if neutral is None else f" {neutral}")
        expected = np.mean(
            [
                change(answer(pipe, video, sigma), answer(pipe, video, sigma, shorter))
                for sigma in (HIGH, LOW)
            ],
            axis=0,
        )
        np.testing.assert_allclose(found.map(word), expected, **CLOSE)


def test_the_only_word_is_compared_with_the_empty_prompt(pipe, video):
    (found,) = attribute(
        pipe, "umbrella", method="word_ablation", video=video, sigmas=(LOW,), progress_bar=False
    ).values
    expected = change(answer(pipe, video, LOW, "umbrella"), answer(pipe, video, LOW, " "))
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_word_ablation_of_twelve_words_costs_thirteen_rows_for_each_noise_level(pipe, video):
    rows = []
    handles = [
        model.register_forward_hook(lambda m, i, out: rows.append(len(out[0])))
        for model in (pipe.transformer, pipe.transformer_2)
    ]
    found = attribute(
        pipe, TWELVE, method="word_ablation", video=video, sigmas=(HIGH, LOW), progress_bar=False
    )
    for handle in handles:
        handle.remove()
    assert len(found.words) == 12
    assert found.checks["forwards"] == len(rows) == 2 * (12 + 1)


# A word that is visible in some places


def test_nothing_of_a_word_is_there_where_it_is_visible_nowhere_and_all_where_everywhere(
    pipe, video
):
    with opened(pipe, video, HIGH, LOW) as case, torch.no_grad():
        for level in case.levels:
            for phrase in case.phrases:
                for held in (True, False):
                    target = Target(case, level, phrase, held)
                    there = target(torch.tensor([[0.0], [1.0]]).expand(2, 32))
                    np.testing.assert_allclose(there, [0, 1], atol=1e-3)
                    half = float(target(torch.full((1, 32), 0.5))[0])
                    assert 0.2 < half < 0.8


def test_a_word_that_is_visible_nowhere_is_knocked_out(pipe, video):
    with opened(pipe, video, LOW) as case, torch.no_grad():
        (phrase, _) = case.phrases
        nowhere = Visible(phrase, torch.zeros(1, 32))
        torch.testing.assert_close(case.velocity(0, seen=nowhere), case.without(0, phrase), **CLOSE)
        plain = answer(pipe, video, LOW)  # nothing of it is left for the next call
        torch.testing.assert_close(plain, case.full(0), **CLOSE)


def test_a_word_can_be_hidden_from_some_layers(pipe, video):
    with opened(pipe, video, LOW) as case, torch.no_grad():
        nowhere = Visible(case.phrases[0], torch.zeros(1, 32), frozenset([1]))
        found = case.velocity(0, seen=nowhere)
    with reweight(pipe, PROMPT, {"qipao": 0}, layers=[1]):
        expected = answer(pipe, video, LOW)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert not torch.allclose(found, answer(pipe, video, LOW), **CLOSE)


def test_inside_an_intervention_the_changed_model_is_asked(pipe, video):
    with reweight(pipe, PROMPT, {"rain": 5.0}):
        with opened(pipe, video, LOW) as case, torch.no_grad():
            (phrase, _) = case.phrases
            found = case.velocity(0, seen=Visible(phrase, torch.zeros(1, 32)))
            whole = case.full(0)
        changed = answer(pipe, video, LOW)
    with reweight(pipe, PROMPT, {"rain": 5.0, "qipao": 0.0}):
        expected = answer(pipe, video, LOW)
    torch.testing.assert_close(whole, changed, **CLOSE)
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("pipe", ["tiny"], indirect=True)
def test_held_token_experts_are_those_of_the_full_answer(pipe, video):
    ids = []
    block = pipe.transformer_2.blocks[1]
    handle = block.moe.router_logits.register_forward_hook(lambda m, i, out: ids.append(out))
    with opened(pipe, video, LOW) as case, torch.no_grad():
        whole = case.full(0)
        silent = torch.zeros_like(case.embeds)
        free, held = (case.velocity(0, embeds=case.embeds * 0.2 + silent, held=h) for h in (0, 1))
    handle.remove()
    full, other, _ = (x.topk(3).indices.sort().values for x in ids)
    assert not torch.equal(full, other)  # the router changes its mind
    assert not torch.allclose(free, held, **CLOSE)
    assert whole.shape == held.shape


@pytest.mark.parametrize("layers", [None, [0]])
def test_the_sum_of_integrated_gradients_is_the_whole_effect(pipe, video, layers):
    found = asked(pipe, video, LOW, method="integrated_gradients", layers=layers)
    sums = found.values.sum(("frame", "row", "column"))
    np.testing.assert_allclose(sums, 1, atol=WHOLE)
    assert found.checks["completeness_delta"] == pytest.approx(
        float(np.abs(sums - 1).max()), abs=2e-4
    )


@pytest.mark.parametrize("pipe", ["tiny"], indirect=True)
def test_more_steps_come_nearer_to_the_whole_effect(pipe, video):
    few, many = (
        asked(pipe, video, LOW, method="integrated_gradients", steps=steps) for steps in (2, 24)
    )
    assert few.checks["completeness_delta"] > 3 * many.checks["completeness_delta"]
    with pytest.raises(wanviz.OptionError, match="steps=1: use 2 or more"):
        asked(pipe, video, LOW, method="integrated_gradients", steps=1)


def test_saliency_is_the_slope_of_the_effect(pipe, video):
    found = asked(pipe, video, LOW, method="saliency")
    signed = asked(pipe, video, LOW, method="input_x_gradient")
    np.testing.assert_allclose(np.abs(signed.values), found.values, **CLOSE)
    with opened(pipe, video, LOW) as case, torch.no_grad():
        target = Target(case, 0, case.phrases[0])
        for place in (0, 13, 31):
            z = torch.ones(2, 32)
            z[0, place], z[1, place] = 1.1, 0.9
            high, low = (float(target(row[None])[0]) for row in z)
            slope = (high - low) / 0.2
            assert signed.values[0].values.ravel()[place] == pytest.approx(
                slope, rel=0.05, abs=2e-3
            )


def test_layers_restrict_whose_reading_is_asked_about(pipe, video):
    for method in ("saliency", "input_x_gradient", "integrated_gradients"):
        options = {"method": method, "words": "qipao"}
        options |= {"steps": 2} if method == "integrated_gradients" else {}
        every = asked(pipe, video, LOW, **options)
        both = asked(pipe, video, LOW, layers=[0, 1], **options)
        one = asked(pipe, video, LOW, layers=[0], **options)
        np.testing.assert_allclose(both.values, every.values, **CLOSE)
        assert not np.allclose(one.values, every.values, atol=1e-4)
        for layers in ([2], [], ["first"], 0.5):
            with pytest.raises(wanviz.OptionError, match="give whole numbers from 0 below 2"):
                asked(pipe, video, LOW, layers=layers, **options)


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 1), (1, 1)])
def test_occlusion_is_what_is_lost_without_the_windows_over_a_place(pipe, video, window, stride):
    (found,) = asked(
        pipe, video, LOW, method="occlusion", words="qipao", window=window, stride=stride
    ).values.values
    total, count = np.zeros(GRID), np.zeros(GRID)
    with opened(pipe, video, LOW) as case, torch.no_grad():
        target = Target(case, 0, case.phrases[0])
        starts = range(0, 4 - window + 1, stride)
        for frame in range(2):
            for row in starts:
                for column in starts:
                    at = (frame, slice(row, row + window), slice(column, column + window))
                    visible = torch.ones(GRID)
                    visible[at] = 0
                    total[at] += 1 - float(target(visible.view(1, -1))[0])
                    count[at] += 1
    np.testing.assert_allclose(found, total / count, atol=2e-4)


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 1)])
def test_occlusion_of_latents_is_what_is_lost_where_the_video_is_not_seen(
    pipe, video, window, stride
):
    words = ["qipao", "umbrella"]
    found = asked(
        pipe, video, LOW, method="occlusion_latents", words=words, window=window, stride=stride
    ).values.values
    total, count = np.zeros((2, *GRID)), np.zeros(GRID)
    with opened(pipe, video, LOW) as case, torch.no_grad():
        seen, sigma = case.denoiser.noisy(0), case.denoiser.sigmas[0]
        deep, high, wide = (size // cells for size, cells in zip(seen.shape[2:], GRID, strict=True))
        nowhere = [case.gates(phrase, torch.zeros(1, 1)) for phrase in case.phrases]
        full = [case.full(0) - case.velocity(0, gates=gates) for gates in nowhere]
        starts = range(0, 4 - window + 1, stride)
        for frame in range(GRID[0]):
            for row in starts:
                for column in starts:
                    at = (frame, slice(row, row + window), slice(column, column + window))
                    hidden = seen.clone()
                    place = (
                        ..., slice(deep * frame, deep * (frame + 1)),
                        slice(high * row, high * (row + window)),
                        slice(wide * column, wide * (column + window)),
                    )  # fmt: skip
                    hidden[place] -= (1 - sigma) * case.denoiser.latents[place]
                    answer = case.velocity(0, latents=hidden)
                    for number, (gates, effect) in enumerate(zip(nowhere, full, strict=True)):
                        left = answer - case.velocity(0, latents=hidden, gates=gates)
                        total[(number, *at)] += 1 - float(
                            (left * effect).sum() / effect.square().sum()
                        )
                    count[at] += 1
    np.testing.assert_allclose(found, total / count, atol=2e-4)


@pytest.mark.parametrize("method", ["occlusion", "occlusion_latents"])
@pytest.mark.parametrize(
    ("window", "stride"), [(5, 1), (0, 1), (2, 3), (2, 0), (2.0, 1), ("2", 1), (2, None)]
)
def test_a_window_that_does_not_fit_is_an_error(pipe, video, method, window, stride):
    with pytest.raises(wanviz.OptionError, match="use 1 to 4 tokens"):
        asked(pipe, video, LOW, method=method, window=window, stride=stride)


@pytest.mark.parametrize(("samples", "seed"), [(1, 0), (1, 1), (3, 0)])
def test_shapley_shares_out_the_whole_change_at_every_place(pipe, video, samples, seed):
    words = ["qipao", "umbrella", "rain"]
    options = {"method": "shapley", "words": words, "samples": samples, "seed": seed}
    found = asked(pipe, video, HIGH, LOW, **options)
    np.testing.assert_array_equal(found.values, asked(pipe, video, HIGH, LOW, **options).values)
    expected = []
    with opened(pipe, video, HIGH, LOW, words=words, seed=seed) as case, torch.no_grad():
        for level in case.levels:
            blocked = present(case, torch.zeros(1, 3))
            gone = case.full(level) - case.velocity(level, gates=blocked)
            expected.append(change(gone, torch.zeros(())) ** 2)
    sums = found.values.sum("word")
    np.testing.assert_allclose(sums, np.mean(expected, axis=0), rtol=1e-3, atol=1e-7)
    assert found.checks["forwards"] == 2 * (2 + samples * 3 + 1)


def test_shapley_without_samples_is_an_error(pipe, video):
    for samples in (0, 1.5, "many"):
        with pytest.raises(wanviz.OptionError, match=r"samples=.*use 1 or more"):
            asked(pipe, video, LOW, method="shapley", samples=samples)


# Which words are behind a region


def ranked(pipe, video, *sigmas, region=None, words=None, **parameters):
    region = np.ones(GRID) if region is None else region
    return rank_words(
        pipe, PROMPT, words, region=region, video=video, sigmas=sigmas, progress_bar=False,
        **parameters,
    )  # fmt: skip


@pytest.mark.parametrize("method", RANKS)
def test_words_are_ranked_the_highest_first(pipe, video, method):
    found = ranked(pipe, video, HIGH, LOW, method=method, words=["rain", *WORDS], samples=1)
    assert found.dims == ("word",)
    assert set(found.coords["word"].values) == {"rain", *WORDS}
    assert (np.diff(found.values) <= 0).all()
    assert found.attrs["method"] == method
    again = ranked(pipe, video, HIGH, LOW, method=method, words=["rain", *WORDS], samples=1)
    assert found.identical(again)


def test_what_gradients_say_of_all_tokens_sums_to_the_whole_way(pipe, video):
    region = np.zeros(GRID)
    region[:, :2] = 1
    found = ranked(pipe, video, HIGH, LOW, region=region, steps=24)
    assert found.attrs["method"] == "integrated_gradients"
    assert found.attrs["completeness_delta"] < WHOLE
    assert len(found) == 13
    few = ranked(pipe, video, HIGH, LOW, region=region, steps=2)
    assert few.attrs["completeness_delta"] > found.attrs["completeness_delta"]


def test_without_a_word_a_part_of_the_way_within_the_region_is_lost(pipe, video):
    region = np.zeros(GRID)
    region[1, :, 2:] = 1  # of one frame
    region[1, 0] *= 0.25  # of which some belongs to it more than some
    found = ranked(pipe, video, LOW, region=region, words=WORDS, method="word_ablation")
    full = answer(pipe, video, LOW)
    with opened(pipe, video, LOW) as case, torch.no_grad():
        target = RegionTarget(case, 0, torch.from_numpy(region).float())
        nothing = case.velocity(0, embeds=target.nothing, held=True)
        assert float(target.of(full)) == pytest.approx(1, abs=1e-3)
        assert float(target.of(nothing)) == pytest.approx(0, abs=1e-3)
    each = full.shape[-1] // GRID[-1]
    inside = torch.from_numpy(np.kron(region, np.ones((1, each, each)))).float()
    way = full - nothing
    for word in WORDS:
        gone = full - answer(pipe, video, LOW, PROMPT.replace(f" {word}", ""))
        lost = float((gone * way * inside).sum() / (way.square() * inside).sum())
        assert float(found.sel(word=word)) == pytest.approx(lost, abs=1e-3)


def test_shapley_shares_out_the_way_from_no_word_to_all(pipe, video):
    region = np.zeros(GRID)
    region[0] = 1
    found = ranked(pipe, video, LOW, region=region, method="shapley", samples=1, words=WORDS)
    with opened(pipe, video, LOW) as case, torch.no_grad():
        target = RegionTarget(case, 0, torch.from_numpy(region).float())
        blocked = case.velocity(0, gates=present(case, torch.zeros(1, 2)))
        way = 1 - float(target.of(blocked))
    assert float(found.sum()) == pytest.approx(way, abs=1e-3)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"region": np.zeros(GRID)}, wanviz.OptionError, "some of them above 0"),
        ({"region": np.ones((2, 4))}, wanviz.OptionError, "region is shaped"),
        ({"region": np.full(GRID, -2.0)}, wanviz.OptionError, "give weights from 0 over"),
        ({"region": np.full(GRID, np.nan)}, wanviz.OptionError, "give weights from 0 over"),
        ({"region": "left"}, wanviz.OptionError, "region='left'"),
        ({"method": "attention"}, wanviz.OptionError, "use 'integrated_gradients', 'saliency'"),
        ({"steps": 1}, wanviz.OptionError, "steps=1: use 2 or more"),
        ({"samples": 0}, wanviz.OptionError, "samples=0: use 1 or more"),
        ({"words": "parasol"}, wanviz.PhraseError, "parasol"),
        ({"words": []}, wanviz.OptionError, "no words"),
    ],
)
def test_a_rank_that_cannot_be_gets_a_sentence(pipe, video, change, error, says):
    with pytest.raises(error, match=says):
        ranked(pipe, video, LOW, **change)


# Does the model agree with a map?


class Linear:
    """A word whose effect is the sum of what each token that sees it adds."""

    def __init__(self, weights):
        """Weights sum to 1."""
        self.weights = torch.as_tensor(weights, dtype=torch.float32)

    def __call__(self, visible):
        """`[b, l]` -> `[b]`."""
        return visible @ self.weights


def test_an_even_effect_goes_and_comes_with_the_part_of_the_tokens():
    found = curves(Linear(np.full(100, 0.01)), np.arange(100.0).reshape(1, 10, 10))
    parts = (0, *PARTS, 1)
    assert found.parts == parts
    np.testing.assert_allclose(found.insertion, parts, atol=1e-6)
    np.testing.assert_allclose(found.deletion, 1 - np.array(parts), atol=1e-6)
    np.testing.assert_allclose(found.areas, (0.5, 0.5), atol=1e-6)


def test_an_effect_of_one_token_is_gone_at_once_if_the_map_knows_it():
    weights = np.zeros(100)
    weights[37] = 1
    found = curves(Linear(weights), weights.reshape(4, 5, 5))
    assert found.deletion == (1, 0, 0, 0, 0, 0, 0)
    assert found.insertion == (0, 1, 1, 1, 1, 1, 1)
    np.testing.assert_allclose(found.areas, (0.01, 0.99), atol=1e-9)
    wrong = curves(Linear(weights), -weights.reshape(4, 5, 5))
    assert wrong.deletion == (1, 1, 1, 1, 1, 1, 0)
    np.testing.assert_allclose(wrong.areas, (0.4 + 0.3, 0.3), atol=1e-9)


def test_areas_are_those_of_the_polygons():
    np.testing.assert_allclose(Curves((0, 0.5, 1), (1, 0.5, 0), (0, 1, 1)).areas, (0.5, 0.75))


def test_no_order_is_better_than_the_effects_own(rng):
    weights = rng.dirichlet(np.full(60, 0.3))
    target = Linear(weights)
    deletion, insertion = curves(target, weights.reshape(3, 4, 5)).areas
    for _ in range(50):
        other = curves(target, rng.random((3, 4, 5))).areas
        assert other[0] > deletion
        assert other[1] < insertion
        assert other[0] + other[1] == pytest.approx(1, abs=1e-5)  # of a linear effect
    assert curves(target, weights.reshape(3, 4, 5), parts=(0.5,)).parts == (0, 0.5, 1)


def test_infidelity_is_0_for_the_true_weights_at_any_scale_and_1_for_none(rng):
    weights = rng.dirichlet(np.full(60, 0.3)).reshape(3, 4, 5)
    target = Linear(weights.ravel())
    assert infidelity(target, weights, samples=8) == pytest.approx(0, abs=1e-6)
    assert infidelity(target, 1000 * weights, samples=8) == pytest.approx(0, abs=1e-6)
    assert infidelity(target, np.zeros_like(weights), samples=8) == pytest.approx(1, abs=1e-6)
    wrong = infidelity(target, rng.permutation(weights.ravel()).reshape(3, 4, 5), samples=8)
    assert 0.01 < wrong <= 1
    assert infidelity(target, weights**2, seed=1) != infidelity(target, weights**2, seed=2)


def test_a_models_own_target_draws_curves(pipe, video):
    with opened(pipe, video, LOW) as case:
        found = curves(Target(case, 0, case.phrases[0], held=False), np.arange(32.0).reshape(GRID))
        assert found.deletion[0] == found.insertion[-1] == 1
        assert np.isfinite(found.areas).all()
        error = infidelity(Target(case, 0, case.phrases[0]), np.arange(32.0).reshape(GRID))
        assert 0 <= error <= 1


# Nothing is left behind

PARAMETERS = {
    "attention_heads": {"heads": [(0, 0)]}, "integrated_gradients": {"steps": 2},
    "occlusion": {"window": 4, "stride": 4}, "occlusion_latents": {"window": 4, "stride": 4},
    "shapley": {"samples": 1},
}  # fmt: skip


def everything(pipe):
    """What must be as it was: modules and hooks, which weights ask for gradients, and global state."""
    modules = {name: part for name, part in vars(pipe).items() if isinstance(part, nn.Module)}
    weights = {
        f"{name}.{path}": (weight.requires_grad, weight.grad is None, weight._version)
        for name, part in modules.items()
        for path, weight in part.named_parameters()
    }
    training = {name: part.training for name, part in modules.items()}
    legacy = np.random.get_state(legacy=False)["state"]  # noqa: NPY002 - it is shared by all
    shared = torch.get_rng_state().numpy().tobytes(), legacy["key"].tobytes(), legacy["pos"]
    modes = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
    call = getattr(pipe, "current_call", None), getattr(pipe, "current_request", None)
    return structure(pipe), weights, training, shared, random.getstate(), modes, call


@pytest.fixture(scope="module")
def undisturbed():
    """For each pipeline: how it is drawn, and what that gave before anything was asked."""
    return {}


@pytest.fixture
def left_as_it_was(pipe, undisturbed):
    """A block after which everything has to be as it was, and the next generation too."""

    def draw():
        if isinstance(pipe, tinywan.TextToVideoPipeline):
            options = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
            return pipe(PROMPT, seed=7, output_type="latent", progress_bar=False, **options).frames
        return real.draw(pipe, output_type="latent", num_inference_steps=2, guidance_scale=1.0)

    parameters = list(pipe.transformer.parameters())
    asking = [parameter.requires_grad for parameter in parameters]
    for number, parameter in enumerate(parameters):
        parameter.requires_grad_(bool(number % 2))
    if id(pipe) not in undisturbed:
        undisturbed[id(pipe)] = draw()

    @contextmanager
    def block():
        before = everything(pipe)
        yield
        assert everything(pipe) == before
        assert before[-1] == (None, None)
        assert np.array_equal(draw(), undisturbed[id(pipe)])

    yield block
    for parameter, asks in zip(parameters, asking, strict=True):
        parameter.requires_grad_(asks)


class BrokenError(Exception):
    """What the model raises."""


@contextmanager
def raising(pipe, error, at=2):
    """The model raises in its second block, in one of its forwards."""
    calls, handles = [], []

    def fail(*_):
        calls.append(1)
        if len(calls) == at:
            raise error

    for denoiser in (pipe.transformer, pipe.transformer_2):
        block = denoiser.blocks[1]
        inner = block.moe if hasattr(block, "moe") else block.ffn
        handles.append(inner.register_forward_hook(fail))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    assert len(calls) == at


def by_name(name, pipe, video, words):
    if name.startswith("rank"):
        method = name.removeprefix("rank by ")
        return ranked(pipe, video, HIGH, LOW, words=words, method=method, steps=2, samples=1)
    return asked(pipe, video, HIGH, LOW, method=name, words=words, **PARAMETERS.get(name, {}))


EACH = pytest.mark.parametrize("name", [*METHODS, *(f"rank by {method}" for method in RANKS)])


@EACH
def test_an_attribution_leaves_the_pipeline_as_it_was(pipe, video, name, left_as_it_was):
    with left_as_it_was():
        found = by_name(name, pipe, video, WORDS)
    values = getattr(found, "values", found)
    assert np.isfinite(np.asarray(values)).all()


@EACH
def test_a_bad_word_leaves_the_pipeline_as_it_was(pipe, video, name, left_as_it_was):
    with left_as_it_was(), pytest.raises(wanviz.PhraseError, match="parasol"):
        by_name(name, pipe, video, ["qipao", "parasol"])


@EACH
@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
def test_a_model_that_breaks_off_is_left_as_it_was(pipe, video, name, error, left_as_it_was):
    with left_as_it_was(), raising(pipe, error), pytest.raises(error):
        by_name(name, pipe, video, WORDS)


@pytest.mark.parametrize(
    "name",
    ["integrated_gradients", "occlusion", "occlusion_latents", "shapley", "rank by shapley"],
)
@pytest.mark.parametrize("at", [1, 5])
def test_it_may_break_off_at_any_time(pipe, video, name, at, left_as_it_was):
    with left_as_it_was(), raising(pipe, KeyboardInterrupt, at), pytest.raises(KeyboardInterrupt):
        by_name(name, pipe, video, WORDS)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_there_whatever_the_user_has_turned_off(pipe, video, mode, left_as_it_was):
    expected = asked(pipe, video, LOW, method="saliency")
    with left_as_it_was(), mode():
        found = asked(pipe, video, LOW, method="saliency")
        ranked(pipe, video, LOW, words=WORDS, steps=2)
    np.testing.assert_allclose(found.values, expected.values, **CLOSE)


def test_a_map_that_is_the_video_itself_moves_as_far_as_the_video():
    video = torch.full((1, 3, 1, 4, 4), 0.5)
    state = torch.get_rng_state()
    found = sensitivity(lambda seen: seen.flatten(1), video, radius=0.1, samples=8)
    assert 0 < found <= 0.1 / 0.5 + 1e-6  # each number by at most 0.1, of 0.5
    assert found > 0.5 * 0.1 / 0.5 / 3**0.5  # and by chance not by much less
    assert sensitivity(lambda seen: torch.ones(1, 7), video) == 0
    assert torch.equal(torch.get_rng_state(), state)
    at_the_edge = torch.ones(1, 3, 1, 4, 4)
    assert sensitivity(lambda seen: torch.relu(seen - 1), at_the_edge) == 0  # clipped to [-1, 1]


@pytest.mark.parametrize("shown", [True, False])
@pytest.mark.parametrize("config", [None, {"desc": "mine"}])
def test_a_bar_is_shown_unless_it_is_not_wanted(pipe, capsys, monkeypatch, config, shown):
    size = {}
    if not isinstance(pipe, tinywan.TextToVideoPipeline):
        size = real.SIZE
        monkeypatch.delattr(pipe, "_progress_bar_config", raising=False)
        if config is not None:
            monkeypatch.setattr(pipe, "_progress_bar_config", config, raising=False)
    adapter_for(pipe).draw(PROMPT, 7, progress_bar=shown, **size)
    assert bool(capsys.readouterr().err) == shown
    assert not size or shown or vars(pipe).get("_progress_bar_config") == config


@pytest.mark.parametrize("ask", [attribute, rank_words])
@pytest.mark.parametrize(
    ("change", "says"), [({"prompt": None}, "prompt=None: give a str"), ({"seed": "7"}, "seed='7'")]
)
def test_a_bad_prompt_or_seed_gets_a_sentence_before_anything_is_drawn(
    tiny, monkeypatch, ask, change, says
):
    monkeypatch.setattr(type(tiny), "__call__", lambda *a, **k: pytest.fail("it was drawn"))
    asked = {"prompt": PROMPT, **change} | ({"region": np.ones(GRID)} if ask is rank_words else {})
    with pytest.raises(wanviz.OptionError, match=says):
        ask(tiny, asked.pop("prompt"), WORDS, **asked)


@pytest.mark.parametrize("shown", [True, False])
def test_what_is_drawn_to_be_explained_shows_a_bar_unless_it_is_not_wanted(tiny, capsys, shown):
    attribute(tiny, PROMPT, WORDS, method="knockout", sigmas=(LOW,), progress_bar=shown)
    assert ("denoising" in capsys.readouterr().err) == shown
