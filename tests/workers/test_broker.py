from kombu import Connection

from workers import broker
from workers.app import app


def test_waits_for_messages_are_short_so_that_a_stop_is_soon_noticed(monkeypatch):
    seen = []
    monkeypatch.setattr(Connection, "drain_events", lambda _self, **options: seen.append(options))
    connection = app.connection_for_read("memory://")
    connection.drain_events(timeout=2.0)
    connection.drain_events(timeout=0.1)
    connection.drain_events()
    assert seen == [{"timeout": broker.STOP_SECONDS}, {"timeout": 0.1}, {}]
