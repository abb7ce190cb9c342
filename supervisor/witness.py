"""A witness: the consensus process with a node's surfaces (HTTP, admin, signals) in the same loop. One process.

It has no Postgres, so there is nothing to start, to watch over or to fence: no parent that outlives a child, no
watchdog, no launcher. And it has to be small: less than 20 MB in all. What ends it unexpectedly ends all of it, and
whoever started it starts it again.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import zmq

from consensus import retiming
from consensus.clustertext import load
from consensus.founder import RefusedToStartError
from consensus.membership import Member
from consensus.node import Node
from consensus.process import Host, RaftChild
from fencing import wire
from fencing.clock import now_ns
from fencing.lease import MS, PROFILES
from fencing.logs import Log
from supervisor import httpgate, member, observe
from supervisor.adminserver import AdminServer
from supervisor.config import Config
from supervisor.entry import version
from supervisor.errors import ExitCode, RefusedError
from supervisor.healthserver import Current
from supervisor.init import Signals, reap
from supervisor.reread import reread
from supervisor.roles import Local, Situation, View, plan
from supervisor.systemd import Service

OBSERVE_EVERY_MS = 1_000
"""As a parent does: the node takes a silent one for a hung one."""
SNAPSHOT_EVERY_MS = 1_000


def run(config: Config, log: Log) -> int:
    """The witness's life; returns the exit code."""
    member.refuse_data(config)
    os.chdir("/")
    child = RaftChild(**member.raft_arguments(config, mark={}, adopts=""))
    try:
        return Witness(config, child, log).run()
    except RefusedToStartError as error:
        raise RefusedError(str(error), error.hint) from error


class Bus:
    """Stands for the bus to a Raft child: what is told here is taken in by the node itself in the next turn."""

    def __init__(self) -> None:
        self.orders: list[wire.Frame] = []

    def tell(self, name: str, body: dict[str, Any], request_id: str = "") -> bool:
        self.orders.append(wire.Frame(name, request_id, body))
        return True


@dataclass(slots=True)
class Seen:
    """What the admin server looks at, as `Context` is for a node with a Postgres."""

    config: Config
    log: Log
    raft: Bus
    view: View
    local: Local

    @property
    def members(self) -> tuple[Member, ...]:
        return self.view.cluster.members if self.view.cluster is not None else ()


class Witness(Host):
    """Adds to each turn of the consensus process: take in, answer, publish."""

    def __init__(self, config: Config, child: RaftChild, log: Log) -> None:
        self.facts: list[wire.Frame] = []
        self.surfaces: list[zmq.Socket[bytes] | int] = []
        super().__init__(child, log)
        # Founded already, it is not told who it is: there is no hello to answer.
        view = View(incarnation=self.identity.incarnation)
        self.c = Seen(config, log, Bus(), view, Local(config.name, witness=True))
        self.signals = Signals()
        self.service = Service(log)
        self.admin = AdminServer(self.context, self.c)
        self.current = Current(self.admin.snapshot)
        self.https = httpgate.make(config, self.current, self.admin, log)
        self.http = self.https.server if self.https is not None else None
        self.surfaces = [self.admin.socket, self.signals.fileno()]
        if self.http is not None:
            self.surfaces.append(self.http.fileno())
        self._register()
        self.members: Mapping[str, Any] = {}
        self.founding_sentence = ""
        self.observed: dict[str, Any] = {}
        self.observe_at_ns = self.snapshot_at_ns = 0
        self.was_member = False
        self.version = version()

    # -- in place of a bus -----------------------------------------------------------------------------------------

    def _bind_bus(self) -> zmq.Socket[bytes]:
        return self.context.socket(zmq.ROUTER)  # nobody is at the other end

    def tell(self, name: str, body: dict[str, Any], request_id: str) -> None:
        self.facts.append(wire.Frame(name, request_id, body))

    def _register(self) -> None:
        super()._register()
        for surface in self.surfaces:
            self.poller.register(surface, zmq.POLLIN)

    def read_bus(self, node: Node | None) -> None:
        """Each turn of the founding."""
        self._serve(node)

    def _turn(self, node: Node) -> None:
        super()._turn(node)
        self._serve(node)

    # -- one turn ----------------------------------------------------------------------------------------------------

    def _serve(self, node: Node | None) -> None:
        now = now_ns()
        for number in self.signals.read():
            if number is signal.SIGCHLD:
                reap()  # as PID 1
            elif number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
                self.log.info("node.stopping", signal=number.name.removeprefix("SIG"))
                self.stopping = True
            elif number is signal.SIGHUP:
                self.c.config, _ = reread(self.c.config, self.log)
                if self.https is not None:
                    self.https.reload(self.c.config)
        self.admin.receive(now)
        if self.http is not None:
            self.http.handle(now)
        self._take_in()
        situation = Situation(self.c.view, self.c.local, PROFILES[self.child.profile], now)  # it has no Postgres
        wanted = self.c.view.wanted
        if situation.owes_no_position:
            body = {"term": wanted, "epoch": -1, "lsn": 0, "reason": "it is a witness"}
            self.c.raft.tell("node.frozen", body)
            self.c.local = replace(self.c.local, said_no_position=wanted)
        self._publish(situation)
        orders, self.c.raft.orders = self.c.raft.orders, []
        for order in orders:
            if order.name == "remote.answer":
                self.transport.reply(bytes.fromhex(str(order.body["client"])), str(order.body["frame"]).encode())
            elif node is not None:
                self.carry_out(node.parent(order.name, order.id, order.body, now_ns()))

    def _take_in(self) -> None:
        """What the node has told."""
        c, (facts, self.facts) = self.c, (self.facts, [])
        for frame in facts:
            body = frame.body
            match frame.name:
                case "child.ready":
                    c.view = replace(c.view, incarnation=int(body["incarnation"]))
                    if body["cluster_id"]:
                        member.keep_derived_key(c.config)
                case "raft.state":
                    c.view = observe.view_of(c.view, body)
                    self.snapshot_at_ns = 0
                case "raft.cluster":
                    c.view = replace(c.view, cluster=load(body["state"]))
                    member.refuse_another_role(c.view, c.local)
                    self.founding_sentence = ""
                case "raft.members":
                    self.members, self.admin.known = body["members"], body
                    self.snapshot_at_ns = 0
                case "raft.founding":
                    self.founding_sentence = str(body["sentence"])
                    self.snapshot_at_ns = 0
                case "raft.removed":
                    self._removed(str(body["reason"]), str(body["hint"]))
                case "admin.answer":
                    self.admin.answered(frame)
                case "remote.request":
                    self.admin.request(bytes.fromhex(body["client"]), body["frame"].encode(), now_ns(), remote=True)
                case _:
                    pass  # leases and records: for whoever has a Postgres
            self.was_member = self.was_member or member.is_member(c.view, c.local)

    def _removed(self, reason: str, hint: str) -> None:
        """No member any more: an end as asked for, unless somebody starts it again afterwards."""
        self.log.warning("node.removed", expected=self.was_member, reason=reason, hint=hint)
        if not self.was_member:
            raise RefusedError(reason, hint)
        self.stopping = True

    def _publish(self, situation: Situation) -> None:
        c, now = self.c, situation.now_ns
        wanted, sentence = plan(situation)
        self.service.turn(self.founding_sentence or sentence, stopping=self.stopping)
        leads = c.view.role == "leader"
        facts = observe.Facts(progress=c.view.sentence if leads else "", https=c.config.http_tls_cert is not None)
        seen = observe.observation(c.view, c.local, facts, wanted.step, sentence, self.version)
        if seen != self.observed or now >= self.observe_at_ns:
            self.observed, self.observe_at_ns = seen, now + OBSERVE_EVERY_MS * MS
            self.snapshot_at_ns = 0
            c.raft.tell("node.observed", seen)
            member.announce_tags(c.view, c.config, c.raft.tell)
        if now < self.snapshot_at_ns:
            return
        self.snapshot_at_ns = now + SNAPSHOT_EVERY_MS * MS
        cluster = c.view.cluster
        timings = retiming.at_the_parent(cluster.pace) if cluster is not None else PROFILES[self.child.profile]
        snapshot = observe.snapshot(
            c.view, c.local, facts, {**self.members, c.config.name: {"seen": seen, "age_ms": 0}}, timings,
            state=observe.state_of(c.local, facts, wanted.step),
            sentence=c.view.sentence or self.founding_sentence or sentence, now_ns=now,
            scheduling={"raft": self.scheduling}, pgr_version=self.version, own_tags=c.config.tags,
        )  # fmt: skip
        self.current.snapshot = snapshot
        self.admin.publish(snapshot, now)

    # -- the end -----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        self.admin.close()
        if self.http is not None:
            self.http.close()
        super().close()
        self.log.info("node.stopped", exit_code=int(ExitCode.STOPPED))
