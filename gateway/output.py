"""How commands speak: results on standard output, progress and errors on standard error.

With `--json` a command prints exactly one JSON document on standard output and nothing else there.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of a table.")
]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


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


def cell(value: object) -> str:
    """Formats one table cell: dates to the second, long text shortened by the table itself."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, Enum):
        return str(value.value)
    return escape(str(value))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None
) -> None:
    """Prints a table, or says that there is nothing to show."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    if table.row_count:
        out.print(table)
    else:
        out.print(f"{title}: nothing to show." if title else "Nothing to show.")


def say(message: str) -> None:
    """Prints a line for people on standard output."""
    out.print(escape(message), soft_wrap=True)


def note(message: str) -> None:
    """Prints a line of progress on standard error."""
    err.print(escape(message), style="dim", soft_wrap=True)


def complain(message: str) -> None:
    """Prints the one line an error gets, on standard error."""
    line = " ".join(message.split())
    err.print(f"[bold red]error:[/] {escape(line)}", soft_wrap=True)


def short(digest: str | None, length: int = 12) -> str:
    """Shortens a digest `sha256:0123…` to its first characters for tables."""
    if not digest:
        return "-"
    return digest.removeprefix("sha256:")[:length]
