"""`mend rebase`: live edits onto another base, with another editor, or both."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.commands.changes import TimeoutOption, carry_out
from gateway.commands.models import model_editor, model_source
from gateway.commands.requests import ModelOption
from gateway.output import JsonOption, emit, print_table, say, short
from service.errors import UserError

app = typer.Typer()


@app.command()
def rebase(
    *,
    source: Annotated[
        str | None,
        typer.Argument(help="The new base: a folder or hub id; none: another editor only."),
    ] = None,
    editor: Annotated[
        str, typer.Option(help="A file, `shipped`, `shipped:NAME`; `ultra` or `subject` makes one.")
    ] = "shipped",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say which edits would hold; change nothing.")
    ] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Promote the version if its gate passes.")
    ] = False,
    reason: Annotated[str, typer.Option(help="Why; kept with the version.")] = "",
    name: Annotated[
        str | None, typer.Option(help="Register a model of its own under this name instead.")
    ] = None,
    version: Annotated[
        str, typer.Option("--version", "-v", help="Whose edits (--dry-run or --name only).")
    ] = "candidate",
    timeout: TimeoutOption = 7200.0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Replay all live edits on a new base, with a new editor, or both.

    Says of each edit whether it holds, no longer holds, cannot be applied, or is not needed because
    the new base answers so by itself. Those that hold become the model's next version, on the new
    base. It goes through the gate against the version before it and becomes the candidate; `mend
    promote` releases it and `mend rollback` brings the old base back.

    Examples:
    `mend rebase ./llama-next --editor editors/next.safetensors --dry-run`

    `mend rebase ./llama-next --editor editors/next.safetensors --reason "spring release"`

    `mend rebase --editor editors/better.safetensors --reason "a better editor" --promote`
    """
    if version != "candidate" and not (dry_run or name):
        raise UserError(
            "the next version is built on the candidate: --version needs --dry-run or --name"
        )
    result = carry_out(
        "rebase",
        {
            "source": None if source is None else model_source(source),
            "editor": model_editor(editor),
            "name": name,
            "version": version,
            "dry_run": dry_run,
            "promote": promote,
            "reason": reason,
        },
        model=model,
        timeout=timeout,
        doing="rebasing",
        versions=(version,),
    )
    emit(result, as_json, lambda: _say_rebase(result))
    if result.get("gate") == "fail":
        raise typer.Exit(1)


def _say_rebase(result: dict[str, Any]) -> None:
    """Prints what became of each edit, the worst first, and what can be done next."""
    order = ("no_longer_holds", "cannot_be_applied", "not_needed", "holds")
    rows = sorted(result["edits"], key=lambda one: (order.index(one["fate"]), one["id"]))
    print_table(
        ("edit", "fate", "prompt", "target", "answered", "why"),
        [
            (e["id"], e["fate"].replace("_", " "), e["prompt"], e["target"], e["answer"], e["says"])
            for e in rows
        ],
        title=f"Edits of version {result['from']['number']} on {short(result['base_digest'])}",
    )
    if "number" in result:
        for answer in result["changed_answers"]:
            say(f"  changed: {answer['prompt']} {answer['before']!r} → {answer['after']!r}")
        after = "in production" if result["promoted"] else "see `mend gate show`, `mend promote`"
        say(f"Version {result['number']}: gate says {result['gate']}; {after}.")
    elif "name" in result:
        say(f"Model {result['name']} is registered; {result['submitted']} edits were submitted.")
