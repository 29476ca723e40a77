"""The report page: one self-contained HTML file, fit to attach to a change ticket.

No scripts, no links out, nothing to load. Every text that came from a person or a model goes
through `html.escape`; there is no other way into the page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from mend_core.probes.page_answers import (
    edits_section,
    elsewhere,
    flips_section,
    items_section,
    one_per_item,
)
from mend_core.probes.page_parts import STYLE, WORDS, Record, escaped, mark, number, share, table
from mend_core.probes.plots import Interval, losses_plot, shares_plot
from mend_core.probes.wording import RING_WORDS, besides, plain, summary


def report_html(report: Record) -> str:
    """The page of what `report_dict` returned (or of its JSON, read back)."""
    version = report["version"]
    title = f"Version {version.get('number', '?')}"
    if version.get("model"):
        title += f" of {version['model']}"
    body = [
        f"<h1>{escaped(title)}</h1>",
        _byline(version),
        _verdict(report.get("decision"), version, report.get("policy")),
        _trail(report.get("trail") or ()),
        _summary(report),
        _scores(report.get("scores")),
        _checks(report.get("decision")),
        edits_section(report["edits"]),
        flips_section(report["flips"]),
        items_section(report["items"]),
        _facts("Identity", version),
        _policy(report.get("policy"), report.get("decision")),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head>\n<body>"
        + "\n".join(part for part in body if part)
        + "</body></html>\n"
    )


def _by_policy(policy: Record | None) -> str:
    if policy is None:
        return ""
    says = f": {policy['says']}" if policy.get("says") else ""
    return f"<p>Policy <b>{escaped(policy.get('name', '?'))}</b>{escaped(says)}</p>"


def _verdict(decision: Record | None, version: Record, policy: Record | None) -> str:
    if decision is None:
        return '<p class="card">This version has not been through the gate.</p>'
    open_checks = [c for c in decision["checks"] if c["outcome"] == decision["outcome"]]
    reasons = ""
    if decision["outcome"] != "pass":
        reasons = "".join(f"<li>{escaped(plain(c))}</li>" for c in open_checks)
        reasons = f"<ul>{reasons}</ul>"
    taken = ""
    if decision["not_taken"]:
        names = ", ".join(decision["not_taken"])
        taken = f"<p>Edits that did not take: <code>{escaped(names)}</code></p>"
    override = ""
    if version.get("overridden_by"):
        why = version.get("override_reason") or "no reason was kept"
        when = f" on {_moment(version['overridden_at'])}" if version.get("overridden_at") else ""
        who = f"<b>Overridden by {escaped(version['overridden_by'])}</b>"
        override = f"<p>{who}{escaped(when)}: {escaped(why)}</p>"
    return (
        f'<div class="card"><div>The gate says {mark(decision["outcome"])}'
        f' <span class="dim">({escaped(summary(decision["checks"]))})</span></div>'
        f"{override}{_by_policy(policy)}{reasons}{taken}</div>"
    )


def _moment(value: object) -> str:
    return str(value)[:16].replace("T", " ")


def _trail(events: Sequence[Record]) -> str:
    """Who let it through, when and why, with the numbers of the audit events."""
    if not events:
        return ""
    rows = [
        f'<td class="n">{escaped(e["seq"])}</td><td class="s">{escaped(_moment(e["at"]))}</td>'
        f"<td>{escaped(e['what'])}</td><td>{escaped(e['actor'])}"
        f"{' · approved by ' + escaped(e['approved_by']) if e.get('approved_by') else ''}</td>"
        f'<td class="a">{escaped(e.get("reason") or "")}</td>'
        for e in events
    ]
    return "<h2>Decisions</h2>" + table(("audit event", "at ", "what", "by", "why"), rows)


def _byline(version: Record) -> str:
    """Who made what, out of what, when: the line a ticket quotes."""
    told = [
        f"{version['edit_count']} edits in all" if version.get("edit_count") is not None else "",
        f"built on version {version['parent']}" if version.get("parent") is not None else "",
        f"made {str(version['created_at'])[:16].replace('T', ' ')}"
        if version.get("created_at")
        else "",
        f"by {version['created_by']}" if version.get("created_by") else "",
        f"this report {_moment(version['reported_at'])}" if version.get("reported_at") else "",
    ]
    digest = f" · <code>{escaped(version['digest'])}</code>" if version.get("digest") else ""
    return f'<p class="dim">{escaped(" · ".join(part for part in told if part))}{digest}</p>'


def _summary(report: Record) -> str:
    """The few numbers a person asks for first, each with its interval and n."""
    if report["scores"] is None:
        return ""
    rates = report["scores"]["version"]["rates"]
    tiles = [
        f"<div><b>{share(rates[kind]['value'])}</b>{escaped(words)}"
        f'<br><span class="dim">{_interval(rates[kind])}, n = {rates[kind]["n"]}</span></div>'
        for kind, words in (
            ("edit", "of new edits answered"),
            ("paraphrase", "of their paraphrases answered"),
            ("protected", "of protected answers unchanged"),
        )
        if rates.get(kind, {}).get("n")
    ]
    rings = report["scores"]["version"].get("rings", {})
    tiles += [
        f"<div><b>{share(rate['value'])}</b>of {escaped(RING_WORDS[ring])} unchanged"
        f'<br><span class="dim">{_interval(rate)}, n = {rate["n"]}</span></div>'
        for ring, rate in rings.items()
    ]
    n = besides((i["kind"], i["slice"]) for i in report["items"])
    if n:
        flips = [f for f in one_per_item(report["flips"]) if elsewhere(f)]
        broke = sum(bool(f["broke"]) for f in flips)
        tiles.append(
            f"<div><b>{broke} of {n}</b>other answers broke, {len(flips) - broke} turned right"
            '<br><span class="dim">against the parent or the base; all but the edits\' own prompts'
            "</span></div>"
        )
    else:
        tiles.append(
            "<div><b>not asked</b>what else changed: nothing but the edits' own prompts was asked"
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
    return f'<td class="s">{share(rate["value"])} <span class="dim">[{_interval(rate)}]</span></td>'


def _scores(scores: Record | None) -> str:
    if scores is None:
        return "<h2>Scores</h2><p>This version was not probed.</p>"
    now, parent, base = scores["version"], scores["parent"], scores["base"]
    rows = [
        f'<td>{escaped(WORDS.get(kind, kind))}</td><td class="n">{rate["n"]}</td>{_rate(rate)}'
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
        + "".join(f'<td class="s">{share(now[family][c])}</td>' for c in columns)
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
            WORDS.get(kind, kind),
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
        + table(head, rows)
        + '<p class="dim">Free-running; hollow: the parent.</p>'
        + shares_plot(shares)
        + _on_text(scores)
        + "<details><summary>Counted as papers on knowledge editing do</summary>"
        '<p class="dim">For comparison with published tables: means over prompts, and the harmonic '
        "mean of edit success, generality and locality.</p>"
        + table(papers_head, papers)
        + "</details>"
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
            f'<td>{name}</td><td class="s">{number(scores[run]["perplexity"])}</td>'
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
    return note + table(head, rows)


def _measured(found: Record) -> str:
    if found["value"] is None:
        return '<td class="s">-</td>'
    spread = "" if found["low"] is None else f" [{number(found['low'])} to {number(found['high'])}]"
    return f'<td class="s">{number(found["value"])}<span class="dim">{spread}</span></td>'


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
        show = share if _is_share(str(c["name"])) else number
        name = escaped(c["name"]).replace("/", "/<wbr>").replace("_", "_<wbr>")
        rows.append(
            f'<td>{mark(c["outcome"])}</td><td class="w">{escaped(plain(c))}'
            f"{_statistics(c)}</td>"
            f'<td class="k"><code>{name}</code></td>'
            f'<td class="s">{show(c["observed"])}</td><td class="s">{show(c["bound"])}</td>'
            f'<td class="s">{show(c["threshold"])}</td><td class="s">{escaped(c["n"])}</td>'
            f'<td class="s">{"" if c["needed"] is None else escaped(c["needed"])}</td>'
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
    head = ("says", "in words", "check", "observed ", "bound ", "threshold ", "n ", "n needed ")
    plot = note + losses_plot(paired) if paired else ""
    return "<h2>Gate</h2>" + table(head, rows) + plot


def _statistics(check: Record) -> str:
    """The check's own sentence, where it says more than the plain words."""
    if plain(check) == check["sentence"]:
        return ""
    return f'<br><span class="dim">{escaped(check["sentence"])}</span>'


_WORST_FIRST = {"fail": 0, "inconclusive": 1, "pass": 2, "reported": 3, "skipped": 4}


def _is_share(name: str) -> bool:
    """Whether a check's numbers are shares of items, to be shown in percent."""
    return name in {"success", "generality"} or name.startswith(("parent/", "drift/"))


def _facts(title: str, facts: Record) -> str:
    rows = [
        f"<td>{escaped(name.replace('_', ' '))}</td><td><code>{escaped(_plain(value))}</code></td>"
        for name, value in facts.items()
        if value is not None
    ]
    return f"<h2>{escaped(title)}</h2>" + table(("", ""), rows)


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
