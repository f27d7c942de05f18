"""How well detectors detect. Each part prints a table, river's detectors beside ours, then one JSON object.

    python -m benchmarks.detection nab      patterns of NAB's files, by NAB's own score
    python -m benchmarks.detection cloud    spikes of cloud telemetry, recall of labelled events
    python -m benchmarks.detection drift    drift of values and of rates, delays at a given rate of false alarms
    python -m benchmarks.detection fleet    false alerts of a thousand signals against their budget, and its delay
    python -m benchmarks.detection outlier  odd rows among ADBench's
    python -m benchmarks.detection traffic  a part of the traffic gone for a day, and quiet weeks

One set of parameters for all series; labels take no part in detection; no file's length, least or largest value is
looked at ahead. DIR is by default within the `shared` directory beside the repository, or $STREAMPROC_SHARED, which
has data/ and tools/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import orjson

from benchmarks.detection import cloud, drift, fleet, nab, outlier, traffic
from benchmarks.detection.shared import SHARED


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.detection", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for module, folder in ((nab, "nab"), (cloud, "cloud"), (outlier, "adbench")):
        name = module.__name__.rpartition(".")[2]
        command = commands.add_parser(
            name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_argument("--data", type=Path, metavar="DIR", default=SHARED / "data" / folder)
    command = commands.add_parser(
        "drift", description=drift.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--runs", type=int, default=100, help="series of each kind (default: %(default)s)")
    command.add_argument("--before", type=int, default=3_000, help="values before the change (default: %(default)s)")
    command.add_argument("--after", type=int, default=3_000, help="values after it (default: %(default)s)")
    command.add_argument("--no-baselines", action="store_true", help="ours only, a few seconds")
    command = commands.add_parser(
        "fleet", description=fleet.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--signals", type=int, default=1_000, help="of each kind (default: %(default)s)")
    command.add_argument("--days", type=int, default=7)
    command.add_argument("--allowed", type=float, default=5.0, help="false alerts a day (default: %(default)s)")
    command.add_argument("--shifted", type=int, default=20, help="signals shifted (default: %(default)s)")
    command.add_argument("--seed", type=int, default=1)
    command.add_argument("--kinds", nargs="+", choices=list(fleet.KINDS), default=list(fleet.KINDS), metavar="KIND")
    command.add_argument("--no-baselines", action="store_true", help="ours only")
    command = commands.add_parser(
        "traffic", description=traffic.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    command.add_argument("--seeds", type=int, default=8, help="series of each kind (default: %(default)s)")
    args = parser.parse_args()
    if "data" in args and not args.data.is_dir():
        sys.exit(f"{args.data} is not there; give --data, or set STREAMPROC_SHARED")
    match args.command:
        case "traffic":
            result = traffic.run(args.seeds)
        case "nab":
            result = nab.run(args.data)
        case "cloud":
            result = cloud.run(args.data)
        case "outlier":
            result = outlier.run(args.data, table=True)
        case "fleet":
            result = fleet.run(
                signals=args.signals, days=args.days, allowed=args.allowed, shifted=args.shifted, seed=args.seed,
                kinds=tuple(args.kinds), baselines=not args.no_baselines, table=True,
            )  # fmt: skip
        case _:
            result = drift.run(
                runs=args.runs, before=args.before, after=args.after, baselines=not args.no_baselines, table=True
            )
    print(orjson.dumps(result, option=orjson.OPT_SERIALIZE_NUMPY).decode())


if __name__ == "__main__":
    main()
