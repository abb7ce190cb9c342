"""The hardware watchdog, against a stand-in: a FIFO takes the place of the device, and its ioctls are answered here.

What the kernel's driver would do is known from the FIFO: it runs from the first byte on, each byte starts its time
anew, `V` right before the end stops it, and an end without resets the machine.
"""

from __future__ import annotations

import os
import select
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from fencing import hardware
from fencing.clock import now_ns
from fencing.hardware import AUTOMATIC, MODES, OFF, REQUIRED, Hardware, timeout_s
from fencing.lease import MS, PROFILES
from supervisor import options
from tests.pgbare import BarePostgres, own_directory
from tests.process.test_fencing import PATIENCE_S, L, Watched, until
from tests.process.test_refused_starts import Candidate, node

__all__ = ["node"]

WDIOC_SETTIMEOUT, WDIOC_GETTIMEOUT = 0xC0045706, 0x80045707
"""include/uapi/linux/watchdog.h, as the C compiler has them on x86 and arm."""


class Device:
    """What a driver with a least timeout of ``least_s`` does. The test is its other end."""

    def __init__(self, path: Path, least_s: int = 1, *, refuses: bool = False) -> None:
        self.path, self.least_s, self.refuses, self.has_s = path, least_s, refuses, 60
        os.mkfifo(path)
        path.chmod(0o666)
        self.end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def ioctl(self, fd: int, request: int, data: bytes) -> bytes:
        assert os.readlink(f"/proc/self/fd/{fd}") == str(self.path)
        if request == WDIOC_SETTIMEOUT:
            if self.refuses:
                raise OSError(22, "Invalid argument")
            self.has_s = max(self.least_s, *struct.unpack("i", data))
        else:
            assert request == WDIOC_GETTIMEOUT
        return struct.pack("i", self.has_s)

    def said(self) -> str:
        """Every byte since the last look; it ends in ``|`` if nobody has it open any more."""
        found = ""
        while True:
            try:
                data = os.read(self.end, 1000)
            except BlockingIOError:
                return found
            if not data:
                return f"{found}|"
            found += data.decode()

    def says(self, wanted: str) -> None:
        """Until these are all the bytes since the last look."""
        found = ""
        give_up_ns = now_ns() + int(PATIENCE_S * 1e9)
        while found != wanted:
            more = self.said()
            found += more if more != "|" or not found.endswith("|") else ""
            assert now_ns() < give_up_ns, f"it said {found!r} and not {wanted!r}"
            select.poll().poll(5)

    def close(self) -> None:
        os.close(self.end)


@pytest.fixture
def place() -> Iterator[Path]:
    home = own_directory("pgr-hw-")
    home.chmod(0o755)
    yield home / "watchdog"
    shutil.rmtree(home)


@pytest.fixture
def device(place: Path) -> Iterator[Device]:
    made = Device(place)
    yield made
    made.close()


def of(device: Device, mode: str = REQUIRED, profile: str = "default") -> Hardware:
    return Hardware(str(device.path), mode, PROFILES[profile], device.ioctl)


def test_it_is_asked_for_the_least_number_of_seconds_that_lease_and_kill_bound_fit_into(device: Device) -> None:
    assert {name: timeout_s(timings) for name, timings in PROFILES.items()} == {"fast": 1, "default": 1, "cloud": 2}
    for name, seconds in (("default", 1), ("cloud", 2)):
        made = of(device, profile=name)
        made.start()
        assert device.has_s == seconds
        made.stop()
        assert device.said() == "1V|"


def test_it_runs_from_the_start_to_the_stop_and_is_told_in_between(device: Device) -> None:
    made = of(device)
    made.pet()
    made.stop()
    assert device.said() == "|", "not open: nothing is said"
    assert made.state == f"{device.path}, 1 s, ready"
    made.start()
    made.start()
    assert made.state == f"{device.path}, 1 s, armed"
    made.pet()
    assert device.said() == "11"
    made.stop()
    made.stop()
    assert device.said() == "V|"


def test_with_other_timings_one_that_runs_goes_on_with_another_timeout(device: Device) -> None:
    made = of(device)
    made.retime(1900)
    assert device.said() == "|", "not open: nothing is said"
    made.start()
    assert device.has_s == 2
    made.retime(480)
    assert (device.has_s, made.state) == (1, f"{device.path}, 1 s, armed")
    made.stop()
    assert device.said() == "1V|", "no lease was renewed"


def test_one_that_does_not_take_it_is_stopped(place: Path) -> None:
    device = Device(place, least_s=2)
    made = of(device, profile="cloud")
    made.start()
    made.retime(480)
    assert device.said() == "1V|"
    assert made.missing
    device.close()


def test_left_behind_it_resets_the_machine(device: Device) -> None:
    made = of(device)
    made.start()
    made.abandon()
    assert device.said() == "1|"


def test_a_device_that_needs_longer_is_not_used_and_stopped_at_once(place: Path) -> None:
    device = Device(place, least_s=10)
    made = of(device)
    made.start()
    assert device.said() == "V|"
    assert made.missing
    assert made.problem is not None
    assert str(made.problem) == f"{place} is to reset the machine after 1 s and takes no less than 10 s"
    assert "slower profile (pgr config set)" in made.problem.hint
    assert made.state.startswith("not used: ")
    device.close()


def test_nor_one_that_takes_no_timeout(place: Path) -> None:
    device = Device(place, refuses=True)
    made = of(device)
    made.start()
    assert device.said() == "V|"
    assert "does not take a timeout of 1 s: Invalid argument" in str(made.problem)
    device.close()


def test_what_is_no_watchdog_is_told_by_the_kernel_itself(place: Path) -> None:
    """With the real ioctl: a FIFO has none."""
    device = Device(place)
    made = Hardware(str(place), AUTOMATIC, PROFILES["default"])
    made.start()
    assert "does not take a timeout of 1 s: Inappropriate ioctl" in str(made.problem)
    assert not made.missing, "automatic: it goes on without"
    device.close()


def test_one_that_is_not_there_and_one_that_somebody_else_has(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Hardware(str(place), REQUIRED, PROFILES["default"])
    made.probe()
    assert made.problem is not None
    assert (str(made.problem), "modprobe softdog" in made.problem.hint) == (
        f"{place} can not be opened: No such file or directory", True,
    )  # fmt: skip
    for code, words in ((16, "another program has it"), (13, "udev rule")):
        def fails(*_: object, code: int = code) -> int:
            raise OSError(code, "x")

        monkeypatch.setattr(os, "open", fails)
        made.probe()
        assert made.problem is not None
        assert words in made.problem.hint


def test_one_that_can_never_be_stopped_is_not_even_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text
    asked = []

    def sysfs(path: Path, **options: str) -> str:
        if str(path).startswith("/sys/class/watchdog"):
            asked.append(str(path))
            return "1\n"
        return read(path, **options)

    monkeypatch.setattr(Path, "read_text", sysfs)
    for name, number in (("/dev/watchdog", 0), ("/dev/watchdog3", 3)):
        made = Hardware(name, REQUIRED, PROFILES["default"])
        made.probe()
        assert "(nowayout)" in str(made.problem)
        assert asked[-1] == f"/sys/class/watchdog/watchdog{number}/nowayout"


def test_off_is_off(device: Device) -> None:
    made = of(device, OFF)
    made.probe()
    assert (made.state, made.missing, device.said()) == ("off", False, "|")


def test_the_configuration_has_the_same_words() -> None:
    assert sorted(options.WATCHDOG_MODES) == sorted(MODES)
    assert options.WATCHDOG_MODES[0] == AUTOMATIC
    assert options.WATCHDOG_DEVICE == hardware.DEVICE


# The watchdog child with it

STAND_IN = """
import fcntl, struct, sys
has = [60]

def ioctl(fd, request, data):
    if request == {set}:
        has[0] = max({least}, *struct.unpack("i", data))
    return struct.pack("i", has[0])

fcntl.ioctl = ioctl
"""
RUN = "from fencing import process\nsys.exit(process.main(sys.argv[1:]))\n"


class WithDevice(Watched):
    """The watchdog child of a Postgres, with a device."""

    def __init__(self, postgres: BarePostgres, device: Device, mode: str = REQUIRED) -> None:
        self.device = device
        program = STAND_IN.format(set=WDIOC_SETTIMEOUT, least=device.least_s) + RUN
        self.program = ["-c", program]
        self.more = ["--watchdog", mode, "--watchdog-device", str(device.path)]
        super().__init__(postgres)


@pytest.fixture
def guarded(postgres: BarePostgres, device: Device) -> Iterator[WithDevice]:
    made = WithDevice(postgres, device)
    yield made
    made.close()


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[BarePostgres]:
    with BarePostgres(tmp_path) as running:
        yield running


def test_it_runs_while_armed_and_each_renewal_is_one_word(guarded: WithDevice) -> None:
    device = guarded.device
    assert device.said() == "1V|", "tried once at the start, and stopped"
    assert guarded.ready["hardware"] == f"{device.path}, 1 s, ready"
    guarded.lease(5, now_ns() + L)
    assert device.said() == "|", "a lease without a Postgres that is armed is none of its business"
    assert guarded.arm()["ok"]
    device.says("11")
    for _ in range(3):
        select.poll().poll(50)  # leases are absolute: a later one has to be later
        guarded.lease(5, now_ns() + L)
        device.says("1")
    guarded.state()
    assert guarded.state()["hardware"].endswith("1 s, armed")
    assert device.said() == "", "questions are no renewals"
    guarded.as_parent.ask("deadman.disarm", "deadman.disarmed")
    device.says("V|")


def test_it_is_stopped_once_everything_is_killed_and_not_before(guarded: WithDevice) -> None:
    guarded.device.says("1V|")
    guarded.armed()
    guarded.device.says("11")
    guarded.killed()
    guarded.device.says("V|")


def test_a_refused_arming_leaves_it_stopped(guarded: WithDevice) -> None:
    guarded.device.said()
    assert not guarded.arm()["ok"]
    guarded.device.says("1V|")


def test_a_killed_watchdog_leaves_it_running_and_the_next_one_stops_it(
    guarded: WithDevice, postgres: BarePostgres
) -> None:
    guarded.armed()
    guarded.process.kill()
    guarded.process.wait()
    assert not guarded.device.said().endswith("V|"), "nobody guards Postgres: its time runs"
    after = WithDevice(postgres, guarded.device)
    try:
        assert guarded.device.said() == "1V|"
        assert after.arm(6, now_ns() + L - MS)["ok"]
        guarded.device.says("11")
        after.parent.kill()
        after.parent.wait()
        assert after.process.wait(PATIENCE_S) == 0
        assert guarded.device.said() == "V|", "an end with everything verified to be gone"
    finally:
        after.close()


def test_it_is_not_stopped_while_something_is_left(postgres: BarePostgres, device: Device) -> None:
    """A postmaster.pid that can not be read: nobody knows what is attached."""
    guarded = WithDevice(postgres, device)
    try:
        device.says("1V|")
        guarded.armed()
        path = postgres.pgdata / "postmaster.pid"
        path.rename(path.with_name("kept"))
        path.mkdir()
        device.says("11")
        assert guarded.as_parent.hear("deadman.killed").body["survivors"]
        assert guarded.state()["phase"] == "killing"  # so what comes after that word has been done
        assert device.said() == "", "open and not told any more: the machine is reset in time"
        path.rmdir()
        until(lambda: guarded.as_parent.hear("deadman.killed").body["survivors"] == 0, "it is verified")
        device.says("V|")
    finally:
        guarded.close()


def test_required_and_unusable_arms_nothing_and_automatic_does(postgres: BarePostgres, place: Path) -> None:
    device = Device(place, least_s=10)
    for mode in (REQUIRED, AUTOMATIC):
        guarded = WithDevice(postgres, device, mode)
        try:
            assert (guarded.ready["hint"] != "") is (mode == REQUIRED)
            answer = guarded.arm(5, now_ns() + L - MS)
            assert answer["ok"] is (mode == AUTOMATIC)
            if mode == REQUIRED:
                assert "takes no less than 10 s" in answer["reason"]
            guarded.as_parent.ask("deadman.disarm", "deadman.disarmed")
        finally:
            guarded.close()
    device.close()


# A node


def test_a_node_that_requires_what_is_not_there_does_not_start(node: Candidate) -> None:
    node.flags |= {"watchdog": "required", "watchdog-device": str(node.home / "none")}
    node.refused(69, "a hardware watchdog is required", "can not be opened: No such file")


def test_nor_with_a_device_whose_timeout_can_not_be_set(node: Candidate, place: Path) -> None:
    device = Device(place)
    node.flags |= {"watchdog": "required", "watchdog-device": str(place)}
    node.refused(69, "does not take a timeout of 1 s")
    device.close()


def test_by_default_it_goes_on_without_and_says_so(node: Candidate) -> None:
    node.flags["watchdog-device"] = str(node.home / "none")
    said = node.says("watchdog.started", "none can not be opened: No such file or directory")
    assert "not used: " in said

