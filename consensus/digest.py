"""blake2b without hashlib, whose import maps OpenSSL: 1 to 3 MB in every process, for something it is not used for."""

from __future__ import annotations

try:
    from _blake2 import blake2b  # what hashlib.blake2b is
except ImportError:  # a Python built without it
    from hashlib import blake2b

__all__ = ["blake2b"]
