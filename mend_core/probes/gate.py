"""The gate: a policy and paired probe results in, pass / fail / inconclusive out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from mend_core.probes.policy import Policy
from mend_core.probes.results import ProbeResult


class Outcome(StrEnum):
    """What a check, or the gate as a whole, says."""

    PASS = "pass"  # noqa: S105 -- not a password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


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
        name: e.g. "hard.protected", "parent/neighbour".
        outcome: What it says.
        observed: What was measured.
        bound: The confidence bound that was compared, or None where none applies.
        threshold: What it was compared with.
        n: Items it rests on.
        needed: Items after which the observed rate would settle it; None where no number would, or
            where nothing is open.
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
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Flip:
    """An item whose verdict or unchanged answer differs between two versions, with both answers."""

    item_id: str
    kind: str
    slice: str
    edit_id: str | None
    prompt: str
    expect: tuple[str, ...]
    before: str
    after: str
    broke: bool
    against: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class GateDecision:
    """The verdict with all its grounds.

    Attributes:
        outcome: fail if any check fails; else inconclusive if any is; else pass.
        checks: Every check made, in order.
        not_taken: Ids of new edits whose own prompt is not answered with the target.
        flips: Items that flipped against the parent, then against the base.
        policy_digest: The policy's name.
        suite_digest: The suite's name.
    """

    outcome: Outcome
    checks: tuple[Check, ...]
    not_taken: tuple[str, ...]
    flips: tuple[Flip, ...]
    policy_digest: str
    suite_digest: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        raise NotImplementedError


def decide(
    policy: Policy,
    candidate: Sequence[ProbeResult],
    parent: Sequence[ProbeResult] | None,
    base: Sequence[ProbeResult],
    *,
    update: Update | None = None,
    suite_digest: str | None = None,
) -> GateDecision:
    """Judge a candidate. All three runs are on the same suite; parent None means the base."""
    raise NotImplementedError
