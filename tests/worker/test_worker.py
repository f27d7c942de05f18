"""The worker as its users have it: a process, a real Kafka, and what comes out."""

from __future__ import annotations

import re
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import orjson
import pytest
from confluent_kafka import Producer

from streamproc.config import digest
from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import prediction, publish, read, topic, worker

START = 1_790_000_000.0


def config(bootstrap: str, app: str, **kafka: Any) -> str:
    more = "".join(f"  {k}: {orjson.dumps(v).decode()}\n" for k, v in kafka.items())
    return f"""
version: 1
kafka:
  brokers: "{bootstrap}"
  predictions: [{app}-in]
  app_id: {app}
  alerts: {app}-alerts
  incidents: ""
  dead_letters: {app}-dead
  snapshots: {app}-snapshots
  partitions: 2
{more}defaults:
  signals:
    latency: {{detector: limits, params: {{upper: 1.0}}}}
worker: {{web_host: 127.0.0.1, web_port: PORT, snapshot_interval: 300ms}}
"""


def stream(model: str, n: int, *, slow_from: int | None = None) -> list[tuple[bytes, bytes, int]]:
    return [
        (
            model.encode(),
            prediction(model, START + i, duration_s=5.0 if slow_from is not None and i >= slow_from else 0.1),
            int((START + i) * 1000),
        )
        for i in range(n)
    ]


@pytest.mark.kafka
def test_a_slow_prediction_becomes_one_alert_keyed_by_its_model(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic(kafka.bootstrap, "one-in")
    publish(kafka.bootstrap, "one-in", stream("m", 50, slow_from=40))
    with worker(tmp_path, config(kafka.bootstrap, "one")) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 50, "50 events")
        found = read(kafka.bootstrap, "one-alerts", at_least=1)
        assert running.stop() == 0
    alerts = [(m.key(), orjson.loads(m.value())) for m in found]
    opened = [a for _, a in alerts if a["signal"] == "latency"]
    assert [(a["action"], a["status"], a["value"]) for a in opened] == [("opened", "firing", 5.0)]
    assert alerts[0][0] == b"m"
    assert opened[0]["evidence"]["offset_first"] == 40
    headers = dict(found[0].headers())
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_id"].decode() == alerts[0][1]["id"]


@pytest.mark.kafka
def test_a_bad_record_goes_whole_to_the_dead_letters_and_the_good_ones_are_scored(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic(kafka.bootstrap, "bad-in")
    good = stream("m", 10)
    bad = (b"m", b"\xff{not json", int(START * 1000), [("x", b"1")])
    publish(kafka.bootstrap, "bad-in", [*good[:5], bad, (b"m", None), *good[5:]])
    with worker(tmp_path, config(kafka.bootstrap, "bad")) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 10, "10 events")
        letters = read(kafka.bootstrap, "bad-dead", at_least=2)
        assert running.metric("streamproc_dead_letters_total") == 2
        running.stop()
    by_value = {m.value(): dict(m.headers()) for m in letters}
    headers = by_value[b"\xff{not json"]
    assert headers["x"] == b"1"
    assert headers["__streams.errors.topic"] == b"bad-in"
    assert headers["__streams.errors.offset"] == b"5"
    assert headers["error.type"] == b"unknown_format"
    assert by_value[None]["error.type"] == b"null_value"


@pytest.mark.kafka
def test_a_restart_goes_on_where_the_state_was_saved(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic(kafka.bootstrap, "again-in")
    publish(kafka.bootstrap, "again-in", stream("m", 100))
    text = config(kafka.bootstrap, "again")
    with worker(tmp_path, text, name="first") as running:
        running.until(lambda: running.metric("streamproc_events_total") == 100, "100 events")
        assert running.stop() == 0
    publish(kafka.bootstrap, "again-in", [(b"m", prediction("m", START + 101, duration_s=0.1))])
    with worker(tmp_path, text, name="second") as running:
        running.until(lambda: running.metric("streamproc_events_total") == 1, "the one new event")
        status, text = running.get("/-/ready")
        assert (status, text.splitlines()[0]) == (200, "ready")
        assert running.get("/-/healthy") == (200, "ok\n")
        time.sleep(0.5)
        assert running.metric("streamproc_events_total") == 1
        assert running.metric("streamproc_series_active") == 1
        running.stop()


@pytest.mark.kafka
def test_sigterm_ends_the_worker_though_the_broker_is_gone(tmp_path: Path) -> None:
    with KafkaCluster(nodes=1) as own:
        topic(own.bootstrap, "gone-in")
        publish(own.bootstrap, "gone-in", stream("m", 10))
        with worker(tmp_path, config(own.bootstrap, "gone")) as running:
            running.until(lambda: running.metric("streamproc_events_total") == 10, "10 events")
            own.kill(1)
            running.stop(signal.SIGTERM, timeout_s=20.0)  # raises where it does not end


@pytest.mark.kafka
def test_records_keyed_otherwise_are_seen_whole_with_repartition(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic(kafka.bootstrap, "spread-in")
    by_request = [(f"request-{i}".encode(), value, at) for i, (_, value, at) in enumerate(stream("m", 200))]
    publish(kafka.bootstrap, "spread-in", by_request)
    with worker(tmp_path, config(kafka.bootstrap, "spread")) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 200, "200 events")
        running.until(lambda: running.metric("streamproc_spread_models_total") == 1, "the warning")
        assert "repartition: true" in running.log.read_text()
        running.stop()
    with worker(tmp_path, config(kafka.bootstrap, "whole", repartition=True).replace("whole-in", "spread-in")) as again:
        again.until(lambda: again.metric("streamproc_events_total") == 200, "200 events")
        assert again.metric("streamproc_repartitioned_records_total") == 200
        again.until(lambda: again.metric("streamproc_series_active") == 1, "one series")
        again.stop()


@pytest.mark.kafka
def test_a_reload_takes_a_good_config_and_refuses_a_bad_one(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic(kafka.bootstrap, "reload-in")
    publish(kafka.bootstrap, "reload-in", stream("m", 20))
    with worker(tmp_path, config(kafka.bootstrap, "reload")) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 20, "20 events")
        before = running.config.read_text()
        running.config.write_text(before.replace("upper: 1.0", "uper: 1.0"))
        status, answer = running.get("/-/reload", method="POST")
        assert status == 400
        assert "upper" in answer
        assert "running config unchanged" in answer
        assert running.metric("streamproc_config_last_reload_successful") == 0
        running.config.write_text(before.replace("upper: 1.0", "upper: 0.05"))
        running.process.send_signal(signal.SIGHUP)
        running.until(lambda: running.metric("streamproc_config_last_reload_successful") == 1, "the reload")
        publish(kafka.bootstrap, "reload-in", [(b"m", prediction("m", START + 21, duration_s=0.1))])
        running.until(lambda: running.metric("streamproc_alerts_total") >= 1, "an alert under the new limit")
        running.config.write_text(before.replace("app_id: reload", "app_id: other"))
        status, answer = running.get("/-/reload", method="POST")
        assert status == 400
        assert "restart" in answer
        # Taken back, the file is what runs: nothing is to be reloaded, and nothing wrong any more.
        running.config.write_text(before.replace("upper: 1.0", "upper: 0.05"))
        running.until(lambda: running.metric("streamproc_config_last_reload_successful") == 1, "the file is well again")
        sha = digest(running.config.read_bytes())
        assert re.findall(r'streamproc_build_info{config="(\w+)"', running.get("/metrics")[1]) == [sha]
        running.stop()


@pytest.mark.kafka
def test_a_reload_from_another_machine_takes_a_token(kafka: KafkaCluster, tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # nothing is sent: it tells the address by which others would be reached
        except OSError:
            pytest.skip("this machine has no address but loopback")
        own = probe.getsockname()[0]
    topic(kafka.bootstrap, "token-in")
    text = config(kafka.bootstrap, "token").replace("worker: {", "worker: {reload_token: a-token-of-sixteen, ")
    text = text.replace("web_host: 127.0.0.1", "web_host: 0.0.0.0")
    with worker(tmp_path, text) as running:
        running.until(lambda: running.get("/-/ready")[0] == 200, "ready")

        def ask(**headers: str) -> int:
            url = f"http://{own}:{running.port}/-/reload"
            try:
                with urllib.request.urlopen(urllib.request.Request(url, method="POST", headers=headers)) as answer:
                    return int(answer.status)
            except urllib.error.HTTPError as e:
                return e.code

        assert ask() == 403
        assert ask(Authorization="Bearer another") == 403
        assert ask(Authorization="Bearer a-token-of-sixteen") == 200
        assert running.get("/-/reload", method="POST")[0] == 200
        running.stop()


@pytest.mark.kafka
def test_a_missing_topic_is_named_where_it_may_not_be_created(kafka: KafkaCluster, tmp_path: Path) -> None:
    with worker(tmp_path, config(kafka.bootstrap, "none", create_topics=False)) as running:
        assert running.process.wait(60) == 5
        log = running.log.read_text()
    assert "none-in" in log
    assert "streamproc topics create" in log


def test_an_unreachable_broker_is_exit_4_after_the_timeout(tmp_path: Path) -> None:
    with worker(tmp_path, config("127.0.0.1:9", "nobody"), arguments=["--connect-timeout", "2"]) as running:
        assert running.process.wait(60) == 4
        log = running.log.read_text()
    assert "127.0.0.1:9" in log
    assert "no broker yet" in log


def test_a_bad_config_is_exit_1_before_any_broker_is_asked(tmp_path: Path) -> None:
    bad = config("127.0.0.1:9", "bad").replace("snapshot_interval: 300ms", "snapshot_interval: 300")
    with worker(tmp_path, bad) as running:
        assert running.process.wait(60) == 1
        log = running.log.read_text()
    assert "worker.yaml:" in log
    assert "has no unit" in log
    assert "no broker" not in log


@pytest.mark.kafka
def test_a_worker_speaks_sasl_over_tls_with_every_client(kafka_sasl_ssl: KafkaCluster, tmp_path: Path) -> None:
    settings = kafka_sasl_ssl.client_settings
    text = config(kafka_sasl_ssl.bootstrap, "secure", **settings)
    with worker(tmp_path, text) as running:
        running.until(lambda: running.metric("streamproc_partitions_owned") == 2, "partitions, restored")
        running.until(lambda: running.metric("streamproc_snapshot_seconds_count") >= 1, "a snapshot")
        assert running.stop() == 0
        assert settings["password"] not in running.log.read_text()


@pytest.mark.kafka
def test_two_workers_share_the_partitions_and_one_takes_over_all(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic(kafka.bootstrap, "pair-in")
    text = config(kafka.bootstrap, "pair", session_timeout="6s")
    publish(kafka.bootstrap, "pair-in", [r for m in ("a", "b", "c", "d") for r in stream(m, 20)])
    with worker(tmp_path, text, name="first") as first, worker(tmp_path, text, name="second") as second:
        first.until(lambda: first.metric("streamproc_partitions_owned") == 1, "one partition each")
        second.until(lambda: second.metric("streamproc_partitions_owned") == 1, "one partition each")
        assert first.stop() == 0
        second.until(lambda: second.metric("streamproc_partitions_owned") == 2, "both partitions")
        second.until(lambda: second.metric("streamproc_series_active") == 4, "the state of all models")
        second.stop()


@pytest.mark.kafka
def test_of_transactions_what_was_taken_back_is_not_read_and_their_markers_are_no_lag(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic(kafka.bootstrap, "trx-in", partitions=1)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "transactional.id": "serving"})
    producer.init_transactions(30)
    now = time.time()
    for model, kept in (("m", True), ("n", False)):
        producer.begin_transaction()
        for i in range(60):
            at = now - 60 + i
            producer.produce("trx-in", key=model.encode(), value=prediction(model, at), timestamp=int(at * 1000))
        if kept:
            producer.commit_transaction(30)
        else:
            producer.flush(30)
            producer.abort_transaction(30)
    text = config(kafka.bootstrap, "trx").replace("defaults:\n", "defaults:\n  silence_after: 3s\n")
    with worker(tmp_path, text) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 60, "what was committed")
        running.until(lambda: running.metric("streamproc_consumer_lag") == 0, "no lag")
        # Nothing more comes, and the worker knows it: the model is silent.
        (alert,) = [orjson.loads(m.value()) for m in read(kafka.bootstrap, "trx-alerts", at_least=1)]
        assert (alert["signal"], alert["labels"]["model"]) == ("silence", "m")
        assert running.metric("streamproc_series_active") == 1
        # One that is open is lag, and time stands still for it: what it says is not late once it is committed.
        producer.begin_transaction()
        later = time.time()
        producer.produce("trx-in", key=b"m", value=prediction("m", later), timestamp=int(later * 1000))
        producer.flush(30)
        running.until(lambda: running.metric("streamproc_consumer_lag") > 0, "the open one")
        time.sleep(3)
        assert running.metric("streamproc_events_total") == 60
        producer.commit_transaction(30)
        running.until(lambda: running.metric("streamproc_events_total") == 61, "it is committed")
        running.until(lambda: running.metric("streamproc_consumer_lag") == 0, "no lag again")
        assert running.metric("streamproc_late_events_total") == 0
        assert running.stop() == 0


@pytest.mark.kafka
def test_pages_are_the_alerts_under_the_caps_of_a_day_and_digests_of_the_rest(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic(kafka.bootstrap, "cap-in")
    settings = config(kafka.bootstrap, "cap", pages="cap-pages").replace(
        "defaults:\n", "defaults:\n  resolve_after: 2s\n  budget: {per_model_per_day: 2, per_fleet_per_day: 4}\n"
    )
    # Five slow spells of two models, a quarter of a minute apart: ten alerts.
    spells = [
        (m.encode(), prediction(m, START + i, duration_s=5.0 if i % 15 == 10 else 0.1), int((START + i) * 1000))
        for i in range(75)
        for m in ("m", "n")
    ]
    publish(kafka.bootstrap, "cap-in", spells)
    with worker(tmp_path, settings) as running:
        running.until(lambda: running.metric("streamproc_events_total") >= 150, "150 events")
        alerts = [orjson.loads(m.value()) for m in read(kafka.bootstrap, "cap-alerts", at_least=18)]
        assert sum(a["action"] == "opened" for a in alerts) == 10
        pages = [orjson.loads(m.value()) for m in read(kafka.bootstrap, "cap-pages", at_least=8)]
        assert running.stop() == 0
    (fleet,) = [p for p in pages if p["labels"].get("scope") == "fleet"]
    assert (fleet["signal"], fleet["action"]) == ("digest", "opened")
    own = [p for p in pages if p is not fleet]
    # Whichever model's came first, four of all: alerts, two of a model at most, and what stands for the rest of them.
    assert sum(p["action"] == "opened" for p in own) == 4
    for model in ("m", "n"):
        assert sum((p["labels"]["model"], p["signal"], p["action"]) == (model, "latency", "opened") for p in own) <= 2
    shown = {p["episode_id"] for p in own if p["action"] == "opened"}
    assert {p["episode_id"] for p in own if p["action"] == "resolved"} <= shown
    assert {p["id"] for p in own if p["signal"] != "digest"} <= {a["id"] for a in alerts}
