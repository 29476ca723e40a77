"""The pipeline in this process, on a real ledger and a tiny real model."""

import contextlib
import shutil

import pytest

from ledger import aliases, batches, doctor, edits, gates, versions
from ledger import models as rows
from ledger.states import EditState
from mend_core.datasets.edit import Edit, PromptAnswer
from mend_core.editors import load_editor
from mend_core.factors import VersionStore, version_digest, weights_digest
from tests.workers import tiny
from tests.workers.tiny import GOLDEN, GUARDED, POISON
from workers import faults, pipeline, progress, restoring
from workers.building import build, digest_of
from workers.context import Stopping
from workers.jobs.doctor import recomputer


def drain(context):
    pipeline.drain(context)


def version(service, which):
    return service.do(lambda c: versions.find(c, service.model.id, which))


def check(service, context):
    """The invariants hold, digests recomputed by the science."""
    findings = service.do(
        lambda c: doctor.check(c, deep=True, recompute=recomputer(context.config))
    )
    assert findings == []


def test_a_batch_becomes_a_promoted_version(make_service, inside):
    service = make_service()
    context = inside(service)
    facts = tiny.facts(6)
    ids = service.submit(facts)
    drain(context)
    assert set(service.states(ids).values()) == {EditState.LIVE}
    made = version(service, "production")
    assert made.number == 1
    assert made.gate.value == "pass"
    assert made.edit_count == 6
    members = service.do(lambda c: versions.live_set(c, made.id))
    assert made.digest == version_digest(
        made.base_digest, made.editor_digest, made.composition, [m.factor_digest for m in members]
    )
    assert service.do(lambda c: gates.probes(c, made.id))
    check(service, context)


def test_the_order_and_split_of_batches_do_not_change_a_version(make_service, inside, ledger_url):
    service = make_service()
    context = inside(service)
    facts = tiny.facts(6)
    other = service.register("other")
    ids = service.submit(facts[:2])
    drain(context)
    ids += service.submit(facts[2:])
    drain(context)
    whole = version(service, "production")
    assert whole.number == 2
    # The same factors in one set, built at once from nothing, in another order.
    members = service.do(lambda c: versions.live_set(c, whole.id))

    warm = context.models.get(service.model)
    digests = [m.factor_digest for m in members]
    once = build(warm, parent=None, parent_set=(), adds=digests[::-1])
    assert once.digest == whole.digest

    assert weights_digest(once.weights) == whole.weights_digest
    assert other.id != service.model.id
    check(service, context)


def test_bad_edits_fail_alone(make_service, inside):
    service = make_service()
    context = inside(service)
    good = service.submit(tiny.facts(3))
    long = service.submit([Edit(id="x", prompt="river " * 80, target="city1")])
    drain(context)
    assert set(service.states(good).values()) == {EditState.LIVE}
    assert service.states(long) == {long[0]: EditState.FAILED}
    row = service.do(lambda c: edits.get(c, long[0]))
    assert "PromptTooLong" in row.error
    check(service, context)


def test_an_edit_whose_probes_the_model_cannot_be_asked_fails_alone(make_service, inside):
    service = make_service()
    context = inside(service)
    good = service.submit(tiny.facts(3))
    far = PromptAnswer("river " * 80)
    long = service.submit(
        [Edit(id="x", prompt="The capital of country30", target="city1", locality=(far,))]
    )
    drain(context)
    assert set(service.states(good).values()) == {EditState.LIVE}
    assert service.states(long) == {long[0]: EditState.FAILED}
    row = service.do(lambda c: edits.get(c, long[0]))
    assert "locality" in row.error
    assert "80 tokens" in row.error
    check(service, context)


def test_a_suite_the_model_cannot_be_asked_stops_it_before_anything_is_claimed(
    make_service, inside, caplog
):
    item = {"id": "far", "kind": "protected", "prompt": "river " * 80}
    service = make_service(settings={"suite": [item]})
    context = inside(service)
    ids = service.submit(tiny.facts(2))
    drain(context)
    assert set(service.states(ids).values()) == {EditState.QUEUED}
    assert "edit far: 80 tokens" in caplog.text
    service.do(
        lambda c: rows.configure(
            c, service.model.id, actor="op", reason="too long", settings={"suite": []}
        )
    )
    context.resting.clear()
    drain(context)
    assert set(service.states(ids).values()) == {EditState.LIVE}


def test_the_culprit_is_quarantined_with_its_evidence_and_the_rest_goes_on(make_service, inside):
    service = make_service(settings={"suite": [GOLDEN]}, policy=GUARDED)
    context = inside(service)
    good = service.submit(tiny.facts(7))
    bad = service.submit([POISON])
    drain(context)
    states = service.states(good + bad)
    assert states.pop(bad[0]) is EditState.QUARANTINED
    assert set(states.values()) == {EditState.LIVE}
    evidence = service.do(lambda c: edits.get(c, bad[0])).evidence
    assert any(flip["item_id"] == "golden:river" for flip in evidence["broke"])
    first, second = version(service, 1), version(service, 2)
    assert (first.gate.value, second.gate.value) == ("fail", "pass")
    assert version(service, "production").number == 2
    check(service, context)


def test_edits_that_do_not_take_get_a_stronger_step(make_service, inside, tiny_model, tmp_path):
    weak = tmp_path / "weak.safetensors"
    tiny.make_editor(tiny_model, weak, learning_rate=0.03)
    service = make_service()

    editor = load_editor(weak)

    def swap(conn):
        row = rows.register_editor(
            conn,
            digest=editor.digest,
            kind=editor.kind,
            base_digest=editor.base_digest,
            path=str(weak),
            meta={},
            actor="test",
        )
        return rows.configure(
            conn, service.model.id, actor="test", reason="weaker editor", editor_id=row.id
        )

    service.model = service.do(swap)
    context = inside(service)
    ids = service.submit(tiny.facts(12))
    drain(context)
    states = service.states(ids)
    taken = [i for i, state in states.items() if state is EditState.LIVE]
    assert len(taken) >= 9, states
    metas = service.do(
        lambda c: c.exec_driver_sql("SELECT count(*) FROM factors WHERE meta ? 'stronger'").scalar()
    )
    assert metas >= 1
    assert version(service, 1).gate.value == "fail"
    check(service, context)


def test_a_version_that_passes_waits_where_the_policy_says_so(make_service, inside):
    service = make_service(auto_promote=False)
    context = inside(service)
    ids = service.submit(tiny.facts(2))
    drain(context)
    assert set(service.states(ids).values()) == {EditState.APPLIED}
    assert version(service, "candidate").number == 1
    assert version(service, "production").number == 0


@pytest.mark.parametrize(
    "point",
    [
        "after-claim",
        "mid-factor",
        "after-factor",
        "before-commit",
        "after-commit",
        "before-gate",
        "after-gate",
    ],
)
def test_going_on_after_an_error_anywhere_gives_the_same_version(
    make_service, inside, monkeypatch, tmp_path, point
):
    service = make_service()
    context = inside(service)
    ids = service.submit(tiny.facts(5))
    marker = tmp_path / "fired"
    monkeypatch.setenv("MEND_FAULT", f"{point}:raise")
    monkeypatch.setenv("MEND_FAULT_ONCE", str(marker))
    drain(context)
    assert faults.marker_text(marker).startswith(point)
    context.resting.clear()
    drain(context)
    drain(context)
    assert set(service.states(ids).values()) == {EditState.LIVE}
    made = version(service, "production")
    warm = context.models.get(service.model)
    members = service.do(lambda c: versions.live_set(c, made.id))
    assert {m.edit_id for m in members} == set(ids)

    assert digest_of(warm, [m.factor_digest for m in members]) == made.digest
    check(service, context)


def test_a_full_disk_costs_nothing_but_time(make_service, inside, monkeypatch, tmp_path):
    service = make_service()
    context = inside(service)
    ids = service.submit(tiny.facts(2))
    monkeypatch.setenv("MEND_FAULT", "after-factor:enospc")
    monkeypatch.setenv("MEND_FAULT_ONCE", str(tmp_path / "fired"))
    drain(context)
    assert set(service.states(ids).values()) == {EditState.QUEUED}
    assert all(service.do(lambda c, i=i: edits.get(c, i)).attempts == 0 for i in ids)
    drain(context)
    # The disk is not tried again at once: giving back and claiming would chase each other.
    assert service.scalar("SELECT count(*) FROM batches") == 1
    context.resting.clear()
    drain(context)
    assert set(service.states(ids).values()) == {EditState.LIVE}


def test_a_graceful_stop_gives_the_claim_back(make_service, inside, monkeypatch):
    service = make_service()
    context = inside(service)
    ids = service.submit(tiny.facts(8))
    real = pipeline.run_batch

    def stop_in_the_middle(ctx, held, warm, batch_id):
        ctx.stopping.set()
        real(ctx, held, warm, batch_id)

    monkeypatch.setattr(pipeline, "run_batch", stop_in_the_middle)
    with pytest.raises(Stopping):
        drain(context)
    assert set(service.states(ids).values()) == {EditState.QUEUED}
    assert service.do(lambda c: batches.current(c, service.model.id)) is None
    monkeypatch.undo()
    context.stopping.clear()
    drain(context)
    assert set(service.states(ids).values()) == {EditState.LIVE}
    check(service, context)


def test_a_model_that_cannot_be_loaded_claims_nothing(make_service, inside, tmp_path):
    service = make_service()
    context = inside(service)
    broken = shutil.copytree(service.source, tmp_path / "broken")
    service.do(lambda c: c.exec_driver_sql(f"UPDATE models SET source = '{broken}'"))
    (broken / "model.safetensors").write_bytes(b"not a model")
    ids = service.submit(tiny.facts(2))
    drain(context)
    assert set(service.states(ids).values()) == {EditState.QUEUED}
    assert service.scalar("SELECT count(*) FROM batches") == 0


def file_of(context, digest):
    return next(
        path
        for path in context.config.factors.rglob("*.safetensors")
        if digest.endswith(path.parent.name + path.stem)
    )


@contextlib.contextmanager
def without_sums(context, made):
    """Old factors are read only where their version's exact sums are not there."""
    folder = context.config.versions / made.digest.removeprefix("sha256:")
    aside = folder.rename(context.config.home / "aside")
    yield
    aside.rename(folder)


def damage(path, how):
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_damaged_factor_of_a_live_edit_is_named_and_computed_again(
    make_service, inside, how, caplog
):
    service = make_service()
    context = inside(service)
    facts = tiny.facts(4)
    service.submit(facts[:2])
    drain(context)
    made = version(service, "production")
    member = service.do(lambda c: versions.live_set(c, made.id))[0]
    path = file_of(context, member.factor_digest)
    damage(path, how)
    findings = service.do(
        lambda c: doctor.check(c, deep=True, recompute=recomputer(context.config))
    )
    assert any(str(path) in f.problem for f in findings), findings
    ids = service.submit(facts[2:])
    with without_sums(context, made):
        drain(inside(service))  # a fresh process: nothing of the set is in memory
    assert set(service.states(ids).values()) == {EditState.LIVE}
    assert member.factor_digest in caplog.text
    check(service, context)


@pytest.mark.parametrize("how", ["truncated", "missing"])
def test_a_factor_damaged_before_its_version_is_forgotten_and_made_again(
    make_service, inside, how, monkeypatch, caplog
):
    service = make_service()
    context = inside(service)
    real, struck = pipeline.run_batch, []

    def spoil_one(ctx, held, warm, batch_id):
        real(ctx, held, warm, batch_id)
        if not struck:
            digest = service.scalar("SELECT min(factor_digest) FROM batch_edits")
            damage(file_of(ctx, digest), how)
            struck.append(digest)

    monkeypatch.setattr(pipeline, "run_batch", spoil_one)
    ids = service.submit(tiny.facts(3))
    drain(context)
    assert set(service.states(ids).values()) == {EditState.LIVE}
    assert struck[0] in caplog.text
    check(service, context)


def test_a_committed_factor_that_comes_out_otherwise_is_not_replaced(
    make_service, inside, monkeypatch, caplog
):
    service = make_service()
    context = inside(service)
    facts = tiny.facts(3)
    service.submit(facts[:2])
    drain(context)
    made = version(service, "production")
    member = service.do(lambda c: versions.live_set(c, made.id))[0]
    file_of(context, member.factor_digest).unlink()
    monkeypatch.setattr(restoring, "compute", lambda _warm, _edits: [])
    ids = service.submit(facts[2:])
    with without_sums(context, made):
        drain(inside(service))
    assert set(service.states(ids).values()) == {EditState.QUEUED}
    assert f"{member.factor_digest} of edit {member.edit_id}" in caplog.text
    assert version(service, "production").id == made.id


def test_a_superseding_edit_takes_the_old_ones_place(make_service, inside):
    service = make_service()
    context = inside(service)
    (old,) = service.submit([Edit(id="a", prompt="The capital of country7", target="city1")])
    drain(context)
    (new,) = service.submit([Edit(id="b", prompt="The capital of country7", target="city2")])
    drain(context)
    states = service.states([old, new])
    assert states == {old: EditState.SUPERSEDED, new: EditState.LIVE}
    members = service.do(lambda c: versions.live_set(c, version(service, "production").id))
    assert [m.edit_id for m in members] == [new]
    check(service, context)


def test_rollback_and_then_a_new_batch_build_on_what_is_in_production(make_service, inside):
    service = make_service()
    context = inside(service)
    service.submit(tiny.facts(2))
    drain(context)
    service.do(lambda c: aliases.rollback(c, service.model.id, actor="test", reason="look"))
    assert version(service, "production").number == 0
    ids = service.submit(tiny.facts(2, start=2))
    drain(context)
    made = version(service, "production")
    assert made.parent_number == 0
    members = service.do(lambda c: versions.live_set(c, made.id))
    assert {m.edit_id for m in members} == set(ids)
    check(service, context)


def test_nothing_that_was_not_built_on_production_goes_there_by_itself(make_service, inside):
    service = make_service()
    context = inside(service)
    service.submit(tiny.facts(2))
    drain(context)
    kept = service.submit(tiny.facts(2, start=2))
    drain(context)
    first = version(service, 1)
    roll = {"to_version_id": first.id, "actor": "ann", "reason": "look"}
    service.do(lambda c: aliases.rollback(c, service.model.id, **roll))
    service.submit(tiny.facts(1, start=4))
    drain(context)
    assert version(service, "production").number == 3
    # A person goes back to the other line; the candidate stays on its own.
    back = version(service, 2).id
    service.do(lambda c: aliases.promote(c, service.model.id, back, actor="ann", reason="no"))
    service.submit(tiny.facts(1, start=5))
    drain(context)
    assert version(service, 4).gate.value == "pass"
    assert version(service, "candidate").number == 4
    assert version(service, "production").number == 2
    assert set(service.states(kept).values()) == {EditState.LIVE}
    check(service, context)


def test_only_the_files_of_needed_versions_are_kept(make_service, inside):
    service = make_service()
    context = inside(service)
    for start in range(0, 6, 2):
        service.submit(tiny.facts(2, start=start))
        drain(context)
    store = VersionStore(context.config.versions)
    assert all(store.has(version(service, n).digest) for n in (1, 2, 3))


def test_a_model_that_cannot_be_worked_on_says_why_until_it_can(make_service, inside):
    service = make_service()
    context = inside(service)
    ids = service.submit(tiny.facts(2))
    gone = service.source.with_name("elsewhere")
    shutil.move(service.source, gone)
    try:
        drain(context)
        problem = service.do(lambda c: rows.get(c, service.model.id)).problem
        assert str(service.source) in problem
        assert set(service.states(ids).values()) == {EditState.QUEUED}
    finally:
        shutil.move(gone, service.source)
    context.resting.clear()
    drain(context)
    assert set(service.states(ids).values()) == {EditState.LIVE}
    assert service.do(lambda c: rows.get(c, service.model.id)).problem is None


def test_a_batch_tells_every_stage_it_goes_through(make_service, inside, monkeypatch):
    service = make_service(settings={"suite": [GOLDEN]}, policy=GUARDED)
    context = inside(service)
    service.submit(tiny.facts(3))
    service.submit([POISON])
    told = []
    real = batches.tell

    def tell(conn, batch_id, stage, done, of):
        real(conn, batch_id, stage, done, of)
        told.append((batches.get(conn, batch_id).stage, done, of))

    monkeypatch.setattr(batches, "tell", tell)
    monkeypatch.setattr(progress, "TELL_SECONDS", 0.0)
    drain(context)
    stages = [stage for stage, _, _ in told]
    assert list(dict.fromkeys(stages)) == ["factoring", "composing", "probing", "bisecting"]
    assert ("factoring", 0, 4) in told
    assert all(of is None or 0 <= done <= of for _, done, of in told)
    probing = [(done, of) for stage, done, of in told if stage == "probing"]
    assert any(done == of for done, of in probing)
