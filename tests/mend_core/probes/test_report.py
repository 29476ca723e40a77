"""The report: one page that loads nothing and trusts nobody's text."""

import json
import re
from html.parser import HTMLParser

import pytest

from mend_core.probes import Update, decide, load_policy, report_dict, report_html

from .strategies import result, run

EVIL = "</td><script>alert('x')</script>\"&<img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Collects tags and attributes; checks that tags nest."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.open, self.text = set(), [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in {"meta", "br", "wbr", "line", "circle"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def parsed(text):
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    return page


def a_report(text="plain"):
    own = result(
        "edit:e1", "edit", slice="new", edit_id="e1", prompt=text, expect=(text,), answer=text
    )
    candidate = [
        own,
        *run("locality", [False] * 3 + [True] * 30, prompt=text, slice=text, answer=text),
        result("t", "perplexity", nll=10.0, tokens=5, kl=0.01),
    ]
    base = [
        result("edit:e1", "edit", slice="new", edit_id="e1", passed=False),
        *run("locality", [True] * 33, slice=text),
        result("t", "perplexity", nll=9.0, tokens=5, kl=0.0),
    ]
    parent = [base[0], *run("locality", [True] * 32 + [False], slice=text), base[-1]]
    policy = load_policy("default")
    decision = decide(policy, candidate, parent, base, update=Update({text: 0.1}))
    return report_dict(
        {"model": text, "number": 7, "digest": "sha256:ab", "parent": None, text: text},
        edits=[{"id": "e1", "prompt": text, "target": text, "reason": text, "state": "applied"}],
        results=[r.to_dict() for r in candidate],
        base_results=[r.to_dict() for r in base],
        parent_results=[r.to_dict() for r in parent],
        decision=decision.to_dict(),
        policy=policy.to_dict() | {"says": text},
    )


def test_the_json_is_json_and_the_page_can_be_drawn_from_it_again():
    report = a_report()
    assert report["format"] == "mend-report/1"
    again = json.loads(json.dumps(report, allow_nan=False))
    assert report_html(again) == report_html(report)
    assert report["edits"][0]["took"] is True
    assert report["edits"][0]["asked"][0]["base"] == "no"
    assert report["scores"]["version"]["perplexity_ratio"] == pytest.approx(1.2214, abs=1e-3)
    assert {flip["against"] for flip in report["flips"]} == {"parent", "base"}
    assert len(report["items"]) == 35
    assert report["items"][0]["parent_answer"] == "no"


def test_the_page_loads_nothing_and_runs_nothing():
    page = parsed(report_html(a_report()))
    assert not page.tags & {"script", "img", "link", "iframe", "object", "form", "a"}
    assert not [name for name, _ in page.attributes if name in {"src", "href", "srcset"}]
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert not re.search(r"https?://|url\(|@import", report_html(a_report()))
    assert "svg" in page.tags


def test_every_text_is_escaped():
    text = report_html(a_report(EVIL))
    page = parsed(text)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert EVIL in "".join(page.text)


def test_the_page_shows_verdict_checks_flips_and_digests():
    text = "".join(parsed(report_html(a_report())).text)
    for expected in (
        "Version 7 of plain",
        "The gate says",
        "parent/locality/plain",
        "3 broke, 1 turned right.",
        "3 of 33",
        "asked nothing",
        "Policy default",
        "sha256:ab",
        "policy digest",
        "n needed",
        "Share of probes that pass, with 95 % Wilson intervals",
        "of new edits answered",
        "n = 5 tokens of 1 texts;",
    ):
        assert expected in text


def test_a_version_that_was_never_probed_still_has_a_page():
    report = report_dict({"number": 0}, edits=[], results=[], base_results=[])
    text = "".join(parsed(report_html(report)).text)
    assert "not been through the gate" in text
    assert "was not probed" in text
    assert report["scores"] is None


def test_a_broken_runs_report_is_still_json():
    nan = [result("t", "perplexity", nll=None, tokens=5, kl=None, finite=False, passed=False)]
    fine = [result("t", "perplexity", nll=9.0, tokens=5, kl=0.0)]
    report = report_dict(
        {"number": 1},
        edits=[],
        results=[r.to_dict() for r in nan],
        base_results=[r.to_dict() for r in fine],
    )
    json.dumps(report, allow_nan=False)
    parsed(report_html(report))


def a_page(candidate, base, **version):
    policy = load_policy("demo")
    decision = decide(policy, candidate, base, base, update=Update({"m": 0.1}))
    report = report_dict(
        {"model": "m", "number": 1, **version},
        edits=[{"id": "e1", "prompt": "p", "target": "yes"}],
        results=[r.to_dict() for r in candidate],
        base_results=[r.to_dict() for r in base],
        parent_results=[r.to_dict() for r in base],
        decision=decision.to_dict(),
        policy=policy.to_dict(),
        trail=[
            {"seq": 41, "at": "2026-11-24T10:00:00", "what": "gate recorded (pass)"}
            | {"actor": "w", "reason": None, "approved_by": None}
        ],
    )
    return "".join(parsed(report_html(report)).text)


def test_a_pass_says_what_was_not_asked():
    own = {"slice": "new", "edit_id": "e1"}
    text = a_page(
        [result("edit:e1", "edit", **own)], [result("edit:e1", "edit", passed=False, **own)]
    )
    assert "asked nothing)" in text
    assert "nothing but the edits' own prompts was asked" in text
    assert "answers broke" not in text
    assert load_policy("demo").says[:40] in text
    assert "41" in text


def test_a_teacher_forced_change_is_never_called_fixed():
    own = {"slice": "new", "edit_id": "e1"}
    text = a_page(
        [result("edit:e1", "edit", passed=False, forced=True, **own)],
        [result("edit:e1", "edit", passed=False, **own)],
        overridden_by="bob",
        override_reason="checked by hand",
        overridden_at="2026-11-24T11:30:00",
    )
    assert "fixed" not in text[text.index("Answers that changed") :].split("All probes")[0].lower()
    assert "Teacher-forced changes only (1)" in text
    assert "Overridden by bob on 2026-11-24 11:30: checked by hand" in text


def test_an_item_that_broke_against_parent_and_base_is_one_row():
    report = a_report()
    html = report_html(report)
    section = html[html.index("Answers that changed") : html.index("All probes")]
    assert section.count(">broke</span>") == 3
