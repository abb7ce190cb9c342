"""Latency without netem, which not every kernel has: a process between one node's cable and the bridge.

Run in the hub as ``python delay.py CABLE TAP DELAY_MS JITTER_MS``; every frame waits so long, each way, in order. It
says ``ready`` once it is in between and ends with its standard input; then the cable leads nowhere until it is plugged
back into the bridge. Frames keep what the kernel says of them (virtio header), as their checksums are not computed yet.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import socket
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable

from fencing.clock import now_ns

FRAME_BYTES_MAX = 70_000
TUNSETIFF, IFF_TAP, IFF_NO_PI, IFF_VNET_HDR = 0x400454CA, 0x0002, 0x1000, 0x4000
SOL_PACKET, PACKET_VNET_HDR, ETH_P_ALL = 263, 15, 3


class Way:
    """Frames in one direction, each with the instant it is due."""

    def __init__(self, take: Callable[[], bytes], hand_on: Callable[[bytes], object]) -> None:
        self.take, self.hand_on = take, hand_on
        self.waiting: deque[tuple[int, bytes]] = deque()

    def took(self, delay_ns: int) -> None:
        due_ns = now_ns() + delay_ns
        self.waiting.append((max(due_ns, self.waiting[-1][0] if self.waiting else 0), self.take()))

    def hand_on_due(self) -> None:
        while self.waiting and self.waiting[0][0] <= now_ns():
            try:
                self.hand_on(self.waiting.popleft()[1])
            except OSError:
                pass  # a full queue loses a frame, as queues do


def open_tap(name: str) -> int:
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    return fd


def open_cable(name: str) -> socket.socket:
    cable = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    cable.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    cable.bind((name, ETH_P_ALL))
    cable.setblocking(False)
    return cable


def main(cable_name: str, tap_name: str, delay_ms: float, jitter_ms: float) -> None:
    tap, cable = open_tap(tap_name), open_cable(cable_name)
    for words in (f"{tap_name} master bridge up", f"{cable_name} nomaster"):
        subprocess.run(["ip", "link", "set", *words.split()], check=True)
    ways = {
        tap: Way(lambda: os.read(tap, FRAME_BYTES_MAX), cable.send),
        cable.fileno(): Way(lambda: cable.recv(FRAME_BYTES_MAX), lambda frame: os.write(tap, frame)),
    }
    poll = select.poll()
    for fd in (0, *ways):
        poll.register(fd, select.POLLIN)
    print("ready", flush=True)
    while True:
        due = [way.waiting[0][0] for way in ways.values() if way.waiting]
        ready = {fd for fd, _ in poll.poll(max(0.0, (min(due) - now_ns()) / 1e6) if due else None)}
        if 0 in ready:
            return
        for fd, way in ways.items():
            if fd in ready:
                way.took(int((delay_ms + random.random() * jitter_ms) * 1e6))
            way.hand_on_due()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
