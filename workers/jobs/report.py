"""``report``: one self-contained page on a version, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection

from ledger import audit
from ledger import edits as edit_rows
from ledger import gates as gate_rows
from ledger import versions as version_rows
from ledger.records import AuditEvent, Edit, Job, Model, Version
from mend_core.probes import report_dict, report_html
from workers.context import Context
from workers.jobs import JobInvalid
from workers.jobs.payload import find_version, model_of

FORMATS = ("html", "json")


def _split(rows: list[dict[str, Any]]) -> tuple[list[Any], list[Any], list[Any]]:
    """Stored probe rows back into the runs of version, parent and base."""
    results = [{k: v for k, v in row.items() if k not in ("parent", "base")} for row in rows]
    return results, [row["parent"] for row in rows], [row["base"] for row in rows]


def _policy_of(model: Model, spoken: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The policy a decision was taken by; the model may have been given another since."""
    if spoken is None:
        return dict(model.policy)
    kept: dict[str, Any] | None = spoken["scores"].get("policy")
    if kept is None and spoken["policy_digest"] == model.policy_digest:
        kept = dict(model.policy)
    return kept


def _override(decisions: list[dict[str, Any]], by: str | None) -> dict[str, Any]:
    """Why and when the approver overrode the gate, where one did."""
    found = (d for d in decisions if by is not None and d["actor"] == by and d["override_reason"])
    made = next(found, None)
    if made is None:
        return {}
    return {
        "override_reason": made["override_reason"],
        "overridden_at": made["created_at"].isoformat(),
    }


_TOLD = ("version.committed", "gate.recorded", "gate.overridden", "gate.declined", "gate.withdrawn")
_MOVES = ("alias.promote", "alias.rollback", "alias.move", "alias.create")
_MOST_EVENTS = 100_000


def _trail(
    conn: Connection, model: Model, version: Version, edit_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """Audit events that say who made, judged, approved and moved a version, oldest first."""
    subject = f"version:{version.id}"
    ours = audit.events(conn, subject=subject, kinds=_TOLD, limit=_MOST_EVENTS)
    others = audit.events(
        conn, model_id=model.id, kinds=(*_MOVES, "edit.approved"), limit=_MOST_EVENTS
    )
    approved = {f"edit:{edit_id}" for edit_id in edit_ids}
    ours += [
        e
        for e in others
        if (e.subject in approved if e.kind == "edit.approved" else _touches(e, version.number))
    ]
    return [
        {
            "seq": e.seq,
            "at": e.at.isoformat(),
            "what": _what(e),
            "actor": e.actor,
            "reason": e.data.get("reason"),
            "approved_by": e.data.get("approved_by"),
        }
        for e in sorted(ours, key=lambda e: e.seq)
    ]


def _touches(event: AuditEvent, number: int) -> bool:
    return number in {event.data.get("from"), event.data.get("to")}


def _what(event: AuditEvent) -> str:
    """An event in a few words."""
    data = event.data
    if event.kind in _MOVES:
        return f"{data['alias']}: version {data['from']} → {data['to']}"
    if event.kind == "edit.approved":
        return f"{event.subject} approved"
    said = f" ({data['outcome']})" if event.kind == "gate.recorded" else ""
    return event.kind.replace(".", " ") + said


def report(context: Context, job: Job) -> Mapping[str, Any]:
    """Write the report of a version from what the ledger kept; no model is loaded.

    Payload: ``version`` (default "production"), ``format`` ("html" or "json"), ``path`` (absolute;
    default: a file under the home folder's ``reports``).

    Returns:
        ``{"path", "format", "number", "report"}`` (``report`` is the JSON form).
    """
    style = job.payload.get("format", "html")
    if style not in FORMATS:
        raise JobInvalid(f"report: format {style!r} is not one of {', '.join(FORMATS)}")
    model = model_of(context, job)
    version, _ = find_version(context, model, job.payload.get("version", "production"))

    def look(
        conn: Connection,
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Edit], list[dict[str, Any]]]:
        adds, removes = version_rows.changes(conn, version.id)
        ids = [m.edit_id for m in (*adds, *removes)]
        return (
            list(gate_rows.probes(conn, version.id)),
            list(gate_rows.decisions(conn, version.id)),
            list(edit_rows.get_many(conn, ids)),
            _trail(conn, model, version, ids),
        )

    rows, decisions, edits, trail = context.transact(look)
    results, parents, bases = _split(rows)
    spoken = next((d for d in decisions if d.get("scores")), None)
    decided = None if spoken is None else spoken["scores"].get("decision")
    said = report_dict(
        {
            "model": model.name,
            "number": version.number,
            "digest": version.digest,
            "parent": version.parent_number,
            "base_digest": version.base_digest,
            "editor_digest": version.editor_digest,
            "weights_digest": version.weights_digest,
            "platform": version.platform,
            "edit_count": version.edit_count,
            "gate": version.gate.value,
            "overridden_by": version.overridden_by,
            "created_by": version.created_by,
            "created_at": version.created_at.isoformat(),
            "reported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        | _override(decisions, version.overridden_by),
        edits=[
            {
                "id": str(e.id),
                "prompt": e.prompt,
                "target": e.target,
                "state": e.state.value,
                "reason": e.reason,
                "source": e.source,
                "submitted_by": e.submitted_by,
                "content_digest": e.content_digest,
            }
            for e in edits
        ],
        results=results,
        base_results=bases,
        parent_results=parents,
        decision=decided,
        policy=_policy_of(model, spoken),
        trail=trail,
    )
    # What a person decides later gives another file: the newest event about the version names it.
    stamp = f"{model.name}-{version.number}" + (f"-event{trail[-1]['seq']}" if trail else "")
    folder = context.config.home / "reports"
    path = Path(job.payload.get("path") or folder / f"{stamp}.{style}")
    if not path.is_absolute():
        raise JobInvalid("report: field 'path' must be an absolute path on the worker's machine")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = report_html(said) if style == "html" else json.dumps(said, indent=2, sort_keys=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return {"path": str(path), "format": style, "number": version.number, "report": said}
