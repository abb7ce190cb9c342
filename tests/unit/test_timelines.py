from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consensus.record import EpochStart
from supervisor.controldata import record_end
from supervisor.timelines import (
    Switch,
    burned_text,
    format_lsn,
    history_name,
    history_numbers,
    history_text,
    install_list,
    newest_wal_timeline,
    parse_history,
    parse_lsn,
    segment_name,
    segment_start,
)

MB = 1 << 20
ANCESTRY = (EpochStart(0, 0, 1), EpochStart(3, 0x16EF490, 2), EpochStart(7, 0x1_0300_0148, 5))


@given(st.integers(0, (1 << 64) - 1))
def test_lsns_round_trip(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn


def test_lsn_texts() -> None:
    assert format_lsn(0x1_0300_0148) == "1/3000148"
    assert parse_lsn("0/016EF490") == 0x16EF490
    for text in ("", "1", "1/", "/1", "1/2/3", "x/1", "1/123456789", "-1/0", " 1/0"):
        with pytest.raises(ValueError, match="not an LSN"):
            parse_lsn(text)


def test_a_real_history_lists_every_ancestor() -> None:
    assert history_text(ANCESTRY, 5) == "1\t0/16EF490\tepoch 3\n2\t1/3000148\tepoch 7\n"
    assert history_text(ANCESTRY, 2) == "1\t0/16EF490\tepoch 3\n"
    assert parse_history(history_text(ANCESTRY, 5)) == (Switch(1, 0x16EF490), Switch(2, 0x1_0300_0148))


def test_no_history_of_what_is_no_ancestor() -> None:
    for timeline in (1, 3, 6):  # the first has no file; 3 was burned; 6 is to come
        with pytest.raises(ValueError, match="no descendant"):
            history_text(ANCESTRY, timeline)
    with pytest.raises(ValueError, match="no ancestry"):
        history_text((EpochStart(0, 0, 2), EpochStart(1, 8, 2)), 2)


def test_parsing_what_postgres_writes() -> None:
    text = "1\t0/16EF490\tno recovery target specified\n\n# a comment\n  2 0/2000000\tbefore 2000-01-01\n"
    assert parse_history(text) == (Switch(1, 0x16EF490), Switch(2, 0x2000000))
    for bad in ("1\n", "x\t0/1\n", "2\t0/1\n1\t0/2\n", "1\tnonsense\n"):
        with pytest.raises(ValueError, match=r"timeline|LSN"):
            parse_history(bad)


def test_a_burned_history_has_no_parent() -> None:
    assert parse_history(burned_text(9)) == ()


def test_everything_below_a_new_timeline_is_installed_without_a_gap() -> None:
    files = install_list(ANCESTRY, own=5, new=8)
    assert sorted(files) == [history_name(n) for n in (2, 3, 4, 5, 6, 7)]
    assert files[history_name(2)] == history_text(ANCESTRY, 2)
    assert files[history_name(5)] == history_text(ANCESTRY, 5)
    assert all(files[history_name(n)] == burned_text(n) for n in (3, 4, 6, 7))
    assert install_list(ANCESTRY[:1], own=1, new=2) == {}
    with pytest.raises(ValueError, match="higher"):
        install_list(ANCESTRY, own=5, new=5)


def test_history_numbers() -> None:
    names = ["0000000A.history", "00000002.history", "000000020000000000000001", "x.history", "00000003.history.tmp"]
    assert history_numbers(names) == (2, 10)


def test_segments() -> None:
    assert segment_name(2, 0x16EF490, 16 * MB) == "000000020000000000000001"
    assert segment_name(10, 0x1_FF00_0000, 16 * MB) == "0000000A00000001000000FF"
    assert segment_name(1, 0x1_0000_0000, MB) == "000000010000000100000000"
    assert segment_start("0000000A00000001000000FF", 16 * MB) == 0x1_FF00_0000


@given(st.sampled_from([1, 16, 1024]), st.integers(0, (1 << 48) - 1), st.integers(1, 1 << 20))
def test_segment_names_and_starts_agree(megabytes: int, lsn: int, timeline: int) -> None:
    start = segment_start(segment_name(timeline, lsn, megabytes * MB), megabytes * MB)
    assert start <= lsn < start + megabytes * MB


def test_the_newest_timeline_is_the_one_with_the_last_byte() -> None:
    names = ["000000010000000000000002", "000000020000000000000002", "000000030000000000000003", "00000003.history"]
    end = 3 * 16 * MB  # exactly at the end of segment 2: the byte before it counts
    assert newest_wal_timeline(names, end, 16 * MB) == 2
    assert newest_wal_timeline(names, end + 1, 16 * MB) == 3
    assert newest_wal_timeline(names, end, 16 * MB, frozenset({2})) == 1, "Postgres never came to use 2"
    assert newest_wal_timeline(["000000040000000000000002.partial"], end, 16 * MB) is None


def test_a_record_grows_by_the_page_headers_on_its_way() -> None:
    assert record_end(0x16EF418, 114, 16 * MB) == 0x16EF490  # seen: a shutdown checkpoint and the replay LSN after it
    assert record_end(0x2000 - 120, 114, 16 * MB) == 0x2000  # ends with the page
    assert record_end(0x2000 - 64, 114, 16 * MB) == 0x2000 + 24 + 56  # 50 bytes go on, rounded up to 8
    assert record_end(16 * MB - 64, 114, 16 * MB) == 16 * MB + 40 + 56  # a segment's first page has a longer header
