"""Migrations, and the rules that live in SQL."""

from __future__ import annotations

import itertools
import shutil

import pytest
from alembic import command
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from ledger import batches, doctor, migrate, models
from ledger.db import engine_from_url, transaction
from ledger.errors import DatabaseDown, PostgresTooOld, SchemaMissing, SchemaNewer, SchemaOlder
from ledger.states import EDIT_MOVES, EditState


def test_models_equal_migrations(engine):
    config = migrate.config()
    with transaction(engine) as conn:
        config.attributes["connection"] = conn
        command.check(config)


def test_down_and_up_again_on_a_populated_database(desk, ledger_url):
    desk.submit()
    desk.round()
    migrate.downgrade(ledger_url, "base")
    with transaction(desk.engine) as conn:
        left = conn.execute(
            text(
                "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
                " AND relname NOT LIKE 'alembic%' UNION ALL SELECT proname FROM pg_proc"
                " WHERE pronamespace = current_schema()::regnamespace UNION ALL"
                " SELECT typname FROM pg_type WHERE typtype = 'e'"
                " AND typnamespace = current_schema()::regnamespace"
            )
        ).all()
    assert left == []
    migrate.upgrade(ledger_url)
    migrate.upgrade(ledger_url)
    migrate.check(desk.engine)
    assert type(desk)(desk.engine).submit().state == "queued"


def test_each_migration_down_and_up_keeps_the_rows(desk, ledger_url):
    desk.submit()
    version = desk.round()
    desk.do(models.set_problem, desk.model_id, "no folder at /gone")
    desk.do(batches.tell, version.batch_id, "probing", 1, 2)
    migrate.downgrade(ledger_url, "0001")
    with pytest.raises(SchemaOlder):
        migrate.check(desk.engine)
    migrate.upgrade(ledger_url)
    assert desk.do(models.get, desk.model_id).problem is None
    assert desk.do(batches.get, version.batch_id).stage is None
    assert desk.do(doctor.check) == []


def test_an_older_server_is_refused_before_anything_is_made(empty_url, monkeypatch):
    monkeypatch.setattr(migrate, "SMALLEST_POSTGRES", 999)
    engine = engine_from_url(empty_url)
    with pytest.raises(PostgresTooOld, match="needs 999 or newer: upgrade the server"):
        migrate.upgrade(empty_url)
    with pytest.raises(PostgresTooOld):
        migrate.check(engine)
    with transaction(engine) as conn:
        assert conn.execute(text("SELECT to_regclass('alembic_version')")).scalar() is None
    engine.dispose()


def test_other_schemas_are_refused(empty_url):
    engine = engine_from_url(empty_url)
    with pytest.raises(SchemaMissing, match="mend up"):
        migrate.check(engine)
    migrate.upgrade(empty_url)
    migrate.check(engine)
    with transaction(engine) as conn:
        conn.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaNewer, match="newer release"):
        migrate.check(engine)
    with pytest.raises(SchemaNewer):
        migrate.upgrade(empty_url)
    engine.dispose()


def test_a_schema_of_an_older_release_is_refused_until_it_is_migrated(
    empty_url, tmp_path, monkeypatch
):
    migrate.upgrade(empty_url)
    # The next release: one more migration than the database has.
    newer = tmp_path / "migrations"
    shutil.copytree(migrate.config().get_main_option("script_location"), newer)
    now = migrate.head()
    (newer / "versions" / "9999_next.py").write_text(
        "from alembic import op\n"
        f"revision, down_revision, branch_labels, depends_on = '9999', '{now}', None, None\n"
        "def upgrade() -> None:\n    op.execute('CREATE TABLE next_release ()')\n"
        "def downgrade() -> None:\n    op.execute('DROP TABLE next_release')\n"
    )
    real = migrate.config

    def config():
        made = real()
        made.set_main_option("script_location", str(newer))
        return made

    monkeypatch.setattr(migrate, "config", config)
    engine = engine_from_url(empty_url)
    with pytest.raises(SchemaOlder, match=rf"schema {now}, this code needs 9999.*'mend up'"):
        migrate.check(engine)
    migrate.upgrade(empty_url)
    migrate.check(engine)
    engine.dispose()


def test_a_server_that_is_down_is_said_plainly(tmp_path):
    engine = engine_from_url(f"postgresql://u@/db?host={tmp_path}")
    with pytest.raises(DatabaseDown, match="does not answer"), transaction(engine):
        pass


def test_the_trigger_allows_exactly_the_documented_moves(desk):
    one = desk.submit().edit_id
    extra = "batch_id = 1, error = 'e', evidence = '{}', not_before = now(), superseded_by = NULL"
    with transaction(desk.engine) as conn:
        for before, after in itertools.permutations(EditState, 2):
            conn.execute(text("ALTER TABLE edits DISABLE TRIGGER edits_move_is_allowed"))
            conn.execute(text(f"UPDATE edits SET {extra}, state = '{before}' WHERE id = {one}"))
            conn.execute(text("ALTER TABLE edits ENABLE TRIGGER edits_move_is_allowed"))
            refusal = None
            try:
                with conn.begin_nested():
                    conn.execute(text(f"UPDATE edits SET state = '{after}' WHERE id = {one}"))
            except DBAPIError as error:
                refusal = error.orig.sqlstate
            assert refusal in {None, "MD001"}
            allowed = refusal is None
            assert allowed == (after in EDIT_MOVES[before]), (before, after)
        conn.rollback()


def test_doctor_names_what_is_broken(desk):
    one = desk.submit().edit_id
    two = desk.submit("Fact is", "T").edit_id
    version = desk.round()
    three = desk.submit("Fact 3 is", "T").edit_id
    desk.sql("ALTER TABLE edits DISABLE TRIGGER USER")
    desk.sql("ALTER TABLE versions DISABLE TRIGGER USER")
    desk.sql("UPDATE edits SET state = 'queued' WHERE id = :e", e=one)
    desk.sql("UPDATE versions SET gate = 'fail', edit_count = 7 WHERE id = :v", v=version.id)
    desk.sql("DELETE FROM edits WHERE id = :e", e=three)
    desk.sql("UPDATE versions SET meta = '{\"withdrawn\": {}}' WHERE id = :v", v=version.id)
    desk.sql("UPDATE models SET base_digest = 'sha256:elsewhere'")
    found = desk.do(doctor.check, deep=True, recompute=lambda _v, _m: "sha256:other")
    rules = {(one.rule, one.thing) for one in found}
    assert ("edit-in-two-places", f"edit {one}") in rules
    assert ("trail-replays", f"edit {one}") in rules
    assert ("edit-lost", f"edits {three}") in rules
    assert ("promoted-unproven", f"version 1 of model {desk.model_id}") in rules
    assert ("proof-withdrawn", f"version 1 of model {desk.model_id}") in rules
    assert ("footing", f"model {desk.model_id}") in rules
    assert ("version-count", f"version 1 of model {desk.model_id}") in rules
    assert ("version-digest", f"version 1 of model {desk.model_id}") in rules
    assert any(rule == "schema-rule" for rule, _ in rules)
    assert not any(thing == f"edit {two}" for _, thing in rules)
