"""What a series' own past and its daily rhythm do not foresee: recursive residuals of a regression.

A value x becomes y = T(x), centred and scaled; T is chosen once, from the first reference: √(x + 3/8) where all
values are counts (Anscombe 1948), else the one of x, √x and log x whose residuals are least skewed, x itself
unless they are clearly skewed. Then

    y_t = θᵀh_t + s_t ε_t,   h_t = (1, y_{t-1}, y_{t-2}, days, cos kω_t, sin kω_t for k = 1..4)

with ω_t the time of day as an angle (UTC): two lags, a trend, a daily rhythm. θ is fitted by recursive least
squares that forget nothing: a filter that forgets would take the very shift that is looked for into its constant.
s_t is E|ε_t| as a regression on the same h_t, which costs next to nothing, as the gain is the same; it follows a
spread that goes with the level or the hour.

y is clipped to ten scales, and √(1 + hᵀPh) of them, about what was foreseen and not about the centre: a trough of the
day may lie far below all that a reference of eight hours has seen.

What comes out is w_t = (y_t - θᵀh_t) / √(1 + hᵀPh) / s_t. Divided so, residuals of the first hours, when θ is hardly
known, are spread as those of the first month (Brown, Durbin and Evans 1975: recursive residuals of a regression
with normal errors are independent and alike). So the first morning of a daily rhythm is no news.

References
----------
[^1]: Brown, R., Durbin, J. and Evans, J., 1975. Techniques for testing the constancy of regression relationships
over time. Journal of the Royal Statistical Society B 37.
[^2]: Harvey, A., 1976. Estimating regression models with multiplicative heteroscedasticity. Econometrica 44 (a
second regression for the spread).
[^3]: Anscombe, F., 1948. The transformation of Poisson, binomial and negative-binomial data. Biometrika 35.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from detectors.kernels import kernel
from detectors.protocol import F64, I64, State
from detectors.state import StateError

__all__ = ["SKIPPED", "Whitener", "begin_whitening", "unwhiten", "whiten_one"]

#: Residuals of the very first values, when there are hardly more values than coefficients, are left out.
SKIPPED: Final = 60

_DAY_US: Final = 86_400_000_000
_HARMONICS: Final = 4
_D: Final = 4 + 2 * _HARMONICS

_VAGUE: Final = 100.0  # variance, in squared scales, of a lag's or the constant's coefficient before any value
_VAGUE_TREND: Final = 0.25  # of the slope, scales a day: a trend is slow
_VAGUE_RHYTHM: Final = 25.0  # of the first wave of the day; the k-th is a k-th of it in size: rhythms are smooth
# After a change the level is unknown again, and all else a little.
_NEW_LEVEL: Final = 1.0
_NEW_REST: Final = 0.05

_CLIP: Final = 10.0  # scales from what was foreseen: the filter neither sees nor learns anything further out
# And from the centre: a rhythm goes far beyond the scale of the few hours that a reference is.
_FURTHEST: Final = 200.0
_SPREAD_CLIP: Final = 6.0  # a residual counts for no more than so many mean ones in the spread
_LEAST_SPREAD: Final = 0.25  # the spread is at least this share of the mean |residual|
_SPREAD_MEMORY: Final = 2_000.0
_LARGEST: Final = 1e150
_MAD_TO_SIGMA: Final = 1.4826  # 1 / Φ⁻¹(3/4)
_SKEWED: Final = 0.15  # (q95 + q5 - 2 q50) / (q95 - q5) from which another T is tried; it errs by .05

_IDENTITY: Final = 0.0
_COUNTS: Final = 1.0
_ROOT: Final = 2.0
_LOG: Final = 3.0

# Layout of the head.
_TRANSFORM: Final = 0
_FLOOR: Final = 1  # least x that √ and log take
_CENTRE: Final = 2
_SCALE: Final = 3
_START: Final = 4  # time of the first value, microseconds
_LAST: Final = 5  # the two last y, scaled
_SEEN: Final = 7
_MEAN: Final = 8  # mean |residual|
_HEAD: Final = 9


class Whitener:
    """The arrays of one filter: head (9,), theta (2, 12) of level and spread, cov (12, 12), and two to work in."""

    __slots__ = ("cov", "gain", "head", "row", "theta")

    def __init__(self) -> None:
        self.head: F64 = np.zeros(_HEAD)
        self.theta: F64 = np.zeros((2, _D))
        self.cov: F64 = np.zeros((_D, _D))
        self.row: F64 = np.zeros(_D)
        self.gain: F64 = np.zeros(_D)

    def snapshot(self) -> State:
        """Return what was learned; of the symmetric covariance, half."""
        return {"head": self.head.copy(), "theta": self.theta.copy(), "cov": self.cov[np.tril_indices(_D)]}

    def restore(self, state: State) -> None:
        """Take up what `snapshot` gave; raise `StateError` on any other state."""
        lower = np.tril_indices(_D)
        try:
            head, theta, cov = state["head"], state["theta"], state["cov"]
            if head.shape != (_HEAD,) or theta.shape != (2, _D) or cov.shape != lower[0].shape:
                raise StateError("the filter is of another shape")
        except (KeyError, TypeError, AttributeError) as error:
            raise StateError(f"not the state of a filter: {error!r}") from error
        self.head[:], self.theta[:] = head, theta
        self.cov[lower] = cov
        self.cov.T[lower] = cov


@kernel
def _transformed(transform: float, floor: float, x: float) -> float:
    """Return T(x)."""
    x = min(max(x, -_LARGEST), _LARGEST)
    if transform == _COUNTS:
        return math.sqrt(max(x, 0.0) + 0.375)
    if transform == _ROOT:
        return math.sqrt(max(x, floor))
    if transform == _LOG:
        return math.log(max(x, floor))
    return x


@kernel
def _untransformed(transform: float, y: float) -> float:
    """Return the x whose T(x) is y."""
    if transform == _COUNTS:
        return max(y * abs(y) - 0.375, 0.0)
    if transform == _ROOT:
        return max(y, 0.0) ** 2
    if transform == _LOG:
        return math.exp(min(y, 345.0))
    return y


@kernel
def whiten_one(
    head: F64, theta: F64, cov: F64, row: F64, gain: F64, x: float, time: int
) -> tuple[float, float, float]:
    """Return the residual of x, and what was foreseen of its scaled y and how widely; then learn x."""
    y = (_transformed(head[_TRANSFORM], head[_FLOOR], x) - head[_CENTRE]) / head[_SCALE]
    row[0] = 1.0
    row[1] = head[_LAST]
    row[2] = head[_LAST + 1]
    row[3] = (time - head[_START]) / _DAY_US
    angle = 2.0 * math.pi * ((time % _DAY_US) / _DAY_US)
    c, s = math.cos(angle), math.sin(angle)
    ck, sk = 1.0, 0.0
    for k in range(_HARMONICS):
        ck, sk = ck * c - sk * s, sk * c + ck * s
        row[4 + 2 * k] = ck
        row[5 + 2 * k] = sk
    foreseen, spread = 0.0, 0.0
    for a in range(_D):
        foreseen += theta[0, a] * row[a]
        spread += theta[1, a] * row[a]
    # Row by row, which the compiler does four at a time; the matrix is its own transpose.
    gain[:] = 0.0
    for a in range(_D):
        weight = row[a]
        for b in range(_D):
            gain[b] += cov[a, b] * weight
    vague = 1.0
    for a in range(_D):
        vague += gain[a] * row[a]
    width = math.sqrt(vague)
    y = min(max(y, foreseen - _CLIP * width), foreseen + _CLIP * width)
    y = min(max(y, -_FURTHEST), _FURTHEST)
    error = y - foreseen
    w = error / width
    head[_SEEN] += 1.0
    head[_MEAN] += (abs(w) - head[_MEAN]) / min(head[_SEEN], _SPREAD_MEMORY)
    sigma = max(spread, _LEAST_SPREAD * head[_MEAN], 1e-12)
    lack = min(abs(w), _SPREAD_CLIP * head[_MEAN]) - spread
    for a in range(_D):
        gain[a] /= width
    for a in range(_D):
        theta[0, a] += gain[a] / width * error
        theta[1, a] += gain[a] / width * lack
        # gain[a] · gain[b] is the same either way round: the matrix stays symmetric to the bit.
        half = gain[a]
        for b in range(_D):
            cov[a, b] -= half * gain[b]
    head[_LAST + 1] = head[_LAST]
    head[_LAST] = y
    return w / sigma, foreseen, width * sigma


@kernel
def unwhiten(head: F64, w: float, foreseen: float, width: float) -> float:
    """Return the x that would have had the residual w."""
    return float(_untransformed(head[_TRANSFORM], head[_CENTRE] + head[_SCALE] * (foreseen + w * width)))


@kernel
def _start(
    head: F64, theta: F64, cov: F64, values: F64, times: I64, transform: float, floor: float
) -> None:
    """Make the filter new, with T, centre and scale for these values."""
    n = values.size
    ordered = np.empty(n)
    for i in range(n):
        ordered[i] = _transformed(transform, floor, values[i])
    ordered.sort()
    centre = ordered[n // 2]
    spread = np.abs(ordered - centre)
    mean_spread = 0.0
    for i in range(n):
        mean_spread += spread[i] / n
    spread.sort()
    scale = _MAD_TO_SIGMA * spread[n // 2]
    if scale == 0.0:
        scale = mean_spread
    head[:] = 0.0
    head[_TRANSFORM], head[_FLOOR], head[_CENTRE] = transform, floor, centre
    head[_SCALE] = max(scale, 1e-9 * abs(centre), 1e-300)
    head[_START] = times[0]
    theta[:] = 0.0
    cov[:] = 0.0
    for a in range(_D):
        cov[a, a] = _VAGUE if a < 3 else _VAGUE_TREND if a == 3 else _VAGUE_RHYTHM / float(1 + (a - 4) // 2) ** 2


@kernel
def _run(
    head: F64, theta: F64, cov: F64, row: F64, gain: F64, values: F64, times: I64, out: F64
) -> float:
    """Whiten values in order into `out`; return how skewed the residuals but the first are."""
    for i in range(values.size):
        out[i] = whiten_one(head, theta, cov, row, gain, values[i], times[i])[0]
    ordered = np.sort(out[SKIPPED:])
    n = ordered.size
    low, middle, high = ordered[n // 20], ordered[n // 2], ordered[n - 1 - n // 20]
    return (high + low - 2.0 * middle) / (high - low) if high > low else 0.0


@kernel
def begin_whitening(
    head: F64, theta: F64, cov: F64, row: F64, gain: F64, values: F64, times: I64, out: F64
) -> int:
    """Fit the filter to a reference (n,), its residuals going to `out`; return how many of those to leave out.

    A filter that knows the series keeps its rhythm, and learns the new level. A constant has no filter, and -1 is
    returned: any other value would be beyond all measure, and the filter would take it up at once.
    """
    if head[_SEEN] > 0.0:
        for a in range(_D):
            cov[a, a] += _NEW_LEVEL if a == 0 else _NEW_REST
        _run(head, theta, cov, row, gain, values, times, out)
        return 0
    least, most, whole = values[0], values[0], True
    for i in range(values.size):
        least, most = min(least, values[i]), max(most, values[i])
        whole = whole and values[i] == math.floor(values[i])
    if least == most:
        return -1
    if whole and least >= 0.0:
        _start(head, theta, cov, values, times, _COUNTS, 0.0)
        _run(head, theta, cov, row, gain, values, times, out)
        return SKIPPED
    _start(head, theta, cov, values, times, _IDENTITY, 0.0)
    best = abs(_run(head, theta, cov, row, gain, values, times, out))
    if best > _SKEWED and least > 0.0:
        # What is smaller than a tenth of the least seen says no more than that.
        floor, chosen = 0.1 * least, _IDENTITY
        for transform in (_ROOT, _LOG):
            _start(head, theta, cov, values, times, transform, floor)
            skew = abs(_run(head, theta, cov, row, gain, values, times, out))
            if skew < best:
                best, chosen = skew, transform
        _start(head, theta, cov, values, times, chosen, floor)
        _run(head, theta, cov, row, gain, values, times, out)
    return SKIPPED
