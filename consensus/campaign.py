"""The leader's notes of one term: who has promised what, and how far the way to a primary has come. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from consensus.operations import Scheduled
from consensus.positions import NoPosition
from consensus.record import Position
from fencing.lease import MS


@dataclass(slots=True)
class Campaigning:
    """The leader's notes of one term. Thrown away with the term."""

    term: int
    promises: dict[str, Position | NoPosition] = field(default_factory=dict)
    quorum_at_ns: int = 0
    ask_at_ns: int = 0
    granted_index: int = 0
    """Index of this node's `Promoted`, once proposed."""
    granted_at_ns: int = 0
    handing_over_to: str | None = None
    """Set while the parent is asked to stop Postgres for a switchover."""
    handed_over: bool = False
    reform_at_ns: int = 0
    change_seen: tuple[int, int] = (0, 0)
    """Index of the open change of the sync group, and since when this leader knows of it."""
    short_since_ns: int = 0
    """Fewer than k of the sync group have streamed since; 0: enough do."""
    turn_seen: tuple[tuple[int, int, int], int] = ((0, 0, 0), 0)
    """How far the restart under way has come (its index, how many are done, whose turn), and since when."""
    begun: tuple[int, Scheduled] | None = None
    """Index of the entry with which this leader has begun what was scheduled; it is carried out once that is
    committed."""
    sentence: str = ""
    hook_asked: bool = False
    """The parent is to run the pre_promote hook, until it has said how it ended."""
    hook_runs: int = 0
    """How often it was asked in this term: an answer counts for the newest run only."""
    hook_passed: bool = False
    vetoed_at_ns: int = 0
    """When it last said no."""
    switched_at_ns: int = 0
    """Since when this leader has led with the switch of a change of timings in its log; 0: there is none."""
    lacking_since_ns: int = 0
    """Since when a change of timings has waited for a voter; 0: it does not."""
    retiming: str = ""
    """What a change of the timings waits for, for people."""

    def ask_hook(self, wanted: bool) -> None:
        """Or no longer: then the parent ends a run."""
        self.hook_runs += wanted and not self.hook_asked
        self.hook_asked = wanted

    def told_sentence(self) -> str:
        """For people: what a change waits for, before what was decided."""
        return self.retiming or self.sentence

    def hook_wanted(self) -> list[int]:
        """For the parent: the term and the number of the run; zeros: none."""
        return [self.term, self.hook_runs] if self.hook_asked else [0, 0]

    def vetoed_ms(self, now_ns: int) -> int | None:
        """Since the hook said no here, in this term; None: it has not."""
        return (now_ns - self.vetoed_at_ns) // MS if self.vetoed_at_ns else None

    def told(self) -> dict[str, tuple[int, int, int, str]]:
        """The promises, for people: ``(term, epoch, lsn, reason)``; epoch -1: no position."""
        return {
            name: (self.term, *p, "") if isinstance(p, Position) else (self.term, -1, 0, p.reason)
            for name, p in sorted(self.promises.items())
        }

    def closed_ms(self, now_ns: int) -> int:
        """Since it proposed its grant."""
        return (now_ns - self.granted_at_ns) // MS

    def short_ms(self, now_ns: int) -> int:
        """How long fewer than k of the sync group have streamed; 0: enough do."""
        return (now_ns - self.short_since_ns) // MS if self.short_since_ns else 0
