"""A stream of bytes as text, line by line, with what is not text said plainly."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import IO

from editfiles.problems import FileProblem, Place

MAX_RECORD = 1 << 20
"""Longest line or record accepted: far above any edit, far below trouble."""

HEAD = 1 << 16
"""Bytes from which the kind of a file is seen."""

_SAVE_AS = "save it as UTF-8 (in Excel: the file type 'CSV UTF-8')"

_NOT_TEXT = (
    (codecs.BOM_UTF16_LE, f"is UTF-16, which Excel calls 'Unicode Text'; {_SAVE_AS}"),
    (codecs.BOM_UTF16_BE, f"is UTF-16, which Excel calls 'Unicode Text'; {_SAVE_AS}"),
    (b"PK\x03\x04", f"is an Excel workbook or a zip archive, not text; {_SAVE_AS}"),
    (b"\xd0\xcf\x11\xe0", f"is an old Excel workbook, not text; {_SAVE_AS}"),
    (b"\x1f\x8b", "is compressed (gzip); unpack it first"),
    (b"PAR1", "is a Parquet file; write its rows as JSON Lines or CSV first"),
)


class Source:
    """A stream whose beginning can be looked at before it is read.

    Attributes:
        name: Name of the file, for messages.
        head: The first `HEAD` bytes, without a byte order mark.
    """

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self.name = name
        self._stream = stream
        start = _filled(stream, HEAD)
        for mark, words in _NOT_TEXT:
            if start.startswith(mark):
                raise FileProblem(words, fatal=True)
        self.head = start.removeprefix(codecs.BOM_UTF8)
        self._rest = self.head

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Numbered lines with their ends; of an over-long one only the beginning is kept."""
        number = 0
        while line := self._readline(MAX_RECORD + 2):
            number += 1
            rest = line
            while len(line) > MAX_RECORD and not rest.endswith(b"\n"):
                rest = self._readline(MAX_RECORD)
                if not rest:
                    break
            yield number, line

    def chunks(self) -> Iterator[bytes]:
        """The bytes, in pieces."""
        while chunk := self._read(HEAD):
            yield chunk

    def _readline(self, limit: int) -> bytes:
        end = self._rest.find(b"\n", 0, limit) + 1
        if end:
            line, self._rest = self._rest[:end], self._rest[end:]
            return line
        line, self._rest = self._rest[:limit], self._rest[limit:]
        if len(line) < limit:
            line += self._stream.readline(limit - len(line))
        return line

    def _read(self, size: int) -> bytes:
        if self._rest:
            chunk, self._rest = self._rest, b""
            return chunk
        return self._stream.read(size)


def decoded(line: bytes, place: Place, *, fatal: bool = False) -> str:
    """One line as text.

    Raises:
        FileProblem: It is not UTF-8, or over-long; the message says what to do.
    """
    if len(line) > MAX_RECORD:
        raise FileProblem(
            f"longer than {MAX_RECORD:,} bytes; expected one record a line", place, fatal=fatal
        )
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileProblem(_not_utf8(error), place, fatal=fatal) from None


def _not_utf8(error: UnicodeDecodeError) -> str:
    byte = error.object[error.start : error.start + 1]
    said = f"not UTF-8: byte 0x{byte[0]:02x}"
    try:
        return (
            f"{said}, which is {byte.decode('cp1252')!r} in Windows-1252, the encoding of Excel's "
            f"plain 'CSV'; {_SAVE_AS}"
        )
    except UnicodeDecodeError:
        return f"{said}; {_SAVE_AS}"


def texts(source: Source) -> Iterator[str]:
    """The text in pieces.

    Raises:
        FileProblem: It is not UTF-8; the line is named.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    pending = b""
    for chunk in source.chunks():
        whole = pending + chunk
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError as error:
            place = Place(source.name, line + error.object.count(b"\n", 0, error.start))
            raise FileProblem(_not_utf8(error), place, fatal=True) from None
        pending = decoder.getstate()[0]
        line += whole.count(b"\n") - pending.count(b"\n")
        yield text
    if pending:
        raise FileProblem(
            "the file ends in the middle of a character; it may be cut short",
            Place(source.name, line),
            fatal=True,
        )


def _filled(stream: IO[bytes], size: int) -> bytes:
    """Read until `size` bytes or the end: a pipe gives what it has."""
    parts: list[bytes] = []
    while size > 0 and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
