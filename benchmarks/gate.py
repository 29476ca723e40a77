"""What a gate policy lets through and what it stops: operating characteristics, by simulation.

A version of so many edits is drawn again and again: each everyday question breaks with one chance,
each neighbour with another, and the gate's own code decides. Nothing is loaded and no model is
asked; what is simulated is luck, and only luck.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mend_core.arguments import count
from mend_core.probes import Outcome, ProbeKind, ProbeResult, Update, decide, load_policy
from mend_core.probes.neighbours import BUDGET, EACH
from mend_core.probes.policy import Policy
from mend_core.probes.standing import questions
from mend_core.probes.suites import RELATION_SLICE, STANDING

EDITS = (1, 10, 100)
HARMLESS = (0.005, 0.01, 0.02)
HARMFUL = (0.05, 0.10, 0.20)
NEAR = 0.05
"""Chance that the same statement about another subject breaks, in every line of the table."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: shares of the drawn versions by what the gate said."""

    edits: int
    breaks: float
    passed: float
    inconclusive: float
    failed: float


def _result(name: str, kind: ProbeKind, where: str, edit: str | None, *, good: bool) -> ProbeResult:
    return ProbeResult(
        item_id=name,
        kind=kind,
        slice=where,
        edit_id=edit,
        prompt=name,
        expect=("x",),
        answer="x" if good else "y",
        answer_tokens=(1,),
        passed=good,
        passed_forced=good,
        tokens=50,
        nll=100.0,
        kl=0.0,
    )


def version(edits: int, breaks: float, draw: random.Random) -> list[ProbeResult]:
    """The results of one version in which each everyday answer breaks with this chance."""
    found = [_result(f"edit:{n}", ProbeKind.EDIT, "new", str(n), good=True) for n in range(edits)]
    found += [
        _result(
            f"{kind}:{n}",
            ProbeKind.LOCALITY,
            f"{STANDING}/{kind}",
            None,
            good=draw.random() >= breaks,
        )
        for kind, prompts in questions().items()
        for n in range(len(prompts))
    ]
    each = max(1, min(EACH, BUDGET // edits))
    found += [
        _result(
            f"near:{edit}:{n}",
            ProbeKind.LOCALITY,
            RELATION_SLICE,
            str(edit),
            good=draw.random() >= NEAR,
        )
        for edit in range(edits)
        for n in range(each)
    ]
    found.append(_result("text", ProbeKind.PERPLEXITY, f"{STANDING}/text", None, good=True))
    return found


def characteristic(policy: Policy, edits: int, breaks: float, draws: int, seed: int) -> Line:
    """How often a version of so many edits passes that breaks so many other answers."""
    draw = random.Random(f"{seed} {edits} {breaks}")  # noqa: S311 - luck, not secrets
    update = Update(norms={"matrix": 0.1})
    seen: Counter[Outcome] = Counter()
    for _ in range(draws):
        candidate = version(edits, breaks, draw)
        base = [
            _result(r.item_id, r.kind, r.slice, r.edit_id, good=r.kind is not ProbeKind.EDIT)
            for r in candidate
        ]
        seen[decide(policy, candidate, None, base, update=update).outcome] += 1
    shares = [seen[o] / draws for o in (Outcome.PASS, Outcome.INCONCLUSIVE, Outcome.FAIL)]
    return Line(edits, breaks, *shares)


def table(policy: Policy, draws: int, seed: int) -> list[Line]:
    """All lines."""
    return [
        characteristic(policy, edits, breaks, draws, seed)
        for edits in EDITS
        for breaks in (*HARMLESS, *HARMFUL)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(prog="mend bench gate", description=__doc__)
    parser.add_argument("--policy", default="default", help="default, strict, demo or a YAML file")
    parser.add_argument("--draws", type=count, default=1000, help="versions drawn a line")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    lines = table(load_policy(args.policy), args.draws, args.seed)
    if args.json:
        print(json.dumps({"policy": args.policy, "lines": [asdict(line) for line in lines]}))
        return 0
    print("edits  breaks  pass   inconclusive  fail")
    for line in lines:
        print(
            f"{line.edits:5}  {line.breaks:6.1%}  {line.passed:5.3f}  {line.inconclusive:12.3f}"
            f"  {line.failed:5.3f}"
        )
    return 0
