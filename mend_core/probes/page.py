"""The report page: one self-contained HTML file, fit to attach to a change ticket.

No scripts, no links out, nothing to load. Every text that came from a person or a model goes
through `html.escape`; there is no other way into the page.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mend_core.probes.plots import Interval, losses_plot, shares_plot

Record = Mapping[str, Any]

ANSWER_LIMIT = 400
"""Characters of an answer that a table cell shows."""

_WORDS = {
    "edit": "own prompt",
    "paraphrase": "paraphrases",
    "portability": "portability",
    "locality": "locality",
    "protected": "protected",
    "capability": "capability",
    "must_contain": "must contain",
    "must_not_contain": "must not contain",
    "health": "text health",
}

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--dim:#667085;--line:#d9dee6;--back:#fff;--card:#f6f8fa;
--good:#1a7f4b;--bad:#c0362c;--open:#a86500;--one:#2457c5;--two:#8a94a6}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--dim:#98a2b3;--line:#343c49;--back:#14181f;
--card:#1c222b;--good:#4cc38a;--bad:#ff7b70;--open:#f0b04a;--one:#7aa7ff;--two:#8a94a6}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:70rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0 0 .3rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
.dim{color:var(--dim)}.card{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:.9rem 1.1rem}
.pass,.fixed{color:var(--good)}.fail,.broke{color:var(--bad)}.inconclusive{color:var(--open)}
.skipped{color:var(--dim)}.verdict{font-weight:700;text-transform:uppercase;letter-spacing:.04em}
table{border-collapse:collapse;width:100%;font-size:.88rem}
.wide{overflow-x:auto}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid var(--line)}
th{color:var(--dim);font-weight:600}td.n{text-align:right;font-variant-numeric:tabular-nums}
code{font-size:.85em;overflow-wrap:anywhere}td.a{white-space:pre-wrap;overflow-wrap:anywhere}
svg{max-width:100%;height:auto}svg text{fill:var(--ink);font:12px system-ui,sans-serif}
details>summary{cursor:pointer;color:var(--dim)}
@media print{body{max-width:none;margin:0}}
"""


def report_html(report: Record) -> str:
    """The page of what `report_dict` returned (or of its JSON, read back)."""
    version = report["version"]
    title = f"Version {version.get('number', '?')}"
    if version.get("model"):
        title += f" of {version['model']}"
    body = [
        f"<h1>{_text(title)}</h1>",
        _verdict(report.get("decision"), version),
        _scores(report.get("scores")),
        _checks(report.get("decision")),
        _edits(report["edits"]),
        _flips(report["flips"]),
        _items(report["items"]),
        _facts("Identity", version),
        _policy(report.get("policy"), report.get("decision")),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n<body>"
        + "\n".join(part for part in body if part)
        + "</body></html>\n"
    )


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _answer(value: object) -> str:
    text = str(value).strip()
    return _text(text if len(text) <= ANSWER_LIMIT else text[:ANSWER_LIMIT] + " …")


def _table(head: Sequence[str], rows: Iterable[str]) -> str:
    cells = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{cells}</tr>\n{body}</table></div>'


def _mark(outcome: str) -> str:
    # The class is one of our own words or nothing; a stored word is still never trusted.
    known = {"pass", "fail", "inconclusive", "skipped", "broke", "fixed"}
    name = outcome if outcome in known else ""
    return f'<span class="verdict {name}">{_text(outcome)}</span>'


def _verdict(decision: Record | None, version: Record) -> str:
    if decision is None:
        return '<p class="card">This version has not been through the gate.</p>'
    open_checks = [c for c in decision["checks"] if c["outcome"] == decision["outcome"]]
    reasons = ""
    if decision["outcome"] != "pass":
        reasons = "".join(f"<li>{_text(c['sentence'])}</li>" for c in open_checks)
        reasons = f"<ul>{reasons}</ul>"
    taken = ""
    if decision["not_taken"]:
        names = ", ".join(decision["not_taken"])
        taken = f"<p>Edits that did not take: <code>{_text(names)}</code></p>"
    override = ""
    if version.get("overridden_by"):
        override = f"<p>Overridden by {_text(version['overridden_by'])}.</p>"
    return (
        f'<div class="card"><div>The gate says {_mark(decision["outcome"])}'
        f' <span class="dim">({len(decision["checks"])} checks)</span></div>'
        f"{reasons}{taken}{override}</div>"
    )


def _scores(scores: Record | None) -> str:
    if scores is None:
        return "<h2>Scores</h2><p>This version was not probed.</p>"
    now, parent, base = scores["version"], scores["parent"], scores["base"]
    families = (
        ("free", "free-running (what a user sees)"),
        ("forced_exact", "teacher-forced, whole answer"),
        ("forced_token", "teacher-forced, tokens"),
    )
    columns = ("edit_success", "generality", "locality", "harmonic_mean", "portability")
    rows = []
    for run, name in ((now, "this version"), (parent, "parent"), (base, "base")):
        for family, words in families:
            cells = "".join(f'<td class="n">{_share(run[family][c])}</td>' for c in columns)
            rows.append(f"<td>{name}</td><td>{words}</td>{cells}")
    head = ("run", "counted", "success", "generality", "locality", "harmonic mean", "portability")
    shares = [
        (
            _WORDS.get(kind, kind),
            Interval(rate["value"], rate["low"], rate["high"]),
            Interval(*_values(parent["rates"].get(kind))),
            rate["n"],
        )
        for kind, rate in now["rates"].items()
        if rate["n"]
    ]
    text_rows = [
        f'<td>{name}</td><td class="n">{_number(run["perplexity"])}</td>'
        f'<td class="n">{_number(run["perplexity_ratio"])}</td>'
        f'<td class="n">{_number(run["kl"])}</td><td class="n">{run["not_finite"]}</td>'
        for run, name in ((now, "this version"), (parent, "parent"), (base, "base"))
    ]
    return (
        "<h2>Scores</h2>"
        + _table(head, rows)
        + '<p class="dim">Free-running pass rates, 95 % Wilson intervals; hollow: the parent.</p>'
        + shares_plot(shares)
        + _table(
            ("run", "perplexity", "against the base", "KL, nats per token", "not finite"), text_rows
        )
    )


def _values(rate: Record | None) -> tuple[float | None, float | None, float | None]:
    if rate is None:
        return None, None, None
    return rate["value"], rate["low"], rate["high"]


def _checks(decision: Record | None) -> str:
    if decision is None:
        return ""
    checks = decision["checks"]
    rows = [
        f"<td>{_mark(c['outcome'])}</td><td><code>{_text(c['name'])}</code></td>"
        f'<td class="n">{_number(c["observed"])}</td><td class="n">{_number(c["bound"])}</td>'
        f'<td class="n">{_number(c["threshold"])}</td><td class="n">{_text(c["n"])}</td>'
        f'<td class="n">{"" if c["needed"] is None else _text(c["needed"])}</td>'
        f"<td>{_text(c['sentence'])}</td>"
        for c in checks
    ]
    paired = [
        (str(c["name"]), float(c["observed"]), float(c["bound"]), float(c["threshold"]))
        for c in checks
        if str(c["name"]).startswith(("parent/", "drift/"))
        and None not in (c["observed"], c["bound"], c["threshold"])
    ]
    note = (
        '<p class="dim">Net loss against parent and base: observed (dot), upper confidence bound'
        " (line), margin (bar).</p>"
    )
    head = ("says", "check", "observed", "bound", "threshold", "n", "n needed", "in words")
    plot = note + losses_plot(paired) if paired else ""
    return "<h2>Gate</h2>" + _table(head, rows) + plot


def _edits(edits: Sequence[Record]) -> str:
    if not edits:
        return "<h2>Edits</h2><p>This version brings in no edit.</p>"
    rows = []
    for edit in edits:
        why = " · ".join(
            f"{name}: {_text(edit[name])}"
            for name in ("state", "reason", "source", "submitted_by")
            if edit.get(name)
        )
        rows.append(
            f"<td><code>{_text(edit['id'])}</code></td>"
            f'<td class="a">{_text(edit["prompt"])}<br><b>{_text(edit["target"])}</b>'
            f'<br><span class="dim">{why}</span></td><td>{_took(edit["took"])}</td>'
            f'<td class="a">{_asked(edit["asked"])}</td>'
        )
    head = ("edit", "prompt, target", "took", "answers: base → this version")
    return f"<h2>Edits ({len(edits)})</h2>" + _table(head, rows)


def _took(took: bool | None) -> str:
    if took is None:
        return '<span class="dim">not asked</span>'
    return '<span class="pass">yes</span>' if took else '<span class="fail">no</span>'


def _asked(asked: Sequence[Record]) -> str:
    lines = []
    for a in asked:
        mark = "pass" if a["passed"] else "fail"
        lines.append(
            f'<div><span class="dim">{_text(_WORDS.get(a["kind"], a["kind"]))}:'
            f" {_text(a['prompt'])}</span><br>{_answer(a['base'])} →"
            f' <span class="{mark}">{_answer(a["version"])}</span></div>'
        )
    return "".join(lines)


def _flips(flips: Sequence[Record]) -> str:
    if not flips:
        return "<h2>Flips</h2><p>No probe's verdict changed.</p>"
    parts = [f"<h2>Flips ({len(flips)})</h2>"]
    for against in ("parent", "base"):
        chosen = [f for f in flips if f["against"] == against]
        if not chosen:
            continue
        broke = sum(bool(f["broke"]) for f in chosen)
        rows = [
            f"<td>{_mark('broke' if f['broke'] else 'fixed')}</td>"
            f"<td>{_text(_WORDS.get(f['kind'], f['kind']))}<br>"
            f'<span class="dim">{_text(f["slice"])} · {_text(f["score"])}</span></td>'
            f'<td class="a">{_text(f["prompt"])}</td>'
            f'<td class="a">{_answer(" / ".join(f["expect"]))}</td>'
            f'<td class="a">{_answer(f["before"])}</td><td class="a">{_answer(f["after"])}</td>'
            for f in chosen
        ]
        fixed = len(chosen) - broke
        parts.append(f"<p>Against the {against}: {broke} broke, {fixed} fixed.</p>")
        head = ("", "probe", "prompt", "expected", f"{against} answered", "this version answers")
        parts.append(_table(head, rows))
    return "".join(parts)


def _items(items: Sequence[Record]) -> str:
    if not items:
        return ""
    rows = [
        f"<td><code>{_text(i['item_id'])}</code>"
        f"{' <b>canary</b>' if i['never_for_tuning'] else ''}</td>"
        f"<td>{_mark('pass' if i['passed'] else 'fail')}</td>"
        f'<td class="n">{_share(i["token_accuracy"])}</td>'
        f'<td class="a">{_answer(i["prompt"])}</td>'
        f'<td class="a">{_answer(i["base_answer"])}</td><td class="a">{_answer(i["answer"])}</td>'
        for i in items
    ]
    head = ("item", "says", "tokens right", "prompt", "base answers", "this version answers")
    return (
        f"<h2>All probes ({len(items)})</h2><details><summary>Show them</summary>"
        f"{_table(head, rows)}</details>"
    )


def _facts(title: str, facts: Record) -> str:
    rows = [
        f"<td>{_text(name.replace('_', ' '))}</td><td><code>{_text(_plain(value))}</code></td>"
        for name, value in facts.items()
        if value is not None
    ]
    return f"<h2>{_text(title)}</h2>" + _table(("", ""), rows)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _policy(policy: Record | None, decision: Record | None) -> str:
    if policy is None:
        return ""
    digests = {
        "policy digest": None if decision is None else decision["policy_digest"],
        "suite digest": None if decision is None else decision["suite_digest"],
    }
    return _facts("Policy", {**digests, **policy})
