"""The conversation of a founding: greet every peer until a charter is stored (the rules are in founding.py). Shell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from consensus.founding import (
    Charter,
    Founding,
    Greeting,
    Waiting,
    charter_message,
    consider,
    parse,
    parse_greeting,
    standing,
)
from consensus.messages import Hello
from consensus.peerwire import NO_CLUSTER
from consensus.storage import WAY_BACK
from consensus.transport import PeerFrame
from consensus.write import Write
from fencing.clock import now_ns
from fencing.lease import MS

if TYPE_CHECKING:
    from consensus.process import Host

GREET_EVERY_MS = 100
SAY_WHO_IS_SILENT_S = 5


class RefusedToStartError(Exception):
    """The node must stop, and a person must act: message and hint; exit 78."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class Founder:
    """Drives the host's sockets until this node has a cluster id."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def run(self) -> bool:
        """Until this node has a cluster id. False: told to stop before."""
        child = self.host.child
        names = tuple(sorted(child.peers))
        mine = Greeting(
            child.name, self.host.identity.incarnation, child.raft_address, child.postgres_address, child.http_address,
            names, child.adopts,
        )  # fmt: skip
        heard: dict[str, Greeting] = {}
        greet_at = now_ns()
        said = ""
        self.host.tell("child.ready", self.host.ready_body(), "")
        while not self.host.identity.cluster_id:
            if self.host.stopping:
                return False
            now = now_ns()
            if now >= greet_at:
                greet_at = now + GREET_EVERY_MS * MS
                for name in names:
                    if name != child.name:
                        self.host.send(name, Hello(0, mine.dump()), NO_CLUSTER)
            if child.name == names[0]:
                said = self._consider(mine, heard, said)
            else:
                said = self._say_silent(Waiting(tuple(n for n in names if n != child.name and n not in heard)), said)
            if self.host.identity.cluster_id:
                break
            self.host.poller.poll(max(0, greet_at - now_ns() + MS - 1) // MS)
            for item in self.host.transport.receive():
                if isinstance(item, PeerFrame):
                    self._greeted(item.data, heard)
            self.host.log_transport()
            self.host.read_bus(None)
        return True

    def _consider(self, mine: Greeting, heard: Mapping[str, Greeting], said: str) -> str:
        child = self.host.child
        match consider(mine, heard, Founding(child.commit, child.profile, child.settings)):
            case Waiting() as waiting:
                return self._say_silent(waiting, said)
            case Charter(text):
                self._accept(os.urandom(16).hex(), text)
                for name, greeting in heard.items():
                    message = Hello(0, charter_message(self.host.identity.cluster_id, text))
                    self.host.send(name, message, NO_CLUSTER, greeting.incarnation)
                return ""

    def _say_silent(self, waiting: Waiting, said: str) -> str:
        whom = ", ".join(waiting.silent) or "the charter"
        text = waiting.problem or f"waiting for {whom}"
        quiet = self.host.log if text != said else self.host.log.once_per("founding", SAY_WHO_IS_SILENT_S)
        quiet.info("founding.waiting", silent=list(waiting.silent), problem=waiting.problem)
        if text != said:
            self.host.tell("raft.founding", {"sentence": text}, "")
        return text

    def _greeted(self, data: bytes, heard: dict[str, Greeting]) -> None:
        envelope = self.host.envelope(data)
        if envelope is None or envelope.cluster_id != NO_CLUSTER or not isinstance(envelope.message, Hello):
            return
        try:
            body = parse(envelope.message.data)
            if body["kind"] == "greeting":
                greeting = parse_greeting(body)
                if greeting.name == envelope.src and greeting.name in self.host.child.peers:
                    heard[greeting.name] = greeting
                return
        except ValueError as error:
            self.host.log.once_per("peer.garbage", 10).warning("peer.garbage", peer=envelope.src, error=str(error))
            return
        if envelope.dst_incarnation != self.host.identity.incarnation:
            return  # meant for an earlier life of this name
        if body["kind"] == "stranger":
            raise RefusedToStartError(
                f"{envelope.src} says: {body['reason']}",
                "if its Raft directory was only moved away, put it back as it was (an old copy has forgotten votes); "
                f"else keep the node stopped, the others go on without it. {WAY_BACK}",
            )
        charter = str(body["charter"])
        if not standing(charter, self.host.child.name, self.host.identity.incarnation):
            self._accept(str(body["cluster_id"]), charter)

    def _accept(self, cluster_id: str, charter: str) -> None:
        """Stored before this node may vote."""
        self.host.identity = self.host.identity._replace(cluster_id=cluster_id, charter=charter)
        self.host.store.save(Write(identity=self.host.identity))
        self.host.stored = replace(self.host.stored, identity=self.host.identity)
        self.host.log.info("founding.done", cluster_id=cluster_id)
        self.host.tell("child.ready", self.host.ready_body(), "")
