"""How loops are compiled, and the small things every compiled loop needs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np

from detectors.protocol import F64, I64

__all__ = ["MAX_SCORE", "all_finite", "as_rows", "as_times", "as_values", "kernel", "refuse_non_finite"]

_F = TypeVar("_F", bound=Callable[..., Any])

#: Scores end here, so that no arithmetic on them overflows.
MAX_SCORE: Final = 1e12


def kernel(function: _F) -> _F:
    """Compile a loop with numba, cached on disk; the plain function stays at `.py_func`, its oracle.

    No fast-math: a compiled loop must agree with itself however a stream is cut. Division follows
    IEEE 754 rather than raising.

    numba's cache looks at a loop's own file only: after editing a file whose loops or constants another
    file's loops use (this one, `calibrate`), delete `__pycache__/*.nbi`, or those run as they were. The
    tests' conftest does.
    """
    try:
        compiled = numba.njit(cache=True, error_model="numpy")(function)
    except RuntimeError:
        # Nowhere to keep a cache, as on a read-only file system without a home: compile at each start.
        compiled = numba.njit(error_model="numpy")(function)
    return cast(_F, compiled)


@kernel
def all_finite(values: F64) -> bool:
    """Tell whether every number is finite; `values` is (n,)."""
    for value in values:  # noqa: SIM110 (numba compiles the loop, not the generator)
        if not math.isfinite(value):
            return False
    return True


def refuse_non_finite(name: str) -> ValueError:
    """Make the error for a nan or an infinity among values; the state is as it was."""
    return ValueError(f"{name}: values must be finite; count nan and infinities as a data-quality signal")


def _own(values: F64) -> F64:
    array = np.ascontiguousarray(values, dtype=np.float64)
    # A read-only array is another type to numba, and would be compiled for in the middle of a stream.
    return array if array.flags.writeable else array.copy()


def as_values(values: F64, times: I64, *, name: str) -> F64:
    """Return values as a contiguous (n,) float64 array, or raise ValueError on another shape."""
    array = _own(values)
    if array.ndim != 1 or times.shape != array.shape:
        raise ValueError(f"{name}: expected values (n,) and times (n,), got {values.shape} and {times.shape}")
    return array


def as_rows(values: F64, times: I64, *, columns: int, name: str) -> F64:
    """Return values as a contiguous (n, columns) float64 array, or raise ValueError on another shape."""
    array = _own(values)
    if array.ndim == 1 and columns == 1:
        array = array.reshape(-1, 1)
    if array.ndim != 2 or array.shape[1] != columns or times.shape != array.shape[:1]:
        raise ValueError(
            f"{name}: expected values (n, {columns}) and times (n,), got {values.shape} and {times.shape}"
        )
    return array


def as_times(times: I64) -> I64:
    """Return times as a contiguous int64 array."""
    array = np.ascontiguousarray(times, dtype=np.int64)
    return array if array.flags.writeable else array.copy()
