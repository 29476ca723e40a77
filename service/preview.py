"""What would come of edits that nobody has submitted yet; nothing is changed.

What the ledger would do with them is found by submitting them and taking it back in the same
transaction, so what a person is told is what happens. What the model answers today, a worker says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection

from ledger import edits
from ledger.errors import LedgerError
from ledger.records import Edit, Model, Submitted
from ledger.requests import EditRequest
from ledger.states import EditState
from service import waiting
from service.errors import ServiceError
from service.session import Session
from service.waiting import Hindrance

LIMIT = 500
"""Edits that one preview looks at."""

WORKER_SECONDS = 120.0
"""How long a worker is waited for; the first question may load the model."""

STANDING = (
    EditState.AWAITING_APPROVAL,
    EditState.SUBMITTED,
    EditState.QUEUED,
    EditState.CLAIMED,
    EditState.APPLIED,
    EditState.LIVE,
)
"""States of edits that are live or may still become so."""

SHORTEST_CUT = 3
"""Letters of a subject that a prompt must end with to be taken for cut short inside it."""


class Fate(StrEnum):
    """What the ledger would do with an edit."""

    NEW = "new"
    DUPLICATE = "duplicate"
    REPLACES_WAITING = "replaces_waiting"
    REPLACES_LIVE = "replaces_live"
    CONTRADICTS = "contradicts"
    NEEDS_APPROVAL = "needs_approval"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class SameFact:
    """An edit of the same fact that is live or waits."""

    id: int
    state: EditState
    target: str
    submitted_by: str


@dataclass(frozen=True, slots=True)
class Said:
    """A prompt with today's answer; None where it was not asked."""

    prompt: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class EditPreview:
    """What would come of one edit.

    Attributes:
        number: Its place among those that were given, from 1.
        prompt: What is asked.
        target: What it should answer.
        fate: What the ledger would do with it.
        edit: The edit it repeats, or contradicts; None for another fate, or one given here.
        same_fact: Edits of the same fact that are live or wait.
        same_as: Number of the one before it, of those given here, that is about the same fact.
        answer: Today's answer to the prompt; None where it was not asked.
        knows: Whether that is the target already; None where nobody can tell.
        subject: Words of the prompt that the editor will put it at; None where it has no such
            notion, or was not asked.
        paraphrases: Today's answers.
        locality: Today's answers.
        problems: What should be mended before it is submitted.
    """

    number: int
    prompt: str
    target: str
    fate: Fate
    edit: int | None
    same_fact: tuple[SameFact, ...]
    same_as: int | None
    answer: str | None
    knows: bool | None
    subject: str | None
    paraphrases: tuple[Said, ...]
    locality: tuple[Said, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Counts:
    """Edits of a preview.

    Attributes:
        given: All of them.
        previewed: Those that were looked at: the first `LIMIT`.
        asked: Those whose prompt a worker asked.
        known: Those that the model answers already.
        of_live_facts: Those of a fact that is live.
        of_waiting_facts: Those of a fact that is not live but waits or is in work.
        need_approval: Those that would wait for a person.
        duplicates: Those that were submitted before.
        with_problems: Those with problems.
    """

    given: int
    previewed: int
    asked: int
    known: int
    of_live_facts: int
    of_waiting_facts: int
    need_approval: int
    duplicates: int
    with_problems: int


@dataclass(frozen=True, slots=True)
class Preview:
    """What would come of some edits.

    Attributes:
        model: The model's name.
        version: The version that was asked; None where none was.
        edits: In the order given.
        counts: How many are what.
        hindrances: What would keep them waiting.
        not_asked: Why no worker was heard; None where one was.
    """

    model: str
    version: int | None
    edits: tuple[EditPreview, ...]
    counts: Counts
    hindrances: Mapping[Hindrance, str]
    not_asked: str | None


def preview(
    session: Session,
    model: Model,
    requests: Sequence[EditRequest],
    *,
    actor: str,
    tell: Callable[[str], None] | None = None,
) -> Preview:
    """What would come of edits; nothing is written but the job that asks a worker.

    Args:
        session: The ledger.
        model: The model.
        requests: The edits; only the first `LIMIT` are looked at.
        actor: Who would submit them.
        tell: Receives news of the job.
    """
    looked = list(requests[:LIMIT])
    with session.transaction() as connection:
        hindrances = waiting.hindrances_of(connection, model)
        standing = _standing(connection, model, looked)
        fates = _try(connection, model, looked, actor)
    heard: Mapping[str, Any] = {}
    not_asked = None
    try:
        heard = waiting.run_job(
            session,
            "preview",
            {"edits": [_payload(request) for request in looked]},
            model_id=model.id,
            actor=actor,
            timeout=WORKER_SECONDS,
            tell=tell,
        )
    except ServiceError as error:
        not_asked = str(error)
    made = _joined(looked, standing, fates, heard.get("edits") or [{}] * len(looked))
    counts = _counted(made, len(requests))
    return Preview(model.name, heard.get("version"), made, counts, hindrances, not_asked)


def _payload(request: EditRequest) -> dict[str, Any]:
    fields = {"prompt", "target", "subject", "paraphrases", "locality"}
    return request.model_dump(mode="json", include=fields)


def _standing(
    conn: Connection, model: Model, requests: Sequence[EditRequest]
) -> dict[str, list[Edit]]:
    """Fact key → edits of it that are live or wait."""
    found: dict[str, list[Edit]] = {}
    keys = sorted({request.fact_key for request in requests})
    for edit in edits.of_facts(conn, model.id, keys, states=STANDING):
        found.setdefault(edit.fact_key, []).append(edit)
    return found


def _try(
    conn: Connection, model: Model, requests: Sequence[EditRequest], actor: str
) -> list[Submitted | LedgerError]:
    """What submitting them gives, one by one; all of it is taken back."""
    found: list[Submitted | LedgerError] = []
    trial = conn.begin_nested()
    try:
        for request in requests:
            try:
                with conn.begin_nested():
                    found.append(edits.submit(conn, model.id, request, actor=actor))
            except LedgerError as error:
                found.append(error)
    finally:
        trial.rollback()
    return found


def _joined(
    requests: Sequence[EditRequest],
    standing: Mapping[str, Sequence[Edit]],
    fates: Sequence[Submitted | LedgerError],
    heard: Sequence[Mapping[str, Any]],
) -> tuple[EditPreview, ...]:
    made = []
    seen: dict[str, int] = {}
    tried = {f.edit_id for f in fates if isinstance(f, Submitted) and not f.duplicate}
    for number, (request, fate, said) in enumerate(
        zip(requests, fates, heard, strict=True), start=1
    ):
        same = standing.get(request.fact_key, ())
        met = _other(fate)
        made.append(
            EditPreview(
                number=number,
                prompt=request.prompt,
                target=request.target,
                fate=_fate(fate, same),
                edit=None if met in tried else met,
                same_fact=tuple(SameFact(e.id, e.state, e.target, e.submitted_by) for e in same),
                same_as=seen.get(request.fact_key),
                answer=said.get("answer"),
                knows=said.get("knows"),
                subject=said.get("subject"),
                paraphrases=_said(request.paraphrases, said.get("paraphrases")),
                locality=_said([one.prompt for one in request.locality], said.get("locality")),
                problems=tuple(_problems(request, fate, said)),
            )
        )
        seen[request.fact_key] = number
    return tuple(made)


def _other(fate: Submitted | LedgerError) -> int | None:
    """The edit that one meets in the ledger."""
    if isinstance(fate, LedgerError):
        return None
    return fate.edit_id if fate.duplicate else fate.contradicts


def _fate(fate: Submitted | LedgerError, same: Sequence[Edit]) -> Fate:
    if isinstance(fate, LedgerError):
        return Fate.REFUSED
    live = any(edit.state is EditState.LIVE for edit in same)
    for given, found in (
        (fate.duplicate, Fate.DUPLICATE),
        (fate.contradicts is not None, Fate.CONTRADICTS),
        (fate.state is EditState.AWAITING_APPROVAL, Fate.NEEDS_APPROVAL),
        (live, Fate.REPLACES_LIVE),
        (fate.superseded, Fate.REPLACES_WAITING),
    ):
        if given:
            return found
    return Fate.NEW


def _said(prompts: Sequence[str], answers: Sequence[str | None] | None) -> tuple[Said, ...]:
    heard = answers or [None] * len(prompts)
    return tuple(Said(prompt, answer) for prompt, answer in zip(prompts, heard, strict=True))


def _problems(
    request: EditRequest, fate: Submitted | LedgerError, said: Mapping[str, Any]
) -> list[str]:
    subject = subject_problem(request.prompt, request.subject)
    return [
        *([str(fate)] if isinstance(fate, LedgerError) else []),
        *([subject] if subject else []),
        *said.get("problems", ()),
    ]


def subject_problem(prompt: str, subject: str | None) -> str | None:
    """Why a subject does not fit its prompt; None where it does, or none was given."""
    if not subject or subject in prompt:
        return None
    ending = prompt.rstrip()
    cut = any(ending.endswith(subject[:n]) for n in range(SHORTEST_CUT, len(subject)))
    if cut:
        return f"the prompt ends inside the subject {subject!r}: write the subject out"
    return f"the subject {subject!r} is not in the prompt, letter for letter: another is used"


def _counted(made: Sequence[EditPreview], given: int) -> Counts:
    live = [e for e in made if any(one.state is EditState.LIVE for one in e.same_fact)]
    waits = (Fate.CONTRADICTS, Fate.NEEDS_APPROVAL)
    return Counts(
        given=given,
        previewed=len(made),
        asked=sum(e.answer is not None for e in made),
        known=sum(e.knows is True for e in made),
        of_live_facts=len(live),
        of_waiting_facts=sum(bool(e.same_fact) for e in made) - len(live),
        need_approval=sum(e.fate in waits for e in made),
        duplicates=sum(e.fate is Fate.DUPLICATE for e in made),
        with_problems=sum(bool(e.problems) for e in made),
    )
