"""``ask``: what a version answers, free-running (greedy, natural stop)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ledger.records import Job
from mend_core.models import greedy
from workers.context import Context
from workers.jobs import JobInvalid
from workers.jobs.payload import field, model_of, weights_by_name

TOKENS_DEFAULT = 24
TOKENS_LIMIT = 1024


def ask(context: Context, job: Job) -> Mapping[str, Any]:
    """Answer prompts with one version.

    Payload: ``prompts`` (list of str) or ``prompt``; ``version`` (number, alias, "previous" or
    digest prefix; default "production"); ``max_new_tokens``.

    Returns:
        ``{"version", "number", "digest", "answers": [...], "answer": first}``.
    """
    prompts = job.payload.get("prompts")
    if prompts is None:
        prompts = [field(job, "prompt", str)]
    if not isinstance(prompts, list) or not all(isinstance(p, str) for p in prompts) or not prompts:
        raise JobInvalid("ask: field 'prompts' must be a list of at least one text")
    tokens = field(job, "max_new_tokens", int, TOKENS_DEFAULT)
    if not 1 <= tokens <= TOKENS_LIMIT:
        raise JobInvalid(f"ask: field 'max_new_tokens' must be 1 to {TOKENS_LIMIT}")
    model = model_of(context, job)
    which = job.payload.get("version", "production")
    warm, version, weights = weights_by_name(context, model, which)
    with warm.active(weights) as base:
        answers = greedy(base, prompts, max_new_tokens=tokens)
    return {
        "model": model.name,
        "version": version.number,
        "digest": version.digest,
        "answers": answers,
        "answer": answers[0],
    }
