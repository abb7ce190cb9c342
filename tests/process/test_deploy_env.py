"""What the image's ENTRYPOINT would run, with the image's environment and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from consensus.keys import new_key
from supervisor.localcluster import write_secret
from tests.pgbare import pg_bin
from tests.process.test_refused_starts import Candidate, node
from tests.unit.test_deploy import DOCKERFILE, image_env

__all__ = ["node"]

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]


def test_what_the_image_copies_is_enough_to_build_from(tmp_path: Path, checkout: Path) -> None:
    for words in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        *sources, place = words.split()
        target = tmp_path / place.removeprefix("/usr/src/pgr").strip("/")
        for source in sources:
            if (checkout / source).is_dir():
                shutil.copytree(checkout / source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(checkout / source, target)
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as file:
        assert {"pgr_supervise/__main__.py", "pgr_supervise/app/supervisor/entry.py"} <= set(file.namelist())


def test_a_container_without_a_key_says_what_it_needs(node: Candidate) -> None:
    node.flags, node.env = {}, image_env() | {"PGR_DATA": str(node.data)}
    node.refused(64, "there is no cluster key", "pgr key new")


def test_one_container_alone_becomes_a_primary(node: Candidate) -> None:
    """Ports and paths of this machine; everything else as the image has it, root included, which compose does not."""
    listen, port, http = (node.flags[flag].rpartition(":")[2] for flag in ("listen", "pg-port", "http"))
    here = {
        "PGR_DATA": str(node.data),
        "PGR_LISTEN": f"0.0.0.0:{listen}",
        "PGR_HTTP": f"0.0.0.0:{http}",
        "PGR_PG_BIN": str(pg_bin()),
    }
    env = image_env()
    assert set(here) <= set(env), "replaced, not added"
    key = write_secret(node.home / "cluster.key", new_key())
    password = write_secret(node.home / "superuser", "secret")
    given = {"PGR_CLUSTER_KEY_FILE": str(key), "POSTGRES_PASSWORD_FILE": str(password)}
    own = {"PGR_NAME": "a", "PGR_PEERS": f"a=127.0.0.1:{listen}", "PGR_PG_PORT": port, "PGR_WATCHDOG": "off"}
    user = {"PGR_USER": node.flags["user"]} if "user" in node.flags else {}
    node.flags, node.env = {}, env | here | given | own | user
    said = node.says("cluster.created", "gate.open")
    assert said.startswith("{"), "JSON, as PGR_LOG_FORMAT says"
