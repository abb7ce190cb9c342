"""Tags on a real cluster: who is never primary, who is first, who has no seat; and no acknowledged row is lost while
they change, for which a file is edited and no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cluster.test_http import configured
from tests.cluster.world import World

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.mark.timeout(300)
def test_who_never_is_primary_and_who_has_no_seat(make_world: Callable[..., World]) -> None:
    world = make_world()
    files = {node.name: configured(world, node, "") for node in world.nodes}
    world.start()
    first = world.wait_writable(standbys=2)
    never, next_one = sorted(world.standbys(), key=lambda node: node.name)

    def tag(name: str, text: str, shown: dict[str, object]) -> None:
        files[name].write_text(f"[tags]\n{text}\n", encoding="utf-8")
        def known() -> bool:
            seen = world.status()
            row = seen.member(name) if seen else None
            return row is not None and row.tags == shown

        world.settles(known, f"the tags of {name} are known")

    tag(never.name, "nofailover = true", {"nofailover": True})
    world.settles(lambda: "is tagged `nofailover`" in world.pgr("explain").stdout, "explain names the tag")
    with world.writing() as writer:
        # A failover passes it over, also if it leads Raft first.
        killed_ns, _ = first.kill_all()
        world.writes_again(writer, killed_ns)
        world.settles(next_one.is_primary, f"{next_one.name} is the primary")
        seen = world.status()
        assert seen is not None
        assert never.name in seen.sync_group.members, "it counts like any other"
        first.start()
        world.wait_streaming(first, never)
        refusal = world.pgr("switchover", "--to", never.name)
        assert (refusal.returncode, "is tagged `nofailover`" in refusal.stderr) == (78, True)

        # Its seat is given up by a change of the sync group, while writes go on.
        tag(never.name, "nosync = true", {"nosync": True})
        others = sorted((first.name, next_one.name))
        world.wait_members("a b c", f"2 of {' '.join(others)}")
        assert world.query(next_one, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == [(2,)]
        promoted = len(world.logged(first, "postgres.promoted"))
        killed_ns, _ = next_one.kill_all()
        # The only other one with a seat takes over; writes wait until a second one is there.
        world.settles(lambda: len(world.logged(first, "postgres.promoted")) > promoted, f"{first.name} is promoted")
        next_one.start()
        world.writes_again(writer, killed_ns, seconds=120)
        world.settles(first.is_primary, f"{first.name} is the primary")

        tag(never.name, "priority = 2", {"priority": 2})
        world.wait_members("a b c", "2 of a b c")
        world.wait_streaming(never, next_one)

        # The one with the highest number takes over. A bad file changes nothing.
        files[never.name].write_text("[tags]\npriority = -1\n", encoding="utf-8")
        world.settles(lambda: world.logged(never, "config.not_reloaded") != [], "the bad file is told of")
        done = world.pgr("switchover")
        assert done.returncode == 0, done.stderr
        world.settles(never.is_primary, f"{never.name} is the primary")
        world.wait_streaming(first, next_one)
    world.check_no_loss(writer, everywhere=True)
