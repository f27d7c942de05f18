"""The shape of a detector: what it takes, what it gives, what it may keep.

A detector watches one series. It is fed values in the order of the log and answers with scores; it
knows nothing of Kafka, configuration or models, reads no clock and draws no unseeded random number.
`detectors.checks` holds every detector to the contract written here.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

F64: TypeAlias = npt.NDArray[np.float64]
I64: TypeAlias = npt.NDArray[np.int64]

#: A tree of dict (str keys), list, int, float, str, bytes, bool, None and numpy arrays: all that
#: `detectors.state` can turn into bytes and back without pickle.
State: TypeAlias = dict[str, Any]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """Why a value scored as it did.

    expected, lower, upper are in the value's own unit; None where a detector has no such notion.
    shares holds (column index, share of the score), largest first, summing to at most 1.
    lower and upper are the line that alarms: where the score is 1.0. usual is the range that values were in, which
    alarms nobody.
    now is what the series is of late, on average, in its unit, where it is that which scored rather than the value
    itself; a band is then of that. late is the range that values are in of late.
    level is by what the usual rhythm is multiplied, where what is expected has one.
    note is one short phrase for a person, such as "nothing for 90 s".
    side is 1 for up and -1 for down where a single value does not tell, as of a rate; else 0.
    """

    expected: float | None = None
    lower: float | None = None
    upper: float | None = None
    usual: tuple[float, float] | None = None
    now: float | None = None
    late: tuple[float, float] | None = None
    level: float | None = None
    shares: tuple[tuple[int, float], ...] = ()
    note: str = ""
    side: int = 0


@runtime_checkable
class Detector(Protocol):
    """One online detector over one series."""

    def score(self, values: F64, times: I64) -> F64:
        """Score each value against the past, then learn it, in order.

        Parameters
        ----------
        values
            (n,), or (n, d) for a detector of vectors; finite.
        times
            (n,) event time, microseconds since the epoch, not decreasing.

        Returns
        -------
        (n,) scores >= 0. 1.0 is the operator's limit; nan while warming up.
        """
        ...

    def explain(self, index: int = -1) -> Evidence:
        """Explain the score at `index` of the last call to `score`.

        Exact for scores >= 1 wherever the stream was cut into batches; an empty `Evidence` is a
        legal answer for any other.
        """
        ...

    def warming(self) -> int:
        """Return how many more values are needed before scores are given; 0 when ready."""
        ...

    def snapshot(self) -> State:
        """Return everything learned, such that `restore` continues to the bit."""
        ...

    def restore(self, state: State) -> None:
        """Take up a state that `snapshot` gave on a detector of the same parameters."""
        ...


@runtime_checkable
class Damped(Protocol):
    """A detector that learns less of what is far out, lest an incident become the normal it is measured by."""

    def learn_undamped(self, values: F64, times: I64) -> None:
        """Learn values in full that were scored as anomalous, and so learned little, and are none.

        Shapes and errors as of `score`. What `explain` says of the last scores is lost.
        """
        ...
