"""Scoring a version on a suite: one implementation for library, gate and benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mend_core.probes.results import ProbeResult
from mend_core.probes.suites import ProbeSuite


class Scorer:
    """Scores versions of one base on one suite; keeps encoded items and prefix activations warm.

    Args:
        base: The base model.
        suite: The checks.
        prefix: A `PrefixCache` shared with factor extraction; None makes one. `use_prefix=False`
            runs full forwards (same scores to 1e-5; for benchmarks).
        reference: The base's own results on this suite, if they are already known; else they are
            computed on first use.
        batch_size: Items per forward pass.
        progress: Called with (items done, items in all).
    """

    def __init__(
        self,
        base: Any,
        suite: ProbeSuite,
        *,
        prefix: Any = None,
        use_prefix: bool = True,
        reference: Sequence[ProbeResult] | None = None,
        batch_size: int = 16,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        raise NotImplementedError

    def reference(self) -> list[ProbeResult]:
        """The base's own results."""
        raise NotImplementedError

    def score(
        self,
        weights: Mapping[str, Tensor] | None = None,
        *,
        drafts: Sequence[ProbeResult] | None = None,
    ) -> list[ProbeResult]:
        """Score one version, given its materialised edited weights (None: the base itself).

        Args:
            weights: Full parameter name → exact weight, as `materialise` returns.
            drafts: Results of a similar version (the parent): its answers are tried as drafts of
                the greedy decode, which changes the time and never the answers.
        """
        raise NotImplementedError


def score(
    base: Any,
    suite: ProbeSuite,
    weights: Mapping[str, Tensor] | None = None,
    *,
    prefix: Any = None,
    reference: Sequence[ProbeResult] | None = None,
    drafts: Sequence[ProbeResult] | None = None,
) -> list[ProbeResult]:
    """Score one version on a suite; see `Scorer`. One result per item, in suite order."""
    return Scorer(base, suite, prefix=prefix, reference=reference).score(weights, drafts=drafts)
