"""Every kind of file people have, and what is said of a bad one."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from editfiles import FileProblem, read_records

PLAIN = {"prompt": "The capital of Avaria is", "target": "Quill"}
ZSRE = {
    "subject": "Lisken",
    "src": "Which river runs through Lisken?",
    "alt": "the Orr",
    "answers": ["the Ulm"],
    "rephrase": "What river is in Lisken?",
    "loc": "nq question: who built the first loom",
    "loc_ans": "a weaver",
    "portability": {"Recalled Relation": "r", "New Question": "q?", "New Answer": "a"},
}


def read(data, **options):
    if not isinstance(data, bytes):
        data = data.encode()
    return list(read_records(io.BytesIO(data), name="facts", **options))


@pytest.mark.parametrize(
    "written",
    [
        json.dumps(PLAIN),
        json.dumps(PLAIN) + "\n\n",
        json.dumps([PLAIN]),
        json.dumps([PLAIN], indent=1),
        json.dumps(PLAIN, indent=1),
        json.dumps({"data": [PLAIN]}),
        json.dumps({"about": "x", "data": [PLAIN]}, indent=1),
        "\ufeffPrompt;Target\r\nThe capital of Avaria is;Quill\r\n",
        "Question\tNew answer\nThe capital of Avaria is\tQuill\n",
        "sep=;\nQuestion;New answer;;\nThe capital of Avaria is;Quill;;\n;;;\n",
        ' Prompt , TARGET \n"The capital of Avaria is",Quill\n',
    ],
)
def test_the_kind_is_seen_from_the_content(written):
    (record,) = read(written)
    assert (record.prompt, record.target) == (PLAIN["prompt"], PLAIN["target"])


def test_zsre_with_its_portability():
    (record,) = read(json.dumps([ZSRE]))
    assert (record.prompt, record.target) == (ZSRE["src"], "the Orr")
    assert record.locality == (("nq question: who built the first loom", "a weaver"),)
    assert record.portability == (("q?", "a"),)


def test_knowedit_groups_with_nested_answers():
    (record,) = read(
        json.dumps(
            [
                {
                    "prompt": "The mayor of Quill is",
                    "target_new": "Eva Holm",
                    "ground_truth": "Jan Roos",
                    "locality": {"Near": [{"prompt": "p", "ground_truth": [["a"], ["b"]]}]},
                    "portability": {"one_hop": {"prompt": ["q", "r"], "ground_truth": ["s", "t"]}},
                }
            ]
        )
    )
    assert record.locality == (("p", "a"),)
    assert record.portability == (("q", "s"), ("r", "t"))


def test_pairs_and_quoted_line_breaks():
    (one,) = read(json.dumps({**PLAIN, "locality": ["x", ["p", "q"], ["r", None]]}))
    assert one.locality == (("x", None), ("p", "q"), ("r", None))
    (two,) = read('prompt,target,paraphrases\n"a\nb",c,"x | y"\n')
    assert (two.prompt, two.paraphrases) == ("a\nb", ("x", "y"))


def test_a_bar_or_bracket_in_a_json_text_is_only_text():
    asked = {**PLAIN, "paraphrases": "a | b", "locality": "[x"}
    (record,) = read(json.dumps([asked]))
    assert (record.paraphrases, record.locality) == (("a | b",), (("[x", None),))


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("Frage;Antwort\na;b\n", ["line 1", "prompt", "target", "found: Frage, Antwort"]),
        ("prompt,target,who\na,b,c\n", ["'who'", "unknown column"]),
        ("prompt,target\na,b,c\n", ["line 2", "3 columns"]),
        ('prompt,target\na,b\n"c,d\n', ["line 3", "never closed"]),
        (b"prompt;target\na;caf\xe9\n", ["line 2", "UTF-8", "é", "Windows-1252"]),
        ("prompt,target\n".encode("utf-16"), ["UTF-16", "UTF-8"]),
        (b"PK\x03\x04", ["Excel workbook"]),
        (json.dumps([PLAIN, PLAIN])[:-1], ["cut short"]),
        (json.dumps([PLAIN, PLAIN])[:-9], ["cut short"]),
        (json.dumps(PLAIN) + "\n" + json.dumps(PLAIN)[:-4], ["line 2", "cut short"]),
        (json.dumps({**PLAIN, "paraphrases": 3}), ["'paraphrases'", "list of texts"]),
        (json.dumps({**PLAIN, "colour": 1}), ["'colour'", "unknown field"]),
        ('{"prompt": "a\nb", "target": "c"}\n', ["line 1"]),
        (json.dumps([PLAIN, {"prompt": "x"}]), ["line 1, record 2", "'target'"]),
    ],
)
def test_a_bad_file_is_named_in_a_persons_words(written, words):
    with pytest.raises(FileProblem) as caught:
        read(written)
    for word in words:
        assert word in str(caught.value)
    for jargon in ("tuple", "Expecting", "codec", "delimiter"):
        assert jargon not in str(caught.value)


def test_one_bad_record_in_ten_thousand():
    problems = []
    rows = [PLAIN] * 10_000
    rows[7_311] = {"prompt": "x", "target": 5}
    found = read(json.dumps(rows), on_problem=problems.append)
    assert len(found) == 9_999
    (problem,) = problems
    assert problem.place.nth == 7_312
    assert problem.field == "target"


@given(st.binary(max_size=200))
def test_no_bytes_make_a_traceback(data):
    read(data, on_problem=lambda _problem: None) if not _refused(data) else None


def _refused(data):
    try:
        read(data, on_problem=lambda _problem: None)
    except FileProblem:
        return True
    return False


@given(st.lists(st.tuples(*[st.text(min_size=1).filter(str.strip)] * 2), max_size=5))
def test_what_json_holds_comes_back(pairs):
    rows = [{"prompt": p, "target": t} for p, t in pairs]
    for written in (json.dumps(rows), "\n".join(map(json.dumps, rows))):
        assert [(r.prompt, r.target) for r in read(written)] == pairs
