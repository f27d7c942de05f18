"""How often the right value is not told: `python -m benchmarks.truth [NAME …]`.

Replays every case of `benchmarks.truth.cases`, and those of the shared folder where it is there, and prints one JSON
object: values that are wrong, alerts that did not come, and alerts that should not have, with each by name.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys

from benchmarks.truth import formats
from benchmarks.truth.case import Outcome, run
from benchmarks.truth.cases import CASES
from benchmarks.truth.shared import shared_cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="globs; all cases without")
    parser.add_argument("--verbose", action="store_true", help="say on standard error how each case went")
    parser.add_argument("--formats", action="store_true", help="write the table of docs/inputs.md, and end")
    options = parser.parse_args()
    if options.formats:
        formats.PAGE.write_text(formats.page())
        return 0
    shared, missing = shared_cases()
    cases = {**CASES, **shared}
    chosen = [n for n in cases if not options.names or any(fnmatch.fnmatchcase(n, g) for g in options.names)]
    found: dict[str, Outcome] = {}
    for k, name in enumerate(chosen):
        found[name] = out = run(cases[name])
        ill = out.wrong + [f"silent: {s}" for s in out.silent] + [f"false alert: {s}" for s in out.false_alerts]
        if options.verbose or ill:
            print(f"{k + 1}/{len(chosen)} {name}: {'; '.join(ill) or 'right'}", file=sys.stderr)
    print(
        json.dumps(
            {
                "cases": len(found),
                "wrong": sum(len(o.wrong) for o in found.values()),
                "silent": sum(len(o.silent) for o in found.values()),
                "false_alerts": sum(len(o.false_alerts) for o in found.values()),
                "skipped": missing,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
