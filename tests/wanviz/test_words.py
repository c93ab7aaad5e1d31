"""Any phrase maps to its tokens by characters; what is unclear is an error, never a guess."""

import numpy as np
import pytest

import wanviz
from wanviz.words import (
    EncodedPrompt,
    Token,
    encoded_prompt,
    only_words,
    phrase_spans,
    split_words,
    token_weights,
)

SHORT = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"
LONG = SHORT + "，背景有青石板路和屋檐滴水"


def by_character(text, truncated_at=None):
    """A prompt with one token per character."""
    seen = text[:truncated_at]
    return encoded_prompt(text, tuple((i, i + 1) for i in range(len(seen))), truncated_at)


def weights(encoded, phrase, occurrence=None):
    return dict(token_weights(encoded, phrase_spans(encoded, phrase, occurrence)))


def test_english_is_split_at_spaces_and_punctuation():
    encoded = by_character('A woman\'s red-hot "qipao", in 2024!')
    assert [w.text for w in split_words(encoded)] == [
        "A",
        "woman's",
        "red-hot",
        "qipao",
        "in",
        "2024",
    ]
    assert all(encoded.text[slice(*w.span)] == w.text for w in split_words(encoded))


def test_chinese_is_split_into_the_words_of_the_flagship_prompt():
    words = [w.text for w in split_words(by_character(LONG))]
    assert "".join(words) == LONG.replace("，", "")
    assert {"红色", "旗袍", "女子", "江南", "雨", "伞", "漫步", "青石板路", "屋檐"} <= set(words)


def test_the_users_own_jieba_is_left_alone():
    import jieba

    before = dict(jieba.dt.FREQ)
    assert [w.text for w in split_words(by_character("撑伞漫步"))] == ["撑", "伞", "漫步"]
    assert jieba.dt.FREQ == before


def test_mixed_languages_and_odd_characters_are_split_too():
    words = [w.text for w in split_words(by_character("一只cat在🌧️里 שלום\x07 rain"))]
    assert "cat" in words
    assert "rain" in words
    assert "שלום" in words


def test_a_straddling_token_counts_by_its_fraction():
    encoded = encoded_prompt("白的猫 cat", ((0, 1), (1, 3), (3, 7)), None)
    assert weights(encoded, "猫") == {1: 0.5}
    assert weights(encoded, "白的") == {0: 1.0, 1: 0.5}
    assert weights(encoded, "cat") == {2: 1.0}  # white space is no part of a token


def test_all_the_bytes_of_one_character_belong_to_it():
    encoded = encoded_prompt("a☂b", ((0, 1), (1, 2), (1, 2), (1, 2), (2, 3)), None)
    assert weights(encoded, "☂") == {1: 1.0, 2: 1.0, 3: 1.0}


def test_a_token_of_white_space_belongs_to_no_word():
    encoded = encoded_prompt("a b", ((0, 1), (1, 2), (2, 3)), None)
    assert encoded.tokens[1].text == ""
    assert [w.tokens for w in split_words(encoded)] == [(0,), (2,)]


def test_a_phrase_need_not_be_a_word():
    encoded = by_character(LONG)
    assert weights(encoded, "袍的女") == {6: 1.0, 7: 1.0, 8: 1.0}
    assert encoded.text[6:9] == "袍的女"


def test_a_spelled_phrase_is_not_found_inside_a_longer_word():
    encoded = by_character("a rainy day in the rain")
    assert phrase_spans(encoded, "rain") == ((19, 23),)
    with pytest.raises(wanviz.PhraseError, match=r"'rain'.*nearest"):
        phrase_spans(by_character("a rainy day"), "rain")
    assert phrase_spans(by_character("一只白猫"), "猫") == ((3, 4),)


def test_an_absent_phrase_lists_the_nearest_words():
    with pytest.raises(wanviz.PhraseError, match=r"'umbrela' is not in.*'umbrella'"):
        phrase_spans(by_character("a woman with an umbrella"), "umbrela")
    with pytest.raises(wanviz.PhraseError, match=r"its words: 'a', 'dog'"):
        phrase_spans(by_character("a dog"), "zebra")
    with pytest.raises(wanviz.PhraseError, match=r"'Dog' is not in.*'dog'"):
        phrase_spans(by_character("a dog"), "Dog")


def test_an_ambiguous_phrase_lists_its_places_and_occurrence_chooses():
    encoded = by_character("red coat, red umbrella")
    with pytest.raises(wanviz.PhraseError, match=r"occurs 2 times.*1: \[red\].*2: .*\[red\].*occ"):
        phrase_spans(encoded, "red")
    assert phrase_spans(encoded, "red", 2) == ((10, 13),)
    assert phrase_spans(encoded, "red", "all") == ((0, 3), (10, 13))
    with pytest.raises(wanviz.PhraseError, match="has 2, counted from 1"):
        phrase_spans(encoded, "red", 3)
    with pytest.raises(wanviz.PhraseError, match="number from 1"):
        phrase_spans(encoded, "red", "first")


def test_overlapping_occurrences_are_counted_once_in_all():
    encoded = by_character("哈哈哈")
    with pytest.raises(wanviz.PhraseError, match="occurs 2 times"):
        phrase_spans(encoded, "哈哈")
    assert weights(encoded, "哈哈", "all") == {0: 1.0, 1: 1.0, 2: 1.0}


def test_a_word_is_its_own_place():
    encoded = by_character("red coat, red umbrella")
    second = split_words(encoded)[2]
    assert phrase_spans(encoded, second) == ((10, 13),)
    with pytest.raises(wanviz.PhraseError, match="another prompt"):
        phrase_spans(by_character("blue coat, blue umbrella"), second)


@pytest.mark.parametrize("phrase", ["", "  ", None, 3])
def test_an_empty_phrase_gets_a_sentence(phrase):
    with pytest.raises(wanviz.PhraseError, match="is empty"):
        phrase_spans(by_character("a dog"), phrase)


def test_punctuation_can_be_asked_for_and_white_space_cannot():
    encoded = EncodedPrompt("a, b", (Token("a", (0, 1)), Token(",", (1, 2)), Token("b", (3, 4))))
    assert weights(encoded, ",") == {1: 1.0}


def test_truncation_is_reported():
    encoded = by_character("a red dog", truncated_at=5)
    assert [w.text for w in split_words(encoded)] == ["a", "red"]
    with pytest.raises(wanviz.PhraseError, match=r"only the first 5 characters"):
        phrase_spans(encoded, "dog")


def test_a_truncated_prompt_is_captured_and_says_so(pipe, generate):
    prompt = "a red dog " * 60 + "with an umbrella"
    with pytest.warns(UserWarning, match="ignored"), wanviz.capture(pipe) as trace:
        generate(prompt)
    cut = trace.record["truncated_at"]
    assert 0 < cut < len(prompt)
    assert f"cut at character {cut}" in repr(trace)
    assert max(word.span[1] for word in trace.words) <= cut
    with pytest.raises(wanviz.PhraseError, match="saw only the first"):
        trace.word_map("umbrella")


@pytest.mark.parametrize(
    "prompt", ["🌂 rain ☔", "\x00\x1b[31m red", "שלום rain", "ａＢＣ ﬁ rain", "雨\u3000rain\t伞"]
)
def test_odd_prompts_keep_offsets_and_masses(pipe, generate, prompt):
    with wanviz.capture(pipe) as trace:
        generate(prompt)
    total = trace.maps[()].sum("token") + trace.special[()].sum("kind")
    np.testing.assert_allclose(total.values, 1, atol=1e-5)
    for word in trace.words:
        assert prompt[slice(*word.span)] == word.text
        assert np.isfinite(trace.word_map(word)).all()


def test_a_word_map_is_the_sum_over_its_tokens(pipe, generate):
    with wanviz.capture(pipe) as trace:
        generate(SHORT)
    parts = [trace.word_map(part) for part in ("一位穿红色", "旗袍", "的女子在江南雨巷撑伞漫步")]
    np.testing.assert_allclose(sum(parts), trace.word_map(SHORT), atol=1e-6)
    np.testing.assert_allclose(trace.word_map(SHORT), trace.maps[()].sum("token"), atol=1e-5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("كِتَابٌ جديد", ["كِتَابٌ", "جديد"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("cafe\u0301 noir", ["cafe\u0301", "noir"]),
        ("รถไฟ", ["รถไฟ"]),
        ("红cafe\u0301猫", ["红", "cafe\u0301", "猫"]),
        ("a☂\ufe0fb 1\ufe0f\u20e3", ["a", "b", "1\ufe0f\u20e3"]),
    ],
)
def test_accents_and_vowel_signs_stay_with_their_letters(text, words):
    assert [w.text for w in split_words(by_character(text))] == words


def test_a_letter_is_not_found_without_its_vowel_sign():
    assert phrase_spans(by_character("नी न"), "न", None) == ((3, 4),)


def test_of_some_kept_tokens_only_whole_words_remain():
    letters = by_character("女子撑伞")
    kept = only_words(letters, ("女", "伞"))
    assert [token.text for token in kept.tokens] == ["女", "伞"]
    assert (kept.columns, kept.num_tokens) == ((0, 3), 4)
    assert [word.text for word in split_words(kept)] == ["伞"]
    assert token_weights(kept, ((3, 4),)) == ((1, 1.0),)
    with pytest.raises(wanviz.PhraseError, match="'女子' was not kept"):
        token_weights(kept, ((0, 2),))  # half of it is there, and half a map would be a wrong one


def test_a_kept_phrase_must_occur_unless_it_may_be_absent():
    letters = by_character("女子撑伞")
    with pytest.raises(wanviz.PhraseError, match="'旗袍' is not in the prompt"):
        only_words(letters, ("旗袍",))
    assert only_words(letters, ("旗袍", "伞"), "ignore").columns == (3,)
