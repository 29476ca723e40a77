"""What a gate says: its checks, the items that flipped, and the verdict over all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any

from mend_core.probes.policy import Score


class Outcome(StrEnum):
    """What a check, or the gate as a whole, says; REPORTED and SKIPPED occur on checks only."""

    PASS = "pass"  # noqa: S105 -- not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    REPORTED = "reported"
    """Something was asked and nothing is judged by it: too few items, or the policy says so."""
    SKIPPED = "skipped"
    """Nothing was asked."""


@dataclass(frozen=True, slots=True)
class Update:
    """What is known of a version's weights apart from its answers.

    Attributes:
        norms: Per matrix ‖ΔW‖/‖W‖ (Frobenius) against the base.
        finite: No value of the update is NaN or Inf.
        number: Which version of its model this is, from 1 (for an alpha spent over versions).
    """

    norms: Mapping[str, float] = field(default_factory=dict)
    finite: bool = True
    number: int = 1


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the gate's verdict.

    Attributes:
        name: e.g. "hard.protected", "parent/locality/neighbour".
        outcome: What it says.
        observed: What was measured; None where it is not a number.
        bound: The confidence bound that was compared, or None where none applies.
        threshold: What it was compared with.
        n: Items it rests on.
        needed: Items after which the observed rate would settle it; None where nothing is open or
            where no number would.
        sentence: All of that for a person.
    """

    name: str
    outcome: Outcome
    observed: float | None
    bound: float | None
    threshold: float | None
    n: int
    needed: int | None
    sentence: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"outcome": self.outcome.value}


@dataclass(frozen=True, slots=True)
class Flip:
    """An item whose verdict differs between two versions, with both answers.

    Attributes:
        item_id: Which item.
        kind: Its kind.
        slice: Its slice.
        edit_id: The edit the item was built from, if any.
        prompt: What was asked.
        expect: What was expected.
        before: Answer of the version compared with.
        after: Answer of the candidate.
        broke: True where it passed before and fails now; False the other way round.
        score: "free" where the free-running verdict flipped, else "forced".
        against: "parent" or "base".
    """

    item_id: str
    kind: str
    slice: str
    edit_id: str | None
    prompt: str
    expect: tuple[str, ...]
    before: str
    after: str
    broke: bool
    score: Score
    against: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {"expect": list(self.expect)}


@dataclass(frozen=True, slots=True)
class GateDecision:
    """The verdict with all its grounds.

    Attributes:
        outcome: fail if any check fails; else inconclusive if any is; else pass.
        checks: Every check made, in order, skipped ones included.
        not_taken: Ids of new edits whose own prompt is not answered with the target.
        flips: Items that flipped against the parent, then against the base.
        policy_digest: The policy's name.
        suite_digest: The suite's name.
        asked: What was asked and how many items of each; 0 names what was not asked.
    """

    outcome: Outcome
    checks: tuple[Check, ...]
    not_taken: tuple[str, ...]
    flips: tuple[Flip, ...]
    policy_digest: str
    suite_digest: str | None = None
    asked: Mapping[str, int] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """The verdict and the reasons for it; a pass says how much of it was judged."""
        reasons = [c.sentence for c in self.checks if c.outcome is self.outcome]
        if self.outcome is Outcome.PASS:
            counts = Counter(c.outcome for c in self.checks)
            said = f"pass: {len(reasons)} checks hold"
            if counts[Outcome.REPORTED]:
                said += f", {counts[Outcome.REPORTED]} only report"
            if counts[Outcome.SKIPPED]:
                said += f", {counts[Outcome.SKIPPED]} had nothing to ask"
            return said
        return f"{self.outcome.value}: {'; '.join(reasons)}"

    def suspects(self) -> tuple[str, ...]:
        """Edits to look at first: those that did not take, then those whose own probes broke."""
        broken = Counter(f.edit_id for f in self.flips if f.broke and f.edit_id is not None)
        ranked = sorted(broken, key=lambda edit: (-broken[edit], edit))
        return tuple(dict.fromkeys((*self.not_taken, *ranked)))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            "outcome": self.outcome.value,
            "sentence": self.sentence,
            "checks": [check.to_dict() for check in self.checks],
            "not_taken": list(self.not_taken),
            "flips": [flip.to_dict() for flip in self.flips],
            "policy_digest": self.policy_digest,
            "suite_digest": self.suite_digest,
            "asked": dict(self.asked),
        }
