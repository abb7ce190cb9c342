"""A file system that a test can make hang: ext4 on a loop device, frozen by `fsfreeze`.

Whoever writes to it then is in uninterruptible sleep (state D), as with a controller or a network file system that does
not answer: SIGKILL is taken note of and nothing happens before the disk does. Reading goes on.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TOOLS = ("fsfreeze", "mkfs.ext4", "mount", "umount")
_SIZE_MB = 512


class HangingDisk:
    """Mounted at ``place`` (an existing directory), which then belongs to who owns it now. Goes on when closed."""

    def __init__(self, place: Path) -> None:
        missing = [tool for tool in TOOLS if shutil.which(tool) is None]
        if missing or os.geteuid() != 0:
            pytest.skip(f"needs root and {', '.join(missing or TOOLS)}")
        self.place, self.image = place, place.with_name(f"{place.name}.image")
        owner, mode = place.stat(), place.stat().st_mode & 0o777
        with self.image.open("wb") as file:
            file.truncate(_SIZE_MB << 20)
        _run("mkfs.ext4", "-q", "-F", self.image)
        try:
            _run("mount", "-o", "loop", self.image, place)
        except subprocess.CalledProcessError as error:
            self.image.unlink()
            pytest.skip(f"no loop device can be mounted here: {error.stderr}")
        (place / "lost+found").rmdir()
        os.chown(place, owner.st_uid, owner.st_gid)
        place.chmod(mode)
        self.hangs = False

    def hang(self) -> None:
        _run("fsfreeze", "--freeze", self.place)
        self.hangs = True

    def go_on(self) -> None:
        if self.hangs:
            _run("fsfreeze", "--unfreeze", self.place)
            self.hangs = False

    def close(self) -> None:
        """Whoever works in it has to be gone."""
        self.go_on()
        _run("umount", self.place)
        self.image.unlink()

    def __enter__(self) -> HangingDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def state(pid: int) -> str:
    """``D``, ``S``, ...; "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _run(*words: str | Path) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd="/")
