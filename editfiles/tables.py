"""CSV as Excel writes it: `,` `;` or tab, capitals and spaces in the header, quoted line breaks."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping

from editfiles.lines import MAX_RECORD, Source, decoded
from editfiles.problems import FileProblem, Place

_DELIMITERS = (",", ";", "\t")


def plain_name(name: str) -> str:
    """A column's name without capitals, and with `_` for what is no letter or digit."""
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")


def table(
    source: Source, columns: Mapping[str, str], needed: Mapping[str, str]
) -> Iterator[tuple[Place, object] | FileProblem]:
    """Rows as objects of field name to text; empty cells and rows are left out.

    Args:
        source: The file.
        columns: Plain name of a column to the field it fills.
        needed: Fields that must have a column, each with the words that name it.
    """
    line = 0

    def lines() -> Iterator[str]:
        nonlocal line
        for number, raw in source.lines():
            line = number
            text = decoded(raw, Place(source.name, number), fatal=True)
            if number == 1 and re.fullmatch(r'"?sep=.\s*', text):
                continue  # Excel's own hint
            yield text

    delimiter = _delimiter(source.head, columns)
    reader = csv.reader(lines(), strict=True, delimiter=delimiter)
    started = 1
    try:
        header = _header(next(reader, []), columns, needed, source.name)
        while True:
            started = line + 1
            row = next(reader, None)
            if row is None:
                return
            if any(cell.strip() for cell in row):
                place = Place(source.name, started)
                try:
                    yield place, _fields(header, row, place)
                except FileProblem as problem:
                    yield problem
    except csv.Error as error:
        yield FileProblem(_in_words(error), Place(source.name, started), fatal=True)
    except FileProblem as problem:
        yield problem


def _in_words(error: csv.Error) -> str:
    said = str(error)
    if "unexpected end" in said or "field larger" in said:
        return 'a cell that opens with " is never closed; the file may be cut short'
    if "expected after" in said:
        return 'a quote inside a quoted cell is written twice ("")'
    if "new-line" in said:
        return "lines end as on an old Mac (CR alone); save the file as 'CSV UTF-8'"
    return "this row is no CSV"


def _delimiter(head: bytes, columns: Mapping[str, str]) -> str:
    """The one that finds most known columns in the header; then the one that finds most at all."""
    text = head.decode("utf-8", errors="replace")
    hint = re.match(r'"?sep=(.)', text)
    if hint and hint[1] in _DELIMITERS:
        return hint[1]

    def found(delimiter: str) -> tuple[int, int]:
        try:
            names = next(csv.reader(text.splitlines(keepends=True)[:20], delimiter=delimiter), [])
        except csv.Error:
            return 0, 0
        return sum(plain_name(one) in columns for one in names), len(names)

    return max(_DELIMITERS, key=found)


def _header(
    names: list[str], columns: Mapping[str, str], needed: Mapping[str, str], file: str
) -> list[str]:
    """Field of each column; "" for one without a name."""
    while names and not names[-1].strip():
        names = names[:-1]
    place = Place(file, 1)
    seen = ", ".join(name.strip()[:40] or "(no name)" for name in names[:20]) or "nothing"
    fields = [columns.get(plain_name(name), "") if name.strip() else "" for name in names]
    lacks = [words for field, words in needed.items() if field not in fields]
    if lacks:
        raise FileProblem(
            f"the header has no column for {' and '.join(lacks)}; found: {seen}", place, fatal=True
        )
    for name, field in zip(names, fields, strict=True):
        if name.strip() and not field:
            raise FileProblem(
                "unknown column; rename or delete it. Known: "
                + ", ".join(dict.fromkeys(columns.values())),
                place,
                field=name.strip(),
                fatal=True,
            )
    twice = [field for field in fields if field and fields.count(field) > 1]
    if twice:
        raise FileProblem(
            f"two columns mean {twice[0]!r}; found: {seen}; keep one", place, fatal=True
        )
    return fields


def _fields(header: list[str], row: list[str], place: Place) -> dict[str, object]:
    extra = row[len(header) :]
    if any(cell.strip() for cell in extra) or len(row) < len(header) - _optional(header, row):
        raise FileProblem(
            f"{len(row)} columns; the header has {len(header)} (a cell that holds the separator "
            'stands in quotes: "…")',
            place,
        )
    if sum(map(len, row)) > MAX_RECORD:
        raise FileProblem(f"longer than {MAX_RECORD:,} characters", place)
    pairs = zip(header, row, strict=False)
    return {name: cell.strip() for name, cell in pairs if name and cell.strip()}


def _optional(header: list[str], row: list[str]) -> int:
    """Cells that may be left out at the end of a row: all but the first two."""
    return max(0, len(header) - max(len(row), 2))
