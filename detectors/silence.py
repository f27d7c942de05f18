"""Silence: nothing arrives for too long, in event time."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.calibrate import learn_one, new_sketch, pack_sketch, unpack_sketch, value_with_tail
from detectors.kernels import MAX_SCORE, all_finite, as_times, as_values, kernel, refuse_non_finite
from detectors.params import DetectorSpec, Sensitivity, require_kept
from detectors.protocol import F64, I64, Evidence, State
from detectors.state import StateError

__all__ = ["Silence", "SilenceParams"]

_SECOND_US: Final = 1_000_000
# With the default warm-up of 200 gaps this is their largest; later it leaves one gap in a thousand out.
_TAIL: Final = 1e-3

_ARRIVALS: Final = 0
_LAST_US: Final = 1


class SilenceParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of `Silence`."""

    timeout_s: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=1e9)] | None,
        msgspec.Meta(description="gap in seconds that scores 1.0; null: learned from the gaps"),
    ] = None
    min_timeout_s: Annotated[
        float, msgspec.Meta(gt=0, le=1e9, description="least timeout in seconds that may be learned")
    ] = 5.0
    factor: Annotated[
        float, msgspec.Meta(ge=1, le=1000, description="learned timeout as a multiple of the 99.9 % gap")
    ] = 3.0
    warm_up: Annotated[
        int, msgspec.Meta(ge=10, le=100_000, description="gaps before the first score, when learning")
    ] = 200


@kernel
def score_silence(
    values: F64,
    times: I64,
    clock: I64,
    sketch: F64,
    fixed_s: float,
    min_timeout_s: float,
    factor: float,
    warm_up: int,
    scores: F64,
    gaps: F64,
    timeouts: F64,
) -> bool:
    """Score each arrival by the gap before it, then learn the gap; fixed_s of 0 means learned."""
    if not all_finite(values):
        return False
    for i in range(times.size):
        scores[i], gaps[i], timeouts[i] = np.nan, 0.0, np.nan
        if clock[_ARRIVALS] > 0:
            gaps[i] = max(times[i] - clock[_LAST_US], 0) / _SECOND_US
        timeout = fixed_s
        if fixed_s == 0.0 and clock[_ARRIVALS] > 0:
            timeout = max(min_timeout_s, factor * value_with_tail(sketch, _TAIL))
            # An outage is learned as a gap at the timeout: it must not teach the next one to be normal.
            if clock[_ARRIVALS] > warm_up:
                learn_one(sketch, min(gaps[i], timeout), 1.0)
            else:
                learn_one(sketch, gaps[i], 1.0)
        if fixed_s > 0.0 or clock[_ARRIVALS] > warm_up:
            scores[i] = min(gaps[i] / timeout, MAX_SCORE)
            timeouts[i] = timeout
        clock[_ARRIVALS] += 1
        clock[_LAST_US] = max(times[i], clock[_LAST_US]) if clock[_ARRIVALS] > 1 else times[i]
    return True


class Silence:
    """Score each arrival by how long nothing came before it, as a share of a timeout.

    The values themselves are not looked at, beyond refusing those that are not finite. That a stream is
    silent *now* no arrival can say: `overdue` and `deadline_us` answer that for a given event time, such
    as the watermark.

    Without `timeout_s` the timeout is factor · the gap that one in a thousand exceeds, at least
    `min_timeout_s`. Gaps fade with a half-life of 8,000, and one beyond the timeout is learned as the
    timeout: should the pace fall for good, the timeout grows by `factor` for every thousandth part of the
    past that is slow. Warm-up is then `warm_up` gaps; with a timeout given there is none, and the first
    arrival scores 0.

    Parameters
    ----------
    params
        Timeout, or how to learn it.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors.silence import Silence, SilenceParams
    >>> silence = Silence(SilenceParams(timeout_s=60.0))
    >>> silence.score(np.zeros(3), np.array([0, 30_000_000, 150_000_000]))
    array([0. , 0.5, 2. ])
    >>> silence.explain().note
    'nothing for 120 s, timeout 60 s'
    >>> silence.deadline_us(), silence.overdue(180_000_000)
    (210000000, 0.5)
    """

    spec: ClassVar[DetectorSpec] = DetectorSpec(
        name="silence",
        kind="value",
        summary="nothing arrived for too long",
        params=SilenceParams,
    )

    def __init__(
        self, params: SilenceParams, *, columns: int = 1, sensitivity: Sensitivity = "medium", seed: int = 0
    ) -> None:
        del columns, sensitivity, seed  # one shape for every detector; a timeout has no use for them
        self.params = params
        self._clock: npt.NDArray[np.int64] = np.zeros(2, dtype=np.int64)
        self._sketch: F64 = new_sketch()
        self._scores: F64 = np.empty(0)
        self._gaps: F64 = np.empty(0)
        self._timeouts: F64 = np.empty(0)

    def reconfigure(self, params: SilenceParams, *, sensitivity: Sensitivity | None = None) -> None:
        """Take another timeout, or another way to learn it, from now on."""
        del sensitivity
        require_kept(self.spec, self.params, params)
        self.params = params

    def timeout_s(self) -> float | None:
        """Return the timeout in force in seconds; None while it is being learned."""
        if self.params.timeout_s is not None:
            return self.params.timeout_s
        if self.warming() > 0:
            return None
        gap_s = float(value_with_tail(self._sketch, _TAIL))
        return max(self.params.min_timeout_s, self.params.factor * gap_s)

    def deadline_us(self) -> int | None:
        """Return the event time from which the silence scores 1.0; None before that can be known."""
        timeout_s = self.timeout_s()
        if timeout_s is None or self._clock[_ARRIVALS] == 0:
            return None
        return int(self._clock[_LAST_US]) + round(timeout_s * _SECOND_US)

    def overdue(self, now_us: int) -> float:
        """Score the silence up to `now_us`, microseconds of event time; 0.0 before that can be known.

        It learns nothing: the gap is learned when the next arrival ends it.
        """
        timeout_s = self.timeout_s()
        if timeout_s is None or self._clock[_ARRIVALS] == 0:
            return 0.0
        return min(max(now_us - int(self._clock[_LAST_US]), 0) / _SECOND_US / timeout_s, MAX_SCORE)

    def score(self, values: F64, times: I64) -> F64:
        """Score each of (n,) arrivals by the gap before it; see `detectors.protocol.Detector.score`."""
        array = as_values(values, times, name="silence")
        scores, gaps, timeouts = np.empty((3, array.size))
        params = self.params
        if not score_silence(
            array,
            as_times(times),
            self._clock,
            self._sketch,
            params.timeout_s if params.timeout_s is not None else 0.0,
            params.min_timeout_s,
            params.factor,
            params.warm_up,
            scores,
            gaps,
            timeouts,
        ):
            raise refuse_non_finite("silence")
        self._scores, self._gaps, self._timeouts = scores, gaps, timeouts
        return scores.copy()

    def explain(self, index: int = -1) -> Evidence:
        """Say how long nothing came before an arrival that came too late; upper is the timeout, in seconds."""
        if not self._scores[index] >= 1.0:
            return Evidence()
        gap_s, timeout_s = float(self._gaps[index]), float(self._timeouts[index])
        return Evidence(upper=timeout_s, note=f"nothing for {gap_s:.4g} s, timeout {timeout_s:.4g} s")

    def warming(self) -> int:
        """Return how many more arrivals are needed to learn a timeout; 0 when one is given."""
        if self.params.timeout_s is not None:
            return 0
        return max(0, self.params.warm_up + 1 - int(self._clock[_ARRIVALS]))

    def snapshot(self) -> State:
        """Return the last arrival and the gaps learned."""
        return {
            "arrivals": int(self._clock[_ARRIVALS]),
            "last_us": int(self._clock[_LAST_US]),
            "gaps": pack_sketch(self._sketch),
        }

    def restore(self, state: State) -> None:
        """Take up a state; raise `StateError` when it is not one of this detector."""
        try:
            arrivals, last_us, sketch = state["arrivals"], state["last_us"], unpack_sketch(state["gaps"])
            self._clock[_ARRIVALS], self._clock[_LAST_US] = arrivals, last_us
        except (KeyError, TypeError, ValueError) as error:
            raise StateError(f"silence: not a state of this detector: {error!r}") from error
        self._sketch = sketch
