"""Real worker processes for the queue's benchmark, and a model they can work on."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from ledger import models
from ledger.db import transaction
from mend_core.editors import load_editor
from mend_core.editors.base import FactorEditor
from mend_core.factors import version_digest
from mend_core.models import base_digest
from mend_core.probes import parse_policy

PATIENCE_SECONDS = 90.0
_POLL_SECONDS = 0.02

NOTHING_ASKED = """
name: bench
hard: {update_norm: null, own_prompt: false}
success: null
generality: null
parent: null
drift: null
"""


def register(engine: Engine, name: str, source: Path, editor_path: Path) -> int:
    """Register a model of which nothing is asked; its id."""
    editor, digest = load_editor(editor_path), base_digest(source)
    assert isinstance(editor, FactorEditor)
    policy = parse_policy(NOTHING_ASKED)
    composition = editor.composition.to_dict()
    with transaction(engine) as conn:
        row = models.register_editor(
            conn,
            digest=editor.digest,
            kind=editor.kind,
            base_digest=digest,
            path=str(editor_path),
            actor="bench",
        )
        return models.register(
            conn,
            name=name,
            source=str(source),
            base_digest=digest,
            editor_id=row.id,
            composition=composition,
            version_digest=version_digest(digest, editor.digest, composition, ()),
            policy=policy.to_dict(),
            policy_digest=policy.digest,
            actor="bench",
        ).id


@contextlib.contextmanager
def worker(url: str, home: Path, name: str) -> Iterator[None]:
    """A worker process of one torch thread on the embedded default's broker, in its own session."""
    log = home / f"{name}.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MEND_")}
    with log.open("wb") as out:
        process = subprocess.Popen(  # noqa: S603 - our own program
            [
                *(sys.executable, "-m", "workers", "worker", "--name", name),
                *("--database-url", url, "--broker-url", "pgmq://", "--home", str(home)),
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=environment | {"MEND_THREADS": "1", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
    try:
        yield
    except AssertionError:
        sys.stderr.write(log.read_text(errors="replace")[-4_000:])
        raise
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait(
    check: Callable[[], Any],
    what: str,
    *,
    every: float = _POLL_SECONDS,
    patience: float = PATIENCE_SECONDS,
) -> Any:
    """Wait until `check` gives something true; it is asked every so many seconds."""
    deadline = time.monotonic() + patience
    while not (found := check()):
        assert time.monotonic() < deadline, f"{what}: not within {patience:g} s"
        time.sleep(every)
    return found


def scalar(engine: Engine, statement: str, **params: object) -> Any:
    """One value."""
    with transaction(engine) as conn:
        return conn.execute(text(statement), params).scalar()
