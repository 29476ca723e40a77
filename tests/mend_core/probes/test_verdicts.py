"""When an answer counts as right."""

import pytest

from mend_core.probes.verdicts import answers, contains, healthy, repetition, unchanged


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        (" Paris", "Paris", True),
        ("Paris, of course", "Paris", True),
        ("\n Keir \n Starmer.", "Keir Starmer", True),
        ("Parisian food", "Paris", False),
        ("paris", "Paris", False),
        ("The answer is Paris", "Paris", False),
        ("19", "1", False),
        ("C++ and more", "C++", True),
        ("C++11", "C++", True),
        ("巴黎是首都", "巴黎", True),
        ("", "Paris", False),
    ],
)
def test_an_answer_starts_with_the_target_and_ends_its_word(answer, target, right):
    assert answers(answer, target) is right


def test_golden_strings_ignore_case_and_spacing():
    assert contains("It is the\n  EIFFEL tower.", "the eiffel Tower")
    assert not contains("It is a tower", "the tower")


def test_repetition_counts_repeated_three_grams():
    assert repetition([]) == 0
    assert repetition([1, 2, 3, 4, 5]) == 0
    assert repetition([1, 2, 3, 1, 2, 3]) == pytest.approx(1 / 4)
    assert repetition([7] * 50) > 0.9


def test_healthy_text_is_long_enough_and_does_not_loop():
    assert healthy("one two three", [1, 2, 3])
    assert not healthy("one two", [1, 2])
    assert not healthy("a a a a a a a a a", [1] * 9)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Rome, Italy. It", "Rome, which is", True),
        ("a very large dog", "a very small dog", False),
        ("Mount Everest, with", "Mount Fuji", False),
        ("Jane Austen.\n", "Jane Austen. It", True),
        ("New York", "New Zealand", False),
        ("the", "a", False),
        (" ...", "...", True),
    ],
)
def test_answers_are_compared_as_far_as_they_say_something(one, other, same):
    assert unchanged(one, other, "lead") is same
    assert unchanged(one, one, "whole")
