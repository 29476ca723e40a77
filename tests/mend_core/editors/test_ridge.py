"""The ridge family: decoupled gradients, closed form, protections."""

import pytest
import torch

from mend_core.editors import MalmenConfig, MalmenEditor, UltraConfig, UltraEditor, load_editor
from mend_core.editors.lookahead import answer_scores
from mend_core.editors.malmen import MalmenNetworks, ridge_pairs
from mend_core.errors import EmptyBatch
from mend_core.factors import compose, extract
from mend_core.testing import FACTS, PARAPHRASES, swapped_facts

EDITS = swapped_facts(6)


@pytest.mark.parametrize("rows", [1, 3, 7, 8, 40])
def test_decoupled_gradients_equal_autograd_through_the_primal_solve(rows):
    generator = torch.Generator().manual_seed(rows)
    u = torch.randn(rows, 7, generator=generator, dtype=torch.float64)
    v = torch.randn(rows, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    log_ridge = torch.tensor(-0.3, dtype=torch.float64, requires_grad=True)
    target = torch.randn(4, 7, generator=generator, dtype=torch.float64)

    system = u.T @ u + log_ridge.exp() * torch.eye(7, dtype=torch.float64)
    expected = torch.linalg.solve(system, u.T @ v).T
    (expected - target).pow(3).sum().backward()
    plain_v, plain_ridge = v.grad.clone(), log_ridge.grad.clone()
    v.grad = log_ridge.grad = None

    keys, values = ridge_pairs(u, v, log_ridge)
    assert len(keys) == min(rows, 7)  # in the smaller space
    change = values.T @ keys
    (change - target).pow(3).sum().backward()
    assert torch.allclose(change, expected, atol=1e-9)
    assert torch.allclose(v.grad, plain_v, atol=1e-9, rtol=1e-9)
    assert torch.allclose(log_ridge.grad, plain_ridge, atol=1e-9, rtol=1e-9)


def test_malmen_values_follow_the_formula():
    shapes = {"a": (3, 5), "b": (3, 5)}
    networks = MalmenNetworks(shapes, MalmenConfig(rank=2, learning_rate=0.1)).double()
    generator = torch.Generator().manual_seed(0)
    for parameter in networks.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data += 0.3 * noise
    u = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    g = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    networks.update("b", u, g)
    z = torch.cat((u, g), dim=1)
    x = (z - z.mean(0)) / (z.std(0) + 1e-7)
    for layer in networks.nets["5x3"].layers:
        inner = (layer.u @ (layer.v @ x.T)).T + layer.bias
        x = inner.clamp(min=0) * layer.scale[1] + layer.shift[1] + x  # clamp first: EDITING C
    eta = networks.learning_rates[1]
    expected = torch.stack([-eta * (u[i] @ x[i, :5]) * x[i, 5:] for i in range(6)])
    keys, values = networks("b", u, g)
    assert torch.equal(keys, u)
    assert torch.allclose(values, expected)


def test_closed_form_follows_its_formula(tiny):
    base = tiny("llama")
    editor = UltraEditor.create(base, EDITS, UltraConfig(eta=0.5, ridge=0.2, per_shape=False))
    raw = extract(base, EDITS, editor.matrices_of(base), tokens="answer")
    delta = editor.delta(base, EDITS)
    for name, rows in raw.rows.items():
        z = torch.cat((rows.u, rows.delta), dim=1).double()
        z = (z - z.mean(0)) / (z.std(0) + 1e-7)
        key, gradient = z[:, : rows.u.shape[1]], z[:, rows.u.shape[1] :]
        values = -0.5 * key.pow(2).sum(1, keepdim=True) * gradient
        u = rows.u.double()
        ridge = 0.2 * u.pow(2).sum(1).mean()
        system = u.T @ u + ridge * torch.eye(u.shape[1], dtype=torch.float64)
        expected = torch.linalg.solve(system, u.T @ values).T
        error = (delta[name] - expected).norm() / expected.norm()
        assert error < 2e-3  # what 16 bits cost


def test_closed_form_edits_without_training(knowing_llama):
    base = knowing_llama
    editor = UltraEditor.create(base, EDITS)
    before = answer_scores(base, EDITS, {})
    after = answer_scores(base, EDITS, editor.delta(base, EDITS))
    assert after.es > before.es + 0.3


def test_one_edit_one_row_is_finite(tiny):
    base = tiny("gpt2")
    editor = UltraEditor.create(base, EDITS[:1], UltraConfig(eta=1.0))
    for change in editor.delta(base, EDITS[:1]).values():
        assert torch.isfinite(change).all()


def test_no_calibration_edits_is_refused(tiny):
    with pytest.raises(EmptyBatch):
        UltraEditor.create(tiny("gpt2"), [])


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "bart"])
def test_files_hold_everything(tiny, tmp_path, family):
    base = tiny(family)
    ultra = UltraEditor.create(base, EDITS, UltraConfig(eta=1.0))
    ultra.protect_texts(base, [" ".join(p for p, _ in FACTS)], weight=5.0)
    malmen = MalmenEditor.create(base, MalmenConfig(rank=4))
    malmen.calibrate(base, EDITS)
    for editor in (ultra, malmen):
        digest = editor.save(tmp_path / "e.safetensors")
        again = load_editor(tmp_path / "e.safetensors")
        assert again.digest == digest == editor.digest
        first, second = editor.delta(base, EDITS), again.delta(base, EDITS)
        for name, change in first.items():
            assert torch.equal(change, second[name])


def test_a_protected_prompt_moves_less(knowing_llama):
    base = knowing_llama
    editor = UltraEditor.create(base, EDITS, UltraConfig(eta=None, ridge=1e-3))
    keep = [PARAPHRASES[EDITS[1].prompt], FACTS[10][0]]
    protected = editor.protection(base, keep, name="keep")
    rows = [editor.grid.encode(f) for f in editor.factor(base, EDITS[:1])]
    free = compose(editor.composition, editor.grid, None, rows)
    held = compose(editor.composition, editor.grid, None, [*rows, editor.grid.encode(protected)])
    for name, kept in protected.rows.items():
        keys = kept.u.double()
        assert (keys @ held[name].T).norm() < 0.5 * (keys @ free[name].T).norm()


def test_generic_text_holds_the_model_still(knowing_llama):
    base = knowing_llama
    text = [" ".join(p for p, _ in FACTS[8:])]
    editor = UltraEditor.create(base, EDITS, UltraConfig(eta=1.0, ridge=1e-3))
    free = editor.delta(base, EDITS[:1])
    editor.protect_texts(base, text, weight=100.0)
    held = editor.delta(base, EDITS[:1])
    keys = editor.protection(base, text, name="text").rows
    for name, change in free.items():
        u = keys[name].u.double()
        assert (u @ held[name].T).norm() < 0.5 * (u @ change.T).norm()
