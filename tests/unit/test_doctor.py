"""`pgr doctor`: every check with what is well and with what is not; the page, the JSON, the exit code."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest

from fencing.lease import PROFILES, Timings
from supervisor import doctor, doctorlinks, doctornode, render
from supervisor.doctorfacts import (
    Case,
    Database,
    Failure,
    Limits,
    Link,
    Node,
    Place,
    Programs,
    Server,
    Severity,
    majority_ms,
    read,
    to_json,
)

OK, WARNING, ERROR = Severity.OK, Severity.WARNING, Severity.ERROR
GB = 1 << 30
NAMES = ("a", "b", "c")


def link(to: str, **changes: Any) -> Link:
    known = Link(
        to, f"10.0.0.{ord(to) - 96}:7400", f"10.0.0.{ord(to) - 96}:5432", answer_ms=1.5, heard_ms=40,
        offset_ms=3.0, offset_error_ms=0.8, drift_percent=0.001, drift_error_percent=0.1, postgres_ms=0.2,
        replication_ms=8.0, system_identifier="7300", rewind_ms=9.0,
    )  # fmt: skip
    return replace(known, **changes)


PLACES = tuple(
    Place(role, f"/d/{role}", f"/d/{role}", 50 * GB, 100 * GB, 1_000_000, (0.4, 0.5, 0.9), "ext4")
    for role in ("raft", "pg_wal", "pgdata")
)
SERVER = Server(
    {"wal_log_hints": "on", "data_checksums": "on", "dynamic_shared_memory_type": "posix", "max_connections": "100"},
    (Database("postgres", "c", "2.36", "2.36"), Database("template1", "b", "", "")), 3 * GB,
)  # fmt: skip


def node(name: str = "a", **changes: Any) -> Node:
    known = Node(
        name, role="primary" if name == "a" else "replica", state="running" if name == "a" else "streaming", leader="a",
        loopback=False, pgr_version="0.1.0", scheduling={"raft": "SCHED_RR", "watchdog": "SCHED_RR",
        "hardware watchdog": "off"}, guarded=True, system_identifier="7300", has_data=True,
        rewindable=("checksums", "wal_log_hints"), programs=Programs("/pg/bin", "18.6", 18, False, True, True, True),
        limits=Limits(1 << 20, -1, "", 8 * GB, "", "2.36"), server=SERVER, places=PLACES,
        links=tuple(link(other) for other in NAMES if other != name),
    )  # fmt: skip
    return replace(known, **changes)


def three(**changed: Node) -> Case:
    return Case({name: changed.get(name, node(name)) for name in NAMES}, {}, NAMES)


def without(name: str, reason: str = "no answer", **changed: Node) -> Case:
    """``name`` answers neither this command nor, unless changed, the others."""
    dead = {"answer_problem": "x", "answer_ms": None, "connect_problem": "no answer within 1.5 s", "postgres_ms": None,
            "postgres_problem": "no answer within 1.5 s", "offset_ms": None, "drift_percent": None}  # fmt: skip
    nodes = {n: changed.get(n, relinked(node(n), name, **dead)) for n in NAMES if n != name}
    return Case(nodes, {name: reason}, NAMES)


def relinked(one: Node, to: str, **changes: Any) -> Node:
    return replace(one, links=tuple(replace(each, **changes) if each.to == to else each for each in one.links))


def alone(**changes: Any) -> Case:
    """A node that is to be started."""
    fresh = node(
        running=False, server=None, links=(link("b"), link("c")), rewindable=None, has_data=False, scheduling={},
        limits=Limits(1 << 20, -1, "SCHED_RR", 8 * GB, "", "2.36"), guarded=None, role="", state="", leader="",
        addresses=("10.0.0.1:7400",),
    )  # fmt: skip
    return Case({"a": replace(fresh, **changes)}, {}, NAMES)


def found(case: Case, check: str) -> list[doctor.Finding]:
    return [f for f in doctor.examine(case) if f.check == check]


def worst(case: Case, check: str) -> doctor.Finding:
    order = (OK, WARNING, ERROR)
    return max(found(case, check), key=lambda f: order.index(f.severity))


@pytest.mark.parametrize("case", [three(), alone()], ids=["after", "before"])
def test_where_all_is_well_every_check_says_what_it_has_seen(case: Case) -> None:
    findings = doctor.examine(case)
    assert [f for f in findings if f.severity is not OK] == []
    when = "after" if case.running else "before"
    quiet = {c.name for c in doctor.CHECKS if when in c.when} - {f.check for f in findings}
    assert quiet == ({"libraries", "unmeasured"} if case.running else {"unmeasured"}), "they speak of differences only"
    assert doctor.exit_code(findings) == 0


def place(role: str, **changes: Any) -> tuple[Place, ...]:
    return tuple(replace(p, **changes) if p.role == role else p for p in PLACES)


def asked(**settings: str) -> Server:
    return replace(SERVER, settings={**SERVER.settings, **settings})


def database(provider: str, recorded: str, actual: str) -> Server:
    return replace(SERVER, databases=(Database("app", provider, recorded, actual),))


def scheduled(**changes: str) -> dict[str, str]:
    return {"raft": "SCHED_RR", "watchdog": "SCHED_RR", "hardware watchdog": "off"} | changes


NODE_RULES: list[tuple[str, dict[str, Any], Severity, str]] = [
    ("binaries", {"programs": Programs("/e/bin", "18.0", 18, True, False, False, True)}, WARNING, "no TLS and no ICU"),
    ("binaries", {"programs": Programs("/e/bin", "18.0", 18, True, False, False, True), "loopback": True}, OK, "18.0"),
    ("binaries", {"programs": Programs("/e/bin", "18.0", 18, False, True, True, False)}, WARNING, "lacks pg_waldump"),
    ("binaries", {"programs": None, "failures": (Failure("binaries", "none", "install", 69),)}, ERROR, "none"),
    ("postgres", {"server": None, "server_problem": "too many clients"}, ERROR, "too many clients"),
    ("postgres", {"server": None, "state": "stopped"}, WARNING, "does not run: stopped"),
    ("rewind", {"rewindable": ()}, ERROR, "neither"),
    ("rewind", {"rewindable": ("wal_log_hints",)}, OK, "wal_log_hints on (no checksums"),
    ("rewind", {"rewindable": ("checksums",)}, OK, "checksums on"),
    ("hba", {"server": replace(SERVER, hba_errors=("line 9: invalid",))}, ERROR, "line 9: invalid"),
    ("hba", {"server": replace(SERVER, hba_trust=("line 8: host from all trust",))}, WARNING, "anybody may log in"),
    ("disk", {"places": place("raft", late=True)}, ERROR, "gives no answer"),
    ("disk", {"places": place("raft", problem="/d/raft: Read-only file system", disk=True)}, ERROR, "Read-only"),
    ("disk", {"places": place("raft", problem="/d/raft: Permission denied")}, ERROR, "Permission denied"),
    ("disk", {"places": place("pg_wal", free_bytes=doctornode.FREE_LEAST_BYTES - 1)}, ERROR, "only 64 MB"),
    ("disk", {"places": place("pg_wal", free_bytes=doctornode.FREE_WAL_BYTES - 1)}, WARNING, "hold back"),
    ("disk", {"places": place("pg_wal", free_bytes=doctornode.FREE_WAL_BYTES)}, OK, "4.0 GB"),
    ("disk", {"places": place("raft", free_bytes=doctornode.FREE_RAFT_BYTES - 1)}, WARNING, "compacted"),
    ("disk", {"places": place("pgdata", free_bytes=3 * GB - 1)}, WARNING, "a new copy"),
    ("disk", {"places": place("pgdata", free_bytes=3 * GB)}, OK, "3.0 GB"),
    ("disk", {"places": place("pgdata", free_inodes=999)}, ERROR, "only 999 files"),
    ("disk", {"places": place("pgdata", free_inodes=None)}, OK, "pgdata"),
    ("disk", {"places": place("raft", file_system="tmpfs")}, WARNING, "lies in memory"),
    ("disk", {"places": place("pgdata", file_system="nfs4")}, WARNING, "another machine"),
    ("disk", {"places": place("pgdata", file_system="overlay")}, WARNING, "layer of a container"),
    ("disk", {"places": place("pgdata", mount_point=True)}, WARNING, "is a mount point"),
    ("disk", {"places": place("pg_wal", mount_point=True)}, OK, "pg_wal"),
    ("sync time", {"places": place("pg_wal", sync_ms=(1.0, 20.1, 90.0))}, WARNING, "20.1 ms typically, 90.0 ms"),
    ("sync time", {"places": place("pg_wal", sync_ms=(1.0, 20.0, 90.0))}, OK, "20.0 ms typically"),
    ("limits", {"limits": Limits(255, -1, "", 8 * GB)}, ERROR, "255 files"),
    ("limits", {"limits": Limits(1023, -1, "", 8 * GB)}, WARNING, "1023 files"),
    ("limits", {"limits": Limits(-1, 149, "", 8 * GB)}, WARNING, "149 processes"),
    ("limits", {"limits": Limits(-1, 150, "", 8 * GB)}, OK, "files: no limit, processes: 150"),
    ("limits", {"limits": Limits(-1, 63, "", 8 * GB)}, ERROR, "63 processes"),
    ("real time", {"scheduling": scheduled(watchdog="nice -5")}, WARNING, "watchdog: nice -5, not SCHED_RR"),
    ("watchdog", {"guarded": False}, ERROR, "no watchdog process"),
    ("watchdog", {"guarded": None, "server": None}, OK, "hardware: off"),
    ("watchdog", {"scheduling": scheduled(**{"hardware watchdog": "/dev/watchdog, 1 s, armed"})}, OK, "armed"),
    ("watchdog", {"scheduling": scheduled(**{"hardware watchdog": "/dev/watchdog, 1 s, ready"})}, ERROR, "is primary"),
    (
        "watchdog",
        {"scheduling": scheduled(**{"hardware watchdog": "/dev/watchdog, 1 s, ready"}), "role": "replica"},
        OK, "ready",
    ),
    (
        "watchdog",
        {"scheduling": scheduled(**{"hardware watchdog": "not used: can not be opened: No such file or directory"})},
        OK, "none on this machine",
    ),
    (
        "watchdog",
        {"scheduling": scheduled(**{"hardware watchdog": "not used: can not be opened: Permission denied"})},
        WARNING, "Permission denied",
    ),
    (
        "watchdog",
        {"scheduling": scheduled(**{"hardware watchdog": "not used: No such file"}), "watchdog_mode": "required"},
        ERROR, "is required",
    ),
    ("shared memory", {"limits": Limits(-1, -1, "", 64 << 20)}, WARNING, "64 MB"),
    ("shared memory", {"limits": Limits(-1, -1, "", None, "it is not there")}, ERROR, "it is not there"),
    (
        "shared memory",
        {"limits": Limits(-1, -1, "", None), "server": asked(dynamic_shared_memory_type="sysv")},
        OK, "sysv",
    ),
    ("shared memory", {"server": asked(dynamic_shared_memory_type="mmap")}, WARNING, "is mmap"),
    ("collation", {"server": database("c", "2.27", "2.36")}, ERROR, "indexes on text are wrong"),
    ("collation", {"server": database("c", "2.31", "2.36")}, WARNING, "glibc 2.31 by its catalogue"),
    ("collation", {"server": database("i", "72.1", "76.1")}, WARNING, "ICU 72.1"),
    ("collation", {"server": database("c", "", "2.36")}, OK, "sort by 2.36"),
    ("collation", {"server": database("b", "", "")}, OK, "no database's order"),
    ("commits", {"overrides": ("role app in database x: off",)}, WARNING, "role app in database x: off"),
    ("commits", {"server": asked(fsync="off")}, ERROR, "fsync is off"),
    ("commits", {"server": asked(full_page_writes="off")}, ERROR, "full_page_writes is off"),
    ("unmeasured", {"unmeasured": ("server: no answer in time",)}, WARNING, "server: no answer in time"),
    ("lease", {"timings": Timings(100, 500, 700, 250, 900, 300)}, ERROR, "do not fit under election_ms 900"),
    ("lease", {"places": place("raft", sync_ms=(30.0, 30.0, 60.0))}, WARNING, "a vote may take 122 ms"),
    ("lease", {"places": place("raft", sync_ms=(250.0, 250.0, 250.0))}, ERROR, "a vote takes 502 ms"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "changes", "severity", "text"), NODE_RULES)
def test_of_a_node(check: str, changes: dict[str, Any], severity: Severity, text: str) -> None:
    finding = worst(three(a=node("a", **changes)), check)
    assert (finding.severity, finding.node) == (severity, "a")
    assert text in " ".join(f.what for f in found(three(a=node("a", **changes)), check) if f.severity is severity)
    if severity is not OK:
        assert finding.hint
        assert finding.why
        assert (finding.code > 0) is (severity is ERROR)


SILENT = {"answer_ms": None, "answer_problem": "x"}


def silent(**changes: Any) -> Link:
    return link("b", **SILENT | changes)


BEFORE_RULES: list[tuple[str, dict[str, Any], Severity, str]] = [
    *(
        (check, {"failures": (Failure(check, "it is wrong", "mend it", 69),)}, ERROR, "it is wrong")
        for check in ("account", "data directory", "kernel", "files", "ports", "binaries")
    ),
    ("configuration", {"warnings": ("two members",)}, WARNING, "two members"),
    ("rewind", {"rewindable": (), "has_data": True}, WARNING, "so far"),
    ("rewind", {"rewind_problem": "pg_control is damaged", "has_data": True}, ERROR, "damaged"),
    ("rewind", {"rewindable": ("checksums",), "has_data": True}, OK, "checksums on"),
    ("hba", {"hba_given": ("host all all 0.0.0.0/0 trust",)}, WARNING, "0.0.0.0/0 trust"),
    ("hba", {"hba_given": ("host all all 10.0.0.0 255.0.0.0 trust",)}, WARNING, "10.0.0.0"),
    ("hba", {"hba_given": ("host all all 127.0.0.1/32 trust", "local all all trust")}, OK, "no rule trusts"),
    ("real time", {"limits": Limits(-1, -1, "normal", 8 * GB)}, WARNING, "the processes of the node: normal"),
    ("control plane", {"links": (silent(connect_problem="no", refused=True),)}, WARNING, "yet"),
    ("control plane", {"links": (silent(connect_problem="no answer"),)}, ERROR, "not reached"),
    ("control plane", {"links": (silent(connect_ms=0.2),)}, WARNING, "does not answer: x"),
    ("lease", {"links": ()}, OK, "raft is on disk"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "changes", "severity", "text"), BEFORE_RULES)
def test_of_a_node_that_is_to_be_started(check: str, changes: dict[str, Any], severity: Severity, text: str) -> None:
    finding = worst(alone(**changes), check)
    assert finding.severity is severity
    assert text in finding.what


BETWEEN: list[tuple[str, dict[str, Any], Severity, str]] = [
    ("control plane", SILENT | {"connect_problem": "gone"}, ERROR, "can't reach b at 10.0.0.2:7400: gone"),
    ("control plane", SILENT | {"connect_ms": 0.2}, ERROR, "b at 10.0.0.2:7400 is connected and does not answer: x"),
    ("control plane", {"heard_ms": 1001}, ERROR, "was last heard 1001 ms ago"),
    ("control plane", {"heard_ms": None}, ERROR, "has never been heard"),
    ("control plane", {"heard_ms": 1000}, OK, "b in 1.5 ms"),
    ("data plane", {"postgres_ms": None, "postgres_problem": "refused"}, ERROR, "can't reach Postgres of b"),
    ("data plane", {"postgres_ms": 51.0}, WARNING, "51 ms away"),
    ("sessions", {"replication_ms": None, "replication_problem": "no pg_hba\nentry"}, ERROR, "no pg_hba entry"),
    ("sessions", {"rewind_ms": None, "rewind_problem": "the role lacks EXECUTE"}, ERROR, "take rewind sessions"),
    ("sessions", {"system_identifier": "7999"}, ERROR, "Postgres of another cluster"),
    ("clocks", {"offset_ms": 2100.0}, WARNING, "its clock is 2.1 s ahead of that of a"),
    ("clocks", {"offset_ms": -2100.0}, WARNING, "its clock is 2.1 s ahead of that of b"),
    ("clocks", {"offset_ms": 520.0, "offset_error_ms": 30.0}, OK, "clocks"),
    ("clocks", {"drift_percent": 2.2}, ERROR, "2.2 % faster than that of a"),
    ("clocks", {"drift_percent": -9.0, "drift_error_percent": 2.0}, ERROR, "9.0 % slower"),
    ("clocks", {"drift_percent": 2.2, "drift_error_percent": 0.3}, OK, "clocks"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "changes", "severity", "text"), BETWEEN)
def test_between_two_members(check: str, changes: dict[str, Any], severity: Severity, text: str) -> None:
    case = three(a=relinked(node("a"), "b", **changes))
    if severity is OK and check == "clocks":
        assert all(f.severity is OK for f in found(case, check))
        return
    finding = worst(case, check)
    assert finding.severity is severity
    assert text in finding.what


def test_only_the_leader_and_the_others_have_to_hear_each_other() -> None:
    quiet = relinked(node("b"), "c", heard_ms=None)
    assert worst(three(b=quiet), "control plane").severity is OK
    deaf = relinked(node("b"), "a", heard_ms=None)
    assert worst(three(b=deaf), "control plane").severity is ERROR


def test_a_member_that_nobody_reaches_is_named_once_with_what_each_has_seen() -> None:
    case = without("c", "no answer from 10.0.0.3:7400")
    findings = [f for f in doctor.examine(case) if f.severity is ERROR]
    assert [(f.check, f.node, f.code) for f in findings] == [("members", "c", 75)]
    assert findings[0].what == (
        "nobody reaches it: no answer from 10.0.0.3:7400 (a: no answer within 1.5 s; b: no answer within 1.5 s)"
    )
    assert doctor.exit_code(findings) == 75


def test_a_member_that_is_cut_off_from_one_only_is_up() -> None:
    case = without("c", b=node("b"))
    findings = {f.check: f for f in doctor.examine(case) if f.severity is ERROR}
    assert sorted(findings) == ["control plane", "data plane", "members"]
    assert "b reaches it" in findings["members"].hint
    assert findings["control plane"].node == "a"
    assert "can't reach c" in findings["control plane"].what


def test_a_postgres_that_is_kept_down_is_no_network_fault() -> None:
    down = {
        "postgres_ms": None,
        "postgres_problem": "refused",
        "replication_problem": "refused",
        "replication_ms": None,
    }
    case = three(
        a=relinked(node("a"), "b", **down), c=relinked(node("c"), "b", **down),
        b=node("b", state="stopped", server=None, guarded=None),
    )  # fmt: skip
    findings = [f for f in doctor.examine(case) if f.severity is not OK]
    assert {(f.check, f.severity) for f in findings} == {("data plane", WARNING), ("postgres", WARNING)}


def test_versions_of_the_members() -> None:
    minor = three(b=node("b", programs=Programs("/pg", "18.7", 18, False, True, True, True)))
    assert worst(minor, "versions").what == "minor versions of Postgres differ: a: 18.6, b: 18.7, c: 18.6"
    major = three(b=node("b", programs=Programs("/pg", "17.9", 17, False, True, True, True)))
    assert (worst(major, "versions").severity, worst(major, "versions").code) == (ERROR, 69)
    assert worst(three(b=node("b", pgr_version="0.2.0")), "versions").severity is WARNING
    assert found(three(), "versions")[0].what == "pgr 0.1.0, PostgreSQL 18.6 on a, b, c"


def test_the_warnings_of_pgr_status_are_told_once() -> None:
    both = {n: node(n, warnings=("degraded: 1 of a", "synchronous_commit is set lower: role app: off")) for n in "ab"}
    assert [(f.severity, f.what) for f in found(three(**both), "status")] == [(WARNING, "degraded: 1 of a")]
    assert worst(three(), "status").severity is OK


def test_glibc_of_the_members_matters_where_a_database_sorts_by_it() -> None:
    other = Limits(-1, -1, "", 8 * GB, "", "2.41")
    case = three(b=node("b", limits=other))
    assert worst(case, "libraries").severity is WARNING
    assert "a: 2.36, b: 2.41, c: 2.36" in worst(case, "libraries").what
    builtin = replace(SERVER, databases=(Database("app", "b", "1", "1"),))
    plain = three(**{n: node(n, server=builtin, limits=other if n == "b" else node().limits) for n in NAMES})
    assert worst(plain, "libraries").severity is OK


def test_the_round_that_counts_is_that_of_the_majority() -> None:
    assert majority_ms([5.0, 900.0], 3) == 5.0
    assert majority_ms([5.0, 900.0, 7.0, 8.0], 5) == 7.0
    assert majority_ms([900.0], 2) == 900.0
    assert majority_ms([], 1) == 0.0
    assert majority_ms([], 3) is None
    far = replace(node("a"), links=(link("b", answer_ms=1.0), link("c", answer_ms=900.0)))
    assert worst(three(a=far), "lease").severity is OK
    both = replace(node("a"), links=(link("b", answer_ms=401.0), link("c", answer_ms=900.0)))
    assert "not renewed before the demotion begins (500 ms" in worst(three(a=both), "lease").what
    slow = replace(node("a"), links=(link("b", answer_ms=101.0), link("c", answer_ms=900.0)))
    finding = worst(three(a=slow), "lease")
    assert (finding.severity, "rounds overlap" in finding.what) == (WARNING, True)
    assert "`pgr config set profile=cloud`" in finding.hint
    learners = Case({"a": replace(node("a"), links=(link("b", answer_ms=None),))}, {}, ("a", "b"), frozenset("a"))
    assert worst(learners, "lease").severity is OK, "who has no vote is not waited for"
    quick = replace(node("a"), links=(link("b", answer_ms=1.0), link("c", answer_ms=900.0)))
    assert worst(Case({"a": quick}, {}, NAMES, frozenset("ac")), "lease").severity is ERROR, "nor does its answer count"
    assert found(Case({"b": node("b")}, {}, NAMES, frozenset("ac")), "lease") == []
    cut = replace(node("a"), links=(link("b", answer_ms=None), link("c", answer_ms=None)))
    assert "does not reach a majority" in worst(three(a=cut), "lease").what


@pytest.mark.parametrize("timings", PROFILES.values(), ids=PROFILES)
def test_the_two_sides_of_the_inequality_are_those_of_the_contract(timings: Timings) -> None:
    low, high = doctorlinks.lease_sides(timings)
    assert low <= high
    assert not timings.problems()
    assert bool(replace(timings, lease_ms=int(timings.lease_ms * 1.05)).problems()) is (
        doctorlinks.lease_sides(replace(timings, lease_ms=int(timings.lease_ms * 1.05)))[0] > high
    )


def test_a_witness_is_not_asked_for_a_postgres() -> None:
    witness = node(
        "c", witness=True, role="witness", state="voting", server=None, programs=None, rewindable=None, guarded=None,
        places=PLACES[:1], scheduling={"raft": "SCHED_RR"}, limits=Limits(1 << 20, 10, "", None, "no"),
    )  # fmt: skip
    links = {n: replace(node(n), links=tuple(
        replace(each, postgres="", postgres_ms=None, replication_ms=None, rewind_ms=None) if each.to == "c" else each
        for each in node(n).links)) for n in ("a", "b")}  # fmt: skip
    assert [f for f in doctor.examine(three(c=witness, **links)) if f.severity is not OK] == []


@pytest.mark.parametrize(
    ("codes", "expected"), [((), 0), ((75, 74), 74), ((69, 75, 78), 78), ((64, 69), 64), ((3,), 70)]
)
def test_the_exit_code_is_that_of_the_gravest_error(codes: tuple[int, ...], expected: int) -> None:
    errors = [doctor.Finding("disk", "a", ERROR, "", "", "", code) for code in codes]
    warning = doctor.Finding("disk", "a", WARNING, "", "", "", 0)
    assert doctor.exit_code([warning, *errors]) == expected


@pytest.mark.parametrize(
    ("who", "sql"),
    [
        ("role app: off", "ALTER ROLE app RESET"),
        ("database x: local", "ALTER DATABASE x RESET"),
        ("role app in database x: off", "ALTER ROLE app IN DATABASE x RESET"),
        ("all: off", "ALTER ROLE ALL RESET"),
        ("role The \"App\" in database x: off", 'ALTER ROLE "The ""App""" IN DATABASE x RESET'),
    ],
)
def test_an_override_is_taken_back_by_the_statement_in_the_hint(who: str, sql: str) -> None:
    assert sql in worst(three(a=node("a", overrides=(who,))), "commits").hint


def test_a_node_travels_as_json() -> None:
    whole = node("a", failures=(Failure("ports", "taken", "free it", 69),), unmeasured=("x: y",))
    assert read(Node, json.loads(json.dumps(to_json(whole)))) == whole
    assert read(Node, json.loads(json.dumps(to_json(whole))) | {"newer": 1}) == whole
    assert read(Node, {"name": "a"}) == Node("a")
    for junk in ({}, {"name": "a", "links": [{}]}, {"name": "a", "links": 3}, {"name": "a", "server": "x"}):
        with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
            read(Node, junk)


def test_the_page_says_what_is_wrong_first_and_fits() -> None:
    case = without("c", "no answer from 10.0.0.3:7400: is it running, and can it be reached from here?")
    page = ""
    for width in (80, 100):
        page = doctor.page(case, doctor.examine(case), width)
        assert page.startswith("error: members: c: nobody reaches it")
        assert max(map(len, page.splitlines())) <= width
        assert "  why: a member that is down" in page
        assert "  hint: start it, or look at its machine" in page
        assert "\x1b" not in page
    assert re.search(r"FROM +a +b +c\na +- +1\.5 +no\nb +1\.5 +- +no\nc +\? +\? +-", page)
    assert page.rstrip().splitlines()[-1].startswith("1 error, 0 warnings, ")
    assert doctor.page(case, doctor.examine(case), 80, colour=True).startswith("\x1b[31merror:\x1b[0m ")


def test_what_is_well_of_several_nodes_alike_is_told_once() -> None:
    page = doctor.page(three(), doctor.examine(three()), 100)
    assert re.search(r"^binaries +a, b, c  PostgreSQL 18\.6 in /pg/bin$", page, re.M)
    assert re.search(r"^control plane +a +reaches b in 1\.5 ms, c in 1\.5 ms$", page, re.M)
    assert len(page.splitlines()) < 60
    assert page.endswith(f"0 errors, 0 warnings, {len(doctor.examine(three()))} ok\n")


def test_what_has_the_same_remedy_is_told_together() -> None:
    late = {"raft": "normal", "watchdog": "nice -5", "hardware watchdog": "off"}
    case = three(b=node("b", scheduling=late), c=node("c", scheduling=late))
    page = doctor.page(case, doctor.examine(case), 120, colour=True)
    assert "b, c: raft: normal, not SCHED_RR" in page
    assert "b, c: watchdog: nice -5, not SCHED_RR" in page
    assert page.count(f"{render.YELLOW}warning:{render.OFF} real time: ") == 2
    assert (page.count("why: a fence that comes late"), page.count("hint: allow real-time")) == (1, 1)
    other = [f._replace(hint="something else") if f.node == "c" else f for f in doctor.examine(case)]
    page = doctor.page(case, other, 120)
    assert (page.count("hint: allow real-time"), page.count("hint: something else")) == (1, 1)


def test_the_json_has_the_findings_and_both_matrices() -> None:
    case = without("c")
    body = json.loads(json.dumps(doctor.to_json(case, doctor.examine(case))))
    assert (body["when"], body["exit_code"], body["counts"]["error"]) == ("after", 75, 1)
    assert body["control_plane_ms"] == {"a": {"b": 1.5, "c": None}, "b": {"a": 1.5, "c": None}}
    assert body["data_plane_ms"]["a"]["b"] == 8.0
    (error,) = [f for f in body["findings"] if f["severity"] == "error"]
    assert sorted(error) == ["check", "code", "hint", "node", "severity", "what", "why"]


def test_the_table_is_whole() -> None:
    names = [check.name for check in doctor.CHECKS]
    assert len(set(names)) == len(names)
    for check in doctor.CHECKS:
        assert all((check.measures, check.bounds, check.why)), check.name
        assert set(check.when) <= set(doctor.BOTH)


@pytest.mark.parametrize(
    ("old", "new", "crossed"),
    [("2.27", "2.28", True), ("2.28", "2.41", False), ("2.17", "2.27", False), ("x", "2.30", False)],
)
def test_the_glibc_that_changed_every_order(old: str, new: str, crossed: bool) -> None:
    assert doctornode.crosses(old, new) is crossed
