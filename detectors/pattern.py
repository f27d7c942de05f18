"""Patterns of one metric that changed: an ensemble of nine views of the value and of its daily rhythm."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Final

import msgspec
import numpy as np

from detectors.kernels import all_finite, as_times, as_values, kernel, refuse_non_finite
from detectors.params import DetectorSpec, Sensitivity, require_kept
from detectors.protocol import F64, I64, Evidence, State
from detectors.state import StateError

__all__ = ["Pattern", "PatternParams"]

_LIMIT: Final[dict[Sensitivity, float]] = {"low": 1.5, "medium": 1.17, "high": 0.9}

# What each of the nine views says when it leads.
_NOTES: Final = (
    "the last 120 values are spread otherwise than before",
    "the last 30 values are spread otherwise than before",
    "beyond the range seen so far",
    "beyond the range usual at this time of day",
    "the last 6 values run as none before, at this time of day",
    "the last 20 values lie in a tail of the past",
    "the last 25 values run as none before, at this time of day",
    "the last 60 values are spread otherwise than usual at this time of day",
    "the last 180 values run as none before",
)
_VIEWS: Final = len(_NOTES)

_LARGEST: Final = 1e100
_TINY: Final = 1e-9
_SLOTS: Final = 96
_MINUTE_US: Final = 60_000_000
_DAY_MINUTES: Final = 1440
_BINS: Final = 12
_TAIL: Final = 20
_CELLS: Final = 1024
_SHARE: Final = 0.05
# A held score stays just below the limit.
_HELD: Final = 1.0 - 2.0**-20

# Shares by half-life, as b = 1 - 2^(-1/h).
_B1000: Final = 1.0 - 0.5 ** (1.0 / 1000.0)
_B1500: Final = 1.0 - 0.5 ** (1.0 / 1500.0)
_B2000: Final = 1.0 - 0.5 ** (1.0 / 2000.0)
_KEPT3000: Final = 0.5 ** (1.0 / 3000.0)

# The limits of the views of the first kind: 99.9 % quantiles of each on unlabelled data.
_KL120: Final = 4.4
_KL30: Final = 4.4
_RANGE: Final = 0.082
_RANGE_DAILY: Final = 0.14
_RATIO: Final = 26.0


class PatternParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of `Pattern`."""

    warm_up: Annotated[int, msgspec.Meta(ge=1, le=100_000, description="values before the first score")] = 100
    shingles: Annotated[
        int, msgspec.Meta(ge=50, le=10_000, description="past stretches kept by each view of stretches")
    ] = 500
    limit: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=12)] | None,
        msgspec.Meta(description="mean of the views that scores 1.0; null: by sensitivity, 1.5, 1.17 or 0.9"),
    ] = None
    hold: Annotated[
        int, msgspec.Meta(ge=0, le=1_000_000, description="values after an alarm that cannot alarm; 0: none")
    ] = 0


@kernel
def _learn(s: F64, at: int, y: float, share: float) -> None:
    """Move the mean and variance at `at` towards y."""
    d = y - s[at]
    s[at + 1] = (1.0 - share) * (s[at + 1] + share * d * d)
    s[at] += share * d


@kernel
def _rarity(s: F64, y: float, t: float) -> float:
    """Return -log10 of the normal tail of y among earlier y that were not 0. s: mean, variance, count."""
    if y <= 0.0:
        return 0.0
    out = 0.0
    z = (y - s[0]) / (math.sqrt(s[1]) + _TINY)
    if t >= 100 and s[2] > 10 and z > 0.0:
        out = min(8.0, -math.log10(max(0.5 * math.erfc(min(z, 25.0) / 1.41421356), 1e-30)))
    _learn(s, 0, y, max(_B2000, 1.0 / (s[2] + 1.0)))
    s[2] += 1.0
    return out


@kernel
def _beyond(s: F64, x: float) -> float:
    """Return how far x is outside the range so far, in ranges. s: count, mean, high, low."""
    if s[0] == 0.0:
        s[1] = s[2] = s[3] = x
    out = 0.0
    if s[0] > 20:
        excess = max(x - s[2], s[3] - x)
        if excess > 0.0:
            out = min(10.0, excess / (s[2] - s[3] + _TINY))
    s[1] += max(0.001, 1.0 / (s[0] + 1.0)) * (x - s[1])
    s[2] = max(x, s[1] + (s[2] - s[1]) * _KEPT3000)
    s[3] = min(x, s[1] + (s[3] - s[1]) * _KEPT3000)
    s[0] += 1.0
    return out


@kernel
def _spread(s: F64, x: float) -> float:
    """Return the divergence of the last w values' histogram from that of the past.

    s: count, mean, variance, past histogram, latest counts, and a ring of the last w bins.
    """
    past, counts, ring = 3, 3 + _BINS, 3 + 2 * _BINS
    w = s.size - ring
    t = s[0]
    if t == 0.0:
        s[1], s[2] = x, 0.0
        s[past:counts] = 1.0 / _BINS
    z = (x - s[1]) / (math.sqrt(s[2]) + _TINY)
    k = int((min(3.5, max(-3.5, z)) + 3.5) / 7.0 * (_BINS - 1e-6))
    place = ring + int(t) % w
    out = 0.0
    leaving = int(s[place])
    s[place] = k
    s[counts + k] += 1.0
    if t >= w:
        s[counts + leaving] -= 1.0
        share = max(_B1500, 1.0 / (t - w + 2.0))
        for i in range(_BINS):
            s[past + i] *= 1.0 - share
        s[past + leaving] += share
        if t > 2 * w:
            for i in range(_BINS):
                p = s[counts + i] / w
                if p > 0.0:
                    out += p * math.log(p / (0.98 * s[past + i] + 0.02 / _BINS))
    _learn(s, 1, x, max(_B1000, 1.0 / (t + 1.0)))
    s[0] = t + 1.0
    return out


@kernel
def _stretch(
    s: F64, stored: F64, distances: F64, near: F64, x: float, block: int, w: int, excluded: int, ratio: bool
) -> float:
    """Return how far the last w blocks are from the nearest stored stretch of w blocks; 0 inside a block.

    s: count, mean, variance, values in the open block, their sum, largest, smallest, blocks, stretches stored;
    then the latest stretch, w means and w half ranges. stored: (2w, shingles), so that one pass goes
    over all stretches at once.
    """
    latest = 9
    if s[0] == 0.0:
        s[1], s[2] = x, 0.0
    _learn(s, 1, x, max(_B2000, 1.0 / (s[0] + 1.0)))
    s[0] += 1.0
    s[5] = x if s[3] == 0.0 else max(s[5], x)
    s[6] = x if s[3] == 0.0 else min(s[6], x)
    s[4] += x
    s[3] += 1.0
    if s[3] < block:
        return 0.0
    for i in range(w - 1):
        s[latest + i] = s[latest + i + 1]
        s[latest + w + i] = s[latest + w + i + 1]
    s[latest + w - 1] = s[4] / block
    s[latest + 2 * w - 1] = 0.5 * (s[5] - s[6])
    s[3], s[4] = 0.0, 0.0
    s[7] += 1.0
    if s[7] < w:
        return 0.0
    size = stored.shape[1]
    seen = int(s[8])
    held, place = min(seen, size), seen % size
    out, nearest = 0.0, 0.0
    if seen > excluded + 10 + (1 if ratio else 0):
        for j in range(held):
            near[j] = 0.0
        for i in range(2 * w):
            g = s[latest + i]
            row = stored[i]
            for j in range(held):
                d = row[j] - g
                near[j] += d * d
        for k in range(excluded):
            near[(place - 1 - k) % size] = np.inf
        best = 0
        for j in range(1, held):
            if near[j] < near[best]:
                best = j
        nearest = math.sqrt(near[best] / w) / (math.sqrt(s[2]) + _TINY)
        out = (nearest + 0.02) / (distances[best] + 0.05) if ratio else nearest
        out += 1e-6
    for i in range(2 * w):
        stored[i, place] = s[latest + i]
    distances[place] = nearest
    s[8] += 1.0
    return out


@kernel
def _merge(cells: F64, used: int, total: float) -> int:
    """Merge neighbours among the (2, used) values and weights; return how many are left, at most half."""
    share = _SHARE
    while True:
        n = 0
        below = 0.0  # weight of the finished cells, all below the open one
        for i in range(used):
            v, w = cells[0, i], cells[1, i]
            if n > 0:
                open_weight = cells[1, n - 1]
                both = open_weight + w
                # Light beside the nearer tail: ranks there stay known to within this share.
                if both <= share * min(below, total - below - both):
                    cells[0, n - 1] += (v - cells[0, n - 1]) * (w / both)
                    cells[1, n - 1] = both
                    continue
                below += open_weight
            cells[0, n], cells[1, n] = v, w
            n += 1
        used = n
        if used <= _CELLS // 2:
            return used
        share *= 1.5


@kernel
def _tail(s: F64, cells: F64, x: float) -> float:
    """Return the mean over the last 20 values of -log10 of their two-sided rank among the past.

    s: count, cells in use, sum of the last 20, and a ring of them. cells: (2, n) values, ascending, and
    weights, in place of the whole past: exact until that many distinct values were seen.
    """
    ring = 3
    t, used = s[0], int(s[1])
    below, at = 0.0, 0
    while at < used and cells[0, at] < x:
        below += cells[1, at]
        at += 1
    same = at < used and cells[0, at] == x
    through = below + (cells[1, at] if same else 0.0)
    p = min(1.0, 2.0 * min((through + 1.0) / (t + 2.0), (t - below + 1.0) / (t + 2.0)))
    rarity = -math.log10(p)
    place = ring + int(t) % _TAIL
    if t >= _TAIL:
        s[2] -= s[place]
    s[2] += rarity
    s[place] = rarity
    if same:
        cells[1, at] += 1.0
    else:
        for i in range(used, at, -1):
            cells[0, i], cells[1, i] = cells[0, i - 1], cells[1, i - 1]
        cells[0, at], cells[1, at] = x, 1.0
        used += 1
        if used == _CELLS:
            used = _merge(cells, used, t + 1.0)
    s[0], s[1] = t + 1.0, used
    return float(s[2] / min(t + 1.0, _TAIL))


@kernel
def _residual(s: F64, x: float, slot: int) -> float:
    """Return x less the mean of its slot of the day. s: count, variance; a mean and a count a slot."""
    mean, count = 2 + slot, 2 + _SLOTS + slot
    if s[count] == 0.0:
        s[count], s[mean] = 1.0, x
        return 0.0
    out = x - s[mean]
    e = out
    if s[0] > 100:
        sigma = math.sqrt(s[1]) + _TINY
        e = min(4.0 * sigma, max(-4.0 * sigma, e))
    s[1] += max(0.002, 1.0 / (s[0] + 1.0)) * (e * e - s[1])
    s[0] += 1.0
    s[count] += 1.0
    s[mean] += max(0.25, 1.0 / s[count]) * e
    return float(out)


@kernel
def _share_of(y: float, limit: float) -> float:
    """Return a view's say: 6 at its limit, 9 at most."""
    return 6.0 * float(min(y / limit, 1.5))


@kernel
def score_pattern(
    values: F64,
    times: I64,
    clock: F64,
    day: F64,
    spreads: tuple[F64, F64, F64],
    ranges: F64,
    fast: tuple[F64, F64, F64],
    middle: tuple[F64, F64, F64],
    slow: tuple[F64, F64, F64],
    near: F64,
    tail: F64,
    cells: F64,
    rarities: F64,
    warm_up: int,
    limit: float,
    hold: int,
    scores: F64,
    expected: F64,
    leading: I64,
) -> bool:
    """Score, then learn, each value in order; False, untouched, when one is not finite."""
    if not all_finite(values):
        return False
    says = np.zeros(_VIEWS)
    for i in range(values.size):
        x = min(max(values[i], -_LARGEST), _LARGEST) + 0.0
        t = clock[0]
        slot = (times[i] // _MINUTE_US) % _DAY_MINUTES * _SLOTS // _DAY_MINUTES
        r = _residual(day, x, slot)
        says[0] = _share_of(_spread(spreads[0], x), _KL120)
        says[1] = _share_of(_spread(spreads[1], x), _KL30)
        says[2] = _share_of(_beyond(ranges[0], x), _RANGE)
        says[3] = _share_of(_beyond(ranges[1], r), _RANGE_DAILY)
        says[4] = _share_of(_stretch(fast[0], fast[1], fast[2], near, r, 1, 6, 10, True), _RATIO)
        says[5] = _rarity(rarities[0], _tail(tail, cells, x), t)
        says[6] = _rarity(rarities[1], _stretch(middle[0], middle[1], middle[2], near, r, 5, 5, 10, False), t)
        says[7] = _rarity(rarities[2], _spread(spreads[2], r), t)
        says[8] = _rarity(rarities[3], _stretch(slow[0], slow[1], slow[2], near, x, 30, 6, 6, False), t)
        total, best = 0.0, 0
        for k in range(_VIEWS):
            total += says[k]
            if says[k] > says[best]:
                best = k
        score = max(total / _VIEWS, 0.0) / limit
        clock[0] = t + 1.0
        clock[1] += 1.0
        if t < warm_up:
            scores[i] = np.nan
        elif score < 1.0:
            scores[i] = score
        elif clock[1] <= hold:
            scores[i] = _HELD
        else:
            scores[i] = score
            # Without a hold nothing that is kept depends on the limit.
            if hold > 0:
                clock[1] = 0.0
        expected[i], leading[i] = x - r, best
    return True


class Pattern:
    """Score a value by what nine views of it, and of its daily rhythm, find unusual.

    The residual r is the value less the mean of its quarter of an hour of the day. Three kinds of views:

    - spread: Kullback-Leibler divergence of the last w values' histogram from that of the past,
      of x with w = 120 and 30, of r with w = 60;
    - range: distance beyond the decaying range of all of the past, of x and of r; and the ranks of the
      last 20 values among the past;
    - stretches: distance of the last blocks (their means and half ranges) to the nearest of the last 500
      such stretches, of r in blocks of 1 and 5, of x in blocks of 30.

    Five enter as 6·min(y/c, 1.5) with a constant c, four as -log10 of their normal tail among their own
    past. The score is their mean, divided by the limit; the constants are 99.9 % quantiles of unlabelled data.

    The past is bounded: stretches in rings, ranks in a sketch of at most 1024 cells, exact until that many
    distinct values were seen and to 5 % of the nearer tail after. 170 kB a series.

    Parameters
    ----------
    params
        The limit, and how long to hold still after an alarm (`hold=100`: at most one in 100 values).
    sensitivity
        The limit where params has none: low 1.5, medium 1.17, high 0.9.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors.pattern import Pattern, PatternParams
    >>> minutes = np.arange(0, 14 * 1440, 5)
    >>> rng = np.random.default_rng(1)
    >>> load = 50 + 20 * np.sin(minutes / 1440 * 2 * np.pi) + rng.normal(0, 1, minutes.size)
    >>> load[3000:3060] = 50 + rng.normal(0, 1, 60)    # a normal level, at a time it is not
    >>> detector = Pattern(PatternParams(hold=100))
    >>> scores = detector.score(load, minutes * 60_000_000)
    >>> bool((scores[3000:3060] >= 1).any())
    True
    >>> int((scores >= 1).sum()) <= 4
    True

    References
    ----------
    [^1]: Lavin, A. and Ahmad, S., 2015. Evaluating real-time anomaly detection algorithms: the Numenta
    Anomaly Benchmark. IEEE ICMLA.
    [^2]: Kullback, S. and Leibler, R., 1951. On information and sufficiency. Annals of Mathematical
    Statistics 22.
    [^3]: Yeh, C. et al., 2016. Matrix profile I: all pairs similarity joins for time series. IEEE ICDM (the
    nearest earlier stretch).
    [^4]: Dunning, T. and Ertl, O., 2019. Computing extremely accurate quantiles using t-digests.
    """

    spec: ClassVar[DetectorSpec] = DetectorSpec(
        name="pattern",
        kind="value",
        summary="a stretch, spread or range unlike the past's, daily rhythm included",
        params=PatternParams,
        structural=frozenset({"shingles"}),
    )

    def __init__(
        self, params: PatternParams, *, columns: int = 1, sensitivity: Sensitivity = "medium", seed: int = 0
    ) -> None:
        del columns, seed  # one shape for every detector; this one draws nothing
        self.params = params
        self.reconfigure(params, sensitivity=sensitivity)
        kept = params.shingles
        self._state: dict[str, F64] = {"clock": np.zeros(2), "day": np.zeros(2 + 2 * _SLOTS)}
        # No alarm yet: longer ago than any hold.
        self._state["clock"][1] = 1e9
        for w in (120, 30, 60):
            self._state[f"spread{w}"] = np.zeros(3 + 2 * _BINS + w)
        self._state["ranges"] = np.zeros((2, 4))
        for name, w in (("fast", 6), ("middle", 5), ("slow", 6)):
            self._state[name] = np.zeros(9 + 2 * w)
            self._state[f"{name}_stored"] = np.zeros((2 * w, kept))
            self._state[f"{name}_distances"] = np.zeros(kept)
        self._state["tail"] = np.zeros(3 + _TAIL)
        self._state["cells"] = np.zeros((2, _CELLS))
        self._state["rarities"] = np.zeros((4, 3))
        self._near: F64 = np.zeros(kept)
        self._scores: F64 = np.empty(0)
        self._expected: F64 = np.empty(0)
        self._leading: I64 = np.empty(0, dtype=np.int64)

    def reconfigure(self, params: PatternParams, *, sensitivity: Sensitivity | None = None) -> None:
        """Take other parameters from the next value on, keeping what was learned.

        Raises
        ------
        ParameterError
            The number of shingles differs.
        """
        require_kept(self.spec, self.params, params)
        if sensitivity is not None:
            self._sensitivity = sensitivity
        self.params = params
        self._limit = params.limit if params.limit is not None else _LIMIT[self._sensitivity]

    def score(self, values: F64, times: I64) -> F64:
        """Score each of (n,) values, then learn it; see `detectors.protocol.Detector.score`."""
        array = as_values(values, times, name="pattern")
        scores, expected = np.empty((2, array.size))
        leading = np.empty(array.size, dtype=np.int64)
        s, params = self._state, self.params
        if not score_pattern(
            array,
            as_times(times),
            s["clock"],
            s["day"],
            (s["spread120"], s["spread30"], s["spread60"]),
            s["ranges"],
            (s["fast"], s["fast_stored"], s["fast_distances"]),
            (s["middle"], s["middle_stored"], s["middle_distances"]),
            (s["slow"], s["slow_stored"], s["slow_distances"]),
            self._near,
            s["tail"],
            s["cells"],
            s["rarities"],
            params.warm_up,
            self._limit,
            params.hold,
            scores,
            expected,
            leading,
        ):
            raise refuse_non_finite("pattern")
        self._scores, self._expected, self._leading = scores, expected, leading
        return scores.copy()

    def explain(self, index: int = -1) -> Evidence:
        """Give the usual value at this time of day, and the view that finds most unusual what it sees."""
        if math.isnan(self._scores[index]):
            return Evidence()
        return Evidence(expected=float(self._expected[index]), note=_NOTES[self._leading[index]])

    def warming(self) -> int:
        """Return how many more values are needed before scores are given."""
        return max(0, self.params.warm_up - int(self._state["clock"][0]))

    def snapshot(self) -> State:
        """Return every array of the past."""
        used = int(self._state["tail"][1])
        return {
            name: (array[:, :used] if name == "cells" else array).copy() for name, array in self._state.items()
        }

    def restore(self, state: State) -> None:
        """Take up a past; raise `StateError` on any other state, or one of another number of shingles."""
        found: dict[str, F64] = {}
        for name, array in self._state.items():
            given = state.get(name)
            if not isinstance(given, np.ndarray) or not np.isfinite(given).all():
                raise StateError(f"pattern: no finite numbers `{name}`")
            if name == "cells":
                used = int(found["tail"][1])
                if given.shape != (2, used) or used >= _CELLS:
                    raise StateError(f"pattern: expected {used} cells, got {given.shape}")
                found[name] = np.zeros((2, _CELLS))
                found[name][:, :used] = given
            elif given.shape != array.shape:
                raise StateError(f"pattern: `{name}` is {given.shape}, expected {array.shape}")
            else:
                found[name] = given.astype(np.float64)
        self._state = found
