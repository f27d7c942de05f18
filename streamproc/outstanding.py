"""What waits to be joined, of one model: rows in a ring of columns, found by key; bounded.

A prediction waits for its label, and a label that came first for its prediction. Both are rows of one ring, in the
order in which they came, and an index of open addressing finds a row by its key. A row that was joined stays, as done,
until its chunk goes: whole chunks go at the old end, once all in them are done or have waited too long, or for room.
So a chunk of the ring never changes but for what of it is done, and needs to be stored only once.

35 bytes a row and, of a full ring, 8.4 of index.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detectors.kernels import kernel
from detectors.protocol import I64
from streamproc.kernels import U8, U32, U64

__all__ = ["ADDED", "AGAIN", "CHUNK", "DONE", "LABEL", "Outstanding", "enter", "warm_up"]

#: Rows that are stored, and forgotten, together.
CHUNK: Final = 1024

#: Flags of a row.
DONE: Final = 1
LABEL: Final = 2

#: What became of a row: now waiting, or one more of a key that was there.
ADDED: Final = -1
AGAIN: Final = -2

_LEAST: Final = 128  # rows of a new ring
_COLUMNS: Final = ("keys", "times", "values", "classes", "scores", "versions", "flags")
_TYPES: Final = ("u8", "i8", "f8", "u4", "f4", "u2", "u1")


@kernel
def enter(
    keys: U64, side: int, index: U32, own: U64, flags: U8, first: int, following: int, found: I64
) -> tuple[int, int]:
    """Find each key's row, mark it done where it is of the other side, else add a row; in order.

    side: 0 of predictions, LABEL of labels. index: 1 + place in the ring, 0 for none; it may have places whose row
    has gone. first, following: numbers of the oldest row and of the next; a row's place is its number modulo the
    ring's size. Writes found (n,): the place of the row now done, ADDED or AGAIN. There is room for all.
    Returns the number of the next row, and how many places of the index were taken.
    """
    mask = index.size - 1
    size = own.size
    taken = 0
    for i in range(keys.size):
        key = keys[i]
        at = np.int64(key & np.uint64(mask))
        place = np.int64(-1)
        while index[at] != 0:
            k = np.int64(index[at]) - 1
            if own[k] == key and (k - first) % size < following - first:
                place = k
                break
            at = (at + 1) & mask
        if place < 0:
            place = following % size
            own[place] = key
            flags[place] = side
            index[at] = place + 1
            following += 1
            taken += 1
            found[i] = ADDED
        elif flags[place] & DONE != 0 or flags[place] & LABEL == side:
            found[i] = AGAIN
        else:
            flags[place] |= DONE
            found[i] = place
    return following, taken


@kernel
def _indexed(index: U32, own: U64, first: int, following: int) -> None:
    """Fill an empty index."""
    mask = index.size - 1
    for number in range(first, following):
        place = number % own.size
        at = np.int64(own[place] & np.uint64(mask))
        while index[at] != 0:
            at = (at + 1) & mask
        index[at] = place + 1


class Outstanding:
    """The rows of one model. limit: how many there may be, rounded up to chunks."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.first = 0  # number of the oldest row, at the start of a chunk
        self.following = 0  # number of the next one
        self.columns = _empty(_LEAST)
        self.index: U32 = np.zeros(2 * _LEAST, np.uint32)
        self._taken = 0  # places of the index
        self.stored: set[int] = set()  # chunks that are stored somewhere
        self.saved: set[int] = set()  # of these, those that we have stored ourselves

    def __len__(self) -> int:
        return self.following - self.first

    @property
    def flags(self) -> U8:
        """Flags by place."""
        return self.columns["flags"]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return self.index.nbytes + sum(c.nbytes for c in self.columns.values())

    @property
    def _room(self) -> int:
        """Rows there may be."""
        return max(2, -(-self.limit // CHUNK)) * CHUNK

    def enter(self, side: int, **columns: Any) -> I64:
        """Take at most CHUNK rows in order; return what became of each, (n,) as the kernel `enter` says.

        There must be room for them (`crowded`).
        """
        n = len(columns["keys"])
        self._make_room(n)
        found = np.empty(n, np.int64)
        start = self.following
        self.following, taken = enter(
            columns["keys"], side, self.index, self.columns["keys"], self.flags, self.first, start, found
        )
        self._taken += taken
        places = np.arange(start, self.following) % len(self.flags)
        added = found == ADDED
        for name in _COLUMNS[1:-1]:
            self.columns[name][places] = columns[name][added]
        return found

    def crowded(self, n: int) -> bool:
        """Whether a chunk must go before n more rows can come."""
        return len(self) + n > self._room

    def _make_room(self, n: int) -> None:
        size = len(self.flags)
        if len(self) + n > size:
            if self.crowded(n):
                raise ValueError("no room: drop a chunk first")
            while size < len(self) + n:
                size = 2 * size if size < CHUNK else min(2 * size, self._room)
            old, self.columns = self.columns, _empty(size)
            numbers = np.arange(self.first, self.following)
            for name, column in old.items():
                self.columns[name][numbers % size] = column[numbers % len(column)]
            self._index()
        elif self._taken + n > 0.7 * len(self.index):
            self._index()

    def _index(self) -> None:
        size = len(self.index)
        while size < 2 * len(self.flags):
            size *= 2
        self.index = np.zeros(size, np.uint32)
        self._taken = len(self)
        _indexed(self.index, self.columns["keys"], self.first, self.following)

    def head(self) -> slice | None:
        """Return the places of the oldest chunk, None where not even one is full."""
        return self._chunk(self.first // CHUNK) if len(self) >= CHUNK else None

    def drop(self) -> int | None:
        """Forget the oldest chunk; return its number where it is stored anywhere."""
        chunk = self.first // CHUNK
        self.first += CHUNK
        self.saved.discard(chunk)
        if chunk not in self.stored:
            return None
        self.stored.discard(chunk)
        return chunk

    def waiting(self, side: int) -> I64:
        """Return the numbers of the rows of a side that still wait, oldest first."""
        numbers = np.arange(self.first, self.following)
        return numbers[self.flags[numbers % len(self.flags)] == side]

    def _chunk(self, chunk: int) -> slice:
        start = chunk * CHUNK % len(self.flags)
        return slice(start, start + CHUNK)

    # ------------------------------------------------------------------------------ state

    @property
    def _open(self) -> int:
        """Number of the first row that is in no full chunk."""
        return self.following // CHUNK * CHUNK

    def sealed(self, *, unsaved: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number and the columns of each full chunk; of those we have not stored yet, and note them."""
        for chunk in range(self.first // CHUNK, self._open // CHUNK):
            if unsaved:
                if chunk in self.saved:
                    continue
                self.saved.add(chunk)
                self.stored.add(chunk)
            own = self._chunk(chunk)
            tree = {name: self.columns[name][own].copy() for name in _COLUMNS}
            tree["flags"] &= LABEL  # what is done is in the state itself
            yield chunk, tree

    def snapshot(self) -> dict[str, Any]:
        """Return the state but for full chunks' columns: what of them is done, and the rows after them."""
        size = len(self.flags)
        full = np.arange(self.first, self._open) % size
        rest = np.arange(self._open, self.following) % size
        return {
            "numbers": [self.first, self.following],
            "done": np.packbits(self.flags[full] & DONE),
            "rest": {name: column[rest] for name, column in self.columns.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `snapshot` gave, all rows of full chunks being done until `refill`."""
        self.first, self.following = state["numbers"]
        size = _LEAST
        while size < len(self):
            size = 2 * size if size < CHUNK else min(2 * size, max(self._room, -(-len(self) // CHUNK) * CHUNK))
        self.columns = _empty(size)
        self.flags[:] = DONE
        for name, column in state["rest"].items():
            self.columns[name][np.arange(self._open, self.following) % size] = column
        self._done = np.unpackbits(state["done"], count=self._open - self.first)
        self._index()

    def refill(self, chunks: dict[int, dict[str, Any]]) -> tuple[list[int], int]:
        """Take up full chunks; return those that are none of ours, and how many rows waited in chunks not given."""
        ours = range(self.first // CHUNK, self._open // CHUNK)
        missing = 0
        for k, chunk in enumerate(ours):
            done = self._done[k * CHUNK : (k + 1) * CHUNK]
            tree = chunks.get(chunk)
            if tree is None:
                missing += CHUNK - int(done.sum())
                continue
            own = self._chunk(chunk)
            for name in _COLUMNS:
                self.columns[name][own] = tree[name]
            self.flags[own] |= done
            self.stored.add(chunk)
        self._done = np.empty(0, np.uint8)
        self._index()
        return [c for c in chunks if c not in ours], missing


def warm_up() -> None:
    """Run the loops once, so that they are compiled."""
    ring = Outstanding(CHUNK)
    blank = {name: np.zeros(1, kind) for name, kind in zip(_COLUMNS[1:-1], _TYPES[1:-1], strict=True)}
    for side in (0, LABEL):
        ring.enter(side, keys=np.ones(1, np.uint64), **blank)
    ring._index()


def _empty(size: int) -> dict[str, npt.NDArray[Any]]:
    return {name: np.zeros(size, kind) for name, kind in zip(_COLUMNS, _TYPES, strict=True)}
