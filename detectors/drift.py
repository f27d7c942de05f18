"""Drift of a value's distribution, event by event: conformal test martingales."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Annotated, ClassVar, Final

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.kernels import all_finite, as_times, as_values, kernel, refuse_non_finite
from detectors.params import DetectorSpec, Sensitivity, require_kept
from detectors.protocol import F64, I64, Evidence, State
from detectors.state import StateError
from detectors.whiten import Whitener, begin_whitening, unwhiten, whiten_one

__all__ = ["RESTART", "Drift", "DriftParams"]

U64 = npt.NDArray[np.uint64]

#: Evidence at which all is learned anew, whatever the limit.
RESTART: Final = 1e15
# What one bet is worth at most: one on independent values against a daily rhythm would never come down again.
_MOST: Final = 1e18

_LIMIT: Final[dict[Sensitivity, float]] = {"low": 1e6, "medium": 1e5, "high": 1e4}

_BINS: Final = 64
_CELLS: Final = 256
# Bets are likelihood ratios of normal alternatives: by how many standard deviations the mean moved, and by
# what the standard deviation was multiplied.
_SHIFTS: Final = (0.25, 0.5, 1.0, 2.0)
_WIDER: Final = (1.25, 1.6, 2.5)
_NARROWER: Final = (0.8, 0.6)
_BETS: Final = 2 * len(_SHIFTS) + len(_WIDER) + len(_NARROWER)
# Where the bets of each kind end, in the order of `_NOTES`.
_ENDS: Final = (len(_SHIFTS), 2 * len(_SHIFTS), 2 * len(_SHIFTS) + len(_WIDER), _BETS)
_NOTES: Final = ("drifted up", "drifted down", "spread wider", "drew together")
_LARGEST: Final = 1e308
_OUTSIDE: Final = 0.025  # share of the past on either side of the band in evidence
_TWO_SIDED: Final = 1.96  # deviations within which as many of the latest are

# splitmix64 (Steele, Lea and Flood 2014).
_STEP: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX_1: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2: Final = np.uint64(0x94D049BB133111EB)
_S30: Final = np.uint64(30)
_S27: Final = np.uint64(27)
_S31: Final = np.uint64(31)
_S12: Final = np.uint64(12)
_ONE: Final = np.uint64(1)

_FILLED: Final = 0  # values of the reference gathered
_READY: Final = 1  # 1 once a reference was complete
_COUNTED: Final = 2  # values in the bins
_WHITENED: Final = 3  # 1 where residuals are watched too

# What values are of late: a mean with the memory of so many, and how far they are from it.
_LATE: Final = 1.0 / 12.0
_LATE_N: Final = 0
_LATE_MEAN: Final = 1
_LATE_VARIANCE: Final = 2
_LATE_RESIDUAL: Final = 3  # the mean of whitened residuals
_LATE_SIZE: Final = 4
_WHY: Final = 7
# Values beyond this are taken as this in it, so that no square overflows.
_LATE_MOST: Final = 1e150


def _betting() -> F64:
    """Return (bets, cells): what each bet on p multiplies its stake by, a mean of 1 over the cells of p.

    p near 1 means that few of the past were larger.
    """
    fine = 16
    normal = NormalDist()
    z = np.array([normal.inv_cdf((i + 0.5) / (_CELLS * fine)) for i in range(_CELLS * fine)])
    densities = [np.exp(by * z - 0.5 * by * by) for by in (*_SHIFTS, *(-s for s in _SHIFTS))]
    densities += [np.exp(0.5 * z * z * (1.0 - 1.0 / by**2)) / by for by in (*_WIDER, *_NARROWER)]
    cells = np.array(densities).reshape(_BETS, _CELLS, fine).mean(axis=2)
    return np.ascontiguousarray(cells / cells.mean(axis=1, keepdims=True))


_WINS: Final = _betting()
_NO_VALUES: Final = np.zeros(0)
_NO_TIMES: Final = np.zeros(0, dtype=np.int64)


class DriftParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of `Drift`."""

    reference: Annotated[
        int, msgspec.Meta(ge=200, le=20_000, description="values that place the bins; no score before")
    ] = 500
    limit: Annotated[
        Annotated[float, msgspec.Meta(ge=10, le=1e13)] | None,
        msgspec.Meta(
            description="evidence that scores 1.0, about the values between false alarms; "
            "null: by sensitivity, 1e6, 1e5 or 1e4"
        ),
    ] = None
    prewhiten: Annotated[
        bool,
        msgspec.Meta(
            description="alarm only where past, trend and time of day do not explain it either; false: for values "
            "known to be independent"
        ),
    ] = True


@kernel
def uniform(draws: U64) -> float:
    """Return the next number in (0, 1); draws is (key, count of numbers drawn)."""
    draws[1] += _ONE
    bits = draws[0] + draws[1] * _STEP
    bits = (bits ^ (bits >> _S30)) * _MIX_1
    bits = (bits ^ (bits >> _S27)) * _MIX_2
    bits = bits ^ (bits >> _S31)
    return float((float(bits >> _S12) + 0.5) * 2.0**-52)


@kernel
def _bin_of(edges: F64, x: float) -> int:
    """Return how many edges x reaches."""
    low, high = 0, edges.size
    while low < high:
        middle = (low + high) // 2
        if edges[middle] <= x:
            low = middle + 1
        else:
            high = middle
    return low


@kernel
def _place(ordered: F64, watched: F64, edges: F64, counts: I64) -> None:
    """Place the edges at the quantiles of a reference, and count it; `ordered` is the same, ascending."""
    n = ordered.size
    for k in range(_BINS - 1):
        edges[k] = ordered[(k + 1) * n // _BINS]
    # Of equal edges the last goes just above: a value that many share is apart from what is larger.
    for k in range(1, _BINS - 1):
        if edges[k] == edges[k - 1] and (k == _BINS - 2 or edges[k + 1] > edges[k]) and edges[k] < _LARGEST:
            edges[k] = np.nextafter(edges[k], np.inf)
    counts[:] = 0
    for i in range(n):
        counts[_bin_of(edges, watched[i])] += 1


@kernel
def _bet(edges: F64, counts: I64, bets: F64, total: float, x: float, u: float, wins: F64) -> float:
    """Count x, bet on its conformal p, and return the evidence: the mean of what the bets are worth."""
    own = _bin_of(edges, x)
    counts[own] += 1
    below = 0
    for k in range(own):
        below += counts[k]
    p = (below + u * counts[own]) / total
    cell = min(int(p * _CELLS), _CELLS - 1)
    worth = 0.0
    if counts[own] == total:
        # All were alike up to now, this one too: p is chance alone, and nothing is staked on it.
        for k in range(_BETS):
            worth += bets[k]
        return worth / _BETS
    for k in range(_BETS):
        bets[k] = min(wins[k, cell] * (bets[k] + 1.0), _MOST)
        worth += bets[k]
    return worth / _BETS


@kernel
def _leading(bets: F64) -> int:
    """Return the kind of bet that won most."""
    best, most, start = 0, -1.0, 0
    for kind in range(len(_ENDS)):
        won = 0.0
        for k in range(start, _ENDS[kind]):
            won += bets[k]
        if won > most:
            best, most = kind, won
        start = _ENDS[kind]
    return best


@kernel
def _quantile(edges: F64, counts: I64, target: float) -> float:
    """Return the edge below which about `target` values were counted."""
    below, best, nearest = 0, 0, np.inf
    for k in range(_BINS - 1):
        below += counts[k]
        if abs(below - target) < nearest:
            nearest, best = abs(below - target), k
    return float(edges[best])


@kernel
def _note_late(late: F64, x: float) -> None:
    """Take a value into the mean of the latest, and its distance from it into theirs."""
    x = min(max(x, -_LATE_MOST), _LATE_MOST)
    late[_LATE_N] += 1.0
    share = max(_LATE, 1.0 / late[_LATE_N])
    distance = x - late[_LATE_MEAN]
    late[_LATE_VARIANCE] = (1.0 - share) * (late[_LATE_VARIANCE] + share * distance * distance)
    late[_LATE_MEAN] += share * distance


@kernel
def score_drift(
    values: F64,
    times: I64,
    first: F64,
    first_times: I64,
    edges: F64,
    counts: I64,
    bets: F64,
    head: F64,
    theta: F64,
    cov: F64,
    row: F64,
    gain: F64,
    draws: U64,
    clock: I64,
    late: F64,
    wins: F64,
    reference: int,
    prewhiten: bool,
    log_limit: float,
    start: int,
    scores: F64,
    why: F64,
) -> int:
    """Score, then learn, each value in order from `start` on; return how many were taken, or -1, all untouched.

    -1: a value is not finite. Fewer than all: a new reference is to be gathered, and `first` has no room for it.
    edges is (2, 63), counts (2, 64), bets (2, 13): of values as they are, and of residuals. late is (4,). why is
    (n, 7), filled where the score is 1.0 or more: the kind of bet that won most, median and band of the past, mean and
    band of late.
    """
    if start == 0 and not all_finite(values):
        return -1
    for i in range(start, values.size):
        x = values[i]
        if clock[_FILLED] < reference:
            if first.size < reference:
                return i
            _note_late(late, x)
            scores[i] = 0.0 if clock[_READY] == 1 else np.nan
            first[clock[_FILLED]] = x
            first_times[clock[_FILLED]] = times[i]
            clock[_FILLED] += 1
            if clock[_FILLED] == reference:
                left_out = 0
                if prewhiten:
                    residuals = np.zeros(reference)
                    left_out = begin_whitening(head, theta, cov, row, gain, first, first_times, residuals)
                    clock[_WHITENED] = 1 if left_out >= 0 else 0
                    left_out = max(left_out, 0)
                    _place(np.sort(residuals[left_out:]), residuals[left_out:], edges[1], counts[1])
                _place(np.sort(first[left_out:]), first[left_out:], edges[0], counts[0])
                clock[_COUNTED] = reference - left_out
                clock[_READY] = 1
                bets[:] = 0.0
            continue
        _note_late(late, x)
        clock[_COUNTED] += 1
        total = float(clock[_COUNTED])
        evidence = _bet(edges[0], counts[0], bets[0], total, x, uniform(draws), wins)
        binding, foreseen, width = 0, 0.0, 1.0
        if clock[_WHITENED] == 1:
            w, foreseen, width = whiten_one(head, theta, cov, row, gain, x, times[i])
            late[_LATE_RESIDUAL] += _LATE * (min(max(w, -_LATE_MOST), _LATE_MOST) - late[_LATE_RESIDUAL])
            whitened = _bet(edges[1], counts[1], bets[1], total, w, uniform(draws), wins)
            if whitened < evidence:
                evidence, binding = whitened, 1
        scores[i] = math.log(max(evidence, 1.0)) / log_limit
        if scores[i] >= 1.0:
            why[i, 0] = _leading(bets[binding])
            for k, share in enumerate((0.5, _OUTSIDE, 1.0 - _OUTSIDE)):
                why[i, 1 + k] = _quantile(edges[0], counts[0], share * total)
            now = late[_LATE_MEAN]
            side = 1.0 if why[i, 0] == 0.0 else -1.0 if why[i, 0] == 1.0 else 0.0
            if binding == 1 and side * (now - why[i, 1]) < 0.0:
                # By night the usual is above what has risen: it is compared with what was foreseen.
                middle = _quantile(edges[1], counts[1], 0.5 * total)
                gone = unwhiten(head, late[_LATE_RESIDUAL], foreseen, width) - unwhiten(head, middle, foreseen, width)
                why[i, 1] = now - gone
                why[i, 2], why[i, 3] = np.nan, np.nan
            reach = _TWO_SIDED * math.sqrt(late[_LATE_VARIANCE])
            why[i, 4], why[i, 5], why[i, 6] = now, now - reach, now + reach
        if evidence >= RESTART:
            clock[_FILLED] = 0
            clock[_COUNTED] = 0
    return values.size


class Drift:
    """Score a value by the evidence so far that values are no longer distributed as they were.

    64 bins are placed at the quantiles of the first `reference` values. Each later value is counted in its bin
    and gets a conformal p-value, p = (Σ counts below + U · own count) / n, U uniform: as long as values are
    exchangeable the p are independent and uniform whatever the distribution. Thirteen gamblers bet against
    that, each by the likelihood ratio f of one normal alternative to the standard normal, a shift of the mean by
    ±{0.25, 0.5, 1, 2} standard deviations or a standard deviation times {1.25, 1.6, 2.5, 0.8, 0.6}, in z = Φ⁻¹(p)
    averaged over 256 cells of p, in Shiryaev and Roberts' way, M ← f · (M + 1), so that a change counts from when it
    happens. The evidence is the mean of M, the score log(evidence) / log(limit): 1.0 at the limit.

    Evidence less the count of values is a martingale: the first alarm of an unchanging series comes, on
    average, after at least `limit` values. For a fleet choose limit = (values a day over all series) / (false
    alarms a day that are allowed), whatever the dependence between series.

    Autocorrelated or seasonal values are not exchangeable and would alarm too often. So, with `prewhiten`, the same
    is done with what their own past, a trend and the time of day do not foresee (`detectors.whiten`), and the
    evidence is the smaller of the two: an alarm says that values are neither independent and as they were,
    nor explained by those. Evidence against a union of hypotheses is the least of that against each; where either
    holds, the limit keeps its meaning. The price is that a shift in a strongly autocorrelated series shows
    late, as it must: by 1 - φ₁ - φ₂.

    The limit changes nothing that is learned. All but the rhythm is learned anew when the evidence reaches
    1e15, which no operator's limit exceeds: an alarm lasts from the limit to there, then the score is 0.0 while
    `reference` values of the new normal are gathered. A drift too weak to go so far stays over the limit
    while it lasts, and returns below it as the bins fill with the new values.

    U comes from a counter-based generator (splitmix64) whose key and count are in the snapshot.

    An instance takes 4.5 kB, and 8 more while a reference is gathered; its snapshot 4 kB, then at most 9.

    Parameters
    ----------
    params
        Reference, limit and prewhitening.
    sensitivity
        The limit where params has none: low 1e6, medium 1e5, high 1e4.
    seed
        Of U.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors.drift import Drift, DriftParams
    >>> values = np.random.default_rng(1).normal(100.0, 5.0, size=4000)
    >>> values[3000:] += 5.0    # by one standard deviation
    >>> detector = Drift(DriftParams())
    >>> scores = detector.score(values, np.arange(4000))
    >>> bool(3000 < np.flatnonzero(scores >= 1)[0] < 3060)
    True
    >>> evidence = detector.explain(int(np.flatnonzero(scores >= 1)[0]))
    >>> evidence.note, round(evidence.now), round(evidence.expected), [round(x) for x in evidence.usual]
    ('drifted up', 104, 100, [89, 110])

    References
    ----------
    [^1]: Vovk, V., Gammerman, A. and Shafer, G., 2022. Algorithmic Learning in a Random World, 2nd ed., ch. 8.
    [^2]: Shin, J., Ramdas, A. and Rinaldo, A., 2022. E-detectors: a nonparametric framework for sequential change
    detection. arXiv:2203.03532.
    """

    spec: ClassVar[DetectorSpec] = DetectorSpec(
        name="drift",
        kind="value",
        summary="a change of distribution, by betting against conformal p-values",
        params=DriftParams,
        structural=frozenset({"reference", "prewhiten"}),
        budget="limit",
    )

    def __init__(
        self, params: DriftParams, *, columns: int = 1, sensitivity: Sensitivity = "medium", seed: int = 0
    ) -> None:
        del columns  # one shape for every detector
        self.params = params
        self.reconfigure(params, sensitivity=sensitivity)
        self._gather()
        self._edges: F64 = np.zeros((2, _BINS - 1))
        self._counts: I64 = np.zeros((2, _BINS), dtype=np.int64)
        self._bets: F64 = np.zeros((2, _BETS))
        self._whitener = Whitener()
        self._draws: U64 = np.array([seed % 2**64, 0], dtype=np.uint64)
        self._clock: npt.NDArray[np.int64] = np.zeros(4, dtype=np.int64)
        self._late: F64 = np.zeros(_LATE_SIZE)
        self._scores: F64 = np.empty(0)
        self._why: F64 = np.empty((0, _WHY))

    def reconfigure(self, params: DriftParams, *, sensitivity: Sensitivity | None = None) -> None:
        """Take another limit from the next value on, keeping what was learned.

        Raises
        ------
        ParameterError
            The reference or the prewhitening differs.
        """
        require_kept(self.spec, self.params, params)
        if sensitivity is not None:
            self._sensitivity = sensitivity
        self.params = params
        self._log_limit = math.log(params.limit if params.limit is not None else _LIMIT[self._sensitivity])

    def _gather(self) -> None:
        """Make room for a reference."""
        self._first: F64 = np.zeros(self.params.reference)
        self._first_times: I64 = np.zeros(self.params.reference, dtype=np.int64)

    def score(self, values: F64, times: I64) -> F64:
        """Score each of (n,) values, then learn it; see `detectors.protocol.Detector.score`."""
        array, moments = as_values(values, times, name="drift"), as_times(times)
        scores = np.empty(array.size)
        why = np.empty((array.size, _WHY))  # filled where the score is 1.0 or more
        filter_, params, done = self._whitener, self.params, 0
        while True:
            done = score_drift(
                array,
                moments,
                self._first,
                self._first_times,
                self._edges,
                self._counts,
                self._bets,
                filter_.head,
                filter_.theta,
                filter_.cov,
                filter_.row,
                filter_.gain,
                self._draws,
                self._clock,
                self._late,
                _WINS,
                params.reference,
                params.prewhiten,
                self._log_limit,
                done,
                scores,
                why,
            )
            if done < 0:
                raise refuse_non_finite("drift")
            if done == array.size:
                break
            self._gather()
        if self._first.size and self._clock[_FILLED] == params.reference:
            self._first, self._first_times = _NO_VALUES, _NO_TIMES  # in the bins now
        self._scores, self._why = scores, why
        return scores.copy()

    def explain(self, index: int = -1) -> Evidence:
        """Say what changed: what values are of late, and the median and central 95 % of the past, to a 64th of it."""
        if not self._scores[index] >= 1.0:
            return Evidence()
        kind, median, lower, upper, now, least, most = (float(number) for number in self._why[index])
        usual = None if math.isnan(lower) else (lower, upper)
        return Evidence(expected=median, usual=usual, now=now, late=(least, most), note=_NOTES[int(kind)])

    def warming(self) -> int:
        """Return how many more values the first reference needs; a later one scores 0.0 meanwhile."""
        return 0 if self._clock[_READY] else self.params.reference - int(self._clock[_FILLED])

    def snapshot(self) -> State:
        """Return bins, bets and filter, or the part of the reference gathered."""
        filled = int(self._clock[_FILLED])
        state: State = {"clock": self._clock.copy(), "draws": self._draws.copy(), "late": self._late.copy()}
        if self.params.prewhiten:
            state["whitener"] = self._whitener.snapshot()
        if filled < self.params.reference:
            return {**state, "first": self._first[:filled].copy(), "first_times": self._first_times[:filled].copy()}
        own = slice(None) if self.params.prewhiten else slice(0, 1)
        return {
            **state,
            "edges": self._edges[own].copy(),
            "counts": self._counts[own].copy(),
            "bets": self._bets[own].copy(),
        }

    def restore(self, state: State) -> None:
        """Take up a state; raise `StateError` when it is not one of this detector."""
        own = slice(None) if self.params.prewhiten else slice(0, 1)
        try:
            clock, draws = state["clock"], state["draws"]
            late = state.get("late", np.zeros(_LATE_SIZE))  # states of before have none
            filled = int(clock[_FILLED])
            if clock.shape != self._clock.shape or draws.shape != self._draws.shape or late.shape != (_LATE_SIZE,):
                raise StateError("drift: the state is of another shape")
            if filled < self.params.reference:
                self._gather()
                parts = [
                    (self._first[:filled], state["first"]),
                    (self._first_times[:filled], state["first_times"]),
                ]
            else:
                parts = [(getattr(self, f"_{name}")[own], state[name]) for name in ("edges", "counts", "bets")]
            if filled > self.params.reference or any(mine.shape != theirs.shape for mine, theirs in parts):
                raise StateError("drift: the state is of another shape")
            if self.params.prewhiten:
                self._whitener.restore(state["whitener"])
        except (KeyError, AttributeError, TypeError, IndexError) as error:
            raise StateError(f"drift: not a state of this detector: {error!r}") from error
        for mine, theirs in parts:
            mine[:] = theirs
        if filled == self.params.reference:
            self._first, self._first_times = _NO_VALUES, _NO_TIMES
        self._clock[:], self._draws[:], self._late[:] = clock, draws, late
