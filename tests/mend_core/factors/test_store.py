"""Factors and versions on disk: whole or not at all, found by digest, checked before use."""

import json
import multiprocessing
import os
import random
import stat

import pytest
import torch

from mend_core.errors import StoreCorrupt, StoreError, StoreFull, StoreMissing
from mend_core.factors import (
    Accumulators,
    Composition,
    FactorRows,
    FactorStore,
    Grid,
    GridRows,
    Rows,
    VersionFiles,
    VersionStore,
    version_digest,
)

SHAPES = {"a.weight": (12, 8), "b.weight": (6, 4)}


def factors(n=6, rows=2):
    generator = torch.Generator().manual_seed(5)
    raw = [
        FactorRows(
            f"e{k}",
            {
                name: Rows(
                    torch.randn(rows, d_in, generator=generator),
                    torch.randn(rows, d_out, generator=generator),
                )
                for name, (d_in, d_out) in SHAPES.items()
            },
        )
        for k in range(n)
    ]
    grid = Grid.calibrate(raw)
    return grid, [grid.encode(f) for f in raw]


GRID, FACTORS = factors()
COMPOSITION = Composition("ridge", {"*": 1.0})


def version(chosen=FACTORS, **extra):
    sums = Accumulators(GRID)
    sums.add(chosen)
    return VersionFiles(
        base_digest="sha256:base",
        editor_digest="sha256:editor",
        composition=COMPOSITION.to_dict(),
        factors=tuple(f.digest for f in chosen),
        accumulators=sums,
        weights_digest="sha256:weights",
        platform="here",
        notes={"edits": len(chosen)},
        **extra,
    )


def test_a_factor_comes_back_as_it_was(tmp_path):
    store = FactorStore(tmp_path / "factors")
    digest = store.put(FACTORS[0])
    back = store.get(digest)
    assert back.digest == digest == FACTORS[0].digest
    assert back.edit_id == "e0"
    assert torch.equal(back.rows["a.weight"].u, FACTORS[0].rows["a.weight"].u)
    assert store.has(digest)
    assert not store.has(FACTORS[1].digest)
    assert store.put_many(FACTORS) == [f.digest for f in FACTORS]
    assert sorted(store.digests()) == sorted(f.digest for f in FACTORS)
    assert [f.digest for f in store.get_many(store.digests())] == list(store.digests())


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        store = FactorStore(tmp_path / "factors")
        path = store.path(store.put(FACTORS[0]))
        versions = VersionStore(tmp_path / "versions")
        folder = versions.folder(versions.write(version()))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o640}


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap"])
def test_a_damaged_factor_is_named(tmp_path, damage):
    store = FactorStore(tmp_path)
    digest, other = store.put_many(FACTORS[:2])
    path = store.path(digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    damaged = {
        "flip": bytes(data),
        "cut": bytes(data[:100]),
        "empty": b"",
        "swap": store.path(other).read_bytes(),
    }
    path.write_bytes(damaged[damage])
    with pytest.raises(StoreCorrupt, match=str(path)):
        store.get(digest)
    path.unlink()
    with pytest.raises(StoreMissing, match=digest):
        store.get(digest)


@pytest.mark.parametrize("name", ["", "sha256:xyz", "../../etc/passwd", "sha256:" + "g" * 64])
def test_a_name_that_is_no_digest_reaches_no_file(tmp_path, name):
    with pytest.raises(StoreMissing, match="no factor's digest"):
        FactorStore(tmp_path).get(name)
    with pytest.raises(StoreMissing, match="no version's digest"):
        VersionStore(tmp_path).load(name)


def test_collecting_keeps_what_is_wanted_and_what_is_new(tmp_path):
    store = FactorStore(tmp_path)
    digests = store.put_many(FACTORS)
    assert store.collect(digests[:2]) == []  # all too new
    for digest in digests[1:]:
        os.utime(store.path(digest), (1, 1))
    store.put(FACTORS[5])  # wanted again just now
    scratch = store.path(digests[0]).with_name(".x.tmp")
    scratch.write_bytes(b"half")
    os.utime(scratch, (1, 1))
    assert sorted(store.collect(digests[:2])) == sorted(digests[2:5])
    assert sorted(store.digests()) == sorted([*digests[:2], digests[5]])
    assert not scratch.exists()


def _put(root, gate):
    gate.wait()
    FactorStore(root).put_many(FACTORS)
    VersionStore(root / "v").write(version())


def test_two_processes_writing_the_same_agree(tmp_path):
    context = multiprocessing.get_context("fork")
    gate = context.Barrier(3)
    workers = [context.Process(target=_put, args=(tmp_path, gate)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    store = FactorStore(tmp_path)
    assert [store.get(f.digest).digest for f in FACTORS] == [f.digest for f in FACTORS]
    VersionStore(tmp_path / "v").verify(version().digest, factors=store, grid=GRID)
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_versions_name_is_its_set():
    digests = [f.digest for f in FACTORS]
    named = version_digest("b", "e", COMPOSITION, digests)
    shuffled = [*digests, digests[2]]
    random.Random(1).shuffle(shuffled)
    assert version_digest("b", "e", COMPOSITION.to_dict(), shuffled) == named
    assert version_digest("b", "e", COMPOSITION, digests[1:]) != named
    assert version_digest("b2", "e", COMPOSITION, digests) != named
    assert version_digest("b", "e2", COMPOSITION, digests) != named
    assert version_digest("b", "e", COMPOSITION.scaled(2.0), digests) != named
    assert version(parent="sha256:p").digest == version().digest


def test_a_version_comes_back_as_it_was(tmp_path):
    store = VersionStore(tmp_path)
    written = version(parent="sha256:" + "0" * 64)
    digest = store.write(written)
    assert store.write(written) == digest
    back = store.load(digest, GRID)
    assert back.digest == digest
    assert back.parent == written.parent
    assert back.notes == {"edits": 6}
    assert back.accumulators.digest == written.accumulators.digest
    assert store.load(digest).accumulators is None
    assert store.has(digest)
    assert list(store.digests()) == [digest]
    store.verify(digest)


@pytest.mark.parametrize("name", ["manifest.json", "accumulators.safetensors"])
def test_an_altered_version_is_named(tmp_path, name):
    store = VersionStore(tmp_path)
    digest = store.write(version())
    path = store.folder(digest) / name
    data = bytearray(path.read_bytes())
    at = data.index(b"sha256:weights") + 8 if name == "manifest.json" else -2
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreCorrupt, match=str(path)):
        store.verify(digest)
    with pytest.raises(StoreCorrupt, match=str(path)):
        store.load(digest, GRID)


def test_sums_of_another_set_are_found_out(tmp_path):
    factors_ = FactorStore(tmp_path / "f")
    factors_.put_many(FACTORS)
    store = VersionStore(tmp_path / "v")
    honest = version()
    digest = store.write(honest)
    store.verify(digest, factors=factors_, grid=GRID)
    path = store.folder(digest) / "accumulators.safetensors"
    version(FACTORS[:3]).accumulators.save(path)  # sound in itself, but not this version's
    with pytest.raises(StoreCorrupt, match="replaced"):
        store.verify(digest)
    factors_.path(FACTORS[1].digest).unlink()
    honest.accumulators.save(path)
    with pytest.raises(StoreMissing, match=FACTORS[1].digest):
        store.verify(digest, factors=factors_)


def test_versions_are_collected_and_slimmed(tmp_path):
    store = VersionStore(tmp_path)
    kept, gone = store.write(version()), store.write(version(FACTORS[:3]))
    assert store.collect([kept]) == []
    os.utime(store.folder(gone), (1, 1))
    assert store.collect([kept]) == [gone]
    with pytest.raises(StoreMissing, match="collected"):
        store.load(gone)
    assert store.drop_accumulators(kept)
    assert not store.drop_accumulators(kept)
    assert store.load(kept, GRID).accumulators is None
    store.verify(kept)


def test_a_full_disk_leaves_nothing_half_written(small_disk):
    store = FactorStore(small_disk / "f")
    versions = VersionStore(small_disk / "v")
    first = store.put(FACTORS[0])
    (small_disk / "ballast").write_bytes(b"x" * 40_000)
    more = (GridRows(f"n{n}", GRID.digest, FACTORS[0].rows) for n in range(200))
    with pytest.raises(StoreFull, match="no room"):
        store.put_many(more)
    assert not list(small_disk.rglob("*.tmp"))
    assert all(store.get(digest).digest == digest for digest in store.digests())
    assert store.get(first).edit_id == "e0"
    with pytest.raises(StoreFull, match="no room"):
        versions.write(version())
    assert not list(small_disk.rglob("*.tmp"))
    assert list(versions.digests()) == []


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write"):
        FactorStore(tmp_path / "file").put(FACTORS[0])


def test_the_manifest_is_plain_json(tmp_path):
    store = VersionStore(tmp_path)
    digest = store.write(version())
    body = json.loads((store.folder(digest) / "manifest.json").read_text())
    assert body["factors"] == sorted(f.digest for f in FACTORS)
    assert body["digest"] == digest
