"""What the demo shows per edit: the model's own answers before and after, from the probe run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from ledger.records import Edit

ANSWER_CHARACTERS = 34
"""Answers are cut to this many characters in the table; `--json` and reports have them whole."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One probe: what was asked, what base and version answered, and whether that is as wanted.

    Attributes:
        version: The version that gave `after`: the newest that was asked.
    """

    kind: str
    prompt: str
    before: str
    after: str
    good: bool
    version: int


@dataclass(frozen=True, slots=True)
class EditAnswers:
    """The answers about one edit.

    Attributes:
        own: Its own prompt; None when the version was never probed.
        paraphrase: The first paraphrase.
        locality: The first locality prompt.
    """

    edit: Edit
    own: Answer | None
    paraphrase: Answer | None
    locality: Answer | None


def _answer(row: Mapping[str, Any], version: int) -> Answer:
    return Answer(
        kind=str(row["kind"]),
        prompt=str(row["prompt"]),
        before=str(row["base"]["answer"]),
        after=str(row["answer"]),
        good=bool(row["passed"]),
        version=version,
    )


def collect(
    edits: Sequence[Edit], runs: Mapping[int, Sequence[Mapping[str, Any]]]
) -> list[EditAnswers]:
    """Finds each edit's probes among the rows of probe runs.

    A probe suite asks a prompt once, however many edits name it; so rows are found by prompt. An
    edit that was set aside was last asked in the version that failed with it.

    Args:
        edits: The edits.
        runs: Version number → rows of its probe run, in the order of the versions.
    """
    by_prompt = {
        (str(row["kind"]), str(row["prompt"])): _answer(row, number)
        for number, rows in runs.items()
        for row in rows
    }

    def find(kind: str, prompts: Sequence[str]) -> Answer | None:
        return next(
            (by_prompt[kind, prompt] for prompt in prompts if (kind, prompt) in by_prompt), None
        )

    return [
        EditAnswers(
            edit=edit,
            own=find("edit", [edit.prompt]),
            paraphrase=find("paraphrase", edit.paraphrases),
            locality=find("locality", [prompt for prompt, _ in edit.locality]),
        )
        for edit in edits
    ]


def _cut(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= ANSWER_CHARACTERS else flat[: ANSWER_CHARACTERS - 1] + "…"


def _lines(name: str, answer: Answer | None) -> tuple[str, str, str, str, str, str] | None:
    if answer is None:
        return None
    mark = "[green]✓[/]" if answer.good else "[red]✗[/]"
    return (
        name,
        escape(answer.prompt),
        escape(_cut(answer.before)),
        escape(_cut(answer.after)),
        str(answer.version),
        mark,
    )


def table(answers: Sequence[EditAnswers]) -> Table:
    """Lays the answers out, three lines an edit."""
    found = Table(
        title="What the model answers, running freely",
        title_justify="left",
        title_style="bold",
        header_style="bold",
        show_lines=False,
    )
    found.add_column("edit", style="cyan", no_wrap=True)
    for column in ("asked", "before", "after"):
        found.add_column(column, overflow="fold")
    found.add_column("version", justify="right")
    found.add_column("", no_wrap=True)
    for item in answers:
        edit = item.edit
        found.add_row(
            f"[bold]{edit.id}[/] {edit.state}",
            f"[bold]should say: {escape(edit.target)}[/]",
            "",
            "",
            "",
            "",
        )
        for name, answer in (
            ("  prompt", item.own),
            ("  paraphrase", item.paraphrase),
            ("  locality", item.locality),
        ):
            line = _lines(name, answer)
            if line is not None:
                found.add_row(*line)
        found.add_section()
    return found
