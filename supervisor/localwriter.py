"""A client as people have them: one connection, one row after the other, and it keeps book of what it was told."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING, NamedTuple

from fencing.clock import now_ns

if TYPE_CHECKING:
    import psycopg
    from psycopg.errors import Diagnostic

RETRY_S = 0.02
"""Pause before the next attempt to connect (goals.md: the write gap is measured with it)."""
CANCELED_WAIT = "canceling wait for synchronous replication"
"""A commit that ends with this warning is on the primary's disk and perhaps nowhere else: unknown, not acknowledged."""


class Ack(NamedTuple):
    """A row whose commit was acknowledged; CLOCK_BOOTTIME in ns."""

    id: int
    sent_ns: int
    acked_ns: int


class Failure(NamedTuple):
    at_ns: int
    id: int
    """Of the row under way; 0: no connection could be had."""
    sqlstate: str
    text: str


class Gap(NamedTuple):
    """From the last acknowledged write before to the first one after."""

    start_ns: int
    end_ns: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) / 1e9


class Audit(NamedTuple):
    """What the writer was told against what is there."""

    acknowledged: int
    present: int
    """Of the acknowledged."""
    lost: tuple[int, ...]
    """Acknowledged, not there: must be empty, always."""
    unknown: int
    """Neither acknowledged nor refused: may be there or not."""
    phantoms: tuple[int, ...]
    """There, although refused or never sent: must be empty."""


class Writer(threading.Thread):
    """Autocommit INSERTs of ascending ids into ``table`` until `stop`. Start it once the cluster is writable."""

    def __init__(self, uri: str, table: str = "pgr_writes", pause_s: float = 0.001) -> None:
        super().__init__(name="writer", daemon=True)
        self.uri, self.table, self.pause_s = uri, table, pause_s
        self.acked: list[Ack] = []
        self.unknown: list[int] = []
        self.failures: list[Failure] = []
        self._next = 0
        self._end = threading.Event()
        self._connection: psycopg.Connection[tuple[int]] | None = None

    def run(self) -> None:
        import psycopg

        while not self._end.is_set():
            try:
                # A host that vanished without a word must not hold the client for minutes.
                self._connection = psycopg.connect(self.uri, autocommit=True, tcp_user_timeout=2000)
            except psycopg.Error as error:
                self.failures.append(Failure(now_ns(), 0, error.sqlstate or "", str(error)))
                self._end.wait(RETRY_S)
                continue
            with self._connection as connection:
                self._write(connection)

    def _write(self, connection: psycopg.Connection[tuple[int]]) -> None:
        import psycopg

        unsure: list[str] = []

        def notice(told: Diagnostic) -> None:
            if CANCELED_WAIT in (told.message_primary or ""):
                unsure.append(told.message_primary or "")

        connection.add_notice_handler(notice)
        statement = f"insert into {self.table} (id) values (%s)"  # noqa: S608  (our own table name)
        try:
            connection.execute(f"create table if not exists {self.table} (id bigint primary key)")
        except psycopg.Error as error:
            self.failures.append(Failure(now_ns(), 0, error.sqlstate or "", str(error)))
            self._end.wait(RETRY_S)
            return
        while not self._end.is_set():
            self._next += 1
            row, sent_ns = self._next, now_ns()
            try:
                connection.execute(statement, (row,))
            except psycopg.Error as error:
                # An error that came with the session intact is a refusal; a session that broke leaves it open.
                if connection.broken or connection.closed or (error.sqlstate or "").startswith(("57P", "08")):
                    self.unknown.append(row)
                self.failures.append(Failure(now_ns(), row, error.sqlstate or "", str(error)))
                self._end.wait(RETRY_S)
                return
            if unsure:
                self.unknown.append(row)
                self.failures.append(Failure(now_ns(), row, "01000", unsure.pop()))
                unsure.clear()
            else:
                self.acked.append(Ack(row, sent_ns, now_ns()))
            if self.pause_s:
                self._end.wait(self.pause_s)

    def stop_soon(self) -> None:
        """Without waiting for the row under way."""
        self._end.set()

    def stop(self, seconds: float = 15) -> None:
        """Ends after the row under way; RuntimeError if the server never answers it."""
        self.stop_soon()
        self.join(seconds)
        if self.is_alive():
            raise RuntimeError(f"the writer has been waiting for an answer for more than {seconds} s")

    def gap(self, since_ns: int = 0) -> Gap:
        """The longest time between two acknowledged writes of which the second came after ``since_ns``."""
        acked = list(self.acked)
        pairs = [
            Gap(before.acked_ns, after.acked_ns)
            for before, after in itertools.pairwise(acked)
            if after.acked_ns >= since_ns
        ]
        return max(pairs, key=lambda gap: gap.seconds, default=Gap(since_ns, since_ns))

    def acked_since(self, instant_ns: int) -> int:
        """How many rows were sent after it and acknowledged."""
        count = 0
        for ack in reversed(self.acked):
            if ack.sent_ns < instant_ns:
                break
            count += 1
        return count

    def audit(self, uri: str = "") -> Audit:
        """Compare with the table, read over ``uri`` (the writer's own). Call it after `stop`."""
        import psycopg

        with psycopg.connect(uri or self.uri, autocommit=True) as connection:
            there = {row[0] for row in connection.execute(f"select id from {self.table}")}  # noqa: S608  (ours)
        told = {ack.id for ack in self.acked}
        return Audit(
            acknowledged=len(told),
            present=len(told & there),
            lost=tuple(sorted(told - there)),
            unknown=len(self.unknown),
            phantoms=tuple(sorted(there - told - set(self.unknown))),
        )
