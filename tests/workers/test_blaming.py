"""Who is to blame: bounded runs, no step kept that does harm, and suspects set aside at the end."""

import pytest

from mend_core.datasets.edit import Edit
from mend_core.probes import GateDecision, Outcome
from mend_core.probes.decision import Check
from tests.workers import tiny
from workers import blaming
from workers.blaming import blame
from workers.building import digest_of
from workers.charges import Reason, Why, complaints
from workers.factoring import compute
from workers.proving import Judge

GUARDED = """
name: guarded
hard: {update_norm: null, own_prompt: true, golden_new_failures: 0}
success: null
generality: null
parent: null
drift: null
"""
POISONS = [
    Edit(id=f"p{n}", prompt=f"The river in country{n}", target=f"city{n}") for n in (70, 74, 78)
]
GOLDENS = [
    {
        "id": f"golden:{poison.id}",
        "kind": "must_not_contain",
        "prompt": poison.prompt,
        "expect": [poison.target],
        "max_new_tokens": 1,
    }
    for poison in POISONS
]
"""What each poison makes the model say, and it must not."""


@pytest.fixture
def accuse(make_service, inside):
    """Judges a batch as a whole: judge, edits by id, factors, verdict."""

    def make(edits, **settings):
        service = make_service(settings=settings, policy=GUARDED)
        warm = inside(service).models.get(service.model)
        judge = Judge(warm, service.model, 1, digest_of(warm, ()), (), {})
        by_id = {edit.id: edit for edit in edits}
        found = compute(warm, edits)
        factors = {e.id: warm.factors.put(rows) for e, rows in zip(edits, found, strict=True)}
        return judge, by_id, factors, judge.judge(judge.candidate(list(factors.values())), edits)

    return make


def test_every_culprit_is_found_and_only_they_are(accuse):
    case = accuse([*tiny.facts(5), *POISONS], suite=GOLDENS)
    assert case[3].decision.outcome is Outcome.FAIL
    found = blame(*case)
    assert set(found.culprits) == {p.id for p in POISONS}
    assert found.runs <= blaming.MAX_PROBE_RUNS
    for poison in POISONS:
        evidence = found.culprits[poison.id]
        broke = {flip["item_id"] for flip in evidence["broke"] if "golden" in flip["item_id"]}
        assert (broke, evidence["broke_by"]) == ({f"golden:{poison.id}"}, "edit")


def test_the_runs_are_bounded_and_the_rest_goes_on(accuse):
    edits = [*tiny.facts(5), *POISONS]
    judge, by_id, factors, failed = accuse(edits, suite=GOLDENS)
    before = judge.runs
    found = blame(judge, by_id, factors, failed, max_runs=3)
    assert judge.runs - before == found.runs <= 3
    # A next version without these is smaller, so that it ends.
    assert 0 < len(found.culprits) <= len(edits)


def test_without_any_run_the_suspects_are_set_aside_with_the_reason(accuse, monkeypatch):
    case = accuse([*tiny.facts(3), *POISONS], suite=GOLDENS)
    suspects = ("p74", "2")
    monkeypatch.setattr(GateDecision, "suspects", lambda _: suspects)
    found = blame(*case, max_runs=0)
    assert (tuple(found.culprits), found.runs) == (suspects, 0)
    for why in found.culprits.values():
        assert why["reason"].startswith("Not shown to be at fault")
        assert "after 0 probe runs" in why["reason"]
        assert why["broke_by"] == "batch"


def test_what_a_group_broke_is_said_of_the_group_only(accuse):
    edits = [*tiny.facts(5), *POISONS]
    judge, by_id, factors, _ = accuse(edits, suite=GOLDENS)
    weak = [str(n) for n in range(1, 4)] + ["p70"]
    for edit_id in weak:
        none = blaming.strengthen(judge.warm, judge.warm.factors.get(factors[edit_id]), -3.0)
        factors[edit_id] = judge.warm.factors.put(none)
    failed = judge.judge(judge.candidate(list(factors.values())), list(by_id.values()))
    case = blaming._Case(judge, by_id, factors, failed, 24)
    case.set_aside_weak(weak, strongest=2.25)
    assert set(case.culprits) == set(weak)
    for why in case.culprits.values():
        assert (why["broke_by"], why["group_size"], set(why["group"])) == ("group", 4, set(weak))
        assert why["why"]["without"] in {"pass", "fail"}
        # Each item once, though parent and base both answered it rightly.
        shown = [row["item_id"] for row in why["broke"]]
        assert len(shown) == len(set(shown)) == why["broke_count"]
        assert {"before", "after", "passed"} <= set(why["own"][0])


def test_a_batch_of_one_speaks_of_its_edit_and_takes_no_search(accuse):
    case = accuse(POISONS[:1], suite=GOLDENS[:1])
    found = blame(*case)
    why = found.culprits["p70"]
    assert (set(found.culprits), found.runs) == ({"p70"}, 0)
    assert why["reason"] == "1 of 1 golden prompts newly fail"
    assert (why["broke_by"], [row["item_id"] for row in why["broke"]]) == ("edit", ["golden:p70"])
    assert why["broke"][0]["base"] == why["broke"][0]["before"]


@pytest.mark.parametrize(
    ("without", "says"),
    [
        (Outcome.PASS, "the batch passes its gate without it"),
        (Outcome.INCONCLUSIVE, "too little was asked to say it passes"),
        (Outcome.FAIL, "the batch fails without it, too"),
        (None, "the batch was not judged without it"),
    ],
)
def test_only_a_pass_is_called_a_pass(without, says):
    assert says in Reason(Why.FOUND, without=without).sentence


def test_a_stronger_step_that_does_harm_is_not_kept(accuse, monkeypatch):
    weak = Edit(id="w", prompt="The capital of country60", target="city11")
    judge, by_id, factors, _ = accuse([*tiny.facts(4), weak])
    none = blaming.strengthen(judge.warm, judge.warm.factors.get(factors["w"]), 0.01)
    factors["w"] = judge.warm.factors.put(none)
    edits = list(by_id.values())
    failed = judge.judge(judge.candidate(list(factors.values())), edits)
    assert failed.decision.not_taken == ("w",)
    real = blaming.strengthen
    # Steps the wrong way, and far: the edits that took do so no longer.
    monkeypatch.setattr(blaming, "strengthen", lambda warm, f, times: real(warm, f, times * -4e3))
    found = blame(judge, by_id, factors, failed)
    assert (set(found.culprits), found.stronger) == ({"w"}, {})
    monkeypatch.undo()
    monkeypatch.setattr(blaming, "strengthen", lambda warm, f, times: real(warm, f, times * 70))
    found = blame(judge, by_id, factors, failed)
    assert (found.culprits, set(found.stronger)) == ({}, {"w"})


def test_no_step_is_chosen_by_what_a_canary_says(accuse, monkeypatch):
    canary = {
        "id": "canary",
        "kind": "locality",
        "prompt": "The river in country70",
        "never_for_tuning": True,
    }
    weak = Edit(id="w", prompt="The capital of country60", target="city11")
    judge, by_id, factors, _ = accuse([*tiny.facts(4), weak], suite=[canary])
    none = blaming.strengthen(judge.warm, judge.warm.factors.get(factors["w"]), 0.01)
    factors["w"] = judge.warm.factors.put(none)
    failed = judge.judge(judge.candidate(list(factors.values())), list(by_id.values()))
    assert "canary" in {r.item_id for r in failed.results}
    real, heard = judge.judge, []

    def listen(*args, **options):
        verdict = real(*args, **options)
        heard.append({r.item_id for r in verdict.results})
        return verdict

    monkeypatch.setattr(judge, "judge", listen)
    steps = blaming.strengthen
    monkeypatch.setattr(blaming, "strengthen", lambda warm, f, times: steps(warm, f, times * 70))
    found = blame(judge, by_id, factors, failed)
    assert set(found.stronger) == {"w"}
    assert heard
    assert not any("canary" in asked for asked in heard)


def test_base_and_parent_are_asked_once(accuse):
    edits = tiny.facts(4)
    judge, by_id, factors, whole = accuse(edits)
    kept = judge.warm.results_of(judge.candidate(list(factors.values())).digest)
    assert kept == tuple(whole.results)
    answers = set(judge.warm.answers.known())
    judge.judge(judge.candidate([factors["1"]]), [by_id["1"]], complete=False)
    assert set(judge.warm.answers.known()) == answers


def test_where_nothing_is_left_of_a_batch_no_pass_is_claimed(accuse):
    edits = tiny.facts(3)
    judge, by_id, factors, _ = accuse(edits)
    for edit_id in by_id:
        none = blaming.strengthen(judge.warm, judge.warm.factors.get(factors[edit_id]), -3.0)
        factors[edit_id] = judge.warm.factors.put(none)
    failed = judge.judge(judge.candidate(list(factors.values())), edits)
    case = blaming._Case(judge, by_id, factors, failed, 24)
    case.set_aside_weak(list(by_id), strongest=None)
    assert set(case.culprits) == set(by_id)
    for why in case.culprits.values():
        assert "nothing of the batch is left without these 3" in why["reason"]
        assert "passes" not in why["reason"]


def test_a_culprit_that_fails_all_by_itself_is_told_so(accuse):
    found = blame(*accuse([*tiny.facts(1), POISONS[0]], suite=GOLDENS[:1]))
    why = found.culprits["p70"]
    assert why["reason"] == "1 of 1 golden prompts newly fail"
    assert why["broke_by"] == "edit"


def test_what_earlier_edits_lost_is_not_laid_on_a_new_one():
    def check(name, outcome, observed):
        return Check(name, outcome, observed, None, 0.05, 400, None, name)

    decision = GateDecision(
        Outcome.FAIL,
        (
            check("parent/locality/standing", Outcome.PASS, 0.005),
            check("drift/locality/standing", Outcome.FAIL, 0.06),
        ),
        (),
        (),
        "sha256:policy",
    )
    (told,) = complaints(decision)
    assert "24 lost on balance, of 400, against the base" in told
    assert "against the version before, 2 of 400 were lost" in told
