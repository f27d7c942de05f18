"""Windows close by the watermark, in order, with the empty ones between them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.windows import MAX_EMPTY, Accumulator, Windows

S = 1_000_000


def fed(times_s: list[float], *, lateness_s: float = 0.0) -> tuple[Windows, list[tuple[int, int]]]:
    """Feed one event at a time, arriving when it happens; return index and count of what closed."""
    windows = Windows(size_us=S, lateness_us=round(lateness_s * S), idle_us=2 * S)
    closed: list[tuple[int, int]] = []
    for offset, at in enumerate(times_s):
        times = np.array([round(at * S)])
        progress = windows.advance(times, times, times)
        index, late = windows.assign(times, progress)
        if not late[0]:
            windows.at(int(index[0]), offset).count += 1
        closed += [(w.index, w.count) for w in windows.close()]
    return windows, closed


def test_a_window_closes_when_an_event_reaches_its_end() -> None:
    assert fed([0.1, 0.9, 0.99])[1] == []
    assert fed([0.1, 0.9, 1.0])[1] == [(0, 2)]


def test_lateness_holds_a_window_open() -> None:
    assert fed([0.1, 1.2, 0.9], lateness_s=0.5)[1] == []
    assert fed([0.1, 1.2, 0.9, 1.5], lateness_s=0.5)[1] == [(0, 2)]


def test_empty_windows_between_full_ones_are_closed_too() -> None:
    assert fed([0.5, 3.5])[1] == [(0, 1), (1, 0), (2, 0)]


def test_a_long_gap_is_no_flood_of_empty_windows() -> None:
    closed = fed([0.5, 100_000.5])[1]
    assert closed == [(0, 1), *((i, 0) for i in range(1, MAX_EMPTY + 1))]


@settings(deadline=None)
@given(st.lists(st.floats(0, 30), min_size=1, max_size=50), st.floats(0, 5))
def test_every_event_is_in_one_window_or_late_and_windows_close_in_order(
    times: list[float], late_s: float
) -> None:
    windows, closed = fed(times, lateness_s=late_s)
    assert sum(n for _, n in closed) + sum(w.count for w in windows.open.values()) + windows.late == len(
        times
    )
    indices = [i for i, _ in closed]
    assert indices == sorted(set(indices))
    assert all(i not in windows.open for i in indices)


@settings(deadline=None)
@given(
    st.lists(st.floats(1e-6, 1e4, allow_nan=False), min_size=1, max_size=200),
    st.sampled_from([0.5, 0.95, 0.99]),
)
def test_a_quantile_is_within_one_percent_of_an_observed_value_of_that_rank(
    values: list[float], q: float
) -> None:
    window = Accumulator(0, 0, 0)
    window.add_latencies(np.array(values))
    true = sorted(values)[max(1, int(np.ceil(q * len(values)))) - 1]
    assert window.latency_quantile(q) == pytest.approx(true, rel=0.0101)


def test_a_quantile_of_nothing_is_nan() -> None:
    assert np.isnan(Accumulator(0, 0, 0).latency_quantile(0.5))


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=60), st.integers(0, 60))
def test_a_sum_has_the_same_bits_however_it_is_cut(values: list[float], at: int) -> None:
    whole, parts = Accumulator(0, 0, 0), Accumulator(0, 0, 0)
    array = np.array(values)
    whole.add_values(array)
    for part in (array[:at], array[at:]):
        if len(part):
            parts.add_values(part)
    assert whole.value_sum.hex() == parts.value_sum.hex()


def test_a_restored_accumulator_is_equal() -> None:
    window = Accumulator(7, 1, 2, 3, version="v2", classes={"a": 1})
    window.add_latencies(np.array([0.1, 0.2, 3.0]))
    again = Accumulator.restored(window.snapshot())
    assert again.latency_quantile(0.95) == window.latency_quantile(0.95)
    assert str(again.snapshot()) == str(window.snapshot())
