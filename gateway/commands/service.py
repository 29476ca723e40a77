"""`mend up`, `mend down`, `mend status`: the service as a whole."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer

from gateway import launch, status_view
from gateway.output import JsonOption, emit, note, print_json, say
from gateway.rundir import RunDir, ServiceInfo, make_home
from gateway.session import database_url, open_session
from ledger import db, migrate
from service.errors import UserError

app = typer.Typer(rich_markup_mode="markdown")

WORDS = {"postgres": "Postgres", "beat": "beat (periodic sweep)", "exporter": "metrics exporter"}


def describe(event: dict[str, Any]) -> None:
    """Prints one event of a start for people."""
    what = WORDS.get(event.get("what", ""), event.get("what", ""))
    match event["event"]:
        case "starting":
            note(f"starting {what} …")
        case "died":
            note(f"{what} ended with status {event['status']}; starting it again")
        case _:
            pass


@app.command()
def up(
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay attached; Ctrl-C stops the service.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="How many worker processes; 1 unless given.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port of /metrics, 9464 unless given; 0: a free one."),
    ] = None,
    metrics_host: Annotated[
        str | None, typer.Option(help="Address /metrics listens on; 127.0.0.1 unless given.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Start the service: Postgres, worker, beat and exporter.

    Without DATABASE_URL an embedded Postgres is started in MEND_HOME; without BROKER_URL the
    wake-ups travel through that same database. Files, logs and stores live in MEND_HOME
    (default `~/.local/share/mend`).

    Examples:
    `mend up`

    `mend up --workers 2 --metrics-port 0 --json`

    `DATABASE_URL=postgresql://mend@db/mend BROKER_URL=redis://cache/0 mend up --foreground`
    """
    home = make_home(None)
    running = RunDir(home).read()
    if running is not None and running.state == "ready":
        _say_running(running, home, workers, (metrics_host, metrics_port), as_json=as_json)
        return
    arguments: list[str] = []
    for option, given in (
        ("--metrics-port", metrics_port),
        ("--metrics-host", metrics_host),
        ("--workers", workers),
    ):
        if given is not None:
            arguments += [option, str(given)]
    for variable, option in (("DATABASE_URL", "--database-url"), ("BROKER_URL", "--broker-url")):
        if value := os.environ.get(variable, "").strip():
            arguments += [option, value]
    if foreground:
        os.execv(  # noqa: S606 - we become the supervisor, so that Ctrl-C reaches it
            sys.executable,
            [sys.executable, "-m", "gateway.supervisor", "--home", str(home), *arguments],
        )
    started = launch.launch(home, arguments, (lambda _: None) if as_json else describe)
    info = {key: value for key, value in started.up.items() if key not in ("event", "at")}

    def human() -> None:
        say(f"The service is up (supervisor {info['pid']}, home {home}).")
        say(f"  metrics  {info['metrics_url']}")
        say(f"  logs     {info['logs']}")
        say("  next     mend model register …, mend submit …, mend status; stop with mend down")

    emit(info, as_json, human)


def _say_running(
    running: ServiceInfo,
    home: Path,
    workers: int | None,
    metrics: tuple[str | None, int | None],
    *,
    as_json: bool,
) -> None:
    """Says that the service runs already, and which of the options it was not started with."""
    there = sum(name.startswith("worker") for name in running.children)
    not_applied = []
    if workers not in {None, there}:
        not_applied.append(f"--workers {workers} (it runs {there})")
    at = urlsplit(running.metrics_url)
    for option, wanted, present in (
        ("--metrics-host", metrics[0], at.hostname),
        ("--metrics-port", metrics[1] or None, at.port),
    ):
        if wanted not in {None, present}:
            not_applied.append(f"{option} {wanted} (it is {present})")
    for variable, in_use in (
        ("DATABASE_URL", running.database_url),
        ("BROKER_URL", running.broker_url),
    ):
        if os.environ.get(variable, "").strip() not in {"", in_use}:
            not_applied.append(f"{variable} (another one is in use)")

    def human() -> None:
        say(f"The service is up already (supervisor {running.pid}, home {home}).")
        say(f"  metrics  {running.metrics_url}")
        say(f"  logs     {running.logs}")
        for option in not_applied:
            say(f"  not applied: {option}; run mend down first")

    emit(running.to_dict() | {"already": True, "not_applied": not_applied}, as_json, human)


@app.command(name="migrate")
def migrate_database(
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit code 2 unless up to date.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Bring the database's schema up to date.

    `mend up` does it by itself; use this where the worker and the database are yours.

    Example: `DATABASE_URL=postgresql://mend@db/mend mend migrate`
    """
    url = database_url(make_home(None))
    engine = db.engine_from_url(url, pool_size=1, application_name="mend-cli")
    try:
        before = migrate.current(engine)
        if check:
            migrate.check(engine)
        else:
            migrate.upgrade(url)
        after = migrate.current(engine)
    finally:
        engine.dispose()
    emit(
        {"before": before, "schema": after},
        as_json,
        lambda: say(f"The schema is {after}" + (" already." if before == after else ".")),
    )


@app.command()
def down(as_json: JsonOption = False) -> None:
    """Stop the service.

    Each worker finishes or gives back what it holds; nothing is lost.

    Example: `mend down`
    """
    rundir = RunDir(make_home(None))
    stopped = launch.stop_running(rundir)
    if not stopped and not as_json:
        say(f"Nothing is running in {rundir.home}.")
    elif as_json:
        print_json({"stopped": stopped, "home": str(rundir.home)})
    else:
        say("Stopped.")


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Show what runs, what waits and what is in production.

    Examples:
    `mend status`

    `mend status --json | jq .models[0].edits`
    """
    rundir = RunDir(make_home(None))
    info = rundir.read()
    if info is None and not os.environ.get("DATABASE_URL"):
        if as_json:
            print_json({"running": False, "home": str(rundir.home)})
            return
        raise UserError(f"nothing is running in {rundir.home}; start it with `mend up`")
    with open_session() as session:
        view = status_view.collect(session, info)
    emit(view, as_json, lambda: status_view.show(view))
