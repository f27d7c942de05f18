"""Short spikes of one metric: a value far out by a short memory and by a long one."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Final, Literal

import msgspec
import numpy as np

from detectors.kernels import all_finite, as_values, kernel, refuse_non_finite
from detectors.params import DetectorSpec, Sensitivity, require_kept
from detectors.protocol import F64, I64, Evidence, State
from detectors.state import StateError
from detectors.tail import FURTHEST, TAIL, Alpha, learn_tail, tail_limit

__all__ = ["Spike", "SpikeParams"]

_LIMIT: Final[dict[Sensitivity, float]] = {"low": 9.0, "medium": 6.0, "high": 4.0}
_SIDES: Final = {"up": 1, "down": -1, "both": 0}

# A z beyond this says no more than this.
_LARGEST_Z: Final = FURTHEST
# So many values after which what is learned is clipped, to learn in full.
_NEVER: Final = 2**62
# A value moves a mean by no more than it would from this many deviations away.
_CLIP_MEAN: Final = 3.5
# And widens a deviation by no more than this many. Clipped as tightly as the mean, a deviation settles too
# low wherever tails are heavy, so that the same z would mean less there than elsewhere.
_CLIP_DEVIATION: Final = 10.0
# Magnitudes beyond this are taken as this: squares of differences stay finite.
_LARGEST: Final = 1e150

_N: Final = 0  # values learned
_FAST: Final = 1  # mean and variance under the short half-life
_SLOW: Final = 3  # and under the long one
_SIZE: Final = 5


class SpikeParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of `Spike`."""

    fast: Annotated[float, msgspec.Meta(ge=2, le=1e6, description="short half-life, in values")] = 50.0
    slow: Annotated[float, msgspec.Meta(ge=2, le=1e6, description="long half-life, in values")] = 400.0
    warm_up: Annotated[int, msgspec.Meta(ge=2, le=100_000, description="values before the first score")] = 5
    settled: Annotated[
        int, msgspec.Meta(ge=2, le=100_000, description="values after which what is learned is clipped")
    ] = 30
    direction: Annotated[
        Literal["up", "down", "both"], msgspec.Meta(description="on which side a value is anomalous")
    ] = "both"
    limit: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=_LARGEST_Z)] | None,
        msgspec.Meta(description="deviations from the mean that score 1.0; null: by sensitivity, 9, 6 or 4"),
    ] = None
    alpha: Alpha = None
    rel_floor: Annotated[
        float, msgspec.Meta(ge=0, le=10, description="least deviation, as a share of the mean's size")
    ] = 0.01
    abs_floor: Annotated[
        float, msgspec.Meta(ge=1e-100, le=1e100, description="least deviation, in the value's own unit")
    ] = 1e-9

    def __post_init__(self) -> None:
        if self.slow < self.fast:
            raise ValueError(f"slow = {self.slow:g} must be at least fast = {self.fast:g}")


@kernel
def _deviation(state: F64, at: int, rel_floor: float, abs_floor: float) -> float:
    """Return the standard deviation, never 0, whose mean and variance are at `at`."""
    return float(max(math.sqrt(state[at + 1]), rel_floor * abs(state[at]), abs_floor))


@kernel
def _learn(state: F64, at: int, distance: float, deviation: float, share: float, settled: bool) -> None:
    """Move the mean and the variance at `at` by a share towards a value this distant from the mean."""
    step, spread = distance, distance
    if settled:
        step = min(max(distance, -_CLIP_MEAN * deviation), _CLIP_MEAN * deviation)
        spread = min(max(distance, -_CLIP_DEVIATION * deviation), _CLIP_DEVIATION * deviation)
    state[at + 1] = (1.0 - share) * (state[at + 1] + share * spread * spread)
    state[at] += share * step


@kernel
def score_spike(
    values: F64,
    state: F64,
    tail: F64,
    fast: float,
    slow: float,
    warm_up: int,
    settled: int,
    side: int,
    limit: float,
    alpha: float,
    rel_floor: float,
    abs_floor: float,
    scores: F64,
    means: F64,
    bands: F64,
) -> bool:
    """Score, then learn, each value in order; False, untouched, when one is not finite.

    alpha 0: the limit is never raised. means: of the memory a value is nearer to. bands is (2, n): below and above
    which a value would score 1.0, which is out by both memories.
    """
    if not all_finite(values):
        return False
    least_fast, least_slow = 1.0 - 2.0 ** (-1.0 / fast), 1.0 - 2.0 ** (-1.0 / slow)
    for i in range(values.size):
        x = min(max(values[i], -_LARGEST), _LARGEST)
        n = state[_N]
        if n == 0.0:
            state[_FAST] = state[_SLOW] = x
        fast_distance, slow_distance = x - state[_FAST], x - state[_SLOW]
        fast_deviation = _deviation(state, _FAST, rel_floor, abs_floor)
        slow_deviation = _deviation(state, _SLOW, rel_floor, abs_floor)
        scores[i], means[i], bands[0, i], bands[1, i] = np.nan, np.nan, np.nan, np.nan
        if n >= warm_up:
            fast_z, slow_z = fast_distance / fast_deviation, slow_distance / slow_deviation
            if side == 0:
                fast_z, slow_z = abs(fast_z), abs(slow_z)
            else:
                fast_z, slow_z = max(side * fast_z, 0.0), max(side * slow_z, 0.0)
            z = min(fast_z, slow_z, _LARGEST_Z)
            least = max(limit, tail_limit(tail, alpha)) if alpha > 0.0 else limit
            means[i] = state[_FAST] if fast_z <= slow_z else state[_SLOW]
            fast_reach, slow_reach = fast_deviation * least, slow_deviation * least
            bands[0, i] = min(state[_FAST] - fast_reach, state[_SLOW] - slow_reach)
            bands[1, i] = max(state[_FAST] + fast_reach, state[_SLOW] + slow_reach)
            scores[i] = z / least
            if n >= settled:
                learn_tail(tail, z)
        # All of the past weighs the same until it is longer than the half-life's own memory.
        evenly = 1.0 / (n + 1.0)
        clipped = n >= settled
        _learn(state, _FAST, fast_distance, fast_deviation, max(least_fast, evenly), clipped)
        _learn(state, _SLOW, slow_distance, slow_deviation, max(least_slow, evenly), clipped)
        state[_N] = n + 1.0
    return True


class Spike:
    r"""Score a value by the smaller of its distances to a short and to a long memory, in deviations.

    Each memory is an exponentially weighted mean m and variance v, of half-life h:

        b = max(1 - 2^(-1/h), 1/(n+1));  d = x - m;  v ← (1-b)(v + b·d²);  m ← m + b·d

    and z = |d| / √v. The score is min(z₅₀, z₄₀₀) / limit: what the last fifty values explain is no spike, nor
    what the last four hundred do. √v is never taken below max(rel_floor · \|m\|, abs_floor), so that a jitter after
    a constant stretch is silent.

    After `settled` values a far one teaches less: the mean is moved by at most 3.5 √v · b, and d² in the
    variance is at most (10 √v)². The two differ on purpose: a mean must not follow a spike, but a variance
    clipped as tightly would be too small for a metric whose tails are heavy, and it would alarm more often
    than its neighbours at the same limit.

    With `alpha` the limit is at least the distance that so small a share of the series' own values exceeds
    (`detectors.tail`): six deviations are rare in normal noise and common in heavy-tailed noise.

    The past is fifteen numbers; a value costs some 20 ns, 70 with `alpha`.

    Parameters
    ----------
    params
        Half-lives, direction and floors.
    sensitivity
        The limit where params has none: low 9, medium 6, high 4 deviations.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors.spike import Spike, SpikeParams
    >>> values = np.random.default_rng(1).normal(100.0, 5.0, size=500)
    >>> values[450] = 180.0
    >>> detector = Spike(SpikeParams())
    >>> scores = detector.score(values, np.arange(500))
    >>> np.flatnonzero(scores >= 1)
    array([450])
    >>> evidence = detector.explain(450)
    >>> round(evidence.expected), round(evidence.lower), round(evidence.upper)
    (100, 72, 128)

    References
    ----------
    [^1]: Finch, T., 2009. Incremental calculation of weighted mean and variance. University of Cambridge.
    [^2]: Huber, P., 1964. Robust estimation of a location parameter. Annals of Mathematical Statistics 35
    (learning a clipped distance).
    """

    spec: ClassVar[DetectorSpec] = DetectorSpec(
        name="spike",
        kind="value",
        summary="far out by a short memory and by a long one, in standard deviations",
        params=SpikeParams,
        budget="alpha",
    )

    def __init__(
        self, params: SpikeParams, *, columns: int = 1, sensitivity: Sensitivity = "medium", seed: int = 0
    ) -> None:
        del columns, seed  # one shape for every detector; this one draws nothing
        self.params = params
        self.reconfigure(params, sensitivity=sensitivity)
        self._state: F64 = np.zeros(_SIZE)
        self._tail: F64 = np.zeros(TAIL)
        self._scores: F64 = np.empty(0)
        self._means: F64 = np.empty(0)
        self._bands: F64 = np.empty((2, 0))

    def reconfigure(self, params: SpikeParams, *, sensitivity: Sensitivity | None = None) -> None:
        """Take other parameters from the next value on, keeping what was learned."""
        require_kept(self.spec, self.params, params)
        if sensitivity is not None:
            self._sensitivity = sensitivity
        self.params = params
        self._limit = params.limit if params.limit is not None else _LIMIT[self._sensitivity]

    def score(self, values: F64, times: I64) -> F64:
        """Score each of (n,) values, then learn it; see `detectors.protocol.Detector.score`."""
        return self._take(values, times, settled=self.params.settled).copy()

    def learn_undamped(self, values: F64, times: I64) -> None:
        """Learn (n,) values in full, however far out; see `detectors.protocol.Damped`."""
        self._take(values, times, settled=_NEVER)

    def _take(self, values: F64, times: I64, *, settled: int) -> F64:
        array = as_values(values, times, name="spike")
        scores, means = np.empty((2, array.size))
        bands = np.empty((2, array.size))
        params = self.params
        if not score_spike(
            array,
            self._state,
            self._tail,
            params.fast,
            params.slow,
            params.warm_up,
            settled,
            _SIDES[params.direction],
            self._limit,
            params.alpha or 0.0,
            params.rel_floor,
            params.abs_floor,
            scores,
            means,
            bands,
        ):
            raise refuse_non_finite("spike")
        self._scores, self._means, self._bands = scores, means, bands
        return scores

    def explain(self, index: int = -1) -> Evidence:
        """Give the mean of the memory that the value is nearer to, and the band outside which it is out by both."""
        if math.isnan(self._scores[index]):
            return Evidence()
        lower, upper = self._bands[:, index].tolist()
        direction = self.params.direction
        return Evidence(
            expected=float(self._means[index]),
            lower=None if direction == "up" else lower,
            upper=None if direction == "down" else upper,
        )

    def warming(self) -> int:
        """Return how many more values are needed before scores are given."""
        return max(0, self.params.warm_up - int(self._state[_N]))

    def snapshot(self) -> State:
        """Return the count, both means and variances, and the tail."""
        return {"memories": self._state.copy(), "tail": self._tail.copy()}

    def restore(self, state: State) -> None:
        """Take up two memories and a tail; raise `StateError` on any other state."""
        found = [(self._state, state.get("memories")), (self._tail, state.get("tail"))]
        for mine, theirs in found:
            if not isinstance(theirs, np.ndarray) or theirs.shape != mine.shape or not np.isfinite(theirs).all():
                raise StateError(f"spike: expected {_SIZE} and {TAIL} finite numbers")
        for mine, theirs in found:
            mine[:] = theirs
