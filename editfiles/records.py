"""One record for every way of writing an edit down: our fields and those of public data sets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from editfiles.problems import FileProblem, Place, described
from editfiles.raw import Raw, read_raw
from editfiles.tables import plain_name

Pair = tuple[str, str | None]

NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "case_id"),
    "prompt": ("prompt", "src", "question", "query", "statement"),
    "target": ("target", "target_new", "alt", "new_answer", "new_target", "answer"),
    "subject": ("subject", "entity"),
    "relation": ("relation", "relation_id"),
    "paraphrases": (
        "paraphrases",
        "paraphrase",
        "rephrase_prompt",
        "rephrase",
        "rephrases",
        "paraphrase_prompts",
    ),
    "locality": (
        "locality",
        "neighbours",
        "neighbors",
        "locality_inputs",
        "neighborhood_prompts",
        "locality_prompt",
        "loc",
    ),
    "portability": ("portability", "portability_inputs", "portability_prompt"),
    "reason": ("reason", "comment", "note"),
    "source": ("source",),
    "idempotency_key": ("idempotency_key", "key"),
    "priority": ("priority",),
    "not_before": ("not_before",),
    "expires_at": ("expires_at",),
}
"""Each field with the names that files give it, ours first."""

_ANSWERS = {
    "locality_prompt": ("locality_ground_truth",),
    "loc": ("loc_ans", "loc_answer"),
    "portability_prompt": ("portability_ground_truth",),
}
"""Prompts whose expected answers stand in a field of their own."""

_LEFT_OUT = frozenset(
    {
        *("answers", "pred", "cond", "ground_truth", "old_answer", "target_true"),
        *("pararel_idx", "attribute_prompts", "generation_prompts", "concept", "labels"),
        *(name for names in _ANSWERS.values() for name in names),
    }
)
"""Fields of data sets that say nothing of the edit that is asked for."""

FIELD_OF = {name: field for field, names in NAMES.items() for name in names}
"""What a record's field means, by its plain name."""

COLUMNS = FIELD_OF | {name: name for name in (*_ANSWERS, *_LEFT_OUT)}
"""A table's column to the field it fills."""

NEEDED = {
    "prompt": "the prompt (prompt or question)",
    "target": "the target (target, answer or new answer)",
}

_LISTS = ("paraphrases", "locality", "portability")


@dataclass(frozen=True, slots=True)
class Record:
    """One edit as a file has it: texts are checked, numbers and times are as they stand.

    Attributes:
        place: Where it stands.
        id: The file's own name of it, or None.
        prompt: Text the model is asked.
        target: What it should answer.
        subject: Entity the fact is about.
        relation: What is said of the subject.
        paraphrases: Other ways to ask it.
        locality: Prompts whose answers must not change, with the answer where it is known.
        portability: Prompts whose answers follow from the edit.
        others: What only a service needs (reason, source, key, priority, times), by name.
        names: Field to the name that the file gives it, for messages.
    """

    place: Place
    prompt: str
    target: str
    id: str | None = None
    subject: str | None = None
    relation: str | None = None
    paraphrases: tuple[str, ...] = ()
    locality: tuple[Pair, ...] = ()
    portability: tuple[Pair, ...] = ()
    others: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


def read_records(
    given: Path | IO[bytes],
    *,
    name: str | None = None,
    on_problem: Callable[[FileProblem], None] | None = None,
) -> Iterator[Record]:
    """Stream the edits of a file, one record in memory.

    Args:
        given: Where it is, or an open stream of bytes (a pipe).
        name: Name of the file for messages; else its path.
        on_problem: Receives each record that cannot be used; None raises the first.

    Raises:
        FileProblem: There is no such file, or something in it cannot be read.
    """
    every = read_raw(given, columns=COLUMNS, needed=NEEDED, name=name, on_problem=on_problem)
    for raw in every:
        try:
            record = to_record(raw)
        except FileProblem as problem:
            if on_problem is None:
                raise
            on_problem(problem)
        else:
            yield record


def to_record(raw: Raw) -> Record:
    """Make an edit of one object.

    Raises:
        FileProblem: A field is missing, unknown or of another kind; it is named.
    """
    reading = _Fields(raw)
    reading.know()
    return Record(
        place=raw.place,
        id=reading.identity(),
        prompt=reading.need("prompt"),
        target=reading.need("target"),
        subject=reading.text("subject"),
        relation=reading.text("relation"),
        paraphrases=reading.texts("paraphrases"),
        locality=reading.pairs("locality"),
        portability=reading.pairs("portability"),
        others=reading.others(),
        names=reading.names,
    )


class _Fields:
    """The fields of one object by our names, read with checks."""

    def __init__(self, raw: Raw) -> None:
        self.place = raw.place
        self._cells = raw.cells
        self.names: dict[str, str] = {}
        self._plain: dict[str, Any] = {}
        given: dict[str, Any] = dict(raw.fields)
        rewrite = given.pop("requested_rewrite", None)
        if rewrite is not None:
            given |= self._rewritten(rewrite)
        for name, value in given.items():
            plain = plain_name(name)
            self._plain[plain] = value
            field = FIELD_OF.get(plain)
            if field in NAMES and value not in (None, ""):
                if field in self.names:
                    raise self.problem(name, f"means the same as {self.names[field]!r}; keep one")
                self.names[field] = name
        self._given = given

    def know(self) -> None:
        """Refuse what nobody would read."""
        for name in self._given:
            plain = plain_name(name)
            if plain not in FIELD_OF and plain not in _LEFT_OUT:
                raise self.problem(name, "unknown field; expected some of " + ", ".join(NAMES))

    def problem(self, field: str | None, words: str) -> FileProblem:
        return FileProblem(words, self.place, field=field)

    def need(self, field: str) -> str:
        value = self.text(field)
        if value is None:
            shown = next((n for n in self._given if FIELD_OF.get(plain_name(n)) == field), field)
            raise self.problem(shown, "is missing or empty; every edit has a prompt and a target")
        return value

    def text(self, field: str) -> str | None:
        """A field that holds one text; None where it is absent."""
        name = self.names.get(field)
        if name is None:
            return None
        value = self._given[name]
        if not isinstance(value, str):
            raise self.problem(name, f"expected text, found {described(value)}")
        if not value.strip():
            raise self.problem(name, "is empty; expected text")
        return value

    def identity(self) -> str | None:
        value = self._given.get(self.names.get("id", ""))
        if isinstance(value, bool) or not isinstance(value, str | int):
            return None
        return str(value)

    def texts(self, field: str) -> tuple[str, ...]:
        """A field that holds a text or a list of texts."""
        name = self.names.get(field)
        if name is None:
            return ()
        value = self._listed(name)
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list):
            raise self.problem(
                name, f"expected a text or a list of texts, found {described(value)}"
            )
        for item in items:
            if not isinstance(item, str) or not item.strip():
                raise self.problem(
                    name, f"expected a list of texts that are not empty; it holds {described(item)}"
                )
        return tuple(items)

    def pairs(self, field: str) -> tuple[Pair, ...]:
        """A field that holds prompts, prompts with answers, or groups of them."""
        name = self.names.get(field)
        if name is None:
            return ()
        answers = _ANSWERS.get(plain_name(name))
        if answers is not None:
            return self._with_answers(name, answers)
        return tuple(self._pairs(name, self._listed(name)))

    def others(self) -> dict[str, Any]:
        """What only a service needs, as it stands."""
        wanted = ("reason", "source", "idempotency_key", "priority", "not_before", "expires_at")
        return {one: self._given[self.names[one]] for one in wanted if one in self.names}

    def _rewritten(self, rewrite: Any) -> dict[str, Any]:
        """CounterFact's original form: a prompt with {} for the subject, a target in an object."""
        if not isinstance(rewrite, dict):
            raise self.problem(
                "requested_rewrite", f"expected an object, found {described(rewrite)}"
            )
        prompt, subject = rewrite.get("prompt"), rewrite.get("subject")
        target = rewrite.get("target_new")
        if not isinstance(subject, str) or not subject.strip():
            raise self.problem("subject", "is missing or empty")
        if isinstance(prompt, str):
            prompt = prompt.replace("{}", subject)
        return {
            "prompt": prompt,
            "subject": subject,
            "target_new": target.get("str") if isinstance(target, dict) else target,
            "relation": rewrite.get("relation_id"),
        }

    def _listed(self, name: str) -> Any:
        """A cell of a table as the list it stands for: JSON, or items divided by `|`."""
        value = self._given[name]
        if not isinstance(value, str) or not self._cells:
            return value
        if value.startswith(("[", "{")):
            try:
                return json.loads(value)
            except (ValueError, RecursionError):
                raise self.problem(
                    name, 'expected a JSON list such as ["a", "b"], or items divided by |'
                ) from None
        if "|" in value:
            return [one.strip() for one in value.split("|") if one.strip()]
        return value

    def _with_answers(self, name: str, answers: tuple[str, ...]) -> tuple[Pair, ...]:
        prompts = self._all_texts(name, self._given[name])
        given = next((a for a in answers if self._plain.get(a) not in (None, "")), None)
        expected = () if given is None else self._all_texts(given, self._plain[given])
        if len(expected) != len(prompts):
            return tuple((prompt, None) for prompt in prompts)
        return tuple(zip(prompts, expected, strict=True))

    def _all_texts(self, name: str, value: Any) -> tuple[str, ...]:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(i, str) and i.strip() for i in items):
            raise self.problem(name, "expected a text or a list of texts that are not empty")
        return tuple(items)

    def _pairs(self, name: str, value: Any) -> Iterator[Pair]:
        if isinstance(value, str) and value.strip():
            yield value, None
        elif isinstance(value, list):
            for item in value:
                if _is_pair(item):
                    yield self._pair(name, item[0], item[1])
                else:
                    yield from self._pairs(name, item)
        elif isinstance(value, dict):
            yield from self._of_object(name, value)
        else:
            raise self.problem(name, f"{_PAIR_WORDS}; found {described(value)}")

    def _of_object(self, name: str, value: dict[str, Any]) -> Iterator[Pair]:
        plain = {plain_name(one): held for one, held in value.items()}
        prompt = plain.get("prompt", plain.get("new_question", plain.get("question")))
        answer = next(
            (
                plain[one]
                for one in ("answer", "new_answer", "ground_truth", "target")
                if one in plain
            ),
            None,
        )
        if isinstance(prompt, list) and isinstance(answer, list) and len(prompt) == len(answer):
            for one, its in zip(prompt, answer, strict=True):
                yield self._pair(name, one, its)
        elif prompt is not None:
            yield self._pair(name, prompt, answer)
        elif all(isinstance(held, list | dict) for held in value.values()):
            for held in value.values():
                yield from self._pairs(name, held)
        else:
            raise self.problem(name, "an entry has no prompt")

    def _pair(self, name: str, prompt: Any, answer: Any) -> Pair:
        while isinstance(answer, list):  # KnowEdit nests lists of answers that mean the same
            answer = answer[0] if answer else None
        if not isinstance(prompt, str) or not prompt.strip():
            raise self.problem(name, f"expected a prompt, found {described(prompt)}")
        if answer is not None and not isinstance(answer, str):
            raise self.problem(name, f"expected an answer in text, found {described(answer)}")
        return prompt, answer or None


_PAIR_WORDS = 'expected a list of prompts, or of {"prompt": "…", "answer": "…"}'


def _is_pair(value: Any) -> bool:
    """Say whether an item of a list is `["prompt", "answer"]`."""
    return (
        isinstance(value, list)
        and len(value) == 2  # noqa: PLR2004 - a prompt and its answer
        and isinstance(value[0], str)
        and isinstance(value[1], str | None)
    )
