"""False alerts on a budget: what an operator allows the whole fleet in a day, as a limit of each single watch.

A budget is shared out evenly: over the partitions of all source topics, over the models of a partition, over the
watches of a model. A watch that is allowed a alerts a day and sees N values a day gets

- evidence, 1/a values apart: limit = N / a. Shiryaev-Roberts evidence less the count of values is a martingale, so
  there are at most N / limit false alarms a day, whatever the dependence between watches (`detectors.drift`, `.rate`);
- or a share of its values, a / N, that may be beyond the limit (`detectors.tail`); for an alert that needs k of n
  values its k-th root, as for values independent of one another, over the ways there are to choose them.

How many models there are, each partition counts for itself, from its own log and by the record times in it: what
an alert depends on must be in that log, or a restart would change it.

References
----------
[^1]: Shin, J., Ramdas, A. and Rinaldo, A., 2022. E-detectors: a nonparametric framework for sequential change
detection. arXiv:2203.03532.
[^2]: Whang, K., Vander-Zanden, B. and Taylor, H., 1990. A linear-time probabilistic counting algorithm for database
applications. ACM Transactions on Database Systems 15(2).
"""

from __future__ import annotations

import math
import zlib
from typing import Any

__all__ = ["Fleet", "evidence_limit", "tail_share"]

_HOUR_US = 3_600_000_000
_DAY_US = 24 * _HOUR_US

#: Bits of the set of names, each name one; within some 2 % up to as many names.
_BITS = 8192

#: No limit on evidence is below this: less is no evidence at all.
_LEAST_LIMIT = 100.0
_MOST_LIMIT = 1e13


def evidence_limit(*, observations_per_day: float, allowed_per_day: float) -> float:
    """Return the evidence at which so many values a day alarm falsely no more often than allowed.

    Examples
    --------
    >>> evidence_limit(observations_per_day=1440 * 1000, allowed_per_day=5)
    288000.0
    """
    return float(min(max(observations_per_day / allowed_per_day, _LEAST_LIMIT), _MOST_LIMIT))


def tail_share(
    *, observations_per_day: float, allowed_per_day: float, breaches: tuple[int, int] = (1, 1)
) -> float:
    """Return the share of values that may be beyond the limit, where an alert needs k of n of them.

    Examples
    --------
    >>> round(1 / tail_share(observations_per_day=1440 * 1000, allowed_per_day=5))
    288000
    >>> round(1 / tail_share(observations_per_day=1440 * 1000, allowed_per_day=5, breaches=(2, 3)))
    759
    """
    k, n = breaches
    # An alert comes at its k-th value, the others being among the n - 1 before it.
    share = math.exp(math.log(allowed_per_day / observations_per_day / math.comb(n - 1, k - 1)) / k)
    return min(max(share, 1e-12), 0.1)


def rounded(number: float) -> float:
    """Return a number to a quarter of a doubling, so that limits do not change with every model that comes.

    Examples
    --------
    >>> [round(rounded(x)) for x in (100, 105, 110, 120)]
    [108, 108, 128, 128]
    """
    return float(2.0 ** (math.ceil(4.0 * math.log2(number)) / 4.0))


class Fleet:
    """How many models one partition's log has, counted anew each day: after 1, 2, 4, 8, 16 and 24 hours at first.

    By record time alone. `period` goes up with each count, and only with it does `size` change.
    """

    def __init__(self, *, assumed: int) -> None:
        self.size = float(assumed)
        self.period = 0
        self.started_us: int | None = None
        self.began_us = 0  # the period; the last count was then
        self.ends_us = 0  # the period; the next count is then
        self._names = 0  # a set of bits

    def until(self, stamp_us: int) -> bool:
        """Return whether a record of that time is still of this period; the first with a time begins one."""
        return stamp_us < (0 if self.started_us is None else self.ends_us)

    def advance(self, stamp_us: int) -> None:
        """Let record time pass, -1 for unknown; a period that it ends is counted."""
        if stamp_us < 0:
            return
        if self.started_us is None:
            self.started_us = self.began_us = stamp_us
            self.ends_us = stamp_us + _HOUR_US
        while stamp_us >= self.ends_us:
            self._count(stamp_us)

    def note(self, model: str) -> None:
        """Count a model that a record was of."""
        self._names |= 1 << (zlib.crc32(model.encode()) % _BITS)

    def days(self, since_us: int) -> float:
        """Return the days from a record time to the last count, an hour at least."""
        return max(self.began_us - since_us, _HOUR_US) / _DAY_US

    def _count(self, stamp_us: int) -> None:
        assert self.started_us is not None
        empty = _BITS - self._names.bit_count()
        if self._names:
            self.size = -_BITS * math.log(max(empty, 1) / _BITS)
        self.began_us = self.ends_us
        age = self.began_us - self.started_us
        if age < _DAY_US:
            self.ends_us = self.started_us + min(2 * age, _DAY_US)
        else:
            self._names = 0
            # A log may pause for months; no need to count each day of them.
            self.ends_us += _DAY_US * max(1, (stamp_us - self.ends_us) // _DAY_US)
        self.period += 1

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a tree of plain values."""
        return {
            "size": self.size,
            "period": self.period,
            "times": [self.started_us, self.began_us, self.ends_us],
            "names": f"{self._names:x}",
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `snapshot` gave."""
        self.size, self.period = float(state["size"]), int(state["period"])
        self.started_us, self.began_us, self.ends_us = state["times"]
        self._names = int(state["names"], 16)
