"""pgr_node.json through a rewind, which empties it and writes the source's over it, and may be killed in between."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supervisor.rebuild import MARK, MARK_KEPT, is_copy_of, put_mark_back, read_mark, write_mark

MINE, SOURCE = 7, 9


@pytest.fixture
def pgdata(tmp_path: Path) -> Path:
    place = tmp_path / "pgdata"
    place.mkdir()
    (place / "PG_VERSION").write_text("18\n", encoding="ascii")
    write_mark(place, MINE, "nonce", rebuilt=3)
    (tmp_path / MARK_KEPT).write_bytes((place / MARK).read_bytes())
    return place


@pytest.mark.parametrize("left", ["", '{"incar', json.dumps({"incarnation": SOURCE}), None])
def test_what_is_not_ours_any_more_is_put_back(tmp_path: Path, pgdata: Path, left: str | None) -> None:
    if left is None:
        (pgdata / MARK).unlink()
    else:
        (pgdata / MARK).write_text(left, encoding="ascii")
    assert not is_copy_of(pgdata, MINE)
    put_mark_back(tmp_path, pgdata)
    assert read_mark(pgdata) == {"incarnation": MINE, "nonce": "nonce", "rebuilt": 3, "fresh": False}
    assert not (tmp_path / MARK_KEPT).exists()


def test_a_newer_mark_of_ours_stays(tmp_path: Path, pgdata: Path) -> None:
    """The file could not be removed before, or came back with a power cut."""
    write_mark(pgdata, MINE, "nonce", rebuilt=4, fresh=True)
    put_mark_back(tmp_path, pgdata)
    assert read_mark(pgdata) == {"incarnation": MINE, "nonce": "nonce", "rebuilt": 4, "fresh": True}
    assert not (tmp_path / MARK_KEPT).exists()


def test_where_somebody_moved_the_data_away_nothing_is_made(tmp_path: Path, pgdata: Path) -> None:
    pgdata.rename(tmp_path / "elsewhere")
    put_mark_back(tmp_path, pgdata)
    assert not pgdata.exists()
    assert not (tmp_path / MARK_KEPT).exists()
