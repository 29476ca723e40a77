"""How commands speak: results on standard output, progress and errors on standard error.

With `--json` a command prints exactly one JSON document on standard output and nothing else there;
an error is one on standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from gateway.tables import Shortened, lay_out, separated
from gateway.visible import visible

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of a table.")
]

_PLAIN: dict[str, Any] = {"color_system": None} if os.environ.get("NO_COLOR") else {}
"""Under NO_COLOR nothing is styled, bold and dim included."""

out = Console(highlight=False, **_PLAIN)
err = Console(stderr=True, highlight=False, **_PLAIN)


_spoken: set[str] = set()
"""What this command has put on standard output so far."""


def begin() -> None:
    """Forgets what was printed: a command begins."""
    _spoken.clear()


def plain(value: object) -> Any:  # noqa: PLR0911 - one line per type reads best
    """Turns rows, dates and digests into what JSON knows.

    Raises:
        TypeError: For a type no result of ours has.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value.value if isinstance(value, Enum) else value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, UUID | Path):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    if hasattr(value, "model_dump"):
        return plain(value.model_dump())
    raise TypeError(f"cannot print a {type(value).__name__} as JSON")


def print_json(value: object) -> None:
    """Prints one JSON document on standard output."""
    sys.stdout.write(json.dumps(plain(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def emit(value: object, as_json: bool, human: Callable[[], None]) -> None:
    """Prints `value` as JSON, or lets `human` print it for people."""
    if as_json:
        print_json(value)
    else:
        human()


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str | None = None,
    *,
    flexible: Collection[str] = (),
) -> None:
    """Prints a table for the reader there is: a person at a terminal, or a program.

    Args:
        columns: Their names.
        rows: Their values.
        title: Printed above it on a terminal; in a pipe only where other text came before.
        flexible: Columns cut first where the terminal is narrow; without, those with sentences.
    """
    filled = [tuple(row) for row in rows]
    if not sys.stdout.isatty():
        if _spoken and title:  # among other text a table needs its name; alone it is data
            sys.stdout.write(f"\n{visible(title, lines=False)}\n")
        _spoken.add("table")
        for line in separated(columns, filled):
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
        return
    if not filled:
        say(f"{title}: nothing to show." if title else "Nothing to show.")
        return
    header, *lines = lay_out(columns, filled, get_terminal_size().columns, flexible)
    for line in ([title] if title else []) + [header]:
        out.print(Text(visible(line), style="bold"), soft_wrap=True)
    for line in lines:
        out.print(Text(line), soft_wrap=True)


def say(message: str) -> None:
    """Prints a line for people on standard output."""
    _spoken.add("line")
    out.print(escape(visible(message)), soft_wrap=True)


def note(message: str) -> None:
    """Prints a line of progress on standard error."""
    err.print(escape(visible(message)), style="dim", soft_wrap=True)


def complain(message: str) -> None:
    """Prints the one line an error gets, on standard error."""
    line = " ".join(visible(message, lines=False).split())
    err.print(f"[bold red]error:[/] {escape(line)}", soft_wrap=True)


def fail(message: str, exit_code: int) -> int:
    """Prints the error a command ends with, as JSON where JSON was asked for; returns its code."""
    if "--json" in sys.argv[1:]:
        said = {"error": {"message": message, "exit_code": exit_code}}
        sys.stderr.write(json.dumps(said, ensure_ascii=False) + "\n")
    else:
        complain(message)
    return exit_code


def short(digest: str | None, length: int = 12) -> str:
    """Shortens a digest `sha256:0123…` for people; a table for programs gets it whole."""
    if not digest:
        return "-"
    return Shortened(digest.removeprefix("sha256:")[:length], digest)
