"""psycopg's wrapper of libpq, ``psycopg.pq``, without the rest of psycopg: 8 MB less in a process that runs for years.

``psycopg/__init__.py`` imports adapters, connections and asyncio, none of which ``psycopg.pq`` needs. While it is
imported, the packages named here stand in ``sys.modules`` without having run: their submodules can be imported as ever,
and whoever touches another name of one gets all of it, in the same module, from then on. A psycopg that does not load
like this is imported plainly.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

from fencing.realtime import compact

_POSTPONED = ("psycopg", "psycopg_c", "psycopg_binary", "asyncio", "ssl")
"""ssl: psycopg wants libcrypto's callbacks set before libpq could do it; neither has done so since OpenSSL 1.1."""


class _Postponed(ModuleType):
    """A module that runs when a name is asked of it that it lacks."""

    def __getattr__(self, name: str) -> Any:
        own = self.__name__
        if name == "__path__" or self.__spec__ is None or self.__spec__.loader is None:
            raise AttributeError(f"module {own!r} has no attribute {name!r}", name=name, obj=self)
        if "__path__" in self.__dict__ and not name.startswith("__"):
            try:
                return importlib.import_module(f"{own}.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"{own}.{name}":
                    raise
        self.__class__ = ModuleType  # type: ignore[assignment]  # from here on it is like any other
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def load() -> ModuleType:
    """``psycopg.pq``; ImportError if there is no psycopg that works."""
    if "psycopg" not in sys.modules:
        before = set(sys.modules)
        try:
            for name in _POSTPONED:
                _postpone(name)
            # All that psycopg.errors wants of asyncio.
            cancelled = importlib.import_module("asyncio.exceptions").CancelledError
            sys.modules["asyncio"].__dict__.setdefault("CancelledError", cancelled)
            importlib.import_module("psycopg.pq")
            importlib.import_module("psycopg.errors")
        except Exception:  # whatever it is: the plain import below says it too, or has none of it
            for name in set(sys.modules) - before:
                if name.partition(".")[0] in _POSTPONED:
                    del sys.modules[name]
        importlib.import_module("psycopg.pq")
        compact()
    return importlib.import_module("psycopg.pq")


def _postpone(name: str) -> None:
    if name in sys.modules:
        return
    spec = importlib.util.find_spec(name)
    if spec is not None:
        made = _Postponed(name)
        made.__spec__, made.__loader__, made.__package__, made.__file__ = spec, spec.loader, spec.parent, spec.origin
        if spec.submodule_search_locations is not None:
            made.__path__ = spec.submodule_search_locations
        sys.modules[name] = made
