"""The Python API: what a notebook does, on tiny models; and its page, word for word."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM

import mend
from mend.model import Model
from mend_core.editors.making import make_editor
from mend_core.errors import DataError, EditError, EditorMismatch, EmptyBatch, PromptTooLong
from mend_core.models import load_base
from mend_core.testing import FACTS, PARAPHRASES, memorise, save_base, tiny_base

PAGE = Path(__file__).parents[2] / "docs" / "python.md"


@pytest.fixture(autouse=True)
def one_thread_each():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    torch.set_num_threads(1)
    base = memorise(tiny_base("llama", width=64))
    return save_base(base, tmp_path_factory.mktemp("python") / "tiny")


@pytest.fixture(scope="session")
def editor(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("editor") / "subject.safetensors"
    make_editor(load_base(folder), "subject", sampled=1).save(path)
    return path


@pytest.fixture
def model(folder, editor):
    return mend.load(folder, editor=editor)


def bits(model):
    return {name: tensor.clone() for name, tensor in model.transformer.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


PROMPT, TRUE = FACTS[0]
WRONG = FACTS[1][1]


def test_an_edit_says_what_it_changed_and_what_it_did_not(model):
    near, near_answer = FACTS[1]
    edit = model.edit(PROMPT, WRONG, paraphrases=[PARAPHRASES[PROMPT]], locality=[near])
    assert (edit.own.before, edit.own.now) == (TRUE, WRONG)
    assert edit.took
    assert model.ask(PROMPT) == WRONG
    assert model.ask([PROMPT, near]) == [WRONG, edit.locality[0].now]
    assert edit.locality[0].before == near_answer
    assert len(edit.broke) == edit.locality[0].changed
    said = repr(edit)
    assert f"prompt      '{PROMPT}': '{TRUE}' → '{WRONG}'" in said
    assert "of 1 paraphrases follow" in said
    assert "1 edit" in repr(model)


def test_what_is_left_is_bit_for_bit_the_model_that_never_had_it(model, folder, editor):
    base = bits(model)
    edits = model.edit([(prompt, FACTS[(i + 1) % 8][1]) for i, (prompt, _) in enumerate(FACTS[:3])])
    whole, digest = bits(model), model.digest
    assert not same(base, whole)
    model.take_back(edits[1])
    never = mend.load(folder, editor=editor)
    never._put({edit.id: model._rows[edit.id] for edit in (edits[2], edits[0])})
    assert same(bits(model), bits(never))
    assert model.digest == never.digest != digest
    model.take_back(*model.edits)
    assert same(bits(model), base)
    assert model.ask(PROMPT) == TRUE


def test_an_edit_of_the_same_prompt_takes_the_earlier_ones_place(model, folder, editor):
    first = model.edit([{"prompt": PROMPT, "target": WRONG, "id": "mine"}])[0]
    second = model.edit([{"prompt": PROMPT, "target": FACTS[2][1], "id": "mine"}])[0]
    assert second.own.before == WRONG
    assert model.edits == (second,)
    alone = mend.load(folder, editor=editor)
    alone._put(model._rows)
    assert same(bits(model), bits(alone))
    with pytest.raises(EditError, match="is not in the model"):
        model.take_back(first)
    model.take_back("mine")
    assert model.edits == ()


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ([], EmptyBatch, "no edit"),
        ([(PROMPT, WRONG), (PROMPT, TRUE)], EditError, "same prompt"),
        ([{"prompt": PROMPT}], DataError, "'target'"),
        ([{"prompt": PROMPT, "target": "x", "targt": "y"}], DataError, "'targt'.*is unknown"),
        ([{"prompt": PROMPT, "target": "x", "locality": "one"}], DataError, "a list of prompts"),
        ([PROMPT], DataError, "expected .prompt, target."),
        ([(FACTS[3][0], TRUE), ("word " * 200, "x")], PromptTooLong, "tokens"),
    ],
)
def test_a_bad_edit_is_named_and_changes_nothing(model, given, error, says):
    model.edit(PROMPT, WRONG)
    before, edits = bits(model), model.edits
    with pytest.raises(error, match=says):
        model.edit(given)
    assert same(bits(model), before)
    assert model.edits == edits
    with pytest.raises(EmptyBatch):
        model.take_back()


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_saved_folders_answer_as_the_model_and_name_their_base(model, folder, tmp_path):
    model.edit(PROMPT, WRONG)
    model.save(tmp_path / "merged")
    report = model.save_adapter(tmp_path / "lora")
    assert report.rank == report.exact_rank
    again = load_base(tmp_path / "merged")
    assert same(bits(model), dict(again.model.state_dict()))
    ids = torch.tensor([[10, 11, 12]])
    with torch.no_grad():
        ours = model.transformer(ids).logits
        # The adapter finds its base by what it says of it.
        theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "lora")(ids).logits
    assert torch.allclose(ours, theirs, atol=1e-3)
    card = (tmp_path / "lora" / "README.md").read_text()
    assert str(folder) in card
    assert WRONG in card
    assert "No gate was asked" in card


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_other_families_are_edited_and_come_back_exactly(family):
    base = tiny_base(family)
    model = Model(base, make_editor(base, "ultra"))
    before = bits(model)
    edit = model.edit(PROMPT, WRONG)
    assert not same(bits(model), before)
    model.take_back(edit)
    assert same(bits(model), before)


def test_a_base_without_a_shipped_editor_says_what_can_be_done(folder):
    with pytest.raises(EditorMismatch, match="'ultra'"):
        mend.load(folder)


def test_importing_mend_imports_nothing_heavy():
    code = (
        "import sys, mend; print(sorted({'torch', 'transformers', 'mend_core'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
    assert set(mend.__all__) <= set(dir(mend))
    for name in mend.__all__:
        assert getattr(mend, name)


def blocks():
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_pages_code_runs_on_a_tiny_model(folder, editor, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks():
        tiny = block.replace('mend.load("smollm2")', f"mend.load({str(folder)!r}, {str(editor)!r})")
        exec(tiny.replace('"smollm2"', repr(str(folder))), names)
    said = capsys.readouterr().out
    assert "True" in said.splitlines()
    for name in ("edited", "australia", "australia-lora"):
        assert (tmp_path / name / "mend.json").is_file()


@pytest.mark.smollm2
def test_the_pages_first_lines_do_what_they_say(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(blocks()[0], names)
    assert capsys.readouterr().out.startswith("Lyon")
    assert names["edit"].took
    assert names["model"].edits == ()
    again = load_base(tmp_path / "edited")
    assert again.digest == load_base("smollm2").digest
