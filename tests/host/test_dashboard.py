"""What must hold of the Grafana dashboard: it asks for all that the agent tells, in words that Prometheus knows."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from pageferry.agent.chronicle import Chronicle
from pageferry.agent.metrics import Metrics
from pageferry.exposition import Family, Kind
from pageferry.history.store import Store

DASHBOARD = Path(__file__).parents[2] / "contrib/grafana/pageferry.json"
SCRAPE_LABELS = {"instance", "le"}
COLUMNS = 24


@pytest.fixture(scope="module")
def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return read


@pytest.fixture
def families(tmp_path: Path) -> dict[str, Family]:
    """What an agent tells, by each name that Prometheus has for it."""
    chronicle = Chronicle(Store(tmp_path / "history.sqlite3"))
    chronicle.tell(None, "started")
    chronicle.counts.seen_far("slurm", {0: 1})
    found = {}
    for family in Metrics(chronicle, lambda: {"held": 0, "waits": 0}).families():
        for suffix in ("_bucket", "_sum", "_count") if family.kind is Kind.HISTOGRAM else ("",):
            found[family.name + suffix] = family
    return found


def expressions(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield every question of every panel, with the panel's title."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def test_it_asks_for_every_metric_of_the_agents_and_for_no_other(
    dashboard: dict[str, Any], families: dict[str, Family]
) -> None:
    named = {name for _, expression in expressions(dashboard) for name in re.findall(r"pageferry_\w+", expression)}
    for variable in dashboard["templating"]["list"]:
        named |= set(re.findall(r"pageferry_\w+", json.dumps(variable)))
    assert named == families.keys()


def test_it_asks_by_labels_and_values_that_there_are(dashboard: dict[str, Any], families: dict[str, Family]) -> None:
    for title, expression in expressions(dashboard):
        names = re.findall(r"pageferry_\w+", expression)
        samples = [sample for name in names for sample in families[name].samples]
        labels = {label for sample in samples for label in sample.labels} | SCRAPE_LABELS
        asked = {label.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(",")}
        matched = re.findall(r'(\w+)(!=|=~|=)"([^"]*)"', expression)
        assert asked | {label for label, _, _ in matched} <= labels, title
        for label, _, values in matched:
            there = {sample.labels[label] for sample in samples if label in sample.labels}
            assert label == "instance" or set(values.split("|")) <= there, title


@pytest.mark.long
def test_prometheus_understands_every_question(dashboard: dict[str, Any], tmp_path: Path) -> None:
    rules = []
    for number, (_, expression) in enumerate(expressions(dashboard)):
        plain = expression.replace("$instance", ".*").replace("$__rate_interval", "5m").replace("$__range", "6h")
        assert "$" not in plain, "a variable that this test does not know"
        rules.append({"record": f"panel:{number}", "expr": plain})
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))  # JSON is YAML, too
    checked = subprocess.run(
        ["promtool", "check", "rules", str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(rules)} rules found" in checked.stdout


def test_a_site_chooses_its_data_source_and_every_panel_uses_that(dashboard: dict[str, Any]) -> None:
    source = {"type": "prometheus", "uid": "${datasource}"}
    (variable,) = [one for one in dashboard["templating"]["list"] if one["name"] == "datasource"]
    assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
    for panel in dashboard["panels"]:
        if panel["type"] != "row":
            assert panel["datasource"] == source
            assert panel["targets"]
            assert all(target["datasource"] == source for target in panel["targets"])
            assert panel["description"]


def test_grafana_can_import_it_and_no_panel_covers_another(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] >= 39
    assert dashboard.get("id") is None, "an ID is that of one Grafana's database"
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {panel["type"] for panel in panels} <= {"row", "stat", "timeseries", "heatmap", "table"}
    for panel in panels:
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= COLUMNS
        refs = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(refs)) == len(refs)
    for one, other in combinations((panel["gridPos"] for panel in panels), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        assert beside or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
