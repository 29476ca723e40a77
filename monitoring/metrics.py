"""Every metric the exporter serves: name, type, labels, meaning and the query behind it.

One catalogue serves the exporter, the documentation and the tests that check dashboards and alert
rules against it. Labels are bounded: model names, states, alias and worker names; never an edit,
a prompt or a person.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["gauge", "counter", "info"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family.

    Attributes:
        name: Family name, without the `_total` or `_info` the type adds.
        kind: Prometheus type.
        help: What it says, and what is wrong when it is high.
        labels: Label names, in the order of the query's columns.
        sql: Returns the label columns followed by the value. "" for those the exporter itself
            knows.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    sql: str

    @property
    def series(self) -> str:
        """The name a query uses."""
        suffix = {"counter": "_total", "info": "_info", "gauge": ""}[self.kind]
        return self.name + suffix


CATALOGUE: tuple[Metric, ...] = (
    Metric(
        "mend_up",
        "gauge",
        "1 when this scrape could read the ledger, 0 when Postgres did not answer.",
        (),
        "",
    ),
    Metric(
        "mend_scrape_duration_seconds",
        "gauge",
        "How long reading the ledger took for this scrape.",
        (),
        "",
    ),
    Metric(
        "mend_edits",
        "gauge",
        "Edit requests by state. `failed` and `quarantined` wait for a person.",
        ("model", "state"),
        """
        SELECT m.name, s.state::text, count(e.id)::float8
        FROM models m
        CROSS JOIN unnest(enum_range(NULL::edit_state)) AS s(state)
        LEFT JOIN edits e ON e.model_id = m.id AND e.state = s.state
        GROUP BY m.name, s.state
        """,
    ),
    Metric(
        "mend_queue_oldest_age_seconds",
        "gauge",
        "Age of the oldest edit that is due and not applied. High: workers do not keep up.",
        ("model",),
        """
        SELECT m.name, COALESCE(max(GREATEST(0, extract(
            epoch FROM clock_timestamp() - GREATEST(e.created_at, e.not_before)))::float8), 0)
        FROM models m
        LEFT JOIN edits e ON e.model_id = m.id AND e.state IN ('queued', 'claimed')
        GROUP BY m.name
        """,
    ),
    Metric(
        "mend_approval_oldest_age_seconds",
        "gauge",
        "Age of the oldest edit that waits for a person.",
        ("model",),
        """
        SELECT m.name, COALESCE(max(GREATEST(0, extract(
            epoch FROM clock_timestamp() - e.created_at))::float8), 0)
        FROM models m
        LEFT JOIN edits e ON e.model_id = m.id AND e.state = 'awaiting_approval'
        GROUP BY m.name
        """,
    ),
    Metric(
        "mend_edits_accepted",
        "counter",
        "Edit requests accepted since the ledger began.",
        ("model",),
        """
        SELECT m.name, count(e.id)::float8
        FROM models m LEFT JOIN edits e ON e.model_id = m.id GROUP BY m.name
        """,
    ),
    Metric(
        "mend_edit_attempts",
        "counter",
        "Tries that ended in an error or a crash. A steep rise: something poisons the work.",
        ("model",),
        """
        SELECT m.name, COALESCE(sum(e.attempts), 0)::float8
        FROM models m LEFT JOIN edits e ON e.model_id = m.id GROUP BY m.name
        """,
    ),
    Metric(
        "mend_batches",
        "gauge",
        "Batches by state. `lost`: their worker vanished and their edits were queued again.",
        ("model", "state"),
        """
        SELECT m.name, s.state::text, count(b.id)::float8
        FROM models m
        CROSS JOIN unnest(enum_range(NULL::batch_state)) AS s(state)
        LEFT JOIN batches b ON b.model_id = m.id AND b.state = s.state
        GROUP BY m.name, s.state
        """,
    ),
    Metric(
        "mend_batch_open_age_seconds",
        "gauge",
        "Age of the model's open batch, 0 without one. High: an edit or a probe run is stuck.",
        ("model",),
        """
        SELECT m.name, COALESCE(max(GREATEST(0, extract(
            epoch FROM clock_timestamp() - b.claimed_at))::float8), 0)
        FROM models m LEFT JOIN batches b ON b.model_id = m.id AND b.state = 'open'
        GROUP BY m.name
        """,
    ),
    Metric(
        "mend_lease_held",
        "gauge",
        "1 while a worker holds the model's lease.",
        ("model",),
        """
        SELECT m.name, (l.until IS NOT NULL AND l.until > clock_timestamp())::int::float8
        FROM models m LEFT JOIN leases l ON l.model_id = m.id
        """,
    ),
    Metric(
        "mend_lease_overdue_seconds",
        "gauge",
        "Time since a lease ran out that nobody took over. High: no worker sweeps.",
        ("model",),
        """
        SELECT m.name, COALESCE(GREATEST(0, extract(
            epoch FROM clock_timestamp() - l.until))::float8, 0)
        FROM models m LEFT JOIN leases l ON l.model_id = m.id
        """,
    ),
    Metric(
        "mend_fence",
        "counter",
        "The model's fence number; it rises with every lease and every version.",
        ("model",),
        """
        SELECT m.name, COALESCE(l.fence, 0)::float8
        FROM models m LEFT JOIN leases l ON l.model_id = m.id
        """,
    ),
    Metric(
        "mend_versions",
        "gauge",
        "Versions by the outcome of their gate.",
        ("model", "gate"),
        """
        SELECT m.name, g.gate::text, count(v.id)::float8
        FROM models m
        CROSS JOIN unnest(enum_range(NULL::gate_outcome)) AS g(gate)
        LEFT JOIN versions v ON v.model_id = m.id AND v.gate = g.gate
        GROUP BY m.name, g.gate
        """,
    ),
    Metric(
        "mend_gate_pending_age_seconds",
        "gauge",
        "Age of the oldest version without a gate outcome.",
        ("model",),
        """
        SELECT m.name, COALESCE(max(GREATEST(0, extract(
            epoch FROM clock_timestamp() - v.created_at))::float8), 0)
        FROM models m LEFT JOIN versions v ON v.model_id = m.id AND v.gate = 'pending'
        GROUP BY m.name
        """,
    ),
    Metric(
        "mend_gate_decisions",
        "counter",
        "Gate decisions taken, by outcome.",
        ("model", "outcome"),
        """
        SELECT m.name, o.outcome::text, count(g.id)::float8
        FROM models m
        CROSS JOIN unnest(enum_range(NULL::gate_outcome)) AS o(outcome)
        LEFT JOIN versions v ON v.model_id = m.id
        LEFT JOIN gates g ON g.version_id = v.id AND g.outcome = o.outcome
        GROUP BY m.name, o.outcome
        """,
    ),
    Metric(
        "mend_version_bytes",
        "gauge",
        "Bytes of version files on disk (not collected ones).",
        ("model",),
        """
        SELECT m.name, COALESCE(sum(v.bytes), 0)::float8
        FROM models m LEFT JOIN versions v ON v.model_id = m.id AND v.collected_at IS NULL
        GROUP BY m.name
        """,
    ),
    Metric(
        "mend_alias_version",
        "gauge",
        "Number of the version an alias names.",
        ("model", "alias"),
        """
        SELECT m.name, a.name, v.number::float8
        FROM aliases a JOIN models m ON m.id = a.model_id JOIN versions v ON v.id = a.version_id
        """,
    ),
    Metric(
        "mend_alias",
        "info",
        "Which version an alias names, with its digest.",
        ("model", "alias", "version", "digest"),
        """
        SELECT m.name, a.name, v.number::text, v.digest, 1::float8
        FROM aliases a JOIN models m ON m.id = a.model_id JOIN versions v ON v.id = a.version_id
        """,
    ),
    Metric(
        "mend_alias_edits",
        "gauge",
        "Edits in the set of the version an alias names.",
        ("model", "alias"),
        """
        SELECT m.name, a.name, v.edit_count::float8
        FROM aliases a JOIN models m ON m.id = a.model_id JOIN versions v ON v.id = a.version_id
        """,
    ),
    Metric(
        "mend_alias_moves",
        "counter",
        "Moves of aliases, by kind. Rollbacks are worth a question.",
        ("model", "kind"),
        """
        SELECT m.name, k.kind, count(a.id)::float8
        FROM models m
        CROSS JOIN (VALUES ('create'), ('move'), ('promote'), ('rollback')) AS k(kind)
        LEFT JOIN alias_moves a ON a.model_id = m.id AND a.kind = k.kind
        GROUP BY m.name, k.kind
        """,
    ),
    Metric(
        "mend_score",
        "gauge",
        "A score (0 to 1) of the version an alias names, as its last gate decision recorded it. "
        "`free` counts free-running answers, `forced_*` teacher-forced ones.",
        ("model", "alias", "counting", "score"),
        """
        SELECT m.name, a.name, f.key, s.key, (s.value #>> '{}')::float8
        FROM aliases a
        JOIN models m ON m.id = a.model_id
        CROSS JOIN LATERAL (
            SELECT g.scores FROM gates g
            WHERE g.version_id = a.version_id AND g.scores <> '{}'::jsonb
            ORDER BY g.id DESC LIMIT 1
        ) AS last
        CROSS JOIN LATERAL jsonb_each(last.scores) AS f
        CROSS JOIN LATERAL jsonb_each(
            CASE jsonb_typeof(f.value) WHEN 'object' THEN f.value ELSE '{}'::jsonb END
        ) AS s
        WHERE f.key IN ('free', 'forced_exact', 'forced_token')
          AND jsonb_typeof(s.value) = 'number'
        """,
    ),
    Metric(
        "mend_drift",
        "gauge",
        "Drift against the base of the version an alias names: perplexity_ratio, kl (nats/token).",
        ("model", "alias", "measure"),
        """
        SELECT m.name, a.name, d.measure, (last.scores ->> d.measure)::float8
        FROM aliases a
        JOIN models m ON m.id = a.model_id
        CROSS JOIN LATERAL (
            SELECT g.scores FROM gates g
            WHERE g.version_id = a.version_id AND g.scores <> '{}'::jsonb
            ORDER BY g.id DESC LIMIT 1
        ) AS last
        CROSS JOIN (VALUES ('perplexity_ratio'), ('kl')) AS d(measure)
        WHERE jsonb_typeof(last.scores -> d.measure) = 'number'
        """,
    ),
    Metric(
        "mend_model_paused",
        "gauge",
        "1 while a person keeps the model's edits from being claimed.",
        ("model",),
        "SELECT name, paused::int::float8 FROM models",
    ),
    Metric(
        "mend_model_problem",
        "gauge",
        "1 while the last worker that tried could not work on the model; `mend status` says why.",
        ("model",),
        "SELECT name, (problem IS NOT NULL)::int::float8 FROM models",
    ),
    Metric(
        "mend_jobs",
        "gauge",
        "Jobs by state, all kinds.",
        ("state",),
        """
        SELECT s.state::text, count(j.id)::float8
        FROM unnest(enum_range(NULL::job_state)) AS s(state)
        LEFT JOIN jobs j ON j.state = s.state GROUP BY s.state
        """,
    ),
    Metric(
        "mend_job_oldest_age_seconds",
        "gauge",
        "Age of the oldest job that no worker has begun.",
        (),
        """
        SELECT COALESCE(max(GREATEST(0, extract(
            epoch FROM clock_timestamp() - created_at))::float8), 0)
        FROM jobs WHERE state = 'queued'
        """,
    ),
    Metric(
        "mend_workers",
        "gauge",
        "Worker processes by what they last said of themselves.",
        ("state",),
        """
        SELECT s.state, count(w.instance)::float8
        FROM (VALUES ('starting'), ('idle'), ('busy'), ('stopping'), ('stopped'), ('lost'))
             AS s(state)
        LEFT JOIN workers w ON w.state = s.state GROUP BY s.state
        """,
    ),
    Metric(
        "mend_worker_heartbeat_age_seconds",
        "gauge",
        "Time since a worker's newest process was heard of. Above 30: it hangs or is gone.",
        ("worker",),
        """
        SELECT name, min(GREATEST(0, extract(epoch FROM clock_timestamp() - heartbeat_at))::float8)
        FROM workers WHERE state NOT IN ('stopped', 'lost') GROUP BY name
        ORDER BY 2 LIMIT 200
        """,
    ),
    Metric(
        "mend_audit_events",
        "counter",
        "Events in the audit trail.",
        (),
        "SELECT seq::float8 FROM audit_head",
    ),
    Metric(
        "mend_audit_checkpoint_age_seconds",
        "gauge",
        "Time since the last audit checkpoint; -1 when there was none.",
        (),
        """
        SELECT COALESCE(min(GREATEST(0, extract(
            epoch FROM clock_timestamp() - at))::float8), -1)
        FROM audit WHERE kind = 'audit.checkpoint'
        """,
    ),
)

BY_NAME = {metric.name: metric for metric in CATALOGUE}
SERIES = frozenset(metric.series for metric in CATALOGUE)
"""The names a dashboard or an alert rule may use."""
