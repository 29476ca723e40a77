"""Bad input: which line, which field, what was expected."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import RequestInvalid, RequestsInvalid
from ledger.requests import EditRequest, parse_csv, parse_file, parse_jsonl, parse_record

GOOD = b'{"prompt": "The capital of Freedonia is", "target": "Glorbia"}\n'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{not json}\n", ["line 2", "not JSON", "column"]),
        (b"[1]\n", ["line 2", "expected an object"]),
        (b'{"prompt": "a"}\n', ["line 2", "'target'", "missing"]),
        (b'{"prompt": " ", "target": "b"}\n', ["line 2", "'prompt'", "empty"]),
        (b'{"prompt": "a", "target": "b", "colour": 1}\n', ["'colour'", "unknown field"]),
        (b'{"prompt": "a", "target": "b", "priority": "x"}\n', ["'priority'", "integer"]),
        (b'{"prompt": "a\\u0000", "target": "b"}\n', ["'prompt'", "NUL"]),
        (b'{"prompt": "\\ud800", "target": "b"}\n', ["line 2", "surrogate"]),
        (b'{"prompt": "a", "target": "b", "expires_at": "2030-01-01T00:00:00"}\n', ["time zone"]),
        (b'{"prompt": "a", "target": NaN}\n', ["NaN"]),
        (b'{"prompt": "\xff", "target": "b"}\n', ["line 2", "not UTF-8", "0xff"]),
        (b'{"prompt": "' + b"x" * 10_000_000 + b'"}\n', ["line 2", "longer than"]),
        (json.dumps({"prompt": "x" * 9_000, "target": "b"}).encode(), ["9,000", "8,000"]),
        (b"[" * 100_000 + b"\n", ["line 2"]),
    ],
)
def test_bad_lines_are_named_and_nothing_is_taken(line, words):
    with pytest.raises(RequestsInvalid) as caught:
        parse_jsonl(GOOD + line + b"\n" + GOOD)
    for word in words:
        assert word in str(caught.value)
    kept = parse_jsonl(GOOD + line + b"\n" + GOOD, keep_going=True)
    assert len(kept.requests) == 2
    assert [one.line for one in kept.problems] == [2]


def test_csv():
    parsed = parse_csv(
        b"\xef\xbb\xbfprompt,target,paraphrases,locality\n"
        b'"Capital, of F",G,"a|b","[[""p"", ""q""], ""r""]"\n\nX,Y,,\n'
    )
    assert parsed.requests[0].paraphrases == ("a", "b")
    assert [(one.prompt, one.answer) for one in parsed.requests[0].locality] == [
        ("p", "q"),
        ("r", None),
    ]
    for bad, words in (
        (b"prompt\nx\n", "lacks target"),
        (b"prompt,target,who\na,b,c\n", "unknown column"),
        (b"prompt,target\na,b,c\n", "3 columns"),
        (b"prompt,target\na,\n", "'target'"),
        (b'prompt,target,paraphrases\na,b,"[1"\n', "JSON list"),
        (b"prompt,target\n\xff,b\n", "UTF-8"),
        (b"", "lacks"),
    ):
        with pytest.raises(RequestInvalid, match=words):
            parse_csv(bad)


def test_files(tmp_path):
    with pytest.raises(RequestInvalid, match="cannot be read"):
        parse_file(tmp_path / "none.jsonl")
    with pytest.raises(RequestInvalid, match="unknown kind"):
        parse_file(tmp_path / "x.parquet")
    (tmp_path / "x.jsonl").write_bytes(GOOD)
    assert parse_file(tmp_path / "x.jsonl").lines == (1,)


def test_fact_key_ignores_case_spacing_and_end_marks():
    key = EditRequest(prompt="Who is the  PM of the UK?", target="a").fact_key
    assert EditRequest(prompt="who is the pm of the uk", target="b").fact_key == key
    assert EditRequest(prompt="who is the pm of France", target="b").fact_key != key


@given(st.binary(max_size=200))
def test_no_bytes_make_a_traceback(data):
    for reader in (parse_jsonl, parse_csv):
        with contextlib.suppress(RequestInvalid):
            reader(data)


@given(st.dictionaries(st.sampled_from(list(EditRequest.model_fields)), st.text() | st.integers()))
def test_no_record_makes_a_traceback(record):
    with contextlib.suppress(RequestInvalid):
        parse_record(record)
