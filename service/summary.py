"""Did it work, and what else changed? What some edits came to, once no worker is at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection

from ledger import edits, gates, versions
from ledger.records import Edit, Version
from ledger.states import EditState

ABOUT_AN_EDIT = frozenset({"edit", "paraphrase", "portability"})
"""Kinds of probes whose answer an edit means to change."""

MUST_STAY = frozenset({"locality", "protected"})
"""Kinds of probes whose answer nothing may change."""

NO_ANSWER = frozenset({"perplexity", "health"})
"""Kinds of probes that measure text; no single answer of theirs breaks."""


class NextStep(StrEnum):
    """What a person can do about an edit."""

    NOTHING = "nothing"
    APPROVE = "approve"
    JUDGE_VERSION = "judge_version"
    PROMOTE = "promote"
    LOOK = "look"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Answer:
    """One probe: what was asked, what base and version answered, and whether that is as wanted.

    Attributes:
        slice: The group of probes it belongs to, e.g. "neighbour/relation".
        version: Number of the version that gave `after`.
    """

    kind: str
    slice: str
    prompt: str
    before: str
    after: str
    good: bool
    version: int


@dataclass(frozen=True, slots=True)
class EditSummary:
    """What became of one edit.

    Attributes:
        version: Number of the newest version that brought it in; None where none did.
        gate: What that version's gate said.
        own: The answer to its own prompt; None where it was never asked.
        paraphrases: Answers to its paraphrases.
        neighbours: Answers about it that must stay.
        why: Why it is not live; None where nothing was kept, or it is.
        next: What a person can do.
    """

    id: int
    state: EditState
    prompt: str
    target: str
    version: int | None
    gate: str | None
    own: Answer | None
    paraphrases: tuple[Answer, ...]
    neighbours: tuple[Answer, ...]
    why: str | None
    next: NextStep


@dataclass(frozen=True, slots=True)
class Summary:
    """What some edits came to.

    Attributes:
        edits: One by one, in the order of their ids.
        others_asked: Other answers that were asked of the versions below; 0: nothing else was.
        broken: Other answers that were as wanted in the parent and are not in those versions.
        versions: Numbers of the versions `broken` speaks of: those with these edits in them, or,
            where all were set aside, those that failed with them.
    """

    edits: tuple[EditSummary, ...]
    others_asked: int
    broken: tuple[Answer, ...]
    versions: tuple[int, ...]

    @property
    def all_live(self) -> bool:
        """Whether every edit is in production."""
        return all(edit.state is EditState.LIVE for edit in self.edits)


Rows = Sequence[Mapping[str, Any]]


def summarise(connection: Connection, ids: Sequence[int]) -> Summary:
    """Reads what became of edits from the probe rows of the versions that brought them in."""
    found = edits.get_many(connection, ids)
    brought = versions.bringing(connection, ids)
    newest = {edit: chain[-1] for edit, chain in brought.items()}
    rows: dict[int, Rows] = {
        version.id: gates.probes(connection, version.id)
        for version in {v.id: v for chain in brought.values() for v in chain}.values()
    }
    told = tuple(_edit(edit, brought.get(edit.id, []), rows) for edit in found)
    standing = {EditState.LIVE, EditState.APPLIED}
    kept = {v.id: v for e in found if e.state in standing and (v := newest.get(e.id))}
    judged = kept or {v.id: v for v in newest.values()}
    asked = [
        (row, version)
        for version in sorted(judged.values(), key=lambda v: v.number)
        for row in rows[version.id]
        if _elsewhere(row, set(ids))
    ]
    broken = {
        (row["kind"], row["prompt"]): answer_of(row, version.number)
        for row, version in asked
        if row["parent"]["passed"] and not row["passed"]
    }
    return Summary(
        edits=told,
        others_asked=len({(row["kind"], row["prompt"]) for row, _ in asked}),
        broken=tuple(broken.values()),
        versions=tuple(sorted(v.number for v in judged.values())),
    )


def answer_of(row: Mapping[str, Any], version: int) -> Answer:
    """The answer that a row of a version's probe run keeps."""
    return Answer(
        kind=str(row["kind"]),
        slice=str(row["slice"]),
        prompt=str(row["prompt"]),
        before=str(row["base"]["answer"]),
        after=str(row["answer"]),
        good=bool(row["passed"]),
        version=version,
    )


def _elsewhere(row: Mapping[str, Any], ids: set[int]) -> bool:
    if row["kind"] in NO_ANSWER:
        return False
    mine = row.get("edit_id") is not None and int(row["edit_id"]) in ids
    return not (mine and row["kind"] in ABOUT_AN_EDIT)


def _edit(edit: Edit, chain: Sequence[Version], rows: Mapping[int, Rows]) -> EditSummary:
    """One edit; a suite asks a prompt once, however many edits name it, so rows go by prompt."""
    own: Answer | None = None
    paraphrases: dict[str, Answer] = {}
    neighbours: dict[str, Answer] = {}
    named = {prompt for prompt, _ in edit.locality}
    for version in chain:
        for row in rows[version.id]:
            kind, prompt = row["kind"], row["prompt"]
            mine = row.get("edit_id") == str(edit.id)
            if kind == "edit" and prompt == edit.prompt:
                own = answer_of(row, version.number)
            elif kind == "paraphrase" and prompt in edit.paraphrases:
                paraphrases[prompt] = answer_of(row, version.number)
            elif kind in MUST_STAY and (mine or prompt in named):
                neighbours[prompt] = answer_of(row, version.number)
    last = chain[-1] if chain else None
    why, step = _standing(edit, last)
    return EditSummary(
        id=edit.id,
        state=edit.state,
        prompt=edit.prompt,
        target=edit.target,
        version=None if last is None else last.number,
        gate=None if last is None else str(last.gate),
        own=own,
        paraphrases=tuple(paraphrases.values()),
        # What the person gave comes first, then what was made by rule.
        neighbours=tuple(sorted(neighbours.values(), key=lambda a: a.prompt not in named)),
        why=why,
        next=step,
    )


def _standing(edit: Edit, last: Version | None) -> tuple[str | None, NextStep]:  # noqa: PLR0911 - one line per state reads best
    """Why an edit is not live, and what a person can do about it."""
    match edit.state:
        case EditState.LIVE:
            return None, NextStep.NOTHING
        case EditState.AWAITING_APPROVAL:
            return "it waits for a person's approval", NextStep.APPROVE
        case EditState.APPLIED if last is not None and last.proven:
            return f"version {last.number} passed and waits to be promoted", NextStep.PROMOTE
        case EditState.APPLIED:
            number = "its version" if last is None else f"version {last.number}"
            return f"the gate could not decide on {number}", NextStep.JUDGE_VERSION
        case EditState.QUARANTINED | EditState.FAILED:
            return str((edit.evidence or {}).get("reason") or edit.error or ""), NextStep.LOOK
        case EditState.SUPERSEDED:
            return f"edit {edit.superseded_by} of the same fact took its place", NextStep.NOTHING
        case EditState.SUBMITTED | EditState.QUEUED | EditState.CLAIMED:
            return None, NextStep.WAIT
        case _:
            return edit.error, NextStep.NOTHING
