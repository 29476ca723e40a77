"""Suites: frozen, named by digest, refused with a line number where broken."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mend_core.datasets.edit import Edit, PromptAnswer
from mend_core.errors import SuiteInvalid
from mend_core.probes import (
    ProbeItem,
    ProbeKind,
    ProbeSuite,
    build_suite,
    sample_edits,
)
from mend_core.probes.suites import GOLDEN_KINDS, RELATION_SLICE, RETAINED_SLICE, TARGET_KINDS

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: text.strip()
)


@st.composite
def items(draw):
    kind = draw(st.sampled_from(ProbeKind))
    expect = ()
    if kind in TARGET_KINDS:
        expect = (draw(texts),)
    elif kind in GOLDEN_KINDS:
        expect = tuple(draw(st.lists(texts, min_size=1, max_size=3)))
    return ProbeItem(
        id=draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)),
        kind=kind,
        prompt=draw(texts),
        expect=expect,
        slice=draw(st.sampled_from(["all", "geo", "ünïcode"])),
        edit_id=draw(st.none() | texts),
        never_for_tuning=draw(st.booleans()),
        max_new_tokens=draw(st.integers(0, 512)),
    )


@given(found=st.lists(items(), unique_by=lambda item: item.id, max_size=8), data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_suite_is_its_set_of_items_and_survives_its_file(found, data):
    suite = ProbeSuite(tuple(found))
    assert ProbeSuite(tuple(data.draw(st.permutations(found)))).digest == suite.digest
    assert ProbeSuite.parse(suite.to_jsonl()) == suite
    if found:
        assert ProbeSuite(tuple(found[1:])).digest != suite.digest


def test_a_suite_file_is_named_by_its_digest_and_checked_against_it(tmp_path):
    suite = ProbeSuite((ProbeItem("a", ProbeKind.LOCALITY, "The capital of France is"),))
    path = suite.save(tmp_path)
    assert suite.save(tmp_path) == path
    assert path.name == suite.digest.removeprefix("sha256:") + ".jsonl"
    assert ProbeSuite.load(path, expected_digest=suite.digest) == suite
    assert list(tmp_path.iterdir()) == [path]
    path.write_text(path.read_text().replace("France", "Spain"))
    with pytest.raises(SuiteInvalid, match="altered"):
        ProbeSuite.load(path, expected_digest=suite.digest)


def a_line(**fields):
    return json.dumps({"id": "x", "kind": "locality", "prompt": "Where is it?"} | fields)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object, got list"),
        ("[" * 100_000, "nested too deeply|not JSON"),
        ('{"id": "x", "kind": "locality"}', "'prompt' is missing"),
        (a_line(kind="locallity"), "unknown kind 'locallity'; known kinds: edit"),
        (a_line(promt="y"), "unknown field 'promt'"),
        (a_line(id=3), "field 'id': got int"),
        (a_line(max_new_tokens=True), "'max_new_tokens': got bool"),
        (a_line(max_new_tokens=10_000), "0 to 512"),
        (a_line(expect=["a"]), "takes no expect"),
        (a_line(expect="a"), "'expect': got str"),
        (a_line(kind="edit"), "exactly one answer"),
        (a_line(kind="edit", expect=["a", "b"]), "exactly one answer"),
        (a_line(kind="edit", expect=[3]), "list of strings"),
        (a_line(kind="must_contain"), "at least one string"),
        (a_line(kind="must_contain", expect=[" "]), "empty string"),
        (a_line(prompt="  "), "prompt is empty"),
        (a_line(prompt="x" * 200_000), "limit is 100000"),
        (a_line(id=""), "id is empty"),
        (a_line(slice=""), "slice is empty"),
        (a_line(id="first"), "duplicate probe item id 'first', first on line 1"),
    ],
)
def test_a_broken_line_is_named(line, says):
    good = a_line(id="first")
    with pytest.raises(SuiteInvalid, match=f"(?s)mine, line 3: .*({says})"):
        ProbeSuite.parse(f"{good}\n\n{line}\n", name="mine")


def test_a_file_that_is_not_text_or_not_there(tmp_path):
    with pytest.raises(SuiteInvalid, match="cannot be read"):
        ProbeSuite.load(tmp_path / "none.jsonl")
    (tmp_path / "bad.jsonl").write_bytes(b'{"id": "\xff"}')
    with pytest.raises(SuiteInvalid, match="not UTF-8"):
        ProbeSuite.load(tmp_path / "bad.jsonl")


def test_duplicate_ids_are_refused():
    item = ProbeItem("a", ProbeKind.LOCALITY, "p")
    with pytest.raises(SuiteInvalid, match="duplicate"):
        ProbeSuite((item, item))


def test_a_versions_suite_comes_from_its_edits():
    edit = Edit(
        "e1",
        "The capital of France is",
        "Lyon",
        paraphrases=("France's capital is",),
        locality=(PromptAnswer("The capital of Spain is"), PromptAnswer("Messi plays")),
        portability=(PromptAnswer("The mayor of France's capital is", "X"), PromptAnswer("No one")),
    )
    suite = build_suite([edit], retained=[Edit("e0", "Water is", "wet", paraphrases=("H2O is",))])
    assert {item.id: (item.kind.value, item.slice) for item in suite.items} == {
        "edit:e1": ("edit", "new"),
        "paraphrase:e1:0": ("paraphrase", "new"),
        "locality:e1:0": ("locality", "neighbour/given"),
        "locality:e1:1": ("locality", "neighbour/given"),
        "portability:e1:0": ("portability", "new"),
        "retained:e0": ("edit", RETAINED_SLICE),
    }
    assert all(item.edit_id in {"e0", "e1"} for item in suite.items)


def test_shared_locality_prompts_are_asked_once_and_never_against_an_edit():
    edits = [
        Edit("a", "The capital of France is", "Lyon", locality=(PromptAnswer("Rain  is"),)),
        Edit(
            "b",
            "The capital of Spain is",
            "Vigo",
            paraphrases=("Spain's capital:",),
            locality=(PromptAnswer("rain is"), PromptAnswer("The capital of france is")),
        ),
        Edit("c", "x", "y", locality=(PromptAnswer("Spain's capital:"),)),
    ]
    suite = build_suite(edits)
    assert build_suite(reversed(edits)) == suite
    assert [i.id for i in suite.of(ProbeKind.LOCALITY)] == ["locality:a:0"]


def test_a_retained_edit_that_a_new_one_replaces_is_not_asked():
    old = [Edit("old", "The capital of  France is", "Lyon"), Edit("other", "Water is", "wet")]
    suite = build_suite([Edit("new", "The capital of France is", "Nice")], retained=old)
    assert [item.id for item in suite.items] == ["edit:new", "retained:other"]


def test_a_protected_prompt_stays_even_where_an_edit_contradicts_it():
    edit = Edit("a", "The capital of France is", "Lyon")
    guard = ProbeItem("guard", ProbeKind.PROTECTED, "The capital of France is")
    assert guard in build_suite([edit], [guard]).items


def test_canaries_are_kept_from_tuning():
    canary = ProbeItem("a", ProbeKind.LOCALITY, "p", never_for_tuning=True)
    plain = ProbeItem("b", ProbeKind.LOCALITY, "q")
    suite = ProbeSuite((canary, plain))
    assert suite.for_tuning().items == (plain,)
    assert len(suite) == 2


@given(order=st.permutations(range(12)))
@settings(max_examples=20, deadline=None)
def test_the_sample_of_retained_edits_does_not_depend_on_order(order):
    edits = [Edit(str(n), "p", "t") for n in range(12)]
    chosen = sample_edits(edits, 5)
    assert sample_edits([edits[n] for n in order], 5) == chosen
    assert len(chosen) == 5
    assert sample_edits(edits, 5, seed="other") != chosen


def test_a_given_prompt_never_takes_the_place_of_a_neighbour_made_by_rule():
    edit = Edit("1", "The capital of France is", "Lyon", locality=(PromptAnswer("It is Rome"),))
    made = ProbeItem(
        "neighbour:relation:1:00",
        ProbeKind.LOCALITY,
        "it is  rome",
        slice=RELATION_SLICE,
        edit_id="1",
        compare="lead",
    )
    slices = [item.slice for item in build_suite([edit], [made]).of(ProbeKind.LOCALITY)]
    assert slices == [RELATION_SLICE]


def test_benchmarks_compare_whole_answers_and_the_gate_what_they_say():
    edit = Edit("1", "The capital of France is", "Lyon", locality=(PromptAnswer("It is"),))
    ways = {
        item.compare
        for way in ("whole", "lead")
        for item in build_suite([edit], compare=way).of(ProbeKind.LOCALITY)
    }
    assert ways == {"whole", "lead"}
    assert build_suite([edit]).of(ProbeKind.LOCALITY)[0].compare == "whole"
