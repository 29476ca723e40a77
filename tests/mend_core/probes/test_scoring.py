"""Scores of tiny real architectures against the slow and obvious way to get them."""

import math
from dataclasses import replace

import pytest
import torch

from mend_core.datasets.edit import Edit, PromptAnswer
from mend_core.errors import SuiteInvalid
from mend_core.models import PrefixCache, encode_pairs, greedy, load_base
from mend_core.models.overlay import overlay
from mend_core.probes import ProbeItem, ProbeKind, ProbeSuite, build_suite, summarise
from mend_core.probes.decode import Stops
from mend_core.probes.scoring import Scorer, score
from mend_core.testing import FACTS, PARAPHRASES

TEXT_FAMILIES = (
    "gpt2", "gpt_neo", "gptj", "llama", "mistral", "qwen2", "gemma", "t5", "bart",
)  # fmt: skip


def a_suite():
    edits = [
        Edit(
            f"e{n}",
            prompt,
            FACTS[n + 1][1],
            paraphrases=(PARAPHRASES[prompt],),
            locality=(PromptAnswer(FACTS[n + 4][0]), PromptAnswer(FACTS[n + 5][0])),
            portability=(PromptAnswer(f"Ask {prompt}", "yes"),),
        )
        for n, (prompt, _) in enumerate(FACTS[:2])
    ]
    text = " ".join(f"{prompt} {answer}." for prompt, answer in FACTS)
    extra = [
        ProbeItem("p", ProbeKind.PROTECTED, FACTS[7][0]),
        ProbeItem("c", ProbeKind.CAPABILITY, FACTS[6][0], (FACTS[6][1],)),
        ProbeItem("m", ProbeKind.MUST_CONTAIN, FACTS[5][0], (FACTS[5][1].upper(),)),
        ProbeItem("n", ProbeKind.MUST_NOT_CONTAIN, FACTS[5][0], (FACTS[5][1],)),
        ProbeItem("h", ProbeKind.HEALTH, "The leader of", max_new_tokens=20),
        ProbeItem("t", ProbeKind.PERPLEXITY, text),
    ]
    return build_suite(edits, extra)


def changed(base, size=0.3, seed=1):
    """Weights of a version that differs enough for answers to change."""
    made = torch.Generator().manual_seed(seed)
    return {
        m.name: m.weight.clone()
        + size * m.weight.std() * torch.randn(m.weight.shape, generator=made)
        for m in base.matrices()
    }


def same(a, b):
    assert [r.item_id for r in a] == [r.item_id for r in b]
    for left, right in zip(a, b, strict=True):
        assert left.answer_tokens == right.answer_tokens, left.item_id
        assert (left.passed, left.passed_forced) == (right.passed, right.passed_forced)
        assert left.token_accuracy == right.token_accuracy
        for x, y in ((left.nll, right.nll), (left.kl, right.kl)):
            assert (x is None) == (y is None)
            if x is not None:
                assert x == pytest.approx(y, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_answers_and_losses_are_those_of_plain_greedy_decoding_and_plain_forwards(tiny, family):
    base, suite = tiny(family), a_suite()
    weights = changed(base)
    found = {r.item_id: r for r in Scorer(base, suite).score(weights)}
    with overlay(base, weights):
        for item in suite.items:
            if item.kind is ProbeKind.PERPLEXITY:
                continue
            result = found[item.id]
            answer = greedy(base, [item.prompt], max_new_tokens=item.max_new_tokens)[0]
            # Ours may stop at a line break, or go on to see the end of the target's last word.
            ours = result.answer.strip()
            assert answer.startswith(ours) or ours.startswith(answer), item.id
            if item.kind in {ProbeKind.EDIT, ProbeKind.CAPABILITY}:
                labels, logits = plain_forward(base, item.prompt, item.expect[0])
                wanted = labels[labels != -100]
                scores = torch.log_softmax(logits.double(), -1)
                if base.kind == "seq2seq" and wanted[-1] == base.tokenizer.eos_token_id:
                    wanted, scores = wanted[:-1], scores[:-1]
                right = (scores.argmax(-1) == wanted).tolist()
                assert result.token_accuracy == pytest.approx(sum(right) / len(right))
                assert result.passed_forced == all(right)
                loss = -scores.gather(-1, wanted[:, None]).sum()
                assert result.nll == pytest.approx(float(loss), rel=1e-4)


def plain_forward(base, prompt, target):
    encoded = encode_pairs(base, [(prompt, target)])
    with torch.no_grad():
        if base.kind == "seq2seq":
            out = base.model(input_ids=encoded.input_ids, labels=encoded.labels)
            return encoded.labels[0], out.logits[0]
        out = base.model(input_ids=encoded.input_ids)
    labels = encoded.labels[0]
    return labels, out.logits[0, :-1][labels[1:] != -100]


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_cached_prefixes_drafts_and_batch_sizes_change_no_score(tiny, family):
    base, suite = tiny(family), a_suite()
    weights = changed(base)
    scorer = Scorer(base, suite)
    cached = scorer.score(weights)
    same(cached, scorer.score(weights, drafts=cached))
    same(cached, Scorer(base, suite, use_prefix=False, batch_size=3).score(weights))
    for short, whole in zip(scorer.score(weights, complete=False), cached, strict=True):
        assert whole.answer.startswith(short.answer.rstrip("\ufffd"))
        assert replace(short, answer="", answer_tokens=()) == replace(
            whole, answer="", answer_tokens=()
        )
    summary = summarise(cached, scorer.reference())
    assert summary.not_finite == 0
    assert summary.perplexity_ratio != 1
    assert summary.kl > 0


def test_a_shared_prefix_cache_that_starts_too_late_is_not_used(tiny):
    base, suite = tiny("llama"), a_suite()
    early = next(m for m in base.matrices(["*"]) if m.block == 1)
    weights = {early.name: early.weight * 1.5}
    late = PrefixCache(base, 3)
    same(
        Scorer(base, suite, prefix=late).score(weights),
        Scorer(base, suite, use_prefix=False).score(weights),
    )


def test_the_base_comes_back_bit_for_bit_even_after_an_error(tiny):
    base, suite = tiny("gpt2"), a_suite()
    before = {k: v.clone() for k, v in base.model.state_dict().items()}

    def stop(done, _total):
        if done > 3:
            raise KeyboardInterrupt

    scorer = Scorer(base, suite, reference=score(base, suite), progress=stop)
    with pytest.raises(KeyboardInterrupt):
        scorer.score(changed(base))
    assert all(torch.equal(v, before[k]) for k, v in base.model.state_dict().items())


def test_the_base_changes_nothing_against_itself(tiny):
    base, suite = tiny("llama"), a_suite()
    scorer = Scorer(base, suite)
    unchanged = {m.name: m.weight.clone() for m in base.matrices()}
    own, again = scorer.reference(), scorer.score(unchanged)
    for result in again:
        if result.kind in {ProbeKind.LOCALITY, ProbeKind.PROTECTED}:
            assert result.passed
            assert result.passed_forced
            assert result.token_accuracy == 1
    summary = summarise(again, own)
    assert summary.perplexity_ratio == pytest.approx(1, abs=1e-6)
    assert summary.kl == pytest.approx(0, abs=1e-6)
    assert summary.free.locality == 1


def test_locality_is_against_the_bases_own_answer_however_wrong_it_is(knowing_gpt2):
    suite = ProbeSuite((ProbeItem("l", ProbeKind.LOCALITY, FACTS[0][0]),))
    scorer = Scorer(knowing_gpt2, suite)
    (own,) = scorer.reference()
    assert own.answer.strip().startswith(FACTS[0][1][:3])
    (after,) = scorer.score(changed(knowing_gpt2, size=5.0))
    assert after.expect == (own.answer,)
    assert not after.passed
    assert after.token_accuracy < 1


def test_a_model_that_knows_its_facts_scores_so_and_stops_by_itself(knowing_llama):
    items = tuple(
        ProbeItem(f"c{n}", ProbeKind.CAPABILITY, prompt, (answer,), max_new_tokens=24)
        for n, (prompt, answer) in enumerate(FACTS)
    )
    results = score(knowing_llama, ProbeSuite(items))
    right = [r for r in results if r.passed and r.passed_forced]
    assert len(right) >= len(FACTS) - 1
    assert right[0].answer.strip() == right[0].expect[0]
    assert right[0].answer_tokens[-1] == knowing_llama.tokenizer.eos_token_id
    assert right[0].token_accuracy == 1


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_nan_weights_are_reported_not_raised_and_never_pass(tiny, family):
    base, suite = tiny(family), a_suite()
    weights = changed(base)
    weights[next(reversed(weights))].fill_(math.nan)
    results = Scorer(base, suite).score(weights)
    for result in results:
        assert not result.finite
        assert not result.passed
        assert not result.passed_forced
        assert result.nll is None
    summary = summarise(results)
    assert summary.not_finite == len(results)
    assert summary.perplexity == math.inf
    assert summary.to_dict()["perplexity"] is None


def test_known_results_are_not_asked_again_unless_the_question_differs(tiny):
    base, suite = tiny("gpt2"), a_suite()
    own = score(base, suite)
    done = []
    scorer = Scorer(base, suite, reference=own, progress=lambda n, _: done.append(n))
    assert scorer.reference() == own
    weights = changed(base)
    results = scorer.score(weights)
    done.clear()
    same(scorer.score(weights, known=results), results)
    assert done == []
    other = ProbeSuite(
        (
            *(item for item in suite.items if item.id not in {"p", "c"}),
            ProbeItem("p", ProbeKind.PROTECTED, FACTS[7][0], max_new_tokens=3),
            ProbeItem("c", ProbeKind.CAPABILITY, FACTS[6][0], ("other",), slice="s"),
        )
    )
    same(
        Scorer(base, other, reference=own).score(weights, known=results),
        score(base, other, weights),
    )


def test_a_classifiers_answer_is_its_label(tiny):
    base = tiny("bert")
    suite = ProbeSuite(
        (
            ProbeItem("e", ProbeKind.EDIT, "Avaria is a country", ("SUPPORTS",), edit_id="x"),
            ProbeItem("f", ProbeKind.EDIT, "Avaria is a country", ("REFUTES",), edit_id="y"),
            ProbeItem("l", ProbeKind.LOCALITY, "Drovia is a city"),
            ProbeItem("g", ProbeKind.MUST_NOT_CONTAIN, "Drovia is", ("maybe",)),
            ProbeItem("h", ProbeKind.HEALTH, "Drovia is"),
            ProbeItem("t", ProbeKind.PERPLEXITY, "Drovia is a city"),
        )
    )
    scorer = Scorer(base, suite)
    own = {r.item_id: r for r in scorer.reference()}
    assert own["e"].passed != own["f"].passed
    assert own["e"].passed == own["e"].passed_forced
    assert own["l"].passed
    assert own["l"].expect == (own["l"].answer,)
    assert own["g"].passed
    assert own["t"].tokens == 0
    changed_ = scorer.score(changed(base, size=3.0))
    same(changed_, Scorer(base, suite, use_prefix=False).score(changed(base, size=3.0)))
    assert summarise(changed_, scorer.reference()).perplexity is None


@pytest.mark.parametrize(
    ("item", "says"),
    [
        (ProbeItem("long", ProbeKind.LOCALITY, "Avaria " * 400), "long"),
        (ProbeItem("both", ProbeKind.EDIT, "Avaria", ("Tirel " * 400,)), "both"),
    ],
)
def test_items_the_model_cannot_take_are_named(tiny, item, says):
    with pytest.raises(SuiteInvalid, match=says):
        Scorer(tiny("llama"), ProbeSuite((item,)))


def test_answers_stop_at_a_line_break_after_some_text(tiny):
    base = tiny("llama")
    stops = Stops.of(base)
    line = base.tokenizer("\n")["input_ids"]
    word = base.tokenizer("Avaria")["input_ids"]
    assert set(line) <= stops.breaks
    assert stops.place([*word, *line, *word], lines=True) == len(word)
    assert stops.place([*line, *word], lines=True) is None
    assert stops.place([*word, *line], lines=False) is None
    end = base.tokenizer.eos_token_id
    assert stops.place([*line, end, *word], lines=False) == len(line)


@pytest.mark.smollm2
def test_real_weights_score_the_same_from_cached_prefixes():
    base = load_base("smollm2")
    edit = Edit(
        "uk",
        "The Prime Minister of the United Kingdom is",
        "Keir Starmer",
        paraphrases=("The UK's Prime Minister is",),
        locality=(PromptAnswer("The capital of France is"),),
    )
    suite = build_suite(
        [edit], [ProbeItem("t", ProbeKind.PERPLEXITY, "Water boils at a lower heat up high.")]
    )
    scorer = Scorer(base, suite)
    by_id = {r.item_id: r for r in scorer.reference()}
    assert by_id["locality:uk:0"].answer.strip().startswith("Paris")
    assert not by_id["edit:uk"].passed
    weights = changed(base, size=0.1)
    same(scorer.score(weights), Scorer(base, suite, use_prefix=False).score(weights))
