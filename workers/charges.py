"""Why an edit was set aside, and the evidence that is kept of it.

A charge says no more than was measured: what an edit broke is told from what its group broke by
two probe runs that differ by that edit, or that group, alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mend_core.probes import Flip, GateDecision, Outcome, ProbeResult
from mend_core.probes.wording import complaint, plain
from workers.proving import Verdict

SHOWN = 20
"""Broken answers, own probes and ids that an edit's evidence lists; counts say how many were."""


class Why(StrEnum):
    """Kinds of grounds on which an edit is set aside."""

    ALONE = "fails alone"
    NOT_TAKEN = "did not take"
    FOUND = "found by search"
    GROUP = "did not take, with others"
    NOT_CLEARED = "search ended"
    WHOLE = "whole batch"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why an edit was set aside.

    Attributes:
        why: The kind of ground.
        failed: The checks that failed for it alone (`Why.ALONE`), in plain words.
        strongest: The strongest step that was tried, as a multiple of the editor's.
        others: How many other edits were set aside on the same ground together with it.
        without: What the gate said of the rest without it (or its group); None where not run.
        rest: Whether anything of the batch is left without it (or its group). Where nothing is,
            there is only the parent, and no run says anything of that.
        runs: Probe runs after which the search ended.
    """

    why: Why
    failed: tuple[str, ...] = ()
    strongest: float | None = None
    others: int = 0
    without: Outcome | None = None
    rest: bool = True
    runs: int | None = None

    @property
    def sentence(self) -> str:
        """The reason for a person: plain words first."""
        tried = ""
        if self.strongest is not None and self.strongest > 1:
            tried = f" (steps up to {self.strongest:.3g} times as strong did not help)"
        match self.why:
            case Why.ALONE:
                return f"{'; '.join(self.failed) or 'The gate fails with it'}{tried}"
            case Why.NOT_TAKEN:
                return f"Its own prompt is not answered with its target{tried}"
            case Why.FOUND:
                return f"The gate fails with it; {self._rest('it')}"
            case Why.GROUP:
                whom = "it" if not self.others else f"these {self.others + 1}"
                together = "" if not self.others else f", nor are those of {self.others} others"
                return (
                    f"Its own prompt is not answered with its target{together}; {self._rest(whom)}"
                )
            case Why.NOT_CLEARED:
                return (
                    "Not shown to be at fault: set aside because the search ended "
                    f"(after {self.runs} probe runs)"
                )
            case Why.WHOLE:
                return (
                    f"Set aside with its whole batch ({self.others + 1} edits): the gate fails, "
                    "and no single edit could be told to be at fault"
                )

    def _rest(self, whom: str) -> str:
        """What is known of the batch without an edit or a group."""
        if not self.rest:
            return f"nothing of the batch is left without {whom}"
        match self.without:
            case Outcome.PASS:
                return f"the batch passes its gate without {whom}"
            case Outcome.INCONCLUSIVE:
                return (
                    f"without {whom} the gate does not fail, but too little was asked to say it "
                    "passes"
                )
            case Outcome.FAIL:
                return f"the batch fails without {whom}, too"
            case _:
                return f"the batch was not judged without {whom}"

    def to_dict(self) -> dict[str, Any]:
        """Kind and numbers, JSON-ready."""
        return {
            "kind": self.why.value,
            "others": self.others,
            "runs": self.runs,
            "strongest_step": self.strongest,
            "without": None if self.without is None else self.without.value,
        }


@dataclass(frozen=True, slots=True)
class Run:
    """What a probe run of a set of edits said.

    Attributes:
        decision: The gate's.
        asked: Ids of the items that were asked.
    """

    decision: GateDecision
    asked: frozenset[str]

    @classmethod
    def of(cls, verdict: Verdict) -> Run:
        """The part of a verdict that charges rest on."""
        return cls(verdict.decision, frozenset(r.item_id for r in verdict.results))


@dataclass(frozen=True, slots=True)
class Broken:
    """Answers that were right before and are wrong with a set of edits.

    Attributes:
        by: The ids of that set.
        flips: One per item.
    """

    by: tuple[str, ...]
    flips: Mapping[str, Flip]


def broken_in(decision: GateDecision) -> dict[str, Flip]:
    """Items that the parent answered rightly and the judged set does not, by id."""
    return {f.item_id: f for f in decision.flips if f.broke and f.against == "parent"}


def broken_by(by: Iterable[str], with_them: Run, without: Run | None) -> Broken:
    """What a set of edits broke, from two runs that differ by it alone.

    Args:
        by: The set.
        with_them: The run with it.
        without: The run without it; None where what is left without it is the parent itself, which
            was asked every item.
    """
    found = broken_in(with_them.decision)
    if without is not None:
        spared = broken_in(without.decision)
        found = {i: f for i, f in found.items() if i in without.asked and i not in spared}
    return Broken(tuple(by), found)


def evidence(
    verdict: Verdict, edit_id: str, reason: Reason, broken: Broken | None = None
) -> dict[str, Any]:
    """What a person needs to see why an edit was set aside.

    Args:
        verdict: The whole batch's.
        edit_id: Which edit.
        reason: Why it is set aside.
        broken: What it, or its group, was measured to have broken; None where only the whole batch
            was, which is said then.

    Returns:
        ``reason`` (a sentence), ``why`` (kind and numbers), ``gate``, ``checks`` that did not pass,
        ``broke`` (one row an item), ``broke_count``, ``broke_by`` ("edit", "group" or "batch"),
        ``group`` (ids) and ``group_size``, ``own`` (the edit's probes before and after), and the
        digests of policy and suite.
    """
    batch = tuple(
        dict.fromkeys(r.edit_id for r in verdict.results if r.edit_id and r.slice == "new")
    )
    charged = broken or Broken(batch or (edit_id,), broken_in(verdict.decision))
    alone = set(charged.by) == {edit_id}
    by = "edit" if alone else "batch" if set(charged.by) >= set(batch) else "group"
    parents = {r.item_id: r for r in verdict.parent}
    bases = {r.item_id: r for r in verdict.base}
    whole = broken_in(verdict.decision)
    shown = [charged.flips[i] for i in sorted(charged.flips)][:SHOWN]
    own = [r for r in verdict.results if r.edit_id == edit_id]
    return {
        "reason": reason.sentence,
        "why": reason.to_dict(),
        "gate": verdict.decision.outcome.value,
        "checks": [
            c.to_dict() | {"plain": plain(c.to_dict())}
            for c in verdict.decision.checks
            if c.outcome in {Outcome.FAIL, Outcome.INCONCLUSIVE}
        ],
        "broke": [_row(flip, whole.get(flip.item_id), bases) for flip in shown],
        "broke_count": len(charged.flips),
        "broke_by": by,
        "group": list(charged.by[:SHOWN]),
        "group_size": len(charged.by),
        "own": [_own(r, parents[r.item_id]) for r in own[:SHOWN]],
        "policy": verdict.decision.policy_digest,
        "suite": verdict.decision.suite_digest,
    }


def _row(flip: Flip, whole: Flip | None, bases: Mapping[str, ProbeResult]) -> dict[str, Any]:
    """One broken item with the answers of base and parent and what it became."""
    row = flip.to_dict()
    # Answers of a search end where they turn wrong; the whole batch's may go on from there.
    if whole is not None and whole.after.startswith(flip.after):
        row["after"] = whole.after
    base = bases.get(flip.item_id)
    return row | {"base": None if base is None else base.answer}


def _own(now: ProbeResult, before: ProbeResult) -> dict[str, Any]:
    """One probe of the edit itself, before and with the batch."""
    return {
        "item_id": now.item_id,
        "kind": now.kind.value,
        "prompt": now.prompt,
        "expect": list(now.expect),
        "before": before.answer,
        "after": now.answer,
        "passed_before": before.passed,
        "passed": now.passed,
    }


def complaints(decision: GateDecision) -> tuple[str, ...]:
    """The failed checks of a set of one edit, each in words about that edit, none twice.

    Against the base, what earlier edits lost counts too: where the same check holds against the
    version before, its number stands beside.
    """
    by_name = {check.name: check for check in decision.checks}
    failed: list[str] = []
    for check in decision.checks:
        if check.outcome is not Outcome.FAIL:
            continue
        words = complaint(check.to_dict())
        own = by_name.get(check.name.replace("drift/", "parent/", 1))
        if own is not None and own is not check and own.outcome is not Outcome.FAIL:
            lost = round((own.observed or 0.0) * own.n)
            words += f"; against the version before, {max(lost, 0)} of {own.n} were lost"
        failed.append(words)
    return tuple(dict.fromkeys(failed))
