"""Which segments of a model are watched, and which versions of it came when.

A segment is one value of one dimension: a country, a tenant, a version. There may be more of them than can be
watched, so the commonest are found by counting in bounded memory (Space-Saving), event by event in the order of the
log: what is watched does not depend on how a stream is cut.

References
----------
[^1]: Metwally, A., Agrawal, D., El Abbadi, A., 2005. Efficient computation of frequent and top-k elements in data
streams. ICDT.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from msgspec import Struct

from detectors.protocol import I64

#: The dimension that is no field of a segment but the model's own version.
VERSION: Final = "model.version"

#: Events a segment must surely have had before it is watched.
LEAST_EVENTS: Final = 50

#: Segments counted for each that may be watched.
_COUNTED: Final = 4
#: Counts halve after so many events, so that what is common is what has been so of late.
_HALVED_AFTER: Final = 100_000
#: A newcomer takes the place of the least of those watched where it is that many times as common.
_AHEAD: Final = 2

#: Versions of a model remembered.
_VERSIONS: Final = 8
#: A version that comes back after others, unseen for so long, has been deployed anew.
_ANEW_US: Final = 3_600_000_000
#: A version is named beside an alert that began so long after it at most.
NEARBY_US: Final = 3_600_000_000


class HeavyHitters:
    """The commonest names of a stream, up to `limit`; each count is over by at most its error."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.counts: dict[str, list[int]] = {}  # name → count, and by how much that may be over
        self.watched: dict[str, None] = {}  # in the order they were taken up
        self.events = 0  # since counts were halved

    def take(self, names: Sequence[str | None]) -> tuple[list[str | None], list[tuple[int, str]]]:
        """Count names, in order; return each where it is watched by then, else None.

        Also return what was given up for others, each with the row before which it was.
        """
        given_up: list[tuple[int, str]] = []
        tally = Counter(n for n in names if n is not None)
        total = tally.total()
        if tally.keys() <= self.watched.keys() and self.events + total < _HALVED_AFTER:
            for name, n in tally.items():  # nothing is decided, so the order is of no matter
                self.counts[name][0] += n
            self.events += total
            return list(names), given_up
        return [None if n is None else self._take(i, n, given_up) for i, n in enumerate(names)], given_up

    def _take(self, row: int, name: str, given_up: list[tuple[int, str]]) -> str | None:
        self._count(name)
        if name in self.watched:
            return name
        count, error = self.counts[name]
        if count - error >= LEAST_EVENTS:
            if len(self.watched) < self.limit:
                self.watched[name] = None
                return name
            least = min(self.watched, key=self._sure)
            if count - error > _AHEAD * self._sure(least):
                del self.watched[least]
                given_up.append((row, least))
                self.watched[name] = None
                return name
        return None

    def _sure(self, name: str) -> int:
        found = self.counts.get(name)
        return 0 if found is None else found[0] - found[1]

    def _count(self, name: str) -> None:
        self.events += 1
        if self.events >= _HALVED_AFTER:
            self.events = 0
            self.counts = {n: [c // 2, e // 2] for n, (c, e) in self.counts.items()}
        found = self.counts.get(name)
        if found is not None:
            found[0] += 1
        elif len(self.counts) < _COUNTED * self.limit:
            self.counts[name] = [1, 0]
        else:
            # Of what is watched the counts are kept: it is left for what is commoner, not for a newcomer.
            least = min((n for n in self.counts if n not in self.watched), key=lambda n: self.counts[n][0])
            least_count = self.counts.pop(least)[0]
            self.counts[name] = [least_count + 1, least_count]

    def snapshot(self) -> list[Any]:
        """Return the state as a list."""
        return [[[n, c, e] for n, (c, e) in self.counts.items()], list(self.watched), self.events]

    def restore(self, state: list[Any]) -> None:
        """Take up what `snapshot` gave."""
        counts, watched, self.events = state
        self.counts = {n: [c, e] for n, c, e in counts}
        self.watched = dict.fromkeys(watched)


class Change(Struct, frozen=True, gc=False):
    """A version that a model was first seen with; at_us of event time. before: the one until then."""

    version: str
    before: str | None
    at_us: int


class History:
    """The versions a model has answered with."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.seen: dict[str, int] = {}  # when each was last seen, in event time
        self.latest: str | None = None  # the one last seen

    def note(self, versions: Sequence[str | None], codes: I64, times: I64) -> None:
        """Take the versions of (n,) events in order; codes tell runs of the same apart cheaply."""
        if self.latest is not None and versions[0] == self.latest and bool((codes == codes[0]).all()):
            self.seen[self.latest] = max(self.seen[self.latest], int(times.max()))
            return
        start, n = 0, len(codes)
        while start < n:
            end = start + 1
            while end < n and codes[end] == codes[start]:
                end += 1
            version = versions[start]
            if version is not None:
                self._run(version, int(times[start]), int(times[start:end].max()))
            start = end

    def _run(self, version: str, first_us: int, last_us: int) -> None:
        seen = self.seen.get(version)
        if version != self.latest and (seen is None or first_us - seen > _ANEW_US):
            self.changes = [*self.changes, Change(version, self.latest, first_us)][-_VERSIONS:]
        self.seen.pop(version, None)
        self.seen[version] = last_us if seen is None else max(seen, last_us)
        while len(self.seen) > _VERSIONS:
            del self.seen[next(iter(self.seen))]
        self.latest = version

    def near(self, at_us: int, *, until_us: int) -> Change | None:
        """Return the newest change of version that came by `until_us` and not long before `at_us`, or None.

        The first version a model was ever seen with is no change.
        """
        for change in reversed(self.changes):
            if change.at_us <= until_us:
                return change if change.before is not None and at_us - change.at_us <= NEARBY_US else None
        return None

    def snapshot(self) -> list[Any]:
        """Return the state as a list."""
        return [
            [[c.version, c.before, c.at_us] for c in self.changes],
            [[version, at] for version, at in self.seen.items()],
            self.latest,
        ]

    def restore(self, state: list[Any]) -> None:
        """Take up what `snapshot` gave."""
        changes, seen, self.latest = state
        self.changes = [Change(*c) for c in changes]
        self.seen = dict(seen)
