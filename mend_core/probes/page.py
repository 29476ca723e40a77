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
.skipped{color:var(--dim)}.key{display:flex;flex-wrap:wrap;gap:.8rem;margin:1rem 0 0}
.key>div{flex:1 1 11rem}.key b{font-size:1.35rem;display:block;font-variant-numeric:tabular-nums}
.verdict{font-weight:700;text-transform:uppercase;letter-spacing:.04em}
table{border-collapse:collapse;width:100%;font-size:.88rem}
.wide{overflow-x:auto}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid var(--line)}
th{color:var(--dim);font-weight:600}td.n{text-align:right;font-variant-numeric:tabular-nums}
code{font-size:.85em;overflow-wrap:anywhere}td.k code{overflow-wrap:normal;word-break:keep-all}
td.s{white-space:nowrap}td.s,th.s{text-align:right;font-variant-numeric:tabular-nums}
td.a{white-space:pre-wrap;overflow-wrap:anywhere}
svg{max-width:100%;height:auto}svg text{fill:var(--ink);font:12px system-ui,sans-serif}
details>summary{cursor:pointer;color:var(--dim)}
@media print{:root{color-scheme:light;--ink:#000;--dim:#555;--line:#ccc;--back:#fff;--card:#f6f8fa;
--good:#1a7f4b;--bad:#c0362c;--open:#a86500;--one:#2457c5}@page{margin:14mm}
body{max-width:none;margin:0;padding:0;font-size:10.5pt}table{font-size:8.5pt}.wide{overflow:visible}
details::details-content{content-visibility:visible}thead{display:table-header-group}tr,svg,.card{break-inside:avoid}h2{break-after:avoid}}
"""


def report_html(report: Record) -> str:
    """The page of what `report_dict` returned (or of its JSON, read back)."""
    version = report["version"]
    title = f"Version {version.get('number', '?')}"
    if version.get("model"):
        title += f" of {version['model']}"
    body = [
        f"<h1>{_text(title)}</h1>",
        _byline(version),
        _verdict(report.get("decision"), version),
        _summary(report),
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
    # A head that ends in a space stands over numbers.
    cells = "".join(
        f'<th class="s">{_text(name)}</th>' if name.endswith(" ") else f"<th>{_text(name)}</th>"
        for name in head
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{cells}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


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


def _byline(version: Record) -> str:
    """Who made what, out of what, when: the line a ticket quotes."""
    told = [
        f"{version['edit_count']} edits in all" if version.get("edit_count") is not None else "",
        f"built on version {version['parent']}" if version.get("parent") is not None else "",
        f"made {str(version['created_at'])[:16].replace('T', ' ')}"
        if version.get("created_at")
        else "",
        f"by {version['created_by']}" if version.get("created_by") else "",
    ]
    digest = f" · <code>{_text(version['digest'])}</code>" if version.get("digest") else ""
    return f'<p class="dim">{_text(" · ".join(part for part in told if part))}{digest}</p>'


def _summary(report: Record) -> str:
    """The few numbers a person asks for first, each with its interval and n."""
    if report["scores"] is None:
        return ""
    rates = report["scores"]["version"]["rates"]
    tiles = [
        f"<div><b>{_share(rates[kind]['value'])}</b>{_text(words)}"
        f'<br><span class="dim">{_interval(rates[kind])}, n = {rates[kind]["n"]}</span></div>'
        for kind, words in (
            ("edit", "of new edits answered"),
            ("paraphrase", "of their paraphrases answered"),
            ("locality", "of neighbours unchanged from the base"),
            ("protected", "of protected answers unchanged"),
        )
        if rates.get(kind, {}).get("n")
    ]
    against = "parent" if any(f["against"] == "parent" for f in report["flips"]) else "base"
    flips = [f for f in report["flips"] if f["against"] == against]
    broke = sum(bool(f["broke"]) for f in flips)
    tiles.append(
        f"<div><b>{broke}</b>answers broke, {len(flips) - broke} were fixed"
        f'<br><span class="dim">against the {against}, n = {len(report["items"])} probes</span>'
        "</div>"
    )
    return f'<div class="key">{"".join(tiles)}</div>'


def _interval(rate: Record) -> str:
    if rate["low"] is None:
        return "no interval"
    return f"{rate['low']:.1%} to {rate['high']:.1%}"


def _rate(rate: Record | None) -> str:
    """A share with its interval, or a dash where nothing was asked so."""
    if rate is None or rate["value"] is None:
        return '<td class="s">-</td>'
    return (
        f'<td class="s">{_share(rate["value"])} <span class="dim">[{_interval(rate)}]</span></td>'
    )


def _scores(scores: Record | None) -> str:
    if scores is None:
        return "<h2>Scores</h2><p>This version was not probed.</p>"
    now, parent, base = scores["version"], scores["parent"], scores["base"]
    rows = [
        f'<td>{_text(_WORDS.get(kind, kind))}</td><td class="n">{rate["n"]}</td>{_rate(rate)}'
        f"{_rate(now['rates_forced'].get(kind))}{_rate(parent['rates'].get(kind))}"
        f"{_rate(base['rates'].get(kind))}"
        for kind, rate in now["rates"].items()
    ]
    head = (
        "probes",
        "n ",
        "this version, free-running ",
        "this version, teacher-forced ",
        "parent, free-running ",
        "base, free-running ",
    )
    families = (
        ("free", "free-running, whole answer"),
        ("forced_exact", "teacher-forced, whole answer"),
        ("forced_token", "teacher-forced, share of tokens"),
    )
    counts = {
        "edit_success": "edit",
        "generality": "paraphrase",
        "locality": "locality",
        "portability": "portability",
    }
    columns = (*counts, "harmonic_mean")
    papers = [
        f"<td>{words}</td>"
        + "".join(f'<td class="s">{_share(now[family][c])}</td>' for c in columns)
        for family, words in families
    ]
    asked = {
        name: now["rates"].get(kind, {}).get("n", 0)
        + (now["rates"].get("protected", {}).get("n", 0) if name == "locality" else 0)
        for name, kind in counts.items()
    }
    papers_head = (
        "this version, counted as papers do",
        *(f"{name.replace('_', ' ')} (n = {n}) " for name, n in asked.items()),
        "harmonic mean ",
    )
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
    return (
        "<h2>Scores</h2>"
        '<p class="dim">Share of probes that pass, with 95 % Wilson intervals. Free-running: what '
        "a user sees; teacher-forced: each token given the right ones before it.</p>"
        + _table(head, rows)
        + '<p class="dim">Free-running; hollow: the parent.</p>'
        + shares_plot(shares)
        + _table(papers_head, papers)
        + _on_text(scores)
    )


def _on_text(scores: Record) -> str:
    """Perplexity and KL with what they rest on; nothing where no text was asked."""
    texts = scores["texts"]
    if not texts["items"]:
        return ""
    rows = []
    for run, name in (("version", "this version"), ("parent", "parent"), ("base", "base")):
        found = texts[run]
        rows.append(
            f'<td>{name}</td><td class="s">{_number(scores[run]["perplexity"])}</td>'
            f"{_measured(found['perplexity_ratio'])}{_measured(found['kl'])}"
            f'<td class="s">{scores[run]["not_finite"]}</td>'
        )
    head = (
        "text",
        "perplexity ",
        "against the base ",
        "KL(base ‖ run), nats per token ",
        "probes not finite ",
    )
    note = (
        f'<p class="dim">On text: n = {texts["tokens"]} tokens of {texts["items"]} texts; 95 % '
        "intervals over texts, where there are at least two.</p>"
    )
    return note + _table(head, rows)


def _measured(found: Record) -> str:
    if found["value"] is None:
        return '<td class="s">-</td>'
    spread = (
        "" if found["low"] is None else f" [{_number(found['low'])} to {_number(found['high'])}]"
    )
    return f'<td class="s">{_number(found["value"])}<span class="dim">{spread}</span></td>'


def _values(rate: Record | None) -> tuple[float | None, float | None, float | None]:
    if rate is None:
        return None, None, None
    return rate["value"], rate["low"], rate["high"]


def _checks(decision: Record | None) -> str:
    if decision is None:
        return ""
    checks = sorted(decision["checks"], key=lambda c: _WORST_FIRST.get(c["outcome"], 0))
    rows = []
    for c in checks:
        show = _share if _is_share(str(c["name"])) else _number
        name = _text(c["name"]).replace("/", "/<wbr>").replace("_", "_<wbr>")
        rows.append(
            f'<td>{_mark(c["outcome"])}</td><td class="k"><code>{name}</code></td>'
            f'<td class="s">{show(c["observed"])}</td><td class="s">{show(c["bound"])}</td>'
            f'<td class="s">{show(c["threshold"])}</td><td class="s">{_text(c["n"])}</td>'
            f'<td class="s">{"" if c["needed"] is None else _text(c["needed"])}</td>'
            f"<td>{_text(c['sentence'])}</td>"
        )
    paired = [
        (
            f"{c['name']} (n = {c['n']})",
            float(c["observed"]),
            float(c["bound"]),
            float(c["threshold"]),
        )
        for c in checks
        if str(c["name"]).startswith(("parent/", "drift/"))
        and None not in (c["observed"], c["bound"], c["threshold"])
    ]
    note = (
        '<p class="dim">Net loss against parent and base: observed (dot), upper confidence bound'
        " (line), margin (bar).</p>"
    )
    head = ("says", "check", "observed ", "bound ", "threshold ", "n ", "n needed ", "in words")
    plot = note + losses_plot(paired) if paired else ""
    return "<h2>Gate</h2>" + _table(head, rows) + plot


_WORST_FIRST = {"fail": 0, "inconclusive": 1, "pass": 2, "skipped": 3}


def _is_share(name: str) -> bool:
    """Whether a check's numbers are shares of items, to be shown in percent."""
    return name in {"success", "generality"} or name.startswith(("parent/", "drift/"))


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
