"""A change of the timings under way, on the surfaces: page, warning, document, metric; and settings as rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consensus.cluster import ClusterState, canonical
from consensus.membership import LEARNER
from consensus.retiming import Pace, Retiming
from fencing.lease import PROFILES
from supervisor import configview, metrics, render
from supervisor.observe import STALE_AFTER_MS
from supervisor.status import Snapshot, from_json, to_json
from tests.unit.test_observe import NOW, agreed, picture, told

DEFAULT, CLOUD = PROFILES["default"], PROFILES["cloud"]
OPEN = Pace(DEFAULT, Retiming(7, CLOUD))
SWITCHED = Pace(DEFAULT, Retiming(7, CLOUD, True))
WAITS = (
    "warning: the change of the timings from default to cloud waits for c: every voter has to hear of it; start or "
    "remove who is away, or set the timings back"
)


def seen(cluster: ClusterState, away: str = "") -> Snapshot:
    members = {name: told(name, STALE_AFTER_MS if name in away else 0) for name in "abc"}
    return picture(cluster=cluster, members=members)


def page(shown: Snapshot) -> list[str]:
    found = render.status(shown, 623).splitlines()
    assert render.status(from_json(to_json(shown, NOW), NOW), 623).splitlines() == found, "and from the document"
    return [line for line in found if "timings" in line]


@pytest.mark.parametrize(
    ("pace", "away", "lines"),
    [
        (Pace(DEFAULT), "c", []),
        (OPEN, "", ["timings: from default to cloud: every voter is told"]),
        (OPEN, "c", ["timings: from default to cloud: every voter is told", WAITS]),
        (SWITCHED, "c", ["timings: from default to cloud: the last leases of the old length run out"]),
        (Pace(CLOUD), "c", []),
    ],
)
def test_the_page_of_status(pace: Pace, away: str, lines: list[str]) -> None:
    shown = seen(agreed(pace=pace), away)
    assert page(shown) == lines
    assert f"pgr_retiming {int(pace.change is not None)}\n" in metrics.render(shown, NOW)
    assert shown.profile == ("cloud" if pace.timings == CLOUD else "default")


def test_only_a_voter_is_waited_for() -> None:
    members = tuple(replace_role(m, LEARNER) if m.name == "c" else m for m in agreed().members)
    shown = seen(agreed(members=members, pace=OPEN), "c")
    assert shown.retiming is not None
    assert shown.retiming["waits_for"] == []


def replace_role(member: Any, role: str) -> Any:
    return member._replace(role=role, aim=role)


def rows(cluster: ClusterState) -> dict[str, tuple[Any, Any, str]]:
    found = configview.rows(cluster, cluster.pace.timings)
    return {row["name"]: (row["value"], row["default"], row["source"]) for row in found}


def test_config_show_says_what_is_in_force_and_what_is_set() -> None:
    found = rows(agreed(profile="fast", pace=Pace(PROFILES["fast"])))
    assert found["profile"] == ("fast", "fast", "founding")
    assert found["lease_ms"] == (300, 300, "profile")
    cloud = agreed(profile="fast", pace=Pace(CLOUD), config=canonical({"profile": "cloud"}))
    assert rows(cloud)["profile"] == ("cloud", "fast", "set")
    assert rows(cloud)["lease_ms"] == (1400, 1400, "profile")
    single = canonical({"lease_ms": 900, "election_ms": 2000})
    found = rows(agreed(pace=Pace(replace(DEFAULT, lease_ms=900, election_ms=2000)), config=single))
    assert found["lease_ms"] == (900, 700, "set")
    assert found["kill_bound_ms"] == (250, 250, "profile")
    assert seen(agreed(pace=Pace(replace(DEFAULT, lease_ms=900)))).profile == "custom"


def test_an_editor_shows_the_timings_and_changes_nothing_unasked() -> None:
    for config in ("{}", canonical({"profile": "cloud", "lease_ms": 1300})):
        before = configview.rows(agreed(config=config), DEFAULT)
        text = configview.toml(before)
        assert "profile = " in text
        assert configview.edited(before, configview.from_toml(text)) == ({}, [])
        text = text.replace("#election_ms = ", "election_ms = ")
        wanted, unset = configview.edited(before, configview.from_toml(text))
        assert (list(wanted), unset) == (["election_ms"], [])
