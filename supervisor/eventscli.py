"""``pgr history`` and ``pgr events``. cli.py imports this, so its parts are reached when a command runs."""

from __future__ import annotations

import json
import queue
import shutil
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from supervisor import events as records
from supervisor import reigns
from supervisor.admin import Admin, Progress, open_channel
from supervisor.clioptions import (
    DataOption,
    JsonOption,
    KeyOption,
    NodeOption,
    admin_of,
    on_terminal,
    put,
    talk,
)
from supervisor.errors import PgrError, UsageError
from supervisor.events import Record
from supervisor.status import event_from_json

if TYPE_CHECKING:
    pass

LAST = 50
OTHERS_IDLE_MS = 3_000
"""With --all: a member that says nothing for this long is left out, and named."""


def history(
    ctx: typer.Context,
    *,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """Every change of primary, newest last: when, who, why, what came before, the write gap, WAL salvaged.

    The write gap is what the new primary measured, from the last moment at which the old one could acknowledge to the
    opening; clients take longer, as they have to connect again. `--json`: the entries of the log this is told from.
    """
    with admin_of(ctx, data, node, key) as admin:
        events = admin.request("history", {}).get("history", [])
    if as_json:
        put(json.dumps(events, indent=2) + "\n")
    else:
        put(reigns.page([event_from_json(event) for event in events]))


def events(
    ctx: typer.Context,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with each new one, until Ctrl-C.")] = False,
    everywhere: Annotated[bool, typer.Option("--all", "-a", help="Ask every member, not this node alone.")] = False,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="10min, 2h, 1d, or an ISO 8601 time.", show_default=False)
    ] = "",
    last: Annotated[
        int | None, typer.Option("--last", "-n", metavar="N", min=0, help="So many; default: 50, with --since all.")
    ] = None,
    as_json: JsonOption = False,
    data: DataOption = None,
    node: NodeOption = "",
    key: KeyOption = None,
) -> None:
    """What happened: to this node, and in the cluster as its log has it; oldest first. `--json`: a line each.

    Times are those of the clocks of the nodes. What is kept is bounded, and outlives the node's process.
    """
    try:
        begin = records.since(since, datetime.now().astimezone()) if since else ""
    except ValueError:
        hint = "for example 10min, 2h, 1d, or 2026-11-26T03:00 (local time), 2026-11-26T03:00Z"
        raise UsageError(f"`--since {since}` is no time", hint) from None
    count = last if last is not None else None if since else LAST
    asked = {"since": begin, "last": count}
    with admin_of(ctx, data, node, key) as admin:
        if follow:
            _follow(admin, asked, everywhere, key, as_json)
            return
        found, told = _fetch(admin, asked)
    if everywhere:
        found += _others(told, asked, key)
    found = records.merged(found)
    _show(found[-count:] if count else found if count is None else [], as_json)


def _fetch(admin: Admin, asked: dict[str, Any], idle_ms: int = 5_000) -> tuple[list[Record], dict[str, Any]]:
    """The records, and the answer, which says where the others are."""
    found: list[Record] = []

    def take(step: Progress) -> None:
        if step.event == "events":
            found.extend(step.fields["events"])

    told = admin.request("events", asked, idle_ms=idle_ms, on_progress=take)
    return found, told


def _others(told: dict[str, Any], asked: dict[str, Any], key: Path | None) -> list[Record]:
    """Of every other member, all at once."""
    results: dict[str, list[Record] | PgrError] = {}

    def ask(name: str, address: str) -> None:
        try:
            with Admin(open_channel(None, address, key or Path(told["key_file"]))) as admin:
                results[name] = _fetch(admin, asked, OTHERS_IDLE_MS)[0]
        except PgrError as error:
            results[name] = error

    others = {name: address for name, address in told["members"].items() if name != told["node"]}
    threads = [threading.Thread(target=ask, args=other, daemon=True) for other in others.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found: list[Record] = []
    for name, result in sorted(results.items()):
        if isinstance(result, PgrError):
            talk(f"warning: {name} could not be asked: {result.message}")
        else:
            found += result
    return found


def _follow(admin: Admin, asked: dict[str, Any], everywhere: bool, key: Path | None, as_json: bool) -> None:
    """Of one node until it stops; of all until Ctrl-C. In one batch by time, from then on as it comes."""
    seen: set[tuple[str, str, str, str]] = set()
    width = 0
    for batch in _everybody(admin, asked, key) if everywhere else Tail(asked).read(admin):
        fresh = []
        for record in records.merged(batch):
            entry = records.identity(record)
            if record["scope"] == "cluster" and entry in seen:
                continue
            seen.add(entry)
            fresh.append(record)
        width = max([width, *(len(str(r["node"])) for r in fresh)])
        _show(fresh, as_json, width)


class Tail:
    """What one node records, over any number of conversations: nothing twice, nothing left out."""

    def __init__(self, asked: dict[str, Any]) -> None:
        self.asked, self.newest = asked, 0

    def read(self, admin: Admin) -> Iterator[list[Record]]:
        """For ever; an empty batch when the node has said that it is there."""
        for fields in admin.stream("events", self._body, "events"):
            fresh = [r for r in fields["events"] if int(r["seq"]) > self.newest]
            self.newest = max([self.newest, *(int(r["seq"]) for r in fresh)])
            yield fresh

    def _body(self) -> dict[str, Any]:
        return {"follow": True} | ({"after": self.newest} if self.newest else self.asked)


AGAIN_S = 2.0
"""Before a member that was lost is called again."""


def _everybody(admin: Admin, asked: dict[str, Any], key: Path | None) -> Iterator[list[Record]]:
    """Each member in a thread of its own; who is lost is named once and called again."""
    told = admin.request("events", {"last": 0})
    key_file = key or Path(told["key_file"])
    arrived: queue.SimpleQueue[tuple[str, list[Record] | PgrError]] = queue.SimpleQueue()

    def listen(name: str, address: str) -> None:
        tail, pause = Tail(asked), threading.Event()
        while True:
            try:
                with Admin(open_channel(None, address, key_file)) as member:
                    for batch in tail.read(member):
                        arrived.put((name, batch))
            except PgrError as error:
                arrived.put((name, error))
            pause.wait(AGAIN_S)

    for name, address in told["members"].items():
        threading.Thread(target=listen, args=(name, address), daemon=True).start()
    lost: set[str] = set()
    while True:
        name, item = arrived.get()
        if not isinstance(item, PgrError):
            if name in lost:
                lost.discard(name)
                talk(f"{name} is heard again")
            yield item
        elif name not in lost:
            lost.add(name)
            talk(f"warning: {name} is not heard: {item.message}")


def _show(found: list[Record], as_json: bool, name_width: int = 0) -> None:
    if as_json:
        put("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in found))
        return
    put("".join(f"{line}\n" for line in records.lines(found, _width(), name_width)))


def _width() -> int:
    """Of the terminal; 0: there is none, and then nothing is wrapped."""
    return shutil.get_terminal_size().columns if on_terminal() else 0
