"""JSON: one object a line, an array, or an object that holds one list; one record in memory."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from editfiles.lines import MAX_RECORD, Source, decoded, texts
from editfiles.problems import FileProblem, Place

_WORDS = (
    ("Expecting property name", "a field name in double quotes was expected"),
    ("Expecting ':'", "a colon was expected after the field name"),
    ("Expecting ','", 'a comma or a closing bracket was expected; a quote inside a text is \\"'),
    ("Expecting value", "a value is missing"),
    ("Unterminated string", "the text that begins here has no closing quote"),
    ("Invalid control character", "a line break or tab inside a text is written \\n or \\t"),
    ("Invalid \\u", "\\u is followed by four digits 0-9 or a-f"),
    ("Invalid \\", "a backslash inside a text is written \\\\"),
    ("Illegal trailing comma", "a comma follows the last item"),
)
CUT = "the file ends in the middle of a record; it may be cut short"

_KEY = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:', re.DOTALL)


class _NotJson(ValueError):
    """What a decoder accepts and JSON does not."""


def _refuse_constant(name: str) -> object:
    raise _NotJson(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def in_words(error: Exception) -> str:
    """Say in plain words why text is no JSON."""
    if isinstance(error, json.JSONDecodeError):
        for start, words in _WORDS:
            if error.msg.startswith(start):
                return words
        return "something else was expected"
    if isinstance(error, RecursionError):
        return "brackets are nested too deeply"
    return str(error) if isinstance(error, _NotJson) else "a number is too long"


def json_lines(source: Source) -> Iterator[tuple[Place, object] | FileProblem]:
    """One value a line; empty lines are skipped, a bad line does not end the reading."""
    for number, line in source.lines():
        if not line.strip():
            continue
        place = Place(source.name, number)
        try:
            yield place, _value_of(line, place)
        except FileProblem as problem:
            yield problem


def _value_of(line: bytes, place: Place) -> object:
    words = decoded(line, place).strip()
    try:
        value, end = _DECODER.raw_decode(words)
    except json.JSONDecodeError as error:
        if not line.endswith(b"\n") and (
            error.pos >= len(words) - 1 or error.msg.startswith("Unterminated")
        ):
            raise FileProblem(CUT, place) from None
        raise FileProblem(
            f"not JSON at column {error.colno}: {in_words(error)}; expected one record a line",
            place,
        ) from None
    except (RecursionError, ValueError) as error:
        raise FileProblem(f"not JSON: {in_words(error)}", place) from None
    if end != len(words):
        raise FileProblem(
            f"not JSON at column {end + 1}: something follows the end of the record; "
            "expected one record a line",
            place,
        )
    return value


def is_document(head: str) -> bool:
    """Say whether text that begins with a bracket is one JSON document, not one record a line.

    Args:
        head: Beginning of the file.
    """
    head = head.lstrip()
    if head.startswith("["):
        return True
    first, _, rest = head.partition("\n")
    try:
        value, end = _DECODER.raw_decode(head)
    except (ValueError, RecursionError):
        shown = first.rstrip()
        if not rest:
            return bool(re.match(r'\{\s*"[^"]*"\s*:\s*\[\s*\{', shown))
        return shown.endswith(("{", ",", "["))
    return "\n" in head[:end] or (isinstance(value, dict) and list_in(value) is not None)


def list_in(value: dict[str, Any]) -> str | None:
    """Name of the field that holds the records, where an object only wraps a list of objects."""
    lists = [
        name
        for name, one in value.items()
        if isinstance(one, list) and one and all(isinstance(item, dict) for item in one)
    ]
    texts_too = {"prompt", "target", "target_new", "src", "requested_rewrite", "question"}
    return lists[0] if len(lists) == 1 and not texts_too & set(value) else None


def document(source: Source) -> Iterator[tuple[Place, object] | FileProblem]:
    """Records of an array, of the one list of an object, or of objects over several lines."""
    nth: Counter[int] = Counter()
    reading = _Reading(source)
    try:
        for line, value in reading.items():
            nth[line] += 1
            yield Place(source.name, line, nth[line]), value
    except FileProblem as problem:
        yield problem


class _Reading:
    """An incremental parser that keeps the text from the current item on."""

    def __init__(self, source: Source) -> None:
        self._name = source.name
        self._chunks = texts(source)
        self._buffer = ""
        self._line = 1

    def items(self) -> Iterator[tuple[int, Any]]:
        """(line where it starts, value) of each record."""
        while mark := self._peek():
            if mark == "[":
                yield from self._array()
            elif mark == "{":
                yield from self._object()
            else:
                raise self._problem("expected a JSON array or object of records")

    def _array(self) -> Iterator[tuple[int, Any]]:
        self._drop(1)
        if self._peek() == "]":
            self._drop(1)
            return
        while True:
            self._peek()
            line = self._line
            yield line, self._value()
            mark = self._peek()
            self._drop(1)
            if mark == "]":
                return
            if not mark:
                raise self._problem(
                    CUT.replace("in the middle of a record", "before its list does")
                )
            if mark != ",":
                raise self._problem("expected a comma or ] after a record")

    def _object(self) -> Iterator[tuple[int, Any]]:
        """The records in the one list of an object, or the object itself."""
        line = self._line
        self._drop(1)
        fields: dict[str, Any] = {}
        wrapped = False
        while (mark := self._peek()) != "}":
            if mark == ",":
                self._drop(1)
                continue
            name = self._key()
            if self._peek() == "[" and not fields and self._begins_with_object():
                wrapped = True
                yield from self._array()
            else:
                self._peek()
                fields[name] = self._value()
        self._drop(1)
        if wrapped:
            return
        held = list_in(fields)
        if held is None:
            yield line, fields
        else:
            yield from ((line, one) for one in fields[held])

    def _begins_with_object(self) -> bool:
        while len(self._buffer) < MAX_RECORD and not self._buffer[1:].lstrip():
            if not self._more():
                return False
        return self._buffer[1:].lstrip().startswith("{")

    def _key(self) -> str:
        while (found := _KEY.match(self._buffer)) is None:
            if len(self._buffer) > MAX_RECORD or not self._more():
                raise self._problem(
                    "a field name in double quotes and a colon were expected"
                    if self._buffer
                    else CUT
                )
        self._drop(found.end())
        return found.group(1)

    def _value(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._buffer)
            except RecursionError as error:
                raise self._problem(f"not JSON: {in_words(error)}") from None
            except json.JSONDecodeError as error:
                if len(self._buffer) > MAX_RECORD:
                    raise self._problem(
                        f"a record is broken or longer than {MAX_RECORD:,} characters"
                    ) from None
                if not self._more():
                    raise self._broken(error) from None
                continue
            except ValueError as error:
                raise self._problem(f"not JSON: {in_words(error)}") from None
            if end == len(self._buffer) and self._more():
                continue  # a number may go on in the next piece
            self._drop(end)
            return value

    def _broken(self, error: json.JSONDecodeError) -> FileProblem:
        if error.pos >= len(self._buffer.rstrip()) or error.msg.startswith("Unterminated"):
            return self._problem(CUT)
        line = self._line + self._buffer.count("\n", 0, error.pos)
        return FileProblem(
            f"not JSON at column {error.colno}: {in_words(error)}",
            Place(self._name, line),
            fatal=True,
        )

    def _peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            stripped = self._buffer.lstrip()
            self._line += self._buffer.count("\n", 0, len(self._buffer) - len(stripped))
            self._buffer = stripped
            if stripped or not self._more():
                return stripped[:1]

    def _drop(self, count: int) -> None:
        self._line += self._buffer.count("\n", 0, count)
        self._buffer = self._buffer[count:]

    def _more(self) -> bool:
        chunk = next(self._chunks, "")
        self._buffer += chunk
        return bool(chunk)

    def _problem(self, words: str) -> FileProblem:
        return FileProblem(words, Place(self._name, self._line), fatal=True)
