"""Commands about edit requests: submit, list, approve, cancel, redrive, pause."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.edit_page import describe
from gateway.output import JsonOption, complain, emit, note, plain, print_json, print_table, say
from gateway.session import actor, open_session
from ledger import edits, models, requests
from ledger.errors import LedgerError
from ledger.states import EditState
from service import waiting
from service.errors import UserError
from service.session import Session, find_model

app = typer.Typer(rich_markup_mode="markdown")

ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="The model; may be left out when only one is.")
]
ReasonOption = Annotated[str, typer.Option("--reason", "-r", help="Why; kept in the audit trail.")]
EditIds = Annotated[list[int], typer.Argument(help="Ids of edits, as `mend edits` shows them.")]


@app.command()
def submit(
    *,
    file: Annotated[
        str | None,
        typer.Argument(help="A .jsonl or .csv file of requests; `-` reads JSONL from a pipe."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text the model is asked.")] = None,
    target: Annotated[str | None, typer.Option(help="What it should answer.")] = None,
    subject: Annotated[str | None, typer.Option(help="Entity the fact is about.")] = None,
    paraphrase: Annotated[
        list[str] | None, typer.Option(help="Another way to ask it; may be repeated.")
    ] = None,
    locality: Annotated[
        list[str] | None, typer.Option(help="A prompt whose answer must not change; repeatable.")
    ] = None,
    reason: Annotated[str | None, typer.Option("--reason", "-r", help="Why.")] = None,
    key: Annotated[str | None, typer.Option(help="Idempotency key.")] = None,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    not_before: Annotated[datetime | None, typer.Option(help="Earliest time (UTC).")] = None,
    expires_at: Annotated[datetime | None, typer.Option(help="Withdraw after (UTC).")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Accept the good lines of a file with bad ones.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until every edit is live or has ended.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Longest wait, in seconds.")] = 3600.0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit edit requests: one, or a file of them.

    A request says: this prompt should answer that. With an idempotency key, submitting it again
    changes nothing and returns the first.

    Examples:
    `mend submit --prompt "The Prime Minister of the United Kingdom is" --target "Keir Starmer"
    --paraphrase "The UK's Prime Minister is" --locality "The capital of France is"`

    `mend submit facts.jsonl --wait`, where a line of `facts.jsonl` is
    `{"prompt": "…", "target": "…", "paraphrases": ["…"], "locality": ["…"]}`

    `mend submit facts.csv --keep-going --json`

    `zcat facts.jsonl.gz | mend submit -`
    """
    record: dict[str, Any] = {
        "prompt": prompt,
        "target": target,
        "subject": subject,
        "paraphrases": paraphrase,
        "locality": locality,
        "idempotency_key": key,
        "priority": priority,
        "not_before": not_before and not_before.replace(tzinfo=UTC),
        "expires_at": expires_at and expires_at.replace(tzinfo=UTC),
        "reason": reason,
    }
    given = {name: value for name, value in record.items() if value}
    if file is None and prompt is None:
        raise UserError(
            "nothing to submit: give a file, or --prompt and --target; see `mend submit --help`"
        )
    if file is not None and prompt is not None:
        raise UserError("give a file or --prompt, not both")
    if file is None:
        if target is None:
            raise UserError("--prompt needs --target: what should the model answer?")
        parsed = [requests.parse_record({**given, "source": f"cli:{actor()}"})]
        problems: list[str] = []
    else:
        parsed, problems = _read(file, keep_going=keep_going)
    with open_session() as session:
        with session.transaction() as connection:
            chosen = find_model(connection, model)
        result = _accept(session, chosen.id, parsed, origin=file)
        result["model"] = chosen.name
        result["refused"] = problems
        if wait and result["edit_ids"]:
            result["edits"] = _wait(session, result["edit_ids"], timeout)
    emit(result, as_json, lambda: _say_submitted(result))
    if problems:
        raise typer.Exit(2)


def _read(file: str, *, keep_going: bool) -> tuple[list[Any], list[str]]:
    """Parses a file or standard input; refuses all of it on a bad line unless told otherwise."""
    if file == "-":
        parsed = requests.parse_jsonl(sys.stdin.buffer, keep_going=keep_going)
    else:
        path = Path(file)
        if not path.exists():
            raise UserError(f"there is no file {file}")
        if path.is_dir():
            raise UserError(f"{file} is a folder; give a .jsonl or .csv file")
        parsed = requests.parse_file(path, keep_going=keep_going)
    problems = [str(problem) for problem in parsed.problems]
    for problem in problems:
        complain(problem)
    if not parsed.requests and not problems:
        raise UserError(f"{file} holds no requests")
    return list(parsed.requests), problems


def _accept(
    session: Session, model_id: int, parsed: list[Any], origin: str | None
) -> dict[str, Any]:
    """Writes the requests: one by one round trip, many by COPY."""
    if len(parsed) == 1:
        one = edits.accept(session.engine, model_id, parsed[0], actor=actor())
        return {
            "edit_ids": [one.edit_id],
            "accepted": 0 if one.duplicate else 1,
            "duplicates": int(one.duplicate),
            "superseded": len(one.superseded),
            "awaiting_approval": int(one.state is EditState.AWAITING_APPROVAL),
            "contradicts": one.contradicts,
        }
    with session.transaction() as connection:
        many = edits.submit_many(connection, model_id, parsed, actor=actor(), origin=origin)
    return dict(plain(many))


def _wait(session: Session, ids: list[int], timeout: float) -> list[dict[str, Any]]:
    settled = waiting.for_edits(session, ids, timeout, tell=note)
    return [{"id": edit.id, "state": str(edit.state), "error": edit.error} for edit in settled]


def _say_submitted(result: dict[str, Any]) -> None:
    ids = result["edit_ids"]
    span = f"edit {ids[0]}" if len(ids) == 1 else f"edits {min(ids)}-{max(ids)}" if ids else ""
    say(f"{result['accepted']} accepted for {result['model']}" + (f": {span}." if span else "."))
    if result["duplicates"]:
        say(f"{result['duplicates']} had been submitted before (same key); nothing was added.")
    if result["superseded"]:
        say(f"{result['superseded']} waiting for the same fact were superseded.")
    if result["awaiting_approval"]:
        say(f"{result['awaiting_approval']} wait for a person: `mend approve` or `mend reject`.")
    if result["refused"]:
        say(f"{len(result['refused'])} lines were refused.")
    for edit in result.get("edits", []):
        say(
            f"  edit {edit['id']}: {edit['state']}"
            + (f" ({edit['error']})" if edit["error"] else "")
        )
    if "edits" not in result and result["accepted"]:
        say("See them go with `mend edits`.")


@app.command(name="edits")
def list_edits(
    state: Annotated[
        list[EditState] | None, typer.Option("--state", "-s", help="Only these; repeatable.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 50,
    before: Annotated[int | None, typer.Option(help="Only ids below this (next page).")] = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """List edit requests and where they stand.

    Examples:
    `mend edits`

    `mend edits --state queued --state claimed`

    `mend edits --state quarantined --json`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        found = edits.list_edits(
            connection, chosen.id, states=state or None, limit=limit, before_id=before
        )
    emit(
        found,
        as_json,
        lambda: print_table(
            ("id", "state", "prompt", "target", "by", "updated", "note"),
            [
                (e.id, e.state, e.prompt, e.target, e.submitted_by, e.updated_at, e.error or "")
                for e in found
            ],
            title=f"Edits of {chosen.name}",
        ),
    )


@app.command()
def show(
    edit_id: Annotated[int, typer.Argument(help="Id of the edit.")], as_json: JsonOption = False
) -> None:
    """Show one edit with its whole history.

    Example: `mend show 12`
    """
    with open_session() as session, session.transaction() as connection:
        edit = edits.get(connection, edit_id)
        events = edits.history(connection, edit_id)
    value = {"edit": edit, "history": events}

    emit(value, as_json, lambda: describe(edit, events))


def _each(ids: list[int], verb: str, act: Any, *, as_json: bool) -> None:
    """Does one thing to several edits; each stands alone, and all failures are told."""
    done: list[int] = []
    failed: dict[int, str] = {}
    with open_session() as session:
        for edit_id in ids:
            try:
                with session.transaction() as connection:
                    act(connection, edit_id)
                done.append(edit_id)
            except LedgerError as error:
                failed[edit_id] = str(error)
                complain(str(error))
    if as_json:
        print_json({verb: done, "failed": failed})
    elif done:
        say(f"{verb}: {', '.join(map(str, done))}")
    if failed:
        raise typer.Exit(2)


@app.command()
def approve(ids: EditIds, reason: ReasonOption = "by hand", as_json: JsonOption = False) -> None:
    """Let edits that wait for a person go on.

    Example: `mend approve 12 13 --reason "checked against gov.uk"`
    """
    _each(
        ids,
        "approved",
        lambda c, e: edits.approve(c, e, actor=actor(), reason=reason),
        as_json=as_json,
    )


@app.command()
def reject(ids: EditIds, reason: ReasonOption, as_json: JsonOption = False) -> None:
    """Refuse edits that wait for a person.

    Example: `mend reject 12 --reason "not true"`
    """
    _each(
        ids,
        "rejected",
        lambda c, e: edits.reject(c, e, actor=actor(), reason=reason),
        as_json=as_json,
    )


@app.command()
def cancel(ids: EditIds, reason: ReasonOption = "by hand", as_json: JsonOption = False) -> None:
    """Withdraw edits that were not applied yet.

    Example: `mend cancel 12 --reason "typo in the target"`
    """
    _each(
        ids,
        "cancelled",
        lambda c, e: edits.cancel(c, e, actor=actor(), reason=reason),
        as_json=as_json,
    )


@app.command()
def redrive(
    ids: Annotated[list[int] | None, typer.Argument(help="Ids; or --all.")] = None,
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

    `mend redrive --all --reason "editor was replaced"`
    """
    if everything == bool(ids):
        raise UserError("give ids or --all")
    if ids:
        _each(
            ids,
            "redriven",
            lambda c, e: edits.redrive(c, e, actor=actor(), reason=reason),
            as_json=as_json,
        )
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
        models.pause(connection, chosen.id, actor=actor(), reason=reason)
    emit({"paused": chosen.name}, as_json, lambda: say(f"{chosen.name} is paused."))


@app.command()
def resume(
    reason: ReasonOption = "by hand", model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """Claim a paused model's edits again.

    Example: `mend resume`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        models.resume(connection, chosen.id, actor=actor(), reason=reason)
    emit({"resumed": chosen.name}, as_json, lambda: say(f"{chosen.name} is no longer paused."))
