"""`mend demo`."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gateway.commands.models import model_editor, model_source, policy_payload
from gateway.demo.run import DEMO_EDITOR, PACK, DemoOptions, run
from gateway.output import JsonOption, err, print_json
from service.errors import UserError

app = typer.Typer(rich_markup_mode="markdown")

WIDTH_AWAY = 130


@app.command()
def demo(
    *,
    source: Annotated[str, typer.Option(help="Base model: `smollm2`, a folder, a hub id.")] = (
        "smollm2"
    ),
    editor: Annotated[str, typer.Option(help="Editor file, or `shipped`.")] = DEMO_EDITOR,
    policy: Annotated[
        str, typer.Option(help="Gate policy: `demo`, `default` or a YAML file.")
    ] = "demo",
    pack: Annotated[Path, typer.Option(help="File of edit requests.")] = PACK,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the run's folder: logs, database, versions.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole service once on a small real model, and undo it.

    Starts its own Postgres, worker, beat and exporter, submits a pack of edits, has them applied,
    probed and judged, shows the model's answers before and after, rolls back, and stops everything.
    Nothing of it touches a service that runs already.

    Examples:
    `mend demo`

    `mend demo --json | tail -1 | jq .edit_success`
    """
    if not pack.is_file():
        raise UserError(f"there is no file {pack}")
    options = DemoOptions(
        model_source(source), model_editor(editor), policy, policy_payload(policy), pack, keep
    )
    # `kill` ends the demo like Ctrl-C does: in order, leaving no process.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    # Away from a terminal rich assumes 80 columns: too few for three answers side by side.
    width = None if sys.stdout.isatty() else WIDTH_AWAY
    outcome = run(options, err if as_json else Console(highlight=False, width=width))
    if as_json:
        print_json(outcome.to_dict())
