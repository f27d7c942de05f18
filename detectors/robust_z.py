"""A robust z-score over a rolling window."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Final, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.kernels import MAX_SCORE, all_finite, as_values, kernel, refuse_non_finite
from detectors.params import DetectorSpec, Sensitivity, require_kept
from detectors.protocol import F64, I64, Evidence, State
from detectors.state import StateError
from detectors.tail import FURTHEST, TAIL, Alpha, learn_tail, tail_limit

__all__ = ["SIDES", "RobustZ", "RobustZParams", "centre", "scale_of", "score_robust_z"]

_LIMIT: Final[dict[Sensitivity, float]] = {"low": 9.0, "medium": 6.0, "high": 4.0}
#: By direction: 1 and -1 for one side, 0 for both.
SIDES: Final = {"up": 1, "down": -1, "both": 0}

# 1 / Φ⁻¹(3/4): makes the median absolute deviation estimate a normal standard deviation.
_MAD_TO_SIGMA: Final = 1.4826
# √(π/2) does the same for the mean absolute deviation.
_MEAN_DEVIATION_TO_SIGMA: Final = 1.2533141373155001
# A value is learned no further from the median than this many scales.
_CLIP: Final = 3.5
# The mean deviation, unlike the median one, shrinks as values are clipped: a counter that leaves 0 once in
# twelve values or more often must keep its scale.
_SPARSE_CLIP: Final = 10.0
# Magnitudes beyond this are taken as this, so that no sum over a window overflows.
_LARGEST: Final = 1e300

_N: Final = 0  # values in the window
_HEAD: Final = 1  # where the next value goes in arrival order
_FAR: Final = 2  # far values in a row, up to now

# A value further than this many scales is far. Of far values in a row one in four is learned: an incident
# must not become the normal it is measured by while it lasts, and a new normal must not alarm for ever.
# Neither depends on the limit, which only scales scores.
_FAR_SCALES: Final = 6.0
_LEARN_ONE_OF: Final = 4


class RobustZParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of `RobustZ`."""

    window: Annotated[int, msgspec.Meta(ge=5, le=100_000, description="values the past is made of")] = 300
    warm_up: Annotated[int, msgspec.Meta(ge=3, description="values before the first score")] = 30
    direction: Annotated[
        Literal["up", "down", "both"], msgspec.Meta(description="on which side a value is anomalous")
    ] = "both"
    limit: Annotated[
        Annotated[float, msgspec.Meta(gt=0)] | None,
        msgspec.Meta(description="scales from the median that score 1.0; null: by sensitivity, 9, 6 or 4"),
    ] = None
    alpha: Alpha = None
    rel_floor: Annotated[
        float, msgspec.Meta(ge=0, le=10, description="least scale, as a share of the median's size")
    ] = 0.01
    abs_floor: Annotated[float, msgspec.Meta(gt=0, description="least scale, in the value's own unit")] = 1e-9

    def __post_init__(self) -> None:
        if self.warm_up > self.window:
            raise ValueError(f"warm_up = {self.warm_up} must be at most window = {self.window}")


@kernel
def _insertion_point(ordered: F64, n: int, value: float) -> int:
    """Return how many of the first n of `ordered` are below value."""
    low, high = 0, n
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] < value:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def centre(ordered: F64, n: int) -> float:
    """Return the median of the first n of `ordered`, which ascend."""
    half = n // 2
    if n % 2 == 1:
        return float(ordered[half])
    return float(0.5 * ordered[half - 1] + 0.5 * ordered[half])


@kernel
def _nearest(ordered: F64, n: int, median: float, rank: int) -> float:
    """Return the distance to the median that `rank` others do not exceed, counting from 0.

    The distances of the lower half, read downwards, and of the upper half, read upwards, are two
    ascending lists: choose how many of the rank + 1 smallest are below, by bisection.
    """
    split = n // 2
    count = rank + 1
    low, high = max(0, count - (n - split)), min(count, split)
    while low < high:
        below = (low + high) // 2
        above = count - below
        # below is too few when the next one down is nearer than the furthest one taken above
        if median - ordered[split - 1 - below] < ordered[split + above - 1] - median:
            low = below + 1
        else:
            high = below
    above = count - low
    furthest = 0.0
    if low > 0:
        furthest = max(furthest, median - ordered[split - low])
    if above > 0:
        furthest = max(furthest, ordered[split + above - 1] - median)
    return furthest


@kernel
def scale_of(
    ordered: F64, n: int, median: float, rel_floor: float, abs_floor: float
) -> tuple[float, float]:
    """Return the scale, never 0, of the first n of `ordered` around their median, and the clip in scales."""
    half = n // 2
    deviation = _nearest(ordered, n, median, half)
    if n % 2 == 0:
        deviation = 0.5 * deviation + 0.5 * _nearest(ordered, n, median, half - 1)
    scale, clip = _MAD_TO_SIGMA * deviation, _CLIP
    if deviation == 0.0:
        # More than half are equal, as in a counter that is mostly 0: the mean deviation still sees the rest.
        total = 0.0
        for i in range(n):
            total += abs(ordered[i] - median)
        scale, clip = _MEAN_DEVIATION_TO_SIGMA * (total / n), _SPARSE_CLIP
    return max(scale, rel_floor * abs(median), abs_floor), clip


@kernel
def score_robust_z(
    values: F64,
    ring: F64,
    ordered: F64,
    place: I64,
    tail: F64,
    warm_up: int,
    side: int,
    limit: float,
    alpha: float,
    rel_floor: float,
    abs_floor: float,
    damped: bool,
    scores: F64,
    medians: F64,
    widths: F64,
) -> bool:
    """Score, then learn, each value in order; False, untouched, when one is not finite.

    alpha 0: the limit is never raised. damped: far values are learned less, and told of to the tail. widths: how far
    from the median a value scores 1.0.
    """
    if not all_finite(values):
        return False
    window = ring.size
    n, head, far = place[_N], place[_HEAD], place[_FAR]
    for i in range(values.size):
        x = min(max(values[i], -_LARGEST), _LARGEST) + 0.0  # + 0.0: -0.0 is 0.0
        learned = x
        scores[i], medians[i], widths[i] = np.nan, np.nan, np.nan
        if n > 0:
            median = centre(ordered, n)
            scale, clip = scale_of(ordered, n, median, rel_floor, abs_floor)
            if n >= warm_up:
                distance = x - median
                z = abs(distance) if side == 0 else max(side * distance, 0.0)
                least, most = limit, MAX_SCORE
                if alpha > 0.0:
                    least, most = max(limit, tail_limit(tail, alpha)), FURTHEST
                scores[i] = min(z / scale, most) / least
                medians[i], widths[i] = median, scale * least
                if damped:
                    learn_tail(tail, min(z / scale, FURTHEST))
                    learned = min(max(x, median - clip * scale), median + clip * scale) + 0.0
                    far = far + 1 if abs(distance) > max(_FAR_SCALES, clip) * scale else 0
                    if far % _LEARN_ONE_OF != 0:
                        continue
        # Keep `ordered` ascending: take the oldest out and put the new one in, moving only what is between.
        to = _insertion_point(ordered, n, learned)
        if n < window:
            for k in range(n, to, -1):
                ordered[k] = ordered[k - 1]
            n += 1
        else:
            out = _insertion_point(ordered, n, ring[head])
            if out < to:
                to -= 1
                for k in range(out, to):
                    ordered[k] = ordered[k + 1]
            else:
                for k in range(out, to, -1):
                    ordered[k] = ordered[k - 1]
        ordered[to] = learned
        ring[head] = learned
        head = head + 1 if head + 1 < window else 0
    place[_N], place[_HEAD], place[_FAR] = n, head, far
    return True


class RobustZ:
    """Score a value by its distance to the median of a window, in robust standard deviations.

    The scale is 1.4826 times the median absolute deviation of the window; where more than half the
    window is equal, 1.2533 times the mean absolute deviation; and never below
    max(rel_floor · |median|, abs_floor), so that after a constant stretch a jitter within `limit`
    times that stays silent. The score is distance / (scale · limit). With `alpha` the limit is at least the distance
    that so small a share of the series' own values exceeds (`detectors.tail`).

    What is learned is clipped to the median ± 3.5 scales (10 where more than half is equal), whatever the
    limit; and of values further than 6 scales in a row only one in four is. A level shift therefore enters the
    window slowly, as values close to the old band; the median follows after two windows, the scale widens
    with it, and the detector comes to rest at the new level: a long incident is not normal at once, yet never
    alarms for ever.

    Parameters
    ----------
    params
        Window, direction and floors.
    sensitivity
        The limit where params has none: low 9, medium 6, high 4 scales.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors.robust_z import RobustZ, RobustZParams
    >>> values = np.random.default_rng(1).normal(100.0, 5.0, size=500)
    >>> values[450] = 180.0
    >>> detector = RobustZ(RobustZParams(window=100))
    >>> scores = detector.score(values, np.arange(500))
    >>> np.flatnonzero(scores >= 1)
    array([450])
    >>> evidence = detector.explain(450)
    >>> round(evidence.expected), round(evidence.lower), round(evidence.upper)
    (101, 71, 131)

    References
    ----------
    [^1]: Iglewicz, B. and Hoaglin, D., 1993. How to detect and handle outliers. ASQC Quality Press.
    [^2]: Leys, C. et al., 2013. Detecting outliers: do not use standard deviation around the mean, use
    absolute deviation around the median. Journal of Experimental Social Psychology 49(4).
    """

    spec: ClassVar[DetectorSpec] = DetectorSpec(
        name="robust_z",
        kind="value",
        summary="distance to a rolling median, in robust standard deviations",
        params=RobustZParams,
        structural=frozenset({"window"}),
    )

    def __init__(
        self, params: RobustZParams, *, columns: int = 1, sensitivity: Sensitivity = "medium", seed: int = 0
    ) -> None:
        del columns, seed  # one shape for every detector; this one draws nothing
        self.params = params
        self.reconfigure(params, sensitivity=sensitivity)
        self._ring: F64 = np.zeros(params.window)
        self._ordered: F64 = np.zeros(params.window)
        self._place: npt.NDArray[np.int64] = np.zeros(3, dtype=np.int64)
        self._tail: F64 = np.zeros(TAIL)
        self._scores: F64 = np.empty(0)
        self._medians: F64 = np.empty(0)
        self._widths: F64 = np.empty(0)

    def reconfigure(self, params: RobustZParams, *, sensitivity: Sensitivity | None = None) -> None:
        """Take other parameters from the next value on, keeping what was learned.

        Raises
        ------
        ParameterError
            The window differs.
        """
        require_kept(self.spec, self.params, params)
        if sensitivity is not None:
            self._sensitivity = sensitivity
        self.params = params
        self._limit = params.limit if params.limit is not None else _LIMIT[self._sensitivity]

    def score(self, values: F64, times: I64) -> F64:
        """Score each of (n,) values, then learn it; see `detectors.protocol.Detector.score`."""
        return self._take(values, times, damped=True).copy()

    def learn_undamped(self, values: F64, times: I64) -> None:
        """Learn (n,) values in full, however far out; see `detectors.protocol.Damped`."""
        self._take(values, times, damped=False)

    def _take(self, values: F64, times: I64, *, damped: bool) -> F64:
        array = as_values(values, times, name="robust_z")
        scores, medians, widths = np.empty((3, array.size))
        params = self.params
        if not score_robust_z(
            array,
            self._ring,
            self._ordered,
            self._place,
            self._tail,
            params.warm_up,
            SIDES[params.direction],
            self._limit,
            params.alpha or 0.0,
            params.rel_floor,
            params.abs_floor,
            damped,
            scores,
            medians,
            widths,
        ):
            raise refuse_non_finite("robust_z")
        self._scores, self._medians, self._widths = scores, medians, widths
        return scores

    def explain(self, index: int = -1) -> Evidence:
        """Give the median and the band outside which the score is 1.0 or more."""
        if math.isnan(self._scores[index]):
            return Evidence()
        median, width = float(self._medians[index]), float(self._widths[index])
        direction = self.params.direction
        return Evidence(
            expected=median,
            lower=None if direction == "up" else median - width,
            upper=None if direction == "down" else median + width,
        )

    def warming(self) -> int:
        """Return how many more values the window needs before scores are given."""
        return max(0, self.params.warm_up - int(self._place[_N]))

    def snapshot(self) -> State:
        """Return the window, oldest first, the run of far values, and the tail."""
        n, head = int(self._place[_N]), int(self._place[_HEAD])
        window = self._ring[:n] if n < self._ring.size else np.roll(self._ring, -head)
        return {"window": window.copy(), "far": int(self._place[_FAR]), "tail": self._tail.copy()}

    def restore(self, state: State) -> None:
        """Take up a window; raise `StateError` when it is not one of this size."""
        window, tail = state.get("window"), state.get("tail")
        if (
            not isinstance(tail, np.ndarray)
            or tail.shape != (TAIL,)
            or not isinstance(window, np.ndarray)
            or window.ndim != 1
            or window.size > self.params.window
            or not isinstance(state.get("far"), int)
        ):
            raise StateError(f"robust_z: expected a window of at most {self.params.window} values")
        n = window.size
        self._ring[:n] = window
        self._ordered[:n] = np.sort(window)
        self._tail[:] = tail
        self._place[:] = n, n % self.params.window, int(state["far"])
