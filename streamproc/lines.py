"""The lines of a file as records of a log: what `kcat -J` writes, and the order in which a worker would have had them.

Records of several partitions, as a consumer of all prints them, come a chunk of each at a time: hours of one and then
the same hours of another. Read as one log that is a silence of the first, and all of the second late. So chunks are
put side by side by their times, within a bound; what is out of order within one, a few seconds late, stays so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from operator import itemgetter
from typing import Any

import msgspec
from msgspec import Struct

from streamproc.events import Header

__all__ = ["BOUND", "InOrder", "of_kcat"]

#: Lines kept to be put in order: a chunk is a fetch, of a megabyte by default, and there is one of each partition.
BOUND = 100_000

#: So many lines in a row that are older than this begin another chunk; fewer are late events.
_CHUNK = 20
_OLDER_MS = 60_000

#: A record's number in the file, its time in milliseconds, key, value and headers.
Row = tuple[int, int, bytes | None, bytes | None, list[Header]]


class _Kcat(Struct, gc=False):
    """A line of `kcat -J`."""

    topic: str
    partition: int
    offset: int
    payload: msgspec.Raw
    key: Any = None
    ts: int = -1
    tstype: str = "create"
    headers: list[str | None] | None = None


_kcat = msgspec.json.Decoder(_Kcat).decode


class Kcat(Struct, frozen=True, gc=False):
    """A record as `kcat -J` tells of it; ms: its time, None where the broker has none."""

    partition: int
    ms: int | None
    key: bytes | None
    value: bytes | None
    headers: list[Header]


def of_kcat(text: bytes) -> Kcat | None:
    """Return the record in a line of `kcat -J`, None where it is none."""
    if b'"payload"' not in text or b'"partition"' not in text:
        return None
    try:
        line = _kcat(text)
        key, value = _bytes(line.key), _bytes(msgspec.json.decode(line.payload), line.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    names = line.headers or []
    headers = [(str(k), None if v is None else v.encode()) for k, v in zip(names[::2], names[1::2], strict=False)]
    return Kcat(line.partition, line.ts if line.ts > 0 else None, key, value, headers)


def _bytes(value: Any, raw: msgspec.Raw | None = None) -> bytes | None:
    """Return what a key or payload was: kcat writes text, or with `-s` what it decoded."""
    if value is None:
        return None
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    return bytes(raw) if raw is not None else msgspec.json.encode(value)


class InOrder:
    """Puts records of several partitions side by side by their times; those of one stay in their order.

    Where lines do not tell their partitions, chunks are told by their times. bound: lines kept for it, up to twice as
    many; 0: all come as they are. `moved` counts records that come earlier or later than in the file, `beyond` those
    that should have come before what had left already.
    """

    def __init__(self, *, bound: int) -> None:
        self.bound = bound
        self.moved = 0
        self.beyond = 0
        self._left_ms = -(1 << 62)  # the latest time that has gone

    def take(self, rows: Iterable[tuple[int | None, Row]]) -> Iterator[Row]:
        """Yield rows in order; each comes with its partition, None where it is not told."""
        if not self.bound:
            yield from (row for _, row in rows)
            return
        kept: list[tuple[int, Row]] = []
        ordered = True  # what is kept, by its times
        for at_ms, row in self._dated(rows):
            if kept and at_ms < kept[-1][0]:
                ordered = False
            kept.append((at_ms, row))
            if len(kept) >= 2 * self.bound:
                kept = self._sorted(kept, ordered=ordered)
                yield from self._leaving(kept[: self.bound])
                del kept[: self.bound]
                ordered = True
        yield from self._leaving(self._sorted(kept, ordered=ordered))

    def _leaving(self, kept: Iterable[tuple[int, Row]]) -> Iterator[Row]:
        for at_ms, row in kept:
            self.beyond += at_ms < self._left_ms
            self._left_ms = max(self._left_ms, at_ms)
            yield row

    def _sorted(self, kept: list[tuple[int, Row]], *, ordered: bool) -> list[tuple[int, Row]]:
        if ordered:
            return kept
        found = sorted(kept, key=itemgetter(0))
        self.moved += sum(a is not b for a, b in zip(kept, found, strict=True))
        return found

    @staticmethod
    def _dated(rows: Iterable[tuple[int | None, Row]]) -> Iterator[tuple[int, Row]]:
        """Yield each row with the greatest time up to it, of its partition or its chunk."""
        latest: dict[int, int] = {}
        chunk_ms = -(1 << 62)
        coming: deque[Row] = deque()
        older = 0  # of the rows in `coming`, the latest in a row that are older than the chunk
        for partition, row in rows:
            if partition is not None:
                at_ms = latest[partition] = max(latest.get(partition, row[1]), row[1])
                yield at_ms, row
                continue
            coming.append(row)
            older = 0 if row[1] >= chunk_ms - _OLDER_MS else older + 1
            if 0 < older < _CHUNK:
                continue
            if older:
                chunk_ms = coming[0][1]
                older = 0
            while coming:
                chunk_ms = max(chunk_ms, coming[0][1])
                yield chunk_ms, coming.popleft()
        while coming:
            chunk_ms = max(chunk_ms, coming[0][1])
            yield chunk_ms, coming.popleft()
