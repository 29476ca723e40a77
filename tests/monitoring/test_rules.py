"""Dashboards, alerts and provisioning say only what the exporter serves."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import promql_parser
import pytest
import yaml

from monitoring import dashboards
from monitoring.metrics import CATALOGUE, SERIES

ROOT = Path(dashboards.__file__).parents[1]
PROMETHEUS = ROOT / "monitoring" / "prometheus"
GRAFANA = ROOT / "monitoring" / "grafana"
BUILT_IN = {"up"}


def rules():
    found = []
    for file in sorted((PROMETHEUS / "rules").glob("*.yml")):
        for group in yaml.safe_load(file.read_text())["groups"]:
            found.extend(group["rules"])
    return found


RECORDED = {rule["record"] for rule in rules() if "record" in rule}
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def names_in(node, found):
    """Collects the metric names of a parsed query."""
    name = getattr(node, "name", None)
    if type(node).__name__ == "VectorSelector":
        found.add(name)
    for part in ("expr", "lhs", "rhs", "vector_selector", "param", "args"):
        below = getattr(node, part, None)
        for one in below if isinstance(below, list | tuple) else [below]:
            if one is not None and not isinstance(one, str | int | float):
                names_in(one, found)
    return found


def names(query):
    query = query.replace("$model", "demo").replace("$__all", ".*")
    return names_in(promql_parser.parse(query), set())


@pytest.mark.parametrize("rule", rules(), ids=lambda r: r.get("alert") or r["record"])
def test_every_rule_uses_metrics_that_exist(rule):
    found = names(rule["expr"])
    assert found
    assert found <= SERIES | RECORDED | BUILT_IN


def panels():
    for name, dashboard in dashboards.DASHBOARDS.items():
        for panel in dashboard["panels"]:
            yield pytest.param(panel, id=f"{name} {panel['title']}")


@pytest.mark.parametrize("panel", list(panels()))
def test_every_panel_uses_metrics_that_exist(panel):
    for target in panel["targets"]:
        found = names(target["expr"])
        assert found
        assert found <= SERIES | RECORDED | BUILT_IN


def test_every_metric_is_looked_at_somewhere():
    looked = set()
    for rule in rules():
        looked |= names(rule["expr"])
    for dashboard in dashboards.DASHBOARDS.values():
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                looked |= names(target["expr"])
    # Kept for ad-hoc questions: nobody watches them all day.
    spare = {"mend_batches", "mend_fence_total", "mend_gate_pending_age_seconds"}
    assert looked | spare >= SERIES


def test_the_committed_dashboards_are_the_built_ones():
    for name, dashboard in dashboards.DASHBOARDS.items():
        assert (GRAFANA / "dashboards" / name).read_text() == dashboards.text_of(dashboard)


def test_dashboards_are_sound():
    uids = [dashboard["uid"] for dashboard in dashboards.DASHBOARDS.values()]
    assert len(set(uids)) == len(uids)
    for dashboard in dashboards.DASHBOARDS.values():
        ids = [panel["id"] for panel in dashboard["panels"]]
        assert len(set(ids)) == len(ids)
        for panel in dashboard["panels"]:
            grid = panel["gridPos"]
            assert grid["x"] + grid["w"] <= dashboards.WIDTH
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["description"]


def test_provisioning_points_at_what_is_there():
    [source] = yaml.safe_load(
        (GRAFANA / "provisioning" / "datasources" / "prometheus.yml").read_text()
    )["datasources"]
    assert source["uid"] == dashboards.DATASOURCE["uid"]
    [provider] = yaml.safe_load((GRAFANA / "provisioning" / "dashboards" / "mend.yml").read_text())[
        "providers"
    ]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    mounts = [v.split(":") for v in compose["services"]["grafana"]["volumes"]]
    assert provider["options"]["path"] in {mount[1] for mount in mounts}
    for path in (GRAFANA / "dashboards").glob("*.json"):
        assert json.loads(path.read_text())["schemaVersion"]


def test_every_alert_has_a_runbook_entry_and_a_severity():
    text = (ROOT / "docs" / "operations.md").read_text()
    headings = {match.lower() for match in re.findall(r"^### (\w+)$", text, flags=re.MULTILINE)}
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in {"page", "ticket"}
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{name.lower()}"
        assert name.lower() in headings


def test_metric_names_follow_the_conventions():
    for metric in CATALOGUE:
        assert re.fullmatch(r"mend_[a-z_]+", metric.name)
        assert metric.help
        for label in metric.labels:
            assert label not in {"edit", "prompt", "user", "actor"}
    listed = (ROOT / "docs" / "operations.md").read_text()
    for metric in CATALOGUE:
        assert f"`{metric.series}`" in listed


def test_rules_as_prometheus_sees_them():
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed; the rules were parsed with promql-parser only")
    files = [str(path) for path in sorted((PROMETHEUS / "rules").glob("*.yml"))]
    subprocess.run([tool, "check", "rules", *files], check=True, capture_output=True)
    subprocess.run(
        [tool, "test", "rules", str(PROMETHEUS / "rules_test.yml")], check=True, capture_output=True
    )
