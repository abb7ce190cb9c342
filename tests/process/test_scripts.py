"""bin/*: what a machine lacks is named with the one command that brings it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.localcluster import private_home


@pytest.fixture
def clone(checkout: Path) -> Iterator[Path]:
    """As much of a checkout as the scripts need, without any environment."""
    home = private_home("pgr-clone-")
    home.chmod(0o755)
    shutil.copytree(checkout / "bin", home / "bin", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "uv.lock"):
        shutil.copy(checkout / name, home / name)
    yield home
    made = cache(home)
    assert made == home or made.is_relative_to("/var/cache/pgr")
    shutil.rmtree(made, ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)


def cache(home: Path) -> Path:
    words = ["bash", "-c", f'root={home}; . "$root/bin/env.sh"; cache_dir']
    return Path(subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip())


def run(clone: Path, *words: str, python: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("uv", path="/usr/bin:/bin"):
        pytest.skip("uv is installed for everybody: nothing is ever missing")
    fake = clone / "python3"
    fake.write_text(f'#!/bin/sh\n{python}\nexec /usr/bin/python3 "$@"\n', encoding="utf-8")
    fake.chmod(0o755)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(clone), "PGR_PYTHON": str(fake)}
    return subprocess.run([*words], env=env, cwd="/", capture_output=True, text=True, check=False)


@pytest.mark.parametrize("script", ["demo", "test"])
def test_without_venv_the_command_that_brings_it_is_named(clone: Path, script: str) -> None:
    done = run(clone, str(clone / "bin" / script), python='case "$*" in *ensurepip*) exit 1 ;; esac')
    assert done.returncode == 69, done.stderr
    assert "error: " in done.stderr
    assert "apt-get install -y python3" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("hint: ")


def test_an_unknown_argument_of_bin_test_is_wrong_usage(checkout: Path) -> None:
    done = subprocess.run([checkout / "bin" / "test", "--fast"], capture_output=True, text=True, check=False)
    assert done.returncode == 64
    assert "bin/test --ci" in done.stderr


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_checkout_that_postgres_can_not_read_is_run_from_a_copy(clone: Path) -> None:
    clone.chmod(0o700)
    os.chown(clone, 0, 0)
    (clone / "bin" / "demo").write_text(
        (clone / "bin" / "demo")
        .read_text(encoding="utf-8")
        .replace("make_environment base", 'echo "$root" "$@"; exit 0'),
        encoding="utf-8",
    )
    done = subprocess.run([clone / "bin" / "demo", "--once", "a b"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("/var/cache/pgr/")
    assert done.stdout.endswith("/checkout --once a b\n")
    assert str(clone) in done.stderr


@pytest.mark.parametrize("script", ["pgr", "pgr-supervise"])
@pytest.mark.parametrize("half", [False, True], ids=["none", "half made"])
def test_the_commands_make_the_environment_where_there_is_none(clone: Path, script: str, half: bool) -> None:
    if half:  # as an install that was stopped leaves it
        venv = cache(clone) / ("venv" if os.geteuid() == 0 else ".venv")
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to("/bin/false")
    python = clone / "bin" / "python.sh"
    text = python.read_text(encoding="utf-8").replace("make_environment base", 'echo "made for $root" >&2; exit 69')
    python.write_text(text, encoding="utf-8")
    bare = clone / "python3"
    bare.write_text('#!/bin/sh\nexec /usr/bin/python3 -I -S "$@"\n', encoding="utf-8")
    bare.chmod(0o755)
    env = {"PATH": f"{clone}:/usr/bin:/bin", "HOME": str(clone)}
    done = subprocess.run([clone / "bin" / script, "--help"], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 69, done.stderr
    assert done.stderr == f"made for {clone}\n"
