"""The HTTP face of `mend serve`: OpenAI's completions and chat completions.

What of OpenAI's API would change an answer and is not there (``n``, ``logprobs``, penalties, tools
…) is refused by name; anything else unknown is ignored. Two deviations: temperature is 0 unless
asked for, the way the gate asks, and every reply says which version answered (``mend``).
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from ledger.errors import DatabaseDown, NotFound
from mend_core.errors import EditError, MendError, ModelUnsupported
from mend_core.models.sample import Piece, Sampling, prompt_tokens
from workers.runtime import WarmModel
from workers.serving import Answer, Serving, Target

TOKENS_DEFAULT = 64
TOKENS_LIMIT = 1024
PROMPTS_LIMIT = 64
STOPS_LIMIT = 4
TEXT_LIMIT = 100_000
SEED_LIMIT = 2**63 - 1

NOT_HERE: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "tools": ([],),
    "functions": ([],),
    "response_format": ({"type": "text"},),
}
"""Fields of OpenAI's API that are not served, with the values that ask for nothing."""

Text = Annotated[str, Field(max_length=TEXT_LIMIT)]


class StreamOptions(BaseModel):
    """What a stream holds beside text."""

    include_usage: bool = False


class AnyRequest(BaseModel):
    """What both endpoints share."""

    model_config = ConfigDict(extra="ignore")

    model: str = Field(min_length=1, max_length=300)
    max_tokens: int = Field(TOKENS_DEFAULT, ge=1, le=TOKENS_LIMIT)
    temperature: float = Field(0.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int | None = Field(None, ge=-SEED_LIMIT, le=SEED_LIMIT)
    stop: list[str] = Field(default_factory=list, max_length=STOPS_LIMIT)
    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)

    @model_validator(mode="before")
    @classmethod
    def _asks_for_what_is_here(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        for name, harmless in NOT_HERE.items():
            if body.get(name) is not None and body[name] not in harmless:
                raise ValueError(f"{name} is not served here; leave it out")
        # null means what leaving it out means; chat calls max_tokens by two names.
        plain = {name: value for name, value in body.items() if value is not None}
        if "max_completion_tokens" in plain:
            plain["max_tokens"] = plain.pop("max_completion_tokens")
        return plain

    @field_validator("stop", mode="before")
    @classmethod
    def _one_stop_is_a_list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _stops_say_something(cls, value: list[str]) -> list[str]:
        if not all(value):
            raise ValueError("a stop text is empty")
        return value

    @property
    def sampling(self) -> Sampling:
        """How tokens are to be chosen."""
        return Sampling(self.temperature, self.top_p, self.seed)


class CompletionRequest(AnyRequest):
    """Body of ``/v1/completions``."""

    prompt: Text | list[Text]

    @field_validator("prompt")
    @classmethod
    def _some_prompts(cls, value: str | list[str]) -> str | list[str]:
        if not isinstance(value, str) and not 1 <= len(value) <= PROMPTS_LIMIT:
            raise ValueError(f"give 1 to {PROMPTS_LIMIT} texts")
        return value


class Message(BaseModel):
    """One message of a conversation."""

    role: str = Field(max_length=50)
    content: Text


class ChatRequest(AnyRequest):
    """Body of ``/v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=1000)


def chat_prompt(warm: WarmModel, messages: Sequence[Message]) -> str:
    """A conversation as the model's own template writes it; plainly where it has none."""
    tokenizer = warm.base.tokenizer
    if getattr(tokenizer, "chat_template", None):
        plain = [m.model_dump() for m in messages]
        return str(tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True))
    return "\n".join(f"{m.role}: {m.content}" for m in messages) + "\nassistant:"


def _head(kind: str, form: str, name: str, target: Target) -> dict[str, Any]:
    return {
        "id": f"{kind}-{uuid.uuid4().hex}",
        "object": form,
        "created": int(time.time()),
        "model": name,
        "system_fingerprint": target.version.digest[:19],
        "mend": {"version": target.version.number, "digest": target.version.digest},
    }


def _usage(asked: int, said: int) -> dict[str, int]:
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def _complaint(message: str, status: int, **more: Any) -> JSONResponse:
    """An error the way OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"  # noqa: PLR2004 - HTTP's
    body = {"message": message, "type": kind, "param": None, "code": None} | more
    return JSONResponse({"error": body}, status)


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
        target = self._serving.target(request.model)
        head = _head("cmpl", "text_completion", request.model, target)

        def part(index: int, piece: Piece) -> dict[str, Any]:
            return {
                "index": index,
                "text": piece.text,
                "finish_reason": piece.reason,
                "logprobs": None,
            }

        if request.stream:
            return self._streamed(request, target, prompts, head, part)
        answers = self._answers(request, target, prompts)
        choices = [part(i, Piece(a.text, a.said, a.reason)) for i, a in enumerate(answers)]
        return head | {"choices": choices, "usage": _total(answers)}

    def chat(self, request: ChatRequest) -> dict[str, Any] | StreamingResponse:
        """Answer a conversation."""
        target = self._serving.target(request.model)
        prompt = chat_prompt(target.warm, request.messages)
        if request.stream:
            head = _head("chatcmpl", "chat.completion.chunk", request.model, target)
            first = {"index": 0, "delta": {"role": "assistant", "content": ""}}

            def part(index: int, piece: Piece) -> dict[str, Any]:
                delta = {"content": piece.text} if piece.text else {}
                return {"index": index, "delta": delta, "finish_reason": piece.reason}

            before = [_event(head | {"choices": [first | {"finish_reason": None}]})]
            return self._streamed(request, target, [prompt], head, part, before)
        head = _head("chatcmpl", "chat.completion", request.model, target)
        answers = self._answers(request, target, [prompt])
        message = {"role": "assistant", "content": answers[0].text.strip()}
        choice = {"index": 0, "message": message, "finish_reason": answers[0].reason}
        return head | {"choices": [choice], "usage": _total(answers)}

    def _answers(self, request: AnyRequest, target: Target, prompts: Sequence[str]) -> list[Answer]:
        return self._serving.complete(
            target,
            prompts,
            max_new_tokens=request.max_tokens,
            sampling=request.sampling,
            stops=request.stop,
        )

    def _streamed(  # noqa: PLR0917 - one request, taken apart
        self,
        request: AnyRequest,
        target: Target,
        prompts: Sequence[str],
        head: dict[str, Any],
        part: Callable[[int, Piece], dict[str, Any]],
        before: Iterable[str] = (),
    ) -> StreamingResponse:
        # What is wrong with a prompt is said as a status, so it is found before the first byte.
        asked = sum(prompt_tokens(target.warm.base, prompt) for prompt in prompts)
        if request.temperature > 0 and target.warm.base.kind != "causal":
            raise ModelUnsupported("this model answers greedily only; use temperature 0")

        def events() -> Iterator[str]:
            said = 0
            yield from before
            pieces = self._serving.pieces(
                target,
                prompts,
                max_new_tokens=request.max_tokens,
                sampling=request.sampling,
                stops=request.stop,
            )
            for index, piece in pieces:
                if piece.reason is not None:
                    said += piece.tokens
                yield _event(head | {"choices": [part(index, piece)]})
            if request.stream_options.include_usage:
                yield _event(head | {"choices": [], "usage": _usage(asked, said)})
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")


def _total(answers: Sequence[Answer]) -> dict[str, int]:
    return _usage(sum(a.asked for a in answers), sum(a.said for a in answers))


REFUSALS: tuple[tuple[type[Exception], int], ...] = (
    (NotFound, 404),
    (DatabaseDown, 503),
    (EditError, 400),
    (ModelUnsupported, 400),
    (MendError, 500),
)


def _refuse(status: int) -> Callable[[Request, Exception], JSONResponse]:
    def answer(_request: Request, error: Exception) -> JSONResponse:
        more = {"code": "model_not_found", "param": "model"} if isinstance(error, NotFound) else {}
        return _complaint(str(error), status, **more)

    return answer


def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """A body that breaks a rule: 400 with the field and the rule, the first of them."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part != "body"]
    says = str(first["msg"]).removeprefix("Value error, ")
    field = ".".join(where) or None
    return _complaint(f"{field}: {says}" if field else says, 400, param=field)


def _http(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _complaint(str(error.detail), error.status_code)


def make_api(serving: Serving) -> FastAPI:
    """The HTTP API over a `Serving`."""
    api, ends = FastAPI(title="Mend playground server"), Api(serving)
    for kind, status in REFUSALS:
        api.add_exception_handler(kind, _refuse(status))
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http)
    api.get("/health")(ends.health)
    api.get("/v1/models")(ends.models)
    api.post("/v1/completions", response_model=None)(ends.completions)
    api.post("/v1/chat/completions", response_model=None)(ends.chat)
    return api
