"""The report page's sections of answers: edits, what changed elsewhere, every probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mend_core.probes.page_parts import WORDS, Record, answer, escaped, mark, share, table
from mend_core.probes.wording import asked_besides


def edits_section(edits: Sequence[Record]) -> str:
    """Each edit with its answers before and now."""
    if not edits:
        return "<h2>Edits</h2><p>This version brings in no edit.</p>"
    rows = []
    for edit in edits:
        why = " · ".join(
            f"{name}: {escaped(edit[name])}"
            for name in ("state", "reason", "source", "submitted_by")
            if edit.get(name)
        )
        rows.append(
            f"<td><code>{escaped(edit['id'])}</code></td>"
            f'<td class="a">{escaped(edit["prompt"])}<br><b>{escaped(edit["target"])}</b>'
            f'<br><span class="dim">{why}</span></td><td>{_took(edit["took"])}</td>'
            f'<td class="a">{_asked(edit["asked"])}</td>'
        )
    head = ("edit", "prompt, target", "took", "answers: base → this version")
    return f"<h2>Edits ({len(edits)})</h2>" + table(head, rows)


def _took(took: bool | None) -> str:
    if took is None:
        return '<span class="dim">not asked</span>'
    return '<span class="pass">yes</span>' if took else '<span class="fail">no</span>'


def _asked(asked: Sequence[Record]) -> str:
    lines = []
    for a in asked:
        name = "pass" if a["passed"] else "fail"
        lines.append(
            f'<div><span class="dim">{escaped(WORDS.get(a["kind"], a["kind"]))}:'
            f"{'' if a['kind'] == 'edit' else ' ' + escaped(a['prompt'])}</span>"
            f"<br>{answer(a['base'])} →"
            f' <span class="{name}">{answer(a["version"])}</span></div>'
        )
    return "".join(lines)


def elsewhere(flip: Record) -> bool:
    """Whether an answer that a user sees changed on anything but the edits' own prompts."""
    return flip["score"] == "free" and asked_besides(flip["kind"], flip["slice"])


def one_per_item(flips: Sequence[Record]) -> list[dict[str, Any]]:
    """Flips against parent and base as one row an item, with both earlier answers."""
    rows: dict[tuple[str, bool, str], dict[str, Any]] = {}
    for flip in flips:
        key = (str(flip["item_id"]), bool(flip["broke"]), str(flip["score"]))
        row = rows.setdefault(key, dict(flip) | {"befores": {}})
        row["befores"][flip["against"]] = flip["before"]
    return list(rows.values())


def flips_section(flips: Sequence[Record]) -> str:
    """Answers that broke or turned right; teacher-forced changes apart."""
    rows = one_per_item(flips)
    # That an edit's own prompt turned right is the edit itself: its own section shows it.
    seen = [r for r in rows if r["score"] == "free" and (r["broke"] or elsewhere(r))]
    unseen = [r for r in rows if r["score"] != "free"]
    parts = [f"<h2>Answers that changed ({len(seen)})</h2>"]
    if seen:
        broke = sum(bool(r["broke"]) for r in seen)
        parts.append(f"<p>{broke} broke, {len(seen) - broke} turned right.</p>")
        parts.append(_flip_table(seen))
    else:
        parts.append("<p>No answer that was asked broke or turned right elsewhere.</p>")
    if unseen:
        note = (
            "Here the answer that a user sees is as right or wrong as before; only the "
            "teacher-forced verdict changed (each token given the right ones before it)."
        )
        parts.append(
            f"<details><summary>Teacher-forced changes only ({len(unseen)})</summary>"
            f'<p class="dim">{note}</p>{_flip_table(unseen, forced=True)}</details>'
        )
    return "".join(parts)


def _flip_table(rows: Sequence[Record], *, forced: bool = False) -> str:
    """Rows of `one_per_item`; words of a forced verdict never claim a right answer."""
    cells = []
    for r in rows:
        word = mark("broke" if r["broke"] else "fixed")
        if forced:
            word = "tokens worse" if r["broke"] else "tokens better"
        befores = "".join(
            f'<td class="a">{answer(r["befores"].get(against, "same verdict as now"))}</td>'
            for against in ("base", "parent")
        )
        cells.append(
            f"<td>{word}</td><td>{escaped(WORDS.get(r['kind'], r['kind']))}<br>"
            f'<span class="dim">{escaped(r["slice"])}</span></td>'
            f'<td class="a">{escaped(r["prompt"])}</td>'
            f'<td class="a">{answer(" / ".join(r["expect"]))}</td>{befores}'
            f'<td class="a">{answer(r["after"])}</td>'
        )
    head = (
        "",
        "probe",
        "prompt",
        "expected",
        "base answered",
        "parent answered",
        "this version answers",
    )
    return table(head, cells)


def items_section(items: Sequence[Record]) -> str:
    """Every probe, folded away."""
    if not items:
        return ""
    rows = [
        f"<td><code>{escaped(i['item_id'])}</code>"
        f"{' <b>canary</b>' if i['never_for_tuning'] else ''}</td>"
        f"<td>{mark('pass' if i['passed'] else 'fail')}</td>"
        f'<td class="n">{share(i["token_accuracy"])}</td>'
        f'<td class="a">{answer(i["prompt"])}</td>'
        f'<td class="a">{answer(i["base_answer"])}</td><td class="a">{answer(i["answer"])}</td>'
        for i in items
    ]
    head = ("item", "says", "tokens right", "prompt", "base answers", "this version answers")
    return (
        f"<h2>All probes ({len(items)})</h2><details><summary>Show them</summary>"
        f"{table(head, rows)}</details>"
    )
