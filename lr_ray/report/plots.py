"""Plots as inline SVG: coloured by the page's style sheet, so that they follow light and dark mode.

Groups differ in line style as well as in colour. Every text goes through Markup.format, which escapes.
"""

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from lr_ray.report.facts import Spread, octave
from lr_ray.report.visible import visible

Points = list[tuple[float, float]]
_MOST_POINTS = 300


def svg(width: float, height: float, title: str, parts: Sequence[Markup], cls: str = "plot") -> Markup:
    """An SVG of the given size in its own units, which the page scales; `title` is its text form."""
    stretch = Markup(' preserveAspectRatio="none"') if cls == "meter" else ""
    head = Markup('<svg class="{}" viewBox="0 0 {:g} {:g}"{} role="img"><title>{}</title>')
    return (
        head.format(cls, width, height, stretch, visible(title)) + Markup("").join(parts) + Markup("</svg>")
    )


def text(x: float, y: float, words: str, anchor: str = "middle", cls: str = "tick") -> Markup:
    """Text at a place, escaped; what a page would not show is made visible."""
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        cls, x, y, anchor, visible(words)
    )


def line(x1: float, y1: float, x2: float, y2: float, cls: str) -> Markup:
    """A straight line."""
    drawn = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return drawn.format(cls, x1, y1, x2, y2)


def path(points: Points, cls: str) -> Markup:
    """Lines from point to point."""
    drawn = "M" + " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    return Markup('<path class="{}" d="{}"/>').format(cls, drawn)


def scores(spreads: dict[str, Spread], title: str) -> Markup:
    """Shares of each group on the whole scores 0 to 10."""
    labels = {i + 0.5: str(i) for i in range(0, 11, 2)}
    return _histogram(spreads, title, labels, lambda mean: mean + 0.5)


def lengths(spreads: dict[str, Spread], title: str) -> Markup:
    """Shares of each group on lengths that double from bin to bin."""
    labels = {1.0: "32", 3.0: "128", 5.0: "512", 7.0: "2k", 9.0: "8k"}
    return _histogram(spreads, title, labels, octave)


def _histogram(
    spreads: dict[str, Spread], title: str, labels: dict[float, str], place: Callable[[float], float]
) -> Markup:
    """All as bars, chosen and rejected as outlines over 11 bins; `labels` and `place` count in bins."""
    width, height, left, base, top = 300.0, 138.0, 6.0, 112.0, 12.0
    shown = {name: spread for name, spread in spreads.items() if spread.count}
    most = max(max(spread.bins) / spread.count for spread in shown.values())
    step = (width - 2 * left) / 11
    parts: list[Markup] = []
    for name, spread in shown.items():
        heights = [(base - top) * count / spread.count / most for count in spread.bins]
        if name == "all":
            bar = Markup('<rect class="all" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
            parts += [
                bar.format(left + i * step + 1, base - high, step - 2, high)
                for i, high in enumerate(heights)
                if high
            ]
            continue
        points: Points = [(left, base)]
        for i, high in enumerate(heights):
            points += [(left + i * step, base - high), (left + (i + 1) * step, base - high)]
        parts.append(path([*points, (width - left, base)], f"line {name}"))
    for name, spread in shown.items():
        assert spread.mean is not None
        x = left + place(spread.mean) * step
        mark = Markup('<path class="mean {}" d="M{:.1f} {:.1f} l-4 7 h8 z"/>')
        parts.append(mark.format(name, x, base + 1))
    parts.append(line(left, base, width - left, base, "axis"))
    parts += [text(left + at * step, base + 21, label) for at, label in labels.items()]
    means = ", ".join(f"{name} mean {spread.mean:.2f}" for name, spread in shown.items())
    return svg(width, height, f"{title}: {means}", parts)


def interval(low: float, middle: float, high: float, limit: float, title: str) -> Markup:
    """A difference with its interval on an axis from -limit to +limit, with zero in the middle."""
    width, height = 240.0, 34.0
    scale = (width / 2 - 8) / (limit or 1.0)
    x0, x1, x2 = (width / 2 + value * scale for value in (low, middle, high))
    side = "up" if low > 0 else "down" if high < 0 else "open"
    parts = [
        line(width / 2, 0, width / 2, height, "axis"),
        line(x0, height / 2, x2, height / 2, f"whisker {side}"),
        Markup('<circle class="dot {}" cx="{:.1f}" cy="{:g}" r="4.5"/>').format(side, x1, height / 2),
    ]
    return svg(width, height, title, parts, "interval")


def meter(value: float, title: str) -> Markup:
    """A score from 0 to 10 as a filled bar."""
    rect = Markup('<rect class="{}" width="{:.1f}" height="6"/>')
    filled = min(max(value, 0.0), 10.0) * 10
    return svg(100, 6, title, [rect.format("trough", 100), rect.format("fill", filled)], "meter")


def curves(series: dict[str, Points], title: str) -> Markup:
    """One or two lines over training steps: many are averaged down, a moving mean lies over the noise."""
    width, height, left, right, top, base = 340.0, 190.0, 50.0, 8.0, 10.0, 162.0
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    grid = ticks(min(ys), max(ys))
    low, high = min(grid[0], *ys), max(grid[-1], *ys)
    first, last = min(xs), max(xs)

    def place(points: Points) -> Points:
        across, up = (last - first) or 1.0, (high - low) or 1.0
        return [
            (left + (x - first) / across * (width - left - right), base - (y - low) / up * (base - top))
            for x, y in points
        ]

    parts: list[Markup] = []
    for tick in grid:
        y = place([(first, tick)])[0][1]
        parts += [line(left, y, width - right, y, "grid"), text(left - 6, y + 4, f"{tick:g}", "end")]
    parts += [
        text(left, base + 18, f"{first:,.0f}", "start"),
        text((left + width - right) / 2, base + 18, "step"),
        text(width - right, base + 18, f"{last:,.0f}", "end"),
    ]
    for hue, points in zip(("chosen", "rejected"), series.values(), strict=False):
        raw = _thin(points)
        smooth = _smooth(raw)
        parts.append(path(place(raw), f"line {hue}{' faint' if smooth else ''}"))
        parts += [path(place(smooth), f"line {hue}")] if smooth else []
        if len(raw) == 1:
            dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3"/>')
            parts.append(dot.format(hue, *place(raw)[0]))
    ends = ", ".join(f"{name} {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in series.items())
    return svg(width, height, f"{title}: {ends}", parts)


def ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that span low to high."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-300):
        return [low]
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(start, stop + 1)]


def _thin(points: Points) -> Points:
    """At most 300 points: neighbours averaged."""
    size = math.ceil(len(points) / _MOST_POINTS)
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part))
        for part in (points[i : i + size] for i in range(0, len(points), size))
    ]


def _smooth(points: Points) -> Points:
    """The centred moving mean over a tenth of the points; nothing for a short line."""
    half = len(points) // 20
    if half < 1:
        return []
    window = [points[max(0, i - half) : i + half + 1] for i in range(len(points))]
    return [(points[i][0], sum(y for _, y in part) / len(part)) for i, part in enumerate(window)]
