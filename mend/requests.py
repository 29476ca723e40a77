"""What people give as edits, as `mend_core` has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any

from mend_core.datasets import Edit, PromptAnswer
from mend_core.errors import DataError

Request = Edit | Mapping[str, Any] | tuple[str, str]
"""An edit, its fields, or (prompt, target)."""

_LISTS = ("paraphrases", "locality", "portability")
_FIELDS = tuple(field.name for field in fields(Edit))


def read_request(request: Request, place: int, free: str) -> Edit:
    """One edit.

    Args:
        request: What was given.
        place: Which of those given together, from 1, for messages.
        free: The id of an edit that brings none.

    Raises:
        DataError: A field is missing, unknown or of the wrong type.
    """
    where = f"edit {place} of those given"
    if isinstance(request, Edit):
        return request if request.id else replace(request, id=free)
    if isinstance(request, tuple):
        if len(request) != 2:  # noqa: PLR2004 - a pair
            raise DataError(where, None, None, f"expected (prompt, target), found {request!r}")
        request = {"prompt": request[0], "target": request[1]}
    if not isinstance(request, Mapping):
        raise DataError(
            where, None, None, f"expected (prompt, target) or a dict, found {request!r}"
        )
    unknown = sorted(set(request) - set(_FIELDS))
    if unknown:
        raise DataError(where, None, str(unknown[0]), f"is unknown; known: {', '.join(_FIELDS)}")
    for name in ("prompt", "target"):
        _text(where, name, request.get(name))
    subject, lists = request.get("subject"), {n: request.get(n) or () for n in _LISTS}
    if subject is not None:
        _text(where, "subject", subject)
    return Edit(
        id=str(request.get("id") or free),
        prompt=request["prompt"],
        target=request["target"],
        subject=subject,
        paraphrases=tuple(_texts(where, "paraphrases", lists["paraphrases"])),
        locality=tuple(_pairs(where, "locality", lists["locality"])),
        portability=tuple(_pairs(where, "portability", lists["portability"])),
    )


def _text(where: str, name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(where, None, name, f"expected text, found {value!r}")
    return value


def _texts(where: str, name: str, value: object) -> Iterable[str]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise DataError(where, None, name, f"expected a list of texts, found {value!r}")
    return [_text(where, name, item) for item in value]


def _pairs(where: str, name: str, value: object) -> Iterable[PromptAnswer]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise DataError(where, None, name, f"expected a list of prompts, found {value!r}")
    for item in value:
        if isinstance(item, PromptAnswer):
            yield item
        elif isinstance(item, Mapping):
            yield PromptAnswer(_text(where, name, item.get("prompt")), item.get("answer"))
        else:
            yield PromptAnswer(_text(where, name, item))
