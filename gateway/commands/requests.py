"""Commands about edit requests: submit, list, approve, cancel, redrive, pause."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway import preview_view, waiting_view
from gateway.edit_page import describe
from gateway.exit_codes import FAILED, INTERRUPTED, NOT_POSSIBLE
from gateway.output import JsonOption, complain, emit, note, plain, print_json, print_table, say
from gateway.session import actor, open_session
from ledger import edits, requests
from ledger.errors import RequestInvalid, RequestsInvalid
from ledger.records import Edit
from ledger.states import EditState
from service import waiting
from service.errors import UserError
from service.session import Session, find_model
from service.summary import Summary, summarise

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
        typer.Argument(
            help="A file of edits: JSON Lines, JSON, CSV as Excel writes it, CounterFact, zsRE, "
            "EasyEdit or KnowEdit; `-` reads any of them from a pipe."
        ),
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
    source: Annotated[
        str | None, typer.Option(help="Where it is from; kept with the edit.")
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="Accept the good records of a file with bad ones.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until every edit is live or has ended.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would happen; submit nothing.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Longest wait, in seconds.")] = 3600.0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit edit requests: one, or a file of them.

    A request says: this prompt should answer that. With an idempotency key, submitting it again
    changes nothing and returns the first; so does a request that is waiting or live already.
    With a file, --reason, --priority, --not-before, --expires-at, --subject and --source fill what
    its records leave out. A cell of a CSV file holds several paraphrases or prompts divided by `|`.

    Examples:
    `mend submit --prompt "The Prime Minister of the United Kingdom is" --target "Keir Starmer"
    --paraphrase "The UK's Prime Minister is" --locality "The capital of France is"`

    `mend submit facts.jsonl --wait`, where a line of `facts.jsonl` is
    `{"prompt": "…", "target": "…", "paraphrases": ["…"], "locality": ["…"]}`

    `mend submit facts.csv --dry-run` says what the model answers now and what would happen

    `mend submit facts.csv --keep-going --json`

    `zcat facts.jsonl.gz | mend submit -`
    """
    for_all = {
        "subject": subject,
        "priority": priority,
        "not_before": not_before and not_before.replace(tzinfo=UTC),
        "expires_at": expires_at and expires_at.replace(tzinfo=UTC),
        "reason": reason,
        "source": source,
    }
    for_one = {
        "prompt": prompt,
        "target": target,
        "paraphrases": paraphrase,
        "locality": locality,
        "idempotency_key": key,
    }
    for_all, for_one = _given(for_all), _given(for_one)
    if file is None:
        if prompt is None:
            raise UserError(
                "nothing to submit: give a file, or --prompt and --target; see `mend submit --help`"
            )
        if target is None:
            raise UserError("--prompt needs --target: what should the model answer?")
        parsed = [requests.parse_record({"source": CLI_SOURCE, **for_all, **for_one})]
        problems: list[str] = []
    else:
        if for_one:
            names = ", ".join(OPTION_OF[name] for name in for_one)
            raise UserError(
                f"{names} says something of one edit and {file} holds many: put it into the file, "
                "or leave the file out"
            )
        parsed, problems = _read(file, {"source": file_source(file), **for_all}, keep_going)
    with open_session() as session:
        with session.transaction() as connection:
            chosen = find_model(connection, model)
        if dry_run:
            preview_view.dry_run(session, chosen, parsed, problems, as_json=as_json)
            return
        result = _accept(session, chosen.id, parsed, origin=file)
        result["model"] = chosen.name
        result["refused"] = problems
        result["set_aside"] = _set_aside(session, result)
        if not as_json:
            _say_submitted(result, waiting_follows=wait)
        ids = result["edit_ids"]
        came = _wait(session, ids, timeout) if wait and ids else None
    _say_result(result, came, as_json=as_json)


ENDED_BADLY = frozenset({EditState.QUARANTINED, EditState.FAILED, EditState.REJECTED})


def _set_aside(session: Session, result: dict[str, Any]) -> int:
    """How many of the edits that were there already will not be tried again by themselves."""
    if not result["duplicates"]:
        return 0
    with session.transaction() as connection:
        found = edits.get_many(connection, result["edit_ids"])
    return sum(edit.state in ENDED_BADLY for edit in found)


def _say_result(result: dict[str, Any], came: Summary | None, *, as_json: bool) -> None:
    """Says what came of the edits where that was waited for; the exit code says it, too."""
    if came is not None:
        result["edits"], result["summary"] = list(came.edits), came
    if as_json:
        print_json(result)
    elif came is not None:
        waiting_view.show_summary(came)
    if result["refused"]:
        raise typer.Exit(NOT_POSSIBLE)
    if came is not None and not came.all_live:
        raise typer.Exit(FAILED)


CLI_SOURCE = "cli"
"""Where a request came from that was typed on the command line."""

OPTION_OF = {
    "prompt": "--prompt",
    "target": "--target",
    "paraphrases": "--paraphrase",
    "locality": "--locality",
    "idempotency_key": "--key",
}
"""Options that say something of a single edit."""

PROBLEMS_SHOWN = 20


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value}


def file_source(file: str) -> str:
    """Where the requests of a file came from, as the ledger keeps it."""
    return "pipe" if file == "-" else f"file:{Path(file).name}"[: requests.MAX_NAME]


def _read(file: str, defaults: dict[str, Any], keep_going: bool) -> tuple[list[Any], list[str]]:
    """Parses a file or standard input; refuses all of it on a bad record unless told otherwise."""
    given = sys.stdin.buffer if file == "-" else Path(file)
    try:
        parsed = requests.parse_file(given, keep_going=keep_going, defaults=defaults)
    except RequestsInvalid as refused:
        if len(refused.problems) == 1:
            raise UserError(f"{file}, nothing was submitted: {refused}") from None
        _complain_of(refused.problems)
        raise UserError(f"{file}: nothing was submitted") from None
    _complain_of(parsed.problems)
    if not parsed.requests:
        raise UserError(f"{file} holds no requests")
    return list(parsed.requests), [str(problem) for problem in parsed.problems]


def _complain_of(problems: Sequence[RequestInvalid]) -> None:
    for problem in problems[:PROBLEMS_SHOWN]:
        complain(str(problem))
    if len(problems) > PROBLEMS_SHOWN:
        complain(f"and {len(problems) - PROBLEMS_SHOWN} more records with problems")


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


def _wait(session: Session, ids: list[int], timeout: float) -> Summary:
    """Waits until edits are settled, telling how far they are, and says what came of them."""
    try:
        with waiting_view.Ticker() as tell:
            waiting.for_edits(session, ids, timeout, tell)
    except KeyboardInterrupt:
        note("No longer waiting. The work goes on: see `mend edits` and `mend status`.")
        raise typer.Exit(INTERRUPTED) from None
    with session.transaction() as connection:
        return summarise(connection, ids)


def _say_submitted(result: dict[str, Any], *, waiting_follows: bool) -> None:
    ids = result["edit_ids"]
    span = f"edit {ids[0]}" if len(ids) == 1 else f"edits {min(ids)}-{max(ids)}" if ids else ""
    say(f"{result['accepted']} accepted for {result['model']}" + (f": {span}." if span else "."))
    if result["duplicates"]:
        say(f"{result['duplicates']} had been submitted before; nothing was added for them.")
    if result["set_aside"]:
        say(
            f"{result['set_aside']} of them were set aside or rejected: `mend show ID` says why, "
            "`mend redrive ID` tries again."
        )
    if result["superseded"]:
        say(f"{result['superseded']} waiting for the same fact were superseded.")
    if result["awaiting_approval"]:
        say(f"{result['awaiting_approval']} wait for a person: `mend approve` or `mend reject`.")
    if result["refused"]:
        say(f"{len(result['refused'])} lines were refused.")
    if result["accepted"] and not waiting_follows:
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
        now = waiting.progress(connection, [edit for edit in found if edit.model_id == chosen.id])

    def human() -> None:
        # Beside the table, so that a pipe gets rows alone.
        for line in waiting_view.standing(now):
            note(line)
        print_table(
            ("id", "state", "prompt", "target", "by", "updated", "note"),
            [
                (e.id, e.state, e.prompt, e.target, e.submitted_by, e.updated_at, _note_of(e))
                for e in found
            ],
            title=f"Edits of {chosen.name}",
        )

    emit(found, as_json, human)


def _note_of(edit: Edit) -> str:
    """Why an edit is where it is, in a few words."""
    if edit.state is EditState.AWAITING_APPROVAL:
        return "waits for someone's approval"
    if edit.state is EditState.SUBMITTED and edit.not_before is not None:
        return f"not before {edit.not_before:%Y-%m-%d %H:%M}"
    return str(edit.error or (edit.evidence or {}).get("reason") or "")


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
