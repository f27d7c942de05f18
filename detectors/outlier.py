"""Rows unlike those before: by a histogram of each column, by how columns go together, and by their neighbours."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.calibrate import ALPHA, WARM_UP, calibrate_one, new_sketch, pack_sketch, unpack_sketch
from detectors.kernels import all_finite, as_rows, kernel, refuse_non_finite
from detectors.params import DetectorSpec, Sensitivity, require_kept
from detectors.protocol import F64, I64, Evidence, State
from detectors.state import StateError

__all__ = ["Outlier", "OutlierParams"]

F32: TypeAlias = npt.NDArray[np.float32]

# Rows kept whole at first: their medians say what is large before anything is learned from them.
_FIRST: Final = 50

_BINS: Final = 32
_EDGE: Final = 2.5  # of sign(z) · ln(1 + |z|): z = 11.2
_BIN_PRIOR: Final = 0.5  # a bin's weight before any row (Krichevsky and Trofimov), in rows

# z ends here. Means and scales learn no further than `_LEARN_CLIP`: at 30 a column whose unit changed would
# be normal within a hundred rows.
_CLIP: Final = 30.0
_LEARN_CLIP: Final = 10.0
_REL_FLOOR: Final = 1e-9  # least scale, as a share of the mean's size: below it is rounding
_LARGEST: Final = 1e150  # its square is still a float

_INVERT_EACH: Final = 50  # rows
_SHRINK_FROM: Final = 3.0  # typical distances beyond which a row counts for less

# Past rows kept as neighbours, in groups. A group is small on purpose: among few rows even a cluster of odd ones
# is far from the nearest, and many groups make up for the chance in each.
_GROUPS: Final = 16
_PER_GROUP: Final = 16
_KEPT: Final = _GROUPS * _PER_GROUP
_LIFETIMES: Final = 1.0 / math.log(2.0)  # mean lifetime of a kept row, in half-lives

_HALF_LIFE: Final = 3_000.0  # rows, of the mean and variance of the parts of the score
_LEAST_VARIANCE: Final = 1e-4  # of any part, a constant stream has none

_UNIT: Final = 1e-3  # raw scores are in standard deviations: below this difference they say the same
_MAD_TO_SIGMA: Final = 1.4826  # 1 / Φ⁻¹(3/4)

# A row whose raw score, a weighted sum of standard scores, is beyond this is learned at 1/32 of its weight, as the
# calibrator does: an incident must not become the normal it is measured by in its first minutes. Neither depends
# on alpha, which only scales scores.
_ODD: Final = 6.0
_ODD_WEIGHT: Final = 1.0 / 32.0

# A row beyond this is kept as a neighbour at 1/32 of the chance: one odd row among 256 hides those like it.
_UNUSUAL: Final = 2.0

# What the parts weigh in the raw score: two views of all the past, one of the neighbours, which by itself ranks
# best on most data and sees clusters off the middle.
_GLOBAL: Final = 0.4
_LOCAL: Final = 1.2

_ROWS: Final = 0  # rows seen
_SINCE: Final = 1  # rows since weights were last halved
_KEEPING: Final = 2  # past rows kept
_DRAWN: Final = 3  # the last random number

_MODULUS: Final = 2**31 - 1  # of Lehmer's generator: exact in 64 bits, and one number is all its state
_MULTIPLIER: Final = 48_271

_WEIGHT: Final = 6  # after the mean and variance of each of the three parts: the weight of all learned
_LEVELS: Final = 7


class OutlierParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of `Outlier`."""

    half_life: Annotated[
        int, msgspec.Meta(ge=100, le=1_000_000, description="rows after which one weighs half")
    ] = 5_000
    alpha: Annotated[
        Annotated[float, msgspec.Meta(gt=0, lt=1)] | None,
        msgspec.Meta(description="tail probability scoring 1.0; null: by sensitivity, 1e-4, 1e-3 or 1e-2"),
    ] = None


@kernel
def _standardise(x: float, mean: float, variance: float) -> float:
    """Return x in standard deviations from the mean, within ±30; 0 where it is the mean itself."""
    distance = min(max(x, -_LARGEST), _LARGEST) - mean
    if distance == 0.0:
        return 0.0
    scale = max(math.sqrt(variance), _REL_FLOOR * abs(mean), 1e-300)
    return min(max(distance / scale, -_CLIP), _CLIP)


@kernel
def _bin_of(z: float) -> int:
    """Return the bin of a standardised value: even steps of its logarithm, on both sides."""
    y = math.copysign(math.log(1.0 + abs(z)), z)
    return min(max(int((y + _EDGE) * (_BINS / (2.0 * _EDGE))), 0), _BINS - 1)


@kernel
def _median(values: F64) -> float:
    """Return the median; `values` is left ascending."""
    values.sort()
    half = values.size // 2
    if values.size % 2 == 1:
        return float(values[half])
    return float(0.5 * values[half - 1] + 0.5 * values[half])


@kernel
def _begin(first: F64, moments: F64) -> None:
    """Set each column's mean and variance from the first rows, far values brought in to the median."""
    n, columns = first.shape
    for j in range(columns):
        column = np.empty(n)
        for i in range(n):
            column[i] = min(max(first[i, j], -_LARGEST), _LARGEST)
        median = _median(column)
        spread = np.abs(column - median)
        mean_spread = 0.0
        for i in range(n):
            mean_spread += spread[i] / n
        scale = _MAD_TO_SIGMA * _median(spread)
        if scale == 0.0:
            scale = mean_spread
        total = 0.0
        for i in range(n):
            total += min(max(column[i] - median, -_LEARN_CLIP * scale), _LEARN_CLIP * scale) / n
        mean, variance = median + total, 0.0
        for i in range(n):
            distance = min(max(column[i], median - _LEARN_CLIP * scale), median + _LEARN_CLIP * scale) - mean
            variance += distance * distance / n
        # -0.0 and a mean of equal numbers rounded off would make a constant look alive.
        constant = column[0] == column[n - 1]
        moments[0, j] = median + 0.0 if constant else mean
        moments[1, j] = 0.0 if constant else variance


@kernel
def invert(covariance: F64, total: float, prior: float, out: F64) -> None:
    """Write the inverse of (covariance + prior · I) / (total + prior) to `out`, by Cholesky's factor.

    covariance holds weighted sums, its lower triangle filled. The prior is as many rows of unit variance, so
    there always is an inverse.
    """
    d = covariance.shape[0]
    factor = np.zeros((d, d))
    scale = 1.0 / (total + prior)
    for i in range(d):
        for j in range(i + 1):
            value = covariance[i, j] * scale
            if i == j:
                value += prior * scale
            for k in range(j):
                value -= factor[i, k] * factor[j, k]
            if i == j:
                # Rounding alone can make it smaller than the prior's part.
                factor[i, i] = math.sqrt(max(value, 1e-3 * prior * scale))
            else:
                factor[i, j] = value / factor[j, j]
    # Turn the factor into its own inverse, column by column, then multiply that by its transpose.
    for j in range(d):
        factor[j, j] = 1.0 / factor[j, j]
        for i in range(j + 1, d):
            value = 0.0
            for k in range(j, i):
                value -= factor[i, k] * factor[k, j]
            factor[i, j] = value / factor[i, i]
    for i in range(d):
        for j in range(i + 1):
            value = 0.0
            for k in range(i, d):
                value += factor[k, i] * factor[k, j]
            out[i, j] = value
            out[j, i] = value


@kernel
def _nearest(z: F64, kept: F32, squares: F32, best: F32) -> float:
    """Return the mean over groups of the distance to the group's nearest row, a column's share of it; 0 of none.

    kept is (columns, rows), row k being of group k mod 16, infinite where there is none yet. squares (rows,)
    and best (16,) are left with the squared distance to each row, and to each group's nearest.
    """
    columns = z.size
    squares[:] = 0.0
    for j in range(columns):
        value, column = np.float32(z[j]), kept[j]
        for k in range(_KEPT):
            apart = value - column[k]
            squares[k] += apart * apart
    total, groups = 0.0, 0
    for g in range(_GROUPS):
        least = squares[g]
        for k in range(_GROUPS + g, _KEPT, _GROUPS):
            least = min(squares[k], least)
        best[g] = least
        if least < np.inf:
            total += math.sqrt(float(least) / columns)
            groups += 1
    return total / max(groups, 1)


@kernel
def _keep(z: F64, kept: F32, clock: I64, weight: float, lifetime: float) -> None:
    """Keep the row with the chance that makes the rows kept a fair sample of the last lifetime."""
    at = clock[_KEEPING]
    if at < _KEPT:
        # An odd row would be one of few for long.
        if weight < 1.0:
            return
        clock[_KEEPING] += 1
    else:
        clock[_DRAWN] = clock[_DRAWN] * _MULTIPLIER % _MODULUS
        if clock[_DRAWN] >= weight * _KEPT / min(lifetime, clock[_ROWS]) * _MODULUS:
            return
        clock[_DRAWN] = clock[_DRAWN] * _MULTIPLIER % _MODULUS
        at = clock[_DRAWN] % _KEPT
    for j in range(z.size):
        kept[j, at] = np.float32(z[j])


@kernel
def _share_out(
    z: F64,
    bins: I64,
    pull: F64,
    inverse: F64,
    counts: F64,
    seen: float,
    prior: float,
    kept: F32,
    squares: F32,
    best: F32,
    parts: F64,
    out: F64,
) -> None:
    """Write each column's share of the score: its share of each part, by what the part weighs in the sum."""
    columns = bins.size
    surprise, distance, gap = 0.0, 0.0, 0.0
    excess, removed, apart = np.empty(columns), np.empty(columns), np.zeros(columns)
    for k in range(_KEPT):
        g = k % _GROUPS
        # The nearest of its group; of two as near, both, which changes no ranking.
        if squares[k] == best[g] and 0.0 < best[g] < np.inf:
            for j in range(columns):
                step = z[j] - kept[j, k]
                apart[j] += step * step / math.sqrt(best[g])
    for j in range(columns):
        # How much rarer the bin is than the column's bins usually are.
        usual = 0.0
        for k in range(_BINS):
            share = (counts[j, k] + prior) / seen
            usual -= share * math.log(share)
        excess[j] = max(0.0, -math.log((counts[j, bins[j]] + prior) / seen) - usual)
        # What the squared distance loses when the column is left out.
        removed[j] = pull[j] * pull[j] / inverse[j, j]
        surprise += excess[j]
        distance += removed[j]
        gap += apart[j]
    rare = _GLOBAL * max(parts[0], 0.0) if surprise > 0.0 else 0.0
    far = _GLOBAL * max(parts[1], 0.0) if distance > 0.0 else 0.0
    alone = _LOCAL * max(parts[2], 0.0) if gap > 0.0 else 0.0
    whole = rare + far + alone
    for j in range(columns):
        out[j] = 0.0
        if rare > 0.0:
            out[j] += rare / whole * excess[j] / surprise
        if far > 0.0:
            out[j] += far / whole * removed[j] / distance
        if alone > 0.0:
            out[j] += alone / whole * apart[j] / gap


@kernel
def score_outlier(
    rows: F64,
    first: F64,
    moments: F64,
    counts: F64,
    covariance: F64,
    inverse: F64,
    kept: F32,
    levels: F64,
    clock: I64,
    sketch: F64,
    half_life: float,
    log_alpha: float,
    damped: bool,
    raw: F64,
    scores: F64,
    shares: F64,
) -> bool:
    """Score, then learn, each row in order; False, untouched, when one number is not finite.

    damped: odd rows are learned less.
    first is (50, columns), the first rows of all; moments is (2, columns), means and variances; counts is
    (columns, bins); covariance and inverse are (columns, columns), the former its lower triangle only; kept is
    (columns, 256), past rows standardised.
    """
    if not all_finite(rows.reshape(-1)):
        return False
    n, columns = rows.shape
    z, pull = np.empty(columns), np.empty(columns)
    bins = np.empty(columns, dtype=np.int64)
    squares, best = np.empty(_KEPT, dtype=np.float32), np.empty(_GROUPS, dtype=np.float32)
    parts = np.empty(3)
    slowest = 1.0 - 2.0 ** (-1.0 / half_life)
    levels_slowest = 1.0 - 2.0 ** (-1.0 / _HALF_LIFE)
    for i in range(n):
        raw[i], scores[i] = np.nan, np.nan
        seen = clock[_ROWS]
        if seen < _FIRST:
            first[seen] = rows[i]
            clock[_ROWS] += 1
            if seen + 1 < _FIRST:
                continue
            _begin(first, moments)
        # At the end of the first rows they are all learned, unscored; from then on one row at a time.
        beginning = seen + 1 == _FIRST
        for at in range(_FIRST if beginning else 1):
            row = first[at] if beginning else rows[i]
            count = at if beginning else clock[_ROWS]
            # Weights grow by 2**(1 / half_life) a row; every half_life rows all are halved, which is exact.
            if clock[_SINCE] == half_life:
                clock[_SINCE] = 0
                counts *= 0.5
                covariance *= 0.5
                levels[_WEIGHT] *= 0.5
            weight = 2.0 ** (clock[_SINCE] / half_life)
            clock[_SINCE] += 1
            total = levels[_WEIGHT]
            prior = _BIN_PRIOR * weight
            mass = total + _BINS * prior
            surprise = columns * math.log(mass)
            for j in range(columns):
                z[j] = _standardise(row[j], moments[0, j], moments[1, j])
                bins[j] = _bin_of(z[j])
                surprise -= math.log(counts[j, bins[j]] + prior)
            squared = 0.0
            for j in range(columns):
                value = 0.0
                for k in range(columns):
                    value += inverse[j, k] * z[k]
                pull[j] = value
                squared += value * z[j]
            squared = max(squared, 0.0)
            distance = math.sqrt(squared / columns)
            gap = _nearest(z, kept, squares, best)
            if not beginning:
                parts[0] = (surprise - levels[0]) / math.sqrt(max(levels[1], _LEAST_VARIANCE))
                parts[1] = (distance - levels[2]) / math.sqrt(max(levels[3], _LEAST_VARIANCE))
                parts[2] = (gap - levels[4]) / math.sqrt(max(levels[5], _LEAST_VARIANCE))
                raw[i] = _GLOBAL * (parts[0] + parts[1]) + _LOCAL * parts[2]
                # Below the mean all rows are alike: a histogram that fills makes rows a little less rare each
                # time, and in a constant stream the approach to the mean would be a record with every row.
                scores[i] = calibrate_one(sketch, max(raw[i], 0.0), log_alpha, _UNIT)
                if scores[i] >= 1.0:
                    _share_out(
                        z, bins, pull, inverse, counts, mass, prior, kept, squares, best, parts, shares[i]
                    )
                clock[_ROWS] += 1
            # Learn: the levels of the parts,
            part = 1.0 if beginning or not damped or not raw[i] > _ODD else _ODD_WEIGHT
            fading = part * max(levels_slowest, 1.0 / (count + 1.0))
            change = surprise - levels[0]
            levels[0] += fading * change
            levels[1] = (1.0 - fading) * (levels[1] + fading * change * change)
            change = distance - levels[2]
            levels[2] += fading * change
            levels[3] = (1.0 - fading) * (levels[3] + fading * change * change)
            change = gap - levels[4]
            levels[4] += fading * change
            levels[5] = (1.0 - fading) * (levels[5] + fading * change * change)
            # the histograms,
            for j in range(columns):
                counts[j, bins[j]] += part * weight
            levels[_WEIGHT] += part * weight
            # the covariance, to which a far row adds less,
            shrink = min(1.0, _SHRINK_FROM / max(distance, 1e-9))
            added = part * weight * shrink * shrink
            for j in range(columns):
                scaled = added * z[j]
                for k in range(j + 1):
                    covariance[j, k] += scaled * z[k]
            # the neighbours,
            spared = beginning or not damped or not raw[i] > _UNUSUAL
            _keep(z, kept, clock, 1.0 if spared else _ODD_WEIGHT, _LIFETIMES * half_life)
            # and means and variances.
            if not beginning:
                fading = part * max(slowest, 1.0 / (count + 1.0))
                for j in range(columns):
                    change = min(max(row[j], -_LARGEST), _LARGEST) - moments[0, j]
                    far = _LEARN_CLIP * max(
                        math.sqrt(moments[1, j]), _REL_FLOOR * abs(moments[0, j]), 1e-300
                    )
                    if damped:
                        change = min(max(change, -far), far)
                    moments[0, j] += fading * change
                    moments[1, j] = (1.0 - fading) * (moments[1, j] + fading * change * change)
            if (count + 1) % _INVERT_EACH == 0:
                # As many rows of unit variance as there are columns: the error of a covariance is of that
                # order, columns / rows, and nothing smaller is to be told apart.
                invert(covariance, levels[_WEIGHT], columns * weight, inverse)
    return True


class Outlier:
    """Score a row by how rare its numbers are, each by itself and together, and by how few rows are near.

    Every column is standardised online and clipped to ±30: z. Three scores are made of z:

    - rare: Σ over columns of -ln(share), the share being that of z's bin in the column's fading histogram, 32
      even steps of sign(z) · ln(1 + |z|) within ±2.5 (histogram-based outlier score [^1]);
    - far: √(zᵀ C⁻¹ z / d), Mahalanobis' distance, C being the fading covariance of z and d the columns. A row adds
      to C shrunk by min(1, 3 / distance), an M-estimator [^2], so that outliers do not hide those after them. C is
      inverted every 50 rows;
    - near: the mean, over 16 groups of 16 past rows each, of min √(Σ(z - kept)² / d), the distance to the nearest
      of the group: nearest neighbours in small samples [^3], many of them [^4]. A row takes a random place among
      the 256 with the chance 256 / min(rows, half_life / ln 2), so they are a fading sample of the past [^5]; one
      whose raw score is beyond 2, at 1/32 of it.

    Each is standardised by its fading mean and variance, half-life 3000 rows; the raw score is
    0.4 · (rare + far) + 1.2 · near, and `detectors.calibrate` makes it ours: 1.0 where as few rows reach it as the
    operator's alpha says. `rare` and `far` take all the past for one heap; `near` knows of several.

    A column that never moved and then does scores z = ±30. A row whose raw score is beyond 6 is learned at 1/32 of
    its weight, and means and variances learn no further than 10 standard deviations: a column in another unit
    stays odd for thousands of rows, yet not for ever.

    Warm-up is 50 rows, whose medians say what is far, and the calibrator's 300. At 10 columns an instance
    takes 23 kB and its snapshot 16 kB, at 50 columns 129 and 87.

    Evidence names the columns that carry a score of 1.0 or more: for `rare` by how much rarer the bin is than
    the column's usual, for `far` by what the distance loses without the column, for `near` by the column's share
    of the distances to the nearest rows.

    Parameters
    ----------
    params
        Half-life and alpha.
    columns
        Width of the rows.
    sensitivity
        The tail probability where params has none: low 1e-4, medium 1e-3, high 1e-2.
    seed
        Draws the rows that are kept.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors.outlier import Outlier, OutlierParams
    >>> rows = np.random.default_rng(3).normal(10.0, 2.0, size=(5001, 10))
    >>> rows[5000, 4] *= 1000.0    # milliseconds for seconds
    >>> detector = Outlier(OutlierParams(), columns=10)
    >>> detector.warming()
    350
    >>> bool(detector.score(rows, np.arange(5001))[5000] >= 1)
    True
    >>> detector.explain(5000).shares[0][0]
    4

    References
    ----------
    [^1]: Goldstein, M. and Dengel, A., 2012. Histogram-based outlier score (HBOS). KI-2012.
    [^2]: Maronna, R.A., 1976. Robust M-estimators of multivariate location and scatter. Annals of Statistics 4.
    [^3]: Sugiyama, M. and Borgwardt, K., 2013. Rapid distance-based outlier detection via sampling. NIPS 26.
    [^4]: Bandaragoda, T.R. et al., 2018. Isolation-based anomaly detection using nearest-neighbour ensembles.
    Computational Intelligence 34.
    [^5]: Aggarwal, C.C., 2006. On biased reservoir sampling in the presence of stream evolution. VLDB.
    """

    spec: ClassVar[DetectorSpec] = DetectorSpec(
        name="outlier",
        kind="vector",
        summary="how rare a row's numbers are, each by itself, together, and beside its neighbours, calibrated",
        params=OutlierParams,
        structural=frozenset({"half_life"}),
    )

    def __init__(
        self,
        params: OutlierParams,
        *,
        columns: int = 1,
        sensitivity: Sensitivity = "medium",
        seed: int = 0,
    ) -> None:
        self.params = params
        self.columns = columns
        self.reconfigure(params, sensitivity=sensitivity)
        self._first: F64 = np.zeros((_FIRST, columns))
        self._moments: F64 = np.zeros((2, columns))
        self._counts: F64 = np.zeros((columns, _BINS))
        self._covariance: F64 = np.zeros((columns, columns))
        self._inverse: F64 = np.eye(columns)
        self._levels: F64 = np.zeros(_LEVELS)
        self._kept: F32 = np.full((columns, _KEPT), np.inf, dtype=np.float32)
        self._clock: npt.NDArray[np.int64] = np.zeros(4, dtype=np.int64)
        # Lehmer's generator knows no 0; the first numbers of small seeds next to each other are alike.
        self._clock[_DRAWN] = (1 + seed % (_MODULUS - 1)) * pow(_MULTIPLIER, 20, _MODULUS) % _MODULUS
        self._sketch: F64 = new_sketch()
        self.raw: F64 = np.empty(0)  #: (n,) raw scores of the last batch; nan in the first rows
        self._scores: F64 = np.empty(0)
        self._shares: F64 = np.empty((0, columns))

    def reconfigure(self, params: OutlierParams, *, sensitivity: Sensitivity | None = None) -> None:
        """Take another alpha from the next row on, keeping what was learned.

        Raises
        ------
        ParameterError
            The half-life differs.
        """
        require_kept(self.spec, self.params, params)
        if sensitivity is not None:
            self._sensitivity = sensitivity
        self.params = params
        alpha = params.alpha if params.alpha is not None else ALPHA[self._sensitivity]
        self._log_alpha = math.log(alpha)

    def score(self, values: F64, times: I64) -> F64:
        """Score each of (n, columns) rows, then learn it; see `detectors.protocol.Detector.score`."""
        return self._take(values, times, damped=True).copy()

    def learn_undamped(self, values: F64, times: I64) -> None:
        """Learn (n, columns) rows in full, however odd; see `detectors.protocol.Damped`."""
        self._take(values, times, damped=False)

    def _take(self, values: F64, times: I64, *, damped: bool) -> F64:
        rows = as_rows(values, times, columns=self.columns, name="outlier")
        raw, scores = np.empty((2, rows.shape[0]))
        shares = np.empty(rows.shape)  # filled where the score is 1.0 or more
        if not score_outlier(
            rows,
            self._first,
            self._moments,
            self._counts,
            self._covariance,
            self._inverse,
            self._kept,
            self._levels,
            self._clock,
            self._sketch,
            float(self.params.half_life),
            self._log_alpha,
            damped,
            raw,
            scores,
            shares,
        ):
            raise refuse_non_finite("outlier")
        self.raw, self._scores, self._shares = raw, scores, shares
        return scores

    def explain(self, index: int = -1) -> Evidence:
        """Give the columns that carry the score, when it is 1.0 or more."""
        if not self._scores[index] >= 1.0:
            return Evidence()
        shares = self._shares[index]
        order = np.argsort(-shares, kind="stable")
        return Evidence(shares=tuple((int(j), float(shares[j])) for j in order if shares[j] > 0.0))

    def warming(self) -> int:
        """Return how many more rows the beginning and the calibrator need."""
        return max(0, _FIRST + WARM_UP - int(self._clock[_ROWS]))

    def snapshot(self) -> State:
        """Return what was learned; the first rows only while they are being gathered."""
        rows = int(self._clock[_ROWS])
        lower = np.tril_indices(self.columns)
        return {
            "first": self._first[: rows if rows < _FIRST else 0].copy(),
            "moments": self._moments.copy(),
            "counts": self._counts.copy(),
            "covariance": self._covariance[lower],
            "inverse": self._inverse[lower],
            "kept": self._kept[:, : int(self._clock[_KEEPING])].copy(),
            "levels": self._levels.copy(),
            "clock": self._clock.copy(),
            "calibration": pack_sketch(self._sketch),
        }

    def restore(self, state: State) -> None:
        """Take up a state; raise `StateError` when it is of rows of another width."""
        lower = np.tril_indices(self.columns)
        try:
            names = ("first", "moments", "counts", "covariance", "inverse", "kept", "levels", "clock")
            first, moments, counts, covariance, inverse, kept, levels, clock = (state[name] for name in names)
            if (
                first.ndim != 2
                or first.shape[0] >= _FIRST
                or first.shape[1] != self.columns
                or moments.shape != self._moments.shape
                or counts.shape != self._counts.shape
                or covariance.shape != lower[0].shape
                or inverse.shape != covariance.shape
                or levels.shape != self._levels.shape
                or clock.shape != self._clock.shape
                or kept.shape != (self.columns, int(clock[_KEEPING]))
                or kept.shape[1] > _KEPT
            ):
                raise StateError("outlier: the state is of another shape")
            sketch = unpack_sketch(state["calibration"])
        except (KeyError, AttributeError, TypeError) as error:
            raise StateError(f"outlier: not a state of this detector: {error!r}") from error
        self._first[: len(first)] = first
        self._covariance[lower] = covariance
        self._inverse[lower] = inverse
        self._inverse.T[lower] = inverse
        self._kept[:] = np.inf
        self._kept[:, : kept.shape[1]] = kept
        self._moments[:], self._counts[:], self._levels[:] = moments, counts, levels
        self._clock[:], self._sketch = clock, sketch
