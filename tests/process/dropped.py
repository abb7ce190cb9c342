"""Run a test as the user ``postgres`` when the tests run as root, as the daemon drops root before anything else.

Either way the test gets a directory of its own, ``home()``, which is removed at its end.
"""

from __future__ import annotations

import functools
import os
import pwd
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec

import pytest

from tests.pgbare import own_directory

P = ParamSpec("P")
_home: list[Path] = []


def home() -> Path:
    """Of the test that runs."""
    return _home[-1]


def dropped(test: Callable[P, None]) -> Callable[P, None]:
    """Decorator: an ordinary user runs the test as it is; root runs it in a child process that has dropped root."""

    @functools.wraps(test)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        _home.append(own_directory("pgrt-"))
        try:
            inner(*args, **kwargs)
        finally:
            shutil.rmtree(_home.pop())

    def inner(*args: P.args, **kwargs: P.kwargs) -> None:
        if os.geteuid() != 0:
            test(*args, **kwargs)
            return
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                entry = pwd.getpwnam("postgres")
                os.setgroups([])
                os.setresgid(entry.pw_gid, entry.pw_gid, entry.pw_gid)
                os.setresuid(entry.pw_uid, entry.pw_uid, entry.pw_uid)
                os.environ["HOME"] = "/nonexistent"
                os.chdir("/")
                test(*args, **kwargs)
                code = 0
            except BaseException:
                os.write(writer, traceback.format_exc().encode()[-60000:])
            finally:
                sys.stdout.flush()
                os._exit(code)
        os.close(writer)
        with open(reader, "rb") as pipe:
            said = pipe.read().decode(errors="replace")
        if os.waitpid(pid, 0)[1] != 0:
            pytest.fail(f"as user postgres:\n{said}", pytrace=False)

    return wrapper
