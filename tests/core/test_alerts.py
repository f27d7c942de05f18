"""One episode, one opened, one resolved; whatever comes between."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.alerts import Lifecycle, Policy, Step, identity

S = 1_000_000


def run(policy: Policy, breaches: str, *, cut_at: int | None = None) -> list[Step]:
    """Observe one value a second; `#` is over the limit."""
    life = Lifecycle(policy)
    breach = np.array([c == "#" for c in breaches])
    scores = np.where(breach, 2.0, 0.5)
    times = np.arange(len(breach), dtype=np.int64) * S
    offsets = np.arange(len(breach), dtype=np.int64) + 100
    steps: list[Step] = []
    for part in [slice(None)] if cut_at is None else [slice(0, cut_at), slice(cut_at, None)]:
        if len(breach[part]):
            steps += life.observe(breach[part], scores[part], times[part], offsets[part])
    return steps


def told(steps: list[Step]) -> list[tuple[str, int]]:
    return [(s.action, s.at_us // S) for s in steps]


AT_ONCE = Policy(for_us=0, resolve_after_us=3 * S)


def test_one_value_over_the_limit_opens_and_quiet_resolves() -> None:
    assert told(run(AT_ONCE, "..#.....")) == [("opened", 2), ("resolved", 5)]


def test_a_condition_that_stays_is_one_episode() -> None:
    assert told(run(AT_ONCE, "..#####.#.#.....")) == [("opened", 2), ("resolved", 13)]


def test_a_condition_that_comes_back_after_it_resolved_is_another_episode() -> None:
    steps = run(AT_ONCE, "#" + 25 * "." + "#.....")
    assert told(steps) == [("opened", 0), ("resolved", 3), ("opened", 26), ("resolved", 29)]
    assert [s.opening for s in steps] == [100, 100, 126, 126]


def test_what_comes_back_soon_resolves_twice_as_late_each_time() -> None:
    steps = run(AT_ONCE, "#...." * 12)
    # Three seconds of quiet, then six: by then it never is quiet for so long.
    assert told(steps) == [("opened", 0), ("resolved", 3), ("opened", 5)]
    assert told(run(AT_ONCE, "#.....#" + 40 * ".")) == [("opened", 0), ("resolved", 3), ("opened", 6), ("resolved", 12)]


def test_damping_is_over_once_it_has_been_quiet_for_long() -> None:
    quiet = 50 * "."
    steps = told(run(AT_ONCE, "#.....#" + quiet + "#" + quiet))
    assert steps[-2:] == [("opened", 57), ("resolved", 60)]


def test_what_fires_on_is_told_of_again_at_its_interval() -> None:
    policy = Policy(resolve_after_us=3 * S, renotify_us=10 * S)
    assert told(run(policy, 25 * "#" + "....")) == [
        ("opened", 0), ("updated", 10), ("updated", 20), ("resolved", 27),
    ]  # fmt: skip


def test_what_becomes_twice_as_bad_is_told_of_before_its_interval() -> None:
    life = Lifecycle(Policy(resolve_after_us=3 * S, renotify_us=1000 * S))
    scores = np.array([1.0, 1.5, 1.9, 1.9, 2.0, 3.0, 3.9, 4.1, 4.1, 8.0])
    steps = life.observe(scores >= 1, scores, np.arange(10) * S, np.arange(10))
    assert told(steps) == [("opened", 0), ("updated", 4), ("updated", 7)]


def test_what_has_lasted_and_is_far_over_escalates_once() -> None:
    policy = Policy(resolve_after_us=3 * S, escalate_after_us=5 * S)
    steps = run(policy, 20 * "#" + "....")
    assert told(steps) == [("opened", 0), ("escalated", 5), ("resolved", 22)]
    assert [s.escalated for s in steps] == [False, True, True]
    life = Lifecycle(policy)
    mild = np.full(20, 1.5)
    assert told(life.observe(mild >= 1, mild, np.arange(20) * S, np.arange(20))) == [("opened", 0)]


@pytest.mark.parametrize(("size", "at"), [(1.9, None), (2.0, 100), (4.0, 50), (10.0, 20), (1e6, 10)])
def test_what_is_larger_escalates_sooner_and_never_at_once(size: float, at: int | None) -> None:
    life = Lifecycle(Policy(resolve_after_us=3 * S, escalate_after_us=100 * S))
    scores = np.full(120, 1e9)  # a series that was constant: any change is far over its limit
    steps = life.observe(scores >= 1, scores, np.arange(120) * S, np.arange(120), sizes=np.full(120, size))
    assert told(steps) == [("opened", 0)] + ([] if at is None else [("escalated", at)])


def test_an_episode_counts_what_was_over_its_limit() -> None:
    life = Lifecycle(AT_ONCE)
    scores = np.array([2.0, 0.5, 2.0, 0.5, 0.5, 0.5, 0.5])
    steps = life.observe(scores >= 1, scores, np.arange(7) * S, np.arange(7), weight=50)
    assert [(s.action, s.values, s.weight) for s in steps] == [("opened", 1, 50), ("resolved", 2, 100)]


def test_for_waits_until_the_condition_has_lasted() -> None:
    assert told(run(Policy(for_us=3 * S, resolve_after_us=3 * S), "####......")) == [
        ("opened", 3),
        ("resolved", 6),
    ]
    assert told(run(Policy(for_us=3 * S, resolve_after_us=3 * S), "###.......")) == []


def test_an_alert_starts_when_its_condition_was_first_met() -> None:
    (opened, _) = run(Policy(for_us=3 * S, resolve_after_us=3 * S), "..####......")
    assert (opened.started_us, opened.at_us) == (2 * S, 5 * S)


def test_k_of_n_needs_k_within_n() -> None:
    policy = Policy(k=3, n=5, resolve_after_us=3 * S)
    assert told(run(policy, "#.#.#....")) == [("opened", 4), ("resolved", 7)]
    assert told(run(policy, "#..#..#..#..")) == []


def test_evidence_reaches_from_the_first_breach_to_the_last() -> None:
    (opened, *_) = run(Policy(k=2, n=3, resolve_after_us=3 * S), ".#.#......")
    assert (opened.offset_first, opened.offset_last, opened.opening) == (101, 103, 103)


def test_breaches_long_ago_are_no_evidence() -> None:
    (opened, *_) = run(Policy(k=2, n=3, resolve_after_us=3 * S), "#......#.#....")
    assert opened.offset_first == 107


def test_the_passing_of_time_resolves_without_a_value() -> None:
    life = Lifecycle(AT_ONCE)
    one = np.ones(1)
    life.observe(one > 0, one, np.array([0]), np.array([7]))
    assert life.due_us() == 3 * S
    assert life.expire(3 * S - 1) == []
    (step,) = life.expire(60 * S)
    assert (step.action, step.row, step.at_us) == ("resolved", -1, 3 * S)
    assert life.expire(120 * S) == []


policies = st.builds(
    Policy,
    for_us=st.integers(0, 4).map(lambda s: s * S),
    resolve_after_us=st.integers(1, 6).map(lambda s: s * S),
    k=st.integers(1, 3),
    n=st.integers(3, 6),
)
streams = st.text("#.", max_size=60)


@settings(deadline=None)
@given(policy=policies, stream=streams)
def test_opened_and_resolved_alternate_and_belong_together(policy: Policy, stream: str) -> None:
    steps = run(policy, stream)
    assert [s.action for s in steps] == [("opened", "resolved")[i % 2] for i in range(len(steps))]
    for opened, resolved in zip(steps[::2], steps[1::2], strict=False):
        assert opened.opening == resolved.opening
        assert opened.started_us == resolved.started_us
        assert opened.at_us < resolved.at_us
        assert resolved.peak >= 1.0
    assert len({s.opening for s in steps[::2]}) == len(steps[::2])


@settings(deadline=None)
@given(policy=policies, stream=streams, at=st.integers(0, 60))
def test_any_cut_gives_the_same_steps(policy: Policy, stream: str, at: int) -> None:
    # The row is a place in a batch, so it alone changes with the cut.
    def placeless(steps: list[Step]) -> list[tuple[object, ...]]:
        return [
            (s.action, s.at_us, s.started_us, s.opening, s.offset_first, s.offset_last, s.peak) for s in steps
        ]

    assert placeless(run(policy, stream, cut_at=min(at, len(stream)))) == placeless(run(policy, stream))


@settings(deadline=None)
@given(policy=policies, stream=streams, at=st.integers(0, 60))
def test_a_restored_life_goes_on(policy: Policy, stream: str, at: int) -> None:
    at = min(at, len(stream))
    first, second = Lifecycle(policy), Lifecycle(policy)
    breach = np.array([c == "#" for c in stream], bool)
    scores, times = np.where(breach, 2.0, 0.5), np.arange(len(breach)) * S
    first.observe(breach[:at], scores[:at], times[:at], times[:at])
    second.restore(first.snapshot())
    rest = (breach[at:], scores[at:], times[at:], times[at:])
    assert first.observe(*rest) == second.observe(*rest)
    assert first.snapshot() == second.snapshot()


def test_identities_are_stable_and_tell_their_parts_apart() -> None:
    assert identity("a", 1) == hashlib.sha256(b"a\x1f1").hexdigest()[:32]
    assert identity("ab", "c") != identity("a", "bc")
