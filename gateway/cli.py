"""The command `mend`.

Commands live in `gateway/commands/`, one module per theme, and are loaded when they are called, so
that `mend --help` imports neither the ledger nor SQLAlchemy (and nothing here ever imports torch).
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from difflib import get_close_matches
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command as build

from gateway.exit_codes import FAILED, INTERRUPTED, NOT_POSSIBLE, UNFORESEEN
from gateway.output import begin, fail
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


class NamingGroup(TyperGroup):
    """A group that knows the command somebody meant."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Finds the command, or names the nearest one."""
        if self.get_command(ctx, args[0]) is None and not ctx.resilient_parsing:
            if args[0].startswith("-"):
                return super().resolve_command(ctx, args)
            near = get_close_matches(args[0], self.list_commands(ctx), n=1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"no command {args[0]!r}{meant}")
        return super().resolve_command(ctx, args)


class LazyGroup(NamingGroup):
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
        return load(entry, cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Prints the overview without importing the commands."""
        self.overview = True
        super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Completes the names of commands without importing them."""
        self.overview = True
        return super().shell_complete(ctx, incomplete)


def load(entry: Entry, name: str) -> Any:
    """Imports a command; completion belongs to the top command, not to each part of it."""
    module = importlib.import_module(f"gateway.commands.{entry.module}")
    module.app._add_completion = False  # noqa: SLF001 - Typer takes it at construction only
    for group in module.app.registered_groups:
        group.cls = NamingGroup
    built: Any = build(module.app)  # a module with one command gives it without a group
    return built.commands[name] if hasattr(built, "commands") else built


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="""Mend: correct what a language model says, prove that nothing else changed, undo it.

    Begin with `mend demo`. Then, on a model of your own, one after the other:

    `mend up`

    `mend model register smol --source smollm2`

    `mend submit --prompt "The Prime Minister of the UK is" --target "Keir Starmer" --wait`

    `mend ask "Who is the Prime Minister of the UK?"`

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
    begin()
    try:
        code = app(prog_name="mend", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except typer.Abort:
        sys.exit(fail("nothing was done", FAILED))
    except typer.TyperException as error:
        sys.exit(refuse(error))
    except KeyboardInterrupt:
        sys.exit(fail("interrupted", INTERRUPTED))
    except ServiceError as error:
        sys.exit(fail(str(error), NOT_POSSIBLE if isinstance(error, UserError) else FAILED))
    except Exception as error:  # noqa: BLE001 - the last line of defence against a traceback
        sys.exit(explain(error))


def refuse(error: typer.TyperException) -> int:
    """Prints why a command line cannot be run, with the word that was meant; returns the code."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":  # its help has been printed
        return NOT_POSSIBLE
    asked = "mend" if context is None else context.command_path
    message = error.format_message().rstrip(".")
    wrong = getattr(error, "option_name", None)
    if wrong is not None and hasattr(error, "possibilities") and context is not None:
        known = [name for option in context.command.params for name in option.opts]
        known = [name for name in known if name.startswith("-")]
        near = get_close_matches(wrong, known, n=1)
        message = f"no option {wrong!r} of '{asked}'"
        if near:
            message += f"; did you mean {near[0]!r}?"
    if "did you mean" not in message:
        message += f"; see '{asked} --help'"
    return fail(message, error.exit_code)


def explain(error: Exception) -> int:
    """Prints one line about an error from below; returns the exit code.

    Errors of the ledger and of the system carry their own message. Anything else is a bug of ours;
    MEND_DEBUG=1 shows where.
    """
    from ledger.errors import LedgerError  # noqa: PLC0415 - keeps `mend --help` fast

    if os.environ.get("MEND_DEBUG"):
        raise error
    if isinstance(error, LedgerError):
        return fail(str(error), NOT_POSSIBLE)
    if isinstance(error, OSError):
        where = f" ({error.filename})" if error.filename else ""
        return fail(f"{error.strerror or error}{where}", NOT_POSSIBLE)
    return fail(
        f"{type(error).__name__}: {error}. This is a bug in mend; "
        "MEND_DEBUG=1 shows where it happened",
        UNFORESEEN,
    )


if __name__ == "__main__":
    main()
