import json
import math
import random
import subprocess
import sys
import unicodedata
import warnings

import pytest
import torch
from tinywan.checkpoint import SHIPPED
from tinywan.errors import CheckpointError, ConfigError, PromptError
from tinywan.pipeline import TextToVideoPipeline
from tinywan.text import (
    PromptTruncatedWarning,
    TextEncoder,
    TextEncoderConfig,
    UnigramTokenizer,
)
from tokenizers import Tokenizer

COLORS = {"red": "红色", "yellow": "黄色", "blue": "蓝色", "green": "绿色"}
PEOPLE = {"woman": "女子", "man": "男子", "child": "孩子"}
GARMENTS = {"qipao": "旗袍", "coat": "大衣"}
WEATHERS = {"rain": "雨", "snow": "雪"}
WORDS = (
    *(
        word
        for part in (COLORS, PEOPLE, GARMENTS, WEATHERS)
        for pair in part.items()
        for word in pair
    ),
    *("umbrella", "伞", "江南", "青石板路", "屋檐", "漫步"),
)
FLAGSHIP = "一位穿红色旗袍的女子在江南雨巷撑伞漫步，背景有青石板路和屋檐滴水"


def captions() -> list[str]:
    chance = random.Random(5)
    texts = []
    for _ in range(100):
        color, other = chance.choice(list(COLORS)), chance.choice(list(COLORS))
        who, garment = chance.choice(list(PEOPLE)), chance.choice(list(GARMENTS))
        sky = chance.choice(list(WEATHERS))
        texts.append(f"a {who} in a {color} {garment} walks in the {sky} with a {other} umbrella.")
        texts.append(
            f"一位穿{COLORS[color]}{GARMENTS[garment]}的{PEOPLE[who]}在江南{WEATHERS[sky]}巷"
            f"撑{COLORS[other]}的伞漫步，背景有青石板路和屋檐滴水"
        )
    return texts


@pytest.fixture(scope="module")
def tokenizer() -> UnigramTokenizer:
    return UnigramTokenizer.train(captions(), words=WORDS)


@pytest.fixture
def encoder(tokenizer) -> TextEncoder:
    torch.manual_seed(3)
    config = TextEncoderConfig(
        vocab_size=tokenizer.vocab_size, dim=24, num_heads=3, ffn_dim=40, relative_buckets=8
    )
    encoder = TextEncoder(config).eval()
    for block in encoder.blocks:  # zeros of a new encoder would hide a wrong bias or norm
        torch.nn.init.uniform_(block.norm_q.weight, 0.5, 1.5)
        torch.nn.init.uniform_(block.norm_k.weight, 0.5, 1.5)
        torch.nn.init.normal_(block.position_bias.table.weight)
    return encoder


def seen(tokenizer: UnigramTokenizer, text: str) -> list[str]:
    """The characters of each token but `</s>`."""
    return [text[start:stop] for start, stop in tokenizer.encode(text).offsets[:-1]]


def quiet(tokenizer: UnigramTokenizer, text: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncatedWarning)
        return tokenizer.encode(text)


def test_english_words_are_single_tokens_without_their_space(tokenizer):
    text = "A woman in a  red qipao"
    assert seen(tokenizer, text) == ["A", "woman", "in", "a", "red", "qipao"]


def test_named_chinese_words_are_tokens_of_their_own(tokenizer):
    pieces = seen(tokenizer, FLAGSHIP)
    assert "".join(pieces) == FLAGSHIP
    assert {"红色", "旗袍", "女子", "江南", "雨", "伞", "漫步", "青石板路", "屋檐"} <= set(pieces)


def test_languages_mix_in_one_prompt(tokenizer):
    text = "a woman 穿红色旗袍 in the rain"
    pieces = seen(tokenizer, text)
    assert pieces[:2] == ["a", "woman"]
    assert {"红色", "旗袍"} <= set(pieces)
    assert pieces[-3:] == ["in", "the", "rain"]


def test_the_bytes_of_one_character_share_its_span(tokenizer):
    text = "red 👩‍👧 coat"
    assert seen(tokenizer, text) == ["red", *["👩"] * 4, *["👧"] * 4, "coat"]


def test_right_to_left_text_keeps_its_characters_in_order(tokenizer):
    text = "שלום umbrella"
    pieces = seen(tokenizer, text)
    assert list(dict.fromkeys(pieces)) == [*"שלום", "umbrella"]


def test_control_characters_are_not_seen(tokenizer):
    text = "\x00red\u200b \x07coat\ufeff\n"
    assert seen(tokenizer, text) == ["red", "coat"]


def test_full_width_forms_read_as_their_plain_ones(tokenizer):
    text = "ＲＥＤ\u3000coat，"
    assert seen(tokenizer, text) == ["ＲＥＤ", "coat", "，"]
    assert tokenizer.encode(text).ids == tokenizer.encode("red coat,").ids


def test_a_first_word_is_the_same_token_as_any_other(tokenizer):
    assert tokenizer.encode("woman").ids[0] == tokenizer.encode("a woman").ids[1]


def test_special_pieces_typed_as_text_are_plain_text(tokenizer):
    ids = tokenizer.encode("red</s><pad><0x41>").ids
    assert ids.count(tokenizer.eos_id) == 1
    assert tokenizer.pad_id not in ids
    assert not any(3 <= i < 259 for i in ids)


def test_text_without_a_visible_character_is_only_the_end(tokenizer):
    for text in ("", "  \t\n", "\u200b"):
        found = tokenizer.encode(text)
        assert found.ids == (tokenizer.eos_id,)
        assert found.offsets == ((len(text), len(text)),)


@pytest.mark.parametrize(
    "text", ["a woman in a red qipao.", FLAGSHIP, "red 😀 école مرحبا", "Grün ＡＢＣ; (x) 100%"]
)
def test_round_trip_gives_the_text_in_nfkc_and_lower_case(tokenizer, text):
    decoded = tokenizer.decode(tokenizer.encode(text).ids)
    expected = unicodedata.normalize("NFKC", text).lower()
    assert decoded.replace(" ", "") == expected.replace(" ", "")


def test_spaces_between_words_survive_the_round_trip(tokenizer):
    text = "a woman in a red coat, walking"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_any_text_encodes_with_spans_that_lie_in_it_and_rise(tokenizer):
    chance = random.Random(11)
    ranges = [(0, 0x7F), (0x80, 0x24F), (0x300, 0x36F), (0x590, 0x6FF), (0x2000, 0x206F)]
    ranges += [(0x2500, 0x25FF), (0x4E00, 0x9FFF), (0xD800, 0xDFFF), (0xFB00, 0xFDFF)]
    ranges += [(0x1F300, 0x1FAFF), (0, 0x10FFFF)]
    for _ in range(300):
        text = "".join(
            chr(chance.randint(*chance.choice(ranges))) for _ in range(chance.randint(0, 40))
        )
        found = quiet(tokenizer, text)
        assert len(found.ids) == len(found.offsets) <= tokenizer.text_len
        assert all(0 <= i < tokenizer.vocab_size for i in found.ids)
        starts = [start for start, _ in found.offsets]
        assert starts == sorted(starts)
        for start, stop in found.offsets[:-1]:
            assert text[start:stop].strip() == text[start:stop] != ""


def test_a_long_prompt_is_cut_with_a_warning_that_says_where(tokenizer):
    text = "a red coat " * 30
    with pytest.warns(PromptTruncatedWarning) as caught:
        found = tokenizer.encode(text)
    assert found.truncated_at == 21 * len("a red coat ")
    assert len(found.ids) == 64
    assert found.ids[-1] == tokenizer.eos_id
    assert str(caught[0].message) == (
        "the prompt is longer than 63 tokens: everything after character 231 "
        "('a red coat a red coat a …') is ignored"
    )


def test_a_prompt_of_exactly_63_tokens_is_whole(tokenizer):
    found = tokenizer.encode("red " * 63)
    assert found.truncated_at is None
    assert len(found.ids) == 64


def test_a_character_cut_between_its_bytes_is_ignored_whole(tokenizer):
    text = "red " * 61 + "😀"
    found = quiet(tokenizer, text)
    assert found.truncated_at == text.index("😀")
    assert len(found.ids) == 62


def test_ten_thousand_characters_are_cut_not_refused(tokenizer):
    assert quiet(tokenizer, "雨" * 10_000).truncated_at == 63


def test_a_batch_is_padded_with_zeros_after_the_end(tokenizer):
    ids, mask = tokenizer(["red coat", ""])
    assert ids.shape == mask.shape == (2, 64)
    assert mask.sum(1).tolist() == [3, 1]
    assert (ids[~mask] == tokenizer.pad_id).all()
    assert ids[0, 2] == ids[1, 0] == tokenizer.eos_id


def test_what_is_not_text_gets_a_sentence(tokenizer):
    with pytest.raises(PromptError, match="must be a string, found int: 5"):
        tokenizer.encode(5)
    with pytest.raises(PromptError, match=r"write tokenizer\(\[prompt\]\)"):
        tokenizer("red coat")


def test_training_in_another_process_gives_the_same_file(tokenizer, tmp_path):
    """Python hashes strings anew in every process, so an order taken from a set would show here."""
    tokenizer.save_pretrained(tmp_path / "here")
    (tmp_path / "texts.json").write_text(json.dumps([captions(), WORDS]), encoding="utf-8")
    program = (
        "import json, sys, pathlib; from tinywan.text import UnigramTokenizer;"
        "folder = pathlib.Path(sys.argv[1]);"
        "texts, words = json.loads((folder / 'texts.json').read_text(encoding='utf-8'));"
        "UnigramTokenizer.train(texts, words=words).save_pretrained(folder / 'there')"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    files = [(tmp_path / name / "tokenizer.json").read_bytes() for name in ("here", "there")]
    assert files[0] == files[1]


def test_a_small_vocabulary_keeps_the_named_words_and_all_text(tokenizer):
    small = UnigramTokenizer.train(captions(), vocab_size=400, words=WORDS)
    assert small.vocab_size <= 400 < tokenizer.vocab_size
    assert {"红色", "旗袍", "伞"} <= set(seen(small, "穿红色旗袍撑伞"))
    assert small.decode(quiet(small, FLAGSHIP[:12]).ids) == FLAGSHIP[:12]


def test_training_that_cannot_work_gets_a_sentence():
    with pytest.raises(ConfigError, match="on no text"):
        UnigramTokenizer.train([])
    with pytest.raises(ConfigError, match=r"room for 41 pieces.*make vocab_size \d+ larger"):
        UnigramTokenizer.train(["a red coat"], vocab_size=300)


def test_a_saved_tokenizer_comes_back_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    back = UnigramTokenizer.from_pretrained(tmp_path)
    assert back.text_len == tokenizer.text_len
    assert back.vocab_size == tokenizer.vocab_size
    for text in (FLAGSHIP, "a woman 😀", ""):
        assert back.encode(text) == tokenizer.encode(text)


def test_the_file_serves_plain_tokenizers_too(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert plain.encode(FLAGSHIP).ids == tokenizer([FLAGSHIP])[0][0].tolist()


def test_a_damaged_or_foreign_file_gets_a_sentence(tokenizer, tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read the tokenizer .*No such file"):
        UnigramTokenizer.from_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole[: len(whole) // 2], encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a whole tokenizer"):
        UnigramTokenizer.from_pretrained(tmp_path)
    path.write_text(whole.replace("<pad>", "[PAD]"), encoding="utf-8")
    with pytest.raises(CheckpointError, match="tokenizer of another model"):
        UnigramTokenizer.from_pretrained(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="not a whole tokenizer"):
        UnigramTokenizer.from_pretrained(tmp_path)


def test_padding_rows_are_exactly_zero(tokenizer, encoder):
    ids, mask = tokenizer(["a woman in a red coat", FLAGSHIP])
    embeds = encoder(ids, mask)
    assert embeds.shape == (2, 64, 24)
    assert (embeds[~mask] == 0).all()
    assert (embeds[mask].abs().amax(-1) > 0).all()


def test_words_do_not_depend_on_the_padding(tokenizer, encoder):
    ids, mask = tokenizer(["a woman in a red coat"])
    length = int(mask.sum())
    short = encoder(ids[:, :length], mask[:, :length])
    torch.testing.assert_close(encoder(ids, mask)[:, :length], short, atol=1e-5, rtol=0)
    other = ids.masked_fill(~mask, 7)  # whatever the padding holds
    assert torch.equal(encoder(other, mask), encoder(ids, mask))


def test_a_batch_equals_its_prompts_one_by_one(tokenizer, encoder):
    prompts = ["a red coat", FLAGSHIP, ""]
    together = encoder(*tokenizer(prompts))
    for row, prompt in enumerate(prompts):
        alone = encoder(*tokenizer([prompt]))[0]
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)


def reference_bucket(distance: int, num_buckets: int, max_distance: int) -> int:
    """T5's bucket of key minus query, as its authors describe it, for one number."""
    side = num_buckets // 2
    first = side if distance > 0 else 0
    exact, distance = side // 2, abs(distance)
    if distance < exact:
        return first + distance
    part = math.log(distance / exact) / math.log(max_distance / exact)
    return first + min(exact + int(part * (side - exact)), side - 1)


def reference_rms(x, norm):
    return x / (x.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def test_the_encoder_equals_a_slow_explicit_one(tokenizer, encoder):
    encoder = encoder.double()
    ids, mask = tokenizer(["a woman in a red coat walks in the rain"])
    config, words = encoder.config, int(mask.sum())
    x = encoder.embed.weight[ids[0, :words]]
    for block in encoder.blocks:
        h = reference_rms(x, block.norm1)
        heads, width = [], config.dim // config.num_heads
        queries = reference_rms(h @ block.q.weight.T, block.norm_q)  # over the whole width
        keys = reference_rms(h @ block.k.weight.T, block.norm_k)
        for n in range(config.num_heads):
            part = slice(n * width, (n + 1) * width)
            q, k, v = queries[:, part], keys[:, part], h @ block.v.weight[part].T
            logits = torch.empty(words, words, dtype=torch.double)
            for i in range(words):
                for j in range(words):
                    bucket = reference_bucket(j - i, config.relative_buckets, config.max_distance)
                    bias = block.position_bias.table.weight[bucket, n]
                    logits[i, j] = q[i] @ k[j] / math.sqrt(width) + bias
            heads.append(logits.softmax(-1) @ v)
        x = x + torch.cat(heads, -1) @ block.out.weight.T
        h = reference_rms(x, block.norm2)
        gate = torch.nn.functional.gelu(h @ block.gate.weight.T, approximate="tanh")
        x = x + (gate * (h @ block.up.weight.T)) @ block.down.weight.T
    expected = reference_rms(x, encoder.norm)
    torch.testing.assert_close(encoder(ids, mask)[0, :words], expected, atol=1e-5, rtol=0)


def test_position_buckets_are_those_of_t5():
    bias = TextEncoder(TextEncoderConfig()).blocks[0].position_bias
    distances = list(range(-200, 201))
    expected = [reference_bucket(distance, 32, 128) for distance in distances]
    assert bias.bucket(torch.tensor(distances)).tolist() == expected
    assert len(set(expected)) == 31  # of 32: nothing is "0 to the right"


def test_word_order_reaches_the_embeddings(tokenizer, encoder):
    ids, mask = tokenizer(["red coat blue umbrella", "blue coat red umbrella"])
    coat = 1
    assert ids[0, coat] == ids[1, coat]
    first, second = encoder(ids, mask)[:, coat]
    assert (first - second).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"dim": 100, "num_heads": 6}, "dim=100 is not a multiple of num_heads=6"),
        ({"num_layers": 0}, "num_layers=0 must be at least 1"),
        ({"relative_buckets": 30}, "relative_buckets=30 with max_distance=128"),
    ],
)
def test_sizes_that_cannot_work_get_a_sentence(sizes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        TextEncoderConfig(**sizes)


def swapped(first: str, second: str, text: str) -> str:
    return text.replace(first, "?").replace(second, first).replace("?", second)


def change_when_colours_are_swapped(encoder, tokenizer, text, colors, word) -> float:
    """How far the vector of a word moves, relative to its length."""
    found = []
    for told in (text, swapped(*colors, text)):
        ids, mask = tokenizer([told])
        at = [told[a:b].strip() for a, b in tokenizer.encode(told).offsets].index(word)
        found.append(encoder(ids, mask)[0, at])
    return float((found[0] - found[1]).norm() / found[0].norm())


SWAPS = [
    ("a man in a green coat walks with a blue umbrella", ("green", "blue"), ("coat", "umbrella")),
    ("一个穿绿色大衣的男人撑着一把粉色的伞", ("绿色", "粉色"), ("大衣", "伞")),
]


@pytest.mark.parametrize(("text", "colors", "nouns"), SWAPS)
@torch.no_grad()
def test_a_new_encoder_already_knows_which_colour_stands_beside_which_noun(text, colors, nouns):
    torch.manual_seed(0)
    tokenizer = UnigramTokenizer.from_pretrained(SHIPPED)
    encoder = TextEncoder(TextEncoderConfig(vocab_size=tokenizer.vocab_size))
    for noun in nouns:
        assert change_when_colours_are_swapped(encoder, tokenizer, text, colors, noun) > 0.1


@pytest.mark.parametrize(("text", "colors", "nouns"), SWAPS)
@torch.no_grad()
def test_the_shipped_encoder_binds_colours_and_nouns(text, colors, nouns):
    pipe = TextToVideoPipeline.from_pretrained()
    for pair in zip(colors, nouns, strict=True):  # in a colour or in its noun, either will do
        assert 0.1 < max(
            change_when_colours_are_swapped(pipe.text_encoder, pipe.tokenizer, text, colors, word)
            for word in pair
        )


def test_first_heads_begin_with_a_look_at_one_neighbour_each_the_others_at_everything():
    encoder = TextEncoder(TextEncoderConfig(vocab_size=300))
    for block in encoder.blocks:
        biases = block.position_bias(9)[0]  # n q k
        for head, away in enumerate((-1, 1, -2, 2)):
            share = biases[head, 4].softmax(-1)
            assert share.argmax() == 4 + away
            assert 0.7 < share[4 + away] < 0.85
        assert (biases[4:] == 0).all()
