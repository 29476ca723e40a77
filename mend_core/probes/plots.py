"""Two small plots as inline SVG text; colours come from the page's style."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

LABEL = 260
WIDTH = 460
ROW = 24
TOP = 18
RIGHT = 90


@dataclass(frozen=True, slots=True)
class Interval:
    """A point with its bounds; all None where nothing was measured."""

    value: float | None
    low: float | None
    high: float | None


def shares_plot(rows: Sequence[tuple[str, Interval, Interval, int]]) -> str:
    """Shares from 0 to 100 %: (label, this version, parent, items)."""
    parts = [_axis(len(rows), [(0.0, "0 %"), (0.5, "50 %"), (1.0, "100 %")], 0.0, 1.0)]
    for number, (label, now, before, n) in enumerate(rows):
        y = TOP + ROW * number + ROW / 2
        parts.append(_label(label, y))
        if before.value is not None:
            x = _x(before.value, 0.0, 1.0)
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="none" stroke="var(--two)"/>'
            )
        if now.value is not None and now.low is not None and now.high is not None:
            low, high = _x(now.low, 0.0, 1.0), _x(now.high, 0.0, 1.0)
            x = _x(now.value, 0.0, 1.0)
            parts.append(_line(low, high, y, "var(--one)"))
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--one)"/>')
        parts.append(f'<text x="{LABEL + WIDTH + 10}" y="{y + 4:.1f}">n = {n}</text>')
    return _svg(parts, len(rows), "Pass rates by kind of probe")


def losses_plot(rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Net losses: (label, observed, upper bound, margin)."""
    low = min(0.0, *(value for _, *values in rows for value in values))
    high = max(0.05, *(value for _, *values in rows for value in values))
    ticks = [(0.0, "0 %"), (high, f"{high:.0%}")]
    parts = [_axis(len(rows), ticks, low, high)]
    for number, (label, observed, bound, margin) in enumerate(rows):
        y = TOP + ROW * number + ROW / 2
        colour = "var(--good)" if bound < margin else "var(--bad)"
        x, edge = _x(observed, low, high), _x(bound, low, high)
        bar = _x(margin, low, high)
        parts.append(_label(label, y))
        parts.append(_line(x, edge, y, colour))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>')
        parts.append(
            f'<line x1="{bar:.1f}" x2="{bar:.1f}" y1="{y - 8:.1f}" y2="{y + 8:.1f}"'
            ' stroke="var(--ink)" stroke-width="2"/>'
        )
    return _svg(parts, len(rows), "Net losses, their upper bounds and margins")


def _x(value: float, low: float, high: float) -> float:
    return LABEL + WIDTH * (value - low) / (high - low)


def _line(start: float, stop: float, y: float, colour: str) -> str:
    return (
        f'<line x1="{start:.1f}" x2="{stop:.1f}" y1="{y:.1f}" y2="{y:.1f}"'
        f' stroke="{colour}" stroke-width="2"/>'
    )


def _label(text: str, y: float) -> str:
    return f'<text x="{LABEL - 10}" y="{y + 4:.1f}" text-anchor="end">{html.escape(text)}</text>'


def _axis(rows: int, ticks: Sequence[tuple[float, str]], low: float, high: float) -> str:
    bottom = TOP + ROW * rows
    return "".join(
        f'<line x1="{_x(at, low, high):.1f}" x2="{_x(at, low, high):.1f}" y1="{TOP}" y2="{bottom}"'
        f' stroke="var(--line)"/><text x="{_x(at, low, high):.1f}" y="12"'
        f' text-anchor="middle">{html.escape(text)}</text>'
        for at, text in ticks
    )


def _svg(parts: Sequence[str], rows: int, title: str) -> str:
    width, height = LABEL + WIDTH + RIGHT, TOP + ROW * rows + 8
    return (
        f'<div class="wide"><svg role="img" viewBox="0 0 {width} {height}" width="{width}"'
        f' height="{height}">'
        f"<title>{html.escape(title)}</title>{''.join(parts)}</svg></div>"
    )
