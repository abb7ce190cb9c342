"""Tries to write on every node all the time, and judges what was answered: never may two nodes both accept.

As a superuser and past the gate, since neither is a fence; in sessions that are opened anew for each row and in
sessions that stay open through every change; with commits that wait for the sync group (an acknowledged one must never
be lost) and with commits that do not (they show that this Postgres is writable, which is what a fence must prevent).
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import psycopg

from fencing.clock import now_ns
from supervisor.localwriter import CANCELED_WAIT

FRESH_PAUSE_S = 0.1
OPEN_PAUSE_S = 0.02
SESSION_ROWS = 1_000_000_000
_OPTIONS = "-c default_transaction_read_only=off -c synchronous_commit={commit}"
_TRY = "insert into {table} values (%s) returning substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)"


class Sample(NamedTuple):
    """A write that was accepted; CLOCK_BOOTTIME in ns, before it was sent and after it was answered."""

    node: str
    timeline: int
    begin_ns: int
    end_ns: int
    row: int
    quorum: bool
    """The commit waited for the sync group: it is a promise."""


class Refused(NamedTuple):
    node: str
    at_ns: int
    sqlstate: str


class Double(NamedTuple):
    """A write accepted under an older grant although it began after one under a newer grant had been answered."""

    older: Sample
    newer: Sample


class Prober(threading.Thread):
    """One kind of session on one node, until `end` is set."""

    def __init__(self, node: str, uri: str, table: str, number: int, *, fresh: bool, quorum: bool) -> None:
        super().__init__(name=f"prober-{node}", daemon=True)
        self.node, self.uri, self.fresh, self.quorum = node, uri, fresh, quorum
        self._statement = _TRY.format(table=table).encode()
        self.accepted: list[Sample] = []
        self.unknown: list[int] = []
        self.refused = 0
        self.end = threading.Event()
        self._rows = itertools.count(number * SESSION_ROWS + 1)
        self._notices: list[str] = []

    def run(self) -> None:
        commit = "on" if self.quorum else "local"
        while not self.end.is_set():
            try:
                with psycopg.connect(self.uri, autocommit=True, options=_OPTIONS.format(commit=commit)) as session:
                    session.add_notice_handler(lambda told: self._notices.append(told.message_primary or ""))
                    self._write(session)
            except psycopg.Error:
                pass  # no session to be had: nothing was tried
            self.end.wait(FRESH_PAUSE_S if self.fresh else OPEN_PAUSE_S)

    def _write(self, session: psycopg.Connection[tuple[str]]) -> None:
        while not self.end.is_set():
            self._try(session, next(self._rows))
            if self.fresh or session.broken or session.closed:
                return
            self.end.wait(OPEN_PAUSE_S)

    def _try(self, session: psycopg.Connection[tuple[str]], row: int) -> None:
        self._notices.clear()
        begin_ns = now_ns()
        try:
            told = session.execute(self._statement, (row,)).fetchone()
        except psycopg.Error as error:
            if session.broken or session.closed or (error.sqlstate or "").startswith(("57P", "08")):
                self.unknown.append(row)
            else:
                self.refused += 1
            return
        end_ns = now_ns()
        if told is None or any(CANCELED_WAIT in notice for notice in self._notices):
            self.unknown.append(row)
        else:
            self.accepted.append(Sample(self.node, int(told[0], 16), begin_ns, end_ns, row, self.quorum))


class Sampler:
    """Four sessions on each node: fresh and open, waiting for the sync group and not."""

    def __init__(self, uris: Mapping[str, str], table: str) -> None:
        self.table = table
        kinds = itertools.product(uris.items(), (True, False), (True, False))
        self.probers = [
            Prober(node, uri, table, number, fresh=fresh, quorum=quorum)
            for number, ((node, uri), fresh, quorum) in enumerate(kinds)
        ]

    def start(self) -> None:
        for prober in self.probers:
            prober.start()

    def stop_soon(self) -> None:
        for prober in self.probers:
            prober.end.set()

    def stop(self, seconds: float = 30) -> None:
        """RuntimeError if a server never answers."""
        self.stop_soon()
        for prober in self.probers:
            prober.join(seconds)
            if prober.is_alive():
                raise RuntimeError(f"a session on {prober.node} has been waiting for more than {seconds} s")

    def accepted(self, node: str = "", *, quorum: bool | None = None) -> list[Sample]:
        """So far, in no order."""
        return [
            sample
            for prober in self.probers
            if node in ("", prober.node) and quorum in (None, prober.quorum)
            for sample in list(prober.accepted)
        ]

    def acknowledged(self) -> set[int]:
        return {sample.row for sample in self.accepted(quorum=True)}

    def tried(self) -> set[int]:
        """Rows that may be there."""
        unknown = {row for prober in self.probers for row in prober.unknown}
        return unknown | {sample.row for sample in self.accepted()}

    def last(self, node: str, timeline: int) -> Sample:
        """The last write that this node accepted under that grant, by the instant it was sent."""
        return max((s for s in self.accepted(node) if s.timeline == timeline), key=lambda s: s.begin_ns)


def doubles(accepted: Iterable[Sample]) -> list[Double]:
    """Every write accepted by one node after another one had accepted under a newer grant (one timeline per grant).

    Certain, whatever the scheduling did to us: the older one was sent after the newer one had been answered.
    """
    by_timeline: dict[int, list[Sample]] = {}
    for sample in accepted:
        by_timeline.setdefault(sample.timeline, []).append(sample)
    found: list[Double] = []
    first: Sample | None = None
    for timeline in sorted(by_timeline, reverse=True):
        samples = by_timeline[timeline]
        if first is not None:
            found += [Double(sample, first) for sample in samples if sample.begin_ns > first.end_ns]
        earliest = min(samples, key=lambda s: s.end_ns)
        first = earliest if first is None else min(first, earliest, key=lambda s: s.end_ns)
    return found


def shared_timelines(accepted: Iterable[Sample]) -> dict[int, set[str]]:
    """Timelines on which more than one node accepted writes: there must be none."""
    nodes: dict[int, set[str]] = {}
    for sample in accepted:
        nodes.setdefault(sample.timeline, set()).add(sample.node)
    return {timeline: names for timeline, names in nodes.items() if len(names) > 1}


def not_granted(accepted: Iterable[Sample], granted: Callable[[str], Sequence[int]]) -> set[tuple[str, int]]:
    """(node, timeline) of writes on a node that was not told to be primary on that timeline: fenced, or never asked."""
    seen = {(sample.node, sample.timeline) for sample in accepted}
    return {(node, timeline) for node, timeline in seen if timeline not in granted(node)}
