"""The demo's story: start, register, submit, judge, show, roll back, stop.

Every step is one of the service's own commands, printed as a person would type it and carried out
by the same functions the command calls.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from gateway import launch, waiting_view
from gateway.demo import answers
from gateway.demo.home import run_home
from gateway.rundir import make_home
from gateway.session import actor
from ledger import aliases, db, edits, gates, requests, versions
from ledger.records import Edit, Version
from service import waiting
from service.errors import ServiceFailed
from service.session import Session

MODEL_NAME = "demo"
DEMO_EDITOR = "shipped:smollm2-135m-subject"
"""The best one for the demo's base, by name, so that the story stays the one the README tells."""

PACK = Path(__file__).with_name("pack.jsonl")
SHOWN_PROMPTS = 3
"""Prompts asked again before and after the rollback."""

RINGS = {
    "neighbour/given": "locality prompts of the pack",
    "neighbour/relation": "the same statements about other subjects",
    "neighbour/subject": "other statements about the edited subjects",
    "standing": "everyday answers",
}
"""What must stay, in the words a person reads."""

TIMEOUT_SECONDS = 1200.0
ASK_TOKENS = 12


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to show the service on.

    Attributes:
        source: The base model.
        editor: Its editor.
        policy: The gate policy, as a person names it.
        policy_payload: The same as a register job is told.
        pack: The edit requests.
        keep: Keep the run's folder (logs, database, versions).
    """

    source: str = "smollm2"
    editor: str = DEMO_EDITOR
    policy: str = "demo"
    policy_payload: Mapping[str, str] = field(default_factory=lambda: {"policy": "demo"})
    pack: Path = PACK
    keep: bool = False


@dataclass(slots=True)
class Outcome:
    """What the demo found; `to_dict` is what `--json` prints."""

    version: str | None = None
    number: int | None = None
    gate: str | None = None
    promoted: bool = False
    edits: int = 0
    states: dict[str, int] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    by_default: dict[str, Any] | None = None
    rolled_back: bool = False
    metrics_url: str = ""
    seconds: float = 0.0
    checks: list[dict[str, Any]] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Flattens the scores users look for first: those of free-running answers."""
        free = self.scores.get("free", {})
        forced = self.scores.get("forced_token", {})
        return {
            "version": self.version,
            "number": self.number,
            "gate": self.gate,
            "promoted": self.promoted,
            "edits": self.edits,
            "states": self.states,
            "edit_success": free.get("edit_success"),
            "generality": free.get("generality"),
            "locality": free.get("locality"),
            "edit_success_forced": forced.get("edit_success"),
            "generality_forced": forced.get("generality"),
            "locality_forced": forced.get("locality"),
            "perplexity_ratio": self.scores.get("perplexity_ratio"),
            "rings": self.scores.get("rings"),
            "by_default": self.by_default,
            "rolled_back": self.rolled_back,
            "seconds": round(self.seconds, 1),
            "metrics_url": self.metrics_url,
            "answers": self.answers,
        }


class Demo:
    """One run.

    Args:
        options: What to show.
        console: Where people read along.
    """

    def __init__(self, options: DemoOptions, console: Console) -> None:
        self.options = options
        self.console = console
        self.outcome = Outcome()

    def run(self) -> Outcome:
        """Tells the whole story; whatever happens, no process is left.

        Raises:
            ServiceFailed: A part of the service did not do its job.
            UserError: The model, the editor or the pack cannot be used.
        """
        began = time.monotonic()
        with run_home(make_home(None), keep=self.options.keep) as home:
            # The pipe's writing end dies with us, even by kill -9; the supervisor then stops all.
            lifeline, keep = os.pipe()
            launched = None
            try:
                self._command("mend up")
                with self.console.status(
                    "starting Postgres, worker, beat and exporter …"
                ) as status:
                    launched = launch.launch(
                        home,
                        ["--metrics-port", "0"],
                        lambda event: status.update(_progress(event)),
                        lifeline=lifeline,
                    )
                self.outcome.metrics_url = str(launched.up["metrics_url"])
                self._say(f"Service up; metrics at {self.outcome.metrics_url}")
                url = str(launched.up["database_url"])
                engine = db.engine_from_url(url, pool_size=2, application_name="mend-demo")
                try:
                    self._story(Session(engine, url, home))
                finally:
                    engine.dispose()
            finally:
                if launched is not None:
                    self._command("mend down")
                    launch.stop(launched.process)
                os.close(keep)
                os.close(lifeline)
        self.outcome.seconds = time.monotonic() - began
        self._say(f"All processes stopped. {self.outcome.seconds:.0f} s in all.")
        return self.outcome

    # -- the story -------------------------------------------------------------------------

    def _story(self, session: Session) -> None:
        model_id = self._register(session)
        found = self._submit(session, model_id)
        version = self._judge(session, model_id, found)
        if version is not None and self.outcome.promoted:
            self._roll_back(session, model_id, version, found)

    def _register(self, session: Session) -> int:
        options = self.options
        self._command(
            f"mend model register {MODEL_NAME} --source {options.source} "
            f"--editor {options.editor} --policy {options.policy}"
        )
        result = self._job(
            session,
            "register",
            {
                "name": MODEL_NAME,
                "source": options.source,
                "editor": options.editor,
                **options.policy_payload,
            },
            None,
            "loading the base (the first time ever it is de-quantised: about 20 s more)",
        )
        self._say(
            f"{result['source']}: base {result['base_digest'][:19]}…, "
            f"{result['editor']} editor {result['editor_digest'][:19]}…"
        )
        self._say(f"Gate policy “{result['policy']}”: {result['policy_says']}")
        return int(result["id"])

    def _submit(self, session: Session, model_id: int) -> list[Edit]:
        pack = self.options.pack
        self._command(f"mend submit {pack.name} --wait")
        parsed = requests.parse_file(pack)
        with session.transaction() as connection:
            accepted = edits.submit_many(
                connection, model_id, parsed.requests, actor=actor(), origin=pack.name
            )
        ids = list(accepted.edit_ids)
        self.outcome.edits = len(ids)
        self._say(f"{accepted.accepted} edit requests accepted.")
        with self.console.status("the worker claims, factors, composes, probes …") as status:
            found = waiting.for_edits(
                session,
                ids,
                TIMEOUT_SECONDS,
                lambda now: status.update(f"edits: {waiting_view.progress_words(now)}"),
            )
        for edit in found:
            state = str(edit.state)
            self.outcome.states[state] = self.outcome.states.get(state, 0) + 1
        return found

    def _judge(self, session: Session, model_id: int, found: Sequence[Edit]) -> Version | None:
        """Shows what the gate said and what the model answers now."""
        with session.transaction() as connection:
            chain = versions.list_versions(connection, model_id)
            production = aliases.get(connection, model_id, "production").number
            built = sorted((v for v in chain if v.number > 0), key=lambda v: v.number)
            if not built:
                reasons = sorted({edit.error or str(edit.state) for edit in found})
                raise ServiceFailed("no version was built: " + "; ".join(reasons))
            decided = {v.number: gates.decisions(connection, v.id) for v in built}
            version = next((v for v in built if v.number == production), built[-1])
            runs = {v.number: gates.probes(connection, v.id) for v in built}
        self._command("mend versions; mend gate show")
        for older in built:
            if older.number != version.number:
                self._say_gate(older, decided[older.number], brief=True)
        self._say_gate(version, decided[version.number], brief=False)
        outcome = self.outcome
        outcome.version, outcome.number = version.digest, version.number
        outcome.gate, outcome.promoted = str(version.gate), version.number == production
        scored = [d["scores"] for d in decided[version.number] if d.get("scores")]
        outcome.scores = dict(scored[-1]) if scored else {}
        outcome.by_default = outcome.scores.get("by_default")
        self._say_by_default()
        shown = answers.collect(found, runs)
        outcome.answers = [
            {
                "id": item.edit.id,
                "state": str(item.edit.state),
                "target": item.edit.target,
                **{
                    answer.kind: {
                        "prompt": answer.prompt,
                        "before": answer.before,
                        "after": answer.after,
                        "good": answer.good,
                        "version": answer.version,
                    }
                    for answer in (item.own, item.paraphrase, item.locality)
                    if answer is not None
                },
            }
            for item in shown
        ]
        self.console.print(answers.table(shown))
        self._say_left_out(found)
        self._say_scores()
        self._say(f"Version {version.number}: {version.digest}")
        if outcome.promoted:
            self._say("Its gate passed, so it is in production now.")
        else:
            self._say(
                f"The gate's last word is “{version.gate}”, so nothing was promoted: production "
                "still answers as the base did. Quarantined edits keep their evidence (`mend show "
                "ID`); applied ones wait for more probes (`mend suite add`, `mend gate check`) or "
                "for a person (`mend gate override`)."
            )
        return version

    def _roll_back(
        self, session: Session, model_id: int, version: Version, found: Sequence[Edit]
    ) -> None:
        good = [answer["id"] for answer in self.outcome.answers if _took(answer)]
        chosen = [edit for edit in found if edit.id in good] or list(found)
        prompts = [edit.prompt for edit in chosen[:SHOWN_PROMPTS]]
        self._command(f'mend ask "{prompts[0]}" --version 0; mend ask "{prompts[0]}"')
        base = self._ask(session, model_id, prompts, "0")
        after = self._ask(session, model_id, prompts, "production")
        with session.transaction() as connection:
            origin = versions.find(connection, model_id, "base")
            # Where a worker died, its batch came back in two: production went two versions up.
            one_step = versions.find(connection, model_id, "previous").id == origin.id
        self._command("mend rollback" if one_step else "mend rollback 0")
        with session.transaction() as connection:
            move = aliases.rollback(
                connection,
                model_id,
                to_version_id=origin.id,
                actor=actor(),
                reason="the demo shows the way back",
            )
        self._say(f"production: version {move.from_number} → version {move.to_number}")
        back = self._ask(session, model_id, prompts, "production")
        for prompt, was, edited, now in zip(prompts, base, after, back, strict=True):
            self.console.print(f"  [bold]{escape(prompt)}[/]", soft_wrap=True)
            self._say(f"    base:        {_flat(was)}")
            self._say(f"    version {version.number}:   {_flat(edited)}")
            self._say(f"    rolled back: {_flat(now)}")
        self.outcome.rolled_back = back == base and move.to_number == 0
        self._say(
            "The old answers are back, to the letter."
            if self.outcome.rolled_back
            else "The answers after the rollback are NOT the old ones."
        )

    # -- telling ---------------------------------------------------------------------------

    def _ask(self, session: Session, model_id: int, prompts: list[str], version: str) -> list[str]:
        result = self._job(
            session,
            "ask",
            {"prompts": prompts, "version": version, "max_new_tokens": ASK_TOKENS},
            model_id,
            "asking",
        )
        return [str(answer) for answer in result["answers"]]

    def _job(
        self,
        session: Session,
        kind: str,
        payload: dict[str, Any],
        model_id: int | None,
        doing: str,
    ) -> dict[str, Any]:
        with self.console.status(f"{doing} …"):
            return waiting.run_job(
                session,
                kind,
                payload,
                model_id=model_id,
                actor=actor(),
                timeout=TIMEOUT_SECONDS,
            )

    def _command(self, text: str) -> None:
        self.console.print(f"\n[bold cyan]$[/] [bold]{escape(text)}[/]", soft_wrap=True)

    def _say(self, text: str) -> None:
        self.console.print(escape(text), soft_wrap=True)

    def _say_gate(
        self, version: Version, decisions: Sequence[dict[str, Any]], *, brief: bool
    ) -> None:
        self._say(
            f"Version {version.number} ({version.edit_count} edits): gate says {version.gate}."
        )
        for decision in decisions[-1:]:
            for check in decision.get("checks", []):
                bad = check.get("outcome") not in ("pass", "skipped")
                if bad or not brief:
                    style = "red" if check.get("outcome") == "fail" else "dim"
                    self.console.print(
                        f"  [{style}]{escape(str(check.get('outcome')))}: "
                        f"{escape(str(check.get('sentence')))}[/]",
                        soft_wrap=True,
                    )
            self.outcome.checks = list(decision.get("checks", []))

    def _say_by_default(self) -> None:
        """Says by how much the version misses the policy that models get by default."""
        said = self.outcome.by_default
        if not said:
            return
        if said["outcome"] == "pass":
            self._say("The default policy would let this version pass, too.")
            return
        self.console.print(
            "[yellow]The default policy would stop this version "
            f"({escape(str(said['outcome']))}):[/]",
            soft_wrap=True,
        )
        for sentence in said["against"]:
            self._say(f"  {sentence}")

    def _say_left_out(self, found: Sequence[Edit]) -> None:
        for edit in found:
            if str(edit.state) not in ("live", "applied"):
                why = edit.error or "see `mend show`"
                self._say(f"Left out: edit {edit.id} is {edit.state}: {why}")

    def _say_scores(self) -> None:
        free, forced = (
            self.outcome.scores.get("free", {}),
            self.outcome.scores.get("forced_token", {}),
        )
        if not free:
            return
        for name, word in (
            ("edit_success", "edits answered as asked"),
            ("generality", "paraphrases following"),
        ):
            self._say(
                f"  {word}: {_percent(free.get(name))} free-running, "
                f"{_percent(forced.get(name))} teacher-forced tokens"
            )
        for ring, word in RINGS.items():
            rate = self.outcome.scores.get("rings", {}).get(ring)
            if rate:
                self._say(f"  {word}: {rate['successes']} of {rate['n']} unchanged")


def _took(answer: dict[str, Any]) -> bool:
    own = answer.get("edit")
    return isinstance(own, dict) and bool(own["good"])


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _flat(text: str) -> str:
    return " ".join(text.split())


def _progress(event: dict[str, Any]) -> str:
    what = event.get("what", "")
    return {
        "starting": f"starting {what} …",
        "ready": f"{what} is ready …",
        "died": f"{what} ended; starting it again …",
        "restarted": f"{what} was started again …",
    }.get(str(event["event"]), "…")


def run(options: DemoOptions, console: Console) -> Outcome:
    """Runs the demo."""
    return Demo(options, console).run()
