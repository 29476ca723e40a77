"""What happens outside when an alias moves: webhook, vLLM adapter, alias folder.

Hooks are a model's setting ``hooks``, a list of:

* ``{"kind": "webhook", "url": …, "secret_env": NAME}``: POST of a JSON body with the header
  ``Mend-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>">``.
* ``{"kind": "vllm", "url": …, "name": …}``: exports a PEFT adapter and loads it through vLLM's
  runtime LoRA endpoint (the server needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=True).
* ``{"kind": "folder", "format": "merged"|"peft"}``: exports and swaps the link
  ``<home>/aliases/<model>/<alias>`` atomically, for servers that watch a path.

Each move of a hooked alias (``aliases``, default production) becomes a job, so a delivery survives
any crash. It is tried a few times at once and, where that fails, again after longer and longer
pauses until the alias moves on; receivers may see a move twice and can tell by ``move``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import Connection, text

from ledger import aliases as alias_rows
from ledger import jobs as job_rows
from ledger import models as model_rows
from ledger import versions as version_rows
from ledger.records import AliasMove, Job, Model
from mend_core.errors import MendError
from workers.context import Context

log = logging.getLogger("mend.hooks")

TRIES = 5
"""Deliveries tried of one hook before its job fails."""

FIRST_PAUSE_SECONDS = 0.5
"""Pause after the first failed try; doubled each time."""

ROUNDS = 12
"""Jobs made of one move whose deliveries fail, as long as its alias has not moved on."""

ROUND_PAUSE_SECONDS = 30.0
"""Pause after a failed job; doubled each time, so that receivers may be away for hours."""

ROUND_PAUSE_LIMIT_SECONDS = 3600.0

TIMEOUT_SECONDS = 10.0
SIGNATURE_HEADER = "Mend-Signature"
HOOK_KINDS = ("webhook", "vllm", "folder")


class HookFailed(Exception):
    """A hook could not be delivered; the message says which and what the other side said."""


def sign(secret: str, body: bytes, at: int) -> str:
    """The signature header's value for a body sent at a Unix time."""
    mac = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256)
    return f"t={at},v1={mac.hexdigest()}"


def submit_due(context: Context) -> None:
    """Make a job of every alias move whose hooks have no job yet.

    Moves are made by people's commands too, so nobody can be relied on to ask for the hooks; this
    compares the newest move of each hooked alias with the jobs there are.
    """

    def look(conn: Connection) -> None:
        for model in model_rows.list_all(conn):
            hooks = model.settings.get("hooks") or []
            if not hooks:
                continue
            # One submitter at a time per model, else two workers would make the same job.
            conn.execute(text("SELECT pg_advisory_xact_lock(:a, :b)"), {"a": 0x6D68, "b": model.id})
            for alias in sorted({a for hook in hooks for a in hook.get("aliases", ["production"])}):
                moves = alias_rows.history(conn, model.id, alias)
                newest = max(moves, key=lambda m: m.at, default=None)
                if newest is not None and not _registered(newest):
                    _submit(conn, context, model, newest)

    context.transact(look)


def _registered(move: AliasMove) -> bool:
    """Whether an alias only came to be with its model: nobody moved it."""
    return move.kind == "create" and move.alias in {alias_rows.PRODUCTION, alias_rows.CANDIDATE}


def _submit(conn: Connection, context: Context, model: Model, move: AliasMove) -> None:
    """Make a job of a move that has none, or whose last one failed long enough ago."""
    key = f"{move.alias}@{move.at.isoformat()}"
    due = conn.execute(
        text(
            """
            SELECT count(*) < :rounds AND COALESCE(bool_and(state = 'failed'), true)
                   AND COALESCE(max(finished_at) + make_interval(secs =>
                       least(:pause * 2 ^ (count(*) - 1), :longest)) <= clock_timestamp(), true)
              FROM jobs WHERE kind = 'hook' AND model_id = :m AND payload->>'move' = :k
            """
        ),
        {
            "m": model.id,
            "k": key,
            "rounds": ROUNDS,
            "pause": ROUND_PAUSE_SECONDS,
            "longest": ROUND_PAUSE_LIMIT_SECONDS,
        },
    ).scalar_one()
    if due:
        payload = {
            "move": key,
            "alias": move.alias,
            "from": move.from_number,
            "to": move.to_number,
            "kind": move.kind,
            "actor": move.actor,
            "reason": move.reason,
            "at": move.at.isoformat(),
        }
        job_rows.submit(conn, "hook", payload, model_id=model.id, actor=context.actor)


def deliver(context: Context, job: Job) -> Mapping[str, Any]:
    """Deliver every hook of one alias move; the handler of ``hook`` jobs.

    Raises:
        HookFailed: One was not taken after `TRIES` tries; the others were still tried.
    """
    assert job.model_id is not None
    model_id = job.model_id
    model = context.transact(lambda conn: model_rows.get(conn, model_id))
    alias, number = str(job.payload["alias"]), int(job.payload["to"])
    version = context.transact(lambda conn: version_rows.find(conn, model.id, str(number)))
    event = {
        "event": "alias.moved",
        "model": model.name,
        "digest": version.digest,
        **{
            k: job.payload[k]
            for k in ("move", "alias", "from", "to", "kind", "actor", "reason", "at")
        },
    }
    said: list[dict[str, Any]] = []
    problems: list[str] = []
    for hook in model.settings.get("hooks") or []:
        if alias not in hook.get("aliases", ["production"]):
            continue
        try:
            said.append(_one(context, model, hook, event))
        except (HookFailed, MendError) as error:
            problems.append(str(error))
    if problems:
        raise HookFailed("; ".join(problems))
    return {"delivered": said, "move": job.payload["move"]}


def _one(
    context: Context, model: Model, hook: Mapping[str, Any], event: Mapping[str, Any]
) -> dict[str, Any]:
    kind = hook.get("kind")
    if kind == "webhook":
        return {"kind": kind, "status": _post_signed(hook, event)}
    if kind == "folder":
        style = str(hook.get("format", "merged"))
        if style == "peft" and int(event["to"]) == 0:
            # The base needs no adapter: for whoever watches the path, none is the right answer.
            (context.config.aliases / model.name / str(event["alias"])).unlink(missing_ok=True)
            return {"kind": kind, "removed": True}
        folder = exported(context, model, int(event["to"]), str(event["digest"]), style)
        link = swap_alias(context.config.aliases / model.name, str(event["alias"]), folder)
        return {"kind": kind, "link": str(link), "folder": str(folder)}
    if kind == "vllm":
        return _load_adapter(context, model, hook, event)
    raise HookFailed(
        f"model {model.name}: hook kind {kind!r} is not one of {', '.join(HOOK_KINDS)}"
    )


def _send(url: str, body: bytes, headers: Mapping[str, str], *, secret: str | None = None) -> int:
    """POST with retries; 2xx is taken, 4xx is final, the rest is tried again."""
    problem = ""
    for attempt in range(TRIES):
        if attempt:
            time.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
        sent = dict(headers)
        if secret is not None:
            sent[SIGNATURE_HEADER] = sign(secret, body, int(time.time()))
        try:
            answer = httpx.post(url, content=body, headers=sent, timeout=TIMEOUT_SECONDS)
        except httpx.HTTPError as error:
            problem = str(error) or type(error).__name__
            continue
        if answer.is_success:
            return answer.status_code
        problem = f"HTTP {answer.status_code}"
        if answer.is_client_error:
            break
    raise HookFailed(f"{url} did not take the hook: {problem}")


def _post_signed(hook: Mapping[str, Any], event: Mapping[str, Any]) -> int:
    name = str(hook.get("secret_env", "MEND_HOOK_SECRET"))
    secret = os.environ.get(name)
    if not secret:
        raise HookFailed(
            f"webhook {hook.get('url')}: the worker's environment has no {name}; set the secret"
        )
    body = json.dumps(event, sort_keys=True).encode()
    return _send(str(hook["url"]), body, {"Content-Type": "application/json"}, secret=secret)


def exported(context: Context, model: Model, number: int, digest: str, style: str) -> Path:
    """The folder of a version's export, written now unless it is there; named by digest."""
    from workers.jobs.export import write_export  # noqa: PLC0415 - jobs import this module's caller

    folder = context.config.home / "exports" / f"{digest.removeprefix('sha256:')}-{style}"
    if folder.exists():
        folder.touch()  # used again: not for `collect` now
    else:
        write_export(context, model, number, style=style, folder=folder)
    return folder


def swap_alias(folder: Path, alias: str, target: Path) -> Path:
    """Point ``folder/alias`` at `target`, atomically: readers see the old or the new."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{alias}.{uuid.uuid4().hex}"
    part.symlink_to(target)
    link = folder / alias
    part.replace(link)
    return link


def _load_adapter(
    context: Context, model: Model, hook: Mapping[str, Any], event: Mapping[str, Any]
) -> dict[str, Any]:
    url = str(hook["url"]).rstrip("/")
    name = str(hook.get("name", model.name))
    headers = {"Content-Type": "application/json"}
    unload = json.dumps({"lora_name": name}).encode()
    if int(event["to"]) == 0:
        return {
            "kind": "vllm",
            "name": name,
            "status": _send(f"{url}/v1/unload_lora_adapter", unload, headers),
        }
    folder = exported(context, model, int(event["to"]), str(event["digest"]), "peft")
    load = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
    status = _send(f"{url}/v1/load_lora_adapter", json.dumps(load).encode(), headers)
    return {"kind": "vllm", "name": name, "folder": str(folder), "status": status}
