from __future__ import annotations

import numpy as np
import pytest

from detectors import registry, tail

SHARE = 1.0 / 759.0  # of values, for an alert of two in three, a thousand metrics and five false alerts a day
TIMES = np.arange(20_000, dtype=np.int64) * 60_000_000


def learned(distances: np.ndarray) -> np.ndarray:
    state = np.zeros(tail.TAIL)
    for z in distances.tolist():
        tail.learn_tail(state, z)
    return state


def test_the_compiled_loops_equal_the_plain_ones_to_the_bit() -> None:
    found = []
    for of in (lambda kernel: kernel, lambda kernel: kernel.py_func):
        state, blocks = np.zeros(tail.TAIL), np.zeros(tail.BLOCKS)
        for z in np.random.default_rng(0).pareto(2.0, 3_000).tolist():
            of(tail.learn_tail)(state, z)
            of(tail.learn_block)(blocks, z, 100)
        limits = np.array([of(tail.tail_limit)(state, SHARE), of(tail.block_limit)(blocks, SHARE, 100)])
        found.append(state.tobytes() + blocks.tobytes() + limits.tobytes())
    assert found[0] == found[1]


def test_a_series_not_yet_known_is_taken_for_a_heavy_tailed_one() -> None:
    quiet = np.abs(np.random.default_rng(1).normal(size=2_000))
    limits = [tail.tail_limit(learned(quiet[:n]), SHARE) for n in (0, 10, 100, 1_000)]
    assert limits[0] > 50.0
    assert sorted(limits, reverse=True) == limits
    assert limits[-1] < 6.0


@pytest.mark.parametrize("kind", ["lognormal", "heavy-tailed", "latency"])
def test_as_few_values_are_beyond_the_limit_as_it_was_asked_for(kind: str) -> None:
    rng = np.random.default_rng(2)
    beyond = 0
    for _ in range(20):
        values = {
            "lognormal": np.exp(rng.normal(size=TIMES.size)),
            "heavy-tailed": rng.standard_t(3.0, TIMES.size),
            "latency": 0.1 * np.exp(0.5 * rng.normal(size=TIMES.size)),
        }[kind]
        scores = registry.create("spike", {"alpha": SHARE, "limit": 0.1}).score(values, TIMES)
        beyond += int((scores >= 1.0).sum())
    assert 0.4 * SHARE <= beyond / (20 * TIMES.size) <= 1.1 * SHARE


def test_a_metric_mostly_zero_does_not_alarm_while_its_other_values_are_new() -> None:
    rng = np.random.default_rng(3)
    pairs = 0
    for share in np.linspace(0.01, 0.1, 50):
        values = np.where(rng.random(1440) < share, rng.exponential(size=1440), 0.0)
        loud = registry.create("spike", {"alpha": SHARE}).score(values, TIMES[:1440]) >= 1.0
        pairs += int((np.convolve(loud, np.ones(3)) >= 2.0).any())
    assert pairs <= 2  # 13 of them, when the limit began at what is usual for normal noise


def test_an_incident_hardly_widens_the_tail_it_is_measured_by() -> None:
    quiet = np.abs(np.random.default_rng(4).normal(size=4_000))
    loud = quiet.copy()
    loud[2_000:2_060] = 50.0
    assert tail.tail_limit(learned(quiet), SHARE) < 6.0
    assert tail.tail_limit(learned(loud), SHARE) < 9.0


def test_blocks_of_a_heavier_tail_raise_the_limit_further() -> None:
    rng = np.random.default_rng(5)
    limits = {}
    for name, draws in (("gumbel", rng.gumbel(size=400)), ("exponential", rng.exponential(size=400))):
        # Of one mean and one deviation.
        blocks = np.zeros(tail.BLOCKS)
        for score in ((draws - draws.mean()) / draws.std()).tolist():
            tail.learn_block(blocks, score, 1)
        limits[name] = tail.block_limit(blocks, 1e-4, 1)
    assert limits["gumbel"] < limits["exponential"]
