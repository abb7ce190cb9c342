"""pgr-supervise, from the command line to a running node.

The order is the point: configuration, then root is dropped, then the checks, then the few modules that children need,
then the launcher is forked, and only then everything else is imported. argparse, because typer costs 15 MB for years.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from fencing.logs import Log
from supervisor.config import Config, Facts, load
from supervisor.errors import ExitCode, PgrError, UsageError, exit_for, explain
from supervisor.options import OPTIONS, find_file


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # it never returns in argparse either
        """argparse would exit with 2; wrong usage is 64 here."""
        raise UsageError(message, "pgr-supervise --help lists the flags")


def parser() -> argparse.ArgumentParser:
    """One flag for every option; values stay text, `config.load` parses them."""
    made = _Parser(
        prog="pgr-supervise",
        description="One PostgreSQL node of a cluster that fails over by consensus. --data DIR is enough for one node.",
        epilog="Every flag can be given as PGR_<FLAG> in the environment or as a key in DIR/pgr.toml; flag wins over "
        "environment over file. Look at and steer the cluster with: pgr",
        allow_abbrev=False,
    )
    made.add_argument("--version", action="store_true", help="print the version and exit")
    for option in OPTIONS:
        text = f"{option.help} [{option.env}]"
        if not option.metavar:
            made.add_argument(option.flag, dest=option.key, action="store_const", const="true", help=text)
        else:
            metavar = "{" + ",".join(option.choices) + "}" if option.choices else option.metavar
            made.add_argument(option.flag, dest=option.key, metavar=metavar, help=text)
    return made


def version() -> str:
    """The version of the installed distribution, or of the checkout we run from (importlib.metadata costs 2 MB)."""
    root = Path(__file__).resolve().parents[1]
    if root.name == "app":  # of a wheel: SITE-PACKAGES/pgr_supervise/app
        for found in root.parents[1].glob("pgr_supervise-*.dist-info"):
            return found.name.removeprefix("pgr_supervise-").removesuffix(".dist-info")
    try:
        stated = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return "unknown"
    return stated[1] if stated is not None else "unknown"


def gather_facts(env: Mapping[str, str]) -> Facts:
    """What the defaults depend on, as this machine has it."""
    roots: list[str] = []
    if os.geteuid() == 0 or os.access("/run/pgr", os.W_OK | os.X_OK):
        roots.append("/run/pgr")
    runtime = env.get("XDG_RUNTIME_DIR", "")
    if runtime and os.geteuid() != 0 and os.access(runtime, os.W_OK | os.X_OK):
        roots.append(f"{runtime}/pgr")
    return Facts(
        hostname=socket.gethostname(),
        cwd=str(Path.cwd()),
        stderr_is_tty=sys.stderr.isatty(),
        run_roots=tuple(roots),
        image_initdb_dir=Path("/docker-entrypoint-initdb.d").is_dir(),
    )


def read_config(flags: Mapping[str, str], env: Mapping[str, str]) -> Config:
    """The configuration from flags, environment and file. Raises `UsageError`."""
    facts = gather_facts(env)
    text, path = None, None
    place = find_file(flags, env, facts)
    if place is not None:
        path, required = place
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            if required:
                raise UsageError(f"--config: {path} is not there", "correct the path, or leave it out") from None
        except (OSError, UnicodeDecodeError) as exc:
            raise UsageError(f"{path} can't be read: {exc}", "let this user read it; it is TOML in UTF-8") from None
    return load(flags, env, text, path, facts)


def main(argv: Sequence[str] | None = None) -> int:
    """pgr-supervise; returns the exit code of interfaces.md."""
    log: Log | None = None
    try:
        given = vars(parser().parse_args(argv))
        if given.pop("version"):
            sys.stdout.write(f"pgr-supervise {version()}\n")
            return ExitCode.STOPPED
        config = read_config({key: value for key, value in given.items() if value is not None}, os.environ)
        log = Log(config.log_format, config.name, "parent")
        return _start(config, log)
    except KeyboardInterrupt:
        return 130
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else ExitCode.STOPPED  # --help
    except BaseException as exc:
        return _explain(exc, log)


def _start(config: Config, log: Log) -> int:
    from supervisor.init import adopt_orphans, hold_signals, set_title
    from supervisor.privileges import become_user

    hold_signals()
    account = become_user(config)

    from supervisor.preflight import check, mount_warnings

    lock = check(config)
    for warning in (*config.warnings, *mount_warnings(config.pgdata)):
        log.warning("config.warning", text=warning)
    log.info("node.starting", version=version(), user=account.name, data=config.data, pid=os.getpid(), lock=lock.path)
    adopt_orphans()

    if config.witness:
        from supervisor import witness

        set_title("pgr-witness")
        try:
            return witness.run(config, log)
        finally:
            lock.release()

    from supervisor.launcher import Launcher

    launcher = Launcher.start(log=log)
    set_title("pgr-supervise")

    from supervisor.daemon import run

    try:
        return run(config, launcher, log)
    finally:
        launcher.stop()
        lock.release()


def _explain(exc: BaseException, log: Log | None) -> int:
    code, message, hint = exit_for(exc)
    if not isinstance(exc, PgrError) and code == ExitCode.BUG:
        import traceback

        traceback.print_exception(exc)
    if log is not None and log.fmt == "json":
        log.error("node.failed", exit_code=int(code), message=message, hint=hint)
    try:
        sys.stderr.write(explain(message, hint))
        sys.stderr.flush()
    except OSError:
        pass  # nobody reads it; the exit code is left
    return int(code)
