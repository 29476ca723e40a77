"""The Celery application: two tasks without arguments, and the processes around them.

Celery carries wake-ups only; every fact is a row of the ledger. Losing all messages costs at most
one sweep interval, and a duplicate message costs one query (DESIGN 2.1; OPS research B.11).

Process layout of one worker: a parent (consumes messages, listens to the ledger, loads no model)
and one spawned child (holds the warm models, does the work). A hung kernel or an out-of-memory kill
takes the child only; Celery starts another.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery, signals

from ledger.errors import DatabaseDown
from workers import broker, settings

log = logging.getLogger("mend.worker")

CHILD_START_SECONDS = 600.0
"""Time a child may take to start: importing torch on a busy machine is slower than Celery's 4 s."""

EVERY_MESSAGE = ("celery.worker.strategy", "celery.app.trace")
"""Loggers that say "received" and "succeeded" of each sweep, four times a second."""

_UNCONFIGURED: dict[str, Any] = {"broker_url": "memory://"}


def _only_when_debugging(record: logging.LogRecord) -> bool:
    """Whether to log a record: what is only informative, where everything is wanted."""
    return record.levelno > logging.INFO or logging.getLogger().isEnabledFor(logging.DEBUG)


def configuration(config: settings.Settings) -> dict[str, Any]:
    """Every Celery setting of the project, with its reason."""
    return {
        **broker.celery_settings(config.broker_url, config.database_url),
        "task_default_queue": broker.QUEUE,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,  # state lives in the ledger
        "task_acks_late": False,  # no broker may hold a message for the length of an edit
        "worker_prefetch_multiplier": 1,
        "worker_concurrency": 1,  # one child owns the device
        "worker_pool": "workers.pool:TaskPool",
        "worker_pool_start_method": "spawn",  # CUDA and psycopg do not survive a fork
        "worker_proc_alive_timeout": CHILD_START_SECONDS,
        "worker_enable_remote_control": False,  # pgmq would keep one table per worker ever started
        "worker_send_task_events": False,
        "worker_hijack_root_logger": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,  # a lease protects the work
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "beat_scheduler": "celery.beat:Scheduler",  # nothing to persist, and no pickle on disk
        "beat_max_loop_interval": config.sweep_seconds,
        "beat_schedule": {
            "sweep": {
                "task": "mend.sweep",
                "schedule": config.sweep_seconds,
            }
        },
        "timezone": "UTC",
    }


def make_app() -> Celery:
    """The application, configured from the environment where there is one."""
    application = Celery("mend", set_as_current=True, amqp="workers.broker:PromptAmqp")
    for name in EVERY_MESSAGE:
        logging.getLogger(name).addFilter(_only_when_debugging)
    application.steps["consumer"].add("workers.unheard:Unheard")
    try:
        config = settings.from_environment()
    except DatabaseDown:
        # Importable where no service runs (documentation, linters); unable to run there.
        application.conf.update(_UNCONFIGURED)
    else:
        application.conf.update(configuration(config))
    return application


app = make_app()


@app.task(name="mend.wake", ignore_result=True)  # type: ignore[untyped-decorator]  # celery is untyped
def wake() -> None:
    """Look at the table and do what is due."""
    from workers import child  # noqa: PLC0415 - torch belongs to the child only

    child.drain()


@app.task(name="mend.sweep", ignore_result=True)  # type: ignore[untyped-decorator]  # celery is untyped
def sweep() -> None:
    """Recover what the dead left behind, then do what is due."""
    from workers import child  # noqa: PLC0415 - torch belongs to the child only

    child.drain(sweep_first=True)


@signals.worker_ready.connect  # type: ignore[untyped-decorator]  # celery is untyped
def _parent_ready(**_: Any) -> None:
    from workers import wake as waking  # noqa: PLC0415 - only the worker parent listens

    waking.start_listening(app, settings.from_environment())


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator]  # celery is untyped
def _parent_stopping(**_: Any) -> None:
    from workers import wake as waking  # noqa: PLC0415 - only the worker parent listens

    waking.stop_listening()
    waking.tell_children_to_stop()


@signals.worker_process_init.connect  # type: ignore[untyped-decorator]  # celery is untyped
def _child_start(**_: Any) -> None:
    from workers import child  # noqa: PLC0415 - torch belongs to the child only

    child.start(settings.from_environment())


@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator]  # celery is untyped
def _child_stop(**_: Any) -> None:
    from workers import child  # noqa: PLC0415 - torch belongs to the child only

    child.stop()
