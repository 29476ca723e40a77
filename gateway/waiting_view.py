"""Words for people who wait: how far edits are, what keeps them, and what came of them."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.cells import cell_len, set_cell_size

from gateway.output import err, note, say
from service.summary import Answer, EditSummary, NextStep, Summary
from service.waiting import Hindrance, Progress

WIDTH = 80
ANSWER = 24
"""Cells an answer gets in a line; `--json` and reports have it whole."""

FULL = 3
"""Edits that are told with all their answers; of more, each gets one line."""

LISTED = 12
"""Edits of many that get a line, the ones that are not live first."""

BROKEN_SHOWN = 5

HINDERED = {
    Hindrance.NO_WORKER: "no worker is alive: start one with `mend up`",
    Hindrance.PAUSED: "model {} is paused: `mend resume` lets it go on",
    Hindrance.PROBLEM: "the model cannot be worked on: {}",
}

NEXT = {
    NextStep.APPROVE: "mend approve {id}  (someone else than who submitted it)",
    NextStep.JUDGE_VERSION: "mend gate show {version}; then mend gate override or decline",
    NextStep.PROMOTE: "mend promote {version}",
    NextStep.LOOK: "mend show {id}",
    NextStep.WAIT: "mend edits",
}


def hindrances(progress: Progress) -> list[str]:
    """What keeps edits waiting, in words."""
    return [HINDERED[one].format(detail) for one, detail in progress.hindrances.items()]


def stage_words(
    batch: int, stage: str | None, done: int, of: int | None, left: float | None = None
) -> str:
    """How far a batch is: "batch 3: probing 120 of 512, about 8 s left"."""
    if stage is None:
        return f"batch {batch}: begun"
    counted = "" if of is None else f" {done} of {of}"
    rest = "" if left is None else f", about {left:.0f} s left"
    return f"batch {batch}: {stage}{counted}{rest}"


def progress_words(progress: Progress) -> str:
    """How far edits are, in one line."""
    parts = [", ".join(f"{n} {state}" for state, n in sorted(progress.counts.items()))]
    if progress.ahead:
        parts.append(f"{progress.ahead} before them in the queue")
    return "; ".join(parts + standing(progress))


def standing(progress: Progress) -> list[str]:
    """What is in work and what keeps it, without the counts; nothing where all is settled."""
    if progress.settled:
        return []
    work = []
    if progress.batch is not None:
        work = [
            stage_words(
                progress.batch,
                progress.stage,
                progress.done,
                progress.of,
                progress.seconds_left,
            )
        ]
    return work + hindrances(progress)


class Ticker:
    """Progress on standard error: one line that moves on a terminal, else a line a change."""

    def __init__(self) -> None:
        self._status = err.status("waiting …") if err.is_terminal else None
        self._said: object = None

    def __enter__(self) -> Self:
        """Itself."""
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the line away."""
        if self._status is not None:
            self._status.stop()

    def __call__(self, progress: Progress) -> None:
        """Tell how far it is."""
        if self._status is not None:
            self._status.update(progress_words(progress))
            return
        news = (dict(progress.counts), progress.batch, progress.stage, dict(progress.hindrances))
        if news != self._said:
            self._said = news
            note(progress_words(progress))


def fitted(text: str, width: int) -> str:
    """A text in one line of so many cells."""
    flat = " ".join(text.split())
    return set_cell_size(flat if cell_len(flat) <= width else flat[: width - 1] + "…", width)


def show_summary(summary: Summary) -> None:
    """Answers in one screen: did it work, and what else changed?"""
    if len(summary.edits) <= FULL:
        for edit in summary.edits:
            _show_edit(edit)
    else:
        _show_many(summary.edits)
    _show_elsewhere(summary)
    steps = dict.fromkeys(
        NEXT[e.next].format(id=e.id, version=e.version) for e in summary.edits if e.next in NEXT
    )
    for step in list(steps)[:FULL]:
        say(f"Next: {step}")
    if summary.all_live:
        say("All are live. Take them back with: mend rollback")


def _show_edit(edit: EditSummary) -> None:
    where = "" if edit.version is None else f" in version {edit.version}"
    say(f"Edit {edit.id} is {edit.state}{where}: {fitted(edit.prompt, 48).rstrip()}")
    if edit.why:
        say(f"  because {edit.why}")
    if edit.own is None:
        say("  its prompt was not asked")
        return
    _show_answer("prompt", edit.own)
    given = [answer for answer in edit.neighbours if answer.slice == GIVEN]
    for name, answers in (("paraphrase", edit.paraphrases), ("neighbour", given)):
        for answer in answers[:SHOWN]:
            say(f"     {name}: {fitted(answer.prompt, WIDTH - 18).rstrip()}")
            _show_answer("", answer)
    for ring, words in RINGS.items():
        asked = [answer for answer in edit.neighbours if answer.slice == ring]
        if asked:
            say(f"     {words}: {sum(a.good for a in asked)} of {len(asked)} unchanged")


GIVEN = "neighbour/given"

RINGS = {
    "neighbour/relation": "the same statement about other subjects",
    "neighbour/subject": "other statements about its subject",
}
"""Slices of the neighbours made by rule, in the words a person reads."""

SHOWN = 2
"""Paraphrases and given neighbours shown of one edit."""


def _show_answer(name: str, answer: Answer) -> None:
    mark = "ok" if answer.good else "NO"
    before, after = fitted(_said(answer.before), ANSWER), fitted(_said(answer.after), ANSWER)
    say(f"  {mark} {name:<10} {before} → {after}".rstrip())


def _said(answer: str) -> str:
    return answer if answer.strip() else "(no answer)"


def _show_many(edits: Sequence[EditSummary]) -> None:
    worst = sorted(edits, key=lambda e: (e.next is NextStep.NOTHING, e.id))
    for edit in worst[:LISTED]:
        own = "not asked" if edit.own is None else edit.own.after
        kept = _share(edit.paraphrases), _share(edit.neighbours)
        say(
            f"{edit.id:>7} {fitted(str(edit.state), 12)} {fitted(edit.prompt, 26)} "
            f"{fitted(own, 16)} {kept[0]:>5} {kept[1]:>5}".rstrip()
        )
    if len(edits) > LISTED:
        say(f"        and {len(edits) - LISTED} more: see `mend edits`")
    live = sum(e.next is NextStep.NOTHING and str(e.state) == "live" for e in edits)
    took = [e.own for e in edits if e.own is not None]
    say(
        f"{live} of {len(edits)} live; own prompt {_share(took)}, paraphrases "
        f"{_share([a for e in edits for a in e.paraphrases])}, neighbours "
        f"{_share([a for e in edits for a in e.neighbours])} as wanted (- : none asked)"
    )


def _share(answers: Sequence[Answer]) -> str:
    return f"{sum(a.good for a in answers)}/{len(answers)}" if answers else "-"


def _show_elsewhere(summary: Summary) -> None:
    if not summary.versions:
        say("No version was built, so nothing else can have changed.")
        return
    if not summary.others_asked:
        say("Nothing else was asked, so nobody knows what else changed.")
        return
    numbers = ", ".join(map(str, summary.versions))
    say(
        f"Other answers: {len(summary.broken)} of {summary.others_asked} broke (version {numbers})."
    )
    for answer in summary.broken[:BROKEN_SHOWN]:
        say(f"  NO {fitted(answer.prompt, WIDTH - 5).rstrip()}")
        before, after = _said(answer.before), _said(answer.after)
        say(f"     {fitted(before, 34)} → {fitted(after, 34)}".rstrip())
    if len(summary.broken) > BROKEN_SHOWN:
        more = len(summary.broken) - BROKEN_SHOWN
        say(f"  and {more} more: mend report {summary.versions[-1]}")
