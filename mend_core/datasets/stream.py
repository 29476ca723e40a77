"""Reading text and JSON arrays piece by piece, with line numbers in every error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
