"""Which features a model has and of what type, and their values as matrices.

A schema is learned from a model's first rows and follows the model after that: a name that comes in many rows joins
it, one that no longer comes leaves. Both are decided at a row of the log, so that the cut of a stream changes nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from detectors.protocol import F64, I64
from streamproc import kernels
from streamproc.cells import IS_NULL, IS_TEXT, LONG_TEXT
from streamproc.coercion import is_fraction

#: Events from which a model's feature names and types are learned before any is called missing.
LEARN_FEATURES_FROM = 50

#: A feature beyond this is no number: JSON's integers have no end, and floats have.
_LARGEST = int(np.finfo(np.float64).max)

#: A name that is not known joins once so many rows had it, if they are at least this share of the rows since its first.
_JOINS_AFTER: Final = 50
_JOINS_SHARE: Final = 0.05
#: A name that is known leaves once so many rows in a row came without it, over so many windows of time.
_LEAVES_AFTER: Final = 1000
_LEAVES_WINDOWS: Final = 30
#: Or so many rows in a row, where that is more than ever had it.
_PASSING_AFTER: Final = 200
#: Names not known that are counted at once.
_MAX_STRANGERS: Final = 1000

#: Different texts with a fraction from which a feature in text is a number: a version has fewer.
_DECIMALS: Final = 20

#: Vectors from which the usual direction is learned, and features that have one.
_CENTRE_OF: Final = 200
_MAX_CENTRES: Final = 4

#: What a text is watched by, where texts are long.
_TEXT_COLUMNS: Final = (".length", ".empty")


class Matrix(Struct, gc=False):
    """The features of n rows, by a schema of d numeric ones and c categorical.

    values (n, d) with nan where there is no number; missing and invalid (n, d + c) as 0 and 1, numeric
    features first; given (n,), False where an event carried no features at all; words (n, c), a number or
    the hash of a text, nan for none.
    """

    values: F64
    missing: npt.NDArray[np.int64]
    invalid: npt.NDArray[np.int64]
    given: npt.NDArray[np.bool_]
    words: F64

    @property
    def flawless(self) -> bool:
        """Whether every number is known to be there."""
        return not self.missing.flags.writeable


class Vote(Struct):
    """What the values of one name were."""

    numbers: int = 0
    decimals: int = 0  # texts that write a number with a fraction
    words: int = 0
    texts: int = 0  # long ones
    different: list[str] = []  # of the decimals, up to a bound

    def add(self, value: Any) -> None:
        """Count one value."""
        if isinstance(value, int | float | bytes):
            self.numbers += 1
        elif isinstance(value, str):
            if len(value) > LONG_TEXT:
                self.texts += 1
            elif is_fraction(value):
                self.decimals += 1
                if len(self.different) <= _DECIMALS and value not in self.different:
                    self.different = [*self.different, value]
            else:
                self.words += 1

    @property
    def came(self) -> int:
        """How many values there were."""
        return self.numbers + self.decimals + self.words + self.texts

    def kind(self) -> str:
        """Return numeric, text or categorical."""
        words = self.words + (0 if len(self.different) > _DECIMALS else self.decimals)
        if self.texts and self.texts >= words:
            return "text"
        return "numeric" if self.numbers + self.decimals + self.words - words > words else "categorical"

    def plain(self) -> list[Any]:
        """Return the state as a list."""
        return [self.numbers, self.decimals, self.words, self.texts, list(self.different)]


class FeatureSchema:
    """The feature names of one model: numeric, categorical, and long texts, which numbers stand for.

    Numbers and booleans are numeric, and texts that write numbers with a fraction; other texts are categorical.
    """

    def __init__(self, *, max_features: int) -> None:
        self.max_features = max_features
        self.left = LEARN_FEATURES_FROM
        self.numeric: tuple[str, ...] = ()
        self.categorical: tuple[str, ...] = ()
        self.texts: tuple[str, ...] = ()  # names whose columns are `.length` and `.empty`, among the numeric ones
        self.left_out = 0  # whether there are names beyond max_features
        self.rows = LEARN_FEATURES_FROM  # with features, so far
        self._joined: dict[str, int] = {}  # how many there were when a name joined later
        self._votes: dict[str, Vote] = {}
        self._strangers: dict[str, tuple[int, Vote]] = {}  # rows since the first that had it
        self._absent: dict[str, list[int]] = {}  # rows in a row without it, and the time of the first, microseconds
        self._centres: dict[str, list[Any]] = {}  # how many vectors, and their sum
        self._bind()

    def _bind(self) -> None:
        self._in_order = self.numeric if not self.categorical and not self.texts else ()
        self._get = itemgetter(*self.numeric) if len(self.numeric) > 1 else None
        derived = _columns_of(self.texts)
        self._known = frozenset((*(n for n in self.numeric if n not in derived), *self.categorical, *self.texts))
        self.usual: set[tuple[str, ...]] = set()  # tuples of names that are just the known ones

    @property
    def ready(self) -> bool:
        """Whether names are settled."""
        return self.left == 0

    def learn(self, rows: Iterable[dict[str, Any] | None]) -> int:
        """Learn from rows until names are settled; return how many rows that took."""
        used = 0
        for features in rows:
            if self.left == 0:
                break
            used += 1
            if not features:
                continue
            self.left -= 1
            for name, value in features.items():
                if name in self._votes or len(self._votes) < self.max_features:
                    self._votes.setdefault(name, Vote()).add(value)
                else:
                    self.left_out = 1
        self._settle()
        return used

    def learn_all(self, rows: Iterable[dict[str, Any] | None]) -> None:
        """Learn from rows that are known to be all there is; names are settled if any has one."""
        self.learn(rows)
        if self._votes:
            self.left = 0
            self._settle()

    def _settle(self) -> None:
        if self.left == 0 and self._votes:
            self._join(self._votes)
            self._votes = {}

    def _join(self, votes: dict[str, Vote]) -> None:
        kinds = {n: v.kind() for n, v in votes.items()}
        texts = [n for n, kind in kinds.items() if kind == "text"]
        self.texts = (*self.texts, *texts)
        numeric = [n for n, kind in kinds.items() if kind == "numeric"]
        self.numeric = (*self.numeric, *numeric, *_columns_of(texts))
        self.categorical = (*self.categorical, *(n for n, kind in kinds.items() if kind == "categorical"))
        self._bind()

    # -- what comes and goes

    def follow_alike(self, names: tuple[str, ...] | None, n: int) -> bool:
        """Take note of n rows that all have just the known names; whether they have, and no name is due."""
        if names is None or names not in self.usual or self._absent or self._strangers:
            return False
        self.rows += n
        return True

    def follow(self, rows: Iterator[tuple[str, ...] | dict[str, Any] | None], times: I64, window_us: int) -> int | None:
        """Look at the names of rows, in order; return the row with which the schema is to change, None for none.

        rows: each as a dict, or only its names where these are among the `usual`; None for one without features.
        times (n,): the progress at each, microseconds.
        `change` then changes it.
        """
        usual, known, absent = self.usual, self._known, self._absent
        for i, row in enumerate(rows):
            if not row:
                continue
            names = row if type(row) is tuple else tuple(row)
            if not (names in usual and not absent and not self._strangers) and self._look(
                row, names, known, int(times[i]), window_us
            ):
                return i
            self.rows += 1
        return None

    def _look(
        self, row: Any, names: tuple[str, ...], known: frozenset[str], now_us: int, window_us: int
    ) -> bool:
        own = set(names)
        strange = [n for n in names if n not in known]
        gone = known - own
        if not strange and not gone:
            if len(self.usual) < 64:
                self.usual.add(names)
            self._absent.clear()
        due = False
        for name in [n for n in self._absent if n not in gone]:
            del self._absent[name]
        for name in gone:
            since = self._absent.setdefault(name, [0, now_us])
            since[0] += 1
            due = due or self._is_gone(name, since, now_us, window_us)
        for name in [*self._strangers]:
            rows, vote = self._strangers[name]
            if rows >= 100 * _JOINS_AFTER:
                del self._strangers[name]
            else:
                self._strangers[name] = (rows + 1, vote)
        for name in strange:
            if name not in self._strangers:
                if len(self._strangers) >= _MAX_STRANGERS:
                    continue
                self._strangers[name] = (1, Vote())
            rows, vote = self._strangers[name]
            vote.add(row[name])
            due = due or (vote.came >= _JOINS_AFTER and vote.came >= _JOINS_SHARE * rows and self._room() > 0)
        return due

    def _is_gone(self, name: str, since: list[int], now_us: int, window_us: int) -> bool:
        rows, first_us = since
        # What came less often than it has been missed, as in a test before the first real request, was never there.
        passing = rows >= _PASSING_AFTER and rows > self.rows - self._joined.get(name, 0) - rows
        return passing or (rows >= _LEAVES_AFTER and now_us - first_us >= _LEAVES_WINDOWS * window_us)

    def _room(self) -> int:
        return self.max_features - len(self._known)

    def change(self, now_us: int, window_us: int) -> tuple[list[str], list[str]]:
        """Take in the names that are due and forget those that are gone; return both."""
        gone = [n for n, since in self._absent.items() if self._is_gone(n, since, now_us, window_us)]
        came = {}
        for name, (rows, vote) in self._strangers.items():
            # Those that came with it join with it, so that one change does for all.
            if vote.came >= _JOINS_AFTER // 2 and vote.came >= _JOINS_SHARE * rows:
                came[name] = vote
        lost = {*gone, *_columns_of(n for n in gone if n in self.texts)}
        self.numeric = tuple(n for n in self.numeric if n not in lost)
        self.categorical = tuple(n for n in self.categorical if n not in lost)
        self.texts = tuple(n for n in self.texts if n not in lost)
        self._bind()
        room = max(self._room(), 0)
        self.left_out |= len(came) > room
        came = dict([*came.items()][:room])
        self._join(came)
        self._joined = {n: at for n, at in self._joined.items() if n not in lost}
        self._joined.update(dict.fromkeys(came, self.rows - _JOINS_AFTER))
        self._strangers, self._absent = {}, {}
        return [*came], gone

    def measure(self, dicts: Iterable[dict[str, Any] | None]) -> None:
        """Put into rows, in order, how far each vector is from the usual direction: 0 the same, 1 across, 2 against.

        The usual direction is the mean of a feature's first vectors. What has none, or another length, is missing.
        """
        for row in dicts:
            if not row:
                continue
            for name, value in row.items():
                if type(value) is bytes:
                    row[name] = self._distance(name, np.frombuffer(value, "<f4").astype(np.float64))

    def _distance(self, name: str, vector: F64) -> float | None:
        size = float(np.sqrt(vector @ vector))
        if not 0.0 < size < 1e300:
            return None
        unit = vector / size
        centre = self._centres.get(name)
        if centre is None:
            if len(self._centres) >= _MAX_CENTRES:
                return None
            centre = self._centres[name] = [0, np.zeros(len(vector), np.float32)]
        if len(centre[1]) != len(vector):
            return None
        total = centre[1].astype(np.float64)
        length = float(np.sqrt(total @ total))
        found = None if length == 0.0 else max(0.0, 1.0 - float(unit @ total) / length)
        if centre[0] < _CENTRE_OF:
            centre[0] += 1
            centre[1] = (total + unit).astype(np.float32)
        return found

    # -- rows as numbers

    def empty(self, n: int) -> Matrix:
        """Return n rows that carry nothing."""
        d, c = len(self.numeric), len(self.categorical)
        missing, invalid = np.zeros((2, n, d + c), np.int64)
        return Matrix(np.full((n, d), np.nan), missing, invalid, np.zeros(n, bool), np.full((n, c), np.nan))

    def matrix(self, rows: Sequence[dict[str, Any] | None]) -> Matrix:
        """Return rows as numbers, with what is wrong with them."""
        d, width = len(self.numeric), len(self.numeric) + len(self.categorical)
        order = self._in_order
        if order:
            try:
                if all([tuple(f) == order for f in rows]):  # type: ignore[arg-type]  # noqa: C419 - twice as fast
                    flat = array("d", chain.from_iterable([f.values() for f in rows]))  # type: ignore[union-attr]
                    values = np.frombuffer(flat, np.float64).reshape(len(rows), d)
                    return _flawless(values, width)
            except (TypeError, OverflowError):
                pass  # a null, a text or an integer beyond all doubles among the numbers: find out where
        found = self.empty(len(rows))
        values, missing, invalid, given, words = (
            found.values, found.missing, found.invalid, found.given, found.words
        )  # fmt: skip
        texts: list[bytes] = []
        cells: list[tuple[int, int]] = []
        plain = [(j, n) for j, n in enumerate(self.numeric) if n in self._known]
        lengths = [(self.numeric.index(f"{n}.length"), n) for n in self.texts]
        for i, features in enumerate(rows):
            if not features:
                continue
            given[i] = True
            for j, name in plain:
                value = features.get(name)
                if value is None:
                    missing[i, j] = 1
                elif isinstance(value, float | int) and abs(value) <= _LARGEST:
                    values[i, j] = value
                elif isinstance(value, str) and is_fraction(value):
                    values[i, j] = float(value)
                else:
                    invalid[i, j] = 1
            for j, name in lengths:
                value = features.get(name)
                if value is None:
                    missing[i, j : j + 2] = 1
                elif isinstance(value, str):
                    values[i, j : j + 2] = len(value), not value.strip()
                else:
                    invalid[i, j : j + 2] = 1
            for j, name in enumerate(self.categorical):
                value = features.get(name)
                if value is None:
                    missing[i, d + j] = 1
                elif isinstance(value, dict | list | bytes):
                    invalid[i, d + j] = 1
                elif isinstance(value, str):
                    texts.append(value.encode("utf-8", "surrogatepass"))
                    cells.append((i, j))
                elif abs(value) <= _LARGEST:
                    words[i, j] = value
        if texts:
            ends = np.fromiter(map(len, texts), np.int64, len(texts)).cumsum()
            hashes = np.empty(len(texts))
            kernels.hash_cells(np.frombuffer(bytearray(b"".join(texts) + bytes(8)), np.uint8), ends, hashes)
            words[tuple(np.array(cells).T)] = hashes
        return found

    def arrange(self, names: tuple[str, ...], cells: F64, kinds: npt.NDArray[np.uint8]) -> Matrix:
        """Return what `matrix` returns, for n rows that all have features of these names.

        cells and kinds (n, at least as many as names): the values, and whether each is a number, a null
        or a text and how long, as `cells.IS_NUMBER` and its siblings say. Of a text the cell has a hash.
        """
        n, d, width = len(cells), len(self.numeric), len(self.numeric) + len(self.categorical)
        if names == self._in_order and not kinds[:, :d].any():
            # A copy, contiguous and our own: a detector may keep what it is shown.
            return _flawless(np.array(cells[:, :d]), width)
        found = self.empty(n)
        found.given[:] = True
        own = {f"{t}.length": t for t in self.texts}
        columns = [(j, n, own.get(n)) for j, n in enumerate((*self.numeric, *self.categorical))]
        for j, name, text in columns:
            if text is not None:
                at = names.index(text) if text in names else -1
                both = slice(j, j + 2)
                if at < 0:
                    found.missing[:, both] = 1
                    continue
                kind = kinds[:, at]
                texts = kind >= IS_TEXT
                found.missing[:, both] = (kind == IS_NULL)[:, None]
                found.invalid[:, both] = (~texts & (kind != IS_NULL))[:, None]
                length = kind[texts].astype(np.float64) - IS_TEXT
                found.values[texts, j] = length
                found.values[texts, j + 1] = length == 0.0
                continue
            if name not in self._known:
                continue  # a text's `.empty`, which stands beside its length
            if name not in names:
                found.missing[:, j] = 1
                continue
            at = names.index(name)
            found.missing[:, j] = kinds[:, at] == IS_NULL
            if j < d:
                texts = kinds[:, at] >= IS_TEXT
                found.values[:, j] = cells[:, at]
                found.values[texts, j] = np.nan
                found.invalid[:, j] = texts
            else:
                found.words[:, j - d] = cells[:, at]
        return found

    # -- state

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a tree."""
        return {
            "left": self.left,
            "numeric": list(self.numeric),
            "categorical": list(self.categorical),
            "texts": list(self.texts),
            "left_out": self.left_out,
            "rows": self.rows,
            "joined": [[n, at] for n, at in sorted(self._joined.items())],
            "votes": [[n, v.plain()] for n, v in self._votes.items()],
            "strangers": [[n, rows, v.plain()] for n, (rows, v) in self._strangers.items()],
            "absent": [[n, *since] for n, since in sorted(self._absent.items())],
            "centres": [[n, count, total.copy()] for n, (count, total) in self._centres.items()],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `snapshot` gave."""
        self.left, self.left_out = state["left"], state["left_out"]
        self.numeric, self.categorical = tuple(state["numeric"]), tuple(state["categorical"])
        self.texts = tuple(state["texts"])
        self.rows, self._joined = state["rows"], dict(state["joined"])
        self._votes = {n: Vote(*v) for n, v in state["votes"]}
        self._strangers = {n: (rows, Vote(*v)) for n, rows, v in state["strangers"]}
        self._absent = {n: since for n, *since in state["absent"]}
        self._centres = {n: [count, total] for n, count, total in state["centres"]}
        self._bind()


def _columns_of(texts: Iterable[str]) -> list[str]:
    return [f"{name}{column}" for name in texts for column in _TEXT_COLUMNS]


_NONE: dict[int, npt.NDArray[np.int64]] = {}


def _none(n: int, width: int) -> npt.NDArray[np.int64]:
    """Return a read-only (n, width) of zeros without allocating it each time."""
    zeros = _NONE.get(width)
    if zeros is None or len(zeros) < n:
        zeros = _NONE[width] = np.zeros((max(n, 1024), width), np.int64)
        zeros.flags.writeable = False
    return zeros[:n]


def _flawless(values: F64, width: int) -> Matrix:
    n = len(values)
    return Matrix(values, _none(n, width), _none(n, width), np.ones(n, bool), np.empty((n, 0)))
