"""What must hold before a node starts; every failure says who must do what (exit codes of interfaces.md)."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import signal
import socket
from pathlib import Path
from typing import Final

from fencing.kill import members
from supervisor.addresses import Address
from supervisor.config import Config
from supervisor.errors import DiskError, MissingError, RefusedError, UsageError
from supervisor.founding_options import Founding

SUPPORTED_MAJORS: Final = range(15, 19)
_NOT_CONTENT: Final = frozenset({"lost+found"})
MARK: Final = "pgr_node.json"
"""In PGDATA: whose copy this is (rebuild.py writes it)."""


class DataLock:
    """The right to be the only supervisor of a data directory, held until the process ends."""

    def __init__(self, fd: int, path: Path) -> None:
        self._fd, self.path = fd, path

    def release(self) -> None:
        """Give it up; only tests and orderly ends need this, the kernel does it for everyone else."""
        os.close(self._fd)


def check(config: Config) -> DataLock:
    """Everything that can be checked before Postgres's programs are known. Raises `PgrError`."""
    check_kernel()
    lock = lock_data(config.data)
    check_pgdata(config.pgdata, os.geteuid())
    check_mount(config.pgdata)
    check_stopped(config.pgdata)
    check_files(config)
    check_ports(config)
    return lock


def check_kernel() -> None:
    """pidfds need Linux 5.3: without them a pid could be killed that is someone else's by now."""
    try:
        fd = os.pidfd_open(os.getpid())
    except (OSError, AttributeError) as exc:
        raise MissingError(
            f"this kernel ({os.uname().release}) has no pidfd_open, or it is forbidden here: {exc}",
            "use Linux 5.3 or newer, and a seccomp profile that allows pidfd_open and pidfd_send_signal",
        ) from None
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.poll(0)
    try:
        signal.pidfd_send_signal(fd, 0)  # 0 only asks
    except OSError as exc:
        raise MissingError(f"pidfd_send_signal is forbidden here: {exc}", "allow it in the seccomp profile") from None
    finally:
        os.close(fd)
    if not Path("/proc/self/stat").exists():
        raise MissingError("/proc is not mounted", "mount -t proc proc /proc: processes are watched through it")


def lock_data(data: Path) -> DataLock:
    """Lock `data`/lock for life. Raises `RefusedError` (78) naming the process that has it."""
    path = data / "lock"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO):
            raise DiskError(f"{path}: {exc.strerror}", "free space, or remount the file system") from None
        raise MissingError(f"{path} can't be opened: {exc.strerror}", f"let this user write to {data}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise RefusedError(
            f"another supervisor (pid {holder}) has {data}",
            f"stop it (kill {holder}), or give this one a --data of its own",
        ) from None
    except OSError as exc:
        os.close(fd)
        raise MissingError(
            f"{path} can't be locked: {exc.strerror}", "put the data directory on a local file system"
        ) from None
    try:
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError:
        pass  # a full disk: the lock holds all the same, only its message will not know the pid
    return DataLock(fd, path)


def has_postgres(pgdata: Path) -> bool:
    """Whether `pgdata` holds a Postgres cluster, finished or not."""
    return (pgdata / "PG_VERSION").exists() or (pgdata / "global" / "pg_control").exists()


def is_empty(pgdata: Path) -> bool:
    """As initdb sees it: dot files and lost+found (a fresh mount) do not count; a missing directory is empty."""
    try:
        return all(name.startswith(".") or name in _NOT_CONTENT for name in os.listdir(pgdata))
    except FileNotFoundError:
        return True


def check_pgdata(pgdata: Path, uid: int) -> None:
    """`pgdata` is missing, empty, or a cluster that belongs to `uid`. Raises `PgrError`."""
    try:
        owner = pgdata.stat().st_uid
        empty = is_empty(pgdata)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise UsageError(f"{pgdata} is not a directory", "move it away, or choose another --pgdata") from None
    except PermissionError:
        raise MissingError(f"{pgdata} can't be read by this user", "run as its owner (--user), or chown it") from None
    if owner != uid:
        raise RefusedError(
            f"{pgdata} belongs to user id {owner}, and we run as {uid}",
            f"run as its owner (--user), or: chown -R {uid} {pgdata}",
        )
    if not empty and not has_postgres(pgdata):
        raise RefusedError(
            f"{pgdata} is not empty and holds no Postgres cluster",
            "nothing is deleted here: move its content away, or name the right directory with --pgdata",
        )


def check_stopped(pgdata: Path) -> None:
    """No Postgres runs in a data directory that is to be brought in. Raises `RefusedError` (78).

    Before the ports are looked at: it most likely has ours. One that pgr has left behind is ended later (datadir.py).
    """
    try:
        pid = abs(int((pgdata / "postmaster.pid").read_text(encoding="ascii", errors="replace").split("\n", 1)[0]))
    except (OSError, ValueError):
        return
    if (pgdata / MARK).exists():
        return
    # A container's Postgres has another number out here, and Postgres itself does not notice it either (seen).
    found = sorted(process.pid for process in members(pgdata, None))
    if not found and pid == 1:
        raise RefusedError(
            f"{pgdata}/postmaster.pid is of a Postgres that was process 1 of a container: from here nobody can see "
            "whether that still runs",
            f"stop that container (then the file is gone); if it is gone and crashed, remove {pgdata}/postmaster.pid",
        )
    if not found and not works_in(pid, pgdata):
        return
    pid = found[0] if found else pid
    debian = re.fullmatch(r"/var/lib/postgresql/(\d+)/([^/]+)", str(pgdata))
    boot = f"; on Debian: pg_ctlcluster {debian[1]} {debian[2]} stop" if debian else ""
    start_conf = f"/etc/postgresql/{debian[1]}/{debian[2]}/start.conf" if debian else ""
    again = f"write disabled into {start_conf}" if debian else "disable the service that does"
    raise RefusedError(
        f"a Postgres that pgr did not start runs in {pgdata}, process {pid}",
        f"stop it: pg_ctl -D {pgdata} stop{boot}. And let nothing else start it again, at boot for instance ({again}): "
        "only pgr-supervise may",
    )


def works_in(pid: int, pgdata: Path) -> bool:
    """A live process with this directory as its working directory; a number in a stale file may be anyone's (hazard 2).
    Another user's can't be a Postgres on a directory of mode 0700 that is ours."""
    try:
        return Path(f"/proc/{pid}/cwd").samefile(pgdata)
    except (FileNotFoundError, PermissionError):
        return False


MOUNT_ABOVE: Final = "stop this node, mount that file system one directory higher, and name its data by --pgdata"


def is_mount_point(path: Path) -> bool:
    """Bind mounts as well, which `os.path.ismount` does not see on one file system."""
    wanted = os.path.realpath(path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        places = [line.split()[4] for line in file]
    return wanted in (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place) for place in places)


def check_mount(pgdata: Path) -> None:
    """A file system mounted at PGDATA itself, with nothing in it yet: nothing can be renamed to there."""
    if is_mount_point(pgdata) and not has_postgres(pgdata):
        raise UsageError(
            f"{pgdata} is a mount point",
            f"a new copy is renamed into place, which a mount point does not allow: {MOUNT_ABOVE}",
        )


def mount_warnings(pgdata: Path) -> tuple[str, ...]:
    """Of one that holds a cluster: it can be used, and never replaced."""
    if not is_mount_point(pgdata):
        return ()
    return (f"{pgdata} is a mount point: this node can be rewound, but never be copied anew; {MOUNT_ABOVE}",)


def pgdata_major(pgdata: Path) -> int | None:
    """The major version in PG_VERSION; None if there is no cluster. Raises `RefusedError` if it is nonsense."""
    try:
        text = (pgdata / "PG_VERSION").read_text(encoding="ascii", errors="replace").strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not text.isdigit():
        raise RefusedError(
            f"{pgdata}/PG_VERSION says {text!r}", "this is not the data directory of Postgres 10 or newer"
        )
    return int(text)


def check_major(pgdata: Path, binary_major: int, bin_dir: Path) -> None:
    """The programs and the data fit each other and pgr. Raises `MissingError`."""
    if binary_major not in SUPPORTED_MAJORS:
        raise MissingError(
            f"Postgres {binary_major} in {bin_dir} is not supported",
            f"use {SUPPORTED_MAJORS[0]} to {SUPPORTED_MAJORS[-1]}: --pg-bin DIR",
        )
    major = pgdata_major(pgdata)
    if major is not None and major != binary_major:
        raise MissingError(
            f"{pgdata} was made by Postgres {major}, and the programs in {bin_dir} are Postgres {binary_major}",
            f"install Postgres {major} and name it (--pg-bin /usr/lib/postgresql/{major}/bin), or run pg_upgrade",
        )


def check_files(config: Config) -> None:
    """What the configuration points to is there and readable. Raises `MissingError`, `UsageError`."""
    check_key(config)
    check_http(config)
    founding = config.founding
    if has_postgres(config.pgdata) or config.join is not None or config.witness:
        return  # the rest is only read at the founding
    if founding.password_file is not None:
        _check_readable(founding.password_file, "the superuser password file")
    if founding.init_sql is not None and not founding.init_sql.exists():
        raise UsageError(f"init_sql: {founding.init_sql} is not there", "correct the path, or take the key out")


def check_http(config: Config) -> None:
    """What --http needs can be read; whether certificate and key fit is found when it starts, as ssl is for then."""
    if config.http is None:
        return
    if config.http_token_file is not None:
        from supervisor.httpaccess import read_tokens

        read_tokens(config.http_token_file)
    for key in ("http_tls_cert", "http_tls_key", "http_tls_client_ca"):
        path: Path | None = getattr(config, key)
        if path is not None:
            _check_readable(path, f"--{key.replace('_', '-')}")


def check_key(config: Config) -> None:
    """There is a cluster key, or none is needed. Raises `UsageError`, `MissingError`."""
    if config.cluster_key is None:
        if config.join is not None and not config.key_file.exists():
            raise UsageError(
                "--join needs the cluster's key",
                "give --cluster-key FILE as the members do; a cluster that was founded on loopback without one has "
                "made DIR/cluster.key in the data directory of each member",
            )
        return
    _check_readable(config.cluster_key, "--cluster-key")
    from consensus.keys import LOOPBACK_PREFIX

    derived = config.cluster_key.read_bytes().startswith(LOOPBACK_PREFIX.encode())
    if derived and not config.listen.is_loopback:
        raise UsageError(
            f"{config.cluster_key} is the key of a cluster on loopback: anybody can derive it",
            f"make a secret one (`pgr key new`), give it to every member, or stay on loopback instead of "
            f"{config.listen}",
        )


def superuser_password(founding: Founding) -> str | None:
    """The password asked for at the founding, without the line's end; None if there is none. Raises `PgrError`."""
    if founding.password_file is None:
        return founding.password
    _check_readable(founding.password_file, "the superuser password file")
    password = founding.password_file.read_text(encoding="utf-8").rstrip("\r\n")
    if not password or "\n" in password or "\0" in password:
        raise UsageError(f"{founding.password_file} must hold one line, the superuser's password", "write it there")
    return password


def _check_readable(path: Path, what: str) -> None:
    if not path.exists():
        raise MissingError(f"{what}: {path} is not there", "make it, or correct the path")
    if not os.access(path, os.R_OK):
        raise MissingError(f"{what}: {path} can't be read by this user", f"chown it to this user: ls -l {path}")


def check_ports(config: Config) -> None:
    """Postgres's and the HTTP port can be bound (the Raft child tells of its own). Raises `MissingError`."""
    if not config.witness:
        check_port(Address(config.pg_listen, config.pg_port), "--pg-port")
    if config.http is not None:
        check_port(config.http, "--http")


def check_port(address: Address, flag: str) -> None:
    """Bind `address` for a moment, with SO_REUSEADDR as Postgres does. Raises `MissingError` naming `flag`."""
    host = None if address.is_wildcard else address.host
    try:
        found = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as exc:
        raise MissingError(
            f"{flag} {address}: {exc.strerror}", "give a name or address that this machine has"
        ) from None
    for family, kind, protocol, _, place in found:
        try:
            probe = socket.socket(family, kind, protocol)
        except OSError:
            continue  # a machine without IPv6
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(place)
                probe.listen(1)
            except OSError as exc:
                if host is None and exc.errno == errno.EADDRNOTAVAIL:
                    continue
                raise _port_error(exc, address, flag) from None


def _port_error(exc: OSError, address: Address, flag: str) -> MissingError:
    match exc.errno:
        case errno.EADDRINUSE:
            hint = f"stop what listens there (ss -ltnp 'sport = :{address.port}' shows it), or give another {flag}"
            return MissingError(f"{flag}: {address} is in use", hint)
        case errno.EADDRNOTAVAIL:
            return MissingError(f"{flag}: this machine has no address {address.host}", "ip address shows those it has")
        case errno.EACCES:
            hint = "choose one above 1023, or lower net.ipv4.ip_unprivileged_port_start"
            return MissingError(f"{flag}: port {address.port} is for root only", hint)
        case _:
            return MissingError(f"{flag}: {address} can't be used: {exc.strerror}", f"give another {flag}")


def name_changed(stored: str, given: str, source: str) -> RefusedError:
    """The error for a node that was first started under another name."""
    return RefusedError(
        f"this node is called {stored!r} since its first start, and now {given!r} ({source})",
        f"start it with --name {stored}; a new name needs a new --data directory",
    )
