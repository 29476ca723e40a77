"""The standing suite as one model is asked it: without what its base answers unstably.

At registration the base answers all of it twice: as it is, and with a little noise in its edited
matrices. What a harmless change of weights would turn over says nothing about an edit, and neither
does an answer without a word in it; both are left out, with their reasons, and the ledger keeps
which.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from mend_core.errors import SuiteInvalid
from mend_core.models import Base
from mend_core.probes import GateDecision, Outcome, ProbeItem, ProbeSuite
from mend_core.probes.asking import check_suite
from mend_core.probes.scoring import Scorer
from mend_core.probes.standing import standing_suite
from mend_core.probes.suites import STANDING, UNCHANGED_KINDS, ProbeKind
from mend_core.probes.verdicts import has_words
from workers.answers import Answers
from workers.runtime import WarmModel

SETTING = "standing"
"""Where a model's settings say which standing suite it is asked, and what of it is left out."""

NOISE = 0.02
"""Norm of the noise in each edited matrix, relative to the matrix: about a harmless update's."""

SEED = 20260101

SEARCH_SHARE = 3
"""One in so many everyday questions is asked in each run of a search."""

NO_WORD = "its answer holds no word"
UNSTABLE = "its answer changes with a little noise in the weights"
LOOPS = "the base's own text is too short or loops"


def record(base: Base, matrices: Iterable[str], answers: Answers, suites: Path) -> dict[str, Any]:
    """Ask a base the standing suite, and say which of it may be asked of its versions.

    Args:
        base: The base, its own weights in place.
        matrices: The matrices its editor changes.
        answers: Where the base's answers are kept.
        suites: Folder that keeps the suite under its digest.

    Returns:
        ``{"suite": digest, "base": digest, "left_out": {item id: reason}, "asked": n}``, for the
        model's settings.

    Raises:
        SuiteInvalid: The model cannot be asked it, e.g. because its context is too short.
    """
    suite = standing_suite()
    check_suite(base, suite)
    suite.save(suites)
    left_out = unstable(base, matrices, suite, answers)
    return {
        "suite": suite.digest,
        "base": base.digest,
        "left_out": left_out,
        "asked": len(suite) - len(left_out),
    }


def unstable(
    base: Base, matrices: Iterable[str], suite: ProbeSuite, answers: Answers
) -> dict[str, str]:
    """Items of a suite that a base answers unstably, with the reason; measured once and kept."""
    names = sorted(matrices)
    found = answers.remembered(_name(suite, names))
    if found is None:
        found = _left_out(base, names, suite, answers)
        answers.remember(_name(suite, names), found)
    return found


def _name(suite: ProbeSuite, names: list[str]) -> str:
    return f"{suite.digest} {NOISE} {SEED} {' '.join(names)}"


def _left_out(
    base: Base,
    names: list[str],
    suite: ProbeSuite,
    answers: Answers,
) -> dict[str, str]:
    scorer = Scorer(base, suite, reference=answers.known())
    own = scorer.reference()
    answers.keep(own)
    noisy = scorer.score(_noisy(base, names))
    found = {}
    for before, after in zip(own, noisy, strict=True):
        if before.kind is ProbeKind.HEALTH and not before.passed:
            found[before.item_id] = LOOPS
        elif before.kind in UNCHANGED_KINDS and base.kind != "classifier":
            if not has_words(before.answer):
                found[before.item_id] = NO_WORD
            elif not after.passed:
                found[before.item_id] = UNSTABLE
        elif before.passed and not after.passed:
            found[before.item_id] = UNSTABLE
    return found


def _noisy(base: Base, names: list[str]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    noisy = {}
    for matrix in base.matrices(names):
        weight = matrix.weight.detach().float().cpu()
        noise = torch.randn(weight.shape, generator=generator)
        noise *= NOISE * weight.norm() / noise.norm()
        noisy[matrix.name] = (weight + noise).to(matrix.weight.dtype)
    return noisy


def worth_searching(items: Sequence[ProbeItem], decision: GateDecision) -> tuple[ProbeItem, ...]:
    """What of the standing suite a search for edits at fault asks, run after run.

    Only what failed: every `SEARCH_SHARE`-th everyday question, the texts, the openings. The
    version that the search ends with is asked everything again.
    """
    failed = {check.name for check in decision.checks if check.outcome is Outcome.FAIL}
    questions = [item for item in items if item.kind is ProbeKind.LOCALITY]
    chosen: list[ProbeItem] = []
    if any(name.endswith(f"/{STANDING}") for name in failed):
        chosen += questions[::SEARCH_SHARE]
    if failed & {"drift.perplexity", "drift.kl"}:
        chosen += [item for item in items if item.kind is ProbeKind.PERPLEXITY]
    if "hard.health" in failed:
        chosen += [item for item in items if item.kind is ProbeKind.HEALTH]
    return tuple(chosen)


@lru_cache(maxsize=8)
def _loaded(folder: Path, digest: str) -> ProbeSuite:
    shipped = standing_suite()
    if shipped.digest == digest:
        return shipped
    path = folder / f"{digest.removeprefix('sha256:')}.jsonl"
    return ProbeSuite.load(path, expected_digest=digest)


def standing_items(
    settings: Mapping[str, Any], suites: Path, warm: WarmModel
) -> tuple[ProbeItem, ...]:
    """What of the standing suite a model is asked; nothing where it was registered without.

    Args:
        settings: The model's settings.
        suites: Folder of suites by digest.
        warm: The model, loaded. After a rebase it stands on another base than at registration, and
            what that one answers unstably is measured then.

    Raises:
        SuiteInvalid: The recorded suite is gone or altered, or the record is malformed.
    """
    recorded = settings.get(SETTING)
    if not recorded:
        return ()
    if not isinstance(recorded, Mapping) or not isinstance(recorded.get("suite"), str):
        raise SuiteInvalid(f"settings.{SETTING} must name a suite by its digest")
    suite = _loaded(suites, recorded["suite"])
    left_out = recorded.get("left_out") or {}
    if recorded.get("base") != warm.base.digest:
        left_out = unstable(warm.base, warm.editor.matrices, suite, warm.answers)
    return tuple(item for item in suite.items if item.id not in left_out)
