"""What a gate found, in the words of someone who edits facts; statistics stay in the sentences.

Pure functions of a check's values as the ledger keeps them, so that a page made years later says
the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mend_core.probes.results import ProbeResult
from mend_core.probes.suites import RETAINED_SLICE, STANDING, ProbeKind, is_standing

KIND_WORDS = {
    "edit": "own prompts",
    "paraphrase": "paraphrases",
    "portability": "consequences",
    "locality": "other answers",
    "protected": "protected answers",
    "capability": "questions with a known answer",
    "must_contain": "answers that must hold a text",
    "must_not_contain": "answers that must not hold a text",
    "health": "free texts",
    "perplexity": "texts read",
}
"""How each kind of probe is called where an editor reads."""

RING_WORDS = {
    "standing": "everyday answers",
    "neighbour/relation": "answers to the same statement about other subjects",
    "neighbour/subject": "answers to other statements about the same subject",
    "neighbour/given": "answers to prompts that came with the edits",
    RETAINED_SLICE: "earlier edits",
}
"""How each slice that the service makes is called where an editor reads."""

OF_THE_EDITS = frozenset({"edit", "paraphrase", "portability"})
"""Kinds that ask an edit whether it took; every other kind asks what else changed."""

ASKED_NOTHING = frozenset({"skipped", "reported"})
"""Outcomes that judged nothing: there was nothing to ask, or too little."""

_INVARIANTS = {
    "hard.finite": ("{bad} of {n} answers are no numbers", "every answer is made of real numbers"),
    "hard.protected": ("{bad} of {n} protected answers changed", "no protected answer changed"),
    "hard.own_prompt": (
        "{bad} of {n} edits do not answer their own prompt",
        "every edit answers its own prompt",
    ),
    "hard.golden": ("{bad} of {n} golden prompts newly fail", "no golden prompt newly fails"),
    "hard.health": ("{bad} of {n} free texts newly fall apart", "free texts read as before"),
}
_REFERENCES = {"parent": "the version before", "drift": "the base"}


def asked_besides(kind: str, slice_name: str) -> bool:
    """Whether a probe asks what else changed: anything but the new edits' own prompts."""
    return kind not in OF_THE_EDITS or slice_name == RETAINED_SLICE


def plain(check: Mapping[str, Any]) -> str:
    """One check in plain words, without intervals; its sentence holds those."""
    outcome, n = str(check["outcome"]), int(check["n"] or 0)
    said = None if outcome == "skipped" else _plain(check, n)
    if said is None:
        return str(check["sentence"])
    if outcome == "inconclusive":
        said += "; too few were asked to be sure"
        if check.get("needed"):
            said += f" (about {check['needed']} would do)"
    elif outcome == "reported":
        demanded = check.get("threshold") is not None
        said += "; too few to judge" if demanded else "; the policy demands nothing of it"
    return said


def _plain(check: Mapping[str, Any], n: int) -> str | None:
    name, observed = str(check["name"]), check.get("observed")
    if observed is None or n == 0:
        return None
    if name in _INVARIANTS:
        bad, fine = _INVARIANTS[name]
        return bad.format(bad=int(observed), n=n) if observed else f"{fine} (n = {n})"
    if name in {"success", "generality"}:
        what = "new edits answered" if name == "success" else "paraphrases followed"
        return f"{what}: {round(observed * n)} of {n}"
    if name == "drift.perplexity":
        return f"plain text is {observed:.3g} times as surprising as to the base"
    if name == "drift.kl":
        return f"predictions on plain text moved by {observed:.3g} nats a token"
    return _on_balance(name, observed, n)


def _on_balance(name: str, observed: float, n: int) -> str | None:
    """A paired check: answers lost and gained, set off against each other."""
    rule, _, rest = name.partition("/")
    if rule not in _REFERENCES or not rest:
        return None
    kind, _, slice_name = rest.partition("/")
    net = round(observed * n)
    found = f"{net} lost on balance" if net > 0 else f"{-net} gained on balance"
    if net == 0:
        found = "none lost on balance"
    what = RING_WORDS.get(slice_name, f"{KIND_WORDS.get(kind, kind)} ({slice_name})")
    return f"{what}: {found}, of {n}, against {_REFERENCES[rule]}"


def complaint(check: Mapping[str, Any]) -> str:
    """What a failed check says of a single edit that fails alone."""
    name, n, observed = str(check["name"]), int(check["n"] or 0), check.get("observed")
    if name in {"success", "hard.own_prompt"}:
        return "Its own prompt is not answered with its target"
    if name == "generality" and observed is not None:
        return f"Its paraphrases did not follow: {round(observed * n)} of {n}"
    said = plain(check)
    return said[:1].upper() + said[1:]


def summary(checks: Sequence[Mapping[str, Any]]) -> str:
    """How many checks passed, failed, stayed open, and how many had nothing to judge."""
    counts = Counter(str(check["outcome"]) for check in checks)
    words = {
        "fail": "failed",
        "inconclusive": "open",
        "pass": "passed",
        "reported": "only reported",
        "skipped": "asked nothing",
    }
    return ", ".join(f"{counts[o]} {said}" for o, said in words.items() if counts[o]) or "no checks"


def asked(probes: Iterable[tuple[str, str]]) -> list[dict[str, Any]]:
    """How many probes were asked of each kind, from each probe's kind and slice."""
    counts: Counter[str] = Counter()
    for kind, slice_name in probes:
        if kind in OF_THE_EDITS and slice_name == RETAINED_SLICE:
            counts["prompts of earlier edits"] += 1
        else:
            ring = STANDING if is_standing(slice_name) and kind == "locality" else slice_name
            counts[RING_WORDS.get(ring, KIND_WORDS.get(kind, kind))] += 1
    return [{"what": what, "n": n} for what, n in counts.items()]


def besides(probes: Iterable[tuple[str, str]]) -> int:
    """How many probes with an answer asked what else changed."""
    return sum(
        asked_besides(kind, slice_name) and kind != ProbeKind.PERPLEXITY.value
        for kind, slice_name in probes
    )


def told(
    checks: Sequence[Mapping[str, Any]],
    results: Iterable[ProbeResult],
    counts: Mapping[str, int],
) -> dict[str, Any]:
    """What is kept beside a decision for those who read it without this package.

    Args:
        checks: The decision's checks.
        results: What was asked.
        counts: How many of each sort were asked; 0 for what was not (`GateDecision.asked`).

    Returns:
        ``summary``, ``asked`` (what, n), ``not_asked``, ``besides`` (probes of other answers) and
        ``plain`` (words by the name of a check).
    """
    probes = [(r.kind.value, r.slice) for r in results]
    return {
        "summary": summary(checks),
        "asked": asked(probes),
        "not_asked": [what for what, n in counts.items() if n == 0],
        "besides": besides(probes),
        "plain": {str(check["name"]): plain(check) for check in checks},
    }
