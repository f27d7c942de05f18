"""Rows of files are read as events would have them; whatever is wrong with a file is E036, with what to do."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from streamproc import tables
from streamproc.baseline import Table
from streamproc.cli import cli
from streamproc.errors import ConfigError
from tests.core.make import config

pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
from pyarrow import parquet  # noqa: E402

N = 600


def text(reference: str) -> str:
    return "models:\n  - match: {model: fraud}\n    reference:\n      " + reference.replace(", ", "\n      ") + "\n"


def read(directory: Path, columns: dict[str, Any], more: str = "") -> Table:
    parquet.write_table(pyarrow.table(columns), directory / "t.parquet")
    found = config(text("file: t.parquet" + more))
    (table,) = tables.read(found, path=directory / "w.yaml").values()
    return table


def column(values: list[Any], kind: Any) -> Any:
    return pyarrow.array((values * N)[:N], kind)


NS = 1_767_571_200_123_456_789
AT = "2026-01-05T00:00:00.123456"


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([Decimal("12.50"), None], pyarrow.decimal128(9, 2), [12.5, None]),
        ([Decimal("-3")], pyarrow.decimal256(40, 0), [-3.0]),
        ([NS, None], pyarrow.timestamp("ns"), [AT, None]),
        ([NS], pyarrow.timestamp("ns", "UTC"), [AT + "Z"]),
        ([NS // 1_000_000], pyarrow.timestamp("ms", "UTC"), ["2026-01-05T00:00:00.123000Z"]),
        ([20_458], pyarrow.date32(), ["2026-01-05"]),
        ([1_500_000_001], pyarrow.time64("ns"), ["00:00:01.500000"]),
        ([1_500_000_001], pyarrow.duration("ns"), [1.5]),
        ([b"de", b"\xff\x00"], pyarrow.binary(), ["de", "/wA="]),
        (["de", None], pyarrow.dictionary(pyarrow.int8(), pyarrow.string()), ["de", None]),
        ([None], pyarrow.null(), [None]),
        ([float("nan"), float("inf"), 1.5], pyarrow.float64(), [None, None, 1.5]),
        ([1.5], pyarrow.float16(), [1.5]),
        ([2**63], pyarrow.uint64(), [2**63]),
        ([True, False], pyarrow.bool_(), [True, False]),
        (["x"], pyarrow.large_string(), ["x"]),
    ],
    ids=str,
)
def test_a_parquet_column_is_read_as_an_event_would_have_it(
    tmp_path: Path, values: list[Any], kind: Any, expected: list[Any]
) -> None:
    table = read(tmp_path, {"x": column(values, kind), "y": column([1.0], pyarrow.float64())})
    assert [row["x"] for row in table.rows[: len(expected)]] == expected
    assert len(table.rows) == N


def test_a_dictionary_of_times_or_decimals_is_looked_up(tmp_path: Path) -> None:
    times = pyarrow.DictionaryArray.from_arrays([0] * N, pyarrow.array([NS], pyarrow.timestamp("ns")))
    prices = pyarrow.DictionaryArray.from_arrays([0, 1] * (N // 2), pyarrow.array([Decimal("1.5"), Decimal(2)]))
    table = read(tmp_path, {"x": times, "y": prices})
    assert table.rows[1] == {"x": AT, "y": 2.0}


def test_nested_columns_are_features_by_path_as_those_of_events(tmp_path: Path) -> None:
    user = pyarrow.struct(
        [("age", pyarrow.int64()), ("since", pyarrow.timestamp("ns")), ("paid", pyarrow.decimal128(9, 2))]
    )
    columns = {
        "user": column([{"age": 3, "since": NS, "paid": Decimal("2.50")}], user),
        "sizes": column([[3.0, 4.0]], pyarrow.list_(pyarrow.float64())),
        "tags": column([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
    }
    table = read(tmp_path, columns)
    first = table.rows[0]
    assert (first["user.age"], first["user.since"], first["user.paid"], first["tags.a"]) == (3, AT, 2.5, 1)
    assert (first["sizes.length"], first["sizes.mean"]) == (2, 3.5)
    assert read(tmp_path, columns, ", features: [user.age]").rows[0] == {"user.age": 3}


def test_answers_and_classes_of_any_type_are_read(tmp_path: Path) -> None:
    columns = {
        "x": column([1.0, 2.0], pyarrow.float64()),
        "score": column([Decimal("0.25"), None], pyarrow.decimal128(9, 2)),
        "class": column([b"fraud", b"ok"], pyarrow.binary()),
    }
    table = read(tmp_path, columns, ", prediction: score, label: class")
    assert (table.values[:2], table.labels[:2]) == ([0.25, None], ["fraud", "ok"])
    whole = {"x": columns["x"], "class": column([Decimal(1), Decimal(0)], pyarrow.decimal128(3, 0))}
    assert read(tmp_path, whole, ", label: class").labels[:2] == ["1", "0"]


def test_only_the_columns_that_are_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = parquet.ParquetFile.iter_batches

    def noted(self: Any, *args: Any, **more: Any) -> Any:
        asked.append(more.get("columns"))
        return real(self, *args, **more)

    monkeypatch.setattr(parquet.ParquetFile, "iter_batches", noted)
    columns = {name: column([1.0, 2.0], pyarrow.float64()) for name in ("a", "b", "c", "score")}
    table = read(tmp_path, columns, ", prediction: score, features: [a]")
    assert asked == [["score", "a"]]
    assert table.rows[0] == {"a": 1.0}


def complaint(directory: Path, reference: str) -> str:
    file = directory / "w.yaml"
    file.write_text("version: 1\nkafka: {brokers: b, predictions: [p]}\n" + text(reference))
    with pytest.raises(ConfigError) as caught:
        tables.read(config(text(reference)), path=file)
    return str(caught.value)


def broken(directory: Path) -> None:
    plain = pyarrow.table({"x": column([1.0], pyarrow.float64())})
    parquet.write_table(plain, directory / "t.parquet")
    whole = (directory / "t.parquet").read_bytes()
    (directory / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (directory / "middle.parquet").write_bytes(whole[:10] + bytes(40) + whole[50:])
    (directory / "none.parquet").write_bytes(b"")
    (directory / "text.parquet").write_bytes(b"x,y\n1,2\n")
    parquet.write_table(plain.slice(0, 0), directory / "empty.parquet")
    (directory / "bytes.csv").write_bytes(b"x\n\xff\xfe\n")
    (directory / "empty.csv").write_bytes(b"")
    (directory / "m").mkdir()
    (directory / "m" / "MLmodel").write_text("saved_input_example_info: {artifact_path: e.json}")
    (directory / "m" / "e.json").write_text("[1, 2")
    (directory / "d.parquet").mkdir()


@pytest.mark.parametrize(
    ("reference", "said", "remedy"),
    [
        ("file: missing.parquet", "No such file", "beside the config's own file"),
        ("file: cut.parquet", "`cut.parquet` cannot be used", "write it anew"),
        ("file: middle.parquet", "`middle.parquet` cannot be used", "write it anew"),
        ("file: none.parquet", "`none.parquet` cannot be used", "write it anew"),
        ("file: text.parquet", "`text.parquet` cannot be used", "write it anew"),
        ("file: d.parquet", "`d.parquet` cannot be used", "write it anew"),
        ("file: empty.parquet", "it has no rows", "a baseline needs some hundreds"),
        ("file: empty.csv", "it has no rows", "a baseline needs some hundreds"),
        ("file: bytes.csv", "`bytes.csv` cannot be used", "write it anew"),
        ("file: t.parquet, prediction: y", "it has no column `y`; it has x", "name one of them"),
        ("file: t.parquet, features: [xx]", "it has no column `xx`; it has x", "name one of them; did you mean \"x\"?"),
        ("mlflow: m", "`m` cannot be used", "write it anew"),
    ],
)
def test_whatever_is_wrong_with_a_table_is_e036_with_its_place_and_what_to_do(
    tmp_path: Path, reference: str, said: str, remedy: str
) -> None:
    broken(tmp_path)
    found = complaint(tmp_path, reference)
    assert "w.yaml:6:" in found  # the line that names the file
    assert "error E036 models[0].reference." in found
    assert said in found
    assert remedy in found.replace("`", "")


def test_a_column_of_texts_as_the_prediction_is_said_and_not_taken_for_nothing(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"x": column(["high"], pyarrow.string())}), tmp_path / "t.parquet")
    assert "its column `x` has no number in any of 600 rows" in complaint(tmp_path, "file: t.parquet, prediction: x")


def test_check_builds_the_baseline_and_says_of_what(tmp_path: Path) -> None:
    columns = {
        "amount": column([Decimal("1.5"), Decimal("2.5")], pyarrow.decimal128(9, 2)),
        "country": column(["de", "fr"], pyarrow.dictionary(pyarrow.int8(), pyarrow.string())),
        "score": column([0.5], pyarrow.float64()),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    file = tmp_path / "w.yaml"
    file.write_text("version: 1\nkafka: {brokers: b, predictions: [p]}\n" + text("file: t.parquet, prediction: score"))
    done = CliRunner().invoke(cli, ["check", "--config", str(file)])
    assert done.exit_code == 0, done.output
    line = "reference of fraud: t.parquet, 600 rows; 1 numeric and 1 categorical features, 600 answers"
    assert line in done.output
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    failed = CliRunner().invoke(cli, ["check", "--config", str(file)])
    assert isinstance(failed.exception, ConfigError)
    assert "E036" in str(failed.exception)


def test_times_before_the_epoch_and_far_away_are_read(tmp_path: Path) -> None:
    table = read(tmp_path, {"x": column([dt.datetime(1600, 1, 1)], pyarrow.timestamp("us"))})  # noqa: DTZ001
    assert table.rows[0]["x"] == "1600-01-01T00:00:00"
