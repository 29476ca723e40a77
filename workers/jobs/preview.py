"""``preview``: what a model answers today to edits that nobody has submitted yet.

It may interrupt a batch (`workers.quick`), so it asks few prompts and few tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ledger.records import Job
from ledger.requests import EditRequest, requests_from
from mend_core.datasets.edit import Edit, PromptAnswer
from mend_core.models import encode_edits, greedy
from mend_core.models.base import Base
from mend_core.probes.asking import unaskable
from mend_core.probes.verdicts import answers
from workers.context import Context
from workers.jobs import JobInvalid
from workers.jobs.payload import field, model_of, weights_by_name

EDITS_LIMIT = 500
"""Edits of one preview: each is encoded."""

PROMPTS_LIMIT = 64
"""Prompts that are asked; every edit's own goes before paraphrases and locality."""

TOKENS_LEAST = 12
TOKENS_LIMIT = 32
"""Longest answer; a longer target is not compared."""


def preview(context: Context, job: Job) -> Mapping[str, Any]:
    """Ask production about edits, and see what only the model's tokenizer knows of them.

    Payload: ``edits`` (list of requests: ``prompt``, ``target``, ``subject``, ``paraphrases``,
    ``locality``).

    Returns:
        ``{"version", "edits": [...]}``, in order; of each edit ``problems``; ``asked``, whether its
        prompt was; then ``answer``, ``knows``, ``subject``; ``paraphrases`` and ``locality`` with
        an answer or None each.
    """
    requests = requests_from(field(job, "edits", list))
    if not 1 <= len(requests) <= EDITS_LIMIT:
        raise JobInvalid(f"preview: field 'edits' must hold 1 to {EDITS_LIMIT} edits")
    edits = [_edit(number, request) for number, request in enumerate(requests, start=1)]
    warm, version, weights = weights_by_name(context, model_of(context, job), "production")
    problems = _problems(warm.base, edits)
    prompts = _chosen([edit for edit in edits if edit.id not in problems])
    subjects = {
        edit.id: warm.editor.subject_of(warm.base, edit)
        for edit in edits
        if edit.prompt in prompts and edit.id not in problems
    }
    lengths = _target_lengths(warm.base, [edit for edit in edits if edit.id in subjects])
    tokens = min(TOKENS_LIMIT, max([TOKENS_LEAST, *(n + 2 for n in lengths.values())]))
    with warm.active(weights) as base:
        said = dict(zip(prompts, greedy(base, prompts, max_new_tokens=tokens), strict=True))
    return {
        "version": version.number,
        "edits": [
            {
                "problems": problems.get(edit.id, []),
                "asked": edit.id in subjects,
                "answer": said.get(edit.prompt),
                "knows": answers(said[edit.prompt], edit.target)
                if edit.id in subjects and lengths[edit.id] <= tokens
                else None,
                "subject": subjects.get(edit.id),
                "paraphrases": [said.get(prompt) for prompt in edit.paraphrases],
                "locality": [said.get(one.prompt) for one in edit.locality],
            }
            for edit in edits
        ],
    }


def _edit(number: int, request: EditRequest) -> Edit:
    return Edit(
        id=str(number),
        prompt=request.prompt,
        target=request.target,
        subject=request.subject,
        paraphrases=request.paraphrases,
        locality=tuple(PromptAnswer(one.prompt, one.answer) for one in request.locality),
    )


def _problems(base: Base, edits: Sequence[Edit]) -> dict[str, list[str]]:
    """What keeps edits from being made or judged, by id; edits without a problem are left out."""
    # An error names its edit by an id, which here is only a place in the payload.
    found = {
        edits[n].id: [str(error).removeprefix(f"edit {error.edit_id}: ")]
        for n, error in encode_edits(base, edits)[2].items()
    }
    rest = [edit for edit in edits if edit.id not in found]
    mute = unaskable(base, rest) if rest else {}
    return found | {
        i: [f"its own probes cannot be asked: {why.removeprefix('edit ')}"]
        for i, why in mute.items()
    }


def _chosen(edits: Sequence[Edit]) -> list[str]:
    """The prompts to ask, each once: own prompts, then paraphrases and locality edit by edit."""
    own = [edit.prompt for edit in edits]
    more = [
        prompt
        for edit in edits
        for prompt in (*edit.paraphrases, *(one.prompt for one in edit.locality))
    ]
    return list(dict.fromkeys(own + more))[:PROMPTS_LIMIT]


def _target_lengths(base: Base, edits: Sequence[Edit]) -> dict[str, int]:
    """Tokens of each edit's target."""
    return {
        e.id: len(base.tokenizer(e.target, add_special_tokens=False)["input_ids"]) for e in edits
    }
