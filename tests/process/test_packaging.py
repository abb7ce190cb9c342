"""The wheel has one top-level name, so that supervisord, whose package is called supervisor, can live next to it."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
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


def run(python: Path | str, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    return subprocess.run([str(python), *words], env=env, cwd="/", capture_output=True, text=True, check=False)


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
    done = run(sys.executable, "-c", admin, "version", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("pgr ")
    done = run(sys.executable, "-m", "pgr_supervise", "--help", path=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(os.environ.get("PGR_TEST_LEVEL") != "all", reason="downloads supervisord: bin/test --all")
@pytest.mark.timeout(300)
def test_supervisord_and_pgr_in_one_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    bin_dir = tmp_path / "env" / "bin"
    done = run(bin_dir / "python", "-m", "pip", "install", "-q", str(wheel), "supervisor", "setuptools<81")
    assert done.returncode == 0, done.stderr
    for program, word, beginning in (("pgr", "version", "pgr "), ("supervisord", "--version", "4.")):
        done = run(bin_dir / program, word)
        assert (done.returncode, done.stdout.startswith(beginning)) == (0, True), done.stdout + done.stderr
    assert run(bin_dir / "pgr-supervise", "--help").returncode == 0
