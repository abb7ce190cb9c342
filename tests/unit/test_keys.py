"""The cluster key file: what is accepted, and what the refusals say."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import zmq

from consensus.keys import (
    LOOPBACK_PREFIX,
    ClusterKey,
    KeyFileError,
    derived_key,
    derived_key_text,
    founding_seed,
    new_key,
    parse_key,
    read_key,
)


def written(path: Path, content: str, mode: int = 0o600) -> Path:
    path.write_text(content)
    path.chmod(mode)
    return path


def test_a_new_key_is_read_back(tmp_path: Path) -> None:
    text = new_key()
    key = read_key(written(tmp_path / "key", text))
    assert text == f"pgr1:{key.secret.decode()}\n"
    assert key == parse_key(text)
    assert key.public == zmq.curve_public(key.secret)
    assert new_key() != text


def test_the_secret_is_not_shown() -> None:
    key = parse_key(new_key())
    assert key.secret.decode() not in repr(key)


@pytest.mark.parametrize(
    "text",
    ["", "pgr1:", "pgr2:" + "0" * 40, "0" * 40, "pgr1:" + "0" * 39, "pgr1:" + "~" * 40, "pgr1:" + "#" * 40,
     "pgr1:" + "é" * 40, ("pgr1:" + "0" * 40 + "\n") * 2],
)  # fmt: skip
def test_malformed(text: str, tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="pgr key new") as error:
        read_key(written(tmp_path / "key", text))
    assert error.value.exit_code == 64
    assert str(tmp_path / "key") in str(error.value)


def test_binary_and_huge_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"\xff" * 100)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(KeyFileError, match="not text"):
        read_key(tmp_path / "key")
    with pytest.raises(KeyFileError):
        read_key(written(tmp_path / "key", new_key() * 1000))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="does not exist") as error:
        read_key(tmp_path / "key")
    assert error.value.exit_code == 69


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="directory"):
        read_key(tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644, 0o666])
def test_open_to_others(mode: int, tmp_path: Path) -> None:
    path = written(tmp_path / "key", new_key(), mode)
    with pytest.raises(KeyFileError, match=f"chmod 600 {path}"):
        read_key(path)


def test_a_mounted_secret() -> None:
    """Kubernetes: owned by root, mode 0440, read by a process that is not root but in the group."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to make a file of root's and read it as somebody else")
    with tempfile.TemporaryDirectory() as directory:  # pytest's own are closed to other users
        path = written(Path(directory) / "key", new_key(), 0o440)
        path.parent.chmod(0o755)
        os.seteuid(65534)
        try:
            assert read_key(path).public
            os.seteuid(0)
            path.chmod(0o444)
            os.seteuid(65534)
            with pytest.raises(KeyFileError, match="chmod 600"):
                read_key(path)
        finally:
            os.seteuid(0)


def test_derived() -> None:
    assert derived_key("a") == derived_key("a") != derived_key("b")
    key = derived_key("a")
    assert parse_key(f"pgr1:{key.secret.decode()}") == key == ClusterKey(key.secret, key.public)


def test_a_derived_key_in_a_file_is_the_same_key_and_says_that_it_is_no_secret(tmp_path: Path) -> None:
    seed = founding_seed(["b", "a"])
    assert seed == founding_seed(["a", "b"]) != founding_seed(["a", "b", "c"])
    text = derived_key_text(seed)
    assert read_key(written(tmp_path / "key", text)) == derived_key(seed)
    assert text.startswith(LOOPBACK_PREFIX)
    assert not new_key().startswith(LOOPBACK_PREFIX)
