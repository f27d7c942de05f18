"""The contract every detector is put through; authors of plugins import it into their tests.

Examples
--------
>>> from detectors import registry
>>> from detectors.checks import check_detector
>>> check_detector(lambda: registry.create("robust_z"), kind="value", long=2_000)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import numpy as np

from detectors.params import Kind
from detectors.protocol import F64, I64, Damped, Detector, Evidence
from detectors.state import dumps, loads

__all__ = ["CHECKS", "Subject", "check_detector"]

_SECOND_US: Final = 1_000_000
_EXTREMES: Final = (1e300, -1e300, 5e-324, -5e-324, 2.3e-308, 0.0, -0.0, 1.7e308, -1.7e308, 1e300, 1e-300)
_CONSTANTS: Final = (0.0, 1.0, 0.1, -3.7e5, 1e-300)


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A detector under check: how to make a fresh one, and what to feed it.

    length is the number of values past warm-up that a check feeds; long, the number after which the
    size of the state is held against that after a quarter of it.
    """

    factory: Callable[[], Detector]
    kind: Kind
    columns: int = 1
    length: int = 1_000
    long: int = 20_000
    seed: int = 0

    @property
    def warm_up(self) -> int:
        """Values a fresh detector needs before its first score."""
        return self.factory().warming()

    def stream(self, n: int, *, salt: int = 0) -> tuple[F64, I64]:
        """Return n seeded values with a few jumps and outliers, and irregular times."""
        rng = np.random.default_rng((self.seed, salt))
        times = 1_700_000_000 * _SECOND_US + np.cumsum(rng.exponential(_SECOND_US, n).astype(np.int64))
        if n > 20:
            times[n * 4 // 5 :] += 300 * _SECOND_US
        if self.kind == "boolean":
            rate = np.where(np.arange(n) < n * 3 // 5, 0.1, 0.6)
            return (rng.random(n) < rate).astype(np.float64), times
        shape = (n, self.columns) if self.kind == "vector" else (n,)
        values = rng.normal(10.0, 2.0, shape)
        values[n * 3 // 5 :] += 1.0
        for share in (0.5, 0.7, 0.71, 0.72, 0.9):
            at = int(n * share)
            values[at : at + 1] += 40.0
        return values, times


def _score(detector: Detector, values: F64, times: I64) -> F64:
    scores = detector.score(values, times)
    assert isinstance(scores, np.ndarray), f"score returned {type(scores).__name__}, not an array"
    assert scores.dtype == np.float64, f"scores are {scores.dtype}, not float64"
    assert scores.shape == (len(values),), f"{len(values)} values got scores of shape {scores.shape}"
    return scores


def _first_difference(one: F64, other: F64) -> int | None:
    """Return the first index at which the scores differ in any bit."""
    differing = np.flatnonzero(one.view(np.int64) != other.view(np.int64))
    return int(differing[0]) if differing.size else None


def _assert_same(one: F64, other: F64, claim: str, *, offset: int = 0) -> None:
    at = _first_difference(one, other)
    assert at is None, f"{claim}: score {offset + at} is {one[at]!r} and {other[at]!r}"


def _cuts(n: int, rng: np.random.Generator) -> Iterator[slice]:
    at = 0
    while at < n:
        size = int(rng.choice([0, 1, 1, 2, 3, 7, 31, 64, 250, 997]))
        yield slice(at, min(at + size, n))
        at += size


def check_cuts_change_nothing(subject: Subject) -> None:
    """Hold that no way to cut a stream, empty batches and single values too, changes scores or evidence."""
    n = subject.warm_up + subject.length
    values, times = subject.stream(n)
    whole_detector = subject.factory()
    whole = _score(whole_detector, values, times)
    evidence = {int(i): whole_detector.explain(int(i)) for i in np.flatnonzero(whole >= 1.0)}
    singles = [slice(i, i + 1) for i in range(min(n, subject.warm_up + 300))]
    rng = np.random.default_rng(subject.seed)
    for cuts in (singles, *(list(_cuts(n, rng)) for _ in range(3))):
        detector = subject.factory()
        for cut in cuts:
            scores = _score(detector, values[cut], times[cut])
            _assert_same(whole[cut], scores, "cutting the stream changed a score", offset=cut.start)
            for i in np.flatnonzero(scores >= 1.0):
                found, expected = detector.explain(int(i)), evidence[cut.start + int(i)]
                assert isinstance(found, Evidence), "explain must return Evidence"
                assert found == expected, (
                    f"cutting the stream changed the evidence of {cut.start + int(i)}: {expected} and {found}"
                )


def check_snapshot_continues(subject: Subject) -> None:
    """Hold that a restored detector goes on as if never stopped, and gives the same snapshot itself."""
    warm_up = subject.warm_up
    n = warm_up + subject.length
    values, times = subject.stream(n)
    whole_detector = subject.factory()
    whole = _score(whole_detector, values, times)
    end = dumps(whole_detector.snapshot())
    for stop in sorted({0, 1, warm_up // 2, warm_up, warm_up + 1, warm_up + subject.length // 2, n}):
        original = subject.factory()
        if stop > 0:
            _score(original, values[:stop], times[:stop])
        snapshot = original.snapshot()
        data = dumps(snapshot)
        restored = subject.factory()
        restored.restore(loads(data))
        assert restored.warming() == original.warming(), f"warming() differs after restoring at {stop}"
        assert dumps(restored.snapshot()) == data, f"restored at {stop}, the snapshot is another"
        scores = _score(restored, values[stop:], times[stop:])
        _assert_same(whole[stop:], scores, f"restored at {stop}", offset=stop)
        assert dumps(restored.snapshot()) == end, f"restored at {stop}, the state at the end is another"
        _score(original, values[stop:], times[stop:])
        assert dumps(snapshot) == data, f"a snapshot taken at {stop} changed as the detector went on"


def check_scored_before_learned(subject: Subject) -> None:
    """Hold that a score depends on the values up to its own, and on none after."""
    n = subject.warm_up + subject.length
    values, times = subject.stream(n)
    whole = _score(subject.factory(), values, times)
    for at in sorted({0, subject.warm_up // 2, subject.warm_up, n // 2, n - 2, n - 1}):
        changed = values.copy()
        changed[at] = 1.0 - changed[at] if subject.kind == "boolean" else changed[at] * -3.0 + 17.0
        scores = _score(subject.factory(), changed, times)
        _assert_same(whole[:at], scores[:at], f"changing value {at} changed an earlier score")
    half = n // 2
    alone = _score(subject.factory(), values[:half], times[:half])
    _assert_same(whole[:half], alone, "values after the last one scored mattered")


def check_input_untouched(subject: Subject) -> None:
    """Hold that input is never written to, and that scores handed out are the caller's own."""
    values, times = subject.stream(subject.warm_up + 50)
    kept_values, kept_times = values.copy(), times.copy()
    values.flags.writeable = False
    times.flags.writeable = False
    detector = subject.factory()
    scores = _score(detector, values, times)
    assert np.array_equal(values, kept_values), "values were changed"
    assert np.array_equal(times, kept_times), "times were changed"
    before = dumps(detector.snapshot())
    scores[:] = -1.0
    assert dumps(detector.snapshot()) == before, "the scores handed out are part of the state"


def check_constant_is_silent(subject: Subject) -> None:
    """Hold that a stream that never changes never alarms."""
    n = subject.warm_up + subject.length
    times = np.arange(n, dtype=np.int64) * _SECOND_US
    for constant in (0.0, 1.0) if subject.kind == "boolean" else _CONSTANTS:
        values = np.full((n, subject.columns) if subject.kind == "vector" else n, constant)
        scores = _score(subject.factory(), values, times)
        loud = np.flatnonzero(scores >= 1.0)
        assert not loud.size, f"a constant {constant} scored {scores[loud[0]]} at {loud[0]}"


def check_state_is_bounded(subject: Subject) -> None:
    """Hold that after `long` values the state is at most 1.3 times what it was after a quarter of them."""
    warm_up, quarter = subject.warm_up, subject.long // 4
    values, times = subject.stream(warm_up + subject.long)
    detector = subject.factory()
    _score(detector, values[: warm_up + quarter], times[: warm_up + quarter])
    early = len(dumps(detector.snapshot()))
    _score(detector, values[warm_up + quarter :], times[warm_up + quarter :])
    late = len(dumps(detector.snapshot()))
    assert late <= 1.3 * early + 64, f"the state grew from {early} to {late} bytes"


def check_warm_up_is_honest(subject: Subject) -> None:
    """Hold that warming() never grows, and is 0 exactly when the next score is a number."""
    warm_up = subject.warm_up
    assert warm_up >= 0, f"warming() is {warm_up}"
    values, times = subject.stream(warm_up + 100)
    detector = subject.factory()
    left = warm_up
    for i in range(len(values)):
        score = float(_score(detector, values[i : i + 1], times[i : i + 1])[0])
        if left > 0:
            assert math.isnan(score), f"value {i} scored {score} with warming() at {left}"
        else:
            assert math.isfinite(score), f"value {i} scored {score} with warming() at 0"
            assert score >= 0.0, f"value {i} scored {score}, below 0"
        now = detector.warming()
        assert 0 <= now <= left, f"after value {i} warming() went from {left} to {now}"
        left = now
    assert left == 0, f"warming() was {warm_up} at first, and is {left} after {len(values)} values"


def check_extremes_do_not_poison(subject: Subject) -> None:
    """Feed the largest and smallest finite numbers: nothing is raised, and scores stay finite."""
    if subject.kind == "boolean":
        return
    warm_up = subject.warm_up
    extremes = np.repeat(np.array(_EXTREMES), 2)
    for before in (0, warm_up + 200):
        calm, _ = subject.stream(before + warm_up + subject.length)
        wild = np.repeat(extremes[:, None], subject.columns, axis=1) if subject.kind == "vector" else extremes
        values = np.concatenate((calm[:before], wild, calm[before:]))
        times = np.arange(len(values), dtype=np.int64) * _SECOND_US
        detector = subject.factory()
        with warnings.catch_warnings(), np.errstate(all="warn"):
            warnings.simplefilter("error", RuntimeWarning)
            scores = _score(detector, values, times)
        bad = np.flatnonzero(~np.isfinite(scores[warm_up:]) | (scores[warm_up:] < 0.0))
        assert not bad.size, (
            f"with extremes from value {before} on, score {warm_up + bad[0]} is {scores[warm_up + bad[0]]}"
        )
        dumps(detector.snapshot())


def check_non_finite_is_refused(subject: Subject) -> None:
    """Hold that nan and infinities raise ValueError and leave the state as it was."""
    values, times = subject.stream(subject.warm_up + 60)
    detector = subject.factory()
    _score(detector, values[:-20], times[:-20])
    before = dumps(detector.snapshot())
    for bad in (math.nan, math.inf, -math.inf):
        spoilt = values[-20:].copy()
        spoilt[10] = bad
        try:
            detector.score(spoilt, times[-20:])
        except ValueError:
            pass
        else:
            raise AssertionError(f"{bad} was taken without a ValueError")
        assert dumps(detector.snapshot()) == before, f"refusing {bad} changed the state"


def check_damping_can_be_taken_back(subject: Subject) -> None:
    """Hold that what is learned undamped is less odd afterwards, and that nan is refused."""
    damped, taught = subject.factory(), subject.factory()
    if not isinstance(taught, Damped):
        return
    values, times = subject.stream(subject.warm_up + subject.length + 20)
    values[-20:] += 60.0
    far, late = values[-20:], times[-20:]
    for detector in (damped, taught):
        _score(detector, values[:-10], times[:-10])
    taught.learn_undamped(far[:10], late[:10])
    before = dumps(taught.snapshot())
    spoilt = far.copy()
    spoilt[3] = math.nan
    try:
        taught.learn_undamped(spoilt, late)
    except ValueError:
        pass
    else:
        raise AssertionError("nan was learned without a ValueError")
    assert dumps(taught.snapshot()) == before, "refusing nan changed the state"
    little, much = _score(damped, far[10:11], late[10:11])[0], _score(taught, far[10:11], late[10:11])[0]
    assert much < little, f"after learning it in full, what scored {little} scores {much}"


#: Every check by name, in the order they run.
CHECKS: Final[dict[str, Callable[[Subject], None]]] = {
    "warm_up_is_honest": check_warm_up_is_honest,
    "cuts_change_nothing": check_cuts_change_nothing,
    "snapshot_continues": check_snapshot_continues,
    "scored_before_learned": check_scored_before_learned,
    "input_untouched": check_input_untouched,
    "constant_is_silent": check_constant_is_silent,
    "extremes_do_not_poison": check_extremes_do_not_poison,
    "non_finite_is_refused": check_non_finite_is_refused,
    "state_is_bounded": check_state_is_bounded,
    "damping_can_be_taken_back": check_damping_can_be_taken_back,
}


def check_detector(
    factory: Callable[[], Detector],
    *,
    kind: Kind,
    columns: int = 1,
    length: int = 1_000,
    long: int = 20_000,
    seed: int = 0,
) -> None:
    """Run every check on fresh detectors from `factory`.

    Parameters
    ----------
    factory
        Makes a fresh detector, the same each time.
    kind, columns
        What it is fed.
    length, long
        Values past warm-up in most checks, and in that of the state's size: less for a slow detector.
    seed
        Of the streams and the cuts.

    Raises
    ------
    AssertionError
        A check failed; the message names it and says where.
    """
    subject = Subject(factory=factory, kind=kind, columns=columns, length=length, long=long, seed=seed)
    for name, check in CHECKS.items():
        try:
            check(subject)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
