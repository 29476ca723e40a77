"""The exporter against a real ledger: what it serves, and what it says when Postgres is gone."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ledger import edits, models
from ledger.db import engine_from_url, transaction
from ledger.requests import parse_record
from monitoring.exporter import main, make_server
from monitoring.metrics import CATALOGUE


@contextmanager
def serving(engine):
    server = make_server(engine, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def scrape(url):
    with urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families, name, **labels):
    [found] = [
        sample.value
        for sample in families[name].samples
        if all(sample.labels.get(k) == v for k, v in labels.items())
    ]
    return found


@pytest.fixture
def populated(engine):
    with transaction(engine) as connection:
        editor = models.register_editor(
            connection,
            digest="sha256:e",
            kind="mend",
            base_digest="sha256:b",
            path="/x",
            meta={},
            actor="t",
        )
        model = models.register(
            connection,
            name='odd "name"\n',
            source="tiny",
            base_digest="sha256:b",
            editor_id=editor.id,
            composition={},
            version_digest="sha256:v0",
            policy={},
            policy_digest="sha256:p",
            actor="t",
        )
        for number in range(3):
            request = parse_record({"prompt": f"p{number} is", "target": "t", "source": "test"})
            edits.submit(connection, model.id, request, actor="t")
    return engine, model.name


def test_every_metric_of_the_catalogue_is_served(populated):
    engine, name = populated
    with serving(engine) as url:
        families = scrape(url)
    expected = {m.series if m.kind == "info" else m.name for m in CATALOGUE}
    assert expected <= set(families)
    assert value(families, "mend_up") == 1
    assert value(families, "mend_edits", model=name, state="queued") == 3
    assert value(families, "mend_edits_accepted", model=name) == 3
    assert value(families, "mend_alias_version", model=name, alias="production") == 0
    assert value(families, "mend_alias_info", model=name, alias="candidate", version="0") == 1
    assert value(families, "mend_versions", model=name, gate="pass") == 1
    assert value(families, "mend_queue_oldest_age_seconds", model=name) >= 0
    assert value(families, "mend_audit_events") >= 3


def test_openmetrics_is_served_to_those_who_ask(engine):
    with serving(engine) as url:
        asked = Request(f"{url}/metrics", headers={"Accept": "application/openmetrics-text"})
        with urlopen(asked, timeout=10) as answer:
            assert "openmetrics" in answer.headers["Content-Type"]
            assert answer.read().endswith(b"# EOF\n")


def test_health_and_unknown_paths(engine):
    with serving(engine) as url:
        with urlopen(f"{url}/healthz", timeout=10) as answer:
            assert answer.status == 200
        with pytest.raises(HTTPError) as refused:
            urlopen(f"{url}/nothing", timeout=10)
        assert refused.value.code == 404
        refused.value.close()


def test_a_ledger_that_is_gone_shows_as_down_and_not_as_an_error():
    gone = engine_from_url("postgresql://nobody@127.0.0.1:1/none")
    with serving(gone) as url:
        families = scrape(url)
        assert value(families, "mend_up") == 0
        assert "mend_edits" not in families
        with pytest.raises(HTTPError) as refused:
            urlopen(f"{url}/healthz", timeout=10)
        assert refused.value.code == 503
        refused.value.close()
    gone.dispose()


def test_a_port_in_use_and_no_database_are_said_plainly(ledger_url, capsys, monkeypatch, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["--database-url", ledger_url, "--port", port]) == 2
    assert "cannot listen" in capsys.readouterr().err
    monkeypatch.delenv("DATABASE_URL", raising=False)
    monkeypatch.setenv("MEND_HOME", str(tmp_path))
    assert main(["--port", "0"]) == 2
    assert "mend up" in capsys.readouterr().err
