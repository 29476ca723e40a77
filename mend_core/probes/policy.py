"""The gate's policy: a YAML file a team reviews, validated here, named by its digest.

Every threshold says what it demands and, through `Policy.needs`, how many probe items that takes.
A threshold no suite of `items_limit` items could ever satisfy is refused when the file is read,
not discovered at release time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import rfc8785
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from mend_core.errors import PolicyInvalid
from mend_core.probes.statistics import needed_for_margin, needed_for_share, spent_alpha

ALPHA_DEFAULT = 0.05
"""One-sided error level of every statistical check."""

ITEMS_LIMIT_DEFAULT = 20_000
"""Items of the largest suite a team would run; thresholds that need more are impossible."""

UPDATE_NORM_DEFAULT = 0.5
"""Largest allowed Frobenius norm of a matrix's update, relative to the matrix."""

SUCCESS_TARGET_DEFAULT = 0.8
GENERALITY_TARGET_DEFAULT = 0.5
PARENT_MARGIN_DEFAULT = 0.10
DRIFT_MARGIN_DEFAULT = 0.15
NEIGHBOUR_MARGIN_DEFAULT = 0.25
PERPLEXITY_RATIO_DEFAULT = 1.05
KL_DEFAULT = 0.10

DEFAULT = "default"

SHIPPED = ("default", "strict", "demo")
"""Names `load_policy` knows besides paths."""

Score = Literal["free", "forced"]
"""Which verdict of an item counts: its free-running answer, or teacher-forced exactness."""


class _Part(BaseModel):
    """A section of the file: unknown keys are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Hard(_Part):
    """Invariants with zero tolerance.

    Attributes:
        finite: Demand that no logit, loss or update is NaN or Inf.
        update_norm: Largest ‖ΔW‖/‖W‖ (Frobenius) of any edited matrix; None asks nothing.
        protected: Demand every protected prompt's answer to be the base's own.
        own_prompt: Demand every new edit's own prompt to be answered with its target.
        own_prompt_score: How that is judged.
        golden_new_failures: Golden prompts that may fail though they passed at the base.
        health_new_failures: Free-text prompts that may degenerate though they were healthy there.
    """

    finite: bool = True
    update_norm: float | None = Field(default=UPDATE_NORM_DEFAULT, gt=0)
    protected: bool = True
    own_prompt: bool = True
    own_prompt_score: Score = "free"
    golden_new_failures: int = Field(default=0, ge=0)
    health_new_failures: int = Field(default=0, ge=0)


WhenFew = Literal["inconclusive", "observed", "report"]
"""What is said where there are too few items for even the best result to show what is demanded:
"inconclusive"; "observed" (the plain rate is judged, and the sentence says so); or "report" (the
numbers are told and nothing is judged by them)."""


class ShareRule(_Part):
    """A share that must be shown to reach a target.

    Attributes:
        target: The Wilson lower bound (one-sided, at `alpha`) must reach this. None reports the
            share and judges nothing by it.
        score: Which verdict counts.
        when_few: See `WhenFew`.
        when_empty: With no item at all: "inconclusive" or "skip".
    """

    target: float | None = Field(gt=0, lt=1)
    score: Score = "free"
    when_few: WhenFew = "observed"
    when_empty: Literal["inconclusive", "skip"] = "skip"


class PairedRule(_Part):
    """A loss that must be shown to be smaller than a margin, slice by slice.

    Attributes:
        margin: Largest harmless net loss, as a share of the slice's items.
        slices: Margins of single slices in place of `margin`, by name or by what stands before the
            "/" of it. None reports the loss of that slice and judges nothing by it.
        score: Which verdict counts.
        when_few: See `WhenFew`.
        when_empty: With no item at all: "inconclusive" or "skip".
    """

    margin: float = Field(gt=0, lt=1)
    slices: dict[str, float | None] = Field(default_factory=dict)
    score: Score = "free"
    when_few: WhenFew = "inconclusive"
    when_empty: Literal["inconclusive", "skip"] = "skip"

    @model_validator(mode="after")
    def _margins(self) -> Self:
        for name, margin in self.slices.items():
            if margin is not None and not 0 < margin < 1:
                raise ValueError(f"slices.{name}: a margin must lie strictly between 0 and 1")
        return self

    def margin_of(self, name: str) -> float | None:
        """The margin of a slice: its own, else its group's, else the general one."""
        group = name.partition("/")[0]
        return self.slices.get(name, self.slices.get(group, self.margin))


class DriftRule(PairedRule):
    """The paired rule against the base, where many small passes add up.

    Attributes:
        spend: "none" tests each version at alpha; "basel" spends one alpha over all versions.
        perplexity_ratio: Largest perplexity against the base's; None asks nothing.
        kl: Largest mean KL(base ‖ version) per token of text, nats; None asks nothing.
    """

    spend: Literal["none", "basel"] = "none"
    perplexity_ratio: float | None = Field(default=PERPLEXITY_RATIO_DEFAULT, gt=0)
    kl: float | None = Field(default=KL_DEFAULT, gt=0)


class Policy(_Part):
    """A gate's policy. `digest` names its content, whatever the file's layout or comments."""

    name: str = Field(min_length=1)
    says: str = ""
    alpha: float = Field(default=ALPHA_DEFAULT, gt=0, lt=0.5)
    items_limit: int = Field(default=ITEMS_LIMIT_DEFAULT, ge=1)
    hard: Hard = Hard()
    success: ShareRule | None = Field(
        default_factory=lambda: ShareRule(target=SUCCESS_TARGET_DEFAULT)
    )
    generality: ShareRule | None = Field(
        default_factory=lambda: ShareRule(target=GENERALITY_TARGET_DEFAULT)
    )
    parent: PairedRule | None = Field(
        default_factory=lambda: PairedRule(
            margin=PARENT_MARGIN_DEFAULT, slices={"neighbour": NEIGHBOUR_MARGIN_DEFAULT}
        )
    )
    drift: DriftRule | None = Field(
        default_factory=lambda: DriftRule(
            margin=DRIFT_MARGIN_DEFAULT, slices={"neighbour": NEIGHBOUR_MARGIN_DEFAULT}
        )
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for need in self.needs():
            if need["n"] is None or need["n"] > self.items_limit:
                n = "no finite number of" if need["n"] is None else f"{need['n']:,}"
                raise ValueError(
                    f"{need['rule']} asks for {need['asks']} at error level {need['alpha']:.2g}:"
                    f" even without a single failure that takes {n} items, and items_limit is"
                    f" {self.items_limit:,}; loosen the threshold or raise items_limit"
                )
        return self

    @property
    def digest(self) -> str:
        """Name of the policy: sha256 of the canonical JSON of all values, defaults included."""
        content = rfc8785.dumps(self.model_dump(mode="json"))
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    def needs(self) -> list[dict[str, Any]]:
        """Per statistical threshold, the items it takes in the best case (no failure at all)."""
        found: list[dict[str, Any]] = []
        for rule, share in (("success", self.success), ("generality", self.generality)):
            if share is not None and share.target is not None:
                n = needed_for_share(share.target, 1.0, self.alpha)
                asks = f"at least {share.target:.4g}"
                found.append({"rule": rule, "asks": asks, "alpha": self.alpha, "n": n})
        for rule, paired in (("parent", self.parent), ("drift", self.drift)):
            if paired is not None:
                margins = {rule: paired.margin} | {
                    f"{rule}.slices.{name}": margin
                    for name, margin in paired.slices.items()
                    if margin is not None
                }
                for where, margin in margins.items():
                    n = needed_for_margin(margin, self.alpha)
                    asks = f"a loss below {margin:.4g}"
                    found.append({"rule": where, "asks": asks, "alpha": self.alpha, "n": n})
        return found

    def drift_alpha(self, number: int) -> float:
        """Error level of the check against the base for the number-th version (from 1)."""
        if self.drift is not None and self.drift.spend == "basel":
            return spent_alpha(self.alpha, number)
        return self.alpha

    def to_dict(self) -> dict[str, Any]:
        """All values, JSON-ready."""
        return self.model_dump(mode="json")


def parse_policy(text: str, *, name: str = "policy") -> Policy:
    """Read a policy from YAML text.

    Raises:
        PolicyInvalid: Not YAML, unknown keys, values out of range, or impossible thresholds (says
            how many items they would need).
    """
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise PolicyInvalid(
            f"{name}{where}: not YAML: {getattr(error, 'problem', error)}"
        ) from error
    except RecursionError as error:
        raise PolicyInvalid(f"{name}: nested too deeply") from error
    if not isinstance(content, Mapping):
        raise PolicyInvalid(f"{name}: expected keys and values, got {type(content).__name__}")
    try:
        return Policy.model_validate(dict(content))
    except ValidationError as error:
        problems = "; ".join(_problem(e["loc"], e["msg"], e["type"]) for e in error.errors())
        raise PolicyInvalid(f"{name}: {problems}") from error


def _problem(where: tuple[int | str, ...], message: str, kind: str) -> str:
    path = ".".join(str(part) for part in where)
    if kind == "extra_forbidden":
        return f"{path}: unknown key"
    message = message.removeprefix("Value error, ")
    return f"{path}: {message}" if path else message


def load_policy(source: str | Path) -> Policy:
    """Read a policy: a shipped name ("default", "strict", "demo") or a path to a YAML file.

    Raises:
        PolicyInvalid: As `parse_policy`, or the file cannot be read.
    """
    if isinstance(source, str) and source in SHIPPED:
        shipped = resources.files("mend_core.probes") / "policies" / f"{source}.yaml"
        return parse_policy(shipped.read_text(encoding="utf-8"), name=f"policy {source}")
    path = Path(source)
    try:
        text = path.read_bytes().decode()
    except OSError as error:
        raise PolicyInvalid(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise PolicyInvalid(f"{path}: not UTF-8 at byte {error.start}") from error
    return parse_policy(text, name=str(path))
