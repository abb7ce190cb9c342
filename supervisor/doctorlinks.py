"""`pgr doctor`: what the members see of each other, and whether the timings of the cluster fit that. Pure.

Every member tells of every other, so a cut of one direction, a bridge and a dead member look different here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from fencing.lease import PROFILES, RHO_PERCENT, Timings
from supervisor.doctorfacts import Case, Link, Node, Said, bad, fine, majority_ms, warn
from supervisor.errors import ExitCode

OFFSET_MS: Final = 500.0
"""Between two wall clocks."""
ELECTION_SHARE: Final = 10
ELECTION_MOST: Final = 2
"""A vote is to take a tenth of E (broadcast time << election timeout, thesis 3.9), and half of it at most."""
DATA_SLOW_MS: Final = 50.0
"""A commit waits for a standby so long at least."""
SERVES: Final = ("running", "streaming")


def members(case: Case) -> Iterator[Said]:
    """Who does not answer, and what the others see of it."""
    for name in case.members:
        if name in case.nodes or not case.running:
            continue
        said = case.silent.get(name, "it was not asked")
        sees = sorted(n for n, node in case.nodes.items() if _answers(node.link(name)))
        if sees:
            hint = f"it is up: {', '.join(sees)} reach{'es' if len(sees) == 1 else ''} it; ask again from there"
            yield bad(name, f"gave no answer to this command: {said}", hint, ExitCode.TRY_AGAIN)
        else:
            hint = "start it, or look at its machine and network; gone for good: pgr member replace"
            what = f"nobody reaches it: {said}" + _seen_by(case, name)
            yield bad(name, what, hint, ExitCode.TRY_AGAIN)
    here = [name for name in case.members if name in case.nodes]
    if case.running and here:
        yield fine("", f"{', '.join(here)} of {', '.join(case.members)} answered")


def _seen_by(case: Case, name: str) -> str:
    words = []
    for n, node in sorted(case.nodes.items()):
        link = node.link(name)
        if link is not None and (problem := link.connect_problem or link.answer_problem):
            words.append(f"{n}: {problem}")
    return f" ({'; '.join(words)})" if words else ""


def _answers(link: Link | None) -> bool:
    return link is not None and link.answer_ms is not None and not link.answer_problem


def control_plane(case: Case) -> Iterator[Said]:
    """Consensus port of everybody from everybody."""
    if not case.running:
        yield from _before(case)
        return
    for name, node in sorted(case.nodes.items()):
        good = []
        for link in node.links:
            if _nobody_reaches(case, link.to):
                continue  # `members` has named it
            if _answers(link):
                good.append(f"{link.to} in {link.answer_ms:.1f} ms")
            elif link.connect_ms is None:
                hint = f"let {name} through to {link.raft} (firewall, route, --advertise of {link.to})"
                what = f"can't reach {link.to} at {link.raft}: {link.connect_problem or link.answer_problem}"
                yield bad(name, what, hint, ExitCode.TRY_AGAIN)
            else:
                hint = f"does {link.to} hang? look at its log; has it the same cluster key?"
                what = f"{link.to} at {link.raft} is connected and does not answer: {link.answer_problem}"
                yield bad(name, what, hint, ExitCode.TRY_AGAIN)
            yield from _unheard(node, link)
        if good:
            yield fine(name, f"reaches {', '.join(good)}")


def _unheard(node: Node, link: Link) -> Iterator[Said]:
    """Consensus itself goes between the leader and the others only."""
    if node.leader not in (node.name, link.to) or not _answers(link):
        return
    if link.heard_ms is None or link.heard_ms > node.timings.election_ms:
        ago = "has never been heard" if link.heard_ms is None else f"was last heard {link.heard_ms} ms ago"
        what = f"{link.to} answers, and its part of consensus {ago} (election timeout: {node.timings.election_ms} ms)"
        hint = f"can {link.to} reach {node.name} too? look for peer.* in both logs"
        yield bad(node.name, what, hint, ExitCode.TRY_AGAIN)


def _before(case: Case) -> Iterator[Said]:
    """The peers need not run yet; that their machines are there can be seen."""
    for name, node in case.nodes.items():
        for link in node.links:
            where = f"{link.to} at {link.raft}"
            if _answers(link):
                yield fine(name, f"{where} answers in {link.answer_ms:.1f} ms")
            elif link.connect_ms is None and link.refused:
                what = f"{where}: its machine is there, and nobody listens at that port yet"
                hint = "start it too: a founding waits for every member of --peers, who joins for a member that runs"
                yield warn(name, what, hint)
            elif link.connect_ms is None:
                hint = f"is the address right, the machine up, and {link.raft} open in the firewall?"
                what = f"{where} is not reached: {link.connect_problem or link.answer_problem}"
                yield bad(name, what, hint, ExitCode.TRY_AGAIN)
            elif link.answer_problem:
                hint = "has it the same cluster key, and is it a pgr of this version?"
                yield warn(name, f"{where} is connected and does not answer: {link.answer_problem}", hint)
            else:
                yield fine(name, f"{where} is reached in {link.connect_ms:.1f} ms")


def _nobody_reaches(case: Case, name: str) -> bool:
    seen = [link for node in case.nodes.values() if (link := node.link(name)) is not None]
    return name not in case.nodes and not any(_answers(link) for link in seen)


def data_plane(case: Case) -> Iterator[Said]:
    """Postgres of everybody from everybody: whoever becomes primary is connected to by all."""
    for name, node in sorted(case.nodes.items()):
        good = []
        for link in node.links:
            if link.postgres_ms is not None:
                good.append(f"{link.to} in {link.postgres_ms:.1f} ms")
            elif link.postgres_problem and case.running and not _nobody_reaches(case, link.to):
                yield from _no_postgres(case, name, link)
            if link.postgres_ms is not None and link.postgres_ms > DATA_SLOW_MS:
                hint = "put members that acknowledge commits near each other; pgr config set sync_acks=..., tags nosync"
                yield warn(name, f"Postgres of {link.to} is {link.postgres_ms:.0f} ms away", hint)
        if good and case.running:
            yield fine(name, f"reaches Postgres of {', '.join(good)}")


def _no_postgres(case: Case, name: str, link: Link) -> Iterator[Said]:
    other = case.nodes.get(link.to)
    if other is not None and other.state not in SERVES:
        what = f"Postgres of {link.to} can't be reached, as it is {other.state}"
        yield warn(name, what, "pgr status has the reason; pgr unfence, pgr resume or pgr reinit, if that is it")
    else:
        what = f"can't reach Postgres of {link.to} at {link.postgres}: {link.postgres_problem}"
        hint = f"let {name} through to {link.postgres} (firewall, route, --pg-listen and --pg-advertise of {link.to})"
        yield bad(name, what, hint, ExitCode.TRY_AGAIN)


def sessions(case: Case) -> Iterator[Said]:
    """Replication and rewind, done: what pg_hba.conf, the passwords, the roles and the slots of connections allow."""
    for name, node in sorted(case.nodes.items()):
        good = []
        for link in node.links:
            problems = (("replication", link.replication_problem), ("rewind", link.rewind_problem))
            if link.postgres_ms is None:
                continue  # `data plane` has said so
            for kind, problem in problems:
                if problem:
                    hint = (
                        f"pgr writes the rules and makes the role for it: pgr reload {link.to}; if that does not help, "
                        f"what Postgres of {link.to} has logged about it tells more"
                    )
                    what = f"{link.to} does not take {kind} sessions: {' '.join(problem.split())}"
                    yield bad(name, what, hint, ExitCode.MISSING)
            wrong = node.system_identifier and link.system_identifier not in ("", node.system_identifier)
            if wrong:
                what = f"at {link.postgres} is Postgres of another cluster ({link.system_identifier}), not {link.to}"
                hint = f"correct --pg-port or --pg-advertise of {link.to}, or stop what listens there"
                yield bad(name, what, hint, ExitCode.REFUSED)
            if link.replication_ms is not None and link.rewind_ms is not None and not wrong:
                good.append(link.to)
        if good:
            yield fine(name, f"replication and rewind are let in by {', '.join(good)}")


def clocks(case: Case) -> Iterator[Said]:
    """Pair by pair, by whoever of the two has measured it better."""
    good = 0.0
    pairs = 0
    for one, other, link in _pairs(case):
        offset = link.offset_ms or 0.0
        pairs += 1
        good = max(good, abs(offset))
        if abs(offset) - link.offset_error_ms > OFFSET_MS:
            ahead, behind = (other, one) if offset > 0 else (one, other)
            what = f"its clock is {abs(offset) / 1000:.1f} s ahead of that of {behind}"
            yield warn(ahead, what, f"let NTP keep the clocks of {behind} and {ahead} (chronyc tracking, timedatectl)")
        if link.drift_percent is not None and abs(link.drift_percent) - link.drift_error_percent > RHO_PERCENT:
            what = (
                f"its clock goes {abs(link.drift_percent):.1f} % {'faster' if link.drift_percent > 0 else 'slower'} "
                f"than that of {one}: leases are safe up to {RHO_PERCENT} %"
            )
            hint = "look after the clock source of that (virtual) machine; until then it must not be a member"
            yield bad(other, what, hint, ExitCode.REFUSED)
    if pairs and good <= OFFSET_MS:
        yield fine("", f"the clocks are {good:.0f} ms apart at most, and none drifts")


def _pairs(case: Case) -> Iterator[tuple[str, str, Link]]:
    done: set[frozenset[str]] = set()
    for name, node in sorted(case.nodes.items()):
        for link in node.links:
            if link.offset_ms is None or frozenset((name, link.to)) in done:
                continue
            done.add(frozenset((name, link.to)))
            yield name, link.to, link


def versions(case: Case) -> Iterator[Said]:
    postgres = {n: node.programs for n, node in sorted(case.nodes.items()) if node.programs is not None}
    majors = {p.major for p in postgres.values()}
    exact = {p.version for p in postgres.values()}
    told = ", ".join(f"{n}: {p.version}" for n, p in postgres.items())
    if len(majors) > 1:
        hint = "give all members the same major version: --pg-bin"
        yield bad("", f"major versions of Postgres differ: {told}", hint, ExitCode.MISSING)
    elif len(exact) > 1:
        yield warn("", f"minor versions of Postgres differ: {told}", "update the others soon: pgr restart --pending")
    pgr = {n: node.pgr_version for n, node in sorted(case.nodes.items()) if node.pgr_version}
    if len(set(pgr.values())) > 1:
        what = f"versions of pgr differ: {', '.join(f'{n}: {v}' for n, v in pgr.items())}"
        yield warn("", what, "update the others: a node speaks its version and the one before")
    elif pgr and len(exact) <= 1:
        says = f"pgr {next(iter(pgr.values()))}" + (f", PostgreSQL {next(iter(exact))}" if exact else "")
        yield fine("", says if len(case.nodes) == 1 else f"{says} on {', '.join(sorted(case.nodes))}")


def libraries(case: Case) -> Iterator[Said]:
    """glibc of the members. What it does to a database that depends on it is in `collation`, node by node."""
    found = {n: node.limits.glibc for n, node in sorted(case.nodes.items()) if node.limits and not node.witness}
    if len(set(found.values())) < 2:
        return
    told = ", ".join(f"{n}: {version or 'another C library'}" for n, version in found.items())
    depends = any(d.provider == "c" and d.actual for n in case.nodes.values() if n.server for d in n.server.databases)
    hint = "give all members the same release of the system, or databases that sort by C or the builtin provider"
    if depends:
        yield warn("", f"glibc differs: {told}; databases sort by it", hint)
    else:
        yield fine("", f"glibc differs: {told}; no database sorts by it")


OVERRIDES: Final = "synchronous_commit is set lower"
"""Begins the warning that `commits` tells, by role and with the remedy."""


def status(case: Case) -> Iterator[Said]:
    if not case.running:
        return
    found = dict.fromkeys(text for _, node in sorted(case.nodes.items()) for text in node.warnings)
    told = [text for text in found if not text.startswith(OVERRIDES)]
    for text in told:
        yield warn("", text, "pgr explain says why, and what to do")
    if not told:
        yield fine("", "no warning of pgr status but those above" if found else "pgr status has no warning")


def lease(case: Case) -> Iterator[Said]:
    """safety.md's inequality, and what was measured against H, the demotion and E: for each node as the leader."""
    for name, node in sorted(case.nodes.items()):
        t = node.timings
        for problem in t.problems():
            hint = "`pgr config set profile=default`, or fast, or cloud"
            yield bad(name, f"the timings are not safe: {problem}", hint, ExitCode.REFUSED)
        if not t.problems() and case.votes(name):
            yield from _fits(case, name, node)


def _fits(case: Case, name: str, node: Node) -> Iterator[Said]:
    t = node.timings
    raft = next((p.sync_ms for p in node.places if p.role == "raft" and p.sync_ms), ())
    typical, worst = (sorted(raft)[len(raft) // 2], max(raft)) if raft else (0.0, 0.0)
    answers = [link.answer_ms for link in node.links if link.answer_ms is not None and case.votes(link.to)]
    round_ms = majority_ms(answers, sum(case.votes(member) for member in case.members))
    if round_ms is None:
        if case.running:
            hint = "the lease ends when no majority answers; see `control plane`"
            yield bad(name, "does not reach a majority: it can't keep a lease", hint, ExitCode.TRY_AGAIN)
        round_ms = 0.0
    fitting = _profile_for(round_ms, worst)
    how = f"`pgr config set profile={fitting}`" if case.running else f"found the cluster with `--profile {fitting}`"
    better = how if fitting else "no profile is slow enough"
    hint = f"{better}; or a quicker network, or a quicker disk for {name}'s raft directory"
    vote_ms, likely_ms = round_ms + 2 * worst, round_ms + 2 * typical
    measured = ", ".join([f"a majority answers in {round_ms:.1f} ms"] * bool(answers) + [_disk(typical, worst)])
    if round_ms + t.heartbeat_ms >= t.demote_ms:
        what = f"{measured}: a lease is not renewed before the demotion begins ({t.demote_ms} ms after a round)"
        yield bad(name, what, hint, ExitCode.USAGE)
    elif likely_ms * ELECTION_MOST > t.election_ms:
        what = f"{measured}: a vote takes {likely_ms:.0f} ms, and the election timeout is {t.election_ms} ms"
        yield bad(name, what, hint, ExitCode.USAGE)
    elif round_ms > t.heartbeat_ms:
        yield warn(name, f"{measured}: rounds overlap (heartbeat {t.heartbeat_ms} ms)", hint)
    elif vote_ms * ELECTION_SHARE > t.election_ms:
        what = f"{measured}: a vote may take {vote_ms:.0f} ms of an election timeout of {t.election_ms} ms"
        yield warn(name, what, hint)
    else:
        low, high = lease_sides(t)
        says = f"{measured}; L/(1-rho)+F = {low:.0f} ms <= E/(1+rho) = {high:.0f} ms, demotion after {t.demote_ms} ms"
        yield fine(name, says)


def _disk(typical: float, worst: float) -> str:
    return f"raft is on disk in {typical:.1f} ms ({worst:.1f} at worst)"


def lease_sides(t: Timings) -> tuple[float, float]:
    """Both sides of the inequality, in ms."""
    rho = RHO_PERCENT / 100
    return t.lease_ms / (1 - rho) + t.kill_bound_ms, t.election_ms / (1 + rho)


def _profile_for(round_ms: float, sync_ms: float) -> str:
    """The quickest profile that what was measured fits into with room to spare; empty: none."""
    fits: Mapping[str, bool] = {
        name: round_ms <= t.heartbeat_ms and (round_ms + 2 * sync_ms) * ELECTION_SHARE <= t.election_ms
        for name, t in PROFILES.items()
    }
    return next((name for name in fits if fits[name]), "")
