"""Rebase: live edits onto another base or editor, through the gate, into production and back."""

import pytest

from ledger import aliases, audit, doctor, gates, jobs, models, versions
from ledger.errors import WrongState
from ledger.states import EditState, JobState
from mend_core.models import base_digest
from tests.workers import tiny
from workers import pipeline
from workers.building import weights_of
from workers.jobs import judged
from workers.jobs.doctor import recomputer


@pytest.fixture
def ready(make_service, inside):
    """A service with six live edits; `run` runs a job and gives it back."""
    service = make_service()
    context = inside(service)
    service.ids = service.submit(tiny.facts(6))
    pipeline.drain(context)

    def run(kind, **payload):
        job = service.do(
            lambda c: jobs.submit(c, kind, payload, model_id=service.model.id, actor="ann")
        )
        pipeline.drain(context)
        return service.do(lambda c: jobs.get(c, job.id))

    service.run, service.context = run, context
    service.at = lambda which: service.do(lambda c: versions.find(c, service.model.id, which))
    service.ask = lambda which, prompt: run("ask", prompt=prompt, version=which, max_new_tokens=1)
    return service


@pytest.fixture
def elsewhere(tmp_path):
    """Another checkpoint of the same model, and an editor made for it."""
    source = tiny.make_model(tmp_path / "next", seed=5)
    editor = tmp_path / "next.safetensors"
    tiny.make_editor(source, editor, learning_rate=0.2)
    return {"source": str(source), "editor": str(editor)}


def check(service):
    findings = service.do(
        lambda c: doctor.check(c, deep=True, recompute=recomputer(service.context.config))
    )
    assert findings == []


def test_to_a_new_base_and_back(ready, elsewhere):
    old = ready.at("production")
    fact = tiny.facts(1)[0]
    result = ready.run("rebase", **elsewhere, reason="next release").result
    assert result["gate"] == "pass", result
    assert not result["promoted"]
    assert result["counts"] == {"holds": 6}
    assert {e["id"] for e in result["edits"]} == set(ready.ids)

    # The candidate stands on the new base; production still serves the old one.
    made = ready.at("candidate")
    assert made.number == result["number"] == 2
    assert made.base_digest == base_digest(elsewhere["source"]) != old.base_digest
    assert made.edit_count == 6
    assert ready.at("production").id == old.id
    assert set(ready.states(ready.ids).values()) == {EditState.LIVE}
    for which in ("production", "candidate"):
        assert ready.ask(which, fact.prompt).result["answer"] == fact.target
    assert ready.run("verify", version="candidate").result["ok"]
    check(ready)

    ready.do(
        lambda c: aliases.promote(c, ready.model.id, made.id, actor="bob", reason="looks good")
    )
    assert ready.do(lambda c: models.get(c, ready.model.id)).source == elsewhere["source"]
    assert ready.ask("production", fact.prompt).result["digest"] == made.digest
    (later,) = ready.submit(tiny.facts(1, start=6))
    pipeline.drain(ready.context)
    third = ready.at("production")
    assert (third.number, third.base_digest, third.edit_count) == (3, made.base_digest, 7)
    check(ready)

    told = ready.run("diff", a="1", b="3").result
    assert told["rebased"]
    assert [e["id"] for e in told["only_in_b"]] == [later]

    # One command back, to the exact bytes of before.
    ready.do(
        lambda c: aliases.rollback(
            c, ready.model.id, to_version_id=old.id, actor="bob", reason="the new base is worse"
        )
    )
    model = ready.do(lambda c: models.get(c, ready.model.id))
    assert (model.base_digest, model.source) == (old.base_digest, str(ready.source))
    assert ready.at("candidate").id == old.id
    assert ready.run("materialise").result["weights_digest"] == old.weights_digest
    assert ready.ask("production", fact.prompt).result["digest"] == old.digest
    assert ready.states([later]) == {later: EditState.REVERTED}
    ready.submit(tiny.facts(1, start=7))
    pipeline.drain(ready.context)
    assert ready.at("production").base_digest == old.base_digest
    assert ready.at("production").edit_count == 7
    assert ready.run("verify", version="2").result["ok"]
    check(ready)
    kinds = [e.kind for e in ready.do(lambda c: list(audit.events(c)))]
    assert kinds.count("model.rebased") == 2


def test_with_another_editor_on_the_same_base(ready, tmp_path):
    old = ready.at("production")
    path = tmp_path / "other.safetensors"
    tiny.make_editor(ready.source, path, learning_rate=0.25)
    result = ready.run("rebase", editor=str(path), promote=True).result
    assert result["promoted"], result
    made = ready.at("production")
    assert made.base_digest == old.base_digest
    assert made.editor_digest == result["editor_digest"] != old.editor_digest
    out = ready.ids[0]
    assert ready.run("revert", edit_ids=[out]).result["promoted"]
    assert ready.at("production").editor_digest == made.editor_digest
    check(ready)


def test_what_no_longer_holds_and_what_is_not_needed_is_said_and_left_out(ready, elsewhere):
    # The new base says one of the facts by itself: make that so by editing it into the new base.
    told = ready.run("rebase", **elsewhere, dry_run=True).result
    assert ready.at("candidate").number == 1, "a dry run changes nothing"
    assert told["counts"] == {"holds": 6}

    weak = elsewhere["editor"].replace("next", "weak")
    tiny.make_editor(elsewhere["source"], weak, learning_rate=1e-4)
    told = ready.run("rebase", source=elsewhere["source"], editor=weak, dry_run=True).result
    assert told["counts"]["no_longer_holds"] >= 5
    assert all(e["says"] for e in told["edits"])

    said = ready.run("ask", prompt=tiny.facts(1)[0].prompt, version="0", max_new_tokens=1).result
    known = tiny.facts(8)[7]
    own = ready.ask("0", known.prompt).result["answer"]
    assert said["answer"]
    service_edit = type(known)(id="9", prompt=known.prompt, target=own)
    (needless,) = ready.submit([service_edit])
    pipeline.drain(ready.context)
    other = elsewhere["editor"].replace("next", "same")
    tiny.make_editor(ready.source, other, learning_rate=0.25)
    result = ready.run("rebase", editor=other).result
    fates = {e["id"]: e["fate"] for e in result["edits"]}
    assert fates[needless] == "not_needed"
    members = ready.do(lambda c: versions.live_set(c, ready.at("candidate").id))
    assert {m.edit_id for m in members} == {i for i, fate in fates.items() if fate == "holds"}
    check(ready)


def test_where_the_model_stands_already_is_refused(ready, tiny_editor):
    job = ready.run("rebase", editor=str(tiny_editor))
    assert job.state is JobState.FAILED
    assert "already" in job.error
    job = ready.run("rebase", editor=str(tiny_editor), version="0")
    assert "candidate" in job.error


def test_a_version_on_the_new_base_that_fails_changes_nothing(ready, elsewhere):
    golden = {
        "id": "golden",
        "kind": "must_contain",
        "prompt": "The river in country79",
        "expect": [ready.ask("0", "The river in country79").result["answer"]],
        "max_new_tokens": 1,
    }
    ready.do(
        lambda c: models.configure(
            c, ready.model.id, actor="ann", reason="golden", settings={"suite": [golden]}
        )
    )
    result = ready.run("rebase", **elsewhere, promote=True).result
    assert result["gate"] == "fail"
    assert not result["promoted"]
    assert ready.at("candidate").number == 1
    assert set(ready.states(ready.ids).values()) == {EditState.LIVE}
    check(ready)
    with pytest.raises(WrongState, match="rebase"):
        ready.do(
            lambda c: models.configure(
                c, ready.model.id, actor="ann", reason="no", composition={"kind": "sum"}
            )
        )


def test_a_batch_on_its_way_when_the_base_is_rolled_back_is_built_again(
    ready, elsewhere, monkeypatch
):
    assert ready.run("rebase", **elsewhere, promote=True).result["promoted"]
    old = ready.at("1")
    commit = pipeline.commit_plan
    seen = []

    def commit_late(context, *args, **kwargs):
        if not seen:
            seen.append(1)
            ready.do(
                lambda c: aliases.rollback(
                    c, ready.model.id, to_version_id=old.id, actor="bob", reason="now"
                )
            )
        return commit(context, *args, **kwargs)

    monkeypatch.setattr(pipeline, "commit_plan", commit_late)
    ids = ready.submit(tiny.facts(2, start=6))
    pipeline.drain(ready.context)
    assert set(ready.states(ids).values()) == {EditState.LIVE}
    made = ready.at("production")
    assert (made.base_digest, made.edit_count) == (old.base_digest, 8)
    check(ready)


def test_an_unjudged_version_on_the_new_base_is_judged_when_its_job_runs_again(
    ready, elsewhere, monkeypatch
):
    judge_of = judged.judge_of

    def dies(*_args):
        monkeypatch.setattr(judged, "judge_of", judge_of)
        raise pipeline.Stopping

    monkeypatch.setattr(judged, "judge_of", dies)
    job = ready.run("rebase", **elsewhere)
    assert job.state is JobState.DONE
    assert job.result["number"] == 2
    assert job.result["gate"] == "pass"
    assert len(ready.do(lambda c: versions.list_versions(c, ready.model.id))) == 3


def test_weights_of_every_version_come_from_its_own_base(ready, elsewhere):
    ready.run("rebase", **elsewhere)
    for number in ("1", "2"):
        version = ready.at(number)
        members = ready.do(lambda c, v=version: versions.live_set(c, v.id))
        warm = ready.context.warm(version)
        assert warm.base.digest == version.base_digest
        assert weights_of(warm, version, members)
    assert ready.do(lambda c: gates.probes(c, ready.at("2").id))


def test_as_a_model_of_its_own(ready, elsewhere):
    done = ready.run("rebase", **elsewhere, name="newer").result
    assert done["submitted"] == 6
    newer = ready.do(lambda c: models.get(c, "newer"))
    pipeline.drain(ready.context)
    assert ready.do(lambda c: versions.find(c, newer.id, "production")).edit_count == 6
    assert ready.at("production").number == 1
    check(ready)
