"""Protecting steps taken out, for the negative controls: `tests.cluster.test_quorum_promises.mutate` applies them."""

from __future__ import annotations

NO_FENCE = """
import consensus.lastresort
import fencing.process
import supervisor.roles
from fencing.kill import FenceReport

fencing.process.fence = lambda *_, **__: FenceReport(0, 0, ())
consensus.lastresort.LastResort.tick = lambda self, now_ns: None
supervisor.roles.Situation.authority = property(lambda self: True)
"""
"""The end of a lease ends nothing: neither watchdog, nor parent, nor Raft child acts."""

PROMISES_AND_GOES_ON = """
import supervisor.promote
from supervisor.steps import Steps

def keep(self):
    self.c.change(upstream=0, may_receive=False)
    return
    yield

Steps._detach = keep
supervisor.promote.receivers = lambda context: []
"""
"""A promise is given and the WAL receiver left alone; nor does the promotion look whether there is one."""

ONE_PROMISE_IS_ENOUGH = """
import consensus.promotion
import consensus.quorum

consensus.quorum.read_quorum = consensus.promotion.read_quorum = lambda members, acks: 1
"""
"""The promise of any one member of the sync group makes it primary."""
