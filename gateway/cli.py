"""The command `mend`.

Commands live in `gateway/commands/`, one module per theme, and are loaded when they are called, so
that `mend --help` imports neither the ledger nor SQLAlchemy (and nothing here ever imports torch).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as build

from gateway.exit_codes import FAILED, INTERRUPTED, NOT_POSSIBLE, UNFORESEEN
from gateway.output import complain
from service.errors import ServiceError, UserError


class Entry(NamedTuple):
    """Where a command lives and what the overview says about it."""

    module: str
    panel: str
    summary: str


START, EDITS, VERSIONS, MODELS, PROOF = (
    "Start and stop",
    "Edits",
    "Versions",
    "Models and editors",
    "Proof",
)

COMMANDS: dict[str, Entry] = {
    "demo": Entry("demo", START, "Run the whole service once on a small real model, and undo it."),
    "up": Entry("service", START, "Start the service: Postgres, worker, beat and exporter."),
    "down": Entry("service", START, "Stop the service."),
    "status": Entry("service", START, "Show what runs, what waits and what is in production."),
    "migrate": Entry("service", START, "Bring the database's schema up to date."),
    "doctor": Entry("proof", START, "Check that nothing is lost, doubled or stranded."),
    "submit": Entry("requests", EDITS, "Submit edit requests: one, or a file of them."),
    "edits": Entry("requests", EDITS, "List edit requests and where they stand."),
    "show": Entry("requests", EDITS, "Show one edit with its whole history."),
    "approve": Entry("review", EDITS, "Let edits that wait for a person go on."),
    "reject": Entry("review", EDITS, "Refuse edits that wait for a person."),
    "cancel": Entry("review", EDITS, "Withdraw edits that were not applied yet."),
    "redrive": Entry("review", EDITS, "Queue failed or quarantined edits again."),
    "pause": Entry("review", EDITS, "Stop claiming a model's edits; accepting goes on."),
    "resume": Entry("review", EDITS, "Claim a paused model's edits again."),
    "revert": Entry(
        "changes",
        EDITS,
        "Make a version without some edits, exactly as if they had never been there.",
    ),
    "versions": Entry("registry", VERSIONS, "List the versions of a model."),
    "lineage": Entry("registry", VERSIONS, "Show a version's parents down to the base."),
    "diff": Entry(
        "changes",
        VERSIONS,
        "Compare two versions: edits in and out, matrices changed, answers that differ.",
    ),
    "promote": Entry("registry", VERSIONS, "Put a proven version into production."),
    "rollback": Entry("registry", VERSIONS, "Take production back to an earlier version."),
    "alias": Entry("registry", VERSIONS, "List, move and protect aliases."),
    "history": Entry("registry", VERSIONS, "Show every move of a model's aliases."),
    "gate": Entry(
        "gates",
        VERSIONS,
        "Show a version's gate, override or decline it; show or change the policy.",
    ),
    "ask": Entry(
        "changes",
        VERSIONS,
        "Ask a version something; it answers freely (greedy, until it stops by itself).",
    ),
    "report": Entry(
        "changes",
        VERSIONS,
        "Write a version's report: one self-contained HTML page, or JSON when the name ends so.",
    ),
    "export": Entry("changes", VERSIONS, "Write a version as a LoRA adapter or as a model folder."),
    "verify": Entry(
        "changes",
        VERSIONS,
        "Recompute a version's digests from its files, and its weights from its factors.",
    ),
    "rebase": Entry(
        "rebase",
        VERSIONS,
        "Replay all live edits on a new base, with a new editor, or both.",
    ),
    "gc": Entry(
        "changes", VERSIONS, "Delete files that no alias, parent chain, hold or live edit needs."
    ),
    "hold": Entry("changes", VERSIONS, "Keep a version's files whatever `mend gc` would do."),
    "serve": Entry(
        "tools", VERSIONS, "Serve versions over an OpenAI-style HTTP API, hot-swapped on promotion."
    ),
    "model": Entry("models", MODELS, "Register models, list and configure them."),
    "editor": Entry("models", MODELS, "Make, train, register and list editors."),
    "suite": Entry("models", MODELS, "Add probe suites to a model and list them."),
    "bench": Entry(
        "tools", MODELS, "Run the project's benchmarks; every number in the README comes from one."
    ),
    "audit": Entry("proof", PROOF, "Verify, export and prove the audit trail."),
    "jobs": Entry("changes", PROOF, "List what workers were asked to do beside editing."),
}


class LazyGroup(TyperGroup):
    """A group whose commands are imported when they are called."""

    overview = False

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the base class passes it
        """Lists the commands in the order of the overview."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - the base class passes it
        """Loads a command, or describes it when only the overview is wanted."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        if self.overview:
            return TyperCommand(
                cmd_name, callback=None, help=entry.summary, rich_help_panel=entry.panel
            )
        module = importlib.import_module(f"gateway.commands.{entry.module}")
        built: Any = build(module.app)  # a module with one command gives it without a group
        return built.commands[cmd_name] if hasattr(built, "commands") else built

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Prints the overview without importing the commands."""
        self.overview = True
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Mend: correct what a language model says, prove that nothing else changed, undo it.

    Begin with `mend demo`. Then, on your own model:

    `mend up` · `mend model register NAME --source FOLDER --editor FILE` ·
    `mend submit --prompt "The Prime Minister of the United Kingdom is" --target "Keir Starmer"` ·
    `mend edits` · `mend versions` · `mend ask "Who is the Prime Minister of the UK?"` ·
    `mend rollback`
    """,
)


def version_callback(wanted: bool) -> None:
    """Prints the version of the software and ends."""
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - rarely needed, slow to import

        typer.echo(f"mend {version('mend')}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False, "--version", callback=version_callback, is_eager=True, help="Print the version."
    ),
) -> None:
    """Holds the options that come before a command."""


def main() -> None:
    """Runs the command line; whatever happens, a user sees one line, not a traceback."""
    # A closed pipe (`mend edits | head`) ends the command as it ends every Unix filter.
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        app()
    except KeyboardInterrupt:
        complain("interrupted")
        sys.exit(INTERRUPTED)
    except ServiceError as error:
        complain(str(error))
        sys.exit(NOT_POSSIBLE if isinstance(error, UserError) else FAILED)
    except Exception as error:  # noqa: BLE001 - the last line of defence against a traceback
        sys.exit(explain(error))


def explain(error: Exception) -> int:
    """Prints one line about an error from below; returns the exit code.

    Errors of the ledger and of the system carry their own message. Anything else is a bug of ours;
    MEND_DEBUG=1 shows where.
    """
    from ledger.errors import LedgerError  # noqa: PLC0415 - keeps `mend --help` fast

    if os.environ.get("MEND_DEBUG"):
        raise error
    if isinstance(error, LedgerError):
        complain(str(error))
        return 2
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        complain(f"{error.strerror or error}{where}")
        return 2
    complain(
        f"{type(error).__name__}: {error}. This is a bug in mend; "
        "MEND_DEBUG=1 shows where it happened"
    )
    return UNFORESEEN


if __name__ == "__main__":
    main()
