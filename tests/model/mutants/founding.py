"""Mutants of the founding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from consensus import founder
from consensus.founder import Founder
from consensus.founding import Charter, Founding, Greeting, Waiting, consider
from consensus.membership import Member
from consensus.record import Identity
from tests.model.foundingworld import Desk, FoundingSetup, FoundingWorld, Letter, Starter, Step
from tests.model.mutants.mutant import Mutant


def by_majority(mine: Greeting, heard: Mapping[str, Greeting], options: Founding) -> Waiting | Charter:
    """Whoever is silent is left out, once most are there."""
    there = tuple(name for name in mine.peers if name in {mine.name, *heard})
    if 2 * len(there) <= len(mine.peers):
        return consider(mine, heard, options)
    return consider(replace(mine, peers=there), {n: replace(g, peers=there) for n, g in heard.items()}, options)


class TakesAnyCharter(Founder):
    """By name: whatever incarnation it names."""

    def _answered(self, src: str, body: Mapping[str, Any]) -> None:
        if body["kind"] == "charter" and not self.host.identity.cluster_id:
            self.host.introduced = (tuple(Member(*row) for row in body["members"]), int(body["index"]))
            self._accept(str(body["cluster_id"]), str(body["charter"]), int(body["term"]))


class ReadsLettersToAnEarlierLife(FoundingWorld):
    def heard(self, node: int, letter: Letter) -> Step:
        return super().heard(node, letter._replace(dst_incarnation=self.nodes.values[node].running.incarnation))


class VotesBeforeItSaves(FoundingWorld):
    def left(self, founder: Founder, desk: Desk) -> Step:
        running = founder.host.identity
        desk.node = desk.node._replace(disk=Identity(running.name, running.incarnation))
        return super().left(founder, desk)


class AnybodyWrites(FoundingWorld):
    def may_write(self, i: int) -> bool:
        return True


class GreetingsOvertaken(FoundingWorld):
    """What the transport has to give: one pipe for each peer, first in, first out."""

    def _is_greeting(self, number: int, i: int, j: int) -> bool:
        return False


class SeesNoEvidence(FoundingWorld):
    def greeting(self, node: Starter) -> Greeting:
        return replace(super().greeting(node), lost=False)


def dies(
    world: type[FoundingWorld], rule: str, source: str, setup: FoundingSetup, dies_of: str,
    *patches: tuple[Any, str, Any], core: type[Founder] = Founder,
) -> Mutant:  # fmt: skip
    return Mutant(rule, source, str(setup), partial(world, setup, core), dies_of, patches)


LOST = FoundingSetup(losses=1)

FOUNDING = (
    dies(FoundingWorld, "every peer has answered, not a majority", "safety.md, founding", LOST, "one cluster",
         (founder, "consider", by_majority)),
    dies(ReadsLettersToAnEarlierLife, "a founder that lost its disk is none (twice guarded)", "safety.md, identity",
         LOST, "a founder is an incarnation", core=TakesAnyCharter),
    dies(VotesBeforeItSaves, "the charter is on disk before a vote", "safety.md, founding", FoundingSetup(),
         "one charter"),
    dies(AnybodyWrites, "the lowest name writes the charter", "safety.md, founding", FoundingSetup(), "one charter"),
    dies(GreetingsOvertaken, "a greeting does not arrive after a later vote of the same node", "transport.py, DEALER",
         FoundingSetup(losses=1, delays=1), "one cluster"),
    dies(SeesNoEvidence, "who has data of a cluster founds none", "safety.md, founding", FoundingSetup(raft_losses=1),
         "evidence"),
)  # fmt: skip
