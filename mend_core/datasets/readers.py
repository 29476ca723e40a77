"""Edits from files, for training and benchmarks: one record in memory at a time.

The forms are those of `editfiles`, the one reader of all rooms; what is wrong with a record comes
out as this room's `DataError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from editfiles import FileProblem, Place, Record, read_records
from mend_core.datasets.edit import Edit, PromptAnswer
from mend_core.errors import DataError


def read_edits(
    path: str | Path, *, on_error: Callable[[DataError], None] | None = None
) -> Iterator[Edit]:
    """Stream the edits of a file.

    Args:
        path: The file.
        on_error: Called with the error of a record that cannot be used, which is then skipped;
            None raises it. (Public data sets have such records.)

    Raises:
        DataError: No such file, not UTF-8, a broken or over-long record, a missing field; with
            path, line and field. Raised when the record is reached: earlier ones have been yielded.
    """
    path = Path(path)

    def told(problem: FileProblem) -> None:
        error = _data_error(path, problem)
        if on_error is None or problem.fatal:
            raise error
        on_error(error)

    seen: set[str] = set()
    try:
        for record in read_records(path, on_problem=told):
            edit = _edit(record, path)
            if edit.id in seen:
                told(
                    FileProblem(
                        f"{edit.id!r} was already used by an earlier record",
                        record.place,
                        field="id",
                    )
                )
                continue
            seen.add(edit.id)
            yield edit
    except FileProblem as problem:
        raise _data_error(path, problem) from None


def _data_error(path: Path, problem: FileProblem) -> DataError:
    line = None if problem.place is None else problem.place.line
    return DataError(str(path), line, problem.field, problem.problem)


def _edit(record: Record, path: Path) -> Edit:
    return Edit(
        id=record.id or _place_name(record.place, path),
        prompt=record.prompt,
        target=record.target.strip(),
        subject=record.subject,
        paraphrases=record.paraphrases,
        locality=tuple(PromptAnswer(prompt, answer) for prompt, answer in record.locality),
        portability=tuple(PromptAnswer(prompt, answer) for prompt, answer in record.portability),
    )


def _place_name(place: Place, path: Path) -> str:
    name = f"{path.stem}:{place.line}"
    return name if place.nth == 1 else f"{name}.{place.nth}"
