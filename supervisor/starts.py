"""The step that starts Postgres: as a standby without upstream, always (safety.md "Every start"); and what is done when
it does not get that far.

May be cancelled at any `yield`; the next plan starts from what is then true (`Context.local`).
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from fencing.clock import now_ns
from fencing.kill import process_id, verify
from fencing.lease import MS
from supervisor import controldata, sql
from supervisor.context import Context, StepFailed
from supervisor.postgres import StartFailed
from supervisor.rebuild import note_first_start, read_mark
from supervisor.receivers import receivers
from supervisor.roles import Plan, Server, restart_due
from supervisor.steps import QUERY_MS, Steps, switch_lsn
from supervisor.tasks import Task, Wait

CONSISTENCY_MS = 250
"""After a start: how often it is looked whether a fresh copy lacks WAL of its source."""
STARVED = "waiting for WAL to become available"
"""What startup logs when it has read all of pg_wal; before consistency nothing else tells."""
STARVED_MS = 5_000
"""Without consistency, without WAL to read and without a stream for this long: this copy never becomes usable."""
MEET_MS = 500
"""Before a start: so long for the Raft child to catch up with the leader."""
START_FAILURES_MAX = 3
COPY_AGAIN_MS = 600_000
"""A copy that does not start may not be to blame (a port, a parameter, a full disk): not copied again before this."""
LOG_BYTES_MAX = 64 << 20


class Start:
    """The step, a task."""

    def __init__(self, context: Context, steps: Steps) -> None:
        self.c, self.steps = context, steps

    def start(self, _: Plan) -> Task[None]:
        """As a standby without upstream, always (safety.md "Every start")."""
        c = self.c
        if c.local.server is Server.DOWN:
            left = verify(c.config.pgdata, c.process)
            if left:
                c.change(clean=False)
                raise StepFailed(f"processes of an earlier Postgres are left: {'; '.join(left)}")
            yield from self._look_at_control_data()
            # What was set while this node was away would else take one more restart. At once if it has met the leader.
            yield Wait(until_ns=now_ns() + MEET_MS * MS, ready=lambda: c.view.met)
            self._refuse_stray_label()
            if c.record.marker:  # set, but nothing was written since: `data` says that the directory is whole
                yield from c.save_record(marker="")
            owned = c.write_settings(names=c.idle_names())
            prepared = c.postgres.prepare(owned, c.hba(), c.ident(), self._newest_own_timeline())
            if prepared.removed_lines:
                c.log.warning("settings.removed", lines=list(prepared.removed_lines))
            c.commits_wait = bool(c.conf["names"])
            _rotate(c.config.postgres_log)
            c.postmaster = c.postgres.start()
            c.process = process_id(c.postmaster.pid)
            c.change(
                server=Server.STARTING, epoch=0, upstream=0, may_receive=False, frozen=0, gate_open=False, crashed="",
                clean=True, failed_promotion=0, died=False, left_down=False,
                restarted=max(c.local.restarted, restart_due(c.view, c.local)),
            )  # fmt: skip
            body = {"pid": c.process.pid, "start_ticks": c.process.start_ticks}
            c.watchdog.tell("deadman.watch", body)
            c.log.info("postgres.starting", pid=c.postmaster.pid)
        postmaster, began = c.need_postmaster(), now_ns()
        while True:
            try:
                yield from c.postgres.wait_ready(postmaster, now_ns() + CONSISTENCY_MS * MS)
                break
            except StartFailed as error:
                c.start_failures += 1
                if c.start_failures >= START_FAILURES_MAX:
                    self._quarantine(str(error))
                    self._copy_again("start.hopeless", str(error))
                raise StepFailed(str(error)) from error
            except TimeoutError:
                self._help_to_consistency(now_ns() - began)
        c.started()
        note_first_start(c.config.pgdata, done=True)
        session = yield from sql.connect(c.own_conninfo(), now_ns() + 5_000 * MS)
        rows = yield from session.query(
            "SELECT (SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'),"
            " current_setting('server_version'), pg_is_in_recovery()",
            until_ns=now_ns() + QUERY_MS * MS,
        )
        segment, version, recovering = rows[0]
        if recovering != "t":
            raise AssertionError("Postgres started as a primary; every start must be as a standby")
        c.wal_segment_bytes = int(segment or 0)
        c.session = session
        c.facts = replace(c.facts, version=(version or "").split(" ", maxsplit=1)[0], streaming=False)
        c.change(server=Server.STANDBY)
        c.log.info("postgres.started", pid=postmaster.pid)

    def _refuse_stray_label(self) -> None:
        """A backup_label in data that was started before: a new copy and a rewound one have a rightful one, which
        Postgres takes at their first start. To obey it would make pg_control wait for the end of a backup that never
        comes; to ignore it would be wrong where somebody has put a backup here."""
        c = self.c
        label = c.config.pgdata / "backup_label"
        if not label.exists() or read_mark(c.config.pgdata).get("fresh"):
            return
        problem = f"{label} says that this data is a backup that is not complete yet, and it has been complete before"
        remedy = "if a backup tool left it, move it away; if a backup was put here, join or found anew with that"
        self._quarantine(f"{problem}: {remedy}")
        self._copy_again("start.stray_label", problem)
        raise StepFailed(f"{problem}: {remedy}")

    def _quarantine(self, problem: str) -> None:
        """It goes on trying, as a person may mend the cause, but what is wrong is told, also to the caretaker."""
        c = self.c
        if not c.facts.problem:
            c.change(said_no_position=0)
        c.facts = replace(c.facts, problem=problem)

    def _help_to_consistency(self, waited_ns: int) -> None:
        """A fresh copy (cloned or rewound) may need WAL that only its source has before it can be asked anything.

        What it holds came from that primary, so attaching to the very same grant needs no divergence check. Under
        another grant the check cannot be made without a session: then the copy is made anew.
        """
        c = self.c
        proof, grant = c.record.proof, c.followed
        if grant is None:
            return
        fresh = proof is not None and proof.epoch == grant.term and c.record.history == grant.ancestry
        if fresh and c.local.upstream != grant.term:
            self.steps.attach(grant)
            return
        # Many lines: clients that are turned away fill the log.
        tail = c.postgres.log_tail(c.need_postmaster(), lines=1000)
        starved = not receivers(c) and any(STARVED in line for line in tail)
        if starved and waited_ns > STARVED_MS * MS:
            self._copy_again("start.inconsistent", "it lacks WAL that nobody sends")

    def _copy_again(self, event: str, reason: str) -> None:
        """This copy is of no use as it is. Once; then the reason stays in the log and the status for a person."""
        c, grant = self.c, self.c.followed
        # A copy that was called for under an older grant and never made is still called for.
        if grant is None or (now_ns() < c.copy_again_ns and not c.local.needs_clone):
            c.log.once_per(event, 60).error(event, reason=reason, hint="look at log/postgres.log of this node")
            return
        c.copy_again_ns = now_ns() + COPY_AGAIN_MS * MS
        c.log.warning(event, reason=reason, hint="it is copied again from the primary")
        c.change(needs_clone=grant.term)

    def _look_at_control_data(self) -> Task[None]:
        c = self.c
        control = yield from controldata.read(c.binaries, c.config.pgdata, c.children)
        c.floors = dict(control.floors)
        if not c.facts.replay_lsn:  # this parent has not seen it run: not consistent before it has replayed so far
            reached = control.min_recovery_end_lsn
            c.facts = replace(c.facts, lsn=reached, replay_lsn=reached)
        expected = c.cluster.system_identifier
        if expected and str(control.system_identifier) != expected:
            raise AssertionError(f"system identifier {control.system_identifier} appeared, the cluster's is {expected}")

    def _newest_own_timeline(self) -> int:
        history = self.c.record.history
        own = [g.timeline for g in self.c.cluster.grants if g.node == self.c.local.me]
        return max([e.timeline for e in history] + [t for t in own if self._has_wal_of(t)] + [1])

    def _has_wal_of(self, timeline: int) -> bool:
        """Did this node's own promotion to ``timeline`` get as far as writing WAL?"""
        if switch_lsn(self.c, timeline) is None:
            return False
        prefix = f"{timeline:08X}"
        return any(n.startswith(prefix) and len(n) == 24 for n in os.listdir(self.c.postgres.wal_dir))


def _rotate(log: Path) -> None:
    """Before a start, when nobody writes: one older file is kept, so the disk is not filled by lines nobody reads."""
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_suffix(".log.1"))
