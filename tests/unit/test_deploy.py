"""What deploy/ holds names only what there is: metrics of /metrics, paths that are answered."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from supervisor.health import PATHS
from supervisor.metrics import METRICS

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KNOWN = {metric.name for metric in METRICS}
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "pgr.json").read_text(encoding="utf-8"))


def named(text: str) -> set[str]:
    return set(re.findall(r"\bpgr_[a-z_]+", text))


def expressions() -> list[str]:
    found = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    found += [query["query"] for query in DASHBOARD["templating"]["list"]]
    return found + [note["expr"] for note in DASHBOARD["annotations"]["list"]]


def test_every_metric_of_the_dashboard_is_one_of_ours() -> None:
    for expression in expressions():
        assert named(expression) <= KNOWN, expression
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(named(target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"])


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_every_metric_of_the_alerts_is_one_of_ours() -> None:
    text = (DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    rules = re.findall(r"- alert: (\w+)\n\s+expr: (.+)\n", text)
    assert len(rules) == text.count("- alert:") > 10
    for name, expression in rules:
        assert named(expression) <= KNOWN, name
        assert named(expression) or "up{" in expression, name
        assert expression.count("(") == expression.count(")"), name
    assert all(f"rule_files:\n  - {name}\n" in (DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
               for name in ("alerts.yml",))  # fmt: skip


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("haproxy*.cfg")), ids=lambda p: p.name)
def test_haproxy_asks_for_paths_that_are_answered(path: Path) -> None:
    asked = re.findall(r"option httpchk (?:HEAD|OPTIONS|GET) (/[^\s?]*)", path.read_text(encoding="utf-8"))
    assert asked
    assert set(asked) <= PATHS
