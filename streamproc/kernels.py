"""Compiled loops of the hot path: records walked against templates, and windows filled.

`match` reads the values out of JSON records of a known shape (see `streamproc.templates`). It is
stricter than JSON: whatever it is not sure of is a mismatch, and the record is decoded by msgspec.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from detectors.kernels import kernel
from detectors.protocol import F64, I64
from streamproc.cells import IS_NULL, IS_NUMBER, IS_TEXT, LONG_TEXT

U8: TypeAlias = npt.NDArray[np.uint8]
U64: TypeAlias = npt.NDArray[np.uint64]
I32: TypeAlias = npt.NDArray[np.int32]
U16: TypeAlias = npt.NDArray[np.uint16]
U32: TypeAlias = npt.NDArray[np.uint32]
F32: TypeAlias = npt.NDArray[np.float32]

# What a slot of a template holds.
END: Final = 0
ANY: Final = 1  # a scalar nobody looks at
TEXT: Final = 2  # a string nobody looks at
TEXT_OR_NULL: Final = 3
NUMBER: Final = 4  # a number nobody looks at
TIME: Final = 5
DURATION: Final = 6
VALUE: Final = 7
SCORE: Final = 8
LABEL: Final = 9
PREDICTION: Final = 10
ERROR: Final = 11
ERROR_TYPE: Final = 12
FEATURE: Final = 13
ID: Final = 14
SOURCE: Final = 15
CLASS_SCORE: Final = 16
ERROR_NAME: Final = 17  # the type inside an error object
TOKENS_IN: Final = 18
TOKENS_OUT: Final = 19
COST: Final = 20

# Flags of a template.
ANSWERED: Final = 1  # whatever its slots hold, it says something
FAILED: Final = 2  # it has an error object
SCORED: Final = 4  # it has scores by class, and the best is the class where no label is given

#: Values beyond count as this, so that no sum of a window overflows.
LARGEST: Final = 1e290

#: Largest distance whose squares can be summed.
ROOT: Final = 1e140

#: A record without a time.
NO_TIME: Final = -(1 << 62)
#: No label; a label not in the table yet.
NO_LABEL: Final = -1
NEW_LABEL: Final = -2
#: The class of scores in a list is the place of the best: this less the place, to be given a code.
POSITIONS: Final = -10
#: Longest label kept in the table, in bytes with its quotes.
MAX_LABEL: Final = 128

# Times of the years 1900 to 2099 only: there the seconds of a double still tell microseconds apart,
# so that every way to compute them agrees.
_MAX_US: Final = 4_100_000_000_000_000

#: Earlier than 1980 is no plausible time of an event (`coercion.plausible_us`), which is for msgspec's way to say.
_MIN_US: Final = 315_532_800_000_000

_QUOTE: Final = 0x22
_BACKSLASH: Final = 0x5C
_MINUS: Final = 0x2D
_PLUS: Final = 0x2B
_DOT: Final = 0x2E
_COLON: Final = 0x3A
_ZERO: Final = 0x30
_NINE: Final = 0x39

_U0: Final = np.uint64(0)
_U1: Final = np.uint64(1)
_U3: Final = np.uint64(3)
_U10: Final = np.uint64(10)
_U32: Final = np.uint64(32)
_U48: Final = np.uint64(48)
_U63: Final = np.uint64(63)
_LOW32: Final = np.uint64(0xFFFFFFFF)
_U11: Final = np.uint64(11)
_U33: Final = np.uint64(33)
# Odd numbers without pattern: the golden ratio's, and the two of MurmurHash3's last step.
_STIR: Final = np.uint64(0x9E3779B97F4A7C15)
_STIR_1: Final = np.uint64(0xFF51AFD7ED558CCD)
_STIR_2: Final = np.uint64(0xC4CEB9FE1A85EC53)
_ONES: Final = np.uint64(0x0101010101010101)
_TOPS: Final = np.uint64(0x8080808080808080)
_TENS_OF: Final = np.uint64(0xF0F0F0F0F0F0F0F0)
_SIXES: Final = np.uint64(0x0606060606060606)
_THREES: Final = np.uint64(0x3333333333333333)
_ALL: Final = np.uint64(0xFFFFFFFFFFFFFFFF)
_EXACT: Final = np.uint64(1 << 53)  # integers up to here are doubles
_MANTISSA: Final = np.uint64((1 << 52) - 1)
_CARRIED: Final = np.uint64(1 << 53)
_UNSURE: Final = np.uint64(0x1FF)  # bits of the product below those a double needs

_LEAST_POWER: Final = -342
_GREATEST_POWER: Final = 308


def _powers_of_five() -> U64:
    """Return 5**q for q from -342 to 308 as 128 bits each, the highest set: (651, 2), high word first.

    Rounded as Lemire's paper (section 5, and the table of its appendix) has it: down for q >= 0, up else.
    """
    table = np.empty((_GREATEST_POWER - _LEAST_POWER + 1, 2), np.uint64)
    for q in range(_LEAST_POWER, _GREATEST_POWER + 1):
        power = 5 ** abs(q)
        if q >= 0:
            shift = 128 - power.bit_length()
            bits = power << shift if shift >= 0 else power >> -shift
        else:
            z = (power - 1).bit_length()
            bits = (1 << (z + 127 if q >= -27 else 2 * z + 128)) // power + 1
            bits >>= max(0, bits.bit_length() - 128)
        table[q - _LEAST_POWER] = bits >> 64, bits & 0xFFFFFFFFFFFFFFFF
    return table


_FIVES: Final = _powers_of_five()
_TENS: Final = np.array([10.0**k for k in range(23)])
# 2**k for k from -1074 to 971: a mantissa of 53 bits times one of these is exact.
_TWOS: Final = np.array([float.fromhex(f"0x1p{k}") for k in range(-1074, 972)])


@intrinsic  # type: ignore[untyped-decorator]
def _word(typing: Any, data: Any, at: Any) -> Any:  # noqa: ARG001
    """Load the eight bytes of a contiguous byte array from `at` on, aligned or not, the first lowest.

    Nothing checks the bounds: every array it is used on ends with eight bytes to spare.
    """

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, values[0])
        address = builder.gep(array.data, [values[1]])
        loaded = builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)
        if sys.byteorder == "big":
            loaded = builder.bswap(loaded)
        return loaded

    return types.uint64(data, types.int64), build


@intrinsic  # type: ignore[untyped-decorator]
def _high(typing: Any, a: Any, b: Any) -> Any:  # noqa: ARG001
    """Return the high word of the product of two words."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(values[0], wide), builder.zext(values[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), build


@intrinsic  # type: ignore[untyped-decorator]
def _leading_zeros(typing: Any, word: Any) -> Any:  # noqa: ARG001
    """Count the zero bits above the highest one set."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001
        return builder.ctlz(values[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), build


@intrinsic  # type: ignore[untyped-decorator]
def _trailing_zeros(typing: Any, word: Any) -> Any:  # noqa: ARG001
    """Count the zero bits below the lowest one set."""

    def build(context: Any, builder: Any, signature: Any, values: Any) -> Any:  # noqa: ARG001
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.uint64), build


@kernel
def _string_end(data: U8, at: int, end: int) -> int:
    """Return where the first quote, backslash, control or byte beyond ASCII stands; `end` for none.

    Eight bytes at once: a byte is below another, or equal to it, where subtracting borrows. A borrow
    can only spoil what is above the first byte found.
    """
    while at < end:
        word = _word(data, at)
        quotes, slashes = word ^ (_ONES * np.uint64(_QUOTE)), word ^ (_ONES * np.uint64(_BACKSLASH))
        found = (quotes - _ONES) & ~quotes
        found |= (slashes - _ONES) & ~slashes
        found |= (word - _ONES * np.uint64(0x20)) & ~word
        found = (found | word) & _TOPS
        if found != _U0:
            return min(end, at + (_trailing_zeros(found) >> 3))
        at += 8
    return end


@kernel
def _stirred(h: np.uint64) -> np.uint64:
    """Spread a word's bits over all of it."""
    h = (h ^ (h >> _U33)) * _STIR_1
    h = (h ^ (h >> _U33)) * _STIR_2
    return h ^ (h >> _U33)


@kernel
def hash_text(data: U8, at: int, end: int) -> np.uint64:
    """Return a hash of data[at:end], 0 of nothing and of nothing else. The array has eight bytes to spare."""
    if end <= at:
        return _U0
    h = np.uint64(end - at) * _STIR
    while at + 8 <= end:
        h = (h ^ _word(data, at)) * _STIR
        h ^= h >> _U32
        at += 8
    if at < end:
        h = (h ^ (_word(data, at) << np.uint64(8 * (8 - (end - at))))) * _STIR
    h = _stirred(h)
    return h if h != _U0 else _U1


@kernel
def _identity(own: np.uint64, source: np.uint64) -> np.uint64:
    """Return the hash of an id within its source, 0 where there is no id."""
    return own ^ (source * _STIR) if own != _U0 else _U0


@kernel
def _as_cell(h: np.uint64) -> float:
    """Return a hash as a number that a cell can hold: a whole one below 2**53."""
    return np.float64(h >> _U11)


@kernel
def hash_cells(data: U8, ends: I64, out: F64) -> None:
    """Write what the cells of texts hold; data: the texts one after another and eight bytes more."""
    start = 0
    for i in range(ends.size):
        out[i] = _as_cell(hash_text(data, start, ends[i]))
        start = ends[i]


@kernel
def hash_identities(data: U8, ends: I64, out: U64) -> None:
    """Write the hash of each id within its source, and of the id alone, as (n, 2).

    data: id, source, id, source, and eight bytes more.
    """
    start = 0
    for i in range(out.shape[0]):
        middle = ends[2 * i]
        out[i, 1] = hash_text(data, start, middle)
        out[i, 0] = _identity(out[i, 1], hash_text(data, middle, ends[2 * i + 1]))
        start = ends[2 * i + 1]


@kernel
def _weigh(score: float, total: float, spread: float) -> tuple[float, float]:
    """Add the score of one class to their sum and to that of score * log(score); nan for what is no share."""
    if not 0.0 <= score <= 1.000001:
        return np.nan, np.nan
    return total + score, (spread + score * math.log(score) if score > 0.0 else spread)


@kernel
def _certainty(best: float, total: float, spread: float) -> tuple[float, float]:
    """Return the largest score and the entropy in nats of the scores as shares of their sum; nan for neither."""
    if not total > 0.0:
        return np.nan, np.nan
    return best, max(0.0, math.log(total) - spread / total)


@kernel
def certainties(scores: F64, ends: I64, out: F64) -> None:
    """Write confidence and entropy, (n, 2), of rows of scores that stand one after another; none: left alone."""
    start = 0
    for i in range(ends.size):
        best = total = spread = 0.0
        for k in range(start, ends[i]):
            best = max(best, scores[k])
            total, spread = _weigh(scores[k], total, spread)
        if ends[i] > start:
            out[i, 0], out[i, 1] = _certainty(best, total, spread)
        start = ends[i]


@kernel
def _eight_digits(word: np.uint64) -> bool:
    """Whether eight bytes are digits all."""
    return (word & _TENS_OF) | (((word + _SIXES) & _TENS_OF) >> np.uint64(4)) == _THREES


@kernel
def _eight_digits_value(word: np.uint64) -> np.uint64:
    """Return the number that eight digits write; the first of them is the lowest byte.

    Neighbours are joined to pairs, fours and the eight: Lemire's paper, section 6.
    """
    word -= _ONES * np.uint64(_ZERO)
    word = word * _U10 + (word >> np.uint64(8))
    low = (word & np.uint64(0x000000FF000000FF)) * np.uint64(0x000F424000000064)
    high = ((word >> np.uint64(16)) & np.uint64(0x000000FF000000FF)) * np.uint64(0x0000271000000001)
    return (low + high) >> _U32


@kernel
def to_double(digits: np.uint64, power: int) -> float:
    """Return digits · 10**power rounded to the nearest double, -1.0 where that is not certain.

    Clinger's fast path where both operands are doubles, else the algorithm of Eisel and Lemire:
    D. Lemire, "Number parsing at a gigabyte per second", Software: Practice and Experience 51 (2021).
    Subnormal and infinite results are not certain here.
    """
    if digits == _U0:
        return 0.0
    if digits <= _EXACT and -22 <= power <= 22:
        if power < 0:
            return float(digits) / _TENS[-power]
        return float(digits) * _TENS[power]
    if power < _LEAST_POWER or power > _GREATEST_POWER:
        return -1.0
    zeros = _leading_zeros(digits)
    word = digits << np.uint64(zeros)
    row = np.uint64(power - _LEAST_POWER)
    high, low = _high(word, _FIVES[row, 0]), word * _FIVES[row, 0]
    if high & _UNSURE == _UNSURE:
        more = _high(word, _FIVES[row, 1])
        low += more
        if more > low:
            high += _U1
        if low == _ALL and (power < -27 or power > 55):
            return -1.0
    upper = high >> _U63
    mantissa = high >> (upper + np.uint64(9))
    exponent = (((152170 + 65536) * power) >> 16) + 63 + np.int64(upper) - zeros + 1023
    if exponent <= 0:
        return -1.0
    # Halfway between two doubles, exactly: to the even one.
    if (
        low <= _U1
        and -4 <= power <= 23
        and mantissa & _U3 == _U1
        and mantissa << (upper + np.uint64(9)) == high
    ):
        mantissa -= _U1
    mantissa = (mantissa + (mantissa & _U1)) >> _U1
    if mantissa >= _CARRIED:
        mantissa >>= _U1
        exponent += 1
    if exponent >= 2047:
        return -1.0
    return float(mantissa) * _TWOS[exponent - 1]


@kernel
def read_number(data: U8, at: int, end: int) -> tuple[int, float, int, bool]:
    """Read a JSON number at `at`: where it stops, its value, and, if it is written as one, the integer.

    Stops at -1 where it is no JSON number, or its value is not certain: more than 19 significant
    digits (18 for an integer), subnormal, or beyond the largest double.
    """
    i = at
    negative = data[i] == _MINUS
    if negative:
        i += 1
    start = i
    word = _U0
    while i < end and _ZERO <= data[i] <= _NINE:
        word = word * _U10 + np.uint64(data[i] - _ZERO)
        i += 1
    length = i - start
    if length == 0 or (length > 1 and data[start] == _ZERO):
        return -1, 0.0, 0, False
    whole = True
    power = 0
    if i < end and data[i] == _DOT:
        whole = False
        i += 1
        point = i
        while i + 8 <= end:
            eight = _word(data, i)
            if not _eight_digits(eight):
                break
            word = word * np.uint64(100_000_000) + _eight_digits_value(eight)
            i += 8
        while i < end and _ZERO <= data[i] <= _NINE:
            word = word * _U10 + np.uint64(data[i] - _ZERO)
            i += 1
        if i == point:
            return -1, 0.0, 0, False
        power = point - i
        if data[start] == _ZERO:
            while point < i and data[point] == _ZERO:
                point += 1
            length = 0
        length += i - point
    if i < end and (data[i] | 0x20) == 0x65:
        whole = False
        i += 1
        minus = False
        if i < end and (data[i] == _MINUS or data[i] == _PLUS):
            minus = data[i] == _MINUS
            i += 1
        first = i
        exponent = 0
        while i < end and _ZERO <= data[i] <= _NINE:
            exponent = exponent * 10 + (np.int64(data[i]) - _ZERO)
            i += 1
        if i == first or i > first + 5:
            return -1, 0.0, 0, False
        power += -exponent if minus else exponent
    if length > 19 or (whole and length > 18):
        return -1, 0.0, 0, False
    value = to_double(word, power)
    if value < 0.0:
        return -1, 0.0, 0, False
    if whole:
        integer = np.int64(word)
        # An integer knows no negative zero.
        return i, -value if negative and integer != 0 else value, -integer if negative else integer, True
    return i, -value if negative else value, 0, False


@kernel
def _two(data: U8, at: int) -> int:
    """Return two digits as a number, a large negative one where they are none."""
    tens, ones = np.int64(data[at]) - _ZERO, np.int64(data[at + 1]) - _ZERO
    if tens < 0 or tens > 9 or ones < 0 or ones > 9:
        return -1_000_000
    return tens * 10 + ones


@kernel
def read_time(data: U8, at: int, end: int) -> int:
    """Return the RFC 3339 time written in data[at:end] in microseconds, NO_TIME where it is none.

    Without an offset it is UTC. The seventh digit of a fraction rounds, as in msgspec.
    """
    if end - at < 19:
        return NO_TIME
    year = _two(data, at) * 100 + _two(data, at + 2)
    month, day = _two(data, at + 5), _two(data, at + 8)
    hour, minute, second = _two(data, at + 11), _two(data, at + 14), _two(data, at + 17)
    if data[at + 4] != _MINUS or data[at + 7] != _MINUS or data[at + 10] != 0x54:
        return NO_TIME
    if data[at + 13] != _COLON or data[at + 16] != _COLON:
        return NO_TIME
    if not (1979 <= year < 2099 and 1 <= month <= 12 and 1 <= day <= 31):
        return NO_TIME
    if not (0 <= hour < 24 and 0 <= minute < 60 and 0 <= second < 60):
        return NO_TIME
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if day > 30 and (month == 4 or month == 6 or month == 9 or month == 11):
        return NO_TIME
    if month == 2 and day > (29 if leap else 28):
        return NO_TIME
    i = at + 19
    micros = 0
    if i < end and data[i] == _DOT:
        i += 1
        first = i
        while i < end and _ZERO <= data[i] <= _NINE:
            if i - first < 6:
                micros = micros * 10 + (np.int64(data[i]) - _ZERO)
            i += 1
        if i == first or i > first + 9:
            return NO_TIME
        for _ in range(first + 6 - i):
            micros *= 10
        if i > first + 6 and data[first + 6] >= _ZERO + 5:
            micros += 1
    offset = 0
    if i < end:
        if data[i] == 0x5A and i + 1 == end:
            pass
        elif (data[i] == _PLUS or data[i] == _MINUS) and i + 6 == end and data[i + 3] == _COLON:
            hours, minutes = _two(data, i + 1), _two(data, i + 4)
            if not (0 <= hours < 24 and 0 <= minutes < 60):
                return NO_TIME
            offset = hours * 60 + minutes
            if data[i] == _MINUS:
                offset = -offset
        else:
            return NO_TIME
    # Days since the epoch, counting years from March: Hinnant, "chrono-compatible low-level date algorithms".
    y = year - (1 if month <= 2 else 0)
    era = y // 400
    of_era = y - era * 400
    of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    days = era * 146097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719468
    us = (((days * 24 + hour) * 60 + minute - offset) * 60 + second) * 1_000_000 + micros
    return us if us >= _MIN_US else NO_TIME


@kernel
def _number_time(value: float, integer: int, whole: bool) -> int:
    """Return a numeric time in microseconds as `events.time_us` does; NO_TIME out of range."""
    size = abs(value)
    if size < 1e11:
        scaled = np.rint(value * 1e6)
    elif size < 1e14:
        scaled = np.rint(value * 1e3)
    else:
        if whole:
            return integer if _MIN_US <= integer < _MAX_US else NO_TIME
        scaled = np.rint(value)
    if not _MIN_US <= scaled < _MAX_US:
        return NO_TIME
    return np.int64(scaled)  # type: ignore[return-value]


@kernel
def find_label(data: U8, at: int, end: int, table: I32, spans: I32, pool: U8) -> int:
    """Return which place of the hash table holds the bytes data[at:end], or is free for them.

    table (a power of two,) holds indices into spans, -1 where free; spans (m, 2) starts and lengths in pool.
    """
    key = np.uint64(14695981039346656037)  # FNV-1a
    for i in range(at, end):
        key = (key ^ np.uint64(data[i])) * np.uint64(1099511628211)
    mask = table.size - 1
    place = np.int64((key ^ (key >> _U32)) & _LOW32) & mask
    while table[place] >= 0:
        start, length = spans[table[place], 0], spans[table[place], 1]
        if length == end - at:
            same = True
            for k in range(length):
                if pool[start + k] != data[at + k]:
                    same = False
                    break
            if same:
                return place
        place = (place + 1) & mask
    return place


@kernel
def _is_envelope(data: U8, at: int, end: int) -> bool:
    """Whether a string is `specversion`: records that hold it may be CloudEvents, read otherwise."""
    return (
        end - at == 11
        and data[at] == 0x73
        and data[at + 1] == 0x70
        and data[at + 2] == 0x65
        and data[at + 3] == 0x63
        and data[at + 4] == 0x76
    )


@kernel
def _has_point(data: U8, at: int, end: int) -> bool:
    """Whether a text may write a number with a point or an exponent, which is a number, and no class."""
    c = data[at]
    if not (_ZERO <= c <= _NINE or c in (_MINUS, _PLUS, _DOT)):
        return False
    found = False
    for i in range(at, end):
        found |= data[i] == _DOT or data[i] | 0x20 == 0x65
    return found


@kernel
def _walk(
    data: U8,
    start: int,
    end: int,
    segments: I32,
    flags: int,
    literals: U8,
    row: int,
    times: I64,
    latency: F64,
    values: F64,
    labels: I32,
    failed: U8,
    cells: F64,
    kinds: U8,
    spans: I32,
    label_table: I32,
    label_spans: I32,
    label_codes: I32,
    label_pool: U8,
    certainty: F64,
    ids: U64,
    error_spans: I32,
    usage: F64,
) -> bool:
    """Read one record by one template into its row of the columns; False where it does not fit."""
    value = score = duration = np.nan
    time = NO_TIME
    label = NO_LABEL
    has_error = flags & FAILED != 0
    answered = flags & ANSWERED != 0
    has_failed = has_error
    flat_failed = False
    own_id = source = _U0
    best = total = spread = 0.0
    scores = best_at = 0
    scored = False
    usage[row, 0] = usage[row, 1] = usage[row, 2] = np.nan
    error_at = error_end = flat_at = flat_end = np.int64(0)
    at = start
    for s in range(segments.shape[0]):
        first, length = np.int64(segments[s, 0]), np.int64(segments[s, 1])
        target, index = segments[s, 2], segments[s, 3]
        if at + length > end:
            return False
        k = 0
        while k + 8 <= length:
            if _word(data, at + k) != _word(literals, first + k):
                return False
            k += 8
        if k < length:
            differing = _word(data, at + k) ^ _word(literals, first + k)
            if differing << np.uint64(8 * (8 - (length - k))) != _U0:
                return False
        at += length
        if target == END:
            break
        if at >= end:
            return False
        c = data[at]
        if c == _QUOTE:
            head = at
            at = _string_end(data, at + 1, end)
            if at >= end or data[at] != _QUOTE or _is_envelope(data, head + 1, at):
                return False
            at += 1
            if target == TIME:
                time = read_time(data, head + 1, at - 1)
                if time == NO_TIME:
                    return False
            elif target in (LABEL, PREDICTION):
                if at - head > MAX_LABEL or at - head == 2:
                    return False
                if target == PREDICTION and _has_point(data, head + 1, at - 1):
                    return False
                answered = True
                found = label_table[find_label(data, head, at, label_table, label_spans, label_pool)]
                label = label_codes[found] if found >= 0 else NEW_LABEL
                spans[row, 0], spans[row, 1] = head, at
            elif target == ID:
                own_id = hash_text(data, head + 1, at - 1)
            elif target == SOURCE:
                source = hash_text(data, head + 1, at - 1)
            elif target == FEATURE:
                # What may be long text, or a number written as text, is told apart elsewhere.
                if at - head - 2 > LONG_TEXT or _has_point(data, head + 1, at - 1):
                    return False
                cells[row, index] = _as_cell(hash_text(data, head + 1, at - 1))
                kinds[row, index] = IS_TEXT + (at - head - 2)
            elif target == ERROR:
                has_error = answered = True
                has_failed = at - head > 2
                error_at, error_end = head + 1, at - 1
            elif target == ERROR_NAME:
                error_at, error_end = head + 1, at - 1
            elif target == ERROR_TYPE:
                answered = True
                flat_failed = at - head > 2
                flat_at, flat_end = head + 1, at - 1
            elif target != ANY and target != TEXT and target != TEXT_OR_NULL:
                return False
        elif c == _MINUS or (_ZERO <= c <= _NINE):
            head = at
            at, number, integer, whole = read_number(data, at, end)
            if at < 0:
                return False
            if target == FEATURE:
                cells[row, index] = number
                kinds[row, index] = IS_NUMBER
            elif target == VALUE:
                value = number
            elif target == DURATION:
                duration = number
            elif target == SCORE:
                score = number
            elif TOKENS_IN <= target <= COST:
                usage[row, target - TOKENS_IN] = number
            elif target == CLASS_SCORE:
                scored = True
                if scores == 0 or number > best:
                    best, best_at = number, scores
                scores += 1
                total, spread = _weigh(number, total, spread)
            elif target == PREDICTION:
                value = number
                answered = True
            elif target == TIME:
                time = _number_time(number, integer, whole)
                if time == NO_TIME:
                    return False
            elif target == LABEL:
                if not whole:
                    return False
                found = label_table[find_label(data, head, at, label_table, label_spans, label_pool)]
                label = label_codes[found] if found >= 0 else NEW_LABEL
                spans[row, 0], spans[row, 1] = head, at
            elif target != ANY and target != NUMBER:
                return False
        elif c == 0x6E:  # null
            if at + 4 > end or data[at + 1] != 0x75 or data[at + 2] != 0x6C or data[at + 3] != 0x6C:
                return False
            at += 4
            if target == FEATURE:
                cells[row, index] = np.nan
                kinds[row, index] = IS_NULL
            elif target in (TEXT, NUMBER, ID, SOURCE, ERROR_NAME, CLASS_SCORE):
                return False
        elif c == 0x74 or c == 0x66:  # true, false
            head = at
            if c == 0x74:
                if at + 4 > end or data[at + 1] != 0x72 or data[at + 2] != 0x75 or data[at + 3] != 0x65:
                    return False
                at += 4
            else:
                if at + 5 > end or data[at + 1] != 0x61 or data[at + 2] != 0x6C or data[at + 3] != 0x73:
                    return False
                if data[at + 4] != 0x65:
                    return False
                at += 5
            if target == FEATURE:
                cells[row, index] = 1.0 if c == 0x74 else 0.0
                kinds[row, index] = IS_NUMBER
            elif target in (LABEL, PREDICTION):
                answered = True
                found = label_table[find_label(data, head, at, label_table, label_spans, label_pool)]
                label = label_codes[found] if found >= 0 else NEW_LABEL
                spans[row, 0], spans[row, 1] = head, at
            elif target != ANY:
                return False
        else:
            return False
    if at != end or not answered or (flags & SCORED != 0 and label == NO_LABEL):
        return False
    if scored and label == NO_LABEL:
        label = POSITIONS - best_at
    times[row] = time
    latency[row] = duration
    values[row] = score if np.isnan(value) else value
    labels[row] = label
    failed[row] = has_failed if has_error else flat_failed
    ids[row, 0], ids[row, 1] = _identity(own_id, source), own_id
    if scored:
        certainty[row, 0], certainty[row, 1] = _certainty(best, total, spread)
    else:
        # A score beside a label or a value says how sure the model is of it; alone it is the answer itself.
        beside = 0.0 <= score <= 1.0 and (label != NO_LABEL or not np.isnan(value))
        certainty[row, 0], certainty[row, 1] = (score if beside else np.nan), np.nan
    if has_error:
        error_spans[row, 0], error_spans[row, 1] = error_at, error_end
    else:
        error_spans[row, 0], error_spans[row, 1] = flat_at, flat_end
    return True


@kernel
def match(
    data: U8,
    ends: I64,
    heads: I32,
    templates: I32,
    segments: I32,
    literals: U8,
    batch: int,
    chosen: I32,
    times: I64,
    latency: F64,
    values: F64,
    labels: I32,
    failed: U8,
    cells: F64,
    kinds: U8,
    spans: I32,
    label_table: I32,
    label_spans: I32,
    label_codes: I32,
    label_pool: U8,
    certainty: F64,
    ids: U64,
    error_spans: I32,
    usage: F64,
) -> int:
    """Read each record by the first template of its chain that it fits; return how many fit one.

    data: the records' bytes, one after another, and eight more; ends (n,) where each ends. heads (n,): the
    first template to try, -1 for none. templates (t, 5): first segment, one past the last, flags, the next
    template of the chain or -1, and the batch that last used it. segments (s, 4): where the literal
    before a slot starts in `literals`, its length, what the slot holds, and which feature.

    Writes chosen (n,), the template or -1, and row by row the columns: times (n,) in microseconds,
    latency and values (n,), nan for none; labels (n,) codes; failed (n,); cells and kinds (n, w); spans
    (n, 2) of bytes that hold the label; certainty (n, 2), confidence and entropy, nan for none; ids (n, 2),
    hashes of an id within its source and of the id alone, 0 for none; error_spans (n, 2) of the bytes that
    name an error, where there is one; usage (n, 3), tokens in and out and cost, nan for none.
    """
    start = 0
    count = 0
    for row in range(ends.size):
        end = ends[row]
        t = heads[row]
        while t >= 0:
            if _walk(
                data,
                start,
                end,
                segments[templates[t, 0] : templates[t, 1]],
                templates[t, 2],
                literals,
                row,
                times,
                latency,
                values,
                labels,
                failed,
                cells,
                kinds,
                spans,
                label_table,
                label_spans,
                label_codes,
                label_pool,
                certainty,
                ids,
                error_spans,
                usage,
            ):
                templates[t, 4] = batch
                count += 1
                break
            t = templates[t, 3]
        chosen[row] = t
        start = end
    return count


# What a clock that follows the times of records keeps: (CLOCK_SIZE,) microseconds, and counts.
LATEST: Final = 0  # the clock itself; NO_TIME before the first
GAP: Final = 1  # by how much it usually goes on
AHEAD: Final = 2  # times beyond what is usual that came since, and the least and the greatest of them
LEAST_AHEAD: Final = 3
MOST_AHEAD: Final = 4
AGAINST: Final = 5  # times that came since and were not
AGREED: Final = 6  # at the start: times near the first or beyond it, and such as are far behind it, and their greatest
BEHIND: Final = 7
MOST_BEHIND: Final = 8
CLOCK_SIZE: Final = 9

#: So many times must be ahead, and more than were not, before a clock jumps; fewer than 3 might be one host's.
_QUORUM: Final = 3
#: A step is usual up to so many times the usual gap.
_USUAL: Final = 8


@kernel
def step_clock(clock: I64, time: int, slack_us: int) -> None:
    """Let a clock follow one time. A jump beyond what is usual counts once a quorum of times has made it.

    One record of a host whose own clock is ahead must not make all that follows late, nor others seem silent.
    """
    latest = clock[LATEST]
    if latest == NO_TIME:
        clock[LATEST] = time
        return
    slack = max(slack_us, _USUAL * clock[GAP])
    step = time - latest
    if clock[AGREED] < _QUORUM:  # the first may have been of a host that is ahead, and nothing was before it
        if step >= -slack:
            # What is later confirms it, and may close windows, behind which no clock goes back.
            clock[AGREED] = _QUORUM if step > 0 else clock[AGREED] + 1
        else:
            clock[MOST_BEHIND] = time if clock[BEHIND] == 0 else max(clock[MOST_BEHIND], time)
            clock[BEHIND] += 1
            if clock[BEHIND] >= _QUORUM and clock[BEHIND] > clock[AGREED]:
                clock[LATEST] = clock[MOST_BEHIND]
                clock[AGREED], clock[AHEAD], clock[AGAINST] = _QUORUM, 0, 0
                return
    if step <= slack:
        if step > 0:
            clock[LATEST] = time
            clock[GAP] += (step - clock[GAP]) // 32
        if clock[AHEAD] > 0:
            clock[AGAINST] += 1
            if clock[AGAINST] >= 4 * clock[AHEAD] + _QUORUM:
                clock[AHEAD] = clock[AGAINST] = 0
        return
    if clock[AHEAD] == 0:
        clock[LEAST_AHEAD] = clock[MOST_AHEAD] = time
    clock[AHEAD] += 1
    clock[LEAST_AHEAD] = min(clock[LEAST_AHEAD], time)
    clock[MOST_AHEAD] = max(clock[MOST_AHEAD], time)
    if clock[AHEAD] < _QUORUM or clock[AHEAD] <= clock[AGAINST]:
        return
    apart = (clock[MOST_AHEAD] - clock[LEAST_AHEAD]) // (clock[AHEAD] - 1)
    clock[GAP] = max(clock[GAP], apart)
    slack = max(slack_us, _USUAL * clock[GAP])
    # To the greatest, where they are no further apart than is usual; else one of these may be ahead of the others.
    near = clock[MOST_AHEAD] - clock[LEAST_AHEAD] <= slack
    clock[LATEST] = clock[MOST_AHEAD] if near else clock[LEAST_AHEAD]
    clock[AHEAD] = clock[AGAINST] = 0


@kernel
def run_clock(clock: I64, times: I64, slack_us: int, reached: I64) -> None:
    """Let a clock follow (n,) times, and write what it says at each; a time below 0 is none."""
    for i in range(times.size):
        if times[i] >= 0:
            step_clock(clock, times[i], slack_us)
        reached[i] = max(clock[LATEST], 0)


@kernel
def follow(
    times: I64,
    arrivals: I64,
    before: I64,
    clock: I64,
    slack_us: int,
    progress_us: int,
    last_arrival_us: int,
    idle_us: int,
    progress: I64,
) -> None:
    """Write the progress at each event, as `windows.Windows.advance` defines it; the clock of events goes on.

    progress_us is NO_TIME before the first event.
    """
    reached = progress_us
    arrived = last_arrival_us
    for i in range(times.size):
        earlier = clock[LATEST]
        if reached > earlier:  # a silence has moved on what the first began
            clock[AGREED] = _QUORUM
        step_clock(clock, times[i], slack_us)
        latest = clock[LATEST]
        if latest < earlier:  # the first event was far ahead of all others: begin with these
            reached = latest
        silence = before[i] - arrived - idle_us
        reached = max(reached, latest)
        if silence > 0 and earlier != NO_TIME:
            reached = max(reached, earlier + silence)
        progress[i] = reached
        arrived = arrivals[i]


@kernel
def place(
    times: I64, progress: I64, size_us: int, lateness_us: int, index: I64, late: npt.NDArray[np.bool_]
) -> tuple[int, bool]:
    """Write each event's window and whether it is late for it; return how many are, and if all share one."""
    count = 0
    alike = True
    for i in range(times.size):
        index[i] = times[i] // size_us
        late[i] = (index[i] + 1) * size_us <= progress[i] - lateness_us
        count += late[i]
        alike = alike and index[i] == index[0]
    return count, alike


@kernel
def tally(
    index: I64,
    late: npt.NDArray[np.bool_],
    window: int,
    values: F64,
    buckets: I32,
    failed: npt.NDArray[np.bool_],
    latency: I64,
    value_sum: float,
) -> tuple[int, int, float, int]:
    """Count one window's errors, values and latencies; return how many of each, and the values' sum.

    latency (b,) is added to. The sum is in order, so that it has the same bits however it is cut.
    """
    errors = value_n = latency_n = 0
    for i in range(index.size):
        if index[i] != window or late[i]:
            continue
        errors += failed[i]
        if not np.isnan(values[i]):
            value_n += 1
            value_sum += min(max(values[i], -LARGEST), LARGEST)
        if buckets[i] >= 0:
            latency_n += 1
            latency[buckets[i]] += 1
    return errors, value_n, value_sum, latency_n


@kernel
def add_columns(
    index: I64, late: npt.NDArray[np.bool_], window: int, columns: F64, counts: I64, sums: F64
) -> None:
    """Add one window's numbers of each column, (n, k) with nan for none, to their counts and sums, in order."""
    for i in range(index.size):
        if index[i] != window or late[i]:
            continue
        for k in range(columns.shape[1]):
            if not np.isnan(columns[i, k]):
                counts[k] += 1
                sums[k] += min(columns[i, k], LARGEST)


@kernel
def tally_moments(values: F64, answers: F64, own: npt.NDArray[np.bool_], shift: F64, shift_y: float, sums: F64) -> None:
    """Add rows to the sums that correlations come from; only rows that are `own` and have an answer.

    values (n, d) and answers (n,), nan for none, taken from shift (d,) and shift_y; sums (6, d): how many, of x,
    of x squared, of y, of y squared, of x times y.
    """
    for i in range(values.shape[0]):
        if not own[i] or np.isnan(answers[i]):
            continue
        y = min(max(answers[i] - shift_y, -ROOT), ROOT)
        for j in range(values.shape[1]):
            if np.isnan(values[i, j]):
                continue
            x = min(max(values[i, j] - shift[j], -ROOT), ROOT)
            sums[0, j] += 1.0
            sums[1, j] += x
            sums[2, j] += x * x
            sums[3, j] += y
            sums[4, j] += y * y
            sums[5, j] += x * y


@kernel
def disorder(times: I64, progress: I64, size_us: int, lateness_us: int, runs: I64) -> int:
    """Write, for each window the progress passes, its index, its arrivals and those older than the watermark.

    runs (n, 3). Progress never falls, so each window's arrivals stand together; returns how many windows.
    """
    count = 0
    for i in range(times.size):
        at = progress[i] // size_us
        if count == 0 or runs[count - 1, 0] != at:
            runs[count, 0], runs[count, 1], runs[count, 2] = at, 0, 0
            count += 1
        runs[count - 1, 1] += 1
        runs[count - 1, 2] += times[i] < progress[i] - lateness_us
    return count


@kernel
def tally_bins(
    values: F64,
    own: npt.NDArray[np.bool_],
    edges: F64,
    low: F64,
    high: F64,
    counts: I64,
    outside: I64,
    lows: F64,
    highs: F64,
) -> None:
    """Count rows' values, (n, d), nan for none, into bins, column by column; only rows that are `own`.

    edges (d, b) ascending, a value on one belongs above it; counts (d, b + 1). outside (d,): of values
    below low or above high. lows and highs (d,): the least and the greatest value.
    """
    for i in range(values.shape[0]):
        if not own[i]:
            continue
        for j in range(values.shape[1]):
            x = values[i, j]
            if np.isnan(x):
                continue
            b = 0
            for k in range(edges.shape[1]):
                b += x >= edges[j, k]
            counts[j, b] += 1
            outside[j] += (x < low[j]) | (x > high[j])
            lows[j] = min(lows[j], x)
            highs[j] = max(highs[j], x)


@kernel
def _find(table: U32, h: np.uint64) -> int:
    """Return which place of a hash table of marks has that of h, or is free for it."""
    mask = np.int64(table.size - 1)
    mark = (h >> _U32) | _U1
    place = np.int64(h & _LOW32) & mask
    while table[place] != 0 and np.uint64(table[place]) != mark:
        place = (place + 1) & mask
    return place


@kernel
def learn_words(keys: U64, given: npt.NDArray[np.bool_], table: U32, known: I64, limit: int, room: int) -> int:
    """Learn the values of categorical columns; keys and given (n, c), known (c,): how many of each column.

    A column with more than limit, or one that comes when the table has no room, is given up: limit + 1.
    Returns the room left.
    """
    for i in range(keys.shape[0]):
        for j in range(keys.shape[1]):
            if not given[i, j] or known[j] > limit:
                continue
            h = _stirred(keys[i, j] ^ (np.uint64(j + 1) * _STIR))
            place = _find(table, h)
            if table[place] != 0:
                continue
            if known[j] == limit or room == 0:
                known[j] = limit + 1
                continue
            table[place] = (h >> _U32) | _U1
            known[j] += 1
            room -= 1
    return room


@kernel
def count_words(
    keys: U64,
    given: npt.NDArray[np.bool_],
    own: npt.NDArray[np.bool_],
    table: U32,
    known: I64,
    limit: int,
    words: I64,
    unseen: I64,
) -> None:
    """Count, column by column, values and those never learned, of rows that are `own`."""
    for i in range(keys.shape[0]):
        if not own[i]:
            continue
        for j in range(keys.shape[1]):
            if given[i, j] and known[j] <= limit:
                words[j] += 1
                unseen[j] += table[_find(table, _stirred(keys[i, j] ^ (np.uint64(j + 1) * _STIR)))] == 0


@kernel
def recall(
    ids: U64, start: int, young: U16, old: U16, used: int, room: int, again: npt.NDArray[np.bool_]
) -> tuple[int, int]:
    """Mark ids that were seen lately and remember the others, from row `start` until `young` has no room.

    Returns the row it came to, and how many ids `young` has. Tables hold 16 bits of an id, at a place
    that others of its bits say.
    """
    for i in range(start, ids.size):
        if ids[i] == _U0:
            continue
        h = _stirred(ids[i])
        place = _place16(young, h)
        if young[place] != 0:
            again[i] = True
            continue
        if used >= room:
            return i, used
        again[i] = old[_place16(old, h)] != 0
        young[place] = max(h >> _U48, _U1)
        used += 1
    return ids.size, used


@kernel
def _place16(table: U16, h: np.uint64) -> int:
    """Return which place of a table of 16-bit marks has that of h, or is free for it."""
    mask = np.int64(table.size - 1)
    mark = max(h >> _U48, _U1)
    place = np.int64(h & _LOW32) & mask
    while table[place] != 0 and np.uint64(table[place]) != mark:
        place = (place + 1) & mask
    return place


def warm_windows() -> None:
    """Run the loops of windows once, so that they are compiled."""
    times, flags, codes = np.zeros(2, np.int64), np.zeros(2, np.bool_), np.zeros(2, np.int32)
    follow(times, times, times, np.zeros(CLOCK_SIZE, np.int64), 1, NO_TIME, 0, 1, times)
    run_clock(np.zeros(CLOCK_SIZE, np.int64), times, 1, times)
    place(times, times, 1, 0, times, flags)
    tally(times, flags, 0, np.zeros(2), codes, flags, times, 0.0)
    numbers, grid, counts = np.zeros(2), np.zeros((2, 1)), np.zeros((1, 3), np.int64)
    add_columns(times, flags, 0, np.zeros((2, 2)), times, numbers)
    disorder(times, times, 1, 0, np.zeros((2, 3), np.int64))
    tally_bins(grid, flags, np.zeros((1, 2)), numbers, numbers, counts, times, numbers, numbers)
    tally_moments(grid, numbers, flags, numbers, 0.0, np.zeros((6, 1)))
    keys, given = np.zeros((2, 1), np.uint64), np.zeros((2, 1), np.bool_)
    learn_words(keys, given, np.zeros(4, np.uint32), times, 1, 1)
    count_words(keys, given, flags, np.zeros(4, np.uint32), times, 1, times, times)
    ids = np.zeros(2, np.uint64)
    pairs = np.zeros((2, 2), np.uint64)
    recall(ids, 0, np.zeros(4, np.uint16), np.zeros(4, np.uint16), 0, 1, flags)
    octets = np.zeros(16, np.uint8)
    hash_cells(octets, times, numbers)
    hash_identities(octets, np.zeros(4, np.int64), pairs)
    certainties(numbers, times, np.zeros((2, 2)))
