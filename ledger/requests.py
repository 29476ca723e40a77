"""Edit requests as people send them: validation, and JSONL and CSV files of them.

Every problem names the line, the field and what was expected. A file is taken whole or not at all
unless `keep_going`. What only a tokenizer can know (does the prompt fit the model, does the target
have tokens) is checked by the worker, which quarantines that one edit.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Annotated, Any, Self

from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ledger.errors import RequestInvalid, RequestsInvalid

MAX_PROMPT = 8_000  # characters; the worker checks tokens
MAX_TARGET = 2_000
MAX_NAME = 500
MAX_LIST = 64
MAX_LINE_BYTES = 1_000_000
PRIORITY_LIMIT = 1_000
SALT_BYTES = 16
MAX_PROBLEMS = 100  # reading stops after so many: the file is of another kind

_quoted = json.encoder.encode_basestring  # escapes what RFC 8785 wants escaped, in C
_TRAILING = " ?!.:;,…\"'"


def _text(value: object) -> object:
    if isinstance(value, str):
        if "\x00" in value:
            raise ValueError("must not contain NUL characters")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("must be valid Unicode (it holds half a surrogate pair)") from None
        return value.strip()
    return value


Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT), BeforeValidator(_text)]
Target = Annotated[str, Field(min_length=1, max_length=MAX_TARGET), BeforeValidator(_text)]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME), BeforeValidator(_text)]
Reason = Annotated[str, Field(max_length=MAX_TARGET), BeforeValidator(_text)]


class Asked(BaseModel):
    """A prompt with the answer expected, or None where any unchanged answer will do."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Prompt
    answer: Target | None = None


def _asked(value: object) -> object:
    """Accept "prompt", ["prompt", "answer"] and {"prompt": …, "answer": …}."""
    if isinstance(value, str):
        return {"prompt": value}
    if isinstance(value, list | tuple) and len(value) in (1, 2):
        return dict(zip(("prompt", "answer"), value, strict=False))
    return value


AskedItem = Annotated[Asked, BeforeValidator(_asked)]


class EditRequest(BaseModel):
    """One requested edit: this prompt should answer that.

    Example:
        >>> EditRequest(prompt="The capital of Freedonia is", target="Glorbia").priority
        0
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Prompt
    target: Target
    subject: Name | None = None
    relation: Name | None = None
    paraphrases: Annotated[tuple[Prompt, ...], Field(max_length=MAX_LIST)] = ()
    locality: Annotated[tuple[AskedItem, ...], Field(max_length=MAX_LIST)] = ()
    portability: Annotated[tuple[AskedItem, ...], Field(max_length=MAX_LIST)] = ()
    reason: Reason | None = None
    source: Name = "manual"
    idempotency_key: Name | None = None
    priority: Annotated[int, Field(ge=-PRIORITY_LIMIT, le=PRIORITY_LIMIT)] = 0
    not_before: AwareDatetime | None = None
    expires_at: AwareDatetime | None = None

    @field_validator("portability")
    @classmethod
    def _portability_has_answers(cls, value: tuple[Asked, ...]) -> tuple[Asked, ...]:
        if any(one.answer is None for one in value):
            raise ValueError("every portability prompt needs an answer")
        return value

    @model_validator(mode="after")
    def _times_are_in_order(self) -> Self:
        if self.not_before and self.expires_at and self.expires_at <= self.not_before:
            raise ValueError("expires_at must be later than not_before")
        return self

    def model_post_init(self, _context: object, /) -> None:
        """Work out keys and canonical JSON once, as part of validation."""
        _ = self.fact_key, self.content

    @cached_property
    def fact_key(self) -> str:
        """Digest naming the fact: subject + relation where both are given, else the prompt."""
        if self.subject and self.relation:
            words = f"s\x1f{_normal(self.subject)}\x1f{_normal(self.relation)}"
        else:
            words = f"p\x1f{_normal(self.prompt)}"
        return hashlib.sha256(words.encode()).hexdigest()[:32]

    @cached_property
    def json_lists(self) -> tuple[str, str, str]:
        """Paraphrases, locality and portability as canonical JSON."""
        return (
            "[" + ",".join(map(_quoted, self.paraphrases)) + "]",
            _pairs_json(self.locality),
            _pairs_json(self.portability),
        )

    @cached_property
    def content(self) -> bytes:
        """Canonical JSON of what is asked for (strings only, ASCII keys: equals RFC 8785)."""
        paraphrases, locality, portability = self.json_lists
        reason = "null" if self.reason is None else _quoted(self.reason)
        relation = "null" if self.relation is None else _quoted(self.relation)
        subject = "null" if self.subject is None else _quoted(self.subject)
        return (
            f'{{"locality":{locality},"paraphrases":{paraphrases},"portability":{portability},'
            f'"prompt":{_quoted(self.prompt)},"reason":{reason},"relation":{relation},'
            f'"subject":{subject},"target":{_quoted(self.target)}}}'
        ).encode()

    def sealed(self) -> tuple[bytes, str]:
        """A fresh salt and the salted digest that the audit trail chains.

        Erasing the salt with the texts leaves a digest from which nothing can be guessed.
        """
        salt = os.urandom(SALT_BYTES)
        return salt, hashlib.sha256(salt + self.content).hexdigest()


def _pairs_json(items: tuple[Asked, ...]) -> str:
    if not items:
        return "[]"
    return (
        "["
        + ",".join(
            f"[{_quoted(one.prompt)},{'null' if one.answer is None else _quoted(one.answer)}]"
            for one in items
        )
        + "]"
    )


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a file held.

    Attributes:
        requests: The good records, in file order.
        lines: Their line numbers.
        problems: The bad ones (empty unless `keep_going`).
    """

    requests: tuple[EditRequest, ...]
    lines: tuple[int, ...]
    problems: tuple[RequestInvalid, ...]


def parse_record(record: object, line: int | None = None) -> EditRequest:
    """Validate one record.

    Raises:
        RequestInvalid: Names the first field at fault and what was expected.
    """
    if not isinstance(record, dict):
        raise RequestInvalid(
            f"expected an object such as {{'prompt': …, 'target': …}}, got {type(record).__name__}",
            line=line,
        )
    try:
        return EditRequest.model_validate(record)
    except ValidationError as error:
        raise _as_invalid(error, line) from None


def parse_file(path: Path, *, kind: str = "auto", keep_going: bool = False) -> Parsed:
    """Read a .jsonl or .csv file.

    Raises:
        RequestInvalid: The file cannot be read, or its kind is unknown.
        RequestsInvalid: Records are bad and `keep_going` is False.
    """
    if kind == "auto":
        kind = path.suffix.lower().lstrip(".")
    readers = {"jsonl": parse_jsonl, "ndjson": parse_jsonl, "csv": parse_csv}
    if kind not in readers:
        raise RequestInvalid(f"{path}: unknown kind {kind!r}; expected a .jsonl or .csv file")
    try:
        with path.open("rb") as source:
            return readers[kind](source, keep_going=keep_going)
    except OSError as error:
        raise RequestInvalid(f"{path} cannot be read: {error.strerror}") from error


def parse_jsonl(source: bytes | IO[bytes], *, keep_going: bool = False) -> Parsed:
    """Read JSON Lines: one object a line, UTF-8; empty lines are skipped.

    Raises:
        RequestsInvalid: Records are bad and `keep_going` is False.
    """
    collected = _Collected(keep_going)
    for number, line in _lines(io.BytesIO(source) if isinstance(source, bytes) else source):
        try:
            collected.add(number, _json_line(line, number))
        except RequestInvalid as problem:
            collected.bad(problem)
    return collected.done()


def parse_csv(source: bytes | IO[bytes], *, keep_going: bool = False) -> Parsed:
    """Read CSV with a header of field names; list fields hold a JSON list or items split by "|".

    Raises:
        RequestsInvalid: The header or records are bad and `keep_going` is False.
    """
    collected = _Collected(keep_going)
    data = source if isinstance(source, bytes) else source.read()
    try:
        words = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise RequestsInvalid([_not_utf8(error, line)]) from None
    reader = csv.reader(io.StringIO(words, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header)
        while True:
            first = reader.line_num + 1
            row = next(reader, None)
            if row is None:
                break
            if not any(row):
                continue
            try:
                collected.add(first, _csv_record(header, row, first))
            except RequestInvalid as problem:
                collected.bad(problem)
    except csv.Error as error:
        collected.fatal(RequestInvalid(f"not CSV: {error}", line=reader.line_num))
    except RequestInvalid as problem:
        collected.fatal(problem)
    return collected.done()


class _Collected:
    """Good and bad records of a file."""

    def __init__(self, keep_going: bool) -> None:
        self._keep_going = keep_going
        self._requests: list[EditRequest] = []
        self._lines: list[int] = []
        self._problems: list[RequestInvalid] = []

    def add(self, line: int, record: object) -> None:
        self._requests.append(parse_record(record, line))
        self._lines.append(line)

    def bad(self, problem: RequestInvalid) -> None:
        self._problems.append(problem)
        if not self._keep_going and len(self._problems) >= MAX_PROBLEMS:
            raise RequestsInvalid(self._problems)

    def fatal(self, problem: RequestInvalid) -> None:
        """The rest cannot be read: an error even with keep_going where nothing came before."""
        self._problems.append(problem)
        if not self._requests:
            raise RequestsInvalid(self._problems)

    def done(self) -> Parsed:
        if self._problems and not self._keep_going:
            raise RequestsInvalid(self._problems)
        return Parsed(tuple(self._requests), tuple(self._lines), tuple(self._problems))


def _lines(source: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Numbered lines; of an over-long one only its beginning is kept in memory."""
    number = 0
    while line := source.readline(MAX_LINE_BYTES + 2):
        number += 1
        rest = line
        while len(line) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = source.readline(MAX_LINE_BYTES)
            if not rest:
                break
        if line.strip():
            yield number, line


def _json_line(line: bytes, number: int) -> object:
    if len(line) > MAX_LINE_BYTES:
        raise RequestInvalid(
            f"longer than {MAX_LINE_BYTES:,} bytes; expected one edit a line", line=number
        )
    try:
        words = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(error, number) from None
    try:
        return json.loads(words, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise RequestInvalid(
            f"not JSON: {error.msg} at column {error.colno}; expected one object a line",
            line=number,
        ) from None
    except (RecursionError, ValueError) as error:
        raise RequestInvalid(f"not JSON we accept: {error}", line=number) from None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


def _not_utf8(error: UnicodeDecodeError, line: int) -> RequestInvalid:
    byte = error.object[error.start]
    return RequestInvalid(
        f"not UTF-8: byte 0x{byte:02x} ({error.reason}); save the file as UTF-8", line=line
    )


_LISTS = {"paraphrases", "locality", "portability"}


def _check_header(header: list[str]) -> None:
    known = set(EditRequest.model_fields)
    missing = {"prompt", "target"} - set(header)
    if missing:
        raise RequestInvalid(
            f"the header lacks {', '.join(sorted(missing))}; expected column names such as "
            "prompt,target,subject,paraphrases",
            line=1,
        )
    for name in header:
        if name not in known:
            raise RequestInvalid(
                f"unknown column; expected some of {', '.join(sorted(known))}", field=name, line=1
            )
    if len(set(header)) != len(header):
        raise RequestInvalid("a column name comes twice", line=1)


def _csv_record(header: list[str], row: list[str], line: int) -> dict[str, object]:
    if len(row) != len(header):
        raise RequestInvalid(
            f"{len(row)} columns; the header has {len(header)} (quote fields that hold commas)",
            line=line,
        )
    if sum(map(len, row)) > MAX_LINE_BYTES:
        raise RequestInvalid(f"longer than {MAX_LINE_BYTES:,} characters", line=line)
    record: dict[str, object] = {}
    for name, cell in zip(header, row, strict=True):
        value = cell.strip()
        if name in _LISTS and value:
            record[name] = _list_cell(name, value, line)
        elif value or name in {"prompt", "target"}:
            record[name] = value
    return record


def _list_cell(name: str, value: str, line: int) -> list[Any]:
    if not value.startswith("["):
        return [one.strip() for one in value.split("|") if one.strip()]
    try:
        found = json.loads(value)
    except ValueError:
        raise RequestInvalid(
            'expected a JSON list such as ["a", "b"], or items split by "|"', field=name, line=line
        ) from None
    assert isinstance(found, list)
    return found


def _as_invalid(error: ValidationError, line: int | None) -> RequestInvalid:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"]) or None
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = ", ".join(EditRequest.model_fields)
        message = f"unknown field; expected some of {known}"
    elif first["type"] == "missing":
        message = "is missing; every edit needs a prompt and a target"
    elif first["type"] == "string_too_short":
        message = "is empty; expected text"
    elif first["type"] == "string_too_long":
        length = len(str(first["input"]))
        message = f"has {length:,} characters; expected at most {first['ctx']['max_length']:,}"
    elif first["type"] == "timezone_aware":
        message = "has no time zone; expected e.g. 2026-11-22T09:00:00Z"
    more = error.error_count() - 1
    if more:
        message += f" (and {more} more in this record)"
    return RequestInvalid(message, field=where, line=line)


def _normal(words: str) -> str:
    folded = unicodedata.normalize("NFKC", words).casefold()
    return " ".join(folded.split()).rstrip(_TRAILING)


def requests_from(records: Iterable[object]) -> list[EditRequest]:
    """Validate records that did not come from a file (an API's list); positions count from 1.

    Raises:
        RequestsInvalid: Some are bad.
    """
    collected = _Collected(keep_going=False)
    for number, record in enumerate(records, start=1):
        try:
            collected.add(number, record)
        except RequestInvalid as problem:
            collected.bad(problem)
    return list(collected.done().requests)
