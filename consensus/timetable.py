"""Times that people give, and whether what is scheduled is due. Pure.

A schedule is about the wall clock, and the leader's is the one that counts: it says when, never who may write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

LATE_S = 15
"""What could not be begun this long after its time is dropped: who asked for that time did not ask for another."""
AHEAD_MAX = timedelta(days=366)
_STEP = re.compile(r"(\d{1,6})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
EXAMPLES = "for example `--at 2030-01-31T03:00+01:00`, `--at 2030-01-31T02:00Z` or `--at +90m`"


@dataclass(frozen=True, slots=True)
class BadTime(Exception):
    """A time that is not understood or makes no sense: why, and what to write."""

    reason: str
    hint: str = EXAMPLES


def parse(text: str, now: datetime) -> datetime:
    """ISO 8601 with a zone, or ``+5m``, ``+1h30m`` from ``now`` (aware). UTC, whole seconds. Raises BadTime."""
    try:
        return _parse(text.strip(), now)
    except OverflowError:
        raise BadTime(f"{text[:40]!r} is beyond the calendar") from None


def _parse(text: str, now: datetime) -> datetime:
    if text.startswith("+"):
        found = _relative(text[1:])
        if found is None:
            raise BadTime(f"{text!r} is no time from now on")
        at = now + found
    else:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise BadTime(f"{text!r} is no time") from None
        if at.tzinfo is None:
            raise BadTime(f"{text!r} has no time zone: nobody knows which hour is meant")
    at = at.astimezone(UTC).replace(microsecond=0)
    if at <= now:
        raise BadTime(f"{written(at)} has passed: it is {written(now)}")
    if at - now > AHEAD_MAX:
        raise BadTime(f"{written(at)} is more than a year away")
    return at


def _relative(text: str) -> timedelta | None:
    steps = _STEP.findall(text)
    if not steps or "".join(number + unit for number, unit in steps) != text:
        return None
    return sum((timedelta(**{_UNITS[unit]: int(number)}) for number, unit in steps), timedelta())


def written(at: datetime) -> str:
    """ISO 8601, UTC, whole seconds."""
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def verdict(at: str, now: datetime, *, paused: bool, open_primary: bool) -> tuple[bool, str]:
    """Is it to be begun now, and else why it is dropped; (False, ""): not yet. ``at``: as `written`.

    In pause nothing happens by itself, as with Patroni.
    """
    due = datetime.fromisoformat(at)
    if now < due:
        return False, ""
    if now - due > timedelta(seconds=LATE_S):
        return False, f"is dropped: its time passed {(now - due).total_seconds():.0f} s ago, when it could not be begun"
    if paused:
        return False, "is dropped: the cluster is paused"
    return open_primary, ""
