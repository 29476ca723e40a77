"""Sum and ridge, in row space and in key space, against the formulas written out."""

import random

import pytest
import torch

from mend_core.errors import BatchError, EditorCorrupt, EditorMismatch, EmptyBatch
from mend_core.factors import Accumulators, Composition, FactorRows, Grid, Rows, compose, needs_rows
from mend_core.factors.compose import use_dual

NAME = "m.weight"
D_IN, D_OUT = 40, 24


def make(edits, rows=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    factors = [
        FactorRows(
            f"e{n}",
            {
                NAME: Rows(
                    torch.randn(rows, D_IN, generator=generator),
                    torch.randn(rows, D_OUT, generator=generator),
                )
            },
        )
        for n in range(edits)
    ]
    grid = Grid.calibrate(factors)
    return grid, [grid.encode(f) for f in factors]


def stacked(grid, factors):
    rows = [grid.decode(f).rows[NAME] for f in factors]
    return torch.cat([r.u for r in rows]).double(), torch.cat([r.v for r in rows]).double()


def protected():
    generator = torch.Generator().manual_seed(7)
    keys = torch.randn(60, D_IN, generator=generator, dtype=torch.float64)
    return keys.t() @ keys


@pytest.mark.parametrize("edits", [1, 3, 100])
@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("growth", [0.0, 0.02])
def test_ridge_is_the_formula(edits, guard, growth):
    grid, factors = make(edits)
    c = protected() if guard else None
    composition = Composition("ridge", {"*": 0.3}, {NAME: c} if guard else {}, 1.25, growth)
    delta = compose(composition, grid, None, factors)[NAME]
    u, v = stacked(grid, factors)
    held = 0.3 * torch.eye(D_IN, dtype=torch.float64) + (c if guard else 0)
    system = u.t() @ u + (1 + growth * len(u)) * held
    expected = 1.25 * torch.linalg.solve(system, u.t() @ v).t()
    assert torch.allclose(delta, expected, rtol=1e-9, atol=1e-12)
    assert use_dual(composition, grid.of(NAME), NAME, len(u)) == (edits < 100)


def test_sum_is_the_formula_exactly():
    grid, factors = make(50)
    delta = compose(Composition("sum"), grid, None, factors)[NAME]
    u, v = stacked(grid, factors)
    assert torch.allclose(delta, v.t() @ u, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["sum", "ridge"])
@pytest.mark.parametrize("edits", [1, 2, 5, 60])
def test_the_same_set_gives_the_same_bits(kind, edits):
    grid, factors = make(edits)
    composition = Composition(kind, {"*": 1.0})
    expected = compose(composition, grid, None, factors)[NAME]
    shuffled = [*factors, factors[0]]
    random.Random(3).shuffle(shuffled)
    assert torch.equal(compose(composition, grid, None, shuffled)[NAME], expected)
    sums = Accumulators(grid, with_gram=kind == "ridge")
    for f in reversed(factors):
        sums.add([f])
    assert torch.equal(compose(composition, grid, sums, factors)[NAME], expected)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    assert torch.equal(compose(composition, grid, sums, factors)[NAME], expected)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)


def test_matrices_solved_side_by_side_give_the_same_bits():
    generator = torch.Generator().manual_seed(2)
    raw = [
        FactorRows(
            f"e{n}",
            {
                f"m{k}.weight": Rows(
                    torch.randn(5 * k + 1, 30, generator=generator),
                    torch.randn(5 * k + 1, 20, generator=generator),
                )
                for k in range(5)
            },
        )
        for n in range(6)
    ]
    grid = Grid.calibrate(raw)
    factors = [grid.encode(f) for f in raw]
    guard = {"m1.weight": torch.eye(30, dtype=torch.float64), "m4.weight": torch.eye(30).double()}
    composition = Composition("ridge", {"*": 0.5}, guard)
    alone = compose(composition, grid, None, factors)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        for _ in range(3):
            together = compose(composition, grid, None, factors)
            assert list(together) == list(alone)
            assert all(torch.equal(together[name], alone[name]) for name in alone)
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)


def test_reverting_one_edit_gives_the_version_without_it():
    grid, factors = make(60)
    composition = Composition("ridge", {"*": 1.0})
    sums = Accumulators(grid)
    sums.add(factors)
    sums.remove(factors[10:11])
    rest = factors[:10] + factors[11:]
    assert not needs_rows(composition, grid, sums.counts)
    assert torch.equal(
        compose(composition, grid, sums)[NAME], compose(composition, grid, None, rest)[NAME]
    )


def test_a_protection_holds_its_key():
    grid, factors = make(5)
    u, _ = stacked(grid, factors)
    generator = torch.Generator().manual_seed(3)
    key = u[0] + 0.3 * torch.randn(D_IN, generator=generator)
    plain = compose(Composition("ridge", {"*": 0.1}), grid, None, factors)[NAME]
    row = FactorRows("p", {NAME: Rows(key[None].float() * 3, torch.zeros(1, D_OUT))})
    guarded = compose(Composition("ridge", {"*": 0.1}), grid, None, [*factors, grid.encode(row)])
    assert (guarded[NAME] @ key).norm() < 0.2 * (plain @ key).norm()


def test_when_rows_are_needed_is_said():
    grid, factors = make(2)
    composition = Composition("ridge", {"*": 1.0})
    sums = Accumulators(grid)
    sums.add(factors)
    assert needs_rows(composition, grid, sums.counts)
    assert not needs_rows(Composition("sum"), grid, sums.counts)
    with pytest.raises(BatchError, match="rows"):
        compose(composition, grid, sums)
    with pytest.raises(EmptyBatch):
        compose(composition, grid, None)
    assert compose(composition, grid, None, []) == {}


def test_settings_survive_and_are_checked():
    composition = Composition("ridge", {"*": 2.0, NAME: 3.0}, {NAME: protected()}, 0.5, 0.25)
    again = Composition.from_dict(composition.to_dict(), composition.tensors())
    assert again.digest == composition.digest
    assert again.ridge_of(NAME) == 3.0
    assert again.ridge_of("other") == 2.0
    assert composition.scaled(2.0).digest != composition.digest
    altered = {f"protected|{NAME}": protected() + 1}
    with pytest.raises(EditorCorrupt, match="altered"):
        Composition.from_dict(composition.to_dict(), altered)
    with pytest.raises(EditorCorrupt, match="incomplete"):
        Composition.from_dict({"kind": "ridge"}, {})


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "mean"},
        {"kind": "ridge"},
        {"kind": "ridge", "ridge": {"*": 0.0}},
        {"kind": "ridge", "ridge": {"*": float("nan")}},
        {"kind": "sum", "strength": float("inf")},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(EditorCorrupt):
        Composition(**settings)


def test_a_missing_ridge_and_a_broken_guard_are_named():
    grid, factors = make(60)
    with pytest.raises(EditorCorrupt, match=NAME):
        compose(Composition("ridge", {"other": 1.0}), grid, None, factors)
    bad = -1e6 * torch.eye(D_IN, dtype=torch.float64)
    with pytest.raises(BatchError, match="positive definite"):
        compose(Composition("ridge", {"*": 1.0}, {NAME: bad}), grid, None, factors)
    other, strangers = make(2, seed=9)
    assert other.digest != grid.digest
    with pytest.raises(EditorMismatch):
        compose(Composition("sum"), grid, None, strangers)
