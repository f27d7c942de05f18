"""Our detectors as estimators of river, for its pipelines.

Anomaly detectors (`Outlier`, `HalfSpaceTrees`, `Spike`, `Pattern`, `RobustZ`, `Limits`, `Silence`) are
`river.base.AnomalyDetector`: 1.0 is the operator's limit, so `anomaly.ThresholdFilter(..., threshold=1.0)` filters
by it; 0.0 is given while warming up.
Drift detectors (`Drift`, `Rate`) are `river.base.DriftDetector` and `river.base.BinaryDriftDetector`.

`score_one` learns nothing, unlike `detectors.protocol.Detector.score`: it scores, then puts back every array of the
state, to the bit. So the score is the one that `learn_one` would have come with, at the cost of two copies of the
state: see each class. An instance is for one thread at a time, also for `score_one`. One row a call is some ten times
dearer than `Detector.score` on batches of a thousand.

Pickles, deep copies and clones: what was learned travels as `snapshot()`, and goes on to the bit. `clone()` gives a
fresh one of the same parameters, as river has it. Parameters cannot be set later; clone with new ones.

nan and infinities raise ValueError, and nothing is learned from the row. This module imports river;
`detectors.registry` does not import this module.

Examples
--------
>>> from river import anomaly, compose
>>> from detectors import river_api
>>> model = compose.Select("load", "latency") | anomaly.ThresholdFilter(river_api.Outlier(), threshold=1.0)
>>> for i in range(1000):
...     model.learn_one({"load": i % 7, "latency": 3.0 * (i % 7) + i % 3, "host": "a"})
>>> usual = model.score_one({"load": 2, "latency": 7.0, "host": "a"})
>>> odd = model.score_one({"load": 2, "latency": 20.0, "host": "a"})    # each usual, not together
>>> model["ThresholdFilter"].classify(usual), model["ThresholdFilter"].classify(odd)
(False, True)
"""

from __future__ import annotations

import abc
import math
from collections.abc import Hashable, Iterator, Mapping
from typing import Any, ClassVar, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from river import base

from detectors import registry, silence
from detectors.params import ParameterError, Sensitivity, build
from detectors.protocol import F64, I64, Detector

__all__ = [
    "Drift",
    "HalfSpaceTrees",
    "Limits",
    "Outlier",
    "Pattern",
    "Rate",
    "RobustZ",
    "Silence",
    "Spike",
    "score_only",
]

Row: TypeAlias = Mapping[Hashable, Any]

_SECOND_US: Final = 1_000_000
# The mean that stands in for a missing feature forgets after about this many rows.
_MEAN_OVER: Final = 1_000
_LARGEST: Final = 1e150
# Seconds: two clocks further apart would differ by more microseconds than 64 bits hold.
_LARGEST_TIME: Final = 4e12

# Of the signatures, what is no parameter of the detector itself.
_APART: Final = frozenset({"sensitivity", "seed", "every_s"})


def _arrays(held: Mapping[str, Any]) -> Iterator[npt.NDArray[Any]]:
    """Give every array a detector writes to: its attributes, and those in a dict among them."""
    for value in held.values():
        if isinstance(value, np.ndarray):
            if value.flags.writeable:
                yield value
        elif isinstance(value, dict):
            yield from _arrays(value)


def score_only(detector: Detector, values: F64, times: I64) -> F64:
    """Score as `detector.score` does, and learn nothing: every array is put back as it was, to the bit.

    For detectors that keep what they learn in arrays of their own, as all of ours that are listed here do; a
    detector that rebinds numbers is put back too, one that changes other objects is not.
    """
    held = vars(detector)
    before = dict(held)
    kept = [(array, array.copy()) for array in _arrays(before)]
    try:
        return detector.score(values, times)
    finally:
        for array, was in kept:
            array[...] = was
        held.clear()
        held.update(before)


def _float(name: object, value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"{name}: values must be finite, not {number}")
    return number


class _Ours(base.Base):  # type: ignore[misc]
    """What anomaly and drift detectors share: parameters of the signature, and their own pickles."""

    _NAME: ClassVar[str]

    def _check(self) -> None:
        """Refuse parameters that are not allowed, when they are given and not at the first value."""
        build(registry.spec(self._NAME).params, self._params(), detector=self._NAME)
        if not getattr(self, "every_s", 1.0) > 0.0:
            raise ParameterError(
                f"{self._NAME}: every_s = {self.every_s!r} is not allowed; expected a number > 0",
                detector=self._NAME,
                parameter="every_s",
            )
        if self.sensitivity not in ("low", "medium", "high"):
            raise ParameterError(
                f'{self._NAME}: sensitivity = {self.sensitivity!r} is not allowed; expected "low", "medium" or "high"',
                detector=self._NAME,
                parameter="sensitivity",
            )

    def _params(self) -> dict[str, Any]:
        given: dict[str, Any] = self._get_params()
        return {name: value for name, value in given.items() if name not in _APART}

    def _new(self, columns: int = 1) -> Detector:
        return registry.create(
            self._NAME,
            self._params(),
            columns=columns,
            sensitivity=self.sensitivity,
            seed=getattr(self, "seed", 0),
        )


class _Rows(_Ours, base.AnomalyDetector, abc.ABC):  # type: ignore[misc]
    """A detector of rows: the features of the first row learned are its columns."""

    def _start(self) -> None:
        self._check()
        self._features: tuple[Hashable, ...] = ()
        self._detector: Detector | None = None
        self._means: list[float] = []
        self._learned = 0

    def _values(self, x: Row) -> list[float]:
        means = self._means
        return [
            _float(name, x[name]) if name in x else mean for name, mean in zip(self._features, means, strict=True)
        ]

    def learn_one(self, x: Row) -> None:
        """Learn a row; one without features is not learned.

        Raises
        ------
        ValueError
            A value is nan or infinite.
        """
        if self._detector is None:
            if not x:
                return
            # By name, so that the order of a dict changes nothing; names of several types do not compare.
            features = tuple(sorted(x, key=lambda name: (type(name).__name__, name)))
            means = [_float(name, x[name]) for name in features]
            self._features, self._means, self._detector = features, means, self._new(len(features))
        row = self._values(x)
        self._detector.score(np.array([row]), np.zeros(1, dtype=np.int64))
        self._learned += 1
        share = 1.0 / min(self._learned, _MEAN_OVER)
        for j, value in enumerate(row):
            self._means[j] += share * (min(max(value, -_LARGEST), _LARGEST) - self._means[j])

    def score_one(self, x: Row) -> float:
        """Score a row and learn nothing; 0.0 while warming up.

        Returns
        -------
        1.0 where as few rows score as alpha says, more where fewer do.

        Raises
        ------
        ValueError
            A value is nan or infinite.
        """
        if self._detector is None:
            return 0.0
        score = float(score_only(self._detector, np.array([self._values(x)]), np.zeros(1, dtype=np.int64))[0])
        return 0.0 if math.isnan(score) else score

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        if self._detector is not None:
            state["_detector"] = self._detector.snapshot()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._means = list(self._means)  # a shallow copy is one of its own, too
        if state["_detector"] is not None:
            self._detector = self._new(len(self._features))
            self._detector.restore(state["_detector"])


class Outlier(_Rows):
    """Rows unlike those before; `detectors.outlier.Outlier` says how.

    The features of the first row learned are watched from then on. Others are ignored; one that is missing
    counts as its mean over about the last 1000 rows.

    At 10 features `learn_one` takes some 10 µs and `score_one` 16; a pickle is 16 kB.

    Parameters
    ----------
    half_life
        Rows after which one weighs half.
    alpha
        Tail probability that scores 1.0; None: by sensitivity, 1e-4, 1e-3 or 1e-2.
    sensitivity
        "low", "medium" or "high".
    seed
        Draws the past rows that are kept.

    Examples
    --------
    >>> import random
    >>> from detectors import river_api
    >>> rng = random.Random(1)
    >>> model = river_api.Outlier()
    >>> for _ in range(1000):
    ...     model.learn_one({"a": rng.gauss(0, 1), "b": rng.gauss(5, 2)})
    >>> model.score_one({"a": 0.0, "b": 5.0}) < 1 <= model.score_one({"a": 0.0, "b": 50.0})
    True

    References
    ----------
    [^1]: See `detectors.outlier`.
    """

    _NAME = "outlier"

    def __init__(
        self,
        half_life: int = 5_000,
        alpha: float | None = None,
        sensitivity: Sensitivity = "medium",
        seed: int = 0,
    ) -> None:
        self.half_life = half_life
        self.alpha = alpha
        self.sensitivity = sensitivity
        self.seed = seed
        self._start()


class HalfSpaceTrees(_Rows):
    """Half-space trees on rows scaled by their range, calibrated; `detectors.half_space_trees` says how.

    Ranks rows as river's `preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees()` does; the score is how rare that
    rank is. Features are as with `Outlier`. At 10 of them `learn_one` takes some 10 µs and `score_one` 13, a little
    less than river's; a pickle is 23 kB.

    Parameters
    ----------
    n_trees
        Trees.
    height
        Cuts from a root to a leaf.
    window_size
        Rows whose masses make the past.
    alpha
        Tail probability that scores 1.0; None: by sensitivity, 1e-4, 1e-3 or 1e-2.
    sensitivity
        "low", "medium" or "high".
    seed
        Grows the trees.

    Examples
    --------
    >>> import random
    >>> from detectors import river_api
    >>> rng = random.Random(1)
    >>> model = river_api.HalfSpaceTrees(n_trees=25)
    >>> for _ in range(1500):
    ...     model.learn_one({"a": rng.gauss(0, 1), "b": rng.gauss(5, 2)})
    >>> model.score_one({"a": 0.0, "b": 5.0}) < model.score_one({"a": 9.0, "b": 25.0})
    True

    References
    ----------
    [^1]: Tan, S.C., Ting, K.M. and Liu, T.F., 2011. Fast anomaly detection for streaming data. IJCAI.
    """

    _NAME = "half_space_trees"

    def __init__(
        self,
        n_trees: int = 10,
        height: int = 8,
        window_size: int = 250,
        alpha: float | None = None,
        sensitivity: Sensitivity = "medium",
        seed: int = 0,
    ) -> None:
        self.n_trees = n_trees
        self.height = height
        self.window_size = window_size
        self.alpha = alpha
        self.sensitivity = sensitivity
        self.seed = seed
        self._start()


class _Values(_Ours, base.AnomalyDetector, abc.ABC):  # type: ignore[misc]
    """A detector of single values, one for each feature; the largest of their scores counts."""

    def _start(self) -> None:
        self._check()
        self._each: dict[Hashable, Detector] = {}
        self._learned = 0

    def _now(self) -> I64:
        every_s: float = getattr(self, "every_s", 0.0)
        return np.array([int(self._learned * every_s * _SECOND_US)], dtype=np.int64)

    def learn_one(self, x: Row) -> None:
        """Learn a value of each feature given; a feature first seen starts warming up.

        Raises
        ------
        ValueError
            A value is nan or infinite; nothing is learned.
        """
        row = {name: _float(name, value) for name, value in x.items()}
        now = self._now()
        for name, value in row.items():
            detector = self._each.get(name)
            if detector is None:
                detector = self._each[name] = self._new()
            detector.score(np.array([value]), now)
        self._learned += 1

    def score_one(self, x: Row) -> float:
        """Score each feature given and return the largest score; 0.0 of those warming up. Nothing is learned.

        Raises
        ------
        ValueError
            A value is nan or infinite.
        """
        row = {name: _float(name, value) for name, value in x.items()}
        now = self._now()
        most = 0.0
        for name, value in row.items():
            detector = self._each.get(name)
            if detector is not None:
                # A nan is no larger than any number.
                score = float(score_only(detector, np.array([value]), now)[0])
                most = score if score > most else most
        return most

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_each": {name: detector.snapshot() for name, detector in self._each.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._each = {}
        for name, snapshot in state["_each"].items():
            self._each[name] = self._new()
            self._each[name].restore(snapshot)


class Limits(_Values):
    """Values outside hard bounds; `detectors.limits.Limits` says how.

    Every feature is held to the same bounds and the largest score counts: select the ones to watch. It learns
    nothing.

    Parameters
    ----------
    lower, upper
        The bounds, in the value's unit; at least one is needed.

    Examples
    --------
    >>> from detectors import river_api
    >>> model = river_api.Limits(upper=100.0)
    >>> model.learn_one({"load": 50.0})
    >>> model.score_one({"load": 90.0}) < 1 <= model.score_one({"load": 120.0})
    True
    """

    _NAME = "limits"
    sensitivity: Sensitivity = "medium"  # bounds have no use for one

    def __init__(self, lower: float | None = None, upper: float | None = None) -> None:
        self.lower = lower
        self.upper = upper
        self._start()

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {"upper": 1_000.0}


class Spike(_Values):
    """Sudden values, far from a short and a long mean alike; `detectors.spike.Spike` says how.

    Every feature is watched by itself and the largest score counts: select the ones to watch. river's own
    univariate detectors take the value as y instead. `learn_one` takes some 4 µs a feature, `score_one` 7.

    Parameters
    ----------
    fast, slow
        Half-lives of the two means, in values.
    warm_up
        Values before the first score.
    settled
        Values after which what is learned is clipped.
    direction
        "up", "down" or "both": on which side a value is anomalous.
    limit
        Deviations from the mean that score 1.0; None: by sensitivity, 9, 6 or 4.
    alpha
        Share of values that may score 1.0: raises the limit where the own tail is heavy; None: never raised.
    rel_floor, abs_floor
        Least deviation, as a share of the mean's size and in the value's unit.
    sensitivity
        "low", "medium" or "high".

    Examples
    --------
    >>> from river import compose
    >>> from detectors import river_api
    >>> model = compose.Select("latency") | river_api.Spike()
    >>> for i in range(100):
    ...     model.learn_one({"latency": 20.0 + i % 5, "host": "a"})
    >>> model.score_one({"latency": 23.0, "host": "a"}) < 1 <= model.score_one({"latency": 80.0, "host": "a"})
    True
    """

    _NAME = "spike"

    def __init__(
        self,
        fast: float = 50.0,
        slow: float = 400.0,
        warm_up: int = 5,
        settled: int = 30,
        direction: Literal["up", "down", "both"] = "both",
        limit: float | None = None,
        alpha: float | None = None,
        rel_floor: float = 0.01,
        abs_floor: float = 1e-9,
        sensitivity: Sensitivity = "medium",
    ) -> None:
        self.fast = fast
        self.slow = slow
        self.warm_up = warm_up
        self.settled = settled
        self.direction = direction
        self.limit = limit
        self.alpha = alpha
        self.rel_floor = rel_floor
        self.abs_floor = abs_floor
        self.sensitivity = sensitivity
        self._start()


class Pattern(_Values):
    """Values, stretches and daily shapes that are new; `detectors.pattern.Pattern` says how.

    Every feature is watched by itself and the largest score counts. river has no clock, so rows are taken to
    be `every_s` seconds apart; the daily shape needs that right. `learn_one` takes some 9 µs a feature,
    `score_one` 33; a pickle is 54 kB a feature.

    Parameters
    ----------
    warm_up
        Values before the first score.
    shingles
        Past stretches kept by each view of stretches.
    limit
        Mean of the views that scores 1.0; None: by sensitivity, 2.12, 1.5 or 1.06.
    alpha
        Share of values that may score 1.0: raises the limit where the own tail is heavy; None: never raised.
    hold
        At most one value in so many alarms; 0: no such bound.
    every_s
        Seconds from one row to the next.
    sensitivity
        "low", "medium" or "high".

    Examples
    --------
    >>> import math
    >>> from detectors import river_api
    >>> model = river_api.Pattern(every_s=60.0)
    >>> for i in range(2000):
    ...     model.learn_one({"load": 5.0 + math.sin(i / 20)})
    >>> model.score_one({"load": 5.0}) < model.score_one({"load": 9.0})
    True
    """

    _NAME = "pattern"

    def __init__(
        self,
        warm_up: int = 100,
        shingles: int = 500,
        limit: float | None = None,
        alpha: float | None = None,
        hold: int = 100,
        every_s: float = 60.0,
        sensitivity: Sensitivity = "medium",
    ) -> None:
        self.warm_up = warm_up
        self.shingles = shingles
        self.limit = limit
        self.alpha = alpha
        self.hold = hold
        self.every_s = every_s
        self.sensitivity = sensitivity
        self._start()


class RobustZ(_Values):
    """Values far from the median of a window; `detectors.robust_z.RobustZ` says how.

    Every feature is watched by itself and the largest score counts: select the ones to watch. `learn_one` takes
    some 4 µs a feature, `score_one` 9.

    Parameters
    ----------
    window
        Values the past is made of.
    warm_up
        Values before the first score.
    direction
        "up", "down" or "both": on which side a value is anomalous.
    limit
        Scales from the median that score 1.0; None: by sensitivity, 9, 6 or 4.
    alpha
        Share of values that may score 1.0: raises the limit where the own tail is heavy; None: never raised.
    rel_floor, abs_floor
        Least scale, as a share of the median's size and in the value's unit.
    sensitivity
        "low", "medium" or "high".

    Examples
    --------
    >>> from detectors import river_api
    >>> model = river_api.RobustZ(window=100)
    >>> for i in range(100):
    ...     model.learn_one({"latency": 20.0 + i % 5})
    >>> model.score_one({"latency": 23.0}) < 1 <= model.score_one({"latency": 80.0})
    True
    """

    _NAME = "robust_z"

    def __init__(
        self,
        window: int = 300,
        warm_up: int = 30,
        direction: Literal["up", "down", "both"] = "both",
        limit: float | None = None,
        alpha: float | None = None,
        rel_floor: float = 0.01,
        abs_floor: float = 1e-9,
        sensitivity: Sensitivity = "medium",
    ) -> None:
        self.window = window
        self.warm_up = warm_up
        self.direction = direction
        self.limit = limit
        self.alpha = alpha
        self.rel_floor = rel_floor
        self.abs_floor = abs_floor
        self.sensitivity = sensitivity
        self._start()


class Silence(_Ours, base.AnomalyDetector):  # type: ignore[misc]
    """Nothing for too long, in the time of the rows; `detectors.silence.Silence` says how.

    A row carries a clock, in seconds: the feature `time` or, where the first row learned has none of that name, its
    first feature by name; every other feature is ignored. `learn_one` says that something arrived then, `score_one`
    answers how overdue the next arrival is at that time, 1.0 at the timeout, and may be asked at any time, with nothing
    arriving: the score grows with the time it is asked for until the next arrival is learned. A time that goes back
    counts as the latest known; a row without its clock is not learned and scores 0.0. Clocks beyond 4e12 seconds count
    as that.

    With a timeout given there is no warm-up; without one it is learned from the gaps, and 0.0 is given until it is.
    `learn_one` takes some 4 µs, `score_one` 2.

    Parameters
    ----------
    timeout_s
        Seconds without an arrival that score 1.0; None: learned from the gaps.
    min_timeout_s
        Least timeout that may be learned, in seconds.
    factor
        Learned timeout as a multiple of the gap that one in a thousand exceeds.
    warm_up
        Gaps before the first score, when learning.

    Examples
    --------
    >>> from detectors import river_api
    >>> model = river_api.Silence(warm_up=50)
    >>> for second in range(0, 600, 10):
    ...     model.learn_one({"time": float(second)})
    >>> model.score_one({"time": 600.0}) < 1 <= model.score_one({"time": 700.0})
    True
    >>> model.learn_one({"time": 700.0})    # it came
    >>> model.score_one({"time": 710.0}) < 1
    True
    """

    _NAME = "silence"
    sensitivity: Sensitivity = "medium"  # a timeout has no use for one

    def __init__(
        self,
        timeout_s: float | None = None,
        min_timeout_s: float = 5.0,
        factor: float = 3.0,
        warm_up: int = 200,
    ) -> None:
        self.timeout_s = timeout_s
        self.min_timeout_s = min_timeout_s
        self.factor = factor
        self.warm_up = warm_up
        self._check()
        self._clock: tuple[Hashable, ...] = ()  # the feature, once known
        self._detector = self._begin()

    def _begin(self) -> silence.Silence:
        detector = self._new()
        assert isinstance(detector, silence.Silence)
        return detector

    def _time_us(self, x: Row) -> int | None:
        if not self._clock or self._clock[0] not in x:
            return None
        seconds = _float(self._clock[0], x[self._clock[0]])
        return round(min(max(seconds, -_LARGEST_TIME), _LARGEST_TIME) * _SECOND_US)

    def learn_one(self, x: Row) -> None:
        """Learn that something arrived at the row's time.

        Raises
        ------
        ValueError
            The time is nan or infinite; nothing is learned.
        """
        if not self._clock and x:
            first = "time" if "time" in x else min(x, key=lambda name: (type(name).__name__, name))
            _float(first, x[first])
            self._clock = (first,)
        now_us = self._time_us(x)
        if now_us is not None:
            self._detector.score(np.zeros(1), np.array([now_us], dtype=np.int64))

    def score_one(self, x: Row) -> float:
        """Score the silence up to the row's time and learn nothing; 0.0 while warming up.

        Raises
        ------
        ValueError
            The time is nan or infinite.
        """
        now_us = self._time_us(x)
        return 0.0 if now_us is None else self._detector.overdue(now_us)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_detector": self._detector.snapshot()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._detector = self._begin()
        self._detector.restore(state["_detector"])


class _Drifts(_Ours):
    """Shared by the drift detectors: after a drift, the next value starts anew."""

    _drift_detected: bool

    def _start(self) -> None:
        self._check()
        self._detector = self._new()

    def _reset(self) -> None:
        super()._reset()
        self._detector = self._new()

    def _update(self, x: float) -> None:
        value = np.array([_float(self._NAME, x)])
        if self._drift_detected:
            self._reset()
        score = self._detector.score(value, np.zeros(1, dtype=np.int64))[0]
        self._drift_detected = bool(score >= 1.0)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_detector": self._detector.snapshot()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._detector = self._new()
        self._detector.restore(state["_detector"])


class Drift(_Drifts, base.DriftDetector):  # type: ignore[misc]
    """A change of the distribution of values, with false alarms bounded; `detectors.drift.Drift` says how.

    After a drift the next value starts anew, with a reference of its own, as river's detectors do. An update takes
    some 3 µs.

    Parameters
    ----------
    reference
        Values that place the bins; no drift is found before.
    limit
        Evidence that is a drift, about the values between false alarms; None: by sensitivity, 1e6, 1e5 or 1e4.
    prewhiten
        Alarm only where the values' own past and trend do not explain it either; False: for independent values.
    sensitivity
        "low", "medium" or "high".
    seed
        Of the numbers drawn to break ties.

    Examples
    --------
    >>> import random
    >>> from detectors import river_api
    >>> rng = random.Random(1)
    >>> model = river_api.Drift()
    >>> values = [rng.gauss(0, 1) for _ in range(2000)] + [rng.gauss(1, 1) for _ in range(300)]
    >>> found = []
    >>> for i, x in enumerate(values):
    ...     model.update(x)
    ...     if model.drift_detected:
    ...         found.append(i)
    >>> len(found), 2000 <= found[0] < 2060
    (1, True)
    """

    _NAME = "drift"

    def __init__(
        self,
        reference: int = 500,
        limit: float | None = None,
        prewhiten: bool = True,
        sensitivity: Sensitivity = "medium",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.reference = reference
        self.limit = limit
        self.prewhiten = prewhiten
        self.sensitivity = sensitivity
        self.seed = seed
        self._start()

    def update(self, x: float) -> None:
        """Take a value; `drift_detected` then says whether there is a drift.

        Raises
        ------
        ValueError
            The value is nan or infinite.
        """
        self._update(x)


class Rate(_Drifts, base.BinaryDriftDetector):  # type: ignore[misc]
    """A change of the rate of ones, with false alarms bounded; `detectors.rate.Rate` says how.

    After a drift the next value starts anew, with a reference of its own, as river's detectors do. An update takes
    some 3 µs.

    Parameters
    ----------
    reference
        Values the first rate is from; no drift is found before.
    effect
        Change of the rate up to which there is none.
    limit
        Evidence that is a drift, about the values between false alarms; None: by sensitivity, 1e5, 1e4 or 1e3.
    sensitivity
        "low", "medium" or "high".

    Examples
    --------
    >>> import random
    >>> from detectors import river_api
    >>> rng = random.Random(1)
    >>> model = river_api.Rate()
    >>> found = []
    >>> for i in range(4000):
    ...     model.update(rng.random() < (0.05 if i < 3000 else 0.2))
    ...     if model.drift_detected:
    ...         found.append(i)
    >>> len(found), 3000 <= found[0] < 3150
    (1, True)
    """

    _NAME = "rate"

    def __init__(
        self,
        reference: int = 1_000,
        effect: float = 0.0,
        limit: float | None = None,
        sensitivity: Sensitivity = "medium",
    ) -> None:
        super().__init__()
        self.reference = reference
        self.effect = effect
        self.limit = limit
        self.sensitivity = sensitivity
        self._start()

    def update(self, x: bool) -> None:
        """Take False or True, 0 or 1; `drift_detected` then says whether there is a drift.

        Raises
        ------
        ValueError
            The value is neither 0 nor 1.
        """
        if x not in (0, 1):
            raise ValueError(f"rate: values must be 0 or 1, not {x!r}")
        self._update(x)
