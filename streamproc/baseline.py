"""What a model's answers and features are measured against, and where that comes from.

A `Baseline` is one generation of it: how answers, classes and features were distributed, and how they went
together. It is learned from the first events, or from rows of a file; or it is renewed again and again, each time
by what the stream was in the stretch before (`reference: {trailing: 7d}`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from detectors.protocol import F64, I64
from streamproc.events import rfc3339
from streamproc.feature_schema import FeatureSchema, Matrix
from streamproc.reference import Moments, Period, Reference, Vocabulary

Bools = npt.NDArray[np.bool_]


class Table(Struct, frozen=True):
    """Rows to learn a baseline from: of features, and for each what was answered, None where it is not told.

    name: what they are called in alerts.
    """

    name: str
    rows: list[dict[str, Any]]
    values: list[float | None]
    labels: list[str | None]


class Wanted(Struct, frozen=True):
    """Which parts of a baseline any signal asks for."""

    numbers: bool  # of features: range, spread, distribution
    words: bool
    moments: bool


class Baseline:
    """One generation: what was learned of answers, classes and features, and until when."""

    def __init__(self, *, events: int | None = None, endless: bool = False) -> None:
        self.source = ""  # the name of a table
        self.began_us: int | None = None
        self.ended_us: int | None = None
        self.answers = Reference(1)
        self.answers_period = Period(events, endless=endless)
        self.classes: dict[str, int] = {}  # how often each came while learning
        self.classes_period = Period(events, endless=endless)
        self.numbers: Reference | None = None  # of numeric features, once they are known
        self.words: Vocabulary | None = None  # of categorical ones
        self.moments: Moments | None = None
        self.features_period = Period(events, endless=endless)

    @property
    def events(self) -> int:
        """Return how many events, or rows, it was learned from."""
        return max(self.answers_period.events, self.classes_period.events, self.features_period.events)

    def describe(self) -> str:
        """Return in words what it comes from."""
        if self.source:
            return f"{self.source}, {self.events} rows"
        if self.began_us is None or self.ended_us is None:
            return f"{self.events} events so far"
        return f"{self.events} events from {_minute(self.began_us)} to {_minute(self.ended_us)}"

    def take(self, period: Period, rows: I64, progress: I64, window_us: int) -> I64:
        """Return those of some rows, (n,) in order, that a period of it learns from; note of when they are.

        progress: of every row, in event time; it never falls.
        """
        taken = rows[: period.take(progress[rows], window_us)]
        if len(taken):
            first_us, last_us = int(progress[taken[0]]), int(progress[taken[-1]])
            self.began_us = first_us if self.began_us is None else min(self.began_us, first_us)
            self.ended_us = last_us if self.ended_us is None else max(self.ended_us, last_us)
        return taken

    def relearn_features(self) -> None:
        """Forget what features were like, and learn it again: their names have changed."""
        self.numbers = self.words = self.moments = None
        old = self.features_period
        self.features_period = Period(old.least, endless=old.endless)

    def learn_features(self, matrix: Matrix, answers: F64, rows: I64, wanted: Wanted) -> None:
        """Learn some rows of features, with (n,) answers, nan for none."""
        if wanted.numbers and self.numbers is None and matrix.values.shape[1]:
            self.numbers = Reference(matrix.values.shape[1])
        if wanted.words and self.words is None and matrix.words.shape[1]:
            self.words = Vocabulary(matrix.words.shape[1])
        if wanted.moments and self.moments is None and matrix.values.shape[1]:
            self.moments = Moments(matrix.values.shape[1])
        if not len(rows):
            return
        if self.numbers is not None:
            self.numbers.learn(matrix.values[rows])
        if self.words is not None:
            self.words.learn(matrix.words[rows])
        if self.moments is not None:
            own = np.zeros(len(matrix.given), np.bool_)
            own[rows] = True
            self.moments.add(matrix.values, answers, own, self.moments.sums)

    def end(self) -> None:
        """Learn no more."""
        for period in (self.answers_period, self.classes_period, self.features_period):
            period.end()
        self.settle()

    def settle(self) -> None:
        """Fix what was learned."""
        self.answers.settle()
        if self.numbers is not None:
            self.numbers.settle()

    def snapshot(self) -> dict[str, Any]:
        """Return the state as a tree."""
        return {
            "source": [self.source, self.began_us, self.ended_us],
            "periods": [p.snapshot() for p in (self.answers_period, self.classes_period, self.features_period)],
            "answers": self.answers.snapshot(),
            "classes": dict(self.classes),
            "numbers": None if self.numbers is None else self.numbers.snapshot(),
            "words": None if self.words is None else self.words.snapshot(),
            "moments": None if self.moments is None else self.moments.snapshot(),
        }

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Baseline:
        """Build from what `snapshot` gave."""
        self = cls()
        self.source, self.began_us, self.ended_us = state["source"]
        periods = (self.answers_period, self.classes_period, self.features_period)
        for period, found in zip(periods, state["periods"], strict=True):
            period.restore(found)
        self.answers = Reference.restored(state["answers"])
        self.classes = dict(state["classes"])
        self.numbers = None if state["numbers"] is None else Reference.restored(state["numbers"])
        self.words = None if state["words"] is None else Vocabulary.restored(state["words"])
        self.moments = None if state["moments"] is None else Moments.restored(state["moments"])
        return self


def from_table(table: Table, *, max_features: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the states of a `FeatureSchema` and of a `Baseline` learned from a table.

    Where it has fewer rows than a baseline needs, the stream's first events are learned from too.
    """
    schema, baseline = FeatureSchema(max_features=max_features), Baseline()
    baseline.source = table.name
    schema.learn_all(table.rows)
    answers = np.array([np.nan if v is None else v for v in table.values], np.float64)
    if schema.ready:
        matrix = schema.matrix(table.rows)
        rows = np.nonzero(matrix.given)[0]
        baseline.learn_features(matrix, answers, rows, Wanted(numbers=True, words=True, moments=True))
        baseline.features_period.told(len(rows))
    given = answers[~np.isnan(answers)]
    baseline.answers.learn(given[:, None])
    baseline.answers_period.told(len(given))
    named = [label for label in table.labels if label is not None]
    for label in named:
        baseline.classes[label] = baseline.classes.get(label, 0) + 1
    baseline.classes_period.told(len(named))
    baseline.settle()
    return schema.snapshot(), baseline.snapshot()


def _minute(us: int) -> str:
    return rfc3339(us)[:16] + "Z"
