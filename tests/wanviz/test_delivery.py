"""Delivery: encodings are the encoder's own, filters find what is there, subtitles say what was said, videos play."""

import re
import resource
import subprocess
import time
import warnings
from dataclasses import replace

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
import pytest
import tinywan
import torch
from tinywan.dit import DiT
from tinywan.errors import PromptError
from tinywan.text import PromptTruncatedWarning

import wanviz
from wanviz.delivery import (
    ContentFilter,
    Cue,
    PromptCache,
    draw_subtitles,
    passages,
    write_subtitles,
    write_video,
)
from wanviz.errors import ContentError, EncodingError, OptionError, ReportError

PROMPT = "a woman in a red qipao walks in the rain with an umbrella"
CHINESE = "一位穿红色旗袍的女子在江南雨巷撑伞漫步"
MARKUP = "<img src=x onerror=alert(1)> {\\b1}bold & 1 --> 2"


@pytest.fixture(scope="module")
def pipe():
    return tinywan.TextToVideoPipeline.from_preset("debug", seed=3)


@pytest.fixture
def asked(pipe):
    """What the text encoder is asked, call by call."""
    calls = []
    hook = pipe.text_encoder.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    hook.remove()


def with_masked_padding(pipe):
    """The same pipeline with denoisers that mask their padding, as the shipped one does."""
    dit = replace(pipe.config.dit, mask_padding=True)
    parts = pipe.tokenizer, pipe.text_encoder, pipe.vae, *[DiT(dit) for _ in range(2)]
    for model, trained in zip(parts[3:], (pipe.transformer, pipe.transformer_2), strict=True):
        model.load_state_dict(trained.state_dict())
    return tinywan.TextToVideoPipeline(replace(pipe.config, dit=dit), *parts)


def draw(pipe, *prompt, **options):
    return pipe(*prompt, seed=7, num_inference_steps=2, progress_bar=False, **options).frames


# encodings that are kept


def test_a_kept_encoding_draws_the_same_bits_and_asks_no_encoder(pipe, asked, tmp_path):
    encodings = PromptCache(tmp_path / "new" / "encodings")
    encodings(pipe, PROMPT, "snow")
    assert len(asked) == 2
    given = PromptCache(encodings.folder)(pipe, PROMPT, "snow")
    kept = draw(pipe, **given)
    assert len(asked) == 2
    assert np.array_equal(kept, draw(pipe, PROMPT, negative_prompt="snow"))
    assert len(list(encodings.folder.iterdir())) == 2


def test_several_prompts_and_one_negative_prompt_make_a_row_for_each_video(pipe, tmp_path):
    given = PromptCache(tmp_path)(pipe, [PROMPT, CHINESE, PROMPT])
    assert {name: embeds.shape for name, embeds in given.items()} == {
        "prompt_embeds": (3, *pipe.encode_prompt([PROMPT]).shape[1:]),
        "negative_prompt_embeds": (3, *pipe.encode_prompt([PROMPT]).shape[1:]),
    }
    assert torch.equal(given["prompt_embeds"][1:2], pipe.encode_prompt([CHINESE]))
    assert len(list(tmp_path.iterdir())) == 3  # two prompts, and the empty one


@pytest.mark.parametrize("masked", [False, True])  # whether padding is attended
def test_a_capture_of_kept_encodings_is_that_of_their_prompt(pipe, tmp_path, masked):
    if masked:
        pipe = with_masked_padding(pipe)
    given = PromptCache(tmp_path)(pipe, CHINESE)
    with wanviz.capture(pipe, prompt=CHINESE, branches=("cond",)) as kept:
        draw(pipe, **given)
    with wanviz.capture(pipe) as plain:
        draw(pipe, CHINESE)
    assert kept.words == plain.words
    np.testing.assert_array_equal(kept.word_map("伞"), plain.word_map("伞"))


def test_a_capture_of_embeddings_asks_for_their_words_and_refuses_those_of_another_length(
    pipe, tmp_path
):
    given = PromptCache(tmp_path)(pipe, CHINESE)
    with pytest.raises(wanviz.CaptureError, match="say them"), wanviz.capture(pipe):
        draw(pipe, **given)
    with (
        pytest.raises(wanviz.CaptureError, match="of another prompt"),
        wanviz.capture(pipe, prompt="a dog"),
    ):
        draw(pipe, **given)


def test_another_text_encoder_has_encodings_of_its_own(pipe, asked, tmp_path):
    other = tinywan.TextToVideoPipeline.from_preset("debug", seed=4)
    encodings = PromptCache(tmp_path)
    first, second = (encodings(model, PROMPT)["prompt_embeds"] for model in (pipe, other))
    assert not torch.allclose(first, second)
    assert torch.equal(encodings(pipe, PROMPT)["prompt_embeds"], first)
    halves = tinywan.TextToVideoPipeline.from_preset("debug", seed=3).to("cpu", torch.bfloat16)
    assert encodings(halves, PROMPT)["prompt_embeds"].dtype == torch.bfloat16


@pytest.mark.parametrize("damage", [b"", b"not safetensors", None])
def test_a_damaged_encoding_gets_a_sentence(pipe, tmp_path, damage):
    encodings = PromptCache(tmp_path)
    encodings(pipe, PROMPT)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:-9] if damage is None else damage)
    with pytest.raises(EncodingError, match="delete it, and it is made again"):
        encodings(pipe, PROMPT)


def test_an_encoding_of_another_text_under_its_name_is_not_taken(pipe, tmp_path):
    encodings = PromptCache(tmp_path)
    encodings(pipe, PROMPT)
    encodings(pipe, CHINESE)
    mark = next(tmp_path.iterdir()).stem.partition("-")[2]
    encodings._path(CHINESE, mark).replace(encodings._path(PROMPT, mark))
    with pytest.raises(EncodingError, match="something else"):
        encodings(pipe, PROMPT)


def test_what_cannot_be_encoded_gets_a_sentence_and_writes_nothing(pipe, tmp_path):
    encodings = PromptCache(tmp_path / "encodings")
    for prompt, negative, sentence in (
        (None, None, "prompt is None"),
        ([], None, "prompt is empty"),
        ([PROMPT, 3], None, "holds 3, which is no text"),
        (PROMPT, ["a", "b"], "1 prompts and 2 negative"),
        (" ", None, "prompt is empty"),
        ("a \ud800 dog", None, "surrogate"),
    ):
        with pytest.raises(OptionError, match=sentence):
            encodings(pipe, prompt, negative)
    assert not encodings.folder.exists()
    with pytest.raises(OptionError, match="name a folder"):
        PromptCache(None)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EncodingError, match="cannot make the folder"):
        PromptCache(tmp_path / "file")(pipe, PROMPT)


def test_where_a_prompt_was_cut_off_is_told_each_time(pipe, tmp_path):
    encodings, long = PromptCache(tmp_path), PROMPT * 30
    with pytest.warns(PromptTruncatedWarning):
        encodings(pipe, long)
    cut = pipe.tokenizer.encode  # the place that the pipeline tells
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = cut(long).truncated_at
    with pytest.warns(UserWarning, match=f"ends at character {place}: the model reads no more"):
        encodings(pipe, long)


def test_one_changed_weight_is_another_encoder(tmp_path):
    changed = tinywan.TextToVideoPipeline.from_preset("debug", seed=3)
    encodings = PromptCache(tmp_path)
    before = encodings(changed, PROMPT)["prompt_embeds"]
    table = max(changed.text_encoder.parameters(), key=len)
    with torch.no_grad():
        table[pipe_ids(changed, PROMPT)[0]] += 0.5  # one row, as textual inversion does
    after = encodings(changed, PROMPT)["prompt_embeds"]
    assert not torch.equal(before, after)
    assert torch.equal(after, changed.encode_prompt([PROMPT]))


def pipe_ids(pipe, prompt):
    """The numbers of a prompt's tokens."""
    return pipe.tokenizer([prompt])[0][0].tolist()


def test_numbers_that_are_not_finite_are_not_kept(tmp_path):
    broken = tinywan.TextToVideoPipeline.from_preset("debug", seed=3)
    with torch.no_grad():
        max(broken.text_encoder.parameters(), key=len).fill_(torch.nan)
    with pytest.raises(EncodingError, match="not finite"):
        PromptCache(tmp_path / "new")(broken, PROMPT)
    assert not (tmp_path / "new").exists()


# content that is kept out


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a DOG runs", ["DOG"]),
        ("a d\u200bog runs", ["d\u200bog"]),
        ("ｄｏｇ", ["ｄｏｇ"]),
        ("dogma, hotdogs and the dogged", []),
        ("一只小白狗", ["狗"]),
        ("热狗和狗", ["狗"]),
        ("热狗", []),
        ("guide  \n dog here, a puppy there", ["guide  \n dog", "dog", "puppy"]),
        ("", []),
        ("🐕", []),
        ("a dog\ufe0f, a d\u034fog", ["dog", "d\u034fog"]),
        ("dog2 and dog_3", ["dog", "dog"]),
        ("white\u200bdog the\u2060dog", ["dog", "dog"]),
        ("小\ufe00狗", ["狗"]),
        ("döġ", ["döġ"]),
        ("a d\u3164og", ["d\u3164og"]),
    ],
)
def test_phrases_are_found_in_prompts_with_their_place(text, found):
    keep_out = ContentFilter({"dog": ["dog", "puppy", "狗", "Guide Dog"]}, allowed=["热狗"])
    findings = keep_out.prompt(text)
    assert [finding.text for finding in findings] == found
    for finding in findings:
        assert finding.label == "dog" and text[slice(*finding.span)] == finding.text


def test_accents_are_the_same_in_one_character_or_two():
    keep_out = ContentFilter({"place": ["café"]})
    for text in ("a café", "a cafe\u0301", "a CAFÉ", "a cafe"):
        assert keep_out.prompt(text)


def test_a_refused_prompt_draws_nothing(pipe, asked):
    keep_out = ContentFilter({"umbrella": ["umbrella", "伞"]})
    for prompt in (PROMPT, ["a dog", CHINESE]):
        with pytest.raises(ContentError, match=r"kept out: umbrella .*nothing was drawn") as error:
            keep_out.draw(pipe, prompt, num_inference_steps=2, progress_bar=False)
        assert error.value.findings[0].label == "umbrella"
        assert error.value.findings[0].video == (len(prompt) - 1 if isinstance(prompt, list) else 0)
    assert asked == []


def test_a_video_is_looked_at_as_pixels_and_refused_by_what_it_shows(pipe):
    seen = []

    def looks(frames):
        seen.append(frames)
        return {"dog": len(seen) / 4, "cat": 1.0}

    keep_out = ContentFilter({"dog": []}, looks=looks)
    options = {"num_inference_steps": 2, "progress_bar": False, "seed": 7}
    output = keep_out.draw(pipe, PROMPT, **options)
    np.testing.assert_array_equal(output.frames, draw(pipe, PROMPT))
    np.testing.assert_array_equal(seen[0], output.frames[0])
    with pytest.raises(ContentError, match=r"dog \(video 0 shows it, score 0.50\), dog \(video 1"):
        keep_out.draw(pipe, [PROMPT, PROMPT], **options)
    assert seen[0].dtype == np.float32


def test_embeddings_are_drawn_under_the_name_that_their_caller_gives(pipe, tmp_path):
    keep_out = ContentFilter({"dog": ["dog"]})
    given = PromptCache(tmp_path)(pipe, PROMPT)
    options = {"num_inference_steps": 2, "progress_bar": False, "seed": 7}
    output = keep_out.draw(pipe, PROMPT, **given, **options)
    np.testing.assert_array_equal(output.frames, draw(pipe, PROMPT))
    with pytest.raises(ContentError):
        keep_out.draw(pipe, "a dog", **given, **options)


def test_filters_that_cannot_work_get_a_sentence(pipe):
    frames = np.zeros((2, 4, 4, 3), np.uint8)
    for phrases, options in (
        ({}, {}),
        ({"dog": [""]}, {}),
        ({"dog": ["\u200b"]}, {}),
        ({"dog": [3]}, {}),
        ({"dog": ["dog"]}, {"threshold": float("nan")}),
        ({"dog": ["dog"]}, {"threshold": None}),
        ({"dog": []}, {}),
        ({"dog": None}, {}),
        (["dog"], {}),
        (None, {}),
    ):
        with pytest.raises(OptionError):
            ContentFilter(phrases, **options)
    for prompt in (None, [3], [], [None]):
        with pytest.raises((OptionError, PromptError)):
            ContentFilter({"dog": ["dog"]}).draw(pipe, prompt)
    with pytest.raises(OptionError, match="looks=…"):
        ContentFilter({"dog": ["dog"]}).video(frames)
    for scores in (None, [0.5], "dog"):
        with pytest.raises(OptionError, match="a score by label"):
            ContentFilter({"dog": []}, looks=lambda _, scores=scores: scores).video(frames)
    for scores in ({}, {"cat": 1.0}, {"dog": float("nan")}):
        with pytest.raises(OptionError, match="no score for 'dog'"):
            ContentFilter({"dog": []}, looks=lambda _, scores=scores: scores).video(frames)
    looking = ContentFilter({"dog": []}, looks=lambda _: {"dog": 0.0})
    assert looking.video(frames) == ()
    with pytest.raises(OptionError, match=r"\[4, 4, 3\]"):
        looking.video(frames[0])
    for wrong in (frames.astype(np.float32) + 200, frames.astype(np.int64), frames[:0]):
        with pytest.raises(OptionError):
            looking.video(wrong)
    with pytest.raises(OptionError, match="looks at pixels"):
        looking.draw(pipe, PROMPT, output_type="latent")


# subtitles


def test_passages_follow_one_another_in_the_time_of_their_frames():
    cues = passages([("first", 17), (" ", 4), ("then", 12)], fps=8)
    assert cues == (Cue(0, 17 / 8, "first"), Cue(21 / 8, 33 / 8, "then"))


def test_web_subtitles_escape_markup_and_keep_every_character(tmp_path):
    cues = [Cue(3.5, 3661.0005, f"{CHINESE}\n\n{MARKUP}"), Cue(0, 1.25, "first")]
    text = write_subtitles(cues, tmp_path / "a.vtt").read_text(encoding="utf-8")
    assert text == (
        "WEBVTT\n\n1\n00:00:00.000 --> 00:00:01.250\nfirst\n\n"
        f"2\n00:00:03.500 --> 01:01:01.000\n{CHINESE}\n"
        "&lt;img src=x onerror=alert(1)&gt; {\\b1}bold &amp; 1 --&gt; 2\n"
    )


def test_players_read_no_markup_in_subrip(tmp_path):
    text = write_subtitles([Cue(0, 1, MARKUP)], tmp_path / "a.srt").read_text(encoding="utf-8")
    assert text.startswith("1\n00:00:00,000 --> 00:00:01,000\n")
    assert re.sub("\u2060", "", text).endswith(f"{MARKUP}\n")
    assert "<i" not in text and "{\\" not in text


def test_a_track_of_subtitles_can_be_taken_out_again_word_for_word(tmp_path):
    frames = np.zeros((16, 32, 48, 3), np.uint8)
    said = f"{CHINESE} {MARKUP}"
    path = write_video(frames, tmp_path / "a.mp4", subtitles=[Cue(0, 1, said), Cue(1, 2, "end")])
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    found = subprocess.run(
        [ffmpeg, "-v", "error", "-i", path, "-f", "srt", "-"], capture_output=True, check=True
    ).stdout.decode()
    assert found.replace("\u2060", "").replace("\\", "").count(said.replace("\\", "")) == 1
    assert "00:00:01,000 --> 00:00:02,000\nend" in found


def test_drawn_subtitles_are_in_their_frames_alone_and_at_the_foot():
    frames = np.full((16, 240, 320, 3), 0.5, np.float32)
    drawn = draw_subtitles(frames, [Cue(0.5, 1.0, CHINESE)])
    changed = (drawn != 128).any((1, 2, 3))
    assert changed.tolist() == [4 <= number < 8 for number in range(16)]
    rows = np.flatnonzero((drawn[5] != 128).any((1, 2)))
    assert rows.min() > 160 and rows.max() < 240
    assert drawn[5].max() == 255 and drawn[5].min() == 0  # white letters, black edges
    assert (frames == 0.5).all()


def test_long_subtitles_are_broken_between_words_and_between_chinese_characters():
    frames = np.zeros((1, 240, 320, 3), np.uint8)
    short, long = (
        np.flatnonzero(draw_subtitles(frames, [Cue(0, 1, text)])[0].any((1, 2)))
        for text in (CHINESE[:8], CHINESE * 2 + PROMPT)
    )
    assert np.ptp(long) > 3 * np.ptp(short)
    columns = np.flatnonzero(draw_subtitles(frames, [Cue(0, 1, CHINESE * 3)])[0].any((0, 2)))
    assert columns.min() > 2 and columns.max() < 317


def test_what_cannot_be_subtitled_gets_a_sentence(tmp_path):
    frames = np.zeros((2, 96, 96, 3), np.uint8)
    for start, end, text in ((1, 1, "a"), (-1, 1, "a"), (0, float("inf"), "a"), (0, 1, " ")):
        with pytest.raises(OptionError, match="a cue"):
            Cue(start, end, text)
    with pytest.raises(OptionError, match="finds no room"):
        draw_subtitles(frames, [Cue(0, 1, PROMPT * 20)])
    with pytest.raises(OptionError, match=r"frames\[0\]"):
        draw_subtitles(frames[None], [Cue(0, 1, "a")])
    for wrong in (None, ["a"], Cue(0, 1, "a"), "a"):
        with pytest.raises(OptionError, match=r"Cue|cues"):
            draw_subtitles(frames, wrong)
    for wrong in (None, [(None, 3)], [("a", 2.5)], ["ab", "c"]):
        with pytest.raises(OptionError, match=r"passage|whole number"):
            passages(wrong)
    with pytest.raises(OptionError, match="NumPy array"):
        draw_subtitles(torch.zeros(1, 8, 8, 3, requires_grad=True), [])
    with pytest.raises(OptionError, match="name a file"):
        write_video(frames, None)
    with pytest.raises(OptionError, match="-3 to 3"):
        draw_subtitles(np.linspace(-3, 3, 12).reshape(1, 2, 2, 3), [Cue(0, 1, "a")])
    for fps in (0, float("nan"), "8", True, 1e-9, 1e300, 10**400):
        with pytest.raises(OptionError, match="fps"):
            draw_subtitles(frames, [Cue(0, 1, "a")], fps)
    with pytest.raises(OptionError, match="whole number"):
        passages([("a", 0)])
    with pytest.raises(OptionError, match=r"\.vtt or \.srt"):
        write_subtitles([Cue(0, 1, "a")], tmp_path / "a.txt")
    with pytest.raises(OptionError, match="no cue"):
        write_subtitles([], tmp_path / "a.srt")
    with pytest.raises(ReportError, match="cannot write subtitles"):
        write_subtitles([Cue(0, 1, "a")], tmp_path / "none" / "a.srt")
    with pytest.raises(OptionError, match="nothing to draw"):
        write_video(frames, tmp_path / "a.mp4", burn=True)
    with pytest.raises(OptionError, match=r"\.mp4"):
        write_video(frames, tmp_path / "a.gif")
    with pytest.raises(ReportError, match="cannot write the video"):
        write_video(frames, tmp_path / "none" / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_video_file_shows_the_frames_enlarged_in_their_order(tmp_path):
    frames = np.repeat(np.linspace(40, 220, 9).astype(np.uint8), 24 * 16 * 3).reshape(9, 24, 16, 3)
    path = write_video(frames, tmp_path / "a.mp4", fps=4)
    found = iio.imread(path)
    assert found.shape == (9, 480, 320, 3)
    assert np.abs(found.mean((1, 2, 3)) - frames.mean((1, 2, 3))).max() < 4
    burnt = iio.imread(write_video(frames, path, subtitles=[Cue(0, 1, CHINESE)], burn=True))
    assert np.abs(burnt[0].astype(int) - found[0]).max() > 100
    assert np.abs(burnt[8].astype(int) - found[8]).max() < 30


def test_a_video_that_could_not_be_written_whole_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_video(np.zeros((4, 32, 32, 3), np.uint8), tmp_path / "a.mp4")
    before = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 255, (8, 240, 240, 3), dtype=np.uint8)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # as a full disk would
    try:
        with pytest.raises(ReportError, match="ffmpeg could not write the video"):
            write_video(noise, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_bytes() == before
    monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda: "/nowhere/ffmpeg")
    with pytest.raises(ReportError, match="ffmpeg cannot be run"):
        write_video(noise, path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.mp4"]


def test_odd_sides_get_their_last_row_and_column_twice(tmp_path):
    frames = np.random.default_rng(0).integers(0, 255, (2, 241, 301, 3), dtype=np.uint8)
    found = iio.imread(write_video(frames, tmp_path / "a.mp4", fps=np.float32(4)))
    assert found.shape == (2, 242, 302, 3)


def test_letters_that_no_font_has_are_boxes_and_another_font_helps_out():
    frames = np.zeros((1, 240, 320, 3), np.uint8)

    def drawn(text):
        return draw_subtitles(frames, [Cue(0, 1, text)])

    assert np.array_equal(drawn("\U0001f415"), drawn("□"))
    assert not np.array_equal(drawn("Tiếng Việt"), drawn("Ti□ng Vi□t"))
    assert not np.array_equal(drawn("مرحبا"), drawn("□□□□□"))


def test_a_text_far_too_long_is_refused_at_once():
    begun = time.perf_counter()
    with pytest.raises(OptionError, match="10000 characters finds no room"):
        draw_subtitles(np.zeros((1, 480, 640, 3), np.uint8), [Cue(0, 1, "雨" * 10_000)])
    assert time.perf_counter() - begun < 2
