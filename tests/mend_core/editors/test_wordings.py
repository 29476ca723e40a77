"""Other wordings, remembered from training edits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mend_core.datasets import Edit
from mend_core.editors.wordings import Wordings
from mend_core.errors import EditorCorrupt


def edit(prompt, subject, *paraphrases):
    return Edit(id=prompt, prompt=prompt, target="x", subject=subject, paraphrases=paraphrases)


LEARNED = [
    edit("The mother tongue of Ann is", "Ann", "Ann grew up speaking"),
    edit("The mother tongue of Bob is", "Bob", "Bob grew up speaking"),
    edit("The mother tongue of Bob is", "Bob", "At home, Bob speaks"),
    edit("The mother tongue of Cy is", "Cy", "At home, Cy speaks"),
    edit("The mother tongue of Di is", "Di", "At home, Di speaks"),
    edit("The mother tongue of Ed is", "Ed", "In 1996 it rained. Ed, speaker of"),
    edit("The capital of Peru is", "Peru", "The government of Peru sits in"),
    edit("The capital of Chad is", "Chad", "The government of Chad sits in"),
]


@pytest.fixture(scope="module")
def wordings():
    return Wordings.learn(LEARNED, seen=2)


def test_the_most_frequent_come_first_and_the_rare_not_at_all(wordings):
    asked = edit("The mother tongue of Zoe is", "Zoe")
    assert wordings.of(asked, 5) == ["At home, Zoe speaks", "Zoe grew up speaking"]
    assert wordings.of(asked, 1) == ["At home, Zoe speaks"]


def test_a_near_template_lends_its_wordings(wordings):
    others = {f"{{}} is {word} by": ["{} it is"] for word in ("made", "sold", "kept", "sung")}
    wordings = Wordings(wordings.to_dict() | others)
    assert wordings.of(edit("Zoe's mother tongue is", "Zoe"), 1) == ["At home, Zoe speaks"]


def test_a_far_template_has_none(wordings):
    assert wordings.of(edit("The first album of Zoe was", "Zoe"), 3) == []


@pytest.mark.parametrize(
    "asked",
    [
        edit("The mother tongue of Zoe is", None),
        edit("The mother tongue of Zoe is", ""),
        edit("The mother tongue of Zoe is", "Ann"),
        edit("The mother tongue of Zoe, says Zoe, is", "Zoe"),
        edit("The mother tongue of {} and Zoe is", "Zoe"),
    ],
)
def test_no_place_for_the_subject_means_no_wordings(wordings, asked):
    assert wordings.of(asked, 3) == []


def test_the_order_of_the_training_edits_does_not_matter(wordings):
    again = Wordings.learn(reversed(LEARNED), seen=2)
    assert list(again.to_dict().items()) == list(wordings.to_dict().items())


def test_it_comes_back_from_its_dictionary(wordings):
    again = Wordings(wordings.to_dict())
    assert len(again) == len(wordings) == 2
    asked = edit("The capital of Mali is", "Mali")
    assert again.of(asked, 2) == wordings.of(asked, 2) == ["The government of Mali sits in"]


@pytest.mark.parametrize("broken", [{"no place": ["{} is"]}, {"{} is": ["{} and {}"]}])
def test_a_template_must_hold_the_subject_once(broken):
    with pytest.raises(EditorCorrupt, match="exactly once"):
        Wordings(broken)


@given(st.text(max_size=30), st.text(max_size=10))
def test_any_prompt_can_be_asked(prompt, subject):
    wordings = Wordings.learn(LEARNED, seen=2)
    for found in wordings.of(edit(prompt, subject), 3):
        assert subject in found
