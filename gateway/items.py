"""Probe items as a person writes them, checked before they are kept.

The science has the last word (`ProbeItem`), but it speaks where the weights are: an item refused
there would keep its model from being worked on at all. What passes here passes there, which a test
sees to.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

from service.errors import UserError

KINDS = frozenset(
    [
        "locality",
        "protected",
        "capability",
        "must_contain",
        "must_not_contain",
        "perplexity",
        "health",
    ]
)
"""Kinds a user's own suite may hold; edit and paraphrase items are built from edits."""

EXPECT_SOME = frozenset({"must_contain", "must_not_contain"})
EXPECT_ONE = frozenset({"capability"})

FIELDS: dict[str, tuple[type, str]] = {
    "id": (str, "a text"),
    "kind": (str, "a text"),
    "prompt": (str, "a text"),
    "expect": (list, "a list of texts"),
    "slice": (str, "a text"),
    "never_for_tuning": (bool, "true or false"),
    "max_new_tokens": (int, "a whole number"),
}

BUILT = re.compile(
    r"(edit|retained|neighbour|standing):.*|(paraphrase|locality|portability):.*:\d+", re.DOTALL
)
"""Ids of the items that every version's suite gets without being asked."""

RESERVED = re.compile(r"(neighbour|standing)/.*|standing|retained|new", re.DOTALL)
"""Slices that the service fills itself: another item in one would thin out what they show."""

TEXT_LIMIT = 100_000
TOKENS_LIMIT = 512


def parse_items(text: str, name: str) -> list[dict[str, Any]]:
    """Reads probe items, one JSON object a line.

    Raises:
        UserError: A line is no item, or an id occurs twice; the line or the id is named.
    """
    items: list[dict[str, Any]] = []
    # On \n only: JSON texts may hold other Unicode line separators unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            item = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}, line {number}: not JSON ({error})") from error
        if not isinstance(item, dict):
            raise UserError(f"{name}, line {number}: expected an object, got {line[:40]!r}")
        problem = problem_of(item)
        if problem is not None:
            raise UserError(f"{name}, line {number}: item {item.get('id')!r}: {problem}")
        items.append(item)
    counted = Counter(item["id"] for item in items)
    twice = sorted(identity for identity, count in counted.items() if count > 1)
    if twice:
        raise UserError(f"{name}: these ids occur more than once: {', '.join(twice)}")
    return items


def problem_of(item: dict[str, Any]) -> str | None:
    """Finds what the science would refuse later, so that it is said now."""
    return _wrong_field(item) or _wrong_value(item) or _wrong_expect(item)


def _wrong_field(item: dict[str, Any]) -> str | None:
    for name, value in item.items():
        if name not in FIELDS:
            return f"field {name!r} is unknown; there are {', '.join(FIELDS)}"
        kind, words = FIELDS[name]
        # True is an int in Python; as a length it is a mistake.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            return f"field {name!r} must be {words}, not {value!r}"
    for name in ("id", "kind", "prompt", "slice"):
        if not item.get(name, "all" if name == "slice" else "").strip():
            return f"field {name!r} must be a text that is not empty"
    return None


def _wrong_value(item: dict[str, Any]) -> str | None:
    if item["kind"] not in KINDS:
        return f"kind {item['kind']!r} is unknown; there are {', '.join(sorted(KINDS))}"
    if BUILT.fullmatch(item["id"]):
        return "ids of this form are given to the probes built from edits; choose another"
    if RESERVED.fullmatch(item.get("slice", "all")):
        return f"slice {item['slice']!r} is filled by the service itself; choose another name"
    if len(item["prompt"]) > TEXT_LIMIT:
        return f"field 'prompt' has {len(item['prompt'])} characters; at most {TEXT_LIMIT}"
    if not 0 <= item.get("max_new_tokens", 0) <= TOKENS_LIMIT:
        return f"field 'max_new_tokens' must be 0 to {TOKENS_LIMIT}"
    return None


def _wrong_expect(item: dict[str, Any]) -> str | None:
    kind, expect = item["kind"], item.get("expect", [])
    if not all(isinstance(text, str) and text.strip() for text in expect):
        return "field 'expect' must be a list of texts that are not empty"
    if kind in EXPECT_ONE and len(expect) != 1:
        return f"kind {kind!r} needs 'expect', a list of exactly one text"
    if kind in EXPECT_SOME and not expect:
        return f"kind {kind!r} needs 'expect', a list of texts"
    if kind not in EXPECT_ONE | EXPECT_SOME and expect:
        return f"kind {kind!r} takes no 'expect'"
    return None
