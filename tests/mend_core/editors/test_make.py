"""The command that fits an editor without training."""

import json

import pytest

from mend_core.editors import SubjectEditor, load_editor
from mend_core.editors.make import main
from mend_core.testing import FACTS, save_base


@pytest.fixture(scope="module")
def files(tmp_path_factory, knowing_llama):
    folder = tmp_path_factory.mktemp("make")
    save_base(knowing_llama, folder / "base")
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
        card = json.loads(out.with_suffix(".json").read_text())
        assert card["editor"] == editor.digest
        assert isinstance(editor, SubjectEditor)
        assert set(editor.sensitivity) == set(editor.matrices)
        made.append(editor.digest)
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("place", "told"), [("", "is a folder"), ("facts.json/e.safetensors", "cannot be written")]
)
def test_a_place_that_cannot_be_written_is_refused_at_once(files, capsys, place, told):
    assert main(["--model", "no such model", "--out", str(files / place)]) == 2
    assert told in capsys.readouterr().err
