"""The invariant under everything: sums over a set don't depend on anything but the set."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mend_core.errors import (
    BatchError,
    EditorCorrupt,
    EditorMismatch,
    EmptyBatch,
    NonFinite,
    StoreCorrupt,
    StoreFull,
    StoreMissing,
)
from mend_core.factors import Accumulators, FactorRows, Grid, GridRows, Int16Rows, Rows
from mend_core.factors import accumulators as accumulators_module

MATRICES = {"a.weight": (24, 16), "b.weight": (7, 9)}


def factor(edit_id, seed, rows=3, scale=1.0):
    generator = torch.Generator().manual_seed(seed)

    def heavy(n, d):  # heavy tails and dimensions of very different size, as activations have
        dims = torch.exp(torch.linspace(-3, 3, d))
        return torch.randn(n, d, generator=generator) ** 3 * dims * scale

    return FactorRows(
        edit_id,
        {
            name: Rows(heavy(rows, d_in), heavy(rows, d_out))
            for name, (d_in, d_out) in MATRICES.items()
        },
    )


def grid_of(factors):
    return Grid.calibrate(factors)


FACTORS = [factor(f"e{n}", n, rows=1 + n % 4) for n in range(24)]
GRID = grid_of(FACTORS)
ENCODED = [GRID.encode(f) for f in FACTORS]


def summed(factors, *, with_gram=True):
    sums = Accumulators(GRID, with_gram=with_gram)
    sums.add(factors)
    return sums


def same(left, right):
    return left.digest == right.digest and all(
        torch.equal(tensor, right.tensors()[name]) for name, tensor in left.tensors().items()
    )


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(24)), st.lists(st.integers(0, 23), max_size=5), st.data())
def test_any_order_any_split_any_worker_gives_the_same_bits(order, cuts, data):
    whole = summed(ENCODED)
    parts = []
    edges = sorted({0, *cuts, 24})
    for start, end in itertools.pairwise(edges):
        parts.append(summed([ENCODED[n] for n in order[start:end]]))
    joined = Accumulators(GRID)
    for part in data.draw(st.permutations(parts)):
        joined.merge(part)
    assert same(joined, whole)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.integers(0, 23)), st.permutations(range(24)))
def test_taking_edits_out_is_as_if_they_had_never_been_there(gone, order):
    sums = summed([ENCODED[n] for n in order])
    sums.remove([ENCODED[n] for n in order if n in gone])
    assert same(sums, summed([ENCODED[n] for n in range(24) if n not in gone]))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**31))
def test_extreme_integers_sum_exactly(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    name, (d_in, d_out) = "a.weight", MATRICES["a.weight"]
    u = torch.where(torch.rand(rows, d_in, generator=generator) < 0.5, -32767, 32767)
    v = torch.where(torch.rand(rows, d_out, generator=generator) < 0.5, -32767, 32767)
    sums = summed([GridRows("x", GRID.digest, {name: Int16Rows(u.short(), v.short())})])
    assert torch.equal(sums.gram[name].long(), u.t() @ u)
    assert torch.equal(sums.cross[name].long(), u.t() @ v)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-6, 1e3), st.integers(1, 5))
def test_grid_rounds_within_half_a_step_and_decodes_exactly(seed, scale, rows):
    f = factor("e", seed, rows=rows, scale=scale)
    grid = grid_of([f])
    on_grid = grid.encode(f)
    assert on_grid.clipped == 0
    back = grid.decode(on_grid)
    for name, rows_ in f.rows.items():
        step = grid.of(name).key_step
        assert ((back.rows[name].u - rows_.u).double().abs() <= step / 2 * 1.0001).all()
        again = grid.encode(back)
        assert torch.equal(again.rows[name].u, on_grid.rows[name].u)
        assert torch.equal(again.rows[name].v, on_grid.rows[name].v)


def test_what_does_not_fit_saturates_and_is_counted():
    big = FactorRows("e", {n: Rows(r.u * 1e6, r.v) for n, r in FACTORS[0].rows.items()})
    encoded = GRID.encode(big)
    assert encoded.clipped > 0
    assert encoded.rows["a.weight"].u.abs().max() == 32767
    assert encoded.digest != ENCODED[0].digest


def test_a_dead_dimension_and_an_all_zero_value_are_fine():
    u = torch.randn(4, 24)
    u[:, 3] = 0
    f = FactorRows("protect", {"a.weight": Rows(u, torch.zeros(4, 16))})
    grid = grid_of([f])
    assert grid.encode(f).clipped == 0
    assert torch.equal(grid.decode(grid.encode(f)).rows["a.weight"].v, torch.zeros(4, 16))


def test_nan_names_the_edit():
    bad = FactorRows("e7", {"a.weight": Rows(torch.full((1, 24), float("nan")), torch.ones(1, 16))})
    with pytest.raises(NonFinite, match="e7"):
        GRID.encode(bad)


def test_the_digest_is_of_content():
    assert GRID.encode(FACTORS[0]).digest == ENCODED[0].digest
    assert len({f.digest for f in ENCODED}) == len(ENCODED)
    renamed = FactorRows("other", FACTORS[0].rows)
    assert GRID.encode(renamed).digest != ENCODED[0].digest


def test_grid_survives_its_file():
    again = Grid.from_tensors(GRID.tensors())
    assert again.digest == GRID.digest
    with pytest.raises(EditorCorrupt, match="no grid"):
        Grid.from_tensors({})
    broken = GRID.tensors()
    del broken["grid|a.weight|exponents"]
    with pytest.raises(EditorCorrupt, match=r"a\.weight"):
        Grid.from_tensors(broken)


def test_wrong_rows_are_refused_and_change_nothing():
    other = grid_of([factor("x", 99, scale=50.0)])
    stranger = other.encode(FACTORS[0])
    sums = summed(ENCODED[:3])
    before = sums.digest
    with pytest.raises(EditorMismatch, match="grid"):
        sums.add([ENCODED[4], stranger])
    assert sums.digest == before
    with pytest.raises(EditorMismatch, match="widths"):
        GRID.encode(FactorRows("e", {"a.weight": Rows(torch.ones(1, 5), torch.ones(1, 16))}))
    with pytest.raises(EditorMismatch, match="no scale"):
        GRID.encode(FactorRows("e", {"z.weight": Rows(torch.ones(1, 5), torch.ones(1, 16))}))
    with pytest.raises(EditorMismatch):
        sums.merge(Accumulators(other))
    with pytest.raises(BatchError, match="taken out"):
        sums.remove(ENCODED)
    with pytest.raises(EmptyBatch):
        Grid.calibrate([])


def test_the_row_limit_is_guarded(monkeypatch):
    monkeypatch.setattr(accumulators_module, "MAX_ROWS", 10)
    sums = summed(ENCODED[:4])  # 1 + 2 + 3 + 4 rows
    with pytest.raises(BatchError, match="no longer exact"):
        sums.add(ENCODED[4:5])
    with pytest.raises(BatchError, match="no longer exact"):
        sums.merge(summed(ENCODED[4:5]))


@pytest.mark.parametrize("with_gram", [True, False])
def test_a_file_gives_the_same_sums_back(tmp_path, with_gram):
    sums = summed(ENCODED, with_gram=with_gram)
    sums.save(tmp_path / "sums.safetensors")
    again = Accumulators.load(tmp_path / "sums.safetensors", GRID)
    assert same(sums, again)
    assert again.factors == 24
    again.remove(ENCODED[5:])
    assert same(again, summed(ENCODED[:5], with_gram=with_gram))


def test_an_altered_file_is_named(tmp_path):
    path = tmp_path / "sums.safetensors"
    with pytest.raises(StoreMissing, match="missing"):
        Accumulators.load(path, GRID)
    summed(ENCODED).save(path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreCorrupt, match=str(path)):
        Accumulators.load(path, GRID)
    path.write_bytes(data[:40])
    with pytest.raises(StoreCorrupt, match=str(path)):
        Accumulators.load(path, GRID)
    summed(ENCODED).save(path)
    with pytest.raises(EditorMismatch, match="grid"):
        Accumulators.load(path, grid_of([factor("x", 99)]))


def test_no_room_for_the_file(small_disk):
    (small_disk / "ballast").write_bytes(b"x" * 60_000)
    with pytest.raises(StoreFull, match="no room"):
        summed(ENCODED).save(small_disk / "sums.safetensors")
    assert [path.name for path in small_disk.iterdir()] == ["ballast"]
