"""Tables: one line a row on a terminal, tab-separated values for programs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from enum import Enum
from typing import Self

from rich.cells import cell_len, set_cell_size

from gateway.visible import visible

GAP = "  "
ELLIPSIS = "…"
NARROWEST = 4
"""Cells a column keeps however narrow the terminal is."""

WORD = 17
"""A text without spaces up to this length is a state, a kind or a name, and is not broken."""


class Shortened(str):
    """A text cut for people that remembers itself whole for programs."""

    __slots__ = ("whole",)
    whole: str

    def __new__(cls, shown: str, whole: str) -> Self:
        """Makes the text that people see, with what programs get."""
        made = super().__new__(cls, shown)
        made.whole = whole
        return made


def moment(at: datetime, now: datetime | None = None) -> str:
    """Writes a time as short as it can be told apart: today's hour, this year's day, or the day."""
    local = at.astimezone() if at.tzinfo else at
    today = (now or datetime.now().astimezone()).date()
    if local.date() == today:
        return local.strftime("%H:%M")
    return local.strftime("%m-%d %H:%M" if local.year == today.year else "%Y-%m-%d")


def for_people(value: object) -> str:
    """Writes one cell for a person, on one line."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return moment(value)
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value.value) if isinstance(value, Enum) else str(value)
    return " ".join(visible(text, lines=False).split())


def for_programs(value: object) -> str:
    """Writes one field for a program: whole, without tabs and line ends."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Shortened):
        return value.whole
    text = str(value.value) if isinstance(value, Enum) else str(value)
    return visible(text, lines=False)


def separated(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Writes a header line and one line a row, fields apart by tabs."""
    return ["\t".join(columns), *("\t".join(for_programs(v) for v in row) for row in rows)]


def lay_out(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    width: int,
    flexible: Collection[str] = (),
) -> list[str]:
    """Writes a header line and one line a row, none wider than `width`.

    Args:
        columns: Their names.
        rows: Their values.
        width: Cells of the terminal.
        flexible: Columns that give way first; without, those that hold sentences.
    """
    shown = [[for_people(value) for value in row] for row in rows]
    wide = [max(cell_len(line[n]) for line in [list(columns), *shown]) for n in range(len(columns))]
    gives = [
        name in flexible if flexible else any(_is_prose(line[n]) for line in shown)
        for n, name in enumerate(columns)
    ]
    room = width - len(GAP) * (len(columns) - 1)
    # Sentences give way first, then other text, then everything.
    text = [any(isinstance(row[n], str) for row in rows) for n in range(len(columns))]
    for may_give in (gives, text, [True] * len(columns)):
        wide = _shrink(wide, may_give, room)
    right = [
        bool(rows) and all(type(row[n]) in (int, type(None)) for row in rows)
        for n in range(len(columns))
    ]
    return [
        GAP.join(_fit(cell, wide[n], right=right[n]) for n, cell in enumerate(line)).rstrip()
        for line in [list(columns), *shown]
    ]


def _is_prose(text: str) -> bool:
    return len(text) > WORD or (" " in text and len(text) > len("2026-11-24"))


def _shrink(wide: list[int], may_give: list[bool], room: int) -> list[int]:
    """Narrows the widest of the columns that may give, step by step, until all fit."""
    wide = list(wide)
    while sum(wide) > room:
        over = [n for n, gives in enumerate(may_give) if gives and wide[n] > NARROWEST]
        if not over:
            break
        wide[max(over, key=lambda n: wide[n])] -= 1
    return wide


def _fit(text: str, width: int, *, right: bool) -> str:
    if cell_len(text) > width:
        return set_cell_size(text, width - 1) + ELLIPSIS
    padding = " " * (width - cell_len(text))
    return padding + text if right else text + padding
