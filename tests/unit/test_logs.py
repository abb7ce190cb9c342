"""Log lines: both formats, no secrets, never blocking, never raising."""

from __future__ import annotations

import enum
import fcntl
import json
import os
import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fencing import logs
from fencing.logs import Log, render, scrub
from supervisor.errors import (
    BugError,
    DiskError,
    ExitCode,
    MissingError,
    PgrError,
    RefusedError,
    TryAgainError,
    UsageError,
    exit_for,
    explain,
)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass


def lines(reader: int) -> list[str]:
    os.set_blocking(reader, False)
    data = b""
    while True:
        try:
            piece = os.read(reader, 1 << 20)
        except BlockingIOError:
            break
        if not piece:
            break
        data += piece
    return data.decode().splitlines()


def text(event: str, /, **fields: object) -> str:
    return render("text", event, fields, ts_ns=1_700_000_000_123_456_789, level="info", node="a", process="parent")


def test_text() -> None:
    line = text("role.changed", role="primary", term=3, why="no lease", ok=True, none=None, at=1.5)
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d\.123 a  role\.changed  role=primary term=3 why="no lease" ok=true none=- at=1\.5', line
    )
    assert text("x").endswith(" a  x")


def test_text_names_level_and_process() -> None:
    line = render("text", "e", {}, ts_ns=0, level="warning", node="a", process="raft")
    assert line.endswith(".000 a/raft  WARNING e")


def test_json() -> None:
    class Colour(enum.Enum):
        RED = "red"

    fields = {
        "node": "b",
        "n": 1,
        "set": {2, 1},
        "c": Colour.RED,
        "e": ValueError("x"),
        "nan": float("nan"),
        "ü": "ü\n",
    }
    line = render("json", "e.v", fields, ts_ns=1_700_000_000_123_456_789, level="error", node="a", process="parent")
    assert "\n" not in line
    assert json.loads(line) == {
        "ts": "2023-11-14T22:13:20.123Z",
        "level": "error",
        "node": "a",
        "process": "parent",
        "event": "e.v",
        "fields": {"node": "b", "n": 1, "set": [1, 2], "c": "red", "e": "x", "nan": "nan", "ü": "ü\n"},
    }


@given(st.dictionaries(st.text(max_size=5), st.text(), max_size=3))
def test_one_event_is_one_line(fields: dict[str, str]) -> None:
    for fmt in ("text", "json"):
        line = render(
            logs.as_format(fmt),
            "e",
            {f"k{i}": v for i, v in enumerate(fields.values())},
            ts_ns=0,
            level="info",
            node="a",
            process="",
        )
        assert "\n" not in line
        assert "\r" not in line


@pytest.mark.parametrize(
    "secret",
    [
        "host=h password=SECRET user=u",
        "password='SECRET' x",
        "ALTER ROLE x PASSWORD 'SECRET'",
        "PGPASSWORD=SECRET psql",
        "postgres://u:SECRET@h/db",
        '{"password": "SECRET"}',
        "pgr_token: SECRET",
        "password=SEC\\'RET".replace("SEC\\'RET", "'a SECRET\\' SECRET'"),
    ],
)
def test_secrets_never_show(secret: str) -> None:
    assert "SECRET" not in scrub(secret)
    assert "SECRET" not in text("e", dsn=secret, many=[secret], deep={"k": secret}, error=ValueError(secret))


def test_fields_named_like_secrets_are_hidden_and_others_are_not() -> None:
    line = text("e", password="x1", repl_password="x2", token="x3", cluster_key="/k", password_file="/pw")
    assert "x1" not in line
    assert "x2" not in line
    assert "x3" not in line
    assert "cluster_key=/k" in line
    assert "password_file=/pw" in line


def test_a_reader_that_is_gone_costs_lines_only(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    log = Log("text", "a", "parent", fd=writer)
    os.close(reader)
    log.info("one")
    log.error("two")


def test_a_stuck_reader_never_blocks_and_the_loss_is_told(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 8192)
    log = Log("json", "a", "parent", fd=writer)
    for number in range(200):  # far beyond what the pipe holds; a blocking write would hang here
        log.info("filler", number=number, padding="x" * 100)
    assert os.get_blocking(writer), "stderr is shared with others: its mode is not ours to change"
    first = lines(reader)
    log.info("again")
    after = [json.loads(line) for line in lines(reader) if line]
    assert [line["event"] for line in after] == ["log.dropped", "again"]
    whole = [line for line in first if line.endswith("}}")]
    assert after[0]["fields"]["lines"] == 200 - len(whole)


def test_a_closed_stderr_is_survived() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    Log("text", "a", "parent", fd=writer).info("nobody listens")


def test_once_per(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pipe
    clock = [0]
    monkeypatch.setattr(logs, "now_ns", lambda: clock[0])
    log = Log("json", "a", "parent", fd=writer)
    for _ in range(5):
        log.once_per("dial.b", 10).warning("peer.unreachable", peer="b")
    log.once_per("dial.c", 10).warning("peer.unreachable", peer="c")
    clock[0] = 10 * 1_000_000_000
    log.named("raft").once_per("dial.b", 10).warning("peer.unreachable", peer="b")
    got = [json.loads(line) for line in lines(reader)]
    assert [line["fields"] for line in got] == [{"peer": "b"}, {"peer": "c"}, {"peer": "b", "suppressed": 4}]
    assert got[2]["process"] == "raft"


def test_debug_is_off_unless_asked_for(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = pipe
    monkeypatch.delenv("PGR_DEBUG", raising=False)
    Log("text", "a", "parent", fd=writer).debug("hidden")
    monkeypatch.setenv("PGR_DEBUG", "1")
    Log("text", "a", "parent", fd=writer).debug("shown")
    assert [line.split()[-1] for line in lines(reader)] == ["shown"]


@pytest.mark.parametrize(
    ("cls", "code"),
    [(UsageError, 64), (MissingError, 69), (BugError, 70), (DiskError, 74), (TryAgainError, 75), (RefusedError, 78)],
)
def test_exit_codes(cls: type[PgrError], code: int) -> None:
    assert exit_for(cls("what", "do")) == (code, "what", "do")
    assert explain("what", "do") == "error: what\n\nhint: do\n"


def test_errors_of_the_lower_packages_are_mapped_without_importing_them() -> None:
    def made(module: str, name: str, **attributes: object) -> Exception:
        error: Exception = type(name, (Exception,), {"__module__": module, "__qualname__": name, **attributes})("text")
        return error

    assert exit_for(made("consensus.storage", "StorageFullError")).code == ExitCode.DISK
    assert exit_for(made("consensus.storage", "StorageBusyError", exit_code=78)).code == ExitCode.REFUSED
    assert exit_for(made("consensus.transport", "PortTakenError")).code == ExitCode.MISSING
    assert exit_for(made("consensus.keys", "KeyFileError")).code == ExitCode.USAGE
    own = exit_for(made("consensus.process", "RefusedToStartError", exit_code=78, hint="look"))
    assert own == (ExitCode.REFUSED, "text", "look")
    assert exit_for(made("elsewhere", "StorageFullError")).code == ExitCode.BUG
    assert exit_for(OSError(28, "No space left on device")).code == ExitCode.DISK
    assert exit_for(PermissionError(13, "Permission denied")).code == ExitCode.MISSING
    assert exit_for(KeyError("x")).code == ExitCode.BUG
