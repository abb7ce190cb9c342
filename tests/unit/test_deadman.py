"""The deadman machine, rule by rule, and its two promises: never late, never early."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fencing import deadman as machine
from fencing.deadman import (
    Action,
    Arm,
    Armed,
    Bounds,
    ClockJumped,
    Deadman,
    Disarm,
    Disarmed,
    Event,
    Exit,
    FenceDone,
    Kill,
    Killed,
    LeaseChanged,
    Leave,
    Leaving,
    ParentGone,
    Phase,
    Tick,
    Watch,
    Watching,
    deadman,
    step,
    wakeup_ns,
)
from fencing.lease import MS, PROFILES

TIMINGS = PROFILES["default"]
L, F = TIMINGS.lease_ms * MS, TIMINGS.kill_bound_ms * MS
T0 = 1_000_000 * MS
"""The instant at which the tests begin."""
ARM = Arm(5, 100, 7, T0 + L)


def play(*events: Event, state: Deadman | None = None, now_ns: int = T0) -> tuple[Deadman, list[Action]]:
    """All events at one instant; the actions of all of them."""
    state = state or deadman(TIMINGS)
    told: list[Action] = []
    for event in events:
        state, actions = step(state, event, now_ns)
        told += actions
    return state, told


def armed(until_ns: int = T0 + L) -> Deadman:
    state, told = play(LeaseChanged(5, until_ns), ARM._replace(until_ns=0))
    assert told == [Armed(True, "", until_ns)]
    return state


def killed(actions: list[Action]) -> bool:
    return any(isinstance(action, Kill) for action in actions)


def refusal(actions: list[Action]) -> str:
    (answer,) = actions
    assert isinstance(answer, Armed)
    assert not answer.ok
    return answer.reason


# The deadline


def test_the_kill_comes_at_the_deadline_and_not_before() -> None:
    state = armed()
    assert wakeup_ns(state) == T0 + L
    assert play(Tick(), state=state, now_ns=T0 + L - 1) == (state, [])
    after, told = play(Tick(), state=state, now_ns=T0 + L)
    assert told == [Kill("the lease has ended", T0 + L + F)]
    assert after.phase is Phase.KILLING


def test_a_renewal_moves_the_deadline_to_where_it_says_and_no_further() -> None:
    state, told = play(LeaseChanged(5, T0 + L + 50 * MS), state=armed(), now_ns=T0 + 100 * MS)
    assert told == []
    assert wakeup_ns(state) == T0 + L + 50 * MS


def test_a_renewal_that_arrives_late_does_not_restart_a_timer() -> None:
    """The "late pet": read 600 ms after it was written, it still means the instant it names."""
    state, _ = play(LeaseChanged(5, T0 + L + 1), state=armed(), now_ns=T0 + 600 * MS)
    assert wakeup_ns(state) == T0 + L + 1
    _, told = play(LeaseChanged(5, T0 + L + 2), Tick(), state=state, now_ns=T0 + L + 3)
    assert killed(told), "a deadline that is past when it arrives is past"


@pytest.mark.parametrize(
    ("until_ns", "why"),
    [(0, "given up"), (-1, "given up"), (T0 + L - 1, "backwards"), (T0 + L + 1, "further away"), (1 << 80, "further")],
)
def test_a_bad_deadline_counts_as_expired_at_once_and_spends_the_term(until_ns: int, why: str) -> None:
    state, told = play(LeaseChanged(5, until_ns), state=armed())
    assert isinstance(told[0], Kill)
    assert why in told[0].reason
    state, _ = play(FenceDone(0), Disarm(), state=state)
    state, told = play(LeaseChanged(5, T0 + L), ARM, state=state)
    assert state.lease_until_ns == 0, "nor is it told to anyone who asks"
    assert "given up or went wrong" in refusal(told)


def test_a_repeated_deadline_is_no_step_back() -> None:
    state = armed()
    assert play(LeaseChanged(5, T0 + L), LeaseChanged(5, T0 + L), state=state) == (state, [])


def test_the_parents_copy_may_overtake_the_raft_childs_own_message() -> None:
    """Two sockets, no order between them: armed with the newer deadline, the older one arrives afterwards."""
    state, told = play(ARM, LeaseChanged(5, T0 + L - 90 * MS))
    assert told == [Armed(True, "", T0 + L)]
    assert wakeup_ns(state) == T0 + L


def test_a_lease_of_another_term_never_lengthens_the_armed_one() -> None:
    later_ns = T0 + 100 * MS
    state, _ = play(LeaseChanged(4, later_ns + L), LeaseChanged(6, later_ns + L), state=armed(), now_ns=later_ns)
    assert wakeup_ns(state) == T0 + L
    state, _ = play(LeaseChanged(5, later_ns + L), state=state, now_ns=later_ns)
    assert wakeup_ns(state) == T0 + L, "term 5 is over once 6 was heard of"


def test_zero_as_the_first_word_of_a_term_means_none_earned_yet() -> None:
    _, told = play(LeaseChanged(5, 0), LeaseChanged(5, T0 + L), ARM)
    assert told == [Armed(True, "", T0 + L)]


# Arming


def test_arming_takes_a_lease_of_exactly_that_term() -> None:
    assert "no lease" in refusal(play(ARM._replace(until_ns=0))[1])
    assert "no lease" in refusal(play(LeaseChanged(4, T0 + L), ARM._replace(until_ns=0))[1])
    assert "newer term" in refusal(play(LeaseChanged(6, T0 + L), ARM)[1])
    assert play(ARM)[1] == [Armed(True, "", T0 + L)], "the parent may pass it along: after a restart of the watchdog"


def test_the_later_of_both_deadlines_counts() -> None:
    assert play(LeaseChanged(5, T0 + L), ARM._replace(until_ns=T0 + F))[1] == [Armed(True, "", T0 + L)]
    assert play(LeaseChanged(5, T0 + F), ARM)[1] == [Armed(True, "", T0 + L)]


def test_arming_takes_the_kill_bound() -> None:
    assert "kill bound" in refusal(play(LeaseChanged(5, T0 + F - 1), ARM._replace(until_ns=0))[1])
    assert play(LeaseChanged(5, T0 + F), ARM._replace(until_ns=0))[1] == [Armed(True, "", T0 + F)]


def test_arming_with_an_absurd_deadline_is_refused() -> None:
    assert "further away" in refusal(play(ARM._replace(until_ns=T0 + L + 1))[1])


@pytest.mark.parametrize("bad", [ARM._replace(term=0), ARM._replace(pid=0), ARM._replace(start_ticks=0)])
def test_arming_takes_a_term_and_a_process(bad: Arm) -> None:
    assert "takes a term and a process" in refusal(play(bad)[1])


def test_arming_again_changes_nothing() -> None:
    state = armed(T0 + L - 100 * MS)
    assert play(ARM, state=state) == (state, [Armed(True, "", T0 + L - 100 * MS)])


@pytest.mark.parametrize("other", [ARM._replace(term=6), ARM._replace(pid=101), ARM._replace(start_ticks=8)])
def test_arming_something_else_needs_a_disarm_first(other: Arm) -> None:
    state = armed()
    after, told = play(other, state=state)
    assert "disarm that first" in refusal(told)
    assert after == state


# Killing


def test_it_kills_until_nothing_is_left() -> None:
    state, _ = play(Tick(), state=armed(), now_ns=T0 + L)
    for _ in range(3):
        state, told = play(FenceDone(2), state=state, now_ns=T0 + L + F)
        assert told == [Killed(5, "the lease has ended", 2)]
        assert wakeup_ns(state) == 0, "at once"
        state, told = play(Tick(), state=state, now_ns=T0 + L + F)
        assert killed(told)
    state, told = play(FenceDone(0), state=state, now_ns=T0 + L + F)
    assert told == [Killed(5, "the lease has ended", 0)]
    assert (state.phase, state.killed_term, wakeup_ns(state)) == (Phase.IDLE, 5, None)
    assert play(Tick(), state=state, now_ns=T0 + 9 * L)[1] == []


@pytest.mark.parametrize("event", [ARM._replace(term=9), Disarm(), Watch(3, 4), Leave()])
def test_nothing_calls_off_a_kill(event: Event) -> None:
    state, _ = play(LeaseChanged(5, 0), FenceDone(1), state=armed())
    after, told = play(event, state=state)
    assert after == state
    assert isinstance(told[0], Armed | Disarmed | Watching | Leaving)
    assert not told[0].ok
    assert killed(play(Tick(), state=after)[1])


def test_a_killed_term_is_remembered_until_disarmed_or_a_higher_one() -> None:
    state, _ = play(Tick(), FenceDone(0), state=armed(), now_ns=T0 + L)
    later = ARM._replace(until_ns=T0 + 2 * L)
    assert "killed in this term" in refusal(play(later, state=state, now_ns=T0 + L)[1])
    watched, told = play(Watch(8, 9), state=state, now_ns=T0 + L)
    assert told == [Watching(True, "")]
    assert "killed in this term" in refusal(play(later, state=watched, now_ns=T0 + L)[1])
    assert play(later._replace(term=6), state=state, now_ns=T0 + L)[1] == [Armed(True, "", T0 + 2 * L)]
    assert play(Disarm(), later, state=state, now_ns=T0 + L)[1] == [Disarmed(True, ""), Armed(True, "", T0 + 2 * L)]


# Unarmed


def test_an_unarmed_postgres_dies_with_the_parent_alone() -> None:
    state, told = play(Watch(8, 9), LeaseChanged(5, T0 + L), LeaseChanged(5, 0), Tick(), ClockJumped(1 << 60))
    assert told == [Watching(True, "")]
    assert wakeup_ns(state) is None
    state, told = play(ParentGone(), state=state)
    assert killed(told)
    assert (state.pid, state.start_ticks) == (8, 9)


def test_disarmed_means_watched() -> None:
    state, told = play(Disarm(), state=armed())
    assert told == [Disarmed(True, "")]
    assert (state.phase, state.pid, wakeup_ns(state)) == (Phase.WATCHING, 100, None)
    assert play(Tick(), state=state, now_ns=T0 + 9 * L)[1] == []


def test_watching_does_not_disarm() -> None:
    state = armed()
    after, told = play(Watch(8, 9), state=state)
    assert after == state
    assert told == [Watching(False, "a Postgres is armed: disarm it first")]


@pytest.mark.parametrize("before", [(), (Watch(8, 9),), (ARM,)], ids=["idle", "watching", "armed"])
def test_without_a_parent_everything_dies_and_then_the_watchdog_leaves(before: tuple[Event, ...]) -> None:
    state, told = play(*before, ParentGone())
    assert killed(told), "also when idle: a Postgres may have started that we were not told of"
    state, told = play(FenceDone(1), state=state)
    assert not any(isinstance(action, Exit) for action in told)
    _, told = play(Tick(), FenceDone(0), state=state)
    assert killed(told)
    assert told[-1] == Exit(0)


def test_it_leaves_when_asked_but_never_an_armed_postgres() -> None:
    assert play(Watch(8, 9), Leave())[1][1:] == [Leaving(True, ""), Exit(0)]
    assert [type(action) for action in play(Leave(), state=armed())[1]] == [Leaving]


@pytest.mark.parametrize(("by_ns", "dies"), [(3600_000 * MS, True), (-F - 1, True), (F + 1, True), (F, False)])
def test_a_jump_of_the_clocks_fences_what_is_armed(by_ns: int, dies: bool) -> None:
    assert killed(play(ClockJumped(by_ns), state=armed())[1]) is dies


# Other timings


LONGER, SHORTER = Bounds(2 * L, 2 * F, 7), Bounds(L // 2, F // 2, 7)


@pytest.mark.parametrize("bounds", [LONGER, SHORTER])
def test_other_timings_leave_an_armed_deadline_where_it_is(bounds: Bounds) -> None:
    state, told = play(bounds, state=armed())
    assert (told, state.phase, wakeup_ns(state)) == ([], Phase.ARMED, T0 + L)
    _, told = play(Tick(), state=state, now_ns=T0 + L)
    assert told == [Kill("the lease has ended", T0 + L + bounds.kill_bound_ns)], "and the kill has the new F"


def test_the_next_deadline_is_judged_by_the_new_l() -> None:
    far = LeaseChanged(5, T0 + 2 * L)
    assert killed(play(far, state=armed())[1])
    state, told = play(LONGER, far, state=armed())
    assert (told, wakeup_ns(state)) == ([], T0 + 2 * L)
    assert killed(play(SHORTER, LeaseChanged(5, T0 + L), state=armed(T0 + 300 * MS))[1])


def test_arming_takes_the_new_kill_bound() -> None:
    state, _ = play(LONGER, LeaseChanged(5, T0 + F))
    assert "less than the kill bound" in refusal(play(ARM._replace(until_ns=0), state=state)[1])


def test_what_looked_too_far_away_is_forgotten_as_by_a_new_watchdog_but_not_while_armed() -> None:
    """It was started with the timings of its node, and the log has others."""
    far = LeaseChanged(5, T0 + 2 * L)
    state, _ = play(far)
    assert "went wrong" in refusal(play(ARM, state=state)[1])
    state, told = play(LONGER, far, ARM._replace(until_ns=0), state=state)
    assert told == [Armed(True, "", T0 + 2 * L)]
    assert not play(LONGER, state=state)[0].lease_spent
    spent, _ = play(LeaseChanged(5, 0), state=armed())
    assert play(LONGER, state=spent)[0].lease_spent, "a kill is under way"


def test_an_unasked_fence_report_is_ignored() -> None:
    state = armed()
    assert play(FenceDone(0), state=state) == (state, [])


# Both promises, whatever happens in whatever order

TERMS = st.integers(3, 7)
OFFSETS = st.integers(-L, 2 * L)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[int, Event]]:
    """Events with the time that passes before each, biased towards the armed term and believable deadlines."""
    now_ns, last_ns, found = T0, T0 + L, list[tuple[int, Event]]()
    for _ in range(draw(st.integers(1, 25))):
        now_ns += draw(st.sampled_from([0, 1, 50 * MS, 100 * MS, 300 * MS, L]))
        kind = draw(st.integers(0, 9))
        event: Event
        if kind <= 4:
            last_ns = max(last_ns, now_ns + draw(st.integers(0, L)))
            event = LeaseChanged(5, last_ns)
        elif kind == 5:
            event = LeaseChanged(draw(TERMS), draw(st.booleans()) * (now_ns + draw(OFFSETS)))
        elif kind == 6:
            others: list[Event] = [ARM, ARM._replace(term=6), ARM._replace(until_ns=0), Watch(8, 9), Leave()]
            event = draw(st.sampled_from(others))
        elif kind == 7:
            event = ClockJumped(draw(st.integers(-F, F)))
        else:
            event = Tick()
        found.append((now_ns, event))
    return found


@settings(max_examples=400)
@given(histories())
def test_it_kills_at_the_first_tick_at_or_after_the_deadline_and_never_before(history: list[tuple[int, Event]]) -> None:
    """Against an oracle that shares nothing with the machine: it sees the deadlines that went in, and a set of rules in
    five lines."""
    state = armed()
    until_ns = raft_ns = T0 + L
    newest = 5
    for now_ns, event in history:
        state, actions = step(state, event, now_ns)
        dies = isinstance(event, Tick) and now_ns >= until_ns
        if isinstance(event, LeaseChanged) and event.term >= newest:
            if event.term == newest == 5:
                dies = not raft_ns <= event.until_ns <= now_ns + L
                until_ns = raft_ns = event.until_ns
            newest = event.term
        assert killed(list(actions)) is dies, (event, now_ns - T0)
        if dies:
            return
        assert state.phase is Phase.ARMED
        assert wakeup_ns(state) == until_ns


ANY_EVENT = st.one_of(
    st.builds(LeaseChanged, TERMS, st.just(0) | OFFSETS.map(lambda offset: T0 + offset)),
    st.builds(Arm, TERMS, st.integers(0, 2), st.integers(0, 2), st.just(0) | OFFSETS.map(lambda offset: T0 + offset)),
    st.builds(Watch, st.integers(1, 2), st.integers(1, 2)),
    st.builds(FenceDone, st.integers(0, 2)),
    st.builds(ClockJumped, st.integers(-2 * F, 2 * F)),
    st.sampled_from([Disarm(), Leave(), ParentGone(), Tick(), Bounds(L // 2, F // 2, 7), Bounds(L, F, 8)]),
)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, L), ANY_EVENT), max_size=30))
def test_it_is_total_and_nothing_armed_outlives_every_deadline_ever_told(moves: list[tuple[int, Event]]) -> None:
    state, now_ns, latest = deadman(TIMINGS), T0, dict[int, int]()
    for pause_ns, event in moves:
        now_ns += pause_ns
        if isinstance(event, LeaseChanged | Arm):
            latest[event.term] = max(latest.get(event.term, 0), event.until_ns)
        before = state
        state, actions = step(state, event, now_ns)
        if before.phase is Phase.KILLING and not (isinstance(event, FenceDone) and event.survivors == 0):
            assert state.phase is Phase.KILLING
        if state.phase is Phase.ARMED:
            assert state.until_ns <= latest[state.term]
            assert state.until_ns <= max(now_ns + L, before.until_ns)
        if any(isinstance(action, Exit) for action in actions):
            assert state.phase in (Phase.IDLE, Phase.WATCHING)
            return


# The table


def test_the_table_in_the_design_document_is_the_machines() -> None:
    design = Path(machine.__file__).with_name("DESIGN.md").read_text(encoding="utf-8")
    assert machine.table() in design, "run: python -m fencing.deadman, and put its output into fencing/DESIGN.md"


def test_every_event_ends_in_a_rule_that_always_holds() -> None:
    last = {rule.event: rule for rule in machine.RULES}
    assert set(last) == set(Event.__args__)
    assert {rule.when for rule in last.values()} <= {"otherwise", "in any state", "nothing left"}
