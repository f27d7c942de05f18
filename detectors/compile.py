"""Compile the loops before the first event, so that none is compiled while a stream waits.

The detectors named are compiled, with what river's adapter shares: loading `pattern` takes a start some 15 ms,
river half a second. One that was not named loads when the first is asked to score, as long or, without a cache,
seconds.

Compiled loops are cached where `NUMBA_CACHE_DIR` says, else beside their source, else in the user's cache
directory; a later start then only loads them. Where none can be written they are compiled at each start.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import numpy as np

from detectors import registry
from detectors.params import DetectorSpec, ParameterError
from detectors.protocol import Damped, Detector

__all__ = ["warm_up_kernels"]


def warm_up_kernels(
    progress: Callable[[str, int, int], None] | None = None, names: Iterable[str] = ()
) -> None:
    """Run every compiled loop once, on arrays of the types a stream has.

    Parameters
    ----------
    progress
        Called as (name, done, total) after each.
    names
        The detectors to compile. One that cannot be made without parameters, as a third party's may be, is
        loaded only.

    Raises
    ------
    UnknownDetectorError
        There is no detector of a name.

    Examples
    --------
    >>> from detectors.compile import warm_up_kernels
    >>> warm_up_kernels(lambda name, done, total: print(f"{done}/{total} {name}"), names=["spike", "drift"])
    1/3 river
    2/3 spike
    3/3 drift
    """
    steps: dict[str, Callable[[], None]] = {"river": _run_adapter}
    for name in names:
        steps.setdefault(name, functools.partial(_run_named, name))
    for done, (name, step) in enumerate(steps.items(), start=1):
        step()
        if progress is not None:
            progress(name, done, len(steps))


#: Parameters that make a detector small, or at all.
_SMALL: dict[str, dict[str, float]] = {
    "limits": {"upper": 1.0},
    "half_space_trees": {"window_size": 2, "height": 2},
}


def _run(name: str, params: dict[str, float] | None = None) -> None:
    detector: Detector = registry.create(name, params)
    spec: DetectorSpec = registry.spec(name)
    rows = np.zeros((3, 1)) if spec.kind == "vector" else np.zeros(3)
    detector.score(rows, np.arange(3, dtype=np.int64))
    if isinstance(detector, Damped):
        detector.learn_undamped(rows, np.arange(3, dtype=np.int64))


def _run_named(name: str) -> None:
    try:
        _run(name, _SMALL.get(name))
    except ParameterError:
        registry.spec(name)


def _run_adapter() -> None:
    # The adapter's own loops only: river itself need not be loaded for a worker that does not use it.
    from detectors.calibrate import Calibrator
    from detectors.river_adapter import clip_finite, standardise

    Calibrator(alpha=0.5).score(np.zeros(3))
    clip_finite(np.zeros(3), np.empty(3))
    standardise(np.zeros((3, 1)), np.zeros((3, 1)), np.empty((3, 1)))
