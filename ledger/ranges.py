"""Sets of ids as short text ("1-256,300"), as audit events name them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def spans(ids: Iterable[int]) -> list[tuple[int, int]]:
    """Inclusive spans of consecutive ids, ascending."""
    distinct = set(ids)
    if distinct and max(distinct) - min(distinct) + 1 == len(distinct):
        return [(min(distinct), max(distinct))]
    found: list[tuple[int, int]] = []
    for one in sorted(distinct):
        if found and one == found[-1][1] + 1:
            found[-1] = (found[-1][0], one)
        else:
            found.append((one, one))
    return found


def to_text(ids: Iterable[int]) -> str:
    """Spans as text: "1-3,5"."""
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans(ids))


def from_text(text: str) -> Iterator[int]:
    """The ids `to_text` wrote.

    Raises:
        ValueError: Not such a text.
    """
    for part in text.split(",") if text else ():
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def to_multirange(ids: Iterable[int]) -> str:
    """The same set as a Postgres int8multirange literal."""
    return "{" + ",".join(f"[{a},{b + 1})" for a, b in spans(ids)) + "}"
