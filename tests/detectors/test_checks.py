"""The contract catches those that break it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest

from detectors import registry
from detectors.checks import check_detector
from detectors.compile import warm_up_kernels
from detectors.kernels import kernel
from detectors.protocol import Evidence


class Honest:
    """Distance to a running mean, in tens; the smallest thing that keeps the contract."""

    def __init__(self) -> None:
        self.mean, self.n = 0.0, 0

    def score(self, values: Any, times: Any) -> Any:
        if not np.isfinite(values).all():
            raise ValueError("finite values only")
        scores = np.empty(len(values))
        for i, x in enumerate(np.clip(values, -1e30, 1e30).tolist()):
            scores[i] = np.nan if self.n < 5 else abs(x - self.mean) / 10.0
            self.learn(x)
        return scores

    def learn(self, x: float) -> None:
        self.n += 1
        self.mean += (x - self.mean) / self.n if self.n < 50 else (x - self.mean) / 50

    def explain(self, index: int = -1) -> Evidence:
        return Evidence()

    def warming(self) -> int:
        return max(0, 5 - self.n)

    def snapshot(self) -> Any:
        return {"mean": self.mean, "n": self.n}

    def restore(self, state: Any) -> None:
        self.mean, self.n = state["mean"], state["n"]


class LearnsFirst(Honest):
    def score(self, values: Any, times: Any) -> Any:
        scores = super().score(values, times)
        return scores - (scores.mean() if len(scores) else 0.0) * 1e-3


class ForgetsItsCount(Honest):
    def restore(self, state: Any) -> None:
        self.mean, self.n = state["mean"], 49


class ScribblesOnItsInput(Honest):
    def score(self, values: Any, times: Any) -> Any:
        scores = super().score(values, times)
        values *= 2.0
        return scores


class CriesWolf(Honest):
    def score(self, values: Any, times: Any) -> Any:
        scores = super().score(values, times)
        return np.where(np.isnan(scores), scores, 1.5)


class Hoards(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.all: list[float] = []

    def learn(self, x: float) -> None:
        super().learn(x)
        self.all.append(x)

    def snapshot(self) -> Any:
        return {**super().snapshot(), "all": list(self.all)}

    def restore(self, state: Any) -> None:
        super().restore(state)
        self.all = list(state["all"])


class NeverReady(Honest):
    def warming(self) -> int:
        return 5


class SwallowsNan(Honest):
    def score(self, values: Any, times: Any) -> Any:
        return super().score(np.nan_to_num(values), times)


class SharesItsState(Honest):
    def __init__(self) -> None:
        super().__init__()
        self.log = np.zeros(3)

    def learn(self, x: float) -> None:
        super().learn(x)
        self.log[self.n % 3] = x

    def snapshot(self) -> Any:
        return {**super().snapshot(), "log": self.log}

    def restore(self, state: Any) -> None:
        super().restore(state)
        self.log = state["log"]


class PoisonedByTheLarge(Honest):
    def learn(self, x: float) -> None:
        self.n += 1
        self.mean = self.mean * 0.9 + np.float64(x) ** 15 * 0.1


def test_an_honest_detector_passes() -> None:
    check_detector(Honest, kind="value", long=4000)


@pytest.mark.parametrize(
    ("factory", "check"),
    [
        (LearnsFirst, "cuts_change_nothing|warm_up_is_honest"),
        (ForgetsItsCount, "snapshot_continues"),
        (ScribblesOnItsInput, "input_untouched|cuts_change_nothing|snapshot_continues|scored_before_learned"),
        (CriesWolf, "constant_is_silent"),
        (Hoards, "state_is_bounded"),
        (NeverReady, "warm_up_is_honest"),
        (SwallowsNan, "non_finite_is_refused"),
        (SharesItsState, "snapshot_continues"),
    ],
)
def test_a_detector_that_breaks_the_contract_is_named_with_the_check(
    factory: Callable[[], Any], check: str
) -> None:
    with pytest.raises(AssertionError, match=f"^({check}): "):
        check_detector(factory, kind="value", long=4000)


def test_a_detector_that_overflows_fails() -> None:
    with pytest.raises((AssertionError, RuntimeWarning)):
        check_detector(PoisonedByTheLarge, kind="value", long=4000)


def test_a_loop_is_compiled_even_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = numba.njit

    def njit(*functions: Any, **options: Any) -> Any:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return plain(*functions, **options)

    monkeypatch.setattr(numba, "njit", njit)
    assert kernel(lambda x: x + 1)(2) == 3


def test_warming_up_the_kernels_reports_each_once() -> None:
    seen: list[tuple[str, int, int]] = []
    warm_up_kernels(lambda name, done, total: seen.append((name, done, total)), names=["spike", "drift"])
    assert [done for _, done, _ in seen] == list(range(1, len(seen) + 1))
    assert {total for _, _, total in seen} == {len(seen)}


def test_a_detector_that_is_named_is_warmed_up_too() -> None:
    seen: list[str] = []
    warm_up_kernels(lambda name, done, total: seen.append(name), names=["pattern", "spike", "pattern", "kswin"])
    assert seen == ["river", "pattern", "spike", "kswin"]
    assert len(seen) == len(set(seen))
    with pytest.raises(registry.UnknownDetectorError, match="did you mean"):
        warm_up_kernels(names=["patern"])


_NOTHING_COMPILED_LATER = """
import sys, numpy as np, numba
from detectors import registry
from detectors.compile import warm_up_kernels
from detectors.state import dumps, loads

names = [name for name in registry.names() if name in registry._OURS or name in ("kswin", "local_outlier_factor")]
warm_up_kernels(names=names)

def compiled():
    found = {}
    for module in [m for n, m in sys.modules.items() if n.startswith("detectors.")]:
        for function in vars(module).values():
            if isinstance(function, numba.core.dispatcher.Dispatcher):
                found[f"{function.py_func.__module__}.{function.__name__}"] = len(function.signatures)
    return found

before = compiled()
rng = np.random.default_rng(0)
for name in names:
    kind = registry.spec(name).kind
    params = {"upper": 3.0} if name == "limits" else None
    one, other = (registry.create(name, params, columns=3 if kind == "vector" else 1, seed=1) for _ in range(2))
    n = one.warming() + 800
    values = rng.normal(10.0, 2.0, (n, 3) if kind == "vector" else n)
    values[n - 100 :] += 30.0
    if kind == "boolean":
        values = (values > 12.0).astype(float)
    times = np.arange(n) * 60_000_000
    scores = one.score(values, times)
    one.explain(int(np.nanargmax(scores)))
    other.restore(loads(dumps(one.snapshot())))
    values.flags.writeable = False
    for i in range(5):
        other.score(values[i : i + 1], times[i : i + 1] + times[-1])
    other.score(values[::2], times[::2] + 2 * times[-1])
later = {name: count for name, count in compiled().items() if count != before.get(name, 0)}
sys.exit(f"compiled, or loaded, after the start: {later}" if later else 0)
"""


def test_nothing_is_compiled_after_the_start() -> None:
    done = subprocess.run([sys.executable, "-c", _NOTHING_COMPILED_LATER], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
