"""The trail: canonical, unforked, append-only, verifiable without the database."""

from __future__ import annotations

import io
import json
import random

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError

from ledger import audit, doctor
from ledger.db import engine_from_url, transaction
from ledger.errors import AuditBroken
from ledger.merkle import Accumulator, inclusion_proof, leaf_hash, verify_inclusion

words = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\x00"))
numbers = st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | words,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text("abcXYZ_09", max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def kept(postgres_server):
    """Appends an event and gives it as the database keeps it."""
    url = postgres_server.fresh()
    engine = engine_from_url(url)

    def append(data, actor="ann", subject=None):
        with transaction(engine) as conn:
            seq = audit.append(conn, "test", actor=actor, subject=subject, data=data)
            return audit.events(conn, after=seq - 1)[0]

    yield append
    engine.dispose()
    postgres_server.drop(url)


@settings(max_examples=150, deadline=None)
@given(value=values, actor=words.filter(str.strip), subject=words)
def test_events_are_kept_as_rfc_8785_writes_them(kept, value, actor, subject):
    event = kept({"value": value}, actor, subject)
    assert (event.data["value"], event.actor, event.subject) == (value, actor, subject)
    assert event.body.encode() == rfc8785.dumps(audit._parsed(event.body))


def test_numbers_of_every_size_are_kept_exactly(any_desk):
    draw = random.Random(0)
    sizes = range(-59, 21)
    given = [draw.choice((-1, 1)) * draw.uniform(1, 10) * 10.0**n for n in sizes for _ in range(20)]
    seq = any_desk.do(audit.append, "test", actor="ann", data={"numbers": given})
    assert any_desk.do(audit.events, after=seq - 1)[0].data["numbers"] == given
    any_desk.do(audit.verify)


def trail(desk):
    desk.submit()
    desk.round()
    out = io.StringIO()
    assert desk.do(audit.export, out) > 5
    return out.getvalue().splitlines()


def test_export_verifies_offline_and_every_tampering_shows(desk, tmp_path):
    lines = trail(desk)
    verified = audit.verify_export(lines)
    assert verified == desk.do(audit.verify)
    (tmp_path / "trail.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert audit.verify_export(tmp_path / "trail.jsonl") == verified
    changed = lines.copy()
    changed[2] = changed[2].replace('"actor":"', '"actor":"x')
    swapped = [lines[1], lines[0], *lines[2:]]
    for bad in (
        changed,
        swapped,
        lines[1:],
        [*lines[:3], *lines[4:]],
        [*lines, "{}"],
        ["nonsense"],
    ):
        with pytest.raises(AuditBroken):
            audit.verify_export(bad)
    spaced = [*lines[:-1], lines[-1].replace('":', '": ', 1)]
    with pytest.raises(AuditBroken, match="canonical"):
        audit.verify_export(spaced)


def test_rows_cannot_be_changed(desk):
    desk.submit()
    for statement in (
        "UPDATE audit SET actor = 'eve'",
        "DELETE FROM audit",
        "TRUNCATE audit",
        "DELETE FROM audit_head",
        "TRUNCATE audit_head",
        "UPDATE audit_head SET seq = 0",
    ):
        with pytest.raises(DBAPIError):
            desk.sql(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit SET actor = 'eve' WHERE seq = 3",
        "UPDATE audit SET body = replace(body, 'ann', 'eve') WHERE seq = 3",
        "DELETE FROM audit WHERE seq = (SELECT max(seq) FROM audit)",
        "DELETE FROM audit WHERE seq = 2",
    ],
)
def test_an_owner_who_switches_the_triggers_off_is_found_out(desk, statement):
    desk.submit()
    kept = desk.do(audit.checkpoint)
    desk.submit("Fact is", "T")
    desk.do(audit.verify_checkpoint, kept)
    desk.sql("ALTER TABLE audit DISABLE TRIGGER ALL")
    desk.sql(statement)
    with pytest.raises(AuditBroken):
        desk.do(audit.verify)
    rules = {one.rule for one in desk.do(doctor.check, deep=True)}
    assert {"trail-verifies", "schema-rule"} <= rules


def test_inclusion_proofs(desk):
    lines = trail(desk)
    for seq in (1, 4, len(lines)):
        proof = json.loads(json.dumps(desk.do(audit.prove, seq)))
        assert proof["body"] == lines[seq - 1]
        assert proof["root"] == desk.do(audit.verify).root
        assert audit.verify_proof(proof)
        assert not audit.verify_proof(proof | {"body": lines[seq - 1].replace("ann", "eve") + " "})
        assert not audit.verify_proof(proof | {"index": (seq + 1) % len(lines)})
    with pytest.raises(AuditBroken, match="no audit event"):
        desk.do(audit.prove, 10_000)


def test_merkle_vectors_of_rfc_6962():
    # Test vectors of the certificate-transparency project for the RFC's tree hash.
    leaves = [b"", b"\x00", b"\x10", b" !", b"01", b"@ABC", b"PQRSTUVW", b"`abcdefghijklmno"]
    tree = Accumulator()
    assert tree.root().hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for leaf in leaves:
        tree.add(leaf)
    assert tree.root().hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@given(size=st.integers(1, 70), data=st.data())
def test_every_leaf_of_every_tree_has_a_proof(size, data):
    bodies = [str(n).encode() for n in range(size)]
    tree = Accumulator()
    for body in bodies:
        tree.add(body)
    index = data.draw(st.integers(0, size - 1))
    path, root = inclusion_proof([leaf_hash(body) for body in bodies], index)
    assert root == tree.root()
    assert verify_inclusion(leaf_hash(bodies[index]), index, size, path, root)
    assert not verify_inclusion(leaf_hash(b"other"), index, size, path, root)


def test_keys_outside_ascii_are_refused(desk):
    with pytest.raises(ValueError, match="ASCII"):
        desk.do(audit.append, "x", actor="a", data={"schlüssel": 1})


def test_events_are_found_by_who_when_and_what_they_are_about(desk):
    ann = desk.submit("Fact a is", "A", actor="ann").edit_id
    bob = desk.submit("Fact b is", "B", actor="bob").edit_id
    version = desk.round()

    def kinds(**filters):
        return [event.kind for event in desk.do(audit.events, **filters)]

    assert kinds(actor="bob") == ["edit.submitted"]
    assert kinds(actor="ann", edit_id=bob) == []
    found = desk.do(audit.events, version=version)
    assert {"version.committed", "gate.recorded", "alias.promote"} <= {e.kind for e in found}
    assert not {e.kind for e in found} & {"edit.submitted", "batch.claimed"}
    [first] = desk.do(audit.events, kinds=["edit.submitted"], edit_id=ann)
    assert kinds(until=first.at, kinds=["edit.submitted"]) == []
    assert kinds(since=first.at, kinds=["edit.submitted"]) == ["edit.submitted"] * 2
    newest = desk.do(audit.events, newest_first=True, limit=1)[0]
    assert newest.seq == desk.do(audit.last)
