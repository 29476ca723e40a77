"""`mend gate`: what was said of a version, by which policy, and what a person says to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from gateway.commands.models import policy_payload
from gateway.commands.registry import VersionName
from gateway.commands.requests import ModelOption, ReasonOption
from gateway.output import JsonOption, emit, note, print_table, say
from gateway.session import actor, open_session
from ledger import gates
from service import waiting
from service.errors import UserError
from service.session import find_model, find_version

app = typer.Typer(rich_markup_mode="markdown")
gate_app = typer.Typer(
    help="Show a version's gate, override or decline it; show or change the policy.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
)
app.add_typer(gate_app, name="gate")


@gate_app.command(name="show")
def gate_show(
    version: VersionName = "candidate", model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """Show what the gate said of a version, check by check.

    Examples:
    `mend gate show`

    `mend gate show 7 --json`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        found = find_version(connection, chosen, version)
        decisions = gates.decisions(connection, found.id)
    value = {"version": found.number, "gate": str(found.gate), "decisions": decisions}

    def human() -> None:
        say(f"Version {found.number} of {chosen.name}: {found.gate}")
        for decision in decisions:
            print_table(
                ("check", "outcome", "what was found"),
                [
                    (check.get("name"), check.get("outcome"), check.get("sentence", ""))
                    for check in decision.get("checks", [])
                ],
                title=f"{decision.get('outcome')} by {decision.get('actor')}",
            )
            if decision.get("override_reason"):
                say(f"A person decided, because: {decision['override_reason']}")
            say(f"policy {decision.get('policy_digest')}")
            say(f"suite  {decision.get('suite_digest')}")

    emit(value, as_json, human)


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
        print_table(
            ("check", "outcome", "what was found"),
            [(c.get("name"), c.get("outcome"), c.get("sentence", "")) for c in result["checks"]],
        )

    emit(result, as_json, human)


@gate_app.command(name="policy")
def gate_policy(
    *,
    policy: Annotated[
        str | None, typer.Argument(help="`default`, `demo`, or a YAML file; left out: only show.")
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
