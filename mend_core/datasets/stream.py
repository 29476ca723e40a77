"""Reading text and JSON arrays piece by piece, with line numbers in every error."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mend_core.errors import DataError

MAX_LINE = 1 << 20
"""Longest line or record accepted, in characters: far above any edit, far below trouble."""

_CHUNK = 1 << 16


def text_lines(path: Path, limit: int = MAX_LINE) -> Iterator[tuple[int, str]]:
    """(line number, text with its line end) of a UTF-8 file.

    Raises:
        DataError: Not UTF-8, or a line over `limit` bytes.
    """
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(limit + 1):
            number += 1
            if len(raw) > limit:
                raise DataError(str(path), number, None, f"the line is longer than {limit} bytes")
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(str(path), number, None, f"not UTF-8: {error}") from error


def json_items(path: Path, limit: int = MAX_LINE) -> Iterator[tuple[int, Any]]:
    """(line where it starts, value) for each item of a file that holds one JSON array.

    Only one record is in memory at a time.

    Raises:
        DataError: Not UTF-8, not an array, broken JSON, or a record over `limit` characters.
    """
    yield from _Items(path, limit).items()


class _Items:
    """An incremental parser of one array; keeps the text from the current item on."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path, self.limit = path, limit
        self.buffer = ""
        self.line = 1

    def items(self) -> Iterator[tuple[int, Any]]:
        decoder = json.JSONDecoder()
        with self.path.open("rb") as file:
            self.chunks = self._decoded(file)
            if self._peek() != "[":
                raise self._error("expected a JSON array of records")
            self._drop(1)
            if self._peek() == "]":
                return
            while True:
                self._peek()
                yield self.line, self._value(decoder)
                mark = self._peek()
                self._drop(1)
                if mark == "]":
                    return
                if mark != ",":
                    raise self._error("expected ',' or ']' after a record; the file may be cut off")

    def _value(self, decoder: json.JSONDecoder) -> Any:
        while True:
            try:
                value, end = decoder.raw_decode(self.buffer)
            except ValueError as error:
                if len(self.buffer) > self.limit:
                    raise self._error(
                        f"a record is broken or longer than {self.limit} characters: {error}"
                    ) from error
                if not self._more():
                    raise self._error(f"not JSON: {error}") from error
                continue
            if end == len(self.buffer) and self._more():
                continue  # a number may go on in the next chunk
            self._drop(end)
            return value

    def _peek(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            stripped = self.buffer.lstrip()
            self.line += self.buffer.count("\n", 0, len(self.buffer) - len(stripped))
            self.buffer = stripped
            if stripped or not self._more():
                return stripped[:1]

    def _drop(self, n: int) -> None:
        self.line += self.buffer.count("\n", 0, n)
        self.buffer = self.buffer[n:]

    def _more(self) -> bool:
        chunk = next(self.chunks, "")
        self.buffer += chunk
        return bool(chunk)

    def _decoded(self, file: Any) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8-sig")()
        while True:
            raw = file.read(_CHUNK)
            try:
                text = decoder.decode(raw, final=not raw)
            except UnicodeDecodeError as error:
                raise self._error(f"not UTF-8: {error}") from error
            if text:
                yield text
            if not raw:
                return

    def _error(self, message: str) -> DataError:
        return DataError(str(self.path), self.line, None, message)
