"""The replicated state: what each entry does, that a repeated or late one does nothing, that it survives a snapshot."""

from __future__ import annotations

from typing import Any

import pytest

from consensus.cluster import (
    FEATURE_LEVEL,
    ClusterState,
    Seat,
    SyncGroup,
    UnknownEntryError,
    apply,
    canonical,
    dump,
    found,
    load,
    sync_group,
)
from consensus.messages import Entry
from consensus.record import EpochStart

CHARTER = canonical({
    "members": [["a", 1, "a:1", "a:2", "a:3"], ["b", 2, "b:1", "b:2", "b:3"], ["c", 3, "c:1", "c:2", "c:3"]],
    "founder": "a", "commit": "quorum", "profile": "fast", "settings": {"parameters": {"work_mem": "8MB"}},
})  # fmt: skip
FOUNDING = ("founding/1", {"node": "a", "nonce": "n1", "replication_password": "secret", "at": "2026-01-01T00:00:00Z"})
INITIALIZED = ("initialized/1", {"nonce": "n1", "system_identifier": "77", "timeline": 1})


def entry(kind: str, body: dict[str, Any], term: int = 1, index: int = 1) -> Entry:
    return Entry(index, term, kind, canonical(body))


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
    assert state.burned_timelines(old.ancestry) == (3,)


@pytest.mark.parametrize("n", range(11))
def test_every_entry_twice_is_every_entry_once(n: int) -> None:
    """Except for a line of history that somebody asked for twice."""
    entries = story()
    if entries[n].kind in ("event/1", "wish/1"):
        return
    assert after([*entries[: n + 1], entries[n], *entries[n + 1 :]]) == after(entries)


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


def test_members_keep_their_place_when_addresses_change() -> None:
    state = after(story())
    assert [m.name for m in state.members] == ["a", "b", "c"]
    member = state.member("c")
    assert member is not None
    assert member.raft == "c:9"
    assert state.member("x") is None


@pytest.mark.parametrize("n", range(12))
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
