"""`pgr demo`: three real nodes on this machine, a writer, the primary killed, the takeover watched and counted."""

from __future__ import annotations

import functools
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from select import select
from typing import Any, NamedTuple, TextIO

from fencing.clock import now_ns
from supervisor import render
from supervisor.errors import PgrError, TryAgainError
from supervisor.localcluster import SECOND, LocalCluster, LocalNode, parse_event, private_home
from supervisor.localwriter import Writer
from supervisor.status import lease_left_ms

START_S = 180.0
"""initdb and two base backups on a small, busy machine."""
TAKEOVER_S = 60.0
REJOIN_S = 120.0
WRITE_S = 2.0
"""How long the writer writes before the kill and after the takeover, so that there is something to lose."""
TICK_S = 0.05
REDRAW_NS = SECOND // 4

SILENT = ("clone.progress", "stderr")
TOLD = (
    "founding.", "cluster.", "postgres.", "clone.", "rewind.", "salvage.", "role.", "promise.", "gate.", "fence.",
    "data.", "follow.", "node.failed", "watchdog.killed_postgres",
)  # fmt: skip
"""Events of the nodes that belong to the story, by the beginning of their names."""


class Told(NamedTuple):
    """An event that a node logged."""

    at: datetime
    node: str
    name: str
    level: str
    fields: dict[str, Any]


class Tail:
    """Reads what was added to a node's log since the last time."""

    def __init__(self, node: LocalNode) -> None:
        self.node, self._offset, self._rest = node, 0, b""

    def read(self) -> Iterator[Told]:
        try:
            with open(self.node.log, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            event = parse_event(line.decode("utf-8", "replace"))
            if "ts" in event:
                at = datetime.fromisoformat(str(event["ts"]))
                fields = event.get("fields") or {}
                yield Told(at, self.node.name, str(event["event"]), str(event.get("level", "info")), fields)


class Screen:
    """Lines that stay, and on a terminal a block below them that is drawn again and again."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.live = out, out.isatty()
        self._block: list[str] = []

    def say(self, text: str = "") -> None:
        self._erase()
        print(text, file=self.out)
        self._draw()
        self.out.flush()

    def show(self, lines: list[str]) -> None:
        """Replace the block; without a terminal nothing is shown."""
        if self.live and lines != self._block:
            self._erase()
            self._block = lines
            self._draw()
            self.out.flush()

    def _erase(self) -> None:
        if self.live and self._block:
            self.out.write(f"\x1b[{len(self._block)}A\x1b[J")

    def _draw(self) -> None:
        if self.live and self._block:
            # Cut, not wrapped: the erase counts lines.
            self.out.write("".join(f"\x1b[?7l{line}\x1b[?7h\n" for line in self._block))


class Story:
    """What is told, in this order; every claim that does not hold raises `PgrError`."""

    def __init__(self, screen: Screen, cluster: LocalCluster) -> None:
        self.screen, self.cluster = screen, cluster
        self.tails = [Tail(node) for node in cluster.nodes]
        self.writer: Writer | None = None
        self.zero = datetime.now(UTC)
        """What the times shown are counted from."""
        self.progress: dict[str, str] = {}
        self._drawn_ns = 0

    def tell(self) -> None:
        primary = self.begin()
        writer = self.writer = Writer(self.cluster.uri())
        writer.start()
        self.until(lambda: writer.acked_since(0) > 0, START_S, "the first write acknowledged")
        self.pause(WRITE_S)
        killed_ns = self.kill(primary)
        self.take_over(writer, primary, killed_ns)
        self.pause(WRITE_S)
        self.rejoin(writer, primary)
        self.count(writer, killed_ns)

    def begin(self) -> LocalNode:
        names = ", ".join(node.name for node in self.cluster.nodes)
        self.screen.say(f"starting three nodes ({names}) in {self.cluster.home}")
        started_ns = now_ns()
        self.cluster.start()
        seen: list[LocalNode] = []

        def ready() -> bool:
            self.nobody_ended()
            primary = self.cluster.primary()
            seen[:] = [primary] if primary else []
            return bool(primary) and self.cluster.streaming(seen[0]) == len(self.cluster.nodes) - 1

        self.until(ready, START_S, "a primary and two streaming standbys")
        self.screen.say(f"{seen[0].name} is writable, the others stream from it, after {_seconds(started_ns)}")
        self.table()
        self.screen.say("a client writes, one row after the other, over " + self.cluster.uri(hidden=True))
        return seen[0]

    def kill(self, primary: LocalNode) -> int:
        self.zero = datetime.now(UTC)
        killed_ns, names = primary.kill_all()
        counted = ", ".join(f"{name} x {n}" if n > 1 else name for name, n in sorted(Counter(names).items()))
        self.screen.say()
        self.screen.say(f"SIGKILL to every process of {primary.name}, the primary: {counted}")
        return killed_ns

    def take_over(self, writer: Writer, old: LocalNode, killed_ns: int) -> None:
        self.until(lambda: writer.acked_since(killed_ns) > 0, TAKEOVER_S, "a write acknowledged by another node")
        gap = writer.gap(killed_ns)
        self.until(lambda: self.cluster.primary() is not None, TAKEOVER_S, "a primary that says so")
        new = self.cluster.primary()
        failed = sum(gap.start_ns <= failure.at_ns <= gap.end_ns for failure in writer.failures)
        self.screen.say(f"{new.name if new else '?'} took over from {old.name}: write gap {gap.seconds:.2f} s")
        self.screen.say(f"attempts of the client that failed meanwhile: {failed}")
        self.table()

    def rejoin(self, writer: Writer, killed: LocalNode) -> None:
        self.zero = datetime.now(UTC)
        self.screen.say()
        self.screen.say(f"starting {killed.name} again, with the same command")
        started_ns = now_ns()
        killed.start()

        def rejoined() -> bool:
            self.nobody_ended()
            seen = self.cluster.status()
            row = seen.member(killed.name) if seen else None
            return row is not None and row.role == "replica" and row.state == "streaming"

        self.until(rejoined, REJOIN_S, f"{killed.name} streaming from the new primary")
        self.screen.say(f"{killed.name} streams from the new primary, {_seconds(started_ns)} after its start")
        self.pause(WRITE_S / 2)
        self.table()
        if not writer.is_alive():
            raise TryAgainError("the client has stopped writing")

    def count(self, writer: Writer, killed_ns: int) -> None:
        writer.stop()
        told = {ack.id for ack in writer.acked}
        for node in self.cluster.nodes:
            has_all = functools.partial(self._has_all, writer, node)
            self.until(has_all, REJOIN_S, f"every acknowledged row present on {node.name}")
        audit = writer.audit()
        self.screen.show([])
        self.screen.say()
        self.screen.say(
            f"every acknowledged row is on all {len(self.cluster.nodes)} nodes; unknown outcome: {audit.unknown}"
        )
        gap = writer.gap(killed_ns)
        self.screen.say(
            f"write gap {gap.seconds:.2f} s (last acknowledged write before, to first acknowledged write after)"
        )
        self.screen.say(f"acknowledged {len(told)}, present {audit.present}, lost {len(audit.lost)}")
        if audit.lost or audit.phantoms:
            raise TryAgainError(
                f"rows lost: {audit.lost[:10]}; rows that were refused and are there: {audit.phantoms[:10]}"
            )

    def _has_all(self, writer: Writer, node: LocalNode) -> bool:
        import psycopg

        try:
            return not writer.audit(self.cluster.node_uri(node)).lost
        except psycopg.OperationalError:
            return False  # it is on its way: the caller has a deadline

    def stay(self) -> None:
        """Until Ctrl-C."""
        say = self.screen.say
        say()
        say("the cluster is yours until Ctrl-C, which stops and removes everything:")
        say(f"  read and write   psql '{self.cluster.uri()}'")
        say(f"  read only        psql '{self.cluster.uri('prefer-standby')}'")
        say(f"  ask              pgr status --data {self.cluster.nodes[0].data}")
        for node in self.cluster.nodes:
            say(f"  {node.name}: kill -9 {node.pid}; log {node.log}; http://127.0.0.1:{node.http_port}/cluster")
        while True:
            self.tick(quiet=True)
            select([], [], [], 0.25)

    def nobody_ended(self) -> None:
        for node in self.cluster.nodes:
            if node.process is not None and not node.alive():
                raise TryAgainError(f"node {node.name} ended with exit code {node.wait(1)}", f"see {node.log}")

    def until(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        until_ns = now_ns() + int(seconds * SECOND)
        while not condition():
            self.tick()
            if now_ns() > until_ns:
                raise TryAgainError(f"not seen within {seconds:.0f} s: {what} ({self.cluster.describe()})")
            select([], [], [], TICK_S)
        self.tick()

    def pause(self, seconds: float) -> None:
        """Let the writer write; the story goes on meanwhile."""
        until_ns = now_ns() + int(seconds * SECOND)
        while now_ns() < until_ns:
            self.tick()
            select([], [], [], TICK_S)

    def tick(self, quiet: bool = False) -> None:
        for event in sorted((event for tail in self.tails for event in tail.read()), key=lambda event: event.at):
            self.event(event, quiet)
        if self.screen.live and now_ns() - self._drawn_ns > REDRAW_NS:
            self._drawn_ns = now_ns()
            self.screen.show(["", *self.block()])

    def event(self, event: Told, quiet: bool) -> None:
        if event.name == "clone.progress":
            done, total = event.fields.get("bytes"), event.fields.get("total")
            self.progress[event.node] = f"{event.node}: base backup, {render.size(done)} of {render.size(total)}"
            return
        if event.name.startswith("clone."):
            self.progress.pop(event.node, None)
        if quiet or event.name in SILENT or not (event.name.startswith(TOLD) or event.level in ("warning", "error")):
            return
        words = " ".join(f"{name}={value}" for name, value in event.fields.items() if value not in ("", None))
        after = (event.at - self.zero).total_seconds()
        self.screen.say(f"  {after:+7.2f} s  {event.node}  {event.name}  {words}"[:160])

    def block(self) -> list[str]:
        seen = self.cluster.status()
        lines = render.status(seen, lease_left_ms(seen, now_ns())).splitlines() if seen else ["no node answers yet"]
        if self.writer is not None and self.writer.is_alive():
            lines += ["", f"client: {len(self.writer.acked)} rows acknowledged"]
        return lines + list(self.progress.values())

    def table(self) -> None:
        """The members, for good: where no terminal shows them all the time."""
        if not self.screen.live:
            for line in ["", *self.block(), ""]:
                self.screen.say(line)


def _seconds(since_ns: int) -> str:
    return f"{(now_ns() - since_ns) / 1e9:.1f} s"


def _end(number: int, _frame: object) -> None:
    raise KeyboardInterrupt


def run(*, once: bool = False, keep: bool = False, data: Path | None = None, profile: str = "default") -> int:
    """The exit code: 0 if everything was as claimed. ``data``: where to make the cluster (empty or not there yet).

    Errors: PgrError if it cannot begin at all. What goes wrong later is told, the data kept, the exit code that of the
    error. Ends on SIGINT (as every demo) and SIGTERM alike, and leaves no process behind.
    """
    screen = Screen(sys.stdout)
    home = private_home("pgr-demo-", data)
    previous = signal.signal(signal.SIGTERM, _end)
    told = interrupted = False
    code = 0
    cluster = LocalCluster(home, profile=profile)
    try:
        story = Story(screen, cluster)
        story.tell()
        told = True
        if not once:
            story.stay()
    except KeyboardInterrupt:
        interrupted = True
        screen.show([])
        screen.say("stopping")
        code = 0 if told else 130
    except PgrError as error:
        screen.show([])
        code = int(error.exit_code)
        print(f"error: {error.message}", file=sys.stderr)
        print(f"hint: {error.hint or 'the logs say more'}; data and logs are kept in {home}", file=sys.stderr)
    finally:
        # A second Ctrl-C must not leave half of it running.
        impatient = signal.signal(signal.SIGINT, signal.SIG_IGN)
        cluster.stop()
        if (told or interrupted) and not keep:
            cluster.remove()
        elif told or interrupted:
            print(f"kept: {home}", file=sys.stderr)
        signal.signal(signal.SIGINT, impatient)
        signal.signal(signal.SIGTERM, previous)
    return code
