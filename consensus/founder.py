"""The conversation of a founding: greet every peer until a charter is stored (the rules are in founding.py). Shell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from consensus.founding import (
    Charter,
    Founding,
    Greeting,
    Waiting,
    charter_message,
    consider,
    founders,
    parse,
    parse_greeting,
)
from consensus.membership import Member
from consensus.messages import Hello
from consensus.peerwire import NO_CLUSTER
from consensus.transport import Address, PeerFrame, split
from consensus.write import Write
from fencing.clock import now_ns
from fencing.lease import MS

if TYPE_CHECKING:
    from consensus.process import Host

GREET_EVERY_MS = 100
SAY_WHO_IS_SILENT_S = 5


class RefusedToStartError(Exception):
    """The node must stop, and a person must act: message and hint."""

    def __init__(self, message: str, hint: str, exit_code: int = 78) -> None:
        super().__init__(message)
        self.hint, self.exit_code = hint, exit_code


class Founder:
    """Drives the host's sockets until this node has a cluster id: its own founding, or being let into a cluster."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.heard: dict[str, Greeting] = {}
        self.said = ""
        self.asked: dict[str, Address] = {}
        """Whom to ask beside the peers: the address given with --join, and where the leader is said to be."""

    def run(self) -> bool:
        """Until this node has a cluster id. False: told to stop before. RefusedToStartError."""
        host, child = self.host, self.host.child
        if child.unfit:
            code, reason, hint = child.unfit
            raise RefusedToStartError(reason, hint, code)
        names = tuple(sorted(child.peers))
        mine = Greeting(
            child.name, host.identity.incarnation, child.raft_address, child.postgres_address, child.http_address,
            names, child.adopts, child.role, bool(child.join), host.lost, child.brings,
        )  # fmt: skip
        if child.join:
            self.asked["join"] = (str(child.join[0]), int(child.join[1]))
        host.dial(self.asked)
        greet_at = now_ns()
        host.tell("child.ready", host.ready_body(), "")
        while not host.identity.cluster_id:
            if host.stopping:
                return False
            now = now_ns()
            if now >= greet_at:
                greet_at = now + GREET_EVERY_MS * MS
                self._greet(mine, names)
            if mine.joins:
                self._say(self.said or "asking to be let in")
            elif child.name == names[0]:
                self._consider(mine)
            else:  # the lowest name writes the charter, but whoever is in its way should say so, too
                answer = consider(mine, self.heard, Founding(child.commit, child.profile, child.settings))
                self._say_silent(answer if isinstance(answer, Waiting) else Waiting(()))
            if host.identity.cluster_id:
                break
            host.poller.poll(max(0, greet_at - now_ns() + MS - 1) // MS)
            for item in host.transport.receive():
                if isinstance(item, PeerFrame):
                    self._greeted(item.data)
            host.log_transport()
            host.read_bus(None)
        return True

    def _greet(self, mine: Greeting, names: tuple[str, ...]) -> None:
        hello = Hello(0, mine.dump())
        for name in names if not mine.joins else ():
            if name != mine.name:
                self.host.send(name, hello, NO_CLUSTER)
        for guest in self.asked:
            self.host.send_guest(guest, "", 0, hello)

    def _consider(self, mine: Greeting) -> None:
        child = self.host.child
        match consider(mine, self.heard, Founding(child.commit, child.profile, child.settings)):
            case Waiting() as waiting:
                self._say_silent(waiting)
            case Charter(text):
                self._accept(os.urandom(16).hex(), text, 0)
                members = founders(text)
                for name, greeting in self.heard.items():
                    message = Hello(0, charter_message(self.host.identity.cluster_id, text, 0, 0, members))
                    self.host.send(name, message, NO_CLUSTER, greeting.incarnation)

    def _say_silent(self, waiting: Waiting) -> None:
        whom = ", ".join(waiting.silent) or "the charter"
        self._say(waiting.problem or f"waiting for {whom}", list(waiting.silent), waiting.problem)

    def _say(self, text: str, silent: list[str] | None = None, problem: str = "") -> None:
        new = text != self.said
        quiet = self.host.log if new else self.host.log.once_per("founding", SAY_WHO_IS_SILENT_S)
        quiet.info("founding.waiting", silent=silent or [], problem=problem or ("" if silent else text))
        if new:
            self.said = text
            self.host.tell("raft.founding", {"sentence": text}, "")

    def _greeted(self, data: bytes) -> None:
        envelope = self.host.envelope(data)
        if envelope is None or envelope.cluster_id != NO_CLUSTER or not isinstance(envelope.message, Hello):
            return
        try:
            body = parse(envelope.message.data)
            if body["kind"] == "greeting":
                greeting = parse_greeting(body)
                if greeting.name == envelope.src and greeting.name in self.host.child.peers:
                    self.heard[greeting.name] = greeting
            elif envelope.dst_incarnation == self.host.identity.incarnation:  # else meant for an earlier life
                self._answered(envelope.src, body)
        except (ValueError, KeyError, TypeError) as error:
            self.host.log.once_per("peer.garbage", 10).warning("peer.garbage", peer=envelope.src, error=repr(error))

    def _answered(self, src: str, body: Mapping[str, Any]) -> None:
        match body["kind"]:
            case "stranger" if body["final"]:
                raise RefusedToStartError(f"{src} says: {body['reason']}", str(body["hint"]))
            case "stranger":
                self._say(f"{src} says: {body['reason']}")
            case "elsewhere":
                self.asked["leader"] = split(str(body["raft"]))
                self.host.dial(self.asked)
            case "charter" if not self.host.identity.cluster_id:  # every peer answers
                members = tuple(Member(*row) for row in body["members"])
                mine = (self.host.child.name, self.host.identity.incarnation)
                if mine in {(m.name, m.incarnation) for m in members}:
                    self.host.introduced = (members, int(body["index"]))
                    self._accept(str(body["cluster_id"]), str(body["charter"]), int(body["term"]))
            case _:
                pass

    def _accept(self, cluster_id: str, charter: str, term: int) -> None:
        """Stored before this node may vote, together with the promise of whoever is let in."""
        host = self.host
        host.identity = host.identity._replace(cluster_id=cluster_id, charter=charter)
        record = host.stored.record._replace(promised=max(term, host.stored.record.promised))
        host.store.save(Write(identity=host.identity, record=record))
        host.stored = replace(host.stored, identity=host.identity, record=record)
        host.log.info("founding.done", cluster_id=cluster_id, joined=term > 0)
        host.tell("child.ready", host.ready_body(), "")
