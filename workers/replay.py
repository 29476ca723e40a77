"""Try edits on a base before anything is registered: which hold there, which it needs no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from mend_core.datasets.edit import Edit
from mend_core.factors import GridRows, compose, materialise
from mend_core.probes import ProbeItem, ProbeKind, ProbeResult, ProbeSuite
from mend_core.probes.asking import unaskable
from mend_core.probes.checks import passes
from mend_core.probes.policy import Score
from mend_core.probes.scoring import Scorer
from workers.blaming import STEP_GROWTH, STEP_TRIES, strengthen
from workers.context import Context
from workers.factoring import compute
from workers.runtime import WarmModel

ROUNDS_WITH_STEPS = 8
"""Rounds of stronger steps; what does not take after them is left out at once."""


class Fate(StrEnum):
    """What becomes of an edit on another base or with another editor."""

    HOLDS = "holds"
    NOT_NEEDED = "not_needed"
    NO_LONGER_HOLDS = "no_longer_holds"
    CANNOT_BE_APPLIED = "cannot_be_applied"


@dataclass(frozen=True, slots=True)
class Told:
    """One edit's fate.

    Attributes:
        fate: What becomes of it.
        says: Why, for a person.
        answer: What was answered to its prompt, by the base alone or with the edits; empty where
            it was not asked.
    """

    fate: Fate
    says: str
    answer: str = ""


@dataclass(eq=False)
class Replay:
    """Edits tried on one base, all together.

    Attributes:
        told: Edit id → its fate.
        factors: Edit id → factor that holds, of those that do.
    """

    told: dict[str, Told] = field(default_factory=dict)
    factors: dict[str, GridRows] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """How many edits have each fate; fates of none are left out."""
        fates = [one.fate for one in self.told.values()]
        return {fate.value: fates.count(fate) for fate in Fate if fate in fates}


def _suite(edits: Sequence[Edit]) -> ProbeSuite:
    items = []
    for edit in edits:
        items.append(
            ProbeItem(
                f"edit:{edit.id}", ProbeKind.EDIT, edit.prompt, (edit.target,), "new", edit.id
            )
        )
        items += [
            ProbeItem(
                f"paraphrase:{edit.id}:{n}",
                ProbeKind.PARAPHRASE,
                prompt,
                (edit.target,),
                "new",
                edit.id,
            )
            for n, prompt in enumerate(edit.paraphrases)
        ]
    return ProbeSuite(tuple(items))


def _by_edit(results: Sequence[ProbeResult]) -> dict[str, list[ProbeResult]]:
    """Results of each edit, its own prompt's first."""
    found: dict[str, list[ProbeResult]] = {}
    for result in results:
        assert result.edit_id is not None
        found.setdefault(result.edit_id, []).append(result)
    return found


def replay(context: Context, warm: WarmModel, edits: Sequence[Edit], score: Score) -> Replay:
    """Try edits on a base: which it needs, and which hold when all of those are applied together.

    Edits that do not take get stronger steps, as in a batch that fails its gate; what still does
    not take is left out, and the rest is tried without it, until all that is left in holds.

    Args:
        context: The working process.
        warm: The new base with its editor.
        edits: Live edits, in any order.
        score: Which verdict on an edit's own prompt counts: the policy's.

    Raises:
        Stopping: A graceful stop was asked for.
    """
    done = Replay()
    if not edits:
        return done
    scorer = Scorer(warm.base, _suite(edits), prefix=warm.prefix, reference=warm.answers.known())
    own = scorer.reference()
    warm.answers.keep(own)
    alone = _by_edit(own)
    for edit in edits:
        if all(r.passed and passes(r, score) for r in alone[edit.id]):
            done.told[edit.id] = Told(
                Fate.NOT_NEEDED, "the base answers so by itself", alone[edit.id][0].answer
            )
    needed = [edit for edit in edits if edit.id not in done.told]
    steps = _factors(context, warm, needed, done)
    _settle(context, warm, [e for e in needed if e.id in steps], steps, score, done)
    return done


def _factors(
    context: Context, warm: WarmModel, edits: Sequence[Edit], done: Replay
) -> dict[str, GridRows]:
    found: dict[str, GridRows] = {}
    for start in range(0, len(edits), context.config.chunk_edits):
        context.check()
        part = edits[start : start + context.config.chunk_edits]
        mute = unaskable(warm.base, part)
        for edit, factor in zip(part, compute(warm, part), strict=True):
            if edit.id in mute:
                why = f"its own probes cannot be asked: {mute[edit.id]}"
                done.told[edit.id] = Told(Fate.CANNOT_BE_APPLIED, why)
            elif isinstance(factor, GridRows):
                found[edit.id] = factor
            else:
                done.told[edit.id] = Told(Fate.CANNOT_BE_APPLIED, str(factor))
    return found


def _settle(  # noqa: PLR0917 - one loop of `replay`, with all it knows
    context: Context,
    warm: WarmModel,
    edits: Sequence[Edit],
    first: Mapping[str, GridRows],
    score: Score,
    done: Replay,
) -> None:
    """Find the edits that hold together, and the factors with which they do."""
    now, tries, inside = dict(first), dict.fromkeys(first, 0), list(edits)
    suite = ProbeSuite(tuple(i for i in _suite(edits).items if i.kind is ProbeKind.EDIT))
    scorer = Scorer(warm.base, suite, prefix=warm.prefix, reference=warm.answers.known())
    rounds = 0
    while inside:
        context.check()
        rounds += 1
        rows = [now[edit.id] for edit in inside]
        weights = materialise(warm.base, compose(warm.composition, warm.editor.grid, None, rows))
        answers = {r.edit_id: r for r in scorer.score(weights)}
        weak = [e for e in inside if not passes(answers[e.id], score)]
        if not weak:
            for edit in inside:
                stronger = STEP_GROWTH ** tries[edit.id]
                how = f", its step {stronger:.3g} x as strong" if tries[edit.id] else ""
                done.told[edit.id] = Told(
                    Fate.HOLDS, f"applied and answered{how}", answers[edit.id].answer
                )
                done.factors[edit.id] = now[edit.id]
            return
        for edit in weak:
            if tries[edit.id] < STEP_TRIES and rounds <= ROUNDS_WITH_STEPS:
                tries[edit.id] += 1
                now[edit.id] = strengthen(warm, first[edit.id], STEP_GROWTH ** tries[edit.id])
            else:
                inside.remove(edit)
                done.told[edit.id] = Told(
                    Fate.NO_LONGER_HOLDS,
                    "applied with the others, but its own prompt is not answered so",
                    answers[edit.id].answer,
                )
