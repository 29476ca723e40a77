"""Loading: digests, the shipped model, and every way a folder can be broken."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mend_core.errors import (
    ModelBroken,
    ModelError,
    ModelMismatch,
    ModelNotFound,
    ModelUnsupported,
)
from mend_core.models import base_digest, greedy, load_base, shipped
from mend_core.models import load as load_module
from mend_core.testing import FAMILIES, save_base, tiny_base


@pytest.fixture(autouse=True)
def own_cache(request, tmp_path, monkeypatch):
    if "smollm2" not in request.keywords:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    return save_base(tiny_base("llama"), tmp_path / "model")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads_as_it_was_saved(tmp_path, family):
    made = tiny_base(family)
    base = load_base(save_base(made, tmp_path / "model"))
    assert base.family == made.family
    state = made.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in base.model.state_dict().items())
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.tokenizer.padding_side == "right"
    assert base.tokenizer.pad_token_id is not None


def test_the_digest_is_of_tensors_not_of_files(folder, tmp_path):
    whole = base_digest(folder)
    base = load_base(folder, expected_digest=whole)
    base.model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert base_digest(tmp_path / "sharded") == whole
    assert base_digest(save_base(tiny_base("llama", seed=1), tmp_path / "other")) != whole


def test_the_digest_is_cached_until_a_file_changes(folder, monkeypatch):
    first = base_digest(folder)
    with monkeypatch.context() as patch:
        patch.setattr(load_module, "_digest_files", lambda _files: pytest.fail("not cached"))
        assert base_digest(folder) == first
    save_base(tiny_base("llama", seed=3), folder)
    assert base_digest(folder) != first
    for sidecar in (shipped.cache_root() / "digests").iterdir():
        sidecar.write_text("{")
    assert base_digest(folder) == base_digest(folder)


def test_other_weights_are_refused(folder):
    with pytest.raises(ModelMismatch, match="rebase"):
        load_base(folder, expected_digest="sha256:" + "0" * 64)


def test_dtype_and_device(folder):
    assert load_base(folder, dtype="bfloat16").dtype == torch.bfloat16
    with pytest.raises(ModelError, match="dtype"):
        load_base(folder, dtype="int3")
    with pytest.raises(ModelError, match="device"):
        load_base(folder, device="abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no GPU"):
            load_base(folder, device="cuda")


@pytest.mark.parametrize("source", ["/no/such/folder", "./nope", "a/b/c", ""])
def test_no_such_model(source):
    with pytest.raises(ModelNotFound):
        load_base(source)


def test_a_hub_id_that_cannot_be_had(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFound, match="hub"):
        load_base("nobody/nothing-of-that-name")


def test_a_file_is_no_folder(folder):
    with pytest.raises(ModelNotFound, match="is a file"):
        load_base(folder / "config.json")


def truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def drop_tensor(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.0.mlp.down_proj.weight"]
    save_file(tensors, path, metadata={"format": "pt"})


def reshape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "model.safetensors"),
        (drop_tensor, "lacks 1"),
        (reshape, "model|tensors"),
        (pickled, "pickled"),
        (lambda f: (f / "model.safetensors").unlink(), "missing"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (lambda f: (f / "config.json").write_text("{"), "config.json"),
        (lambda f: (f / "tokenizer.json").write_text("{"), "cannot be loaded"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors"),
    ],
)
def test_a_broken_folder_says_what_is_broken(folder, damage, says):
    damage(folder)
    with pytest.raises(ModelBroken, match=says):
        load_base(folder)


def test_an_index_that_names_a_missing_file(tmp_path, folder):
    base = load_base(folder)
    base.model.save_pretrained(tmp_path / "s", max_shard_size="20KB")
    base.tokenizer.save_pretrained(tmp_path / "s")
    shard = min((tmp_path / "s").glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(ModelBroken, match=shard.name):
        load_base(tmp_path / "s")
    (tmp_path / "s" / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(ModelBroken, match="index"):
        load_base(tmp_path / "s")


def test_an_unknown_architecture(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "opt"}))
    with pytest.raises(ModelUnsupported, match="opt"):
        load_base(folder)


def test_the_wheel_is_missing_or_damaged(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_PACKAGE", "no-such-package-here")
    with pytest.raises(ModelNotFound, match="pip install"):
        load_base("smollm2")
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cut = tmp_path / "wheel" / "cut.gguf"
    cut.parent.mkdir()
    cut.write_bytes(b"GGUF\x03\x00\x00\x00")
    monkeypatch.setattr(shipped, "_gguf", lambda: (cut, "0"))
    with pytest.raises(ModelBroken, match="reinstall"):
        load_base("smollm2")
    assert not [p for p in (tmp_path / "cache/mend/models").iterdir() if p.suffix != ".lock"]


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelBroken, match="cannot unpack"):
        load_base("smollm2")


def test_a_damaged_cache_says_to_remove_it(tmp_path):
    kept = shipped.cache_root() / "models" / "m"
    kept.parent.mkdir(parents=True)
    folder = save_base(tiny_base("llama"), kept)
    truncate(folder)
    with pytest.raises(ModelBroken, match="unpacked anew"):
        load_base(folder)


@pytest.mark.smollm2
def test_the_shipped_model_runs():
    seen = []
    base = load_base("smollm2", progress=lambda text, part: seen.append((text, part)))
    assert seen[-1] == ("ready", 1.0)
    assert [part for _, part in seen] == sorted(part for _, part in seen)
    assert len(base.blocks) == 30
    assert [m.name for m in base.matrices()] == [
        f"model.layers.{block}.mlp.down_proj.weight" for block in range(24, 30)
    ]
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight
    again = load_base("smollm2", expected_digest=base.digest)
    assert again.digest == base.digest
    answer = greedy(base, ["The capital of France is"], max_new_tokens=3)[0]
    assert answer.startswith("Paris")
