from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fencing.logs import Log
from supervisor.systemd import CHARACTERS_MAX, Service

Logged = tuple[Log, Callable[[], str]]


@pytest.fixture
def logged() -> Iterator[Logged]:
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    yield Log("json", "a", "parent", fd=writing), lambda: os.read(reading, 1 << 16).decode()
    os.close(reading)
    os.close(writing)


@pytest.fixture(params=["file", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    name = str(tmp_path / "notify") if request.param == "file" else f"@pgr-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(name.replace("@", "\0", 1))
        bound.settimeout(5)
        yield bound


def test_ready_once_the_status_when_it_changes_and_the_stop(systemd: socket.socket, logged: Logged) -> None:
    service = Service(logged[0])
    service.turn("waiting for\nb", stopping=False)
    service.turn("waiting for b", stopping=False)
    service.turn("primary, open to clients" + "x" * CHARACTERS_MAX, stopping=False)
    service.turn("standby of the primary", stopping=True)
    assert [systemd.recv(1000).decode() for _ in range(3)] == [
        "READY=1\nSTATUS=waiting for b",
        ("STATUS=primary, open to clients" + "x" * CHARACTERS_MAX)[: len("STATUS=") + CHARACTERS_MAX],
        "STATUS=standby of the primary\nSTOPPING=1",
    ]


def filled(other: socket.socket, address: str | bytes) -> int:
    """So many fit into its queue."""
    for sent in range(10_000):
        try:
            other.sendto(b"x", address)
        except BlockingIOError:
            return sent
    raise AssertionError("it has no end")


def test_what_could_not_be_told_is_told_later(systemd: socket.socket, logged: Logged) -> None:
    service = Service(logged[0])
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        sent = filled(other, systemd.getsockname())
    service.turn("early", stopping=False)
    assert [systemd.recv(1000) for _ in range(sent)] == [b"x"] * sent
    service.turn("late", stopping=False)
    assert systemd.recv(1000) == b"READY=1\nSTATUS=late"


def test_whoever_was_not_started_by_systemd_tells_nobody(logged: Logged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    service = Service(logged[0])
    service.turn("x", stopping=False)
    assert service.told == {}


def test_nobody_there_is_said_once_and_stops_nothing(
    tmp_path: Path, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "absent"))
    service = Service(logged[0])
    for sentence in "xyz":
        service.turn(sentence, stopping=False)
    assert logged[1]().count("systemd.not_told") == 1
