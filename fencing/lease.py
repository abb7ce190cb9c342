"""The timings of a cluster and the inequality that makes them safe (safety.md, "Lease").

A follower that acknowledged a heartbeat grants no vote for E after receiving it; the leader's Postgres is gone at the
latest L + F after the heartbeat was *sent*. With clocks whose rates differ by at most rho, nobody can be elected
before that if and only if ``L / (1 - rho) + F <= E / (1 + rho)``.
"""

from __future__ import annotations

from dataclasses import dataclass

RHO_PERCENT = 2
MS = 1_000_000
"""Nanoseconds in a millisecond."""
UNTOLD = -1
"""In the place of the index of the log that timings are of: those that a node was started with."""


@dataclass(frozen=True, slots=True)
class Timings:
    """All durations in milliseconds; the letters are those of safety.md."""

    heartbeat_ms: int
    """H: how often the leader sends a round."""
    demote_ms: int
    """Orderly demotion begins this long after the send of the last acknowledged round."""
    lease_ms: int
    """L: a lease ends this long after the send of the round that earned it."""
    kill_bound_ms: int
    """F: from the end of the lease until no process of Postgres is left."""
    election_ms: int
    """E: how long an acknowledged round binds a follower's vote."""
    jitter_ms: int
    """Upper bound of the random wait added before a campaign."""

    def problems(self) -> tuple[str, ...]:
        """Every reason why these timings are refused, as sentences; empty if they are safe."""
        found: list[str] = []
        if min(self.heartbeat_ms, self.demote_ms, self.lease_ms, self.kill_bound_ms, self.election_ms) <= 0:
            found.append("every duration must be positive")
        # Multiplied out so that the comparison is exact in integers.
        low, high = 100 - RHO_PERCENT, 100 + RHO_PERCENT
        if (self.lease_ms * 100 + self.kill_bound_ms * low) * high > self.election_ms * 100 * low:
            found.append(
                f"lease_ms {self.lease_ms} and kill_bound_ms {self.kill_bound_ms} do not fit under election_ms "
                f"{self.election_ms}: lease / (1 - rho) + kill bound must not exceed election / (1 + rho), "
                f"rho = {RHO_PERCENT} %"
            )
        if not 2 * self.heartbeat_ms < self.demote_ms < self.lease_ms:
            found.append("demote_ms must lie between two heartbeats and lease_ms")
        if not self.kill_bound_ms + 2 * self.heartbeat_ms < self.lease_ms:
            # Who is to be promoted is armed with a lease that is up to a heartbeat and a round trip old.
            found.append("kill_bound_ms and two heartbeats must be less than lease_ms: nobody is armed with less to go")
        return tuple(found)


PROFILES: dict[str, Timings] = {
    "fast": Timings(50, 220, 300, 180, 500, 150),
    "default": Timings(100, 500, 700, 250, 1000, 300),
    "cloud": Timings(200, 1000, 1400, 500, 2000, 600),
}
"""The profiles a founder may choose from (safety.md). Their numbers never change: a log names the profile, and every
version has to read the same from it."""
