"""The table of formats in docs/inputs.md, made of the cases that show what is read from each."""

from __future__ import annotations

from pathlib import Path

from benchmarks.truth.cases import CASES

PAGE = Path(__file__).parents[2] / "docs" / "inputs.md"
BEGIN = "<!-- formats: `python -m benchmarks.truth --formats` writes what follows -->\n"
END = "<!-- end of formats -->\n"


def table() -> str:
    """Return the table as Markdown: a row a format, with the signals and values that its case checks."""
    rows = ["| format | what its case shows | checked |", "|---|---|---|"]
    for case in CASES.values():
        if case.reads:
            values = ", ".join(dict.fromkeys(f"`{e.signal}`" for e in case.expect))
            rows.append(f"| {case.reads} | {case.name.replace('_', ' ')} | {values} |")
    return "\n".join(rows) + "\n"


def page() -> str:
    """Return docs/inputs.md with the table as it is to be."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"
