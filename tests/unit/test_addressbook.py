"""Who is where, and whose word counts for what."""

from __future__ import annotations

from typing import get_args

import pytest

from consensus.addressbook import INTRODUCED_MAX, REQUESTS, AddressBook, Entry
from consensus.membership import Member
from consensus.messages import (
    AppendResp,
    Forward,
    Hello,
    PeerMessage,
    PreVoteResp,
    PromiseResp,
    TimeoutNow,
    VoteReq,
    VoteResp,
)

GRANTS = (AppendResp, PreVoteResp, VoteResp, PromiseResp, TimeoutNow, Forward, Hello)
"""What an answer, an order or a wish is: it counts only from one whom the log here names."""


def example(kind: type[PeerMessage]) -> PeerMessage:
    """Only its class matters."""
    made: PeerMessage = tuple.__new__(kind, range(len(kind._fields)))
    return made


def book(applied: int = 10) -> AddressBook:
    made = AddressBook()
    made.list_members([Member("a", 1, "a:1", "", ""), Member("b", 2, "b:1", "", "")], applied)
    return made


def test_every_message_is_a_request_or_not() -> None:
    assert {*REQUESTS, *GRANTS} == set(get_args(PeerMessage))
    assert not {*REQUESTS} & {*GRANTS}


@pytest.mark.parametrize("kind", get_args(PeerMessage), ids=lambda k: k.__name__)
def test_a_member_is_believed_everything_and_one_that_introduced_itself_its_requests(kind: type[PeerMessage]) -> None:
    known = book()
    assert known.problem("a", 1, example(kind)) == ""
    assert known.problem("a", 9, example(kind)), "another life of it"
    assert known.problem("c", 3, example(kind)), "nobody knows it"
    known.introduce("c", Entry(3, "c:1", 11), 10)
    assert bool(known.problem("c", 3, example(kind))) == (kind in GRANTS)
    assert known.problem("c", 4, example(kind)), "somebody else's introduction"


def test_both_lives_of_a_name_may_ask_until_the_log_says_who_it_is() -> None:
    known = book()
    assert known.introduce("b", Entry(7, "b:1", 11), 10)
    assert known.problem("b", 2, example(VoteResp)) == ""
    assert known.problem("b", 7, example(VoteReq)) == ""
    assert known.problem("b", 7, example(VoteResp))
    known.list_members([Member("a", 1, "a:1", "", ""), Member("b", 7, "b:1", "", "")], 11)
    assert known.problem("b", 2, example(VoteReq))
    assert known.problem("b", 7, example(VoteResp)) == ""


def test_an_introduction_overlays_the_member() -> None:
    known = book()
    assert known.introduce("b", Entry(2, "b:9", 11), 10)
    assert known.current() == {"a": Entry(1, "a:1"), "b": Entry(2, "b:9", 11)}


def test_what_is_known_already_is_not_news() -> None:
    known = book()
    assert not known.introduce("a", Entry(1, "a:1", 11), 10)
    assert known.introduce("c", Entry(3, "c:1", 11), 10)
    assert not known.introduce("c", Entry(3, "c:1", 12), 10)
    assert known.current()["c"].index == 11


def test_a_stranger_that_knows_no_more_than_this_node_is_not_believed() -> None:
    """Were it a member, the log here would say so."""
    known = book()
    for index in (9, 10):
        assert not known.introduce("c", Entry(3, "c:1", index), 10)
        assert not known.introduce("b", Entry(7, "b:1", index), 10)
    assert known.introduced == {}
    assert known.introduce("c", Entry(3, "c:1", 11), 10)


def test_an_older_introduction_does_not_replace_a_newer_one() -> None:
    known = book()
    known.introduce("c", Entry(3, "c:1", 20), 10)
    assert not known.introduce("c", Entry(4, "c:2", 19), 10)
    assert known.introduce("c", Entry(4, "c:2", 20), 10)


def test_one_that_moved_is_believed_however_little_it_knows() -> None:
    """It restarted with a log as it was; nobody can send it anything before its new address is known."""
    known = book()
    assert known.introduce("b", Entry(2, "b:9", 3), 10)
    assert known.current()["b"] == Entry(2, "b:9", 3)
    assert known.problem("b", 2, example(VoteResp)) == "", "it is the same member"
    known.introduce("c", Entry(3, "c:1", 20), 10)
    assert known.introduce("c", Entry(3, "c:2", 19), 10)
    assert not known.introduce("c", Entry(3, "c:2", 21), 10)


def test_one_that_moves_back_is_dialed_there() -> None:
    book = AddressBook()
    book.list_members((Member("b", 7, "old:1", "b:2", ""),), 10)
    assert book.introduce("b", Entry(7, "new:1", 3), 10)
    assert book.introduce("b", Entry(7, "old:1", 3), 10)
    assert (book.current(), book.introduced) == ({"b": Entry(7, "old:1")}, {})


def test_introductions_are_bounded() -> None:
    known = book()
    for n in range(INTRODUCED_MAX):
        assert known.introduce(f"n{n}", Entry(n, f"n:{n}", 11), 10)
    assert not known.introduce("one_more", Entry(99, "n:99", 11), 10)
    assert known.introduce("n0", Entry(0, "n:77", 12), 10), "one that is known may move"


def test_the_log_overtakes_introductions_up_to_its_index() -> None:
    known = book()
    known.introduce("c", Entry(3, "c:1", 11), 10)
    known.introduce("d", Entry(4, "d:1", 12), 10)
    known.introduce("b", Entry(2, "b:9", 12), 10)
    listed = [Member("a", 1, "a:1", "", ""), Member("b", 2, "b:9", "", "")]
    known.list_members(listed, 11)
    assert known.introduced == {"d": Entry(4, "d:1", 12)}, "c would be listed by now; b is, with this address"
    known.list_members(listed, 12)
    assert known.introduced == {}
