"""Every format, and every way a file can be broken."""

import csv
import json

import pytest

from mend_core.datasets import PromptAnswer, read_edits, read_fever, read_pararel
from mend_core.datasets.fever import flips
from mend_core.errors import DataError

FLAT = {
    "case_id": 7,
    "prompt": "The anthem of Avaria is",
    "target_new": " Morning Bells",
    "subject": "Avaria",
    "rephrase_prompt": "Avaria sings",
    "locality_prompt": "The anthem of Belmark is",
    "locality_ground_truth": "Grey Hills",
}
ORIGINAL = {
    "case_id": 3,
    "requested_rewrite": {
        "prompt": "{} was born in",
        "subject": "Otto Lind",
        "target_new": {"str": "Tirel", "id": "Q1"},
    },
    "paraphrase_prompts": ["The birthplace of Otto Lind is"],
    "neighborhood_prompts": ["Mia Falk was born in", "Jan Roos was born in"],
}
ZSRE = {
    "subject": "Lisken",
    "src": "Which river runs through Lisken?",
    "alt": "the Orr",
    "rephrase": "What river is in Lisken?",
    "loc": "nq question: who built the first loom",
    "loc_ans": "a weaver",
}
KNOW = {
    "prompt": "The mayor of Quill is",
    "target_new": "Eva Holm",
    "rephrase": "Quill's mayor is",
    "locality": {"Near": [{"prompt": "The mayor of Sandau is", "ground_truth": [["Ivo Kranz"]]}]},
    "portability": {"Reason": [{"prompt": "The mayor of Quill lives in", "ground_truth": "Quill"}]},
}
PLAIN = {
    "id": "a",
    "prompt": "The capital of Avaria is",
    "target": "Quill",
    "paraphrases": ["Avaria's capital is"],
    "locality": ["The capital of Belmark is", {"prompt": "2+2=", "answer": "4"}],
}


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_flat_counterfact(tmp_path):
    (edit,) = read_edits(write(tmp_path / "a.json", [FLAT]))
    assert edit.id == "7"
    assert edit.target == "Morning Bells"
    assert edit.subject == "Avaria"
    assert edit.paraphrases == ("Avaria sings",)
    assert edit.locality == (PromptAnswer("The anthem of Belmark is", "Grey Hills"),)


def test_original_counterfact(tmp_path):
    (edit,) = read_edits(write(tmp_path / "a.json", [ORIGINAL]))
    assert edit.prompt == "Otto Lind was born in"
    assert edit.target == "Tirel"
    assert len(edit.locality) == 2


def test_zsre(tmp_path):
    (edit,) = read_edits(write(tmp_path / "a.json", [ZSRE]))
    assert (edit.prompt, edit.target) == ("Which river runs through Lisken?", "the Orr")
    assert edit.locality[0].answer == "a weaver"


def test_easyedit(tmp_path):
    (edit,) = read_edits(write(tmp_path / "a.json", [KNOW]))
    assert edit.paraphrases == ("Quill's mayor is",)
    assert edit.locality == (PromptAnswer("The mayor of Sandau is", "Ivo Kranz"),)
    assert edit.portability == (PromptAnswer("The mayor of Quill lives in", "Quill"),)


def test_jsonl(tmp_path):
    lines = json.dumps(PLAIN) + "\n\n" + json.dumps({**PLAIN, "id": "b"}) + "\n"
    first, second = read_edits(write(tmp_path / "a.jsonl", lines))
    assert first.locality == (
        PromptAnswer("The capital of Belmark is"),
        PromptAnswer("2+2=", "4"),
    )
    assert second.id == "b"


def test_csv(tmp_path):
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "target", "paraphrases", "subject"])
        writer.writerow(['He said,\n"go" to', "Quill", "one | two", ""])
    (edit,) = read_edits(path)
    assert edit.prompt.startswith("He said,\n")
    assert len(edit.paraphrases) == 2
    assert edit.subject is None


def test_records_are_streamed(tmp_path):
    path = write(tmp_path / "a.json", json.dumps([FLAT])[:-1] + ", {broken")
    edits = read_edits(path)
    assert next(edits).id == "7"
    with pytest.raises(DataError):
        next(edits)


@pytest.mark.parametrize(
    ("name", "content", "line", "field"),
    [
        ("a.jsonl", json.dumps(PLAIN) + "\n{oops\n", 2, None),
        ("a.jsonl", '{"prompt": "p", "target": ""}\n', 1, "target"),
        ("a.jsonl", '{"prompt": 5, "target": "t"}\n', 1, "prompt"),
        ("a.jsonl", '{"prompt": "   ", "target": "t"}\n', 1, "prompt"),
        ("a.jsonl", '"just text"\n', 1, None),
        ("a.jsonl", json.dumps({**PLAIN, "paraphrases": [1]}) + "\n", 1, "paraphrases"),
        ("a.jsonl", json.dumps({**PLAIN, "locality": [{"answer": "4"}]}) + "\n", 1, "locality"),
        ("a.jsonl", json.dumps({**PLAIN, "locality": 3}) + "\n", 1, "locality"),
        ("a.jsonl", (json.dumps(PLAIN) + "\n") * 2, 2, "id"),
        ("a.csv", "prompt,target\np\n", 2, None),
        ("a.csv", "prompt,target\np,t,extra\n", 2, None),
        ("a.csv", 'prompt,target\n"p,t\n', 2, None),
        ("a.json", '{"prompt": "p"}', 1, "target"),
        ("a.json", '[{"prompt": "p", "target_new": "t"}', 1, None),
        ("a.json", '[\n{"case_id": 1, "prompt": "p", "rephrase_prompt": "r"}]', 2, "target"),
    ],
)
def test_a_broken_record_is_named(tmp_path, name, content, line, field):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        list(read_edits(path))
    assert caught.value.line == line
    assert caught.value.field == field
    assert str(path) in str(caught.value)


def test_not_utf8(tmp_path):
    for name in ("a.jsonl", "a.json", "a.csv"):
        path = tmp_path / name
        path.write_bytes(b'[{"prompt": "caf\xe9"}]\n')
        with pytest.raises(DataError, match="not UTF-8"):
            list(read_edits(path))


def test_a_ten_megabyte_line(tmp_path):
    long = json.dumps({"prompt": "x" * 10_000_000, "target": "t"})
    with pytest.raises(DataError, match="longer than") as caught:
        list(read_edits(write(tmp_path / "a.jsonl", json.dumps(PLAIN) + "\n" + long + "\n")))
    assert caught.value.line == 2
    with pytest.raises(DataError, match="longer than"):
        list(read_edits(write(tmp_path / "a.json", "[" + long + "]")))


def test_no_such_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        list(read_edits(tmp_path / "missing.json"))


def test_bad_records_can_be_skipped(tmp_path):
    path = write(tmp_path / "a.json", [ZSRE, {**ZSRE, "alt": ""}, {**ZSRE, "id": "last"}])
    errors = []
    edits = list(read_edits(path, on_error=errors.append))
    assert edits[-1].id == "last"
    assert len(edits) == 2
    assert [e.field for e in errors] == ["alt"]


def test_pararel_gives_the_same_edits_for_a_seed(tmp_path):
    relation = {
        "facts": [
            {"sub_label": s, "obj_label": o}
            for s, o in [("Avaria", "Tirel"), ("Belmark", "Morven"), ("Drovia", "Quill")]
        ],
        "patterns": [
            {"pattern": "The capital of [X] is [Y] ."},
            {"pattern": "[X], whose capital is [Y]."},
            {"pattern": "[Y] is the capital of [X]."},
        ],
    }
    path = write(tmp_path / "pararel.json", {"P36": relation})
    edits = list(read_pararel(path, seed=1))
    assert edits == list(read_pararel(path, seed=1))
    assert len(edits) == 3
    truth = {f["sub_label"]: f["obj_label"] for f in relation["facts"]}
    for edit in edits:
        assert edit.target != truth[edit.subject]
        assert edit.subject in edit.prompt
        assert len(edit.paraphrases) == 1


def test_pararel_of_another_shape(tmp_path):
    with pytest.raises(DataError, match="P36"):
        list(read_pararel(write(tmp_path / "p.json", {"P36": {"facts": []}})))


def test_fever(tmp_path):
    lines = [
        {"id": 1, "claim": "Rain is wet.", "label": "SUPPORTS"},
        {"id": 2, "claim": "Rain is dry.", "label": "REFUTES"},
        {"id": 3, "claim": "Rain is fun.", "label": "NOT ENOUGH INFO"},
    ]
    path = write(tmp_path / "f.jsonl", "\n".join(map(json.dumps, lines)))
    edits = list(flips(read_fever(path)))
    assert [(e.prompt, e.target) for e in edits] == [
        ("Rain is wet.", "REFUTES"),
        ("Rain is dry.", "SUPPORTS"),
    ]
    with pytest.raises(DataError, match="claim"):
        list(read_fever(write(tmp_path / "g.jsonl", '{"label": "SUPPORTS"}')))


@pytest.mark.parametrize("indent", [None, 1])
def test_an_array_on_one_line_gives_all_its_edits(tmp_path, indent):
    """`json.dump` writes one line; zsRE and EasyEdit records carry no id."""
    records = [{"src": f"Question {i}?", "alt": f"Answer {i}"} for i in range(5)]
    path = tmp_path / "zsre.json"
    path.write_text(json.dumps(records, indent=indent))
    edits = list(read_edits(path))
    assert [e.target for e in edits] == [f"Answer {i}" for i in range(5)]
    lines = ["1", "1.2", "1.3", "1.4", "1.5"] if indent is None else ["2", "6", "10", "14", "18"]
    assert [e.id for e in edits] == [f"zsre:{line}" for line in lines]
