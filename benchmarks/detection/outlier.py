"""Outliers among rows of features: `outlier` beside `half_space_trees`, whose raw scores are river's.

Ten sets of ADBench, each shuffled, then fed once: a row is scored, then learned. Nothing is fitted to the labels,
which only rank the raw scores at the end: area under the ROC curve, and average precision. A set above --rows
rows is cut to that many after the shuffle. Prints a table, then one JSON object.
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
NAMES = ("outlier", "half_space_trees", "trees, standardised")

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
        rows_fed = standardised(values) if "standardised" in name else values
        began = time.perf_counter()
        detector.score(rows_fed, times)
        took = time.perf_counter() - began
        known = np.isfinite(detector.raw)
        # river gives 0 until its first window is full; rows without a score are no one's to rank.
        result[name] = {
            "auroc": auroc(detector.raw[known], labels[known]),
            "ap": average_precision(detector.raw[known], labels[known]),
            "us": took / len(values) * 1e6,
        }
    return result


def run(data: Path = DATA, *, seeds: int = 3, rows: int = 100_000, table: bool = False) -> dict[str, Any]:
    """Score every set with every seed; return means over sets of means over seeds.

    worst_vs_hst is the least difference in AUROC to half_space_trees over the sets.
    """
    paths = sorted(data.glob("*.npz"), key=lambda path: int(path.stem.split("_")[0]))
    if not paths:
        raise FileNotFoundError(f"no .npz under {data}")
    for name in NAMES[:2]:  # compile before the clock runs
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
        "sets": len(means),
        "seeds": seeds,
    }
