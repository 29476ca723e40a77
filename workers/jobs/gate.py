"""``gate``: judge a version again, e.g. after the suite grew where it was inconclusive."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ledger import gates as gate_rows
from ledger.records import Job
from mend_core.probes import Policy
from workers.context import Context
from workers.jobs import JobInvalid
from workers.jobs.payload import find_version, model_of
from workers.pipeline import judge_of


def gate(context: Context, job: Job) -> Mapping[str, Any]:
    """Judge a version with the model's present policy and suite.

    Payload: ``version`` (default "candidate"), ``record`` (default False: only tell).

    Returns:
        The decision, with ``number`` and ``recorded``.
    """
    model = model_of(context, job)
    version, _ = find_version(context, model, job.payload.get("version", "candidate"))
    if version.number == 0:
        raise JobInvalid("gate: version 0 is the base itself and passes by definition")
    judge, edits, members = judge_of(context, model, version)
    verdict = judge.judge_version(version, members, edits)
    decision = verdict.decision
    kept = bool(job.payload.get("record", False))
    if kept:
        verdict.suite.save(context.config.suites)
        context.transact(
            lambda conn: (
                gate_rows.record_probes(conn, version.id, verdict.suite.digest, verdict.rows()),
                gate_rows.record(
                    conn,
                    version.id,
                    outcome=decision.outcome.value,
                    policy_digest=decision.policy_digest,
                    suite_digest=verdict.suite.digest,
                    checks=[c.to_dict() for c in decision.checks],
                    scores=verdict.kept(),
                    actor=f"{job.requested_by} through {context.actor}",
                ),
            )
        )
    needs = Policy.model_validate(dict(model.policy)).needs()
    return decision.to_dict() | {
        "number": version.number,
        "recorded": kept,
        "scores": verdict.scores.to_dict(),
        "needs": needs,
        "told": verdict.told(),
    }
