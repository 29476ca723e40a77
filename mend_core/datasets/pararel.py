"""ParaRel (Elazar et al. 2021) as a source of training edits with many paraphrases.

A fact is turned into a counterfactual edit: the object is replaced by another object of the same
relation; one pattern is the prompt, others are paraphrases, other subjects of the relation are
locality prompts. Only patterns that end with the object can be asked of a left-to-right model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mend_core.datasets.edit import Edit, PromptAnswer
from mend_core.errors import DataError

_MIN_PATTERNS = 2


def read_pararel(path: str | Path, *, seed: int = 0, max_paraphrases: int = 4) -> Iterator[Edit]:
    """Stream counterfactual edits, shuffled over relations; the same seed gives the same edits.

    Raises:
        DataError: Not JSON, not UTF-8, or a relation without ``facts`` and ``patterns``.
    """
    name = str(path)
    try:
        relations = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(name, None, None, "no such file") from error
    except ValueError as error:
        raise DataError(name, None, None, f"not UTF-8 JSON: {error}") from error
    if not isinstance(relations, dict):
        raise DataError(name, None, None, "expected an object: relation → facts and patterns")
    rng = random.Random(seed)  # noqa: S311 - sampling, not secrets
    plan = [
        (relation, i)
        for relation, body in sorted(relations.items())
        if len(_stems(name, relation, body)) >= _MIN_PATTERNS
        for i in range(len(body["facts"]))
    ]
    rng.shuffle(plan)
    objects = {r: sorted({f["obj_label"] for f in b["facts"]}) for r, b in relations.items()}
    for relation, i in plan:
        body = relations[relation]
        facts: list[dict[str, str]] = body["facts"]
        fact = facts[i]
        others = [o for o in objects[relation] if o != fact["obj_label"]]
        if not others:
            continue
        stems = _stems(name, relation, body)
        chosen = rng.sample(stems, min(len(stems), 1 + max_paraphrases))
        near = rng.choice(facts)
        locality: tuple[PromptAnswer, ...] = ()
        if near["sub_label"] != fact["sub_label"]:
            prompt = rng.choice(stems).replace("[X]", near["sub_label"])
            locality = (PromptAnswer(prompt, near["obj_label"]),)
        prompts = [stem.replace("[X]", fact["sub_label"]) for stem in chosen]
        yield Edit(
            id=f"{relation}:{i}",
            prompt=prompts[0],
            target=rng.choice(others),
            subject=fact["sub_label"],
            paraphrases=tuple(prompts[1:]),
            locality=locality,
        )


def _stems(name: str, relation: str, body: Any) -> list[str]:
    """Patterns up to their object, where the object comes last."""
    try:
        patterns = [p["pattern"] for p in body["patterns"]]
        body["facts"]  # its absence is an error
    except (KeyError, TypeError) as error:
        raise DataError(name, None, relation, f"expected facts and patterns: {error}") from error
    stems = []
    for pattern in patterns:
        head, found, tail = pattern.partition("[Y]")
        if found and not tail.strip(" .") and "[X]" in head:
            stems.append(head.strip())
    return sorted(set(stems))
