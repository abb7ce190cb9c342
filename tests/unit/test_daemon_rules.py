"""The one rule that the daemon itself holds: a grant that does not become a primary in time has failed."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fencing.lease import MS
from supervisor.daemon import PRIMARY_START_TIMEOUT_MS, Daemon
from supervisor.roles import Local, Server, View

TIMEOUT = PRIMARY_START_TIMEOUT_MS * MS
BEGAN = 1_000 * MS


class Node:
    """As much of a daemon as the rule looks at; the clock is moved by hand."""

    def __init__(self, granted: int = 7) -> None:
        self.now = BEGAN
        self.logged: list[tuple[str, dict[str, Any]]] = []
        log = SimpleNamespace(error=lambda event, **fields: self.logged.append((event, fields)))
        self.c = SimpleNamespace(view=View(alive=True, granted=granted), local=Local("a"), change=self._change)
        self.stub = SimpleNamespace(c=self.c, log=log, granted=(0, 0), was_primary=0)

    def _change(self, **facts: Any) -> None:
        self.c.local = replace(self.c.local, **facts)

    def turn(self, after_ns: int = 0, *, alive: bool = True, granted: int | None = None, **local: Any) -> int:
        """One turn of the loop so much later: the term that is now held to have failed, 0 for none."""
        self.now += after_ns
        self.c.view = replace(self.c.view, alive=alive, granted=self.c.view.granted if granted is None else granted)
        self._change(**local)
        Daemon._watch_promotion(cast(Daemon, self.stub), self.now)
        return int(self.c.local.failed_promotion)


@pytest.mark.parametrize("server", [Server.DOWN, Server.STARTING, Server.STANDBY, Server.PROMOTING])
def test_a_grant_that_never_becomes_a_primary_fails_after_the_timeout(server: Server) -> None:
    node = Node()
    assert node.turn(server=server, epoch=7 if server is Server.PROMOTING else 0) == 0
    assert node.turn(TIMEOUT) == 0, "not before"
    assert node.turn(1) == 7
    assert node.logged == [("promotion.failed", {"term": 7, "after_ms": PRIMARY_START_TIMEOUT_MS})]
    assert node.turn(TIMEOUT) == 7
    assert len(node.logged) == 1, "said once"


def test_the_time_counts_from_the_grant_and_not_from_an_earlier_one() -> None:
    node = Node(granted=5)
    node.turn(server=Server.STANDBY)
    assert node.turn(TIMEOUT - 1) == 0
    assert node.turn(granted=7) == 0
    assert node.turn(TIMEOUT) == 0, "the new grant has all of its time"
    assert node.turn(1) == 7


@pytest.mark.parametrize("server", [Server.STOPPING, Server.DOWN])
def test_a_primary_that_hands_over_much_later_has_not_failed(server: Server) -> None:
    """It still holds its grant then, and is no primary any more."""
    node = Node()
    node.turn(server=Server.PROMOTING, epoch=7)
    node.turn(5_000 * MS, server=Server.PRIMARY)
    assert node.turn(10 * TIMEOUT) == 0, "as a primary neither"
    assert node.turn(1, server=server) == 0
    assert node.turn(10 * TIMEOUT) == 0
    assert node.logged == []


def test_to_have_been_primary_of_an_earlier_grant_excuses_nothing() -> None:
    node = Node(granted=5)
    node.turn(server=Server.PRIMARY, epoch=5)
    node.turn(1, granted=7, server=Server.STANDBY, epoch=0)
    assert node.turn(TIMEOUT + 1) == 7
    other = Node(granted=7)
    other.turn(server=Server.PRIMARY, epoch=5)
    assert other.turn(TIMEOUT + 1) == 7, "nor has a server that is primary under another grant begun this one"


def test_while_the_raft_child_is_away_nothing_is_known_to_have_failed() -> None:
    node = Node()
    node.turn(server=Server.STANDBY)
    assert node.turn(TIMEOUT + 1, alive=False) == 0
    assert node.turn(1, alive=True) == 7


def test_without_a_grant_nothing_fails() -> None:
    node = Node(granted=5)
    node.turn(server=Server.PRIMARY, epoch=5, failed_promotion=3)
    node.turn(1, granted=0, server=Server.STANDBY, epoch=0)
    assert node.turn(10 * TIMEOUT) == 3, "what failed before is not forgotten either"
    assert node.logged == []
