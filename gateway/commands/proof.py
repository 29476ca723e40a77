"""`mend audit` and `mend doctor`: proof that nothing was lost, doubled or altered."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.commands.requests import ModelOption
from gateway.output import JsonOption, complain, emit, plain, print_json, print_table, say
from gateway.session import actor, open_session
from ledger import audit, models
from ledger import doctor as checks
from service import waiting
from service.errors import UserError
from service.session import Session, find_model, find_version

app = typer.Typer(rich_markup_mode="markdown")
audit_app = typer.Typer(
    help="""Verify, export and prove the audit trail.

    Every change appends an event to a chain of hashes, in the same transaction as the change.
    """,
    rich_markup_mode="markdown",
    no_args_is_help=True,
)
app.add_typer(audit_app, name="audit")


@audit_app.command(name="verify")
def audit_verify(
    export: Annotated[
        Path | None, typer.Option("--export", help="An exported file; needs no database.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every link of the trail, in the database or in an export.

    Examples:
    `mend audit verify`

    `mend audit verify --export trail-2026-11.jsonl`
    """
    if export is not None:
        if not export.is_file():
            raise UserError(f"there is no file {export}")
        found = audit.verify_export(export)
    else:
        with open_session() as session, session.transaction() as connection:
            found = audit.verify(connection)
    emit(
        found,
        as_json,
        lambda: say(
            f"The trail holds: {found.events} events, head {found.head}, root {found.root}."
        ),
    )


@audit_app.command(name="export")
def audit_export(
    file: Annotated[str, typer.Argument(help="File to write, or `-` for standard output.")],
    as_json: JsonOption = False,
) -> None:
    """Write the whole trail as JSONL, for an archive or an auditor.

    Examples:
    `mend audit export trail.jsonl`

    `mend audit export - | gzip > trail.jsonl.gz`
    """
    with open_session() as session, session.transaction() as connection:
        if file == "-":
            audit.export(connection, sys.stdout)
            return
        with Path(file).open("x", encoding="utf-8", newline="\n") as stream:
            count = audit.export(connection, stream)
    emit({"events": count, "file": file}, as_json, lambda: say(f"{count} events in {file}."))


@audit_app.command(name="prove")
def audit_prove(
    seq: Annotated[int | None, typer.Argument(help="Number of the event.")] = None,
    check: Annotated[
        Path | None, typer.Option("--check", help="Check a proof file instead; needs no database.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Prove that one event is in the trail (RFC 6962 inclusion proof), or check such a proof.

    Examples:
    `mend audit prove 120 --json > proof.json`

    `mend audit prove --check proof.json`
    """
    if (seq is None) == (check is None):
        raise UserError("give the number of an event, or --check FILE")
    if check is not None:
        proof = _read_json(check)
        holds = audit.verify_proof(proof)
        emit(
            {"holds": holds},
            as_json,
            lambda: say("The proof holds." if holds else "It does not hold."),
        )
        if not holds:
            raise typer.Exit(1)
        return
    assert seq is not None
    with open_session() as session, session.transaction() as connection:
        proof = audit.prove(connection, seq)
    if as_json:
        print_json(proof)
    else:
        say(json.dumps(plain(proof), indent=2, ensure_ascii=False))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no file {path}") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no proof: expected a JSON object")
    return value


@audit_app.command(name="checkpoint")
def audit_checkpoint(as_json: JsonOption = False) -> None:
    """Print the trail's size and Merkle root, to keep where the database's owner cannot change it.

    Example: `mend audit checkpoint --json >> /mnt/worm/checkpoints.jsonl`
    """
    with open_session() as session, session.transaction() as connection:
        point = audit.checkpoint(connection)
    if as_json:
        print_json(point)
    else:
        for name, value in point.items():
            say(f"{name}: {value}")


@audit_app.command(name="events")
def audit_events(
    *,
    edit: Annotated[int | None, typer.Option("--edit", help="Only about this edit.")] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Only about this version (number or alias).")
    ] = None,
    model: ModelOption = None,
    kind: Annotated[
        list[str] | None, typer.Option("--kind", help="Only of this kind; repeatable.")
    ] = None,
    by: Annotated[str | None, typer.Option("--by", help="Only of this person or worker.")] = None,
    since: Annotated[datetime | None, typer.Option(help="From this time on (UTC).")] = None,
    until: Annotated[datetime | None, typer.Option(help="Before this time (UTC).")] = None,
    after: Annotated[int, typer.Option(min=0, help="Only events after this number.")] = 0,
    oldest: Annotated[bool, typer.Option("--oldest", help="Oldest first.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List events, newest first.

    Examples:
    `mend audit events --edit 12`

    `mend audit events --kind edit.rejected --by ana --since 2026-11-01`

    `mend audit events --version production`

    `mend audit events --after 100 --oldest`
    """
    with open_session() as session, session.transaction() as connection:
        # Without --model, events of every model; a version has a number only within one.
        chosen = find_model(connection, model) if model or version else None
        found = audit.events(
            connection,
            after=after,
            limit=limit,
            model_id=None if chosen is None else chosen.id,
            kinds=kind or None,
            edit_id=edit,
            version=None
            if chosen is None or version is None
            else find_version(connection, chosen, version),
            actor=by,
            since=since and since.replace(tzinfo=UTC),
            until=until and until.replace(tzinfo=UTC),
            newest_first=not oldest,
        )
    emit(
        found,
        as_json,
        lambda: print_table(
            ("seq", "at", "event", "by", "subject", "reason"),
            [(e.seq, e.at, e.kind, e.actor, e.subject, e.data.get("reason")) for e in found],
            title="Audit trail",
        ),
    )


def _attention(session: Session) -> list[str]:
    """What is no broken invariant, and still keeps edits from being worked on."""
    lines = [] if waiting.worker_alive(session) else [waiting.NO_WORKER]
    with session.transaction() as connection:
        for model in models.list_all(connection):
            if model.problem is not None:
                lines.append(f"model {model.name} cannot be worked on: {model.problem}")
            if model.paused:
                lines.append(f"model {model.name} is paused")
    return lines


@app.command()
def doctor(
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Replay the trail; have a worker recompute version digests."),
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Longest wait, in seconds.")] = 900.0,
    as_json: JsonOption = False,
) -> None:
    """Check that nothing is lost, doubled or stranded.

    Exit code 1 when something is wrong.

    Examples:
    `mend doctor`

    `mend doctor --deep --json`
    """
    recomputed = False
    with open_session() as session:
        if deep and waiting.worker_alive(session):
            result = waiting.run_job(
                session, "doctor", {"deep": True}, model_id=None, actor=actor(), timeout=timeout
            )
            found = [dict(finding) for finding in result.get("findings", [])]
            recomputed = True
        else:
            with session.transaction() as connection:
                found = [plain(f) for f in checks.check(connection, deep=deep)]
        attention = _attention(session)
    value = {
        "healthy": not found,
        "deep": deep,
        "digests_recomputed": recomputed,
        "findings": found,
        "attention": attention,
    }

    def human() -> None:
        if found:
            print_table(
                ("rule", "thing", "problem"),
                [(f["rule"], f["thing"], f["problem"]) for f in found],
                title="Broken invariants",
            )
        else:
            say("All invariants hold.")
        for line in attention:
            say(f"But: {line}")

    emit(value, as_json, human)
    if deep and not recomputed:
        complain("no worker is alive: the versions' digests were not recomputed")
    if found:
        raise typer.Exit(1)
