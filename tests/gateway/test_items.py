"""What the front door lets into a suite, the science takes: else the model would stand still."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.items import BUILT, FIELDS, KINDS, parse_items, problem_of
from mend_core.datasets.edit import Edit, PromptAnswer
from mend_core.errors import SuiteInvalid
from mend_core.probes import ProbeItem, build_suite
from mend_core.probes.suites import refuse_reserved
from service.errors import UserError

TEXTS = st.sampled_from(["", " ", "Water is", "x" * 100_001, "edit:1", "locality:1:0", "mine"])
VALUES = TEXTS | st.sampled_from([None, True, 0, -1, 3, 513, [], ["a"], [""], ["a", "b"], [1], {}])
GIVEN = {
    "id": VALUES,
    "kind": st.sampled_from([*sorted(KINDS), "edit", "odd"]),
    "prompt": TEXTS,
}
ITEMS = st.fixed_dictionaries(
    GIVEN, optional=dict.fromkeys(sorted({*FIELDS, "edit_id", "typo"} - set(GIVEN)), VALUES)
)


@given(ITEMS)
def test_what_passes_here_passes_there(item):
    if problem_of(item) is None:
        assert ProbeItem.from_dict(item).id == item["id"]


@given(
    st.fixed_dictionaries(
        {"id": st.just("mine"), "kind": st.sampled_from(sorted(KINDS)), "prompt": TEXTS},
        optional={
            "expect": st.lists(TEXTS, max_size=2),
            "never_for_tuning": st.booleans(),
            "max_new_tokens": st.integers(-1, 600),
        },
    )
)
def test_what_is_refused_here_would_be_refused_there(item):
    if problem_of(item) is not None:
        with pytest.raises(SuiteInvalid):
            ProbeItem.from_dict(item)


def test_no_item_can_take_the_place_of_one_that_a_version_builds():
    pair = (PromptAnswer("a", "b"),)
    edit = Edit(id="7", prompt="p", target="t", paraphrases=("q",), locality=pair, portability=pair)
    built = build_suite([edit], retained=[Edit(id="8", prompt="r", target="t")]).items
    assert len(built) == 5
    assert all(BUILT.fullmatch(item.id) for item in built)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"id": "a", "kind": "locality", "prompt": "x", "expect": ["y"]}', "takes no 'expect'"),
        ('{"id": "a", "kind": "protected", "prompt": "x", "canary": true}', "'canary' is unknown"),
        ('{"id": "edit:3", "kind": "protected", "prompt": "x"}', "choose another"),
        ('\n{"id": "a", "kind": "health", "prompt": "x", "max_new_tokens": 900}', "line 2"),
        ("[" * 100_000, "not JSON"),
        ('{"id": "a", "kind": "health", "prompt": "x"}\n' * 2, "more than once: a"),
    ],
)
def test_a_bad_line_is_named(text, says):
    with pytest.raises(UserError, match=says):
        parse_items(text, "suite.jsonl")


def test_a_line_ends_only_at_a_line_feed():
    [item] = parse_items('{"id": "a", "kind": "health", "prompt": "one\u2028two"}\n', "s")
    assert item["prompt"] == "one\u2028two"


@pytest.mark.parametrize("name", ["standing", "standing/mine", "neighbour/relation", "new"])
def test_nobody_thins_out_a_ring_that_the_service_fills(name):
    item = {"id": "mine", "kind": "locality", "prompt": "The sky is", "slice": name}
    assert "filled by the service itself" in problem_of(item)
    with pytest.raises(SuiteInvalid, match="filled by the service itself"):
        refuse_reserved([ProbeItem.from_dict(item)])


def test_ids_of_the_standing_suite_are_taken():
    for taken in ("standing:animals:00", "neighbour:subject:1:00"):
        item = {"id": taken, "kind": "locality", "prompt": "The sky is"}
        assert "choose another" in problem_of(item)
