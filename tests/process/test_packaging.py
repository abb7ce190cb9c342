"""The wheel has one top-level name, so that supervisord, whose package is called supervisor, can live next to it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory, checkout: Path) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out)]
    subprocess.run(command, cwd=checkout, check=True, capture_output=True)
    (built,) = out.glob("*.whl")
    return built


def run(*words: str, path: Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(path)}
    return subprocess.run([sys.executable, *words], env=env, cwd="/", capture_output=True, text=True, check=False)


def test_the_wheel_has_one_name_and_everything_below_it(wheel: Path, checkout: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pgr_supervise"}
    for package in ("supervisor", "consensus", "fencing"):
        for source in (checkout / package).rglob("*.py"):
            assert f"pgr_supervise/app/{source.relative_to(checkout).as_posix()}" in names
    assert {"pgr_supervise/__init__.py", "pgr_supervise/__main__.py"} <= names
    assert not [name for name in names if "test" in name or name.endswith(".pyc")]


def test_a_foreign_supervisor_first_on_the_path_changes_nothing(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    (tmp_path / "supervisor").mkdir()
    (tmp_path / "supervisor" / "__init__.py").write_text("raise ImportError('the other one')\n", encoding="utf-8")
    admin = "import sys; from pgr_supervise import admin; sys.exit(admin())"
    done = run("-c", admin, "version", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pgr ")
    done = run("-m", "pgr_supervise", "--help", path=tmp_path)
    assert done.returncode == 0, done.stderr
