"""What the node tells systemd, if it was started as a service of ``Type=notify``: sd_notify(3), by NOTIFY_SOCKET.

READY: this process serves, so `pgr status` has an answer; whether there is a primary is another question, which whoever
needs one has to ask. STATUS: the sentence that `pgr status` shows. STOPPING: asked to stop.
"""

from __future__ import annotations

import os
import socket

from fencing.logs import Log

CHARACTERS_MAX = 500


class Service:
    """Tells what has changed. Without NOTIFY_SOCKET nothing."""

    def __init__(self, log: Log) -> None:
        self.log, self.address = log, os.environ.get("NOTIFY_SOCKET", "")
        self.told: dict[str, str] = {}

    def turn(self, sentence: str, *, stopping: bool) -> None:
        if not self.address:
            return
        now = {"READY": "1", "STATUS": " ".join(sentence.split())[:CHARACTERS_MAX]}
        now |= {"STOPPING": "1"} if stopping else {}
        news = [f"{name}={value}" for name, value in now.items() if self.told.get(name) != value]
        if news and self._sent("\n".join(news)):
            self.told = now

    def _sent(self, text: str) -> bool:
        """False: not now; it is told with the next turn."""
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)
                address = self.address.encode(errors="surrogateescape")
                out.sendto(text.encode(errors="replace"), b"\0" + address[1:] if address[:1] == b"@" else address)
        except OSError as error:
            self.log.once_per("systemd", 10).warning("systemd.not_told", error=str(error), socket=self.address)
            return False
        return True
