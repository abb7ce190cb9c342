from __future__ import annotations

import re
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from supervisor.metrics import METRICS, render
from supervisor.status import Snapshot
from tests.unit.snapshots import NOW, A, snapshot

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (-?[0-9.e+-]+)')


def samples(text: str) -> dict[str, float]:
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in text.splitlines() if line[0] != "#"}


def test_the_page_is_well_formed() -> None:
    page = render(snapshot(), NOW)
    assert page.endswith("\n")
    typed: set[str] = set()
    seen: list[str] = []
    for line in page.splitlines():
        if line.startswith("# TYPE "):
            typed.add(line.split()[2])
        elif not line.startswith("#"):
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] in typed, f"{match[1]} has no TYPE before it"
            seen.append(line.rpartition(" ")[0])
    assert len(seen) == len(set(seen)), "a series appears twice"


def test_counters_end_in_total_and_names_are_unique() -> None:
    assert len({m.name for m in METRICS}) == len(METRICS)
    assert all((m.type == "counter") == m.name.endswith("_total") for m in METRICS)
    assert all(m.name.startswith("pgr_") for m in METRICS)


@pytest.mark.parametrize("view", [snapshot(), snapshot("b"), snapshot("c"), Snapshot("x")], ids=lambda s: s.node)
def test_the_official_parser_reads_what_is_said(view: Snapshot) -> None:
    families = {f.name: f for f in text_string_to_metric_families(render(view, NOW))}
    known = {m.name: m for m in METRICS}
    for name, family in families.items():
        assert (family.type, family.documentation) == (known[name].type, known[name].help)
        assert family.samples
        assert len({tuple(sorted(s.labels.items())) for s in family.samples}) == len(family.samples)
    if view.members:
        assert set(known) - set(families) <= {"pgr_timeline", "pgr_last_write_gap_seconds"}


def test_names_and_units_are_those_of_prometheus() -> None:
    """https://prometheus.io/docs/practices/naming: base units, the unit last."""
    for metric in METRICS:
        assert not metric.name.endswith(("_ms", "_milliseconds", "_kb", "_count", "_bucket", "_sum")), metric.name
        assert metric.help.endswith("."), metric.name


def test_labels_come_back_as_they_were() -> None:
    odd = 'a"\\\n{},= é'
    page = render(snapshot(node=odd, members=(replace(A, name=odd),)), NOW)
    (info,) = [f for f in text_string_to_metric_families(page) if f.name == "pgr_info"]
    assert info.samples[0].labels["node"] == odd


def test_values() -> None:
    found = samples(render(snapshot(), NOW))
    assert found["pgr_primary"] == 1
    assert found["pgr_lease_left_seconds"] == 0.623
    assert found['pgr_member_replay_lag_bytes{member="b"}'] == 232
    assert found['pgr_history_events{kind="failover"}'] == 1
    assert found["pgr_last_write_gap_seconds"] == 0.64
    assert found["pgr_salvaged_bytes"] == 8192
    assert found["pgr_lease_seconds"] == 0.7


def test_the_primary_metric_follows_the_lease() -> None:
    assert samples(render(snapshot(), snapshot().lease_until_ns))["pgr_primary"] == 0


def test_the_unknown_is_left_out() -> None:
    page = render(snapshot(history=()), NOW)
    assert 'pgr_member_wal_position_bytes{member="a"}' in page
    assert 'pgr_member_wal_position_bytes{member="c"}' not in page
    assert "pgr_last_write_gap_seconds" not in page


def test_labels_are_escaped() -> None:
    page = render(snapshot(node='a"\\\n', members=(replace(A, name='a"\\\n'),)), NOW)
    assert 'node="a\\"\\\\\\n"' in page
