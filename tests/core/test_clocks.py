"""A clock follows a quorum of the times of records: one host that is ahead moves nobody else's time."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc import kernels
from streamproc.windows import SLACK_US, new_clock
from tests.core.make import BEGIN_US, SECOND, batch, config, pipeline, prediction, quick

MINUTE = 60 * SECOND


def follow(times: list[int], clock: np.ndarray | None = None) -> list[int]:
    """Return what a clock says at each time."""
    reached = np.empty(len(times), np.int64)
    kernels.run_clock(new_clock() if clock is None else clock, np.array(times, np.int64), SLACK_US, reached)
    return reached.tolist()


def test_one_time_that_is_ahead_moves_no_clock() -> None:
    times = [BEGIN_US + i * SECOND for i in range(100)]
    ahead = [*times[:50], times[50] + 50 * MINUTE, *times[51:]]
    assert follow(ahead)[-1] == times[-1]
    assert max(follow(ahead)) == times[-1]


def test_a_host_that_is_minutes_ahead_in_one_of_ten_records_moves_no_clock() -> None:
    times = [BEGIN_US + i * SECOND for i in range(1000)]
    mixed = [t + 5 * MINUTE if i % 10 == 3 else t for i, t in enumerate(times)]
    assert max(follow(mixed)) <= times[-1]


def test_after_a_pause_the_third_record_moves_the_clock() -> None:
    times = [BEGIN_US + i * SECOND for i in range(60)]
    back = [times[-1] + 60 * MINUTE + i * SECOND for i in range(4)]
    assert follow([*times, *back])[-4:] == [times[-1], times[-1], back[2], back[3]]


def test_a_model_of_one_event_an_hour_is_followed() -> None:
    times = [BEGIN_US + i * 60 * MINUTE for i in range(48)]
    assert follow(times)[4:] == times[4:]


def test_a_first_time_that_is_ahead_is_given_up_once_three_others_say_so() -> None:
    times = [BEGIN_US + i * SECOND for i in range(50)]
    found = follow([times[0] + 50 * MINUTE, *times[1:]])
    assert found[3:] == times[3:]


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.integers(-90, 90) | st.integers(-4000, 4000), min_size=1, max_size=80),
    cuts=st.lists(st.integers(0, 80), max_size=6),
)
def test_no_cut_changes_what_a_clock_says_and_it_never_says_more_than_it_was_told(
    steps: list[int], cuts: list[int]
) -> None:
    times = (BEGIN_US + SECOND * np.cumsum(steps)).tolist()
    whole = follow(times)
    clock, parts = new_clock(), []
    edges = sorted({0, len(times), *(c for c in cuts if c < len(times))})
    for start, end in itertools.pairwise(edges):
        parts += follow(times[start:end], clock)
    assert parts == whole
    assert all(said <= max(times[: i + 1]) for i, said in enumerate(whole))
    slow = new_clock()
    for i, time in enumerate(times):
        kernels.step_clock.py_func(slow, time, SLACK_US)
        assert slow[kernels.LATEST] == whole[i]


def test_one_record_ahead_silences_no_other_model_and_makes_nothing_late() -> None:
    p = pipeline(config(quick()))
    events, stamps = [], []
    for i in range(600):
        at = BEGIN_US + i * SECOND // 5 + (50 * MINUTE if i == 400 else 0)
        events.append(prediction(at, f"m{i % 3}", id=f"i{i}"))
        stamps.append(at)
    out = p.process(batch(events, stamps_us=stamps))
    assert [a.signal for a in out.alerts if a.signal == "silence"] == []
    assert (out.late, out.scored) == (0, 600)
