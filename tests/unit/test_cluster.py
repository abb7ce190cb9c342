"""The replicated state: what each entry does, that a repeated or late one does nothing, that it survives a snapshot."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from consensus.cluster import (
    FEATURE_LEVEL,
    REMOVED_KEPT_MAX,
    Change,
    ClusterState,
    Reinit,
    Seat,
    SyncGroup,
    UnknownEntryError,
    apply,
    canonical,
    found,
    sync_group,
)
from consensus.clustertext import dump, load
from consensus.membership import LEARNER, VOTER, Member
from consensus.messages import Entry
from consensus.record import EpochStart
from fencing import wire
from supervisor import observe

CHARTER = canonical({
    "members": [["a", 1, "a:1", "a:2", "a:3"], ["b", 2, "b:1", "b:2", "b:3"], ["c", 3, "c:1", "c:2", "c:3"]],
    "founder": "a", "commit": "quorum", "profile": "fast", "settings": {"parameters": {"work_mem": "8MB"}},
})  # fmt: skip
FOUNDING = ("founding/1", {"node": "a", "nonce": "n1", "replication_password": "secret", "at": "2026-01-01T00:00:00Z"})
INITIALIZED = ("initialized/1", {"nonce": "n1", "system_identifier": "77", "timeline": 1})


def entry(kind: str, body: dict[str, Any], term: int = 1, index: int = 1) -> Entry:
    return Entry(index, term, kind, canonical(body))


A, B, C = (Member(n, i, f"{n}:1", f"{n}:2", f"{n}:3") for i, n in enumerate("abc", 1))
ABC, AB = SyncGroup((Seat("a", 1), Seat("b", 2), Seat("c", 3)), 2), SyncGroup((Seat("a", 1), Seat("b", 2)), 2)


def members(*listed: Member, index: int = 12) -> Entry:
    body = {"members": [list(m) for m in listed], "kind": "joined", "node": "c", "text": "is let in again"}
    return entry("members/1", body, 4, index)


def change(old: SyncGroup, new: SyncGroup, index: int = 13) -> Entry:
    plain = [[[list(seat) for seat in group.members], group.k] for group in (old, new)]
    body = {"old": plain[0], "new": plain[1], "kind": "sync group", "node": "a", "text": "is changed"}
    return entry("change/1", body, 4, index)


def promoted(term: int, node: str, timeline: int) -> Entry:
    return entry(
        "promoted/1", {"term": term, "node": node, "upper": [0, 9], "timeline": timeline, "reason": "why"}, term
    )


def story() -> list[Entry]:
    return [
        Entry(1, 1, "noop/1", ""), entry(*FOUNDING), entry(*INITIALIZED), promoted(1, "a", 2),
        entry("switched/1", {"term": 1, "ancestry": [[0, 0, 1], [1, 9, 2]]}), entry("opened/1", {"term": 1}),
        entry("failed/1", {"term": 1, "reason": "crash"}), promoted(4, "b", 3),
        entry("member/1", {"member": ["c", 3, "c:9", "c:2", "c:3"]}),
        entry("wish/1", {"kind": "switchover", "to": "c", "accept_data_loss": True}, 4),
        entry("event/1", {"kind": "salvage", "term": 4, "node": "a", "text": "saved", "fields": {"bytes": 5}}),
        members(A, B, Member("c", 4, "c:9", "c:2", "c:3", LEARNER, VOTER)),
        change(ABC, AB),
        entry("done/1", {"index": 13, "node": "b"}, 4, 14),
        entry("fence/1", {"node": "c", "down": True, "by": "ann@db1"}, 4, 15),
        entry("reinit/1", {"node": "a", "incarnation": 1}, 4, 16),
        entry("rebuilt/1", {"node": "a", "index": 16}, 4, 17),
    ]  # fmt: skip


def after(entries: list[Entry]) -> ClusterState:
    state = found(CHARTER, "00")
    for one in entries:
        state = apply(state, one)
    return state


def test_the_founding() -> None:
    state = found(CHARTER, "00")
    assert (state.group, state.founder, state.profile, state.was_opened) == (
        SyncGroup((Seat("a", 1), Seat("b", 2), Seat("c", 3)), 2),
        "a",
        "fast",
        False,
    )
    state = after(story()[:3])
    assert (state.nonce, state.system_identifier, state.initial_timeline) == ("n1", "77", 1)
    assert "secret" not in repr(state)


def test_a_second_founding_and_a_foreign_nonce_change_nothing() -> None:
    state = after(story()[:2])
    assert apply(state, entry("founding/1", {"node": "b", "nonce": "n2", "replication_password": "x"})) == state
    assert apply(state, entry("initialized/1", {"nonce": "n2", "system_identifier": "78", "timeline": 1})) == state


def test_grants() -> None:
    state = after(story())
    old, new = state.grants
    assert (old.node, old.opened, old.failed, old.ancestry) == (
        "a",
        True,
        "crash",
        (EpochStart(0, 0, 1), EpochStart(1, 9, 2)),
    )
    assert (new.node, new.term, new.opened, new.failed) == ("b", 4, False, "")
    assert state.grant == new
    assert state.was_opened
    assert state.next_timeline() == 4


@pytest.mark.parametrize("n", range(17))
def test_every_entry_twice_is_every_entry_once(n: int) -> None:
    """Except for a line of history that somebody asked for twice."""
    entries = story()
    twice, once = after([*entries[: n + 1], entries[n], *entries[n + 1 :]]), after(entries)
    if entries[n].kind in ("event/1", "wish/1", "members/1"):
        assert len(twice.history) == len(once.history) + 1
        twice = replace(twice, history=once.history)
    assert twice == once


def test_what_concerns_an_older_grant_or_term_changes_nothing() -> None:
    state = after(story())
    for late in (
        entry("opened/1", {"term": 1}), entry("failed/1", {"term": 1, "reason": "late"}), promoted(4, "c", 9), promoted(3, "c", 9),  # noqa: E501
        entry("switched/1", {"term": 1, "ancestry": []}), entry("promoted/1", {"term": 9, "node": "c"}, 8),
        entry("member/1", {"member": ["c", 99, "c:8", "c:2", "c:3"]}),
    ):  # fmt: skip
        assert apply(state, late) == state, late


def test_a_wish_ends_with_the_next_grant() -> None:
    state = after(story())
    assert (state.wish_to, state.wish_loss) == ("c", True)
    state = apply(state, promoted(5, "c", 4))
    assert (state.wish_to, state.wish_loss) == ("", False)


def test_a_wish_that_a_grant_came_before_is_void() -> None:
    """Else an accepted loss would wait, unseen, for the next loss of a primary."""
    state = apply(after(story()), promoted(5, "c", 4))
    late = {"kind": "failover", "to": "b", "accept_data_loss": True, "at": "t"}
    void = apply(state, entry("wish/1", {**late, "after": 4}))
    assert (void.wish_to, void.wish_loss) == ("", False)
    in_time = apply(state, entry("wish/1", {**late, "after": 5}))
    assert (in_time.wish_to, in_time.wish_loss) == ("b", True)


def test_a_list_of_members_replaces_the_one_before_and_remembers_who_left() -> None:
    state = apply(after(story()[:11]), members(Member("d", 9, "", "", "", LEARNER, VOTER), B, A))
    assert [m.name for m in state.members] == ["a", "b", "d"], "sorted"
    assert state.removed == (Seat("c", 3),)
    assert state.history[-1][1:5] == ("joined", 4, "c", "is let in again")
    assert state.group == ABC, "the sync group is changed by its own entries only"
    assert state.seated(state.group) == {"a", "b"}
    again = apply(state, members(A, B, C._replace(incarnation=7)))
    assert again.removed == (Seat("c", 3), Seat("d", 9))
    assert again.seated(again.group) == {"a", "b"}, "a seat is the incarnation's"


def test_as_many_former_members_are_remembered_as_may_come_back() -> None:
    state = after([])
    for life in range(1, REMOVED_KEPT_MAX + 5):
        state = apply(state, members(A, B, C._replace(incarnation=life + 100)))
    assert len(state.removed) == REMOVED_KEPT_MAX
    assert state.removed[-1] == Seat("c", REMOVED_KEPT_MAX + 103)


def test_an_address_changes_nothing_else() -> None:
    """Role and aim are the leader's to set; the member may not know the newest."""
    state = apply(after([]), members(A, B, C._replace(role=LEARNER, aim="gone:a")))
    state = apply(state, entry("member/1", {"member": ["c", 3, "c:8", "c:2", "c:3", "witness", "voter"]}))
    assert state.member("c") == C._replace(raft="c:8", role=LEARNER, aim="gone:a")


def test_a_change_of_the_sync_group_opens_and_ends() -> None:
    state = after(story()[:12])
    assert (state.groups, state.wanted_group, state.change) == ((ABC,), ABC, None)
    state = apply(state, change(ABC, AB))
    assert state.change == Change(13, ABC, AB)
    assert state.group == ABC
    assert state.groups == (ABC, AB), "both count until it is done"
    assert state.wanted_group == AB
    for late in (entry("done/1", {"index": 12, "node": "a"}), entry("done/1", {"index": 14, "node": "a"})):
        assert apply(state, late) == state, "the end of another one"
    state = apply(state, entry("done/1", {"index": 13, "node": "a"}))
    assert (state.groups, state.wanted_group, state.change) == ((AB,), AB, None)
    assert state.history[-1].text == "2 of a, b acknowledge a commit"
    assert apply(state, entry("done/1", {"index": 13, "node": "a"})) == state, "once"


def test_an_open_change_is_reverted_by_its_reverse_and_nothing_else() -> None:
    state = apply(after(story()[:12]), change(ABC, AB))
    just_a = SyncGroup((Seat("a", 1),), 1)
    for other in (change(ABC, AB, 15), change(ABC, just_a, 15), change(AB, just_a, 15)):
        assert apply(state, other) == state
    state = apply(state, change(AB, ABC, 15))
    assert state.change == Change(15, AB, ABC)
    assert apply(state, entry("done/1", {"index": 13, "node": "a"})) == state, "the end of the one that was reverted"
    assert apply(state, entry("done/1", {"index": 15, "node": "a"})).groups == (ABC,)


@pytest.mark.parametrize("new", [ABC, AB._replace(k=0), AB._replace(k=3), SyncGroup((), 0)], ids=str)
def test_a_change_to_the_same_or_to_nonsense_is_none(new: SyncGroup) -> None:
    state = after(story()[:12])
    assert apply(state, change(ABC, new)) == state
    assert apply(state, change(AB, ABC)) == state, "nor from another than the one in force"


def test_members_keep_their_place_when_addresses_change() -> None:
    state = after(story())
    assert [m.name for m in state.members] == ["a", "b", "c"]
    member = state.member("c")
    assert member is not None
    assert member.raft == "c:9"
    assert state.member("x") is None


@pytest.mark.parametrize("n", range(15))
def test_dump_and_load(n: int) -> None:
    state = after(story()[:n])
    assert load(dump(state)) == state
    assert dump(load(dump(state))) == dump(state)


def test_a_newer_version_stops_the_node() -> None:
    with pytest.raises(UnknownEntryError, match="teleported/1"):
        apply(ClusterState(), entry("teleported/1", {}))
    newer = dump(ClusterState()).replace(f'"level":{FEATURE_LEVEL}', f'"level":{FEATURE_LEVEL + 1}')
    with pytest.raises(UnknownEntryError, match="newer version"):
        load(newer)


@pytest.mark.parametrize(
    ("n", "mode", "k"), [(1, "quorum", 1), (2, "quorum", 2), (3, "quorum", 2), (5, "quorum", 3), (5, "async", 1)]
)
def test_the_default_group(n: int, mode: str, k: int) -> None:
    assert sync_group((Seat(name, 1) for name in "abcde"[:n]), mode).k == k


# -- kept down, copied anew


def fence(node: str, down: bool) -> Entry:
    return entry("fence/1", {"node": node, "down": down, "by": "ann@db1"}, 4, 20)


def test_who_is_fenced_is_so_until_told_otherwise_or_no_member() -> None:
    state = after([*story(), fence("b", True), fence("x", True)])
    assert state.fenced == ("b", "c"), "sorted, and members only"
    assert state.history[-1][1:5] == ("fenced", 4, "b", "is fenced: its Postgres is kept down (asked for by ann@db1)")
    assert apply(state, promoted(5, "a", 4)).fenced == ("b", "c"), "a new primary changes nothing"
    lifted = apply(state, fence("b", False))
    assert (lifted.fenced, lifted.history[-1].text) == (("c",), "is fenced no more (asked for by ann@db1)")
    assert apply(lifted, fence("b", False)) == lifted
    assert apply(state, members(A, B)).fenced == ("b",)
    assert load(dump(state)) == state


def test_a_copy_is_asked_for_once_and_done_once() -> None:
    asked = apply(after(story()), entry("reinit/1", {"node": "b", "incarnation": 2, "by": "ann@db1"}, 4, 21))
    again = entry("reinit/1", {"node": "b", "incarnation": 2}, 4, 22)
    assert asked.reinit_of("b") == Reinit(Seat("b", 2), 21)
    assert asked.history[-1].text == "is to get a new copy (asked for by ann@db1)"
    assert apply(asked, again) == asked, "it is not made twice"
    assert load(dump(asked)) == asked
    assert apply(asked, entry("rebuilt/1", {"node": "b", "index": 20}, 4, 23)) == asked, "another request's"
    done = apply(asked, entry("rebuilt/1", {"node": "b", "index": 21}, 4, 23))
    assert (done.reinit_of("b"), done.history[-1].text) == (None, "has its new copy")
    assert apply(done, again).reinit_of("b") == Reinit(Seat("b", 2), 22)
    assert asked.reinit_of("a") is None
    assert asked.reinit_of("x") is None


def test_a_copy_is_that_of_a_life() -> None:
    state = after(story())
    assert apply(state, entry("reinit/1", {"node": "b", "incarnation": 9}, 4, 21)) == state
    asked = apply(state, entry("reinit/1", {"node": "b", "incarnation": 2}, 4, 21))
    assert apply(asked, members(A)).reinits == ()


def test_a_snapshot_from_before_there_was_any_of_it_is_read() -> None:
    body = json.loads(dump(after(story()[:14])))
    del body["fenced"], body["reinits"]
    assert load(canonical(body)) == after(story()[:14])
# -- cluster-wide settings


def configured(index: int, after: int, put: dict[str, Any], unset: tuple[str, ...] = ()) -> Entry:
    body = {"set": put, "unset": list(unset), "after": after, "node": "a", "text": "eve: strict", "at": "then"}
    return entry("config/1", body, 4, index)


def test_settings_are_set_and_unset_in_order() -> None:
    state = found(CHARTER, "00")
    assert json.loads(state.config) == {"postgres.parameters.work_mem": "8MB"}, "what the charter says"
    state = apply(state, configured(20, 0, {"strict": False, "commit": "async"}))
    assert (state.setting("strict"), state.commit_mode, state.config_index) == (False, "async", 20)
    assert not state.asynchronous, "not before the sync group has changed"
    assert state.history[-1][:5] == ("then", "config", 4, "a", "eve: strict")
    late = apply(state, configured(21, 0, {"strict": True}))
    assert late == state, "it was checked against what is not set any more"
    state = apply(state, configured(22, 20, {"sync_acks": 1}, ("commit", "strict", "never was")))
    assert (state.setting("strict"), state.commit_mode, state.setting("sync_acks")) == (True, "quorum", 1)
    assert load(dump(state)) == state


def test_a_setting_of_a_newer_version_is_kept() -> None:
    state = apply(found(CHARTER, "00"), configured(20, 0, {"of_tomorrow": [1]}))
    assert json.loads(load(dump(state)).config)["of_tomorrow"] == [1]


@pytest.mark.parametrize("mode", ["quorum", "async"])
def test_a_snapshot_and_entries_older_than_the_settings(mode: str) -> None:
    charter = CHARTER.replace('"quorum"', f'"{mode}"')
    k = 1 if mode == "async" else 2
    old = change(ABC._replace(k=k), AB._replace(k=k))
    body = json.loads(old.data)
    body["old"], body["new"] = body["old"][:2], body["new"][:2]
    state = apply(found(charter, "00"), old._replace(data=canonical(body)))
    assert state.change is not None
    assert state.asynchronous == (mode == "async")
    before = json.loads(dump(state))
    for name in ("config", "config_index"):
        del before[name]
    before["level"], before["group"] = 1, before["group"][:2]
    before["change"] = [before["change"][0], *(group[:2] for group in before["change"][1:])]
    assert load(canonical(before)) == state


def test_the_group_that_the_settings_want() -> None:
    state = found(CHARTER, "00")
    wanted = [state.rule(state.group.members[:n]).k for n in (1, 2, 3)]
    assert wanted == [1, 2, 2]
    three = replace(state, config='{"sync_acks":2}')
    assert [three.rule(three.group.members[:n]).k for n in (1, 2, 3)] == [3, 3, 3]
    loose = replace(state, config='{"strict":false,"sync_acks":2}')
    assert [loose.rule(loose.group.members[:n]).k for n in (0, 1, 2, 3)] == [1, 1, 2, 3]


def test_a_life_of_many_promotions_fits_into_one_frame() -> None:
    """Each has its ancestry, which has all before it: only the newest are kept, and still every beginning is known."""
    now, ancestry, told = found(CHARTER, "00"), [[0, 0, 1]], 0
    for term in range(1, 1001):
        ancestry.append([term, term << 24, term + 1])
        for kind, body in (
            ("promoted/1", {"node": "a", "upper": [term - 1, term << 24], "timeline": term + 1, "reason": "x" * 80}),
            ("switched/1", {"ancestry": ancestry}), ("opened/1", {}), ("failed/1", {"reason": "y" * 40}),
        ):  # fmt: skip
            told += 1
            now = apply(now, entry(kind, body | {"term": term, "at": "2030-01-01T00:00:00Z"}, term, told))
    assert len(wire.encode("raft.cluster", {"index": told, "state": dump(now)})) < wire.FRAME_BYTES_MAX // 4
    assert observe.began(now, 7) == 7 << 24
    assert now.grant is not None
    assert len(now.grant.ancestry) == 1001


def test_long_settings_do_not_outgrow_a_frame() -> None:
    now = found(CHARTER, "00")
    for index in range(1, 100):
        lines = [f"host all all 10.{index}.{n}.0/24 scram-sha-256" for n in range(200)]
        body = {"set": {"postgres.hba": lines}, "unset": [], "after": now.config_index, "by": "me", "at": "t"}
        body |= {"node": "", "text": f"postgres.hba: {lines} -> {lines}"}
        now = apply(now, entry("config/1", body, 1, index))
        assert now.config_index == index
    assert now.history[-1].text.endswith(" ...")
    assert len(wire.encode("raft.cluster", {"index": 100, "state": dump(now)})) < wire.FRAME_BYTES_MAX // 4
