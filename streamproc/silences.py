"""Silences: stretches of event time in which alerts that match are marked and go to nobody.

They are named in the config or at run time. An alert that opens in one carries `suppressed_by`; where it still fires
when the silence ends it opens anew, for all to see. Of a silence with `learn: false` nothing is learned: what is
measured in it teaches no detector what is normal.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator

from msgspec import Struct


class Silence(Struct, frozen=True):
    """One silence; from_us and to_us of event time, the end apart. Globs say what it is for."""

    id: str
    from_us: int
    to_us: int
    model: str = "*"
    signal: str = "*"
    segment: str = "*"
    learn: bool = True
    reason: str = ""
    author: str = ""

    def __str__(self) -> str:
        return self.reason or f"silence {self.id}"

    def matches(self, model: str, signal: str, segment: str) -> bool:
        """Whether it is for alerts of a signal of a model, or of a segment of it."""
        return (
            fnmatch.fnmatchcase(model, self.model)
            and fnmatch.fnmatchcase(signal, self.signal)
            and fnmatch.fnmatchcase(segment, self.segment)
        )


class Silences:
    """Every silence in force; one object for all models of a worker, so that a new one holds at once."""

    def __init__(self, config: Iterable[Silence] = ()) -> None:
        self._config = tuple(config)
        self._more: tuple[Silence, ...] = ()
        self._found: dict[tuple[str, str, str], tuple[Silence, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._config or self._more)

    def __iter__(self) -> Iterator[Silence]:
        return iter((*self._config, *self._more))

    def add(self, silences: Iterable[Silence]) -> None:
        """Take these as all that were added at run time."""
        self._more = tuple(silences)
        self._found = {}

    def of(self, model: str, signal: str, segment: str = "") -> tuple[Silence, ...]:
        """Return those for one series; those that let nothing be learned come first."""
        key = (model, signal, segment)
        found = self._found.get(key)
        if found is None:
            every = (s for s in (*self._config, *self._more) if s.matches(*key))
            found = self._found[key] = tuple(sorted(every, key=lambda s: (s.learn, s.from_us, s.id)))
        return found


def at(silences: Iterable[Silence], time_us: int) -> Silence | None:
    """Return the first of some silences that a time falls into, or None."""
    return next((s for s in silences if s.from_us <= time_us < s.to_us), None)
