"""``policy``: what a model's gate demands and how many items that takes; or another policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ledger import models as model_rows
from ledger.records import Job
from mend_core.probes import load_policy, parse_policy
from workers.context import Context
from workers.jobs import JobInvalid
from workers.jobs.payload import field, model_of
from workers.proving import policy_of


def policy(context: Context, job: Job) -> Mapping[str, Any]:
    """Show a model's policy, or give it another.

    Payload: nothing to show it; ``policy`` (shipped name) or ``policy_text`` (YAML), and ``reason``
    to change it.

    Returns:
        ``{"model", "policy", "policy_digest", "needs", "changed", "was"}``; ``was`` is the digest
        of the policy before.

    Raises:
        PolicyInvalid: Not a policy, or one that no suite could satisfy; says which n it would take.
    """
    model = model_of(context, job)
    text, name = job.payload.get("policy_text"), job.payload.get("policy")
    shown = text is None and name is None
    if shown:
        chosen = policy_of(model)
    elif text is not None:
        chosen = parse_policy(field(job, "policy_text", str))
    else:
        chosen = load_policy(field(job, "policy", str))
    changed = not shown and chosen.digest != model.policy_digest
    if changed:
        reason = field(job, "reason", str)
        if not reason.strip():
            raise JobInvalid("policy: field 'reason' is empty; another policy needs a reason")
        context.transact(
            lambda conn: model_rows.configure(
                conn,
                model.id,
                actor=job.requested_by,
                reason=reason,
                policy=chosen.to_dict(),
                policy_digest=chosen.digest,
            )
        )
    return {
        "model": model.name,
        "policy": chosen.to_dict(),
        "policy_digest": chosen.digest,
        "needs": chosen.needs(),
        "changed": changed,
        "was": model.policy_digest,
    }
