"""Models whose records move to another partition, because their topic was given more of them.

A producer spreads keys over as many partitions as there are, so that more of them send most models elsewhere, each
producer from when it learns of it: within five minutes, by default. What a model has learned goes along, from the
partition that had it to the one where it comes up; and that nothing more comes where it was is no silence of it.

Which models move follows from how the producer spreads keys. That is told from where they were: of the ways there are,
the ones by which all of them were where they were.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable

from aiokafka.partitioner import murmur2


def _java(key: bytes, partitions: int) -> int:
    """Spread keys as Java's client does, and Kafka's clients for Python."""
    return int(murmur2(key) & 0x7FFF_FFFF) % partitions


def _librdkafka(key: bytes, partitions: int) -> int:
    """Spread keys as librdkafka does unless told otherwise."""
    return zlib.crc32(key) % partitions


_WAYS: dict[str, Callable[[bytes, int], int]] = {"murmur2": _java, "crc32": _librdkafka}


class Spread:
    """How the producers of a topic spread their keys, as far as what was seen tells."""

    def __init__(self) -> None:
        self._ways = dict(_WAYS)

    def note(self, names: Iterable[str], partition: int, *, of: int) -> None:
        """Take note of models that were in a partition while there were so many."""
        keys = [name.encode() for name in names]
        self._ways = {w: f for w, f in self._ways.items() if all(f(key, of) == partition for key in keys)}

    def homes(self, name: str, *, of: int) -> set[int]:
        """Return where a model may come up with so many partitions; all of them, where keys are spread otherwise."""
        return {f(name.encode(), of) for f in self._ways.values()} or set(range(of))
