"""`pgr doctor`: the table of its checks, and what becomes of their findings. Pure.

``python -m supervisor.reference`` writes the table into REFERENCE.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from fencing.lease import RHO_PERCENT
from supervisor import doctorlinks, doctornode, render
from supervisor.doctorfacts import ANSWER_MS, CONNECT_MS, PROBES_MS, SESSION_MS, Case, Link, Node, Said, Severity
from supervisor.doctornode import each, failures
from supervisor.errors import ExitCode
from supervisor.render import size

BEFORE, AFTER = "before", "after"
BOTH: Final = (BEFORE, AFTER)


class Check(NamedTuple):
    """One row of the table."""

    name: str
    when: tuple[str, ...]
    """Of the start of the node."""
    measures: str
    bounds: str
    why: str
    """Why it matters, as every finding that is not ok repeats it."""
    rule: Callable[[Case], Iterator[Said]]


def _listens(node: Node) -> str:
    return f"free: {', '.join(node.addresses)}"


CHECKS: Final = (
    Check(
        "members", (AFTER,), "who of the members answers, and who of the others reaches those that do not",
        "each of them, in time", "a member that is down or cut off is the next failure that has already happened",
        doctorlinks.members,
    ),
    Check(
        "account", (BEFORE,), "which user the node will run as, and whose the directories are",
        "an ordinary user who owns PGDATA", "Postgres refuses root and directories of others",
        each(failures("account", lambda n: "the directories are this user's")),
    ),
    Check(
        "data directory", (BEFORE,), "what lies in DIR and PGDATA; whether a supervisor or a Postgres uses it already",
        "missing, empty, or a cluster that nobody runs",
        "nothing that may be the only copy is started twice or deleted",
        each(failures("data directory", lambda n: n.clean or "there is no data yet")),
    ),
    Check(
        "kernel", (BEFORE,), "pidfd_open, pidfd_send_signal, /proc", "all of them",
        "what can't be named for certain can't be killed for certain",
        each(failures("kernel", lambda n: "pidfds and /proc are there")),
    ),
    Check(
        "files", (BEFORE,), "cluster key, certificates, tokens, init scripts that the configuration names",
        "there, and readable by this user", "the node does not start without them",
        each(failures("files", lambda n: "all that the configuration names can be read")),
    ),
    Check(
        "configuration", (BEFORE,), "flags, environment and file, as pgr-supervise reads them", "nothing doubtful",
        "what is probably not meant is easier to change before there is data", each(doctornode.configuration),
    ),
    Check(
        "ports", (BEFORE,), "consensus, Postgres and HTTP addresses: bound for a moment", "this machine's, and free",
        "the node does not start when one is taken", each(failures("ports", _listens)),
    ),
    Check(
        "binaries", BOTH, "Postgres's programs: where, which version, with TLS and ICU or not",
        "15 to 18, complete; TLS and ICU where Postgres listens beyond loopback",
        "a program that is missing is missed in a failover; without TLS data crosses the network in the clear",
        each(doctornode.binaries, witness=False),
    ),
    Check(
        "versions", (AFTER,), "versions of Postgres and pgr on the members", "the same everywhere",
        "WAL of another major version can't be replayed, bugs differ between minor ones", doctorlinks.versions,
    ),
    Check(
        "postgres", (AFTER,), "a session by its own socket", f"it answers within {SESSION_MS / 1000:g} s",
        "a Postgres that takes no session of pgr's can give no promise and can't be promoted",
        each(doctornode.postgres, witness=False),
    ),
    Check(
        "rewind", BOTH, "data checksums and wal_log_hints", "one of them on",
        "pg_rewind needs one; without it a former primary is copied anew", each(doctornode.rewind, witness=False),
    ),
    Check(
        "hba", BOTH, "pg_hba.conf as Postgres has read it; before that the rules of [postgres] hba",
        "every rule taken; none trusts another machine",
        "one bad line keeps the whole file from being taken, and trust lets anybody write",
        each(doctornode.hba, witness=False),
    ),
    Check(
        "sessions", (AFTER,), "a replication session and one with pg_rewind's rights, from every member to every other",
        "let in, with the system identifier of the cluster", "whoever becomes primary must let all others in",
        doctorlinks.sessions,
    ),
    Check(
        "control plane", BOTH, "consensus port of each member from each other: an encrypted question, else TCP",
        f"TCP within {CONNECT_MS / 1000:g} s, an answer within {ANSWER_MS / 1000:g} s; "
        "between the leader and the others a word within E",
        "leases, votes and promises take this way", doctorlinks.control_plane,
    ),
    Check(
        "data plane", (AFTER,), "Postgres of every member from every other: TCP",
        f"connected, within {doctorlinks.DATA_SLOW_MS:g} ms", "commits wait for standbys over this way",
        doctorlinks.data_plane,
    ),
    Check(
        "clocks", BOTH, "wall clocks of two members, and how fast CLOCK_BOOTTIME goes there",
        f"{doctorlinks.OFFSET_MS:g} ms apart; rates within {RHO_PERCENT} %",
        "leases rest on the rate alone; schedules, histories and logs are read by the wall clock", doctorlinks.clocks,
    ),
    Check(
        "lease", BOTH, "timings of the cluster, the time to a majority and back, time to disk of raft",
        f"L/(1-rho)+F <= E/(1+rho); round <= H; round + 2 syncs <= E/{doctorlinks.ELECTION_SHARE}",
        "a lease that can't be renewed in time is a primary that stops; votes that take too long are no failover",
        doctorlinks.lease,
    ),
    Check(
        "disk", BOTH, "room, files and kind of file system of raft, pg_wal and PGDATA; PGDATA as a mount point",
        f"{size(doctornode.FREE_RAFT_BYTES)} for raft, {size(doctornode.FREE_WAL_BYTES)} for WAL, "
        "as much as the data has for PGDATA",
        "a full disk stops the node, and a copy is complete before the old one goes", each(doctornode.disk),
    ),
    Check(
        "sync time", BOTH, "writes of 8 kB until they are on disk, in each of these",
        f"{doctornode.SYNC_SLOW_MS:g} ms typically", "every commit and every vote waits for it",
        each(doctornode.sync_time),
    ),
    Check(
        "limits", BOTH, "open files and processes that this node may have",
        f"{doctornode.NOFILE_ENOUGH} files; max_connections + {doctornode.NPROC_SPARE} processes",
        "at the limit Postgres refuses connections, and the supervisor can't start what it needs",
        each(doctornode.limits),
    ),
    Check(
        "real time", BOTH, "scheduling class of the Raft process and the watchdog", "SCHED_RR",
        "a fence that comes late is none: the bound F counts on a watchdog that runs when it is due",
        each(doctornode.realtime),
    ),
    Check(
        "watchdog", (AFTER,), "whether the watchdog process guards Postgres, and the hardware watchdog the machine",
        "guarded; armed on a primary, if it is required",
        "it ends Postgres when the lease does and nothing else can", each(doctornode.watchdog, witness=False),
    ),
    Check(
        "shared memory", BOTH, "size of /dev/shm, dynamic_shared_memory_type",
        f"{size(doctornode.SHM_ENOUGH_BYTES)}; posix or sysv", "without it Postgres does not start, or queries fail",
        each(doctornode.shared_memory),
    ),
    Check(
        "collation", (AFTER,), "version of the collation that a database was made with, and the one of this node",
        "the same", "an index in another order misses rows, and lets duplicates in",
        each(doctornode.collation, witness=False),
    ),
    Check(
        "libraries", (AFTER,), "glibc of the members", "the same, if a database sorts by it",
        "a failover would change the order of text under its indexes", doctorlinks.libraries,
    ),
    Check(
        "commits", (AFTER,), "synchronous_commit by role and database; fsync, full_page_writes", "nobody lower; on",
        "what is acknowledged early may be lost in a failover", each(doctornode.commits, witness=False),
    ),
    Check(
        "status", (AFTER,), "the warnings of `pgr status`", "none", "what the cluster says of itself, in one place",
        doctorlinks.status,
    ),
    Check(
        "unmeasured", BOTH, "what gave no answer in time, or failed", f"nothing ({PROBES_MS / 1000:g} s for all of it)",
        "what can't be measured may be what is wrong", each(doctornode.unmeasured),
    ),
)  # fmt: skip
GRAVEST: Final = (
    ExitCode.REFUSED, ExitCode.USAGE, ExitCode.MISSING, ExitCode.DISK, ExitCode.TRY_AGAIN, ExitCode.BUG,
)  # fmt: skip
"""Which code `pgr doctor` ends with when there are several."""


class Finding(NamedTuple):
    """``node`` is empty for one of the cluster; ``code`` is 0 unless it is an error."""

    check: str
    node: str
    severity: Severity
    what: str
    why: str
    hint: str
    code: int


def examine(case: Case) -> tuple[Finding, ...]:
    """Every check that applies, in the order of the table."""
    when = AFTER if case.running else BEFORE
    found: list[Finding] = []
    for check in CHECKS:
        if when in check.when:
            for said in check.rule(case):
                why = "" if said.severity is Severity.OK else check.why
                found.append(Finding(check.name, said.node, said.severity, said.what, why, said.hint, said.code))
    return tuple(found)


def exit_code(findings: Iterable[Finding]) -> int:
    """0: nothing worse than warnings; else the gravest code of an error."""
    codes = {f.code for f in findings if f.severity is Severity.ERROR}
    return next((int(code) for code in GRAVEST if code in codes), int(ExitCode.BUG) if codes else 0)


def to_json(case: Case, findings: Iterable[Finding]) -> dict[str, Any]:
    """What `pgr doctor --json` prints: the findings, and both matrices in milliseconds (null: not reached)."""
    listed = [f._asdict() | {"severity": f.severity.value} for f in findings]
    counts = {s.value: sum(f["severity"] == s.value for f in listed) for s in Severity}
    return {
        "when": AFTER if case.running else BEFORE,
        "findings": listed,
        "counts": counts,
        "exit_code": exit_code(findings),
        "control_plane_ms": _matrix(case, lambda link: link.answer_ms),
        "data_plane_ms": _matrix(case, lambda link: link.replication_ms),
    }


def _matrix(case: Case, number: Callable[[Link], float | None]) -> dict[str, dict[str, float | None]]:
    return {name: {link.to: number(link) for link in node.links} for name, node in sorted(case.nodes.items())}


# -- for people ------------------------------------------------------------------------------------------------------

MARKS: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.OK: "ok"}
WIDTH: Final = 100


def page(case: Case, findings: Iterable[Finding], width: int = WIDTH, colour: bool = False) -> str:
    """What is wrong first, each with why and what to do; then the matrices, then what is well; then the count."""
    listed = list(findings)
    blocks: list[list[str]] = []
    for severity, style in ((Severity.ERROR, render.RED), (Severity.WARNING, render.YELLOW)):
        alike: dict[tuple[str, str], list[Finding]] = {}
        for f in listed:
            if f.severity is severity:
                alike.setdefault((f.check, f.hint), []).append(f)
        blocks += [_told(group, width, style if colour else "") for group in alike.values()]
    if case.running:
        blocks.append(_grid(case, "control plane: question and answer, ms", lambda link: link.answer_ms))
        blocks.append(_grid(case, "data plane: replication session, ms", lambda link: link.replication_ms))
    well: dict[tuple[str, str], list[str]] = {}
    for f in listed:
        if f.severity is Severity.OK:
            well.setdefault((f.check, f.what), []).append(f.node)
    if well:
        rows = [[check, ", ".join(nodes), what] for (check, what), nodes in well.items()]
        lines = render.table(["WELL", "NODE", ""], rows)
        indent = lines[0].find("NODE") + max(4, *(len(r[1]) for r in rows)) + 2
        blocks.append([lines[0].rstrip(), *(piece for line in lines[1:] for piece in _wrapped(line, width, indent))])
    counts = [f"{n} {MARKS[s] if s is Severity.OK or n == 1 else MARKS[s] + 's'}" for s, n in _counts(listed).items()]
    blocks.append([", ".join(counts)])
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def _counts(findings: Iterable[Finding]) -> Mapping[Severity, int]:
    listed = list(findings)
    return {s: sum(f.severity is s for f in listed) for s in (Severity.ERROR, Severity.WARNING, Severity.OK)}


def _told(alike: Sequence[Finding], width: int, style: str) -> list[str]:
    """Findings of one check for which the same has to be done: that and the why are said once."""
    said: dict[str, list[str]] = {}
    for f in alike:
        said.setdefault(f.what, []).append(f.node)
    mark, lines = f"{MARKS[alike[0].severity]}:", []
    for what, nodes in said.items():
        who = ", ".join(nodes)
        first, *rest = _wrapped(f"{mark} {alike[0].check}: {who + ': ' if who else ''}{what}", width, 2)
        lines += [first.replace(mark, f"{style}{mark}{render.OFF}", 1) if style else first, *rest]
    return [*lines, *_wrapped(f"  why: {alike[0].why}", width, 7), *_wrapped(f"  hint: {alike[0].hint}", width, 8)]


def _grid(case: Case, title: str, number: Callable[[Link], float | None]) -> list[str]:
    """Who reaches whom in which time; empty if nobody was to be reached."""
    names = [name for name in case.members if any(n.link(name) for n in case.nodes.values()) or name in case.nodes]
    rows = []
    for name in names:
        node = case.nodes.get(name)
        cells = [name]
        for other in names:
            link = node.link(other) if node is not None else None
            value = number(link) if link is not None else None
            cells.append("" if other == name else "?" if link is None else "no" if value is None else f"{value:.1f}")
        rows.append(cells)
    if len(names) < 2:
        return []
    return [title, *render.table(["FROM", *names], rows, right=tuple(range(1, len(names) + 1)))]


def _wrapped(line: str, width: int, indent: int) -> list[str]:
    """Broken between words; what follows is indented. ``width`` 0: not at all."""
    import textwrap

    if not width or len(line) <= width:
        return [line]
    begin = line[: len(line) - len(line.lstrip())]
    # Columns keep their spaces: only what lies behind them is broken.
    head, tail = line[:indent], line[indent:]
    if "  " in head.strip():
        pieces = textwrap.wrap(tail, max(20, width - indent), break_long_words=False, break_on_hyphens=False)
        return [head + pieces[0], *(" " * indent + piece for piece in pieces[1:])] if pieces else [line]
    return textwrap.wrap(
        line.strip(), width, initial_indent=begin, subsequent_indent=" " * indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
