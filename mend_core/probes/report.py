"""A version's report: one self-contained HTML page and the same as JSON. No torch, no database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def report_dict(
    version: Mapping[str, Any],
    *,
    edits: list[Mapping[str, Any]],
    results: list[Mapping[str, Any]],
    base_results: list[Mapping[str, Any]],
    parent_results: list[Mapping[str, Any]] | None = None,
    decision: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Everything the page shows, as JSON-ready values.

    Args:
        version: Free-form facts (number, digest, parent, base_digest, editor_digest, created_at …).
        edits: Per edit at least id, prompt, target; state, reason, source, submitted_by if known.
        results: `ProbeResult.to_dict()` of the version.
        base_results: The same of the base.
        parent_results: The same of the parent.
        decision: `GateDecision.to_dict()`.
        policy: `Policy.to_dict()`.
    """
    raise NotImplementedError


def report_html(report: Mapping[str, Any]) -> str:
    """The page; takes what `report_dict` returns."""
    raise NotImplementedError
