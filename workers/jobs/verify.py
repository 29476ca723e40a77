"""``verify``: prove that a version on disk is the version in the ledger."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ledger.records import Job
from mend_core.errors import MendError
from mend_core.factors import platform_tag, weights_digest
from workers.building import build, digest_of
from workers.context import Context
from workers.jobs.payload import find_version, model_of


def verify(context: Context, job: Job) -> Mapping[str, Any]:
    """Recompute a version from its factors and compare every digest.

    Payload: ``version`` (default "production").

    Returns:
        ``{"ok", "checks": [{"name", "ok", "says"}], "number", "digest"}``. Weights made on another
        platform may differ in the last bits: then the check says so and does not fail.
    """
    model = model_of(context, job)
    version, members = find_version(context, model, job.payload.get("version", "production"))
    warm = context.warm(version)
    checks: list[dict[str, Any]] = []

    def check(name: str, ok: bool, says: str) -> None:
        checks.append({"name": name, "ok": ok, "says": says})

    factors = [m.factor_digest for m in members]
    identity = version.digest if version.number == 0 else digest_of(warm, factors)
    check(
        "identity",
        identity == version.digest,
        f"the set of {len(factors)} factors gives {identity}",
    )
    if version.number:
        try:
            warm.versions.verify(version.digest)
            check("files", ok=True, says="every file of the version is what its digest says")
        except MendError as error:
            check("files", ok=False, says=str(error))
        try:
            # From factors alone, not from the stored sums: an independent second way to get there.
            built = build(warm, parent=None, parent_set=factors, adds=())
            made = weights_digest(built.weights)
        except MendError as error:
            check("factors", ok=False, says=str(error))
        else:
            same = made == version.weights_digest
            here = platform_tag()
            if same or version.platform == here:
                check("weights", same, f"materialised weights are {made}")
            else:
                check(
                    "weights",
                    ok=True,
                    says=f"made on {version.platform}, rebuilt on {here}: last bits may differ",
                )
    return {
        "ok": all(c["ok"] for c in checks),
        "checks": checks,
        "model": model.name,
        "number": version.number,
        "digest": version.digest,
    }
