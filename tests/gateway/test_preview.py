"""`mend submit --dry-run`: one screen, nothing submitted."""

from __future__ import annotations

import json

import pytest

from ledger import edits
from service import waiting
from tests.workers import tiny
from workers import pipeline
from workers.jobs import run_one


@pytest.fixture
def dry(mend, make_service, inside, monkeypatch):
    """Runs `mend submit … --dry-run` beside one live fact and a worker."""
    service = make_service()
    context = inside(service)
    monkeypatch.setenv("DATABASE_URL", service.url)
    monkeypatch.setenv("COLUMNS", "80")
    service.submit(tiny.facts(1))
    pipeline.drain(context)
    submit = waiting.submit_job

    def at_once(*args, **options):
        job = submit(*args, **options)
        assert run_one(context)
        return job

    monkeypatch.setattr(waiting, "submit_job", at_once)

    def run(*words):
        ran = mend("submit", *words, "--dry-run")
        assert sum(service.do(edits.counts).values()) == 1
        return ran

    return run


def one_screen(ran):
    lines = ran.out.splitlines()
    return len(lines) <= 24 and all(len(line) <= 80 for line in lines)


def test_one_edit_is_told_in_one_screen(dry):
    fact = tiny.facts(1)[0]
    words = ("--prompt", fact.prompt, "--target", "city70", "--paraphrase", fact.paraphrases[0])
    ran = dry(*words, "--locality", fact.locality[0].prompt)
    assert ran.code == 0
    assert one_screen(ran), ran.out
    for said in (fact.target, "paraphrase", "neighbour", "edit 1 is live", "contradicts edit 1"):
        assert said in ran.out


def test_a_file_is_told_line_by_line_with_counts(dry, tmp_path):
    live, new = tiny.facts(2)
    known = {"prompt": live.prompt, "target": live.target}
    records = [known, *({"prompt": f"{new.prompt} {n}", "target": "city9"} for n in range(30))]
    records.append({"prompt": "The capital of coun", "target": "city9", "subject": "country9"})
    file = tmp_path / "facts.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    ran = dry(file)
    assert ran.code == 2
    assert one_screen(ran), ran.out
    assert "32 edits: 1 the model knows already, 1 of facts that are live, 1 with" in ran.out
    assert "number 32: the prompt ends inside the subject" in ran.out


def test_json_is_one_document(dry):
    ran = dry("--prompt", "The river in country7", "--target", "city8", "--json")
    assert ran.code == 0
    assert ran.json["edits"][0]["fate"] == "new"
    assert ran.json["counts"]["asked"] == 1


def test_without_a_worker_it_says_so_and_what_the_ledger_would_do(mend, ledger):
    ran = mend("submit", "--prompt", "The sky is", "--target", "green", "--dry-run")
    assert ran.code == 0
    assert "no worker is alive" in ran.out
    assert "queued as a new fact" in ran.out
