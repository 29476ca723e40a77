"""Every editor on a tiny model of every family's real architecture."""

import pytest
import torch

from mend_core.datasets import Edit, PromptAnswer
from mend_core.editors import (
    EnnEditor,
    FinetuneConfig,
    FinetuneEditor,
    FinetuneKLEditor,
    KeConfig,
    KeEditor,
    MalmenConfig,
    MalmenEditor,
    MendConfig,
    MendEditor,
    UltraConfig,
    UltraEditor,
    load_editor,
)
from mend_core.editors.finetune import edit_loss
from mend_core.errors import EditorMismatch
from mend_core.models import encode_edits, with_delta
from mend_core.testing import FACTS, FAMILIES, tiny_base


def edits_for(base):
    """Six edits; a classifier's say the class it does not choose (the FEVER task)."""
    made = []
    for i in range(6):
        target, other = FACTS[(i + 1) % 8][1], FACTS[i + 8][1]
        if base.kind == "classifier":
            ids = base.tokenizer(FACTS[i][0], return_tensors="pt")
            ids.pop("token_type_ids", None)
            chosen = int(base.model(**ids).logits.argmax())
            target = other = base.model.config.id2label[1 - chosen]
        near = (PromptAnswer(FACTS[i + 8][0], other),)
        made.append(Edit(id=str(i), prompt=FACTS[i][0], target=target, locality=near))
    return made


def loss_of(base, edits, delta):
    encoded, _, errors = encode_edits(base, edits)
    assert not errors
    with torch.no_grad(), with_delta(base, {n: d.float() for n, d in delta.items()}):
        return float(edit_loss(base, encoded, None)[0])


def made(method, base, edits):
    tuning = FinetuneConfig(lr=1e-2, steps=20)
    makers = {
        "mend": lambda: MendEditor.create(base, MendConfig(rank=4, learning_rate=1e-3)),
        "malmen": lambda: MalmenEditor.create(base, MalmenConfig(rank=4, learning_rate=1e-3)),
        "ultra": lambda: UltraEditor.create(base, edits, UltraConfig(eta=1e-2)),
        "finetune": lambda: FinetuneEditor.create(base, tuning),
        "finetune_kl": lambda: FinetuneKLEditor.create(base, tuning, train=edits),
        "enn": lambda: EnnEditor.create(base),
        "ke": lambda: KeEditor.create(base, KeConfig(lstm=8, condition=8, hidden=8)),
    }
    editor = makers[method]()
    if method in ("mend", "malmen"):
        editor.calibrate(base, edits)
    return editor


@pytest.mark.parametrize(
    "method", ["mend", "malmen", "ultra", "finetune", "finetune_kl", "enn", "ke"]
)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_editor_edits_every_family(tiny, tmp_path, family, method):
    base = tiny(family)
    edits = edits_for(base)
    editor = made(method, base, edits)
    assert editor.matrices == tuple(m.name for m in base.matrices())  # the family's default
    delta = editor.delta(base, edits)
    assert set(delta) == set(editor.matrices)
    assert all(torch.isfinite(change).all() for change in delta.values())
    before, after = loss_of(base, edits, {}), loss_of(base, edits, delta)
    if method == "ke":  # untrained, it goes up the gradient as soon as down
        assert after != before
    else:  # the others begin as descent
        assert after < before
    editor.save(tmp_path / "e.safetensors")
    again = load_editor(tmp_path / "e.safetensors")
    for name, change in again.delta(base, edits).items():
        assert torch.equal(change, delta[name])


@pytest.mark.parametrize("method", ["mend", "malmen", "ultra", "finetune", "enn", "ke"])
def test_another_models_weights_are_refused(tiny, method):
    base = tiny("llama")
    edits = edits_for(base)
    editor = made(method, base, edits)
    with pytest.raises(EditorMismatch, match="made for base"):
        editor.delta(tiny_base("llama", seed=1), edits)
