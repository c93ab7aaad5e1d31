"""A census of scenes: how often each value of each factor comes up, and each pair of values."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

from tinywan.theatre.scene import Scene, is_held_out

FACTORS = tuple(field.name for field in fields(Scene) if field.name != "seed")
# The pairs worth a table: those that could be confused, hide each other, or exclude each other.
PAIRS = (
    ("subject", "garment"),
    ("subject", "prop"),
    ("subject", "action"),
    ("garment_color", "prop_color"),
    ("place", "weather"),
    ("direction", "action"),
    ("subject", "companion"),
    ("companion", "companion_color"),
    ("weather", "wind"),
    ("camera", "action"),
    ("camera", "direction"),
    ("camera", "look"),
    ("look", "garment_color"),
)


def count_values(scenes: Sequence[Scene]) -> dict[str, Counter[str]]:
    """Count the values of every factor: factor -> value -> scenes."""
    return {name: Counter(getattr(scene, name) for scene in scenes) for name in FACTORS}


def count_pairs(scenes: Sequence[Scene], first: str, second: str) -> Counter[tuple[str, str]]:
    """Count the values of two factors together: (value of `first`, value of `second`) -> scenes."""
    return Counter((getattr(scene, first), getattr(scene, second)) for scene in scenes)


def report(scenes: Sequence[Scene]) -> str:
    """Tell the counts as text: each factor in a line, each pair of `PAIRS` in a table of shares.

    Args:
        scenes: at least one. Pairs with a factor of which they show one value only are left out.
    """
    total, counts = len(scenes), count_values(scenes)
    lines = [f"{total} scenes, {sum(map(is_held_out, scenes))} of them held out"]
    for name, values in counts.items():
        told = ", ".join(
            f"{value} {count} ({count / total:.1%})" for value, count in values.most_common()
        )
        lines.append(f"  {name:15} {told}")
    for first, second in PAIRS:
        if len(counts[first]) > 1 and len(counts[second]) > 1:
            lines += ["", f"  {first} by {second}, % of all", *_table(scenes, first, second)]
    return "\n".join(lines)


def _table(scenes: Sequence[Scene], first: str, second: str) -> list[str]:
    pairs = count_pairs(scenes, first, second)
    rows = sorted({row for row, _ in pairs})
    columns = sorted({column for _, column in pairs})
    wide = max(len(name) for name in columns) + 2
    lines = [" " * 14 + "".join(f"{name:>{wide}}" for name in columns)]
    for row in rows:
        shares = (100 * pairs[row, column] / len(scenes) for column in columns)
        cells = "".join(f"{share:{wide}.1f}" if share else f"{'-':>{wide}}" for share in shares)
        lines.append(f"    {row:10}{cells}")
    return lines
