"""One table of what was measured, as Markdown, Parquet and a figure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from wanviz.attribution.faithfulness import PARTS
from wanviz.evaluation.scores import THRESHOLDS, Interval, interval
from wanviz.evaluation.truth import CLASSES

BASELINES = ("centre", "everything", "chance", "random_head", "shuffled_word")
CEILING = "ceiling"
MEASURES = ("pointing", "overlap", "precision", "straying")
TUNED = 4  # every fourth clip chooses the threshold, the others are scored with it


def rows(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row for each method, class of words and measure.

    The threshold of the overlap is chosen for each method on every fourth clip, as the one with the best mean; the scores are of
    the other clips alone, for all measures.

    Args:
        records: of `run.read`.

    Returns:
        Columns method, kind ("all", "placed" for all but weather, or one class), measure, mean, low, high, clips, words,
        threshold.
    """
    by_method: dict[str, list[tuple[int, dict[str, Any]]]] = defaultdict(list)
    for record in records:
        for score in record["scores"]:
            by_method[score["method"]].append((record["clip"], score))
    found = []
    for method, scored in by_method.items():
        tuning = [s["overlap"] for clip, s in scored if clip % TUNED == 0]
        kept = [(clip, s) for clip, s in scored if clip % TUNED] or scored
        best = int(np.mean(tuning or [s["overlap"] for _, s in scored], axis=0).argmax())
        for kind in ("all", "placed", *CLASSES):
            chosen = [(clip, s) for clip, s in kept if _of(kind, s["kind"])]
            for measure in MEASURES:
                values = [
                    s[measure][best] if measure == "overlap" else s[measure] for _, s in chosen
                ]
                ends = interval(values, [clip for clip, _ in chosen])
                found.append(
                    {
                        "method": method, "kind": kind, "measure": measure, "mean": ends.mean,
                        "low": ends.low, "high": ends.high, "clips": ends.clips, "words": len(chosen),
                        "threshold": THRESHOLDS[best],
                    }
                )  # fmt: skip
    return pd.DataFrame(found)


def _of(kind: str, one: str) -> bool:
    return kind == "all" or kind == one or (kind == "placed" and one != "weather")


def against(
    records: Sequence[dict[str, Any]], first: str, second: str, measure: str = "precision"
) -> Interval:
    """How much better the first method is than the second, on the same words of the same clips, weather left out.

    Args:
        records: of `run.read`.
        first: a method.
        second: another one.
        measure: "pointing", "precision" or "overlap", the last at each method's own threshold.
    """
    table = rows(records)
    best = {
        name: THRESHOLDS.index(table[table["method"] == name]["threshold"].iloc[0])
        for name in (first, second)
    }
    values, clips = [], []
    for record in records:
        if record["clip"] % TUNED == 0:
            continue
        one, other = (
            {
                (s["word"], s["kind"]): s[measure][best[name]]
                if measure == "overlap"
                else s[measure]
                for s in record["scores"]
                if s["method"] == name and s["kind"] != "weather"
            }
            for name in (first, second)
        )
        differences = [one[word] - other[word] for word in one if word in other]
        values += differences
        clips += [record["clip"]] * len(differences)
    return interval(values, clips)


def faithfulness(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Areas under deletion and insertion, and infidelity, by order of hiding.

    Returns:
        Columns method, measure, mean, low, high, clips.
    """
    values: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for record in records:
        for curve in record.get("curves", []):
            for measure in ("deletion", "insertion", "infidelity"):
                if curve[measure] is not None:
                    values[curve["method"], measure].append((record["clip"], curve[measure]))
    found = []
    for (method, measure), pairs in values.items():
        ends = interval([value for _, value in pairs], [clip for clip, _ in pairs])
        found.append(
            {"method": method, "measure": measure, "mean": ends.mean, "low": ends.low, "high": ends.high,
             "clips": ends.clips}
        )  # fmt: skip
    return pd.DataFrame(found, columns=["method", "measure", "mean", "low", "high", "clips"])


def cost(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Median forwards and seconds of a method for one clip, and the worst completeness of integrated gradients."""
    values: dict[str, list[list[float]]] = defaultdict(list)
    for record in records:
        for method, numbers in record["cost"].items():
            values[method].append(numbers)
    return pd.DataFrame(
        [
            {
                "method": method,
                "forwards": float(np.median([n[0] for n in numbers])),
                "seconds": float(np.median([n[1] for n in numbers])),
                "completeness_delta": max(
                    (n[2] for n in numbers if len(n) > 2), default=float("nan")
                ),
            }
            for method, numbers in values.items()
        ]
    )


def agreement(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Mean rank correlation between the maps of two methods, over clips."""
    values: dict[str, list[float]] = defaultdict(list)
    for record in records:
        for pair, value in record.get("agreement", {}).items():
            values[pair].append(value)
    names = list(dict.fromkeys(name for pair in values for name in pair.split(" / ")))
    table = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
    for pair, found in values.items():
        first, second = pair.split(" / ")
        table.loc[first, second] = table.loc[second, first] = float(np.mean(found))
    return table


def markdown(records: Sequence[dict[str, Any]]) -> str:
    """The tables for the documentation."""
    scored = rows(records)
    lines = [
        "| method | pointing | mean IoU | of the ceiling | average precision | straying | forwards | seconds | clips |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    costs = cost(records).set_index("method")
    placed = scored[scored["kind"] == "placed"].set_index(["method", "measure"])
    real = [m for m in dict.fromkeys(scored["method"]) if "(random" not in m]
    order = sorted(
        (m for m in real if m not in (*BASELINES, CEILING)),
        key=lambda m: -placed.loc[(m, "precision"), "mean"],
    )
    for method in (CEILING, *order, *BASELINES):
        if method not in real:
            continue
        ceiling = _ceiling(records, method)
        told = [_cell(placed, method, measure) for measure in ("pointing", "overlap")]
        share = placed.loc[(method, "overlap"), "mean"] / ceiling if ceiling else float("nan")
        told += [f"{100 * share:.1f}", _cell(placed, method, "precision")]
        stray = placed.loc[(method, "straying")]
        told.append("–" if np.isnan(stray["mean"]) else f"{stray['mean']:.2f}")
        told += (
            [f"{costs.loc[method, 'forwards']:.0f}", f"{costs.loc[method, 'seconds']:.2f}"]
            if method in costs.index
            else ["–", "–"]
        )
        lines.append(
            f"| `{method}` | {' | '.join(told)} | {int(stray['clips'] or placed.loc[(method, 'pointing'), 'clips'])} |"
        )
    lines += ["", "Average precision by class of words:", ""]
    kinds = [k for k in CLASSES if (scored["kind"] == k).any()]
    lines += ["| method | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    exact = scored[scored["measure"] == "precision"].set_index(["method", "kind"])["mean"]
    for method in (CEILING, *order, *BASELINES):
        if method in real:
            cells = [_percent(exact.get((method, kind), float("nan"))) for kind in kinds]
            lines.append(f"| `{method}` | {' | '.join(cells)} |")
    wild = [m for m in dict.fromkeys(scored["method"]) if "(random" in m]
    if wild:
        lines += ["", "The same words by denoisers with random weights, average precision:", ""]
        lines += ["| method | trained | random weights |", "|---|---|---|"]
        for method in wild:
            name = method.removesuffix(" (random weights)")
            trained = _on_words_of(records, name, method)
            lines.append(
                f"| `{name}` | {_spread(trained.loc['precision'], 100)} | {_cell(placed, method, 'precision')} |"
            )
    hidden = faithfulness(records)
    if len(hidden):
        lines += ["", "Areas under the curves, and infidelity:", ""]
        lines += [
            "| order | deletion ↓ | insertion ↑ | infidelity ↓ | clips |",
            "|---|---|---|---|---|",
        ]
        table = hidden.set_index(["method", "measure"])
        for method in dict.fromkeys(hidden["method"]):
            cells = [
                _spread(table.loc[(method, m)]) if (method, m) in table.index else "–"
                for m in ("deletion", "insertion", "infidelity")
            ]
            clips = int(table.loc[(method, "deletion"), "clips"])
            lines.append(f"| `{method}` | {' | '.join(cells)} | {clips} |")
    steady = [record["sensitivity"] for record in records if "sensitivity" in record]
    if steady:
        moved = ", ".join(f"`{m}` {np.mean([s[m] for s in steady]):.3f}" for m in steady[0])
        lines += [
            "",
            f"Sensitivity, of maps to a change of at most 0.02 in every pixel, {len(steady)} clips: {moved}.",
        ]
    return "\n".join(lines) + "\n"


def _ceiling(records: Sequence[dict[str, Any]], method: str) -> float:
    """The ceiling's mean overlap on the words that a method was scored on."""
    table = _on_words_of(records, CEILING, method)
    return float(table.loc["overlap", "mean"]) if len(table) else float("nan")


def _on_words_of(records: Sequence[dict[str, Any]], method: str, other: str) -> pd.DataFrame:
    """A method's row for each measure, on the words that another one was scored on, weather left out."""
    same = []
    for record in records:
        asked = {(s["word"], s["kind"]) for s in record["scores"] if s["method"] == other}
        mine = [
            s for s in record["scores"] if s["method"] == method and (s["word"], s["kind"]) in asked
        ]
        same.append({"clip": record["clip"], "scores": mine})
    table = rows(same)
    return table[table["kind"] == "placed"].set_index("measure") if len(table) else table


def _cell(table: pd.DataFrame, method: str, measure: str) -> str:
    if (method, measure) not in table.index:
        return "–"
    return _spread(table.loc[(method, measure)], 100)


def _spread(row: Any, scale: float = 1.0) -> str:
    digits = 1 if scale == 100 else 3
    return f"{scale * row['mean']:.{digits}f} [{scale * row['low']:.{digits}f}, {scale * row['high']:.{digits}f}]"


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else f"{100 * value:.1f}"


def figure(records: Sequence[dict[str, Any]]) -> Figure:
    """Precision of every method with its interval, and the curves of deletion and insertion."""
    scored = rows(records)
    chosen = scored[(scored["kind"] == "placed") & (scored["measure"] == "precision")]
    chosen = chosen[~chosen["method"].str.contains("random weights")].sort_values("mean")
    made = Figure(figsize=(11, 6.2), layout="constrained")
    left, right = made.subplots(1, 2, width_ratios=(1.25, 1))
    for place, (_, row) in enumerate(chosen.iterrows()):
        color = "#777" if row["method"] in (*BASELINES, CEILING) else "#0072b2"
        left.plot([row["low"], row["high"]], [place, place], color=color, linewidth=2)
        left.plot(row["mean"], place, "o", color=color)
    left.set_yticks(range(len(chosen)), chosen["method"])
    left.set_xlabel("average precision, 95 % interval")
    left.set_xlim(0, 1)
    left.grid(axis="x", alpha=0.3)
    left.set_title("Does the map find what the word names?")
    styles = {
        "attention_layers": "#0072b2", "integrated_gradients": "#d55e00", "word_ablation": "#009e73",
        "random order": "#777", "centre first": "#bbb",
    }  # fmt: skip
    curves: dict[str, list[Any]] = defaultdict(list)
    for record in records:
        for curve in record.get("curves", []):
            curves[curve["method"]].append((curve["left"], curve["there"]))
    if curves:
        parts = (0, *PARTS, 1)
        for name, color in styles.items():
            if name not in curves:
                continue
            deleted, inserted = np.mean(curves[name], axis=0)
            right.plot(parts, deleted, color=color, label=name)
            right.plot(parts, inserted, color=color, linestyle="--")
    right.set_xlabel("part of the tokens hidden (solid) or shown (dashed)")
    right.set_ylabel("effect of the word that is there")
    right.set_title("Does the model agree?")
    right.grid(alpha=0.3)
    if curves:
        right.legend(frameon=False)
    return made


def write(records: Sequence[dict[str, Any]], folder: Path) -> None:
    """table.md, table.parquet, agreement.csv and figure.png."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(markdown(records), encoding="utf-8")
    rows(records).to_parquet(folder / "table.parquet")
    agreement(records).round(3).to_csv(folder / "agreement.csv")
    figure(records).savefig(folder / "figure.png", dpi=110)
