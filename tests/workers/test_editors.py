"""Where a model's editor comes from, and where it is kept."""

import json
import shutil
from pathlib import Path

import pytest

from ledger import jobs, models
from ledger.states import JobState
from mend_core.editors import load_editor
from mend_core.testing import save_base, tiny_base
from workers import pipeline


@pytest.fixture
def run(make_service, inside):
    service = make_service()
    context = inside(service)

    def work(kind, **payload):
        job = service.do(lambda c: jobs.submit(c, kind, payload, actor="test"))
        pipeline.drain(context)
        return service.do(lambda c: jobs.get(c, job.id))

    work.service, work.context = service, context
    return work


@pytest.mark.parametrize("kind", ["ultra", "subject"])
def test_an_editor_is_made_for_the_base_and_kept_by_digest(run, tmp_path, kind):
    source = save_base(tiny_base("gpt2"), tmp_path / "gpt2")
    told = run("register", name=kind, source=str(source), editor=kind)
    assert told.state is JobState.DONE, told.error
    editor = run.service.do(lambda c: models.get(c, kind)).editor
    assert (editor.kind, editor.meta["kind"]) == (kind, kind)
    folder = run.context.config.home / "store" / "editors" / editor.digest.removeprefix("sha256:")
    assert editor.path == str(folder / "editor.safetensors")
    assert load_editor(editor.path).digest == editor.digest
    assert json.loads((folder / "editor.json").read_text())["base"] == told.result["base_digest"]


def test_a_registered_editor_outlives_the_file_it_came_from(run, tiny_model, tiny_editor, tmp_path):
    mine = tmp_path / "mine.safetensors"
    shutil.copy(tiny_editor, mine)
    digest = run("editor", path=str(mine)).result["digest"]
    told = run("register", name="kept", source=str(tiny_model), editor=str(mine)).result
    mine.unlink()
    run.context.models._models.clear()
    model = run.service.do(lambda c: models.get(c, "kept"))
    assert run.context.models.get(model).editor.digest == digest == told["editor_digest"]


def test_a_damaged_copy_in_the_store_is_written_again(run, tiny_editor):
    path = run("editor", path=str(tiny_editor)).result["path"]
    with Path(path).open("r+b") as file:
        file.truncate(100)
    assert run("editor", path=str(tiny_editor)).result["path"] == path
    assert load_editor(path).digest == load_editor(tiny_editor).digest


def test_an_editor_whose_card_is_below_the_policy_is_registered_with_a_warning(
    run, tiny_model, tiny_editor, tmp_path
):
    mine = tmp_path / "weak.safetensors"
    shutil.copy(tiny_editor, mine)
    held_out = [
        {"edits": 6, "es": 0.1, "gs": 0.1, "ls": 0.9, "hm": 0.1},
        {"edits": 1, "es": 0.95, "gs": 0.25, "ls": 0.9, "hm": 0.5},
    ]
    card = {"editor": load_editor(mine).digest, "held_out": held_out}
    mine.with_suffix(".json").write_text(json.dumps(card))
    weak = {"source": str(tiny_model), "editor": str(mine), "policy": "strict"}
    (warning,) = run("register", name="a", **weak).result["warnings"]
    assert "0.25 of the tokens of held-out paraphrases" in warning
    mine.with_suffix(".json").write_text(json.dumps(card | {"editor": "sha256:another"}))
    shutil.rmtree(run.context.config.home / "store" / "editors")
    again = run("register", name="b", **weak)
    assert again.result["warnings"] == []


def test_without_a_shipped_editor_the_message_names_what_can_be_made(run, tiny_model):
    told = run("register", name="none", source=str(tiny_model))
    assert told.state is JobState.FAILED
    assert "'ultra'" in told.error
    assert "'subject'" in told.error
    assert "mend " not in told.error
