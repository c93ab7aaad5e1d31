"""Still pictures: what is drawn where, in whose colours, and what the words beside them say."""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.font_manager import FontProperties, findfont

from wanviz import views
from wanviz.errors import KeepError, OptionError, PhraseError
from wanviz.font import FONT_PATH, MISSING, embedded_font, figure_style, legible
from wanviz.plots import (
    MOST_ROWS,
    plot_frames,
    plot_heads,
    plot_routing,
    plot_steps,
    plot_storyboard,
)
from wanviz.trace import Trace
from wanviz.views import Scale


def images(figure):
    return [axis.images[0] for axis in figure.axes if axis.images]


def test_a_storyboard_has_a_row_per_word_and_a_column_per_latent_frame(painted):
    figure = plot_storyboard(painted(), ["旗袍", "伞"])
    assert len(images(figure)) == (1 + 2) * 5
    titles = [axis.get_title() for axis in figure.axes[:5]]
    assert titles == ["frame 0"] + [
        f"frame {4 * i - 3}–{4 * i}\nshown: {4 * i - 1}" for i in range(1, 5)
    ]
    labels = [axis.get_ylabel() for axis in figure.axes if axis.get_ylabel()]
    assert labels == ["video", "旗袍", "伞"]


def test_a_storyboard_is_brightest_where_the_word_was_painted(painted):
    trace = painted()
    figure = plot_storyboard(trace, ["旗袍"])
    drawn = np.asarray(images(figure)[5 + 2].get_array()).sum(axis=2)
    painted_there = views.upsample(trace.word_map("旗袍").values[2], 96, 96)
    brightest = np.unravel_index(drawn.argmax(), drawn.shape)
    assert painted_there[brightest] > 0.8 * painted_there.max()


def test_one_scale_serves_all_frames_of_a_word_and_a_shared_one_all_words(painted):
    trace = painted()
    peaks = [float(trace.word_map(word).max()) for word in ("旗袍", "有")]
    own = plot_storyboard(trace, ["旗袍", "有"])
    shared = plot_storyboard(trace, ["旗袍", "有"], scale="shared")
    ends = [axis.get_ylim()[1] for axis in own.axes[-2:]]
    assert np.allclose(ends, peaks)
    assert np.allclose([axis.get_ylim()[1] for axis in shared.axes[-2:]], max(peaks))


def test_a_long_prompt_draws_the_words_with_the_highest_peaks_and_says_so(painted):
    trace = painted()
    figure = plot_storyboard(trace)
    assert len(trace.words) > MOST_ROWS
    assert f"{MOST_ROWS} of {len(trace.words)} words" in figure.get_supxlabel()
    assert repr(figure).startswith(f"storyboard: {MOST_ROWS} words × 5 latent frames")
    assert "旗袍: peak " in repr(figure)


def test_a_trace_without_video_is_drawn_on_grey(painted):
    figure = plot_storyboard(painted(video=False), ["伞"])
    assert np.asarray(images(figure)[0].get_array()).std() == 0


def test_storyboards_refuse_what_they_cannot_draw(painted):
    with pytest.raises(PhraseError, match="猫"):
        plot_storyboard(painted(), ["猫"])
    with pytest.raises(OptionError, match="no words"):
        plot_storyboard(painted("。。"))
    with pytest.raises(OptionError, match="use 'word' or 'shared'"):
        plot_storyboard(painted(), scale="frame")


def test_hostile_prompts_are_drawn_as_text(painted):
    figure = plot_storyboard(painted("a $\\frac{1}{ cat 🙂 \u202e and\x00 a\n dog"), ["cat"])
    figure.savefig("/dev/null", format="png")
    assert "\u202e" not in figure.get_suptitle()
    assert MISSING in figure.get_suptitle()


def test_frames_that_were_not_computed_are_hatched(painted):
    trace = painted()
    figure = plot_frames(trace, layer=0)
    missing = int(np.isnan(trace.frame_attention(layer=0)["mass"].values).sum())
    assert missing == 12
    assert sum(patch.get_hatch() is not None for patch in figure.axes[0].patches) == missing
    assert "not computed" in figure.get_supxlabel()


def test_frames_by_layer_are_small_multiples_of_the_trace(painted):
    trace = painted()
    figure = plot_frames(trace, layer="all")
    shown = [np.ma.filled(image.get_array(), np.nan) for image in images(figure)[:4]]
    for layer, mass in enumerate(shown):
        expected = trace.frame_attention(layer=layer)["mass"].values
        assert np.allclose(mass, expected, equal_nan=True)
    assert "4 of 5 × 5" in repr(figure)


def test_routing_shows_each_step_under_its_noise_expert(painted):
    trace = painted()
    figure = plot_routing(trace)
    bars = [sorted(bar.get_height() for bar in group) for group in figure.axes[0].containers]
    by_expert = {name: [] for name in ("high", "low")}
    for step in trace.record["steps"]:
        by_expert[step["noise_expert"]].append(step["sigma"])
    assert np.allclose(bars[0], sorted(by_expert["high"]))
    assert np.allclose(bars[1], sorted(by_expert["low"]))
    load = np.asarray(figure.axes[1].images[0].get_array())
    assert np.allclose(load, trace.routing["load"].mean("step"))


def test_plots_leave_the_users_matplotlib_as_it_was(painted):
    before = dict(mpl.rcParams)
    plot_storyboard(painted(), ["伞"])
    plot_frames(painted())
    assert dict(mpl.rcParams) == before


def test_a_figure_gives_a_notebook_a_png(painted):
    assert plot_frames(painted())._repr_png_().startswith(b"\x89PNG")


def test_overlay_blends_by_the_stated_formula():
    frame = np.full((4, 4, 3), 100, np.uint8)
    flat = views.overlay(frame, np.full((2, 2), 0.5, np.float32), Scale(0, 0.5))
    expected = 100 * (1 - views.MOST_ALPHA) + views.colors()[255] * views.MOST_ALPHA
    assert np.abs(flat[0, 0] - expected).max() <= 0.5
    assert Scale(0.2, 0.2)(np.ones((1, 1), np.float32)) == 0


def test_upsampling_keeps_cell_centres_and_blends_between_them():
    mass = np.array([[0.0, 1.0]], np.float32)
    row = views.upsample(mass, 1, 6)[0]
    assert np.allclose(row, [0, 0, 1 / 3, 2 / 3, 1, 1])


def test_our_font_draws_every_character_of_gb2312():
    codes = [bytes([a, b]) for a in range(0xB0, 0xF8) for b in range(0xA1, 0xFF)]
    hanzi = "".join(code.decode("gb2312", "ignore") for code in codes)
    assert len(hanzi) == 6763
    assert legible(hanzi + "，。！？Aé") == hanzi + "，。！？Aé"
    with figure_style():
        assert findfont(FontProperties()) == str(FONT_PATH)
    assert FONT_PATH.stat().st_size <= 3 << 20
    assert "SIL OPEN FONT LICENSE" in FONT_PATH.with_name("OFL.txt").read_text("utf-8")


def test_an_embedded_font_holds_the_characters_asked_for_and_few_others():
    import io

    from fontTools.ttLib import TTFont

    data = embedded_font("旗袍伞")
    assert len(data) < 20_000
    assert {ord(c) for c in "旗袍伞"} == set(TTFont(io.BytesIO(data)).getBestCmap())


def test_equal_words_are_numbered(painted):
    figure = plot_storyboard(painted("a red coat, a red hat"))
    rows = [axis.get_ylabel() for axis in figure.axes]
    assert {"red (1)", "red (2)", "coat"} <= set(rows)


@pytest.mark.parametrize("frames", [1, 5])
def test_headings_stay_inside_the_figure(painted, frames):
    trace = painted("一位穿红色旗袍的女子在江南雨巷撑伞漫步" * 6)
    contents = trace.contents
    arrays = {
        name: array[..., :frames, :, :]
        for name, array in contents.arrays.items()
        if "words" in name
    }
    fewer = replace(contents, arrays=arrays, grid=replace(contents.grid, frames=frames))
    figure = plot_storyboard(Trace(fewer), [trace.words[0]])
    renderer = FigureCanvasAgg(figure).get_renderer()
    wide = figure.bbox.width
    for text in (figure._suptitle, figure._supxlabel):
        box = text.get_window_extent(renderer)
        assert 0 <= box.x0 < box.x1 <= wide
    assert figure._suptitle.get_text().endswith("…")


def test_a_map_lies_over_a_grey_frame():
    frame = np.zeros((2, 2, 3), np.uint8)
    frame[..., 0] = 200
    dark = views.overlay(frame, np.zeros((1, 1), np.float32), views.Scale(0, 1))
    first = views.colors()[0] * views.LEAST_ALPHA
    grey = 0.3 * 200 * (1 - views.LEAST_ALPHA)
    assert np.abs(dark - (first + grey)).max() <= 1


@pytest.mark.parametrize("scale", ["own", "shared"])
def test_heads_are_drawn_layer_by_layer_as_the_trace_has_them(painted, scale):
    trace = painted(keep=(("layer", "head"),))
    figure = plot_heads(trace, "旗袍", scale=scale)
    drawn = images(figure)[: 4 * 2]
    span = int(trace.word_map("旗袍").values.max((1, 2)).argmax())
    top = max(
        float(trace.word_map("旗袍", layer=n, head=k).max()) for n in range(4) for k in (0, 1)
    )
    for number, image in enumerate(drawn):
        mass = trace.word_map("旗袍", layer=number // 2, head=number % 2).values
        share = mass[span] / (top if scale == "shared" else mass.max())
        expected = views.colors()[np.rint(share * 255).astype(int)]
        assert np.abs(np.asarray(image.get_array()).astype(int) - expected).max() <= 6
    assert repr(figure).startswith("heads: 旗袍 in 4 layers × 2 heads; highest peak")
    assert [axis.get_title() for axis in figure.axes[:2]] == ["head 0", "head 1"]


def test_steps_show_what_was_predicted_and_the_word_on_one_scale(painted):
    trace = painted(keep=(("layer", "step"),), previews=True)
    figure = plot_steps(trace, "伞", frame=2, most=3)
    drawn = [np.asarray(image.get_array()) for image in images(figure)[:6]]
    top = max(float(trace.word_map("伞", step=step).max()) for step in (0, 2, 5))
    for column, step in enumerate((0, 2, 5)):
        picture = trace.previews.values[step, 2]
        assert np.array_equal(drawn[column], picture)
        mass = trace.word_map("伞", step=step).values[2]
        assert np.array_equal(drawn[3 + column], views.overlay(picture, mass, Scale(0, top)))
    assert repr(figure).startswith("steps 0, 2, 5; peaks ")
    assert figure.axes[0].get_title() == "step 0\nsigma 1.00"


def test_steps_without_previews_have_the_finished_video_under_the_maps(painted):
    trace = painted(keep=(("layer", "step"),))
    figure = plot_steps(trace, "伞", frame=0, most=2)
    assert np.array_equal(np.asarray(images(figure)[0].get_array()), trace.frames[0])
    with pytest.raises(KeepError, match="previews=True"):
        plot_steps(trace)
    alone = plot_steps(painted(previews=True))
    assert len(images(alone)) == 6


def test_a_run_that_never_came_to_the_watched_steps_gets_a_sentence(painted):
    trace = painted(keep=(("layer", "step"),), previews=True)
    trace.record["steps"] = []
    for word in ("伞", None):
        with pytest.raises(KeepError, match="none of them ran"):
            plot_steps(trace, word)


def test_heads_and_steps_refuse_what_they_cannot_draw(painted):
    trace = painted()
    with pytest.raises(KeepError, match="would have kept it"):
        plot_heads(trace, "伞")
    with pytest.raises(KeepError, match="would have kept it"):
        plot_steps(trace, "伞")
    whole = painted(keep=(("layer", "head"), ("layer", "step")), previews=True)
    for draw in (plot_heads, plot_steps):
        with pytest.raises(OptionError, match="use a latent frame from 0 to 4"):
            draw(whole, "伞", frame=5)
    with pytest.raises(OptionError, match="two steps or more"):
        plot_steps(whole, "伞", most=1)
    with pytest.raises(OptionError, match="'own' or 'shared'"):
        plot_heads(whole, "伞", scale="word")
