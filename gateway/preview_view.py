"""What would come of edits, in one screen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import typer

from gateway.exit_codes import NOT_POSSIBLE
from gateway.output import note, plain, print_json, say
from gateway.session import actor
from gateway.waiting_view import HINDERED, WIDTH, fitted
from ledger.records import Model
from ledger.requests import EditRequest
from service.preview import Counts, EditPreview, Fate, Preview, preview
from service.session import Session
from service.waiting import Hindrance

LISTED = 16
"""Edits of many that get a line, those with something to look at first."""

PROBLEMS_SHOWN = 5
OTHERS_SHOWN = 3
"""Answers of one kind, and edits of the same fact, that are shown of one edit."""

ANSWER = 50
"""Cells a text gets beside its name."""

FATES = {
    Fate.NEW: "it is queued as a new fact",
    Fate.DUPLICATE: "nothing: edit {edit} is the same request",
    Fate.REPLACES_WAITING: "it is queued and replaces what waits for the same fact",
    Fate.REPLACES_LIVE: "it is queued; once live it replaces the live edit of the fact",
    Fate.CONTRADICTS: "it waits for a person's approval: it contradicts {what}",
    Fate.NEEDS_APPROVAL: "it waits for a person's approval, as every edit of this model",
    Fate.REFUSED: "it is refused",
}

SHORT = {
    Fate.NEW: "new",
    Fate.DUPLICATE: "duplicate",
    Fate.REPLACES_WAITING: "replaces",
    Fate.REPLACES_LIVE: "replaces",
    Fate.CONTRADICTS: "contradicts",
    Fate.NEEDS_APPROVAL: "approval",
    Fate.REFUSED: "refused",
}


def dry_run(
    session: Session,
    model: Model,
    requests: Sequence[EditRequest],
    refused: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """Shows what would come of edits.

    Args:
        session: The ledger.
        model: The model.
        requests: The edits.
        refused: What is wrong with records that are no requests; it has been told.
        as_json: One JSON document instead.

    Raises:
        Exit: Some have problems.
    """
    found = preview(session, model, requests, actor=actor(), tell=note)
    if as_json:
        print_json({**plain(found), "refused": list(refused)})
    else:
        _show(found, len(refused))
    if refused or found.counts.with_problems:
        raise typer.Exit(NOT_POSSIBLE)


def _show(found: Preview, refused: int) -> None:
    say(f"Dry run for {found.model}: nothing is submitted.")
    for one, detail in found.hindrances.items():
        if one is not Hindrance.NO_WORKER or found.not_asked is None:
            say(HINDERED[one].format(detail))
    if found.not_asked is not None:
        _wrapped(f"The model was not asked: {found.not_asked}")
    if len(found.edits) == 1 and not refused:
        _show_one(found.edits[0], found.version)
        return
    _show_many(found.edits)
    _wrapped(_counted(found.counts, refused))


def _show_one(edit: EditPreview, version: int | None) -> None:
    _line("prompt", edit.prompt)
    _line("wanted", edit.target)
    if edit.answer is not None:
        _line("says now", f"{_quoted(edit.answer)} (version {version})")
    for name, answers in (("paraphrase", edit.paraphrases), ("neighbour", edit.locality)):
        for said in answers[:OTHERS_SHOWN]:
            if said.answer is not None:
                prompt, answer = fitted(said.prompt, 38).rstrip(), fitted(said.answer, 24).rstrip()
                say(f"  {name:<11} {prompt} → {answer}".rstrip())
    if edit.subject is not None:
        _line("subject", edit.subject)
    if edit.knows:
        _line("known", "the model gives this answer already")
    for same in edit.same_fact[:OTHERS_SHOWN]:
        by = f"edit {same.id} is {same.state}, by {same.submitted_by}: "
        _line("same fact", by + same.target)
    _line("then", _then(edit))
    for problem in edit.problems:
        _wrapped(f"  problem     {problem}", " " * 14)


def _wrapped(text: str, indent: str = "") -> None:
    for line in textwrap.wrap(text, WIDTH, subsequent_indent=indent):
        say(line)


def _line(name: str, text: str) -> None:
    say(f"  {name:<11} {fitted(text, 66)}".rstrip())


def _quoted(answer: str) -> str:
    return fitted(answer, ANSWER).rstrip() or "(nothing)"


def _then(edit: EditPreview) -> str:
    what = f"number {edit.same_as} here" if edit.edit is None else f"edit {edit.edit}"
    return FATES[edit.fate].format(edit=edit.edit, what=what)


def _show_many(edits: Sequence[EditPreview]) -> None:
    first = sorted(edits, key=lambda e: (not e.problems, e.fate is Fate.NEW and not e.knows))
    for edit in sorted(first[:LISTED], key=lambda e: e.number):
        now = "(not asked)" if edit.answer is None else edit.answer
        known = "known" if edit.knows else SHORT[edit.fate]
        say(
            f"{edit.number:>5} {fitted('problem' if edit.problems else known, 11)} "
            f"{fitted(edit.prompt, 30)} {fitted(now, 15)} {fitted(edit.target, 14)}".rstrip()
        )
    if len(edits) > LISTED:
        say(f"      and {len(edits) - LISTED} more: --json has all")
    wrong = [(edit.number, problem) for edit in edits for problem in edit.problems]
    for number, problem in wrong[:PROBLEMS_SHOWN]:
        say(fitted(f"  number {number}: {problem}", WIDTH).rstrip())
    if len(wrong) > PROBLEMS_SHOWN:
        say(f"  and {len(wrong) - PROBLEMS_SHOWN} more problems: --json has all")


def _counted(counts: Counts, refused: int) -> str:
    """The counts in words; what is zero is left out."""
    parts = [
        words.format(n)
        for n, words in (
            (counts.known, "{} the model knows already"),
            (counts.of_live_facts, "{} of facts that are live"),
            (counts.of_waiting_facts, "{} of facts that wait"),
            (counts.need_approval, "{} would wait for approval"),
            (counts.duplicates, "{} submitted before"),
            (counts.with_problems, "{} with problems"),
            (refused, "{} records refused"),
            (counts.previewed - counts.asked, "{} not asked"),
            (counts.given - counts.previewed, "{} not looked at"),
        )
        if n
    ]
    return f"{counts.given} edits: {', '.join(parts) or 'nothing to look at'}."
