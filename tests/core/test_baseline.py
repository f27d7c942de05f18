"""What a model is measured against: a file, an MLflow model's example, its first events, or what it was of late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc import tables
from streamproc.baseline import Table, from_table
from streamproc.errors import ConfigError
from streamproc.events import Alert, RecordBatch
from streamproc.pipeline import Pipeline
from streamproc.rules import RuleBook
from tests.core.make import (
    BEGIN_US,
    SECOND,
    batch,
    check_cut_and_restored,
    config,
    feed,
    pipeline,
    prediction,
)

RATE = 20
CONFIG = "defaults: {window: 10s, lateness: 5s, resolve_after: 1m}\n"


def said(reference: str) -> str:
    return CONFIG + "models: [{match: {model: fraud}, reference: {" + reference + "}}]\n"


def row(rng: np.random.Generator) -> dict[str, Any]:
    return {"amount": float(rng.normal(100, 10)), "country": str(rng.choice(["de", "fr"]))}


def stream(n: int, *, seed: int = 1, shifted_from: int = 0, shifted_to: int = 0) -> RecordBatch:
    """Return events in which amounts are shifted from the one row to the other."""
    rng = np.random.default_rng(seed)
    events, stamps = [], []
    for i in range(n):
        at = BEGIN_US + i * SECOND // RATE
        features = row(rng)
        if shifted_from <= i < shifted_to:
            features["amount"] += 15
        answer = {"value": float(rng.normal(5)), "label": "ok" if rng.random() < 0.8 else "fraud"}
        events.append(prediction(at, id=str(i), features=features, prediction=answer))
        stamps.append(at)
    return batch(events, stamps_us=stamps)


def written(path: Path, n: int = 2000, *, seed: int = 7) -> Path:
    rng = np.random.default_rng(seed)
    lines = ["amount,country,score,class"]
    for _ in range(n):
        r = row(rng)
        lines.append(f"{r['amount']},{r['country']},{rng.normal(5)},{'ok' if rng.random() < 0.8 else 'fraud'}")
    path.write_text("\n".join(lines) + "\n")
    return path


def against(text: str, beside: Path) -> Pipeline:
    found = config(text)
    book = RuleBook(found, tables.read(found, path=beside / "worker.yaml"))
    return Pipeline(book, kind="predictions", topic="predictions")


def opened(alerts: list[Alert]) -> set[str]:
    return {a.signal for a in alerts if a.action == "opened"}


def test_a_stream_that_never_was_like_its_training_data_is_told_from_it(tmp_path: Path) -> None:
    written(tmp_path / "train.csv")
    whole = stream(10_000, shifted_from=0, shifted_to=10_000)
    p = against(said("file: train.csv, prediction: score, label: class"), tmp_path)
    feed(p, [whole])
    model = p.models["fraud"]
    assert model.baseline.describe() == "train.csv, 2000 rows"  # type: ignore[attr-defined]
    watch = model.watches["feature_drift", "robust_z"]
    drift = float(watch.detector.explain(-1).expected or 0.0)
    assert drift > 1.0  # a shift of 1.5 deviations, from the first window on
    blind = pipeline(config(CONFIG))
    feed(blind, [whole])
    expected = blind.models["fraud"].watches["feature_drift", "robust_z"].detector.explain(-1).expected
    assert float(expected or 0.0) < 0.1  # learned from the shifted stream itself


def test_an_alert_says_what_it_is_measured_against(tmp_path: Path) -> None:
    written(tmp_path / "train.csv")
    whole = stream(14_000, shifted_from=10_000, shifted_to=14_000)
    for text, expected in (
        (said("file: train.csv"), "train.csv, 2000 rows"),
        (said("first: 3000"), "3000 events from 2026-01-05T09:00Z to 2026-01-05T09:0"),
        (CONFIG, "events from 2026-01-05T09:00Z to 2026-01-05T09:01Z"),
    ):
        alerts = feed(against(text, tmp_path), [whole])
        alert = next(a for a in alerts if a.signal == "feature_drift" and a.action == "opened")
        assert expected in alert.annotations["reference"]


def test_nothing_alarms_where_the_stream_is_like_the_file(tmp_path: Path) -> None:
    written(tmp_path / "train.csv")
    p = against(said("file: train.csv, prediction: score, label: class"), tmp_path)
    assert opened(feed(p, [stream(10_000)])) == set()


def test_classes_of_the_file_are_no_news_and_others_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    lines = ["x,class", *(f"{rng.normal()},{'a' if i % 2 else 'b'}" for i in range(1000))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    p = against(said("file: t.csv, label: class"), tmp_path)
    events = [
        prediction(BEGIN_US + i * SECOND // RATE, id=str(i), prediction={"label": "ab"[i % 2] if i < 9000 else "z"})
        for i in range(10_000)
    ]
    alerts = feed(p, [batch(events, stamps_us=[e["time"] for e in events])])
    assert "new_class" in opened(alerts)
    found = next(a for a in alerts if a.signal == "new_class")
    assert found.annotations["reference"] == "t.csv, 1000 rows"


def test_parquet_and_csv_of_the_same_rows_teach_the_same(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import csv as arrow_csv
    from pyarrow import parquet

    path = written(tmp_path / "train.csv")
    parquet.write_table(arrow_csv.read_csv(path), tmp_path / "train.parquet")
    assert pyarrow.__version__
    columns = "prediction: score, label: class"
    found = []
    for name in ("train.csv", "train.parquet"):
        p = against(said(f"file: {name}, {columns}"), tmp_path)
        feed(p, [stream(100)])
        tree = p.models["fraud"].snapshot()["own"]["baseline"]
        del tree["source"]
        found.append(repr(tree))
    assert found[0] == found[1]


#: As MLflow 3.17 wrote it for `log_model(..., input_example=[...])`.
MLMODEL = """\
artifact_path: models:/m-1
flavors:
  python_function: {loader_module: mlflow.pyfunc.model}
mlflow_version: 3.17.2
saved_input_example_info:
  artifact_path: input_example.json
  serving_input_path: serving_input_example.json
  type: json_object
"""


@pytest.mark.parametrize(
    "example",
    [
        [{"amount": 1.5, "country": "de"}, {"amount": 2.5, "country": "fr"}],
        {"columns": ["amount", "country"], "data": [[1.5, "de"], [2.5, "fr"]]},
        {"amount": [1.5, 2.5], "country": ["de", "fr"]},
    ],
    ids=["records", "split", "columns"],
)
def test_an_mlflow_models_input_example_names_the_features(tmp_path: Path, example: Any) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "MLmodel").write_text(MLMODEL)
    (tmp_path / "m" / "input_example.json").write_bytes(orjson.dumps(example))
    p = against(said("mlflow: m"), tmp_path)
    feed(p, [stream(1)])
    model = p.models["fraud"]
    assert model.features.numeric == ("amount",)  # type: ignore[attr-defined]
    assert model.features.categorical == ("country",)  # type: ignore[attr-defined]
    # Two rows are no distribution: the stream's first events are learned from too.
    feed(p, [stream(700).rows(1, 700)])
    assert model.baseline.events > 400  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("file: none.csv", "No such file"),
        ("file: none.parquet", "No such file"),
        ("file: t.csv, prediction: scoer", "it has no column `scoer`; it has amount, country"),
        ("mlflow: nowhere", "No such file"),
        ("file: empty.csv", "it has no rows"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, reference: str, complaint: str) -> None:
    written(tmp_path / "t.csv", 10)
    (tmp_path / "empty.csv").write_text("a,b\n")
    with pytest.raises(ConfigError, match=complaint) as caught:
        against(said(reference), tmp_path)
    assert "worker.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "complaint"),
    [
        ("file: a.csv, first: 500", "one of file, mlflow, first and trailing, and has file and first"),
        ("prediction: score", "has none"),
        ("file: a.json", "neither .csv nor .parquet"),
        ("first: 500, label: y", "there is no `file`"),
        ("trailing: 5s", "at least 1m"),
    ],
)
def test_a_mistake_about_a_reference_is_named(reference: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        config(said(reference))


def test_a_trailing_reference_is_renewed_by_what_the_stream_was() -> None:
    # Renewed at minutes 4, 8, 12 and 16; shifted for good from minute 10 on, so that the last is all of the new.
    whole = stream(20_400, shifted_from=12_000, shifted_to=20_400)
    p, q = pipeline(config(said("trailing: 4m"))), pipeline(config(CONFIG))
    alerts, _ = feed(p, [whole]), feed(q, [whole])
    assert "feature_drift" in opened(alerts)
    found = next(a for a in alerts if a.signal == "feature_drift")
    assert "events from 2026-01-05T09:04Z to 2026-01-05T09:07Z" in found.annotations["reference"]
    assert p.models["fraud"].baseline.describe().endswith("from 2026-01-05T09:12Z to 2026-01-05T09:15Z")  # type: ignore[attr-defined]
    assert q.models["fraud"].baseline.describe().endswith("from 2026-01-05T09:00Z to 2026-01-05T09:01Z")  # type: ignore[attr-defined]


@settings(max_examples=15, deadline=None)
@given(edges=st.lists(st.integers(1, 3999), max_size=30), at=st.integers(1, 3999))
def test_cutting_and_restoring_anywhere_changes_no_alert_and_no_bit_of_a_baseline(edges: list[int], at: int) -> None:
    whole = stream(4000, shifted_from=2500, shifted_to=4000)
    check_cut_and_restored(config(said("trailing: 1m")), whole, at=at, edges=edges)



@settings(max_examples=15, deadline=None)
@given(edges=st.lists(st.integers(1, 3999), max_size=30), at=st.integers(1, 3999))
def test_events_that_say_nothing_of_answers_or_features_move_no_bit_of_what_a_baseline_is_of(
    edges: list[int], at: int
) -> None:
    whole = stream(4000)
    bare = {"id": "x", "source": "t", "model": {"name": "fraud"}, "error": {"type": "timeout"}}
    values = [
        orjson.dumps({**bare, "time": orjson.loads(v or b"")["time"]}) if i % 900 < 300 else v
        for i, v in enumerate(whole.values)
    ]
    check_cut_and_restored(
        config(said("trailing: 1m")), msgspec.structs.replace(whole, values=values), at=at, edges=edges
    )


def test_a_table_without_features_teaches_the_answers_alone() -> None:
    table = Table("t", [{}] * 600, [float(i % 7) for i in range(600)], [None] * 600)
    schema, baseline = from_table(table, max_features=10)
    assert schema["left"] > 0
    assert baseline["numbers"] is None
    assert [p[-1] for p in baseline["periods"]] == [True, False, False]
