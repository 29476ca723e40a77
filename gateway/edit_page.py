"""One edit for a person: where it stands, why, what was measured of it, and what happened to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.output import print_table, say
from ledger.records import AuditEvent, Edit

_WORDS = {
    "edit": "own prompt",
    "paraphrase": "paraphrase",
    "locality": "must not change",
    "portability": "consequence",
}


def describe(edit: Edit, events: Sequence[AuditEvent]) -> None:
    """Print an edit, the evidence against it where it was set aside, and its history."""
    say(f"Edit {edit.id}: {edit.state}")
    say(f"  {edit.prompt} → {edit.target}")
    evidence = edit.evidence or {}
    rows = {
        "subject": edit.subject,
        "paraphrases": "; ".join(edit.paraphrases),
        "must not change": "; ".join(prompt for prompt, _ in edit.locality),
        "reason": edit.reason,
        "source": edit.source,
        "submitted by": edit.submitted_by,
        "attempts": edit.attempts or None,
        "superseded by": edit.superseded_by,
        "error": None if edit.error == evidence.get("reason") else edit.error,
    }
    for name, value in rows.items():
        if value:
            say(f"  {name}: {value}")
    if edit.evidence:
        _say_evidence(edit.evidence)
    print_table(
        ("seq", "at", "event", "by", "why"),
        [
            (event.seq, event.at, event.kind, event.actor, why_of(event, edit.id))
            for event in events
        ],
        title="History (from the audit trail)",
    )


def why_of(event: AuditEvent, edit_id: int) -> str:
    """The reason an event gives, or the error that it tells of this edit."""
    data = event.data
    told = data.get("reason") or data.get("error")
    if not told and isinstance(data.get("why"), Mapping):
        one = data["why"].get(str(edit_id))
        told = one if isinstance(one, str) else None
    number = data.get("number")
    if told:
        return str(told)
    return "" if number is None else f"version {number}"


def _say_evidence(evidence: Mapping[str, Any]) -> None:
    """Print why an edit was set aside: plain words, its own answers, what broke, statistics."""
    say(f"  set aside: {evidence.get('reason', 'no reason was kept')}")
    failed = [c for c in evidence.get("checks", ()) if c.get("outcome") == "fail"]
    for check in failed:
        say(f"    {check.get('plain') or check.get('sentence')}")
    _say_own(evidence.get("own") or ())
    _say_broken(evidence)
    if any(check.get("plain") for check in failed):
        say("Statistics of the checks that failed, for the whole batch:")
        for check in failed:
            say(f"  {check.get('name')}: {check.get('sentence')}")


def _say_own(own: Sequence[Mapping[str, Any]]) -> None:
    """The edit's own probes; evidence of earlier releases kept only those that failed."""
    if not own:
        return
    print_table(
        ("asked", "prompt", "wanted", "before", "with the batch", "right"),
        [
            (
                _WORDS.get(str(one.get("kind")), one.get("kind")),
                one.get("prompt"),
                " / ".join(one.get("expect", ())),
                one.get("before"),
                one.get("after", one.get("answer")),
                bool(one.get("passed")),
            )
            for one in own
        ],
        title="Its own probes",
    )


def _say_broken(evidence: Mapping[str, Any]) -> None:
    """Answers that broke, and of whom that is said."""
    broke = evidence.get("broke") or ()
    count = evidence.get("broke_count", len(broke))
    if "why" not in evidence:
        # Earlier releases charged each edit of a group with all of it, some items twice.
        whose = "Broken in its batch (not told apart by edit)"
        broke = list({one.get("item_id"): one for one in broke}.values())
        count = len(broke)
    elif evidence.get("broke_by") == "edit":
        whose = "This edit alone broke"
    elif evidence.get("broke_by") == "group":
        whose = f"The {evidence['group_size']} edits set aside together broke"
    else:
        whose = f"Its whole batch of {evidence['group_size']} edits broke"
    if not broke:
        if "why" in evidence:
            say(f"  {whose} no answer that was asked with and without.")
        return
    shown = "" if count == len(broke) else f", {len(broke)} shown"
    print_table(
        ("prompt", "the base answers", "answered before", "answers with it"),
        [
            (one.get("prompt"), one.get("base"), one.get("before"), one.get("after"))
            for one in broke
        ],
        title=f"{whose} ({count}{shown})",
    )
