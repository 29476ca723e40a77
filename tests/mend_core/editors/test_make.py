"""The command that fits an editor without training."""

import json

import pytest

from mend_core.editors import SubjectEditor, load_editor
from mend_core.editors.card import read_card
from mend_core.editors.make import main
from mend_core.factors import platform_tag
from mend_core.models import load_base
from mend_core.testing import FACTS, save_base, swapped_facts


@pytest.fixture(scope="module")
def files(tmp_path_factory, knowing_llama, knowing_gpt2):
    folder = tmp_path_factory.mktemp("make")
    save_base(knowing_llama, folder / "base")
    save_base(knowing_gpt2, folder / "gpt2")
    records = [
        {"prompt": prompt, "target": answer, "paraphrases": [f"{prompt} now"]}
        for prompt, answer in FACTS
    ]
    (folder / "facts.json").write_text(json.dumps(records))
    return folder


def test_it_writes_an_editor_and_its_card_and_does_so_again(files, capsys):
    made = []
    for name in ("one", "two"):
        out = files / "new" / f"{name}.safetensors"
        options = ["--protect", str(files / "facts.json"), "--sampled", "1", "--out", str(out)]
        code = main(["--model", str(files / "base"), *options, "--matrices", "down_proj@0:2"])
        assert code == 0, capsys.readouterr().err
        editor = load_editor(out)
        assert read_card(out, editor.digest)["data"]["name"] == "facts.json"
        assert isinstance(editor, SubjectEditor)
        assert set(editor.sensitivity) == set(editor.matrices)
        made.append(editor.digest)
    assert made[0] == made[1]


@pytest.mark.parametrize("kind", ["ultra", "subject"])
def test_ones_own_gpt2_gets_an_editor_with_progress_and_a_card(files, capsys, kind):
    out = files / kind / "gpt2.safetensors"
    options = ["--kind", kind, "--sampled", "1", "--json", "--out", str(out)]
    assert main(["--model", str(files / "gpt2"), *options]) == 0
    said = capsys.readouterr()
    done = json.loads(said.out)
    editor = load_editor(out)
    assert (done["editor"], editor.kind) == (editor.digest, kind)
    assert "loading the weights" in said.err
    assert " s left" in said.err
    card = read_card(out, editor.digest)
    assert card["platform"] == platform_tag()
    assert str(files) not in json.dumps(card)
    page = out.with_suffix(".md").read_text()
    assert all(text in page for text in (editor.digest, card["base"], card["command"]))
    assert read_card(out, "sha256:another") == {}
    changed = editor.delta(load_base(files / "gpt2"), swapped_facts(1))
    assert set(changed) == set(editor.matrices)


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("", "must end in .safetensors"),
        ("card.json", "must end in .safetensors"),
        ("facts.json/e.safetensors", "cannot be written"),
        ("taken.safetensors", "is a folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_at_once(files, capsys, place, told):
    (files / "taken.md").mkdir(exist_ok=True)
    assert main(["--model", "no such model", "--out", str(files / place)]) == 2
    assert told in capsys.readouterr().err.replace("\n", " ")
