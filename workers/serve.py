"""A small OpenAI-style server over any version by name: ``python -m workers.serve``.

For trying things out and for a playground; vLLM stays the answer for production. A model is named
``NAME`` (its production version) or ``NAME@WHICH`` with an alias, a number or a digest prefix. A
request keeps the version it began with; a promotion changes only what the next request gets, so
nothing is dropped. When the ledger is down, the versions last seen go on being served.

Decoding is greedy whatever temperature is asked for: the same answers the gate saw.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from ledger import db, footing
from ledger import models as model_rows
from ledger import versions as version_rows
from ledger.errors import DatabaseDown, LedgerError, NotFound
from ledger.events import Listener
from ledger.records import Model, SetMember, Version
from mend_core.errors import EditError, MendError
from mend_core.models import greedy
from workers.building import weights_of
from workers.runtime import WarmModel, WarmModels, Weights
from workers.settings import Settings, SettingsInvalid, from_environment

log = logging.getLogger("mend.serve")

TOKENS_DEFAULT = 64
TOKENS_LIMIT = 1024
PROMPTS_LIMIT = 64
TEXT_LIMIT = 100_000
LISTEN_SECONDS = 1.0
DEFAULT_PORT = 8787


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
        self, target: Target, prompts: Sequence[str], tokens: int
    ) -> list[tuple[str, int, int]]:
        """Answers with token counts: (text, prompt tokens, answer tokens)."""
        with self._lock, target.warm.active(target.weights) as base:
            answers = greedy(base, prompts, max_new_tokens=tokens)
        count = target.warm.base.tokenizer
        return [
            (answer, len(count(prompt)["input_ids"]), len(count(answer)["input_ids"]))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]

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


class _Request(BaseModel):
    """What both endpoints share; fields of OpenAI's API that do not apply here are ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1, max_length=300)
    max_tokens: int = Field(TOKENS_DEFAULT, ge=1, le=TOKENS_LIMIT)
    stop: str | list[str] | None = None
    stream: bool = False


Text = Annotated[str, Field(max_length=TEXT_LIMIT)]


class CompletionRequest(_Request):
    """Body of ``/v1/completions``."""

    prompt: Text | list[Text]


class Message(BaseModel):
    """One message of a conversation."""

    role: str = Field(max_length=50)
    content: Text


class ChatRequest(_Request):
    """Body of ``/v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=1000)


def _cut(text: str, stop: str | list[str] | None) -> tuple[str, str]:
    """A text up to the first stop string, and why it ended."""
    stops = [stop] if isinstance(stop, str) else list(stop or ())
    places = [at for s in stops if s and (at := text.find(s)) >= 0]
    return (text[: min(places)], "stop") if places else (text, "stop")


def _chat_prompt(warm: WarmModel, messages: Sequence[Message]) -> str:
    tokenizer = warm.base.tokenizer
    if getattr(tokenizer, "chat_template", None):
        plain = [m.model_dump() for m in messages]
        return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))
    return "\n".join(f"{m.role}: {m.content}" for m in messages) + "\nassistant:"


def _stream(head: dict[str, Any], pieces: Sequence[dict[str, Any]]) -> Iterator[str]:
    for piece in pieces:
        yield f"data: {json.dumps(head | {'choices': [piece]})}\n\n"
    yield "data: [DONE]\n\n"


def _usage(done: Sequence[tuple[str, int, int]]) -> dict[str, int]:
    asked, said = sum(d[1] for d in done), sum(d[2] for d in done)
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _head(kind: str, name: str, target: Target) -> dict[str, Any]:
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": name,
        "mend": {"version": target.version.number, "digest": target.version.digest},
    }


ANSWERS: tuple[tuple[type[Exception], int], ...] = (
    (NotFound, 404),
    (DatabaseDown, 503),
    (EditError, 400),
    (MendError, 500),
)
"""HTTP status of each kind of refusal; its sentence is the answer."""


def _refuse(status: int) -> Callable[[Any, Exception], JSONResponse]:
    def answer(_request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({"error": {"message": str(error), "type": "mend_error"}}, status)

    return answer


class Api:
    """The endpoints over a `Serving`; each runs in a thread of the server's pool."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def health(self) -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    def models(self) -> dict[str, Any]:
        """The registered models."""
        names = self._serving.names()
        data = [{"id": name, "object": "model", "owned_by": "mend"} for name in names]
        return {"object": "list", "data": data}

    def completions(self, request: CompletionRequest) -> dict[str, Any] | StreamingResponse:
        """Go on from a prompt."""
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        if not 1 <= len(prompts) <= PROMPTS_LIMIT:
            raise HTTPException(400, f"prompt: give 1 to {PROMPTS_LIMIT} texts")
        target = self._serving.target(request.model)
        done = self._serving.complete(target, prompts, request.max_tokens)
        choices = [
            {"index": i, "text": cut[0], "finish_reason": cut[1], "logprobs": None}
            for i, cut in enumerate(_cut(d[0], request.stop) for d in done)
        ]
        head = _head("cmpl", request.model, target) | {"object": "text_completion"}
        if request.stream:
            return StreamingResponse(_stream(head, choices), media_type="text/event-stream")
        return head | {"choices": choices, "usage": _usage(done)}

    def chat(self, request: ChatRequest) -> dict[str, Any] | StreamingResponse:
        """Answer a conversation."""
        target = self._serving.target(request.model)
        prompt = _chat_prompt(target.warm, request.messages)
        done = self._serving.complete(target, [prompt], request.max_tokens)
        text, reason = _cut(done[0][0].strip(), request.stop)
        message = {"role": "assistant", "content": text}
        head = _head("chatcmpl", request.model, target)
        if request.stream:
            piece = {"index": 0, "delta": message, "finish_reason": reason}
            head |= {"object": "chat.completion.chunk"}
            return StreamingResponse(_stream(head, [piece]), media_type="text/event-stream")
        choice = {"index": 0, "message": message, "finish_reason": reason}
        return head | {"object": "chat.completion", "choices": [choice], "usage": _usage(done)}


def make_api(serving: Serving) -> FastAPI:
    """The HTTP API over a `Serving`."""
    api, ends = FastAPI(title="Mend playground server"), Api(serving)
    for kind, status in ANSWERS:
        api.add_exception_handler(kind, _refuse(status))
    api.get("/health")(ends.health)
    api.get("/v1/models")(ends.models)
    api.post("/v1/completions", response_model=None)(ends.completions)
    api.post("/v1/chat/completions", response_model=None)(ends.chat)
    return api


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(prog="python -m workers.serve", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    parser.add_argument("--database-url")
    parser.add_argument("--home")
    parser.add_argument("--device")
    arguments = parser.parse_args(argv)
    for variable, value in (
        ("DATABASE_URL", arguments.database_url),
        ("MEND_HOME", arguments.home),
        ("MEND_DEVICE", arguments.device),
    ):
        if value:
            os.environ[variable] = value
    logging.basicConfig(level="INFO", stream=sys.stderr)
    try:
        serving = Serving(from_environment())
        serving.names()
    except (SettingsInvalid, LedgerError) as error:
        sys.stderr.write(f"mend serve: {error}\n")
        return 2
    threading.Thread(target=serving.follow, name="mend-follow", daemon=True).start()
    try:
        uvicorn.run(make_api(serving), host=arguments.host, port=arguments.port, log_level="info")
    finally:
        serving.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
