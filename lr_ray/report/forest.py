"""Plots of many results under one another, of how often a difference came, and of results over length."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from markupsafe import Markup

from lr_ray.report import words
from lr_ray.report.plots import Points, line, path, svg, text, ticks

MOST = 24
"""Marks in one plot; the table beside it has all."""
_NAME = 21  # characters that have room
_WIDTH, _LEFT, _RIGHT, _STEP = 400.0, 146.0, 348.0, 23.0


class Mark(NamedTuple):
    """A result with its 95% interval; `dots` are the same of each seed."""

    name: str
    middle: float | None
    low: float | None = None
    high: float | None = None
    dots: Sequence[float | None] = ()


def forest(
    marks: Sequence[Mark],
    title: str,
    axis: str,
    shown: Callable[[float], str],
    *,
    neutral: float = 0.0,
    span: tuple[float, float] | None = None,
) -> Markup:
    """A line a mark. Those whose interval lies above or below `neutral`, which is drawn, are coloured so.

    `axis` says what is measured, `shown` how a value is written. `span` is the axis's; none: what the marks
    need. At most `MOST` marks are drawn.
    """
    drawn = [mark for mark in marks if mark.middle is not None][:MOST]
    values = [v for m in drawn for v in (m.middle, m.low, m.high, *m.dots, neutral) if v is not None]
    grid = ticks(*(span or (min(values, default=0.0), max(values, default=1.0))))
    low, high = (min(grid[0], *values), max(grid[-1], *values)) if values else (0.0, 1.0)
    wide = (_RIGHT - _LEFT) / ((high - low) or 1.0)

    def at(value: float) -> float:
        return _LEFT + (value - low) * wide if high > low else (_LEFT + _RIGHT) / 2

    base = 6 + _STEP * len(drawn)
    parts = [line(at(tick), 2, at(tick), base, "grid") for tick in grid]
    parts += [line(at(neutral), 2, at(neutral), base + 4, "axis")]
    parts += [text(at(tick), base + 16, _tick(tick, shown)) for tick in _apart(grid, at, neutral)]
    parts.append(text((_LEFT + _RIGHT) / 2, base + 34, axis))
    said = []
    for place, mark in enumerate(drawn):
        assert mark.middle is not None
        y = 4 + _STEP * (place + 0.5)
        parts += _mark(mark, y, at, _side(mark, neutral))
        parts.append(text(0, y + 4, words.clipped(mark.name, _NAME), "start", "name"))
        parts.append(text(_WIDTH, y + 4, shown(mark.middle), "end", "name"))
        said.append(f"{words.clipped(mark.name)} {_said(mark, shown)}")
    return svg(_WIDTH, base + 42, f"{title}: {'; '.join(said) or 'no result'}", parts)


def _tick(value: float, shown: Callable[[float], str]) -> str:
    """As `shown` writes it, with no more decimals than it has."""
    written = shown(value)
    if not value:
        return "0%" if written.endswith("%") else "0"
    figure, unit = (written[:-1], "%") if written.endswith("%") else (written, "")
    return (figure.rstrip("0").rstrip(".") if "." in figure else figure) + unit


def _apart(grid: Sequence[float], at: Callable[[float], float], neutral: float) -> Sequence[float]:
    """The ticks whose labels have room, with `neutral` where it is one."""
    if len(grid) < 2 or at(grid[1]) - at(grid[0]) > 40:
        return grid
    return grid[grid.index(neutral) % 2 if neutral in grid else 0 :: 2]


def _side(mark: Mark, neutral: float) -> str:
    if mark.low is None or mark.high is None:
        return "open"
    return "up" if mark.low > neutral else "down" if mark.high < neutral else "open"


def _said(mark: Mark, shown: Callable[[float], str]) -> str:
    assert mark.middle is not None
    if mark.low is None or mark.high is None:
        return shown(mark.middle)
    return f"{shown(mark.middle)}, {shown(mark.low)} to {shown(mark.high)}"


def _mark(mark: Mark, y: float, at: Callable[[float], float], side: str) -> list[Markup]:
    assert mark.middle is not None
    parts: list[Markup] = []
    if mark.low is not None and mark.high is not None:
        parts.append(line(at(mark.low), y, at(mark.high), y, f"whisker {side}"))
    ring = Markup('<circle class="seed" cx="{:.1f}" cy="{:.1f}" r="3"/>')
    parts += [ring.format(at(dot), y + 6) for dot in mark.dots if dot is not None]
    dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="4.5"/>')
    return [*parts, dot.format(side, at(mark.middle), y)]


def gaps(counts: Sequence[int], title: str, axis: str, sides: tuple[str, str]) -> Markup:
    """How often each whole difference from -10 to 10 came: 21 counts. `sides` name what is left and right of
    zero."""
    width, base, top = 400.0, 118.0, 22.0
    most = max(counts) or 1
    step = width / 21
    bar = Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
    parts = []
    for place, count in enumerate(counts):
        high = (base - top) * count / most
        kind = "all" if place == 10 else "fall" if place < 10 else "rise"
        parts += [bar.format(kind, place * step + 1, base - high, step - 2, high)] if count else []
    parts.append(line(0, base, width, base, "axis"))
    parts += [
        text((place + 0.5) * step, base + 16, words.signed(place - 10, 0) if place != 10 else "0")
        for place in range(1, 21, 3)
    ]
    parts += [text(2, 12, f"← {sides[0]}", "start"), text(width - 2, 12, f"{sides[1]} →", "end")]
    parts.append(text(width / 2, base + 33, axis))
    below, above = sum(counts[:10]), sum(counts[11:])
    said = f"{title}: {below} {sides[0]}, {counts[10]} even, {above} {sides[1]}"
    return svg(width, base + 40, said, parts)


def slope(lines: dict[str, Points], title: str, axis: str, shown: Callable[[float], str]) -> Markup:
    """One or two lines in percent over sizes that double: dashed the first, which is `before`."""
    width, height, left, right, top, base = 400.0, 210.0, 40.0, 16.0, 10.0, 172.0
    sizes = sorted({x for points in lines.values() for x, _ in points})
    low, high = math.log2(sizes[0]), math.log2(sizes[-1])
    across = (width - left - right) / ((high - low) or 1.0)

    def place(x: float, y: float) -> tuple[float, float]:
        return left + (math.log2(x) - low) * across, base - y / 100 * (base - top)

    parts = []
    for tick in (0, 25, 50, 75, 100):
        y = place(sizes[0], tick)[1]
        parts += [line(left, y, width - right, y, "grid"), text(left - 6, y + 4, f"{tick}%", "end")]
    edge = -100.0
    for size in sizes:
        x = place(size, 0)[0]
        if x - edge > 44:
            parts.append(text(x, base + 18, shown(size)))
            edge = x
    parts.append(text((left + width - right) / 2, base + 35, axis))
    dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>')
    for hue, points in zip(("rejected", "chosen"), lines.values(), strict=False):
        spots = [place(x, min(max(y, 0.0), 100.0)) for x, y in sorted(points)]
        parts.append(path(spots, f"line {hue}"))
        parts += [dot.format(hue, *spot) for spot in spots]
    said = "; ".join(
        f"{name} {', '.join(f'{shown(x)} {y:.0f}%' for x, y in sorted(points)[:MOST])}"
        for name, points in lines.items()
    )
    return svg(width, height, f"{title}: {said}", parts)
