"""The quorum is lost for good: what is said before, may it be done, and what is done.

What becomes of those who come back: test_recovery_returns.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from consensus import recovery
from consensus.cluster import ClusterState, Grant, Seat, SyncGroup, canonical, found
from consensus.clustertext import dump, load
from consensus.effects import Reborn, Save, Send, SendStranger
from consensus.forecast import Report
from consensus.former import KEPT_MAX, Left, burned_up_to, was_left
from consensus.membership import LEARNER, WITNESS
from consensus.messages import Forward, HardState
from consensus.record import EpochStart, Identity, NodeRecord, Position
from consensus.write import Write
from tests.unit.nodes import CLUSTER_ID, Cluster, member_of

NEW_ID = "cd" * 16
HISTORY = (EpochStart(0, 0, 1), EpochStart(4, 100, 2), EpochStart(7, 200, 3))
GRANT = Grant(7, "a", Position(4, 200), 3, HISTORY, opened=True)
MINE = Position(7, 500)


def state(names: str = "a b c", k: int = 2, **more: Any) -> ClusterState:
    rows = [member_of(n, 1, f"{n}:1", "voter") for n in names.split()]
    charter = canonical(
        {"members": [list(r) for r in rows], "founder": "a", "commit": "quorum", "profile": "default", "settings": {}}
    )
    group = SyncGroup(tuple(Seat(r.name, 1) for r in rows), k)
    return replace(found(charter, CLUSTER_ID), group=group, grants=(GRANT,), initial_timeline=1, **more)


def foresee(
    s: ClusterState, me: str = "c", position: Position | None = MINE, survivors: tuple[str, ...] = (), **reports: Report
) -> recovery.Outlook:
    return recovery.foresee(s, CLUSTER_ID, me, reports, position, survivors, (7, 33))


def said(outlook: recovery.Outlook) -> str:
    return "\n".join(outlook.sentences)


# -- what is said ------------------------------------------------------------------------------------------------------


def test_one_of_three_may_lack_what_the_other_two_acknowledged() -> None:
    outlook = foresee(state(), a=Report(age_ms=40_000, seen=Position(7, 1700)), b=Report())
    assert not outlook.kept
    assert [g.member.name for g in outlook.given_up] == ["a", "b"]
    text = said(outlook)
    assert "may be lost: 2 of a, b, c acknowledged each, so 2 of them have all; here is c" in text
    assert "a had epoch 7 up to 0/6A4, 1200 bytes more than are here when last heard of, 40 s ago" in text
    assert "how far the WAL of b went is not known" in text
    assert "ends with entry 33 of term 7; the last primary it tells of is a, of term 7" in text


def test_the_last_primary_has_all_that_was_acknowledged_under_it() -> None:
    outlook = foresee(state(), me="a")
    assert outlook.kept
    assert "a was the last primary" in said(outlook)
    assert "A primary that the others had after that is not known here" in said(outlook)
    assert not foresee(state(), me="a", position=Position(4, 900)).kept, "its data is older than its reign"


def test_a_read_quorum_that_is_left_has_all() -> None:
    outlook = foresee(state("a b c d e", k=4), survivors=("d",))
    assert outlook.kept
    assert "4 of a, b, c, d, e acknowledged each, so 2 of them have all; here are c, d" in said(outlook)
    assert "d is up and has nothing that is not here" in said(outlook)
    assert not foresee(state("a b c d e", k=4)).kept


def test_who_has_no_seat_shows_nothing_of_acknowledged_commits() -> None:
    s = replace(state(), group=SyncGroup((Seat("a", 1), Seat("b", 1)), 1))
    outlook = foresee(s)
    assert not outlook.kept
    assert "here is none of them" in said(outlook)


def test_asynchronous_may_always_have_lost_something() -> None:
    s = state()
    outlook = foresee(replace(s, group=s.group._replace(k=1, asynchronous=True)), me="a")
    assert not outlook.kept
    assert "asynchronous" in said(outlook)


def test_a_stopped_node_knows_its_epoch_and_no_position() -> None:
    outlook = foresee(state(), position=Position(7, 0), a=Report(age_ms=1000, seen=Position(7, 1700)))
    assert outlook.given_up[0].more_bytes is None
    assert "a had epoch 7 up to 0/6A4 when last heard of" in said(outlook)
    nothing = foresee(state(), position=None)
    assert (nothing.kept, "can't say how far" in nothing.sentences[0]) == (False, True)


def test_a_witness_has_nothing_that_could_be_lost_and_a_log_may_tell_of_no_primary() -> None:
    rows = (*state("a b").members, member_of("w", 1, "w:1", WITNESS))
    outlook = foresee(replace(state("a b"), members=rows, grants=()), me="b")
    assert "w" in [g.member.name for g in outlook.given_up]
    assert "WAL of w" not in said(outlook)
    assert "it tells of no primary" in said(outlook)


def test_a_survivor_that_a_person_has_fenced_is_said_to_be_let_go() -> None:
    told = "a person has fenced c; that is over then"
    assert told in said(foresee(state(fenced=("c",))))
    assert "fenced" not in said(foresee(state(fenced=("a",)))), "it is given up"


def test_as_json() -> None:
    shown = recovery.plain(foresee(state(), a=Report(age_ms=5, seen=Position(7, 501)), survivors=("b",)))
    assert (shown["cluster"], shown["survivor"], shown["position"]) == ("abababab", "c", [7, 500])
    a, b = shown["given_up"]
    assert (a["seen"], a["more_bytes"], a["age_ms"], a["up"], a["raft"]) == ([7, 501], 1, 5, False, "a:1")
    assert (b["seen"], b["up"]) == (None, True)
    assert recovery.plain(foresee(state(), position=None))["position"] is None
    json.dumps(shown)


# -- may it be done? ---------------------------------------------------------------------------------------------------

IDENTITY = Identity("c", 1, CLUSTER_ID, "{}")
RECORD = NodeRecord(6, HISTORY, Position(7, 900))


def unfit(s: ClusterState | None = None, identity: Identity = IDENTITY, record: NodeRecord = RECORD) -> str:
    refusal = recovery.unfit(s or state(), identity, record)
    assert refusal is None or refusal.hint
    return refusal.reason if refusal is not None else ""


def test_who_may_go_on() -> None:
    assert unfit() == ""
    assert "no member" in unfit(identity=IDENTITY._replace(name="z"))
    assert "no member" in unfit(identity=IDENTITY._replace(incarnation=2)), "another life"
    assert "a rewind was under way" in unfit(record=RECORD._replace(marker="rewind"))
    assert "of no use" in unfit(record=RECORD._replace(history=()))
    assert "never open" in unfit(replace(state(), grants=(GRANT._replace(opened=False),)))
    s = state()
    witness = tuple(m._replace(role=WITNESS, aim=WITNESS) if m.name == "c" else m for m in s.members)
    assert "witness" in unfit(replace(s, members=witness))
    learner = tuple(m._replace(role=LEARNER, aim=LEARNER) if m.name == "c" else m for m in s.members)
    assert unfit(replace(s, members=learner)) == "", "it has a copy"


def test_who_never_becomes_primary_is_not_rebuilt_around() -> None:
    from consensus.tags import Tagged

    tagged = (Tagged(Seat("c", 1), canonical({"nofailover": True})),)
    assert "nofailover" in unfit(replace(state(), tagged=tagged))


def test_a_quorum_that_is_there_is_not_lost() -> None:
    def why(connected: str, leader: str = "", s: ClusterState | None = None) -> str:
        refusal = recovery.not_lost(s or state(), "c", leader, frozenset(connected.split()))
        return refusal.reason if refusal is not None else ""

    assert why("") == ""
    assert "2 of 3 voters are up (b, c)" in why("b")
    assert "has a leader, a" in why("", leader="a")
    assert why("b", s=state("a b c d e")) == "", "two of five"
    alone = replace(state(), members=state().members[2:])
    assert "1 of 1" in why("", s=alone)


# -- done --------------------------------------------------------------------------------------------------------------


def rebuilt(s: ClusterState, chance: int = 5) -> tuple[Write, ClusterState]:
    write = recovery.rebuild(
        IDENTITY, HardState(9, "a", 30, 8), RECORD, 33, s, foresee(s),
        cluster_id=NEW_ID, chance=chance, at="now", by="ann@here",
    )  # fmt: skip
    assert write.snapshot is not None
    return write, load(write.snapshot.data)


def test_it_is_another_cluster_with_this_node_alone_in_it() -> None:
    before = state(fenced=("c",), wish_to="b", removed=(Seat("z", 3),))
    write, after = rebuilt(before)
    assert write.identity is not None
    assert (write.identity.name, write.identity.incarnation, write.identity.cluster_id) == ("c", 1, NEW_ID)
    assert [m[0] for m in json.loads(write.identity.charter)["members"]] == ["c"]
    assert found(write.identity.charter, NEW_ID).members == after.members
    assert (after.cluster_id, [m.name for m in after.members]) == (NEW_ID, ["c"])
    assert after.group == SyncGroup((Seat("c", 1),), 1)
    assert after.removed == (Seat("z", 3), Seat("a", 1), Seat("b", 1))
    assert (after.fenced, after.wish_to, after.wished) == ((), "", True)
    assert after.grant is not None
    assert after.grant.failed == "the quorum was lost"
    assert after.was_opened
    assert write.snapshot is not None
    assert write.snapshot.membership.voters == ("c",)
    assert write.record == RECORD._replace(proof=None)


def test_terms_and_timelines_lie_above_all_that_the_former_cluster_may_give_out() -> None:
    for chance in (0, 31, 32, 2**32 - 1):
        write, after = rebuilt(state(), chance=chance)
        assert write.hard is not None
        assert write.snapshot is not None
        assert write.hard == HardState(9 + recovery.TERM_GAP, "", 34, 8)
        assert (write.snapshot.index, write.snapshot.term) == (34, write.hard.term)
        assert 3 + recovery.TIMELINE_GAP < after.next_timeline() <= 3 + 2 * recovery.TIMELINE_GAP
    assert rebuilt(state(), chance=1)[1].next_timeline() != rebuilt(state(), chance=2)[1].next_timeline()
    promised = RECORD._replace(promised=70)
    write = recovery.rebuild(
        IDENTITY, HardState(9), promised, 1, state(), foresee(state()), cluster_id=NEW_ID, chance=0, at="", by=""
    )
    assert write.hard is not None
    assert write.hard.term == 70 + recovery.TERM_GAP


def test_what_was_given_up_is_remembered_and_told() -> None:
    _, after = rebuilt(state())
    assert after.former[0].left == (Left("a", 1, "a:1"), Left("b", 1, "b:1"))
    told = after.history[-1]
    assert (told.kind, told.node) == ("recovered", "c")
    assert "has rebuilt the cluster abababab as cdcdcdcd, asked for by ann@here; given up: a, b" in told.text
    assert "may be lost" in told.text
    assert json.loads(told.fields)["kept"] is False
    assert load(dump(after)) == after


def test_a_former_cluster_that_was_saved_without_its_term_is_read() -> None:
    _, after = rebuilt(state())
    body = json.loads(dump(after))
    del body["former"][0][3]
    assert load(json.dumps(body)).former == (after.former[0]._replace(term=0),)
    assert after.former[0].term == 9 + recovery.TERM_GAP


def test_formers_are_bounded_and_the_newest_stay() -> None:
    s = state()
    for _ in range(KEPT_MAX + 1):
        s = rebuilt(replace(s, former=s.former))[1]
    assert len(s.former) == KEPT_MAX
    assert s.former[-1].timeline == burned_up_to(s.former)
    assert was_left(s.former, "a") is (s.former[0].left != ())
    assert not was_left((), "a")
    with pytest.raises(ValueError, match="no member"):
        recovery.rebuild(
            IDENTITY._replace(name="z"), HardState(), RECORD, 1, s, foresee(s), cluster_id="", chance=0, at="", by=""
        )


# -- with nodes --------------------------------------------------------------------------------------------------------


def left_alone(
    names: str = "a b c", primary_too: bool = True, witnesses: str = "", commit: str = "quorum"
) -> tuple[Cluster, str]:  # fmt: skip
    """A cluster that was open; all but the survivor are gone."""
    c = Cluster(*names.split(), witnesses=witnesses, streams=True, commit=commit)
    first = c.open()
    with_data = sorted(n for n in c.members if n not in witnesses)
    c.until(lambda: all(c.members[n].position[0] == c.members[first].state["term"] for n in with_data))
    me = next(n for n in with_data if n != first) if primary_too else first
    for name, m in c.members.items():
        if name != me:
            m.up = False
    has_data(c, me)
    return c, me


def has_data(c: Cluster, name: str) -> None:
    """As if its Postgres had been there all the time: nobody writes a term history here."""
    c.tell(name, "node.record", {"history": [list(e) for e in HISTORY], "proof": None, "marker": ""})


def recover(c: Cluster, me: str, **body: Any) -> Mapping[str, Any]:
    """The request, asked again as the admin server does; empty: it was done."""
    for _ in range(100):
        before = c.members[me].disk.identity.cluster_id
        answers = c.members[me].answers
        count = len(answers)
        c.tell(me, "admin.request", {"name": "recover", "body": body}, "r")
        if c.members[me].disk.identity.cluster_id != before:
            return {}
        assert len(answers) > count
        if answers[-1].get("final") is not False:
            return answers[-1]
        c.run(20)
    raise AssertionError("it is never done")


def test_the_survivor_writes_again_as_another_cluster() -> None:
    c, me = left_alone()
    old = c.members[me].cluster["grants"][-1]
    c.run(2500)
    asked = recover(c, me, dry_run=True)
    assert asked["refusal"] is None
    assert asked["outlook"]["cluster"] == CLUSTER_ID[:8]
    assert recover(c, me, confirm="wrong")["code"] == 64
    assert c.members[me].disk.identity.cluster_id == CLUSTER_ID, "nothing was done"
    assert recover(c, me, confirm=CLUSTER_ID[:8], by="ann@here") == {}
    assert c.open() == me
    after = c.members[me].cluster
    assert after["cluster_id"] != CLUSTER_ID
    new = after["grants"][-1]
    assert new[0] > old[0] + recovery.TERM_GAP
    assert new[3] > old[3] + recovery.TIMELINE_GAP
    assert c.roles(me) == me
    assert c.seats(me) == f"1 of {me}"


def test_a_cluster_with_a_majority_is_not_rebuilt() -> None:
    c = Cluster("a", "b", "c", streams=True)
    first = c.open()
    c.run(500)
    other = next(n for n in "abc" if n != first)
    for name in (first, other):
        answer = recover(c, name, confirm=CLUSTER_ID[:8])
        assert (answer["code"], answer["error"]) == (75, f"the cluster has a leader, {first}: no quorum is lost")


def test_not_before_the_lease_it_acknowledged_has_ended() -> None:
    c, me = left_alone()
    m = c.members[me]
    m.node.raft.leader = ""  # it may have heard of a higher term by now; what it acknowledged binds it all the same
    m.node.sightings._heard.clear()
    c.tell(me, "admin.request", {"name": "recover", "body": {"confirm": CLUSTER_ID[:8]}}, "r")
    assert (m.answers[-1]["ok"], m.answers[-1]["final"]) == (False, False)
    assert "may still run" in m.answers[-1]["error"]
    assert m.disk.identity.cluster_id == CLUSTER_ID


def test_nobody_else_can_ask_for_it() -> None:
    c, me = left_alone("a b c d e")
    c.run(2500)
    asked = Forward(1, "r", "recover", canonical({"confirm": CLUSTER_ID[:8]}))
    c.carry_out(me, c.members[me].node.peer(next(n for n in c.members if n != me), asked, c.now))
    assert c.members[me].disk.identity.cluster_id == CLUSTER_ID


def test_two_of_five() -> None:
    c, me = left_alone("a b c d e")
    second = next(n for n in c.members if n != me and not c.members[n].up)
    c.members[second].up = True
    c.run(3000)
    assert "voters are up" not in str(recover(c, me, dry_run=True)["refusal"])
    assert recover(c, me, confirm=CLUSTER_ID[:8], survivors=[second]) == {}
    c.open()
    c.until(lambda: not c.members[second].up, 20_000)
    assert "has rebuilt it" in c.members[second].refused[0]


def test_one_that_answers_pgr_counts_for_the_quorum_though_this_node_does_not_hear_it() -> None:
    c, me = left_alone()
    c.run(2500)
    other = next(n for n in c.members if n != me)
    answer = recover(c, me, confirm=CLUSTER_ID[:8], survivors=[other])
    assert answer["code"] == 75
    assert answer["error"] == f"2 of 3 voters are up ({', '.join(sorted((me, other)))}): no quorum is lost"
    assert c.members[me].disk.identity.cluster_id == CLUSTER_ID
    assert recover(c, me, dry_run=True)["outlook"]["leader"] == "", "and says whom it hears of"


def test_the_others_are_told_who_leads() -> None:
    c = Cluster("a", "b", "c", streams=True)
    first = c.open()
    c.run(500)
    for name in c.members:
        assert recover(c, name, dry_run=True)["outlook"]["leader"] == first


def test_all_of_it_is_one_save_and_without_that_nothing_was_done() -> None:
    c, me = left_alone()
    c.run(2500)
    m = c.members[me]
    effects = m.node.parent("admin.request", "r", {"name": "recover", "body": {"confirm": CLUSTER_ID[:8]}}, c.now)
    (save,) = (e for e in effects if isinstance(e, Save))
    assert None not in (save.write.hard, save.write.snapshot, save.write.record, save.write.identity)
    assert effects.index(save) < next(at for at, e in enumerate(effects) if isinstance(e, Reborn))
    assert not any(isinstance(e, Send | SendStranger) for e in effects)
    c.restart(me)  # as if power was cut before it
    c.run(1500)
    assert (m.disk.identity.cluster_id, c.primary()) == (CLUSTER_ID, "")


def test_the_same_words_twice_rebuild_once() -> None:
    c, me = left_alone()
    c.run(2500)
    assert recover(c, me, confirm=CLUSTER_ID[:8]) == {}
    new = c.members[me].disk.identity.cluster_id
    assert "1 of 1 voters are up" in recover(c, me, confirm=CLUSTER_ID[:8])["error"]
    assert c.open() == me
    assert "has a leader" in recover(c, me, confirm=CLUSTER_ID[:8])["error"]
    assert c.members[me].disk.identity.cluster_id == new


@pytest.mark.parametrize("primary_too", [True, False])
@pytest.mark.parametrize(
    ("names", "witnesses", "commit", "k"),
    [("a b", "", "quorum", 2), ("a b c", "", "async", 1), ("a b w", "w", "quorum", 2), ("a b c d e", "", "quorum", 2)],
)
def test_of_every_kind_of_cluster_one_is_left_and_grows_again(
    names: str, witnesses: str, commit: str, k: int, *, primary_too: bool
) -> None:  # fmt: skip
    c, me = left_alone(names, primary_too, witnesses, commit)
    c.run(2500)
    term = c.members[me].disk.hard.term
    assert recover(c, me, confirm=CLUSTER_ID[:8]) == {}
    assert c.open() == me
    after = c.members[me]
    c.until(lambda: after.cluster["group"] == [[[me, 1]], 1, commit == "async"])
    assert after.disk.hard.term > term + recovery.TERM_GAP
    other = next(n for n in c.members if n != me and n not in witnesses)
    c.join(other)
    seats = f"{k} of {' '.join(sorted((me, other + '2')))}"
    c.until(lambda: c.roles(me) == " ".join(sorted((me, other))) and c.seats(me) == seats, 30_000)


def test_a_cluster_that_is_paused_stays_so_and_opens_all_the_same() -> None:
    """A person has asked for this primary."""
    c = Cluster("a", "b", "c", streams=True)
    first = c.open()
    assert c.ask(first, "pause", by="ann@here")["ok"]
    me = next(n for n in c.members if n != first)
    c.until(lambda: json.loads(c.members[me].cluster["config"]) == {"pause": True})
    for name, m in c.members.items():
        m.up = name == me
    has_data(c, me)
    c.run(2500)
    assert recover(c, me, confirm=CLUSTER_ID[:8]) == {}
    assert c.open() == me
    assert json.loads(c.members[me].cluster["config"]) == {"pause": True}
