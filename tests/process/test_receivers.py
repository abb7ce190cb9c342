"""Who among the children without a title is a backend: on real processes that do as a postmaster does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from supervisor.receivers import serves_client

POSTMASTER = """
import os, signal, socket, sys
def child():
    pid = os.fork()
    if not pid:
        signal.pause()
    return pid
listens = socket.create_server(("127.0.0.1", 0))
print(listens.getsockname()[1], flush=True)
taken, _ = listens.accept()
backend = child()
if sys.argv[1] == "closes":
    taken.close()
print(backend, child(), flush=True)
signal.pause()
"""


@contextmanager
def postmaster(what: str, title: str = sys.executable) -> Iterator[tuple[int, int, int]]:
    """(its pid, the pid of the child with a client, that of the next one)."""
    words = [title, "-c", POSTMASTER, what]
    process = subprocess.Popen(words, executable=sys.executable, stdout=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout is not None
    try:
        with socket.create_connection(("127.0.0.1", int(process.stdout.readline()))):
            backend, other = map(int, process.stdout.readline().split())
            yield process.pid, backend, other
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        process.stdout.close()


def test_only_a_connection_of_its_own_makes_a_child_a_backend() -> None:
    with postmaster("closes") as (pid, backend, other):
        assert serves_client(backend, pid)
        assert not serves_client(other, pid), "born with what listens, as every child is"


def test_what_the_postmaster_holds_as_well_tells_nothing() -> None:
    """Any child may have been born with it."""
    with postmaster("keeps") as (pid, backend, other):
        assert not serves_client(backend, pid)
        assert not serves_client(other, pid)


def test_a_child_with_a_title_is_what_its_title_says() -> None:
    """A WAL receiver that got its title between two looks has a connection of its own as well: to its primary."""
    with postmaster("closes", title="postgres: walreceiver ") as (pid, backend, _):
        assert not serves_client(backend, pid)


@pytest.mark.parametrize("gone", ["child", "postmaster"])
def test_who_cannot_be_looked_at_is_no_backend(gone: str) -> None:
    with postmaster("closes") as (pid, backend, _):
        nobody = (1 << 22) + 1  # above the kernel's PID_MAX_LIMIT
        assert not serves_client(nobody if gone == "child" else backend, nobody if gone == "postmaster" else pid)
