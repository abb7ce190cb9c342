"""A node's own files as they change: real files, real events, no sleep."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fencing.clock import now_ns
from fencing.lease import MS
from fencing.logs import Log
from supervisor import filewatch
from supervisor.config import Config, Facts, load
from supervisor.filewatch import Files, digest, take, watched
from supervisor.observe import Facts as Seen


def config(place: Path, **flags: str) -> Config:
    path = place / "pgr.toml"
    given = {"data": str(place), "name": "a", **flags}
    text = path.read_text(encoding="utf-8") if path.exists() else None
    return load(given, {}, text, path, Facts("a", str(place)))


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filewatch, "CALM_MS", 20)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "pgr.toml").write_text('tags = { zone = "x" }\n', encoding="utf-8")
    return tmp_path


@pytest.fixture
def files(place: Path) -> Iterator[Files]:
    found = Files(config(place), Log("json", "a", "parent", fd=2))
    yield found
    found.close()


def settled(files: Files) -> bool:
    """As the loop does it: wait for the bell, then until it is calm. True: something else is in the files."""
    poll = select.poll()
    poll.register(files.fileno(), select.POLLIN)
    assert poll.poll(20_000), "nothing rang"
    while True:
        found = files.changed(now_ns())
        at = files.deadline_ns()
        if at is None:
            return found
        poll.poll(max(1, (at - now_ns()) // MS + 1))


def test_which_files_are_watched(tmp_path: Path) -> None:
    assert watched(config(tmp_path)) == (tmp_path / "pgr.toml",), "also one that is not there yet"
    both = config(tmp_path, http_tls_cert="/etc/x/both.pem", http_token_file="/etc/x/tokens")
    assert [str(path) for path in watched(both)[1:]] == ["/etc/x/tokens", "/etc/x/both.pem"]


def test_the_content_counts(tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"ab")
    two.write_bytes(b"c")
    before = digest((one, two))
    os.utime(one, (1, 1))
    assert digest((one, two)) == before
    one.write_bytes(b"a")
    two.write_bytes(b"bc")
    assert digest((one, two)) != before, "which file holds what counts too"
    two.unlink()
    assert digest((one, two)) != digest((one,)), "one that is missing is something else than none"


@pytest.mark.parametrize("how", ["written", "replaced", "linked", "removed"])
def test_an_edit_of_any_kind_is_seen(
    files: Files, place: Path, tmp_path_factory: pytest.TempPathFactory, how: str
) -> None:
    path, other = place / "pgr.toml", tmp_path_factory.mktemp("elsewhere") / "new"
    other.write_text('tags = { zone = "y" }\n', encoding="utf-8")
    match how:
        case "written":
            path.write_text(other.read_text(encoding="utf-8"), encoding="utf-8")
        case "replaced":
            other.rename(path)
        case "linked":  # as Kubernetes does
            link = place / "..data"
            link.symlink_to(other)
            link.rename(path)
        case _:
            path.unlink()
    assert settled(files)
    assert files.deadline_ns() is None


def test_what_holds_the_same_is_no_change(files: Files, place: Path) -> None:
    (place / "pgr.toml").write_text('tags = { zone = "x" }\n', encoding="utf-8")
    assert not settled(files)
    (place / "another").write_text("x", encoding="utf-8")
    assert not settled(files)


def test_it_is_looked_at_once_it_is_calm(files: Files, place: Path) -> None:
    (place / "pgr.toml").write_text("", encoding="utf-8")
    poll = select.poll()
    poll.register(files.fileno(), select.POLLIN)
    assert poll.poll(20_000)
    now = now_ns()
    assert not files.changed(now)
    assert files.deadline_ns() == now + filewatch.CALM_MS * MS
    assert not files.changed(now + filewatch.CALM_MS * MS - 1)


def test_it_is_looked_at_though_it_never_gets_calm(files: Files, place: Path) -> None:
    """Something else writes into that directory all the time."""
    poll = select.poll()
    poll.register(files.fileno(), select.POLLIN)
    (place / "pgr.toml").write_text("", encoding="utf-8")
    assert poll.poll(20_000)
    first = now = now_ns()
    while not files.changed(now):
        (place / "another").write_text(str(now), encoding="utf-8")
        assert poll.poll(20_000)
        assert now - first <= filewatch.LATEST_MS * MS, "not before it is calm, which it never is"
        now += filewatch.CALM_MS * MS // 2
    assert now - first == filewatch.LATEST_MS * MS


def context(made: Config) -> Any:
    return SimpleNamespace(config=made, log=Log("json", "a", "parent", fd=2), facts=Seen())


def test_what_is_taken_and_what_a_bad_file_changes(
    files: Files, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    path = place / "pgr.toml"
    argv = ["pgr-supervise", "--data", str(place), "--name", "a"]
    monkeypatch.setattr(sys, "argv", argv)
    c = context(config(place))
    path.write_text('tags = { zone = "y" }\n', encoding="utf-8")
    take(cast(Any, c), None, files, "test")
    assert (c.config.tags, c.facts.config_problem) == ({"zone": "y"}, "")
    path.write_text("tags = {", encoding="utf-8")
    take(cast(Any, c), None, files, "test")
    assert c.config.tags == {"zone": "y"}
    assert str(path) in c.facts.config_problem
    assert "config.not_reloaded" in capfd.readouterr().err
    path.write_text("", encoding="utf-8")
    take(cast(Any, c), None, files, "test")
    assert (c.config.tags, c.facts.config_problem) == ({}, "")


def test_what_http_does_not_take_is_said(files: Files, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["pgr-supervise", "--data", str(place), "--name", "a"])
    c = context(config(place))
    take(cast(Any, c), cast(Any, SimpleNamespace(reload=lambda _: "the key does not fit")), files, "test")
    assert c.facts.config_problem == "the key does not fit"


def test_other_files_are_followed(files: Files, place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokens = tmp_path_factory.mktemp("secret") / "tokens"
    tokens.write_text("a", encoding="utf-8")
    files.follow(replace(config(place), http_token_file=tokens))
    assert settled(files), "what changed meanwhile is not missed"
    tokens.write_text("b", encoding="utf-8")
    assert settled(files)


def test_without_inotify_it_is_looked_at_once_a_second(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from watchdog import observers

    class Refused(observers.Observer):  # type: ignore[misc,valid-type]  # a class chosen by the platform
        def start(self) -> None:
            raise OSError(24, "inotify instance limit reached")

    monkeypatch.setattr(observers, "Observer", Refused)
    files = Files(config(place), Log("json", "a", "parent", fd=2))
    try:
        (place / "pgr.toml").write_text('tags = { zone = "yy" }\n', encoding="utf-8")
        assert settled(files)
    finally:
        files.close()


def test_every_kind_of_event_is_one_that_the_package_knows() -> None:
    from watchdog import events

    assert all(issubclass(getattr(events, kind), events.FileSystemEvent) for kind in filewatch.EVENTS)
