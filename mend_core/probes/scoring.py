"""Scoring a version on a suite: one implementation for library, gate and benchmarks.

Both ways of asking are always measured: teacher-forced (each expected token given the expected
ones before it, what papers print) and free-running (the greedy answer up to its natural stop, what
a user sees). Locality is against the *base's own* answer, never against a reference text: its
teacher-forced form scores the version on the base's own greedy tokens. Verdicts are in
`verdicts.py`.

Texts are cut into windows of `WINDOW` tokens (seq2seq: each window's first half is the source, its
second half the target); perplexity counts every token but a window's first, KL is
KL(base ‖ version) at the same positions. Classifiers have no text scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from mend_core.models.base import Base
from mend_core.models.encode import encode_prompts
from mend_core.models.overlay import Overlay
from mend_core.models.prefix import PrefixCache, forward
from mend_core.probes.asking import Asked, batches, encode_suite, window
from mend_core.probes.decode import Stops, Trace, Track, go_on, kept_logits, trace
from mend_core.probes.reading import TextSum, filled
from mend_core.probes.results import ProbeResult, question
from mend_core.probes.suites import (
    GOLDEN_KINDS,
    TARGET_KINDS,
    UNCHANGED_KINDS,
    ProbeItem,
    ProbeKind,
    ProbeSuite,
)
from mend_core.probes.verdicts import answers, contains, healthy, repetition, squeeze, unchanged
from mend_core.safepoints import safe_point

SCORING = 1
"""Raise where a model would get other results for the same items; kept results hang on it."""

BATCH_DEFAULT = 32
"""Tracks per forward pass."""

WINDOW = 128
"""Tokens of text scored together."""

NOTHING = Trace((), (), finite=True)
"""The trace of an item that expects no text."""


class Scorer:
    """Scores versions of one base on one suite; keeps encoded items and prefix activations warm.

    Args:
        base: The base model, its own weights in place.
        suite: The checks.
        prefix: A `PrefixCache` shared with factor extraction; None makes one.
        use_prefix: False runs full forwards (same scores to 1e-5; for benchmarks).
        reference: Results of this very base that are already known, of this suite or another;
            only what they do not answer is asked, on first use.
        batch_size: Tracks per forward pass.
        progress: Called with (items done, items in all).

    Raises:
        SuiteInvalid: An item cannot be asked of this model: too long, no tokens, not a label.
    """

    def __init__(
        self,
        base: Base,
        suite: ProbeSuite,
        *,
        prefix: PrefixCache | None = None,
        use_prefix: bool = True,
        reference: Sequence[ProbeResult] | None = None,
        batch_size: int = BATCH_DEFAULT,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.base = base
        self.suite = suite
        self.batch_size = batch_size
        self.progress = progress
        self._use_prefix = use_prefix
        self._prefix = prefix
        self._overlay = Overlay(base)
        self._stops = Stops.of(base)
        self._asked = encode_suite(base, suite, self._stops)
        self._known = tuple(reference or ())
        self._reference: dict[str, ProbeResult] | None = None

    def reference(self) -> list[ProbeResult]:
        """The base's own results, in suite order; computed once."""
        if self._reference is None:
            self._reference = self._complete(None, {}, self._known, complete=True)
        return [self._reference[item.id] for item in self.suite.items]

    def score(
        self,
        weights: Mapping[str, Tensor] | None = None,
        *,
        drafts: Sequence[ProbeResult] | None = None,
        known: Sequence[ProbeResult] | None = None,
        complete: bool = True,
    ) -> list[ProbeResult]:
        """Score one version.

        Args:
            weights: Full parameter name → exact weight, as `materialise` returns; None for the
                base itself.
            drafts: Results of a similar version (the parent): its answers are tried as guesses of
                the greedy answers, which changes the time taken and not the answers.
            known: Results of this very version that are already known (of the parent, when subsets
                of one batch are judged one after the other), in any suite; only what they do not
                answer is asked.
            complete: False ends an answer where it first differs from what is expected: the same
                verdicts and scores, shorter answers, less decoding. For searching, not for showing.

        Returns:
            One result per item, in suite order. NaN and Inf show as `finite=False`, never as an
            error.
        """
        reference = self.reference()
        if not weights:
            return reference
        guesses: dict[str, list[tuple[int, ...]]] = {}
        for result in (*(drafts or ()), *reference):
            guesses.setdefault(result.item_id, []).append(result.answer_tokens)
        found = self._complete(weights, guesses, known or (), complete=complete)
        return [found[item.id] for item in self.suite.items]

    def _complete(
        self,
        weights: Mapping[str, Tensor] | None,
        guesses: Mapping[str, list[tuple[int, ...]]],
        known: Sequence[ProbeResult],
        *,
        complete: bool,
    ) -> dict[str, ProbeResult]:
        """Results of every item by id: the known ones that fit, and the rest asked."""
        # By what is asked, not by id: in another suite the same question has another name.
        results = {question(r): r for r in known}
        found = {
            item.id: replace(
                results[question(item)],
                item_id=item.id,
                slice=item.slice,
                edit_id=item.edit_id,
                never_for_tuning=item.never_for_tuning,
            )
            for item in self.suite.items
            if question(item) in results
        }
        open_items = [a for a in self._asked if a.item.id not in found]
        asked = self._run(open_items, weights, guesses, complete=complete)
        return found | {r.item_id: r for r in asked}

    def _run(
        self,
        asked_items: Sequence[Asked],
        weights: Mapping[str, Tensor] | None,
        guesses: Mapping[str, list[tuple[int, ...]]],
        *,
        complete: bool,
    ) -> list[ProbeResult]:
        prefix = self._prefix_for(weights)
        found: dict[str, ProbeResult] = {}
        questions = [a for a in asked_items if a.item.kind is not ProbeKind.PERPLEXITY]
        texts = [a for a in asked_items if a.item.kind is ProbeKind.PERPLEXITY]
        with self._in_place(weights):
            for batch in batches(questions, self.batch_size):
                safe_point()
                run = self._classify if self.base.kind == "classifier" else self._ask
                for result in run(
                    batch, guesses, prefix, base_run=weights is None, complete=complete
                ):
                    found[result.item_id] = result
                self._tell(len(found))
        if texts:
            found |= {read.item_id: read for read in self._read(texts, weights, prefix)}
            self._tell(len(found))
        return list(found.values())

    def _tell(self, done: int) -> None:
        if self.progress is not None:
            self.progress(done, len(self.suite))

    @contextmanager
    def _in_place(self, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
        if weights is None:
            yield
            return
        with self._overlay.in_place(weights):
            yield

    def _prefix_for(self, weights: Mapping[str, Tensor] | None) -> PrefixCache | None:
        """A cache that ends before the first changed block; states past it would be the base's."""
        if not self._use_prefix:
            return None
        names = None if weights is None else sorted(weights)
        if self._prefix is None or names is not None:
            first = min(matrix.block for matrix in self.base.matrices(names))
            if self._prefix is None or first < self._prefix.first_block:
                self._prefix = PrefixCache(self.base, first)
        return self._prefix

    # -- prompts -------------------------------------------------------------------------------

    def _ask(
        self,
        batch: Sequence[Asked],
        guesses: Mapping[str, list[tuple[int, ...]]],
        prefix: PrefixCache | None,
        *,
        base_run: bool,
        complete: bool,
    ) -> list[ProbeResult]:
        expected = [
            self._expected(a) if a.item.kind in UNCHANGED_KINDS and not base_run else a.target
            for a in batch
        ]
        # The trace of what is expected is the teacher-forced score, and the first guess. Where
        # nothing is expected, decoding reads the prompt anyway.
        rows = [row for row, tokens in enumerate(expected) if tokens]
        tracks = [
            Track(
                batch[row].prompt,
                expected[row],
                after=not batch[row].goal.reached(expected[row], self._stops),
            )
            for row in rows
        ]
        first = [NOTHING] * len(batch)
        proven: list[tuple[int, ...]] = [()] * len(batch)
        for row, seen in zip(rows, trace(self.base, tracks, prefix) if rows else (), strict=True):
            first[row] = seen
            proven[row] = batch[row].goal.cut(seen.accepted(expected[row]), self._stops)
        finite = [seen.finite for seen in first]
        self._try_guesses(batch, guesses, prefix, proven, finite)
        open_rows = [
            row
            for row, asked in enumerate(batch)
            if not asked.goal.reached(proven[row], self._stops)
            and (complete or base_run or not self._told(asked, proven[row]))
        ]
        if open_rows:
            rest = go_on(
                self.base,
                [Track(batch[row].prompt, proven[row]) for row in open_rows],
                [batch[row].goal for row in open_rows],
                self._stops,
            )
            for row, (answer, fine) in zip(open_rows, rest, strict=True):
                proven[row] = answer
                finite[row] = finite[row] and fine
        return [
            self._judge(asked, first[row], proven[row], finite[row], base_run=base_run)
            for row, asked in enumerate(batch)
        ]

    def _try_guesses(
        self,
        batch: Sequence[Asked],
        guesses: Mapping[str, list[tuple[int, ...]]],
        prefix: PrefixCache | None,
        proven: list[tuple[int, ...]],
        finite: list[bool],
    ) -> None:
        """Lengthen the proven answers by guesses that agree with them so far."""
        tracks, owners = [], []
        for row, asked in enumerate(batch):
            so_far = proven[row]
            if asked.goal.reached(so_far, self._stops):
                continue
            for guess in dict.fromkeys(guesses.get(asked.item.id, [])):
                if len(guess) > len(so_far) and guess[: len(so_far)] == so_far:
                    after = not asked.goal.reached(guess, self._stops)
                    tracks.append(Track(asked.prompt, guess, after=after))
                    owners.append(row)
        for start in range(0, len(tracks), self.batch_size):
            part = tracks[start : start + self.batch_size]
            seen = trace(self.base, part, prefix)
            rows = owners[start : start + self.batch_size]
            for row, track, found in zip(rows, part, seen, strict=True):
                longer = batch[row].goal.cut(found.accepted(track.continuation), self._stops)
                finite[row] = finite[row] and found.finite
                if len(longer) > len(proven[row]):
                    proven[row] = longer

    def _told(self, asked: Asked, tokens: tuple[int, ...]) -> bool:
        """Whether an unfinished answer already differs from what is expected."""
        item = asked.item
        if item.compare == "lead":
            return False  # short answers, told apart by words and not by their beginnings
        if item.kind in UNCHANGED_KINDS:
            wanted = squeeze(self._own_answer(item))
        elif item.kind in TARGET_KINDS:
            wanted = squeeze(item.expect[0])
        else:
            return False
        answer = self.base.tokenizer.decode(tokens, skip_special_tokens=True)
        text = squeeze(answer.rstrip("\ufffd"))  # half a character says nothing yet
        return not (wanted.startswith(text) or text.startswith(wanted))

    def _expected(self, asked: Asked) -> tuple[int, ...]:
        """The base's own answer without the token that stopped it (unless that is all of it)."""
        assert self._reference is not None
        tokens = self._reference[asked.item.id].answer_tokens
        place = self._stops.place(tokens, lines=asked.goal.lines)
        return tokens[:place] if place else tokens

    def _judge(
        self, asked: Asked, seen: Trace, tokens: tuple[int, ...], finite: bool, *, base_run: bool
    ) -> ProbeResult:
        item = asked.item
        answer = self.base.tokenizer.decode(tokens, skip_special_tokens=True)
        result = _blank(item, answer, tokens, finite)
        if item.kind in GOLDEN_KINDS:
            found = [contains(answer, text) for text in item.expect]
            good = all(found) if item.kind is ProbeKind.MUST_CONTAIN else not any(found)
            return replace(result, passed=finite and good)
        if item.kind is ProbeKind.HEALTH:
            good = healthy(answer, tokens)
            return replace(result, passed=finite and good, repetition=repetition(tokens))
        if item.kind in UNCHANGED_KINDS and base_run:
            # The base's own greedy answer is right at every place by definition.
            return replace(
                result,
                expect=(answer,),
                passed=finite,
                passed_forced=finite,
                token_accuracy=1.0 if finite else 0.0,
                tokens=len(tokens),
            )
        if item.kind in UNCHANGED_KINDS:
            expected = self._expected(asked)
            own = self._own_answer(item)
            same = unchanged(answer, own, item.compare)
            result = replace(result, expect=(own,), passed=finite and same)
        else:
            expected = asked.target
            result = replace(result, passed=finite and answers(answer, item.expect[0]))
        right = [a == b for a, b in zip(seen.best, expected, strict=False)]
        return replace(
            result,
            passed_forced=finite and all(right),
            token_accuracy=sum(right) / len(expected) if finite else 0.0,
            tokens=len(expected),
            nll=sum(seen.nll) if seen.finite else None,
        )

    def _own_answer(self, item: ProbeItem) -> str:
        assert self._reference is not None
        return self._reference[item.id].answer

    @torch.no_grad()
    def _classify(
        self,
        batch: Sequence[Asked],
        guesses: Mapping[str, list[tuple[int, ...]]],
        prefix: PrefixCache | None,
        *,
        base_run: bool,
        complete: bool,
    ) -> list[ProbeResult]:
        """A classifier's answer is its label; both ways of asking are one."""
        del guesses, complete
        encoded = encode_prompts(self.base, [a.item.prompt for a in batch])
        logits = forward(self.base, encoded, prefix=prefix).float().cpu()
        losses = -torch.log_softmax(logits.double(), dim=-1)
        names = self.base.model.config.id2label
        results = []
        for row, asked in enumerate(batch):
            item, label = asked.item, int(logits[row].argmax())
            finite = bool(torch.isfinite(logits[row]).all())
            result = _blank(item, str(names[label]), (label,), finite)
            if item.kind in GOLDEN_KINDS:
                found = [contains(result.answer, text) for text in item.expect]
                good = all(found) if item.kind is ProbeKind.MUST_CONTAIN else not any(found)
                results.append(replace(result, passed=finite and good))
                continue
            if item.kind is ProbeKind.HEALTH:
                results.append(replace(result, passed=finite, repetition=0.0))
                continue
            if item.kind in UNCHANGED_KINDS:
                wanted = label if base_run else self._expected(asked)[0]
                result = replace(result, expect=(str(names[wanted]),))
            else:
                wanted = asked.target[0]
            good = finite and label == wanted
            results.append(
                replace(
                    result,
                    passed=good,
                    passed_forced=good,
                    token_accuracy=float(good),
                    tokens=1,
                    nll=float(losses[row, wanted]) if finite else None,
                )
            )
        return results

    # -- texts ---------------------------------------------------------------------------------

    @torch.no_grad()
    def _read(
        self,
        texts: Sequence[Asked],
        weights: Mapping[str, Tensor] | None,
        prefix: PrefixCache | None,
    ) -> list[ProbeResult]:
        """Perplexity and KL on texts; the base's logits are made beside the version's."""
        windows = [
            (asked.item.id, window(self.base, asked.prompt[at : at + WINDOW]))
            for asked in texts
            for at in range(0, len(asked.prompt), WINDOW)
            if len(asked.prompt[at : at + WINDOW]) > 1
        ]
        sums = {asked.item.id: TextSum() for asked in texts}
        for batch in filled(windows):
            safe_point()
            tracks = [track for _, track in batch]
            target = torch.tensor([token for t in tracks for token in t.continuation])
            own = self._log_probabilities(tracks, prefix)
            now = own
            if weights is not None:
                with self._in_place(weights):
                    now = self._log_probabilities(tracks, prefix)
            drift = (own.exp() * (own - now)).sum(-1).double().cpu()
            loss = -now.gather(-1, target.to(now.device)[:, None])[:, 0].double().cpu()
            fine = torch.isfinite(now).all(-1).cpu()
            at = 0
            for item_id, track in batch:
                span = slice(at, at + len(track.continuation))
                sums[item_id].add(drift[span], loss[span], fine[span])
                at = span.stop
        return [
            _text_result(asked.item, sums[asked.item.id], base_run=weights is None)
            for asked in texts
        ]

    def _log_probabilities(self, tracks: Sequence[Track], prefix: PrefixCache | None) -> Tensor:
        """Log-probabilities (tokens, vocabulary) fp32 of the windows' continuations."""
        return torch.log_softmax(kept_logits(self.base, tracks, prefix), dim=-1)


def score(
    base: Base,
    suite: ProbeSuite,
    weights: Mapping[str, Tensor] | None = None,
    *,
    prefix: PrefixCache | None = None,
    reference: Sequence[ProbeResult] | None = None,
    drafts: Sequence[ProbeResult] | None = None,
) -> list[ProbeResult]:
    """Score one version on a suite; see `Scorer`. One result per item, in suite order."""
    return Scorer(base, suite, prefix=prefix, reference=reference).score(weights, drafts=drafts)


def _text_result(item: ProbeItem, read: TextSum, *, base_run: bool) -> ProbeResult:
    result = _blank(item, "", (), read.finite)
    if not read.finite:
        return replace(result, tokens=read.tokens)
    if not read.tokens:
        return replace(result, passed=True)
    # Rounding may leave -1e-9; the base differs from itself by nothing.
    kl = 0.0 if base_run else max(0.0, read.drift / read.tokens)
    return replace(result, passed=True, tokens=read.tokens, nll=read.nll, kl=kl)


def _blank(item: ProbeItem, answer: str, tokens: tuple[int, ...], finite: bool) -> ProbeResult:
    return ProbeResult(
        item_id=item.id,
        kind=item.kind,
        slice=item.slice,
        edit_id=item.edit_id,
        prompt=item.prompt,
        expect=item.expect,
        answer=answer,
        answer_tokens=tokens,
        passed=False,
        finite=finite,
        never_for_tuning=item.never_for_tuning,
        max_new_tokens=item.max_new_tokens,
        compare=item.compare,
    )
