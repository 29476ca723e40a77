"""Commands that a worker carries out as a job: ask, diff, export, report, revert and more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.status import Status

from gateway.commands.models import read_items
from gateway.commands.registry import VersionName
from gateway.commands.requests import ModelOption, ReasonOption
from gateway.output import JsonOption, emit, err, note, out, print_json, print_table, say, short
from gateway.session import actor, open_session
from ledger import jobs, retention
from ledger.records import Job
from service import waiting
from service.errors import UserError
from service.session import find_model, find_version

app = typer.Typer(rich_markup_mode="markdown")

TimeoutOption = Annotated[float, typer.Option(min=1, help="Longest wait, in seconds.")]


def carry_out(
    kind: str,
    payload: dict[str, Any],
    *,
    model: str | None,
    timeout: float,
    doing: str,
    versions: tuple[str, ...] = (),
    then: str = "`mend jobs` shows it",
) -> dict[str, Any]:
    """Has a worker carry out a job, with a spinner, and returns its result.

    Ctrl-C ends the wait, not the job, and that is said.

    Args:
        kind: The job.
        payload: What it needs.
        model: The model's name, or None for the only one.
        timeout: Seconds.
        doing: What the spinner says.
        versions: Versions which must exist; checked here, so that a typo fails at once.
        then: Where its result will be found by those who stop waiting.

    Raises:
        UserError: No worker is alive, or the job failed.
        ServiceFailed: It did not end in time.
    """
    with open_session() as session:
        with session.transaction() as connection:
            chosen = find_model(connection, model)
            for name in versions:
                find_version(connection, chosen, name)
        with Status(f"{doing} …", console=err) as status:
            job = waiting.submit_job(session, kind, payload, model_id=chosen.id, actor=actor())
            try:
                return waiting.for_job(
                    session, job, timeout, lambda line: status.update(f"{doing} … {line}")
                )
            except KeyboardInterrupt:
                note(f"job {job.id} ({kind}) goes on in the worker; {then}")
                raise


@app.command()
def ask(
    *,
    prompts: Annotated[list[str], typer.Argument(help="What to ask; several are asked at once.")],
    version: Annotated[
        str, typer.Option("--version", "-v", help="A number, alias, `previous` or digest prefix.")
    ] = "production",
    max_tokens: Annotated[int, typer.Option(min=1, max=1024, help="Longest answer.")] = 24,
    timeout: TimeoutOption = 300.0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a version something; it answers freely (greedy, until it stops by itself).

    Examples:
    `mend ask "The Prime Minister of the United Kingdom is"`

    `mend ask "The capital of France is" --version 0` asks the untouched base
    """
    result = carry_out(
        "ask",
        {"prompts": prompts, "version": version, "max_new_tokens": max_tokens},
        model=model,
        timeout=timeout,
        doing="asking",
        versions=(version,),
    )

    def human() -> None:
        for prompt, answer in zip(prompts, result["answers"], strict=True):
            out.print(f"[bold]{_safe(prompt)}[/] {_safe(str(answer).strip())}", soft_wrap=True)
        say(f"(version {result['version']}, {short(result['digest'])})")

    emit(result, as_json, human)


def _safe(text: str) -> str:
    return text.replace("[", r"\[")


@app.command()
def diff(
    *,
    a: VersionName,
    b: VersionName,
    suite: Annotated[
        Path | None, typer.Option("--suite", help="JSONL file of probe items to ask as well.")
    ] = None,
    timeout: TimeoutOption = 900.0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two versions: edits in and out, matrices changed, answers that differ.

    Both are asked the prompts of the edits that differ, of a sample of those in both, and the
    model's own suite.

    Examples:
    `mend diff previous production`

    `mend diff 3 7 --suite support-questions.jsonl --json`
    """
    result = carry_out(
        "diff",
        {"a": a, "b": b} | ({} if suite is None else {"suite": read_items(suite)}),
        model=model,
        timeout=timeout,
        doing="comparing",
        versions=(a, b),
    )
    emit(result, as_json, lambda: _say_diff(result))


def _say_diff(result: dict[str, Any]) -> None:
    """Prints what separates two versions, for people."""
    a, b = (f"version {result[side]['number']}" for side in ("a", "b"))
    say(f"From {a} ({short(result['a']['digest'])}) to {b} ({short(result['b']['digest'])})")
    if result["rebased"]:
        say("They stand on different bases: other matrices than these differ too.")
    print_table(
        ("", "edit", "prompt", "target"),
        [
            (sign, edit["id"], edit["prompt"], edit["target"])
            for sign, side in (("out", "only_in_a"), ("in", "only_in_b"))
            for edit in result[side]
        ],
        title="Edits in and out",
    )
    print_table(
        ("matrix", "norm of change", "relative to the base"),
        [
            (name, f"{size['norm']:.4g}", f"{size['relative']:.2e}")
            for name, size in result["matrices"].items()
        ],
        title="Matrices changed",
    )
    differ = result["answers"]
    print_table(
        ("probe", "prompt", f"{a} answers", f"{b} answers"),
        [
            (
                one["item_id"],
                one["prompt"],
                *(f"{one[s]} ({'ok' if one[s + '_passed'] else 'wrong'})" for s in ("a", "b")),
            )
            for one in differ
        ],
        title=f"Answers that differ: {len(differ)} of {result['asked']} asked",
    )


@app.command()
def report(
    version: VersionName = "production",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write.")] = None,
    timeout: TimeoutOption = 900.0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version's report: one self-contained HTML page, or JSON when the name ends so.

    Examples:
    `mend report 7`

    `mend report production --output change-4711.html`

    `mend report 7 --output report.json`
    """
    target = None if output is None else _writable(output)
    result = carry_out(
        "report",
        {
            "version": version,
            "path": None if target is None else str(target),
            "format": "json" if target is not None and target.suffix == ".json" else "html",
        },
        model=model,
        timeout=timeout,
        doing="writing the report",
        versions=(version,),
    )
    emit(result, as_json, lambda: say(f"Report: {result.get('path')}"))


@app.command()
def export(
    *,
    folder: Annotated[Path, typer.Argument(help="Folder to make; must not exist or be empty.")],
    version: Annotated[str, typer.Option("--version", "-v", help="Which version.")] = "production",
    form: Annotated[
        str, typer.Option("--format", help="`peft` (a LoRA adapter) or `merged` (a model folder).")
    ] = "peft",
    max_rank: Annotated[
        int | None, typer.Option(min=1, help="Cut a PEFT adapter's rank; the error is stated.")
    ] = None,
    timeout: TimeoutOption = 1800.0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a version as a LoRA adapter or as a model folder.

    Examples:
    `mend export ./adapter` then `vllm serve BASE --enable-lora --lora-modules mend=./adapter`

    `mend export ./merged --format merged --version 7`
    """
    if form not in ("peft", "merged"):
        raise UserError(f"--format is {form!r}; it must be peft or merged")
    target = _writable(folder)
    if target.is_file():
        raise UserError(f"{target} is a file; give a folder")
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target} is not empty; give a new folder")
    result = carry_out(
        "export",
        {"version": version, "format": form, "folder": str(target), "max_rank": max_rank},
        model=model,
        timeout=timeout,
        doing="exporting",
        versions=(version,),
        then=f"the folder appears at {target} when it is done",
    )
    emit(result, as_json, lambda: _say_result({"folder": str(target), **result}))


def _writable(path: Path) -> Path:
    """Makes a path absolute and sees that its parent folder is there."""
    target = path.expanduser().absolute()
    if not target.parent.is_dir():
        raise UserError(f"there is no folder {target.parent}")
    return target


@app.command()
def verify(
    version: VersionName = "production",
    timeout: TimeoutOption = 900.0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute a version's digests from its files, and its weights from its factors.

    Examples:
    `mend verify`

    `mend verify 7 --json`
    """
    result = carry_out(
        "verify",
        {"version": version},
        model=model,
        timeout=timeout,
        doing="verifying",
        versions=(version,),
    )
    emit(result, as_json, lambda: _say_result(result))
    if not result["ok"]:
        raise typer.Exit(1)


@app.command()
def revert(
    ids: Annotated[list[int], typer.Argument(help="Ids of live edits.")],
    reason: ReasonOption,
    timeout: TimeoutOption = 1800.0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a version without some edits, exactly as if they had never been there.

    The new version goes through the gate like any other; exit code 1 where it does not pass.

    Example: `mend revert 12 --reason "the source withdrew it"`
    """
    result = carry_out(
        "revert",
        {"edit_ids": ids, "reason": reason},
        model=model,
        timeout=timeout,
        doing="reverting",
    )

    def human() -> None:
        out_of = ", ".join(map(str, result["edits"]))
        say(f"Version {result['number']} ({short(result['digest'])}) is without edit {out_of}.")
        if result["promoted"]:
            say("Its gate passed; it is in production.")
        elif result["passed"]:
            say(f"Its gate passed; put it into production with `mend promote {result['number']}`.")
        else:
            say(f"Its gate says {result['gate']}; production stays as it is:")
            for check in result["checks"]:
                if check["outcome"] not in ("pass", "skipped"):
                    say(f"  {check['name']}: {check['sentence']}")

    emit(result, as_json, human)
    if not result["passed"]:
        raise typer.Exit(1)


@app.command()
def gc(
    *,
    keep_last: Annotated[int, typer.Option(min=0, help="Newest versions kept whatever else.")] = 10,
    grace: Annotated[float, typer.Option(min=0, help="Keep files younger than this (s).")] = 3600,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which versions go.")] = False,
    timeout: TimeoutOption = 900.0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete files that no alias, parent chain, hold or live edit needs.

    Files younger than the grace time stay: a worker may be about to commit what they belong to.

    Examples:
    `mend gc --dry-run`

    `mend gc --keep-last 3`
    """
    if dry_run:
        with open_session() as session, session.transaction() as connection:
            chosen = find_model(connection, model)
            old = retention.collectable(connection, chosen.id, keep_last=keep_last)
        emit(
            {"would_collect": [version.number for version in old]},
            as_json,
            lambda: say(
                f"Would collect: {', '.join(str(v.number) for v in old)}."
                if old
                else "Nothing to collect."
            ),
        )
        return
    result = carry_out(
        "collect",
        {"keep_last": keep_last, "grace_seconds": grace},
        model=model,
        timeout=timeout,
        doing="collecting",
    )
    emit(result, as_json, lambda: _say_result(result))


def _say_result(result: dict[str, Any]) -> None:
    """Prints a job's result: scalars as lines, lists of records as tables."""
    for name, value in result.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            columns = list(value[0])
            print_table(
                columns, [[row.get(column) for column in columns] for row in value], title=name
            )
        elif isinstance(value, dict | list):
            say(f"{name}: {json.dumps(value, ensure_ascii=False)}")
        else:
            say(f"{name}: {value}")


hold_app = typer.Typer(
    help="Keep a version's files whatever `mend gc` would do.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
)
app.add_typer(hold_app, name="hold")


@hold_app.command(name="add")
def hold_add(
    version: VersionName,
    reason: ReasonOption,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hold a version.

    Example: `mend hold add 7 --reason "legal hold 2026-14"`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        found = find_version(connection, chosen, version)
        retention.hold(connection, found.id, actor=actor(), reason=reason)
    emit({"held": found.number}, as_json, lambda: say(f"Version {found.number} is held."))


@hold_app.command(name="release")
def hold_release(
    version: VersionName,
    reason: ReasonOption,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Release a hold.

    Example: `mend hold release 7 --reason "case closed"`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        found = find_version(connection, chosen, version)
        retention.release_hold(connection, found.id, actor=actor(), reason=reason)
    emit({"released": found.number}, as_json, lambda: say(f"Version {found.number} is free."))


jobs_app = typer.Typer(
    help="List what workers were asked to do beside editing.",
    rich_markup_mode="markdown",
    invoke_without_command=True,
)
app.add_typer(jobs_app, name="jobs")


@jobs_app.callback()
def jobs_alone(ctx: typer.Context, as_json: JsonOption = False) -> None:
    """List what workers were asked to do beside editing.

    Example: `mend jobs`
    """
    if ctx.invoked_subcommand is None:
        jobs_list(limit=20, as_json=as_json)


@jobs_app.command(name="list")
def jobs_list(
    limit: Annotated[int, typer.Option(min=1, help="How many, newest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List jobs.

    Example: `mend jobs list`
    """
    with open_session() as session, session.transaction() as connection:
        found = jobs.list_jobs(connection, limit=limit)
    emit(
        found,
        as_json,
        lambda: print_table(
            ("id", "kind", "state", "by", "created", "finished", "error"),
            [
                (j.id, j.kind, j.state, j.requested_by, j.created_at, j.finished_at, j.error)
                for j in found
            ],
            title="Jobs",
        ),
    )


@jobs_app.command(name="show")
def jobs_show(
    job_id: Annotated[int, typer.Argument(help="Id of the job.")], as_json: JsonOption = False
) -> None:
    """Show one job with its payload and result.

    Example: `mend jobs show 3`
    """
    with open_session() as session, session.transaction() as connection:
        found: Job = jobs.get(connection, job_id)
    if as_json:
        print_json(found)
    else:
        say(f"Job {found.id} ({found.kind}): {found.state}")
        say(f"payload: {json.dumps(dict(found.payload), ensure_ascii=False)}")
        if found.error:
            say(f"error: {found.error}")
        if found.result is not None:
            _say_result(dict(found.result))


@jobs_app.command(name="cancel")
def jobs_cancel(
    job_id: Annotated[int, typer.Argument(help="Id of the job.")], as_json: JsonOption = False
) -> None:
    """Withdraw a job that no worker has begun.

    Example: `mend jobs cancel 3`
    """
    with open_session() as session, session.transaction() as connection:
        jobs.cancel(connection, job_id, actor=actor())
    emit({"cancelled": job_id}, as_json, lambda: say(f"Job {job_id} is cancelled."))
