"""What a model does, told by its first answers and labels: it names classes, gives a probability, or a number."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from msgspec import Struct, field

from detectors.protocol import F64
from streamproc.joins import MINUS_ONE, NEGATIVE, NO_CLASS, PLACES, POSITIVE, class_hash, whole_classes
from streamproc.kernels import U32

Bools = npt.NDArray[np.bool_]

#: What a model's answers are, by its task.
SAYS: Final = {"classes": "classes", "number": "numbers", "probability": "probabilities"}

#: Answers, and labels, from which a task is settled for good.
_ANSWERS: Final = 50
_LABELS: Final = 20

#: Classes of either side that are remembered; of a model with more, any two are taken to be comparable.
_MOST: Final = 500

#: Share of numbers with a fraction that tells of a probability or a quantity rather than of classes.
_SOME: Final = 0.05

#: Different whole numbers beyond which what is told as a value is a quantity.
_FEW: Final = 10

_INTEGERS: Final = {class_hash(str(i)): i for i in range(256)}


class Evidence(Struct):
    """What was seen of one model's answers and labels. `add` takes each once, in the order of the log."""

    named: int = 0  # answers with a class of their own
    whole: int = 0  # numbers without a fraction
    shares: int = 0  # with one, from 0 to 1
    wide: int = 0  # with one, beyond
    label_classes: int = 0
    label_values: int = 0
    answers: set[int] = field(default_factory=set)
    labels: set[int] = field(default_factory=set)
    settled: str = ""

    @property
    def numeric(self) -> int:
        """How many answers were numbers."""
        return self.whole + self.shares + self.wide

    @property
    def mixed(self) -> bool:
        """Whether labels are told as quantities and as one of two classes both: then shares go with the latter."""
        return self.label_values > 0 and self.label_classes > 0 and self.shares > 0

    def add(self, label: bool, classes: U32, values: F64) -> None:
        """Take in (n,) answers, or labels: classes, NO_CLASS for none, and values, nan for none."""
        own = np.where(classes != NO_CLASS, classes, whole_classes(values))
        known = self.labels if label else self.answers
        if len(known) <= _MOST:
            known.update(np.unique(own[own != NO_CLASS])[: _MOST + 1].tolist())
        told = classes != NO_CLASS
        if label:
            self.label_classes += int(told.sum())
            self.label_values += int((~told).sum())
        else:
            numbers = values[~told & np.isfinite(values)]
            fraction = numbers != np.floor(numbers)
            inside = (numbers >= 0.0) & (numbers <= 1.0)
            self.named += int(told.sum())
            self.whole += int((~fraction).sum())
            self.shares += int((fraction & inside).sum())
            self.wide += int((fraction & ~inside).sum())
        enough = self.named + self.numeric >= _ANSWERS and self.label_classes + self.label_values >= _LABELS
        if not self.settled and enough:
            self.settled = self._guess()

    def task(self) -> str:
        """Return the task: what was settled, or, before there is enough to go by, what all so far points to."""
        return self.settled or self._guess()

    def _guess(self) -> str:
        if self.named >= self.numeric:
            return "classes"
        if self.wide > 0 and self.wide >= _SOME * self.numeric:
            return "number"
        by_value = self.label_values > self.label_classes
        two = bool(self.labels) and self.labels <= {POSITIVE, NEGATIVE, MINUS_ONE}
        if self.shares > 0 and self.shares >= _SOME * self.numeric:
            return "number" if by_value and not two else "probability"
        # Whole numbers alone: classes, unless labels are quantities.
        return "number" if by_value and len(self.answers | self.labels) > _FEW else "classes"

    def comparable(self, classes: U32, truth: U32) -> Bools:
        """Return which of (n,) pairs of classes are of one vocabulary: one of the two was met on the other side."""
        if len(self.labels) > _MOST or len(self.answers) > _MOST:
            return np.ones(len(classes), np.bool_)
        found: Bools = np.isin(classes, list(self.labels)) | np.isin(truth, list(self.answers))
        return found

    def named_classes(self, classes: U32, order: tuple[str, ...]) -> U32:
        """Return (n,) classes, with what stands for a place in a list of shares as the class at that place.

        order: the classes in the order of the shares, where a config says it. Else a place is the class of that number
        once the labels are known to be numbers from 0 on, and no class before.
        """
        places = {int(c): PLACES[int(c)] for c in np.unique(classes).tolist() if int(c) in PLACES}
        if not places:
            return classes
        found = classes.copy()
        for code, place in places.items():
            if order:
                found[classes == code] = class_hash(order[place]) if place < len(order) else NO_CLASS
            elif self.labels <= _INTEGERS.keys() and NEGATIVE in self.labels:
                found[classes == code] = class_hash(str(place))
            else:
                found[classes == code] = NO_CLASS
        return found

    def snapshot(self) -> list[Any]:
        """Return the state as a list."""
        counts = [self.named, self.whole, self.shares, self.wide, self.label_classes, self.label_values]
        return [*counts, sorted(self.answers), sorted(self.labels), self.settled]

    @classmethod
    def restored(cls, state: list[Any]) -> Evidence:
        """Build from what `snapshot` gave."""
        found = cls(*state)
        found.answers, found.labels = set(found.answers), set(found.labels)
        return found
