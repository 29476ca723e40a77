"""Sets of ids as short text ("1-256,300"), as audit events name them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence


def joined(parts: Iterable[Sequence[int]]) -> Sequence[int]:
    """All ids of some parts, as one range where they follow one another."""
    whole: Sequence[int] = range(0)
    for part in parts:
        if not whole:
            whole = part
        elif (
            isinstance(whole, range)
            and isinstance(part, range)
            and (whole.step, whole.stop, 1) == (1, part.start, part.step)
        ):
            whole = range(whole.start, part.stop)
        else:
            whole = [*whole, *part]
    return whole


def spans(ids: Iterable[int]) -> list[tuple[int, int]]:
    """Inclusive spans of consecutive ids, ascending."""
    if isinstance(ids, range) and ids and ids.step == 1:
        return [(ids[0], ids[-1])]
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
