"""Labels that can belong to no prediction, or agree with none: told by names, where a figure would only be wrong."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator, Mapping
from typing import Literal

from msgspec import Struct

from streamproc.models import OTHER, LabelState, ModelState
from streamproc.predictions import PredictionState

__all__ = ["Mismatch", "mismatches"]

#: Classes that either side must have had: the first one alone may be just another than the other side's first.
_CLASSES = 2

#: Names that a near one is looked for among: it takes some 50 µs each.
_COMPARED = 200

#: Names that a text shows.
_SHOWN = 5


class Mismatch(Struct, frozen=True):
    """What of a model's labels does not fit its predictions, in words."""

    model: str
    kind: Literal["unknown_model", "other_classes"]
    message: str


def mismatches(predictions: Mapping[str, ModelState], labels: Mapping[str, ModelState]) -> Iterator[Mismatch]:
    """Yield what does not fit, of models of one partition: labels of no such model, and classes it never answers."""
    if not predictions:
        return  # nothing was read yet, and so nothing is known
    for name, of_labels in labels.items():
        of_predictions = predictions.get(name)
        if of_predictions is None:
            near = []
            if len(predictions) <= _COMPARED:
                near = difflib.get_close_matches(name, predictions, n=1, cutoff=0.8)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield Mismatch(name, "unknown_model", f"labels are of model {name}, which makes no predictions{hint}")
        elif isinstance(of_labels, LabelState) and isinstance(of_predictions, PredictionState):
            told = _classes(of_labels.classes.names)
            answered = _classes(of_predictions.classes.names)
            if min(len(told), len(answered)) >= _CLASSES and not told.keys() & answered.keys():
                yield Mismatch(
                    name,
                    "other_classes",
                    f"labels of {name} are {_some(told)}, and its answers {_some(answered)}: none is the same, so that "
                    "accuracy is 0 whatever it answers; write both alike",
                )


def _classes(names: list[str]) -> dict[str, str]:
    """Return classes by what tells them apart: 1, 1.0 and "1" are one, as are True and true."""
    found: dict[str, str] = {}
    for name in names:
        if name == OTHER:
            continue
        key = name.strip().lower()
        with contextlib.suppress(ValueError):
            key = f"{float(key):g}"
        found.setdefault(key, name)
    return found


def _some(classes: Mapping[str, str]) -> str:
    names = list(classes.values())
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{n}`" for n in names[:_SHOWN]) + more
