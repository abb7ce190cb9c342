"""Protecting steps taken out, for the negative controls: `tests.cluster.test_quorum_promises.mutate` applies them."""

from __future__ import annotations

NO_FENCE = """
import consensus.lastresort
import fencing.process
import supervisor.roles
import supervisor.steps
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

WHO_LEADS_IS_PROMOTED = """
import consensus.promotion as promotion

promotion._choose = lambda s: s.me if s.me in promotion._held(s, promotion.required(s.state)) else None
"""
"""The log alone decides: the leader takes the grant, whatever WAL the others hold."""

NOBODY_HANDS_OVER = """
import consensus.promotion as promotion

promotion.HandOver = lambda to, reason: promotion.Wait(f"only {to} may lead")
"""
"""Newest log and newest WAL, both, are asked of one node."""

NUMBERS_COME_BACK = """
import supervisor.timelines as timelines
from consensus.cluster import ClusterState

opened = lambda state: [grant.timeline for grant in state.grants if grant.opened]
ClusterState.next_timeline = lambda state: max([state.initial_timeline, *opened(state)]) + 1

def install_list(ancestry, own, new, shipped=timelines.install_list):
    return shipped([epoch for epoch in ancestry if epoch.timeline < new], min(own, new - 1), new)

timelines.install_list = install_list
"""
"""The number of a promotion that nobody was let in to is given out again, as Postgres itself would; and who has heard
of the one before does not mind."""

COMMITS_WAIT_FOR_NOBODY = """
import supervisor.settings

supervisor.settings.standby_names = lambda epoch, k, others: ""
"""
"""The names of the sync group are never put in force."""

FORGETS = """
import pathlib
from consensus.storage import Store

saves = Store.save
Store.save = lambda store, write: None if pathlib.Path({marker!r}).exists() else saves(store, write)
"""
"""Once the file ``marker`` is there nothing more reaches the disk of the Raft child: votes, terms, promises, log."""

HANDS_OVER_RUNNING = (
    NO_FENCE
    + """
from fencing.clock import now_ns
from fencing.logs import utc_now
from supervisor.tasks import Wait

def give_up_and_go_on(self, plan):
    body = {"term": plan.term, "reason": "switchover", "clean": True, "at": utc_now()}
    self.c.raft.tell("node.fenced", body)
    yield Wait(until_ns=now_ns() + 1_000_000_000, ready=lambda: self.c.view.granted != plan.term)

supervisor.steps.Steps.hand_over = give_up_and_go_on
"""
)
"""The lease is released, and Postgres was not stopped before."""

KEEPS_TORN_RECORDS = """
from supervisor.steps import Steps

Steps._forget_torn_record = lambda self, grant, end: None
"""
"""A record that was being written when Postgres died is waited for, whatever timeline is followed."""
