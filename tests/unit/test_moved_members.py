"""A member that was started with another address says so itself: the log can't be told by who gets no answers."""

from __future__ import annotations

from consensus.addressbook import AddressBook, Entry
from consensus.membership import Member


def listed(address: str, incarnation: int = 7) -> tuple[Member, ...]:
    return (Member("b", incarnation, address, "b:2", ""),)


def book(applied: int = 10) -> AddressBook:
    made = AddressBook()
    made.list_members(listed("old:1"), applied)
    return made


def test_a_member_is_dialed_where_it_says_it_is_however_little_it_knows() -> None:
    made = book()
    assert made.introduce("b", Entry(7, "new:1", 3), 10)
    assert made.current()["b"].address == "new:1"
    assert not made.introduce("b", Entry(7, "new:1", 4), 10), "nothing new"
    made.list_members(listed("old:1"), 12)
    assert made.current()["b"].address == "new:1", "until the log says so too"
    made.list_members(listed("new:1"), 13)
    assert made.introduced == {}


def test_one_that_moves_back_is_dialed_there() -> None:
    made = book()
    made.introduce("b", Entry(7, "new:1", 3), 10)
    assert made.introduce("b", Entry(7, "old:1", 3), 10)
    assert made.current()["b"] == Entry(7, "old:1")


def test_another_life_of_that_name_must_know_more_than_we_do() -> None:
    made = book()
    assert not made.introduce("b", Entry(8, "new:1", 10), 10)
    assert made.introduce("b", Entry(8, "new:1", 11), 10)
    assert made.current()["b"].incarnation == 8
    made.list_members(listed("new:1", 9), 11)
    assert made.current()["b"] == Entry(9, "new:1"), "overtaken by the log"
