"""Commands that hand over to another room's own program: `serve` and `bench`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from benchmarks import NAMES
from gateway.rundir import make_home
from gateway.session import database_url
from service.errors import UserError

app = typer.Typer(rich_markup_mode="markdown")

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


def hand_over(module: str, arguments: list[str], *, needs_ledger: bool = False) -> None:
    """Becomes `python -m module arguments`; the terminal, signals and exit code are its own.

    Raises:
        NotRunning: It needs the ledger and there is none.
    """
    home = make_home(None)
    os.environ["MEND_HOME"] = str(home)
    if needs_ledger:
        os.environ["DATABASE_URL"] = database_url(home)
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - our own program


@app.command(context_settings=PASS_ON)
def serve(
    ctx: typer.Context,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
) -> None:
    """Serve versions over an OpenAI-style HTTP API, hot-swapped on promotion.

    `/v1/completions` and `/v1/chat/completions` with `max_tokens`, `stop`, `stream`, `seed`,
    `temperature` (0 unless asked for: what the gate saw) and `top_p`. A model is `NAME` or
    `NAME@WHICH`: an alias, a number or a digest prefix. For trying things out; in production, give
    `mend export` to vLLM.

    Examples:
    `mend serve`

    `curl localhost:8000/v1/completions -H 'content-type: application/json'
    -d '{"model": "demo@candidate", "prompt": "The capital of", "stream": true}'`
    """
    hand_over(
        "workers.serve",
        ["--host", host, "--port", str(port), *ctx.args],
        needs_ledger=True,
    )


@app.command(context_settings={**PASS_ON, "help_option_names": []})
def bench(
    ctx: typer.Context,
    what: Annotated[
        str | None, typer.Argument(help=f"{', '.join(NAMES[:-1])} or {NAMES[-1]}.")
    ] = None,
) -> None:
    """Run the project's benchmarks; every number in the README comes from one.

    Examples:
    `mend bench queue`

    `mend bench editors --model smollm2 --sizes 1,10,100 --methods all`

    `mend bench versions --json`
    """
    if what in (None, "--help", "-h"):
        typer.echo(
            "Usage: mend bench [" + "|".join(NAMES) + "] [OPTIONS]\n\n"
            "Runs one of the project's benchmarks. Options are the benchmark's own:\n"
            "try `mend bench queue --help`.\n\n"
            "Examples:\n"
            "  mend bench queue\n"
            "  mend bench editors --model smollm2 --sizes 1,10,100 --methods all\n"
            "  mend bench versions --json"
        )
        return
    if what not in NAMES:
        raise UserError(f"there is no benchmark {what!r}; there are {', '.join(NAMES)}")
    hand_over("benchmarks", [what, *ctx.args])
