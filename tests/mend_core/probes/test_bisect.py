"""The search for culprits against brute force."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mend_core.errors import ProbeError
from mend_core.probes.bisect import find, plan
from mend_core.probes.decision import Outcome


def any_of(culprits):
    def evaluate(subset):
        assert subset, "the empty set is the parent; it is never asked"
        return Outcome.FAIL if set(subset) & set(culprits) else Outcome.PASS

    return evaluate


def names(n):
    return [f"e{i:02}" for i in range(n)]


@pytest.mark.parametrize("place", range(64))
def test_one_culprit_among_64_takes_at_most_8_runs_with_or_without_suspects(place):
    edits = names(64)
    culprit = edits[place]
    rest = tuple(e for e in edits if e != culprit)
    for suspects in ([], [culprit], [edits[(place + 7) % 64]], edits[10:20]):
        found = find(edits, any_of([culprit]), suspects=suspects)
        assert found.culprits == (culprit,)
        assert found.good == rest
        assert found.undecided == ()
        assert found.runs <= 8


def test_a_right_suspect_takes_one_run():
    assert find(names(64), any_of(["e17"]), suspects=["e17"]).runs == 1


def test_a_batch_of_one_needs_no_run():
    found = find(["a"], any_of(["a"]))
    assert (found.culprits, found.good, found.runs) == (("a",), (), 0)


@given(data=st.data(), n=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_finds_exactly_the_culprits_whichever_they_are(data, n):
    edits = names(n)
    culprits = data.draw(st.lists(st.sampled_from(edits), min_size=1, max_size=n, unique=True))
    suspects = data.draw(st.lists(st.sampled_from(edits), max_size=n, unique=True))
    found = find(edits, any_of(culprits), suspects=suspects)
    assert set(found.culprits) == set(culprits)
    assert set(found.good) == set(edits) - set(culprits)
    assert found.undecided == ()
    assert found.runs <= 1 + len(culprits) * (math.ceil(math.log2(n)) + 1 if n > 1 else 1)


@given(
    weights=st.lists(st.integers(0, 10), min_size=1, max_size=24),
    suspects=st.lists(st.integers(0, 23), max_size=6),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_with_joint_failures_the_good_set_passes_and_is_maximal(weights, suspects, data):
    edits = names(len(weights))
    weight = dict(zip(edits, weights, strict=True))
    total = sum(weights)
    if total == 0:
        return
    budget = data.draw(st.integers(0, total - 1))

    def evaluate(subset):
        return Outcome.FAIL if sum(weight[e] for e in subset) > budget else Outcome.PASS

    found = find(edits, evaluate, suspects=[edits[i] for i in suspects if i < len(edits)])
    assert set(found.good) | set(found.culprits) == set(edits)
    assert evaluate(found.good) is Outcome.PASS
    for culprit in found.culprits:
        assert evaluate((*found.good, culprit)) is Outcome.FAIL


def test_inconclusive_is_not_failure_and_is_told():
    def evaluate(subset):
        if "bad" in subset:
            return Outcome.FAIL
        return Outcome.INCONCLUSIVE if "vague" in subset else Outcome.PASS

    found = find(["a", "vague", "bad", "b"], evaluate)
    assert found.culprits == ("bad",)
    assert found.good == ()
    assert found.undecided == ("a", "vague", "b")


@given(n=st.integers(2, 30), runs=st.integers(0, 20), data=st.data(), vague=st.booleans())
@settings(max_examples=100, deadline=None)
def test_a_run_limit_is_kept_and_no_edit_is_lost(n, runs, data, vague):
    edits = names(n)
    culprits = data.draw(st.lists(st.sampled_from(edits), min_size=1, unique=True))

    def evaluate(subset):
        outcome = any_of(culprits)(subset)
        return Outcome.INCONCLUSIVE if vague and outcome is Outcome.PASS else outcome

    found = find(edits, evaluate, max_runs=runs)
    assert found.runs <= runs
    assert sorted((*found.culprits, *found.good, *found.undecided)) == edits
    assert set(found.culprits) <= set(culprits)
    assert not set(found.good) & set(culprits)


@given(table=st.dictionaries(st.frozensets(st.integers(0, 7)), st.booleans()))
@settings(max_examples=100, deadline=None)
def test_even_an_erratic_gate_leaves_a_good_set_that_was_run_and_passed(table):
    edits = [str(i) for i in range(8)]
    passed = [()]

    def evaluate(subset):
        fails = table.get(frozenset(int(e) for e in subset), True)
        if not fails:
            passed.append(subset)
        return Outcome.FAIL if fails else Outcome.PASS

    found = find(edits, evaluate)
    assert found.good in passed
    assert sorted((*found.culprits, *found.good)) == edits


def test_no_set_is_asked_twice():
    asked = []

    def evaluate(subset):
        asked.append(subset)
        return any_of(["e03", "e09"])(subset)

    find(names(12), evaluate)
    assert len(set(asked)) == len(asked)


def test_refuses_duplicates_and_nothing():
    for edits in (["a", "a"], []):
        with pytest.raises(ProbeError, match="each only once"):
            next(plan(edits))
