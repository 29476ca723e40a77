"""Fixtures for tests with a worker in their own process: a tiny model and services on it."""

from __future__ import annotations

import pytest

from tests.chaos.harness import Service
from tests.workers import tiny
from workers.child import open_context
from workers.settings import Settings


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a tiny Llama."""
    return tiny.make_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_editor(tiny_model, tmp_path_factory):
    """Path of an untrained MEND editor for it, strong enough that edits take."""
    path = tmp_path_factory.mktemp("editor") / "editor.safetensors"
    tiny.make_editor(tiny_model, path, learning_rate=0.2)
    return path


@pytest.fixture
def inside():
    """Opens a worker's context in the test's own process: the pipeline without Celery."""

    opened = []

    def make(service, **options):
        config = Settings(
            database_url=service.url,
            broker_url="pgmq://",
            home=service.home,
            name="inside",
            **{"lease_seconds": 30.0, "chunk_edits": 4, **options},
        )
        context = open_context(config)
        lost = []
        context.on_lost = lost.append
        opened.append((context, lost))
        return context

    yield make
    for context, lost in opened:
        context.engine.dispose()
        assert not lost, lost


@pytest.fixture
def make_service(ledger_url, tiny_model, tiny_editor, tmp_path):
    """Makes services on a fresh database; ends all their processes afterwards."""

    made = []

    def make(**options):
        service = Service(
            url=ledger_url,
            home=tmp_path / "home",
            source=tiny_model,
            editor_path=tiny_editor,
            **options,
        )
        made.append(service)
        return service

    yield make
    for service in made:
        service.stop()
