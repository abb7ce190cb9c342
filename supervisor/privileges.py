"""From root to an ordinary user, before anything else runs: Postgres refuses root, and so do we.

As root: take what only root can give (priority, memory locking, protection from the OOM killer), become the
other user for good, then make sure that user can reach what it needs. Not root: only check whose data it is.
"""

from __future__ import annotations

import grp
import os
import pwd
import resource
import stat
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from supervisor.config import Config
from supervisor.errors import DiskError, MissingError, RefusedError, UsageError, exit_for
from supervisor.init import PR_SET_DUMPABLE, prctl

OOM_SCORE_ADJ: Final = -900
"""Nearly last to be killed: a dead control plane costs the primary. Postgres gets 0 (`launcher`)."""
_LIMITS: Final = (
    # What lets fencing.realtime take SCHED_RR 1 or a negative nice value, and lock its memory, without being root.
    (resource.RLIMIT_RTPRIO, 1),
    (resource.RLIMIT_NICE, 40),
    (resource.RLIMIT_MEMLOCK, resource.RLIM_INFINITY),
)


class Account(NamedTuple):
    """Whom we run as."""

    name: str
    uid: int
    gid: int


def current() -> Account:
    """The account of this process."""
    uid = os.geteuid()
    try:
        return Account(pwd.getpwuid(uid).pw_name, uid, os.getegid())
    except KeyError:
        return Account(str(uid), uid, os.getegid())  # containers run with numbers that have no name


def become_user(config: Config, make: bool = True) -> Account:
    """Make DIR and the run directory (unless not to ``make`` anything), drop root if we have it, and return whom we run
    as from here on.

    Raises `MissingError`, `RefusedError`, `UsageError`, `DiskError`.
    """
    if os.geteuid() != 0:
        account = current()
        if config.user is not None and config.user not in (account.name, str(account.uid)):
            raise UsageError(
                f"--user {config.user} ({config.sources.get('user', '')}): only root can become another user, "
                f"and this is {account.name}",
                f"start as root, or as {config.user} without --user",
            )
        _check_owner(config, account)
        if make:
            _make_directories(config, None)
        return account
    account = choose_account(config)
    _check_owner(config, account)
    if make:
        _make_directories(config, account)
    _privileged_settings()
    _drop(account)
    check_reachable(account, _needed_paths(config))
    return account


def choose_account(config: Config) -> Account:
    """As root: `--user`, else the owner of the data directory, else `postgres`. Raises `MissingError`, `UsageError`."""
    if config.user is not None:
        account = _lookup(config.user)
        if account is None:
            raise MissingError(
                f"there is no user {config.user!r} (--user)", f"create it, or choose another: id {config.user}"
            )
        if account.uid == 0:
            raise UsageError(
                "--user root: Postgres refuses to run as root", "choose an ordinary user, such as postgres"
            )
        return account
    for path in (config.pgdata, config.data):
        owner = _owner(path)
        if owner:
            try:
                entry = pwd.getpwuid(owner)
            except KeyError:
                return Account(str(owner), owner, path.stat().st_gid)
            return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)
    account = _lookup("postgres")
    if account is None:
        raise MissingError(
            "started as root, the data directory belongs to root or is not there, and there is no user postgres",
            "say who to run as: --user NAME (useradd --system postgres makes the usual one)",
        )
    return account


def _lookup(name: str) -> Account | None:
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        return None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise MissingError(
            f"{path} can't be looked at by {current().name}",
            f"let this user enter {_closed_directory(path) or path.parent}",
        ) from None


def _check_owner(config: Config, account: Account) -> None:
    """PGDATA must be ours: Postgres itself checks it, and a foreign one is a mistake worth stopping for."""
    for path, what in ((config.pgdata, "the Postgres data directory"), (config.data, "the node's directory")):
        owner = _owner(path)
        if owner is None:
            continue
        if not path.is_dir():
            raise UsageError(f"{path} is there and is not a directory", "move it away, or choose another place")
        if owner == account.uid:
            continue
        # An empty directory that root made (mkdir, a fresh volume) is handed over; one with content never is.
        if owner == 0 and os.geteuid() == 0 and not any(path.iterdir()):
            continue
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = str(owner)
        if path == config.data and owner == 0 and os.access(path, os.W_OK | os.X_OK):
            continue
        raise RefusedError(
            f"{what} {path} belongs to {name}, and we run as {account.name}",
            (f"run as {name}, or: " if owner else "give it to that user: ") + f"chown -R {account.name} {path}",
        )


def _make_directories(config: Config, account: Account | None) -> None:
    """DIR and what lies in it, each 0700 and owned by `account`; PGDATA itself is made by whoever fills it."""
    os.umask(0o022)  # directories on the way to DIR stay open to enter
    for path in (config.data, config.raft_dir, config.log_dir, config.salvage_dir):
        _make(path, account)
    if config.run != config.data / "run":
        # /run/pgr itself is shared by all nodes of the machine: root's, and open to enter.
        if account is not None and not config.run.parent.exists():
            config.run.parent.mkdir(mode=0o755, parents=True)
        _make(config.run, account)
        _point(config.data / "run", config.run)
    else:
        _make(config.run, account)
    _make(config.pg_socket_dir, account)
    os.umask(0o077)


def _make(path: Path, account: Account | None) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if account is not None:
            # By descriptor and without following links: the parent directory may belong to someone else.
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(fd).st_uid == 0:
                    os.fchown(fd, account.uid, account.gid)
            finally:
                os.close(fd)
        found = path.stat()
        if stat.S_IMODE(found.st_mode) & 0o022 and found.st_uid == (account.uid if account else os.geteuid()):
            path.chmod(stat.S_IMODE(found.st_mode) & ~0o022)
    except FileExistsError:
        raise UsageError(f"{path} is there and is not a directory", "move it away, or choose another place") from None
    except OSError as exc:
        explained = exit_for(exc)
        if explained.code == DiskError.exit_code:
            raise DiskError(f"{path} can't be made: {exc.strerror}", explained.hint) from None
        who = account.name if account else current().name
        raise MissingError(
            f"{path} can't be made: {exc.strerror}",
            f"make it, owned by {who} and with mode 0700, or choose another place",
        ) from None


def _point(link: Path, target: Path) -> None:
    """`DIR/run` leads to the run directory wherever it is, so that `pgr --data DIR` finds the sockets."""
    try:
        if link.is_symlink():
            link.unlink()
        elif link.is_dir():
            link.rename(link.with_name(f"run.before.{os.getpid()}"))
        link.symlink_to(target)
    except OSError as exc:
        raise MissingError(f"{link} can't be made to lead to {target}: {exc.strerror}", f"move {link} away") from None


def _privileged_settings() -> None:
    """What survives setuid and can't be had after it. Containers may refuse any of it: then it is done without."""
    for limit, value in _LIMITS:
        try:
            resource.setrlimit(limit, (value, value))
        except (OSError, ValueError):
            continue  # CAP_SYS_RESOURCE is missing: fencing.realtime says what it got, and status shows it
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE_ADJ), encoding="ascii")
    except OSError:
        pass  # likewise


def _drop(account: Account) -> None:
    try:
        groups = os.getgrouplist(account.name, account.gid)
    except (OSError, KeyError):
        groups = [account.gid]
    os.setgroups(groups)
    os.setresgid(account.gid, account.gid, account.gid)
    os.setresuid(account.uid, account.uid, account.uid)
    if os.getresuid() != (account.uid,) * 3 or os.getresgid() != (account.gid,) * 3:
        raise RefusedError(f"root could not be dropped for {account.name}", "start as that user instead")
    # setuid hides /proc/self from ourselves and from the watchdog, which must be able to look at us.
    prctl(PR_SET_DUMPABLE, 1)
    home = _home(account)
    os.environ.update({"HOME": home, "USER": account.name, "LOGNAME": account.name})
    if not os.access(".", os.X_OK):
        os.chdir("/")  # started in a directory that this user may not enter


def _home(account: Account) -> str:
    try:
        return pwd.getpwuid(account.uid).pw_dir
    except KeyError:
        return "/"


def _needed_paths(config: Config) -> list[Path]:
    paths = [config.data, Path(sys.executable), *(Path(entry) for entry in sys.path if entry)]
    if config.pg_bin is not None:
        paths.append(config.pg_bin / "postgres")
    if config.cluster_key is not None:
        paths.append(config.cluster_key)
    return paths


def check_reachable(account: Account, paths: Iterable[Path]) -> None:
    """As the user we now are: every directory that leads to what we need can be entered. Raises `MissingError`."""
    for path in paths:
        closed = _closed_directory(path)
        if closed is not None:
            groups = ", ".join(sorted({_group(gid) for gid in os.getgroups()}))
            raise MissingError(
                f"{account.name} (groups: {groups}) can't enter {closed}, where {path} lies",
                f"put it where everyone can read it (/opt, /usr/local, /var/cache/pgr), or: chmod o+x {closed}",
            )
        if path.exists() and not os.access(path, os.R_OK if path.is_file() else os.R_OK | os.X_OK):
            raise MissingError(
                f"{account.name} can't read {path}", f"let it: chown {account.name} {path}, or change its mode"
            )


def _closed_directory(path: Path) -> Path | None:
    """The first directory on the way to `path` (links followed) that we may not enter."""
    for way in dict.fromkeys((path, Path(os.path.realpath(path)))):
        for directory in reversed(way.parents):
            if not os.access(directory, os.X_OK) and directory.exists():
                return directory
    return None


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
