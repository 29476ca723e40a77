"""Free text piece by piece: greedy or sampled, ended by the model, a stop text, or the room.

At temperature 0 the tokens are those of `greedy`. Sampling follows the usual order: logits by
temperature, then the smallest set of tokens whose probability reaches `top_p`, then one drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mend_core.errors import ModelUnsupported
from mend_core.models.base import Base
from mend_core.models.encode import encode_prompts
from mend_core.models.generate import greedy, stop_tokens
from mend_core.progress import Progress, unheard

Reason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token; above, logits are divided by it.
        top_p: Share of probability drawn from, likeliest first, in (0, 1].
        seed: Makes draws repeatable on one machine; None draws anew.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step added.

    Attributes:
        text: New text; may be empty while half a character or half a stop text is held back.
        tokens: Tokens of the answer so far.
        reason: Why it ended, on the last piece only.
    """

    text: str
    tokens: int
    reason: Reason | None = None


def prompt_tokens(base: Base, prompt: str) -> int:
    """Tokens a prompt takes.

    Raises:
        PromptEmpty: It has none.
        PromptTooLong: It does not fit the context.
    """
    return int(encode_prompts(base, [prompt]).attention_mask.sum())


def stream(
    base: Base,
    prompt: str,
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    stops: Sequence[str] = (),
) -> Iterator[Piece]:
    """Answers a prompt piece by piece; the last piece, and only that, has a reason.

    Args:
        base: The model with whatever weights are in place now; they must stay until the end.
        prompt: What to go on from.
        max_new_tokens: Most tokens of the answer.
        sampling: How tokens are chosen.
        stops: Texts that end the answer and are left out of it.

    Raises:
        PromptEmpty: The prompt has no tokens.
        PromptTooLong: It does not fit the context.
        ModelUnsupported: Sampling from a model that is no causal language model.
    """
    if base.kind != "causal":
        if sampling.temperature > 0:
            raise ModelUnsupported(f"a {base.kind} model answers greedily only; use temperature 0")
        answer = greedy(base, [prompt], max_new_tokens=max_new_tokens)[0]
        cut, _ = _cut(answer, stops)
        yield Piece(cut, len(base.tokenizer(answer)["input_ids"]), "stop")
        return
    said = ""
    tokens: list[int] = []
    reason: Reason | None = None
    for token in _tokens(base, prompt, max_new_tokens, sampling):
        if token is None:
            reason = "stop"
            break
        tokens.append(token)
        whole = base.tokenizer.decode(tokens, skip_special_tokens=True)
        cut, stopped = _cut(whole, stops)
        if stopped:
            yield Piece(cut[len(said) :], len(tokens), "stop")
            return
        ready = _ready(whole, stops)
        if len(ready) > len(said):
            yield Piece(ready[len(said) :], len(tokens))
            said = ready
    whole = base.tokenizer.decode(tokens, skip_special_tokens=True)
    yield Piece(whole[len(said) :], len(tokens), reason or "length")


@torch.no_grad()
def sampled(
    base: Base,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    seed: int,
    batch_size: int = 40,
    progress: Progress = unheard,
) -> list[str]:
    """How the model goes on from each prompt when it draws from all it might say (temperature 1).

    Args:
        base: A causal model.
        prompts: In any number.
        max_new_tokens: Most tokens of each answer.
        seed: The same seed draws the same on one machine; the global generator is left alone.
        batch_size: Prompts answered together.
        progress: Called with a short text and a fraction in [0, 1].

    Raises:
        ModelUnsupported: The model is no causal language model.
        PromptEmpty: A prompt has no tokens.
        PromptTooLong: A prompt does not fit the context.
    """
    if base.kind != "causal":
        raise ModelUnsupported(f"a {base.kind} model cannot be sampled from")
    said: list[str] = []
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            progress("drawing text from the base", start / len(prompts))
            encoded = encode_prompts(base, prompts[start : start + batch_size])
            # Padded left, so that every row's next token is in the same column.
            lengths = encoded.attention_mask.sum(1, keepdim=True)
            width = encoded.input_ids.shape[1]
            turn = (torch.arange(width, device=base.device)[None] + lengths) % width
            found = base.model.generate(
                input_ids=encoded.input_ids.gather(1, turn),
                attention_mask=encoded.attention_mask.gather(1, turn),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=min(max_new_tokens, base.max_length - width),
                pad_token_id=base.tokenizer.pad_token_id,
            )
            said += base.tokenizer.batch_decode(found[:, width:], skip_special_tokens=True)
    return said


def _cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The text before the first stop text, and whether there is one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


def _ready(text: str, stops: Sequence[str]) -> str:
    """What of a text may be shown: no half characters, nothing that may begin a stop text."""
    held = len(text) - len(text.rstrip("\ufffd"))
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), held, -1):
            if text.endswith(stop[:length]):
                held = length
                break
    return text[: len(text) - held]


def _tokens(base: Base, prompt: str, limit: int, sampling: Sampling) -> Iterator[int | None]:
    """Tokens one by one; None where the model itself stops, an end where there is no more room."""
    ids = encode_prompts(base, [prompt]).input_ids
    ends = stop_tokens(base)
    # On the CPU, so that a seed draws the same whatever device the model is on.
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    room = min(limit, base.max_length - ids.shape[1])
    cache: Any = None
    for _ in range(room):
        with torch.no_grad():
            out = base.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
        token = choose(out.logits[0, -1], sampling, generator)
        if token in ends:
            yield None
            return
        yield token
        ids = torch.tensor([[token]], device=base.device)


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token of logits (vocabulary,)."""
    if sampling.temperature <= 0:
        return int(logits.argmax())
    shares = (logits.float().cpu() / sampling.temperature).softmax(-1)
    ordered, order = shares.sort(descending=True, stable=True)
    # A token stays while those before it do not reach top_p yet; so the first always stays.
    before = ordered.cumsum(0) - ordered
    ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
    ordered[0] = ordered[0].clamp_min(1e-30)
    return int(order[torch.multinomial(ordered, 1, generator=generator)])
