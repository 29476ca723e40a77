"""A suite in a model's own tokens: what the scorer asks, item by item."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mend_core.datasets.edit import Edit
from mend_core.errors import EditError, SuiteInvalid
from mend_core.models.base import Base
from mend_core.models.encode import IGNORE, Encoded, encode_pairs, encode_prompts
from mend_core.models.generate import stop_tokens
from mend_core.probes.decode import Goal, Stops, Track
from mend_core.probes.suites import (
    TARGET_KINDS,
    UNCHANGED_KINDS,
    ProbeItem,
    ProbeKind,
    ProbeSuite,
    build_suite,
)

TARGET_SLACK = 2
"""Tokens an answer is decoded past its target, to see where the word ends."""


@dataclass(frozen=True, slots=True)
class Asked:
    """An item with its token ids; `target` is empty where the item expects no text."""

    item: ProbeItem
    prompt: tuple[int, ...]
    target: tuple[int, ...]
    goal: Goal


def window(base: Base, tokens: tuple[int, ...]) -> Track:
    """A window of text as a track: its first token (seq2seq: first half) is given."""
    given = len(tokens) // 2 if base.kind == "seq2seq" else 1
    return Track(tokens[:given], tokens[given:], after=False)


def batches(asked: Sequence[Asked], size: int) -> Iterator[list[Asked]]:
    """Batches of items of like length, the same ones every time."""
    ordered = sorted(asked, key=lambda a: (len(a.prompt), a.item.id))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def encode_suite(base: Base, suite: ProbeSuite, stops: Stops) -> list[Asked]:
    """Token ids of every item.

    Raises:
        SuiteInvalid: An item cannot be asked of this model.
    """
    prompts: dict[str, tuple[int, ...]] = {}
    targets: dict[str, tuple[int, ...]] = {}
    with_target = [item for item in suite.items if item.kind in TARGET_KINDS]
    alone = [
        item
        for item in suite.items
        if item.kind not in TARGET_KINDS and item.kind is not ProbeKind.PERPLEXITY
    ]
    try:
        if with_target:
            pairs = [(item.prompt, item.expect[0]) for item in with_target]
            names = [item.id for item in with_target]
            encoded = encode_pairs(base, pairs, ids=names)
            for item, prompt, target in zip(with_target, *_split(encoded, stops), strict=True):
                prompts[item.id], targets[item.id] = prompt, target
        if alone:
            names = [item.id for item in alone]
            encoded = encode_prompts(base, [item.prompt for item in alone], ids=names)
            for item, prompt in zip(alone, _split(encoded, stops)[0], strict=True):
                prompts[item.id] = prompt
    except EditError as error:
        raise SuiteInvalid(f"probe item cannot be asked of {base.source}: {error}") from error
    asked = []
    for item in suite.items:
        if item.kind is ProbeKind.PERPLEXITY:
            text = () if base.kind == "classifier" else _text_tokens(base, item.prompt)
            asked.append(Asked(item, text, (), Goal(0, lines=False)))
            continue
        target = targets.get(item.id, ())
        limit = max(item.max_new_tokens, len(target) + TARGET_SLACK if target else 1)
        room = base.max_length - (len(prompts[item.id]) if base.kind == "causal" else 0)
        short = item.kind in TARGET_KINDS | UNCHANGED_KINDS
        lines = short and not any("\n" in text for text in item.expect)
        goal = Goal(max(1, min(limit, room)), lines=lines, target=target)
        asked.append(Asked(item, prompts[item.id], target, goal))
    return asked


def check_suite(base: Base, suite: ProbeSuite) -> None:
    """Refuse a suite that a model cannot be asked, without asking it.

    Raises:
        SuiteInvalid: Names the item and what is wrong, e.g. how many tokens it has.
    """
    encode_suite(base, suite, Stops(stop_tokens(base), frozenset(), frozenset()))


def unaskable(base: Base, edits: Sequence[Edit]) -> dict[str, str]:
    """Edits whose own probes a model cannot be asked, by id, each with the reason.

    Such an edit could be built and never be judged, and with it everything built on it.
    """
    try:
        check_suite(base, build_suite(edits))
    except SuiteInvalid as error:
        if len(edits) == 1:
            return {edits[0].id: str(error.__cause__ or error)}
    else:
        return {}
    half = len(edits) // 2
    return unaskable(base, edits[:half]) | unaskable(base, edits[half:])


def _text_tokens(base: Base, text: str) -> tuple[int, ...]:
    # verbose=False: a text longer than the context is meant to be; it is read in windows.
    plain = base.kind == "seq2seq"
    ids = base.tokenizer(text, add_special_tokens=not plain, verbose=False)["input_ids"]
    return tuple(ids)


def _split(encoded: Encoded, stops: Stops) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Prompt ids and target ids of each row of a batch; a target's end token is no part of it.

    An end token that a seq2seq tokenizer adds is easy to predict; counting it would flatter.
    """
    prompts, targets = [], []
    for row in range(len(encoded)):
        ids = encoded.input_ids[row][encoded.attention_mask[row].bool()].tolist()
        target: list[int] = []
        if encoded.labels is not None and encoded.kind == "classifier":
            target = [int(encoded.labels[row])]
        elif encoded.labels is not None:
            labels = encoded.labels[row]
            target = labels[labels != IGNORE].tolist()
        if encoded.kind == "causal" and target:
            ids = ids[: -len(target)]
        while encoded.kind == "seq2seq" and len(target) > 1 and target[-1] in stops.ends:
            target.pop()
        prompts.append(tuple(ids))
        targets.append(tuple(target))
    return prompts, targets
