"""Features as producers write them, made flat: nested objects by path, lists and embeddings by a few numbers each."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

#: Nested deeper than this, an object is no feature.
_DEEPEST: Final = 4

#: Numbers of a list that are looked at, and a list's shortest length from which it is a vector with a direction.
_LONGEST: Final = 8192
_VECTOR: Final = 8

_NESTED: Final = frozenset({dict, list})


def flat(features: dict[str, Any]) -> dict[str, Any]:
    """Return features without nested values; the same dict where there are none.

    An object's members become features by their path. A list becomes `.length` and, of numbers, `.mean`, `.norm` (the
    root of the sum of squares) and `.zeros` (the share of zeros); from eight numbers on also `.distance`, of which the
    numbers themselves are kept, as 32-bit floats in bytes, until the usual direction is known (`FeatureSchema`).

    >>> flat({"user": {"age": 3}, "a": [3, 4]})
    {'user.age': 3, 'a.length': 2, 'a.mean': 3.5, 'a.norm': 5.0, 'a.zeros': 0.0}
    """
    if _NESTED.isdisjoint(map(type, features.values())):
        return features
    found: dict[str, Any] = {}
    _add(found, "", features, 0)
    return found


def _add(found: dict[str, Any], prefix: str, tree: dict[str, Any], depth: int) -> None:
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict):
            if depth < _DEEPEST:
                _add(found, name, value, depth + 1)
        elif isinstance(value, list):
            found[f"{name}.length"] = len(value)
            _add_numbers(found, name, value)
        else:
            found[name] = value


def _add_numbers(found: dict[str, Any], name: str, items: list[Any]) -> None:
    if not items or isinstance(items[0], str | dict):
        return
    try:
        numbers = np.array(items[:_LONGEST], np.float64)
    except (ValueError, TypeError, OverflowError):
        return
    if numbers.ndim != 1:
        numbers = numbers.ravel()
    finite = numbers[np.isfinite(numbers)]
    if not len(finite):
        return
    finite = np.clip(finite, -1e150, 1e150)
    found[f"{name}.mean"] = float(finite.mean())
    found[f"{name}.norm"] = float(np.sqrt(finite @ finite))
    found[f"{name}.zeros"] = float(np.count_nonzero(finite == 0.0)) / len(finite)
    if len(finite) == len(numbers) >= _VECTOR:
        with np.errstate(over="ignore"):
            found[f"{name}.distance"] = numbers.astype("<f4").tobytes()
