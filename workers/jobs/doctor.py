"""``doctor``: the invariant checker with digests recomputed by the science, not only by SQL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ledger import doctor as checker
from ledger.records import Job, SetMember, Version
from mend_core.errors import MendError
from mend_core.factors import FactorStore, VersionStore, version_digest
from workers.context import Context
from workers.settings import Settings


def recomputer(config: Settings) -> Callable[[Version, Sequence[SetMember]], str]:
    """A function that recomputes a version's digest from its edit set, checking its files too.

    Factors are read and verified once; what is missing or altered comes back as a text that is no
    digest, so that the checker reports it.
    """
    factors, versions = FactorStore(config.factors), VersionStore(config.versions)
    sound: set[str] = set()

    def recompute(version: Version, members: Sequence[SetMember]) -> str:
        try:
            for member in members:
                if member.factor_digest not in sound:
                    factors.get(member.factor_digest)
                    sound.add(member.factor_digest)
            if version.number and version.collected_at is None:
                versions.verify(version.digest)
        except MendError as error:
            return str(error)
        return version_digest(
            version.base_digest,
            version.editor_digest,
            version.composition,
            [m.factor_digest for m in members],
        )

    return recompute


def doctor(context: Context, _job: Job) -> Mapping[str, Any]:
    """Check every invariant of the ledger and the files behind it."""
    findings = context.transact(
        lambda conn: checker.check(conn, deep=True, recompute=recomputer(context.config))
    )
    return {"ok": not findings, "findings": [asdict(f) for f in findings]}
