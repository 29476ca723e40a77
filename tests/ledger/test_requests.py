"""Bad input: which line, which field, what was expected."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import RequestInvalid, RequestsInvalid
from ledger.requests import EditRequest, parse_file, parse_record

GOOD = b'{"prompt": "The capital of Freedonia is", "target": "Glorbia"}\n'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{not json}\n", ["line 2", "not JSON", "column"]),
        (b"[1]\n", ["line 2", "expected an object"]),
        (b'{"prompt": "a"}\n', ["line 2", "'target'", "missing"]),
        (b'{"prompt": " ", "target": "b"}\n', ["line 2", "'prompt'", "empty"]),
        (b'{"prompt": "a", "target": "b", "colour": 1}\n', ["'colour'", "unknown field"]),
        (b'{"prompt": "a", "target": "b", "priority": "x"}\n', ["'priority'", "whole number"]),
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
        parse_file(io.BytesIO(GOOD + line + b"\n" + GOOD))
    for word in words:
        assert word in str(caught.value)
    kept = parse_file(io.BytesIO(GOOD + line + b"\n" + GOOD), keep_going=True)
    assert len(kept.requests) == 2
    assert [one.line for one in kept.problems] == [2]


def test_csv():
    parsed = parse_file(
        io.BytesIO(
            b"\xef\xbb\xbfprompt,target,paraphrases,locality\n"
            b'"Capital, of F",G,"a|b","[[""p"", ""q""], ""r""]"\n\nX,Y,,\n'
        )
    )
    assert parsed.requests[0].paraphrases == ("a", "b")
    assert [(one.prompt, one.answer) for one in parsed.requests[0].locality] == [
        ("p", "q"),
        ("r", None),
    ]
    for bad, words in (
        (b"prompt\nx\n", "no column for the target"),
        (b"prompt,target,who\na,b,c\n", "unknown column"),
        (b"prompt,target\na,b,c\n", "3 columns"),
        (b"prompt,target\na,\n", "'target'"),
        (b'prompt,target,paraphrases\na,b,"[1"\n', "JSON list"),
        (b"prompt,target\n\xff,b\n", "UTF-8"),
    ):
        with pytest.raises(RequestInvalid, match=words):
            parse_file(io.BytesIO(bad))


def test_files(tmp_path):
    with pytest.raises(RequestInvalid, match="no such file"):
        parse_file(tmp_path / "none.jsonl")
    (tmp_path / "x.xlsx").write_bytes(b"PK\x03\x04 a workbook")
    with pytest.raises(RequestInvalid, match="Excel workbook"):
        parse_file(tmp_path / "x.xlsx")
    (tmp_path / "x.jsonl").write_bytes(GOOD)
    assert parse_file(tmp_path / "x.jsonl").lines == (1,)


def test_fact_key_ignores_case_spacing_and_end_marks():
    key = EditRequest(prompt="Who is the  PM of the UK?", target="a").fact_key
    assert EditRequest(prompt="who is the pm of the uk", target="b").fact_key == key
    assert EditRequest(prompt="who is the pm of France", target="b").fact_key != key


@given(st.binary(max_size=200))
def test_no_bytes_make_a_traceback(data):
    with contextlib.suppress(RequestInvalid):
        parse_file(io.BytesIO(data))


@given(st.dictionaries(st.sampled_from(list(EditRequest.model_fields)), st.text() | st.integers()))
def test_no_record_makes_a_traceback(record):
    with contextlib.suppress(RequestInvalid):
        parse_record(record)


def test_one_bad_record_among_many_is_named_and_the_rest_can_be_kept():
    lines = [f'{{"prompt": "Fact {n} is", "target": "x"}}' for n in range(10_000)]
    lines[7_000] = '{"prompt": "Fact 7000 is", "target": "x", "paraphrases": 5}'
    data = "\n".join(lines).encode()
    with pytest.raises(RequestsInvalid, match="line 7001: field 'paraphrases': expected a text"):
        parse_file(io.BytesIO(data))
    kept = parse_file(io.BytesIO(data), keep_going=True)
    assert (len(kept.requests), len(kept.problems)) == (9_999, 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'[{"prompt": "a", "target": "b"}, {"prompt": "c", "tar', "cut short"),
        (b'{"prompt": "a", "target": "b"}\n{"prompt": "c', "cut short"),
        (b'prompt,target\na,"b', "never closed"),
        (b"Prompt;Target\nCaf\xe9;b\n", "Windows-1252.*save it as UTF-8"),
        ("prompt,target\na,b\n".encode("utf-16"), "UTF-16.*save it as UTF-8"),
        (b'{"prompt": "a", "target": "b", "not_before": "soon"}', "expected a date and time"),
        (b'{"prompt": "a", "target": "b", "priority": 5000}', "-1000 to 1000"),
    ],
)
def test_a_file_that_is_cut_or_in_another_encoding_is_told_in_plain_words(data, words):
    with pytest.raises(RequestsInvalid, match=words) as caught:
        parse_file(io.BytesIO(data))
    assert "tuple" not in str(caught.value)


def test_fields_given_for_a_whole_file_fill_what_its_records_leave_out():
    data = b'{"prompt": "a", "target": "b"}\n{"prompt": "c", "target": "d", "reason": "own"}'
    parsed = parse_file(io.BytesIO(data), defaults={"reason": "election", "priority": 7})
    assert [(one.reason, one.priority) for one in parsed.requests] == [("election", 7), ("own", 7)]
