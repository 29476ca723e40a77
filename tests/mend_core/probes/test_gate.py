"""The gate: three outcomes, each for its reason."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mend_core.errors import PolicyInvalid, SuiteInvalid
from mend_core.probes import Outcome, Update, decide, load_policy, parse_policy
from mend_core.probes.statistics import tango_upper, wilson_lower

from .strategies import result, run

FINE = Update(norms={"w": 0.1})
STRICT = parse_policy(
    """
name: strict
success: {target: 0.8, when_few: inconclusive, when_empty: inconclusive}
generality: {target: 0.5, when_few: inconclusive, when_empty: inconclusive}
parent: {margin: 0.05}
drift: {margin: 0.1}
"""
)


def a_run(*, edits=40, paraphrases=40, locality=300, bad_locality=0):
    return [
        *run("edit", [True] * edits, slice="new", edit_id=None),
        *run("paraphrase", [True] * paraphrases),
        *run("locality", [False] * bad_locality + [True] * (locality - bad_locality)),
        result("t", "perplexity", nll=100.0, tokens=50, kl=0.0),
    ]


def checks(decision):
    return {check.name: check for check in decision.checks}


def judge(candidate, parent=None, base=None, policy=STRICT, update=FINE):
    base = a_run() if base is None else base
    return decide(policy, candidate, parent, base, update=update)


def test_a_harmless_version_passes_and_every_check_is_listed():
    decision = judge(a_run())
    assert decision.outcome is Outcome.PASS
    assert decision.policy_digest == STRICT.digest
    names = list(checks(decision))
    assert names == [
        "hard.finite",
        "hard.update_norm",
        "hard.protected",
        "hard.own_prompt",
        "hard.golden",
        "hard.health",
        "success",
        "generality",
        "parent/locality/all",
        "drift/locality/all",
        "drift.perplexity",
        "drift.kl",
    ]
    assert checks(decision)["hard.protected"].outcome is Outcome.SKIPPED
    assert decision.sentence == "pass: 9 checks hold, 3 had nothing to ask"
    assert json.dumps(decision.to_dict(), allow_nan=False)


def test_bounds_are_those_of_the_statistics():
    decision = judge(a_run(bad_locality=3))
    success = checks(decision)["success"]
    assert success.bound == pytest.approx(wilson_lower(40, 40, 0.05))
    drift = checks(decision)["drift/locality/all"]
    assert drift.bound == pytest.approx(tango_upper(3, 0, 300, 0.05))
    assert drift.observed == 0.01


@pytest.mark.parametrize(
    ("bad", "outcome"),
    [(0, Outcome.PASS), (8, Outcome.PASS), (12, Outcome.INCONCLUSIVE), (15, Outcome.FAIL)],
)
def test_losses_pass_are_open_or_fail_by_their_bound(bad, outcome):
    check = checks(judge(a_run(bad_locality=bad)))["parent/locality/all"]
    assert check.outcome is outcome
    if outcome is Outcome.INCONCLUSIVE:
        assert tango_upper(bad / 300 * check.needed, 0, check.needed, 0.05) < 0.05
        assert f"{check.needed} items would settle it" in check.sentence
    else:
        assert check.needed is None


def test_an_item_the_parent_lost_already_is_not_lost_again_but_counts_against_the_base():
    parent = a_run(bad_locality=40)
    decision = judge(a_run(bad_locality=40), parent)
    assert checks(decision)["parent/locality/all"].observed == 0
    assert checks(decision)["drift/locality/all"].outcome is Outcome.FAIL
    assert {flip.against for flip in decision.flips} == {"base"}


def test_what_a_version_fixes_offsets_what_it_breaks():
    base = [*run("capability", [True, False] * 150), *a_run(locality=1)]
    candidate = [*run("capability", [False, True] * 2 + [True, False] * 148), *a_run(locality=1)]
    check = checks(judge(candidate, base=base))["drift/capability/all"]
    assert check.observed == 0
    assert check.bound > 0
    flips = judge(candidate, base=base).flips
    assert [flip.broke for flip in flips] == [True, True, False, False]


def test_an_edit_that_did_not_take_fails_and_is_named():
    candidate = a_run()
    candidate[0] = result("edit:0000", "edit", passed=False, slice="new", edit_id="e-7")
    decision = judge(candidate)
    assert decision.outcome is Outcome.FAIL
    assert decision.not_taken == ("e-7",)
    assert decision.suspects()[0] == "e-7"
    assert "e-7" in checks(decision)["hard.own_prompt"].sentence
    lenient = load_policy("demo")
    forced = [replace(r, passed_forced=True) for r in candidate]
    assert judge(forced, policy=lenient).not_taken == ()


def test_a_retained_edit_is_compared_with_the_parent_not_demanded():
    retained = run("edit", [False], prefix="retained", slice="retained", edit_id="old")
    kept = run("edit", [True], prefix="retained", slice="retained", edit_id="old")
    decision = judge([*a_run(), *retained], [*a_run(), *kept], [*a_run(), *retained])
    assert decision.not_taken == ()
    check = checks(decision)["parent/edit/retained"]
    assert (check.observed, check.outcome) == (1.0, Outcome.FAIL)
    assert "drift/edit/retained" not in checks(decision)
    assert decision.suspects() == ("old",)


def test_protected_answers_have_zero_tolerance():
    guard = [result("guard", "protected", passed=False, answer="other")]
    decision = judge([*a_run(), *guard], base=[*a_run(), result("guard", "protected")])
    assert checks(decision)["hard.protected"].outcome is Outcome.FAIL
    assert decision.outcome is Outcome.FAIL


@pytest.mark.parametrize("kind", ["must_contain", "must_not_contain", "health"])
def test_golden_and_health_prompts_fail_only_where_they_were_fine_before(kind):
    bad, good = [result("g", kind, passed=False)], [result("g", kind)]
    name = "hard.health" if kind == "health" else "hard.golden"
    always = judge([*a_run(), *bad], base=[*a_run(), *bad])
    assert checks(always)[name].outcome is Outcome.PASS
    newly = judge([*a_run(), *bad], base=[*a_run(), *good])
    assert checks(newly)[name].outcome is Outcome.FAIL
    since_parent = judge([*a_run(), *bad], [*a_run(), *good], [*a_run(), *bad])
    assert checks(since_parent)[name].outcome is Outcome.FAIL


def test_nan_anywhere_fails():
    candidate = a_run()
    candidate[5] = replace(candidate[5], finite=False, passed=False, nll=None)
    assert checks(judge(candidate))["hard.finite"].outcome is Outcome.FAIL
    broken = Update(norms={"w": math.nan}, finite=False)
    decision = judge(a_run(), update=broken)
    assert checks(decision)["hard.finite"].outcome is Outcome.FAIL
    assert checks(decision)["hard.update_norm"].outcome is Outcome.FAIL
    assert json.dumps(decision.to_dict(), allow_nan=False)
    candidate = [*a_run()[:-1], result("t", "perplexity", nll=None, tokens=50, kl=None)]
    decision = judge(candidate)
    assert checks(decision)["drift.perplexity"].outcome is Outcome.FAIL
    assert json.dumps(decision.to_dict(), allow_nan=False)


def test_the_norm_of_the_update_is_bounded():
    too_much = judge(a_run(), update=Update(norms={"a": 0.1, "b": 0.9}))
    assert "of b" in checks(too_much)["hard.update_norm"].sentence
    assert too_much.outcome is Outcome.FAIL
    assert judge(a_run(), update=None).outcome is Outcome.INCONCLUSIVE
    assert checks(judge(a_run(), update=Update()))["hard.update_norm"].outcome is Outcome.SKIPPED


def test_perplexity_and_kl_are_bounded():
    worse = [*a_run()[:-1], result("t", "perplexity", nll=110.0, tokens=50, kl=0.2)]
    decision = judge(worse)
    assert checks(decision)["drift.perplexity"].observed == pytest.approx(math.exp(0.2))
    assert checks(decision)["drift.perplexity"].outcome is Outcome.FAIL
    assert checks(decision)["drift.kl"].outcome is Outcome.FAIL


def test_shares_pass_are_open_or_fail():
    def outcome(right, of):
        candidate = [
            *a_run(paraphrases=0),
            *run("paraphrase", [True] * right + [False] * (of - right)),
        ]
        base = [*a_run(paraphrases=0), *run("paraphrase", [False] * of)]
        return checks(judge(candidate, base=base))["generality"]

    assert outcome(30, 40).outcome is Outcome.PASS
    assert outcome(19, 40).outcome is Outcome.FAIL
    still_open = outcome(22, 40)
    assert still_open.outcome is Outcome.INCONCLUSIVE
    n = still_open.needed
    assert wilson_lower(22 / 40 * n, n, 0.05) >= 0.5


def test_paraphrases_of_one_edit_count_for_fewer_than_they_are():
    def generality(edit_ids):
        verdicts = [True] * 30 + [False] * 10
        found = [
            replace(r, edit_id=edit)
            for r, edit in zip(run("paraphrase", verdicts), edit_ids, strict=True)
        ]
        candidate = [*a_run(paraphrases=0), *found]
        return checks(judge(candidate, base=candidate))["generality"]

    alone = generality([f"e{n}" for n in range(40)])
    together = generality([f"e{n // 10}" for n in range(40)])
    assert alone.outcome is Outcome.PASS
    assert together.bound < alone.bound
    assert "design effect 10.00" in together.sentence


def test_few_items_are_inconclusive_or_judged_plainly_as_the_policy_says():
    few = a_run(edits=2, paraphrases=2, locality=5)
    strict = checks(judge(few, base=few))
    assert strict["success"].outcome is Outcome.INCONCLUSIVE
    assert strict["parent/locality/all"].outcome is Outcome.INCONCLUSIVE
    assert strict["parent/locality/all"].needed == 52
    lenient = parse_policy(
        "name: a\nsuccess: {target: 0.8, when_few: observed}\n"
        "parent: {margin: 0.05, when_few: observed}\ndrift: {margin: 0.1, when_few: observed}\n"
    )
    decision = judge(few, base=few, policy=lenient)
    assert decision.outcome is Outcome.PASS
    assert "plain share was judged" in checks(decision)["success"].sentence
    one_lost = a_run(edits=2, paraphrases=2, locality=5, bad_locality=1)
    assert judge(one_lost, base=few, policy=lenient).outcome is Outcome.FAIL


def test_nothing_asked_shows_nothing():
    assert judge([], base=[]).outcome is Outcome.INCONCLUSIVE
    quiet = parse_policy("name: a\nsuccess: null\ngenerality: null\nparent: null\ndrift: null\n")
    assert judge([], base=[], policy=quiet).outcome is Outcome.INCONCLUSIVE
    assert checks(judge(a_run(edits=0)))["success"].outcome is Outcome.INCONCLUSIVE


def test_slices_have_their_own_margins_and_share_the_error_level():
    policy = parse_policy("name: a\nparent: {margin: 0.05, slices: {wide: 0.5}}\ndrift: null\n")
    candidate = [
        *run("locality", [True] * 60, prefix="x", slice="narrow"),
        *run("locality", [False] * 10 + [True] * 50, prefix="y", slice="wide"),
        *run("edit", [True] * 30, slice="new"),
    ]
    base = [replace(r, passed=True) for r in candidate]
    found = checks(judge(candidate, base=base, policy=policy))
    assert found["parent/locality/wide"].outcome is Outcome.PASS
    # Alone 60 items suffice at 95 %; with Holm the stronger of two slices is held to 97.5 %.
    assert tango_upper(0, 0, 60, 0.05) < 0.05
    assert "0.975 confidence" in found["parent/locality/wide"].sentence
    assert "0.95 confidence" in found["parent/locality/narrow"].sentence


def test_runs_must_be_on_the_same_suite():
    with pytest.raises(SuiteInvalid, match="same suite"):
        judge(a_run(), base=a_run(locality=10))


def test_a_teacher_forced_rule_needs_teacher_forced_results():
    candidate = [replace(r, passed_forced=None) for r in a_run()]
    forced = parse_policy("name: forced\nparent: {margin: 0.3, score: forced}")
    with pytest.raises(PolicyInvalid, match="use score: free"):
        judge(candidate, base=candidate, policy=forced)


outcomes_rank = {Outcome.PASS: 0, Outcome.INCONCLUSIVE: 1, Outcome.FAIL: 2}


@given(
    verdicts=st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_breaking_one_more_item_never_helps(verdicts, data):
    base = run("locality", [True] * len(verdicts))
    parent = run("locality", [before for before, _ in verdicts])
    candidate = run("locality", [after for _, after in verdicts])
    intact = [n for n, r in enumerate(candidate) if r.passed]
    if not intact:
        return
    place = data.draw(st.sampled_from(intact))
    worse = list(candidate)
    worse[place] = replace(worse[place], passed=False, passed_forced=False)
    policy = parse_policy(
        "name: a\nsuccess: null\ngenerality: null\nparent: {margin: 0.2}\n"
        "drift: {margin: 0.3, perplexity_ratio: null, kl: null}\n"
    )
    first = judge(candidate, parent, base, policy=policy)
    second = judge(worse, parent, base, policy=policy)
    for a, b in zip(first.checks, second.checks, strict=True):
        assert outcomes_rank.get(b.outcome, 0) >= outcomes_rank.get(a.outcome, 0), (a, b)


def test_flips_carry_both_answers():
    base = run("locality", [True])
    candidate = [replace(base[0], passed=False, answer="Lyon", prompt="The capital is")]
    (flip,) = judge(candidate, base=base, policy=STRICT).flips
    assert (flip.before, flip.after, flip.broke, flip.score) == ("yes", "Lyon", True, "free")
    assert flip.to_dict()["expect"] == ["yes"]


DEFAULT = load_policy("default")


def neighbours(broken, n, slice_name, *, edit_id="1"):
    verdicts = [False] * broken + [True] * (n - broken)
    return run("locality", verdicts, prefix=slice_name, slice=slice_name, edit_id=edit_id)


def everyday(broken, n=400):
    slices = [f"standing/{kind}" for kind in "abcdefghij"]
    return [
        replace(one, slice=slices[number % 10])
        for number, one in enumerate(
            run("locality", [False] * broken + [True] * (n - broken), prefix="standing")
        )
    ]


def a_version(*, everyday_broken=0, relation=0, subject=0, given=(), paraphrases=()):
    """One edit, judged as the service judges it under the default policy."""
    return [
        *run("edit", [True], slice="new", edit_id="1"),
        *run("paraphrase", paraphrases, slice="new", edit_id="1"),
        *run("locality", given, prefix="given", slice="neighbour/given", edit_id="1"),
        *neighbours(relation, 24, "neighbour/relation"),
        *neighbours(subject, 12, "neighbour/subject"),
        *everyday(everyday_broken),
        result("t", "perplexity", nll=100.0, tokens=50, kl=0.0),
    ]


def by_default(candidate):
    base = [
        replace(one, passed=one.kind.value not in ("edit", "paraphrase"), passed_forced=None)
        for one in candidate
    ]
    return decide(DEFAULT, candidate, None, base, update=FINE)


def test_one_good_edit_passes_the_default_policy():
    decision = by_default(a_version(everyday_broken=5, relation=2))
    assert decision.outcome is Outcome.PASS, decision.sentence
    assert checks(decision)["success"].outcome is Outcome.REPORTED


@pytest.mark.parametrize("broken", [20, 120])
def test_a_version_that_breaks_everyday_answers_does_not_pass(broken):
    decision = by_default(a_version(everyday_broken=broken))
    assert decision.outcome is Outcome.FAIL
    failed = checks(decision)["drift/locality/standing"]
    assert "broke most in" in failed.sentence


def test_a_version_that_breaks_the_same_statement_about_others_does_not_pass():
    assert by_default(a_version(relation=8)).outcome is Outcome.FAIL


def test_what_the_policy_does_not_demand_is_told():
    decision = by_default(a_version(subject=12, paraphrases=[False], given=[False]))
    found = checks(decision)
    for name in ("generality", "drift/locality/neighbour/subject"):
        assert found[name].outcome is Outcome.REPORTED
        assert "the policy demands nothing of it" in found[name].sentence
    assert decision.outcome is Outcome.PASS
    assert "only report" in decision.sentence


def test_a_decision_names_what_was_asked_and_what_was_not():
    asked = by_default(a_version()).asked
    assert asked["everyday questions"] == 400
    assert asked["the same statement about other subjects"] == 24
    assert asked["paraphrases"] == 0
    assert asked["earlier edits"] == 0


def test_nothing_but_the_edits_asked_is_no_pass():
    only = run("edit", [True], slice="new", edit_id="1")
    decision = by_default(only)
    assert decision.outcome is Outcome.INCONCLUSIVE
    assert "no locality or capability prompts to ask" in decision.sentence


@given(
    st.integers(0, 40),
    st.integers(0, 12),
    st.lists(st.booleans(), max_size=12),
    st.lists(st.booleans(), max_size=12),
)
def test_a_careful_request_never_fares_worse_than_a_bare_one(broken, relation, given_, worded):
    rank = [Outcome.FAIL, Outcome.INCONCLUSIVE, Outcome.PASS]
    bare = by_default(a_version(everyday_broken=broken, relation=relation))
    careful = by_default(
        a_version(everyday_broken=broken, relation=relation, given=given_, paraphrases=worded)
    )
    assert rank.index(careful.outcome) >= rank.index(bare.outcome)


def test_neighbours_of_one_edit_count_for_fewer_than_they_are():
    def judged(verdicts):
        candidate = [*a_run(), *verdicts]
        base = [*a_run(), *(replace(v, passed=True, passed_forced=True) for v in verdicts)]
        policy = parse_policy("name: p\nparent: {margin: 0.3}\ndrift: {margin: 0.3}")
        return checks(decide(policy, candidate, None, base, update=FINE))["drift/locality/near"]

    together = [
        replace(one, slice="near", edit_id=str(edit), item_id=f"{edit}:{n}")
        for edit in range(10)
        for n, one in enumerate(run("locality", [edit != 0] * 10))
    ]
    alone = [replace(one, edit_id=one.item_id) for one in together]
    assert judged(together).bound > judged(alone).bound
