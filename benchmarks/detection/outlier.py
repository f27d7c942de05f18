"""Outliers among rows of features: `outlier` beside river's HalfSpaceTrees, LODA and OneClassSVM.

Ten sets of ADBench, each shuffled, then fed once: a row is scored, then learned. Nothing is fitted to the labels,
which only rank the raw scores at the end: area under the ROC curve, and average precision. A set above --rows
rows is cut to that many after the shuffle. Prints a table, then one JSON object.

`half_space_trees` is river's HalfSpaceTrees: its raw scores are river's to the bit, which is looked at again here on
the first rows of every set. LODA and OneClassSVM are river's own, on rows standardised online; LODA, which is slow, has
the first 5,000 rows only, so on the larger sets its figures are of fewer rows.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.detection.shared import SHARED
from detectors import registry

DATA = SHARED / "data" / "adbench"
#: The trees twice: on the rows as they are, and on rows standardised online, which suits them better.
NAMES = ("outlier", "half_space_trees", "trees, standardised", "loda", "one_class_svm")
#: Of river, by the adapter, which leaves out their first 100 rows.
RIVERS = NAMES[3:]
#: Rows of a set at most, for those that take long.
SLOW = {"loda": 5_000}
#: Rows of a set on which our trees are held against river's.
COMPARED = 1_000

F64 = npt.NDArray[np.float64]


def auroc(scores: F64, labels: npt.NDArray[np.bool_]) -> float:
    """Return the chance that an odd row scores above a usual one, ties counting half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2.0)[inverse]
    odd = int(labels.sum())
    return float((ranks[labels].sum() - odd * (odd + 1) / 2.0) / (odd * (len(labels) - odd)))


def average_precision(scores: F64, labels: npt.NDArray[np.bool_]) -> float:
    """Return the mean precision over the odd rows, rows of equal score being taken together."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0.0, True))
    hits = np.cumsum(labels[order])[last]
    precision = hits / (last + 1.0)
    return float((np.diff(hits, prepend=0) * precision).sum() / labels.sum())


def standardised(values: F64) -> F64:
    """Return each number in standard deviations from the mean of those before it in its column, within 3."""
    count = np.arange(len(values), dtype=np.float64)[:, None]
    centred = values - values[0]  # sums of squares stay small
    mean = np.divide(np.cumsum(centred, axis=0) - centred, np.maximum(count, 1.0))
    square = np.divide(np.cumsum(centred**2, axis=0) - centred**2, np.maximum(count, 1.0))
    scale = np.sqrt(np.maximum(square - mean**2, 0.0))
    z = np.divide(centred - mean, scale, out=np.zeros_like(values), where=scale > 0.0)
    return np.clip(z, -3.0, 3.0)


def one_set(path: Path, seed: int, rows: int) -> dict[str, dict[str, float]]:
    data = np.load(path)
    order = np.random.default_rng(seed).permutation(len(data["y"]))[:rows]
    values = np.ascontiguousarray(data["X"][order], dtype=np.float64)
    labels = data["y"][order].astype(bool)
    times = np.arange(len(values), dtype=np.int64) * 1_000_000
    result = {}
    for name in NAMES:
        detector: Any = registry.create(
            name.replace("trees, standardised", "half_space_trees"), columns=values.shape[1], seed=seed
        )
        fed = (standardised(values) if "standardised" in name else values)[: SLOW.get(name)]
        began = time.perf_counter()
        detector.score(fed, times[: len(fed)])
        took = time.perf_counter() - began
        known = np.isfinite(detector.raw)
        known[: 100 if name in RIVERS else 0] = False  # as its adapter has it
        truth = labels[: len(fed)][known]
        # river gives 0 until its first window is full; rows without a score are no one's to rank.
        result[name] = {
            "auroc": auroc(detector.raw[known], truth),
            "ap": average_precision(detector.raw[known], truth),
            "us": took / len(fed) * 1e6,
        }
    return result


def as_river(path: Path, seed: int, rows: int = COMPARED) -> bool:
    """Tell whether the trees' raw scores on a set's first rows are those of river's own class, to the bit."""
    from river import anomaly, preprocessing

    data = np.load(path)
    order = np.random.default_rng(seed).permutation(len(data["y"]))[:rows]
    values = np.ascontiguousarray(data["X"][order], dtype=np.float64)
    ours: Any = registry.create("half_space_trees", columns=values.shape[1], seed=seed)
    ours.score(values, np.arange(len(values)))
    river = preprocessing.MinMaxScaler() | anomaly.HalfSpaceTrees(n_trees=10, height=8, window_size=250, seed=seed)
    theirs = np.empty(len(values))
    for i, row in enumerate(values.tolist()):
        features = dict(enumerate(row))
        theirs[i] = river.score_one(features)
        river.learn_one(features)
    known = np.isfinite(ours.raw)
    return bool(known.any()) and np.array_equal(theirs[known], ours.raw[known])


def run(data: Path = DATA, *, seeds: int = 3, rows: int = 100_000, table: bool = False) -> dict[str, Any]:
    """Score every set with every seed; return means over sets of means over seeds.

    worst_vs_hst is the least difference in AUROC to half_space_trees over the sets.
    """
    paths = sorted(data.glob("*.npz"), key=lambda path: int(path.stem.split("_")[0]))
    if not paths:
        raise FileNotFoundError(f"no .npz under {data}")
    for name in NAMES[:2] + NAMES[3:]:  # compile before the clock runs
        registry.create(name, columns=2).score(np.zeros((600, 2)), np.arange(600))
    if table:
        print(f"{'':16s}", *(f"{name:^26s}" for name in NAMES))
        print(f"{'':16s}", *(f"{key:>8s}" for _ in NAMES for key in ("AUROC", "AP", "us/row")))
    means: dict[str, dict[str, dict[str, float]]] = {}
    for path in paths:
        rounds = [one_set(path, seed, rows) for seed in range(seeds)]
        means[path.stem] = {
            name: {key: float(np.mean([one[name][key] for one in rounds])) for key in ("auroc", "ap", "us")}
            for name in NAMES
        }
        if table:
            cells = [f"{means[path.stem][n][k]:8.3f}" for n in NAMES for k in ("auroc", "ap", "us")]
            print(f"{path.stem:16s}", *cells, flush=True)
    overall = {
        name: {key: float(np.mean([one[name][key] for one in means.values()])) for key in ("auroc", "ap")}
        for name in NAMES
    }
    gaps = {
        name: [one["outlier"]["auroc"] - one[name]["auroc"] for one in means.values()] for name in NAMES[1:]
    }
    return {
        "auroc": round(overall["outlier"]["auroc"], 4),
        "ap": round(overall["outlier"]["ap"], 4),
        "worst_vs_hst": round(min(gaps["half_space_trees"]), 4),
        "worst_vs_hst_standardised": round(min(gaps["trees, standardised"]), 4),
        "hst_auroc": round(overall["half_space_trees"]["auroc"], 4),
        "hst_ap": round(overall["half_space_trees"]["ap"], 4),
        "hst_standardised_auroc": round(overall["trees, standardised"]["auroc"], 4),
        "hst_standardised_ap": round(overall["trees, standardised"]["ap"], 4),
        "loda_auroc": round(overall["loda"]["auroc"], 4),
        "loda_ap": round(overall["loda"]["ap"], 4),
        "one_class_svm_auroc": round(overall["one_class_svm"]["auroc"], 4),
        "one_class_svm_ap": round(overall["one_class_svm"]["ap"], 4),
        "hst_equals_river": all(as_river(path, 0) for path in paths),
        "sets": len(means),
        "seeds": seeds,
    }
