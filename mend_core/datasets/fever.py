"""FEVER claims as edits of a classifier: the claim should get this label.

Following the paper's set-up (De Cao et al.), the binary task keeps SUPPORTS and REFUTES, and an
edit flips the label the claim has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mend_core.datasets.edit import Edit
from mend_core.datasets.stream import text_lines
from mend_core.errors import DataError

LABELS: tuple[str, ...] = ("REFUTES", "SUPPORTS")


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim and whether evidence supports it."""

    id: str
    text: str
    label: str


def read_fever(path: str | Path) -> Iterator[Claim]:
    """Stream the claims with a label of `LABELS`; "NOT ENOUGH INFO" is left out.

    Raises:
        DataError: Not UTF-8, not JSON, or a record without claim and label.
    """
    name = str(path)
    if not Path(path).is_file():
        raise DataError(name, None, None, "no such file")
    for number, line in text_lines(Path(path)):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            text, label = record["claim"], record["label"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(name, number, None, f"expected claim and label: {error}") from error
        if not isinstance(text, str) or not text.strip():
            raise DataError(name, number, "claim", "is missing or empty")
        if label in LABELS:
            yield Claim(str(record.get("id", number)), text, label)


def flips(claims: Iterator[Claim]) -> Iterator[Edit]:
    """One edit per claim: the other label becomes the target."""
    for claim in claims:
        other = LABELS[1 - LABELS.index(claim.label)]
        yield Edit(id=claim.id, prompt=claim.text, target=other)
