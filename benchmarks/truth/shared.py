"""The cases of the folder that developers share; a checkout without it goes without them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from benchmarks.truth.case import Case, Expect

_FOLDER = Path(__file__).parents[3] / "shared" / "cases"

_FIELDS = (
    "fields:\n  predictions:\n"
    "    {model: $.payload.after.model, id: $.payload.after.id, prediction: $.payload.after.score}\n"
)
_OF_ANSWERS = frozenset({
    "prediction_value", "prediction_psi", "class_share:0", "class_share:1", "class_share:2", "estimated_accuracy",
    "prediction_error",
})  # fmt: skip

#: By number: what is right, and what must and may alert.
_RIGHT: dict[str, tuple[tuple[Expect, ...], set[str], set[str]]] = {
    "01": ((Expect("tokens_in", 100, 100), Expect("tokens_out", 20, 20), Expect("cost_per_request", 0.001, 0.001)),
           set(), set()),
    "02": ((Expect("accuracy", 0.968, 0.636), Expect("unjudged", 0, 0)), {"accuracy"}, set(_OF_ANSWERS)),
    "04": ((Expect("truncated_rate", 0, 0.4),), {"truncated_rate"}, set()),
    "05": ((Expect("throughput", 0.5, 0.5, model="gpt-x"), Expect("tool_failure_rate", 1, 1),
            Expect("retrieval_score", 0.9, 0.9)), set(), set()),
    "06": ((Expect("missing_features", 0, 0.15), Expect("throughput", 1, 1)), {"missing_features"}, set()),
    "07": ((Expect("error_rate", 0, 0), Expect("unreadable", 0, 0.3)), {"unreadable"}, {"insufficient_samples"}),
    "10": ((Expect("empty_predictions", 0, 2 / 3), Expect("error_rate", 0, 0)), {"empty_predictions"},
           {"insufficient_samples", "prediction_value"}),
    "11": ((Expect("throughput", 1, 1), Expect("error_rate", 0, 0)), set(), set()),
    "13": ((Expect("prediction_value", 0.5, 25, tolerance=0.1),), {"prediction_value", "prediction_psi"}, set()),
    "14": ((Expect("empty_rate", 0, 0),), set(), {"insufficient_samples"}),
    "16": ((Expect("throughput", 0.5, 0.5), Expect("tokens_in", 100, 100)), set(), set()),
    "17": ((Expect("accuracy", 0.967, 0.967), Expect("unjudged", 0, 0)), set(), set()),
    "19": ((Expect("error_rate", 0, 0.5),), {"error_rate", "error_share:_OTHER"}, set()),
}  # fmt: skip


def shared_cases() -> tuple[dict[str, Case], list[str]]:
    """Return the cases by name, and the names of those that cannot be had here."""
    maker = _FOLDER / "make.py"
    if not maker.is_file():
        return {}, [f"shared_{number}" for number in _RIGHT]
    spec = importlib.util.spec_from_file_location("truth_make", maker)
    if spec is None or spec.loader is None:
        return {}, [f"shared_{number}" for number in _RIGHT]
    made: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return {f"shared_{number}": _case(number, made) for number in _RIGHT}, []


def _case(number: str, made: Any) -> Case:
    expect, must, may = _RIGHT[number]

    def lines() -> Any:
        made.random.seed(int(number))
        return ((side, made.json.dumps(row).encode()) for side, row in made.CASES[number]())

    return Case(
        name=f"shared_{number}",
        says="handed case",
        lines=lines,
        config=_FIELDS if number == "13" else "",
        expect=expect,
        alerts=frozenset(must),
        may=frozenset(may),
    )
