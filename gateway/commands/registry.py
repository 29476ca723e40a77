"""Commands about versions and aliases that the ledger alone answers."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from gateway.commands.requests import ModelOption, ReasonOption
from gateway.output import JsonOption, emit, plain, print_table, say, short
from gateway.session import actor, open_session
from ledger import aliases, versions
from ledger.records import AliasMove, Model, Version
from service import promotion
from service.errors import UserError
from service.promotion import Foreseen
from service.session import Session, find_model, find_version

app = typer.Typer(rich_markup_mode="markdown")

VersionName = Annotated[
    str, typer.Argument(help="A number, an alias, `previous`, or the start of a digest.")
]
ApproverOption = Annotated[
    str | None, typer.Option("--approved-by", help="The second person; protected aliases need one.")
]
VERSION_COLUMNS = ("version", "digest", "parent", "edits", "gate", "made", "aliases")


def version_row(version: Version, names: dict[int, list[str]]) -> tuple[object, ...]:
    """Formats one version for the tables of `versions` and `lineage`."""
    gate = f"{version.gate}" + (" (overridden)" if version.overridden_by else "")
    gate += " (withdrawn)" if version.withdrawn else ""
    return (
        version.number,
        short(version.digest),
        version.parent_number,
        version.edit_count,
        gate,
        version.created_at,
        ", ".join(names.get(version.number, [])) + (" collected" if version.collected_at else ""),
    )


def _names(connection: Any, model_id: int) -> dict[int, list[str]]:
    names: dict[int, list[str]] = {}
    for alias in aliases.list_aliases(connection, model_id):
        names.setdefault(alias.number, []).append(alias.name)
    return names


@app.command(name="versions")
def list_versions(model: ModelOption = None, as_json: JsonOption = False) -> None:
    """List the versions of a model.

    Examples:
    `mend versions`

    `mend versions --json | jq '.[] | select(.gate == "pass") | .number'`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        found = versions.list_versions(connection, chosen.id)
        names = _names(connection, chosen.id)
    emit(
        found,
        as_json,
        lambda: print_table(
            VERSION_COLUMNS,
            [version_row(version, names) for version in found],
            title=f"Versions of {chosen.name}",
        ),
    )


@app.command()
def lineage(
    version: VersionName = "production", model: ModelOption = None, as_json: JsonOption = False
) -> None:
    """Show a version's parents down to the base.

    Examples:
    `mend lineage`

    `mend lineage 7 --json`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        found = versions.lineage(connection, find_version(connection, chosen, version).id)
        names = _names(connection, chosen.id)
        changes = {v.number: versions.changes(connection, v.id) for v in found}
    value = [
        {
            "version": v,
            "added": [member.edit_id for member in changes[v.number][0]],
            "removed": [member.edit_id for member in changes[v.number][1]],
        }
        for v in found
    ]
    emit(
        value,
        as_json,
        lambda: print_table(
            (*VERSION_COLUMNS, "change"),
            [
                (
                    *version_row(v, names),
                    f"+{len(changes[v.number][0])} -{len(changes[v.number][1])}",
                )
                for v in found
            ],
            title=f"Lineage of version {found[0].number}",
        ),
    )


YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Don't ask, also where facts leave production.")
]
SHOWN = 10
"""Edits of each list that are shown to a person; of the rest, how many."""


def _say_move(move: AliasMove, as_json: bool) -> None:
    emit(move, as_json, lambda: say(_moved(move)))


def _moved(move: AliasMove) -> str:
    came = "" if move.from_number is None else f" (was {move.from_number})"
    return f"{move.alias} is now version {move.to_number}{came}."


def _say_foreseen(foreseen: Foreseen) -> None:
    """Tells what a move of production would change, before it is made."""
    move, candidate = foreseen.move, foreseen.candidate
    say(f"production: version {move.from_number} → {move.to_number}")
    if candidate is not None:
        say(f"candidate:  version {candidate.from_number} → {candidate.to_number}")
    for title, changes in (
        ("Come into production", foreseen.comes),
        ("Give way to a newer edit of the same fact", foreseen.replaced),
        ("Leave production", foreseen.leaves),
        ("Were not live and will be reverted", foreseen.reverted),
    ):
        if not changes:
            continue
        say(f"{title} ({len(changes)}):")
        for one in changes[:SHOWN]:
            say(f"  {one.id}  {one.prompt} → {one.target}")
        if len(changes) > SHOWN:
            say(f"  and {len(changes) - SHOWN} more")


def _move_production(
    session: Session, chosen: Model, move: promotion.Move, *, yes: bool, as_json: bool
) -> None:
    """Tells what the move changes, asks where facts go, and makes it.

    Raises:
        UserError: Facts would go, and there is nobody to ask.
    """
    with session.transaction() as connection:
        foreseen = promotion.foresee(connection, chosen, move)
    if not as_json:
        _say_foreseen(foreseen)
    if foreseen.asks and not yes:
        if as_json or not sys.stdin.isatty():
            raise UserError(
                f"{len(foreseen.leaves)} facts would leave production and "
                f"{len(foreseen.reverted)} more would be reverted; nothing was changed; "
                "say --yes if that is meant"
            )
        if not typer.confirm("Go on?", err=True):
            say("Nothing was changed.")
            raise typer.Exit(1)
    with session.transaction() as connection:
        made = move(connection, foreseen.seen)
    told = plain(foreseen)
    del told["move"], told["seen"]
    emit(plain(made) | told, as_json, lambda: say(_moved(made)))


@app.command()
def promote(
    *,
    version: VersionName = "candidate",
    reason: ReasonOption = "promoted by hand",
    approved_by: ApproverOption = None,
    yes: YesOption = False,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a proven version into production.

    Says first which edits come and which leave. Where facts leave and no newer edit takes their
    place, it asks, or wants `--yes` where nobody can be asked.

    A version whose gate did not pass is refused; an approver can override it with
    `mend gate override`.

    Examples:
    `mend promote`

    `mend promote 7 --reason "release 2026-11" --approved-by ana`
    """
    with open_session() as session:
        with session.transaction() as connection:
            chosen = find_model(connection, model)
            target = find_version(connection, chosen, version)
        move = promotion.promotion(
            chosen, target, actor=actor(), reason=reason, approved_by=approved_by
        )
        _move_production(session, chosen, move, yes=yes, as_json=as_json)


@app.command()
def rollback(
    *,
    version: Annotated[
        str | None, typer.Argument(help="Where to; left out: what production was before.")
    ] = None,
    reason: ReasonOption = "rolled back by hand",
    approved_by: ApproverOption = None,
    yes: YesOption = False,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take production back to an earlier version.

    Says first which edits come and which leave, and asks where facts leave (or wants `--yes`). The
    candidate goes along. Each further rollback goes further back.

    Examples:
    `mend rollback`

    `mend rollback 3 --yes --reason "complaints about edit 41"`
    """
    with open_session() as session:
        with session.transaction() as connection:
            chosen = find_model(connection, model)
            target = None if version is None else find_version(connection, chosen, version)
        move = promotion.rollback(
            chosen, target, actor=actor(), reason=reason, approved_by=approved_by
        )
        _move_production(session, chosen, move, yes=yes, as_json=as_json)


alias_app = typer.Typer(
    help="""List, move and protect aliases.

    An alias is a moving name for a version. `production` and `candidate` exist from the start.
    """,
    rich_markup_mode="markdown",
    invoke_without_command=True,
)
app.add_typer(alias_app, name="alias")


@alias_app.callback()
def alias_alone(ctx: typer.Context, model: ModelOption = None, as_json: JsonOption = False) -> None:
    """List, move and protect aliases.

    An alias is a moving name for a version. `production` and `candidate` exist from the start.
    """
    if ctx.invoked_subcommand is None:
        alias_list(model=model, as_json=as_json)


@alias_app.command(name="list")
def alias_list(model: ModelOption = None, as_json: JsonOption = False) -> None:
    """List a model's aliases.

    Example: `mend alias list`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        found = aliases.list_aliases(connection, chosen.id)
    emit(
        found,
        as_json,
        lambda: print_table(
            ("alias", "version", "protected", "moved"),
            [(a.name, a.number, a.protected, a.moved_at) for a in found],
            title=f"Aliases of {chosen.name}",
        ),
    )


@alias_app.command(name="set")
def alias_set(
    *,
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits, `.`, `_`, `-`.")],
    version: VersionName,
    reason: ReasonOption = "moved by hand",
    approved_by: ApproverOption = None,
    yes: YesOption = False,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make or move an alias. Setting `production` is `mend promote`.

    Example: `mend alias set canary 7 --reason "5 % of traffic"`
    """
    if name == aliases.PRODUCTION:
        promote(
            version=version,
            reason=reason,
            approved_by=approved_by,
            yes=yes,
            model=model,
            as_json=as_json,
        )
        return
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        move = aliases.move(
            connection,
            chosen.id,
            name,
            find_version(connection, chosen, version).id,
            actor=actor(),
            reason=reason,
            approved_by=approved_by,
        )
    _say_move(move, as_json)


@alias_app.command(name="protect")
def alias_protect(
    *,
    name: Annotated[str, typer.Argument(help="The alias.")],
    off: Annotated[
        bool, typer.Option("--off", help="Unprotect it; that too needs a second person.")
    ] = False,
    reason: ReasonOption = "by hand",
    approved_by: ApproverOption = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let an alias move only with a second person's approval.

    Examples:
    `mend alias protect production --reason "SOC 2 CC8"`

    `mend alias protect production --off --approved-by ana --reason "moved to staging"`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        aliases.protect(
            connection,
            chosen.id,
            name,
            not off,
            actor=actor(),
            reason=reason,
            approved_by=approved_by,
        )
    emit(
        {"alias": name, "protected": not off},
        as_json,
        lambda: say(f"{name} is {'no longer ' if off else ''}protected."),
    )


@app.command()
def history(
    alias: Annotated[str | None, typer.Argument(help="Only this alias.")] = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every move of a model's aliases.

    Example: `mend history production`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
        if alias is not None:
            aliases.get(connection, chosen.id, alias)  # a typo must not look like no history
        moves = aliases.history(connection, chosen.id, alias)
    emit(
        moves,
        as_json,
        lambda: print_table(
            ("at", "alias", "kind", "from", "to", "by", "approved by", "reason"),
            [
                (
                    m.at,
                    m.alias,
                    m.kind,
                    m.from_number,
                    m.to_number,
                    m.actor,
                    m.approved_by,
                    m.reason,
                )
                for m in moves
            ],
            title=f"Alias moves of {chosen.name}",
        ),
    )
