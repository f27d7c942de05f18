"""river's detectors under their own names, through one adapter.

Drift detectors (river.drift, river.drift.binary) score 1.0 at the value where they find a drift and 0.0
elsewhere; then they start anew, as river has it. They decide for themselves: a sensitivity has no effect.
Anomaly detectors (river.anomaly) score a value, then learn it; `detectors.calibrate` turns river's raw score
into ours. Rows for `loda`, `local_outlier_factor` and `one_class_svm` are standardised online first.

`adwin` and `page_hinkley` are not free of scale: their bounds and defaults are for values of about one, so that a drift
of latencies of 1e-4 is never found by them, and prices of 1e6 drift for ever. They are fed (x - m) / s (parameter
`scaled`), m the mean of the first 30 values and s the larger of four standard deviations and a hundredth of it, learned
again after a drift; where all were 0, s is the first that is not. The others are free of scale, or standardised, or
calibrated.

What was constant has no deviation: to river's GaussianScorer nothing is out of it. Here what is further from it than a
millionth of it scores as the furthest there is.

Values beyond ±1e100 are taken as ±1e100: river's running variances would overflow and stay nan.

KSWIN and LocalOutlierFactor run in their compiled forms, `detectors.river_compiled`, which answer as river's do.

Snapshots of the others hold river's own attributes as plain data, written by a walk over known types and laid over a
freshly made object; nothing is unpickled or looked up outside river's modules already loaded. They are exact
for river 0.26; the state of the Rust parts is river's own bytes.

Left out, with the reason:

- HalfSpaceTrees: `detectors.half_space_trees` gives its raw scores to the bit and fifty times faster.
- PredictiveAnomalyDetection: its score saturates at 1.0, which leaves nothing to calibrate, and scoring
  changes its state.
- GaussianScorer with a `window_size`: after large values its rolling variance may come out negative.
- KSWIN's `window`, StandardAbsoluteDeviation's other `sub_stat`, OneClassSVM's `optimizer` and
  `initializer`, LocalOutlierFactor's `engine`: objects, not numbers.
- QuantileFilter, ThresholdFilter, DriftRetrainingClassifier wrap others; NoDrift and DummyDriftDetector
  are for tests.
"""

from __future__ import annotations

import collections
import importlib
import math
import random
import sys
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
import numpy as np

from detectors.calibrate import ALPHA, Calibrator
from detectors.kernels import all_finite, as_rows, as_values, kernel, refuse_non_finite
from detectors.params import DetectorSpec, Kind, Sensitivity, require_kept
from detectors.protocol import F64, I64, Evidence, State
from detectors.river_compiled import KSWIN, LocalOutlierFactor
from detectors.state import StateError

__all__ = ["ENTRIES", "RiverDetector", "RiverEntry"]

# Squares of this, summed over any stream, stay finite.
_LARGEST: Final = 1e100

# A standardised feature goes no further: one column must not drown the rest.
_LARGEST_Z: Final = 30.0
# Values that the scale is learned from of detectors that are not free of it; deviations in it, and its least share of
# the mean.
_SIZED: Final = 30.0
_DEVIATIONS: Final = 4.0
_LEAST_SCALE: Final = 0.01
# What is constant may jitter by this share of it.
_JITTER: Final = 1e-6
# Decades of tail, beyond which none are told apart.
_DECADES: Final = 16.0
# Values before standardised ones are clipped as they are learned.
_SETTLED: Final = 30.0

_Unit: TypeAlias = Annotated[float, msgspec.Meta(gt=0, lt=1)]
_Count: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
_Positive: TypeAlias = Annotated[float, msgspec.Meta(gt=0)]
_Alpha: TypeAlias = Annotated[
    _Unit | None,
    msgspec.Meta(description="tail probability that scores 1.0; null: by sensitivity, 1e-4, 1e-3 or 1e-2"),
]


class ADWINParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of river's `drift.ADWIN`; counts are of values."""

    delta: Annotated[_Unit, msgspec.Meta(description="significance")] = 0.002
    clock: Annotated[_Count, msgspec.Meta(description="values between two tests")] = 32
    max_buckets: Annotated[int, msgspec.Meta(ge=2, le=100, description="buckets of one size")] = 5
    min_window_length: Annotated[_Count, msgspec.Meta(description="least sub-window tested")] = 5
    grace_period: Annotated[_Count, msgspec.Meta(description="values before the first test")] = 10
    scaled: Annotated[bool, msgspec.Meta(description="put values on a scale of order one; false: as river does")] = True


class KSWINParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of river's `drift.KSWIN`; sizes are of values."""

    alpha: Annotated[_Unit, msgspec.Meta(description="significance of the Kolmogorov-Smirnov test")] = 0.005
    window_size: Annotated[int, msgspec.Meta(ge=4, le=100_000, description="values kept")] = 100
    stat_size: Annotated[int, msgspec.Meta(ge=2, le=50_000, description="latest values tested")] = 30

    def __post_init__(self) -> None:
        if self.window_size < 2 * self.stat_size:
            raise ValueError(
                f"window_size = {self.window_size} must be at least twice stat_size = {self.stat_size}"
            )


class PageHinkleyParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of river's `drift.PageHinkley`; delta and threshold are of what `scaled` says."""

    min_instances: Annotated[_Count, msgspec.Meta(description="values before the first test")] = 30
    delta: Annotated[float, msgspec.Meta(ge=0, description="change of the mean that is let pass")] = 0.005
    threshold: Annotated[_Positive, msgspec.Meta(description="summed deviation that is a drift")] = 50.0
    alpha: Annotated[float, msgspec.Meta(gt=0, le=1, description="fading factor")] = 1 - 0.0001
    mode: Literal["up", "down", "both"] = "both"
    scaled: Annotated[
        bool | None,
        msgspec.Meta(
            description="put values on a scale of order one; false: as river does; "
            "null: where delta and threshold are the defaults"
        ),
    ] = None

    def scales(self) -> bool:
        """Return whether values are put on a scale: who sets a threshold means it in the value's unit."""
        default = type(self)()
        left = (self.delta, self.threshold) == (default.delta, default.threshold)
        return left if self.scaled is None else self.scaled


class DDMParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of river's `drift.binary.DDM`; thresholds are in standard deviations."""

    warm_start: Annotated[_Count, msgspec.Meta(description="values before the first test")] = 30
    warning_threshold: _Positive = 2.0
    drift_threshold: _Positive = 3.0


class EDDMParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of river's `drift.binary.EDDM`; alpha, beta: shares of the widest spacing of errors."""

    warm_start: Annotated[_Count, msgspec.Meta(description="values, and errors, before the first test")] = 30
    alpha: Annotated[_Unit, msgspec.Meta(description="below this, a warning")] = 0.95
    beta: Annotated[_Unit, msgspec.Meta(description="below this, a drift")] = 0.9

    def __post_init__(self) -> None:
        if self.alpha < self.beta:
            raise ValueError(f"alpha = {self.alpha} must be at least beta = {self.beta}")


class FHDDMParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of river's `drift.binary.FHDDM`; sizes are of values."""

    sliding_window_size: Annotated[int, msgspec.Meta(ge=2, le=100_000, description="values compared")] = 100
    confidence_level: Annotated[_Unit, msgspec.Meta(description="chance of a false drift")] = 0.000001
    short_window_size: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=100_000)] | None,
        msgspec.Meta(description="a second, shorter window; null: none"),
    ] = None

    def __post_init__(self) -> None:
        if self.short_window_size is not None and self.short_window_size >= self.sliding_window_size:
            raise ValueError(
                f"short_window_size = {self.short_window_size} must be below "
                f"sliding_window_size = {self.sliding_window_size}"
            )


class HDDMAParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of river's `drift.binary.HDDMA`."""

    drift_confidence: _Unit = 0.001
    warning_confidence: _Unit = 0.005
    two_sided_test: Annotated[bool, msgspec.Meta(description="falls of the rate are drifts too")] = False


class HDDMWParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of river's `drift.binary.HDDMW`."""

    drift_confidence: _Unit = 0.001
    warning_confidence: _Unit = 0.005
    lambda_val: Annotated[_Unit, msgspec.Meta(description="weight of the latest value")] = 0.05
    two_sided_test: Annotated[bool, msgspec.Meta(description="falls of the rate are drifts too")] = False


class GaussianScorerParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of river's `anomaly.GaussianScorer`, and alpha."""

    grace_period: Annotated[
        int, msgspec.Meta(ge=2, le=1_000_000, description="values before raw scores count")
    ] = 100
    alpha: _Alpha = None


class StandardAbsoluteDeviationParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of river's `anomaly.StandardAbsoluteDeviation`, and alpha."""

    sub_stat: Annotated[
        Literal["mean", "median"], msgspec.Meta(description="what deviations are taken from")
    ] = "mean"
    alpha: _Alpha = None


class LODAParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of river's `anomaly.LODA`, and alpha."""

    n_bins: Annotated[int, msgspec.Meta(ge=2, le=1_000, description="bins of a histogram")] = 10
    n_random_cuts: Annotated[int, msgspec.Meta(ge=1, le=10_000, description="projections")] = 100
    alpha: _Alpha = None


class OneClassSVMParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of river's `anomaly.OneClassSVM`, and alpha."""

    nu: Annotated[_Unit, msgspec.Meta(description="expected share of anomalies")] = 0.1
    learning_rate: Annotated[_Positive, msgspec.Meta(description="step of gradient descent")] = 0.01
    intercept_lr: Annotated[float, msgspec.Meta(ge=0, description="step of the intercept")] = 0.01
    alpha: _Alpha = None


class LocalOutlierFactorParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of river's `anomaly.LocalOutlierFactor`, and alpha.

    river keeps 1000 rows; fewer by default here.
    """

    n_neighbors: Annotated[int, msgspec.Meta(ge=1, le=1_000, description="neighbours compared with")] = 10
    window_size: Annotated[int, msgspec.Meta(ge=4, le=10_000, description="rows kept")] = 200
    alpha: _Alpha = None

    def __post_init__(self) -> None:
        if self.n_neighbors >= self.window_size:
            raise ValueError(
                f"n_neighbors = {self.n_neighbors} must be below window_size = {self.window_size}"
            )


class RiverEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One river class: what the registry says of it, and how it is fed.

    make builds river's object, or its compiled form, from (params, seed, columns). lead is the number of
    values it learns before its answer means anything: raw scores of a scorer are not calibrated, a drift
    detector cannot answer. unit is the least difference between raw scores that means anything; None for
    drift detectors.
    """

    spec: DetectorSpec
    make: Callable[[Any, int, int], Any]
    lead: Callable[[Any], int]
    unit: float | None = None

    def __call__(
        self, params: msgspec.Struct, *, columns: int, sensitivity: Sensitivity, seed: int
    ) -> RiverDetector:
        """Make the detector."""
        return RiverDetector(self, params, columns=columns, sensitivity=sensitivity, seed=seed)


@kernel
def clip_finite(values: F64, out: F64) -> bool:
    """Clip (n,) values to ±1e100 into `out`; False when one is not finite."""
    if not all_finite(values):
        return False
    for i in range(values.size):
        out[i] = min(max(values[i], -_LARGEST), _LARGEST)
    return True


@kernel
def put_on_scale(values: F64, scale: F64, start: int, out: F64) -> None:
    """Put (n,) values from `start` on on a scale of order one, learning it from the first of them.

    scale is (4,): count, mean and sum of squared deviations of the first values (Welford 1962), and what values are
    divided by, 0 while that is not known.
    """
    for i in range(start, values.size):
        x = values[i]
        if scale[0] < _SIZED or scale[3] == 0.0:
            scale[0] += 1.0
            step = x - scale[1]
            scale[1] += step / scale[0]
            scale[2] += step * (x - scale[1])
            if scale[0] <= _SIZED:
                scale[3] = max(_DEVIATIONS * math.sqrt(scale[2] / scale[0]), _LEAST_SCALE * abs(scale[1]))
            else:  # all were 0 up to now
                scale[1], scale[3] = 0.0, abs(x)
        out[i] = (x - scale[1]) / scale[3] if scale[3] > 0.0 else 0.0


@kernel
def standardise(rows: F64, moments: F64, out: F64) -> None:
    """Standardise each of (n, d) rows by the mean and variance before it, then learn it.

    moments is (3, d): the count of rows, means, sums of squared deviations (Welford 1962).
    """
    n, columns = rows.shape
    for i in range(n):
        for j in range(columns):
            x = rows[i, j]
            count, mean = moments[0, j], moments[1, j]
            # The floor lets a constant column jitter by a millionth.
            sd = max(math.sqrt(moments[2, j] / count) if count > 0.0 else 0.0, 1e-6 * abs(mean))
            z = (x - mean) / sd if sd > 0.0 else 0.0
            out[i, j] = min(max(z, -_LARGEST_Z), _LARGEST_Z)
            if count >= _SETTLED and sd > 0.0:
                x = min(max(x, mean - _LARGEST_Z * sd), mean + _LARGEST_Z * sd)
            moments[0, j] = count + 1.0
            moments[1, j] = mean + (x - mean) / moments[0, j]
            moments[2, j] += (x - mean) * (x - moments[1, j])


class RiverDetector:
    """One of river's detectors as a `detectors.protocol.Detector`.

    Parameters
    ----------
    entry
        Which.
    params
        An instance of `entry.spec.params`.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors import registry
    >>> adwin = registry.create("adwin")
    >>> values = np.r_[np.zeros(1000), np.ones(300)]
    >>> np.flatnonzero(adwin.score(values, np.arange(1300)) >= 1)
    array([1023])
    >>> adwin.explain(1023).note
    'adwin: drift'

    References
    ----------
    [^1]: Montiel, J. et al., 2021. River: machine learning for streaming data in Python. JMLR 22.
    """

    def __init__(
        self,
        entry: RiverEntry,
        params: Any,
        *,
        columns: int = 1,
        sensitivity: Sensitivity = "medium",
        seed: int = 0,
    ) -> None:
        self.entry = entry
        self.spec = entry.spec
        self.params = params
        self._seed = seed
        self._columns = columns
        self._names = tuple(f"{j:05d}" for j in range(columns))
        self._calibrator = Calibrator(alpha=0.5, unit=entry.unit) if entry.unit is not None else None
        self.reconfigure(params, sensitivity=sensitivity)
        self._lead = entry.lead(params)
        self._model = entry.make(params, seed, columns)
        self._moments: F64 = np.zeros((3, columns))
        of_itself = isinstance(params, PageHinkleyParams)
        self._scaled = bool(params.scales() if of_itself else getattr(params, "scaled", False))
        self._scale: F64 = np.zeros(4)
        self._seen = 0
        self._scores: F64 = np.empty(0)
        self.raw: F64 = np.empty(0)  #: (n,) river's scores of the last batch

    def reconfigure(self, params: Any, *, sensitivity: Sensitivity | None = None) -> None:
        """Take another alpha from the next value on, keeping what was learned.

        Raises
        ------
        ParameterError
            One of river's own parameters differs.
        """
        require_kept(self.spec, self.params, params)
        if sensitivity is not None:
            self._sensitivity = sensitivity
        self.params = params
        if self._calibrator is not None:
            self._calibrator.alpha = params.alpha if params.alpha is not None else ALPHA[self._sensitivity]

    def score(self, values: F64, times: I64) -> F64:
        """Score each value or row, then learn it; see `detectors.protocol.Detector.score`."""
        name = self.spec.name
        if self.spec.kind == "vector":
            array = as_rows(values, times, columns=self._columns, name=name)
        else:
            array = as_values(values, times, name=name)
        clipped = np.empty(array.shape)
        if not clip_finite(array.reshape(-1), clipped.reshape(-1)):
            raise refuse_non_finite(name)
        raw: list[float] | F64
        if self.spec.kind == "boolean":
            if not ((array == 0.0) | (array == 1.0)).all():
                raise ValueError(f"{name}: values must be 0 or 1")
            raw = self._drifts(array.astype(np.int64).tolist())
        else:
            if self.spec.kind == "vector":
                raw = self._score_rows(clipped)
            elif isinstance(self._model, KSWIN):
                raw = self._model.feed(clipped)
            elif self._calibrator is not None:
                raw = self._score_values(clipped.tolist())
            else:
                raw = self._drifts_on_scale(clipped) if self._scaled else self._drifts(clipped.tolist())
        raw_scores = np.array(raw, dtype=np.float64)
        late = min(max(self._lead - self._seen, 0), raw_scores.size)
        self._seen += raw_scores.size
        if self._calibrator is None:
            scores = raw_scores.copy()
        else:
            scores = np.empty(raw_scores.size)
            scores[late:] = self._calibrator.score(raw_scores[late:])
        scores[:late] = np.nan
        self._scores, self.raw = scores, raw_scores
        return scores.copy()

    def _drifts(self, values: Any) -> list[float]:
        model = self._model
        update = model.update
        found = []
        for x in values:
            update(x)
            found.append(1.0 if model.drift_detected else 0.0)
        return found

    def _drifts_on_scale(self, values: F64) -> list[float]:
        """Return drifts of values on a scale of order one, which is learned anew after each."""
        update, model = self._model.update, self._model
        found: list[float] = []
        scaled = np.empty(values.size)
        while len(found) < values.size:
            start = len(found)
            put_on_scale(values, self._scale, start, scaled)
            for x in scaled[start:].tolist():
                update(x)
                drifted = bool(model.drift_detected)
                found.append(1.0 if drifted else 0.0)
                if drifted:
                    break
            if found[-1]:
                self._scale[:] = 0.0
        return found

    def _score_values(self, values: Any) -> list[float]:
        score_one, learn_one = self._model.score_one, self._model.learn_one
        raw: list[float] = []
        if self.spec.name == "gaussian_scorer":
            gaussian, grace = self._model.gaussian, self._model.grace_period
            for x in values:
                # 2 |cdf - 1/2| says 1.0 to all that is far: its tail, in decades, tells far from farther.
                tail = -math.log10(max(1.0 - score_one(None, x), 10.0**-_DECADES))
                if gaussian.n_samples >= grace and gaussian.sigma <= _JITTER * abs(gaussian.mu):
                    tail = _DECADES if abs(x - gaussian.mu) > _JITTER * abs(gaussian.mu) else 0.0
                raw.append(tail)
                learn_one(None, x)
            return raw
        for x in values:
            raw.append(score_one(None, x))
            learn_one(None, x)
        return raw

    def _score_rows(self, rows: F64) -> list[float] | F64:
        scaled = np.empty(rows.shape)
        standardise(rows, self._moments, scaled)
        if isinstance(self._model, LocalOutlierFactor):
            return self._model.feed(scaled)
        score_one, learn_one = self._model.score_one, self._model.learn_one
        names = self._names
        raw = []
        lists: Any = scaled.tolist()
        for row in lists:
            x = dict(zip(names, row, strict=True))
            raw.append(score_one(x))
            learn_one(x)
        return raw

    def explain(self, index: int = -1) -> Evidence:
        """Name the drift, or river's raw score, where the score is 1.0 or more."""
        if not self._scores[index] >= 1.0:
            return Evidence()
        if self._calibrator is None:
            return Evidence(note=f"{self.spec.name}: drift")
        return Evidence(note=f"{self.spec.name}: raw score {self.raw[index]:.6g}")

    def warming(self) -> int:
        """Return how many more values are needed before scores are given."""
        left = max(0, self._lead - self._seen)
        return left + (self._calibrator.warming() if self._calibrator is not None else 0)

    def snapshot(self) -> State:
        """Return river's attributes as plain data, and the calibration."""
        compiled = isinstance(self._model, KSWIN | LocalOutlierFactor)
        state: State = {"river": self._model.snapshot() if compiled else _pack(self._model), "seen": self._seen}
        if self._calibrator is not None:
            state["calibration"] = self._calibrator.snapshot()
        if self.spec.kind == "vector":
            state["moments"] = self._moments.copy()
        if self._scaled:
            state["scale"] = self._scale.copy()
        return state

    def restore(self, state: State) -> None:
        """Take up a state; raise `StateError` when it is not one of this detector."""
        try:
            model = self.entry.make(self.params, self._seed, self._columns)
            if isinstance(model, KSWIN | LocalOutlierFactor):
                model.restore(state["river"])
            else:
                model = _unpack(state["river"], model)
            if type(model) is not type(self._model):
                raise StateError(f"{self.spec.name}: the state is of {type(model).__name__}")
            moments = state["moments"] if self.spec.kind == "vector" else self._moments
            if moments.shape != self._moments.shape:
                raise StateError(f"{self.spec.name}: the state is of another number of columns")
            scale = state.get("scale", np.array([_SIZED, 0.0, 0.0, 1.0]))  # states of before are of values as they are
            if scale.shape != self._scale.shape:
                raise StateError(f"{self.spec.name}: the state is of another shape")
            seen = int(state["seen"])
            if self._calibrator is not None:
                self._calibrator.restore(state["calibration"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            if isinstance(error, StateError):
                raise
            raise StateError(f"{self.spec.name}: not a state of this detector: {error!r}") from error
        self._model, self._seen = model, seen
        self._moments = moments.copy()
        self._scale = scale.astype(np.float64)


# A packed object is plain, or a list that begins with what it is. Functions and bound methods are never
# written: the object restored over has the same ones.

_PLAIN: Final = (bool, int, float, str, bytes, type(None))
_FUNCTIONS: Final = (types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_MAPPINGS: Final[dict[str, type[dict[Any, Any]]]] = {
    "dict": dict,
    "defaultdict": collections.defaultdict,
    "Counter": collections.Counter,
}


def _pack(node: Any) -> Any:
    """Return an object as plain data; raise TypeError on a type that is not known to come back exactly."""
    kind = type(node)
    if kind in _PLAIN or isinstance(node, np.ndarray | np.generic):
        return node
    if kind is list or kind is tuple:
        return [kind.__name__, [_pack(one) for one in node]]
    if kind.__name__ in _MAPPINGS and kind is _MAPPINGS[kind.__name__]:
        return [kind.__name__, [[_pack(key), _pack(value)] for key, value in node.items()]]
    if kind is collections.deque:
        return ["deque", node.maxlen, [_pack(one) for one in node]]
    if kind is random.Random:
        version, words, spare = node.getstate()
        return ["random", version, np.array(words, dtype=np.uint32), spare]
    if kind in _FUNCTIONS:
        return ["kept"]
    module, name = kind.__module__, kind.__qualname__
    if module.startswith("river._river_rust."):
        if name == "VectorDict":
            entries, factory, mask, _ = node.__reduce__()[1]
            if factory is not None or mask is not None:
                raise TypeError("a VectorDict with a factory or a mask")
            return ["VectorDict", _pack(entries)]
        arguments = node.__getnewargs__() if hasattr(node, "__getnewargs__") else ()
        return ["rust", f"{module}:{name}", [_pack(one) for one in arguments], node.__getstate__()]
    if module == "river.sketch.histogram" and name == "Histogram":
        bins = [(one.left, one.right) for one in node.data]
        edges = np.array(bins, dtype=np.float64).reshape(len(bins), 2)
        counts = np.array([one.count for one in node.data], dtype=np.int64)
        return ["histogram", node.max_bins, node.n, edges, counts]
    if module.startswith("river."):
        # river never draws from a generator that was given no seed; its state would differ in each process.
        seeded = getattr(node, "seed", 0) is not None
        attributes = [
            [key, _pack(value) if seeded or type(value) is not random.Random else ["kept"]]
            for key, value in vars(node).items()
        ]
        return ["river", f"{module}:{name}", attributes]
    raise TypeError(f"{module}.{name} is not known to come back exactly")


def _unpack(node: Any, twin: Any) -> Any:
    """Return the object that `_pack` was given, reusing what `twin`, freshly made, has in its place."""
    if not isinstance(node, list):
        return node
    match node:
        case ["list", items]:
            return [_unpack(one, None) for one in items]
        case ["tuple", items]:
            return tuple(_unpack(one, None) for one in items)
        case ["deque", maxlen, items]:
            return collections.deque((_unpack(one, None) for one in items), maxlen=maxlen)
        case ["random", version, words, spare]:
            generator = random.Random(0)
            generator.setstate((version, tuple(words.tolist()), spare))
            return generator
        case ["kept"] if twin is not None:
            return twin
        case ["VectorDict", entries]:
            return _river_class("river._river_rust.vectordict:VectorDict")(_unpack(entries, None))
        case ["rust", name, arguments, data] if name.startswith("river._river_rust."):
            kind = _river_class(name)
            helper = kind.__new__(kind, *(_unpack(one, None) for one in arguments))
            helper.__setstate__(data)
            return helper
        case ["histogram", max_bins, n, edges, counts]:
            module = importlib.import_module("river.sketch.histogram")
            histogram = module.Histogram(max_bins=max_bins)
            histogram.n = n
            histogram.data = [
                module.Bin(left, right, count)
                for (left, right), count in zip(edges.tolist(), counts.tolist(), strict=True)
            ]
            return histogram
        case ["river", name, attributes]:
            kind = _river_class(name)
            thing = twin if type(twin) is kind else object.__new__(kind)
            old = dict(vars(thing))
            for key, value in attributes:
                object.__setattr__(thing, key, _unpack(value, old.get(key)))
            return thing
        case [str(name), items] if name in _MAPPINGS:
            mapping = {_unpack(key, None): _unpack(value, None) for key, value in items}
            if name == "dict":
                return mapping
            if type(twin) is not _MAPPINGS[name]:
                raise StateError(f"river: a {name} with nothing to restore it over")
            twin.clear()
            twin.update(mapping)
            return twin
    raise StateError("river: a state that cannot be read")


def _river_class(name: str) -> Any:
    """Return a class of river by module:name, from modules that are loaded already."""
    module, _, attribute = name.partition(":")
    if not module.startswith("river."):
        raise StateError(f"river: {name} is not a class of river")
    kind = getattr(sys.modules.get(module), attribute, None)
    if kind is None:
        # Rust's modules are attributes of one extension rather than modules of their own.
        parent, _, child = module.rpartition(".")
        kind = getattr(getattr(sys.modules.get(parent), child, None), attribute, None)
    if not isinstance(kind, type):
        raise StateError(f"river: {name} is not a class of river")
    return kind


def _plainly(module: str, kind: str, *, seeded: bool = False) -> Callable[[Any, int, int], Any]:
    """Return a maker that passes every parameter but alpha's calibration on to a class of river."""

    def make(params: Any, seed: int, columns: int) -> Any:
        del columns
        arguments: dict[str, Any] = msgspec.structs.asdict(params)
        if module == "river.anomaly":
            del arguments["alpha"]
        arguments.pop("scaled", None)
        if seeded:
            arguments["seed"] = seed
        return getattr(importlib.import_module(module), kind)(**arguments)

    return make


def _make_sad(params: StandardAbsoluteDeviationParams, seed: int, columns: int) -> Any:
    del seed, columns
    stats = importlib.import_module("river.stats")
    sub_stat = stats.Mean() if params.sub_stat == "mean" else stats.Quantile(0.5)
    return importlib.import_module("river.anomaly").StandardAbsoluteDeviation(sub_stat=sub_stat)


def _make_svm(params: OneClassSVMParams, seed: int, columns: int) -> Any:
    del seed, columns
    return importlib.import_module("river.anomaly").OneClassSVM(
        nu=params.nu,
        optimizer=importlib.import_module("river.optim").SGD(params.learning_rate),
        intercept_lr=params.intercept_lr,
    )


def _make_kswin(params: KSWINParams, seed: int, columns: int) -> KSWIN:
    del columns
    return KSWIN(alpha=params.alpha, window_size=params.window_size, stat_size=params.stat_size, seed=seed)


def _make_lof(params: LocalOutlierFactorParams, seed: int, columns: int) -> LocalOutlierFactor:
    del seed
    return LocalOutlierFactor(n_neighbors=params.n_neighbors, window_size=params.window_size, columns=columns)


def _entry(
    name: str,
    kind: Kind,
    summary: str,
    *,
    params: type[msgspec.Struct],
    make: Callable[[Any, int, int], Any],
    lead: Callable[[Any], int],
    unit: float | None = None,
) -> RiverEntry:
    structural = frozenset(
        field.name
        for field in msgspec.structs.fields(params)
        if unit is None or field.name != "alpha"
    )
    spec = DetectorSpec(name=name, kind=kind, summary=summary, params=params, structural=structural)
    return RiverEntry(spec=spec, make=make, lead=lead, unit=unit)


_BINARY: Final = "river.drift.binary"

#: name → how river's class of that name is made and fed.
ENTRIES: Final[Mapping[str, RiverEntry]] = {
    entry.spec.name: entry
    for entry in (
        _entry(
            "adwin",
            "value",
            "drift of the mean, adaptive window (river)",
            params=ADWINParams,
            make=_plainly("river.drift", "ADWIN"),
            lead=lambda params: params.grace_period,
        ),
        _entry(
            "kswin",
            "value",
            "drift of the distribution, Kolmogorov-Smirnov over a window (river)",
            params=KSWINParams,
            make=_make_kswin,
            lead=lambda params: params.window_size - 1,
        ),
        _entry(
            "page_hinkley",
            "value",
            "drift of the mean, cumulative sum (river)",
            params=PageHinkleyParams,
            make=_plainly("river.drift", "PageHinkley"),
            lead=lambda params: params.min_instances - 1,
        ),
        _entry(
            "ddm",
            "boolean",
            "rise of the rate of ones, in standard deviations (river)",
            params=DDMParams,
            make=_plainly(_BINARY, "DDM"),
            lead=lambda params: params.warm_start,
        ),
        _entry(
            "eddm",
            "boolean",
            "ones come closer together (river)",
            params=EDDMParams,
            make=_plainly(_BINARY, "EDDM"),
            lead=lambda params: params.warm_start,
        ),
        _entry(
            "fhddm",
            "boolean",
            "fall of the rate of ones from its best, Hoeffding's bound (river)",
            params=FHDDMParams,
            make=_plainly(_BINARY, "FHDDM"),
            lead=lambda params: params.sliding_window_size - 1,
        ),
        _entry(
            "hddm_a",
            "boolean",
            "rise of the rate of ones, Hoeffding's bound on averages (river)",
            params=HDDMAParams,
            make=_plainly(_BINARY, "HDDMA"),
            lead=lambda _: 1,
        ),
        _entry(
            "hddm_w",
            "boolean",
            "rise of the rate of ones, McDiarmid's bound on faded averages (river)",
            params=HDDMWParams,
            make=_plainly(_BINARY, "HDDMW"),
            lead=lambda _: 1,
        ),
        _entry(
            "gaussian_scorer",
            "value",
            "how far out in a normal distribution of all the past (river), calibrated",
            params=GaussianScorerParams,
            make=_plainly("river.anomaly", "GaussianScorer"),
            lead=lambda params: params.grace_period,
            unit=1e-2,  # decades of tail
        ),
        _entry(
            "standard_absolute_deviation",
            "value",
            "distance to the mean or median of all the past, in standard deviations (river), calibrated",
            params=StandardAbsoluteDeviationParams,
            make=_make_sad,
            lead=lambda _: 30,  # the deviation of a few values says nothing yet
            unit=1e-2,  # standard deviations
        ),
        _entry(
            "loda",
            "vector",
            "rarity in histograms of random projections (river), standardised and calibrated",
            params=LODAParams,
            make=_plainly("river.anomaly", "LODA", seeded=True),
            lead=lambda _: 100,  # its histograms need to have bins
            unit=1e-3,  # nats
        ),
        _entry(
            "one_class_svm",
            "vector",
            "distance to a hyperplane learned around the past (river), standardised and calibrated",
            params=OneClassSVMParams,
            make=_make_svm,
            lead=lambda _: 100,
            unit=1e-6,
        ),
        _entry(
            "local_outlier_factor",
            "vector",
            "isolation beside the nearest neighbours (river), standardised and calibrated",
            params=LocalOutlierFactorParams,
            make=_make_lof,
            lead=lambda params: min(max(30, 2 * params.n_neighbors), params.window_size),
            unit=1e-3,  # 1.0 is as dense as the neighbours
        ),
    )
}

