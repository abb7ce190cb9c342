from __future__ import annotations

import os
import select
from collections.abc import Iterator

import pytest

from fencing.clock import now_ns
from supervisor.children import UNKNOWN, ChildTable
from supervisor.tasks import (
    NEVER,
    READ,
    WRITE,
    Outcome,
    Runner,
    Task,
    TaskTimeout,
    Wait,
    Woken,
    run_blocking,
    sleep,
    within,
)

MS = 1_000_000


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:
            pass  # the test closed it


def wait_once(wait: Wait, seen: list[Woken]) -> Task[str]:
    seen.append((yield wait))
    return "done"


def started(task: Task[object]) -> tuple[Runner, list[Outcome[object]]]:
    runner, outcomes = Runner(), list[Outcome[object]]()
    runner.start(task, outcomes.append, "t")
    assert runner.wait_for() == ({}, 0)  # a fresh task wants a turn at once
    runner.run({}, 0)
    return runner, outcomes


def test_a_task_gets_what_it_waited_for_and_its_result_reaches_the_owner() -> None:
    seen: list[Woken] = []
    runner, outcomes = started(wait_once(Wait(fd=7, read=True, until_ns=50), seen))
    assert runner.wait_for() == ({7: READ}, 50)
    runner.run({8: READ, 7: WRITE}, 49)  # neither its descriptor, nor its direction, nor its time
    assert not seen
    assert len(runner) == 1
    runner.run({7: READ}, 60)  # data wins over the deadline
    assert seen == [Woken(readable=True)]
    assert outcomes[0].unwrap() == "done"
    assert len(runner) == 0
    assert runner.wait_for() == ({}, NEVER)


def test_a_deadline_wakes() -> None:
    seen: list[Woken] = []
    runner, _ = started(wait_once(Wait(fd=7, read=True, until_ns=50), seen))
    runner.run({}, 50)
    assert seen == [Woken(timed_out=True)]


def test_an_error_on_the_descriptor_wakes_readers_and_writers() -> None:
    for wait, woken in ((Wait(7, read=True), Woken(readable=True)), (Wait(7, write=True), Woken(writable=True))):
        seen: list[Woken] = []
        runner, _ = started(wait_once(wait, seen))
        runner.run({7: 4}, 0)
        assert seen == [woken]


def test_a_condition_wakes_at_once() -> None:
    seen: list[Woken] = []
    flag: list[bool] = []
    runner, _ = started(wait_once(Wait(ready=lambda: bool(flag)), seen))
    assert runner.wait_for() == ({}, NEVER)
    runner.run({}, 10)
    assert not seen
    flag.append(True)
    assert runner.wait_for() == ({}, 0)
    runner.run({}, 10)
    assert seen == [Woken()]


def test_two_tasks_on_one_descriptor_are_merged() -> None:
    runner, seen = Runner(), list[Woken]()
    runner.start(wait_once(Wait(7, read=True, until_ns=9), seen), lambda _: None, "reader")
    runner.start(wait_once(Wait(7, write=True, until_ns=8), seen), lambda _: None, "writer")
    runner.run({}, 0)
    assert runner.names() == ["reader", "writer"]
    assert runner.wait_for() == ({7: READ | WRITE}, 8)
    runner.run({7: WRITE}, 0)
    assert seen == [Woken(writable=True)]
    assert runner.names() == ["reader"]


def test_an_exception_is_the_outcome() -> None:
    def fails() -> Task[None]:
        yield Wait(until_ns=0)
        raise OSError("disk")

    runner, outcomes = started(fails())
    runner.run({}, 1)
    with pytest.raises(OSError, match="disk"):
        outcomes[0].unwrap()


def test_cancel_cleans_up_and_tells_nobody() -> None:
    cleaned: list[str] = []

    def task() -> Task[None]:
        try:
            yield Wait(until_ns=NEVER - 1)
        finally:
            cleaned.append("yes")

    runner, outcomes = Runner(), list[Outcome[None]]()
    handle = runner.start(task(), outcomes.append, "t")
    runner.run({}, 0)
    handle.cancel()
    handle.cancel()
    assert cleaned == ["yes"]
    assert handle.done
    assert not outcomes
    assert len(runner) == 0
    runner.run({}, NEVER)
    assert not outcomes


def test_a_task_may_cancel_itself_and_others_in_the_same_turn() -> None:
    runner, seen = Runner(), list[str]()

    def killer() -> Task[None]:
        yield Wait(until_ns=5)
        victim.cancel()
        own.cancel()
        yield Wait(until_ns=0)
        seen.append("ran on")

    own = runner.start(killer(), lambda _: seen.append("told"), "killer")
    victim = runner.start(wait_once(Wait(until_ns=5), []), lambda _: seen.append("victim told"), "victim")
    runner.run({}, 0)
    runner.run({}, 5)
    assert own.done
    assert victim.done
    assert not seen
    assert len(runner) == 0


def test_a_task_started_by_an_ending_one_runs_in_the_next_turn() -> None:
    runner, seen = Runner(), list[Woken]()

    def start_second(_: Outcome[str]) -> None:
        runner.start(wait_once(Wait(until_ns=1), seen), lambda _: None, "second")

    runner.start(wait_once(Wait(until_ns=1), []), start_second, "first")
    runner.run({}, 0)
    runner.run({}, 1)
    assert runner.names() == ["second"]
    assert runner.wait_for()[1] == 0


def test_a_task_that_waits_for_nothing_is_an_error_not_a_hang() -> None:
    _, outcomes = started(wait_once(Wait(), []))
    with pytest.raises(ValueError, match="waits for nothing"):
        outcomes[0].unwrap()


def test_run_blocking_returns_raises_and_gives_up(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.write(writer, b"x")
    assert run_blocking(wait_once(Wait(reader, read=True), [])) == "done"
    with pytest.raises(ValueError, match="nothing"):
        run_blocking(wait_once(Wait(), []))
    os.read(reader, 1)
    closed: list[bool] = []

    def forever() -> Task[None]:
        try:
            while True:
                yield Wait(reader, read=True)
        finally:
            closed.append(True)

    with pytest.raises(TaskTimeout):
        run_blocking(forever(), now_ns() + 20 * MS)
    assert closed == [True]


def test_hang_up_wakes_a_reader(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(writer)
    assert run_blocking(wait_once(Wait(reader, read=True), []), now_ns() + 5_000 * MS) == "done"


def test_an_epoll_stands_for_several_descriptors(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    with select.epoll() as several:
        several.register(reader, select.EPOLLIN)
        os.write(writer, b"x")
        assert run_blocking(wait_once(Wait(several.fileno(), read=True), []), now_ns() + 5_000 * MS) == "done"


def test_sleep_lasts_and_within_keeps_the_inner_result() -> None:
    began = now_ns()
    run_blocking(sleep(20 * MS))
    assert now_ns() - began >= 20 * MS
    assert run_blocking(within(wait_once(Wait(until_ns=0), []), now_ns() + 5_000 * MS)) == "done"


def test_child_table_asks_the_kernel_or_the_reaper() -> None:
    table = ChildTable()
    first = os.spawnlp(os.P_NOWAIT, "true", "true")
    table.expect(first)
    while table.poll(first) is None:
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)
    assert table.poll(first) == 0
    assert table.poll(first) == 0
    second = os.spawnlp(os.P_NOWAIT, "sh", "sh", "-c", "kill -9 $$")
    table.expect(second)
    os.waitid(os.P_PID, second, os.WEXITED | os.WNOWAIT)
    assert second in table.reap_all()  # the loop was faster
    assert table.poll(second) == -9
    table.forget(second)
    assert table.poll(second) == UNKNOWN
    assert table.poll(os.getppid()) is None


def test_child_table_forgets_strangers_in_the_end_but_nobody_expected() -> None:
    table = ChildTable()
    table.expect(1_000_000_000)
    table.reap(1_000_000_000, 3 << 8)
    for stranger in range(2_000_000_000, 2_000_000_300):
        table.reap(stranger, 0)
    assert table.poll(1_000_000_000) == 3
    assert len(table._codes) == 257
