"""What a model's inputs and answers were like while it was learned, and how far a window is from that.

A `Reference` knows each column's bins, their shares, its range and how often it had its most common value;
a `Vocabulary` the values of categorical columns; a `Lately` the ids that came last. What they learn from
is settled event by event, by a `Period`, so that it does not depend on how the stream is cut.

References
----------
[^1]: Yurdakul, B., 2018. Statistical properties of population stability index. Western Michigan University.
[^2]: Lin, J., 1991. Divergence measures based on the Shannon entropy. IEEE Transactions on Information Theory 37(1).
"""

from __future__ import annotations

import functools
from statistics import NormalDist
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from detectors.protocol import F64, I64
from streamproc import kernels
from streamproc.kernels import U16, U32, U64

#: A period lasts for at least so many events, and so many windows.
LEARN_EVENTS: Final = 500
LEARN_WINDOWS: Final = 10

#: Rows that bins are laid through; their shares come from the whole period.
SAMPLE: Final = 128
BINS: Final = 10

#: Categorical values known of one column, beyond which it is taken for open-ended; table places of all.
MAX_WORDS: Final = 50
_MAX_TABLE: Final = 8192

#: Chance of a window with one value only, below which a column that varied is called constant.
_ONCE_IN: Final = 1e-6

#: Ids that one generation remembers at most, and at first. A table is full at three quarters.
_MOST_IDS: Final = 1536
_FIRST_IDS: Final = 96

Bools = npt.NDArray[np.bool_]


class Period:
    """The first events of a kind: until there are enough of them, and enough time has passed.

    least: events, `LEARN_EVENTS` for None. endless: it is ended by others.
    """

    def __init__(self, least: int | None = None, *, endless: bool = False) -> None:
        self.least = least
        self.endless = endless
        self.began_us: int | None = None
        self.events = 0
        self.over = False

    def take(self, progress: I64, window_us: int) -> int:
        """Return how many of (n,) events belong to it, given the progress at each; it never falls."""
        if self.over:
            return 0
        if self.began_us is None:
            self.began_us = int(progress[0])
        if self.endless:
            self.events += len(progress)
            return len(progress)
        late = int(np.searchsorted(progress, self.began_us + LEARN_WINDOWS * window_us))
        least = LEARN_EVENTS if self.least is None else self.least
        taken = min(len(progress), max(least - self.events, late))
        self.events += taken
        self.over = taken < len(progress)
        return taken

    def told(self, rows: int) -> None:
        """Count rows that were learned from beforehand; enough of them end it."""
        self.events += rows
        self.over = self.events >= LEARN_EVENTS

    def end(self) -> None:
        """Learn no more."""
        self.endless, self.over = False, True

    def snapshot(self) -> list[Any]:
        """Return the state as a list."""
        return [self.least, self.endless, self.began_us, self.events, self.over]

    def restore(self, state: list[Any]) -> None:
        """Take up what `snapshot` gave."""
        self.least, self.endless, self.began_us, self.events, self.over = state


class Bins(Struct):
    """What one window has of d columns: counts (d, BINS), those outside the range, least and greatest value."""

    counts: I64
    outside: I64
    lows: F64
    highs: F64

    @classmethod
    def empty(cls, columns: int) -> Bins:
        """Build for a window nothing has come in yet."""
        return cls(
            np.zeros((columns, BINS), np.int64),
            np.zeros(columns, np.int64),
            np.full(columns, np.inf),
            np.full(columns, -np.inf),
        )

    def snapshot(self) -> list[Any]:
        """Return the state as a list."""
        return [self.counts.astype(np.int32), self.outside.astype(np.int32), self.lows.copy(), self.highs.copy()]

    @classmethod
    def restored(cls, state: list[Any]) -> Bins:
        """Build from what `snapshot` gave."""
        return cls(state[0].astype(np.int64), state[1].astype(np.int64), state[2], state[3])


class Reference:
    """How the values of d columns were distributed while learning."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.sample: F64 | None = np.empty((0, columns))
        self.edges: F64 = np.full((columns, BINS - 1), np.inf)
        self.commonest: F64 = np.ones(columns)  # share of the most common value
        self.seen = Bins.empty(columns)
        self._nowhere = np.full(columns, np.inf)
        self._bound()

    def learn(self, values: F64) -> None:
        """Learn (n, d) values, nan for none."""
        if self.sample is not None:
            room = SAMPLE - len(self.sample)
            self.sample = np.concatenate((self.sample, values[:room]))
            values = values[room:]
            if len(self.sample) < SAMPLE:
                return
            for j in range(self.columns):
                self.edges[j], self.commonest[j] = _laid(self.sample[:, j])
            sample, self.sample = self.sample, None
            self._learn(sample)
        if len(values):
            self._learn(values)

    def _learn(self, values: F64) -> None:
        s, own = self.seen, np.ones(len(values), np.bool_)
        values = np.ascontiguousarray(values)
        kernels.tally_bins(
            values, own, self.edges, -self._nowhere, self._nowhere, s.counts, s.outside, s.lows, s.highs
        )

    def settle(self) -> None:
        """Fix the range: what was seen, and half its width on each side."""
        self._bound()

    def _bound(self) -> None:
        s = self.seen
        with np.errstate(over="ignore", invalid="ignore"):
            margin = 0.5 * (s.highs - s.lows)
            self.low, self.high = s.lows - margin, s.highs + margin
        # A column without any value has no range to be outside of.
        none = ~np.isfinite(s.lows)
        self.low[none], self.high[none] = -np.inf, np.inf

    def count(self, bins: Bins, values: F64, own: Bools) -> None:
        """Count (n, d) values of the rows that are a window's own."""
        kernels.tally_bins(
            values, own, self.edges, self.low, self.high, bins.counts, bins.outside, bins.lows, bins.highs
        )

    def constant(self, bins: Bins) -> Bools:
        """Return which columns had one value only, though that is no chance."""
        n = bins.counts.sum(axis=1)
        found: Bools = (bins.lows == bins.highs) & (self.commonest**n < _ONCE_IN)
        return found

    def psi(self, bins: Bins) -> F64:
        """Return (d,) population stability indices of a window, less what chance alone brings."""
        return psi(self.seen.counts, bins.counts)

    def jsd(self, bins: Bins) -> F64:
        """Return (d,) Jensen-Shannon divergences of a window, in bits."""
        return jsd(self.seen.counts, bins.counts)

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a tree."""
        return {
            "sample": None if self.sample is None else self.sample.copy(),
            "edges": self.edges.copy(),
            "commonest": self.commonest.copy(),
            "seen": self.seen.snapshot(),
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Reference:
        """Build from what `snapshot` gave."""
        self = cls(len(state["commonest"]))
        self.sample, self.edges, self.commonest = state["sample"], state["edges"], state["commonest"]
        self.seen = Bins.restored(state["seen"])
        self._bound()
        return self


class Moments:
    """What correlations of d numeric columns with the answer come from: sums over what was learned."""

    def __init__(self, columns: int) -> None:
        self.shift: F64 | None = None  # (d + 1,): each column's first value, the answer's last
        self.sums: F64 = np.zeros((6, columns))

    def add(self, values: F64, answers: F64, own: Bools, sums: F64) -> None:
        """Add (n, d) values with (n,) answers of the rows that are `own` to sums (6, d), of here or of a window."""
        if self.shift is None:
            rows = np.nonzero(own & ~np.isnan(answers))[0]
            if not len(rows):
                return
            first = np.append(values[rows[0]], answers[rows[0]])
            self.shift = np.clip(np.nan_to_num(first), -kernels.ROOT, kernels.ROOT)
        values = np.ascontiguousarray(values)
        kernels.tally_moments(values, answers, own, self.shift[:-1], float(self.shift[-1]), sums)

    def changes(self, sums: F64) -> F64:
        """Return (d,) changes of correlation between what was learned and a window, less what chance brings.

        The error of a correlation r of n values is about (1 - r^2) / sqrt(n); the largest of d such, as it is in
        half of all windows, is taken off.
        """
        was, now = _correlations(self.sums), _correlations(sums)
        with np.errstate(divide="ignore", invalid="ignore"):
            error = (1.0 - was**2) * np.sqrt(1.0 / self.sums[0] + 1.0 / sums[0])
            found = np.abs(now - was) - NormalDist().inv_cdf(0.5 + 0.5 * 0.5 ** (1.0 / len(was))) * error
        return np.where(np.isfinite(found), np.maximum(found, 0.0), 0.0)

    def snapshot(self) -> list[Any]:
        """Return the state as a list."""
        return [None if self.shift is None else self.shift.copy(), self.sums.copy()]

    @classmethod
    def restored(cls, state: list[Any]) -> Moments:
        """Build from what `snapshot` gave."""
        self = cls(state[1].shape[1])
        self.shift, self.sums = state
        return self


def _correlations(sums: F64) -> F64:
    """Return (d,) correlations from (6, d) sums, 0 where either side does not vary."""
    n, x, xx, y, yy, xy = sums
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = (xy - x * y / n) / np.sqrt((xx - x * x / n) * (yy - y * y / n))
    return np.clip(np.where(np.isfinite(found), found, 0.0), -1.0, 1.0)


def _laid(sample: F64) -> tuple[F64, float]:
    """Return edges between bins of about equal numbers, padded with inf, and the commonest value's share."""
    edges = np.full(BINS - 1, np.inf)
    values = np.sort(sample[~np.isnan(sample)])
    if not len(values):
        return edges, 1.0
    different, times = np.unique(values, return_counts=True)
    if len(different) <= BINS:
        # Few values: a bin for each, so that a rare one does not hide in its neighbour's.
        with np.errstate(over="ignore"):
            found = different[:-1] + 0.5 * np.diff(different)
    else:
        found = np.unique(values[np.arange(1, BINS) * len(values) // BINS])
    edges[: len(found)] = found
    return edges, float(times.max() / len(values))


def _shares(reference: I64, window: I64) -> tuple[F64, F64, I64, I64, I64]:
    """Return both as shares of (d, b) bins that either has anything in, with the numbers of those and of values.

    Half a value is added to each such bin, so that none is empty.
    """
    used = (reference > 0) | (window > 0)
    k = used.sum(axis=1)
    n, m = reference.sum(axis=1), window.sum(axis=1)
    half = 0.5 * used
    p = (reference + half) / np.maximum(n + 0.5 * k, 0.5)[:, None]
    q = (window + half) / np.maximum(m + 0.5 * k, 0.5)[:, None]
    return np.where(used, p, 1.0), np.where(used, q, 1.0), k, n, m


def psi(reference: I64, window: I64) -> F64:
    """Return the population stability index of each of (d, b) counts against a reference, less chance.

    Of equal distributions it is about chi-squared with b - 1 degrees of freedom, times 1/n + 1/m: what the
    largest of d columns so has in half of all windows is taken off. Without it, the nights of a model, when a
    window has few events, would look like drift.

    Examples
    --------
    >>> import numpy as np
    >>> psi(np.array([[500, 500]]), np.array([[500, 500], [900, 100]])).round(2)
    array([0.  , 0.87])
    """
    p, q, k, n, m = _shares(*np.broadcast_arrays(reference, window))
    found = ((p - q) * np.log(p / q)).sum(axis=1)
    chance = _middle_of_largest(len(found))[k] * (1.0 / np.maximum(n, 1) + 1.0 / np.maximum(m, 1))
    return np.where((n > 0) & (m > 0), np.maximum(found - chance, 0.0), 0.0)


def jsd(reference: I64, window: I64) -> F64:
    """Return the Jensen-Shannon divergence, in bits, of each of (d, b) counts against a reference."""
    p, q, _, n, m = _shares(reference, window)
    middle = 0.5 * (p + q)
    found = 0.5 * (p * np.log2(p / middle) + q * np.log2(q / middle)).sum(axis=1)
    return np.where((n > 0) & (m > 0), np.maximum(found, 0.0), 0.0)


@functools.cache
def _middle_of_largest(columns: int) -> F64:
    """Return, for 0 to 1100 bins, the median of the largest of so many chi-squared (Wilson and Hilferty's)."""
    degrees = np.maximum(np.arange(-1.0, 1100.0), 0.0)
    z = NormalDist().inv_cdf(0.5 ** (1.0 / max(columns, 1)))
    part = 2.0 / (9.0 * np.maximum(degrees, 1.0))
    found: F64 = degrees * np.maximum(1.0 - part + z * np.sqrt(part), 0.0) ** 3
    return found


class Vocabulary:
    """The values of c categorical columns: 32 bits of a hash of each, up to `MAX_WORDS` a column."""

    def __init__(self, columns: int) -> None:
        size = 256
        while size < min(2 * MAX_WORDS * columns, _MAX_TABLE):
            size *= 2
        self.table: U32 = np.zeros(size, np.uint32)
        self.known: I64 = np.zeros(columns, np.int64)
        self.room = 3 * size // 4

    def learn(self, words: F64) -> None:
        """Learn (n, c) values."""
        given = ~np.isnan(words)
        self.room = kernels.learn_words(_bits(words), given, self.table, self.known, MAX_WORDS, self.room)

    def count(self, words: F64, own: Bools, seen: I64, unseen: I64) -> None:
        """Count, (c,) each, values and those never learned, of the rows that are a window's own."""
        kernels.count_words(_bits(words), ~np.isnan(words), own, self.table, self.known, MAX_WORDS, seen, unseen)

    def snapshot(self) -> list[Any]:
        """Return the state as a list."""
        return [self.table.copy(), self.known.copy(), self.room]

    @classmethod
    def restored(cls, state: list[Any]) -> Vocabulary:
        """Build from what `snapshot` gave."""
        self = cls(len(state[1]))
        self.table, self.known, self.room = state
        return self


def _bits(words: F64) -> U64:
    """Return numbers as words of bits; -0.0 is 0.0."""
    return np.ascontiguousarray(words + 0.0).view(np.uint64)


class Lately:
    """The ids that came last, 16 bits of a hash of each: between one generation's worth and two.

    Takes one id in some seven thousand for another. Tables grow with the model's traffic.
    """

    def __init__(self) -> None:
        self.room = _FIRST_IDS
        self.used = 0
        self.young: U16 = np.zeros(self.room * 4 // 3, np.uint16)
        self.old: U16 = np.zeros(self.room * 4 // 3, np.uint16)

    def recall(self, ids: U64) -> Bools:
        """Return which of (n,) ids, 0 for none, were seen lately, and remember them."""
        again = np.zeros(len(ids), np.bool_)
        row = 0
        while True:
            row, self.used = kernels.recall(ids, row, self.young, self.old, self.used, self.room, again)
            if row == len(ids):
                return again
            self.room = min(2 * self.room, _MOST_IDS)
            self.old, self.young, self.used = self.young, np.zeros(self.room * 4 // 3, np.uint16), 0

    def snapshot(self) -> list[Any]:
        """Return the state as a list."""
        return [self.room, self.used, self.young.copy(), self.old.copy()]

    def restore(self, state: list[Any]) -> None:
        """Take up what `snapshot` gave."""
        self.room, self.used, self.young, self.old = state
