"""What real systems send comes to the right values, alerts where it should, and adds up; each fault is a case."""

from __future__ import annotations

import pytest

from benchmarks.truth import formats
from benchmarks.truth.case import run
from benchmarks.truth.cases import CASES
from benchmarks.truth.shared import shared_cases

SHARED, MISSING = shared_cases()


@pytest.mark.parametrize("name", CASES)
def test_what_is_told_is_right(name: str) -> None:
    out = run(CASES[name])
    assert (out.wrong, out.silent, out.false_alerts) == ([], [], []), CASES[name].says


@pytest.mark.parametrize("name", [*SHARED, *MISSING])
def test_a_handed_case_is_right(name: str) -> None:
    if name in MISSING:
        pytest.skip(f"{name}: the shared cases are not here")
    out = run(SHARED[name])
    assert (out.wrong, out.silent, out.false_alerts) == ([], [], [])


def test_the_table_of_formats_is_that_of_the_cases() -> None:
    assert formats.page() == formats.PAGE.read_text()
