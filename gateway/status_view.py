"""What `mend status` shows: collected from the ledger, printed as tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection

from gateway import waiting_view
from gateway.output import err, print_table, say, short
from gateway.rundir import ServiceInfo
from ledger import aliases, batches, edits, jobs, models, versions, workers
from service import waiting
from service.session import Session


def collect(session: Session, info: ServiceInfo | None) -> dict[str, Any]:
    """Reads the state of everything in one transaction.

    Args:
        session: The ledger.
        info: What the local supervisor says of itself; None when there is none.
    """
    with session.transaction() as connection:
        known_workers = workers.list_workers(connection)
        waiting_jobs = jobs.list_jobs(connection, limit=20)
        described = []
        for model in models.list_all(connection):
            chain = versions.list_versions(connection, model.id)
            described.append(
                {
                    "name": model.name,
                    "source": model.source,
                    "base_digest": model.base_digest,
                    "editor": model.editor.kind,
                    "editor_digest": model.editor.digest,
                    "paused": model.paused,
                    "approval": model.approval,
                    "auto_promote": model.auto_promote,
                    "edits": {
                        str(k): v for k, v in edits.counts(connection, model.id).items() if v
                    },
                    "problem": model.problem,
                    "progress": _progress(connection, model.id),
                    "versions": len(chain),
                    "aliases": {
                        alias.name: alias.number
                        for alias in aliases.list_aliases(connection, model.id)
                    },
                }
            )
    return {
        "running": info is not None,
        "service": None if info is None else info.to_dict(),
        "workers": [asdict(worker) for worker in known_workers],
        "models": described,
        "jobs": [
            {"id": job.id, "kind": job.kind, "state": str(job.state), "error": job.error}
            for job in waiting_jobs
            if job.state in ("queued", "running")
        ],
    }


def _progress(connection: Connection, model_id: int) -> dict[str, Any] | None:
    """The model's open batch and how far it is."""
    batch = batches.current(connection, model_id)
    if batch is None:
        return None
    now = waiting.progress(connection, batches.edits_of(connection, batch.id))
    return asdict(now)


def show(view: dict[str, Any]) -> None:
    """Prints the collected state for people."""
    service = view["service"]
    if service is None:
        say("No service of this home runs; this is what the database says.")
    else:
        restarted = sum(service["restarts"].values())
        say(
            f"Service {service['state']} (supervisor {service['pid']}), "
            f"{len(service['children'])} processes, {restarted} restarts since the start."
        )
        say(f"  metrics  {service['metrics_url']}")
        say(f"  logs     {service['logs']}")
    print_table(
        ("model", "editor", "edits", "versions", "aliases", "notes"),
        [
            (
                model["name"],
                f"{model['editor']} {short(model['editor_digest'], 8)}",
                ", ".join(f"{n} {state}" for state, n in model["edits"].items()) or "none",
                model["versions"],
                ", ".join(f"{name}={number}" for name, number in model["aliases"].items()),
                " ".join(
                    word
                    for word, on in (
                        ("paused", model["paused"]),
                        ("needs approval", model["approval"]),
                        ("promotes by hand", not model["auto_promote"]),
                    )
                    if on
                ),
            )
            for model in view["models"]
        ],
        title="Models",
    )
    for model in view["models"]:
        now = model["progress"]
        if now and now["batch"] is not None:
            words = waiting_view.stage_words(
                now["batch"], now["stage"], now["done"], now["of"], now["seconds_left"]
            )
            say(f"{model['name']}: {words}")
        if model["problem"]:
            say(f"{model['name']} cannot be worked on: {model['problem']}")
    print_table(
        ("worker", "host", "pid", "state", "last heartbeat", "alive"),
        [
            (w["name"], w["host"], w["pid"], w["state"], w["heartbeat_at"], w["alive"])
            for w in view["workers"]
        ],
        title="Workers",
    )
    if view["jobs"]:
        print_table(
            ("job", "kind", "state"),
            [(job["id"], job["kind"], job["state"]) for job in view["jobs"]],
            title="Jobs",
        )
    if not any(worker["alive"] for worker in view["workers"]):
        err.print("[yellow]No worker is alive: edits are accepted but nothing applies them.[/]")
