"""Where a partition is begun, for all that may have become of its log."""

from __future__ import annotations

from typing import Any

import pytest

from streamproc.errors import OffsetsReset
from streamproc.worker.beginnings import Beginning, Log, begin, inside, outside
from streamproc.worker.driver import Committed


def begun(
    saved: int | None = None, *, was: str = "a", now: str = "a", log: tuple[int, int] = (0, 100), life: int = 0,
    marked: bool = True, policy: Any = "earliest", known: bool = False, **more: Any,
) -> tuple[int, str, int | None, int]:  # fmt: skip
    manifest = None
    if saved is not None:
        noted = {"topic_id": was, "life": life, "marked": marked}
        manifest = {"next_offset": inside(saved, life), "log": noted}
    at = begin("in-0", manifest, Log(topic_id=now, begin=log[0], end=log[1]), committed=more.get("committed"),
               policy=policy, known=known)  # fmt: skip
    assert isinstance(at, Beginning)
    return at.offset, at.why, at.gone, at.life


OURS, THEIRS = (lambda o: Committed(o, True)), (lambda o: Committed(o, False))


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (begun(), (0, "policy", 0, 0)),
        (begun(policy="latest"), (100, "policy", 0, 0)),
        # A partition among others that were read is new, and what is on it was never passed over.
        (begun(policy="latest", known=True), (0, "new", 0, 0)),
        (begun(policy="latest", committed=THEIRS(30)), (30, "group", 0, 0)),
        (begun(log=(50, 100), committed=OURS(30)), (50, "retention", 20, 0)),
        (begun(60), (60, "manifest", 0, 0)),
        (begun(60, committed=OURS(55)), (60, "manifest", 0, 0)),
        (begun(60, log=(70, 100), policy="latest"), (70, "retention", 10, 0)),
        # Whatever the offset: the topic is another.
        (begun(60, now="b"), (0, "recreated", None, 1)),
        (begun(60, now="b", policy="latest", life=3), (100, "recreated", None, 4)),
        (begun(60, log=(0, 40)), (40, "truncated", None, 1)),
        # Brokers without ids of topics.
        (begun(60, was="", now=""), (60, "manifest", 0, 0)),
        (begun(60, was="", now="", log=(0, 40)), (0, "recreated", None, 1)),
        (begun(60, committed=THEIRS(80)), (80, "reset", 20, 0)),
        (begun(60, committed=THEIRS(80), life=2), (80, "reset", 20, 2)),
        (begun(60, committed=THEIRS(500)), (100, "reset", 40, 0)),
        (begun(60, committed=THEIRS(60)), (60, "manifest", 0, 0)),
        # State of before offsets were marked: nothing can be said of who set one.
        (begun(60, committed=THEIRS(10), marked=False), (60, "manifest", 0, 0)),
    ],
)
def test_a_partition_begins(at: Any, expected: Any) -> None:
    assert at == expected


def test_an_offset_that_another_program_set_back_is_refused_with_both_ways_on() -> None:
    with pytest.raises(OffsetsReset, match=r"in-0: .* back to 10, .* before 60.*--to saved.*--to group"):
        begun(60, committed=THEIRS(10))


def test_offsets_of_two_lives_of_a_log_never_meet_and_stay_exact_in_json() -> None:
    assert inside(0, 1) > inside((1 << 43) - 1, 0)
    assert outside(inside(1234, 900)) == 1234
    assert float(inside(1234, 1000)) == inside(1234, 1000) < 1 << 53
