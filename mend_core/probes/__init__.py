"""Probes: suites, scores, statistics, the gate, bisect and reports.

Everything exported here is pure (no torch). Scoring needs a model and lives in
`mend_core.probes.scoring` (`Scorer`, `score`).
"""

from mend_core.probes.bisect import Search, find, plan
from mend_core.probes.decision import Check, Flip, GateDecision, Outcome, Update
from mend_core.probes.gate import decide
from mend_core.probes.page import report_html
from mend_core.probes.policy import Policy, load_policy, parse_policy
from mend_core.probes.report import report_dict
from mend_core.probes.results import Family, ProbeResult, Rate, Scores, summarise
from mend_core.probes.suites import (
    ProbeItem,
    ProbeKind,
    ProbeSuite,
    build_suite,
    sample_edits,
)

__all__ = [
    "Check",
    "Family",
    "Flip",
    "GateDecision",
    "Outcome",
    "Policy",
    "ProbeItem",
    "ProbeKind",
    "ProbeResult",
    "ProbeSuite",
    "Rate",
    "Scores",
    "Search",
    "Update",
    "build_suite",
    "decide",
    "find",
    "load_policy",
    "parse_policy",
    "plan",
    "report_dict",
    "report_html",
    "sample_edits",
    "summarise",
]
