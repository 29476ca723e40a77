"""What runs at safe points finds the base as it is, and changes no bit of the work around it."""

import pytest
import torch

from mend_core.datasets import Edit
from mend_core.editors import SubjectConfig, SubjectEditor
from mend_core.factors import extract
from mend_core.models import greedy
from mend_core.models.overlay import Overlay, overlay
from mend_core.probes import ProbeItem, ProbeKind, build_suite
from mend_core.probes.scoring import Scorer
from mend_core.safepoints import interruptible, safe_point
from mend_core.testing import FACTS

EDITS = [Edit(str(i), FACTS[i][0], FACTS[(i + 1) % 8][1]) for i in range(4)]


def changed(base, seed):
    """Weights of a version that answers otherwise."""
    made = torch.Generator().manual_seed(seed)
    return {
        m.name: m.weight + 0.3 * m.weight.std() * torch.randn(m.weight.shape, generator=made)
        for m in base.matrices()
    }


class Question:
    """Asks another version of the same base at every safe point."""

    def __init__(self, base):
        self.base = base
        self.own = {m.name: m.weight.clone() for m in base.matrices()}
        self.other = changed(base, seed=9)
        self.overlay = Overlay(base)  # as a worker's: it keeps the originals it finds first
        self.answers = set()
        self.times = 0

    def due(self):
        return True

    def run(self):
        self.times += 1
        for matrix in self.base.matrices():
            assert torch.equal(matrix.weight, self.own[matrix.name]), matrix.name
        safe_point()  # comes to nothing: what interrupts is not interrupted
        with self.overlay.in_place(self.other):
            self.answers.add(greedy(self.base, [FACTS[3][0]], max_new_tokens=4)[0])


@pytest.mark.parametrize("family", ["llama", "t5", "bert"])
def test_probe_results_are_the_same_bits_with_and_without_questions_in_between(tiny, family):
    base = tiny(family)
    label = None if base.kind != "classifier" else next(iter(base.model.config.id2label.values()))
    edits = [Edit(e.id, e.prompt, label or e.target) for e in EDITS]
    text = " ".join(f"{prompt} {answer}." for prompt, answer in FACTS)
    extra = [ProbeItem("p", ProbeKind.PROTECTED, FACTS[7][0])]
    if not label:
        extra.append(ProbeItem("t", ProbeKind.PERPLEXITY, text))
    suite, weights = build_suite(edits, extra), changed(base, seed=1)
    plain = Scorer(base, suite, batch_size=2)
    expected = plain.reference(), plain.score(weights)
    question = Question(base)
    asked = Scorer(base, suite, batch_size=2)
    with interruptible(question):
        assert (asked.reference(), asked.score(weights)) == expected
    assert question.times > len(suite) // 2
    assert len(question.answers) == 1
    with overlay(base, question.other):
        assert question.answers == set(greedy(base, [FACTS[3][0]], max_new_tokens=4))
    for matrix in base.matrices():
        assert torch.equal(matrix.weight, question.own[matrix.name])


def test_factors_are_the_same_bits_with_and_without_questions_in_between(knowing_llama):
    base = knowing_llama
    config = SubjectConfig(prefixes=("", "Well. "), steps=6, enough=0.0)
    editor = SubjectEditor.create(base, config, edits=EDITS, matrices=["down_proj@0:3"])

    def digests():
        return [editor.grid.encode(rows).digest for rows in editor.factor(base, EDITS)]

    expected, rows = digests(), extract(base, EDITS, base.matrices(), batch_size=1).rows
    question = Question(base)
    with interruptible(question):
        assert digests() == expected
        again = extract(base, EDITS, base.matrices(), batch_size=1).rows
    assert question.times >= 6 + len(EDITS)
    for name, found in again.items():
        assert torch.equal(found.u, rows[name].u)
        assert torch.equal(found.delta, rows[name].delta)


def test_what_was_in_place_is_back_after_an_interruption_that_fails(tiny):
    base = tiny("llama")
    weights = changed(base, seed=1)

    class Failing:
        def due(self):
            return True

        def run(self):
            raise RuntimeError("out of memory")

    with interruptible(Failing()), overlay(base, weights):
        with pytest.raises(RuntimeError, match="out of memory"):
            safe_point()
        for name, weight in weights.items():
            assert torch.equal(base.by_name[name].weight, weight)
