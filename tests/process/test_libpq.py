"""psycopg.pq without the rest of psycopg: in a fresh interpreter each, because a module is imported once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HEAVY = "('psycopg.connection', 'psycopg.adapt', 'asyncio.events', 'importlib.metadata', '_ssl', '_hashlib')"
ONE_CLASS = """
from psycopg.errors import OperationalError
try:
    pq.PGconn.connect(b"").exec_(b"select 1")
except OperationalError:
    pass
else:
    raise AssertionError("the wrapper raises another class than psycopg.errors has")
"""


def python(*parts: str, options: tuple[str, ...] = ()) -> str:
    code = "\n".join((f"import sys; sys.path.insert(0, {str(ROOT)!r}); from supervisor import libpq", *parts))
    done = subprocess.run(
        [sys.executable, "-P", *options, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_only_what_is_needed_is_loaded() -> None:
    said = python(
        "pq = libpq.load()", ONE_CLASS, f"print(pq.version() >= 100000, [m for m in {HEAVY} if m in sys.modules])"
    )
    assert said == "True []"


def test_all_of_psycopg_is_there_for_whoever_asks() -> None:
    python(
        "pq = libpq.load()",
        "import asyncio, ssl, psycopg, psycopg.rows",
        "from psycopg import Connection, OperationalError, errors, pq as same, sql",
        "assert same is pq and errors.OperationalError is OperationalError",
        "assert psycopg.Connection is Connection and psycopg.__version__ and psycopg.rows.dict_row",
        "assert asyncio.run and asyncio.CancelledError is asyncio.exceptions.CancelledError and ssl.SSLContext",
        "try: psycopg.connect('host=/nowhere')",
        "except OperationalError as error: assert '/nowhere' in str(error), error",
    )


def test_psycopg_that_is_loaded_already_stays_as_it_is() -> None:
    python(
        "import psycopg; before = psycopg.connect", "assert libpq.load() is psycopg.pq and psycopg.connect is before"
    )


def test_a_psycopg_that_does_not_load_like_this_is_imported_plainly() -> None:
    """Such as one whose __init__ must have run before psycopg.pq."""
    said = python(
        "plain = libpq._postpone",
        "def broken(name):",
        "    plain(name)",
        "    if name == 'psycopg': sys.modules['psycopg.pq.misc'] = None",
        "libpq._postpone = broken",
        "pq = libpq.load()",
        ONE_CLASS,
        "import psycopg, asyncio",
        "print(pq is psycopg.pq, type(psycopg).__name__, type(asyncio).__name__, 'psycopg.adapt' in sys.modules)",
    )
    assert said == "True module module True"


def test_without_psycopg_the_reason_is_told() -> None:
    """-S: without site-packages."""
    python(
        "try: libpq.load()",
        "except ImportError as error: assert error.name == 'psycopg'",
        "else: raise AssertionError('where does it come from?')",
        options=("-S",),
    )
