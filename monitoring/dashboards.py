"""The Grafana dashboards, as code: `python -m monitoring.dashboards` writes the JSON files.

The JSON is committed, so that Grafana's provisioning needs no Python; a test keeps the two equal.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).with_name("grafana") / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "mend-prometheus"}
"""The uid that `grafana/provisioning/datasources/prometheus.yml` gives."""

WIDTH = 24
HEIGHT = 8
SCHEMA_VERSION = 41


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel.

    Attributes:
        title: What it shows.
        says: How to read it.
        queries: Pairs of query and legend.
        unit: Grafana's name of the unit.
        kind: Grafana's panel type.
        width: Of 24 columns.
    """

    title: str
    says: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 12


M = 'model=~"$model"'

SERVICE = (
    Panel(
        "Ledger",
        "1: Postgres answers. 0: nothing is accepted or applied.",
        (("mend_up", "up"),),
        kind="stat",
        width=4,
    ),
    Panel(
        "Workers alive",
        "Processes that say they start, idle or work.",
        (("mend:workers_alive:sum", "alive"),),
        kind="stat",
        width=4,
    ),
    Panel(
        "Edits waiting",
        "Accepted and not applied yet.",
        ((f"sum(mend:edits_waiting:sum{{{M}}})", "waiting"),),
        kind="stat",
        width=4,
    ),
    Panel(
        "Edits for a person",
        "Quarantined, failed, or waiting for approval.",
        (
            (
                f'sum(mend_edits{{{M}, state=~"quarantined|failed|awaiting_approval"}})',
                "for a person",
            ),
        ),
        kind="stat",
        width=4,
    ),
    Panel(
        "In production",
        "Number of the version each model answers with.",
        ((f'mend_alias_version{{{M}, alias="production"}}', "{{model}}"),),
        kind="stat",
        width=8,
    ),
    Panel(
        "Edits by state",
        "Where every edit request stands.",
        ((f"sum by (state) (mend_edits{{{M}}}) > 0", "{{state}}"),),
    ),
    Panel(
        "Oldest waiting edit",
        "Rises in a straight line when nobody works.",
        ((f"mend_queue_oldest_age_seconds{{{M}}}", "{{model}}"),),
        unit="s",
    ),
    Panel(
        "Accepted",
        "Edit requests a second, five minutes' mean.",
        ((f"mend:edits_accepted:rate5m{{{M}}}", "{{model}}"),),
        unit="reqps",
    ),
    Panel(
        "Failed tries",
        "Tries of edits that ended in an error, a second.",
        ((f"mend:edit_attempts:rate15m{{{M}}}", "{{model}}"),),
        unit="reqps",
    ),
    Panel(
        "Worker heartbeats",
        "Age of each worker's last sign of life.",
        (("mend_worker_heartbeat_age_seconds", "{{worker}}"),),
        unit="s",
    ),
    Panel(
        "Leases",
        "Whether a worker holds a model, and leases nobody swept up.",
        (
            (f"mend_lease_held{{{M}}}", "held {{model}}"),
            (f"mend_lease_overdue_seconds{{{M}}}", "overdue {{model}}"),
        ),
    ),
    Panel(
        "Open batch",
        "How long the present batch is being worked on.",
        ((f"mend_batch_open_age_seconds{{{M}}}", "{{model}}"),),
        unit="s",
    ),
    Panel(
        "Jobs",
        "What people asked workers to do beside editing.",
        (("mend_jobs", "{{state}}"),),
    ),
    Panel(
        "Scrape",
        "What reading the ledger costs.",
        (("mend_scrape_duration_seconds", "seconds"),),
        unit="s",
    ),
    Panel(
        "Audit trail",
        "Events, and the age of the last checkpoint.",
        (
            ("mend_audit_events_total", "events"),
            ("mend_audit_checkpoint_age_seconds", "checkpoint age (s)"),
        ),
    ),
)

QUALITY = (
    Panel(
        "Scores in production, free-running",
        "What users see: edits that take, paraphrases that follow, answers that stayed.",
        ((f'mend_score{{{M}, alias="production", counting="free"}}', "{{model}} {{score}}"),),
        unit="percentunit",
    ),
    Panel(
        "Scores in production, teacher-forced",
        "Always higher than free-running; never report it alone.",
        (
            (
                f'mend_score{{{M}, alias="production", counting="forced_token"}}',
                "{{model}} {{score}}",
            ),
        ),
        unit="percentunit",
    ),
    Panel(
        "Drift from the base",
        "Perplexity ratio and KL of production; many small passes add up here.",
        ((f'mend_drift{{{M}, alias="production"}}', "{{model}} {{measure}}"),),
    ),
    Panel(
        "Gate decisions",
        "Decisions of six hours by outcome.",
        ((f"mend:gate_decisions:increase6h{{{M}}}", "{{model}} {{outcome}}"),),
    ),
    Panel(
        "Versions by gate",
        "All versions ever built.",
        ((f"sum by (gate) (mend_versions{{{M}}})", "{{gate}}"),),
    ),
    Panel(
        "Aliases",
        "Which version each alias names.",
        ((f"mend_alias_version{{{M}}}", "{{model}} {{alias}}"),),
    ),
    Panel(
        "Alias moves",
        "Promotions and rollbacks of an hour.",
        ((f"sum by (kind) (increase(mend_alias_moves_total{{{M}}}[1h]))", "{{kind}}"),),
    ),
    Panel(
        "Edits in production",
        "Size of the live set.",
        ((f'mend_alias_edits{{{M}, alias="production"}}', "{{model}}"),),
    ),
    Panel(
        "Version files",
        "Bytes on disk of versions not collected.",
        ((f"mend_version_bytes{{{M}}}", "{{model}}"),),
        unit="bytes",
    ),
    Panel(
        "What aliases name",
        "Digest per alias.",
        ((f"mend_alias_info{{{M}}}", "{{model}} {{alias}} {{version}} {{digest}}"),),
        kind="table",
    ),
)


def panel_json(panel: Panel, identity: int, x: int, y: int) -> dict[str, Any]:
    """Returns Grafana's form of a panel."""
    height = HEIGHT // 2 if panel.kind == "stat" else HEIGHT
    return {
        "id": identity,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": DATASOURCE,
        "gridPos": {"h": height, "w": panel.width, "x": x, "y": y},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": DATASOURCE,
                "expr": query,
                "legendFormat": legend,
                **({"instant": True, "format": "table"} if panel.kind == "table" else {}),
            }
            for number, (query, legend) in enumerate(panel.queries)
        ],
    }


def dashboard_json(uid: str, title: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    """Lays panels out row by row and returns Grafana's form of the dashboard."""
    laid: list[dict[str, Any]] = []
    x = y = row = 0
    for identity, panel in enumerate(panels, start=1):
        if x + panel.width > WIDTH:
            x, y, row = 0, y + row, 0
        laid.append(panel_json(panel, identity, x, y))
        row = max(row, laid[-1]["gridPos"]["h"])
        x += panel.width
    return {
        "uid": uid,
        "title": title,
        "tags": ["mend"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": False,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "utc",
        "templating": {
            "list": [
                {
                    "name": "model",
                    "label": "Model",
                    "type": "query",
                    "datasource": DATASOURCE,
                    "query": "label_values(mend_model_paused, model)",
                    "refresh": 2,
                    "includeAll": True,
                    "multi": True,
                    "current": {"text": "All", "value": "$__all"},
                }
            ]
        },
        "panels": laid,
    }


DASHBOARDS = {
    "service.json": dashboard_json("mend-service", "Mend: service", SERVICE),
    "quality.json": dashboard_json("mend-quality", "Mend: what production answers", QUALITY),
}


def text_of(dashboard: dict[str, Any]) -> str:
    """Returns the file's text."""
    return json.dumps(dashboard, indent=2) + "\n"


def main() -> int:
    """Writes every dashboard."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, dashboard in DASHBOARDS.items():
        (FOLDER / name).write_text(text_of(dashboard), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
