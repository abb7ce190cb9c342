"""When the cluster does not choose a primary by itself although it could: pause, and a restart in place. Pure.

Both only ever make a caretaker wait or prefer one node of those that may win: nobody is promoted by them who could not
be without, so they are no part of what safety rests on. safety.md says nothing of a pause; its invariants hold in every
run, so lease, watchdog and fence stay as they are (supervisor/DESIGN.md says why).
"""

from __future__ import annotations

from consensus.cluster import ClusterState

PAUSE = "pause"


def stays(state: ClusterState) -> str:
    """Who is to be primary again, if it can: nobody has asked for another one; empty: the best is.

    In pause the one that people left there, unless its reign has ended by more than the loss of its lease: then its
    Postgres is down, or it was moved.
    """
    grant, rolling = state.grant, state.ops.rolling
    if state.wished or grant is None:
        return ""
    if rolling is not None and rolling.turn_in_place == grant.node:
        return grant.node
    return grant.node if state.setting(PAUSE) and (not grant.failed or grant.lease_lost) else ""


def waits_for(state: ClusterState) -> str:
    """Whose promise is waited for, as it is being restarted in place; empty: nobody's. The restart ends that, or its
    halt (rolling.py)."""
    rolling = state.ops.rolling
    return stays(state) if rolling is not None and rolling.turn_in_place else ""


def held(state: ClusterState, winner: str) -> str:
    """Why ``winner`` is not made primary now; empty: it is."""
    if not state.setting(PAUSE) or state.wished or winner == stays(state):
        return ""
    return f"paused: nobody is made primary; {winner} could be: `pgr failover --to {winner}`, or `pgr resume`"
