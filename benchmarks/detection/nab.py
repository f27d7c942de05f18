"""The files of the Numenta Anomaly Benchmark, scored by `pattern`, at most one alarm in 100 rows.

Reports the standard profile's score at the detector's own limit, and with the best limit in hindsight.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detection.shared import tool
from streamproc.scoring import Scorer, read

#: At most one alarm in so many rows.
HOLD = 100


def held(scores: np.ndarray, limit: float) -> np.ndarray:
    """Keep the scores at or over a limit, at most one in `HOLD` rows; all others are 0."""
    kept = np.zeros_like(scores)
    free = 0
    for i in np.flatnonzero(scores >= limit):
        if i >= free:
            kept[i], free = scores[i], i + HOLD
    return kept


def run(data: Path) -> dict[str, Any]:
    scorer = tool("nab_score")
    if not (data / "windows.json").is_file():
        sys.exit(f"no windows.json in {data}")
    corpus = scorer.load(data)
    free, own = {}, {}
    rows, began = 0, time.perf_counter()
    for done, name in enumerate(corpus, start=1):
        with open(data / name, encoding="utf-8", newline="") as file:
            table = read(file)
        rows += len(table.values)
        free[name] = np.nan_to_num(Scorer("pattern").score(table))
        own[name] = np.nan_to_num(Scorer("pattern", {"hold": HOLD - 1}).score(table))
        if sys.stderr.isatty():
            print(f"\r{done} of {len(corpus)} files", end="", file=sys.stderr)
    seconds = time.perf_counter() - began
    at_own, _ = scorer.score(corpus, own, limit=1.0)
    sweep = []
    for limit in np.geomspace(0.5, 2.0, 101):
        kept = {name: held(scores, limit) for name, scores in free.items()}
        sweep.append((float(scorer.score(corpus, kept, limit=limit)[0]), float(limit)))
    best, limit = max(sweep)
    print(f"{len(corpus)} files, {rows:,} rows, {1e6 * seconds / 2 / rows:.1f} µs a row\n")
    print(f"standard profile, at most one alarm in {HOLD} rows")
    print(f"  at its own limit, 1.0       {at_own:6.2f}")
    print(f"  at the best limit, {limit:.3f}    {best:6.2f}\n")
    return {
        "swept": round(best, 2),
        "own_limit": round(float(at_own), 2),
        "swept_limit": round(limit, 4),
        "files": len(corpus),
        "rows": rows,
    }
