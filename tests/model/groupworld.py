"""Changes of the sync group (safety.md, "Changes of the sync group"), and nodes that lose their disk and come back.

On top of `promiseworld.py`: opening, `change/1` and `done/1` in the log, the names that a primary has set, walsenders
that still know the old ones (of standbys that have gone, too), a checkpointer that is late; and the way of a lost
incarnation back into S by `changes.admit` and `changes.next_change`, with the proof that its copy is complete.
"""

from __future__ import annotations

from collections.abc import Iterator

from consensus import changes
from consensus.changes import Facts, Proposal
from consensus.cluster import ClusterState, SyncGroup, canonical
from consensus.founding import Greeting
from consensus.membership import VOTER
from consensus.record import Position
from tests.model.explore import Move, State
from tests.model.promisevalues import CHANGES, WIPES, Host, Item, Reply, View
from tests.model.promiseworld import PromiseWorld


class GroupWorld(PromiseWorld):
    """Any primary may begin, finish or revert a change to any group of ``setup.targets``."""

    def successors(self, state: State) -> Iterator[Move]:
        yield from super().successors(state)
        view = self.view(state)
        if self.budgets.values[view.budget][WIPES]:
            for i, host in enumerate(view.hosts):
                empty = Host(0, (), 0, (), (), incarnation=host.incarnation + 1)
                left = self.detached(host).left
                yield self.to(view, ("wipe", i), {i: empty._replace(left=left)}, spent=WIPES)

    def leading(self, view: View, i: int) -> Iterator[Move]:
        yield from super().leading(view, i)
        me = view.hosts[i]
        if me.primary != me.leads or not self.may_promote(me):
            return
        state = self.cluster(me.log)
        grant = state.grant
        if grant is not None and not grant.opened and self._is_safe(view, me):
            yield self._appends(view, i, ("opens", i), Item(me.leads, "opened/1"))
        for proposal in self._proposals(view, i, state):
            item = Item(me.leads, proposal.kind, canonical(proposal.body))
            label = ("changes", i, f"{proposal.kind} {proposal.body.get('text', '')}")
            yield self._appends(view, i, label, item, CHANGES if proposal.kind == "change/1" else -1)
        yield from self._putting_in_force(view, i)

    def _appends(self, view: View, i: int, label: tuple[object, ...], item: Item, spent: int = -1) -> Move:
        me = view.hosts[i]
        return self.to(view, label, {i: me._replace(log=(*me.log, item))}, spent=spent)

    def _is_safe(self, view: View, me: Host) -> bool:
        """Is a record of this epoch flushed by k of S?"""
        return any(epoch == me.primary for epoch, _ in self.ghosts.values[view.ghost].acked)

    # -- what is to be changed -----------------------------------------------------------------------------------

    def _proposals(self, view: View, i: int, state: ClusterState) -> Iterator[Proposal]:
        me = view.hosts[i]
        if self.setup.wipes:
            yield from self._readmission(view, i, state)
        elif self.budgets.values[view.budget][CHANGES]:
            if state.change is not None:
                yield changes.group_change(state.change.new, state.change.old, "", "sync group", "back")
            elif changes.settled(state):
                for target in self.setup.targets:
                    if target != state.group and me.primary and self.names[i] in target.names:
                        yield changes.group_change(state.group, target, "", "sync group", _words(target))

    def _readmission(self, view: View, i: int, state: ClusterState) -> Iterator[Proposal]:
        me = view.hosts[i]
        if not changes.settled(state) and not self.setup.blocked:
            return
        facts = self.facts(view, i)
        for j, host in enumerate(view.hosts):
            member = state.member(self.names[j])
            if member is not None and member.incarnation != host.incarnation:
                greeting = Greeting(self.names[j], host.incarnation, "", "", "", self.names, "", VOTER)
                answer = changes.admit(state, Facts(facts.me, frozenset(), frozenset(), frozenset()), greeting)
                if isinstance(answer, Proposal) and me.committed == len(me.log):
                    yield answer
        if me.committed == len(me.log):
            step = changes.next_change(state, facts) if changes.settled(state) else changes.unblocks(state, facts)
            if step is not None and (step.kind != "change/1" or self.budgets.values[view.budget][CHANGES]):
                yield step

    def facts(self, view: View, i: int) -> Facts:
        """As `Node.facts`: everybody is connected; ``copied`` streams from here and its copy has passed its proof."""
        me = view.hosts[i]
        caught_up = (n for n, h in zip(self.names, view.hosts, strict=True) if h.log[: me.committed] == me.log)
        copied = (
            n
            for n, h in zip(self.names, view.hosts, strict=True)
            if h is me or (h.upstream == me.primary and self.is_proven(h))
        )
        return Facts(self.names[i], frozenset(self.names), frozenset(caught_up), frozenset(copied))

    def is_proven(self, host: Host) -> bool:
        return host.proof is None or Position(host.wal[-1] if host.wal else -1, len(host.wal)) >= host.proof

    # -- names -----------------------------------------------------------------------------------------------------

    def _putting_in_force(self, view: View, i: int) -> Iterator[Move]:
        """Steps 2 to 4: set the names, prove them in force, say that it is done."""
        me = view.hosts[i]
        wanted = self.rules(self.wanted(me))
        if me.rule != wanted:
            defined = me.defined and not (self.rules.values[me.rule].k == 1 < self.rules.values[wanted].k)
            now = me._replace(rule=wanted, defined=defined, proving=0)
            yield self.acknowledged(view, ("names", i, _words(self.rules.values[wanted])), {i: now}, Reply(i))
            return
        if not me.defined:
            yield self.to(view, ("checkpoint", i), {i: me._replace(defined=True)})
        for j, host in enumerate(view.hosts):
            if host.upstream == me.primary and host.rule != me.rule:
                label = ("reload", j, i)
                yield self.acknowledged(view, label, {j: host._replace(rule=me.rule)}, Reply(i, j))
                again = self.detached(host)._replace(upstream=me.primary, rule=me.rule)
                yield self.acknowledged(view, ("reconnects", j, i), {j: again}, Reply(i, j))
            for one in host.left:
                if one.epoch == me.primary:
                    rest = host._replace(left=tuple(x for x in host.left if x != one))
                    yield self.acknowledged(view, ("late", j, i), {}, Reply(i, j, one.rule))
                    yield self.to(view, ("gone", j, i), {j: rest})
        change = self.cluster(me.log).change
        if change is None or self.rules(change.new) != me.rule:
            return
        if not me.proving and self.in_force(view, me):
            yield self.to(view, ("lsn", i), {i: me._replace(proving=1 + len(me.wal))})
        if self.is_met(view, i):
            body = canonical({"index": change.index, "node": self.names[i]})
            yield self._appends(view, i, ("changes", i, "done/1"), Item(me.leads, "done/1", body))

    def wanted(self, me: Host) -> SyncGroup:
        """Names come from the log, as far as it is committed, and from nowhere else."""
        return self.cluster(me.log[: me.committed]).wanted_group

    def in_force(self, view: View, me: Host) -> bool:
        """Every walsender that started under the old names is gone, and the checkpointer has seen the new ones."""
        senders = [h.rule for h in view.hosts if h.upstream == me.primary]
        senders += [x.rule for h in view.hosts for x in h.left if x.epoch == me.primary]
        return me.defined and all(rule == me.rule for rule in senders)

    def is_met(self, view: View, i: int) -> bool:
        """Does everything before the LSN that was read meet the new rule?"""
        me = view.hosts[i]
        group = self.rules.values[me.rule]
        flushed = [
            len(h.wal)
            for n, h in zip(self.names, view.hosts, strict=True)
            if h is not me and n in group.names and h.upstream == me.primary
        ]
        return bool(me.proving) and sum(length >= me.proving - 1 for length in flushed) >= group.k - 1


class LateDone(GroupWorld):
    """The parent of a primary goes by what is committed, and may say "done" after the change was reverted."""

    def leading(self, view: View, i: int) -> Iterator[Move]:
        yield from super().leading(view, i)
        me = view.hosts[i]
        if me.primary != me.leads or not self.may_promote(me):
            return
        told, newest = self.cluster(me.log[: me.committed]).change, self.cluster(me.log).change
        if told is not None and told != newest and self.rules(told.new) == me.rule and self.is_met(view, i):
            body = canonical({"index": told.index, "node": self.names[i]})
            item = Item(me.leads, "done/1", body)
            if item not in me.log:
                yield self._appends(view, i, ("changes", i, "done/1, of the change before"), item)


def _words(group: SyncGroup) -> str:
    return f"{group.k} of {', '.join(f'{s.name}.{s.incarnation}' for s in group.members)}"
