"""Jobs, in this process, on a real ledger and a tiny real model."""

import json
import threading

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM

from ledger import doctor, jobs, versions
from ledger.states import EditState, JobState
from mend_core.editors import EnnEditor
from mend_core.models import load_base
from tests.workers import tiny
from workers import pipeline
from workers.building import build
from workers.context import Held
from workers.factoring import help_any
from workers.jobs import HANDLERS, handler_of
from workers.jobs.doctor import recomputer


@pytest.fixture
def ready(make_service, inside):
    """A service with four live edits; `run` runs a job and gives it back."""
    service = make_service()
    context = inside(service)
    service.ids = service.submit(tiny.facts(4))
    pipeline.drain(context)

    def run(kind, **payload):
        job = service.do(
            lambda c: jobs.submit(c, kind, payload, model_id=service.model.id, actor="test")
        )
        pipeline.drain(context)
        return service.do(lambda c: jobs.get(c, job.id))

    service.run, service.context = run, context
    return service


def test_every_kind_has_a_handler():
    for kind in HANDLERS:
        assert callable(handler_of(kind))


def test_ask_answers_with_any_version(ready):
    fact = tiny.facts(1)[0]
    now = ready.run("ask", prompt=fact.prompt, max_new_tokens=3).result
    before = ready.run("ask", prompt=fact.prompt, version="0", max_new_tokens=3).result
    assert now["answer"].split()[0] == fact.target
    assert (now["version"], before["version"]) == (1, 0)
    assert before["answer"].split()[0] != fact.target


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        ({}, "'prompt' is missing"),
        ({"prompts": []}, "at least one"),
        ({"prompt": "x", "max_new_tokens": 0}, "1 to"),
        ({"prompt": "x", "version": "99"}, "99"),
        ({"prompt": ""}, "is empty"),
    ],
)
def test_a_bad_question_is_refused_in_one_sentence(ready, payload, says):
    job = ready.run("ask", **payload)
    assert job.state is JobState.FAILED
    assert says in job.error
    assert "Traceback" not in job.error


def test_an_unknown_kind_names_the_known_ones(ready):
    job = ready.run("dance")
    assert job.state is JobState.FAILED
    assert "materialise" in job.error


def test_an_editor_that_makes_no_factors_is_refused_in_one_sentence(ready, tmp_path):
    base = load_base(ready.model.source)
    file = tmp_path / "peer.safetensors"
    EnnEditor.create(base, matrices=["down_proj@-1:"]).save(file)
    asked = (
        ready.run("editor", path=str(file)),
        ready.run("register", name="new", source=ready.model.source, editor=str(file)),
        ready.run("rebase", editor=str(file)),
    )
    for job in asked:
        assert job.state is JobState.FAILED
        assert "'enn' gives whole weight changes" in job.error
        assert "malmen, mend" in job.error
        assert str(file) in job.error
        assert "Traceback" not in job.error


def test_revert_is_as_if_the_edit_had_never_been_there(ready, inside):
    out = ready.ids[2]
    done = ready.run("revert", edit_ids=[out], reason="wrong").result
    assert done["promoted"]
    made = ready.do(lambda c: versions.find(c, ready.model.id, "production"))
    members = ready.do(lambda c: versions.live_set(c, made.id))
    assert {m.edit_id for m in members} == set(ready.ids) - {out}

    warm = ready.context.models.get(ready.model)
    never = build(warm, parent=None, parent_set=(), adds=[m.factor_digest for m in members])
    assert never.digest == made.digest == done["digest"]
    assert ready.states([out]) == {out: EditState.REVERTED}
    findings = ready.do(
        lambda c: doctor.check(c, deep=True, recompute=recomputer(ready.context.config))
    )
    assert findings == []
    again = ready.run("revert", edit_ids=[out])
    assert again.state is JobState.FAILED


def test_verify_finds_an_altered_version(ready):
    assert ready.run("verify").result["ok"]
    made = ready.do(lambda c: versions.find(c, ready.model.id, 1))
    manifest = ready.context.config.versions / made.digest.removeprefix("sha256:") / "manifest.json"
    said = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(said | {"notes": {"by": "an intruder"}}))
    result = ready.run("verify").result
    assert not result["ok"]
    (bad,) = [check for check in result["checks"] if not check["ok"]]
    assert str(manifest.parent) in bad["says"] or "manifest" in bad["says"]


# peft still reads a name that transformers has renamed.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_merged_and_peft_exports_answer_like_the_version(ready, tmp_path):

    merged = ready.run("export", folder=str(tmp_path / "merged"), format="merged").result
    adapter = ready.run("export", folder=str(tmp_path / "peft"), format="peft").result
    assert adapter["rank"] == adapter["exact_rank"]
    whole = AutoModelForCausalLM.from_pretrained(merged["folder"])
    base = AutoModelForCausalLM.from_pretrained(ready.source)
    patched = PeftModel.from_pretrained(base, adapter["folder"])
    ids = torch.tensor([[11, 12, 13, 20]])
    with torch.no_grad():
        assert torch.allclose(whole(ids).logits, patched(ids).logits, atol=1e-4)
    taken = ready.run("export", folder=str(tmp_path / "merged"))
    assert taken.state is JobState.FAILED
    assert "not empty" in taken.error


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_exports_say_where_they_come_from(ready, tmp_path):
    made = ready.do(lambda c: versions.find(c, ready.model.id, "production"))
    for form in ("peft", "merged"):
        folder = tmp_path / form
        ready.run("export", folder=str(folder), format=form)
        told = json.loads((folder / "mend.json").read_text())
        assert told["version"] == {"model": "tiny", "number": 1, "digest": made.digest}
        assert told["base"]["digest"] == ready.model.base_digest
        assert told["base"]["published_as"] == str(ready.source)
        assert told["editor"]["digest"] == ready.model.editor.digest
        assert [edit["id"] for edit in told["edits"]] == ready.ids
        assert told["gate"]["outcome"] == "pass"
        assert {"name", "outcome", "n", "sentence"} <= set(told["gate"]["checks"][0])
        assert told["platform"]
        card = (folder / "README.md").read_text()
        assert f"base_model: {json.dumps(str(ready.source))}" in card
        assert all(fact.prompt in card for fact in tiny.facts(4))
        assert made.digest in card
    # The base is found by what the adapter says; nobody names it.
    served = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft")
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.tensor([[11, 12, 13, 20]])
    with torch.no_grad():
        assert torch.allclose(whole(ids).logits, served(ids).logits, atol=1e-4)


def test_diff_names_edits_matrices_and_answers(ready):
    said = ready.run("diff", a="0", b="1").result
    assert [e["id"] for e in said["only_in_b"]] == ready.ids
    assert said["only_in_a"] == []
    assert len(said["matrices"]) == 2
    assert {a["item_id"] for a in said["answers"]} >= {f"edit:{i}" for i in ready.ids}
    assert all(a["b_passed"] and not a["a_passed"] for a in said["answers"] if a["kind"] == "edit")


def test_diff_asks_what_both_hold_and_a_suite_of_the_moment(ready):
    ready.submit(tiny.facts(2, start=4))
    pipeline.drain(ready.context)
    new = tiny.facts(1, start=4)[0]
    item = {"id": "mine", "kind": "capability", "prompt": new.prompt, "expect": [new.target]}
    plain = ready.run("diff", a="1", b="2").result
    said = ready.run("diff", a="1", b="2", suite=[item]).result
    assert said["asked"] == plain["asked"] + 1
    assert plain["asked"] >= len(ready.ids) + 2 * 3  # the edits in both, and three of each new one
    assert "mine" in {a["item_id"] for a in said["answers"]}
    assert said["suite_digest"] != plain["suite_digest"]
    twice = ready.run("diff", a="1", b="2", suite=[item, item])
    assert "duplicate" in twice.error


def test_a_report_is_one_page_and_the_same_as_json(ready, tmp_path):
    page = ready.run("report", version="1", path=str(tmp_path / "v1.html")).result
    text = (tmp_path / "v1.html").read_text()
    assert page["path"] == str(tmp_path / "v1.html")
    assert tiny.facts(1)[0].prompt in text
    assert "<script src" not in text
    ready.run("report", version="1", format="json", path=str(tmp_path / "v1.json"))
    assert json.loads((tmp_path / "v1.json").read_text())["edits"]


def test_a_policy_is_shown_and_changed_and_what_was_judged_keeps_the_old(ready, tmp_path):
    old = ready.run("policy").result
    assert (old["policy"]["name"], old["changed"]) == ("chaos", False)
    strict = "name: strict\nitems_limit: 100\nsuccess: {target: 0.99}\n"
    refused = ready.run("policy", policy_text=strict, reason="margins")
    assert refused.state is JobState.FAILED
    assert "that takes 268 items" in refused.error
    assert "'reason' is missing" in ready.run("policy", policy="demo").error
    new = ready.run("policy", policy_text=strict.replace("100", "500"), reason="margins").result
    assert (new["changed"], new["was"]) == (True, old["policy_digest"])
    asked = {need["rule"]: need["n"] for need in new["needs"]}
    assert asked["success"] == 268
    path = tmp_path / "v1.json"
    ready.run("report", version="1", format="json", path=str(path))
    said = json.loads(path.read_text())
    assert said["policy"]["name"] == "chaos"
    assert said["decision"]["policy_digest"] == old["policy_digest"]


def test_probe_items_are_tried_before_they_are_kept(ready):
    item = {"id": "far", "kind": "protected", "prompt": "river of"}
    assert ready.run("suite", items=[item]).result["items"] == 1
    refused = ready.run("suite", items=[item | {"prompt": "river " * 80}])
    assert refused.state is JobState.FAILED
    assert "edit far: 80 tokens" in refused.error


def test_collect_keeps_what_is_needed(ready):
    for start in (4, 6):
        ready.submit(tiny.facts(2, start=start))
        pipeline.drain(ready.context)
    result = ready.run("collect", keep_last=1, grace_seconds=0).result
    assert result["factors"] == 0
    assert ready.run("verify").result["ok"]


def test_a_job_that_needs_a_busy_model_is_tried_again(ready, inside):

    other = inside(ready)
    held = Held.take(other, ready.model.id)
    job = ready.do(
        lambda c: jobs.submit(
            c, "revert", {"edit_ids": [ready.ids[0]]}, model_id=ready.model.id, actor="test"
        )
    )
    pipeline.run_one(ready.context)
    assert ready.do(lambda c: jobs.get(c, job.id)).state is JobState.QUEUED
    held.release()
    pipeline.drain(ready.context)
    assert ready.do(lambda c: jobs.get(c, job.id)).state is JobState.DONE


def test_two_workers_share_the_factors_of_one_batch(make_service, inside):
    service = make_service()
    one, two = inside(service, chunk_edits=2), inside(service, chunk_edits=2)
    ids = service.submit(tiny.facts(16))
    for context in (one, two):
        context.models.get(service.model)

    helped, done = [], threading.Event()

    def helper():
        while not done.is_set():
            helped.append(help_any(two))

    thread = threading.Thread(target=helper)
    thread.start()
    pipeline.drain(one)
    done.set()
    thread.join()
    assert set(service.states(ids).values()) == {EditState.LIVE}
