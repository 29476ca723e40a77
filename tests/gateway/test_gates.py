"""`mend gate show`: what was asked and what was not, in words, before the statistics."""

from __future__ import annotations

from importlib import resources

import pytest

from tests.workers import tiny
from workers import pipeline

DEFAULT = (resources.files("mend_core.probes") / "policies" / "default.yaml").read_text()


@pytest.fixture
def decided(mend, make_service, inside, monkeypatch):
    service = make_service(policy=DEFAULT)
    monkeypatch.setenv("DATABASE_URL", service.url)
    service.submit(tiny.facts(1))
    pipeline.drain(inside(service))
    return mend


def test_a_decision_says_what_was_asked_what_was_not_and_what_it_only_reports(decided):
    shown = decided("gate", "show", "1")
    assert shown.code == 0, shown.err
    said = shown.out
    assert "checks judged something" in said
    assert "had nothing to ask" in said
    assert "1 own prompts" in said
    assert "Not asked: " in said
    asked_not = next(line for line in said.splitlines() if line.startswith("Not asked: "))
    assert "everyday questions" in asked_not
    assert "paraphrases" not in asked_not
    # What is only reported is told in words, too: it may be the worst of all.
    assert "  reported: paraphrases followed" in said


def test_an_unknown_version_is_refused(decided):
    refused = decided("gate", "show", "77")
    assert refused.code == 2
    assert "77" in refused.err
