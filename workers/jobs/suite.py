"""``suite``: whether a model can be asked probe items, before they are kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ledger.records import Job
from mend_core.probes import ProbeItem, ProbeSuite
from mend_core.probes.asking import check_suite
from mend_core.probes.suites import refuse_reserved
from workers.context import Context
from workers.jobs.payload import field, model_of


def suite(context: Context, job: Job) -> Mapping[str, Any]:
    """Try items on a model's tokens; nothing is asked and nothing is kept.

    Payload: ``items`` (probe items).

    Raises:
        SuiteInvalid: Names the item and what is wrong with it.
    """
    items = tuple(ProbeItem.from_dict(record) for record in field(job, "items", list))
    refuse_reserved(items)
    model = model_of(context, job)
    tried = ProbeSuite(items)
    check_suite(context.models.get(model).base, tried)
    return {"model": model.name, "items": len(items), "digest": tried.digest}
