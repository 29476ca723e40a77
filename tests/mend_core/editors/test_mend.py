"""MEND against a derivation of its own: plain formulas, one row at a time."""

import json
import math

import pytest
import torch

from mend_core.datasets import Edit
from mend_core.editors import MendConfig, MendEditor, load_editor
from mend_core.editors.mend import MendNetworks
from mend_core.editors.normaliser import Normaliser
from mend_core.editors.shipped import shipped_editor, shipped_editors
from mend_core.errors import EditorCorrupt, EditorMismatch, EditorNotFound, EmptyBatch
from mend_core.factors import FactorRows
from mend_core.testing import FACTS

EDITS = [
    Edit(id=str(i), prompt=prompt, target=FACTS[(i + 1) % len(FACTS)][1])
    for i, (prompt, _) in enumerate(FACTS[:6])
]


def randomised(networks, seed=1, size=0.3):
    """Every parameter away from its initial value, so that no term hides behind a zero."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in networks.parameters():
        parameter.data += size * torch.randn(parameter.shape, generator=generator)
    return networks


def welford_by_hand(rows):
    """EDITING A.2: one row at a time, as the paper's appendix and the released code do."""
    k, mean, s = 0, [0.0] * len(rows[0]), [0.0] * len(rows[0])
    for row in rows:
        k += 1
        for j, x in enumerate(row):
            new = mean[j] + (x - mean[j]) / k
            s[j] += (x - mean[j]) * (x - new)
            mean[j] = new
    return mean, [math.sqrt(v / (k - 1)) for v in s]


def pseudo_by_hand(config, parameters, row, statistics, mode):
    """One row through two layers, element by element."""
    z = [(x - m) / (s + 1e-7) for x, m, s in zip(row, *statistics, strict=True)]
    dim = len(z)
    for layer in range(2):
        p = {k.split(".")[-1]: v for k, v in parameters.items() if f"layers.{layer}." in k}
        rank = len(p["v"])
        inner = [sum(p["v"][r][j] * z[j] for j in range(dim)) for r in range(rank)]
        out = []
        for i in range(dim):
            a = sum(p["u"][i][r] * inner[r] for r in range(rank))
            if layer == 0 or config.bias_everywhere:
                a += p["bias"][i]
            a = p["scale"][mode][i] * a + p["shift"][mode][i]
            out.append(z[i] + max(a, 0.0))
        z = out
    return z


@pytest.mark.parametrize("released", [False, True])
def test_weight_change_equals_the_formula_written_out(released):
    shapes = {"a": (3, 4), "b": (3, 4), "c": (4, 3)}
    make = MendConfig.as_released if released else MendConfig
    config = make(rank=2, learning_rate=0.01)
    networks = randomised(MendNetworks(shapes, config, seed=0).double())
    generator = torch.Generator().manual_seed(2)
    rows = {
        n: (
            torch.randn(5, i, generator=generator, dtype=torch.float64),
            torch.randn(5, o, generator=generator, dtype=torch.float64),
        )
        for n, (o, i) in shapes.items()
    }
    for name, (u, delta) in rows.items():
        networks.update(name, u, delta)
    seen = {"4x3": ["a", "b"], "3x4": ["c"]}
    for name, (u, delta) in rows.items():
        key = "4x3" if name in "ab" else "3x4"
        mode = seen[key].index(name)
        together = [
            [*rows[m][0][r].tolist(), *rows[m][1][r].tolist()] for m in seen[key] for r in range(5)
        ]
        mean, std = welford_by_hand(together)
        parameters = {k: v.tolist() for k, v in networks.nets[key].net.named_parameters()}
        alpha = networks.learning_rates[list(shapes).index(name)].item()
        d_out, d_in = shapes[name]
        expected = [[0.0] * d_in for _ in range(d_out)]
        for r in range(5):
            row = [*u[r].tolist(), *delta[r].tolist()]
            pseudo = pseudo_by_hand(config, parameters, row, (mean, std), mode)
            pu, pd = pseudo[:d_in], pseudo[d_in:]
            for i in range(d_out):
                for j in range(d_in):
                    expected[i][j] += (alpha if released else -alpha) * pd[i] * pu[j]
        keys, values = networks(name, u, delta)
        assert torch.allclose(values.T @ keys, torch.tensor(expected).double(), atol=1e-6)


def test_the_released_ablations_are_what_its_code_does():
    unshared = MendNetworks({"a": (3, 5), "b": (3, 5)}, MendConfig.as_released(shared=False))
    assert len(unshared.nets) == 2
    assert not [n for n, _ in unshared.named_parameters() if "scale" in n or "shift" in n]
    config = MendConfig.as_released(init="released_random", norm=False, learning_rate=1.0)
    networks = MendNetworks({"a": (3, 5)}, config)
    u, delta = torch.randn(8, 5), torch.randn(8, 3)
    x = torch.cat((u, delta), dim=1)
    for layer in networks.nets["5x3"].net.layers:
        x = (x @ layer.v.T @ layer.u.T).clamp(min=0)  # nothing is added back
    keys, values = networks("a", u, delta)
    assert torch.allclose(torch.cat((keys, values), dim=1), x)


def test_a_new_setting_does_not_rename_the_editors_from_before_it(tiny):
    """Versions are named after their editor's digest."""
    header, _ = MendEditor.create(tiny("gpt2"), MendConfig(rank=4)).state()
    assert set(header["mend"]) == {
        *("rank", "layers", "norm", "init", "sides", "shared", "learning_rate", "sign"),
        *("bias_everywhere", "tokens"),
    }
    for name in shipped_editors():
        path = shipped_editor(name)
        assert (
            load_editor(path).digest == json.loads(path.with_suffix(".json").read_text())["editor"]
        )


def test_networks_apart_do_not_mix_the_sides():
    networks = randomised(MendNetworks({"a": (3, 5)}, MendConfig(sides="apart", norm=False)))
    u, delta = torch.randn(8, 5), torch.randn(8, 3)
    keys, values = networks("a", u, delta)
    other_keys, _ = networks("a", u, torch.randn(8, 3))
    _, other_values = networks("a", torch.randn(8, 5), delta)
    assert torch.equal(keys, other_keys)
    assert torch.equal(values, other_values)
    assert not torch.allclose(keys, u)


def test_of_equal_sides_u_counts_as_the_smaller():
    networks = MendNetworks({"a": (4, 4), "b": (2, 4), "c": (4, 2)}, MendConfig(sides="smaller"))
    assert [networks.nets[k].sides for k in ("4x4", "4x2", "2x4")] == ["u", "delta", "u"]


def test_untrained_network_is_the_identity_on_normalised_rows():
    networks = MendNetworks({"a": (3, 5)}, MendConfig(rank=2, learning_rate=1.0))
    u, delta = torch.randn(8, 5), torch.randn(8, 3)
    networks.update("a", u, delta)
    keys, values = networks("a", u, delta)
    assert torch.allclose(keys, networks.nets["5x3"].norm_u(u))
    assert torch.allclose(values, -networks.nets["5x3"].norm_delta(delta))


def test_identity_start_can_be_left():
    networks = MendNetworks({"a": (3, 5)}, MendConfig(rank=2))
    keys, values = networks("a", torch.randn(4, 5), torch.randn(4, 3))
    (keys.sum() + values.sum()).backward()
    for layer in networks.nets["5x3"].net.layers:
        assert layer.u.grad.abs().sum() > 0


@pytest.mark.parametrize("split", [1, 2, 3, 7])
def test_normaliser_does_not_depend_on_how_rows_are_batched(split):
    rows = torch.randn(7, 4) * 100 + 3
    norm = Normaliser(4)
    for part in rows.split(split):
        norm.update(part)
    assert torch.allclose(norm.mean, rows.double().mean(0))
    assert torch.allclose(norm.std, rows.double().std(0))


def test_normaliser_survives_one_row_and_resumes():
    norm = Normaliser(3)
    norm.update(torch.ones(1, 3))
    assert torch.isfinite(norm(torch.randn(2, 3))).all()
    again = Normaliser(3)
    again.load_state_dict(norm.state_dict())
    more = torch.randn(4, 3)
    norm.update(more)
    again.update(more)
    assert torch.equal(norm.std, again.std)
    assert int(again.count) == 5


@pytest.mark.parametrize(
    "config",
    [
        MendConfig(rank=4),
        MendConfig.as_released(rank=4),
        MendConfig(rank=4, norm=False),
        MendConfig(rank=4, init="random"),
        MendConfig(rank=4, sides="u"),
        MendConfig(rank=4, sides="delta"),
        MendConfig(rank=4, sides="smaller"),
        MendConfig(rank=4, shared=False),
        MendConfig(rank=4, sides="apart"),
        MendConfig.as_released(rank=4, shared=False),
        MendConfig.as_released(rank=4, init="released_random"),
    ],
    ids=[
        *("paper", "released", "no norm", "no identity", "u", "delta", "smaller", "no sharing"),
        *("apart", "released, no sharing", "released, no identity"),
    ],
)
def test_every_variant_edits_and_comes_back_from_its_file(tiny, tmp_path, config):
    base = tiny("gpt2")
    editor = MendEditor.create(base, config)
    editor.calibrate(base, EDITS)
    path = tmp_path / "editor.safetensors"
    digest = editor.save(path)
    again = load_editor(path)
    assert again.digest == digest == editor.digest
    first, second = editor.delta(base, EDITS), again.delta(base, EDITS)
    assert set(first) == set(editor.matrices)
    for name, change in first.items():
        assert change.abs().sum() > 0
        assert torch.equal(change, second[name])


def test_an_edits_factor_does_not_depend_on_its_company(tiny):
    base = tiny("llama")
    editor = MendEditor.create(base, MendConfig(rank=4))
    editor.calibrate(base, EDITS)
    randomised(editor.networks)
    alone = editor.factor(base, EDITS[:1])[0]
    among = editor.factor(base, EDITS)[0]
    for name in editor.matrices:
        assert torch.allclose(alone.rows[name].v, among.rows[name].v, atol=1e-5)


def test_a_bad_edit_is_returned_and_the_others_go_on(tiny):
    base = tiny("llama")
    editor = MendEditor.create(base, MendConfig(rank=4))
    editor.calibrate(base, EDITS)
    bad = Edit(id="bad", prompt="x " * 4000, target="y")
    first, second, third = editor.factor(base, [EDITS[0], bad, EDITS[1]])
    assert isinstance(first, FactorRows)
    assert isinstance(third, FactorRows)
    assert getattr(second, "edit_id", None) == "bad"


def test_an_editor_that_gives_nan_names_the_edit(tiny):
    base = tiny("llama")
    editor = MendEditor.create(base, MendConfig(rank=4))
    editor.calibrate(base, EDITS)
    editor.networks.learning_rates.data[:] = float("nan")
    errors = editor.factor(base, EDITS[:2])
    assert [e.edit_id for e in errors] == ["0", "1"]


def test_another_base_or_shape_is_refused(tiny):
    base, other = tiny("gpt2"), tiny("llama")
    editor = MendEditor.create(base, MendConfig(rank=4))
    with pytest.raises(EditorMismatch, match="made for base"):
        editor.check(other)
    editor.shapes[editor.matrices[0]] = (3, 3)
    with pytest.raises(EditorMismatch, match="3 x 3 in the editor"):
        editor.check(base)


def test_an_empty_batch_is_refused(tiny):
    base = tiny("gpt2")
    editor = MendEditor.create(base, MendConfig(rank=4))
    with pytest.raises(EmptyBatch):
        editor.factor(base, [])


def test_broken_files_are_told_apart(tiny, tmp_path):
    base = tiny("gpt2")
    editor = MendEditor.create(base, MendConfig(rank=4))
    editor.calibrate(base, EDITS)
    path = tmp_path / "editor.safetensors"
    with pytest.raises(EditorNotFound):
        load_editor(path)
    editor.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(EditorCorrupt):
        load_editor(path)
    altered = bytearray(whole)
    altered[-5] ^= 0xFF
    path.write_bytes(bytes(altered))
    with pytest.raises(EditorCorrupt, match="digest"):
        load_editor(path)
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(EditorCorrupt):
        load_editor(path)
