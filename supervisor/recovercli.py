"""``pgr recover``: the quorum is lost for good. cli.py makes a command of it; the rules: consensus/recovery.py."""

from __future__ import annotations

import json
import socket
import textwrap
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from consensus.membership import WITNESS
from supervisor import render
from supervisor.addresses import BadValue, parse_address
from supervisor.admin import ACTION_IDLE_MS, Admin, Progress, error_of, open_channel, who
from supervisor.clioptions import (
    MEMBER_TIMEOUT_S,
    DataOption,
    JsonOption,
    KeyOption,
    NodeOption,
    TimeoutOption,
    Where,
    put,
    talk,
)
from supervisor.confirm import YesOption, confirm
from supervisor.errors import MissingError, PgrError

OTHERS_IDLE_MS = 3_000
PROBE_S = 1.0
PAGE_COLUMNS = 80
Look = dict[str, Any]
"""``{"refusal": null or {code, error, hint}, "outlook": consensus.recovery.plain}``."""


def recover(
    ctx: typer.Context,
    *,
    yes: YesOption = "",
    gone: Annotated[
        list[str] | None,
        typer.Option("--gone", metavar="NAME", help="It is gone, though something answers at its address.",
                     show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what may be lost; change nothing.")] = False,
    timeout: TimeoutOption = MEMBER_TIMEOUT_S,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Most voters are lost for good: rebuild the cluster around this node, as a new cluster with it alone in it.

    Run it on the node that is left, which may run or be stopped; of several that are left only the one with the newest
    data takes it, and they are compared while they run. Says what may be lost, and asks for the name of the cluster.
    Members that are only unreachable must be switched off first: what they still accept is lost.
    """  # fmt: skip
    where: Where = ctx.obj
    chosen = node or ("" if data and data != where.data else where.node)
    home, key_file = data or where.data, key or where.key
    try:
        channel = open_channel(home, chosen, key_file)
    except MissingError:
        if chosen or home is None or not home.is_dir():
            raise
        _of_stopped(home.absolute(), yes, gone or [], dry_run=dry_run, as_json=as_json)
        return
    with Admin(channel, lambda text: talk(f"warning: {text}")) as admin:
        found, survivors = _look(admin, key_file, gone or [])
        if not _shown(found, dry_run=dry_run, as_json=as_json):
            return
        cluster = found["outlook"]["cluster"]
        confirm(_warning(found), cluster, yes, always=True)
        again, survivors = _look(admin, key_file, gone or [])  # that took its time
        if again["refusal"] is not None:
            raise error_of(again["refusal"])
        body = {"confirm": cluster, "survivors": survivors, "by": who(), "timeout_ms": int(timeout * 1000)}
        result = admin.request("recover", body, idle_ms=ACTION_IDLE_MS, on_progress=_say)
    put(json.dumps(result, indent=2) + "\n" if as_json else render.change(result))
    _advise(found["outlook"])


def _say(step: Progress) -> None:
    talk(step.text or step.event)


def _of_stopped(data: Path, yes: str, gone: list[str], *, dry_run: bool, as_json: bool) -> None:
    from supervisor import stopped

    by = who()  # before this process becomes that of the owner of the data
    held = stopped.StoppedNode(data)
    try:
        outlook, no = held.look()
        found = stopped.plain(outlook, no)
        refuse_answering(found, gone, answering(found["outlook"]["given_up"]))
        if not _shown(found, dry_run=dry_run, as_json=as_json):
            return
        confirm(_warning(found), found["outlook"]["cluster"], yes, always=True)
        again = stopped.plain(outlook, no)
        refuse_answering(again, gone, answering(again["outlook"]["given_up"]))
        if again["refusal"] is not None:
            raise error_of(again["refusal"])
        held.recover(outlook, by)
    finally:
        held.close()
    name = found["outlook"]["survivor"]
    put(json.dumps({"recovered": name}) + "\n" if as_json else f"recovered: start {name} now, as ever\n")
    _advise(found["outlook"])


def _look(admin: Admin, key: Path | None, gone: list[str]) -> tuple[Look, list[str]]:
    """What would come of it, and who else is left."""
    found = admin.request("recover", {"dry_run": True})
    others = found["outlook"]["given_up"]
    key_file = key or Path(admin.request("events", {"last": 0})["key_file"])
    left = _asked([(row["name"], row["raft"]) for row in others], key_file)
    own = sorted(name for name in left if left[name]["cluster_id"] == found["outlook"]["cluster_id"])
    if own:
        found = admin.request("recover", {"dry_run": True, "survivors": own})
    refuse_better(found, left)
    silent = [row for row in others if row["name"] not in left]
    refuse_answering(found, gone, answering(silent))
    return found, own


def _asked(others: Iterable[tuple[str, str]], key_file: Path) -> dict[str, Look]:
    """The outlooks of those who answer, all asked at once."""
    answered: dict[str, Look] = {}

    def ask(name: str, address: str) -> None:
        try:
            with Admin(open_channel(None, address, key_file)) as admin:
                answered[name] = admin.request("recover", {"dry_run": True}, idle_ms=OTHERS_IDLE_MS)["outlook"]
        except PgrError:
            pass  # it is gone, or says nothing of use; what answers at its address is looked at next

    _all_at_once(ask, others)
    return answered


def _all_at_once(call: Callable[[str, str], None], calls: Iterable[tuple[str, str]]) -> None:
    threads = [threading.Thread(target=call, args=each, daemon=True) for each in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def refuse_better(found: Look, left: Mapping[str, Look]) -> None:
    """Of those who are left the one with the newest data is to go on; and one that belongs to another cluster by now
    has done so. Puts a refusal into ``found``, unless there is one."""
    if found["refusal"] is not None:
        return
    mine = found["outlook"]
    for name, theirs in sorted(left.items()):
        if theirs["cluster_id"] != mine["cluster_id"]:
            why = f"{name} is of the cluster {theirs['cluster']} by now: the cluster was rebuilt there"
            found["refusal"] = _refusal(78, why, "let this node join that one: move its raft directory away, start it")
            return
    leaders = [f"{name} says that {one['leader']} leads" for name, one in sorted(left.items()) if one.get("leader")]
    if leaders:
        hint = "see `pgr explain` there; this node hears nobody: is its consensus port reached by the others?"
        found["refusal"] = _refusal(75, f"the cluster has a leader ({leaders[0]}): no quorum is lost", hint)
        return
    witnesses = {row["name"] for row in mine["given_up"] if row["role"] == WITNESS}
    unknown = sorted(name for name in left if left[name]["position"] is None and name not in witnesses)
    if unknown:
        why = f"how far the data of {unknown[0]} goes is not known"
        hint = f"wait until its Postgres runs (`pgr status`); to do without its data stop {unknown[0]}"
        found["refusal"] = _refusal(75, why, hint)
        return
    best = max(left, key=lambda n: (_position(left[n]), n), default=None)
    if best is not None and (_position(left[best]), best) > (_position(mine), mine["survivor"]):
        at, here = _position(left[best]), _position(mine)
        if at == here and best not in witnesses:  # of two people at two nodes only one is to succeed
            why = f"{best} has the same data, and of equals the last by name goes on"
            found["refusal"] = _refusal(78, why, f"run it on {best}; to do without it stop it first")
        if at == here:
            return
        more = f", {at[1] - here[1]} bytes more" if at[0] == here[0] else f", in epoch {at[0]}, here it is {here[0]}"
        why = f"{best} has newer data{more if here[0] >= 0 else ''}"
        found["refusal"] = _refusal(78, why, f"run it on {best}; to do without its data stop it first")


def _position(outlook: Look) -> tuple[int, int]:
    """Nobody knows: before all others."""
    epoch, lsn = outlook["position"] or (-1, 0)
    return int(epoch), int(lsn)


def _refusal(code: int, error: str, hint: str) -> dict[str, Any]:
    return {"code": code, "error": error, "hint": hint}


def refuse_answering(found: Look, gone: list[str], answers: Mapping[str, str]) -> None:
    """What is only unreachable for some is not lost: it may be primary, and be written to."""
    named = {name: at for name, at in sorted(answers.items()) if name not in gone}
    if not named or found["refusal"] is not None:
        return
    name, at = next(iter(named.items()))
    hint = f"switch it off; if it is left too, have it answer pgr; if that is something else, add `--gone {name}`"
    found["refusal"] = _refusal(78, f"{name} is not gone: something answers at {at}", hint)


def answering(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Of these members those at one of whose addresses somebody takes a connection, and where."""
    answered: dict[str, str] = {}

    def probe(name: str, address: str) -> None:
        try:
            with socket.create_connection(parse_address(address), PROBE_S):
                answered[name] = address
        except (OSError, BadValue):
            pass  # nobody there

    places = [(row["name"], row[kind]) for row in rows for kind in ("raft", "postgres", "http") if row[kind]]
    _all_at_once(probe, places)
    return answered


def _shown(found: Look, *, dry_run: bool, as_json: bool) -> bool:
    """Shows what would come of it; the refusal, if there is one, is raised. False: that was all that was wanted."""
    if dry_run and as_json:
        put(json.dumps(found, indent=2) + "\n")
    elif dry_run:
        put(page(found))
    elif found["refusal"] is None:
        talk(page(found).rstrip())
    if found["refusal"] is not None:
        raise error_of(found["refusal"])
    return not dry_run


def page(found: Look) -> str:
    """What would come of it, for people."""
    outlook = found["outlook"]
    said = "would be refused" if found["refusal"] is not None else f"would be rebuilt around {outlook['survivor']}"
    names = ", ".join(f"{row['name']} ({row['role']})" for row in outlook["given_up"]) or "nobody"
    lines = [f"cluster {outlook['cluster']} {said}", f"given up: {names}"]
    for sentence in outlook["sentences"]:
        lines += textwrap.wrap(f"- {sentence}", PAGE_COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def _warning(found: Look) -> str:
    """What is to be confirmed."""
    outlook = found["outlook"]
    names = ", ".join(row["name"] for row in outlook["given_up"])
    return f"the cluster {outlook['cluster']} ends here, and {names} must never come back as what they were"


def _advise(outlook: Look) -> None:
    names = ", ".join(row["name"] for row in outlook["given_up"])
    talk(f"{names}: whoever comes back is told to stop. To have it in the new cluster move its DIR/raft away, then")
    talk("start it again; a new node: `pgr-supervise --name NEW --join HOST:PORT` of this one, with the cluster key")


