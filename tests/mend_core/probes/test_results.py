"""Counting a run."""

import json
import math

import pytest

from mend_core.errors import SuiteInvalid
from mend_core.probes import ProbeResult, Rate, summarise
from mend_core.probes.results import harmonic_mean, mean_kl, pair_up, perplexity

from .strategies import result, run


def test_a_result_survives_json():
    made = result("a", "edit", expect=("x", "y"), nll=None, finite=False, kl=0.25)
    assert ProbeResult.from_dict(json.loads(json.dumps(made.to_dict()))) == made


def test_scores_count_both_ways_side_by_side():
    results = [
        *run("edit", [True, True, False, True]),
        result("edit:r", "edit", passed=False, slice="retained"),
        result("p1", "paraphrase", passed=False, forced=True, token_accuracy=1.0),
        result("p2", "paraphrase", passed=True, token_accuracy=1.0),
        *run("locality", [True, False]),
        result("guard", "protected"),
        result("q", "portability", passed=False, token_accuracy=0.5),
        result("m", "must_contain", passed_forced=None, token_accuracy=None, nll=None, tokens=0),
    ]
    scores = summarise(results)
    assert scores.free.edit_success == 0.75  # the retained edit is not a new one
    assert (scores.free.generality, scores.forced_exact.generality) == (0.5, 1.0)
    assert scores.free.locality == pytest.approx(2 / 3)
    assert scores.forced_token.portability == 0.5
    assert scores.free.harmonic_mean == pytest.approx(3 / (1 / 0.75 + 1 / 0.5 + 1 / (2 / 3)))
    assert scores.rates["edit"].n == 4
    assert "must_contain" not in scores.rates_forced
    assert scores.slices["edit/retained"].value == 0
    assert json.dumps(scores.to_dict())


def test_the_harmonic_mean_wants_all_its_parts():
    assert harmonic_mean(1.0, None, 1.0) is None
    assert harmonic_mean(1.0, 0.0, 1.0) == 0
    assert harmonic_mean() is None
    assert summarise(run("edit", [True])).free.harmonic_mean is None


def text(item_id, nll, tokens, kl=0.0):
    return result(item_id, "perplexity", nll=nll, tokens=tokens, kl=kl)


def test_perplexity_weighs_tokens_and_is_compared_on_the_same_texts():
    now = [text("a", 20.0, 10, kl=0.1), text("b", 90.0, 30, kl=0.3)]
    before = [text("b", 60.0, 30), text("a", 20.0, 10)]
    scores = summarise(now, before)
    assert scores.perplexity == pytest.approx(math.exp(110 / 40))
    assert scores.perplexity_ratio == pytest.approx(math.exp(30 / 40))
    assert scores.kl == pytest.approx(0.25)
    assert perplexity([]) is None
    assert mean_kl([]) is None
    assert perplexity([text("c", 1e6, 1)]) < math.inf
    with pytest.raises(SuiteInvalid, match="'b' was not asked"):
        summarise(now, before[1:])


def test_a_loss_that_is_not_a_number_is_infinite_and_null_in_json():
    scores = summarise([text("a", None, 10, kl=None)], [text("a", 20.0, 10)])
    assert scores.perplexity == math.inf
    assert scores.kl == math.inf
    assert scores.to_dict()["perplexity_ratio"] is None


def test_rates_have_wilson_intervals_or_nothing():
    rate = Rate.of([True] * 8 + [False] * 2)
    assert (rate.successes, rate.n) == (8, 10)
    assert rate.low == pytest.approx(0.4902, abs=1e-4)
    assert Rate.of([]).value is None


def test_runs_on_different_suites_cannot_be_paired():
    with pytest.raises(SuiteInvalid, match="2 missing"):
        pair_up(run("locality", [True] * 3), run("locality", [True]))


def test_everyday_answers_do_not_thin_out_what_lies_near():
    results = [
        *run("edit", [True]),
        *run("paraphrase", [True]),
        *run("locality", [True, False], prefix="g", slice="neighbour/given"),
        *run("locality", [True] + [False] * 11, prefix="s", slice="neighbour/subject"),
        *run("locality", [True] * 200, prefix="e", slice="standing/animals"),
        *run("locality", [True] * 200, prefix="f", slice="standing/food"),
    ]
    scores = summarise(results)
    assert scores.free.locality == 0.5
    assert scores.rates["locality"].n == 2
    assert {ring: (r.successes, r.n) for ring, r in scores.rings.items()} == {
        "neighbour/given": (1, 2),
        "neighbour/subject": (1, 12),
        "standing": (400, 400),
    }
    assert scores.to_dict()["rings"]["neighbour/subject"]["n"] == 12
