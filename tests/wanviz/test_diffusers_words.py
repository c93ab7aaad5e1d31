"""Words of real Wan's prompts: the tokens of every word are those that a slow, independent method finds."""

import unicodedata
from typing import Any

import numpy as np
import pytest

from tests.wanviz import real_wan as real
from wanviz.words import phrase_spans, split_words, token_weights

pytest.importorskip("transformers", reason="diffusers' WanPipeline needs it for its text encoder")

PROMPTS = 3000
ENGLISH = (
    "a woman in a red qipao walks in the rain with an umbrella cat dog child beach at night it's well-known "
    "3.5 km/h don't naïve café O'Brien state-of-the-art"
).split()
CHINESE = "一位 穿 红色 旗袍 的 女子 在 江南 雨巷 撑伞 漫步 白猫 黑狗 阳光 厨房 镜头 缓缓 推近 雪花".split()
MARKS = [
    ",",
    ".",
    "!",
    "?",
    ";",
    "，",
    "。",
    "！",
    "“",
    "”",
    "（",
    "）",
    "—",
    "…",
    "'",
    '"',
    "&amp;",
    "/",
]
ODD = [
    "😀",
    "👩‍👧",
    "ＡＢＣ",
    "１２",
    "ﬁsh",
    "½",
    "é",
    "e\u0301",
    "한국",
    "日本語",
    "مرحبا",
    "\u200b",
    "№5",
    "①",
    "㎏",
]
SPACES = [" ", "", "  ", "\n", "\t", "\u3000", "\u00a0"]


@pytest.fixture(scope="module")
def adapter() -> Any:
    from wanviz.adapters import adapter_for

    return adapter_for(real.wan21())


def prompts() -> list[str]:
    """English, Chinese, mixed; with punctuation, emoji, full-width forms and odd spaces."""
    rng = np.random.default_rng(5)
    made = []
    for _ in range(PROMPTS):
        pools = [ENGLISH, CHINESE][: 1 + int(rng.integers(2))]
        if rng.random() < 0.3:
            pools = [CHINESE]
        text = ""
        for _ in range(int(rng.integers(1, 14))):
            pool: list[str] = pools[int(rng.integers(len(pools)))]
            if rng.random() < 0.25:
                pool = (MARKS, ODD)[int(rng.random() < 0.4)]
            gap = " " if rng.random() < 0.7 else SPACES[int(rng.integers(len(SPACES)))]
            if pool is CHINESE and rng.random() < 0.8:
                gap = ""
            text += pool[int(rng.integers(len(pool)))] + gap
        made.append(text)
    return made


def clusters(text: str) -> list[str]:
    """Characters with the marks that follow them: normalising one does not change another."""
    found: list[str] = []
    for character in text:
        if found and unicodedata.combining(character):
            found[-1] += character
        else:
            found.append(character)
    return found


def slow_tokens(adapter: Any, text: str) -> list[set[int]]:
    """For each character its tokens, by walking along the pieces: no offsets are asked for."""
    tokenizer = adapter._pipe.tokenizer
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[:-1]
    assert tokenizer.unk_token not in pieces, "a character that the test's tokenizer does not know"
    lengths = [len(piece.replace("\u2581", "")) for piece in pieces]
    owners = np.repeat(
        np.arange(len(pieces)), lengths
    ).tolist()  # of each character but white space
    found, place = [], 0
    for cluster in clusters(text):
        normal = "".join(unicodedata.normalize("NFKC", cluster).split())
        mine = set(owners[place : place + len(normal)])
        place += len(normal)
        found += [mine] * len(cluster)
    assert place == len(owners)
    return found


def test_every_words_tokens_are_those_of_a_slow_method(adapter):
    checked = 0
    for prompt in prompts():
        encoded = adapter.encode(prompt)
        expected = slow_tokens(adapter, encoded.text)
        for word in split_words(encoded):
            mine = set().union(*expected[slice(*word.span)])
            assert set(word.tokens) == mine, (prompt, word)
            checked += 1
    assert checked > 5 * PROMPTS


def test_every_word_can_be_asked_for(adapter):
    for prompt in prompts()[:500]:
        encoded = adapter.encode(prompt)
        for word in split_words(encoded):
            spans = phrase_spans(encoded, word.text, "all")
            assert word.span in spans
            weights = token_weights(encoded, (word.span,))
            assert {index for index, _ in weights} <= set(word.tokens)
            assert all(0 < share <= 1 for _, share in weights)


def test_the_prompt_is_cleaned_as_the_pipeline_cleans_it(adapter):
    pytest.importorskip(
        "ftfy", reason="diffusers cleans full-width forms with it where it is there"
    )
    encoded = adapter.encode("a cat，  &amp; a\n\ndog")
    assert encoded.text == "a cat, & a dog"
    assert [word.text for word in split_words(encoded)] == ["a", "cat", "a", "dog"]


def test_a_phrase_is_cleaned_as_its_prompt_was(adapter):
    pytest.importorskip(
        "ftfy", reason="diffusers cleans full-width forms with it where it is there"
    )
    encoded = adapter.encode("ＡＢＣ cat &amp; ﬁsh")
    for phrase in ("ＡＢＣ", "ABC", "cat &amp; ﬁsh", "cat  & fish"):
        ((start, stop),) = phrase_spans(encoded, phrase)
        assert encoded.text[start:stop] in ("ABC", "cat & fish")


def test_tokens_are_those_that_the_pipeline_reads(adapter):
    pipe = adapter._pipe
    for prompt in prompts()[:200]:
        encoded = adapter.encode(prompt)
        embeds, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        assert int((embeds != 0).any(-1).sum()) == len(encoded.tokens) + 1


def test_a_truncated_prompt_keeps_the_tokens_that_fit(adapter):
    long = "一位穿红色旗袍的女子在江南雨巷撑伞漫步，" * 60
    encoded = adapter.encode(long)
    assert len(encoded.tokens) == 511
    assert encoded.truncated_at == encoded.tokens[-1].span[1]
    assert split_words(encoded)[-1].span[1] <= encoded.truncated_at
