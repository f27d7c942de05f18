"""Drift of a value's distribution, event by event: a conformal test martingale."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Final

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.kernels import all_finite, as_values, kernel, refuse_non_finite
from detectors.params import DetectorSpec, Sensitivity, require_kept
from detectors.protocol import F64, I64, Evidence, State
from detectors.state import StateError

__all__ = ["RESTART", "Drift", "DriftParams"]

U64 = npt.NDArray[np.uint64]

#: Evidence at which all is learned anew, whatever the limit.
RESTART: Final = 1e12

_LIMIT: Final[dict[Sensitivity, float]] = {"low": 1e6, "medium": 1e5, "high": 1e4}

_BINS: Final = 64
_STAKES: Final = (0.2, 0.5, 1.0, 1.6)
_KINDS: Final = 4  # up, down, wider, narrower: a row of bets each
_NOTES: Final = ("moved up", "moved down", "spread wider", "drew together")
_OUTSIDE: Final = 0.025  # share of the past on either side of the band in evidence

_AR_CLIP: Final = 10.0  # scales: the filter neither sees nor learns anything further out
_AR_VAGUE: Final = 100.0  # variance of its coefficients before any value
_LARGEST: Final = 1e150
_MAD_TO_SIGMA: Final = 1.4826  # 1 / Φ⁻¹(3/4)

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

# Layout of the filter: centre, scale, the last two values, three coefficients, their covariance.
_CENTRE: Final = 0
_SCALE: Final = 1
_LAST: Final = 2
_THETA: Final = 4
_P: Final = 7
_FILTER: Final = 16


class DriftParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of `Drift`."""

    reference: Annotated[
        int, msgspec.Meta(ge=128, le=20_000, description="values that place the bins; no score before")
    ] = 500
    limit: Annotated[
        Annotated[float, msgspec.Meta(ge=10, le=1e9)] | None,
        msgspec.Meta(
            description="evidence that scores 1.0, about the values between false alarms; "
            "null: by sensitivity, 1e6, 1e5 or 1e4"
        ),
    ] = None
    prewhiten: Annotated[
        bool, msgspec.Meta(description="watch what an AR(2) does not foresee: for autocorrelated series")
    ] = False


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
def _scaled(whitener: F64, x: float) -> float:
    z = (min(max(x, -_LARGEST), _LARGEST) - whitener[_CENTRE]) / whitener[_SCALE]
    return float(min(max(z, -_AR_CLIP), _AR_CLIP))


@kernel
def _foreseen(whitener: F64) -> float:
    """Return what the filter expects of the next scaled value."""
    return float(
        whitener[_THETA] + whitener[_THETA + 1] * whitener[_LAST] + whitener[_THETA + 2] * whitener[_LAST + 1]
    )


@kernel
def _follow(whitener: F64, z: float) -> None:
    """Let the filter learn a scaled value, by recursive least squares that forget nothing.

    A filter that forgets would take the very shift that is looked for into its constant.
    """
    h = np.empty(3)
    h[0], h[1], h[2] = 1.0, whitener[_LAST], whitener[_LAST + 1]
    error = z - _foreseen(whitener)
    gain = np.empty(3)
    spread = 1.0
    for a in range(3):
        gain[a] = 0.0
        for b in range(3):
            gain[a] += whitener[_P + 3 * a + b] * h[b]
        spread += gain[a] * h[a]
    for a in range(3):
        whitener[_THETA + a] += gain[a] / spread * error
        for b in range(3):
            # gain[a] · gain[b] is the same either way round: the matrix stays symmetric to the bit.
            whitener[_P + 3 * a + b] -= gain[a] * gain[b] / spread
    whitener[_LAST + 1] = whitener[_LAST]
    whitener[_LAST] = z


@kernel
def _begin(first: F64, edges: F64, counts: F64, whitener: F64, prewhiten: bool) -> None:
    """Place the bins by the reference, and count it; fit the filter to it first where there is one."""
    n = first.size
    watched = first.copy()
    if prewhiten:
        ordered = np.sort(first)
        centre = min(max(ordered[n // 2], -_LARGEST), _LARGEST)
        spread = np.empty(n)
        mean_spread = 0.0
        for i in range(n):
            spread[i] = abs(min(max(first[i], -_LARGEST), _LARGEST) - centre)
            mean_spread += spread[i] / n
        spread.sort()
        scale = _MAD_TO_SIGMA * spread[n // 2]
        if scale == 0.0:
            scale = mean_spread
        whitener[:] = 0.0
        whitener[_CENTRE], whitener[_SCALE] = centre, max(scale, 1e-9 * abs(centre), 1e-300)
        for a in range(3):
            whitener[_P + 4 * a] = _AR_VAGUE
        for i in range(n):
            _follow(whitener, _scaled(whitener, first[i]))
        # Again with what was fitted, so that the bins are those of a filter that knows the series.
        whitener[_LAST], whitener[_LAST + 1] = 0.0, 0.0
        for i in range(n):
            z = _scaled(whitener, first[i])
            watched[i] = z - _foreseen(whitener)
            whitener[_LAST + 1] = whitener[_LAST]
            whitener[_LAST] = z
    ordered = np.sort(watched)
    for k in range(_BINS - 1):
        edges[k] = ordered[(k + 1) * n // _BINS]
    counts[:] = 0.0
    for i in range(n):
        counts[_bin_of(edges, watched[i])] += 1.0


@kernel
def _quantile(edges: F64, counts: F64, target: float) -> float:
    """Return the edge below which about `target` values were counted."""
    below, best, nearest = 0.0, 0, np.inf
    for k in range(_BINS - 1):
        below += counts[k]
        if abs(below - target) < nearest:
            nearest, best = abs(below - target), k
    return float(edges[best])


@kernel
def score_drift(
    values: F64,
    first: F64,
    edges: F64,
    counts: F64,
    bets: F64,
    whitener: F64,
    draws: U64,
    clock: I64,
    prewhiten: bool,
    log_limit: float,
    scores: F64,
    why: F64,
) -> bool:
    """Score, then learn, each value in order; False, untouched, when one is not finite.

    bets is (4, 4): kinds by stakes. why is (n, 4), filled where the score is 1.0 or more: the kind of bet that
    won most, then median and band of the past.
    """
    if not all_finite(values):
        return False
    reference = first.size
    for i in range(values.size):
        x = values[i]
        if clock[_FILLED] < reference:
            scores[i] = 0.0 if clock[_READY] == 1 else np.nan
            first[clock[_FILLED]] = x
            clock[_FILLED] += 1
            if clock[_FILLED] == reference:
                _begin(first, edges, counts, whitener, prewhiten)
                clock[_COUNTED] = reference
                clock[_READY] = 1
                bets[:] = 0.0
            continue
        watched, foreseen = x, 0.0
        if prewhiten:
            z = _scaled(whitener, x)
            foreseen = _foreseen(whitener)
            watched = z - foreseen
            _follow(whitener, z)
        own = _bin_of(edges, watched)
        counts[own] += 1.0
        clock[_COUNTED] += 1
        above = 0.0
        for k in range(own + 1, _BINS):
            above += counts[k]
        p = (above + uniform(draws) * counts[own]) / clock[_COUNTED]
        side, width = p - 0.5, 2.0 * abs(p - 0.5) - 0.5
        total = 0.0
        for k in range(len(_STAKES)):
            stake = _STAKES[k]
            bets[0, k] = (1.0 - stake * side) * (bets[0, k] + 1.0)
            bets[1, k] = (1.0 + stake * side) * (bets[1, k] + 1.0)
            bets[2, k] = (1.0 + stake * width) * (bets[2, k] + 1.0)
            bets[3, k] = (1.0 - stake * width) * (bets[3, k] + 1.0)
            total += bets[0, k] + bets[1, k] + bets[2, k] + bets[3, k]
        evidence = total / (_KINDS * len(_STAKES))
        scores[i] = max(math.log(evidence), 0.0) / log_limit
        if scores[i] >= 1.0:
            best, most = 0, 0.0
            for kind in range(_KINDS):
                won = bets[kind].sum()
                if won > most:
                    best, most = kind, won
            why[i, 0] = best
            n = float(clock[_COUNTED])
            for k, share in enumerate((0.5, _OUTSIDE, 1.0 - _OUTSIDE)):
                at = _quantile(edges, counts, share * n)
                if prewhiten:
                    at = whitener[_CENTRE] + whitener[_SCALE] * (foreseen + at)
                why[i, 1 + k] = at
        if evidence >= RESTART:
            clock[_FILLED] = 0
            clock[_COUNTED] = 0
    return True


class Drift:
    """Score a value by the evidence so far that values are no longer distributed as they were.

    64 bins are placed at the quantiles of the first `reference` values. Each later value is counted in its bin
    and gets a conformal p-value, p = (Σ counts above + U · own count) / n, U uniform: as long as values are
    exchangeable the p are independent and uniform whatever the distribution. Sixteen gamblers bet against
    that, f = 1 ± ε(p - ½) on a move and 1 ± ε(2|p - ½| - ½) on a spread, ε in {0.2, 0.5, 1, 1.6}, in Shiryaev and
    Roberts' way, M ← f · (M + 1), so that a change counts from when it happens. The evidence is the mean of M,
    the score log(evidence) / log(limit): 1.0 at the limit.

    Evidence less the count of values is a martingale: the first alarm of an unchanging series comes, on
    average, after at least `limit` values. For a fleet choose limit = (values a day over all series) / (false
    alarms a day that are allowed), whatever the dependence between series.

    The limit changes nothing that is learned. All is learned anew, bins too, when the evidence reaches 1e12,
    which no operator's limit exceeds: an alarm lasts from the limit to there, then the score is 0.0 while
    `reference` values of the new normal are gathered. A drift too weak to go so far stays over the limit
    while it lasts, and returns below it as the bins fill with the new values.

    U comes from a counter-based generator (splitmix64) whose key and count are in the snapshot.

    An autocorrelated series is not exchangeable and alarms too often: with `prewhiten` what is watched is the
    residual of an AR(2), fitted by recursive least squares that forget nothing. A shift then shows less, by
    1 - φ₁ - φ₂.

    An instance takes about 6 kB, most of it the reference; its snapshot 1 kB, and while a reference is gathered
    at most 4 kB.

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
    >>> evidence.note, round(evidence.expected), round(evidence.lower), round(evidence.upper)
    ('moved up', 100, 89, 110)

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
    )

    def __init__(
        self, params: DriftParams, *, columns: int = 1, sensitivity: Sensitivity = "medium", seed: int = 0
    ) -> None:
        del columns  # one shape for every detector
        self.params = params
        self.reconfigure(params, sensitivity=sensitivity)
        self._first: F64 = np.zeros(params.reference)
        self._edges: F64 = np.zeros(_BINS - 1)
        self._counts: F64 = np.zeros(_BINS)
        self._bets: F64 = np.zeros((_KINDS, len(_STAKES)))
        self._whitener: F64 = np.zeros(_FILTER)
        self._draws: U64 = np.array([seed % 2**64, 0], dtype=np.uint64)
        self._clock: npt.NDArray[np.int64] = np.zeros(3, dtype=np.int64)
        self._scores: F64 = np.empty(0)
        self._why: F64 = np.empty((0, 4))

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

    def score(self, values: F64, times: I64) -> F64:
        """Score each of (n,) values, then learn it; see `detectors.protocol.Detector.score`."""
        array = as_values(values, times, name="drift")
        scores = np.empty(array.size)
        why = np.empty((array.size, 4))  # filled where the score is 1.0 or more
        if not score_drift(
            array,
            self._first,
            self._edges,
            self._counts,
            self._bets,
            self._whitener,
            self._draws,
            self._clock,
            self.params.prewhiten,
            self._log_limit,
            scores,
            why,
        ):
            raise refuse_non_finite("drift")
        self._scores, self._why = scores, why
        return scores.copy()

    def explain(self, index: int = -1) -> Evidence:
        """Say what moved, and give the median and the central 95 % of the past, to a 64th of it."""
        if not self._scores[index] >= 1.0:
            return Evidence()
        kind, median, lower, upper = (float(number) for number in self._why[index])
        return Evidence(expected=median, lower=lower, upper=upper, note=_NOTES[int(kind)])

    def warming(self) -> int:
        """Return how many more values the first reference needs; a later one scores 0.0 meanwhile."""
        return 0 if self._clock[_READY] else self.params.reference - int(self._clock[_FILLED])

    def snapshot(self) -> State:
        """Return bins, bets and filter, or the part of the reference gathered."""
        filled = int(self._clock[_FILLED])
        state: State = {"clock": self._clock.copy(), "draws": self._draws.copy()}
        if filled < self.params.reference:
            return {**state, "first": self._first[:filled].copy()}
        return {
            **state,
            "edges": self._edges.copy(),
            "counts": self._counts.copy(),
            "bets": self._bets.copy(),
            "whitener": self._whitener.copy(),
        }

    def restore(self, state: State) -> None:
        """Take up a state; raise `StateError` when it is not one of this detector."""
        try:
            clock, draws = state["clock"], state["draws"]
            filled = int(clock[_FILLED])
            if clock.shape != self._clock.shape or draws.shape != self._draws.shape:
                raise StateError("drift: the state is of another shape")
            if filled < self.params.reference:
                parts = [(self._first[:filled], state["first"])]
            else:
                names = ("edges", "counts", "bets", "whitener")
                parts = [(getattr(self, f"_{name}"), state[name]) for name in names]
            if filled > self.params.reference or any(mine.shape != theirs.shape for mine, theirs in parts):
                raise StateError("drift: the state is of another shape")
        except (KeyError, AttributeError, TypeError, IndexError) as error:
            raise StateError(f"drift: not a state of this detector: {error!r}") from error
        for mine, theirs in parts:
            mine[:] = theirs
        self._clock[:], self._draws[:] = clock, draws
