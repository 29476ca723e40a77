"""Commands by which a person decides on edits that wait or failed, and holds a model back."""

from __future__ import annotations

from typing import Annotated

import typer

from gateway.commands.requests import ModelOption, ReasonOption
from gateway.output import JsonOption, complain, emit, plain, print_json, say
from gateway.session import actor, open_session
from ledger import edits
from service import pausing, review
from service.errors import UserError
from service.pausing import Waiting
from service.session import find_model

app = typer.Typer(rich_markup_mode="markdown")

EditIds = Annotated[
    list[str] | None,
    typer.Argument(help="Ids and ranges of ids, such as 12 or 93-106."),
]
AllOption = Annotated[bool, typer.Option("--all", help="All edits of the model that wait for it.")]


def _decide(
    verb: review.Verb,
    ids: list[str] | None,
    *,
    reason: str,
    model: str | None,
    as_json: bool,
    everything: bool = False,
) -> None:
    """Does one thing to several edits in one transaction, and tells what came of each."""
    with open_session() as session, session.transaction() as connection:
        found = review.decide(
            connection,
            verb,
            ids or [],
            model=model,
            everything=everything,
            actor=actor(),
            reason=reason,
        )
    for why in found.failed.values():
        complain(why)
    if as_json:
        print_json(
            {
                verb.done: [edit.id for edit in found.done],
                "failed": found.failed,
                "contradicts": {
                    edit_id: {"id": other.id, "prompt": other.prompt, "target": other.target}
                    for edit_id, other in found.contradicts.items()
                },
            }
        )
    elif found.done:
        say(f"{verb.done}: {', '.join(str(edit.id) for edit in found.done)}")
        for edit in found.done:
            other = found.contradicts.get(edit.id)
            if other is not None:
                say(
                    f"  edit {edit.id}: {edit.prompt} → {edit.target}\n"
                    f"    takes the place of edit {other.id}, live: {other.prompt} → {other.target}"
                )
    if found.failed:
        raise typer.Exit(2)


@app.command()
def approve(
    ids: EditIds = None,
    everything: AllOption = False,
    reason: ReasonOption = "by hand",
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let edits that wait for a person go on.

    All of them go on at once, so one review becomes one batch. Where an edit contradicts a live one
    of the same fact, that one is shown: the new edit takes its place.

    Examples:
    `mend approve 12 13 --reason "checked against gov.uk"`

    `mend approve 93-106`

    `mend approve --all --reason "review of Monday"`
    """
    _decide(
        review.APPROVE,
        ids,
        everything=everything,
        reason=reason,
        model=model,
        as_json=as_json,
    )


@app.command()
def reject(
    *,
    ids: EditIds = None,
    everything: AllOption = False,
    reason: ReasonOption,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Refuse edits that wait for a person.

    Examples:
    `mend reject 12 --reason "not true"`

    `mend reject 93-106 --reason "no source given"`
    """
    _decide(
        review.REJECT,
        ids,
        everything=everything,
        reason=reason,
        model=model,
        as_json=as_json,
    )


@app.command()
def cancel(
    ids: EditIds = None,
    reason: ReasonOption = "by hand",
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Withdraw edits that were not applied yet.

    Examples:
    `mend cancel 12 --reason "typo in the target"`

    `mend cancel 93-106 --reason "wrong file"`
    """
    _decide(review.CANCEL, ids, reason=reason, model=model, as_json=as_json)


@app.command()
def redrive(
    ids: EditIds = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every failed edit of the model.")
    ] = False,
    reason: ReasonOption = "by hand",
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Queue failed or quarantined edits again.

    Examples:
    `mend redrive 12`

    `mend redrive 93-106 --reason "paraphrases were corrected"`

    `mend redrive --all --reason "editor was replaced"`
    """
    if everything == bool(ids):
        raise UserError("give ids, ranges such as 93-106, or --all")
    if ids:
        _decide(review.REDRIVE, ids, reason=reason, model=model, as_json=as_json)
        return
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        redriven = edits.redrive_all(connection, chosen.id, actor=actor(), reason=reason)
    emit({"redriven": redriven}, as_json, lambda: say(f"redriven: {plain(redriven)}"))


@app.command()
def pause(
    reason: ReasonOption = "by hand", model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """Stop claiming a model's edits; accepting goes on.

    Example: `mend pause --reason "release freeze"`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        waiting = pausing.pause(connection, chosen, actor=actor(), reason=reason)
    emit(
        {"paused": chosen.name, "waiting": waiting},
        as_json,
        lambda: say(f"{chosen.name} is paused: {_said(waiting)}."),
    )


@app.command()
def resume(
    reason: ReasonOption = "by hand", model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """Claim a paused model's edits again.

    Example: `mend resume`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        waiting = pausing.resume(connection, chosen, actor=actor(), reason=reason)
    emit(
        {"resumed": chosen.name, "waiting": waiting},
        as_json,
        lambda: say(f"{chosen.name} is no longer paused: {_said(waiting)}."),
    )


def _said(waiting: Waiting) -> str:
    """What waits, in words."""
    parts = [f"{waiting.queued} queued" if waiting.queued else "nothing queued"]
    if waiting.awaiting_approval:
        parts.append(f"{waiting.awaiting_approval} waiting for a person")
    if waiting.in_work:
        parts.append(f"{waiting.in_work} in a batch that goes on")
    return ", ".join(parts)
