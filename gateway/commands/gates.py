"""`mend gate`: what was said of a version, by which policy, and what a person says to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from sqlalchemy import Connection

from gateway.commands.models import policy_payload
from gateway.commands.registry import VersionName
from gateway.commands.requests import ModelOption, ReasonOption
from gateway.output import JsonOption, emit, note, print_table, say
from gateway.session import actor, open_session
from ledger import gates, versions
from ledger.records import Model
from ledger.states import GateOutcome
from service import waiting
from service.errors import UserError
from service.session import find_model, find_version

_LOOKED_AT = 100
"""Newest versions among which the last one judged is looked for."""

app = typer.Typer(rich_markup_mode="markdown")
gate_app = typer.Typer(
    help="Show a version's gate, override or decline it; show or change the policy.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
)
app.add_typer(gate_app, name="gate")


@gate_app.command(name="show")
def gate_show(
    version: Annotated[
        str | None, typer.Argument(help="Number, alias or digest; the last one judged if left out.")
    ] = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the gate said of a version, check by check.

    Examples:
    `mend gate show`

    `mend gate show 7 --json`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        found = find_version(connection, chosen, version or _last_judged(connection, chosen))
        decisions = gates.decisions(connection, found.id)
    value = {"version": found.number, "gate": str(found.gate), "decisions": decisions}

    def human() -> None:
        say(f"Version {found.number} of {chosen.name}: {found.gate}")
        for decision in decisions:
            at = f"{decision['created_at']:%Y-%m-%d %H:%M}"
            if decision.get("override_reason"):
                say(f"{decision['actor']} decided on {at}: {decision['override_reason']}")
            else:
                say(f"{decision['outcome']} by {decision['actor']}, {at}")
            _say_checks(decision["checks"], decision["scores"].get("told") or {})
            say(f"policy {decision.get('policy_digest')}")
            say(f"suite  {decision.get('suite_digest')}")

    emit(value, as_json, human)


def _last_judged(connection: Connection, model: Model) -> str:
    """The newest version that a gate has spoken of; the candidate where there is none."""
    for version in versions.list_versions(connection, model.id, limit=_LOOKED_AT):
        if version.number and version.gate is not GateOutcome.PENDING:
            return str(version.number)
    return "candidate"


def _say_checks(checks: Sequence[Mapping[str, Any]], told: Mapping[str, Any]) -> None:
    """Print plain words first, then what was asked and what was not, then statistics."""
    judged = [c for c in checks if c.get("outcome") not in {"skipped", "reported"}]
    reported = [c for c in checks if c.get("outcome") == "reported"]
    silent = [c for c in checks if c.get("outcome") == "skipped"]
    said = f"{len(judged)} of {len(checks)} checks judged something"
    said += f"; {len(reported)} only report" if reported else ""
    say(said + (f"; {len(silent)} had nothing to ask." if silent else "."))
    plain = told.get("plain") or {}
    if told:
        say("Asked: " + (", ".join(f"{one['n']} {one['what']}" for one in told["asked"]) or "-"))
        if told.get("not_asked"):
            say("Not asked: " + ", ".join(told["not_asked"]))
        if not told["besides"]:
            say("Nothing but the edits' own prompts was asked: nobody looked what else changed.")
    for check in (*judged, *reported):
        say(f"  {check['outcome']}: {plain.get(check['name'], check['sentence'])}")
    print_table(
        ("check", "outcome", "n", "statistics"),
        [
            (c["name"], c["outcome"], c.get("n"), c["sentence"])
            for c in (*judged, *reported, *silent)
        ],
    )


@gate_app.command(name="check")
def gate_check(
    version: VersionName = "candidate",
    record: Annotated[
        bool, typer.Option("--record", help="Keep the decision; else it is only shown.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Longest wait, in seconds.")] = 1800.0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Judge a version again with the model's present policy and suite.

    Example: `mend gate check 7 --record` after the suite grew
    """
    with open_session() as session:
        with session.transaction() as connection:
            chosen = find_model(connection, model)
            find_version(connection, chosen, version)
        result = waiting.run_job(
            session,
            "gate",
            {"version": version, "record": record},
            model_id=chosen.id,
            actor=actor(),
            timeout=timeout,
            tell=note,
        )

    def human() -> None:
        say(f"Version {result['number']}: {result['outcome']}")
        _say_checks(result["checks"], result["told"])

    emit(result, as_json, human)


@gate_app.command(name="policy")
def gate_policy(
    *,
    policy: Annotated[
        str | None,
        typer.Argument(help="`default`, `strict`, `demo`, or a YAML file; left out: only show."),
    ] = None,
    reason: ReasonOption = "",
    timeout: Annotated[float, typer.Option(min=1, help="Longest wait, in seconds.")] = 300.0,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a model's policy and how many probe items it takes, or give the model another.

    Versions judged before keep what was said of them, with the policy it was said by.

    Examples:
    `mend gate policy`

    `mend gate policy policy.yaml --reason "margins agreed on 2026-11-20"`
    """
    payload: dict[str, Any] = {}
    if policy is not None:
        if not reason.strip():
            raise UserError("another policy needs a reason: --reason")
        payload["reason"] = reason
        payload |= policy_payload(policy)
    with open_session() as session:
        with session.transaction() as connection:
            chosen = find_model(connection, model)
        result = waiting.run_job(
            session,
            "policy",
            payload,
            model_id=chosen.id,
            actor=actor(),
            timeout=timeout,
            tell=note,
        )

    def human() -> None:
        say(f"Policy {result['policy']['name']} of {chosen.name}, {result['policy_digest']}")
        if result["policy"]["says"]:
            say(result["policy"]["says"])
        print_table(
            ("rule", "asks for", "error level", "items needed, without a single failure"),
            [(n["rule"], n["asks"], n["alpha"], n["n"]) for n in result["needs"]],
        )
        if result["changed"]:
            say(f"It was {result['was']}.")

    emit(result, as_json, human)


def _decided(decide: Callable[..., object], version: str, model: str | None, reason: str) -> int:
    """A person's word on a version's gate; its number."""
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        found = find_version(connection, chosen, version)
        decide(connection, found.id, actor=actor(), reason=reason)
    return found.number


@gate_app.command(name="override")
def gate_override(
    version: VersionName,
    reason: ReasonOption,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a version through in spite of its gate; who and why stay in the trail for ever.

    Refused to whoever submitted an edit that the version brings in, or asked for the version.

    Example: `mend gate override 7 --reason "false alarm: probe 12 was wrong"`
    """
    number = _decided(gates.override, version, model, reason)
    emit(
        {"version": number, "overridden_by": actor()},
        as_json,
        lambda: say(f"Version {number} may now be promoted: `mend promote {number}`."),
    )


@gate_app.command(name="withdraw")
def gate_withdraw(
    version: VersionName,
    reason: ReasonOption,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take a version's proof back; neither it nor what was judged against it can be promoted.

    Refused while production or the candidate is it or builds on it: roll back first.

    Example: `mend gate withdraw 7 --reason "the suite asked the wrong questions"`
    """
    number = _decided(gates.withdraw, version, model, reason)
    emit(
        {"version": number, "withdrawn_by": actor()},
        as_json,
        lambda: say(f"Version {number} is not proven any more."),
    )


@gate_app.command(name="decline")
def gate_decline(
    version: VersionName,
    reason: ReasonOption,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Settle an inconclusive gate with a no.

    Example: `mend gate decline 7 --reason "not enough probes to be sure"`
    """
    number = _decided(gates.decline, version, model, reason)
    emit(
        {"version": number, "declined_by": actor()},
        as_json,
        lambda: say(f"Version {number} is declined."),
    )
