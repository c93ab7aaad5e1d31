"""Attributions that need a trace alone, and what every attribution can be asked: against maps that are known."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

import wanviz
from tests.wanviz.test_report import data_of
from wanviz.attribution import METHODS, Attribution, attribute
from wanviz.attribution.ask import find_phrases
from wanviz.attribution.perturbation import cut_out
from wanviz.page import page_data
from wanviz.planning import Plan
from wanviz.trace import Trace
from wanviz.words import Word, encoded_prompt

PROMPT = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"
ENGLISH = "a woman in a red qipao walks in the rain with an umbrella"
CLOSE = {"atol": 1e-6, "rtol": 1e-5}
OF_TRACES = [name for name, method in METHODS.items() if method.from_trace]
OF_MODELS = [name for name in METHODS if name not in OF_TRACES]


@pytest.fixture
def whole(painted) -> Trace:
    """A trace that kept everything that a method may ask for."""
    return painted(ENGLISH, keep=(("layer", "head"),))


@pytest.fixture
def drawn(pipe, generate) -> Trace:
    """A trace of a generation, whose tokens are the model's own."""
    with wanviz.capture(pipe, keep=[("layer", "head")]) as trace:
        generate(ENGLISH)
    return trace


def with_frames(trace: Trace, looks: np.ndarray) -> Trace:
    """The same trace, whose frames look at each other so, in every layer."""
    contents = trace.contents
    found = contents.arrays["cond/frames/layer"]
    looks = np.broadcast_to(looks, found.shape).astype(np.float32)
    return Trace(replace(contents, arrays={**contents.arrays, "cond/frames/layer": looks}))


def made(values: np.ndarray, words: str, trace: Trace) -> Attribution:
    """An attribution whose maps are these."""
    found = attribute(trace, words.split(), method="attention")
    return replace(found, values=found.values.copy(data=np.asarray(values, np.float32)))


def test_the_package_is_used_by_two_names_and_has_at_most_20():
    assert wanviz.attribute is attribute
    assert wanviz.Attribution is Attribution
    assert len(wanviz.__all__) <= 20
    assert {"attribute", "Attribution"} <= set(wanviz.__all__)
    assert (Plan.__module__, Word.__module__) == ("wanviz.planning", "wanviz.words")
    assert wanviz.attribution.METHODS is METHODS  # the package stays a package


@pytest.mark.parametrize("name", ["whole", "drawn"])
def test_attention_is_the_word_map(name, request):
    trace = request.getfixturevalue(name)
    found = attribute(trace, method="attention")
    assert found.words == tuple(word.text for word in trace.words)
    for word, values in zip(trace.words, found.values, strict=True):
        np.testing.assert_allclose(values, trace.word_map(word), **CLOSE)
    assert found.values.dims == ("word", "frame", "row", "column")
    assert found.values.dtype == np.float32


def test_attention_counts_a_token_that_straddles_a_phrase_by_the_part_inside(drawn):
    token = next(t for t in drawn.tokens if len(t.text) > 2)
    phrase = Word(token.text[:-1], (token.span[0], token.span[1] - 1), ())
    (values,) = attribute(drawn, [phrase], method="attention").values
    np.testing.assert_allclose(values, drawn.word_map(phrase), **CLOSE)


@pytest.mark.parametrize("name", ["whole", "drawn"])
def test_the_shares_of_words_that_cover_all_tokens_sum_to_1(name, request):
    trace = request.getfixturevalue(name)
    covered = {index for word in trace.words for index in word.tokens}
    assert covered == set(range(len(trace.tokens)))
    found = attribute(trace, method="attention_share")
    np.testing.assert_allclose(found.values.sum("word"), 1, atol=1e-5)
    umbrella, mass = trace.word_map("umbrella"), trace.maps[()].sum("token")
    np.testing.assert_allclose(found.map("umbrella"), umbrella / mass, **CLOSE)


def test_the_share_is_among_all_words_also_where_only_some_were_kept(pipe, generate, drawn):
    with wanviz.capture(pipe, keep=[()], words=["umbrella"]) as few:
        generate(ENGLISH)
    found = attribute(few, "umbrella", method="attention_share")
    expected = attribute(drawn, "umbrella", method="attention_share")
    np.testing.assert_allclose(found.values, expected.values, atol=1e-5)


def test_attention_layers_is_the_mean_of_layers_that_each_have_the_peak_1(whole):
    found = attribute(whole, "umbrella", method="attention_layers").values[0]
    layers = [whole.word_map("umbrella", layer=i).values for i in range(4)]
    np.testing.assert_allclose(found, np.mean([m / m.max() for m in layers], axis=0), **CLOSE)
    assert whole.word_map("umbrella").values.max() < 0.5 < found.max() <= 1
    contents = whole.contents
    louder = contents.arrays["cond/words/layer+head"].copy()
    louder[2] *= 100  # a layer that reads everything more does not count more
    name = "cond/words/layer+head"
    other = Trace(replace(contents, arrays={**contents.arrays, name: louder}))
    np.testing.assert_allclose(attribute(other, "umbrella").values[0], found, rtol=1e-4)


def test_one_layer_alone_has_the_peak_1(pipe, generate):
    with wanviz.capture(pipe, keep=[("layer",)], select={"layer": [1]}) as trace:
        generate(ENGLISH)
    peaks = attribute(trace).values.max(("frame", "row", "column"))
    np.testing.assert_allclose(peaks, 1, **CLOSE)


@pytest.mark.parametrize("name", ["whole", "drawn"])
def test_all_heads_together_are_the_attention(name, request):
    trace = request.getfixturevalue(name)
    layers, heads = (trace.maps["layer", "head"][axis].values for axis in ("layer", "head"))
    every = [(int(layer), int(head)) for layer in layers for head in heads]
    found = attribute(trace, method="attention_heads", heads=every)
    np.testing.assert_allclose(found.values, attribute(trace, method="attention").values, **CLOSE)
    one = attribute(trace, "umbrella", method="attention_heads", heads=[(1, 0)])
    np.testing.assert_allclose(one.values[0], trace.word_map("umbrella", layer=1, head=0), **CLOSE)
    assert one.parameters == {"heads": [(1, 0)]}


@pytest.mark.parametrize("size", [1.0, 0.25])
def test_frames_that_look_at_themselves_alone_leave_the_attention(painted, size):
    trace = with_frames(painted(), size * np.eye(5))
    found = attribute(trace, method="attention_frames")
    np.testing.assert_allclose(found.values, attribute(trace, method="attention").values, **CLOSE)


def test_a_frame_has_the_maps_of_the_frames_that_it_looks_at(painted):
    looks = np.eye(5)
    looks[3] = [0, 0.5, 0.25, 0, 0]  # twice as much at 1 as at 2, and not at itself
    looks[4] = np.nan  # not computed
    trace = with_frames(painted(), looks)
    (found,) = attribute(trace, "旗袍", method="attention_frames").values.values
    plain = trace.word_map("旗袍").values
    np.testing.assert_allclose(found[3], (2 * plain[1] + plain[2]) / 3, **CLOSE)
    np.testing.assert_allclose(found[:3], plain[:3], **CLOSE)


def test_the_default_brings_each_layer_to_its_peak(whole):
    assert attribute(whole, "umbrella").method == "attention_layers"


@pytest.mark.parametrize("method", OF_TRACES)
def test_a_pipeline_gives_what_a_trace_of_the_same_video_gives(pipe, rng, method):
    video = rng.integers(0, 256, (9, 32, 48, 3), dtype=np.uint8)
    parameters = {"heads": [(0, 1)]} if method == "attention_heads" else {}
    keep = [("layer", "head")]
    seen = wanviz.observe(pipe, video, ENGLISH, sigmas=(0.9, 0.3), seed=4, keep=keep)
    expected = attribute(seen, "qipao", method=method, **parameters)
    found = attribute(
        pipe, ENGLISH, "qipao", method=method, video=video, sigmas=(0.9, 0.3), seed=4, **parameters
    )
    np.testing.assert_allclose(found.values, expected.values, **CLOSE)
    assert np.array_equal(found.frames, video)


def test_the_prompt_is_drawn_where_no_video_is_given(pipe):
    found = attribute(pipe, ENGLISH, "qipao", seed=3)
    video = pipe(ENGLISH, seed=3, progress_bar=False).frames[0]
    assert np.abs(found.frames - 255 * video).max() <= 0.51
    same = attribute(pipe, ENGLISH, "qipao", seed=3, video=found.frames)
    np.testing.assert_allclose(found.values, same.values, atol=1e-5)


# The words that are asked for


def letters(text):
    """A prompt whose tokens are its letters."""
    return encoded_prompt(text, tuple((i, i + 1) for i in range(len(text))), None)


def test_a_phrase_is_meant_every_time_and_a_word_once(whole):
    prompt = letters("red dog, red ball")
    (both,) = find_phrases(prompt, "red")
    assert both.spans == ((0, 3), (9, 12))
    assert [index for index, _ in both.tokens] == [0, 1, 2, 9, 10, 11]
    (one,) = find_phrases(prompt, Word("red", (9, 12), (9, 10, 11)))
    assert one.spans == ((9, 12),)
    every = find_phrases(prompt, None)
    assert [p.text for p in every] == ["red", "dog", "red", "ball"]
    assert [p.text for p in find_phrases(prompt, [" dog", "red ball"])] == ["dog", "red ball"]


def test_both_places_of_a_phrase_are_in_its_map(drawn):
    (found,) = attribute(drawn, "in", method="attention").values
    np.testing.assert_allclose(found, drawn.word_map("in", occurrence="all"), **CLOSE)


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        ("parasol", wanviz.PhraseError, "'parasol' is not in the prompt"),
        (["umbrella", "umbrela"], wanviz.PhraseError, "nearest: 'umbrella'"),
        ("", wanviz.PhraseError, "is empty"),
        ([7], wanviz.PhraseError, "phrase=7"),
        ([], wanviz.OptionError, "no words to look for"),
        ([Word("red", (0, 3), (0,))], wanviz.PhraseError, "belongs to another prompt"),
    ],
)
def test_a_bad_word_gets_a_sentence(pipe, whole, words, error, says):
    for source in ((whole,), (pipe, ENGLISH)):
        with pytest.raises(error, match=says):
            attribute(*source, words, video=np.zeros((5, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("prompt", "word", "left"),
    [
        ("a woman with a red umbrella", "red", "a woman with a umbrella"),
        ("a woman with a red umbrella", "umbrella", "a woman with a red"),
        ("rain falls", "rain", "falls"),
        ("a dog, a red cat, and rain", "a red cat", "a dog, and rain"),
        ("a dog, rain", "a dog", "rain"),
        ("a dog, rain", "rain", "a dog"),
        ("a dog, rain.", "rain", "a dog."),
        ("red dog and red ball", "red", "dog and ball"),
        ("dog", "dog", ""),
        ("一位穿红色旗袍的女子在雨中", "红色", "一位穿旗袍的女子在雨中"),
        ("女子撑伞，背景有屋檐，下雨。", "背景有屋檐", "女子撑伞，下雨。"),
        ("女子撑伞，下雨。", "下雨", "女子撑伞。"),
        ("红伞和红衣", "红", "伞和衣"),
    ],
)
def test_a_word_is_cut_out_without_a_trace(prompt, word, left):
    (phrase,) = find_phrases(letters(prompt), word)
    assert cut_out(prompt, phrase) == left


def test_something_neutral_can_take_the_place_of_every_occurrence():
    (phrase,) = find_phrases(letters("red dog and red ball"), "red")
    assert cut_out("red dog and red ball", phrase, "some") == "some dog and some ball"
    (phrase,) = find_phrases(letters("一把红伞"), "红")
    assert cut_out("一把红伞", phrase, "某") == "一把某伞"


# How it is asked


@pytest.mark.parametrize("method", OF_MODELS)
def test_a_trace_is_refused_where_the_model_is_asked_again(whole, method):
    with pytest.raises(
        wanviz.OptionError, match=r"give the pipeline.*a trace is enough for attention"
    ):
        attribute(whole, "umbrella", method=method)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"method": "gradcam"}, "method='gradcam': use one of attention"),
        ({"method": "attention", "heads": [(0, 0)]}, "unexpected keyword argument 'heads'"),
        ({"method": "attention_heads"}, "missing a required argument: 'heads'"),
        ({"method": "attention_heads", "heads": []}, "heads is empty"),
        (
            {"method": "attention_heads", "heads": [(0, 7)]},
            r"layers \[0, 1, 2, 3\] and heads \[0, 1\]",
        ),
        ({"budget": "much"}, "budget"),
    ],
)
def test_what_a_method_does_not_know_is_an_error(whole, asked, says):
    with pytest.raises(wanviz.OptionError, match=says):
        attribute(whole, "umbrella", **asked)


def test_a_foreign_parameter_is_told_before_anything_is_drawn(pipe):
    pipe.transformer.register_forward_hook(lambda *_: pytest.fail("the model was asked"))
    for method in METHODS:
        with pytest.raises(wanviz.OptionError, match=r"cannot be asked with.*colour"):
            attribute(pipe, ENGLISH, "qipao", method=method, colour=1)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ((), "call attribute\\(pipe, prompt, words\\)"),
        ((ENGLISH, "qipao", 3), "call attribute\\(pipe, prompt, words\\)"),
        ((["qipao"],), "prompt=\\['qipao'\\]: give a str"),
    ],
)
def test_arguments_in_another_order_are_an_error_that_shows_the_order(pipe, asked, says):
    with pytest.raises(wanviz.OptionError, match=says):
        attribute(pipe, *asked)


def test_too_many_arguments_behind_a_trace_are_an_error(whole):
    with pytest.raises(wanviz.OptionError, match="call attribute\\(trace, words\\)"):
        attribute(whole, ENGLISH, "umbrella")


@pytest.mark.parametrize("video", [np.zeros((9, 32, 48)), np.full((9, 32, 48, 3), 7.0)])
def test_a_bad_video_or_noise_level_is_an_error(pipe, video):
    for method in ("attention", "knockout"):
        with pytest.raises(wanviz.OptionError, match="video"):
            attribute(pipe, ENGLISH, "qipao", method=method, video=video)
        with pytest.raises(wanviz.OptionError, match="noise levels"):
            attribute(pipe, ENGLISH, "qipao", method=method, sigmas=(0,))


def test_a_trace_that_did_not_keep_what_is_needed_says_what_would_have(painted):
    with pytest.raises(wanviz.KeepError, match="head"):
        attribute(painted(), "旗袍", method="attention_heads", heads=[(0, 0)])
    with pytest.raises(wanviz.KeepError, match="frame attention was not captured"):
        attribute(painted(frames=None), "旗袍", method="attention_frames")


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_that_is_too_small_is_told_before_the_model_is_asked(pipe, method):
    video = np.zeros((9, 32, 48, 3), np.uint8)
    parameters = {"heads": [(0, 0)]} if method == "attention_heads" else {}
    asked = []
    pipe.transformer.proj_out.register_forward_hook(lambda *_: asked.append(1))
    with pytest.raises(wanviz.BudgetError, match="budget"):
        attribute(pipe, ENGLISH, "qipao", method=method, video=video, budget=1000, **parameters)
    assert asked == []


# What was found


def test_a_region_is_ranked_by_what_a_word_has_there_more_than_elsewhere(whole):
    values = np.zeros((3, 5, 12, 12))
    values[0] = 9.0  # read everywhere: nothing
    values[1, 1, 2, 3], values[1, 4, 0, 0] = 720, 720  # inside, and elsewhere
    values[2, 1, 2, 3], values[2, 1, 2, 4] = 720, -720
    found = made(values, "rain qipao umbrella", whole)
    region = np.zeros((5, 12, 12), bool)
    region[1, 2, 3] = True
    ranked = found.rank(region)
    assert ranked.coords["word"].values.tolist() == ["umbrella", "qipao", "rain"]
    np.testing.assert_allclose(ranked, [720, 718, 0], rtol=1e-6)
    frame = xr.zeros_like(found.values[0])
    frame[1] = 0.5  # weights, as a DataArray: the whole frame
    np.testing.assert_allclose(found.rank(frame), [720 / 144 - 2, 0, 0], atol=1e-4)


@pytest.mark.parametrize(
    "region", [np.ones((4, 12, 12)), np.zeros((5, 12, 12)), -np.ones((5, 12, 12)), 3, "left"]
)
def test_a_region_that_cannot_be_is_an_error(whole, region):
    with pytest.raises(wanviz.OptionError, match=r"region.*give"):
        attribute(whole, "umbrella").rank(region)


def test_a_map_is_found_by_its_word(whole):
    found = attribute(whole, ["rain", "red qipao"], method="attention")
    assert found.words == ("rain", "red qipao")
    np.testing.assert_allclose(found.map("red qipao"), whole.word_map("red qipao"), **CLOSE)
    with pytest.raises(wanviz.PhraseError, match=r"'qipao' is none of .* 'rain', 'red qipao'"):
        found.map("qipao")


def test_one_of_several_equal_words_is_found_by_its_place_alone(whole):
    found = attribute(whole, method="attention")  # "a" and "in" twice
    with pytest.raises(wanviz.PhraseError, match=r"'in' is 2 of the words.*trace.words"):
        found.map("in")
    places = [word for word in whole.words if word.text == "in"]
    assert len(places) == 2
    for word in places:
        np.testing.assert_allclose(found.map(word), whole.word_map(word), **CLOSE)
    with pytest.raises(wanviz.PhraseError, match="is none of the words"):
        attribute(whole, "in").map(places[0])  # both of them together were asked for


@pytest.mark.parametrize("name", ["whole", "drawn"])
def test_as_a_trace_the_word_maps_are_the_values(name, request):
    found = attribute(request.getfixturevalue(name), method="attention")
    trace = found.as_trace()
    assert [word.text for word in trace.words] == list(found.words)
    for word, values in zip(trace.words, found.values, strict=True):
        np.testing.assert_allclose(trace.word_map(word), values, **CLOSE)
    assert trace.record["attribution"] == {"method": "attention"}
    assert "attention" in trace.record["model"]
    assert np.array_equal(trace.frames, found.frames)


def test_a_phrase_of_two_places_has_its_map_in_both(whole):
    found = attribute(whole, ["in", "red qipao"], method="attention")
    trace = found.as_trace()
    for place in (1, 2):
        np.testing.assert_allclose(trace.word_map("in", occurrence=place), found.map("in"), **CLOSE)
    np.testing.assert_allclose(trace.word_map("red qipao"), found.map("red qipao"), **CLOSE)


def test_words_that_share_a_token_are_drawn_each_with_its_own_map(pipe):
    prompt = "一位穿紫大衣的先生静静地站着"
    with wanviz.capture(pipe, keep=[("layer",)]) as trace:
        pipe(prompt, seed=3, num_frames=5, num_inference_steps=2, progress_bar=False)
    words = [word for word in trace.words if word.tokens]
    found = attribute(trace, method="attention")
    assert len({i for word in words for i in word.tokens}) < sum(len(w.tokens) for w in words)
    for word, values in zip(words, found.values.values, strict=True):
        np.testing.assert_allclose(found.as_trace().word_map(word.text), values, **CLOSE)


def test_what_is_below_0_is_drawn_as_0(whole):
    values = np.linspace(-1, 1, 720).reshape(1, 5, 12, 12)
    trace = made(values, "umbrella", whole).as_trace()
    np.testing.assert_allclose(trace.word_map("umbrella"), np.maximum(values[0], 0), **CLOSE)


def test_words_that_overlap_cannot_be_drawn_together(whole):
    found = attribute(whole, ["red qipao", "qipao"])
    with pytest.raises(wanviz.OptionError, match="'red qipao' and 'qipao' overlap in the prompt"):
        found.as_trace()
    shown = found._repr_mimebundle_()  # and a cell that ends with it says so
    assert set(shown) == {"text/plain"}
    assert shown["text/plain"].startswith(repr(found))
    assert "overlap" in shown["text/plain"]


def test_of_a_trace_that_kept_some_words_these_can_be_drawn(pipe, generate, tmp_path):
    with wanviz.capture(pipe, keep=[("layer",)], words=["umbrella", "qipao"]) as few:
        generate(ENGLISH)
    found = attribute(few, method="attention")
    assert found.words == ("qipao", "umbrella")
    trace = found.as_trace()
    np.testing.assert_allclose(trace.word_map("umbrella"), few.word_map("umbrella"), **CLOSE)
    wanviz.report(trace, tmp_path / "few.html")


@pytest.mark.parametrize("video", [True, False])
def test_a_report_and_a_file_can_be_written(painted, tmp_path, video):
    trace = attribute(painted(video=video), ["旗袍", "伞"]).as_trace()
    wanviz.report(trace, tmp_path / "attribution.html")
    page = (tmp_path / "attribution.html").read_text(encoding="utf-8")
    assert "旗袍" in str(data_of(page))
    trace.save(tmp_path / "attribution.trace")
    again = Trace.load(tmp_path / "attribution.trace")
    np.testing.assert_array_equal(again.word_map("旗袍"), trace.word_map("旗袍"))


def test_at_the_end_of_a_cell_it_shows_its_maps_and_names_its_method(whole):
    found = attribute(whole, ["rain", "umbrella"])
    shown = found._repr_mimebundle_()
    assert set(shown) == {"text/plain", "image/png", "text/html"}
    assert shown["text/plain"] == repr(found) == "Attribution by attention_layers: rain, umbrella"
    assert set(found._repr_mimebundle_(include={"text/plain"})) == {"text/plain"}
    assert set(found._repr_mimebundle_(exclude={"text/html"})) == {"text/plain", "image/png"}


def test_the_sentence_tells_the_checks(whole):
    found = replace(attribute(whole, "rain"), checks={"completeness_delta": 0.01234, "forwards": 9})
    assert repr(found).endswith("rain · completeness_delta 0.0123, forwards 9")


def without_layers(trace, *gone):
    """A trace of a run that stopped before some layers."""
    arrays = dict(trace.contents.arrays)
    arrays["cond/words/layer"] = arrays["cond/words/layer"].copy()
    arrays["cond/words/layer"][list(gone)] = np.nan
    return Trace(replace(trace.contents, arrays=arrays))


def test_layers_that_were_not_computed_are_left_out(painted):
    found = attribute(without_layers(painted(), 2, 3), "伞").values[0]
    layers = [painted().word_map("伞", layer=layer) for layer in (0, 1)]
    wanted = np.mean([one / one.max() for one in layers], axis=0)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.isnan(attribute(without_layers(painted(), 0, 1, 2, 3), "伞").values).all()


def test_a_page_has_an_explanation_or_says_what_it_lacks(painted):
    assert page_data(painted())["explanation"]["method"] == "attention_layers"
    assert page_data(painted())["unexplained"] is None
    assert page_data(without_layers(painted(), 1))["explanation"] is not None
    lacking = {
        "layers": painted(keep=((),)),
        "words": without_layers(painted(), 0, 1, 2, 3),
    }
    for lack, trace in lacking.items():
        told = page_data(trace)
        assert (told["explanation"], told["unexplained"]) == (None, lack)
