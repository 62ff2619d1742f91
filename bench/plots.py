"""Plots as SVG: bars with the spread of their values, and lines. Nothing but text is made, and no library is needed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from bench.outcome import Figure

WIDTH: Final = 760
LEFT: Final = 210
RIGHT: Final = 90
ROW: Final = 26
HEAD: Final = 44
FOOT: Final = 40
HEIGHT: Final = 370
LINES_LEFT: Final = 60
LINES_TOP: Final = 58
LEGEND: Final = 230
COLOURS: Final = ("#0b6e99", "#c8553d", "#588157", "#8f5d9e", "#b58900", "#5c6770", "#222222")
_STYLE: Final = "text{font-family:sans-serif;font-size:12px;fill:#222}.t{font-size:14px;font-weight:bold}.s{fill:#5c6770}"


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a line, and the spread of its value."""

    x: float
    y: Figure


def bars(title: str, unit: str, values: Mapping[str, Figure]) -> str:
    """A horizontal bar for each value, from zero, with a whisker from the smallest to the largest."""
    height = HEAD + ROW * len(values) + FOOT
    most = max((figure.high for figure in values.values()), default=1.0) or 1.0
    room = WIDTH - LEFT - RIGHT
    parts = [_title(title)]
    for row, (name, figure) in enumerate(values.items()):
        top = HEAD + ROW * row
        middle = top + ROW / 2 - 3
        end = LEFT + room * max(0.0, figure.middle) / most
        low, high = LEFT + room * figure.low / most, LEFT + room * figure.high / most
        parts += [
            _text(LEFT - 8, middle + 4, name, anchor="end"),
            f'<rect x="{LEFT}" y="{top}" width="{end - LEFT:.1f}" height="{ROW - 6}" fill="{COLOURS[row % len(COLOURS)]}"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8" stroke="#222"/>',
            _text(max(end, high) + 6, middle + 4, number(figure.middle)),
        ]
    parts.append(_text(LEFT, height - 14, unit, css="s"))
    return _svg(height, title, parts)


def lines(title: str, x_unit: str, y_unit: str, series: Mapping[str, Sequence[Point]]) -> str:
    """A line for each series; both axes are logarithmic, since costs and rates span decades. Points must be positive."""
    points = [point for each in series.values() for point in each]
    x_ticks, y_ticks = _decades([point.x for point in points]), _decades([point.y.middle for point in points])
    left, right, top, bottom = LINES_LEFT, WIDTH - LEGEND, LINES_TOP, HEIGHT - FOOT

    def across(x: float) -> float:
        return left + (right - left) * _place(x, x_ticks)

    def down(y: float) -> float:
        return bottom - (bottom - top) * _place(y, y_ticks)

    parts = [_title(title)]
    for tick in x_ticks:
        parts += [f'<path d="M{across(tick):.1f} {top}V{bottom}" stroke="#ddd"/>',
                  _text(across(tick), bottom + 16, number(tick), anchor="middle", css="s")]
    for tick in y_ticks:
        parts += [f'<path d="M{left} {down(tick):.1f}H{right}" stroke="#ddd"/>',
                  _text(left - 6, down(tick) + 4, number(tick), anchor="end", css="s")]
    for index, (name, each) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = "L".join(f"{across(point.x):.1f} {down(point.y.middle):.1f}" for point in each)
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{across(point.x):.1f}" cy="{down(point.y.middle):.1f}" r="3.5" fill="{colour}"/>' for point in each
        ]
        key = top + 18 * index
        parts += [f'<rect x="{right + 18}" y="{key}" width="12" height="12" fill="{colour}"/>', _text(right + 36, key + 10, name)]
    parts += [_text(left, HEIGHT - 8, x_unit, css="s"), _text(left - 50, top - 8, y_unit, css="s")]
    return _svg(HEIGHT, title, parts)


def number(value: float) -> str:
    """Three digits that matter, and no more than are there: 0.0123, 4.5, 12,300."""
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    rounded = round(value, digits)
    return f"{rounded:,.{max(0, digits)}f}".rstrip("0").rstrip(".") if digits > 0 else f"{rounded:,.0f}"


def _decades(values: Sequence[float]) -> list[float]:
    """Ticks 1, 2, 5, 10 ... around the values, at least two."""
    low, high = min(values, default=1.0), max(values, default=10.0)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 2)
    steps = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
    first = max(index for index, step in enumerate(steps) if step <= low * (1 + 1e-9))
    last = min(index for index, step in enumerate(steps) if step >= high * (1 - 1e-9))
    return steps[first : max(last, first + 1) + 1]


def _place(value: float, ticks: Sequence[float]) -> float:
    return math.log(value / ticks[0]) / math.log(ticks[-1] / ticks[0])


def _title(title: str) -> str:
    return _text(14, 24, title, css="t")


def _text(x: float, y: float, text: str, *, anchor: str = "start", css: str = "") -> str:
    kind = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(text)}</text>'


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect width="{WIDTH}" height="{height:.0f}" fill="#fff"/>', *parts, "</svg>\n",
    ])
