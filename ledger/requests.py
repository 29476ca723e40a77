"""Edit requests as people send them: validation, and files of them.

Every problem names the line, the field and what was expected. A file is taken whole or not at all
unless `keep_going`. What only a tokenizer can know (does the prompt fit the model, does the target
have tokens) is checked by the worker, which quarantines that one edit.
"""

from __future__ import annotations

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterable, Mapping
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

from editfiles import FileProblem, Record, read_records
from ledger.errors import RequestInvalid, RequestsInvalid

MAX_PROMPT = 8_000  # characters; the worker checks tokens
MAX_TARGET = 2_000
MAX_NAME = 500
MAX_LIST = 64
PRIORITY_LIMIT = 1_000
SALT_BYTES = 16

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


def parse_file(
    given: Path | IO[bytes],
    *,
    keep_going: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> Parsed:
    """Read a file of edits, in any of the forms that `editfiles` knows.

    Args:
        given: Where it is, or an open stream of bytes (a pipe).
        keep_going: Leave out bad records instead of refusing the file.
        defaults: Fields for records that leave them out.

    Raises:
        RequestsInvalid: Nothing of the file can be read, or records are bad and `keep_going` is
            False.
    """
    found, lines = [], []
    problems: list[RequestInvalid] = []

    def bad(problem: FileProblem) -> None:
        problems.append(_of_file(problem))

    try:
        for record in read_records(given, on_problem=bad):
            try:
                found.append(_request(record, defaults or {}))
            except RequestInvalid as problem:
                problems.append(problem)
            else:
                lines.append(record.place.line)
    except FileProblem as problem:
        bad(problem)
    if problems and (not keep_going or not found):
        raise RequestsInvalid(problems)
    return Parsed(tuple(found), tuple(lines), tuple(problems))


def _request(record: Record, defaults: Mapping[str, Any]) -> EditRequest:
    fields = {
        "prompt": record.prompt,
        "target": record.target,
        "subject": record.subject,
        "relation": record.relation,
        "paraphrases": record.paraphrases,
        "locality": record.locality,
        # Data sets have conclusions without an answer, which nothing can be judged by.
        "portability": [pair for pair in record.portability if pair[1] is not None],
        **record.others,
    }
    given = {name: value for name, value in fields.items() if value not in (None, "", (), [])}
    try:
        return EditRequest.model_validate({**defaults, **given})
    except ValidationError as error:
        place = record.place
        raise _as_invalid(error, place.line, names=record.names, nth=place.nth) from None


def _of_file(problem: FileProblem) -> RequestInvalid:
    place = problem.place
    words = problem.problem
    if place is not None and place.nth > 1:
        words = f"record {place.nth}: {words}"
    return RequestInvalid(words, field=problem.field, line=None if place is None else place.line)


_WORDS = {
    "missing": "is missing; every edit needs a prompt and a target",
    "string_too_short": "is empty; expected text",
    "string_type": "expected text",
    "tuple_type": 'expected a list, such as ["one", "two"]',
    "timezone_aware": "has no time zone; expected e.g. 2026-11-22T09:00:00Z",
    "int_parsing": "expected a whole number",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "model_type": "expected a prompt, or a prompt with its answer",
    "extra_forbidden": "unknown field",
}
"""What is wrong, in a person's words, by pydantic's name of it."""


def _as_invalid(
    error: ValidationError,
    line: int | None,
    *,
    names: Mapping[str, str] | None = None,
    nth: int = 1,
) -> RequestInvalid:
    first = error.errors(include_url=False)[0]
    path = [str(part) for part in first["loc"]]
    if path and names:
        path[0] = names.get(path[0], path[0])
    kind, details = first["type"], first.get("ctx") or {}
    message = _WORDS.get(kind, first["msg"].removeprefix("Value error, "))
    if kind == "extra_forbidden":
        message += f"; expected some of {', '.join(EditRequest.model_fields)}"
    elif kind == "string_too_long":
        length = len(str(first["input"]))
        message = f"has {length:,} characters; expected at most {details['max_length']:,}"
    elif kind == "too_long":
        message = f"has too many entries; expected at most {details['max_length']:,}"
    elif kind in {"greater_than_equal", "less_than_equal"}:
        message = f"expected a number from -{PRIORITY_LIMIT} to {PRIORITY_LIMIT}"
    elif kind.startswith("datetime"):
        message = "expected a date and time, e.g. 2026-11-22T09:00:00Z"
    more = error.error_count() - 1
    if more:
        message += f" (and {more} more in this record)"
    if nth > 1:
        message = f"record {nth}: {message}"
    return RequestInvalid(message, field=".".join(path) or None, line=line)


def _normal(words: str) -> str:
    folded = unicodedata.normalize("NFKC", words).casefold()
    return " ".join(folded.split()).rstrip(_TRAILING)


def requests_from(records: Iterable[object]) -> list[EditRequest]:
    """Validate records that did not come from a file (a job's list); positions count from 1.

    Raises:
        RequestsInvalid: Some are bad.
    """
    found: list[EditRequest] = []
    problems: list[RequestInvalid] = []
    for number, record in enumerate(records, start=1):
        try:
            found.append(parse_record(record, number))
        except RequestInvalid as problem:
            problems.append(problem)
    if problems:
        raise RequestsInvalid(problems)
    return found
