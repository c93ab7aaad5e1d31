"""What is found about the inside of tinywan is counted right, on numbers whose answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import tinywan
import torch

import wanviz
from wanviz.adapters import adapter_for
from wanviz.attribution.case import open_case
from wanviz.evaluation import findings
from wanviz.evaluation.run import clip_of
from wanviz.evaluation.truth import rendered

SMALL = (5, 4, 4)


@pytest.fixture(scope="module")
def pipe():
    return tinywan.TextToVideoPipeline.from_preset("debug")


@pytest.fixture(scope="module")
def sample():
    return rendered(0, 9, "held_out", 17, 32)


@pytest.fixture(scope="module")
def told(pipe, sample):
    return sample.words(adapter_for(pipe).encode(sample.text), 4, 4)


def test_rank_correlation_knows_no_scale():
    values = np.array([3.0, 1.0, 2.0, 8.0])
    assert findings.ranked(values, values**3) == pytest.approx(1)
    assert findings.ranked(values, -np.exp(values)) == pytest.approx(-1)


def test_information_is_1_where_the_expert_tells_the_label_and_0_where_it_tells_nothing():
    assert findings.information(np.diag([5.0, 2.0, 3.0])) == pytest.approx(1)
    assert findings.information(np.outer([1.0, 2.0], [3.0, 1.0, 4.0])) == pytest.approx(
        0, abs=1e-12
    )
    half = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])  # two labels share an expert
    entropy = np.log(3)
    assert findings.information(half) == pytest.approx(1 - (2 / 3) * np.log(2) / entropy)


def test_experts_are_counted_by_what_is_at_their_tokens():
    where = np.zeros((1, 2, 1, 1, 3))
    where[0, 0, 0, 0] = [1, 0.5, 0]
    where[0, 1, 0, 0] = [0, 0.5, 1]
    labels = np.array([[[0, 0, 4]]])
    counts = findings.expert_counts(where, labels)
    assert counts.shape == (1, 2, 5)
    np.testing.assert_allclose(counts[0, :, [0, 4]], [[1.5, 0.5], [0, 1]])


def test_a_token_is_labelled_by_what_covers_it_most_and_scenery_by_nothing():
    def one(kind, cover):
        return SimpleNamespace(kind=kind, truth=SimpleNamespace(ideal=np.full((1, 1, 4), cover)))

    garment = one("garment", np.array([1.0, 0.1, 0.3, 0.0]))
    subject = one("subject", np.array([1.0, 0.6, 0.3, 0.2]))
    labels = findings.labels_of(None, (1, 1, 4), [subject, garment, one("weather", 1.0)])
    kinds = [*findings.KINDS, "scenery"]
    assert [kinds[i] for i in labels.ravel()] == ["garment", "subject", "garment", "scenery"]


def test_temporal_attention_is_split_by_whether_the_same_object_is_there(pipe, sample):
    labels = np.zeros(SMALL, int)
    labels[:, :, 2:] = len(findings.KINDS)  # scenery looks for nothing
    labels[1] = 1  # another object everywhere in one frame
    with open_case(pipe, clip_of(sample, (0.5,)), (), lambda _: None) as case:
        sums, counts = findings.following(case, labels)
    layers, frames, _ = sums.shape
    assert frames == SMALL[0]
    windows = [b.temporal_attn.window for b in pipe.transformer.blocks]
    for layer in range(layers):
        seen = [distance for distance in range(1, frames) if counts[layer, distance].sum()]
        assert max(seen) == min(frames - 1, windows[layer] or frames)
    assert (sums <= counts).all() and (sums >= 0).all()
    per_place = counts[:, 1].sum(
        axis=-1
    )  # pairs of neighbours, both directions, that hold an object first
    objects = sum(
        int((labels[i] < len(findings.KINDS)).sum()) * len({i - 1, i + 1} & set(range(frames)))
        for i in range(frames)
    )
    assert (per_place == objects).all()


def test_heads_that_are_ablated_change_what_they_read(pipe, sample, told):
    objects = [one for one in told if one.kind in findings.KINDS][:2]
    read, changed = findings.head_effects(pipe, sample, objects)
    config = pipe.transformer.config
    assert read.shape == changed.shape == (2, config.num_layers, config.num_heads)
    assert (read > 0).all() and (read < 1).all() and (changed > 0).any()
    mass = wanviz.observe(
        pipe,
        sample.frames,
        sample.text,
        sigmas=findings.LEVEL,
        keep=[("layer", "head")],
        frames=None,
    ).maps["layer", "head"]
    weights = objects[0].truth.ideal / objects[0].truth.ideal.sum()
    one = sum(share * mass.values[1, 0, index] for index, share in objects[0].phrase.tokens)
    assert read[0, 1, 0] == pytest.approx(float((one * weights).sum()), rel=1e-4)


def test_an_ablated_expert_changes_nothing_where_it_is_never_chosen(pipe, sample):
    router = pipe.transformer_2.blocks[0].moe.router.weight
    before = router.detach().clone()
    with torch.no_grad():
        router[3] = -1e3 * router.abs().mean()
    try:
        with open_case(pipe, clip_of(sample, (0.5,)), (), lambda _: None) as case:
            changed = findings.expert_effects(pipe, case)
            ids = case._chosen[0, 0]
    finally:
        with torch.no_grad():
            router.copy_(before)
    chosen = set(ids.flatten().tolist())
    for expert in range(changed.shape[1]):
        assert (changed[0, expert] > 0) == (expert in chosen)


def test_all_answers_come_as_json_and_as_a_figure(pipe):
    found = findings.find(pipe, clips=2, progress_bar=False)
    layers, heads = pipe.transformer.config.num_layers, pipe.transformer.config.num_heads
    assert np.shape(found["agreement"]) == (layers, heads, len(findings.LEVELS))
    assert len(found["information"]) == len(found["load_and_effect"]) == layers
    assert all(0 <= value <= 1 for value in found["information"])
    assert len(findings.figure(found).axes) == 4
