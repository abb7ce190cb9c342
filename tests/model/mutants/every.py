"""All mutants, and where those are that have a name of their own in the goals of the project."""

from __future__ import annotations

from tests.model.mutants.core import CORE
from tests.model.mutants.founding import FOUNDING
from tests.model.mutants.lease import LEASE
from tests.model.mutants.mutant import Mutant
from tests.model.mutants.outsider import OUTSIDER
from tests.model.mutants.timing import TIMING
from tests.model.mutants.upper import UPPER

EVERY: tuple[Mutant, ...] = (*CORE, *UPPER, *LEASE, *FOUNDING, *OUTSIDER, *TIMING)
ASKED_FOR = {
    "vote not persisted": "the vote is on disk",
    "vote before fsync": "on disk first, then said (a vote before fsync)",
    "no log check": "a vote only for a log that is not older",
    "commit of an old-term entry by counting": "an entry of an older term commits along with one of this term",
    "always-truncating append": "only what conflicts is cut off",
    "majority off by one": "a majority is more than half",
    "change of members before the no-op": "no change of members before the leader's own entry is committed",
    "amnesiac voter": "a node that lost its disk is another node",
    "no promise before vote or promotion": "a read quorum of promises comes before a promotion",
    "cached position of a dead Postgres": "no position of a Postgres that is down",
    "LSN without epoch": "positions are compared by epoch first",
    "timeline reused": "a number of a timeline is given out once",
    "group loosened before the log": "names are set after the log says so",
    "group tightened after": "the log says done after the names are in force",
    "gate left out": "nothing is shown before a record of the own epoch is safe",
    "lease from the reply": "a lease counts from the send of a round",
    "lease kept over a transfer": "no lease after a release in that term",
    "late TimeoutNow": "a TimeoutNow of an older term is void",
    "resume after a release": "no resume after a release (twice guarded: nor without the watchdog's word)",
    "divergent standby counted": "a standby that diverged is rewound first",
    "position before all of pg_wal is read": "no position before all of pg_wal is read",
    "group change without the joint phase": "an election respects the old group until the change is done",
    "winner outside S": "the winner has a seat in S",
    "founding by majority": "every peer has answered, not a majority",
    "restarted voter that does not wait": "a restarted voter waits E",
    "pet instead of deadline": "the watchdog is told a deadline, no pet restarts a timer",
    "L before every voter has the longer E": "a longer L waits for every voter, not for a majority",
    "E lowered under a lease of the old L": "a shorter E waits for the end of the leases of the old L",
    "stale Promoted acted on after restart": "nobody acts on a grant after a restart",
}
"""Rule by the name of the mutant that lacks it."""
