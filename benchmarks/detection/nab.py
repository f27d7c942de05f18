"""The files of the Numenta Anomaly Benchmark, scored by `pattern` and by river's detectors.

NAB's score is 0 for silence and 100 for every labelled window found at its start and nothing else. It is given
with the best limit in hindsight for all files, and at each detector's own limit, 1.0. `pattern` runs with its
defaults. The others, which alarm at each value of an incident, are helped: at most one alarm in 100 rows.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detection.shared import tool
from streamproc.scoring import Scorer, Table, read

#: What is compared, with their defaults. Those named last look at the last `SHINGLE` values as a row.
OTHERS = ("gaussian_scorer", "standard_absolute_deviation", "adwin", "page_hinkley", "half_space_trees")
SHINGLED = frozenset({"half_space_trees"})
SHINGLE = 8

#: Rows in which the others alarm at most once.
HOLD = 100

#: NAB's names of its profiles, and the scorer's.
PROFILES = {"standard": "standard", "reward_low_FP_rate": "low_FP", "reward_low_FN_rate": "low_FN"}


def held(scores: np.ndarray, limit: float) -> np.ndarray:
    """Keep the scores at or over a limit, at most one in `HOLD` rows; all others are 0."""
    kept = np.zeros_like(scores)
    free = 0
    for i in np.flatnonzero(scores >= limit).tolist():
        if i >= free:
            kept[i], free = scores[i], i + HOLD
    return kept


def shingles(table: Table) -> Table:
    """Return the table of the last `SHINGLE` values at each row; the first rows repeat the first value."""
    values = table.values[:, 0]
    padded = np.concatenate((np.repeat(values[:1], SHINGLE - 1), values))
    rows = np.lib.stride_tricks.sliding_window_view(padded, SHINGLE)
    return Table(names=[str(i) for i in range(SHINGLE)], values=np.ascontiguousarray(rows), times=table.times)


def scores_of(name: str, tables: dict[str, Table]) -> tuple[dict[str, np.ndarray], float]:
    """Score every table by itself; nan, which is no alarm, as 0. Return microseconds a row, too."""
    # Compiled loops are loaded before the clock starts.
    first = next(iter(tables.values()))
    Scorer(name).score(shingles(first) if name in SHINGLED else first)
    began = time.perf_counter()
    found = {}
    for done, (file, table) in enumerate(tables.items(), start=1):
        found[file] = np.nan_to_num(Scorer(name).score(shingles(table) if name in SHINGLED else table))
        if sys.stderr.isatty():
            print(f"\r\033[K{name}: {done} of {len(tables)} files", end="", file=sys.stderr)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    rows = sum(len(table.values) for table in tables.values())
    return found, 1e6 * (time.perf_counter() - began) / rows


def best_held(scorer: Any, corpus: Any, scores: dict[str, np.ndarray]) -> tuple[dict[str, float], float, float]:
    """Return the profiles' scores at the best limit of 60 or silent, that limit, and the standard score at 1.0."""
    every = np.concatenate(list(scores.values()))
    shares = np.geomspace(1e-5, 0.05, 59)
    best: dict[str, tuple[float, float]] = dict.fromkeys(PROFILES, (0.0, np.inf))
    own = 0.0
    for limit in {1.0, *np.quantile(every[every > 0], 1.0 - shares).tolist()}:
        kept = {file: held(found, limit) for file, found in scores.items()}
        for profile, its in PROFILES.items():
            reached = float(scorer.score(corpus, kept, its, limit)[0])
            best[profile] = max(best[profile], (reached, float(limit)))
            if limit == 1.0 and profile == "standard":
                own = reached
    return {profile: reached for profile, (reached, _) in best.items()}, best["standard"][1], own


def run(data: Path) -> dict[str, Any]:
    scorer = tool("nab_score")
    if not (data / "windows.json").is_file():
        sys.exit(f"no windows.json in {data}")
    corpus = scorer.load(data)
    tables = {}
    for name in corpus:
        with open(data / name, encoding="utf-8", newline="") as file:
            tables[name] = read(file)
    rows = sum(len(table.values) for table in tables.values())
    print(f"{len(corpus)} files, {rows:,} rows, {sum(file[4] for file in corpus.values())} labelled windows\n")
    columns = f"{'standard':>9} {'low FP':>9} {'low FN':>9} {'limit':>8}   {'standard':>9}"
    print(f"{'':28} {'at the best limit for all files':^38}   own limit\n{'detector':28} {columns}   µs a row")
    result: dict[str, Any] = {}
    for name in ("pattern", *OTHERS):
        scores, each = scores_of(name, tables)
        if name == "pattern":
            found = {profile: scorer.score(corpus, scores, its) for profile, its in PROFILES.items()}
            swept = {profile: float(reached) for profile, (reached, _) in found.items()}
            limit, own = found["standard"][1], float(scorer.score(corpus, scores, limit=1.0)[0])
        else:
            swept, limit, own = best_held(scorer, corpus, scores)
        print(f"{name:28} {swept['standard']:9.2f} {swept['reward_low_FP_rate']:9.2f} "
              f"{swept['reward_low_FN_rate']:9.2f} {limit:8.3f}   {own:9.2f}   {each:8.2f}", flush=True)  # fmt: skip
        figures = {"swept": round(swept["standard"], 2), "own_limit": round(own, 2)}
        if name == "pattern":
            profiles = {profile: round(reached, 2) for profile, reached in swept.items()}
            result = {**figures, "swept_limit": round(limit, 4), "profiles": profiles, "others": {}}
        else:
            result["others"][name] = figures
    print(f"\nall but pattern: at most one alarm in {HOLD} rows, added here; half_space_trees: "
          f"of the last {SHINGLE} values\n")  # fmt: skip
    return {**result, "files": len(corpus), "rows": rows}
