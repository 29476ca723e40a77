"""A person's decisions on waiting or failed edits, several at once.

All of one decision is one transaction: a worker sees all of its edits at the same moment, so that
one review becomes one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from ledger import edits
from ledger.errors import LedgerError
from ledger.records import Edit, Model
from ledger.states import EDIT_MOVES, EditState
from service.errors import UserError
from service.session import find_model

Act = Callable[..., Edit]

_LIMIT = 1_000_000


@dataclass(frozen=True, slots=True)
class Verb:
    """A decision on one edit.

    Attributes:
        done: The word for it when it is done.
        act: What does it.
        states: States of edits that it is for; others of a range are left as they are.
    """

    done: str
    act: Act
    states: frozenset[EditState]


APPROVE = Verb("approved", edits.approve, frozenset({EditState.AWAITING_APPROVAL}))
REJECT = Verb("rejected", edits.reject, frozenset({EditState.AWAITING_APPROVAL}))
CANCEL = Verb(
    "cancelled",
    edits.cancel,
    frozenset(one for one in EditState if EditState.CANCELLED in EDIT_MOVES[one]),
)
REDRIVE = Verb(
    "redriven",
    edits.redrive,
    frozenset({EditState.FAILED, EditState.QUARANTINED, EditState.REVERTED}),
)


@dataclass(frozen=True, slots=True)
class Decided:
    """What came of a decision.

    Attributes:
        done: The edits it was done to, as they are now.
        failed: Edit id → why not.
        contradicts: Edit id → the live edit of the same fact whose answer it changes.
    """

    done: tuple[Edit, ...]
    failed: Mapping[int, str]
    contradicts: Mapping[int, Edit]


def decide(
    conn: Connection,
    verb: Verb,
    words: Sequence[str],
    *,
    model: str | None,
    everything: bool = False,
    actor: str,
    reason: str,
) -> Decided:
    """Do one thing to several edits.

    Args:
        conn: The transaction, which is the decision's own.
        verb: What is done.
        words: Ids and ranges of ids, such as "12" and "93-106". An edit of a range that the verb is
            not for is left as it is; one that is named alone fails.
        model: Whose edits the ranges mean; may be left out where only one is registered.
        everything: All edits that the verb is for, instead of `words`.
        actor: Who decides.
        reason: Why.

    Raises:
        UserError: Nothing was named, or nothing of what was named is to be decided.
    """
    if everything == bool(words):
        raise UserError("give ids, ranges such as 93-106, or --all")
    spans = [_span(word) for word in words]
    chosen = {first for first, last in spans if first == last}
    ranges = [span for span in spans if span[0] != span[1]]
    if everything or ranges:
        owner = find_model(conn, model)
        chosen |= _fitting(conn, owner, verb, ranges)
        if not chosen:
            states = " or ".join(sorted(verb.states))
            where = "" if everything else f" of {', '.join(words)}"
            raise UserError(f"no edit{where} of {owner.name} is {states}: nothing was changed")
    done: list[Edit] = []
    failed: dict[int, str] = {}
    before = _live_of_same_fact(conn, sorted(chosen)) if verb is APPROVE else {}
    for edit_id in sorted(chosen):
        try:
            with conn.begin_nested():
                done.append(verb.act(conn, edit_id, actor=actor, reason=reason))
        except LedgerError as error:
            failed[edit_id] = str(error)
    told = {edit.id: before[edit.id] for edit in done if edit.id in before}
    return Decided(tuple(done), failed, told)


def _fitting(
    conn: Connection, model: Model, verb: Verb, ranges: Sequence[tuple[int, int]]
) -> set[int]:
    """Edits of a model that the verb is for: those in ranges, or all without ranges."""
    found = edits.list_edits(conn, model.id, states=sorted(verb.states), limit=_LIMIT)
    return {
        edit.id
        for edit in found
        if not ranges or any(first <= edit.id <= last for first, last in ranges)
    }


def _span(word: str) -> tuple[int, int]:
    first, dash, last = word.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()) or len(word) > 40:  # noqa: PLR2004 - two ids
        raise UserError(f"{word!r} is no edit: give an id such as 12 or a range such as 93-106")
    if dash and int(last) < int(first):
        raise UserError(f"the range {word} ends before it begins: write {last}-{first}")
    return int(first), int(last or first)


def _live_of_same_fact(conn: Connection, ids: Sequence[int]) -> dict[int, Edit]:
    """Edit id → the live edit of the same fact with another target."""
    asked = edits.get_many(conn, ids)
    live = {(e.model_id, e.fact_key): e for e in edits.live_of_same_facts(conn, ids)}
    found = {edit.id: live.get((edit.model_id, edit.fact_key)) for edit in asked}
    return {
        edit.id: other
        for edit in asked
        if (other := found[edit.id]) is not None and other.target != edit.target
    }
