"""The base's answers are kept across processes, and a broken file only costs asking again."""

from dataclasses import replace

import pytest

from mend_core.models import load_base
from mend_core.probes import ProbeItem, ProbeKind, ProbeSuite, build_suite
from mend_core.probes.scoring import Scorer
from tests.workers import tiny
from workers.answers import Answers, setting_of


@pytest.fixture(scope="module")
def base(tiny_model):
    return load_base(tiny_model)


def ask(base, answers, suite):
    """The base's results and how many items were asked of the model."""
    asked = []
    scorer = Scorer(
        base, suite, reference=answers.known(), progress=lambda done, _: asked.append(done)
    )
    results = scorer.reference()
    answers.keep(results)
    return results, max(asked, default=0)


def files(root):
    return sorted(root.rglob("*.jsonl"))


def test_another_process_asks_nothing_again(base, tmp_path):
    root = tmp_path / "answers"
    suite = build_suite(tiny.facts(4))
    results, asked = ask(base, Answers(base, root), suite)
    assert asked == len(suite)
    assert root.stat().st_mode & 0o077 == 0
    again, asked = ask(base, Answers(base, root), suite)
    assert (again, asked) == (results, 0)
    # The same edits under other ids, as in another home, and one question that is new.
    moved = [replace(edit, id=f"9{edit.id}") for edit in tiny.facts(4)]
    more = ProbeItem("h", ProbeKind.HEALTH, "The river", max_new_tokens=4)
    other = build_suite(moved, [more])
    found, asked = ask(base, Answers(base, root), other)
    assert asked == 1
    assert found == Scorer(base, other).reference()
    assert [r.item_id for r in found] == [item.id for item in other.items]


def test_a_process_sees_what_another_kept_meanwhile(base, tmp_path):
    mine, theirs = Answers(base, tmp_path), Answers(base, tmp_path)
    suite = build_suite(tiny.facts(2))
    assert mine.known() == ()
    ask(base, theirs, suite)
    assert ask(base, mine, suite)[1] == 0


@pytest.mark.parametrize("damage", [b"", b"{}", b"\xff\xfe", b'{"item_id": "x"}\n'])
def test_a_broken_file_is_asked_and_written_again(base, tmp_path, damage):
    suite = build_suite(tiny.facts(2))
    whole, _ = ask(base, Answers(base, tmp_path), suite)
    (path,) = files(tmp_path)
    good = path.read_bytes()
    path.write_bytes(damage)
    again, asked = ask(base, Answers(base, tmp_path), suite)
    assert (again, asked) == (whole, len(suite))
    assert [one.read_bytes() for one in files(tmp_path)] == [good]


def test_a_folder_that_cannot_be_written_costs_nothing(base, tmp_path):
    root = tmp_path / "answers"
    root.write_text("not a folder")
    suite = build_suite(tiny.facts(2))
    answers = Answers(base, root)
    assert ask(base, answers, suite)[1] == len(suite)
    assert ask(base, answers, suite)[1] == 0


def test_the_oldest_answers_make_room(base, tmp_path):
    suites = [
        ProbeSuite((ProbeItem("l", ProbeKind.LOCALITY, f"The river in {city}"),))
        for city in tiny.CITIES[:6]
    ]
    ask(base, Answers(base, tmp_path), suites[0])
    size = files(tmp_path)[0].stat().st_size
    for suite in suites[1:]:
        ask(base, Answers(base, tmp_path, limit_bytes=3 * size + size // 2), suite)
    assert len(files(tmp_path)) == 3
    assert ask(base, Answers(base, tmp_path), suites[-1])[1] == 0
    assert ask(base, Answers(base, tmp_path), suites[0])[1] == 1


def test_whatever_may_change_an_answer_changes_where_it_is_kept(base, tiny_model, monkeypatch):
    assert setting_of(base) == setting_of(load_base(tiny_model))
    assert setting_of(base) != setting_of(load_base(tiny_model, dtype="bfloat16"))
    before = setting_of(base)
    monkeypatch.setattr("workers.answers.SCORING", 0)
    assert setting_of(base) != before
