"""Versions kept warm by name, for answering with any of them while aliases move.

A request keeps the version it began with; a promotion changes only what the next request gets, so
nothing is dropped. When the ledger is down, the versions last seen go on being served.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ledger import db, footing
from ledger import models as model_rows
from ledger import versions as version_rows
from ledger.errors import DatabaseDown, LedgerError
from ledger.events import Listener
from ledger.records import Model, SetMember, Version
from mend_core.errors import MendError
from mend_core.models.sample import Piece, Reason, Sampling, prompt_tokens, stream
from workers.building import weights_of
from workers.runtime import WarmModel, WarmModels, Weights
from workers.settings import Settings

log = logging.getLogger("mend.serve")

LISTEN_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer.

    Attributes:
        text: What was said, stop text left out.
        reason: Why it ended.
        asked: Tokens of the prompt.
        said: Tokens of the answer.
    """

    text: str
    reason: Reason
    asked: int
    said: int


class Target:
    """A version ready to answer.

    Attributes:
        warm: Its loaded model.
        weights: Its exact edited weights.
    """

    def __init__(self, model: Model, version: Version, warm: WarmModel, weights: Weights) -> None:
        self.model = model
        self.version = version
        self.warm = warm
        self.weights = weights


class Serving:
    """Finds versions by name, keeps them warm, and answers one request of a model at a time."""

    def __init__(self, config: Settings) -> None:
        self.config = config
        self.engine = db.engine_from_url(config.database_url, application_name="mend-serve")
        self._models = WarmModels(config)
        self._targets: dict[str, Target] = {}
        # One lock: torch already uses the cores, and weights in place are one model's state.
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def names(self) -> list[str]:
        """Names of the registered models.

        Raises:
            DatabaseDown: The ledger does not answer.
        """
        with db.transaction(self.engine) as conn:
            return [model.name for model in model_rows.list_all(conn)]

    def _look(self, name: str) -> tuple[Model, Version, list[SetMember]]:
        which, _, version_name = name.partition("@")
        with db.transaction(self.engine) as conn:
            model = model_rows.get(conn, which)
            version = version_rows.find(conn, model.id, version_name or "production")
            model = footing.of(conn, version)
            return model, version, list(version_rows.live_set(conn, version.id))

    def target(self, name: str) -> Target:
        """The version a name means now; the one it meant last where the ledger is down.

        Raises:
            NotFound: No such model or version.
            DatabaseDown: The ledger is down and the name was never served.
        """
        try:
            model, version, members = self._look(name)
        except DatabaseDown:
            known = self._targets.get(name)
            if known is None:
                raise
            return known
        known = self._targets.get(name)
        if known is not None and known.version.id == version.id:
            return known
        with self._lock:
            warm = self._models.get(model)
            found = Target(model, version, warm, weights_of(warm, version, members))
        self._targets[name] = found
        log.info("%s is now version %d", name, version.number)
        return found

    def complete(
        self,
        target: Target,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        stops: Sequence[str] = (),
    ) -> list[Answer]:
        """Whole answers, in order.

        Raises:
            EditError: A prompt is empty or too long.
            ModelUnsupported: Sampling from a model that only answers greedily.
        """
        with self._lock, target.warm.active(target.weights) as base:
            asked = [prompt_tokens(base, prompt) for prompt in prompts]
            answers = []
            for prompt, count in zip(prompts, asked, strict=True):
                pieces = list(
                    stream(
                        base,
                        prompt,
                        max_new_tokens=max_new_tokens,
                        sampling=sampling,
                        stops=stops,
                    )
                )
                last = pieces[-1]
                text = "".join(piece.text for piece in pieces)
                answers.append(Answer(text, last.reason or "stop", count, last.tokens))
        return answers

    def pieces(
        self,
        target: Target,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        sampling: Sampling,
        stops: Sequence[str] = (),
    ) -> Iterator[tuple[int, Piece]]:
        """Answers piece by piece, with the prompt's number; decoded in a thread of their own.

        A reader that is slow or gone holds up nobody: the weights are in place only while the
        thread decodes, which ends by itself, or as soon as the reader closes this.
        """
        found: queue.SimpleQueue[tuple[int, Piece] | Exception | None] = queue.SimpleQueue()
        gone = threading.Event()

        def decode() -> None:
            try:
                with self._lock, target.warm.active(target.weights) as base:
                    for number, prompt in enumerate(prompts):
                        for piece in stream(
                            base,
                            prompt,
                            max_new_tokens=max_new_tokens,
                            sampling=sampling,
                            stops=stops,
                        ):
                            if gone.is_set():
                                return
                            found.put((number, piece))
                found.put(None)
            except Exception as error:  # noqa: BLE001 - raised again where it is read
                found.put(error)

        threading.Thread(target=decode, name="mend-decode", daemon=True).start()
        try:
            while (piece := found.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            gone.set()

    def follow(self) -> None:
        """Make what a promotion brings warm before the next request asks for it."""
        while not self._stopping.is_set():
            try:
                with Listener(self.config.database_url) as listener:
                    while not self._stopping.is_set():
                        if listener.wait(LISTEN_SECONDS):
                            for name in list(self._targets):
                                self.target(name)
            except (LedgerError, MendError) as error:
                log.warning("not following the ledger (%s); trying again", error)
                self._stopping.wait(LISTEN_SECONDS)

    def stop(self) -> None:
        """Stop following and close connections."""
        self._stopping.set()
        self.engine.dispose()
