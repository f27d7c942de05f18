"""Compiled forms of two of river's detectors, `drift.KSWIN` and `anomaly.LocalOutlierFactor`.

Both give what river 0.26 gives. `KSWIN` draws the sample that `random.Random.sample` draws, from the same
generator (MT19937), and decides by the count at which scipy's `ks_2samp` says p <= alpha. `LocalOutlierFactor`
computes the same sums in the same order: scores are equal to the bit under Python 3.11; from 3.12 on Python's
`sum` compensates for rounding, and river's scores differ from ours in the last digits.

`detectors.river_adapter` feeds them; neither needs river to be loaded.
"""

from __future__ import annotations

import functools
import importlib
import math
from typing import Final

import numpy as np
import numpy.typing as npt

from detectors.kernels import kernel
from detectors.protocol import F64, I64, State
from detectors.state import StateError

__all__ = ["KSWIN", "LocalOutlierFactor", "critical_count", "p_value"]

U32 = npt.NDArray[np.uint32]
I32 = npt.NDArray[np.int32]

# MT19937 (Matsumoto and Nishimura 1998): words of state; the place in them comes after.
_WORDS: Final = 624
_SHIFT: Final = 397
_LOW32: Final = 0xFFFFFFFF

# scipy counts paths up to this size of sample, and takes an asymptotic formula beyond.
_EXACT_UP_TO: Final = 10_000

# Up to so many values, insertion sorts in half the time.
_FEW: Final = 64

# river lets smaller differences pass whatever their p-value.
_LEAST_STATISTIC: Final = 0.1

_COUNT: Final = 0  # values or rows kept
_START: Final = 1  # place of the oldest
_FOUND: Final = 2  # 1 after a drift, until the next value

# river's addend that keeps densities of equal rows finite.
_DENSITY_FLOOR: Final = 1e-10


@kernel
def seed_words(key: U32, words: U32) -> None:
    """Seed (625,) words as `random.Random(seed)` does; key is |seed| in 32-bit digits, lowest first."""
    word = np.int64(19650218)
    words[0] = word
    for i in range(1, _WORDS):
        word = (1812433253 * (word ^ (word >> 30)) + i) & _LOW32
        words[i] = word
    i, j = 1, 0
    for _ in range(max(_WORDS, key.size)):
        word = np.int64(words[i - 1])
        word = ((np.int64(words[i]) ^ ((word ^ (word >> 30)) * 1664525)) + np.int64(key[j]) + j) & _LOW32
        words[i] = word
        i += 1
        j += 1
        if i == _WORDS:
            words[0] = words[_WORDS - 1]
            i = 1
        if j == key.size:
            j = 0
    for _ in range(_WORDS - 1):
        word = np.int64(words[i - 1])
        word = ((np.int64(words[i]) ^ ((word ^ (word >> 30)) * 1566083941)) - i) & _LOW32
        words[i] = word
        i += 1
        if i == _WORDS:
            words[0] = words[_WORDS - 1]
            i = 1
    words[0] = 0x80000000
    words[_WORDS] = _WORDS


@kernel
def draw_bits(words: U32, bits: int) -> int:
    """Return the next `bits`, 1 to 32, as `random.Random.getrandbits` does."""
    if words[_WORDS] == _WORDS:
        for i in range(_WORDS):
            y = (np.int64(words[i]) & 0x80000000) | (np.int64(words[(i + 1) % _WORDS]) & 0x7FFFFFFF)
            turned = np.int64(words[(i + _SHIFT) % _WORDS]) ^ (y >> 1)
            words[i] = turned ^ 0x9908B0DF if y & 1 else turned
        words[_WORDS] = 0
    y = np.int64(words[words[_WORDS]])
    words[_WORDS] += np.uint32(1)
    y ^= y >> 11
    y ^= (y << 7) & 0x9D2C5680
    y ^= (y << 15) & 0xEFC60000
    y ^= y >> 18
    return int(y >> (32 - bits))


@kernel
def _draw_below(words: U32, n: int) -> int:
    bits = 0
    while n >> bits:
        bits += 1
    drawn = draw_bits(words, bits)
    while drawn >= n:
        drawn = draw_bits(words, bits)
    return drawn


@kernel
def draw_sample(words: U32, pooled: bool, work: I64, out: I64) -> None:
    """Draw `out.size` distinct numbers below `work.size` as `random.Random.sample` does.

    pooled says which of its two ways Python takes (`_is_pooled`). work is zeros, and left so.
    """
    n = work.size
    if pooled:
        for i in range(n):
            work[i] = i
        for i in range(out.size):
            j = _draw_below(words, n - i)
            out[i] = work[j]
            work[j] = work[n - i - 1]
        work[:] = 0
    else:
        for i in range(out.size):
            j = _draw_below(words, n)
            while work[j] != 0:
                j = _draw_below(words, n)
            work[j] = 1
            out[i] = j
        for i in range(out.size):
            work[out[i]] = 0


def _is_pooled(n: int, k: int) -> bool:
    # Python's own rule: a list of n where that is smaller than a set of k.
    size = 21 + (4 ** math.ceil(math.log(k * 3, 4)) if k > 5 else 0)
    return n <= size


@kernel
def _sort(values: F64) -> None:
    if values.size > _FEW:
        values.sort()
        return
    for i in range(1, values.size):
        value, at = values[i], i
        while at > 0 and values[at - 1] > value:
            values[at] = values[at - 1]
            at -= 1
        values[at] = value


@kernel
def _statistic(one: F64, other: F64) -> float:
    """Return the largest difference of two sorted samples' distribution functions, as scipy rounds it."""
    n = one.size
    a, b = 0, 0
    lowest, highest = 0.0, 0.0
    while a < n or b < n:
        # Equal values step together.
        value = one[a] if b == n or (a < n and one[a] <= other[b]) else other[b]
        while a < n and one[a] == value:
            a += 1
        while b < n and other[b] == value:
            b += 1
        difference = a / n - b / n
        lowest = min(lowest, difference)
        highest = max(highest, difference)
    largest = max(-lowest, highest)
    return np.round(largest * n) / n if n <= _EXACT_UP_TO else largest


@kernel
def feed_kswin(
    values: F64, window: F64, clock: I64, words: U32, key: U32, pooled: bool, size: int, critical: int, out: F64
) -> None:
    """Learn (n,) values in order; out is 1.0 where a drift is found, else 0.0.

    words are seeded when first drawn from: their last is 0 before.
    """
    n = window.size
    work = np.zeros(n - size, dtype=np.int64)
    picks = np.empty(size, dtype=np.int64)
    past, recent = np.empty(size), np.empty(size)
    for i in range(values.size):
        out[i] = 0.0
        if clock[_FOUND]:
            clock[:] = 0
            words[_WORDS] = 0
        if clock[_COUNT] < n:
            window[clock[_COUNT]] = values[i]
            clock[_COUNT] += 1
        else:
            window[clock[_START]] = values[i]
            clock[_START] = (clock[_START] + 1) % n
        if clock[_COUNT] < n:
            continue
        if words[_WORDS] == 0:
            seed_words(key, words)
        draw_sample(words, pooled, work, picks)
        start = clock[_START]
        for j in range(size):
            p = start + picks[j]
            past[j] = window[p if p < n else p - n]
            p = start + n - size + j
            recent[j] = window[p if p < n else p - n]
        _sort(past)
        _sort(recent)
        statistic = _statistic(past, recent)
        if statistic > _LEAST_STATISTIC and round(statistic * size) >= critical:
            out[i] = 1.0
            clock[_FOUND] = 1


def p_value(size: int, count: int) -> float:
    """Return scipy's two-sided p-value of `ks_2samp` for two samples of `size` whose statistic is count / size.

    The share of lattice paths that leave a band, equal to scipy's to the bit: scipy itself is loaded only where
    it takes another formula.
    """
    if count == 0:
        return 1.0
    if size <= _EXACT_UP_TO:
        # Nested from the farthest reflection inwards, which avoids differences of large binomials.
        share = 0.0
        for k in range(size // count, -1, -1):
            term = 1.0
            for j in range(count):
                term = (size - k * count - j) * term / (size + k * count + j + 1)
            share = term * (1.0 - share)
        if 0.0 <= 2.0 * share <= 1.0:
            return 2.0 * share
    stats = importlib.import_module("scipy.stats")
    return float(stats.ks_2samp(np.arange(size), np.arange(size) + count, method="auto").pvalue)


@functools.lru_cache(maxsize=256)
def critical_count(size: int, alpha: float) -> int:
    """Return the least count whose `p_value` is at most alpha; size + 1 if there is none."""
    low, high = 1, size + 1
    while low < high:
        middle = (low + high) // 2
        if p_value(size, middle) <= alpha:
            high = middle
        else:
            low = middle + 1
    return low


class KSWIN:
    """river's `drift.KSWIN`: the latest values against a random sample of those before them.

    Drifts are found at the very values where river finds them. As with river's, after a drift the window is
    emptied and the generator seeded anew.

    Parameters
    ----------
    alpha
        Significance of the test.
    window_size, stat_size
        Values kept, and latest ones tested; window_size is at least twice stat_size.
    seed
        Of the samples.

    References
    ----------
    [^1]: Raab, C., Heusinger, M. and Schleif, F.-M., 2020. Reactive soft prototype computing for concept drift
          streams. Neurocomputing 416.
    """

    def __init__(self, *, alpha: float, window_size: int, stat_size: int, seed: int) -> None:
        self._critical = critical_count(stat_size, alpha)
        self._size = stat_size
        self._pooled = _is_pooled(window_size - stat_size, stat_size)
        number = abs(seed)
        digits = [number >> shift & _LOW32 for shift in range(0, max(number.bit_length(), 1), 32)]
        self._key: U32 = np.array(digits, dtype=np.uint32)
        self._window: F64 = np.empty(window_size)
        self._clock: I64 = np.zeros(3, dtype=np.int64)
        self._words: U32 = np.zeros(_WORDS + 1, dtype=np.uint32)

    def feed(self, values: F64) -> F64:
        """Learn each of (n,) finite values; 1.0 where there is a drift, else 0.0."""
        out = np.empty(values.size)
        feed_kswin(
            values,
            self._window,
            self._clock,
            self._words,
            self._key,
            self._pooled,
            self._size,
            self._critical,
            out,
        )
        return out

    def snapshot(self) -> State:
        """Return the window, oldest first, and the generator; neither after a drift."""
        found, count = bool(self._clock[_FOUND]), int(self._clock[_COUNT])
        drawn = not found and self._words[_WORDS] != 0
        order = (self._clock[_START] + np.arange(0 if found else count)) % self._window.size
        return {"window": self._window[order], "words": self._words.copy() if drawn else None, "found": found}

    def restore(self, state: State) -> None:
        """Take up a state; raise `StateError` when it does not fit."""
        window, words, found = state["window"], state["words"], state["found"]
        full = len(window) == self._window.size
        if window.ndim != 1 or len(window) > self._window.size or full != (words is not None) or (full and found):
            raise StateError("kswin: the state is of other parameters")
        if words is not None and (words.shape != self._words.shape or not 1 <= int(words[_WORDS]) <= _WORDS):
            raise StateError("kswin: not the state of a generator")
        self._window[: len(window)] = window
        self._clock[:] = len(window), 0, found
        self._words[:] = words if words is not None else 0


@kernel
def _distances(row: F64, rows: F64, used: int, out: F64) -> None:
    """Compute Euclidean distances to the first `used` of (columns, n) rows, adding columns in order."""
    for p in range(used):
        out[p] = 0.0
    for j in range(row.size):
        x = row[j]
        column = rows[j]
        for p in range(used):
            difference = x - column[p]
            out[p] += difference * difference
    for p in range(used):
        out[p] = math.sqrt(out[p])


@kernel
def _nearest(distances: F64, clock: I64, near: F64, who: I32) -> int:
    """Fill near, who with the nearest rows, the older first among equals; return how many."""
    kept = 0
    n = clock[_COUNT]
    for age in range(n):
        p = clock[_START] + age
        if p >= n:
            p -= n
        distance = distances[p]
        if kept < near.size:
            kept += 1
        elif not distance < near[kept - 1]:
            continue
        at = kept - 1
        while at > 0 and distance < near[at - 1]:
            near[at], who[at] = near[at - 1], who[at - 1]
            at -= 1
        near[at], who[at] = distance, p
    return kept


@kernel
def _refresh(p: int, wanted: int, rows: F64, clock: I64, near: F64, who: I32, kept: I32, work: F64) -> None:
    """See that row p's list has at least `wanted` neighbours."""
    if kept[p] < min(wanted, clock[_COUNT]):
        _distances(rows[:, p].copy(), rows, clock[_COUNT], work)
        kept[p] = _nearest(work, clock, near[p], who[p])


@kernel
def _density(near: F64, who: I32, first: int, last: int, wanted: int, lists: F64, kept: I32) -> float:
    """Return the local reachability density of a row with neighbours first to last - 1 of near, who."""
    if first >= last:
        return np.inf
    total = 0.0
    for a in range(first, last):
        o = who[a]
        have = min(wanted, kept[o])
        total += max(near[a], lists[o, have - 1] if have > 1 else 0.0)
    return 1.0 / (total / (last - first) + _DENSITY_FLOOR)


@kernel
def feed_lof(batch: F64, k: int, rows: F64, clock: I64, lists: F64, whose: I32, kept: I32, out: F64) -> None:
    """Score, then learn, each of (n, columns) rows in order.

    rows is (columns, window). lists, whose are (window, length): of each row kept, the distances and places of
    the kept[p] rows nearest to it, itself among them, by distance and then age. A list may be shorter than all
    but is never wrong: it is filled when it is too short for a score.
    """
    window, length = lists.shape
    wanted = k + 1
    distances, work = np.empty(window), np.empty(window)
    near, who = np.empty(length), np.empty(length, dtype=np.int32)
    for i in range(batch.shape[0]):
        row = batch[i]
        count = clock[_COUNT]
        _distances(row, rows, count, distances)
        have = _nearest(distances, clock, near, who)
        # river drops a first neighbour at distance 0 as the row itself, else the one too many.
        first, last = 0, min(k, have)
        if have > 0 and near[0] == 0.0:
            first, last = 1, min(wanted, have)
        out[i] = 0.0
        if first < last:
            for a in range(first, last):
                o = who[a]
                _refresh(o, wanted, rows, clock, lists, whose, kept, work)
                for b in range(1, min(wanted, kept[o])):
                    _refresh(whose[o, b], wanted, rows, clock, lists, whose, kept, work)
            own = _density(near, who, first, last, wanted, lists, kept)
            total = 0.0
            for a in range(first, last):
                o = who[a]
                total += _density(lists[o], whose[o], 1, min(wanted, kept[o]), wanted, lists, kept)
            score = total / ((last - first) * own)
            if math.isfinite(score):
                out[i] = score
        place = count
        if count == window:
            place = clock[_START]
            clock[_START] = (place + 1) % window
            count -= 1
            for p in range(window):
                for a in range(kept[p]):
                    if whose[p, a] == place:
                        for b in range(a + 1, kept[p]):
                            lists[p, b - 1], whose[p, b - 1] = lists[p, b], whose[p, b]
                        kept[p] -= 1
                        break
            for a in range(have):
                if who[a] == place:
                    for b in range(a + 1, have):
                        near[b - 1], who[b - 1] = near[b], who[b]
                    have -= 1
                    break
        # The newest comes after all at its distance; a list that holds every row takes it in any case.
        for p in range(clock[_COUNT]):
            distance = distances[p]
            n = kept[p]
            if p == place or not (n == count or (n > 0 and distance < lists[p, n - 1])):
                continue
            if n < length:
                kept[p] = n + 1
            elif distance < lists[p, n - 1]:
                n -= 1
            else:
                continue
            while n > 0 and distance < lists[p, n - 1]:
                lists[p, n], whose[p, n] = lists[p, n - 1], whose[p, n - 1]
                n -= 1
            lists[p, n], whose[p, n] = distance, place
        at = 0
        while at < have and near[at] == 0.0:
            at += 1
        if at < length and (at < have or have == count):
            have = min(have + 1, length)
            for a in range(have - 1, at, -1):
                near[a], who[a] = near[a - 1], who[a - 1]
            near[at], who[at] = 0.0, place
        for a in range(have):
            lists[place, a], whose[place, a] = near[a], who[a]
        kept[place] = have
        for j in range(row.size):
            rows[j, place] = row[j]
        clock[_COUNT] = count + 1


class LocalOutlierFactor:
    """river's `anomaly.LocalOutlierFactor` over a window of rows, scored before learned.

    river searches the window anew for every neighbour of a neighbour; here each row's neighbours are kept and
    mended as rows come and go. Memory is about 24 (n_neighbors + 1) bytes a row kept.

    Parameters
    ----------
    n_neighbors
        Neighbours compared with.
    window_size
        Rows kept.
    columns
        Width of the rows.

    References
    ----------
    [^1]: Breunig, M.M., Kriegel, H.-P., Ng, R.T. and Sander, J., 2000. LOF: identifying density-based local
          outliers. SIGMOD.
    [^2]: Pokrajac, D., Lazarevic, A. and Latecki, L.J., 2007. Incremental local outlier detection for data
          streams. CIDM.
    """

    def __init__(self, *, n_neighbors: int, window_size: int, columns: int) -> None:
        self._k = n_neighbors
        # Twice the neighbours needed: rows that leave shorten a list many times before it must be filled anew.
        length = min(2 * (n_neighbors + 1), window_size)
        self._rows: F64 = np.empty((columns, window_size))
        self._clock: I64 = np.zeros(2, dtype=np.int64)
        self._lists: F64 = np.empty((window_size, length))
        self._whose: I32 = np.empty((window_size, length), dtype=np.int32)
        self._kept: I32 = np.zeros(window_size, dtype=np.int32)

    def feed(self, rows: F64) -> F64:
        """Score, then learn, each of (n, columns) finite rows; river's score, about 1 where all is usual."""
        out = np.empty(rows.shape[0])
        feed_lof(rows, self._k, self._rows, self._clock, self._lists, self._whose, self._kept, out)
        return out

    def snapshot(self) -> State:
        """Return the rows kept, oldest first; all else follows from them."""
        count = int(self._clock[_COUNT])
        order = (self._clock[_START] + np.arange(count)) % max(count, 1)
        return {"rows": np.ascontiguousarray(self._rows[:, order].T)}

    def restore(self, state: State) -> None:
        """Take up a state; raise `StateError` when it does not fit."""
        rows = state["rows"]
        if rows.ndim != 2 or rows.shape[1] != self._rows.shape[0] or len(rows) > self._rows.shape[1]:
            raise StateError("local_outlier_factor: the state is of other parameters")
        self._rows[:, : len(rows)] = rows.T
        self._clock[:] = len(rows), 0
        self._kept[:] = 0
