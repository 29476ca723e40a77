"""A base's name: its tensors, and the settings it computes with."""

import json

import pytest
import torch

from mend_core.editors import load_editor
from mend_core.editors.files import Header, read_editor, write_editor
from mend_core.editors.readdress import main, readdress
from mend_core.editors.ultra import UltraEditor
from mend_core.errors import EditorMismatch
from mend_core.factors import export_merged
from mend_core.models import base_digest, load_base
from mend_core.models.load import tensors_digest, weight_files
from mend_core.testing import FAMILIES, save_base, tiny_base


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return save_base(tiny_base("llama"), tmp_path / "model")


def change(folder, **settings):
    path = folder / "config.json"
    config = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


@pytest.mark.parametrize(
    "setting",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
        {"a_setting_of_tomorrow": 3},
    ],
)
def test_what_changes_the_forward_pass_changes_the_name(folder, setting):
    before = base_digest(folder)
    change(folder, **setting)
    assert base_digest(folder) != before


def test_equal_weights_under_another_epsilon_answer_otherwise(folder):
    # Why it matters: the tensors alone would call these two one base.
    one = load_base(folder)
    change(folder, rms_norm_eps=0.5)
    other = load_base(folder)
    assert one.digest != other.digest
    prompt = one.tokenizer("The capital of Avaria is", return_tensors="pt").input_ids
    assert not torch.allclose(one.model(prompt).logits, other.model(prompt).logits)


@pytest.mark.parametrize(
    "setting",
    [
        {"transformers_version": "4.0.0"},
        {"_name_or_path": "somewhere/else"},
        {"dtype": ..., "torch_dtype": "float32"},
        {"dtype": "bfloat16"},
        {"use_cache": False},
        {"attention_dropout": 0.1},
        {"rope_parameters": ..., "rope_theta": 10000.0},  # old spelling of the default
        {"rms_norm_eps": ...},  # left out: the default it was saved with
    ],
)
def test_what_does_not_keeps_it(folder, setting):
    before = base_digest(folder)
    change(folder, **setting)
    assert base_digest(folder) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_again_keeps_the_name(tmp_path, family):
    first = save_base(tiny_base(family), tmp_path / "first")
    base = load_base(first)
    export_merged(base, {}, tmp_path / "again")
    assert base_digest(tmp_path / "again") == base.digest


def made_long_ago(folder, path):
    """An editor whose header names its base by tensors alone."""
    UltraEditor.create(load_base(folder)).save(path)
    header, tensors = read_editor(path)
    old = tensors_digest(folder, weight_files(folder))
    header = Header.of(header.kind, old, header.shapes, header.config, tensors)
    write_editor(path, header, tensors)
    return header, tensors


def test_an_editor_is_readdressed_with_its_weights_untouched(folder, tmp_path, capsys):
    path = tmp_path / "editor.safetensors"
    header, tensors = made_long_ago(folder, path)
    path.with_suffix(".json").write_text(
        json.dumps({"editor": header.digest, "base": header.base_digest})
    )
    with pytest.raises(EditorMismatch):
        load_editor(path).check(load_base(folder))
    assert main([str(path), "--base", str(folder)]) == 0
    editor = load_editor(path)
    editor.check(load_base(folder))
    after = read_editor(path)[1]
    assert after.keys() == tensors.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items())
    card = json.loads(path.with_suffix(".json").read_text())
    assert card == {"editor": editor.digest, "base": base_digest(folder)}
    assert json.loads(capsys.readouterr().out)["to"] == editor.digest
    before, again = readdress(path, folder)
    assert before == again


def test_an_editor_of_other_weights_is_not_readdressed(folder, tmp_path, capsys):
    path = tmp_path / "editor.safetensors"
    made_long_ago(folder, path)
    other = save_base(tiny_base("llama", seed=5), tmp_path / "other")
    assert main([str(path), "--base", str(other)]) == 2
    assert "made for base" in capsys.readouterr().err
