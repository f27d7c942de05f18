"""A change of the rate of ones among zeros and ones, event by event: a betting e-detector."""

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

__all__ = ["RESTART", "Rate", "RateParams"]

#: Evidence at which all is learned anew, whatever the limit.
RESTART: Final = 1e15
# What one bet is worth at most.
_MOST: Final = 1e18

_LIMIT: Final[dict[Sensitivity, float]] = {"low": 1e5, "medium": 1e4, "high": 1e3}

# Errors of their difference by which the rates after a zero and after a one must differ to be two.
_APART: Final = 2.0

_STAKES: Final = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)

_N: Final = 0  # values counted
_READY: Final = 1  # 1 once a reference was complete
_NEXT: Final = 2  # count at which the reference is taken anew; 0 while the first is gathered
_LAST: Final = 3  # the last value: ones may come in runs, so each value has the rate after such a one

_PARTS: Final = ("clock", "counts", "level", "bets")

# The rate of late is a mean with the memory of so many values.
_LATE: Final = 1.0 / 50.0

_RATE: Final = 0  # of the reference
_ERROR: Final = 1  # its standard error


class RateParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of `Rate`."""

    reference: Annotated[
        int, msgspec.Meta(ge=50, le=1_000_000, description="values the first rate is from; no score before")
    ] = 1_000
    effect: Annotated[
        float, msgspec.Meta(ge=0, lt=1, description="change of the rate up to which there is none")
    ] = 0.0
    limit: Annotated[
        Annotated[float, msgspec.Meta(ge=10, le=1e13)] | None,
        msgspec.Meta(
            description="evidence that scores 1.0, about the values between false alarms; "
            "null: by sensitivity, 1e5, 1e4 or 1e3"
        ),
    ] = None


@kernel
def score_rate(
    values: F64,
    reference: int,
    clock: I64,
    counts: I64,
    level: F64,
    bets: F64,
    late: F64,
    effect: float,
    log_limit: float,
    scores: F64,
    why: F64,
) -> bool:
    """Score, then learn, each value in order; False, untouched, when one is not finite.

    counts is (2, 2): values after a zero and after a one, and ones among them; level (3, 2): the reference's rate and
    standard error after a zero, after a one, and in all. bets is (2, 6): up and down, by stakes. late is (2,):
    values, and their rate of late. why is (n, 4): +1 for up or -1 for down, rate and standard error, the rate of late,
    filled where the score is 1.0 or more.
    """
    if not all_finite(values):
        return False
    for i in range(values.size):
        one = values[i] >= 0.5
        after = clock[_LAST]
        clock[_LAST] = 1 if one else 0
        late[0] += 1.0
        late[1] += max(_LATE, 1.0 / late[0]) * ((1.0 if one else 0.0) - late[1])
        scores[i] = 0.0 if clock[_READY] == 1 else np.nan
        if clock[_NEXT] > 0:
            rate, error = level[after, _RATE], level[after, _ERROR]
            high, low = rate + error + effect, rate - error - effect
            # What a stake of 1 wins or loses; no bet on a rate above 1 or below 0.
            up = (1.0 / high - 1.0 if one else -1.0) if high < 1.0 else -1.0
            down = (-1.0 if one else low / (1.0 - low)) if low > 0.0 else -1.0
            risen, fallen = 0.0, 0.0
            for k in range(len(_STAKES)):
                bets[0, k] = min((1.0 + _STAKES[k] * up) * (bets[0, k] + 1.0), _MOST)
                bets[1, k] = min((1.0 + _STAKES[k] * down) * (bets[1, k] + 1.0), _MOST)
                risen += bets[0, k]
                fallen += bets[1, k]
            evidence = (risen + fallen) / (2.0 * len(_STAKES))
            scores[i] = max(math.log(evidence), 0.0) / log_limit
            if scores[i] >= 1.0:
                why[i, 0] = 1.0 if risen >= fallen else -1.0
                why[i, 1], why[i, 2], why[i, 3] = level[2, _RATE], level[2, _ERROR], late[1]
            if evidence >= RESTART:
                clock[_N], clock[_NEXT] = 0, 0
                counts[:] = 0
                continue
        clock[_N] += 1
        counts[after, 0] += 1
        counts[after, 1] += one
        if clock[_N] == (clock[_NEXT] if clock[_NEXT] > 0 else reference):
            if clock[_NEXT] == 0:
                bets[:] = 0.0
            for k in range(3):
                n = counts[k, 0] if k < 2 else counts[0, 0] + counts[1, 0]
                ones = counts[k, 1] if k < 2 else counts[0, 1] + counts[1, 1]
                # Half a one and half a zero more (Jeffreys): a rate is never quite 0 or 1.
                rate = (ones + 0.5) / (n + 1.0)
                level[k, _RATE], level[k, _ERROR] = rate, math.sqrt(rate * (1.0 - rate) / max(n, 1))
            apart = abs(level[0, _RATE] - level[1, _RATE])
            if apart * apart < _APART * _APART * (level[0, _ERROR] ** 2 + level[1, _ERROR] ** 2):
                level[0], level[1] = level[2], level[2]
            clock[_NEXT] = 2 * clock[_N]
            clock[_READY] = 1
    return True


class Rate:
    """Score a zero or one by the evidence so far that the rate of ones is no longer what it was.

    From the first `reference` values come a rate m and its standard error s, one pair for values that follow a
    zero and one for those that follow a one where these differ by two errors or more: failures come in runs, and a
    run is no change. Then twelve gamblers bet, six that the rate is above m + s + e and six that it is below
    m - s - e, where `effect` e is 0 unless given, in Shiryaev and Roberts' way, so that a change counts from when it
    happens, at stakes r in {.02, .05, .1, .2, .4, .8}:

    - up: M ← (1 + r (x - m₊) / m₊) · (M + 1), m₊ = m + s + e;
    - down: M ← (1 - r (x - m₋) / (1 - m₋)) · (M + 1), m₋ = m - s - e.

    The evidence is the mean of M, the score log(evidence) / log(limit): 1.0 at the limit. While the rate stays
    within m ± (s + e), the first alarm comes, on average, after at least `limit` values. Whenever twice as many values
    have been seen, m and s are taken anew from all of them: a chance error of the first reference would else be
    told from the truth in the long run, and be taken for a change. A rate that wanders, as that of a model's errors
    does with what comes in, is a change too, though none that matters: for such is `effect`.

    While nothing changes evidence does not rest at 1: a gambler at stake r, when m₊ is d above the rate, comes to
    m₊ / (r d) on average, all of them to hundreds or, once m is known well, thousands.

    The limit changes nothing that is learned. All is learned anew when the evidence reaches 1e15, which no
    operator's limit exceeds: an alarm lasts from the limit to there, then the score is 0.0 while `reference`
    values of the new normal are gathered. A value of 0.5 or more is a one.

    An instance takes under 1 kB, its snapshot about 300 bytes.

    Parameters
    ----------
    params
        Reference and limit.
    sensitivity
        The limit where params has none: low 1e5, medium 1e4, high 1e3.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors.rate import Rate, RateParams
    >>> chances = np.repeat([0.10, 0.25], [3000, 1000])
    >>> values = (np.random.default_rng(1).random(4000) < chances).astype(float)
    >>> detector = Rate(RateParams())
    >>> scores = detector.score(values, np.arange(4000))
    >>> first = int(np.flatnonzero(scores >= 1)[0])
    >>> 3000 < first < 3120
    True
    >>> evidence = detector.explain(first)
    >>> evidence.note, round(evidence.expected, 2)
    ('rate went up', 0.09)

    References
    ----------
    [^1]: Shin, J., Ramdas, A. and Rinaldo, A., 2022. E-detectors: a nonparametric framework for sequential change
    detection. arXiv:2203.03532.
    """

    spec: ClassVar[DetectorSpec] = DetectorSpec(
        name="rate",
        kind="boolean",
        summary="a change of the rate of ones, by betting on it",
        params=RateParams,
        structural=frozenset({"reference"}),
        budget="limit",
    )

    def __init__(
        self, params: RateParams, *, columns: int = 1, sensitivity: Sensitivity = "medium", seed: int = 0
    ) -> None:
        del columns, seed  # one shape for every detector; this one draws nothing
        self.params = params
        self.reconfigure(params, sensitivity=sensitivity)
        self._clock: npt.NDArray[np.int64] = np.zeros(4, dtype=np.int64)
        self._counts: I64 = np.zeros((2, 2), dtype=np.int64)
        self._level: F64 = np.zeros((3, 2))
        self._bets: F64 = np.zeros((2, len(_STAKES)))
        self._scores: F64 = np.empty(0)
        self._late: F64 = np.zeros(2)
        self._why: F64 = np.empty((0, 4))

    def reconfigure(self, params: RateParams, *, sensitivity: Sensitivity | None = None) -> None:
        """Take another limit or effect from the next value on, keeping what was learned.

        Raises
        ------
        ParameterError
            The reference differs.
        """
        require_kept(self.spec, self.params, params)
        if sensitivity is not None:
            self._sensitivity = sensitivity
        self.params = params
        self._log_limit = math.log(params.limit if params.limit is not None else _LIMIT[self._sensitivity])

    def score(self, values: F64, times: I64) -> F64:
        """Score each of (n,) zeros and ones, then learn it; see `detectors.protocol.Detector.score`."""
        array = as_values(values, times, name="rate")
        scores = np.empty(array.size)
        why = np.empty((array.size, 4))  # filled where the score is 1.0 or more
        if not score_rate(
            array,
            self.params.reference,
            self._clock,
            self._counts,
            self._level,
            self._bets,
            self._late,
            self.params.effect,
            self._log_limit,
            scores,
            why,
        ):
            raise refuse_non_finite("rate")
        self._scores, self._why = scores, why
        return scores.copy()

    def explain(self, index: int = -1) -> Evidence:
        """Say which way the rate went, what it is of late, and what it was, give or take two standard errors."""
        if not self._scores[index] >= 1.0:
            return Evidence()
        side, rate, error, late = (float(number) for number in self._why[index])
        return Evidence(
            expected=rate,
            usual=(max(rate - 2.0 * error, 0.0), min(rate + 2.0 * error, 1.0)),
            now=late if side * (late - rate) > 0.0 else None,
            note="rate went up" if side > 0 else "rate went down",
            side=1 if side > 0 else -1,
        )

    def warming(self) -> int:
        """Return how many more values the first reference needs; a later one scores 0.0 meanwhile."""
        return 0 if self._clock[_READY] else self.params.reference - int(self._clock[_N])

    def snapshot(self) -> State:
        """Return counts, reference and bets."""
        return {name: getattr(self, f"_{name}").copy() for name in (*_PARTS, "late")}

    def restore(self, state: State) -> None:
        """Take up a state; raise `StateError` when it is not one of this detector."""
        try:
            parts = [(getattr(self, f"_{name}"), state[name]) for name in _PARTS]
            parts.append((self._late, state.get("late", np.zeros(2))))  # states of before have none
            if any(mine.shape != theirs.shape for mine, theirs in parts):
                raise StateError("rate: the state is of another shape")
        except (KeyError, AttributeError, TypeError) as error:
            raise StateError(f"rate: not a state of this detector: {error!r}") from error
        for mine, theirs in parts:
            mine[:] = theirs
