"""Any detector over any table: text of a CSV in, one score a row out.

A table is a header and rows. One column may be the time, by its name; columns named label are for people
who measure detectors and never reach one; the rest are values. A row in which a value is missing (empty,
`nan`, `null`, `NA`, `none`, or infinite) scores nan and teaches nothing. A detector of vectors gets the values as a
row; any other watches each column by itself, and the row's score is the largest of theirs.

Examples
--------
>>> from streamproc.scoring import Scorer, read, write
>>> lines = ["time,load", "2026-01-01T00:00:00Z,15", "2026-01-01T00:01:00Z,", "2026-01-01T00:02:00Z,12"]
>>> table = read(lines)
>>> table.names, table.values.ravel()
(['load'], array([15., nan, 12.]))
>>> scores = Scorer("limits", {"upper": 10.0}).score(table)
>>> print("".join(write(table, scores)), end="")
time,score
2026-01-01T00:00:00Z,1.5
2026-01-01T00:01:00Z,nan
2026-01-01T00:02:00Z,1.2
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from detectors import registry
from detectors.params import ParameterError, Sensitivity, closest
from detectors.protocol import F64, I64
from streamproc.errors import UsageError

__all__ = ["Scorer", "Table", "parameters", "read", "write"]

#: Columns of these names, in any case, are the time, the first one there.
TIME_NAMES: Final = ("timestamp", "time", "datetime", "date", "ts", "ds", "event_time")

#: And columns of these are what a detector must not see.
LABEL_NAMES: Final = ("label", "is_anomaly", "anomaly")

# What float() does not take for nan, in lower case.
_MISSING: Final = frozenset({"", "null", "na", "n/a", "none"})
_EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_MICROSECOND: Final = dt.timedelta(microseconds=1)
_SECOND_US: Final = 1_000_000
# Rows a detector is given at a time: how a stream is cut changes nothing.
_ROWS: Final = 2_048


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A CSV's rows as a detector takes them.

    values is (n, columns) with nan where one is missing; times are microseconds since the epoch and never
    fall; stamps are the times as they were written, empty where there is no such column.
    """

    names: list[str]
    values: F64
    times: I64
    time_name: str = ""
    stamps: list[str] = []


def read(lines: Iterable[str], *, columns: Sequence[str] = (), time: str | None = None) -> Table:
    """Read a CSV with a header.

    Parameters
    ----------
    lines
        The text, line by line.
    columns
        Those that are values; without any, all but the time and the labels.
    time
        The one that is the time: ISO 8601 (UTC where it names no offset), or seconds, milli-, micro- or
        nanoseconds since the epoch. Without it, the first of `TIME_NAMES` there is. A table
        without one has its rows a second apart.

    Raises
    ------
    UsageError
        The text is no such table; the message says on which line.
    """
    rows = csv.reader(lines, skipinitialspace=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        at, chosen = _choose(header, columns, time)
        values, stamps, times = [], [], []
        latest: int | None = None
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise UsageError(f"line {rows.line_num}: {len(row)} fields, but the header has {len(header)}")
            values.append([_number(row[i], header[i], rows.line_num) for i in chosen])
            if at is not None:
                us = _microseconds(row[at], header[at], rows.line_num)
                # A detector's clock neither turns back nor stands without a time.
                latest = us if latest is None else max(latest, us if us is not None else latest)
                stamps.append(row[at])
                times.append(latest or 0)
    except csv.Error as error:
        raise UsageError(f"line {rows.line_num}: not CSV: {error}") from None
    n = len(values)
    return Table(
        names=[header[i] for i in chosen],
        values=np.array(values, dtype=np.float64).reshape(n, len(chosen)),
        times=np.array(times, dtype=np.int64) if at is not None else np.arange(n, dtype=np.int64) * _SECOND_US,
        time_name="" if at is None else header[at],
        stamps=stamps,
    )


def _choose(header: list[str], columns: Sequence[str], time: str | None) -> tuple[int | None, list[int]]:
    """Return the index of the time, if any, and those of the values."""
    if not any(header):
        raise UsageError("line 1: the file is empty; a header line with the columns' names is needed")
    if all(_is_number(name) for name in header):
        raise UsageError("line 1: only numbers; a header line with the columns' names is needed")
    for name in [*columns, *([] if time is None else [time])]:
        if header.count(name) != 1:
            what = "no column" if name not in header else "more than one column"
            raise UsageError(f"line 1: {what} `{name}`{closest(name, header)}; there are: {', '.join(header)}")
    if time is not None:
        at: int | None = header.index(time)
    else:
        lower = [name.lower() for name in header]
        at = next((lower.index(name) for name in TIME_NAMES if name in lower), None)
    if columns:
        return at, [header.index(name) for name in columns]
    chosen = [i for i, name in enumerate(header) if i != at and name.lower() not in LABEL_NAMES]
    if not chosen:
        raise UsageError(f"line 1: no column of values; there are: {', '.join(header)}")
    return at, chosen


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str, name: str, line: int) -> float:
    text = text.strip()
    try:
        value = float(text)
    except ValueError:
        if text.lower() in _MISSING:
            return math.nan
        raise UsageError(
            f"line {line}: {name} is {text[:40]!r}, not a number; choose the columns of values by --columns"
        ) from None
    return value if math.isfinite(value) else math.nan


def _microseconds(text: str, name: str, line: int) -> int | None:
    """Return a time in microseconds since the epoch; None where it is missing."""
    text = text.strip()
    if text.lower() in _MISSING:
        return None
    try:
        if not _is_number(text):
            moment = dt.datetime.fromisoformat(text)
            moment = moment if moment.tzinfo is not None else moment.replace(tzinfo=dt.UTC)
            return (moment - _EPOCH) // _MICROSECOND
        number = float(text)
        # Seconds stay below 1e11 until the year 5138, milliseconds above it from 1973 on; and so forth.
        for largest, unit_us in ((1e11, 1e6), (1e14, 1e3), (1e17, 1.0), (1e20, 1e-3)):
            if abs(number) < largest:
                return round(number * unit_us)
    except ValueError:
        pass
    raise UsageError(
        f"line {line}: {name} is {text[:40]!r}, not a time; ISO 8601 or a number since the epoch is expected"
    )


def parameters(pairs: Iterable[str]) -> dict[str, Any]:
    """Read `name=value` pairs; a value is JSON, or else text.

    Examples
    --------
    >>> parameters(["window=50", "direction=up", "limit=null"])
    {'window': 50, 'direction': 'up', 'limit': None}
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not name or not sign:
            raise UsageError(f"--param: expected NAME=VALUE, got {pair!r}")
        try:
            found[name.strip()] = json.loads(text)
        except ValueError:
            found[name.strip()] = text
    return found


class Scorer:
    """A detector by name and parameters, made afresh for each table.

    Raises
    ------
    UsageError
        There is no such detector, or a parameter is not allowed.
    """

    def __init__(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        *,
        sensitivity: Sensitivity = "medium",
        seed: int = 0,
    ) -> None:
        self.name = name
        self.params = dict(params or {})
        self.sensitivity: Sensitivity = sensitivity
        self.seed = seed
        try:
            self.kind = registry.spec(name).kind
            self._make(1)
        except (registry.UnknownDetectorError, ParameterError) as error:
            raise UsageError(str(error)) from None

    def _make(self, columns: int) -> Any:
        return registry.create(
            self.name, self.params, columns=columns, sensitivity=self.sensitivity, seed=self.seed
        )

    def score(self, table: Table, *, progress: Callable[[int], None] | None = None) -> F64:
        """Return (n,) scores of a table's rows, in order; 1.0 is the limit, nan where there is none.

        Parameters
        ----------
        table
            What `read` gave.
        progress
            Called now and then with the number of rows done.
        """
        complete = np.flatnonzero(np.isfinite(table.values).all(axis=1))
        values, times = table.values[complete], table.times[complete]
        if self.kind == "boolean":
            odd = np.flatnonzero(((values != 0.0) & (values != 1.0)).any(axis=1))
            if odd.size:
                row = complete[odd[0]] + 1
                raise UsageError(f"row {row}: {self.name} takes zeros and ones only, got {values[odd[0]].tolist()}")
        width = len(table.names)
        scores = np.full(len(table.values), np.nan)
        whole = self.kind == "vector"
        detectors = [self._make(width)] if whole else [self._make(1) for _ in range(width)]
        for start in range(0, len(values), _ROWS):
            cut = slice(start, start + _ROWS)
            # fmax: a column that is warming up leaves the row to the others.
            found = np.full(len(times[cut]), np.nan)
            for i, detector in enumerate(detectors):
                rows = values[cut] if whole else values[cut, i]
                found = np.fmax(found, detector.score(np.ascontiguousarray(rows), times[cut]))
            scores[complete[cut]] = found
            if progress is not None:
                progress(int(complete[cut][-1]) + 1)
        return scores


def write(table: Table, scores: F64) -> Iterator[str]:
    """Give the lines of a CSV: the time as it was written, if there is one, and the score."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")

    def line(fields: list[str]) -> str:
        writer.writerow(fields)
        text = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return text

    if table.time_name:
        yield line([table.time_name, "score"])
        for stamp, score in zip(table.stamps, scores.tolist(), strict=True):
            yield line([stamp, repr(score)])
    else:
        yield "score\n"
        for score in scores.tolist():
            yield f"{score!r}\n"
