import logging

import kombu
from kombu import Connection

from ledger import migrate
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


def test_a_wake_up_that_cannot_be_deleted_does_not_make_a_worker_deaf(ledger_url, monkeypatch):
    """A worker of one child prefetches one message: its place must come free again."""
    migrate.upgrade(ledger_url)
    broker.prepare("pgmq://", ledger_url)
    settings = broker.celery_settings("pgmq://", ledger_url)
    with broker.PromptConnection(
        settings["broker_url"], transport_options=settings["broker_transport_options"]
    ) as connection:
        channel = connection.channel()
        queue = kombu.Queue("deaf", channel=channel)
        got = []

        def take(_body, message):
            got.append(_body)
            message.ack_log_error(logging.getLogger("test"), (ConnectionError,))

        def away(*_args):
            raise ConnectionError("the database is away")

        with (
            connection.Consumer([queue], callbacks=[take], prefetch_count=1) as consumer,
            connection.Producer() as producer,
        ):
            consumer.qos(prefetch_count=1)
            with monkeypatch.context() as patch:
                patch.setattr(consumer.channel.pgmq, "delete", away)
                producer.publish("first", routing_key="deaf", declare=[queue])
                connection.drain_events(timeout=5)
            producer.publish("second", routing_key="deaf")
            connection.drain_events(timeout=5)
        assert got == ["first", "second"]
