"""Turn a raw anomaly score of any unit into ours: by how rare it is among the stream's own past.

A raw score s that a share p of past raw scores reaches scores log(p) / log(alpha): 1.0 at the
operator's tail probability alpha, whatever the unit and the shape of the raw scores.

The past is a sketch of the upper tail in fixed memory. It keeps up to `_CELLS` cells of (largest raw score
in the cell, weight); two neighbours merge only when together they weigh at most `_CELL_SHARE` of all
that lies at or above them, so p is known to within that share from the median to the very tail. A
cell answers for its largest member: p errs upwards, towards silence. Weights halve every `HALF_LIFE`
raw scores, in step with the count of scores and not with batches, and stay exact in binary.

Beyond the largest past raw score p = exp(-z) / (n + 1), where z is the distance past it in units of the
mean excess over the 95 % quantile: an exponential tail (Pickands 1975, shape 0). Past z = 20 it grows as
a logarithm only.

Warm-up is `WARM_UP` raw scores. They resolve p = 1/301 by counting; until 1/alpha have been seen, a
smaller p comes from the exponential tail alone, and a heavier tail will alarm more often than alpha says.

Raw scores with p below `_DAMPED_BELOW` may come in bursts: an incident. After three of them, one being
forgiven every 500 raw scores, further ones are learned at 1/32 of their weight, so that an incident does
not become normal in its first minutes. It does in the end: some 32 alpha n raw scores later.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from detectors.kernels import MAX_SCORE, kernel
from detectors.params import Sensitivity
from detectors.protocol import F64, State
from detectors.state import StateError

__all__ = [
    "ALPHA",
    "HALF_LIFE",
    "WARM_UP",
    "Calibrator",
    "calibrate",
    "calibrate_one",
    "tail_of",
    "value_with_tail",
]

#: Tail probability at which a score is 1.0.
ALPHA: Final[dict[Sensitivity, float]] = {"low": 1e-4, "medium": 1e-3, "high": 1e-2}

#: Raw scores seen before the first calibrated one.
WARM_UP: Final = 300

#: Raw scores after which the past weighs half.
HALF_LIFE: Final = 8_000

_CELLS: Final = 160
_BUFFER: Final = 32
_CELL_SHARE: Final = 0.12
_DAMPED_BELOW: Final = 1e-3
_DAMPED_WEIGHT: Final = 1.0 / 32.0
_BURST: Final = 3.0
_FORGIVEN_EACH: Final = 1.0 / 500.0
# A cell this light is dropped when weights halve: 2**-10 of one raw score.
_LIGHTEST: Final = 2.0**-10

# Layout of one sketch, a float64 vector: head, then cell values, cell weights, weights at or above each
# cell, then values and weights not yet sorted in.
_N: Final = 0  # raw scores seen
_USED: Final = 1  # cells in use, ascending
_WAITING: Final = 2  # raw scores not yet sorted in
_LEVEL: Final = 3  # how full the burst allowance is
_SCALE: Final = 4  # mean excess over the 95 % quantile
_TOTAL: Final = 5  # weight of everything, waiting ones too
_SINCE: Final = 6  # raw scores since weights last halved
_HEAD: Final = 8
_V: Final = _HEAD
_W: Final = _V + _CELLS
_C: Final = _W + _CELLS
_BV: Final = _C + _CELLS
_BW: Final = _BV + _BUFFER
_SIZE: Final = _BW + _BUFFER


@kernel
def tail_of(sketch: F64, raw: float) -> float:
    """Return the weight of past raw scores that are at least `raw`."""
    low, high = 0, int(sketch[_USED])
    while low < high:
        middle = (low + high) // 2
        if sketch[_V + middle] < raw:
            low = middle + 1
        else:
            high = middle
    weight = sketch[_C + low] if low < int(sketch[_USED]) else 0.0
    for i in range(int(sketch[_WAITING])):
        if sketch[_BV + i] >= raw:
            weight += sketch[_BW + i]
    return float(weight)


@kernel
def _settle(sketch: F64) -> None:
    """Sort the waiting raw scores in, merge cells down to size, and refit the tail."""
    used, waiting = int(sketch[_USED]), int(sketch[_WAITING])
    # Insertion sort of the few that wait; ties keep their order.
    for i in range(1, waiting):
        v, w = sketch[_BV + i], sketch[_BW + i]
        j = i - 1
        while j >= 0 and sketch[_BV + j] > v:
            sketch[_BV + j + 1] = sketch[_BV + j]
            sketch[_BW + j + 1] = sketch[_BW + j]
            j -= 1
        sketch[_BV + j + 1] = v
        sketch[_BW + j + 1] = w
    values = np.empty(used + waiting)
    weights = np.empty(used + waiting)
    a, b = used - 1, waiting - 1
    for k in range(used + waiting - 1, -1, -1):
        if b < 0 or (a >= 0 and sketch[_V + a] > sketch[_BV + b]):
            values[k], weights[k] = sketch[_V + a], sketch[_W + a]
            a -= 1
        else:
            values[k], weights[k] = sketch[_BV + b], sketch[_BW + b]
            b -= 1
    if sketch[_SINCE] >= HALF_LIFE:
        sketch[_SINCE] = 0.0
        sketch[_TOTAL] = 0.0
        for k in range(values.size):
            weights[k] = weights[k] * 0.5 if weights[k] * 0.5 >= _LIGHTEST else 0.0
            sketch[_TOTAL] += weights[k]
    # From the top down: a cell takes its lower neighbour while both stay light beside all above them.
    # Should the cells run out, which takes a tail of thousands, the share allowed grows.
    share = _CELL_SHARE
    while True:
        top = _CELLS
        above = 0.0  # weight of the cells finished, all above the open one
        fits = True
        k = values.size - 1
        while k >= 0:
            v, w = values[k], weights[k]
            k -= 1
            while k >= 0 and (values[k] == v or w + weights[k] <= share * (above + w)):
                w += weights[k]
                k -= 1
            if w == 0.0:
                continue
            if top == 0:
                fits = False
                break
            top -= 1
            above += w
            sketch[_V + top], sketch[_W + top], sketch[_C + top] = v, w, above
        if fits:
            break
        share *= 1.5
    used = _CELLS - top
    for i in range(used):
        sketch[_V + i] = sketch[_V + top + i]
        sketch[_W + i] = sketch[_W + top + i]
        sketch[_C + i] = sketch[_C + top + i]
    sketch[_USED] = used
    sketch[_WAITING] = 0.0
    # The tail: everything at or above the last cell that still has 5 % of the weight at or above it.
    start = used - 1
    while start > 0 and sketch[_C + start] < 0.05 * sketch[_TOTAL]:
        start -= 1
    floor = sketch[_V + start]
    excess, weight = 0.0, 0.0
    for i in range(start + 1, used):
        excess += sketch[_W + i] * min(sketch[_V + i] - floor, 1e290)
        weight += sketch[_W + i]
    sketch[_SCALE] = excess / weight if weight > 0.0 else 0.0


@kernel
def learn_one(sketch: F64, raw: float, weight: float) -> None:
    """Add a raw score to the past."""
    i = int(sketch[_WAITING])
    sketch[_BV + i] = raw
    sketch[_BW + i] = weight
    sketch[_WAITING] = i + 1
    sketch[_N] += 1.0
    sketch[_SINCE] += 1.0
    sketch[_TOTAL] += weight
    if i + 1 == _BUFFER:
        _settle(sketch)


@kernel
def value_with_tail(sketch: F64, tail: float) -> float:
    """Return the largest past value that more than a share `tail` of the past reaches; 0 with no past."""
    used, waiting, total = int(sketch[_USED]), int(sketch[_WAITING]), sketch[_TOTAL]
    # The few that wait are not sorted: walk both downwards by taking the largest not yet taken.
    taken = np.zeros(_BUFFER, dtype=np.bool_)
    weight, value = 0.0, 0.0
    cell = used - 1
    while True:
        best = -1
        for i in range(waiting):
            if not taken[i] and (best < 0 or sketch[_BV + i] > sketch[_BV + best]):
                best = i
        if best >= 0 and (cell < 0 or sketch[_BV + best] >= sketch[_V + cell]):
            value = sketch[_BV + best]
            weight += sketch[_BW + best]
            taken[best] = True
        elif cell >= 0:
            value = sketch[_V + cell]
            weight += sketch[_W + cell]
            cell -= 1
        else:
            return float(value)
        if weight > tail * total:
            return float(value)


@kernel
def calibrate_one(sketch: F64, raw: float, log_alpha: float, unit: float) -> float:
    """Score a raw score against the past, then learn it; nan while warming up.

    unit is the smallest difference between raw scores that means anything: the tail is never taken
    to be thinner.
    """
    raw = min(max(raw, -1e280), 1e280)
    total = sketch[_TOTAL]
    weight = tail_of(sketch, raw)
    log_p = math.log((weight + 1.0) / (total + 1.0))
    if weight == 0.0 and sketch[_N] > 0.0:
        largest = -np.inf
        if sketch[_USED] > 0.0:
            largest = sketch[_V + int(sketch[_USED]) - 1]
        for i in range(int(sketch[_WAITING])):
            largest = max(largest, sketch[_BV + i])
        z = (raw - largest) / max(sketch[_SCALE], unit)
        log_p -= z if z <= 20.0 else 20.0 + math.log(z - 19.0)
    warm = sketch[_N] >= WARM_UP
    sketch[_LEVEL] = max(0.0, sketch[_LEVEL] - _FORGIVEN_EACH)
    learned = 1.0
    # By a fixed probability, not by alpha: the operator's limit must not change what is learned.
    if warm and log_p < math.log(_DAMPED_BELOW):
        if sketch[_LEVEL] >= _BURST:
            learned = _DAMPED_WEIGHT
        else:
            sketch[_LEVEL] += 1.0
    learn_one(sketch, raw, learned)
    if not warm:
        return np.nan
    # A largest raw score so far makes p = 1 exactly 0.0, not -0.0.
    return min(max(log_p, -MAX_SCORE) / log_alpha + 0.0, MAX_SCORE)


@kernel
def calibrate(sketch: F64, raw: F64, log_alpha: float, unit: float, out: F64) -> None:
    """Calibrate (n,) finite raw scores in order into `out`."""
    for i in range(raw.size):
        out[i] = calibrate_one(sketch, raw[i], log_alpha, unit)


class Calibrator:
    """Raw anomaly scores to scores: log(p) / log(alpha), p being the share of the past that reaches it.

    Parameters
    ----------
    alpha
        The tail probability that scores 1.0. Changing it changes nothing that is learned.
    unit
        The smallest difference between raw scores that means anything.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors.calibrate import Calibrator
    >>> calibrator = Calibrator(alpha=1e-3)
    >>> raw = np.random.default_rng(7).exponential(size=20_000)
    >>> scores = calibrator.score(raw)
    >>> int(np.isnan(scores).sum())
    300
    >>> bool(5 <= (scores >= 1).sum() <= 35)    # 19.7 expected
    True
    >>> bool(calibrator.score(np.array([50.0]))[0] > 3)
    True

    References
    ----------
    [^1]: Pickands, J., 1975. Statistical inference using extreme order statistics. Annals of Statistics 3.
    [^2]: Dunning, T. and Ertl, O., 2019. Computing extremely accurate quantiles using t-digests (the idea of
    cells sized by their distance to the tail).
    """

    def __init__(self, *, alpha: float, unit: float = 1e-9) -> None:
        self.alpha = alpha
        self.unit = unit
        self.sketch: F64 = new_sketch()

    @property
    def log_alpha(self) -> float:
        """The natural logarithm of alpha."""
        return math.log(self.alpha)

    def score(self, raw: F64) -> F64:
        """Score (n,) finite raw scores, each before it is learned; nan while warming up."""
        out = np.empty(raw.size)
        calibrate(self.sketch, raw, self.log_alpha, self.unit, out)
        return out

    def warming(self) -> int:
        """Return how many more raw scores are needed."""
        return max(0, WARM_UP - int(self.sketch[_N]))

    def snapshot(self) -> State:
        """Return the past, without what can be computed from it."""
        return pack_sketch(self.sketch)

    def restore(self, state: State) -> None:
        """Take up a past; raise `StateError` on any other state."""
        self.sketch = unpack_sketch(state)


def new_sketch() -> F64:
    """Return an empty sketch."""
    return np.zeros(_SIZE)


def pack_sketch(sketch: F64) -> State:
    """Return a sketch's used parts."""
    used, waiting = int(sketch[_USED]), int(sketch[_WAITING])
    return {
        "head": sketch[:_HEAD].copy(),
        "cells": sketch[_V : _V + used].copy(),
        "weights": sketch[_W : _W + used].copy(),
        "waiting": sketch[_BV : _BV + waiting].copy(),
        "waiting_weights": sketch[_BW : _BW + waiting].copy(),
    }


def unpack_sketch(state: State) -> F64:
    """Return the sketch that `pack_sketch` was given, to the bit; raise `StateError` on another state."""
    sketch = new_sketch()
    try:
        head, cells, waiting = state["head"], state["cells"], state["waiting"]
        used, pending = len(cells), len(waiting)
        if len(head) != _HEAD or int(head[_USED]) != used or int(head[_WAITING]) != pending:
            raise StateError("calibrator: counts that do not agree")
        sketch[:_HEAD] = head
        sketch[_V : _V + used] = cells
        sketch[_W : _W + used] = state["weights"]
        sketch[_BV : _BV + pending] = waiting
        sketch[_BW : _BW + pending] = state["waiting_weights"]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise StateError(f"calibrator: not a state of this detector: {error!r}") from error
    # Weights are multiples of a power of two, so their sums are exact and come back equal to the bit.
    above: npt.NDArray[np.float64] = np.cumsum(sketch[_W : _W + used][::-1])[::-1]
    sketch[_C : _C + used] = above
    return sketch
