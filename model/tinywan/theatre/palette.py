"""Colours of the theatre: saturated costumes and props before muted scenery.

Everything is drawn as an image of paint numbers; a `Paints` table then tells the colour and the part of
each number. So one drawing gives both the picture and the masks, and they cannot disagree.
"""

import numpy as np
import numpy.typing as npt

RGB = tuple[int, int, int]

COSTUME: dict[str, RGB] = {
    "red": (214, 28, 36),
    "yellow": (250, 206, 24),
    "green": (24, 156, 66),
    "blue": (36, 88, 222),
    "purple": (126, 40, 176),
    "pink": (255, 104, 180),
}

# What a pixel shows: the parts of the scenery count from 0, all that is before it from `ACTORS`.
ACTORS = 200
LABELS = {
    "subject": 200,
    "garment": 201,
    "prop": 202,
    "companion": 203,
    "drips": 204,
    "rain": 205,
    "snow": 206,
    "wind": 207,
}


class Paints:
    """A growing table from paint number to colour and part."""

    def __init__(self) -> None:
        self._colors: list[RGB] = [(0, 0, 0)]
        self._parts: list[str] = [""]

    def add(self, color: RGB, part: str) -> int:
        """Mix a new paint that belongs to `part`, and return its number."""
        self._colors.append(color)
        self._parts.append(part)
        return len(self._colors) - 1

    @property
    def parts(self) -> tuple[str, ...]:
        """Part of each paint; paint 0 has none."""
        return tuple(self._parts)

    def pixels(
        self, points: npt.NDArray[np.uint8], grain: int, kinds: tuple[tuple[str, ...], ...] = ()
    ) -> npt.NDArray[np.uint16]:
        """Sum points of paint to pixels.

        Args:
            points: paint numbers, [..., rows·grain, columns·grain]; paint 0 counts nothing.
            grain: how many points make a pixel along each axis, at most 4.
            kinds: up to three groups of parts to count.

        Returns:
            uint16 [..., rows, columns, 4]: the sums of red, green and blue over grain² points, and how
            many of the points belong to each kind, packed in 5 bits each, the first kind lowest.
        """
        table = np.zeros((len(self._colors), 4), np.uint16)
        table[:, :3] = self._colors
        for place, kind in enumerate(kinds):
            table[:, 3] += np.array([part in kind for part in self._parts], np.uint16) << (
                5 * place
            )
        words = table.view(np.uint64)[:, 0][points]  # four sums in one word: no field can overflow
        total = words[..., ::grain, ::grain].copy()
        for row in range(grain):
            for column in range(grain):
                if row or column:
                    total += words[..., row::grain, column::grain]
        return total.view(np.uint16).reshape(*total.shape, 4)


def mix(color: RGB, other: RGB, amount: float) -> RGB:
    """Move `color` by `amount` (0..1) of the way to `other`."""
    return (
        round(color[0] + (other[0] - color[0]) * amount),
        round(color[1] + (other[1] - color[1]) * amount),
        round(color[2] + (other[2] - color[2]) * amount),
    )


def darker(color: RGB, amount: float = 0.2) -> RGB:
    """The colour in shade."""
    return mix(color, (10, 6, 30), amount)


def lighter(color: RGB, amount: float = 0.16) -> RGB:
    """The colour in light."""
    return mix(color, (255, 255, 255), amount)
