"""Members as people see them: `pgr status`, `pgr member`, HTTP, and the answers of the node to who changes them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import zmq

from consensus.cluster import Change, ClusterState, Grant, Reinit, seat_of, sync_group
from consensus.history import HistoryEvent
from consensus.membership import GONE, LEARNER, VOTER, WITNESS, Member
from consensus.record import EpochStart, Position
from fencing import wire
from fencing.lease import MS, PROFILES
from fencing.logs import Log
from supervisor import member, observe, render, status
from supervisor.adminserver import ACTION_TIMEOUT_MS, AdminServer
from supervisor.config import Config, Facts, load
from supervisor.errors import RefusedError
from supervisor.health import answer
from supervisor.observe import snapshot
from supervisor.roles import Data, Local, Server, Situation, Step, View, plan
from supervisor.status import Snapshot
from supervisor.witness import Bus, Seen

NOW = 1_000_000 * MS
ANCESTRY = (EpochStart(0, 0, 1), EpochStart(5, 100, 2))


def listed(name: str, role: str = VOTER, aim: str = "") -> Member:
    postgres = "" if role == WITNESS else f"{name}.example:5432"
    return Member(name, 0x11223344, f"{name}:1", postgres, f"{name}:8008", role, aim or role)


def agreed(*members: Member, **changes: Any) -> ClusterState:
    seats = [seat_of(m) for m in members if m.role == VOTER]
    grant = Grant(5, "a", Position(0, 100), 2, ANCESTRY, opened=True)
    state = ClusterState("1" * 32, members, group=sync_group(seats, "quorum"), system_identifier="7", grants=(grant,))
    return replace(state, **changes)


def told(local: Local, streaming: bool) -> dict[str, Any]:
    seen = observe.observation(View(True), local, observe.Facts(1000, 1000, streaming), Step.WAIT, "", "0.1.0")
    return {"seen": seen, "age_ms": 0}


def picture(cluster: ClusterState, me: str = "a") -> Snapshot:
    """As ``me`` sees it: a is primary, everybody streams."""
    locals_ = {m.name: Local(m.name, Data.READY, Server.STANDBY, upstream=5) for m in cluster.members}
    locals_ |= {m.name: Local(m.name, witness=True) for m in cluster.members if m.role == WITNESS}
    locals_["a"] = Local("a", Data.READY, Server.PRIMARY, epoch=5, gate_open=True)
    members = {name: told(local, name != "a") for name, local in locals_.items()}
    view = View(True, 0x11223344, 5, "a", cluster=cluster, lease_term=5, lease_until_ns=NOW + 700 * MS)
    here = locals_[me]
    state = observe.state_of(here, observe.Facts(streaming=me != "a"), Step.WAIT)
    return snapshot(
        view, here, observe.Facts(), members, PROFILES["default"], state=state, sentence="fine", now_ns=NOW,
        scheduling={}, pgr_version="0.1.0",
    )  # fmt: skip


FOUR = agreed(listed("a"), listed("b"), listed("c", LEARNER), listed("w", WITNESS))


# -- the picture -------------------------------------------------------------------------------------------------------


def test_learners_and_witnesses_are_called_that() -> None:
    made = picture(FOUR)
    rows = [(m.name, m.role, m.state, m.member, m.aim, m.host, m.pg_port) for m in made.members]
    assert rows == [
        ("a", "primary", "running", "voter", "", "a.example", 5432),
        ("b", "replica", "streaming", "voter", "", "b.example", 5432),
        ("c", "learner", "streaming", "learner", "", "c.example", 5432),
        ("w", "witness", "voting", "witness", "", "", 0),
    ]
    assert (picture(FOUR, "c").role, picture(FOUR, "w").role) == ("learner", "witness")
    assert all(f"{name}.example" in status.uris(made)["read_only"] for name in "abc"), "a learner serves reads"


def test_it_survives_the_way_over_http() -> None:
    for cluster in (FOUR, replace(FOUR, change=Change(9, FOUR.group, sync_group([seat_of(listed("a"))], "quorum")))):
        made = replace(picture(cluster), taken_ns=NOW)
        assert status.from_json(json.loads(json.dumps(status.to_json(made, NOW))), NOW) == made


@pytest.mark.parametrize(
    ("members", "unprotected", "warning"),
    [
        ((listed("a"), listed("b"), listed("w", WITNESS)), False, "no spare standby: writes wait if one more"),
        ((listed("a"), listed("b"), listed("c", LEARNER)), True, "2 voters survive no more failures than 1 would"),
        ((listed("a"), listed("b", LEARNER)), True, "a single voter: nothing takes over when it fails"),
        ((listed("a"),), True, "a single node: nothing takes over when it fails"),
    ],
)
def test_votes_protect_and_copies_do(members: tuple[Member, ...], unprotected: bool, warning: str) -> None:
    made = picture(agreed(*members))
    assert made.unprotected is unprotected
    assert any(text.startswith(warning) for text in made.warnings), made.warnings


def test_a_page_tells_what_is_to_become_of_whom() -> None:
    smaller = sync_group([seat_of(listed("a")), seat_of(listed("b"))], "quorum")
    members = (listed("a"), listed("b"), listed("c", aim=GONE), listed("d", LEARNER, VOTER), listed("e", aim="gone:d"))
    cluster = agreed(*members)
    page = render.status(picture(replace(cluster, change=Change(9, cluster.group, smaller))), 0)
    assert "3 of a, b, c, e -> 2 of a, b" in page
    notes = {line.split()[0]: line for line in page.splitlines() if line[:1] in tuple("abcde") and "  " in line}
    assert notes["c"].endswith("leaving")
    assert notes["d"].endswith("joining")
    assert notes["e"].endswith("to be replaced by d")
    assert render.aim_text("voter", LEARNER) == "to be a learner"


def test_a_load_balancer_may_send_reads_to_a_learner_and_nothing_to_a_witness() -> None:
    paths = ("/replica", "/async", "/quorum", "/health")

    def codes(me: str) -> list[int]:
        return [answer(picture(FOUR, me), path, "", NOW).status for path in paths]

    assert codes("c") == [200, 200, 503, 200]
    assert codes("w") == [503, 503, 503, 503]
    assert answer(picture(FOUR, "w"), "/liveness", "", NOW).status == 200
    assert json.loads(answer(picture(FOUR, "c"), "/patroni", "", NOW).body)["role"] == "replica"
    found = json.loads(answer(picture(FOUR), "/cluster", "", NOW).body)
    assert [row["role"] for row in found["members"]] == ["leader", "sync_standby", "replica"]
    assert found["witnesses"] == ["w"]


def test_the_list_for_people_and_for_programs() -> None:
    rows = status.member_rows(picture(FOUR))
    assert rows[3] == {
        "name": "w", "role": "witness", "aim": "", "seat": False, "incarnation": "11223344", "state": "voting",
        "raft": "w:1", "postgres": "", "http": "w:8008",
    }  # fmt: skip
    lines = render.members(rows).splitlines()
    assert lines[0].split() == ["NAME", "ROLE", "AIM", "SYNC", "GROUP", "STATE", "CONSENSUS", "POSTGRES", "HTTP"]
    assert lines[2].split() == ["b", "voter", "-", "yes", "streaming", "b:1", "b.example:5432", "b:8008"]
    assert render.members([]) == "no members known yet\n"


# -- a witness is a witness --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "witness", "words"),
    [(WITNESS, False, "a is a witness"), (VOTER, True, "a has a Postgres"), (LEARNER, True, "a has a Postgres")],
)
def test_the_other_kind_is_refused(role: str, witness: bool, words: str) -> None:
    view = View(True, 0x11223344, cluster=agreed(listed("a", role)))
    with pytest.raises(RefusedError, match=words) as caught:
        member.refuse_another_role(view, Local("a", witness=witness))
    assert "pgr member remove a" in caught.value.hint
    member.refuse_another_role(view, Local("a", witness=not witness))
    member.refuse_another_role(replace(view, incarnation=8), Local("a", witness=witness))  # it is not about this life
    member.refuse_another_role(View(True, 0x11223344), Local("a", witness=witness))


def test_a_learner_that_is_to_be_a_witness_has_no_postgres() -> None:
    view = View(True, 0x11223344, cluster=agreed(listed("a", LEARNER, WITNESS)))
    member.refuse_another_role(view, Local("a", witness=True))
    with pytest.raises(RefusedError):
        member.refuse_another_role(view, Local("a"))


def test_who_is_a_member_is_a_leader_s_word() -> None:
    view = View(True, 0x11223344, cluster=agreed(listed("a")), met=True)
    assert member.is_member(view, Local("a"))
    assert not member.is_member(replace(view, met=False), Local("a")), "what its disk says may be long over"
    assert not member.is_member(replace(view, incarnation=8), Local("a"))
    assert not member.is_member(View(met=True), Local("a"))


def test_a_witness_owes_the_word_that_it_has_no_position() -> None:
    view = View(True, 7, 6, "b", wanted=6, cluster=agreed(listed("b"), listed("w", WITNESS)), met=True)
    local = Local("w", witness=True)
    assert Situation(view, local, PROFILES["default"], NOW).owes_no_position
    assert not Situation(view, replace(local, said_no_position=6), PROFILES["default"], NOW).owes_no_position
    assert plan(Situation(view, local, PROFILES["default"], NOW))[0].rule == "witness"


# -- the node's side of `pgr member` -----------------------------------------------------------------------------------


class Asked:
    """An admin server, one client from afar, and a log that the test writes."""

    def __init__(self, config: Config) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.c = Seen(config, Log("json", "b", "parent", fd=2), Bus(), View(True, cluster=FOUR), Local("b"))
        self.server = AdminServer(self.context, self.c)
        self.now = NOW

    def ask(self, request: str, /, **body: Any) -> None:
        self.server.request(b"x", wire.encode(request, body, "r1"), self.now, remote=True)

    def agrees(self, **answer: Any) -> None:
        self.server.answered(wire.Frame("admin.answer", "r1", {"ok": True, **answer}))

    def log(self, cluster: ClusterState, later_ms: int = 100) -> None:
        self.now += later_ms * MS
        self.c.view = replace(self.c.view, cluster=cluster)
        self.server.publish(picture(cluster), self.now)

    def said(self) -> list[tuple[str, Any]]:
        """(event, text) of the steps, ("answer", body) of the end; since the last call."""
        orders, self.c.raft.orders = self.c.raft.orders, []
        frames = [wire.decode(o.body["frame"].encode()) for o in orders if o.name == "remote.answer"]
        return [
            ("answer", f.body) if f.name == "admin.answer" else (f.body["event"], f.body["text"]) for f in frames
        ]

    def close(self) -> None:
        self.server.socket.close(0)
        self.context.destroy(0)


@pytest.fixture
def asked() -> Iterator[Asked]:
    home = Path(tempfile.mkdtemp(prefix="pgr-ms-"))
    (home / "run").mkdir()
    made = Asked(load({"data": str(home), "name": "b"}, {}, None, None, Facts("host", "/")))
    yield made
    made.close()
    shutil.rmtree(home)


def ended(said: list[tuple[str, Any]]) -> dict[str, Any]:
    (body,) = [body for event, body in said if event == "answer"]
    assert isinstance(body, dict)
    return body


def test_a_vote_and_a_seat_are_waited_for(asked: Asked) -> None:
    asked.ask("member.add", name="c", role="voter", timeout_ms=5_000)
    assert [o.name for o in asked.c.raft.orders] == ["admin.request"]
    asked.c.raft.orders.clear()
    asked.agrees(name="c", term=5)
    assert asked.said() == [("accepted", "member.add accepted: c")]
    event = HistoryEvent("t", "member", 5, "c", "is to be a voter", "{}")
    members = (listed("a"), listed("b"), listed("c", LEARNER, VOTER), listed("w", WITNESS))
    aimed = agreed(*members, history=(event,))
    asked.log(aimed)
    assert asked.said() == [("member", "member: c is to be a voter")]
    asked.log(replace(aimed, history=(event, HistoryEvent("t", "restart", 5, "", "of a, b was asked for", "{}"))))
    assert asked.said() == [("restart", "restart: of a, b was asked for")], "of the cluster, not of a node"
    voter = replace(aimed, members=(listed("a"), listed("b"), listed("c"), listed("w", WITNESS)))
    asked.log(voter)
    bigger = sync_group([seat_of(listed(name)) for name in "abc"], "quorum")
    asked.log(replace(voter, change=Change(9, voter.group, bigger)))
    assert asked.said() == [], "no seat yet"
    asked.log(replace(voter, group=bigger))
    assert ended(asked.said())["result"] == {"name": "c", "role": "voter"}


@pytest.mark.parametrize("name", ["member.remove", "member.replace"])
def test_gone_is_when_the_log_has_it_no_more(asked: Asked, name: str) -> None:
    asked.ask(name, name="c", by="d")
    asked.agrees(name="c", term=5)
    asked.log(replace(FOUR, members=(*FOUR.members[:2], listed("c", LEARNER, GONE), FOUR.members[3])))
    assert [event for event, _ in asked.said()] == ["accepted"]
    asked.log(replace(FOUR, members=(*FOUR.members[:2], FOUR.members[3])))
    assert ended(asked.said())["result"] == {"name": "c", "role": "gone"}


def test_another_life_of_that_name_is_not_who_was_meant(asked: Asked) -> None:
    asked.ask("member.add", name="c", role="learner")
    asked.agrees(name="c", term=5)
    other = FOUR.members[2]._replace(incarnation=9)
    asked.log(replace(FOUR, members=(*FOUR.members[:2], other, FOUR.members[3])))
    assert ended(asked.said())["code"] == 75


def test_a_later_wish_of_somebody_else_ends_the_wait(asked: Asked) -> None:
    asked.ask("member.add", name="c", role="voter")
    asked.agrees(name="c", term=5)
    asked.log(replace(FOUR, members=(*FOUR.members[:2], listed("c", LEARNER, VOTER), FOUR.members[3])))
    asked.log(replace(FOUR, members=(*FOUR.members[:2], listed("c", LEARNER, GONE), FOUR.members[3])))
    body = ended(asked.said())
    assert (body["code"], "c is to be gone now" in body["error"]) == (75, True)


def test_a_log_that_is_behind_is_no_other_wish(asked: Asked) -> None:
    asked.ask("member.add", name="c", role="voter")
    asked.agrees(name="c", term=5)
    asked.log(FOUR)  # the leader has it, this node not yet
    assert [event for event, _ in asked.said()] == ["accepted"]


@pytest.mark.parametrize(
    ("timeout_ms", "waits_ms"), [(2_000, 2_000), (None, ACTION_TIMEOUT_MS), (-1, ACTION_TIMEOUT_MS)]
)
def test_who_asks_waits_as_long_as_they_like(asked: Asked, timeout_ms: int | None, waits_ms: int) -> None:
    asked.ask("member.remove", name="c", timeout_ms=timeout_ms)
    asked.agrees(name="c", term=5)
    asked.log(FOUR, waits_ms - 1)
    assert "answer" not in dict(asked.said())
    asked.log(FOUR, 2)
    body = ended(asked.said())
    assert (body["code"], "goes on by itself" in body["hint"]) == (75, True)


def test_a_refusal_of_the_leader_is_passed_on(asked: Asked) -> None:
    asked.ask("member.remove", name="a")
    refusal = {"ok": False, "code": 75, "error": "a is the primary", "hint": "first move it: `pgr switchover`"}
    asked.server.answered(wire.Frame("admin.answer", "r1", refusal))
    body = ended(asked.said())
    assert (body["code"], body["error"], body["hint"]) == (75, refusal["error"], refusal["hint"])


def test_what_the_leader_cannot_take_just_now_is_asked_again(asked: Asked) -> None:
    busy = {"ok": False, "code": 75, "error": "another change is under way", "hint": "later", "final": False}
    asked.ask("member.remove", name="c", timeout_ms=5_000)
    asked.c.raft.orders.clear()
    asked.server.answered(wire.Frame("admin.answer", "r1", busy))
    asked.log(FOUR)
    (order,) = asked.c.raft.orders
    assert (order.name, order.body["name"], order.body["body"]["name"]) == ("admin.request", "member.remove", "c")
    assert asked.said() == []
    asked.agrees(name="c", term=5)
    asked.log(FOUR)
    assert [event for event, _ in asked.said()] == ["accepted"], "asked again once, not for ever"


def test_what_was_put_off_until_the_end_was_not_begun(asked: Asked) -> None:
    busy = {"ok": False, "code": 75, "error": "another change is under way", "hint": "later", "final": False}
    asked.ask("member.remove", name="c", timeout_ms=2_000)
    asked.server.answered(wire.Frame("admin.answer", "r1", busy))
    asked.log(FOUR, 2_001)
    body = ended(asked.said())
    assert (body["code"], "another change is under way" in body["error"]) == (75, True)
    assert "nothing was begun" in body["hint"]


# -- the node's side of `pgr explain` and of dry runs ------------------------------------------------------------------


def test_explain_is_answered_at_once_by_what_is_known_here(asked: Asked) -> None:
    asked.c.view = replace(asked.c.view, term=5)
    asked.log(FOUR)
    asked.server.known = {"members": {"a": {"seen": {}, "age_ms": 40}}, "heard": {"a": 40, "w": 200}}
    asked.ask("explain")
    found = ended(asked.said())["result"]
    assert (found["state"], found["leader"]) == ("open", "a")
    assert [c["name"] for c in found["election"]["candidates"] if c["up"]] == ["w"]
    assert found["assumed_lost"] == "a"


def test_explain_says_for_how_long_there_was_no_leader(asked: Asked) -> None:
    asked.log(FOUR)
    alone = replace(picture(FOUR, "b"), leader="")
    for later_ms in (1_000, 4_000, 3_000):
        asked.now += later_ms * MS
        asked.server.publish(alone, asked.now)
    asked.ask("explain")
    headline = ended(asked.said())["result"]["headline"]
    assert headline == "this node has known of no leader for 8 s; the last primary it knows of was a of term 5"
    asked.server.publish(replace(alone, leader="a"), asked.now)
    asked.now += 2_000 * MS
    asked.server.publish(alone, asked.now)
    asked.ask("explain")
    assert "for 2 s" in ended(asked.said())["result"]["headline"]


def test_a_dry_run_ends_with_the_leaders_word(asked: Asked) -> None:
    asked.ask("failover", dry_run=True)
    refusal = {"code": 78, "error": "no", "hint": "wait"}
    asked.agrees(**{"dry_run": True, "from": "", "to": "c", "refusal": refusal, "forecast": {"winners": []}})
    body = ended(asked.said())
    assert body["result"] == {"from": "", "to": "c", "refusal": refusal, "forecast": {"winners": []}}
    assert not asked.server.actions


# -- one node: kept down, copied anew ----------------------------------------------------------------------------------


def test_a_fence_is_done_when_the_log_has_it_and_postgres_is_down(asked: Asked) -> None:
    asked.ask("fence", name="b", force=False)
    asked.agrees(name="b", term=5)
    asked.log(FOUR)
    kept_down = replace(FOUR, fenced=("b",))
    asked.log(kept_down)
    assert "answer" not in dict(asked.said()), "it still streams"
    down = replace(picture(kept_down).member("b") or picture(kept_down).own, state="stopped")
    rows = tuple(down if m.name == "b" else m for m in picture(kept_down).members)
    asked.server.publish(replace(picture(kept_down), members=rows), asked.now)
    assert ended(asked.said())["result"] == {"name": "b"}


def test_who_is_fenced_is_shown_and_warned_of() -> None:
    made = picture(replace(FOUR, fenced=("b",)))
    assert [m.name for m in made.members if m.fenced] == ["b"]
    assert "fenced, Postgres is kept down until `pgr unfence`: b" in made.warnings
    page = render.status(made, 0)
    assert next(line for line in page.splitlines() if line.startswith("b ")).endswith("fenced")
    back = status.from_json(json.loads(json.dumps(status.to_json(made, NOW))), NOW)
    assert [m.fenced for m in back.members] == [m.fenced for m in made.members]


def test_an_unfence_is_done_when_the_log_says_so(asked: Asked) -> None:
    asked.ask("unfence", name="b")
    asked.agrees(name="b", term=5)
    asked.log(replace(FOUR, fenced=("b",)))
    assert "answer" not in dict(asked.said())
    asked.log(FOUR)
    assert ended(asked.said())["result"] == {"name": "b"}


def test_a_copy_is_waited_for_until_the_log_has_it_no_more(asked: Asked) -> None:
    asked.ask("reinit", name="b")
    asked.agrees(name="b", term=5)
    asked.log(FOUR)
    asked.log(replace(FOUR, reinits=(Reinit(seat_of(FOUR.members[1]), 9),)))
    assert "answer" not in dict(asked.said()), "the log here was behind, then it is being made"
    asked.log(FOUR)
    assert ended(asked.said())["result"] == {"name": "b"}
    asked.ask("reinit", name="b")
    asked.agrees(name="b", term=5)
    asked.log(replace(FOUR, members=FOUR.members[:1]))
    assert ended(asked.said())["code"] == 75


def test_while_one_waits_the_node_itself_says_what_it_does(asked: Asked) -> None:
    asked.ask("reinit", name="b", timeout_ms=60_000)
    asked.agrees(name="b", term=5)
    asked.said()
    shot = picture(FOUR)
    rows = tuple(replace(m, reason="cloning, 1 of 2 MB") if m.name == "b" else m for m in shot.members)
    asked.server.publish(replace(shot, members=rows), asked.now + 6_000 * MS)
    assert ("waiting", "b: cloning, 1 of 2 MB") in asked.said()
