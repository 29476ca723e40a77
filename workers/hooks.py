"""What happens outside when an alias moves: webhook, vLLM adapter, alias folder.

Hooks are a model's setting ``hooks``, a list of:

* ``{"kind": "webhook", "url": …, "secret_env": NAME}``: POST of a JSON body with the header
  ``Mend-Signature: t=<unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>">``.
* ``{"kind": "vllm", "url": …, "name": …}``: exports a PEFT adapter and loads it through vLLM's
  runtime LoRA endpoint (the server needs VLLM_ALLOW_RUNTIME_LORA_UPDATING=True).
* ``{"kind": "folder", "format": "merged"|"peft"}``: exports and swaps the link
  ``<home>/aliases/<model>/<alias>`` atomically, for servers that watch a path.

Each move of a hooked alias (``aliases``, default production) becomes a job for each hook, so a
delivery survives any crash. A job tries once and waits briefly, because editing waits with it.
Where it fails, the next job comes after a pause that doubles, until the alias moves on. Receivers
may see a move twice and can tell by ``move``.
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
from mend_core.digests import json_digest
from workers.context import Context

log = logging.getLogger("mend.hooks")

TRIES = 16
"""Deliveries tried of one move to one hook, as long as its alias has not moved on: four hours."""

FIRST_PAUSE_SECONDS = 1.0
"""Pause after the first failed try; doubled each time."""

PAUSE_LIMIT_SECONDS = 3600.0

TIMEOUT_SECONDS = 5.0
"""How long a receiver may keep a delivery waiting: no edit is made meanwhile."""

LOAD_TIMEOUT_SECONDS = 10.0
"""The same where the receiver loads an adapter before it answers."""

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
            for alias in sorted({a for hook in hooks for a in _aliases_of(hook)}):
                moves = alias_rows.history(conn, model.id, alias)
                newest = max(moves, key=lambda m: m.at, default=None)
                if newest is None or _registered(newest):
                    continue
                for hook in hooks:
                    if alias in _aliases_of(hook):
                        _submit(conn, context, model, newest, hook)

    context.transact(look)


def _registered(move: AliasMove) -> bool:
    """Whether an alias only came to be with its model: nobody moved it."""
    return move.kind == "create" and move.alias in {alias_rows.PRODUCTION, alias_rows.CANDIDATE}


def _aliases_of(hook: Mapping[str, Any]) -> list[str]:
    """The aliases whose moves a hook is told."""
    return list(hook.get("aliases", [alias_rows.PRODUCTION]))


def _submit(
    conn: Connection, context: Context, model: Model, move: AliasMove, hook: Mapping[str, Any]
) -> None:
    """Make a job of a move and a hook that have none, or whose last one failed long enough ago."""
    key = f"{move.alias}@{move.at.isoformat()}"
    due = conn.execute(
        text(
            """
            SELECT count(*) < :tries AND COALESCE(bool_and(state = 'failed'), true)
                   AND COALESCE(max(finished_at) + make_interval(secs =>
                       least(:pause * 2 ^ (count(*) - 1), :longest)) <= clock_timestamp(), true)
              FROM jobs WHERE kind = 'hook' AND model_id = :m AND payload->>'move' = :k
                    AND payload->>'hook' = :h
            """
        ),
        {
            "m": model.id,
            "k": key,
            "h": json_digest(hook),
            "tries": TRIES,
            "pause": FIRST_PAUSE_SECONDS,
            "longest": PAUSE_LIMIT_SECONDS,
        },
    ).scalar_one()
    if due:
        payload = {
            "move": key,
            "hook": json_digest(hook),
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
    """Deliver one alias move to one hook; the handler of ``hook`` jobs.

    Raises:
        HookFailed: It was not taken.
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
    wanted = [
        hook
        for hook in model.settings.get("hooks") or []
        if json_digest(hook) == job.payload["hook"] and alias in _aliases_of(hook)
    ]
    # None where the hook was taken away or changed meanwhile; a changed one has a job of its own.
    said = [_one(context, model, hook, event) for hook in wanted[:1]]
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


def _send(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    timeout: float,
    secret: str | None = None,
) -> int:
    """POST once; the status where it is 2xx."""
    sent = dict(headers)
    if secret is not None:
        sent[SIGNATURE_HEADER] = sign(secret, body, int(time.time()))
    try:
        # Only the status is read: a body that never ends would hold us up as silence does.
        with httpx.stream("POST", url, content=body, headers=sent, timeout=timeout) as answer:
            if answer.is_success:
                return answer.status_code
            problem = f"HTTP {answer.status_code}"
    except httpx.HTTPError as error:
        problem = str(error) or type(error).__name__
    raise HookFailed(f"{url} did not take the hook: {problem}")


def _post_signed(hook: Mapping[str, Any], event: Mapping[str, Any]) -> int:
    name = str(hook.get("secret_env", "MEND_HOOK_SECRET"))
    secret = os.environ.get(name)
    if not secret:
        raise HookFailed(
            f"webhook {hook.get('url')}: the worker's environment has no {name}; set the secret"
        )
    body = json.dumps(event, sort_keys=True).encode()
    headers = {"Content-Type": "application/json"}
    return _send(str(hook["url"]), body, headers, timeout=TIMEOUT_SECONDS, secret=secret)


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
            "status": _send(
                f"{url}/v1/unload_lora_adapter", unload, headers, timeout=LOAD_TIMEOUT_SECONDS
            ),
        }
    folder = exported(context, model, int(event["to"]), str(event["digest"]), "peft")
    load = {"lora_name": name, "lora_path": str(folder), "load_inplace": True}
    status = _send(
        f"{url}/v1/load_lora_adapter",
        json.dumps(load).encode(),
        headers,
        timeout=LOAD_TIMEOUT_SECONDS,
    )
    return {"kind": "vllm", "name": name, "folder": str(folder), "status": status}
