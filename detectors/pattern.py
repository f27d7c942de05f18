"""Patterns of one metric that changed: an ensemble of thirteen views of the value and of its rhythm."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.kernels import all_finite, as_times, as_values, kernel, refuse_non_finite
from detectors.params import DetectorSpec, Sensitivity, require_kept
from detectors.protocol import F64, I64, Evidence, State
from detectors.state import StateError
from detectors.tail import BLOCKS, Alpha, block_limit, learn_block

__all__ = ["Pattern", "PatternParams"]

F32: TypeAlias = npt.NDArray[np.float32]

# Two steps of the clocks apart, see `_LEVELS`.
_LIMIT: Final[dict[Sensitivity, float]] = {"low": 1.5 * 2**0.5, "medium": 1.5, "high": 1.5 * 2**-0.5}

# Lengths of a block, in values, for the views of stretches; each looks at x and at r.
_BLOCKS: Final = (1, 5, 12, 30)
_LONG: Final = 6

# What each of the views says when it leads.
_NOTES: Final = (
    *(f"the last {_LONG * block} values run as none before" for block in _BLOCKS),
    *(f"the last {_LONG * block} values run as none before, at this time" for block in _BLOCKS),
    "the last 30 values are spread otherwise than before",
    "the last 60 values are spread otherwise than usual at this time",
    "the last 20 values lie in a tail of the past",
    "the last 60 values lie in a tail of the past",
    "beyond the range seen so far",
)
_VIEWS: Final = len(_NOTES)
_STRETCHES: Final = 2 * len(_BLOCKS)
_TESTED: Final = _VIEWS - 1

_LARGEST: Final = 1e100
# Stretches are kept in single precision, as distances from the first value, within what can be squared.
_LARGEST_KEPT: Final = 1e17
_TINY: Final = 1e-9
_SLOTS: Final = 96
_HOURS: Final = 168
_MINUTE_US: Final = 60_000_000
_HOUR_US: Final = 60 * _MINUTE_US
_DAY_MINUTES: Final = 1440
_BINS: Final = 12
_TAIL: Final = 20
_LONG_TAIL: Final = 60
_CELLS: Final = 512
_SHARE: Final = 0.05
_SIGMAS: Final = 3.0

# The rhythm of the series' own, found from its autocorrelation.
_RING: Final = 1024  # bins kept
_BIN_US: Final = 2 * _MINUTE_US  # the least bin: 34 hours are looked at, for periods of up to a third of that
_DIFFERENCES: Final = 15  # latest, whose median is the sampling interval
_KNOWN: Final = 64  # differences before the bins are laid out
_LONGEST_US: Final = 10_000_000_000_000
_SEARCH: Final = 256  # bins from one search to the next
_LEAST_LAG: Final = 4
_PEAK: Final = 0.3  # autocorrelation of a period at least, and over the lowest before it
_NEARLY: Final = 0.85  # of the highest peak: the first to reach that is the period, not a multiple of it
_SAME: Final = 0.03  # a period this near is the same, known better
_TRIED: Final = 1000  # values it is held against the day's and the week's before it is used
_BETTER: Final = 0.75  # and its mean distance, as a share of the day's or the week's

_EDGE: Final = 3.0  # mean distances between slots side by side

_FIRST: Final = 0  # of the floats: the first value; sum and count of the open bin, sum and count of the open slot
_SUM: Final = 1
_COUNT: Final = 2
_SLOT_SUM: Final = 3
_SLOT_COUNT: Final = 4
_OWN: Final = 5  # mean distance from the own rhythm, from the day's or week's, and of how many values
_THEIRS: Final = 6
_TESTS: Final = 7
_GAPS: Final = 8  # differences of time, µs
_TIMED: Final = 0  # of the integers: differences seen
_LAST: Final = 1  # time of the last value
_WIDTH: Final = 2  # of a bin, µs; 0: not known
_BIN: Final = 3  # number of the open one
_FILLED: Final = 4
_WRITTEN: Final = 5
_SINCE: Final = 6  # bins since the last search
_PERIOD: Final = 7  # µs; 0: none found
_ANCHOR: Final = 8  # a time at which it begins
_PARTS: Final = 9  # slots in use
_SLOT: Final = 10  # number of the open one, counted from the anchor
_INTEGERS: Final = 11

# Means of the views at which a clock is kept, four to a doubling, from .09 to 12: fixed, so that what is
# kept does not depend on the limit.
_LEVELS: Final = 1.5 * 2.0 ** (np.arange(-16, 13) / 4.0)
_NEVER: Final = -1e9
# A limit given in decimals is still that level's.
_ABOUT: Final = 1.0 + 1e-9

# Shares by half-life, as b = 1 - 2^(-1/h).
_B1000: Final = 1.0 - 0.5 ** (1.0 / 1000.0)
_B1500: Final = 1.0 - 0.5 ** (1.0 / 1500.0)
_B2000: Final = 1.0 - 0.5 ** (1.0 / 2000.0)
_KEPT3000: Final = 0.5 ** (1.0 / 3000.0)

# The 99.9 % quantile of the distance beyond the range, on unlabelled data.
_RANGE: Final = 0.082

# Values of which at most one alarms, as far as a budget goes: the default hold.
_BLOCK: Final = 100


class PatternParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of `Pattern`."""

    warm_up: Annotated[int, msgspec.Meta(ge=1, le=100_000, description="values before the first score")] = 100
    shingles: Annotated[
        int, msgspec.Meta(ge=50, le=10_000, description="past stretches kept by each view of stretches")
    ] = 500
    limit: Annotated[
        Annotated[float, msgspec.Meta(ge=0.1, le=12)] | None,
        msgspec.Meta(description="mean of the views that scores 1.0; null: by sensitivity, 2.12, 1.5 or 1.06"),
    ] = None
    alpha: Alpha = None
    hold: Annotated[
        int, msgspec.Meta(ge=0, le=1_000_000, description="values in which at most one alarms; 0: no such bound")
    ] = 100


@kernel
def _learn(s: F64, at: int, y: float, share: float) -> None:
    """Move the mean and variance at `at` towards y."""
    d = y - s[at]
    s[at + 1] = (1.0 - share) * (s[at + 1] + share * d * d)
    s[at] += share * d


@kernel
def _rarity(s: F64, y: float, t: float) -> float:
    """Return -log10 of the normal tail of y among earlier y that were not 0. s: mean, variance, count."""
    if y <= 0.0:
        return 0.0
    out = 0.0
    z = (y - s[0]) / (math.sqrt(s[1]) + _TINY)
    if t >= 100 and s[2] > 10 and z > 0.0:
        out = min(8.0, -math.log10(max(0.5 * math.erfc(min(z, 25.0) / 1.41421356), 1e-30)))
    _learn(s, 0, y, max(_B2000, 1.0 / (s[2] + 1.0)))
    s[2] += 1.0
    return out


@kernel
def _beyond(s: F64, x: float) -> float:
    """Return how far x is outside the range so far, in ranges. s: count, mean, high, low."""
    if s[0] == 0.0:
        s[1] = s[2] = s[3] = x
    out = 0.0
    if s[0] > 20:
        excess = max(x - s[2], s[3] - x)
        if excess > 0.0:
            out = min(10.0, excess / (s[2] - s[3] + _TINY))
    s[1] += max(0.001, 1.0 / (s[0] + 1.0)) * (x - s[1])
    s[2] = max(x, s[1] + (s[2] - s[1]) * _KEPT3000)
    s[3] = min(x, s[1] + (s[3] - s[1]) * _KEPT3000)
    s[0] += 1.0
    return out


@kernel
def _spread(s: F64, x: float) -> float:
    """Return the divergence of the last w values' histogram from that of the past.

    s: count, mean, variance, past histogram, latest counts, and a ring of the last w bins.
    """
    past, counts, ring = 3, 3 + _BINS, 3 + 2 * _BINS
    w = s.size - ring
    t = s[0]
    if t == 0.0:
        s[1], s[2] = x, 0.0
        s[past:counts] = 1.0 / _BINS
    z = (x - s[1]) / (math.sqrt(s[2]) + _TINY)
    k = int((min(3.5, max(-3.5, z)) + 3.5) / 7.0 * (_BINS - 1e-6))
    place = ring + int(t) % w
    out = 0.0
    leaving = int(s[place])
    s[place] = k
    s[counts + k] += 1.0
    if t >= w:
        s[counts + leaving] -= 1.0
        share = max(_B1500, 1.0 / (t - w + 2.0))
        for i in range(_BINS):
            s[past + i] *= 1.0 - share
        s[past + leaving] += share
        if t > 2 * w:
            for i in range(_BINS):
                p = s[counts + i] / w
                if p > 0.0:
                    out += p * math.log(p / (0.98 * s[past + i] + 0.02 / _BINS))
    _learn(s, 1, x, max(_B1000, 1.0 / (t + 1.0)))
    s[0] = t + 1.0
    return out


@kernel
def _stretch(s: F64, means: F32, halves: F32, near: F32, x: float, block: int) -> float:
    """Return how far the last 6 blocks are from the nearest earlier 6 in a row; 0 inside a block.

    s: count, mean, variance, values in the open block, their sum, largest, smallest, blocks, the first value.
    means and halves: rings of the last blocks' means and half ranges. near: room for the distances.
    """
    if s[0] == 0.0:
        s[1], s[2], s[8] = x, 0.0, x
    _learn(s, 1, x, max(_B2000, 1.0 / (s[0] + 1.0)))
    s[0] += 1.0
    y = min(max(x - s[8], -_LARGEST_KEPT), _LARGEST_KEPT)
    s[5] = y if s[3] == 0.0 else max(s[5], y)
    s[6] = y if s[3] == 0.0 else min(s[6], y)
    s[4] += y
    s[3] += 1.0
    if s[3] < block:
        return 0.0
    size = means.size
    latest = int(s[7])
    means[latest % size] = np.float32(s[4] / block)
    halves[latest % size] = np.float32(0.5 * (s[5] - s[6]))
    s[3], s[4] = 0.0, 0.0
    s[7] += 1.0
    # Stretches are told by their first block. The nearest must share no block with the latest one.
    first = max(0, latest + 1 - size)
    last = latest - 2 * _LONG + 1
    if latest - 2 * _LONG < 10:
        return 0.0
    # Of every place in the ring, whether or not a stretch may start there: two loops without a branch.
    used = min(latest + 1, size)
    for p in range(used):
        near[p] = 0.0
    for i in range(_LONG):
        at = (latest - _LONG + 1 + i) % size
        mean, half = means[at], halves[at]
        straight = min(used, size - i)
        for p in range(straight):
            a = means[p + i] - mean
            b = halves[p + i] - half
            near[p] += a * a + b * b
        for p in range(straight, used):
            a = means[p + i - size] - mean
            b = halves[p + i - size] - half
            near[p] += a * a + b * b
    best = near[first % size]
    begin, end = first % size, last % size
    if begin <= end:
        for p in range(begin, end + 1):
            best = min(best, near[p])
    else:
        for p in range(begin, size):
            best = min(best, near[p])
        for p in range(end + 1):
            best = min(best, near[p])
    return math.sqrt(float(best) / _LONG) / (math.sqrt(s[2]) + _TINY) + 1e-6


@kernel
def _merge(cells: F64, used: int, total: float) -> int:
    """Merge neighbours among the (2, used) values and weights; return how many are left, at most half."""
    share = _SHARE
    while True:
        n = 0
        below = 0.0  # weight of the finished cells, all below the open one
        for i in range(used):
            v, w = cells[0, i], cells[1, i]
            if n > 0:
                open_weight = cells[1, n - 1]
                both = open_weight + w
                # Light beside the nearer tail: ranks there stay known to within this share.
                if both <= share * min(below, total - below - both):
                    cells[0, n - 1] += (v - cells[0, n - 1]) * (w / both)
                    cells[1, n - 1] = both
                    continue
                below += open_weight
            cells[0, n], cells[1, n] = v, w
            n += 1
        used = n
        if used <= _CELLS // 2:
            return used
        share *= 1.5


@kernel
def _tail(s: F64, cells: F64, x: float) -> tuple[float, float]:
    """Return the means over the last 20 and 60 values of -log10 of their two-sided rank among the past.

    s: count, cells in use, sums of the last 20 and 60, and a ring of 60. cells: (2, n) values, ascending,
    and weights, in place of the whole past: exact until that many distinct values were seen.
    """
    ring = 4
    t, used = s[0], int(s[1])
    below, at = 0.0, 0
    while at < used and cells[0, at] < x:
        below += cells[1, at]
        at += 1
    same = at < used and cells[0, at] == x
    through = below + (cells[1, at] if same else 0.0)
    p = min(1.0, 2.0 * min((through + 1.0) / (t + 2.0), (t - below + 1.0) / (t + 2.0)))
    rarity = -math.log10(p)
    n = int(t)
    if n >= _TAIL:
        s[2] -= s[ring + (n - _TAIL) % _LONG_TAIL]
    if n >= _LONG_TAIL:
        s[3] -= s[ring + n % _LONG_TAIL]
    s[2] += rarity
    s[3] += rarity
    s[ring + n % _LONG_TAIL] = rarity
    if same:
        cells[1, at] += 1.0
    else:
        for i in range(used, at, -1):
            cells[0, i], cells[1, i] = cells[0, i - 1], cells[1, i - 1]
        cells[0, at], cells[1, at] = x, 1.0
        used += 1
        if used == _CELLS:
            used = _merge(cells, used, t + 1.0)
    s[0], s[1] = t + 1.0, used
    return float(s[2] / min(t + 1.0, _TAIL)), float(s[3] / min(t + 1.0, _LONG_TAIL))


@kernel
def _of_day(s: F64, x: float, slot: int) -> float:
    """Return x less the mean of its slot of the day. s: count, variance; a mean and a count a slot."""
    mean, count = 2 + slot, 2 + _SLOTS + slot
    if s[count] == 0.0:
        s[count], s[mean] = 1.0, x
        return 0.0
    out = x - s[mean]
    e = out
    if s[0] > 100:
        sigma = math.sqrt(s[1]) + _TINY
        e = min(4.0 * sigma, max(-4.0 * sigma, e))
    s[1] += max(0.002, 1.0 / (s[0] + 1.0)) * (e * e - s[1])
    s[0] += 1.0
    s[count] += 1.0
    s[mean] += max(0.25, 1.0 / s[count]) * e
    return float(out)


@kernel
def _of_week(s: F64, x: float, hour: int, daily: float) -> tuple[float, float]:
    """Return x less what is usual at this time, and the mean distance from that; 0 where the day's is as near.

    s: count, mean distance from the day's and from the week's, and of the open hour its number, sum and count;
    a mean and a count an hour of the week. daily: what `_of_day` returned.
    """
    means, counts = 6, 6 + _HOURS
    if s[3] != hour:
        if s[5] > 0.0:
            k = int(s[3]) % _HOURS
            s[counts + k] += 1.0
            s[means + k] += max(0.25, 1.0 / s[counts + k]) * (s[4] / s[5] - s[means + k])
        s[3], s[4], s[5] = hour, 0.0, 0.0
    s[4] += x
    s[5] += 1.0
    k = hour % _HOURS
    if s[counts + k] < 2.0:
        return daily, 0.0
    weekly = x - s[means + k]
    out, distance = daily, 0.0
    # Whichever was nearer of late.
    if s[2] < s[1]:
        out, distance = weekly, s[2]
    share = max(0.002, 1.0 / (s[0] + 1.0))
    a, b = abs(daily), abs(weekly)
    if s[0] > 100:
        a, b = min(a, 6.0 * s[1]), min(b, 6.0 * s[2])
    s[1] += share * (a - s[1])
    s[2] += share * (b - s[2])
    s[0] += 1.0
    return out, float(distance)


@kernel
def _period(kept: F64) -> float:
    """Return the period of (n,) values in bins, to a fraction of one; 0.0 where there is none.

    The first peak of the autocorrelation that is nearly as high as the highest, and as many of its multiples, one
    at least, as go on with it: the m-th tells the period m times as well.
    """
    n = kept.size
    z = kept.copy()
    # Less its trend, in deviations, three at most.
    mean, slope, middle, squares = 0.0, 0.0, 0.5 * (n - 1), n * (float(n) * n - 1.0) / 12.0
    for i in range(n):
        mean += z[i] / n
    for i in range(n):
        slope += (i - middle) * (z[i] - mean) / squares
    variance = 0.0
    for i in range(n):
        z[i] -= mean + slope * (i - middle)
        variance += z[i] * z[i] / n
    if not variance > 0.0:
        return 0.0
    deviation = math.sqrt(variance)
    for i in range(n):
        z[i] = min(max(z[i] / deviation, -3.0), 3.0)
    top = 2 * (n // 3) + 3  # twice the longest period, and what a peak there needs
    c = np.zeros(top + 1)
    for i in range(n):
        own = z[i]
        for lag in range(min(top, n - 1 - i) + 1):
            c[lag] += own * z[i + lag]
    scale = c[0] / n
    if not scale > 0.0:
        return 0.0
    for lag in range(top + 1):
        c[lag] /= (n - lag) * scale
    highest, first = 0.0, 0
    for again in range(2):
        valley = 1.0
        for lag in range(1, n // 3 + 1):
            valley = min(valley, c[lag])
            peak = lag >= _LEAST_LAG and c[lag] >= c[lag - 1] and c[lag] >= c[lag + 1]
            if peak and c[lag] >= _PEAK and c[lag] - valley >= _PEAK:
                if again == 0:
                    highest = max(highest, c[lag])
                elif first == 0 and c[lag] >= _NEARLY * highest:
                    first = lag
    if first == 0:
        return 0.0
    period, m = float(first), 1
    while m * period + 2.0 < top:
        about = round(m * period)
        best = about
        for lag in range(about - 2, about + 3):
            if c[lag] > c[best]:
                best = lag
        if c[best] < 0.5 * highest:
            break
        bend = c[best - 1] - 2.0 * c[best] + c[best + 1]
        if bend < 0.0:
            period = (best + min(max(0.5 * (c[best - 1] - c[best + 1]) / bend, -0.5), 0.5)) / m
        m += 1
    # A peak that does not come again at twice its lag came by chance.
    return period if m > 2 else 0.0


@kernel
def _search(s: F64, beat: I64, bins: F32, profile: F64, time: int) -> None:
    """Look for a period in the bins; take up one that is new, unless the one in use does well."""
    ordered = np.sort(s[_GAPS : _GAPS + _DIFFERENCES])
    interval = max(int(ordered[_DIFFERENCES // 2]), 1)
    width, n = beat[_WIDTH], beat[_FILLED]
    if width > 2 * max(interval, _BIN_US) or interval > 2 * width:
        # Sampled otherwise than it was: bins are laid out anew.
        beat[_WIDTH], beat[_FILLED], beat[_PERIOD], beat[_TIMED] = 0, 0, 0, 0
        return
    kept = np.empty(n)
    for i in range(n):
        kept[i] = bins[(beat[_WRITTEN] - n + i) % _RING]
    period = int(_period(kept) * width)
    if period == 0:
        return
    old = beat[_PERIOD]
    if old > 0 and abs(period - old) <= _SAME * old:
        # The same, known better: where in it we are stays.
        phase = (time - beat[_ANCHOR]) % old
        beat[_ANCHOR] = time - int(phase * (period / old))
        beat[_PERIOD] = period
    elif old == 0 or s[_OWN] >= _BETTER * s[_THEIRS]:
        beat[_PERIOD], beat[_ANCHOR] = period, time
        beat[_PARTS] = min(max(period // width, _LEAST_LAG), _SLOTS)
        profile[:] = 0.0
        for i in range(n):
            at = (beat[_BIN] - n + i) * width + width // 2 - time
            slot = at % period * beat[_PARTS] // period
            profile[1, slot] += 1.0
            profile[0, slot] += max(0.25, 1.0 / profile[1, slot]) * (kept[i] + s[_FIRST] - profile[0, slot])
        s[_OWN], s[_THEIRS], s[_TESTS] = 0.0, 0.0, 0.0
    else:
        return
    s[_SLOT_SUM], s[_SLOT_COUNT] = 0.0, 0.0
    beat[_SLOT] = (time - beat[_ANCHOR]) // period * beat[_PARTS]


@kernel
def _of_rhythm(
    s: F64, beat: I64, bins: F32, profile: F64, x: float, time: int, other: float, others: float
) -> tuple[float, float]:
    """Return x less what is usual at this phase of the series' own rhythm, and the mean distance from that.

    `other`, `others` where it has none, or is not nearer to it of late by a fifth. profile: (2, slots) means and
    counts; bins: a ring of means, as distances from the first value.
    """
    if beat[_TIMED] == 0 and beat[_WIDTH] == 0 and s[_COUNT] == 0.0:
        s[_FIRST], s[_COUNT] = x, 1.0
    elif time > beat[_LAST]:
        s[_GAPS + beat[_TIMED] % _DIFFERENCES] = min(time - beat[_LAST], _LONGEST_US)
        beat[_TIMED] += 1
    beat[_LAST] = time
    if beat[_WIDTH] == 0:
        if beat[_TIMED] < _KNOWN:
            return other, others
        ordered = np.sort(s[_GAPS : _GAPS + _DIFFERENCES])
        interval = max(int(ordered[_DIFFERENCES // 2]), 1)
        beat[_WIDTH] = (_BIN_US + interval - 1) // interval * interval
        beat[_BIN] = time // beat[_WIDTH]
        beat[_FILLED], beat[_SINCE], s[_SUM], s[_COUNT] = 0, 0, 0.0, 0.0
    number = time // beat[_WIDTH]
    passed = number - beat[_BIN]
    if passed > 0 or passed < -_RING:
        if 0 < passed < _RING and s[_COUNT] > 0.0:
            for _ in range(passed):
                bins[beat[_WRITTEN] % _RING] = np.float32(s[_SUM] / s[_COUNT])
                beat[_WRITTEN] += 1
            beat[_FILLED] = min(beat[_FILLED] + passed, _RING)
            beat[_SINCE] += passed
        else:
            beat[_FILLED] = 0
        beat[_BIN], s[_SUM], s[_COUNT] = number, 0.0, 0.0
        if beat[_SINCE] >= _SEARCH and beat[_FILLED] >= _RING // 2:
            beat[_SINCE] = 0
            _search(s, beat, bins, profile, time)
            if beat[_WIDTH] == 0:
                return other, others
    s[_SUM] += min(max(x - s[_FIRST], -_LARGEST_KEPT), _LARGEST_KEPT)
    s[_COUNT] += 1.0
    if beat[_PERIOD] == 0:
        return other, others
    period, parts = beat[_PERIOD], beat[_PARTS]
    turns = (time - beat[_ANCHOR]) // period
    slot = (time - beat[_ANCHOR] - turns * period) * parts // period
    if turns * parts + slot != beat[_SLOT]:
        if s[_SLOT_COUNT] > 0.0:
            k = beat[_SLOT] % parts
            profile[1, k] += 1.0
            profile[0, k] += max(0.25, 1.0 / profile[1, k]) * (s[_SLOT_SUM] / s[_SLOT_COUNT] - profile[0, k])
        beat[_SLOT] = turns * parts + slot
        s[_SLOT_SUM], s[_SLOT_COUNT] = 0.0, 0.0
    s[_SLOT_SUM] += x
    s[_SLOT_COUNT] += 1.0
    if profile[1, slot] < 2.0:
        return other, others
    own, distance = x - profile[0, slot], s[_OWN]
    # Beside an edge either side of it is usual: a job that begins a little early or late is the same job.
    for k in ((slot + parts - 1) % parts, (slot + 1) % parts):
        if profile[1, k] >= 2.0 and abs(profile[0, k] - profile[0, slot]) > _EDGE * s[_OWN]:
            beside = x - profile[0, k]
            if abs(beside) < abs(own):
                own = beside
    nearer = s[_TESTS] >= _TRIED and s[_OWN] < _BETTER * s[_THEIRS]
    share = max(0.002, 1.0 / (s[_TESTS] + 1.0))
    a, b = abs(own), abs(other)
    if s[_TESTS] > 100:
        a, b = min(a, 6.0 * s[_OWN]), min(b, 6.0 * s[_THEIRS])
    s[_OWN] += share * (a - s[_OWN])
    s[_THEIRS] += share * (b - s[_THEIRS])
    s[_TESTS] += 1.0
    if nearer:
        return own, float(distance)
    return other, others


@kernel
def _passes(last: F64, hold: int, t: float, raw: float, limit: float) -> bool:
    """Tell whether raw is the first to reach its level in `hold` values, or the limit's if it reaches that.

    last: when each level's clock was last set. Every clock is kept, whatever the limit.
    """
    free = True
    for k in range(_LEVELS.size):
        if raw < _LEVELS[k]:
            break
        its = t - last[k] >= hold
        if its:
            last[k] = t
        # Levels above the limit have no say: up to the limit, the highest reached has.
        if k == 0 or _LEVELS[k] <= limit * _ABOUT:
            free = its
    return free


@kernel
def score_pattern(
    values: F64,
    times: I64,
    clock: F64,
    last: F64,
    day: F64,
    week: F64,
    rhythm: F64,
    beat: I64,
    bins: F32,
    profile: F64,
    spreads: tuple[F64, F64],
    span: F64,
    stretches: F64,
    means: F32,
    halves: F32,
    near: F32,
    tail: F64,
    cells: F64,
    rarities: F64,
    own: F64,
    warm_up: int,
    limit: float,
    alpha: float,
    hold: int,
    scores: F64,
    bands: F64,
    leading: I64,
) -> bool:
    """Score, then learn, each value in order; False, untouched, when one is not finite.

    alpha 0: the limit is never raised. own: the largest scores of blocks.
    """
    if not all_finite(values):
        return False
    views = np.zeros(_VIEWS)
    kinds = len(_BLOCKS)
    for i in range(values.size):
        x = min(max(values[i], -_LARGEST), _LARGEST) + 0.0
        t = clock[0]
        slot = (times[i] // _MINUTE_US) % _DAY_MINUTES * _SLOTS // _DAY_MINUTES
        known = day[2 + _SLOTS + slot] > 0.0
        sigma = math.sqrt(day[1])
        daily = _of_day(day, x, slot)
        r, distance = _of_week(week, x, times[i] // _HOUR_US, daily)
        r, distance = _of_rhythm(rhythm, beat, bins, profile, x, times[i], r, distance)
        for k in range(kinds):
            views[k] = _stretch(stretches[k], means[k], halves[k], near, x, _BLOCKS[k])
            j = kinds + k
            views[j] = _stretch(stretches[j], means[j], halves[j], near, r, _BLOCKS[k])
        views[8] = _spread(spreads[0], x)
        views[9] = _spread(spreads[1], r)
        views[10], views[11] = _tail(tail, cells, x)
        for k in range(_TESTED):
            views[k] = _rarity(rarities[k], views[k], t)
        views[12] = 6.0 * min(_beyond(span, x) / _RANGE, 1.5)
        total, best = 0.0, 0
        for k in range(_VIEWS):
            total += views[k]
            if views[k] > views[best]:
                best = k
        raw = max(total / _VIEWS, 0.0)
        least = max(limit, block_limit(own, alpha, _BLOCK)) if alpha > 0.0 else limit
        clock[0] = t + 1.0
        if t < warm_up:
            scores[i] = np.nan
        elif _passes(last, hold, t, raw, least):
            scores[i] = raw / least
        else:
            # In order still, and below a half.
            scores[i] = 0.5 * raw / (raw + least)
        if t >= warm_up:
            learn_block(own, raw, _BLOCK)
        # The mean distance of normal values is sqrt(2/pi) sigma.
        reach = _SIGMAS * (sigma if distance == 0.0 else 1.2533141373155003 * distance)
        bands[0, i] = x - r if known else np.nan
        bands[1, i] = reach
        leading[i] = best
    return True


class Pattern:
    """Score a value by what thirteen views of it, and of its rhythm, find unusual.

    The residual r is the value less the mean of its quarter of an hour of the day or, from the third week on and
    where that was nearer of late, of its hour of the week; or, where that was nearer by a quarter, of its phase in a
    rhythm of the series' own, such as a job's every 95 minutes. Views:

    - stretches, of x and of r: distance of the last six blocks (their means and half ranges) to the nearest six in
      a row among the last 500, for blocks of 1, 5, 12 and 30 values;
    - spread: Kullback-Leibler divergence of the histogram of the last w values from that of the past, of x
      with w = 30 and of r with w = 60;
    - tails: mean of -log10 of the two-sided rank among the past, of the last 20 and 60 values;
    - range: distance d beyond the decaying range of all of the past.

    The rhythm of its own is looked for in the means of the latest 1024 bins, each of as many sampling intervals as
    make two minutes (34 hours of a value a minute); the interval is the median of the latest 15 differences of time.
    Every 256 bins, from the 512th on, the autocorrelation of what a trend leaves is computed for lags up to two
    thirds of them. A period is the first of its peaks, up to a third, that is nearly as high as the highest, at
    least .3 and as much over what lies before it, and that comes again at twice its lag; its multiples tell it to a
    fraction of a bin. Up to 96 phases of it then have a mean each, and beside an edge between two phases either is
    usual. It is used once it was held against the others for 1000 values, kept as long as it forecasts better, and
    followed as it is known better.

    The last enters as 6·min(d/c, 1.5), where c is its 99.9 % quantile on unlabelled data; each other y as -log10 of
    its normal tail, -log10 Q((y-m)/s), 8 at most, with m and s of its own past. The score is the mean of all
    thirteen, divided by the limit.

    An incident alarms once, not at each of its values. For levels four to a doubling, a clock is set by the first
    value that reaches it, and none more may pass there for `hold` values. A value passes by the limit's clock if
    it reaches the limit, else by that of its own level; one that does not pass scores below a half. All
    clocks run whatever the limit is, so sensitivity changes nothing that is kept.

    The medium limit makes less than one false alarm in 1000 values of noise, normal or lognormal, independent
    or autoregressive: the views are tested against their own past. Rare counts (ones among many
    zeros) make two.

    The past is bounded: blocks in rings of single precision, ranks in a sketch of at most 512 cells, exact until
    that many distinct values were seen and to about 5 % of the nearer tail after. 54 kB a series.

    Parameters
    ----------
    params
        The limit, and in how many values at most one alarms. With `alpha` the limit is at least what so small a
        share of the series' own scores exceeds (`detectors.tail`). A limit between two levels uses the lower
        one's clock.
    sensitivity
        The limit where params has none: low 2.12, medium 1.5, high 1.06.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors.pattern import Pattern, PatternParams
    >>> minutes = np.arange(0, 14 * 1440, 5)
    >>> rng = np.random.default_rng(1)
    >>> load = 50 + 20 * np.sin(minutes / 1440 * 2 * np.pi) + rng.normal(0, 1, minutes.size)
    >>> load[3000:3060] = 50 + rng.normal(0, 1, 60)    # a normal level, at a time it is not
    >>> scores = Pattern(PatternParams()).score(load, minutes * 60_000_000)
    >>> bool((scores[3000:3060] >= 1).any())
    True
    >>> int((scores >= 1).sum()) <= 4
    True

    References
    ----------
    [^1]: Lavin, A. and Ahmad, S., 2015. Evaluating real-time anomaly detection algorithms: the Numenta
    Anomaly Benchmark. IEEE ICMLA.
    [^2]: Yeh, C. et al., 2016. Matrix profile I: all pairs similarity joins for time series. IEEE ICDM (the
    nearest earlier stretch).
    [^3]: Kullback, S. and Leibler, R., 1951. On information and sufficiency. Annals of Mathematical
    Statistics 22.
    [^4]: Dunning, T. and Ertl, O., 2019. Computing extremely accurate quantiles using t-digests.
    [^5]: Vlachos, M., Yu, P. and Castelli, V., 2005. On periodicity detection and structural periodic similarity.
    SIAM International Conference on Data Mining (peaks of the autocorrelation).
    [^6]: Fisher, R. A., 1932. Statistical methods for research workers (tests combined by the sum of log p).
    """

    spec: ClassVar[DetectorSpec] = DetectorSpec(
        name="pattern",
        kind="value",
        summary="a stretch, spread or range unlike the past's, daily, weekly and its own rhythm included",
        params=PatternParams,
        structural=frozenset({"shingles"}),
        budget="alpha",
        once=True,
    )

    def __init__(
        self, params: PatternParams, *, columns: int = 1, sensitivity: Sensitivity = "medium", seed: int = 0
    ) -> None:
        del columns, seed  # one shape for every detector; this one draws nothing
        self.params = params
        self.reconfigure(params, sensitivity=sensitivity)
        kept = params.shingles + _LONG
        self._state: dict[str, npt.NDArray[Any]] = {
            "clock": np.zeros(1),
            "last": np.full(_LEVELS.size, _NEVER),
            "day": np.zeros(2 + 2 * _SLOTS),
            "week": np.zeros(6 + 2 * _HOURS),
            "rhythm": np.zeros(_GAPS + _DIFFERENCES),
            "beat": np.zeros(_INTEGERS, dtype=np.int64),
            "bins": np.zeros(_RING, dtype=np.float32),
            "profile": np.zeros((2, _SLOTS)),
            "spread30": np.zeros(3 + 2 * _BINS + 30),
            "spread60": np.zeros(3 + 2 * _BINS + 60),
            "range": np.zeros(4),
            "stretches": np.zeros((_STRETCHES, 9)),
            "means": np.zeros((_STRETCHES, kept), dtype=np.float32),
            "halves": np.zeros((_STRETCHES, kept), dtype=np.float32),
            "tail": np.zeros(4 + _LONG_TAIL),
            "cells": np.zeros((2, _CELLS)),
            "rarities": np.zeros((_TESTED, 3)),
            "own": np.zeros(BLOCKS),
        }
        self._scores: F64 = np.empty(0)
        self._bands: F64 = np.empty((2, 0))
        self._leading: I64 = np.empty(0, dtype=np.int64)

    def reconfigure(self, params: PatternParams, *, sensitivity: Sensitivity | None = None) -> None:
        """Take other parameters from the next value on, keeping what was learned.

        Raises
        ------
        ParameterError
            The number of shingles differs.
        """
        require_kept(self.spec, self.params, params)
        if sensitivity is not None:
            self._sensitivity = sensitivity
        self.params = params
        self._limit = params.limit if params.limit is not None else _LIMIT[self._sensitivity]

    def score(self, values: F64, times: I64) -> F64:
        """Score each of (n,) values, then learn it; see `detectors.protocol.Detector.score`."""
        array = as_values(values, times, name="pattern")
        scores, bands = np.empty(array.size), np.empty((2, array.size))
        leading = np.empty(array.size, dtype=np.int64)
        s, params = self._state, self.params
        if not score_pattern(
            array,
            as_times(times),
            s["clock"],
            s["last"],
            s["day"],
            s["week"],
            s["rhythm"],
            s["beat"],
            s["bins"],
            s["profile"],
            (s["spread30"], s["spread60"]),
            s["range"],
            s["stretches"],
            s["means"],
            s["halves"],
            np.empty(s["means"].shape[1], dtype=np.float32),
            s["tail"],
            s["cells"],
            s["rarities"],
            s["own"],
            params.warm_up,
            self._limit,
            params.alpha or 0.0,
            params.hold,
            scores,
            bands,
            leading,
        ):
            raise refuse_non_finite("pattern")
        self._scores, self._bands, self._leading = scores, bands, leading
        return scores.copy()

    def explain(self, index: int = -1) -> Evidence:
        """Give what is usual at this time, three sigmas to either side, and the view that leads."""
        if math.isnan(self._scores[index]):
            return Evidence()
        note = _NOTES[self._leading[index]]
        expected, reach = float(self._bands[0, index]), float(self._bands[1, index])
        if math.isnan(expected):
            return Evidence(note=note)
        return Evidence(expected=expected, usual=(expected - reach, expected + reach), note=note)

    def warming(self) -> int:
        """Return how many more values are needed before scores are given."""
        return max(0, self.params.warm_up - int(self._state["clock"][0]))

    def snapshot(self) -> State:
        """Return every array of the past."""
        used = int(self._state["tail"][1])
        return {name: (array[:, :used] if name == "cells" else array).copy() for name, array in self._state.items()}

    def restore(self, state: State) -> None:
        """Take up a past; raise `StateError` on any other state, or one of another number of shingles."""
        found: dict[str, npt.NDArray[Any]] = {}
        for name, array in self._state.items():
            given = state.get(name)
            if not isinstance(given, np.ndarray) or not np.isfinite(given).all():
                raise StateError(f"pattern: no finite numbers `{name}`")
            if name == "cells":
                used = int(found["tail"][1])
                if given.shape != (2, used) or used >= _CELLS:
                    raise StateError(f"pattern: expected {used} cells, got {given.shape}")
                found[name] = np.zeros((2, _CELLS))
                found[name][:, :used] = given
            elif given.shape != array.shape:
                raise StateError(f"pattern: `{name}` is {given.shape}, expected {array.shape}")
            else:
                found[name] = given.astype(array.dtype)
        self._state = found
