"""What a job that made a version does last: have it judged, and say what came of it."""

from __future__ import annotations

from typing import Any

from ledger.records import Model, Version
from mend_core.probes import Outcome
from workers import hooks
from workers.context import Context
from workers.pipeline import conclude, judge_of
from workers.proving import Verdict


def judged(
    context: Context, model: Model, version: Version, *, promote: bool | None = None
) -> tuple[Verdict, dict[str, Any]]:
    """Probe a committed version, record its gate, and promote it where that follows.

    Args:
        context: The working process.
        model: The version's model.
        version: Committed and not judged yet.
        promote: Whether a version that passes is promoted; None: as the model says.

    Returns:
        The verdict, and the part of a job's result that tells it.
    """
    judge, edits, members = judge_of(context, model, version)
    verdict = judge.judge_version(version, members, edits)
    verdict.suite.save(context.config.suites)
    promoted = context.transact(
        lambda conn: conclude(
            conn,
            context,
            model=model,
            version=version,
            verdict=verdict,
            follow=lambda _: None,
            promote=promote,
        )
    )
    if promoted:
        hooks.submit_due(context)
    return verdict, {
        "number": version.number,
        "digest": version.digest,
        "gate": verdict.decision.outcome.value,
        "passed": verdict.decision.outcome is Outcome.PASS,
        "promoted": promoted,
        "checks": [check.to_dict() for check in verdict.decision.checks],
    }
