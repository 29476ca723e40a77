"""Kombu's pgmq transport with one repair: a message that cannot be deleted frees its place.

Celery acknowledges a wake-up as soon as it has it. Where the database is just then away, kombu logs
that the deletion failed and keeps counting the message as being worked on. A worker of one child
prefetches one message, so it would never fetch another: alive, connected and deaf for ever. Here
the place is freed; the message shows up again after its visibility timeout, and a wake-up that
comes twice costs one query.
"""

from __future__ import annotations

from kombu.transport import pgmq


class Channel(pgmq.Channel):  # type: ignore[misc]  # kombu is untyped
    """See the module."""

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Acknowledge a message; its place is free even if the database does not answer."""
        try:
            super().basic_ack(delivery_tag, multiple)
        except Exception:
            self.qos.ack(delivery_tag)
            raise


class Transport(pgmq.Transport):  # type: ignore[misc]  # kombu is untyped
    """See the module."""

    Channel = Channel
