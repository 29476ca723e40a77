"""Streaming readers of edit data: one record in memory at a time, errors with file, line, field.

Formats are told apart by the first record ("auto") or named:

=============  =====================================================================================
counterfact    a JSON array; the original records (``requested_rewrite`` …) or EasyEdit's flat ones
zsre           MEND's zsRE fields: ``src``, ``alt``, ``rephrase``, ``loc``, ``loc_ans``
easyedit       KnowEdit-style: ``prompt``, ``target_new``, ``locality: {group: [..]}`` and so on
jsonl          one object per line with the fields of `Edit`
csv            a header line; lists joined by ``|``
=============  =====================================================================================
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from mend_core.datasets.edit import Edit, PromptAnswer
from mend_core.datasets.stream import json_items, text_lines
from mend_core.errors import DataError

Kind = Literal["auto", "counterfact", "zsre", "easyedit", "jsonl", "csv"]
KINDS: tuple[str, ...] = ("auto", "counterfact", "zsre", "easyedit", "jsonl", "csv")


class Record:
    """A raw object with its place, whose fields are read with type checks.

    Attributes:
        path: The file.
        line: Where it starts, from 1.
        nth: Which of the records that start on this line it is, from 1: an array may be written on
            a single line.
        fields: Name to value.
    """

    def __init__(self, path: str, line: int, fields: Any, nth: int = 1) -> None:
        self.path, self.line, self.nth = path, line, nth
        if not isinstance(fields, Mapping):
            raise DataError(
                path, line, None, f"expected an object with fields, found {_type(fields)}"
            )
        self.fields: Mapping[str, Any] = fields

    def error(self, field: str | None, message: str) -> DataError:
        """A `DataError` at this record."""
        return DataError(self.path, self.line, field, message)

    def text(self, *names: str, required: bool = True) -> str | None:
        """The first present field as non-empty text; None when absent and not required."""
        for name in names:
            value = self.fields.get(name)
            if value is None or value == "":
                continue
            if not isinstance(value, str):
                raise self.error(name, f"expected text, found {_type(value)}")
            if not value.strip():
                raise self.error(name, "is blank")
            return value
        if required:
            raise self.error(names[0], "is missing or empty")
        return None

    def need(self, *names: str) -> str:
        """The first present field as non-empty text."""
        value = self.text(*names)
        assert value is not None
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A field holding text or a list of texts; empty when absent."""
        value = self.fields.get(name)
        if value is None or value == "":
            return ()
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(i, str) and i.strip() for i in items):
            raise self.error(name, "expected text or a list of non-empty texts")
        return tuple(items)

    def pairs(self, name: str) -> tuple[PromptAnswer, ...]:
        """A field holding prompts, {prompt, answer} objects, or groups of them."""
        value = self.fields.get(name)
        if value is None or value == "":
            return ()
        return tuple(self._pairs(name, value))

    def _pairs(self, name: str, value: Any) -> Iterator[PromptAnswer]:
        if isinstance(value, str) and value.strip():
            yield PromptAnswer(value)
        elif isinstance(value, list):
            for item in value:
                yield from self._pairs(name, item)
        elif isinstance(value, Mapping) and "prompt" in value:
            prompt = value["prompt"]
            answer = value.get("answer", value.get("ground_truth", value.get("target")))
            while isinstance(answer, list):  # KnowEdit nests lists of equivalent answers
                answer = answer[0] if answer else None
            if not isinstance(prompt, str) or not prompt.strip():
                raise self.error(name, "an entry has no prompt")
            if answer is not None and not isinstance(answer, str):
                raise self.error(name, f"an answer is {_type(answer)}, expected text")
            yield PromptAnswer(prompt, answer or None)
        elif isinstance(value, Mapping) and all(isinstance(v, list) for v in value.values()):
            for group in value.values():
                yield from self._pairs(name, group)
        else:
            raise self.error(
                name, f"expected prompts or objects with a prompt, found {_type(value)}"
            )


def read_edits(
    path: str | Path,
    kind: Kind = "auto",
    *,
    on_error: Callable[[DataError], None] | None = None,
) -> Iterator[Edit]:
    """Stream the edits of a file.

    Args:
        path: A ``.json``, ``.jsonl`` or ``.csv`` file.
        kind: One of `KINDS`; "auto" looks at the name's ending and each record's fields.
        on_error: Called with the error of a record that lacks a field, which is then skipped;
            None raises it. (Public data sets have such records.)

    Raises:
        DataError: No such file, not UTF-8, a broken or over-long line, a missing field; with path,
            line and field. Raised when the record is reached: earlier ones have been yielded.
    """
    path = Path(path)
    if kind not in KINDS:
        raise DataError(str(path), None, None, f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    if not path.is_file():
        raise DataError(str(path), None, None, "no such file")
    seen: set[str] = set()
    for record in _records(path, kind):
        try:
            edit = _PARSERS[_kind_of(record, kind)](record)
            if edit.id in seen:
                raise record.error("id", f"{edit.id!r} was already used by an earlier record")
        except DataError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        seen.add(edit.id)
        yield edit


def _records(path: Path, kind: str) -> Iterator[Record]:
    name = str(path)
    if kind == "csv" or (kind == "auto" and path.suffix.lower() == ".csv"):
        yield from _csv_records(path)
        return
    if kind == "jsonl" or (kind == "auto" and path.suffix.lower() in {".jsonl", ".ndjson"}):
        for line, text in text_lines(path):
            if text.strip():
                try:
                    fields = json.loads(text)
                except ValueError as error:
                    raise DataError(name, line, None, f"not JSON: {error}") from error
                yield Record(name, line, fields)
        return
    nth: Counter[int] = Counter()
    for line, fields in json_items(path):
        nth[line] += 1
        yield Record(name, line, fields, nth[line])


def _csv_records(path: Path) -> Iterator[Record]:
    name = str(path)
    line = 1

    def lines() -> Iterable[str]:
        nonlocal line
        for line, text in text_lines(path):  # noqa: B007 - shared with the error below
            yield text

    reader = csv.DictReader(lines(), strict=True)
    try:
        for row in reader:
            if None in row:
                raise DataError(name, line, None, "has more cells than the header names")
            fields: dict[str, Any] = {k: v for k, v in row.items() if v}
            for many in ("paraphrases", "locality", "portability"):
                if many in fields:
                    fields[many] = [p for p in str(fields[many]).split("|") if p.strip()]
            yield Record(name, line, fields)
    except csv.Error as error:
        raise DataError(name, line, None, f"not CSV: {error}") from error


def _kind_of(record: Record, kind: str) -> str:
    if kind not in {"auto", "jsonl", "csv"}:
        return kind
    f = record.fields
    if "requested_rewrite" in f:
        return "counterfact"
    if "src" in f and "alt" in f:
        return "zsre"
    if "target" not in f and "target_new" in f:
        flat = "rephrase_prompt" in f or "locality_prompt" in f
        return "counterfact" if flat else "easyedit"
    return "jsonl"


def _id(record: Record, *names: str) -> str:
    for name in names:
        value = record.fields.get(name)
        if isinstance(value, (str, int)) and not isinstance(value, bool) and value != "":
            return str(value)
    place = f"{Path(record.path).stem}:{record.line}"
    return place if record.nth == 1 else f"{place}.{record.nth}"


def _counterfact(record: Record) -> Edit:
    rewrite = record.fields.get("requested_rewrite")
    if rewrite is not None:
        inner = Record(record.path, record.line, rewrite)
        subject = inner.need("subject")
        target = Record(record.path, record.line, inner.fields.get("target_new"))
        return Edit(
            id=_id(record, "case_id"),
            prompt=inner.need("prompt").replace("{}", subject),
            target=target.need("str").strip(),
            subject=subject,
            paraphrases=record.texts("paraphrase_prompts"),
            locality=record.pairs("neighborhood_prompts"),
        )
    return Edit(
        id=_id(record, "case_id", "id"),
        prompt=record.need("prompt"),
        target=record.need("target_new").strip(),
        subject=record.text("subject", required=False),
        paraphrases=record.texts("rephrase_prompt"),
        locality=_with_answer(record, "locality_prompt", "locality_ground_truth"),
    )


def _zsre(record: Record) -> Edit:
    return Edit(
        id=_id(record, "id", "case_id"),
        prompt=record.need("src"),
        target=record.need("alt").strip(),
        subject=record.text("subject", required=False),
        paraphrases=record.texts("rephrase"),
        locality=_with_answer(record, "loc", "loc_ans"),
    )


def _easyedit(record: Record) -> Edit:
    return Edit(
        id=_id(record, "id", "case_id"),
        prompt=record.need("prompt", "src"),
        target=record.need("target_new", "alt").strip(),
        subject=record.text("subject", required=False),
        paraphrases=record.texts("rephrase_prompt") or record.texts("rephrase"),
        locality=record.pairs("locality"),
        portability=record.pairs("portability"),
    )


def _plain(record: Record) -> Edit:
    return Edit(
        id=_id(record, "id"),
        prompt=record.need("prompt"),
        target=record.need("target").strip(),
        subject=record.text("subject", required=False),
        paraphrases=record.texts("paraphrases"),
        locality=record.pairs("locality"),
        portability=record.pairs("portability"),
    )


def _with_answer(record: Record, prompt: str, answer: str) -> tuple[PromptAnswer, ...]:
    prompts = record.texts(prompt)
    answers = record.texts(answer)
    if len(prompts) != len(answers):
        answers = ()
    return tuple(PromptAnswer(p, answers[i] if answers else None) for i, p in enumerate(prompts))


def _type(value: object) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


_PARSERS: dict[str, Callable[[Record], Edit]] = {
    "counterfact": _counterfact,
    "zsre": _zsre,
    "easyedit": _easyedit,
    "jsonl": _plain,
    "csv": _plain,
}
