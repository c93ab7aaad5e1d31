"""The report: one file, nothing from outside, untrusted text inert, maps as in the trace."""

import base64
import hashlib
import html
import io
import itertools
import json
import re
import zlib

import numpy as np
import pytest
from PIL import Image

from wanviz import slices
from wanviz.errors import ReportError, TraceFileError
from wanviz.page import MISSING, MOST_LEVEL, page_data, quantise
from wanviz.report import render, report
from wanviz.show import mimebundle
from wanviz.widget import branch_first

HOSTILE = (
    "<img src=x onerror=alert(1)> </script><script>alert(2)</script><!-- {{js}} {{data}} \"'` "
    "\u202eright to left\u202c \x00\x1b \u2028 🙂 旗袍 "
)
LONG = (HOSTILE + "x" * 200 + " 很长") * 40


@pytest.fixture(scope="module")
def page(painted):
    return render(painted())


def data_of(page):
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    return json.loads(block[1])["first"]


def test_a_report_loads_nothing_from_outside(page):
    assert not re.findall(
        r"""(?:src|href|action|srcset|poster)\s*=""", page.replace(data_block(page), "")
    )
    assert not re.findall(r"url\((?!data:font/woff;base64,)", page)
    assert not re.findall(r"@import|\bimport\s*\(|\bfetch\(|XMLHttpRequest|WebSocket", page)
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


def data_block(page):
    return page[page.index('id="data">') : page.index("</script>", page.index('id="data">'))]


def test_the_policy_allows_only_the_script_and_style_that_are_there(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    for tag, name in (("script", "script-src"), ("style", "style-src")):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        assert len(text) == 1
        digest = base64.b64encode(hashlib.sha256(text[0].encode()).digest()).decode()
        assert f"{name} 'sha256-{digest}'" in policy


@pytest.mark.parametrize("prompt", [HOSTILE, LONG[:10_000]], ids=["hostile", "10,000 characters"])
def test_a_hostile_prompt_stays_data(painted, prompt):
    page = render(painted(prompt, truncated_at=min(len(prompt), 300)))
    assert "<img" not in page
    assert "\u202e" not in page and "\x00" not in page
    assert page.count("<script") == page.count("</script>") == 2
    assert data_of(page)["prompt"] == prompt
    assert len(page) < 3 << 20


def test_the_data_of_a_page_has_no_letter_that_html_reads(painted):
    prompt = "<b> & </b> &lt; <!-- --> ]]>"
    page = render(painted(prompt))
    assert not set(data_block(page)[len('id="data">') :]) & set("<>&")
    assert data_of(page)["prompt"] == prompt


def test_a_lone_surrogate_is_written_as_utf_8(painted, tmp_path):
    path = report(painted("a \ud800 dog"), tmp_path / "x.html")
    assert data_of(path.read_text("utf-8"))["prompt"] == "a \ud800 dog"


def stored_maps(data, number):
    """A family of the page: masses [subject, …, f, h, w] and units [subject, …]."""
    family = data["maps"]["families"][number]
    sizes = [len(choices) + 1 for choices in family["choices"]]
    subjects = len(data["words"]) + len(data["kinds"])
    levels, unit = (zlib.decompress(base64.b64decode(family[name])) for name in ("levels", "units"))
    unit = np.frombuffer(unit, "<f4").reshape(subjects, *sizes).astype(float)
    levels = np.frombuffer(levels, np.uint8).reshape(*unit.shape, *data["grid"]).astype(float)
    levels[levels == MISSING] = np.nan
    return levels * unit[..., None, None, None], unit


@pytest.mark.parametrize("keep", [(("layer",),), (("layer", "head"), ("layer", "step")), ((),)])
def test_stored_maps_equal_the_trace_within_half_a_unit(painted, keep):
    trace = painted(keep=keep)
    data = data_of(render(trace))
    axes = [family["axes"] for family in data["maps"]["families"]]
    assert axes == [list(axes) for axes in keep]
    for number, family in enumerate(data["maps"]["families"]):
        stored, unit = stored_maps(data, number)
        places = [range(len(choices) + 1) for choices in family["choices"]]
        for place in itertools.product(*places):
            asked = {a: None if i == 0 else i - 1 for a, i in zip(family["axes"], place)}  # noqa: B905
            for index, word in enumerate(trace.words):
                off = np.abs(stored[index, *place] - trace.word_map(word, **asked).values)
                assert off.max() <= unit[index, *place] * 0.5001 + 1e-7
                assert off.max() <= float(data["maps"]["error"]) * 1.06  # stated with one digit
        mean = stored[len(trace.words) :, *(0 for _ in places)]
        assert np.allclose(mean, trace.special[()].values, atol=unit.max() / 2)


def test_what_does_not_fit_is_averaged_in_groups_and_then_left_out(painted, monkeypatch):
    trace = painted(layers=20, keep=(("layer", "step"),))
    subjects = len(trace.words) + 2
    each = subjects * 5 * 12 * 12
    found, grouped = slices.families(trace, most=21 * 7 * each)
    assert not grouped
    assert [len(choices) for choices in found[0].choices] == [20, 6]
    found, grouped = slices.families(trace, most=21 * 7 * each - 1)
    assert grouped
    assert [
        group.name for group in found[0].choices[0]
    ] == "0–2 3–5 6–8 9–11 12–13 14–15 16–17 18–19".split()
    maps = slices.family_maps(trace, found[0])
    wanted = np.mean([trace.word_map("伞", layer=n, step=4).values for n in (3, 4, 5)], axis=0)
    index = [word.text for word in trace.words].index("伞")
    np.testing.assert_allclose(maps[index, 2, 5], wanted, atol=1e-6)
    found, grouped = slices.families(trace, most=20 * each)
    assert grouped
    assert [family.axes for family in found] == [("layer",), ("step",)]
    assert slices.families(trace, most=each) == ((slices.Family((), ()),), True)


def test_pairs_that_are_left_out_count_as_left_out_though_each_axis_is_whole(painted):
    trace = painted(keep=(("layer", "head"),))
    each = (len(trace.words) + 2) * 5 * 12 * 12
    found, grouped = slices.families(trace, most=8 * each)
    assert [len(family.choices[0]) for family in found] == [4, 2]
    assert grouped


def test_a_page_says_of_its_own_branch_where_the_prompt_was_cut(painted):
    trace = painted("一位女子在雨中", truncated_at=4, negative="模糊的画面")
    assert page_data(trace)["cut"] == 4
    assert page_data(branch_first(trace, "uncond"))["cut"] is None


def test_what_was_not_computed_has_a_level_of_its_own():
    masses = np.full((1, 2, 1, 1, 2), 0.5, np.float32)
    masses[0, 1] = np.nan
    levels, unit = quantise(masses)
    assert (levels[0, 0] == MOST_LEVEL).all()
    assert (levels[0, 1] == MISSING).all()
    assert unit.tolist() == [[0.5 / MOST_LEVEL, 0]]


def test_shares_add_up_to_all_attention(page):
    data = data_of(page)
    stored, unit = stored_maps(data, 0)
    assert np.allclose(stored.sum(axis=0), 1, atol=unit.sum(axis=0).max() / 2)
    assert [kind["name"] for kind in data["kinds"]] == ["end_of_text", "padding"]


def test_frames_are_stored_without_loss(painted, page):
    video = data_of(page)["video"]
    assert video["lossless"]
    for stored, frame in zip(video["frames"], painted().frames, strict=True):
        picture = Image.open(io.BytesIO(base64.b64decode(stored)))
        assert np.array_equal(np.asarray(picture.convert("RGB")), frame)


def test_a_report_says_what_a_trace_does_not_have(painted):
    data = page_data(painted(video=False, keep=((),), frames=None))
    assert data["video"]["frames"] is None
    assert data["maps"]["families"][0]["axes"] == ()
    assert data["frames"] is None


def test_chinese_is_legible_without_any_installed_font(page):
    font = re.search(r"data:font/woff;base64,([^)]*)\)", page)[1]
    from fontTools.ttLib import TTFont

    drawn = set(TTFont(io.BytesIO(base64.b64decode(font))).getBestCmap())
    assert {ord(c) for c in data_of(page)["prompt"] + "提示词空格键"} <= drawn


def test_a_report_is_small_and_written_whole_or_not_at_all(painted, tmp_path):
    path = report(painted(), tmp_path / "x.html")
    assert path.stat().st_size < 1 << 20
    assert [file.name for file in tmp_path.iterdir()] == ["x.html"]
    with pytest.raises(ReportError, match=r"cannot write the report .* exists, is writable"):
        report(painted(), tmp_path / "missing" / "x.html")


def test_a_notebook_stores_a_sandboxed_page_a_poster_and_a_sentence(painted):
    trace = painted()
    bundle = mimebundle(trace)
    before, page = bundle["text/html"].split("<iframe")
    assert 'sandbox="allow-scripts"' in bundle["text/html"]
    assert page.count("<") == 2  # the frame's end and the box's: the page is escaped
    picture = re.search(r'<img alt="(.*?)" src="data:image/png;base64,(.*?)">', before)
    assert html.unescape(picture[1]) == repr(trace)
    assert base64.b64decode(picture[2]) == bundle["image/png"]
    assert "trust the notebook" in before and "信任" in before
    assert bundle["text/plain"] == repr(trace)
    assert Image.open(io.BytesIO(bundle["image/png"])).width > 300
    assert len(bundle["image/png"]) <= 40_000
    assert set(mimebundle(trace, include={"text/plain"})) == {"text/plain"}


@pytest.mark.parametrize("what", ["words", "frames", "routing"])
def test_a_trace_with_a_failed_part_is_shown_without_it(painted, what):
    trace = painted()
    trace.record["failed"] = {what: "RuntimeError: out of luck"}
    data = page_data(trace)
    assert (data["words"] == []) == (what == "words")
    assert (data["frames"] is None) == (what == "frames")
    assert (data["load"] is None) == (what == "routing")
    assert data["video"]["count"] == 17
    assert ["failed", f"{what} RuntimeError: out of luck"] in [
        list(line) for line in data["record"]
    ]
    assert set(mimebundle(trace)) == {"text/plain", "image/png", "text/html"}


def test_padding_that_nobody_reads_is_not_shown(painted):
    trace = painted()
    assert [kind["name"] for kind in page_data(trace)["kinds"]] == ["end_of_text", "padding"]
    trace.record["padding_keys"] = "none attended"
    assert [kind["name"] for kind in page_data(trace)["kinds"]] == ["end_of_text"]


def test_a_run_that_was_stopped_says_how_far_it_came(painted):
    trace = painted()
    assert "6 steps (2 high-noise" in page_data(trace)["facts"]
    trace.record["steps"] = trace.record["steps"][:3]
    assert "3 of 6 steps (2 high-noise, 1 low-noise)" in page_data(trace)["facts"]
    assert "3 of 6 steps" in repr(trace)


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_path_that_names_no_file_gets_a_sentence(painted, path):
    with pytest.raises(ReportError, match="which names no file"):
        report(painted(), path)
    with pytest.raises(TraceFileError, match="which names no file"):
        painted().save(path)
