"""The four places: muted scenery that goes on, beyond the picture, for a camera that moves."""

from tinywan.theatre.brush import Brush


def _alley(stage: Brush) -> None:
    """A Jiangnan stone alley: whitewashed walls, tiled eaves, slabs that meet in the distance."""
    gap = stage.between(36, 60)
    half = stage.between(5.5, 8.5)
    left_end, right_end = gap - half, gap + half
    low = stage.between(65.5, 69.0)
    stage.band(stage.paint((192, 200, 208), "sky"), 0)
    far = stage.paint((176, 180, 182), "wall")
    stage.box(far, left_end, 34, right_end, low)
    tile = stage.paint((62, 68, 78), "eaves", 0.3)
    ridge = stage.paint((92, 98, 108), "eaves", 0.45)
    rim = stage.paint((44, 48, 56), "eaves", 0.1)
    stage.shape(tile, (left_end - 2, 36), (gap, 29), (right_end + 2, 36))
    wood = stage.paint((92, 80, 74), "window")
    dark = stage.paint((64, 58, 58), "window")
    plinth = stage.paint((138, 140, 140), "wall")
    stain = stage.paint((186, 187, 184), "wall")
    for side, color in ((-1, (212, 211, 206)), (1, (202, 202, 198))):
        wall = stage.paint(color, "wall")
        start, stop = (0.0, left_end) if side < 0 else (right_end, 96.0)
        ends = (stage.left, stop) if side < 0 else (start, stage.right)
        stage.box(wall, ends[0], 14, ends[1], low)
        stage.box(plinth, ends[0], low - 4.5, ends[1], low)
        for _ in range(4):
            x, y = stage.between(start, stop - 3), stage.between(22, 50)
            stage.box(stain, x, y, min(x + stage.between(1.5, 3.5), stop), y + stage.between(4, 12))
        middle = stage.between(start + 9, stop - 12) if stop - start > 24 else (start + stop) / 2
        if (side < 0) == (stage.rng.random() < 0.5):
            stage.box(wood, middle - 6, 37, middle + 6, low)
            stage.box(dark, middle - 4.6, 39, middle - 0.5, low)
            stage.box(dark, middle + 0.5, 39, middle + 4.6, low)
        else:
            stage.box(wood, middle - 6, 32, middle + 6, 45)
            for step in range(3):
                stage.box(dark, middle - 5 + 3.6 * step, 33.2, middle - 2.2 + 3.6 * step, 43.8)
        _eaves(stage, side, start, stop, (tile, ridge, rim))
    stone = stage.paint((130, 137, 138), "road")
    joint = stage.paint((100, 107, 110), "road")
    pale = stage.paint((146, 153, 154), "road")
    stage.band(stone, low)
    rows = [low + (96 - low) * share for share in (0.0, 0.14, 0.34, 0.62, 1.0)]
    for number in range(4):
        top, bottom = rows[number], rows[number + 1]
        near, far_off = (13 + (y - low) * 0.5 for y in (bottom, top))  # widths of a slab
        for slab in range(-7, 8) if stage.wide else range(-5, 6):
            shift = slab + 0.5 * (number % 2)
            upper, lower = gap + shift * far_off, gap + shift * near
            if -6 < slab < 6 and stage.rng.random() < 0.3:
                corners = (
                    (upper, top),
                    (upper + far_off, top),
                    (lower + near, bottom),
                    (lower, bottom),
                )
                stage.shape(pale, *corners)
            stage.line(joint, 0.9, (upper, top), (lower, bottom))
        stage.line(joint, 1.0, (stage.left, top), (stage.right, top))
    stage.line(joint, 0.9, (stage.left, low), (stage.right, low))


def _eaves(
    stage: Brush, side: int, start: float, stop: float, paints: tuple[int, int, int]
) -> None:
    """One tiled roof along the top whose inner corner curls up over the alley."""
    tile, ridge, rim = paints
    top, edge = stage.between(3.5, 6.0), stage.between(16.5, 19.0)
    inner = stop + 3.5 if side < 0 else start - 3.5
    outer = stage.left - 2.0 if side < 0 else stage.right + 2.0
    step = side  # from the corner outwards
    stage.shape(
        tile,
        (outer, top),
        (inner + 9 * step, top),
        (inner + 4.5 * step, edge - 6),
        (inner - 2.0 * step, edge - 5.5),
        (inner + 1.5 * step, edge),
        (outer, edge),
    )
    stage.box(
        ridge, min(outer, inner + 9 * step), top - 1.6, max(outer, inner + 9 * step), top + 0.8
    )
    x = inner + 4.0 * step
    while stage.left < x < stage.right:
        stage.line(ridge, 0.9, (x + 1.2 * step, top + 1), (x, edge - 1))
        stage.disc(rim, x + 1.9 * step, edge + 0.2, 1.5, 1.5)
        stage.drips.append((x + 1.9 * step, edge + 2.0))
        x += 3.8 * step


def _park(stage: Brush) -> None:
    """Lawn, a path, and round trees."""
    horizon = stage.between(52, 57)
    path = stage.between(75, 78)
    stage.band(stage.paint((190, 204, 212), "sky"), 0)
    hedge = stage.paint((118, 134, 116), "tree", 0.3)
    for step in range(9):
        stage.disc(hedge, step * 12 + stage.between(-2, 2), horizon - 2, 9, stage.between(6, 12))
    if stage.wide:
        with stage.beyond():
            for x in (-24.0, -12.0, 108.0, 120.0):
                stage.disc(hedge, x + stage.between(-2, 2), horizon - 2, 9, stage.between(6, 12))
    stage.band(stage.paint((136, 150, 106), "lawn", 0.62), horizon)
    stage.specks(stage.paint((116, 132, 90), "lawn", 0.4), 34, horizon + 2, 95)
    trunk = stage.paint((98, 84, 72), "tree", 0.1)
    crown = stage.paint((84, 108, 80), "tree", 0.22)
    leaf = stage.paint((104, 126, 94), "tree", 0.55)
    first = stage.between(8, 24)
    for x in (first, first + stage.between(28, 36), first + stage.between(58, 68)):
        _tree(stage, x, horizon, (trunk, crown, leaf))
    if stage.wide:
        with stage.beyond():
            for x in (-19 - stage.between(0, 4), 115 + stage.between(0, 4)):
                _tree(stage, x, horizon, (trunk, crown, leaf))
    bend = stage.between(-2, 2)
    stage.shape(
        stage.paint((184, 174, 154), "road"),
        (stage.left, path),
        (0, path),
        (48, path + bend),
        (96, path - bend),
        (stage.right, path - bend),
        (stage.right, 93),
        (96, 93),
        (48, 93 + bend),
        (0, 92),
        (stage.left, 92),
    )
    stage.specks(stage.paint((166, 156, 136), "road"), 16, path + 3, 90)


def _tree(stage: Brush, x: float, horizon: float, paints: tuple[int, int, int]) -> None:
    """A round tree that stands at x, a bit before the horizon."""
    trunk, crown, leaf = paints
    foot, r = horizon + stage.between(3, 10), stage.between(11, 14.5)
    stage.box(trunk, x - 2, foot - 22, x + 2, foot)
    y = foot - 30
    for dx, dy, share in ((-0.55, 0.25, 0.7), (0.55, 0.25, 0.7), (0.0, -0.2, 0.9)):
        stage.disc(crown, x + dx * r, y + dy * r, r * share, r * share)
    for dx, dy, share in ((-0.5, -0.05, 0.38), (0.25, -0.55, 0.42)):
        stage.disc(leaf, x + dx * r, y + dy * r, r * share, r * share * 0.8)


def _beach(stage: Brush) -> None:
    """Sky, sea and sand, with a sail far out."""
    horizon = stage.between(40, 46)
    shore = stage.between(64, 69)
    stage.band(stage.paint((196, 208, 218), "sky"), 0)
    cloud = stage.paint((220, 225, 228), "sky")
    for _ in range(3):
        x, y = stage.between(6, 90), stage.between(6, 26)
        for dx, r in ((-6, 3.4), (0, 5.0), (6, 3.2)):
            stage.disc(cloud, x + dx, y, r * 1.6, r * 0.8)
    stage.band(stage.paint((104, 134, 156), "sea"), horizon)
    stage.band(stage.paint((122, 150, 168), "sea"), (horizon + shore) / 2)
    wave = stage.paint((150, 172, 184), "sea")
    for x, y in stage.strewn(22, 6):
        y = horizon + 2 + (shore - horizon - 6) * y
        stage.box(wave, x, y, x + 6, y + 0.9)
    x = stage.between(12, 84)
    stage.shape(
        stage.paint((224, 224, 220), "sail"),
        (x, horizon - 13),
        (x, horizon - 2),
        (x + 8, horizon - 2),
    )
    stage.shape(
        stage.paint((96, 88, 84), "sail"),
        (x - 4, horizon - 1.4),
        (x + 8, horizon - 1.4),
        (x + 5, horizon + 1.6),
        (x - 2, horizon + 1.6),
    )
    curl = [(12.0 * step, shore + stage.between(-1.4, 1.4)) for step in range(9)]
    if stage.wide:
        curl = [(stage.left, shore), *curl, (stage.right, shore)]
    ends = (stage.right, 96), (stage.left, 96)
    foam = stage.paint((216, 224, 226), "sea")
    stage.shape(foam, (stage.left, shore - 2.4), *[(x, y - 1.6) for x, y in curl], *ends)
    wet = stage.paint((186, 174, 150), "road")
    stage.shape(wet, *[(x, y + 1.2) for x, y in curl], *ends)
    sand = stage.paint((212, 201, 176), "road")
    stage.shape(sand, *[(x, y + 4.6) for x, y in curl], *ends)
    stage.specks(stage.paint((188, 176, 152), "road"), 26, shore + 8, 95)


def _street(stage: Brush) -> None:
    """A street at night: houses with lit windows, a lamp, a dark road."""
    low = stage.between(69, 72)
    stage.band(stage.paint((40, 46, 66), "sky", 0.06), 0)
    if stage.weather == "clear":
        pale = stage.paint((214, 212, 196), "sky")
        stage.disc(pale, stage.between(14, 82), stage.between(7, 10), 4.2, 4.2)
        for x, y in stage.strewn(9, 0.9):
            stage.box(pale, x, 20 * y, x + 0.9, 20 * y + 0.9)
    _houses(stage, low)
    stage.band(stage.paint((92, 96, 106), "wall", 0.45), low, 77)
    stage.band(stage.paint((60, 64, 74), "road", 0.3), 76)
    stage.band(stage.paint((112, 116, 124), "road", 0.5), 76, 77.2)
    dash = stage.paint((140, 141, 138), "road", 0.2)
    start = stage.between(-12, 0)
    for step in range(-2, 8) if stage.wide else range(6):
        stage.box(dash, start + 20 * step, 92.4, start + 20 * step + 10, 94)
    post = stage.paint((30, 34, 44), "lamp")
    x, side = stage.between(12, 84), 1 if stage.rng.random() < 0.5 else -1
    glow = stage.paint((118, 110, 98), "lamp")
    bulb = stage.paint((226, 214, 182), "lamp")
    stage.box(post, x - 1, 28, x + 1, 77)
    stage.line(post, 1.6, (x, 28.5), (x + 7 * side, 26))
    stage.disc(glow, x + 8 * side, 29, 5.6, 5.6)
    stage.disc(bulb, x + 8 * side, 29, 3.4, 3.4)


def _houses(stage: Brush, low: float) -> None:
    """A row of houses from edge to edge of the world."""
    lit = stage.paint((164, 142, 104), "window")
    unlit = stage.paint((66, 72, 92), "window")
    shades = [stage.paint(color, "wall") for color in ((54, 60, 78), (64, 64, 82), (48, 54, 72))]
    cap = stage.paint((36, 40, 56), "wall", 0.6)

    def house(x: float, wide: float, number: int) -> None:
        top = stage.between(14, 32)
        stage.box(shades[number % 3], x, top, x + wide, low)
        stage.box(cap, x - 0.6, top - 1.6, x + wide + 0.6, top + 0.6)
        columns = 3 if wide > 24 else 2
        for row in range(4):
            for column in range(columns):
                left = x + (column + 0.5) * wide / columns - 2.3
                y = top + 5 + 10.5 * row
                if y + 6 < low - 2:
                    paint = lit if stage.rng.random() < 0.6 else unlit
                    stage.box(paint, left, y, left + 4.6, y + 6)

    first, number = -stage.between(0, 8), int(stage.rng.integers(3))
    x, others = first, number
    while x < 96:
        wide = stage.between(20, 28)
        house(x, wide, number)
        x, number = x + wide + stage.between(0, 1.5), number + 1
    if stage.wide:
        with stage.beyond():
            x = max(x, 97.0)
            while x < stage.right:
                wide = stage.between(20, 28)
                house(x, wide, number)
                x, number = x + wide + stage.between(0, 1.5), number + 1
            x, number = first, others
            while x > stage.left:
                wide = stage.between(20, 28)
                x, number = x - wide - 1.3, number - 1
                house(x, wide, number)


PLACES = {"alley": _alley, "park": _park, "beach": _beach, "street": _street}
