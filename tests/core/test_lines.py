"""A file of several partitions is read as a worker would have had them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest

from streamproc.lines import InOrder, Row, of_kcat
from streamproc.replay import Replay
from streamproc.rules import RuleBook
from tests.core.make import BEGIN_US, SECOND, config, prediction
from tests.core.test_cli import said, streamproc

CONFIG = """
defaults:
  window: 10s
  lateness: 5s
  min_samples: 10
  resolve_after: 1m
  signals:
    error_rate: {params: {warm_up: 10, window: 60}}
    silence: {params: {warm_up: 50, min_timeout_s: 30.0}}
"""

#: Of each partition, seconds that kcat prints in one go.
CHUNK_S = 300


def events(partition: int, *, seconds: int = 1800) -> list[tuple[int, bytes]]:
    """One model a partition, two events a second; the model of partition 1 fails between minutes 15 and 20."""
    found = []
    for k in range(2 * seconds):
        at = BEGIN_US + k * SECOND // 2 + partition
        bad = partition == 1 and 900 <= k // 2 < 1200 and k % 3 == 0
        late = -2 * SECOND if k % 50 == 7 else 0
        more: dict[str, Any] = {"error": {"type": "timeout"}} if bad else {}
        found.append((at + late, orjson.dumps(prediction(at + late, model=f"m{partition}", **more))))
    return found


def as_kcat(partition: int, offset: int, at_us: int, value: bytes) -> bytes:
    line = {"topic": "predictions", "partition": partition, "offset": offset, "tstype": "create", "ts": at_us // 1000,
            "broker": 1, "headers": ["trace", "1", "none", None], "key": f"m{partition}",
            "payload": value.decode()}  # fmt: skip
    return orjson.dumps(line)


def printed(partitions: int, *, json: bool) -> list[bytes]:
    """Return the lines of `kcat -C -e`: a chunk of each partition at a time."""
    logs = [events(p) for p in range(partitions)]
    lines = []
    for start in range(0, len(logs[0]), 2 * CHUNK_S):
        for p, log in enumerate(logs):
            for k, (at_us, value) in enumerate(log[start : start + 2 * CHUNK_S], start=start):
                lines.append(as_kcat(p, k, at_us, value) if json else value)
    return lines


def alerts(lines: list[bytes], *, bound: int = 100_000) -> list[tuple[str, str, str, str]]:
    run = Replay(RuleBook(config(CONFIG)), kind="predictions", bound=bound)
    found = [a for a in run.run(lines) if hasattr(a, "signal")]
    assert run.report.rejected == {}
    return sorted((a.labels["model"], a.signal, a.action, a.startsAt) for a in found)


@pytest.mark.parametrize("json", [True, False], ids=["kcat -J", "kcat"])
def test_chunks_of_partitions_give_the_alerts_of_a_log_in_order(json: bool) -> None:
    whole = sorted(pair for p in range(3) for pair in events(p))
    expected = alerts([value for _, value in whole])
    assert {(m, s) for m, s, *_ in expected} == {("m1", "error_rate"), ("m1", "error_share:timeout")}
    assert alerts(printed(3, json=json)) == expected
    # As they come, there are silences of which none was, and what came late is in no window.
    wrong = alerts(printed(3, json=json), bound=0)
    assert "silence" in {signal for _, signal, *_ in wrong}


def row(number: int, ms: int) -> Row:
    return number, ms, None, b"{}", []


def ordered(rows: list[tuple[int | None, int]], *, bound: int = 1000) -> tuple[list[int], InOrder]:
    order = InOrder(bound=bound)
    return [r[0] for r in order.take((p, row(k, ms)) for k, (p, ms) in enumerate(rows))], order


def test_a_log_of_one_partition_is_left_as_it_is_late_events_and_all() -> None:
    times = [k * 1000 - (3_600_000 if k % 10 == 3 else 2500 * (k % 3)) for k in range(500)]
    for partition in (None, 0):
        found, order = ordered([(partition, 10_000_000 + t) for t in times])
        assert found == list(range(500))
        assert (order.moved, order.beyond) == (0, 0)


def test_records_of_one_partition_keep_their_order_beside_others() -> None:
    rows: list[tuple[int | None, int]] = [(0, 5), (0, 1), (0, 9), (1, 2), (1, 6), (1, 3), (1, 12)]
    found, order = ordered(rows)
    assert found == [3, 0, 1, 4, 5, 2, 6]
    assert order.moved > 0


def test_what_is_farther_apart_than_the_bound_is_counted() -> None:
    rows: list[tuple[int | None, int]] = [(p, k) for p in range(2) for k in range(100)]
    found, order = ordered(rows, bound=20)
    assert sorted(found) == list(range(200))
    assert order.beyond > 0
    assert ordered(rows, bound=100)[1].beyond == 0


def test_a_line_of_kcat_is_the_record_that_it_tells_of() -> None:
    found = of_kcat(as_kcat(2, 7, BEGIN_US, b'{"a": "\xc3\xa4"}'))
    assert found is not None
    assert (found.partition, found.ms, found.key, found.value) == (2, BEGIN_US // 1000, b"m2", b'{"a": "\xc3\xa4"}')
    assert found.headers == [("trace", b"1"), ("none", None)]
    tree = orjson.loads(as_kcat(0, 0, BEGIN_US, b"{}"))
    for change, value, key, ms in (
        ({"payload": None}, None, b"m0", BEGIN_US // 1000),
        ({"payload": {"decoded": 1}}, b'{"decoded":1}', b"m0", BEGIN_US // 1000),
        ({"key": None, "ts": -1}, b"{}", None, None),
    ):
        found = of_kcat(orjson.dumps(tree | change))
        assert found is not None
        assert (found.value, found.key, found.ms) == (value, key, ms)
    assert of_kcat(b'{"payload": 1, "partition": "x"}') is None
    assert of_kcat(orjson.dumps(prediction(BEGIN_US, features={"payload": 1, "partition": 2}))) is None


def test_a_rejected_line_goes_by_its_number_in_the_file_though_it_was_moved(tmp_path: Path) -> None:
    lines = printed(2, json=True)
    at = len(lines) - 5
    lines[at] = as_kcat(1, 10**6, BEGIN_US + 1_700 * SECOND, b'{"what": 1}')
    path = tmp_path / "k.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join(lines)))
    text = said(streamproc("replay", "-f", path))
    assert f"the first in line {at + 1}: " in text
    assert "put in order: " in text
