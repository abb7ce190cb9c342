"""``pgr doctor``: of a cluster that runs every member is asked, of a node that does not run this machine is looked at.
cli.py imports this, so its parts are reached when the command runs."""

from __future__ import annotations

import json
import os
import select
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from supervisor.admin import Admin, NotRunningError, find_socket, open_channel
from supervisor.clioptions import DataOption, JsonOption, KeyOption, NodeOption, Where, admin_of, on_terminal, put, talk
from supervisor.errors import BugError, PgrError, TryAgainError, UsageError

if TYPE_CHECKING:
    from supervisor.config import Config
    from supervisor.doctorfacts import Case, Failure, Node

REACH_IDLE_MS = 3_000
"""A member that says nothing at all for so long is away ..."""
ANSWER_IDLE_MS = 12_000
"""... and one that is there has its measurements by then, or says why not."""
LOCAL_S = 8.0
SETTINGS = {"ignore_unknown_options": True, "allow_extra_args": True}


def doctor(
    ctx: typer.Context,
    *,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Look for what is wrong, or soon will be: each finding with why it matters and what to do about it.

    If the node runs, every member measures itself and its way to every other. If it does not, this machine is looked at
    as pgr-supervise would find it: `--data DIR`, the environment, pgr.toml, and the flags of pgr-supervise behind that.
    Nothing is changed, and nothing waits longer than some seconds. Exit code 0: nothing worse than warnings.
    """
    where: Where = ctx.obj
    home = data or where.data
    running = bool(node or (where.node and not data))
    if not running and home is not None:
        try:
            find_socket(home.absolute())
            running = True
        except NotRunningError:
            pass  # then it is looked at before its start
    if running and ctx.args:
        hint = "leave them out: a node that runs has its flags; those of another one need its own --data"
        raise UsageError(f"`pgr doctor` of a running cluster takes no {ctx.args[0]}", hint)
    if running:
        with admin_of(ctx, data, node, key) as admin:
            case = ask(admin, key or where.key)
    else:
        case = look(ctx.args, {"data": home, "cluster_key": key or where.key})
    raise typer.Exit(show(case, as_json))


def show(case: Case, as_json: bool) -> int:
    """Print it; the exit code."""
    from supervisor import doctor as checks

    findings = checks.examine(case)
    if as_json:
        put(json.dumps(checks.to_json(case, findings), indent=2) + "\n")
    else:
        width = shutil.get_terminal_size().columns if on_terminal() else checks.WIDTH
        put(checks.page(case, findings, width, on_terminal() and not os.environ.get("NO_COLOR")))
    return checks.exit_code(findings)


# -- a cluster that runs ---------------------------------------------------------------------------------------------


def ask(admin: Admin, key: Path | None) -> Case:
    """Every member, all at once. Raises PgrError if the first one does not answer."""
    from supervisor.doctorfacts import Case

    told = admin.request("events", {"last": 0})
    key_file = key or Path(told["key_file"])
    answers: dict[str, dict[str, Any] | PgrError] = {}

    def measure(name: str, open_admin: Callable[[], Admin]) -> None:
        try:
            with open_admin() as member:
                member.request("clock", {}, idle_ms=REACH_IDLE_MS)
                answers[name] = member.request("doctor", {}, idle_ms=ANSWER_IDLE_MS)
        except PgrError as error:
            answers[name] = error

    others = {name: address for name, address in told["members"].items() if name != told["node"]}
    threads = [
        threading.Thread(target=measure, args=(n, lambda a=a: Admin(open_channel(None, a, key_file))), daemon=True)
        for n, a in others.items()
    ]
    for thread in threads:
        thread.start()
    own = admin.request("doctor", {}, idle_ms=ANSWER_IDLE_MS)
    for thread in threads:
        thread.join(ANSWER_IDLE_MS / 1000)
    nodes, silent = {told["node"]: _node(own)}, {}
    for name in others:
        answer = answers.get(name, TryAgainError("no answer in time"))
        try:
            nodes[name] = _node(answer)
        except PgrError as error:
            silent[name] = error.message
    members = tuple(sorted({*told["members"], *own.get("members", []), told["node"]}))
    return Case(nodes, silent, members, frozenset(own["voters"]) if own.get("voters") else None)


def _node(data: Mapping[str, Any] | PgrError) -> Node:
    """Raises PgrError: that one, or for what is no `Node`."""
    from supervisor.doctorfacts import Node, read

    if isinstance(data, PgrError):
        raise data
    try:
        return read(Node, data)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        hint = "is `pgr` as new as the node? compare with `pgr version`"
        raise BugError(f"the node sent measurements that this pgr can't read: {error}", hint) from error


# -- a node that is to be started ------------------------------------------------------------------------------------


def look(args: list[str], given: Mapping[str, Path | None]) -> Case:
    """What pgr-supervise would find here with these flags. Raises UsageError for a configuration that is none."""
    from supervisor.doctorfacts import Case, Failure, read
    from supervisor.entry import parser, read_config

    flags = {name: value for name, value in vars(parser().parse_args(args)).items() if isinstance(value, str)}
    config = read_config({n: str(path) for n, path in given.items() if path is not None} | flags, os.environ)
    failures = _become(config)
    from supervisor import doctordesk, doctorstart

    failures += doctorstart.failures_of(config)
    measured = _measured(doctorstart.order(config))
    failures += [read(Failure, each) for each in doctordesk.missing_programs(measured)]
    talk(f"no node runs in {config.data}: this is how pgr-supervise would find it, as user {doctorstart.user()}")
    node = doctorstart.node(config, measured, failures)
    return Case({config.name: node}, {}, tuple(peer.name for peer in config.peers) or (config.name,))


def _become(config: Config) -> list[Failure]:
    """As pgr-supervise does, but for the directories, which are not made: what is measured is what that user can do."""
    from supervisor.doctorfacts import Failure
    from supervisor.privileges import become_user

    try:
        become_user(config, make=False)
    except PgrError as error:
        return [Failure("account", error.message, error.hint, int(error.exit_code))]
    return []


def _measured(order: Mapping[str, Any]) -> dict[str, Any]:
    """In a process of its own, as a node has it done. Raises TryAgainError, BugError."""
    from supervisor import doctordesk

    output = os.memfd_create("pgr-doctor", os.MFD_CLOEXEC)
    process = doctordesk.start(order, output)
    # Not `wait`, which would wait for a process that hangs in the kernel: what it has found is there before its end.
    pidfd = os.pidfd_open(process.pid)
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    ended = bool(poller.poll(LOCAL_S * 1000))
    if ended:
        process.wait()
    else:
        process.kill()
        process.returncode = 0  # it may never end
    os.close(pidfd)
    try:
        return doctordesk.findings(output, ended)
    finally:
        os.close(output)
