"""Tables for people: plain text, narrow, readable without colour. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from supervisor import operating
from supervisor.status import Member, Snapshot, lsn_text

BOLD, RED, YELLOW, OFF = "\x1b[1m", "\x1b[31m", "\x1b[33m", "\x1b[0m"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> list[str]:
    """Lines of columns two spaces apart, those in ``right`` aligned to the right; an empty cell shows as ``-``."""
    cells = [list(header)] + [[cell or "-" for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    align = [str.rjust if i in right else str.ljust for i in range(len(header))]
    return ["  ".join(align[i](cell, widths[i]) for i, cell in enumerate(row)).rstrip() for row in cells]


def size(count: int | None) -> str:
    """``0 B``, ``12 kB``, ``3.4 MB`` (1 kB = 1024 B, as Postgres counts)."""
    if count is None:
        return ""
    value, unit = float(count), "B"
    for bigger in ("kB", "MB", "GB", "TB"):
        if value < 1024:
            break
        value, unit = value / 1024, bigger
    return f"{value:.1f} {unit}" if unit != "B" and value < 10 else f"{value:.0f} {unit}"


def duration(ms: int | float | None) -> str:
    """``640 ms`` below ten seconds, else ``12.3 s``, ``4 min``, ``3 h``, ``2 d``."""
    if ms is None:
        return ""
    for limit, unit, divisor in ((10_000, "ms", 1), (120_000, "s", 1000), (7_200_000, "min", 60_000)):
        if ms < limit:
            return f"{ms / divisor:.1f} s" if unit == "s" else f"{ms / divisor:.0f} {unit}"
    return f"{ms / 3_600_000:.0f} h" if ms < 172_800_000 else f"{ms / 86_400_000:.0f} d"


def _lag(member: Member) -> str:
    if member.lag_bytes is None or member.role == "primary":
        return ""
    return size(member.lag_bytes) + ("" if member.lag_s is None else f", {duration(member.lag_s * 1000)}")


def _lease(snapshot: Snapshot, member: Member, left_ms: int) -> str:
    """Of the node that tells. What another one says of its lease is older than it looks: a message may have been under
    way, or lain unread, for as long as the lease lasts."""
    return duration(left_ms) if left_ms and member.name == snapshot.node and member.role == "primary" else ""


def _notes(member: Member) -> str:
    notes = [aim_text(member.member, member.aim)] if member.aim else []
    notes += ["fenced"] * member.fenced
    notes += ["pending restart"] * member.pending_restart
    notes += ["not heard of"] * (not member.connected)
    notes += [f"streams from {member.upstream}"] if member.upstream else []
    notes += [name if value is True else f"{name}={value}" for name, value in member.tags.items() if value is not False]
    return ", ".join(notes)


def aim_text(role: str, aim: str) -> str:
    """What a member of this role is to become, in words; empty: nothing else."""
    if not aim:
        return ""
    if aim == "gone":
        return "leaving"
    if aim.startswith("gone:"):
        return f"to be replaced by {aim.partition(':')[2]}"
    return "joining" if role == "learner" else f"to be a {aim}"


def _headline(snapshot: Snapshot) -> str:
    group = snapshot.sync_group
    commit = snapshot.commit
    if group.members:
        commit += f" {group.k} of {', '.join(group.members)}"
    if snapshot.next_group is not None:
        commit += f" -> {snapshot.next_group.k} of {', '.join(snapshot.next_group.members)}"
    parts = [f"cluster {snapshot.cluster_id[:8] or '?'}", f"term {snapshot.term}"]
    parts += [f"leader {snapshot.leader or 'none'}", f"commit {commit}", f"profile {snapshot.profile}"]
    return "   ".join(parts)


COLUMNS = ("NAME", "ROLE", "STATE", "TL", "LSN", "LAG", "SYNC", "LEASE", "NOTES")
NUMBERS, IF_ANY = ("TL", "LSN", "LAG", "LEASE"), ("LEASE", "NOTES")


def status(snapshot: Snapshot, left_ms: int, colour: bool = False) -> str:
    """The page of ``pgr status``; ``left_ms``: what is left of this node's own lease."""
    rows = []
    for m in snapshot.members:
        cells = [m.name, m.role, m.state, str(m.timeline or ""), lsn_text(m.lsn) or "", _lag(m), m.sync]
        rows.append([*cells, _lease(snapshot, m, left_ms), _notes(m)])
    shown = [i for i, name in enumerate(COLUMNS) if name not in IF_ANY or any(row[i] for row in rows)]
    right = [at for at, i in enumerate(shown) if COLUMNS[i] in NUMBERS]
    lines = table([COLUMNS[i] for i in shown], [[row[i] for i in shown] for row in rows], right)
    if colour:
        for i, m in enumerate(snapshot.members, 1):
            style = BOLD if m.role == "primary" else "" if m.connected else RED
            lines[i] = f"{style}{lines[i]}{OFF}" if style else lines[i]
    reasons = [f"{m.name}: {m.reason}" for m in snapshot.members if m.reason]
    reasons += [f"{m.name}: waits for a restart: {m.pending}" for m in snapshot.members if m.pending]
    reasons += [f"{m.name}: no seat in the sync group: `{m.unseated}`" for m in snapshot.members if m.unseated]
    hardware = snapshot.scheduling.get("hardware watchdog", "off")
    reasons += [f"{snapshot.node}: hardware watchdog {hardware}"] * hardware.startswith("/")
    mark, off = (YELLOW, OFF) if colour else ("", "")
    own = f"{snapshot.node}: {snapshot.explanation}"
    blocks = [
        [_headline(snapshot)],
        lines if rows else ["no members known yet"],
        reasons,
        operating.lines(snapshot),
        [f"{mark}warning:{off} {text}" for text in snapshot.warnings],
        [own] * bool(snapshot.explanation and own not in reasons),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def members(rows: Sequence[Mapping[str, object]]) -> str:
    """The page of ``pgr member list``, from status.member_rows."""
    if not rows:
        return "no members known yet\n"
    shown = []
    for row in rows:
        aim = aim_text(str(row["role"]), str(row["aim"]))
        seat = "yes" if row["seat"] else "no"
        cells = [row["name"], row["role"], aim, seat, row["state"], row["raft"], row["postgres"], row["http"]]
        shown.append([str(cell) for cell in cells])
    header = ["NAME", "ROLE", "AIM", "SYNC GROUP", "STATE", "CONSENSUS", "POSTGRES", "HTTP"]
    return "\n".join(table(header, shown)) + "\n"


def member_changed(request: str, result: Mapping[str, object]) -> str:
    """The last line of a change of the members or of one node, from the result of the node's answer."""
    role = result.get("role")
    done = {"fence": "fenced, its Postgres is down", "unfence": "fenced no more", "reinit": "has its new copy"}
    return f"{result.get('name')}: {done.get(request) or ('no member any more' if role == 'gone' else role)}\n"


def explanation(body: Mapping[str, Any]) -> str:
    """The page of ``pgr explain``, from explain.to_json."""
    reign, election, overruled = body["reign"], body["election"], body["overruled"]
    blocks = [[body["headline"], f"({body['source']})"]]
    if reign is not None:
        blocks[0].insert(1, f"since {reign['since']}: {reign['name']} {reign['why']}")
        blocks[0][2:2] = [f"before: {line}" for line in reign["before"]]
        blocks[0][2:2] = [f"it ended: {reign['ended']}"] * bool(reign["ended"])
    blocks.append([f"{body['node']}: {body['explanation']}"] * bool(body["explanation"]))
    if election is not None:
        blocks.append(_election(election, body["assumed_lost"]))
    if overruled is not None and overruled["winners"]:
        blocks.append([f"with data loss accepted {' or '.join(overruled['winners'])} would win; {_loss(overruled)}"])
    blocks.append(list(body["trouble"]))
    blocks.append([f"warning: {text}" for text in body["warnings"]])
    blocks.append([f"hint: {text}" for text in body["hints"]])
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def dry_run(name: str, body: Mapping[str, Any]) -> str:
    """The page of ``pgr switchover --dry-run`` and ``pgr failover --dry-run``."""
    if body["refusal"] is not None:
        said = f"{name} would be refused"
    else:
        said = f"{name} would move the primary from {body['from'] or 'nobody'} to {body['to'] or 'the best'}"
    lines = [f"{said}; nothing was changed", "", *_election(body["forecast"], "")]
    return "\n".join(lines) + "\n"


def _election(election: Mapping[str, Any], lost: str) -> list[str]:
    """Who would win and why each other would not, and what is lost."""
    when = f"if {lost} were lost now" if lost else "as things are"
    winners = " or ".join(election["winners"])
    verdict = f"{winners} would win an election" if winners else "nobody would win an election"
    rows = []
    for row in election["candidates"]:
        at = f"{row['position']['epoch']}:{row['position']['lsn']}" if row["position"] else ""
        heard = "" if row["age_ms"] is None or row["up"] else f"{duration(row['age_ms'])} ago"
        rows.append([row["name"], at, size(row["behind_bytes"]), heard, row["why"]])
    header = ["NAME", "EPOCH:LSN", "BEHIND", "HEARD", "VERDICT"]
    lines = [f"{when} {verdict}: {election['reason']}", *table(header, rows, right=(2,))]
    return [*lines, _loss(election)] if winners else lines


def _loss(election: Mapping[str, Any]) -> str:
    known = size(election["lost_bytes"])
    if election["acknowledged"]:
        return f"acknowledged commits may be lost: {known} of WAL that is known of, and whatever nobody here knows of"
    if not election["lost_bytes"]:
        return "nothing is lost that is known of, and no acknowledged commit"
    return f"no acknowledged commit is lost; {known} of WAL that nobody was told to be committed is"


def change(result: dict[str, object]) -> str:
    """The last line of a switchover or failover, from the result of the node's answer."""
    gap = result.get("gap_ms")
    gap_text = f", write gap: {duration(gap)}" if isinstance(gap, int | float) else ""
    return f"primary: {result.get('from') or 'none'} -> {result.get('to') or 'none'}{gap_text}\n"
