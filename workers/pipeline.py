"""The main job: claim → factor → compose → write → commit → probe → gate → promote.

Whatever kills the process, the ledger's rows say where to go on, and every step done twice gives
the same thing: factors and versions are named by content, a commit is guarded by its fence, and a
version that was committed but not yet judged is judged by whoever holds the lease next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection

from ledger import aliases as alias_rows
from ledger import batches as batch_rows
from ledger import chunks as chunk_rows
from ledger import edits as edit_rows
from ledger import footing, planning, queue
from ledger import gates as gate_rows
from ledger import models as model_rows
from ledger import sweep as sweeping
from ledger import versions as version_rows
from ledger.errors import AliasProtected, BatchChanged, LedgerError, StaleFence, StaleParent
from ledger.records import Batch, Claim, Edit, Model, Plan, SetMember, Version, VersionDraft
from ledger.states import EditState
from mend_core.datasets.edit import Edit as CoreEdit
from mend_core.errors import MendError, ProbeError, StoreCorrupt, StoreError, StoreMissing
from mend_core.factors import platform_tag, weights_digest
from mend_core.probes import Outcome
from mend_core.safepoints import interruptible, safe_point
from workers import blaming, charges, faults, hooks, proving, restoring
from workers.building import build, files_of, weights_of
from workers.context import Context, Held, Stopping
from workers.factoring import factor_record, fail_unaskable, help_any, run_batch
from workers.jobs import run_one
from workers.progress import Progress
from workers.proving import Judge, Verdict
from workers.quick import QuickJobs
from workers.runtime import WarmModel, core_edit

log = logging.getLogger("mend.pipeline")

REPLANS = 20
"""Times one batch may be planned anew because something moved while its version was built."""


def drain(context: Context, *, sweep_first: bool = False) -> None:
    """Do everything that is due, until there is nothing left that this worker can do.

    Raises:
        Stopping: A graceful stop was asked for; everything taken was given back.
        DatabaseDown: Postgres does not answer.
    """
    if sweep_first:
        context.transact(lambda conn: sweeping.sweep(conn, actor=context.actor))
        hooks.submit_due(context)
    with interruptible(QuickJobs(context)):
        refused: set[int] = set()
        while _round(context, refused):
            pass


def _round(context: Context, refused: set[int]) -> bool:
    """One job, what there is of each model, one chunk of others; False where nothing was left.

    Models that cannot be worked on now are added to `refused`.
    """
    context.check()
    did = run_one(context)
    for model_id in context.transact(queue.ready):
        if model_id not in refused and not context.rests(model_id):
            worked = _model(context, model_id)
            did = did or worked is True
            if worked is None:
                refused.add(model_id)
    return help_any(context) or did


def _model(context: Context, model_id: int) -> bool | None:
    """Work on one model as long as it has work.

    Returns:
        True where something was done, False where another worker has the lease, None where the
        model cannot be worked on now (said in the log; the next sweep tries again).
    """
    # Loaded before the lease is asked for: what cannot be loaded must not hold up others, nor
    # claim edits only to give them back.
    model = context.transact(lambda conn: model_rows.get(conn, model_id))
    try:
        warm = context.models.get(model)
        proving.check_model(model, warm, context.config.suites)
    except (MendError, OSError) as error:
        log.error("model %s cannot be worked on: %s", model.name, error)  # noqa: TRY400 - the message is for a person
        _note_problem(context, model, str(error))
        context.rest(model_id)
        return None
    held = Held.take(context, model_id)
    if held is None:
        return False
    with held.keeper:
        try:
            return _attempt(context, held, model, warm)
        finally:
            held.keeper.stop()
            with suppress(LedgerError):
                held.release()


def _note_problem(context: Context, model: Model, problem: str | None) -> None:
    """Keep for people why the model cannot be worked on now; None: it can."""
    if model.problem != problem:
        context.transact(lambda conn: model_rows.set_problem(conn, model.id, problem))


def _attempt(context: Context, held: Held, model: Model, warm: WarmModel) -> bool | None:
    """Work under the lease; what goes wrong becomes a line in the log and a rest, or a raise."""
    try:
        faults.point("after-lease")
        did = _under_lease(context, held, model, warm)
    except StaleFence as error:
        log.warning("model %s: %s", model.name, error)
        return None
    except (StoreError, OSError) as error:
        log.error("model %s: %s; trying again later", model.name, error)  # noqa: TRY400 - the message is for a person
        _note_problem(context, model, f"{error}; trying again later")
        context.rest(model.id)
        return None
    except (Stopping, LedgerError):
        raise
    except Exception:
        # The lease goes back with the batch open: whoever takes it next halves the batch, so
        # that an edit that makes us fail is found while the others go on.
        log.exception("model %s: the batch failed", model.name)
        if not _judging(context, model.id):
            return True
        # Judging is not halved: the same would happen again at once.
        context.rest(model.id)
        return None
    context.resting.pop(model.id, None)
    _note_problem(context, model, None)
    return did


def _under_lease(context: Context, held: Held, model: Model, warm: WarmModel) -> bool:
    did, restored = False, 0
    while True:
        batch = context.transact(lambda conn: batch_rows.current(conn, model.id))
        if batch is None:
            context.check()
            claim = context.transact(lambda conn: _claim(context, conn, held, model))
            if claim is None:
                return did or not context.transact(lambda conn: _stands(conn, model))
            batch = claim.batch
            log.info("model %s: batch %d of %d edits", model.name, batch.id, batch.size)
        faults.point("after-claim")
        try:
            try:
                Build(context, held, model, warm, batch).run()
            except (StoreMissing, StoreCorrupt):
                restored += 1
                if restored > restoring.TIMES or not restoring.restore(context, warm, batch):
                    raise
        except (Stopping, StoreError, OSError) as error:
            _return(context, held, batch, str(error) or "the worker is stopping")
            raise
        did = True


def _claim(context: Context, conn: Connection, held: Held, model: Model) -> Claim | None:
    """The next batch; None also where the model was rebased since it was loaded.

    Whoever looks next finds its edits still queued and loads the model as it is then.
    """
    model_rows.lock_footing(conn, model.id)
    if not _stands(conn, model):
        return None
    return queue.claim(conn, held.lease, limit=context.config.batch_edits)


def _stands(conn: Connection, model: Model) -> bool:
    """Whether a model still is on the base and editor it was loaded with."""
    present = model_rows.get(conn, model.id)
    return (present.base_digest, present.editor.digest, dict(present.composition)) == (
        model.base_digest,
        model.editor.digest,
        dict(model.composition),
    )


def _judging(context: Context, model_id: int) -> bool:
    """Whether the model's open batch has a version that waits to be judged."""

    def look(conn: Connection) -> bool:
        batch = batch_rows.current(conn, model_id)
        applied = [EditState.APPLIED]
        return batch is not None and bool(batch_rows.edits_of(conn, batch.id, states=applied))

    return context.transact(look)


def _return(context: Context, held: Held, batch: Batch, reason: str) -> None:
    """Give back what is claimed and not yet in a version, nothing counted against it.

    A batch whose version waits to be judged stays open: the next holder of the lease judges it.
    """
    if context.transact(
        lambda conn: batch_rows.edits_of(conn, batch.id, states=[EditState.APPLIED])
    ):
        return
    context.transact(
        lambda conn: queue.return_claim(
            conn, held.lease, batch.id, actor=context.actor, reason=reason
        )
    )


class Build:
    """One batch on its way to a version.

    Args:
        context: The working process.
        held: The model's lease.
        model: The model.
        warm: The model, loaded.
        batch: The open batch; anything of it may already have been done by a worker that died.
    """

    def __init__(
        self, context: Context, held: Held, model: Model, warm: WarmModel, batch: Batch
    ) -> None:
        self.context = context
        self.held = held
        self.model = model
        self.batch = batch
        self.warm = warm
        self.tell = Progress(context, batch.id)

    def run(self) -> None:
        """Bring the batch to its end."""
        self.tell("factoring", 0, self.batch.size)
        run_batch(self.context, self.held, self.warm, self.batch.id)
        fail_unaskable(self.context, self.held, self.warm, self.batch.id)
        for _ in range(REPLANS):
            self.context.check()
            version = self._unjudged()
            try:
                if version is None:
                    version = self._commit()
            except (StaleParent, BatchChanged) as moved:
                log.info("batch %d: %s", self.batch.id, moved)
                continue
            if version is None:
                self.context.transact(self._finish)
                return
            if self._prove(version):
                return
        raise ProbeError(
            f"batch {self.batch.id} of model {self.model.name} was planned {REPLANS} times without "
            "an end; look at its versions with `mend versions`"
        )

    def _finish(self, conn: Connection) -> None:
        batch_rows.finish(conn, self.held.lease, self.batch.id, actor=self.context.actor)

    def _unjudged(self) -> Version | None:
        """The version of this batch that was committed but not judged, if any."""
        unjudged: Sequence[Version] = self.context.transact(
            lambda conn: version_rows.pending(conn, self.model.id)
        )
        return next((one for one in unjudged if one.batch_id == self.batch.id), None)

    def _commit(self) -> Version | None:
        """Build, write and commit the batch's version; None where nothing is left to add."""

        def look(conn: Connection) -> tuple[Plan, list[SetMember]]:
            plan = planning.plan(conn, self.held.lease, batch_id=self.batch.id)
            return plan, list(version_rows.live_set(conn, plan.parent.id))

        plan, parent_set = self.context.transact(look)
        if not plan.adds and not plan.removes:
            return None
        self.tell("composing", 0, None)
        return commit_plan(
            self.context, self.held, self.warm, plan, parent_set, batch_id=self.batch.id
        )

    def _prove(self, version: Version) -> bool:
        """Judge a committed version; True where the batch is decided.

        The verdict and what follows from it are one transaction: a version is either unjudged, and
        judged again by whoever comes next, or all the way done.
        """
        faults.point("before-gate")
        judge, edits, members = judge_of(self.context, self.model, version)
        judge.tell = self.tell
        verdict = judge.judge_version(version, members, edits)
        verdict.suite.save(self.context.config.suites)
        if verdict.decision.outcome is Outcome.FAIL:
            follow = self._rejection(version, judge, edits, members, verdict)
        else:
            follow = self._finish
        promoted = self.context.transact(
            lambda conn: conclude(
                conn,
                self.context,
                model=self.model,
                version=version,
                verdict=verdict,
                follow=follow,
            )
        )
        faults.point("after-gate")
        log.info(
            "model %s: version %d: gate says %s%s",
            self.model.name,
            version.number,
            verdict.decision.outcome.value,
            "; it is in production" if promoted else "",
        )
        if promoted:
            hooks.submit_due(self.context)
        return verdict.decision.outcome is not Outcome.FAIL

    def _rejection(
        self,
        version: Version,
        judge: Judge,
        edits: Sequence[CoreEdit],
        members: Sequence[SetMember],
        verdict: Verdict,
    ) -> Callable[[Connection], None]:
        """Who is set aside for a failed version, as a step of the transaction that says so."""
        by_id = {edit.id: edit for edit in edits}
        factors = {str(m.edit_id): m.factor_digest for m in members}
        judge.search = judge.runs + blaming.MAX_PROBE_RUNS
        found = blaming.blame(judge, by_id, factors, verdict)
        culprits = {int(edit_id): why for edit_id, why in found.culprits.items()}
        if not culprits and not found.stronger:
            # Nobody alone is to blame and the whole still fails: set all aside, or it never ends.
            reason = charges.Reason(charges.Why.WHOLE, others=len(by_id) - 1)
            culprits = {
                int(edit_id): charges.evidence(verdict, edit_id, reason) for edit_id in by_id
            }
        log.info(
            "model %s: version %d failed; %d culprits of %d, %d steps made stronger, %d probe runs",
            self.model.name,
            version.number,
            len(culprits),
            len(by_id),
            len(found.stronger),
            found.runs,
        )
        stronger = [factor_record(f, stronger=True) for f in found.stronger.values()]

        def reject(conn: Connection) -> None:
            lease = self.held.lease
            version_rows.reject(conn, lease, version.id, culprits, actor=self.context.actor)
            if stronger:
                chunk_rows.replace(conn, lease, self.batch.id, stronger)

        return reject


def commit_plan(
    context: Context,
    held: Held,
    warm: WarmModel,
    plan: Plan,
    parent_set: Sequence[SetMember],
    *,
    batch_id: int | None = None,
    meta: dict[str, Any] | None = None,
    onto: Model | None = None,
) -> Version:
    """Build, write and commit the version a plan describes.

    Args:
        context: The working process.
        held: The model's lease.
        warm: The model the version is built on.
        plan: What to build.
        parent_set: The parent's set.
        batch_id: The batch it comes from.
        meta: What to note beside it.
        onto: The footing of the version where it is not its parent's: nothing of the parent's sums
            is used then, and `plan` adds every edit anew.

    Raises:
        StaleParent: The candidate moved meanwhile; nothing was changed.
        BatchChanged: An edit left the batch meanwhile; nothing was changed.
        StoreFull: No room for the version's files; nothing was changed.
    """
    built = build(
        warm,
        parent=plan.parent.digest if onto is None else None,
        parent_set=[m.factor_digest for m in parent_set] if onto is None else (),
        adds=[m.factor_digest for m in plan.adds],
        removes=[m.factor_digest for m in plan.removes] if onto is None else (),
    )
    context.check()
    safe_point()
    parent = plan.parent.digest if plan.parent.number else None
    digest = warm.versions.write(files_of(warm, built, parent))
    warm.remember(digest, built.weights)
    draft = VersionDraft(
        plan=plan,
        digest=digest,
        path=str(warm.versions.root / digest.removeprefix("sha256:")),
        batch_id=batch_id,
        weights_digest=weights_digest(built.weights),
        platform=platform_tag(),
        meta={"norms": built.norms, "finite": built.finite} | (meta or {}),
        footing=onto,
    )
    committed = held.commit(
        lambda conn, lease, draft: version_rows.commit(conn, lease, draft, actor=context.actor),
        draft,
    )
    log.info("version %d is committed: %s", committed.version.number, digest)
    return committed.version


def judge_of(
    context: Context, model: Model, version: Version
) -> tuple[Judge, list[CoreEdit], list[SetMember]]:
    """The judge of a committed version, its new edits and their factors."""

    def look(
        conn: Connection,
    ) -> tuple[Version, list[SetMember], list[SetMember], list[SetMember], list[Edit], list[Edit]]:
        assert version.parent_id is not None, "version 0 passed by definition"
        parent = version_rows.get(conn, version.parent_id)
        held_set = list(version_rows.live_set(conn, parent.id))
        adds, removes = version_rows.changes(conn, version.id)
        gone = {m.edit_id for m in (*removes, *adds)}
        stay = [m.edit_id for m in held_set if m.edit_id not in gone]
        new = edit_rows.get_many(conn, [m.edit_id for m in adds])
        old = edit_rows.get_many(conn, stay)
        return parent, held_set, list(adds), list(removes), list(new), list(old)

    parent, parent_set, adds, removes, new, old = context.transact(look)
    warm, parent_warm = context.warm(version), context.warm(parent)
    apart = not footing.shared(parent, version)
    judge = Judge(
        warm=warm,
        model=model,
        number=version.number,
        parent=parent.digest,
        parent_set=() if apart else [m.factor_digest for m in parent_set],
        parent_weights=weights_of(parent_warm, parent, parent_set),
        parent_warm=parent_warm if apart else None,
        retained=[core_edit(edit) for edit in old],
        suites=context.config.suites,
        removes=() if apart else [m.factor_digest for m in removes],
    )
    return judge, [core_edit(edit) for edit in new], adds


def conclude(
    conn: Connection,
    context: Context,
    *,
    model: Model,
    version: Version,
    verdict: Verdict,
    follow: Callable[[Connection], None],
    promote: bool | None = None,
) -> bool:
    """Write a verdict and everything that follows from it; True where the version was promoted.

    Args:
        conn: The transaction.
        context: The working process.
        model: The version's model.
        version: What was judged.
        verdict: What was found.
        follow: What else belongs to the same transaction.
        promote: Whether a version that passes is promoted; None: as the model says.
    """
    decision = verdict.decision
    gate_rows.record_probes(conn, version.id, verdict.suite.digest, verdict.rows())
    gate_rows.record(
        conn,
        version.id,
        outcome=decision.outcome.value,
        policy_digest=decision.policy_digest,
        suite_digest=verdict.suite.digest,
        checks=[check.to_dict() for check in decision.checks],
        scores=verdict.kept(),
        actor=context.actor,
    )
    promoted = False
    # A version that passed but was overtaken (the candidate moved on) is not for production.
    newest = alias_rows.get(conn, model.id, "candidate").version_id == version.id
    serving = version_rows.find(conn, model.id, alias_rows.PRODUCTION)
    # Nor is one on another base than production's: going there is a person's decision.
    wanted = model.auto_promote and footing.shared(serving, version)
    # Nor is one that was not built on production: it would take away what a person put there.
    wanted = wanted and version_rows.descends(conn, version.id, serving.id)
    if promote is not None:
        wanted = promote
    if decision.outcome is Outcome.PASS and newest and wanted:
        try:
            with conn.begin_nested():
                alias_rows.promote(
                    conn, model.id, version.id, actor=context.actor, reason="its gate passed"
                )
            promoted = True
        except AliasProtected as error:
            log.info("version %d waits for a person: %s", version.number, error)
    follow(conn)
    return promoted
