"""Any detector over any CSV."""

from __future__ import annotations

import csv
import doctest
import gzip
import io
from pathlib import Path

import numpy as np
import pytest

from detectors import registry
from streamproc import scoring
from streamproc.errors import UsageError
from streamproc.scoring import Scorer, parameters, read, write
from tests.core.test_cli import said, streamproc

NORMAL = np.random.default_rng(1).normal(100.0, 2.0, 400)


def lines(values: np.ndarray, header: str = "timestamp,value") -> list[str]:
    return [header, *(f"{1_700_000_000 + 60 * i},{v!r}" for i, v in enumerate(values.tolist()))]


def test_scores_are_those_of_the_detector_itself() -> None:
    table = read(lines(NORMAL))
    scores = Scorer("spike", {"limit": 3.0}).score(table)
    expected = registry.create("spike", {"limit": 3.0}).score(NORMAL, table.times)
    np.testing.assert_array_equal(scores, expected)
    assert list(np.diff(table.times[:3])) == [60_000_000, 60_000_000]


@pytest.mark.parametrize("missing", ["", "nan", "NULL", "NA", "none", "inf", "-Infinity"])
def test_a_missing_value_scores_nan_and_teaches_nothing(missing: str) -> None:
    text = lines(NORMAL)
    text.insert(201, f"1700012000,{missing}")
    scores = Scorer("spike").score(read(text))
    assert np.isnan(scores[200])
    np.testing.assert_array_equal(np.delete(scores, 200), Scorer("spike").score(read(lines(NORMAL))))


def test_labels_are_kept_from_the_detector() -> None:
    table = read(["TimeStamp,Value,Label", "2026-01-01 00:00:00,1,0"])
    assert table.names == ["Value"]
    assert read(["a,b,time", "1,2,0"], columns=["b"]).names == ["b"]


@pytest.mark.parametrize(
    ("text", "us"),
    [
        ("2026-01-01T00:00:00Z", 1_767_225_600_000_000),
        ("2026-01-01 00:00:00", 1_767_225_600_000_000),
        ("2026-01-01T01:00:00+01:00", 1_767_225_600_000_000),
        ("1767225600", 1_767_225_600_000_000),
        ("1767225600.5", 1_767_225_600_500_000),
        ("1767225600000", 1_767_225_600_000_000),
        ("1767225600000000", 1_767_225_600_000_000),
        ("1767225600000000000", 1_767_225_600_000_000),
        ("1960-01-01", -315_619_200_000_000),
        ("", 0),
    ],
)
def test_times_are_understood(text: str, us: int) -> None:
    assert list(read(["ts,v", f"{text},1"]).times) == [us]


def test_times_never_fall() -> None:
    assert list(read(["ts,v", "10,1", "5,1", ",1", "12,1"]).times // 1_000_000) == [10, 10, 10, 12]
    assert list(read(["v", "1", "1"]).times) == [0, 1_000_000]


def test_of_several_columns_the_worst_counts_and_vectors_take_all() -> None:
    rows = ["a,b", *(f"{x},{y}" for x, y in NORMAL.reshape(-1, 2))]
    each = [registry.create("spike").score(np.ascontiguousarray(c), np.arange(200)) for c in NORMAL.reshape(-1, 2).T]
    np.testing.assert_array_equal(Scorer("spike").score(read(rows)), np.fmax(*each))
    vector = registry.create("half_space_trees", columns=2).score(NORMAL.reshape(-1, 2), np.arange(200) * 1_000_000)
    np.testing.assert_array_equal(Scorer("half_space_trees").score(read(rows)), vector)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ([], "line 1: the file is empty"),
        (["1,2", "3,4"], "line 1: only numbers"),
        (["time,label", "0,1"], "line 1: no column of values"),
        (["time,v", "0,x"], "line 2: v is 'x', not a number; choose"),
        (["time,v", "0,1", "0,1,2"], "line 3: 3 fields, but the header has 2"),
        (["time,v", "5/10/2018 0:00,1"], "line 2: time is '5/10/2018 0:00', not a time"),
        (["time,v", "1e30,1"], "not a time"),
    ],
)
def test_what_is_no_table_is_refused(text: list[str], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(text)
    assert message in str(caught.value)


def test_a_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match=r'no column `valu`; did you mean "value"'):
        read(lines(NORMAL), columns=["valu"])
    with pytest.raises(UsageError, match="more than one column `a`"):
        read(["a,a", "1,1"], time="a")


def test_a_wrong_detector_or_parameter_is_refused() -> None:
    with pytest.raises(UsageError, match='did you mean "spike"'):
        Scorer("spik")
    with pytest.raises(UsageError, match="limit = 0 is not allowed"):
        Scorer("spike", {"limit": 0})
    with pytest.raises(UsageError, match="expected NAME=VALUE"):
        parameters(["limit"])
    with pytest.raises(UsageError, match=r"row 2: ddm takes zeros and ones only, got \[2.0\]"):
        Scorer("ddm").score(read(["v", "1", "2"]))


def test_a_table_of_no_rows_scores_none() -> None:
    table = read(["time,v"])
    assert "".join(write(table, Scorer("spike").score(table))) == "time,score\n"


def test_the_examples_are_true() -> None:
    result = doctest.testmod(scoring)
    assert result.attempted > 0
    assert result.failed == 0


def scored(text: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text.decode())))


def test_a_file_is_scored_row_by_row(tmp_path: Path) -> None:
    source, output = tmp_path / "in.csv.gz", tmp_path / "out.csv"
    source.write_bytes(gzip.compress(("\ufeff" + "\r\n".join(lines(NORMAL))).encode()))
    run = streamproc("score", "--detector", "spike", "--param", "limit=3", "--input", source, "--output", output)
    assert run.returncode == 0, said(run)
    rows = scored(output.read_bytes())
    assert len(rows) == 400
    assert rows[0] == {"timestamp": "1700000000", "score": "nan"}
    assert float(rows[-1]["score"]) == Scorer("spike", {"limit": 3}).score(read(lines(NORMAL)))[-1]


def test_stdin_to_stdout() -> None:
    run = streamproc("score", "-d", "limits", "-p", "upper=2", "-i", "-", stdin=b"v\n3\n4\n")
    assert run.stdout == b"score\n1.5\n2.0\n"


def test_a_directory_is_scored_file_by_file(tmp_path: Path) -> None:
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name in ("a.csv", "deep/b.csv"):
        (tmp_path / "in" / name).write_text("\n".join(lines(NORMAL)))
    for _ in range(2):  # the second time, scores lie under the directory scored
        run = streamproc("score", "-d", "spike", "--batch", tmp_path / "in", tmp_path / "in" / "out")
        assert run.returncode == 0, said(run)
        assert "2 files, 800 rows" in said(run)
    assert len(scored((tmp_path / "in" / "out" / "deep" / "b.csv").read_bytes())) == 400


def test_mistakes_on_the_command_line_are_usage(tmp_path: Path) -> None:
    path, bad, binary = tmp_path / "a.csv", tmp_path / "bad.csv", tmp_path / "binary.csv"
    path.write_text("v\n1\n")
    bad.write_text("v\nx\n")
    binary.write_bytes(b"v\n\xff\xfe\n")
    for args, message in [
        ([], "one of --input FILE and --batch DIR OUT_DIR is needed"),
        (["-i", path, "--batch", tmp_path, tmp_path], "one of --input FILE and --batch"),
        (["-i", path, "-o", path], f"--output: {path} is the input"),
        (["-i", tmp_path / "none.csv"], "--input: there is no file"),
        (["-i", bad], f"{bad}: line 2: v is 'x'"),
        (["-i", binary], f"{binary}: not UTF-8 text"),
        (["--batch", tmp_path / "none", tmp_path], "--batch: there is no directory"),
        (["--batch", tmp_path, tmp_path / "o", "-o", path], "--output: --batch writes to its OUT_DIR"),
    ]:  # type: ignore[var-annotated]
        run = streamproc("score", "-d", "spike", *args)
        assert run.returncode == 2
        assert message in said(run)
