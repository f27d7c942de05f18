"""Detectors by name.

Importing this module is light: a detector's own module, and numba or river with it, loads when the
detector is first asked for.

Third parties add theirs by the entry point group `streamproc.detectors`: the entry's name is the
detector's, its object a class (or any callable) with an attribute `spec`, a `DetectorSpec`, called as
`object(params, columns=..., sensitivity=..., seed=...)`. A third party cannot replace one of ours.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any, Final, Protocol, cast, get_args

import msgspec

from detectors.params import DetectorSpec, Kind, ParameterError, Sensitivity, build, closest
from detectors.protocol import Detector

__all__ = [
    "DetectorSpec",
    "Kind",
    "ParameterError",
    "Sensitivity",
    "UnknownDetectorError",
    "create",
    "names",
    "spec",
]

_GROUP: Final = "streamproc.detectors"


class _Maker(Protocol):
    spec: DetectorSpec

    def __call__(
        self, params: msgspec.Struct, *, columns: int, sensitivity: Sensitivity, seed: int
    ) -> Detector: ...


#: name → the module that has it, and the class in it. River's are listed by `_RIVER`.
_OURS: Final[dict[str, tuple[str, str]]] = {
    "drift": ("detectors.drift", "Drift"),
    "half_space_trees": ("detectors.half_space_trees", "HalfSpaceTrees"),
    "limits": ("detectors.limits", "Limits"),
    "outlier": ("detectors.outlier", "Outlier"),
    "pattern": ("detectors.pattern", "Pattern"),
    "rate": ("detectors.rate", "Rate"),
    "robust_z": ("detectors.robust_z", "RobustZ"),
    "seasonal": ("detectors.seasonal", "Seasonal"),
    "silence": ("detectors.silence", "Silence"),
    "spike": ("detectors.spike", "Spike"),
}

#: Named here too so that listing names does not load the adapter; a test holds both to agree.
_RIVER: Final = frozenset(
    {
        "adwin",
        "ddm",
        "eddm",
        "fhddm",
        "gaussian_scorer",
        "hddm_a",
        "hddm_w",
        "kswin",
        "local_outlier_factor",
        "loda",
        "one_class_svm",
        "page_hinkley",
        "standard_absolute_deviation",
    }
)


class UnknownDetectorError(LookupError):
    """No detector has this name."""


@functools.cache
def _plugins() -> dict[str, importlib.metadata.EntryPoint]:
    found = importlib.metadata.entry_points(group=_GROUP)
    return {entry.name: entry for entry in found if entry.name not in _OURS and entry.name not in _RIVER}


def names() -> list[str]:
    """Return every detector's name, sorted.

    Examples
    --------
    >>> from detectors import registry
    >>> "robust_z" in registry.names()
    True
    """
    return sorted({*_OURS, *_RIVER, *_plugins()})


@functools.cache
def _maker(name: str) -> _Maker:
    if name in _OURS:
        module, attribute = _OURS[name]
        return cast(_Maker, getattr(importlib.import_module(module), attribute))
    if name in _RIVER:
        return cast(_Maker, importlib.import_module("detectors.river_adapter").ENTRIES[name])
    if name in _plugins():
        maker = _plugins()[name].load()
        if not isinstance(getattr(maker, "spec", None), DetectorSpec):
            raise TypeError(f"{name}: the entry point's object has no `spec`, a DetectorSpec")
        return cast(_Maker, maker)
    known = names()
    raise UnknownDetectorError(f'unknown detector "{name}"{closest(name, known)}; known: {", ".join(known)}')


def spec(name: str) -> DetectorSpec:
    """Return what is known of a detector.

    Raises
    ------
    UnknownDetectorError
        No detector has this name.

    Examples
    --------
    >>> from detectors import registry
    >>> registry.spec("robust_z").kind
    'value'
    >>> sorted(registry.spec("robust_z").structural)
    ['window']
    """
    return _maker(name).spec


def create(
    name: str,
    params: Mapping[str, Any] | None = None,
    *,
    columns: int = 1,
    sensitivity: Sensitivity = "medium",
    seed: int = 0,
) -> Detector:
    """Make a detector.

    Parameters
    ----------
    name
        One of `names()`.
    params
        Its parameters by name; the rest take their defaults.
    columns
        Width of the rows, for a detector of vectors; 1 for any other.
    sensitivity
        How readily it alarms. It scales scores and never changes what is learned.
    seed
        For the detectors that draw random numbers.

    Raises
    ------
    UnknownDetectorError
        No detector has this name; the message names the nearest and lists all.
    ParameterError
        A parameter is unknown or not allowed, or the number of columns does not fit.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors import registry
    >>> detector = registry.create("limits", {"upper": 100.0})
    >>> detector.score(np.array([50.0, 150.0]), np.array([0, 1_000_000])).round(2)
    array([0.67, 1.5 ])
    """
    maker = _maker(name)
    checked = build(maker.spec.params, params if params is not None else {}, detector=name)
    if sensitivity not in get_args(Sensitivity):
        raise ParameterError(
            f'{name}: sensitivity = {sensitivity!r} is not allowed; expected "low", "medium" or "high"',
            detector=name,
            parameter="sensitivity",
        )
    if columns < 1 or (columns != 1 and maker.spec.kind != "vector"):
        raise ParameterError(
            f"{name}: columns = {columns} is not allowed for a detector of kind {maker.spec.kind}",
            detector=name,
            parameter="columns",
        )
    return maker(checked, columns=columns, sensitivity=sensitivity, seed=seed)
