"""Programs from PyPI that tests use as their users do: each in an environment of its own, next to nothing of pgr's."""

from __future__ import annotations

import subprocess
import venv
from pathlib import Path

import pytest

INSTALL_S = 400


def installed(home: Path, *requirements: str) -> Path:
    """Where the programs are. Skips the test where they can't be had, and says why."""
    venv.create(home, with_pip=True)
    words = ["-m", "pip", "--disable-pip-version-check", "install", "-q", *requirements]
    done = subprocess.run(
        [home / "bin" / "python", *words], capture_output=True, text=True, check=False, timeout=INSTALL_S
    )
    if done.returncode:
        pytest.skip(f"{requirements[0]} does not install here: {done.stderr[-400:]}")
    return home / "bin"
