"""The objects of a file, whatever kind of file it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from editfiles.documents import document, is_document, json_lines
from editfiles.lines import Source
from editfiles.problems import FileProblem, Place, described
from editfiles.tables import table


@dataclass(frozen=True, slots=True)
class Raw:
    """One object of a file, as it stands there.

    Attributes:
        place: Where it stands.
        fields: Name to value.
        cells: True for a row of a table, where a list is written in one cell.
    """

    place: Place
    fields: Mapping[str, Any]
    cells: bool = False


def read_raw(
    given: Path | IO[bytes],
    *,
    columns: Mapping[str, str],
    needed: Mapping[str, str],
    name: str | None = None,
    on_problem: Callable[[FileProblem], None] | None = None,
) -> Iterator[Raw]:
    """Stream the objects of a file.

    Args:
        given: Where it is, or an open stream of bytes (a pipe).
        columns: For a table: plain name of a column to the field it fills.
        needed: For a table: fields that must have a column, with the words that name them.
        name: Name of the file for messages; else its path.
        on_problem: Receives what cannot be read; None raises the first.

    Raises:
        FileProblem: There is no such file, or something in it cannot be read.
    """
    if not isinstance(given, Path):
        yield from _objects(Source(name or "-", given), columns, needed, on_problem)
        return
    if not given.exists():
        raise FileProblem("there is no such file", fatal=True)
    if given.is_dir():
        raise FileProblem("is a folder; give a file of records", fatal=True)
    try:
        with given.open("rb") as stream:
            source = Source(name or str(given), stream)
            yield from _objects(source, columns, needed, on_problem)
    except OSError as error:
        raise FileProblem(f"cannot be read: {error.strerror}", fatal=True) from None


def _objects(
    source: Source,
    columns: Mapping[str, str],
    needed: Mapping[str, str],
    on_problem: Callable[[FileProblem], None] | None,
) -> Iterator[Raw]:
    cells = _start(source) not in "[{"
    for found in _found(source, columns, needed):
        problem = found if isinstance(found, FileProblem) else None
        if not isinstance(found, FileProblem):
            place, value = found
            if isinstance(value, dict):
                yield Raw(place, value, cells)
                continue
            problem = FileProblem(
                'expected an object with fields, such as {"prompt": "…", "target": "…"}; '
                f"found {described(value)}",
                place,
            )
        assert problem is not None
        if on_problem is None:
            raise problem
        on_problem(problem)


def _found(
    source: Source, columns: Mapping[str, str], needed: Mapping[str, str]
) -> Iterator[tuple[Place, object] | FileProblem]:
    start = _start(source)
    if not start:
        return iter(())
    if start not in "[{":
        return table(source, columns, needed)
    head = source.head.decode("utf-8", errors="replace")
    return document(source) if is_document(head) else json_lines(source)


def _start(source: Source) -> str:
    """The first character that is not white space."""
    return source.head.decode("utf-8", errors="replace").lstrip()[:1]
