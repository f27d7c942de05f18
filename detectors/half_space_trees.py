"""Half-space trees over rows of features, compiled."""

from __future__ import annotations

import functools
import math
import random
from typing import Annotated, ClassVar, Final

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.calibrate import ALPHA, WARM_UP, calibrate_one, new_sketch, pack_sketch, unpack_sketch
from detectors.kernels import all_finite, as_rows, kernel, refuse_non_finite
from detectors.params import DetectorSpec, Sensitivity, require_kept
from detectors.protocol import F64, I64, Evidence, State
from detectors.state import StateError

__all__ = ["HalfSpaceTrees", "HalfSpaceTreesParams", "grow"]

# Room left at both ends of a range before it is cut: river's choice, after the paper.
_PADDING: Final = 0.15

# Fading of the mean that stands in for a feature when its share is asked: about a thousand rows.
_MEAN_FADING: Final = 1e-3

# Raw scores are shares of the largest possible: below this difference they say the same.
_UNIT: Final = 1e-4

# Unsigned, so that numba leaves out its test for indices below 0.
_ZERO: Final = np.uint64(0)
_ONE: Final = np.uint64(1)
_TWO: Final = np.uint64(2)

_COUNT: Final = 0  # rows learned since the masses last turned
_TURNS: Final = 1  # times the masses turned
_ROWS: Final = 2  # rows seen


class HalfSpaceTreesParams(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of `HalfSpaceTrees`."""

    n_trees: Annotated[int, msgspec.Meta(ge=1, le=1000, description="trees")] = 10
    height: Annotated[int, msgspec.Meta(ge=1, le=15, description="cuts from a root to a leaf")] = 8
    window_size: Annotated[
        int, msgspec.Meta(ge=2, le=65_535, description="rows whose masses make the past")
    ] = 250
    alpha: Annotated[
        Annotated[float, msgspec.Meta(gt=0, lt=1)] | None,
        msgspec.Meta(description="tail probability scoring 1.0; null: by sensitivity, 1e-4, 1e-3 or 1e-2"),
    ] = None


@functools.lru_cache(maxsize=64)
def grow(columns: int, n_trees: int, height: int, seed: int) -> tuple[npt.NDArray[np.uint16], F64]:
    """Grow the trees that river's `make_padded_tree` grows from the same seed, as flat arrays.

    Drawing the numbers in river's order, into arrays, spares a worker the import of `river.tree` and its
    node objects; a test holds both equal node by node. Models of one shape and seed share the result.

    Returns
    -------
    (features, thresholds)
        Both (2**height - 1, n_trees), read-only: node k of every tree side by side, its children 2k + 1
        (below the threshold) and 2k + 2.
    """
    features = np.zeros((2**height - 1, n_trees), dtype=np.uint16)
    thresholds = np.zeros((2**height - 1, n_trees))
    rng = random.Random(seed)

    def cut(tree: int, node: int, limits: list[tuple[float, float]], levels: int) -> None:
        if levels == 0:
            return
        feature = rng.choices(range(columns), weights=[high - low for low, high in limits])[0]
        low, high = limits[feature]
        at = rng.uniform(low + _PADDING * (high - low), high - _PADDING * (high - low))
        features[node, tree], thresholds[node, tree] = feature, at
        limits[feature] = (low, at)
        cut(tree, 2 * node + 1, limits, levels - 1)
        limits[feature] = (at, high)
        cut(tree, 2 * node + 2, limits, levels - 1)
        limits[feature] = (low, high)

    for tree in range(n_trees):
        cut(tree, 0, [(0.0, 1.0)] * columns, height)
    features.flags.writeable = False
    thresholds.flags.writeable = False
    return features, thresholds


@kernel
def _mass_met(
    row: F64,
    features: npt.NDArray[np.uint16],
    thresholds: F64,
    known: npt.NDArray[np.uint16],
    light: float,
) -> float:
    """Return the sum over trees of mass · 2**depth along the row's path, down to the first light node."""
    inner, n_trees = features.shape
    met = 0
    for tree in range(n_trees):
        node = 0
        weight = 1
        while True:
            mass = int(known[node, tree])
            met += mass * weight
            if node >= inner or mass < light:
                break
            # not (x < t) rather than x >= t: a nan goes right, as in river
            node = 2 * node + 1 + (not row[features[node, tree]] < thresholds[node, tree])
            weight *= 2
    return float(met)


@kernel
def _meet_and_add_mass(
    row: F64,
    features: npt.NDArray[np.uint16],
    thresholds: F64,
    known: npt.NDArray[np.uint16],
    learning: npt.NDArray[np.uint16],
    light: float,
) -> float:
    """Do `_mass_met` and `_add_mass` in one walk, for a row that scales to the same before and after."""
    inner, n_trees = np.uint64(features.shape[0]), features.shape[1]
    met = 0
    for tree in range(n_trees):
        node = _ZERO
        weight = 1
        while True:
            mass = int(known[node, tree])
            met += mass * weight
            learning[node, tree] += np.uint16(1)
            if node >= inner or mass < light:
                break
            node = _TWO * node + _ONE + np.uint64(not row[features[node, tree]] < thresholds[node, tree])
            weight *= 2
        while node < inner:
            node = _TWO * node + _ONE + np.uint64(not row[features[node, tree]] < thresholds[node, tree])
            learning[node, tree] += np.uint16(1)
    return float(met)


@kernel
def _add_mass(
    row: F64, features: npt.NDArray[np.uint16], thresholds: F64, learning: npt.NDArray[np.uint16]
) -> None:
    """Count the row in every node on its path."""
    inner, n_trees = features.shape
    for tree in range(n_trees):
        node = 0
        while node < inner:
            learning[node, tree] += np.uint16(1)
            node = 2 * node + 1 + (not row[features[node, tree]] < thresholds[node, tree])
        learning[node, tree] += np.uint16(1)


@kernel
def _to_unit(row: F64, lowest: F64, highest: F64, out: F64) -> None:
    """Scale a row to [0, 1] by the range seen; 0 where the range is empty."""
    for j in range(row.size):
        width = highest[j] - lowest[j]
        out[j] = (row[j] - lowest[j]) / width if width != 0.0 else 0.0


@kernel
def score_half_space_trees(
    rows: F64,
    features: npt.NDArray[np.uint16],
    thresholds: F64,
    masses: npt.NDArray[np.uint16],
    ranges: F64,
    clock: I64,
    sketch: F64,
    window_size: int,
    log_alpha: float,
    raw: F64,
    scores: F64,
    shares: F64,
) -> bool:
    """Score, then learn, each row in order; False, untouched, when one number is not finite.

    masses is (2, nodes, trees): the masses known and those being learned, by the parity of turns.
    ranges is (3, columns): lowest, highest, and the mean of the scaled value.
    """
    if not all_finite(rows.reshape(-1)):
        return False
    n, columns = rows.shape
    n_trees = features.shape[1]
    nodes = masses.shape[1]
    lowest, highest, mean = ranges[0], ranges[1], ranges[2]
    light = 0.1 * window_size
    largest = float(n_trees * window_size * nodes)
    unit = np.empty(columns)
    for i in range(n):
        row = rows[i]
        known, learning = masses[clock[_TURNS] % 2], masses[(clock[_TURNS] + 1) % 2]
        raw[i], scores[i] = np.nan, np.nan
        # A row within the range seen scales alike before and after it is learned: one walk does both.
        once = clock[_TURNS] > 0
        for j in range(columns):
            once = once and lowest[j] <= row[j] and row[j] <= highest[j]
        if clock[_TURNS] > 0:
            _to_unit(row, lowest, highest, unit)
            if once:
                met = _meet_and_add_mass(unit, features, thresholds, known, learning, light)
            else:
                met = _mass_met(unit, features, thresholds, known, light)
            raw[i] = 1.0 - met / largest
            scores[i] = calibrate_one(sketch, raw[i], log_alpha, _UNIT)
            if scores[i] >= 1.0:
                # A feature's share: how much more mass the row would meet with that feature as usual.
                total = 0.0
                for j in range(columns):
                    value = unit[j]
                    unit[j] = mean[j]
                    shares[i, j] = max(0.0, _mass_met(unit, features, thresholds, known, light) - met)
                    unit[j] = value
                    total += shares[i, j]
                for j in range(columns):
                    shares[i, j] = shares[i, j] / total if total > 0.0 else 0.0
        if not once:
            for j in range(columns):
                lowest[j] = min(lowest[j], row[j])
                highest[j] = max(highest[j], row[j])
            _to_unit(row, lowest, highest, unit)
            _add_mass(unit, features, thresholds, learning)
        clock[_ROWS] += 1
        fading = max(_MEAN_FADING, 1.0 / clock[_ROWS])
        for j in range(columns):
            # A range beyond the largest float scales to nan, which must not stay.
            if math.isfinite(unit[j]):
                mean[j] += fading * (unit[j] - mean[j])
        clock[_COUNT] += 1
        if clock[_COUNT] == window_size:
            clock[_COUNT] = 0
            clock[_TURNS] += 1
            known[:] = 0
    return True


class HalfSpaceTrees:
    """Score a row of features by how few past rows fell where it falls in random cuts of the space.

    The raw score equals, to the bit, that of river's
    `preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(n_trees, height, window_size, seed)` scored
    and then learned row by row; `detectors.calibrate` makes it ours. As with river's, one extreme number
    stretches its column's range for good and leaves that column blind: keep such data out before.

    Warm-up is one window and the calibrator's 300 rows. A row odd in one column of many is hard to see for
    ten trees: give them more.

    Evidence names the columns that carry a score of 1.0 or more: by how much more mass the row would
    meet if that column had its usual value.

    Parameters
    ----------
    params
        Trees, height, window.
    columns
        Width of the rows.
    sensitivity
        The tail probability where params has none: low 1e-4, medium 1e-3, high 1e-2.
    seed
        Grows the trees. Models of one seed and shape share them in memory.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors.half_space_trees import HalfSpaceTrees, HalfSpaceTreesParams
    >>> rows = np.random.default_rng(3).normal(size=(5001, 4))
    >>> rows[5000, [1, 2]] = 9.0
    >>> detector = HalfSpaceTrees(HalfSpaceTreesParams(), columns=4, seed=1)
    >>> detector.warming()
    550
    >>> bool(detector.score(rows, np.arange(5001))[5000] >= 1)
    True
    >>> sorted(column for column, share in detector.explain(5000).shares[:2])
    [1, 2]

    References
    ----------
    [^1]: Tan, S.C., Ting, K.M. and Liu, T.F., 2011. Fast anomaly detection for streaming data. IJCAI.
    """

    spec: ClassVar[DetectorSpec] = DetectorSpec(
        name="half_space_trees",
        kind="vector",
        summary="half-space trees over rows of features, calibrated",
        params=HalfSpaceTreesParams,
        structural=frozenset({"n_trees", "height", "window_size"}),
    )

    def __init__(
        self,
        params: HalfSpaceTreesParams,
        *,
        columns: int = 1,
        sensitivity: Sensitivity = "medium",
        seed: int = 0,
    ) -> None:
        self.params = params
        self.columns = columns
        self.reconfigure(params, sensitivity=sensitivity)
        self._features, self._thresholds = grow(columns, params.n_trees, params.height, seed)
        self._masses: npt.NDArray[np.uint16] = np.zeros(
            (2, 2 ** (params.height + 1) - 1, params.n_trees), dtype=np.uint16
        )
        self._ranges: F64 = np.zeros((3, columns))
        self._ranges[0], self._ranges[1] = math.inf, -math.inf
        self._clock: npt.NDArray[np.int64] = np.zeros(3, dtype=np.int64)
        self._sketch: F64 = new_sketch()
        self.raw: F64 = np.empty(0)  #: (n,) river's score of the last batch; nan in the first window
        self._scores: F64 = np.empty(0)
        self._shares: F64 = np.empty((0, columns))

    def reconfigure(self, params: HalfSpaceTreesParams, *, sensitivity: Sensitivity | None = None) -> None:
        """Take another alpha from the next row on, keeping what was learned.

        Raises
        ------
        ParameterError
            A parameter of the trees differs.
        """
        require_kept(self.spec, self.params, params)
        if sensitivity is not None:
            self._sensitivity = sensitivity
        self.params = params
        alpha = params.alpha if params.alpha is not None else ALPHA[self._sensitivity]
        self._log_alpha = math.log(alpha)

    def score(self, values: F64, times: I64) -> F64:
        """Score each of (n, columns) rows, then learn it; see `detectors.protocol.Detector.score`."""
        rows = as_rows(values, times, columns=self.columns, name="half_space_trees")
        raw, scores = np.empty((2, rows.shape[0]))
        shares = np.empty(rows.shape)  # filled where the score is 1.0 or more
        if not score_half_space_trees(
            rows,
            self._features,
            self._thresholds,
            self._masses,
            self._ranges,
            self._clock,
            self._sketch,
            self.params.window_size,
            self._log_alpha,
            raw,
            scores,
            shares,
        ):
            raise refuse_non_finite("half_space_trees")
        self.raw, self._scores, self._shares = raw, scores, shares
        return scores.copy()

    def explain(self, index: int = -1) -> Evidence:
        """Give the columns that carry the score, when it is 1.0 or more."""
        if not self._scores[index] >= 1.0:
            return Evidence()
        shares = self._shares[index]
        order = np.argsort(-shares, kind="stable")
        return Evidence(shares=tuple((int(j), float(shares[j])) for j in order if shares[j] > 0.0))

    def warming(self) -> int:
        """Return how many more rows the first window and the calibrator need."""
        return max(0, self.params.window_size + WARM_UP - int(self._clock[_ROWS]))

    def snapshot(self) -> State:
        """Return masses, ranges and calibration; the trees come back from the seed."""
        turn = int(self._clock[_TURNS]) % 2
        return {
            "known": self._masses[turn].copy(),
            "learning": self._masses[1 - turn].copy(),
            "ranges": self._ranges.copy(),
            "clock": self._clock.copy(),
            "calibration": pack_sketch(self._sketch),
        }

    def restore(self, state: State) -> None:
        """Take up a state; raise `StateError` when it is of trees of another shape."""
        try:
            known, learning, ranges, clock = (state[k] for k in ("known", "learning", "ranges", "clock"))
            if (
                known.shape != self._masses.shape[1:]
                or learning.shape != known.shape
                or ranges.shape != self._ranges.shape
                or clock.shape != self._clock.shape
            ):
                raise StateError("half_space_trees: the state is of another shape")
            sketch = unpack_sketch(state["calibration"])
        except (KeyError, AttributeError, TypeError) as error:
            raise StateError(f"half_space_trees: not a state of this detector: {error!r}") from error
        turn = int(clock[_TURNS]) % 2
        self._masses[turn], self._masses[1 - turn] = known, learning
        self._ranges[:], self._clock[:], self._sketch = ranges, clock, sketch
