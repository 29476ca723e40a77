"""The standing suite and the neighbours made for each edit."""

from collections import Counter

import pytest

from mend_core.datasets.edit import Edit
from mend_core.probes import ProbeKind
from mend_core.probes.lexicon import SUBJECT, kind_of, kinds
from mend_core.probes.neighbours import BUDGET, EACH, neighbours, subject_of
from mend_core.probes.standing import standing_suite
from mend_core.probes.suites import RELATION_SLICE, SUBJECT_SLICE, normalise


def test_the_standing_suite_asks_everyday_things_of_many_kinds_once_each():
    suite = standing_suite()
    questions = suite.of(ProbeKind.LOCALITY)
    sizes = Counter(item.slice for item in questions)
    assert len(questions) >= 400
    assert len(sizes) >= 12
    assert min(sizes.values()) >= 15
    assert len(suite.of(ProbeKind.PERPLEXITY)) == 40
    assert len(suite.of(ProbeKind.HEALTH)) == 20
    prompts = [normalise(item.prompt) for item in suite.items]
    assert len(set(prompts)) == len(prompts)


def test_every_kind_of_subject_has_statements_with_one_place_for_it():
    for kind in kinds().values():
        assert len(kind.statements) >= 8
        assert all(statement.count(SUBJECT) == 1 for statement in kind.statements)
        assert kind.name == "thing" or len(kind.members) >= 20


@pytest.mark.parametrize(
    ("prompt", "subject", "kind"),
    [
        ("The capital of France is", "France", "country"),
        ("The prime minister of Freedonia is", "Freedonia", "country"),
        ("The CEO of Initech is", "Initech", "company"),
        ("Ada Byron was born in", "Ada Byron", "person"),
        ("The architect of the Marlow Bridge was", "Marlow Bridge", "landmark"),
        ("The xyzzy of Frobozz is", "Frobozz", "thing"),
    ],
)
def test_the_kind_of_a_subject_is_told_by_name_or_by_the_words_around_it(prompt, subject, kind):
    assert kind_of(subject, prompt.replace(subject, SUBJECT)).name == kind


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The capital of France is", "France"),
        ("The Prime Minister of the United Kingdom is", "United Kingdom"),
        ("Kylian Mbappe plays for", "Kylian Mbappe"),
        ("The CEO of Initech is", "Initech"),
        ("what time is it", None),
    ],
)
def test_a_subject_nobody_named_is_found_in_the_prompt(prompt, subject):
    assert subject_of(Edit("1", prompt, "x")) == subject


def test_neighbours_are_the_statement_about_others_and_other_statements_about_the_subject():
    edit = Edit("7", "The capital of the United Kingdom is", "Leeds", "United Kingdom")
    items = neighbours([edit])
    relation = [i.prompt for i in items if i.slice == RELATION_SLICE]
    subject = [i.prompt for i in items if i.slice == SUBJECT_SLICE]
    assert len(relation) == EACH
    assert all(p.startswith("The capital of ") and "Kingdom" not in p for p in relation)
    assert not any("the the" in p.lower() for p in relation)
    assert all("the United Kingdom" in p or "The United Kingdom" in p for p in subject)
    assert not any("capital" in p for p in subject)
    assert neighbours([edit]) == items


def test_many_edits_share_a_budget_and_each_has_some():
    edits = [Edit(str(n), f"The capital of Land{n} is", "x", f"Land{n}") for n in range(200)]
    made = Counter((item.edit_id, item.slice) for item in neighbours(edits))
    assert set(made.values()) == {1}
    assert len(made) == 400
    few = neighbours(edits[:12])
    assert len([i for i in few if i.slice == RELATION_SLICE]) == BUDGET
