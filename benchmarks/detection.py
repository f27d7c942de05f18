"""How well detectors detect: recall on labelled telemetry, by the scorers that published tables agree with.

    python -m benchmarks.detection cloud [--data DIR]
    python -m benchmarks.detection nab [--data DIR]

cloud scores every series of Microsoft's cloud-monitoring data, strictly online and with one set of
parameters for all, with `spike` and with what else there is, and reports the share of labelled events caught
at 1 and at 2 false alerts in 1000 rows: the labels choose one threshold for all series, and nothing else.

nab scores the files of the Numenta Anomaly Benchmark there are with `pattern`, at most one alarm in 100 rows, and
reports the standard profile's score at the detector's own limit, and with the best limit in hindsight.

DIR is by default in the `shared` directory beside the repository, or $STREAMPROC_SHARED; it has data/ and tools/.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from streamproc.scoring import Scorer, Table, read

SHARED = Path(os.environ.get("STREAMPROC_SHARED", Path(__file__).parents[1].parent / "shared"))

#: What is compared on the cloud series, all with their defaults.
CLOUD = (
    "spike",
    "robust_z",
    "gaussian_scorer",
    "standard_absolute_deviation",
    "adwin",
    "page_hinkley",
    "kswin",
)

#: Longer series are left out for the slow ones, events and all.
SLOW = {"kswin": 2_000}


def tool(name: str) -> Any:
    """Import one of the scorers by its path."""
    path = SHARED / "tools" / f"{name}.py"
    if not path.is_file():
        sys.exit(f"{path} is not there; set STREAMPROC_SHARED to the directory that has tools/ and data/")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table_of(path: Path) -> tuple[Table, np.ndarray]:
    """Return a series and its labels."""
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read().splitlines()
    header = [name.strip('" ') for name in text[0].split(",")]
    labels = read(text, columns=[next(name for name in header if name.lower() == "label")])
    return read(text), np.nan_to_num(labels.values[:, 0]) > 0


def scores_of(name: str, table: Table) -> np.ndarray:
    """Score a table; nan, which is no alarm, as 0."""
    return np.nan_to_num(Scorer(name).score(table), nan=0.0)


def cloud(data: Path) -> dict[str, Any]:
    scorer = tool("cloud_score")
    paths = sorted(data.rglob("*.csv"))
    if not paths:
        sys.exit(f"no CSV under {data}")
    series = [table_of(path) for path in paths]
    rows = sum(len(labels) for _, labels in series)
    events = sum(len(scorer.events(labels)) for _, labels in series)
    print(f"{len(series)} series, {rows:,} rows, {events} labelled events\n")
    print(f"{'':28} recall at false alerts in 1000 rows     at the limit of 1.0\n"
          f"{'detector':28} {'0.5':>6} {'1':>6} {'2':>6} {'5':>6}      over / 1000     µs a row")  # fmt: skip
    result: dict[str, Any] = {}
    for name in CLOUD:
        # Compiled loops are loaded before the clock starts.
        Scorer(name).score(read(["v", *["1"] * 20]))
        limit = SLOW.get(name, rows)
        began = time.perf_counter()
        scored = [(scores_of(name, table), labels) for table, labels in series if len(labels) <= limit]
        seconds = time.perf_counter() - began
        taken = sum(len(labels) for _, labels in scored)
        recall = scorer.recall_at(scored)
        over = 1000 * sum(int((s >= 1.0).sum()) for s, _ in scored) / taken
        note = f"   only series up to {limit:,} rows" if name in SLOW else ""
        figures = " ".join(f"{recall[b]:6.3f}" for b in (0.5, 1, 2, 5))
        print(f"{name:28} {figures}   {over:12.2f}   {1e6 * seconds / taken:12.2f}{note}", flush=True)
        if name == "spike":
            result = {"recall_at_1": round(recall[1], 4), "recall_at_2": round(recall[2], 4)}
        else:
            result.setdefault("others", {})[name] = {
                "recall_at_1": round(recall[1], 4),
                "recall_at_2": round(recall[2], 4),
            }
    return {**result, "series": len(series), "rows": rows, "events": events}


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


def nab(data: Path) -> dict[str, Any]:
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (("cloud", "recall of labelled events on cloud telemetry"), ("nab", "NAB's own score")):
        command = commands.add_parser(name, help=text)
        command.add_argument("--data", type=Path, default=SHARED / "data" / name, help="default: %(default)s")
    args = parser.parse_args()
    if not args.data.is_dir():
        sys.exit(f"{args.data} is not there; give --data, or set STREAMPROC_SHARED")
    result = cloud(args.data) if args.command == "cloud" else nab(args.data)
    print(orjson.dumps(result).decode())


if __name__ == "__main__":
    main()
