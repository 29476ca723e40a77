"""Probe suites: frozen, digest-named sets of regression checks, one JSON object a line.

A suite says what is asked and what would count as unchanged or right; it holds no scores. Its
identity is the digest of its canonical lines (RFC 8785 JSON, sorted by item id), so the order in
which items were collected does not matter and a result can always name exactly what was asked.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Self

import rfc8785

from mend_core.datasets.edit import Edit
from mend_core.errors import SuiteInvalid

RETAINED_SLICE = "retained"
"""Slice of edits from earlier versions: compared with the parent, not demanded."""

GIVEN_SLICE = "neighbour/given"
"""Slice of the locality prompts that came with an edit."""

RELATION_SLICE = "neighbour/relation"
"""Slice of an edit's own statement about other subjects, made by rule."""

SUBJECT_SLICE = "neighbour/subject"
"""Slice of other statements about an edit's subject, made by rule."""

STANDING = "standing"
"""Begins the slices of the standing suite, which every version is asked: ``standing/KIND``."""


def is_standing(slice_name: str) -> bool:
    """Whether a slice belongs to the standing suite."""
    return slice_name.partition("/")[0] == STANDING


ANSWER_TOKENS_DEFAULT = 6
"""Longest free-running answer to a prompt with a known answer, in tokens (never less than the
answer expected and two more)."""

GOLDEN_TOKENS_DEFAULT = 32
"""Longest free-running answer to a golden prompt, in tokens."""

LOCALITY_TOKENS_DEFAULT = 5
"""Tokens of the base's own answer that a locality probe compares."""

HEALTH_TOKENS_DEFAULT = 64
"""Tokens generated to judge repetition and length."""

MAX_NEW_TOKENS_LIMIT = 512
"""A probe that generates more than this is a benchmark, not a probe."""

TEXT_LIMIT = 100_000
"""Longest prompt or text of one item, in characters."""


Compare = Literal["whole", "lead"]
"""How an answer that must not change is compared: all of it, or as far as it says something."""


class ProbeKind(StrEnum):
    """What an item asks; the value is the word in files, tables and reports."""

    EDIT = "edit"
    """An edit's own prompt; the answer must start with the target."""
    PARAPHRASE = "paraphrase"
    """Another way to ask the same thing (generality)."""
    PORTABILITY = "portability"
    """A prompt whose answer follows from the edit."""
    LOCALITY = "locality"
    """A prompt whose answer must stay the base's own."""
    PROTECTED = "protected"
    """As locality, with zero tolerance."""
    CAPABILITY = "capability"
    """A question with a known answer, compared pairwise with parent and base."""
    MUST_CONTAIN = "must_contain"
    """A golden prompt: every one of `expect` occurs in the answer."""
    MUST_NOT_CONTAIN = "must_not_contain"
    """A golden prompt: none of `expect` occurs in the answer."""
    PERPLEXITY = "perplexity"
    """A text (in `prompt`) on which perplexity and KL drift are measured."""
    HEALTH = "health"
    """A prompt for free text, judged by repetition and length."""


TARGET_KINDS = frozenset(
    {ProbeKind.EDIT, ProbeKind.PARAPHRASE, ProbeKind.PORTABILITY, ProbeKind.CAPABILITY}
)
"""Kinds with exactly one expected answer."""

UNCHANGED_KINDS = frozenset({ProbeKind.LOCALITY, ProbeKind.PROTECTED})
"""Kinds scored against the base's own answer; they carry no expected answer."""

GOLDEN_KINDS = frozenset({ProbeKind.MUST_CONTAIN, ProbeKind.MUST_NOT_CONTAIN})
"""Kinds with one or more strings to find, or not to find, in the answer."""

_EDIT_KINDS = frozenset({ProbeKind.EDIT, ProbeKind.PARAPHRASE, ProbeKind.PORTABILITY})

_DEFAULT_TOKENS: dict[ProbeKind, int] = {
    ProbeKind.LOCALITY: LOCALITY_TOKENS_DEFAULT,
    ProbeKind.PROTECTED: LOCALITY_TOKENS_DEFAULT,
    ProbeKind.MUST_CONTAIN: GOLDEN_TOKENS_DEFAULT,
    ProbeKind.MUST_NOT_CONTAIN: GOLDEN_TOKENS_DEFAULT,
    ProbeKind.HEALTH: HEALTH_TOKENS_DEFAULT,
    ProbeKind.PERPLEXITY: 0,
}


@dataclass(frozen=True, slots=True)
class ProbeItem:
    """One check.

    Attributes:
        id: Unique within a suite; results and flips carry it.
        kind: What is asked.
        prompt: Text the model is given; for perplexity the text itself.
        expect: One answer for kinds with a target; strings for golden kinds; else empty.
        slice: Name of the group whose regressions are judged together.
        edit_id: The edit it was built from, if any.
        never_for_tuning: A canary: no training or threshold may ever look at it.
        max_new_tokens: Longest free-running answer, in tokens; 0 means the kind's default.
        compare: For locality: "whole" compares all of the answer, "lead" its first content word or
            name (`verdicts.lead`), so that only a change that a person would notice counts.

    Raises:
        SuiteInvalid: A field breaks a rule of the kind.
    """

    id: str
    kind: ProbeKind
    prompt: str
    expect: tuple[str, ...] = ()
    slice: str = "all"
    edit_id: str | None = None
    never_for_tuning: bool = False
    max_new_tokens: int = 0
    compare: Compare = "whole"

    def __post_init__(self) -> None:
        """Fill the default length and check the rules of the kind."""
        if self.max_new_tokens == 0:
            tokens = _DEFAULT_TOKENS.get(self.kind, ANSWER_TOKENS_DEFAULT)
            object.__setattr__(self, "max_new_tokens", tokens)
        problem = self._problem()
        if problem is not None:
            raise SuiteInvalid(f"probe item {self.id!r}: {problem}")

    def _problem(self) -> str | None:
        kind, count = self.kind.value, len(self.expect)
        rules = (
            (not self.id, "id is empty; give each item a unique name"),
            (not self.prompt.strip(), "prompt is empty"),
            (
                len(self.prompt) > TEXT_LIMIT,
                f"prompt has {len(self.prompt)} characters; the limit is {TEXT_LIMIT}",
            ),
            (not self.slice, "slice is empty; leave it out for 'all'"),
            (
                not 0 <= self.max_new_tokens <= MAX_NEW_TOKENS_LIMIT,
                f"max_new_tokens must be 0 to {MAX_NEW_TOKENS_LIMIT}",
            ),
            (any(not text.strip() for text in self.expect), "expect holds an empty string"),
            (self.compare not in ("whole", "lead"), "compare must be 'whole' or 'lead'"),
            (
                self.compare == "lead" and self.kind is not ProbeKind.LOCALITY,
                "compare: 'lead' is for kind locality",
            ),
            (
                self.kind in TARGET_KINDS and count != 1,
                f"kind {kind} needs exactly one answer in expect",
            ),
            (
                self.kind in GOLDEN_KINDS and count == 0,
                f"kind {kind} needs at least one string in expect",
            ),
            (
                self.kind not in TARGET_KINDS | GOLDEN_KINDS and count > 0,
                f"kind {kind} takes no expect",
            ),
        )
        return next((says for broken, says in rules if broken), None)

    def to_dict(self) -> dict[str, Any]:
        """The item as JSON-ready values, all fields present."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"kind": self.kind.value, "expect": list(self.expect)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Read an item; unknown fields, unknown kinds and wrong types are refused.

        Raises:
            SuiteInvalid: Says which field and what was expected.
        """
        values: dict[str, Any] = {}
        for name, value in record.items():
            check = _FIELD_TYPES.get(name)
            if check is None:
                known = ", ".join(sorted(_FIELD_TYPES))
                raise SuiteInvalid(f"unknown field {name!r}; known fields: {known}")
            # bool is an int in Python; a length of `true` is a mistake, not 1.
            if not isinstance(value, check) or (check is int and isinstance(value, bool)):
                raise SuiteInvalid(f"field {name!r}: got {type(value).__name__}")
            values[name] = value
        missing = [name for name in ("id", "kind", "prompt") if name not in values]
        if missing:
            raise SuiteInvalid(f"field {missing[0]!r} is missing")
        try:
            values["kind"] = ProbeKind(values["kind"])
        except ValueError:
            known = ", ".join(kind.value for kind in ProbeKind)
            raise SuiteInvalid(
                f"field 'kind': unknown kind {values['kind']!r}; known kinds: {known}"
            ) from None
        expect = values.get("expect", [])
        if not all(isinstance(text, str) for text in expect):
            raise SuiteInvalid("field 'expect': must be a list of strings")
        return cls(**(values | {"expect": tuple(expect)}))


_FIELD_TYPES: dict[str, Any] = {
    "id": str,
    "kind": str,
    "prompt": str,
    "expect": list,
    "slice": str,
    "edit_id": str | None,
    "never_for_tuning": bool,
    "max_new_tokens": int,
    "compare": str,
}


@dataclass(frozen=True)
class ProbeSuite:
    """A frozen set of items, kept sorted by id.

    Attributes:
        items: The checks, sorted by id whatever order they were given in.
        digest: "sha256:…" of the canonical lines.

    Raises:
        SuiteInvalid: Two items share an id.
    """

    items: tuple[ProbeItem, ...]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        """Sort, refuse duplicate ids, name by digest."""
        ordered = tuple(sorted(self.items, key=lambda item: item.id))
        for before, after in itertools.pairwise(ordered):
            if before.id == after.id:
                raise SuiteInvalid(f"duplicate probe item id {after.id!r}; ids must be unique")
        object.__setattr__(self, "items", ordered)
        digest = hashlib.sha256(self.to_jsonl().encode()).hexdigest()
        object.__setattr__(self, "digest", f"sha256:{digest}")

    def __len__(self) -> int:
        """Number of items."""
        return len(self.items)

    def to_jsonl(self) -> str:
        """The canonical text: RFC 8785 JSON, one item a line, sorted by id."""
        return "".join(rfc8785.dumps(item.to_dict()).decode() + "\n" for item in self.items)

    def for_tuning(self) -> ProbeSuite:
        """The suite without its canaries: what a tuner or a person setting thresholds may see."""
        return ProbeSuite(tuple(item for item in self.items if not item.never_for_tuning))

    def of(self, *kinds: ProbeKind) -> tuple[ProbeItem, ...]:
        """The items of these kinds."""
        return tuple(item for item in self.items if item.kind in kinds)

    def save(self, folder: Path) -> Path:
        """Write `<digest hex>.jsonl` into a folder, atomically; an existing file is left alone."""
        path = folder / f"{self.digest.removeprefix('sha256:')}.jsonl"
        if path.exists():
            return path
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as out:
                out.write(self.to_jsonl())
                out.flush()
                os.fsync(out.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        return path

    @classmethod
    def load(cls, path: Path, *, expected_digest: str | None = None) -> Self:
        """Read a suite file.

        Raises:
            SuiteInvalid: The file is missing, not UTF-8, malformed (line number named) or not the
                suite that was expected.
        """
        try:
            text = path.read_bytes().decode()
        except OSError as error:
            raise SuiteInvalid(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise SuiteInvalid(f"{path}: not UTF-8 at byte {error.start}") from error
        suite = cls.parse(text, name=str(path))
        if expected_digest is not None and suite.digest != expected_digest:
            raise SuiteInvalid(
                f"{path}: is {suite.digest}, expected {expected_digest}; the file was altered or"
                " another suite was put in its place"
            )
        return suite

    @classmethod
    def parse(cls, text: str, *, name: str = "suite") -> Self:
        """Read JSONL text; blank lines are skipped.

        Raises:
            SuiteInvalid: Bad JSON, unknown kind or field, duplicate id: with name and line number.
        """
        items: list[ProbeItem] = []
        lines: dict[str, int] = {}
        # split on \n only: JSON strings may hold other Unicode line separators unescaped.
        for number, line in enumerate(text.split("\n"), start=1):
            if not line.strip():
                continue
            where = f"{name}, line {number}"
            try:
                item = _read_item(line)
            except SuiteInvalid as error:
                raise SuiteInvalid(f"{where}: {error}") from error
            if item.id in lines:
                first = lines[item.id]
                raise SuiteInvalid(
                    f"{where}: duplicate probe item id {item.id!r}, first on line {first}"
                )
            lines[item.id] = number
            items.append(item)
        return cls(tuple(items))


def _read_item(line: str) -> ProbeItem:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise SuiteInvalid(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise SuiteInvalid("nested too deeply") from error
    if not isinstance(record, dict):
        raise SuiteInvalid(f"expected a JSON object, got {type(record).__name__}")
    return ProbeItem.from_dict(record)


_RESERVED = re.compile(r"(neighbour|standing)/.*|standing|retained|new", re.DOTALL)


def refuse_reserved(items: Iterable[ProbeItem]) -> None:
    """Refuse items of a person's own that stand in a slice the service fills itself.

    An item that never breaks would thin out the losses of the ring it stands in.

    Raises:
        SuiteInvalid: One does.
    """
    for item in items:
        if _RESERVED.fullmatch(item.slice):
            raise SuiteInvalid(
                f"probe item {item.id!r}: slice {item.slice!r} is filled by the service itself; "
                "choose another name"
            )


def normalise(prompt: str) -> str:
    """A prompt for comparison: case and runs of white space do not matter."""
    return re.sub(r"\s+", " ", prompt).strip().casefold()


def build_suite(
    edits: Iterable[Edit],
    extra: Iterable[ProbeItem] = (),
    *,
    retained: Iterable[Edit] = (),
    compare: Compare = "whole",
) -> ProbeSuite:
    """Build a version's suite from its edits and the user's own items.

    Every new edit gives its own prompt, its paraphrases, locality and portability prompts. Every
    retained edit (live before this version) gives its own prompt in slice "retained", unless a new
    edit changes that very prompt.
    A locality prompt that several edits share is asked once, so that one answer is not counted as
    many; one that is itself the prompt or a paraphrase of an edit here is left out, since it must
    change. Protected items are never left out: there a conflict is for the gate to report.

    Args:
        edits: Edits that are new in the version.
        extra: The user's own items, and those of a general suite.
        retained: Edits of the parent that are asked again; see `sample_edits`.
        compare: How answers to the edits' locality prompts are compared. Benchmarks compare whole
            answers, as published tables do.

    Raises:
        SuiteInvalid: Duplicate ids, or an item breaks a rule of its kind.
    """
    new = list(edits)
    extra = tuple(extra)
    asked_anew = {normalise(edit.prompt) for edit in new}
    old = [edit for edit in retained if normalise(edit.prompt) not in asked_anew]
    changing = {normalise(edit.prompt) for edit in (*new, *old)}
    changing.update(normalise(text) for edit in new for text in edit.paraphrases)
    items: list[ProbeItem] = []
    for edit in new:
        items.extend(_items_of(edit, compare))
    items.extend(
        ProbeItem(
            f"retained:{edit.id}",
            ProbeKind.EDIT,
            edit.prompt,
            (edit.target,),
            RETAINED_SLICE,
            edit.id,
        )
        for edit in old
    )
    asked: set[str] = set()
    kept: list[ProbeItem] = []
    # Sorted so that which of several equal locality prompts stays does not depend on arrival; one
    # that came with an edit never takes the place of one that is judged.
    for item in sorted(
        (*items, *extra), key=lambda i: (i.kind.value, i.slice == GIVEN_SLICE, i.id)
    ):
        if item.kind is ProbeKind.LOCALITY:
            key = normalise(item.prompt)
            if key in changing or key in asked:
                continue
            asked.add(key)
        kept.append(item)
    return ProbeSuite(tuple(kept))


def _items_of(edit: Edit, compare: Compare) -> list[ProbeItem]:
    items = [
        ProbeItem(f"edit:{edit.id}", ProbeKind.EDIT, edit.prompt, (edit.target,), "new", edit.id)
    ]
    items.extend(
        ProbeItem(
            f"paraphrase:{edit.id}:{n}", ProbeKind.PARAPHRASE, text, (edit.target,), "new", edit.id
        )
        for n, text in enumerate(edit.paraphrases)
    )
    items.extend(
        ProbeItem(
            f"locality:{edit.id}:{n}",
            ProbeKind.LOCALITY,
            pair.prompt,
            (),
            GIVEN_SLICE,
            edit.id,
            compare=compare,
        )
        for n, pair in enumerate(edit.locality)
    )
    items.extend(
        ProbeItem(
            f"portability:{edit.id}:{n}",
            ProbeKind.PORTABILITY,
            pair.prompt,
            (pair.answer,),
            "new",
            edit.id,
        )
        for n, pair in enumerate(edit.portability)
        if pair.answer is not None
    )
    return items


def sample_edits(edits: Sequence[Edit], limit: int, *, seed: str = "") -> list[Edit]:
    """Choose at most `limit` edits by the hash of their id: the same ones whatever the order."""

    def key(edit: Edit) -> bytes:
        return hashlib.sha256(f"{seed}\x00{edit.id}".encode()).digest()

    return sorted(edits, key=key)[:limit]
