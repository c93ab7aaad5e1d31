"""Still pictures of a trace: words over the video, frames by frames, and who worked when."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.textpath import TextToPath
from matplotlib.ticker import MaxNLocator

from wanviz import views
from wanviz.errors import KeepError, OptionError
from wanviz.font import figure_style, legible
from wanviz.views import COLOR_MAP, Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from wanviz.trace import Trace
    from wanviz.words import Word

MOST_ROWS = 12  # rows of a storyboard that a reader still takes in
NOISE_COLORS = {"high": "#0072B2", "low": "#E69F00"}  # Okabe and Ito: told apart by everyone
_SMALL = 8


class Plot(Figure):
    """A matplotlib figure that tells in words what it shows, as saved notebooks need."""

    summary = "an empty plot"

    def __repr__(self) -> str:
        """The summary: shape and rounded peaks."""
        return self.summary

    def _repr_png_(self) -> bytes:
        import io

        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()


def plot_storyboard(
    trace: Trace,
    words: Sequence[str | Word] | None = None,
    *,
    layer: int | None = None,
    scale: Literal["word", "shared"] = "word",
) -> Plot:
    """Words down, latent frames across: where in the video each word worked.

    Args:
        trace: what a capture kept.
        words: phrases or words of the prompt; by default its words, and where there are more than
            twelve, those with the highest peaks.
        layer: one layer instead of the mean over layers.
        scale: "word": every word has its own colour scale, from zero to its peak, one for all its
            frames; "shared": all words have one.

    Returns:
        A figure; each colour bar is in attention mass.
    """
    if scale not in ("word", "shared"):
        raise OptionError(f"scale={scale!r} is not a scale: use 'word' or 'shared'")
    chosen = list(words) if words is not None else [word for word in trace.words if word.tokens]
    if not chosen:
        raise OptionError("no words to draw: the prompt has none that the model saw")
    maps = [trace.word_map(word, layer=layer).values for word in chosen]
    note = ""
    if words is None and len(chosen) > MOST_ROWS:
        note = f";\nthe {MOST_ROWS} of {len(chosen)} words with the highest peaks"
        peaks = np.array([np.nan_to_num(mass).max() for mass in maps])
        keep = sorted(np.argsort(-peaks, kind="stable")[:MOST_ROWS])
        chosen, maps = [chosen[i] for i in keep], [maps[i] for i in keep]
    labels = _labels(chosen)
    spans = views.pixel_frames(trace)
    shared = Scale.of(np.stack(maps))
    with figure_style():
        figure, axes, bars = _board(len(maps) + 1, len(spans), _aspect(trace, spans))
        for column, span in enumerate(spans):
            _show(axes[0][column], views.picture(trace, span))
            title = f"frame {views.span_label(span)}"
            if len(span) > 1:
                title += f"\nshown: {views.shown_frame(span)}"
            axes[0][column].set_title(title, fontsize=_SMALL, pad=3)
        _row_label(axes[0][0], "video" if trace.frames is not None else "not decoded")
        bars[0].set_visible(False)
        for row, (label, mass) in enumerate(zip(labels, maps, strict=True), 1):
            own = shared if scale == "shared" else Scale.of(mass)
            for column, span in enumerate(spans):
                picture = views.picture(trace, span)
                if np.isnan(mass[column]).any():
                    _show(axes[row][column], picture // 2)
                    _note(axes[row][column], "not computed")
                else:
                    _show(axes[row][column], views.overlay(picture, mass[column], own))
            _row_label(axes[row][0], label)
            _color_bar(figure, bars[row], own)
        where = "mean over layers" if layer is None else f"layer {layer}"
        if ran := views.steps_that_ran(trace):
            note = f"; only {ran} ran{note}"
        _heading(
            figure,
            trace.prompt,
            f"attention mass: the share of a place's attention that goes to the word, {where}{note}",
        )
    figure.summary = "\n".join(
        [f"storyboard: {len(maps)} words × {len(spans)} latent frames ({where})"]
        + [_peak(label, mass) for label, mass in zip(labels, maps, strict=True)]
    )
    return figure


def plot_frames(trace: Trace, *, layer: int | Literal["all"] | None = None) -> Plot:
    """How much each latent frame looks at each other one.

    Args:
        trace: what a capture kept.
        layer: None: mean over layers; a number: that layer; "all": one small matrix per layer.

    Returns:
        A figure; cells outside a layer's window are hatched: they were not computed.
    """
    layers: list[int | None]
    if layer == "all":
        layers = [int(number) for number in trace.maps["layer"].layer.values]
    else:
        layers = [layer]
    found = [trace.frame_attention(layer=number) for number in layers]
    masses = [one["mass"].values for one in found]
    sampled = [float(one["stderr"].max()) for one in found if "stderr" in one]
    columns = min(len(masses), 4)
    rows = -(-len(masses) // columns)
    size = 3.4 if len(masses) == 1 else 1.9
    labels = [views.span_label(span) for span in views.pixel_frames(trace)]
    with figure_style():
        figure, axes = _grid(rows, columns, (1.3 + size * columns, 1.0 + size * rows))
        for index, axis in enumerate(axes.flat):
            if index >= len(masses):
                axis.set_visible(False)
                continue
            _frame_matrix(axis, masses[index], labels, numbers=len(masses) == 1)
            if layers[index] is not None:
                axis.set_title(f"layer {layers[index]}", fontsize=_SMALL + 1)
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1), COLOR_MAP), ax=axes, fraction=0.05, pad=0.02
        )
        bar.set_label("attention mass (each row sums to 1)", fontsize=_SMALL)
        bar.ax.tick_params(labelsize=_SMALL)
        where = "mean over layers" if layer is None else ""
        missing = any(np.isnan(mass).any() for mass in masses)
        _heading(
            figure,
            "Frames looking at frames" + (f", {where}" if where else ""),
            "by latent frame, named by its video frames"
            + ("; hatched: not computed" if missing else "")
            + (f"; sampled, standard errors up to {max(sampled):.2g}" if sampled else ""),
        )
    own = [f"{float(np.nanmean(np.diag(mass))):.2g}" for mass in masses]
    figure.summary = (
        f"frames × frames: {len(masses)} of {masses[0].shape[0]} × {masses[0].shape[1]}; "
        f"mass on the own frame {', '.join(own)}"
    )
    return figure


def plot_routing(trace: Trace) -> Plot:
    """Which noise expert worked at which step, and which token experts each layer used.

    Args:
        trace: what a capture kept.

    Returns:
        A figure with the noise level over the steps and, where token experts were captured
        (`routing=True`), the load of layer by token expert.
    """
    steps = trace.record["steps"]
    load = trace.routing.get("load")
    with figure_style():
        figure, axes = _grid(1, 1 if load is None else 2, (8.4, 3.1))
        _noise_timeline(axes[0, 0], steps)
        experts = sum(step["noise_expert"] == "high" for step in steps)
        summary = f"routing: {len(steps)} steps, "
        two = any(step["noise_expert"] for step in steps)
        summary += f"{experts} by the high-noise expert" if two else "one denoiser for all"
        if load is not None:
            table = load.mean("step").transpose("layer", "token_expert")
            _load_table(figure, axes[0, 1], table.values, [int(i) for i in table.layer.values])
            summary += (
                f"; {table.shape[0]} layers × {table.shape[1]} token experts, "
                f"busiest {float(table.max()):.2g} of a layer's expert places, "
                f"idlest {float(table.min()):.2g}"
            )
        _heading(figure, "Who worked when", "")
    figure.summary = summary
    return figure


def plot_heads(
    trace: Trace,
    word: str | Word,
    *,
    frame: int | None = None,
    scale: Literal["own", "shared"] = "own",
) -> Plot:
    """A word in every layer and head, side by side.

    Args:
        trace: what a capture kept, ("layer", "head") among it.
        word: a phrase or word of the prompt.
        frame: a latent frame; by default the one in which the mean map peaks.
        scale: "own": every head from zero to its own peak in the clip; "shared": one scale for all.

    Returns:
        A figure, layers down, heads across.

    Raises:
        KeepError: layers with heads were not kept.
    """
    if scale not in ("own", "shared"):
        raise OptionError(f"scale={scale!r} is not a scale: use 'own' or 'shared'")
    layers, heads = trace.contents.labels["layer"], trace.contents.labels["head"]
    maps = [[trace.word_map(word, layer=n, head=k).values for k in heads] for n in layers]
    span = _chosen_frame(trace, word, frame)
    shared = Scale.of(np.array(maps))
    rows, columns = trace.contents.grid.shape[1:]
    with figure_style():
        figure, axes, bars = _board(len(layers), len(heads), rows / columns)
        for row, (layer, line) in enumerate(zip(layers, maps, strict=True)):
            for column, mass in enumerate(line):
                own = shared if scale == "shared" else Scale.of(mass)
                axis = axes[row][column]
                if np.isnan(mass[span]).any():
                    _show(axis, np.full((rows, columns, 3), 96, np.uint8))
                    _note(axis, "not computed")
                else:
                    _show(axis, views.colors()[np.rint(own(mass[span]) * 255).astype(int)])
                if row == 0:
                    axis.set_title(f"head {heads[column]}", fontsize=_SMALL, pad=3)
            _row_label(axes[row][0], f"layer {layer}")
            bars[row].set_visible(scale == "shared" and row == 0)
        if scale == "shared":
            _color_bar(figure, bars[0], shared)
        text = _labels([word])[0]
        each = "each from 0 to its own peak" if scale == "own" else "one scale for all"
        _heading(
            figure,
            text,
            f"attention mass on the word in frame {views.span_label(views.pixel_frames(trace)[span])}, {each}",
        )
    peaks = np.array([[np.nan_to_num(mass).max() for mass in line] for line in maps])
    best = np.unravel_index(peaks.argmax(), peaks.shape)
    figure.summary = (
        f"heads: {text} in {len(layers)} layers × {len(heads)} heads; highest peak {peaks.max():.2g} in "
        f"layer {layers[best[0]]}, head {heads[best[1]]}"
    )
    return figure


def plot_steps(
    trace: Trace, word: str | Word | None = None, *, frame: int | None = None, most: int = 10
) -> Plot:
    """The video coming out of the noise: what each step predicted, and where a word was read.

    Args:
        trace: what a capture kept, steps among it; with previews where `previews=True` was asked for, else the
            finished video stands under the maps.
        word: a phrase or word of the prompt, on one scale for all steps; None draws the predictions alone.
        frame: a latent frame; by default the one in which the word's mean map peaks, or the first.
        most: steps to draw, spread evenly from the first to the last.

    Returns:
        A figure; titles have the noise level, in the colour of the noise expert at work.

    Raises:
        KeepError: there is nothing by steps: neither word maps nor previews were kept, or no watched step ran.
    """
    if most < 2:
        raise OptionError(f"most={most}: draw two steps or more")
    ran = {step["step"]: step for step in trace.record["steps"]}
    watched = trace.contents.labels["step"]
    steps = [step for step in watched if step in ran]
    if not steps:
        raise KeepError(
            f"steps {', '.join(map(str, watched))} were to be watched, and none of them ran: this run made "
            f"steps {', '.join(map(str, ran)) or 'none'}; let it run on, or watch others (select={{'step': […]}})"
        )
    places = sorted(
        {round(place) for place in np.linspace(0, len(steps) - 1, min(most, len(steps)))}
    )
    chosen = [steps[place] for place in places]
    span = 0 if word is None and frame is None else _chosen_frame(trace, word, frame)
    previews = trace.contents.arrays.get("previews")
    pictures = None if previews is None and word is not None else trace.previews
    maps = [] if word is None else [trace.word_map(word, step=step).values for step in chosen]
    scale = Scale.of(np.array(maps)) if maps else Scale(0, 1)
    final = views.picture(trace, views.pixel_frames(trace)[span])
    with figure_style():
        figure, axes, bars = _board(
            1 + bool(maps), len(chosen), _aspect(trace, views.pixel_frames(trace))
        )
        for column, step in enumerate(chosen):
            seen = final if pictures is None else pictures.sel(step=step).values[span]
            _show(axes[0][column], seen)
            expert = ran[step]["noise_expert"]
            axes[0][column].set_title(
                f"step {step}\nsigma {ran[step]['sigma']:.2f}", fontsize=_SMALL, pad=3,
                color=NOISE_COLORS.get(expert, "black"),
            )  # fmt: skip
            if maps and not np.isnan(maps[column][span]).any():
                _show(axes[1][column], views.overlay(seen, maps[column][span], scale))
            elif maps:
                _show(axes[1][column], seen // 2)
                _note(axes[1][column], "not computed")
        _row_label(axes[0][0], "predicted" if pictures is not None else "finished")
        bars[0].set_visible(False)
        if word is not None:
            _row_label(axes[1][0], _labels([word])[0])
            _color_bar(figure, bars[1], scale)
        two = any(step["noise_expert"] for step in ran.values())
        _heading(
            figure,
            trace.prompt,
            f"frame {views.span_label(views.pixel_frames(trace)[span])}"
            + ("; title blue: high-noise expert, orange: low-noise expert" if two else ""),
        )
    peaks = ", ".join(f"{np.nan_to_num(mass).max():.2g}" for mass in maps)
    figure.summary = f"steps {', '.join(map(str, chosen))}" + (f"; peaks {peaks}" if maps else "")
    return figure


def _chosen_frame(trace: Trace, word: str | Word | None, frame: int | None) -> int:
    count = trace.contents.grid.frames
    if frame is None:
        assert word is not None
        mean = np.nan_to_num(trace.word_map(word).values)
        return int(np.unravel_index(mean.argmax(), mean.shape)[0])
    if not 0 <= frame < count:
        raise OptionError(
            f"frame={frame} is not in this trace: use a latent frame from 0 to {count - 1}"
        )
    return frame


def _grid(rows: int, columns: int, size: tuple[float, float]) -> tuple[Plot, NDArray[Any]]:
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    figure = Plot(figsize=size, dpi=100, layout=layout, facecolor="white")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _board(rows: int, columns: int, aspect: float) -> tuple[Plot, list[list[Axes]], list[Axes]]:
    """Pictures in rows and columns, with a narrow axis for a colour bar at the end of each row."""
    cell, gap, left, right, top, bottom = 1.1, 0.06, 1.25, 0.8, 0.82, 0.5  # inches
    high = cell * aspect
    width = left + columns * (cell + gap) + right
    height = top + rows * (high + gap) + bottom
    figure = Plot(figsize=(width, height), dpi=100, facecolor="white")

    def place(x: float, row: int, wide: float) -> Axes:
        y = height - top - (row + 1) * (high + gap) + gap
        return figure.add_axes((x / width, y / height, wide / width, high / height))

    pictures = [
        [place(left + column * (cell + gap), row, cell) for column in range(columns)]
        for row in range(rows)
    ]
    bars = [place(left + columns * (cell + gap) + 0.04, row, 0.1) for row in range(rows)]
    return figure, pictures, bars


def _aspect(trace: Trace, spans: list[range]) -> float:
    height, width = views.picture(trace, spans[0]).shape[:2]
    return float(height / width)


def _heading(figure: Plot, title: str, subtitle: str) -> None:
    height = figure.get_figheight()  # inches: the same margins however tall the figure
    fixed = figure.get_layout_engine() is None  # else the layout makes room, unless it is told y
    top, bottom = ({"y": 1 - 0.1 / height}, {"y": 0.08 / height}) if fixed else ({}, {})
    figure.suptitle(_fitted(figure, title, 12), fontsize=12, parse_math=False, **top)
    if subtitle:
        lines = "\n".join(_wrapped(figure, line, _SMALL) for line in subtitle.split("\n"))
        figure.supxlabel(lines, fontsize=_SMALL, color="0.3", **bottom)


def _wide(figure: Plot, text: str, size: float) -> float:
    """How much of the figure's width a line of text takes."""
    if not text:
        return 0.0
    font = FontProperties(family=mpl.rcParams["font.family"], size=size)
    points = TextToPath().get_text_width_height_descent(text, font, ismath=False)[0]
    return float(points / 72 / (figure.get_figwidth() - 0.1))


def _fitted(figure: Plot, text: str, size: float) -> str:
    """The text, with its end cut off where it is wider than the figure."""
    text, kept = legible(text), len(text)
    while kept > 1 and _wide(figure, text if kept == len(text) else text[:kept] + "…", size) > 1:
        kept -= max(1, kept // 24)
    return text if kept == len(text) else text[:kept] + "…"


def _wrapped(figure: Plot, line: str, size: float) -> str:
    """The line, broken between words where it is wider than the figure."""
    rows = [""]
    for word in line.split(" "):
        longer = f"{rows[-1]} {word}".strip()
        if rows[-1] and _wide(figure, longer, size) > 1:
            rows.append(word)
        else:
            rows[-1] = longer
    return "\n".join(rows)


def _show(axis: Axes, image: NDArray[np.uint8]) -> None:
    axis.imshow(image, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _note(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, transform=axis.transAxes, ha="center", va="center",
              fontsize=_SMALL, color="white")  # fmt: skip


def _row_label(axis: Axes, text: str) -> None:
    axis.set_ylabel(
        legible(text), rotation=0, ha="right", va="center", fontsize=11, parse_math=False
    )


def _color_bar(figure: Plot, axis: Axes, scale: Scale) -> None:
    bar = figure.colorbar(
        ScalarMappable(Normalize(scale.low, scale.high or 1.0), COLOR_MAP), cax=axis
    )
    ends = [scale.low, scale.high or 1.0]
    bar.set_ticks(ends, labels=[f"{mass:.2g}" for mass in ends])
    bar.ax.tick_params(labelsize=_SMALL, length=0, pad=3)
    lower, upper = bar.ax.get_yticklabels()
    lower.set_verticalalignment("bottom")  # the labels of neighbouring rows keep apart
    upper.set_verticalalignment("top")
    bar.outline.set_visible(False)


def _frame_matrix(axis: Axes, mass: NDArray[Any], labels: list[str], *, numbers: bool) -> None:
    axis.imshow(mass, cmap=COLOR_MAP, vmin=0, vmax=1, interpolation="nearest")
    for query, key in np.argwhere(np.isnan(mass)):
        axis.add_patch(
            Rectangle((key - 0.5, query - 0.5), 1, 1, facecolor="0.93", edgecolor="0.6",
                      hatch="////", linewidth=0)
        )  # fmt: skip
    if numbers and mass.size <= 64:
        for query, key in np.argwhere(~np.isnan(mass)):
            value = mass[query, key]
            axis.text(key, query, f"{value:.2f}", ha="center", va="center", fontsize=_SMALL,
                      color="white" if value < 0.6 else "black")  # fmt: skip
    ticks = range(0, len(labels), max(1, len(labels) // 8))
    axis.set_xticks(list(ticks), [labels[i] for i in ticks], fontsize=_SMALL)
    axis.set_yticks(list(ticks), [labels[i] for i in ticks], fontsize=_SMALL)
    axis.tick_params(length=0)
    if numbers:
        axis.set_xlabel("looks at frames", fontsize=_SMALL)
        axis.set_ylabel("frames", fontsize=_SMALL)


def _noise_timeline(axis: Axes, steps: list[dict[str, Any]]) -> None:
    one = not any(step["noise_expert"] for step in steps)
    for expert, color in ({"": NOISE_COLORS["high"]} if one else NOISE_COLORS).items():
        own = [step for step in steps if step["noise_expert"] == expert]
        axis.bar(
            [step["step"] for step in own],
            [step["sigma"] for step in own],
            width=0.85,
            color=color,
            label=f"one denoiser ({len(own)})" if one else f"{expert}-noise expert ({len(own)})",
        )
    axis.set_xlabel("step", fontsize=_SMALL + 1)
    axis.set_ylabel("noise level sigma", fontsize=_SMALL + 1)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_ylim(0, 1.25)
    axis.legend(fontsize=_SMALL, frameon=False, loc="upper right")
    axis.tick_params(labelsize=_SMALL)
    axis.spines[["top", "right"]].set_visible(False)


def _load_table(figure: Plot, axis: Axes, load: NDArray[Any], layers: list[int]) -> None:
    image = axis.imshow(
        load, cmap=COLOR_MAP, vmin=0, vmax=load.max(), aspect="auto", interpolation="nearest"
    )
    axis.set_xlabel("token expert", fontsize=_SMALL + 1)
    axis.set_ylabel("layer", fontsize=_SMALL + 1)
    axis.set_xticks(range(load.shape[1]))
    axis.set_yticks(range(load.shape[0]), [str(layer) for layer in layers])
    axis.tick_params(labelsize=_SMALL, length=0)
    bar = figure.colorbar(image, ax=axis, fraction=0.06, pad=0.03)
    bar.set_label("load: share of the layer's expert places", fontsize=_SMALL)
    bar.ax.tick_params(labelsize=_SMALL)


def _peak(label: str, mass: NDArray[Any]) -> str:
    if np.isnan(mass).any():
        return f"  {label}: not computed"
    frame, row, column = (int(i) for i in np.unravel_index(mass.argmax(), mass.shape))
    return f"  {label}: peak {mass.max():.2g} at frame {frame}, row {row}, column {column}"


def _labels(words: Sequence[str | Word]) -> list[str]:
    """Names of rows; of equal words the first, the second and so on are told apart."""
    texts = [_shorten(word if isinstance(word, str) else word.text, 12) for word in words]
    return [
        f"{text} ({texts[: i + 1].count(text)})" if texts.count(text) > 1 else text
        for i, text in enumerate(texts)
    ]


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
