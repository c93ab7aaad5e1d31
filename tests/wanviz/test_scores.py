"""How well a map finds an object: every score against maps and masks whose answer is known, or is counted pixel by pixel."""

import itertools

import numpy as np
import pytest
import tinywan
from tinywan import theatre
from tinywan.checkpoint import SHIPPED
from tinywan.text import UnigramTokenizer

import wanviz
from wanviz.adapters import adapter_for
from wanviz.evaluation.baselines import baselines, with_random_denoisers
from wanviz.evaluation.scores import interval, overlap, pointing, precision, straying, truth_of
from wanviz.evaluation.truth import Sample, rendered
from wanviz.words import encoded_prompt

EXACT = 1e-12
TIES = 0.03  # equal values count as one, which costs a map a little


def object_at(*places, frames=5, size=(4, 6)):
    """A mask in which each pixel frame shows one pixel, or nothing: (row, column) or None, the last one stays."""
    mask = np.zeros((frames, *size), bool)
    for frame in range(frames):
        place = places[min(frame, len(places) - 1)]
        if place is not None:
            mask[(frame, *place)] = True
    return mask


def by_pixel(values, mask):
    """Average precision, by hand: every pixel has the value of its token, equal values are taken at once."""
    frames, height, width = mask.shape
    _, rows, columns = values.shape
    scored = []
    for f, y, x in np.ndindex(frames, height, width):
        latent = 0 if f == 0 else (f - 1) // 4 + 1
        scored.append(
            (values[latent, y // (height // rows), x // (width // columns)], mask[f, y, x])
        )
    found, before, whole = 0.0, 0, sum(inside for _, inside in scored)
    for threshold in sorted({value for value, _ in scored}, reverse=True):
        chosen = [inside for value, inside in scored if value >= threshold]
        found += (sum(chosen) - before) / whole * sum(chosen) / len(chosen)
        before = sum(chosen)
    return found


def test_latent_frame_0_is_one_pixel_frame_and_the_others_are_four():
    mask = np.zeros((9, 4, 6), bool)
    mask[0, 0, 0] = mask[4, :2, :3] = mask[5, 2:, 3:] = True
    truth = truth_of(mask, 2, 2)  # tokens of 2 × 3 pixels
    assert truth.latent.tolist() == [0, 1, 1, 1, 1, 2, 2, 2, 2]
    inside, total = truth.clip
    assert total[:, 0, 0].tolist() == [6, 24, 24]
    assert inside.tolist() == [[[1, 0], [0, 0]], [[6, 0], [0, 0]], [[0, 0], [0, 6]]]
    assert truth.ideal[:, 0, 0].tolist() == [1 / 6, 1 / 4, 0]


def test_no_pixel_of_a_clip_is_lost_on_the_token_grid():
    for mask in rendered(0, 5, "held_out").masks.values():
        inside, total = truth_of(mask, 12, 12).clip
        assert inside.sum() == mask.sum()
        assert total.sum() == mask.size


@pytest.mark.parametrize("values_are", ["all different", "with ties", "all the same"])
def test_precision_is_that_of_the_pixels(rng, values_are):
    for _ in range(20):
        mask = rng.random((9, 4, 6)) < rng.uniform(0.05, 0.5)
        values = rng.random((3, 2, 3))
        if values_are == "with ties":
            values = np.round(3 * values)
        elif values_are == "all the same":
            values = np.full((3, 2, 3), 0.7)
            assert precision(values, truth_of(mask, 2, 3)) == pytest.approx(mask.mean())
        found = precision(values, truth_of(mask, 2, 3))
        assert found == pytest.approx(by_pixel(values, mask), abs=EXACT)


def test_precision_of_a_mask_made_of_whole_tokens_is_1_and_of_its_opposite_least(rng):
    inside = rng.random((2, 2, 3)) < 0.5
    mask = np.repeat(np.repeat(inside, 2, 1), 2, 2)[[0, 1, 1, 1, 1]]
    truth = truth_of(mask, 2, 3)
    assert precision(inside.astype(float), truth) == 1
    assert precision(-inside.astype(float), truth) == pytest.approx(mask.mean())


def test_no_map_on_the_token_grid_is_more_precise_than_the_ceiling(rng):
    tried = 0
    while tried < 8:
        mask = rng.random((1, 4, 8)) < rng.uniform(0.1, 0.9)
        truth = truth_of(mask, 2, 2)
        if len(np.unique(truth.ideal)) < 4:
            continue
        tried += 1
        best = precision(truth.ideal, truth)
        for values in itertools.product(range(4), repeat=4):  # every order of four tokens
            assert precision(np.array(values, float).reshape(1, 2, 2), truth) <= best + EXACT


def test_breaking_the_ceilings_ties_gains_next_to_nothing_on_rendered_clips(rng):
    for number in range(3):
        for name, mask in rendered(number, 5, "held_out").masks.items():
            if mask.any():
                truth = truth_of(mask, 12, 12)
                broken = truth.ideal + 1e-9 * rng.random(truth.ideal.shape)
                assert precision(broken, truth) <= precision(truth.ideal, truth) + TIES, name


def test_the_ceiling_points_at_everything_that_stays_in_its_token_for_a_latent_frame(rng):
    places = rng.integers(0, 4, (3, 2))
    mask = np.zeros((9, 16, 16), bool)
    for frame, latent in enumerate([0, 1, 1, 1, 1, 2, 2, 2, 2]):
        row, column = 4 * places[latent]
        mask[frame, row + rng.integers(4), column + rng.integers(4)] = True
    truth = truth_of(mask, 4, 4)
    assert pointing(truth.ideal, truth) == 1


def test_pointing_counts_the_frames_whose_peak_holds_the_object_and_leaves_out_those_without_it():
    mask = object_at((0, 0), (0, 0), (0, 0), (3, 5), None)  # in token 0, 0, 0, 5; not in the last
    truth = truth_of(mask, 2, 3)
    values = np.zeros((2, 2, 3))
    values[:, 0, 0] = 1
    assert pointing(values, truth) == 3 / 4
    values[1, 1, 2] = 2
    assert pointing(values, truth) == 2 / 4
    values[:] = 0
    values[:, 0, 1] = 1
    assert pointing(values, truth) == 0


def test_pointing_looks_at_each_latent_frame_by_itself():
    truth = truth_of(object_at((0, 0), (3, 5)), 2, 3)
    values = np.zeros((2, 2, 3))
    values[0, 0, 0], values[1, 1, 2] = 1e-6, 1e6
    assert pointing(values, truth) == 1


def test_overlap_counts_pixels_of_the_tokens_above_a_part_of_the_maps_range():
    mask = np.zeros((5, 4, 6), bool)
    mask[:, :2, :2] = True  # one token of six
    mask[:, 2, 4] = True  # a quarter of another
    truth = truth_of(mask, 2, 3)
    values = np.zeros((2, 2, 3))
    values[:, 0, 0], values[:, 0, 1], values[:, 1, 2] = 10, 4, 2
    assert overlap(values, truth, 0.5) == 20 / 25
    assert overlap(values, truth, 0.4) == 20 / 45  # a token without the object comes
    assert overlap(values, truth, 0.2) == 25 / 60  # and one with a quarter of it
    assert overlap(values - 100, truth, 0.5) == 20 / 25  # the range counts, not the zero
    assert overlap(np.ones((2, 2, 3)), truth, 0.5) == pytest.approx(mask.mean())
    whole = truth_of(np.repeat(mask[:, :, :2], 3, axis=2)[:, :2], 1, 3)
    assert overlap(np.ones((2, 1, 3)), whole, 0.5) == 1


@pytest.mark.parametrize(("moves", "strays"), [(1, 0.0), (0, 1.0), (-1, 2.0), (2, 1.0)])
def test_straying_is_how_otherwise_the_map_moves(moves, strays):
    mask, values = np.zeros((13, 3, 9), bool), np.zeros((4, 3, 9))
    for frame in range(13):
        mask[frame, 1, 3 + (frame + 3) // 4] = True  # a token to the right in every latent frame
    for latent in range(4):
        values[latent, 0, 2 + (3 if moves < 0 else 0) + moves * latent] = 5
    values += 0.1  # what is below a frame's mean counts as nothing
    assert straying(values, truth_of(mask, 3, 9)) == pytest.approx(strays, abs=EXACT)


def test_straying_leaves_out_latent_frames_without_the_object():
    mask = object_at((0, 0), (0, 0), (0, 0), (0, 0), (0, 0), None, frames=13)
    mask[9:, 0, 0] = True  # gone in latent frame 2 alone
    values = np.zeros((4, 4, 6))
    values[:2, 0, 0] = values[2, 3, 5] = values[3, 2, 2] = 1
    assert straying(values, truth_of(mask, 4, 6)) == 0  # only the step from 0 to 1 can be told
    alone = truth_of(object_at((0, 0), None), 4, 6)
    assert np.isnan(straying(values[:2], alone))
    assert np.isnan(straying(np.ones((4, 4, 6)), truth_of(mask, 4, 6)))  # an even map has no centre


def test_the_interval_draws_whole_clips_again():
    values, clips = [0.0] * 20 + [1.0] * 20, [3] * 20 + [8] * 20
    found = interval(values, clips)
    assert (found.mean, found.low, found.high, found.clips) == (0.5, 0.0, 1.0, 2)
    words = interval(values, range(40))  # as if every word were a clip of its own
    assert 0.3 < words.low < 0.4 < 0.6 < words.high < 0.7


def test_the_interval_of_one_clip_is_its_mean_and_words_count_alike():
    assert str(interval([0.25, 0.75], [4, 4])) == "50.0 [50.0, 50.0]"
    uneven = interval([1.0, 0.0, 0.0, 0.0], [0, 1, 1, 1])
    assert uneven.mean == 0.25
    assert (uneven.low, uneven.high) == (0, 1)


def test_the_interval_leaves_nan_out():
    told = interval([0.2, float("nan"), 0.4, float("nan")], [0, 0, 1, 2])
    assert told == interval([0.2, 0.4], [0, 1])
    assert told.clips == 2
    nothing = interval([float("nan")], [0])
    assert nothing.clips == 0
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()


def test_the_interval_covers_the_mean_of_a_known_distribution(rng):
    hits = 0
    for trial in range(60):
        values = rng.normal(0.3, 0.1, 40)
        found = interval(values.tolist(), range(40), seed=trial)
        hits += found.low <= 0.3 <= found.high
    assert 51 <= hits  # 57 of 60 on average


def test_words_of_two_parts_that_are_one_token_are_left_out():
    """风雨 is wind and rain, and one token of the shipped tokenizer; 风雪 is two."""
    tokenizer = UnigramTokenizer.from_pretrained(SHIPPED)
    found = {}
    for weather, start in (("rain", "风雨中，"), ("snow", "风雪中，")):
        scene = theatre.Scene(
            "dog", "vest", "red", "none", "none", "park", weather, "stand", "left", 1, wind="windy"
        )
        captions = (theatre.caption(scene, "zh", np.random.default_rng(k)) for k in range(200))
        caption = next(each for each in captions if each.text.startswith(start))
        clip = theatre.render(scene, 1)
        sample = Sample(1, "zh", caption.text, clip.frames, scene, caption, clip.masks)
        offsets = tuple(tokenizer.encode(caption.text).offsets[:-1])
        found[weather] = {
            word.part: word.kind
            for word in sample.words(encoded_prompt(caption.text, offsets, None), 12, 12)
        }
    assert found["rain"].keys() >= {"subject", "garment"}
    assert not found["rain"].keys() & {"wind", "rain"}
    assert (found["snow"]["wind"], found["snow"]["snow"]) == ("wind", "weather")


@pytest.fixture(scope="module")
def told():
    """A debug model, a rendered clip with its words, and a trace of it."""
    pipe = tinywan.TextToVideoPipeline.from_preset("debug", seed=0)
    sample = rendered(2, 5, "held_out", 9, 48)
    words = sample.words(adapter_for(pipe).encode(sample.text), 6, 6)
    trace = wanviz.observe(
        pipe, sample.frames, sample.text, sigmas=(0.5,), keep=[("layer", "head")], routing=False
    )
    return pipe, sample, words, trace


def test_every_word_of_a_rendered_clip_has_its_characters_its_tokens_and_its_mask(told):
    _, sample, words, trace = told
    assert {word.kind for word in words} >= {"subject", "garment", "scenery", "color"}
    for word in words:
        assert sample.text[slice(*word.phrase.spans[0])] == word.phrase.text
        assert word.truth.inside.sum() == sample.masks[word.part].sum() > 0
        if sample.text.count(word.phrase.text) == 1 and len(word.phrase.spans) == 1:
            theirs = trace.word_map(word.phrase.text)
            columns = trace.maps[()].values
            mine = sum(share * columns[index] for index, share in word.phrase.tokens)
            np.testing.assert_allclose(mine, theirs.values, atol=1e-6)
    colors = [word for word in words if word.kind == "color"]
    assert all(word.part in ("garment", "prop", "companion") for word in colors)


def test_rendered_clips_are_told_in_turn_in_both_languages_and_never_were_trained_on():
    for number in range(4):
        sample = rendered(number, 5, "held_out", 5, 32)
        assert sample.language == ("zh" if number % 2 else "en")
        assert theatre.is_held_out(sample.scene)
        again = rendered(number, 5, "held_out", 5, 32)
        assert np.array_equal(again.frames, sample.frames)
        assert again.text == sample.text


def test_baselines_know_nothing_or_the_wrong_thing(told):
    _, _, words, trace = told
    attended = np.arange(len(words), dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 6, 6))
    found = baselines(trace, words, attended, np.random.default_rng(3))
    assert {maps.shape for maps in found.values()} == {(len(words), 3, 6, 6)}
    for word, best in zip(words, found["ceiling"], strict=True):
        np.testing.assert_allclose(best, word.truth.ideal, atol=1e-7)
    assert np.ptp(found["everything"]) == 0
    peaks = {
        np.unravel_index(m.argmax(), m.shape)[1:] for m in found["centre"].reshape(-1, 1, 6, 6)
    }
    assert peaks == {(2, 2)}  # one of the four in the middle
    for word, number in zip(words, found["shuffled_word"][:, 0, 0, 0], strict=True):
        assert words[int(number)].part != word.part
    heads = trace.maps["layer", "head"].values
    same = [
        all(
            np.allclose(found["random_head"][row], sum(s * head[i] for i, s in w.phrase.tokens))
            for row, w in enumerate(words)
        )
        for head in heads.reshape(-1, *heads.shape[2:])
    ]
    assert same.count(True) == 1


def test_random_denoisers_keep_the_text_encoder_and_the_vae(told):
    pipe = told[0]
    other = with_random_denoisers(pipe, seed=1)
    assert other.text_encoder is pipe.text_encoder
    assert other.vae is pipe.vae
    assert other.config is pipe.config
    ours, theirs = (p.transformer.blocks[0].cross_attn.to_q.weight for p in (pipe, other))
    assert not np.allclose(ours.numpy(force=True), theirs.numpy(force=True))
