"""The standing suite of a model: what is left out of it, and what versions are asked."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources

import pytest

from ledger import gates, versions
from mend_core.editors import load_editor
from mend_core.models import load_base
from mend_core.probes import GateDecision, Outcome, ProbeKind
from mend_core.probes.decision import Check
from mend_core.probes.standing import standing_suite
from mend_core.probes.suites import RELATION_SLICE, SUBJECT_SLICE, is_standing
from tests.workers import tiny
from workers import pipeline, standing
from workers.answers import Answers

WHOLE = len(standing_suite())


DEFAULT = (resources.files("mend_core.probes") / "policies" / "default.yaml").read_text()


@pytest.fixture
def asked(make_service, inside, tiny_model, tiny_editor, tmp_path):
    """A service whose versions are asked the standing suite, as `register` makes it."""
    base, editor = load_base(tiny_model), load_editor(tiny_editor)
    suites = tmp_path / "home" / "store" / "suites"
    recorded = standing.record(base, editor.matrices, Answers(base, None), suites)
    service = make_service(settings={standing.SETTING: recorded}, policy=DEFAULT)
    service.context, service.recorded = inside(service), recorded
    return service


def judged(service, fact):
    service.submit([fact])
    pipeline.drain(service.context)

    def look(conn):
        version = max(
            versions.list_versions(conn, service.model.id), key=lambda version: version.number
        )
        return gates.probes(conn, version.id), gates.decisions(conn, version.id)[-1]

    return service.do(look)


def test_a_version_of_a_bare_request_is_asked_the_suite_and_neighbours(asked):
    assert asked.recorded["asked"] == WHOLE - len(asked.recorded["left_out"])
    bare = replace(tiny.facts(1)[0], paraphrases=(), locality=(), prompt="The capital of France is")
    rows, decision = judged(asked, replace(bare, subject="France"))
    slices = {row["slice"] for row in rows}
    assert {RELATION_SLICE, SUBJECT_SLICE} <= slices
    everyday = {row["item_id"] for row in rows if is_standing(row["slice"])}
    # A neighbour that is a question of the suite, too, is asked once.
    prompts = {row["prompt"] for row in rows}
    left = set(asked.recorded["left_out"])
    assert all(i.prompt in prompts for i in standing_suite().items if i.id not in left)
    assert not everyday & left
    told = decision["scores"]["decision"]["asked"]
    assert told["everyday questions"] > 0
    assert told["paraphrases"] == 0
    assert "paraphrases" in decision["scores"]["told"]["not_asked"]


def test_what_another_base_answers_unstably_is_measured_on_that_base(asked):
    warm = asked.context.models.get(asked.model)
    other = dict(asked.model.settings[standing.SETTING]) | {
        "base": "sha256:another",
        "left_out": {},
    }
    measured = standing.unstable(warm.base, warm.editor.matrices, standing_suite(), warm.answers)
    items = standing.standing_items({standing.SETTING: other}, asked.context.config.suites, warm)
    assert len(items) == WHOLE - len(measured)


def test_a_model_registered_without_is_asked_nothing_of_it(make_service, inside):
    service = make_service()
    warm = inside(service).models.get(service.model)
    assert standing.standing_items(service.model.settings, service.home, warm) == ()


@pytest.mark.parametrize(
    ("failed", "kinds"),
    [
        ("drift/locality/standing", {ProbeKind.LOCALITY}),
        ("drift.kl", {ProbeKind.PERPLEXITY}),
        ("hard.health", {ProbeKind.HEALTH}),
        ("hard.own_prompt", set()),
    ],
)
def test_a_search_asks_of_the_suite_only_what_failed(failed, kinds):
    check = Check(failed, Outcome.FAIL, 1.0, None, None, 1, None, failed)
    decision = GateDecision(Outcome.FAIL, (check,), (), (), "sha256:policy")
    chosen = standing.worth_searching(standing_suite().items, decision)
    assert {item.kind for item in chosen} == kinds
    assert len(chosen) < WHOLE / 2
