"""Hard bounds on a value."""

from __future__ import annotations

import math
from typing import ClassVar, Final

import msgspec
import numpy as np

from detectors.kernels import MAX_SCORE, all_finite, as_values, kernel, refuse_non_finite
from detectors.params import DetectorSpec, Sensitivity
from detectors.protocol import F64, I64, Evidence, State

__all__ = ["Limits", "LimitsParams"]

# The largest score that is not an alarm: a value on its limit is still inside.
_JUST_INSIDE: Final = float(np.nextafter(1.0, 0.0))


class LimitsParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of `Limits`, in the value's own unit; at least one is needed."""

    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        if self.lower is None and self.upper is None:
            raise ValueError("lower and upper are both missing; expected at least one")
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            raise ValueError(f"lower = {self.lower!r} must be below upper = {self.upper!r}")


@kernel
def score_limits(values: F64, lower: float, upper: float, scale: float, out: F64) -> bool:
    """Score values against bounds (an infinity is no bound); False, untouched, when one is not finite."""
    if not all_finite(values):
        return False
    for i in range(values.size):
        x = values[i]
        if x > upper:
            out[i] = min(1.0 + (x - upper) / scale, MAX_SCORE)
        elif x < lower:
            out[i] = min(1.0 + (lower - x) / scale, MAX_SCORE)
        elif math.isinf(lower):
            out[i] = min(1.0 / (1.0 + (upper - x) / scale), _JUST_INSIDE)
        elif math.isinf(upper):
            out[i] = min(1.0 / (1.0 + (x - lower) / scale), _JUST_INSIDE)
        else:
            # Halves first: upper + lower, and upper - lower, may be beyond the largest float.
            half = 0.5 * upper - 0.5 * lower
            out[i] = min(abs(x - (0.5 * upper + 0.5 * lower)) / half, _JUST_INSIDE)
    return True


class Limits:
    """Score a value by where it is between hard bounds.

    Outside, the score is 1 + excess / scale, the scale being the width between two bounds, or the
    size of a single one (1 when that is 0). Inside it is below 1 and grows towards the bound: with two
    bounds the distance from their middle in half-widths, with one 1 / (1 + distance / scale). A value
    on a bound is inside. It keeps no state, needs no warm-up, and has no use for a sensitivity.

    Parameters
    ----------
    params
        The bounds.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors.limits import Limits, LimitsParams
    >>> limits = Limits(LimitsParams(lower=0.0, upper=100.0))
    >>> limits.score(np.array([50.0, 90.0, 100.0, 125.0]), np.arange(4)).round(2)
    array([0.  , 0.8 , 1.  , 1.25])
    >>> limits.explain(-1).note
    'above the upper limit'
    """

    spec: ClassVar[DetectorSpec] = DetectorSpec(
        name="limits", kind="value", summary="hard lower and upper bounds", params=LimitsParams
    )

    def __init__(
        self, params: LimitsParams, *, columns: int = 1, sensitivity: Sensitivity = "medium", seed: int = 0
    ) -> None:
        del columns, sensitivity, seed  # one shape for every detector; rules have no use for them
        self._values: F64 = np.empty(0)
        self.reconfigure(params)

    def reconfigure(self, params: LimitsParams, *, sensitivity: Sensitivity | None = None) -> None:
        """Take other bounds from the next value on."""
        del sensitivity
        self.params = params
        self._lower = -math.inf if params.lower is None else params.lower
        self._upper = math.inf if params.upper is None else params.upper
        if math.isinf(self._lower):
            self._scale = abs(self._upper) if self._upper != 0.0 else 1.0
        elif math.isinf(self._upper):
            self._scale = abs(self._lower) if self._lower != 0.0 else 1.0
        else:
            self._scale = min(self._upper - self._lower, 1e308)

    def score(self, values: F64, times: I64) -> F64:
        """Score each of (n,) values against the bounds; see `detectors.protocol.Detector.score`."""
        array = as_values(values, times, name="limits")
        scores = np.empty(array.size)
        if not score_limits(array, self._lower, self._upper, self._scale, scores):
            raise refuse_non_finite("limits")
        self._values = array.copy()
        return scores

    def explain(self, index: int = -1) -> Evidence:
        """Give the bounds, and say which one was passed."""
        value = float(self._values[index])
        note = ""
        if value > self._upper:
            note = "above the upper limit"
        elif value < self._lower:
            note = "below the lower limit"
        return Evidence(lower=self.params.lower, upper=self.params.upper, note=note)

    def warming(self) -> int:
        """Return 0: bounds need no warm-up."""
        return 0

    def snapshot(self) -> State:
        """Return an empty state."""
        return {}

    def restore(self, state: State) -> None:
        """Take up an empty state."""
        del state
