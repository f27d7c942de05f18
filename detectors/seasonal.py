"""A robust z-score of what the time of the day and of the week do not explain."""

from __future__ import annotations

import math
from typing import ClassVar, Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.kernels import MAX_SCORE, all_finite, as_times, as_values, kernel, refuse_non_finite
from detectors.params import DetectorSpec, Sensitivity
from detectors.protocol import F64, I64, Evidence, State
from detectors.robust_z import SIDES, RobustZ, RobustZParams, centre, scale_of, score_robust_z
from detectors.state import StateError
from detectors.tail import FURTHEST, TAIL, tail_limit

__all__ = ["Seasonal", "SeasonalParams"]

F32: TypeAlias = npt.NDArray[np.float32]
U8: TypeAlias = npt.NDArray[np.uint8]

# The profile: means of the quarter hours of the day, then of the hours of the week, both of UTC.
_SLOTS: Final = 96
_HOURS: Final = 168
_HOUR_US: Final = 3_600_000_000
_SLOT_US: Final = _HOUR_US // 4
_DAY_US: Final = 24 * _HOUR_US
# Least share of a day in its slots and of a week in its hours: a week's memory, and a month's.
_OF_A_DAY: Final = 1.0 / 7.0
_OF_A_WEEK: Final = 0.25
_MOST_VISITS: Final = 255

# Means of errors halve in some five days, so that what is good at night only, or on weekdays, is not chosen by that.
_MEMORY_DAYS: Final = 7.0
# An error counts for no more than this many times the mean, once so many have been seen: an incident proves nothing.
_MOST_ERROR: Final = 6.0
_SETTLED: Final = 30
# The profile is used where its mean error is below this share of the rolling median's, after a whole day of both and
# at least so many values, and until it is above that.
_BETTER: Final = 0.75
_NO_BETTER: Final = 0.9
_TRIED: Final = 24
# A deviation is measured in the forecast to the power of 0, 1/2 or 1, of which no less than this share of the usual
# value counts: at the dead of night a single event is no multiple of none.
_POWERS: Final = 3
_LEAST_SHAPE: Final = 0.05
# A profile learns a value no further out than this many scales, and of far values in a row one in four, as a window.
_CLIP: Final = 2.0
_LEARN_ONE_OF: Final = 4
# Visits of an hour of the week before it forecasts: an incident in the first would be forecast for the second.
_WEEKS_KNOWN: Final = 2
# What has been out on one side for a day, from a far value on, by so many scales and in so many values at least, is a
# new level, unless next to nothing.
_RUN: Final = 8
_RUN_SCALES: Final = 3.0
_LEAST_LEVEL: Final = 0.05
_MOST_LEVEL: Final = 1e6
# A loss of a part is far in no single value, but in the mean of the latest: of deviations in scales, none of which
# counts for more than the clip, some fifty weigh in it.
_LATE: Final = 1.0 / 50.0
_LATE_CLIP: Final = 4.0
# How large that mean is of itself is learned beside it. From so many times that on it is out, and until it is below so
# many; meanwhile nothing is learned, and half the limit holds: what ended an alert would else be the night.
_OUT: Final = 4.5
_IN: Final = 2.0
_EASIER: Final = 0.75  # a mean of fifty strays less far than a value does
_WHILE_OUT: Final = 0.5
# Nearer than this share of what is usual it matters to nobody, however sure it is.
_LEAST_SHARE: Final = 0.1
# It needs a profile no worse than the rolling median by this, and is no further out than it is from the same hour a
# week ago, lest a weekend be a loss. The last few, eight weigh in their mean, end it sooner: where that is nearer by
# more than their chance, and by two thirds.
_AS_GOOD: Final = 1.1
_FEW: Final = 1.0 / 8.0
_NEARER: Final = 0.8
_BACK: Final = 0.35
# Means before their usual size is known: those of a day, and of some hours at least where windows are long.
_SETTLED_MEANS: Final = 60
_TO_SIGMA: Final = math.sqrt(math.pi / 2.0)
# What is out so long is a new level.
_HELD_US: Final = 30 * _HOUR_US
# Kept in single precision; no count of events comes near.
_LARGEST: Final = 1e30

_N: Final = 0  # of the place of a window: values, where the next goes, far values in a row
_HEAD: Final = 1
_FAR: Final = 2

_OPEN_SLOT: Final = 0  # of the integers: numbers of the open quarter hour and hour, since the epoch
_OPEN_HOUR: Final = 1
_LAST: Final = 2  # time of the last value, µs
_BELOW: Final = 3  # 1 once a value was below 0
_USED: Final = 4  # 1 while the profile is used
_SINCE: Final = 5  # time of the first comparison with the rolling median
_RUN_SINCE: Final = 6  # time at which the run of values far out began, and its side; 0: none
_RUN_SIDE: Final = 7
_OUT_SIDE: Final = 8  # side on which the mean of the latest is out; 0: it is not
_INTEGERS: Final = 9

_SLOT: Final = 0  # of the floats: sum and count of the open quarter hour, of the open hour
_HOUR: Final = 2
_LEVEL: Final = 4  # by which the profile is multiplied
_USUAL: Final = 5  # mean forecast
_FORECASTS: Final = 6
_SHAPE: Final = 7  # mean logarithm of the forecast over the usual value
_ERRORS: Final = 8  # mean error in each power of the forecast
_COMPARED: Final = _ERRORS + _POWERS  # with the rolling median: how often, its mean error and that of the profile
_MEDIANS: Final = _COMPARED + 1
_OURS: Final = _COMPARED + 2
_WEEKS: Final = _COMPARED + 3  # day against week: how often, mean errors
_OF_DAY: Final = _WEEKS + 1
_OF_WEEK: Final = _WEEKS + 2
_RUN_COUNT: Final = _WEEKS + 3  # values of the run, and their mean as a share of what was expected
_RUN_SHARE: Final = _WEEKS + 4
_MEAN: Final = _WEEKS + 5  # mean of the latest deviations, in scales
_MEANS_SEEN: Final = _WEEKS + 6  # how many of such means their usual size is of, and that
_MEAN_SIZE: Final = _WEEKS + 7
_SURE: Final = _WEEKS + 8  # the first mean again, of deviations from last week too, where that is all there is
_RAW: Final = _WEEKS + 9  # sum and count of the open hour's values as they are
_SOON: Final = _WEEKS + 11  # mean of the last few, while the mean of the latest is out
_FLOATS: Final = _WEEKS + 12

_PARTS: Final = ("residual_tail", "means", "visits", "clock", "sums", "last_week")


class SeasonalParams(RobustZParams, frozen=True, kw_only=True):
    """Parameters of `Seasonal`: those of `robust_z`; of residuals half of `window` is kept."""


@kernel
def _close(means: F32, visits: U8, s: F64, at: int, place: int, least: float) -> None:
    """Learn the mean of an open stretch, whose sum and count are at `at`, and empty it."""
    if s[at + 1] > 0.0:
        visits[place] = min(visits[place] + 1, _MOST_VISITS)
        share = max(least, 1.0 / visits[place])
        means[place] = np.float32(means[place] + share * (s[at] / s[at + 1] - means[place]))
    s[at], s[at + 1] = 0.0, 0.0


@kernel
def _average(s: F64, at: int, value: float, share: float, n: float) -> None:
    """Move a mean of errors towards one more, no further out than what an incident may prove."""
    if n > _SETTLED and s[at] > 0.0:  # nothing is beyond comparison with none
        value = min(value, _MOST_ERROR * s[at])
    s[at] += share * (value - s[at])


@kernel
def _forecast(means: F32, visits: U8, s: F64, slot: int, hour: int) -> float:
    """Return what is usual then, of the day or of the week, whichever is nearer of late; -1 if unknown."""
    if visits[hour] >= _WEEKS_KNOWN and (visits[slot] == 0 or s[_OF_WEEK] < s[_OF_DAY]):
        return float(s[_LEVEL] * means[hour])
    return float(s[_LEVEL] * means[slot]) if visits[slot] > 0 else -1.0


@kernel
def _unit(s: F64, forecast: float, abs_floor: float) -> tuple[float, float]:
    """Return what deviations from a forecast are measured in, and their mean size so measured.

    The usual value u times (forecast / u)^p: noise of one size all day (p = 0), of counts (1/2), or in proportion (1),
    whichever makes the deviations so far likeliest: the least of log(mean size) + p · mean log(forecast / u).
    """
    usual = max(s[_USUAL], abs_floor)
    shape = max(forecast / usual, _LEAST_SHAPE)
    # Compared by their exponentials, which takes fewer logarithms.
    half = math.exp(0.5 * s[_SHAPE])
    best, least = 0, s[_ERRORS]
    for k in range(1, _POWERS):
        cost = s[_ERRORS + k] * (half if k == 1 else half * half)
        if cost < least:
            best, least = k, cost
    unit = usual if best == 0 else usual * math.sqrt(shape) if best == 1 else usual * shape
    return float(unit), float(s[_ERRORS + best])


@kernel
def _learn_spread(s: F64, x: float, forecast: float, days: float, abs_floor: float) -> None:
    """Learn how large errors are beside the forecast."""
    s[_FORECASTS] += 1.0
    share = max(1.0 / s[_FORECASTS], days / _MEMORY_DAYS)
    s[_USUAL] += share * (forecast - s[_USUAL])
    usual = max(s[_USUAL], abs_floor)
    shape = max(forecast / usual, _LEAST_SHAPE)
    s[_SHAPE] += share * (math.log(shape) - s[_SHAPE])
    error = abs(x - forecast) / usual
    _average(s, _ERRORS, error, share, s[_FORECASTS])
    _average(s, _ERRORS + 1, error / math.sqrt(shape), share, s[_FORECASTS])
    _average(s, _ERRORS + 2, error / shape, share, s[_FORECASTS])


@kernel
def _judge(s: F64, clock: I64, time: int, median: float, ours: float, days: float) -> None:
    """Decide, by the errors of the rolling median and of the profile, which is used from the next value on."""
    if s[_COMPARED] == 0.0:
        clock[_SINCE] = time
    s[_COMPARED] += 1.0
    share = max(1.0 / s[_COMPARED], days / _MEMORY_DAYS)
    _average(s, _MEDIANS, median, share, s[_COMPARED])
    _average(s, _OURS, ours, share, s[_COMPARED])
    if time - clock[_SINCE] >= _DAY_US and s[_COMPARED] >= _TRIED:  # a day, since the mean of the latest was out too
        if s[_OURS] < _BETTER * s[_MEDIANS]:
            clock[_USED] = 1
        elif s[_OURS] >= _NO_BETTER * s[_MEDIANS]:
            clock[_USED] = 0


@kernel
def _level(s: F64, clock: I64, place: I64, time: int, side: int, share: float) -> None:
    """Count a value out on a side (0: none), `share` of what was expected; after a day of them take their level up."""
    held = clock[_OUT_SIDE] != 0
    if side == 0 or side != clock[_RUN_SIDE]:
        clock[_RUN_SINCE], clock[_RUN_SIDE] = time, side if held or place[_FAR] > 0 else 0
        s[_RUN_COUNT], s[_RUN_SHARE] = 0.0, 0.0
        if clock[_RUN_SIDE] == 0:
            return
    s[_RUN_COUNT] += 1.0
    s[_RUN_SHARE] += (share - s[_RUN_SHARE]) / s[_RUN_COUNT]
    if time - clock[_RUN_SINCE] < (_HELD_US if held else _DAY_US) or s[_RUN_COUNT] < _RUN:
        return
    if s[_RUN_SHARE] >= _LEAST_LEVEL and 1.0 / _MOST_LEVEL < s[_LEVEL] * s[_RUN_SHARE] < _MOST_LEVEL:
        s[_LEVEL] *= s[_RUN_SHARE]
        s[_USUAL] *= s[_RUN_SHARE]
    place[_FAR], clock[_RUN_SIDE] = 0, 0
    s[_MEAN], s[_SURE], clock[_OUT_SIDE] = 0.0, 0.0, 0


@kernel
def _move(s: F64, clock: I64, z: float, sure: float, days: float, as_good: bool, least: float) -> None:
    """Take one more deviation, in scales, into the mean of the latest, and see whether that is out.

    sure: the same, but no further than it is from what it was a week ago. least: what any mean is out by at least.
    """
    z, sure = min(max(z, -_LATE_CLIP), _LATE_CLIP), min(max(sure, -_LATE_CLIP), _LATE_CLIP)
    s[_MEAN] += _LATE * (z - s[_MEAN])
    s[_SURE] += _LATE * (sure - s[_SURE])
    side = clock[_OUT_SIDE]
    deviation = _TO_SIGMA * s[_MEAN_SIZE]
    if side == 0:
        if as_good and s[_MEANS_SEEN] >= _SETTLED_MEANS and abs(s[_SURE]) > max(_OUT * deviation, least):
            clock[_OUT_SIDE], s[_SOON] = 1 if s[_SURE] > 0.0 else -1, s[_SURE]
            return
        s[_MEANS_SEEN] += 1.0
        share = max(1.0 / s[_MEANS_SEEN], days / _MEMORY_DAYS)
        _average(s, _MEAN_SIZE, abs(s[_MEAN]), share, s[_MEANS_SEEN])
        return
    s[_SOON] += _FEW * (sure - s[_SOON])
    if side * (s[_SURE] - s[_SOON]) > _NEARER and side * s[_SOON] < _BACK * side * s[_SURE]:
        s[_MEAN], s[_SURE], clock[_OUT_SIDE] = 0.0, 0.0, 0
    elif side * s[_SURE] <= max(_IN * deviation, 0.5 * least):
        clock[_OUT_SIDE] = 0


@kernel
def score_seasonal(
    values: F64,
    times: I64,
    ring: F64,
    ordered: F64,
    place: I64,
    tail: F64,
    means: F32,
    visits: U8,
    clock: I64,
    s: F64,
    last: F32,
    room: F64,
    warm_up: int,
    side: int,
    limit: float,
    alpha: float,
    rel_floor: float,
    abs_floor: float,
    scores: F64,
    medians: F64,
    widths: F64,
    nows: F64,
    levels: F64,
) -> None:
    """Learn each value in order, all finite; where the profile is used, put its score, forecast and width.

    scores, medians and widths come as `score_robust_z` leaves them. ring to tail are a window of its own, of
    residuals; room is (4,), for one of them. nows: what the latest values are on average where it is they that score,
    else nan; the width is then theirs. levels: by what the profile is multiplied in the forecast, nan where it is not
    used.
    """
    for i in range(values.size):
        time = times[i]
        days = min(max(time - clock[_LAST], 0), _DAY_US) / _DAY_US
        clock[_LAST] = time
        if values[i] < 0.0:
            clock[_BELOW] = 1
        if clock[_BELOW] == 1:
            continue
        x = min(values[i], _LARGEST)
        if time // _SLOT_US != clock[_OPEN_SLOT]:
            _close(means, visits, s, _SLOT, clock[_OPEN_SLOT] % _SLOTS, _OF_A_DAY)
            clock[_OPEN_SLOT] = time // _SLOT_US
        if time // _HOUR_US != clock[_OPEN_HOUR]:
            _close(means, visits, s, _HOUR, _SLOTS + clock[_OPEN_HOUR] % _HOURS, _OF_A_WEEK)
            if s[_RAW + 1] > 0.0:
                last[clock[_OPEN_HOUR] % _HOURS] = np.float32(s[_RAW] / s[_RAW + 1])
                s[_RAW], s[_RAW + 1] = 0.0, 0.0
            clock[_OPEN_HOUR] = time // _HOUR_US
        slot, hour = clock[_OPEN_SLOT] % _SLOTS, _SLOTS + clock[_OPEN_HOUR] % _HOURS
        learned, counts, middle, scale, expected = x, True, math.nan, 0.0, 0.0
        forecast = _forecast(means, visits, s, slot, hour)
        if forecast >= 0.0:
            if s[_FORECASTS] == 0.0:
                s[_USUAL] = forecast
            unit, error = _unit(s, forecast, abs_floor)
            least, most = limit, MAX_SCORE
            if alpha > 0.0:
                least, most = max(limit, tail_limit(tail, alpha)), FURTHEST
            room[0] = (x - forecast) / unit
            # Where windows are short the residuals are those of the last hours: the week has seen more.
            floor = max(rel_floor, abs_floor / unit, error)
            # With a limit of 1 the score is the distance itself.
            if clock[_OUT_SIDE] == 0:
                score_robust_z(
                    room[:1], ring, ordered, place, tail, warm_up, side, 1.0, 0.0, 0.0, floor, True,
                    room[1:2], room[2:3], room[3:],
                )  # fmt: skip
                middle, scale = room[2], room[3]
            else:  # what it is measured by stays as it was
                middle = centre(ordered, place[_N])
                scale = scale_of(ordered, place[_N], middle, 0.0, floor)[0]
                distance = (room[0] - middle) / scale
                room[1] = abs(distance) if side == 0 else max(side * distance, 0.0)
            if not math.isnan(middle):  # it is known how far residuals lie apart
                expected = forecast + middle * unit
                if not math.isnan(medians[i]):
                    before = medians[i]
                    if clock[_USED] == 1:
                        scores[i] = min(room[1], most) / least
                        medians[i], widths[i] = expected, scale * least * unit
                        levels[i] = s[_LEVEL] * expected / forecast if forecast > 0.0 else np.nan
                    if clock[_OUT_SIDE] == 0:
                        _judge(s, clock, time, abs(x - before), abs(x - expected), days)
                    sure = z = (room[0] - middle) / scale
                    weekly = (x - s[_LEVEL] * last[hour - _SLOTS]) / (unit * scale)
                    if last[hour - _SLOTS] < 0.0 or weekly * z <= 0.0 or _LEAST_LEVEL * x > expected:
                        sure = 0.0
                    elif abs(weekly) < abs(z):
                        sure = weekly
                    least_mean = _LEAST_SHARE * expected / (scale * unit)
                    as_good = clock[_USED] == 1 or (
                        time - clock[_SINCE] >= _DAY_US and s[_OURS] < _AS_GOOD * s[_MEDIANS]
                    )
                    _move(s, clock, z, sure, days, as_good, least_mean)
                    if clock[_OUT_SIDE] != 0:
                        # The rolling median follows what is out, and takes what comes back for a rise.
                        clock[_USED], clock[_SINCE] = 1, time
                    if clock[_OUT_SIDE] != 0 or as_good:
                        mean = abs(s[_SURE]) if side == 0 else max(side * s[_SURE], 0.0)
                        width = max(_EASIER * limit * _TO_SIGMA * s[_MEAN_SIZE], least_mean)
                        if clock[_OUT_SIDE] != 0:
                            width *= _WHILE_OUT
                        known = s[_MEANS_SEEN] >= _SETTLED_MEANS and mean > 0.0
                        if known and mean >= width and mean > scores[i] * width:
                            scores[i] = min(mean / width, MAX_SCORE)
                            medians[i], widths[i] = expected, width * scale * unit
                            levels[i] = s[_LEVEL] * expected / forecast if forecast > 0.0 else np.nan
                            nows[i] = max(expected + s[_SURE] * scale * unit, 0.0)
                nearest = min(max(room[0], middle - _CLIP * scale), middle + _CLIP * scale)
                learned = max(forecast + nearest * unit, 0.0)
                counts = place[_FAR] % _LEARN_ONE_OF == 0 and clock[_OUT_SIDE] == 0
            if clock[_OUT_SIDE] == 0:
                _learn_spread(s, x, forecast, days, abs_floor)
                if visits[slot] > 0 and visits[hour] >= _WEEKS_KNOWN:
                    s[_WEEKS] += 1.0
                    share = max(1.0 / s[_WEEKS], days / _MEMORY_DAYS)
                    _average(s, _OF_DAY, abs(x - s[_LEVEL] * means[slot]), share, s[_WEEKS])
                    _average(s, _OF_WEEK, abs(x - s[_LEVEL] * means[hour]), share, s[_WEEKS])
        s[_RAW] += x / s[_LEVEL]
        s[_RAW + 1] += 1.0
        if counts:
            s[_SLOT] += learned / s[_LEVEL]
            s[_SLOT + 1] += 1.0
            s[_HOUR] += learned / s[_LEVEL]
            s[_HOUR + 1] += 1.0
        if not math.isnan(middle):
            above = room[0] - middle
            out = 0 if abs(above) <= _RUN_SCALES * scale else 1 if above > 0.0 else -1
            if clock[_OUT_SIDE] != 0:
                out = clock[_OUT_SIDE]
            if out != 0 or clock[_RUN_SIDE] != 0:
                _level(s, clock, place, time, out, x / max(expected, _LEAST_SHAPE * s[_USUAL], abs_floor))


@kernel
def learn_residuals(
    values: F64,
    times: I64,
    ring: F64,
    ordered: F64,
    place: I64,
    tail: F64,
    means: F32,
    visits: U8,
    clock: I64,
    s: F64,
    room: F64,
    abs_floor: float,
) -> None:
    """Learn values, all finite, in full: their residuals, and each quarter hour and hour of them as one visit."""
    if clock[_BELOW] == 1:
        return
    sums = np.zeros(4)
    for i in range(values.size):
        x = min(max(values[i], 0.0), _LARGEST)
        slot, hour = times[i] // _SLOT_US % _SLOTS, _SLOTS + times[i] // _HOUR_US % _HOURS
        forecast = _forecast(means, visits, s, slot, hour)
        if forecast >= 0.0:
            room[0] = (x - forecast) / _unit(s, forecast, abs_floor)[0]
            score_robust_z(
                room[:1], ring, ordered, place, tail, 0, 0, 1.0, 0.0, 0.0, 1.0, False,
                room[1:2], room[2:3], room[3:],
            )  # fmt: skip
        last = i + 1 == values.size
        sums[0] += x / s[_LEVEL]
        sums[1] += 1.0
        sums[2] += x / s[_LEVEL]
        sums[3] += 1.0
        if last or times[i + 1] // _SLOT_US != times[i] // _SLOT_US:
            _close(means, visits, sums, 0, slot, _OF_A_DAY)
        if last or times[i + 1] // _HOUR_US != times[i] // _HOUR_US:
            _close(means, visits, sums, 2, hour, _OF_A_WEEK)
    place[_FAR] = 0


class Seasonal(RobustZ):
    """Score a value by its distance to what is usual at this time of the day and the week.

    Of every quarter hour of the day (UTC) and every hour of the week the mean is kept, of which each visit moves it by
    1 / visits, but by 1/7 and 1/4 at least; the forecast f is that of the day or, from its third visit on, that of the
    week where its mean error is less. Deviations x - f are measured in u·(f / u)^p, u the usual forecast and p the
    one of 0, 1/2 and 1 that makes them likeliest: noise of one size, of counts, in proportion. These residuals, half
    a `window` of them, are scored as by `detectors.robust_z`: by their distance to their own median, which is how the
    latest level differs from the profile, in robust standard deviations, none less than residuals' mean size of late.

    All this is used only while it is clearly better: from when its mean error is less than .75 of that of the rolling
    median, over a day of both at least, until it is over .9. Until then, which is in the first two days, and for a
    series without a season, scores of values are those of `robust_z` to the bit. So they are for a series that was ever
    below 0, whose swing is in proportion to nothing. Event time alone counts, whatever the windows' length.

    What is learned is damped as there: the profile learns no value further out than 2 scales, and of far values in a
    row one in four, so that an incident hardly enters it. What has been out on one side for a whole day is a new
    level: the profile is multiplied by what the day was of it, and is at rest at once and on the days to come.

    A part of the traffic that is gone, or added, is far out in no single value. So beside the score of a value there is
    one of the latest, for rises and losses that last: of deviations in scales, none beyond 4, the mean with the memory
    of 50 values, in robust standard deviations of itself as it was of late, 3/4 of the limit and a tenth of what is
    usual at least. No deviation counts for more than the one from the same hour a week ago, so that no weekend is a
    loss, and it takes a week to begin; nor does any where the profile is worse than the rolling median by a tenth.
    Where the mean is out (4.5, whatever the limit), nothing is learned until it is back (2, or the last 8 by two
    thirds), half the limit holds, and after 30 hours what it was of what is usual is the new level. Evidence is then of
    `now`.

    An instance keeps some 10 kB, its snapshot takes 4 kB more than that of `robust_z`.

    Parameters
    ----------
    params
        As of `detectors.robust_z`: window, direction, floors (`rel_floor` as a share of the forecast).
    sensitivity
        The limit where params has none: low 9, medium 6, high 4 scales.

    Examples
    --------
    Events with a daily swing, and at three on the tenth night four times as many as at night, fewer than by day:

    >>> import numpy as np
    >>> from detectors.seasonal import Seasonal, SeasonalParams
    >>> hours = np.arange(10 * 24)
    >>> usual = 100.0 * (1.0 - 0.8 * np.cos(2 * np.pi * hours / 24))
    >>> values = np.random.default_rng(1).poisson(usual).astype(float)
    >>> values[219] *= 4.0
    >>> detector = Seasonal(SeasonalParams())
    >>> scores = detector.score(values, hours * 3_600_000_000)
    >>> np.flatnonzero(scores >= 1)
    array([219])
    >>> evidence = detector.explain(219)
    >>> round(values[219]), round(evidence.lower), round(evidence.upper), round(values.max())
    (168, 4, 80, 206)

    References
    ----------
    [^1]: Box, G. and Cox, D., 1964. An analysis of transformations. Journal of the Royal Statistical Society B 26 (the
    choice of p by likelihood).
    """

    spec: ClassVar[DetectorSpec] = DetectorSpec(
        name="seasonal",
        kind="value",
        summary="robust_z of what the time of the day and the week do not explain",
        params=SeasonalParams,
        structural=frozenset({"window"}),
    )

    def __init__(
        self,
        params: RobustZParams,
        *,
        columns: int = 1,
        sensitivity: Sensitivity = "medium",
        seed: int = 0,
    ) -> None:
        super().__init__(params, columns=columns, sensitivity=sensitivity, seed=seed)
        self._room: F64 = np.empty(4)
        size = max(params.window // 2, 5)
        self._residuals: F64 = np.zeros(size)
        self._by_size: F64 = np.zeros(size)
        self._residual_place: I64 = np.zeros(3, dtype=np.int64)
        self._residual_tail: F64 = np.zeros(TAIL)
        self._means: F32 = np.zeros(_SLOTS + _HOURS, dtype=np.float32)
        self._visits: U8 = np.zeros(_SLOTS + _HOURS, dtype=np.uint8)
        self._clock: I64 = np.zeros(_INTEGERS, dtype=np.int64)
        self._sums: F64 = np.zeros(_FLOATS)
        self._sums[_LEVEL] = 1.0
        self._last_week: F32 = np.full(_HOURS, -1.0, dtype=np.float32)
        self._nows: F64 = np.empty(0)
        self._levels: F64 = np.empty(0)

    def _season(self) -> tuple[F64, F64, I64, F64, F32, U8, I64, F64]:
        return (
            self._residuals,
            self._by_size,
            self._residual_place,
            self._residual_tail,
            self._means,
            self._visits,
            self._clock,
            self._sums,
        )

    def score(self, values: F64, times: I64) -> F64:
        """Score each of (n,) values, then learn it; see `detectors.protocol.Detector.score`."""
        array = as_values(values, times, name="seasonal")
        if not all_finite(array):
            raise refuse_non_finite("seasonal")
        scores = super().score(array, times)
        self._nows, self._levels = np.full((2, array.size), np.nan)
        params = self.params
        score_seasonal(
            array,
            as_times(times),
            *self._season(),
            self._last_week,
            self._room,
            params.warm_up,
            SIDES[params.direction],
            self._limit,
            params.alpha or 0.0,
            params.rel_floor,
            params.abs_floor,
            scores,
            self._medians,
            self._widths,
            self._nows,
            self._levels,
        )
        return scores

    def explain(self, index: int = -1) -> Evidence:
        """Give what is usual then and the band outside which the score is 1.0 or more: of the value, or of `now`."""
        found = super().explain(index)
        now, level = float(self._nows[index]), float(self._levels[index])
        return msgspec.structs.replace(
            found, now=None if math.isnan(now) else now, level=None if math.isnan(level) else level
        )

    def learn_undamped(self, values: F64, times: I64) -> None:
        """Learn (n,) values in full, however far out; see `detectors.protocol.Damped`."""
        array = as_values(values, times, name="seasonal")
        super().learn_undamped(array, times)
        self._place[_FAR] = 0
        learn_residuals(array, as_times(times), *self._season(), self._room, self.params.abs_floor)

    def snapshot(self) -> State:
        """Return what `robust_z` does, and the profile, its residuals, oldest first, and how well both did."""
        n, head = int(self._residual_place[_N]), int(self._residual_place[_HEAD])
        residuals = self._residuals[:n] if n < self._residuals.size else np.roll(self._residuals, -head)
        return {
            **super().snapshot(),
            "residuals": residuals.copy(),
            "residual_far": int(self._residual_place[_FAR]),
            **{name: getattr(self, f"_{name}").copy() for name in _PARTS},
        }

    def restore(self, state: State) -> None:
        """Take up a state; raise `StateError` when it is not one of this detector."""
        residuals = state.get("residuals")
        if (
            not isinstance(residuals, np.ndarray)
            or residuals.ndim != 1
            or residuals.size > self._residuals.size
            or not isinstance(state.get("residual_far"), int)
            or any(getattr(state.get(name), "shape", None) != getattr(self, f"_{name}").shape for name in _PARTS)
        ):
            raise StateError(f"seasonal: expected residuals of at most {self._residuals.size} values, and a profile")
        super().restore(state)
        n = residuals.size
        self._residuals[:n] = residuals
        self._by_size[:n] = np.sort(residuals)
        self._residual_place[:] = n, n % self._residuals.size, int(state["residual_far"])
        for name in _PARTS:
            getattr(self, f"_{name}")[:] = state[name]
