"""The judge of tests/net: what it calls two writers, and what it does not; a batch that is taken up again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.net import batch
from tests.net.batch import Line
from tests.net.sampler import Sample, doubles, not_granted, shared_timelines


def sample(node: str, timeline: int, begin_ns: int, end_ns: int) -> Sample:
    return Sample(node, timeline, begin_ns, end_ns, begin_ns, quorum=True)


def test_one_after_the_other_is_no_double() -> None:
    assert not doubles([sample("a", 1, 0, 5), sample("b", 2, 6, 9), sample("a", 3, 10, 11)])


def test_overlapping_attempts_prove_nothing() -> None:
    """The old one was sent before the new one had been answered: it may have been accepted long before."""
    assert not doubles([sample("a", 1, 0, 50), sample("b", 2, 6, 9), sample("a", 1, 8, 60)])


def test_a_write_on_the_old_one_that_was_sent_after_one_on_the_new_one_was_answered() -> None:
    old, new = sample("a", 1, 10, 11), sample("b", 2, 6, 9)
    assert doubles([sample("a", 1, 0, 1), new, old]) == [(old, new)]


def test_the_newest_of_several_counts_too() -> None:
    """A node that sleeps through two changes."""
    old, newest = sample("a", 1, 30, 31), sample("c", 3, 20, 21)
    assert [double.older for double in doubles([old, sample("b", 2, 40, 41), newest])] == [sample("b", 2, 40, 41), old]


def test_a_timeline_has_one_node_and_a_node_only_its_own() -> None:
    both = [sample("a", 2, 0, 1), sample("b", 2, 2, 3)]
    assert shared_timelines(both) == {2: {"a", "b"}}
    assert not shared_timelines(both[:1])
    assert not_granted(both, lambda name: [2] if name == "a" else [1]) == {("b", 2)}


def test_a_batch_goes_on_after_what_is_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "commit", lambda: "abc")
    asked: list[list[int]] = []

    def pretend(kind: str, numbers: list[int], *_: object) -> list[Line]:
        asked.append(numbers)
        return [Line("abc", kind, number, "a (primary)", ok=1) for number in numbers]

    monkeypatch.setattr(batch, "in_one_world", pretend)
    out = tmp_path / "lines"
    others = [Line("abc", "kills", 1, "done"), Line("old", "kills", 0, "another commit"), Line("abc", "freezes", 2, "")]
    out.write_text("".join(json.dumps(asdict(line)) + "\n" for line in others))
    assert batch.batch("kills", 4, out) == 0
    assert asked == [[0, 2, 3]]
    assert batch.batch("kills", 4, out) == 0
    assert len(asked) == 1
    with out.open("a") as file:
        file.write(json.dumps(asdict(Line("abc", "kills", 9, "", lost=1))) + "\n")
    assert batch.batch("kills", 4, out) == 1, "a loss of an earlier run is not forgotten"


def test_a_summary_says_the_worst_of_the_cuts_and_what_it_may_be() -> None:
    lines = [
        Line("abc", "partitions", 0, "isolated: a (primary)", ok=5, gap_ms=900, last_ms=410, sent_ms=400, bound_ms=950),
        Line(
            "abc", "partitions", 1, "not heard: b (primary)", ok=5, gap_ms=1100, last_ms=980, sent_ms=640, bound_ms=950
        ),
        Line("abc", "partitions", 2, "isolated: c", ok=5),
        Line("abc", "kills", 0, "power cut: a (primary)", ok=7),
    ]
    told = batch.summaries(lines).splitlines()
    assert [line.partition(":")[0] for line in told] == ["abc kills", "abc partitions"]
    assert "3 faults; 15 ok" in told[1]
    assert "of 2 cuts of a primary the last write it accepted was sent 640 ms after the cut at most" in told[1]
    assert "L + F is 950 ms" in told[1]
    assert not any(line.bad for line in lines), "an answer that came late was accepted before"


def test_a_write_after_the_bound_is_bad() -> None:
    assert Line("abc", "partitions", 0, "", sent_ms=951, bound_ms=950).bad
