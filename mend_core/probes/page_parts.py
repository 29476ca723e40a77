"""The report page's style and its smallest parts: escaped text, numbers, tables, marks."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]

ANSWER_LIMIT = 400
"""Characters of an answer that a table cell shows."""

WORDS = {
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

STYLE = """
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
.skipped,.reported{color:var(--dim)}.key{display:flex;flex-wrap:wrap;gap:.8rem;margin:1rem 0 0}
.key>div{flex:1 1 11rem}.key b{font-size:1.35rem;display:block;font-variant-numeric:tabular-nums}
.verdict{font-weight:700;text-transform:uppercase;letter-spacing:.04em}
table{border-collapse:collapse;width:100%;font-size:.88rem}
.wide{overflow-x:auto}
th,td{text-align:left;vertical-align:top;padding:.35rem .6rem;border-bottom:1px solid var(--line)}
th{color:var(--dim);font-weight:600}td.n{text-align:right;font-variant-numeric:tabular-nums}
code{font-size:.85em;overflow-wrap:anywhere}td.k code{overflow-wrap:normal;word-break:keep-all}
td.s{white-space:nowrap}td.s,th.s{text-align:right;font-variant-numeric:tabular-nums}
td.w{min-width:13rem}
td.a{white-space:pre-wrap;overflow-wrap:anywhere}
svg{width:100%;max-width:56rem;min-width:36rem;height:auto}
svg text{fill:var(--ink);font:12px system-ui,sans-serif}
details>summary{cursor:pointer;color:var(--dim)}
@media print{:root{color-scheme:light;--ink:#000;--dim:#555;--line:#ccc;--back:#fff;--card:#f6f8fa;
--good:#1a7f4b;--bad:#c0362c;--open:#a86500;--one:#2457c5}@page{margin:14mm}
body{max-width:none;margin:0;padding:0;font-size:10.5pt}table{font-size:8.5pt}.wide{overflow:visible}
details::details-content{content-visibility:visible}thead{display:table-header-group}tr,svg,.card{break-inside:avoid}h2{break-after:avoid}}
"""


def escaped(value: object) -> str:
    """Text as HTML shows it; the only way into the page."""
    return html.escape(str(value), quote=True)


def share(value: float | None) -> str:
    """A share in percent, or a dash."""
    return "-" if value is None else f"{value:.1%}"


def number(value: float | None) -> str:
    """A number to four digits, or a dash."""
    return "-" if value is None else f"{value:.4g}"


def answer(value: object) -> str:
    """An answer, cut where it is long."""
    text = str(value).strip()
    return escaped(text if len(text) <= ANSWER_LIMIT else text[:ANSWER_LIMIT] + " …")


def table(head: Sequence[str], rows: Iterable[str]) -> str:
    """A table that scrolls by itself; a head that ends in a space stands over numbers."""
    cells = "".join(
        f'<th class="s">{escaped(name)}</th>' if name.endswith(" ") else f"<th>{escaped(name)}</th>"
        for name in head
    )
    body = "\n".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{cells}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def mark(outcome: str) -> str:
    """An outcome in its colour."""
    # The class is one of our own words or nothing; a stored word is still never trusted.
    known = {"pass", "fail", "inconclusive", "skipped", "reported", "broke", "fixed"}
    name = outcome if outcome in known else ""
    return f'<span class="verdict {name}">{escaped(outcome)}</span>'
