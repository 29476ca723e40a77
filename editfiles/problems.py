"""What is wrong with a file, and where."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record stands.

    Attributes:
        file: Name of the file, as it was given.
        line: Line where the record starts, from 1.
        nth: Which of the records that start on this line, from 1: an array may be one line.
    """

    file: str
    line: int
    nth: int = 1

    def __str__(self) -> str:
        """Name line and record, without the file."""
        return f"line {self.line}" + (f", record {self.nth}" if self.nth > 1 else "")


class FileProblem(Exception):
    """A file, or one record of it, cannot be read.

    Attributes:
        problem: What is wrong and what was expected.
        place: Where, or None where the whole file is meant.
        field: Name of the field at fault, as the file has it, or None.
        fatal: True where nothing after this place can be read.
    """

    def __init__(
        self,
        problem: str,
        place: Place | None = None,
        *,
        field: str | None = None,
        fatal: bool = False,
    ) -> None:
        where = "" if place is None else f"{place}: "
        what = "" if field is None else f"field {field!r}: "
        super().__init__(f"{where}{what}{problem}")
        self.problem, self.place, self.field, self.fatal = problem, place, field, fatal


def described(value: object) -> str:
    """Name a JSON value in words, with its beginning."""
    words = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "the text",
        list: "a list",
        dict: "an object",
        type(None): "nothing",
    }
    name = words.get(type(value), "another kind of value")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"{name} {_short(value)!r}"
    if isinstance(value, int | float):
        return f"{name} ({_short(str(value))})"
    return name


def _short(words: str, limit: int = 40) -> str:
    return words if len(words) <= limit else words[:limit] + "…"
