"""Commands about models, editors and probe suites."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.status import Status

from gateway.commands import editors
from gateway.commands.requests import ModelOption, ReasonOption
from gateway.commands.tools import PASS_ON, hand_over
from gateway.items import parse_items
from gateway.output import JsonOption, emit, err, note, print_table, say, short
from gateway.session import actor, open_session
from ledger import models
from service import waiting
from service.errors import UserError
from service.session import Session, find_model

app = typer.Typer(rich_markup_mode="markdown")
model_app = typer.Typer(
    help="""Register models, list and configure them.

    A model is one base checkpoint, one editor made for it, and one gate policy.
    """,
    rich_markup_mode="markdown",
    no_args_is_help=True,
)
editor_app = typer.Typer(
    help="Make, train, register and list editors.",
    rich_markup_mode="markdown",
    no_args_is_help=True,
)
editor_app.add_typer(editors.app)
suite_app = typer.Typer(
    help="""Add probe suites to a model and list them.

    Besides the probes built from each version's own edits, a model can have its own: protected
    prompts, golden prompts, questions with known answers, texts for perplexity.
    """,
    rich_markup_mode="markdown",
    no_args_is_help=True,
)
app.add_typer(model_app, name="model")
app.add_typer(editor_app, name="editor")
app.add_typer(suite_app, name="suite")

SHIPPED_POLICIES = ("default", "strict", "demo")

SUITE_SECONDS = 300.0
"""Longest wait for a worker to try new probe items; it may have to load the model first."""


@model_app.command(name="register")
def model_register(
    *,
    name: Annotated[str, typer.Argument(help="What to call it.")],
    source: Annotated[
        str, typer.Option(help="`smollm2` (shipped), a Hugging Face folder, or a hub id.")
    ],
    editor: Annotated[
        str,
        typer.Option(
            help="An editor file; `shipped` takes ours for this base; `ultra` (seconds) or "
            "`subject` (minutes) makes one for any base."
        ),
    ] = "shipped",
    policy: Annotated[
        str, typer.Option(help="Gate policy: `default`, `strict`, `demo`, or a YAML file.")
    ] = "default",
    suite: Annotated[Path | None, typer.Option(help="JSONL file of probe items.")] = None,
    approval: Annotated[
        bool, typer.Option("--approval", help="Every edit waits for a person first.")
    ] = False,
    auto_promote: Annotated[
        bool, typer.Option(help="A version that passes its gate goes to production by itself.")
    ] = True,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    timeout: Annotated[float, typer.Option(min=1, help="Longest wait, in seconds.")] = 1800.0,
    as_json: JsonOption = False,
) -> None:
    """Register a model: its base is loaded once and named by a digest of its tensors.

    Examples:
    `mend model register smol --source smollm2`

    `mend model register mine --source ./my-gpt2 --editor ultra`

    `mend model register prod --source /models/llama --editor editors/llama.safetensors
    --policy policy.yaml --suite golden.jsonl --approval`
    """
    payload: dict[str, Any] = {
        "name": name,
        "source": model_source(source),
        "editor": model_editor(editor),
        "approval": approval,
        "auto_promote": auto_promote,
        "settings": {"dtype": dtype},
    }
    payload |= policy_payload(policy)
    if suite is not None:
        payload["suite"] = read_items(suite)
    doing = f"making an editor ({editor})" if editor in editors.MADE_KINDS else "loading the base"
    with open_session() as session, Status(f"{doing} …", console=err):
        result = waiting.run_job(
            session, "register", payload, model_id=None, actor=actor(), timeout=timeout
        )

    def human() -> None:
        say(f"{result['name']} is registered.")
        say(f"  base    {result['source']} {short(result['base_digest'])}")
        say(f"  editor  {result['editor']} {short(result['editor_digest'])}")
        say(f"  policy  {result['policy']}: {result['policy_says']}")
        _say_standing(result.get("standing") or {})
        for warning in result["warnings"]:
            note(warning)

    emit(result, as_json, human)


def _say_standing(standing: dict[str, Any]) -> None:
    """Says what every version of the model will be asked, and what was left out of it."""
    if not standing:
        say("  asked   no standing suite: a version is asked only what its edits bring")
        return
    say(f"  asked   {standing['asked']} everyday questions and texts with every version")
    for reason, count in standing["left_out"].items():
        say(f"          {count} left out: {reason}")


def model_source(source: str) -> str:
    """Makes a folder absolute, for the worker may stand elsewhere; names pass as they are."""
    looks_like_path = source.startswith((".", "/", "~"))
    path = Path(source).expanduser()
    if path.is_dir():
        return str(path.absolute())
    if looks_like_path:
        raise UserError(f"there is no model folder {path}")
    return source


def policy_payload(policy: str) -> dict[str, str]:
    """How a job is told a policy: a shipped one by name, another by its text.

    Raises:
        UserError: Neither a shipped policy nor a file that can be read.
    """
    if policy in SHIPPED_POLICIES:
        return {"policy": policy}
    return {"policy_text": read_text(Path(policy), "policy file")}


def model_editor(editor: str) -> str:
    """Makes an editor's path absolute and sees that it is there; what needs no file passes."""
    if editor in ("shipped", *editors.MADE_KINDS) or editor.startswith("shipped:"):
        return editor
    path = Path(editor).expanduser().absolute()
    if not path.is_file():
        raise UserError(
            f"there is no editor file {path}; `mend editor make` makes one, `mend editor train` "
            "trains one"
        )
    return str(path)


def read_text(path: Path, what: str) -> str:
    """Reads a UTF-8 file that the user named.

    Raises:
        UserError: It is missing, a folder, unreadable or not UTF-8.
    """
    try:
        return path.expanduser().read_bytes().decode()
    except FileNotFoundError:
        raise UserError(f"there is no {what} {path}") from None
    except OSError as error:
        raise UserError(f"cannot read the {what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the {what} {path} is not UTF-8 (byte {error.start})") from error


def read_items(path: Path) -> list[dict[str, Any]]:
    """Reads a file of probe items.

    Raises:
        UserError: The file or a line of it cannot be used; the line is named.
    """
    return parse_items(read_text(path, "suite"), str(path))


@model_app.command(name="list")
def model_list(as_json: JsonOption = False) -> None:
    """List the registered models.

    Example: `mend model list`
    """
    with open_session() as session, session.transaction() as connection:
        found = models.list_all(connection)
    emit(
        found,
        as_json,
        lambda: print_table(
            ("name", "source", "base", "editor", "policy", "approval", "auto-promote", "paused"),
            [
                (
                    m.name,
                    m.source,
                    short(m.base_digest),
                    f"{m.editor.kind} {short(m.editor.digest, 8)}",
                    m.policy.get("name"),
                    m.approval,
                    m.auto_promote,
                    m.paused,
                )
                for m in found
            ],
            title="Models",
        ),
    )


@model_app.command(name="configure")
def model_configure(
    *,
    reason: ReasonOption,
    approval: Annotated[bool | None, typer.Option(help="Every edit waits for a person.")] = None,
    auto_promote: Annotated[
        bool | None, typer.Option(help="Promote by itself what passes the gate.")
    ] = None,
    max_attempts: Annotated[int | None, typer.Option(min=1, help="Tries of one edit.")] = None,
    webhook: Annotated[
        str | None, typer.Option(help="URL told of every promotion; empty removes it.")
    ] = None,
    webhook_secret_env: Annotated[
        str | None,
        typer.Option(help="Name of the workers' variable that holds the signature's key."),
    ] = None,
    vllm: Annotated[
        str | None, typer.Option(help="vLLM server to hot-load adapters into; empty removes it.")
    ] = None,
    folder: Annotated[
        str | None,
        typer.Option(
            help="Keep the link HOME/aliases/MODEL/production on an export of production, for "
            "servers that watch a path: `merged` or `peft`; empty removes it."
        ),
    ] = None,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Change a model's settings; the trail keeps who, when and why.

    Examples:
    `mend model configure --approval --reason "four eyes from now on"`

    `mend model configure --webhook https://ops/hook --webhook-secret-env HOOK_KEY
    --reason "tell serving"`

    `mend model configure --folder merged --reason "serving watches the folder"`
    """
    changes: dict[str, Any] = {
        name: value
        for name, value in (
            ("approval", approval),
            ("auto_promote", auto_promote),
            ("max_attempts", max_attempts),
        )
        if value is not None
    }
    with open_session() as session, session.transaction() as connection:
        chosen = models.lock_settings(connection, find_model(connection, model).id)
        hooks = _hooks(
            chosen.settings,
            {"webhook": webhook, "secret": webhook_secret_env, "vllm": vllm, "folder": folder},
        )
        if hooks is not None:
            changes["settings"] = {**chosen.settings, "hooks": hooks}
        if not changes:
            raise UserError("nothing to change; see `mend model configure --help`")
        changed = models.configure(connection, chosen.id, actor=actor(), reason=reason, **changes)
    emit(changed, as_json, lambda: say(f"{changed.name} is configured: {', '.join(changes)}."))


def _hooks(settings: Any, asked: Mapping[str, str | None]) -> list[dict[str, Any]] | None:
    """Returns the hooks after the change, or None when none was asked for.

    Args:
        settings: The model's.
        asked: Per kind of hook its address (for a folder its format), "" to remove it, None to
            leave it; `secret` belongs to the webhook.
    """
    if asked["secret"] is not None and asked["webhook"] is None:
        raise UserError("--webhook-secret-env needs --webhook")
    if asked["folder"] not in (None, "", "merged", "peft"):
        raise UserError(f"--folder is {asked['folder']!r}; it must be merged, peft or empty")
    wanted = {kind: asked[kind] for kind in ("webhook", "vllm", "folder")}
    changed = {kind: value for kind, value in wanted.items() if value is not None}
    hooks = [dict(hook) for hook in settings.get("hooks", ()) if hook.get("kind") not in changed]
    for kind, value in changed.items():
        if value and kind != "folder" and not value.startswith(("http://", "https://")):
            raise UserError(f"{value!r} is not an http:// or https:// address")
        if value:
            hooks.append({"kind": kind, "format" if kind == "folder" else "url": value})
            if kind == "webhook" and asked["secret"]:
                hooks[-1]["secret_env"] = asked["secret"]
    return hooks if changed else None


@editor_app.command(
    name="train", context_settings={**PASS_ON, "help_option_names": []}, add_help_option=False
)
def editor_train(ctx: typer.Context) -> None:
    """Train an editor for a base model (`mend editor train --help` lists the options).

    Example: `mend editor train --model smollm2 --data facts.jsonl --out my.safetensors`
    """
    hand_over("mend_core.training", list(ctx.args))


@editor_app.command(name="register")
def editor_register(
    file: Annotated[str, typer.Argument(help="An editor file, or `shipped:NAME`.")],
    timeout: Annotated[float, typer.Option(min=1, help="Longest wait, in seconds.")] = 300.0,
    as_json: JsonOption = False,
) -> None:
    """Make an editor file known to the ledger, by its digest.

    Example: `mend editor register my.safetensors`
    """
    with open_session() as session:
        result = waiting.run_job(
            session,
            "editor",
            {"path": model_editor(file)},
            model_id=None,
            actor=actor(),
            timeout=timeout,
        )
    emit(
        result,
        as_json,
        lambda: say(f"{result['kind']} editor {result['digest']} for {result['base_digest']}."),
    )


@editor_app.command(name="list")
def editor_list(as_json: JsonOption = False) -> None:
    """List the registered editors.

    Example: `mend editor list`
    """
    with open_session() as session, session.transaction() as connection:
        found = models.list_editors(connection)
    emit(
        found,
        as_json,
        lambda: print_table(
            ("kind", "digest", "for base", "file"),
            [(e.kind, short(e.digest), short(e.base_digest), e.path) for e in found],
            title="Editors",
        ),
    )


@suite_app.command(name="add")
def suite_add(
    file: Annotated[Path, typer.Argument(help="JSONL file of probe items.")],
    reason: ReasonOption = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Forget the model's present items.")
    ] = False,
    model: ModelOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add probe items to a model; every later version must answer them.

    A line is `{"id": "…", "kind": "protected", "prompt": "…"}`. Kinds: locality, protected,
    capability, must_contain, must_not_contain (with `expect`), perplexity, health. With
    `"never_for_tuning": true` it is a canary: every version is judged by it, and nothing that
    chooses a setting ever sees it.

    Example: `mend suite add golden.jsonl --reason "support's top 200 questions"`
    """
    items = read_items(file)
    if not items:
        raise UserError(f"{file} holds no probe items")
    with open_session() as session:
        _try_items(session, model, items)
    with open_session() as session, session.transaction() as connection:
        chosen = models.lock_settings(connection, find_model(connection, model).id)
        present = [] if replace else list(chosen.settings.get("suite", ()))
        known = {item["id"] for item in present}
        clash = sorted(str(item["id"]) for item in items if item["id"] in known)
        if clash:
            raise UserError(f"the model has items with these ids already: {', '.join(clash[:5])}")
        models.configure(
            connection,
            chosen.id,
            actor=actor(),
            reason=reason or f"suite {file.name}",
            settings={**chosen.settings, "suite": [*present, *items]},
        )
    total = len(present) + len(items)
    emit(
        {"added": len(items), "items": total},
        as_json,
        lambda: say(f"{len(items)} items added; {chosen.name} now has {total}."),
    )


def _try_items(session: Session, model: str | None, items: list[dict[str, Any]]) -> None:
    """Has a worker see whether the model can be asked the items; only it knows the tokens.

    Raises:
        UserError: It cannot; the item is named.
    """
    with session.transaction() as connection:
        chosen = find_model(connection, model)
    if not waiting.worker_alive(session):
        note("no worker is alive: whether the items fit the model's context was not checked")
        return
    waiting.run_job(
        session,
        "suite",
        {"items": items},
        model_id=chosen.id,
        actor=actor(),
        timeout=SUITE_SECONDS,
    )


@suite_app.command(name="list")
def suite_list(model: ModelOption = None, as_json: JsonOption = False) -> None:
    """List a model's own probe items.

    Example: `mend suite list`
    """
    with open_session() as session, session.transaction() as connection:
        chosen = find_model(connection, model)
    items = list(chosen.settings.get("suite", ()))
    emit(
        items,
        as_json,
        lambda: print_table(
            ("id", "kind", "prompt", "expect", "canary"),
            [
                (
                    i["id"],
                    i["kind"],
                    i["prompt"],
                    "; ".join(i.get("expect", ())),
                    bool(i.get("never_for_tuning")),
                )
                for i in items
            ],
            title=f"Probe items of {chosen.name}",
        ),
    )
