"""A version's report as JSON-ready values; `page.py` draws the same as one HTML page.

Pure functions of plain dicts, as the ledger keeps them: no model, no torch, no database, so that a
report can be made again years later and says the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mend_core.probes.gate import find_flips
from mend_core.probes.results import ProbeResult, summarise
from mend_core.probes.statistics import ratio_interval
from mend_core.probes.suites import ProbeKind

FORMAT = "mend-report/1"
"""Name of this layout; changes when a reader of the JSON would have to."""

Record = Mapping[str, Any]


def report_dict(
    version: Record,
    *,
    edits: Sequence[Record],
    results: Sequence[Record],
    base_results: Sequence[Record],
    parent_results: Sequence[Record] | None = None,
    decision: Record | None = None,
    policy: Record | None = None,
    trail: Sequence[Record] = (),
) -> dict[str, Any]:
    """Everything the page shows, as JSON-ready values.

    Args:
        version: Free-form facts (number, digest, parent, base_digest, editor_digest, created_at …).
        edits: Per edit at least id, prompt, target; state, reason, source, submitted_by if known.
        results: `ProbeResult.to_dict()` of the version; empty where it was never probed.
        base_results: The same of the base.
        parent_results: The same of the parent; None where the parent is the base.
        decision: `GateDecision.to_dict()`, if the gate has spoken.
        policy: `Policy.to_dict()`.
        trail: Audit events about the version, oldest first: seq, at, what, actor, reason,
            approved_by.

    Returns:
        Keys: format, version, decision, policy, scores (of version, parent, base), edits (with the
        free-running answers before and after), flips (against parent and base), items, trail.

    Raises:
        SuiteInvalid: The runs are not on the same suite.
    """
    now = [ProbeResult.from_dict(r) for r in results]
    base = [ProbeResult.from_dict(r) for r in base_results]
    parent = base if parent_results is None else [ProbeResult.from_dict(r) for r in parent_results]
    same = [r.answer for r in parent] == [r.answer for r in base]
    flips = [] if same else find_flips(now, parent, against="parent")
    flips += find_flips(now, base, against="base")
    parents, bases = {r.item_id: r for r in parent}, {r.item_id: r for r in base}
    runs = [(r, parents[r.item_id], bases[r.item_id]) for r in now]
    return {
        "format": FORMAT,
        "version": dict(version),
        "decision": None if decision is None else dict(decision),
        "policy": None if policy is None else dict(policy),
        "scores": {
            "version": summarise(now, base).to_dict(),
            "parent": summarise(parent, base).to_dict(),
            "base": summarise(base, base).to_dict(),
            "texts": _texts(now, parent, base),
        }
        if now
        else None,
        "edits": [_edit(edit, runs) for edit in edits],
        "flips": [flip.to_dict() for flip in flips],
        "items": [_item(*run) for run in runs],
        "trail": [dict(event) for event in trail],
    }


def _edit(
    edit: Record, runs: Sequence[tuple[ProbeResult, ProbeResult, ProbeResult]]
) -> dict[str, Any]:
    """An edit with what was answered to its own prompt and paraphrases."""
    asked = [
        {
            "kind": now.kind.value,
            "prompt": now.prompt,
            "base": base.answer,
            "parent": parent.answer,
            "version": now.answer,
            "passed": now.passed,
            "passed_forced": now.passed_forced,
        }
        for now, parent, base in runs
        if now.edit_id == edit.get("id") and now.kind in _ASKED_OF_EDITS
    ]
    own = [a for a in asked if a["kind"] == ProbeKind.EDIT.value]
    return dict(edit) | {"took": own[0]["passed"] if own else None, "asked": asked}


def _texts(
    now: Sequence[ProbeResult], parent: Sequence[ProbeResult], base: Sequence[ProbeResult]
) -> dict[str, Any]:
    """What perplexity and KL rest on, and their intervals over texts."""
    asked = [r for r in now if r.kind is ProbeKind.PERPLEXITY]
    told: dict[str, Any] = {"items": len(asked), "tokens": sum(r.tokens for r in asked)}
    own = {r.item_id: r for r in base}
    for name, run in (("version", now), ("parent", parent), ("base", base)):
        texts = [r for r in run if r.kind is ProbeKind.PERPLEXITY]
        losses = []
        for r in texts:
            before = own[r.item_id].nll
            if r.nll is not None and before is not None:
                losses.append((r.nll - before, r.tokens))
        kls = [(r.kl * r.tokens, r.tokens) for r in texts if r.kl is not None]
        whole = len(losses) == len(texts)
        ratio = ratio_interval(losses) if whole else (None, None, None)
        told[name] = {
            "perplexity_ratio": _bounds(tuple(None if x is None else math.exp(x) for x in ratio)),
            "kl": _bounds(ratio_interval(kls) if len(kls) == len(texts) else (None, None, None)),
        }
    return told


def _bounds(found: Sequence[float | None]) -> dict[str, float | None]:
    return dict(zip(("value", "low", "high"), found, strict=True))


def _item(now: ProbeResult, parent: ProbeResult, base: ProbeResult) -> dict[str, Any]:
    """One probe item with the three answers side by side."""
    return now.to_dict() | {
        "parent_answer": parent.answer,
        "parent_passed": parent.passed,
        "base_answer": base.answer,
        "base_passed": base.passed,
    }


_ASKED_OF_EDITS = frozenset({ProbeKind.EDIT, ProbeKind.PARAPHRASE, ProbeKind.PORTABILITY})
