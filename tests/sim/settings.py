"""What only some seeds have, by a chance of its own: a person who changes cluster-wide settings or the timings while
things fail, and primaries whose Postgres crashes and is started again in place."""

from __future__ import annotations

import random
from typing import Any

from consensus.clusterwide import TIMINGS
from fencing.lease import MS, PROFILES
from tests.sim.harm import Harm
from tests.sim.network import DATA

SHARE = 0.15
"""Of the seeds."""
NOT_WITH = ("wipe", "wipe-raft", "damage-raft")
"""A sync group that shrank to one node has one copy: losing that is more than the contract is about."""


def kinds(seed: int, chosen: list[str]) -> list[str]:
    """The kinds of faults of a seed."""
    if random.Random(f"{seed} cluster-wide settings").random() >= SHARE:
        return chosen
    return [*(kind for kind in chosen if kind not in NOT_WITH), "settings", "settings", "starve", "starve", "kill-node"]


RESTARTS = 0.15
"""Of the seeds: Postgres alone crashes often, and the primary starts it again in place (`on_primary_crash`)."""


def restarts(seed: int) -> bool:
    return random.Random(f"{seed} on_primary_crash").random() < RESTARTS


RETIMES = 0.15
"""Of the seeds: a person changes the timings of the running cluster, to any of these and back half way."""
SETS: tuple[dict[str, Any], ...] = (
    *({"profile": name} for name in PROFILES),
    {"profile": "default", "lease_ms": 600, "kill_bound_ms": 350},  # a shorter L for a longer F, under the same E
    {"profile": "cloud", "lease_ms": 900, "election_ms": 1500},
)


def retimes(seed: int) -> bool:
    return random.Random(f"{seed} timings").random() < RETIMES


class Settings(Harm):
    def _restart_in_place(self) -> None:
        wanted = {"on_primary_crash": "restart", "primary_start_timeout": 5}
        self._ask("config.set", {"set": wanted, "unset": []})

    def _crash(self) -> None:
        """Of Postgres alone. A second one while it starts again, now and then."""
        host = self._likely_primary()
        self.did("crash", f"the Postgres of {host.name}")
        for after_ms in (0, self._ms(1, 400))[: 1 + self.world.chance(0.3)]:
            self.world.after(after_ms * MS, lambda: host.postgres.end() if host.postgres is not None else None)

    def _starve(self) -> None:
        """Nobody gets the WAL of the primary for longer than a cluster that is not strict waits: 3 s until the standbys
        notice, and 5 more."""
        host = self.world.primary()
        if host is None:
            return
        ms = self._ms(9_000, 15_000)
        self.did("starve", f"nobody hears the WAL of {host.name} for {ms} ms")
        self._cut((DATA,), [(host.name, n) for n in self.world.hosts if n != host.name], ms)

    def _timings(self) -> None:
        wanted = self.world.dice.choice(SETS) if self.world.chance(0.5) else self._any_set()
        self.did("timings", f"to {wanted}")
        self._ask("config.set", {"set": wanted, "unset": [name for name in TIMINGS if name not in wanted]})

    def _any_set(self) -> dict[str, int]:
        """That is safe, near its limits too."""
        dice = self.world.dice
        heartbeat, kill = dice.choice((50, 100, 200, 400)), dice.choice((180, 250, 500))
        lease = dice.randrange(max(300, 5 * heartbeat, kill + 2 * heartbeat + 50), 2_500)
        election = dice.randrange(max(500, int((lease / 0.98 + kill) * 1.02) + 2), 4_000)
        return {"heartbeat_ms": heartbeat, "lease_ms": lease, "kill_bound_ms": kill, "election_ms": election}

    def _settings(self) -> None:
        dice = self.world.dice
        wanted: dict[str, Any] = {}
        unset: list[str] = []
        match dice.choice(("strict", "loose", "loose", "async", "quorum", "acks", "no acks")):
            case "strict":
                wanted["strict"] = True
            case "loose":
                wanted["strict"] = False
            case "acks":
                wanted["sync_acks"] = dice.choice((1, 2))
            case "no acks":
                unset.append("sync_acks")
            case mode:
                wanted["commit"] = mode
        self._ask("config.set", {"set": wanted, "unset": unset})
