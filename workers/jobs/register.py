"""``register`` and ``editor``: what the ledger must know of a base and an editor, read from files.

Digests are computed where the weights are, by the science; the front door never loads a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from ledger import models as model_rows
from ledger.errors import AlreadyExists
from ledger.records import Job
from mend_core.factors import version_digest
from mend_core.models import load_base
from mend_core.probes import ProbeItem, ProbeSuite, load_policy, parse_policy
from mend_core.probes.asking import check_suite
from mend_core.probes.suites import refuse_reserved
from workers import editors, standing
from workers.context import Context
from workers.jobs.payload import field
from workers.runtime import answers_of


def editor(context: Context, job: Job) -> Mapping[str, Any]:
    """Register an editor file.

    Payload: ``path`` (absolute, or "shipped:NAME"), ``meta``.
    """
    kept = editors.keep_file(context.config, field(job, "path", str))
    loaded = kept.editor
    row = context.transact(
        lambda conn: model_rows.register_editor(
            conn,
            digest=loaded.digest,
            kind=loaded.kind,
            base_digest=loaded.base_digest,
            path=str(kept.path),
            meta=job.payload.get("meta") or kept.card,
            actor=job.requested_by,
        )
    )
    return {
        "id": row.id,
        "digest": row.digest,
        "kind": row.kind,
        "base_digest": row.base_digest,
        "path": row.path,
        "matrices": list(loaded.matrices),
    }


def register(context: Context, job: Job) -> Mapping[str, Any]:
    """Register a model: base, editor, policy and probe items; makes version 0.

    Payload: ``name``, ``source`` ("smollm2", a folder or a hub id), ``editor`` (default: the
    shipped one made for this base; see `workers.editors.keep_for`), ``policy`` (shipped name) or
    ``policy_text`` (YAML), ``suite`` (probe items), ``settings``, ``approval``, ``auto_promote``,
    ``max_attempts``, ``standing`` (false: versions are not asked the standing suite).
    """
    name, source = field(job, "name", str), field(job, "source", str)
    if any(model.name == name for model in context.transact(model_rows.list_all)):
        raise AlreadyExists(f"a model called {name!r} is registered already; choose another name")
    text = job.payload.get("policy_text")
    policy = (
        parse_policy(text)
        if text is not None
        else load_policy(field(job, "policy", str, "default"))
    )
    items = [ProbeItem.from_dict(record) for record in job.payload.get("suite") or ()]
    refuse_reserved(items)
    settings = dict(job.payload.get("settings") or {})
    if items:
        settings["suite"] = [item.to_dict() for item in items]
    base = load_base(
        source, device=context.config.device, dtype=str(settings.get("dtype", "float32"))
    )
    check_suite(base, ProbeSuite(tuple(items)))
    kept = editors.keep_for(context.config, field(job, "editor", str, editors.SHIPPED), base)
    loaded = kept.editor
    composition = loaded.composition.to_dict()

    def write(conn: Any) -> Any:
        row = model_rows.register_editor(
            conn,
            digest=loaded.digest,
            kind=loaded.kind,
            base_digest=loaded.base_digest,
            path=str(kept.path),
            meta=kept.card,
            actor=job.requested_by,
        )
        return model_rows.register(
            conn,
            name=name,
            source=source,
            base_digest=base.digest,
            editor_id=row.id,
            composition=composition,
            version_digest=version_digest(base.digest, loaded.digest, composition, ()),
            policy=policy.to_dict(),
            policy_digest=policy.digest,
            settings=settings,
            approval=bool(job.payload.get("approval", False)),
            auto_promote=bool(job.payload.get("auto_promote", True)),
            max_attempts=field(job, "max_attempts", int, 5),
            actor=job.requested_by,
        )

    asked: dict[str, Any] = {}
    if job.payload.get("standing", True):
        kept_answers = answers_of(base, context.config)
        asked = standing.record(base, loaded.matrices, kept_answers, context.config.suites)
        settings[standing.SETTING] = asked
    model = context.transact(write)
    # Warm now: the first batch should not wait for a second load.
    context.models.get(model, base)
    return {
        "id": model.id,
        "name": model.name,
        "source": model.source,
        "base_digest": model.base_digest,
        "editor": loaded.kind,
        "editor_digest": loaded.digest,
        "editor_path": str(kept.path),
        "policy": policy.name,
        "policy_says": policy.says,
        "policy_digest": policy.digest,
        "matrices": list(loaded.matrices),
        "standing": {name: value for name, value in asked.items() if name != "left_out"}
        | {"left_out": Counter((asked.get("left_out") or {}).values())},
        "warnings": editors.below_policy(kept.card, policy),
    }
