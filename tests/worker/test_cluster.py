"""What a cluster does to its topics while we read them: a real worker, a real Kafka, and nothing lost in silence."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner
from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from streamproc.cli import cli
from streamproc.worker.child import free_port
from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import WorkerProcess, delete, prediction, publish, read, topic, worker
from tests.worker.test_incidents import config as of_incidents
from tests.worker.test_incidents import rows
from tests.worker.test_worker import START, config, stream

#: These events are old: by the wall clock their models would be forgotten.
KEPT = "defaults:\n  discover: {idle_ttl: 3650d}\n"


@pytest.mark.kafka
@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_topic_compressed_by_any_of_kafkas_codecs_is_read_whole(
    kafka: KafkaCluster, tmp_path: Path, codec: str
) -> None:
    app = f"codec-{codec}"
    topic(kafka.bootstrap, f"{app}-in", partitions=1)
    producer = Producer({"bootstrap.servers": kafka.bootstrap, "compression.type": codec, "linger.ms": 50})
    for key, value, at in stream("m", 500, slow_from=490):
        producer.produce(f"{app}-in", key=key, value=value, timestamp=at)
    assert producer.flush(30) == 0
    with worker(tmp_path, config(kafka.bootstrap, app)) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 500, "500 events")
        found = [orjson.loads(m.value()) for m in read(kafka.bootstrap, f"{app}-alerts", at_least=1)]
        assert running.metric("streamproc_dead_letters_total") == 0
        assert running.stop() == 0
    shown = [(a["action"], a["evidence"]["offset_first"]) for a in found if a["signal"] == "latency"]
    assert shown == [("opened", 490)]


def more(model: str, first: int, n: int, *, slow_from: int | None = None) -> list[tuple[bytes, bytes, int]]:
    """Return records of a model that come after `first` seconds."""
    return [
        (
            model.encode(),
            prediction(model, START + i, duration_s=5.0 if slow_from is not None and i >= slow_from else 0.1),
            int((START + i) * 1000),
        )
        for i in range(first, first + n)
    ]


def opened(kafka: KafkaCluster, name: str, at_least: int, partitions: int = 2) -> list[dict[str, Any]]:
    found = [orjson.loads(m.value()) for m in read(kafka.bootstrap, name, partitions, at_least=at_least)]
    return [a for a in found if (a["signal"], a["action"]) == ("latency", "opened")]


@pytest.mark.kafka
def test_a_source_made_anew_under_a_worker_is_read_from_its_beginning_and_said(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic(kafka.bootstrap, "anew-in", partitions=1)
    publish(kafka.bootstrap, "anew-in", stream("m", 200, slow_from=199))
    text = config(kafka.bootstrap, "anew")
    with worker(tmp_path, text) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 200, "200 events")
        delete(kafka.bootstrap, "anew-in")
        topic(kafka.bootstrap, "anew-in", partitions=1)
        # At offsets that were had: 0 to 99, of which the sixtieth alone is slow.
        anew = [*more("m", 3000, 60), *more("m", 3060, 1, slow_from=3060), *more("m", 3061, 39)]
        publish(kafka.bootstrap, "anew-in", anew)
        running.until(lambda: running.metric("streamproc_events_total") == 300, "the new events")
        assert running.metric("streamproc_logs_renewed_total") == 1
        assert "deleted and created anew" in running.log.read_text()
        found = opened(kafka, "anew-alerts", 2)
        assert [a["evidence"]["offset_first"] for a in found] == [199, 60]
        assert len({a["id"] for a in found}) == 2
        assert running.stop() == 0
    publish(kafka.bootstrap, "anew-in", more("m", 3100, 10))
    with worker(tmp_path, text, name="second") as running:
        running.until(lambda: running.metric("streamproc_events_total") == 10, "what came since")
        assert running.metric("streamproc_logs_renewed_total") == 0
        assert running.stop() == 0


@pytest.mark.kafka
@pytest.mark.parametrize("repartition", [False, True])
def test_a_source_made_anew_while_no_worker_ran_is_read_from_its_beginning_though_it_is_longer(
    kafka: KafkaCluster, tmp_path: Path, repartition: bool
) -> None:
    app = "since" if not repartition else "since-sent-on"
    topic(kafka.bootstrap, f"{app}-in", partitions=1)
    publish(kafka.bootstrap, f"{app}-in", stream("m", 50))
    text = config(kafka.bootstrap, app, repartition=repartition)
    with worker(tmp_path, text) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 50, "50 events")
        running.until(lambda: running.metric("streamproc_snapshot_bytes_total") > 0, "a snapshot")
        assert running.stop() == 0
    delete(kafka.bootstrap, f"{app}-in")
    topic(kafka.bootstrap, f"{app}-in", partitions=1)
    publish(kafka.bootstrap, f"{app}-in", more("m", 100, 80))
    with worker(tmp_path, text, name="second") as running:
        running.until(lambda: running.metric("streamproc_events_total") == 80, "all the new events")
        assert running.metric("streamproc_fenced_events_total") == 0
        running.until(lambda: running.metric("streamproc_series_active") == 1, "one series")
        # Of a topic that is only sent on nothing is kept to compare it with; nothing of it is lost either.
        assert running.metric("streamproc_logs_renewed_total") == (0 if repartition else 1)
        assert running.stop() == 0


@pytest.mark.kafka
def test_what_retention_took_before_it_was_read_is_counted_and_what_is_left_is_read(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic(kafka.bootstrap, "late-in", partitions=1)
    text = config(kafka.bootstrap, "late", auto_offset_reset="latest")
    with worker(tmp_path, text) as running:
        running.until(lambda: running.metric("streamproc_partitions_owned") == 1, "the partition")
        running.until(lambda: "partitions restored" in running.log.read_text(), "its beginning")
        publish(kafka.bootstrap, "late-in", stream("m", 20))
        running.until(lambda: running.metric("streamproc_events_total") == 20, "20 events")
        assert running.stop() == 0
    publish(kafka.bootstrap, "late-in", more("m", 20, 100))
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    for future in admin.delete_records([TopicPartition("late-in", 0, 50)]).values():
        future.result(30)
    with worker(tmp_path, text, name="second") as running:
        running.until(lambda: running.metric("streamproc_events_total") == 70, "what is left")
        assert running.metric("streamproc_records_gone_total") == 30
        assert "records were deleted before they were read" in running.log.read_text()
        assert running.stop() == 0


@pytest.mark.kafka
def test_with_latest_what_comes_while_no_worker_runs_is_read_though_none_ever_read_a_record(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic(kafka.bootstrap, "begun-in", partitions=2)
    text = config(kafka.bootstrap, "begun", auto_offset_reset="latest")
    publish(kafka.bootstrap, "begun-in", stream("before", 10))
    with worker(tmp_path, text) as running:
        running.until(lambda: running.metric("streamproc_partitions_owned") == 2, "the partitions")
        running.until(lambda: running.metric("streamproc_snapshot_bytes_total") >= 0, "a snapshot")
        assert running.stop() == 0
    publish(kafka.bootstrap, "begun-in", [r for m in "abcd" for r in stream(m, 10)])
    with worker(tmp_path, text, name="second") as running:
        running.until(lambda: running.metric("streamproc_events_total") == 40, "all that came since")
        assert running.stop() == 0


@pytest.mark.kafka
def test_partitions_that_are_added_are_read_from_their_beginning_with_latest_too(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic(kafka.bootstrap, "grown-in", partitions=1)
    text = config(kafka.bootstrap, "grown", auto_offset_reset="latest")
    with worker(tmp_path, text) as running:
        running.until(lambda: running.metric("streamproc_partitions_owned") == 1, "the partition")
        running.until(lambda: running.metric("streamproc_snapshot_seconds_count") >= 1, "a snapshot")
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        for future in admin.create_partitions([NewPartitions("grown-in", 4)]).values():
            future.result(30)
        publish(kafka.bootstrap, "grown-in", [r for m in "abcdefgh" for r in stream(m, 25)])
        running.until(lambda: running.metric("streamproc_partitions_owned") == 4, "all partitions", timeout_s=30)
        running.until(lambda: running.metric("streamproc_events_total") == 200, "all events")
        assert running.stop() == 0


@pytest.mark.kafka
def test_a_second_deployment_is_refused_the_state_of_the_first_by_name(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic(kafka.bootstrap, "own-in")
    text = config(kafka.bootstrap, "own")
    with worker(tmp_path, text) as running:
        publish(kafka.bootstrap, "own-in", stream("m", 20))
        running.until(lambda: running.metric("streamproc_events_total") == 20, "20 events")
        running.until(lambda: running.metric("streamproc_snapshot_bytes_total") > 0, "a snapshot")
        with worker(tmp_path, text.replace("app_id: own", "app_id: other"), name="other") as other:
            assert other.process.wait(60) == 6
            said = other.log.read_text()
        assert "of another deployment, app_id own; ours is other" in said
        assert len(said.splitlines()) <= 20
        assert "kafka.snapshots" in said
        # With the names left to their defaults each has its own, and reads all.
        default = text.replace("app_id: own", "app_id: other").replace("  snapshots: own-snapshots\n", "")
        with worker(tmp_path, default, name="third") as third:
            third.until(lambda: third.metric("streamproc_events_total") == 20, "all 20 events")
            assert third.stop() == 0
        assert running.stop() == 0


@pytest.mark.kafka
def test_state_is_written_again_where_the_snapshot_topic_is_deleted_under_a_worker(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic(kafka.bootstrap, "kept-in", partitions=2)
    text = config(kafka.bootstrap, "kept").replace("defaults:\n", KEPT)
    with worker(tmp_path, text) as running:
        publish(kafka.bootstrap, "kept-in", [r for m in "abcd" for r in stream(m, 20)])
        running.until(lambda: running.metric("streamproc_events_total") == 80, "80 events")
        running.until(lambda: running.metric("streamproc_snapshot_bytes_total") > 0, "a snapshot")
        delete(kafka.bootstrap, "kept-snapshots")
        running.until(lambda: "all state was written again" in running.log.read_text(), "the state to be saved")
        publish(kafka.bootstrap, "kept-in", more("a", 20, 5))
        running.until(lambda: running.metric("streamproc_events_total") == 85, "85 events")
        assert running.stop() == 0
    with worker(tmp_path, text, name="second") as running:
        running.until(lambda: running.metric("streamproc_series_active") == 4, "all models")
        publish(kafka.bootstrap, "kept-in", more("b", 20, 5))
        running.until(lambda: running.metric("streamproc_events_total") == 5, "what came since, and no more")
        assert running.stop() == 0


@pytest.mark.kafka
def test_operators_words_are_taken_where_their_topics_are_made_anew(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic(kafka.bootstrap, "words-in", partitions=1)
    text = config(kafka.bootstrap, "words", silences="words-silences", feedback="words-feedback")
    text = text.replace("defaults:\n", KEPT)

    def say(running: WorkerProcess, fingerprint: str, comment: str) -> None:
        said = ["feedback", "-c", str(running.config), fingerprint, "ANOMALY", "--comment", comment]
        assert CliRunner().invoke(cli, said).exit_code == 0

    def hide(running: WorkerProcess, model: str) -> None:
        said = ["silence", "add", "-c", str(running.config), "--model", model, "--for", "1h"]
        assert CliRunner().invoke(cli, said).exit_code == 0

    def comments() -> set[str]:
        found = [orjson.loads(m.value()) for m in read(kafka.bootstrap, "words-alerts", at_least=1)]
        return {a["annotations"]["feedback_comment"] for a in found if "feedback_comment" in a["annotations"]}

    with worker(tmp_path, text) as running:
        publish(kafka.bootstrap, "words-in", stream("m", 50, slow_from=49))
        running.until(lambda: running.metric("streamproc_events_total") == 50, "50 events")
        (alert,) = opened(kafka, "words-alerts", 1)
        for comment in ("first", "second"):
            say(running, alert["fingerprint"], comment)
        hide(running, "x*")
        running.until(lambda: comments() == {"first", "second"}, "the verdicts")
        running.until(lambda: running.metric("streamproc_silences") == 1, "the silence")
        for name in ("words-silences", "words-feedback"):
            delete(kafka.bootstrap, name)
        running.until(lambda: running.metric("streamproc_silences") == 0, "that the silence is gone to be known")
        log = running.log
        running.until(lambda: log.read_text().count("deleted and created anew") >= 2, "that all are to be known")
        hide(running, "y*")
        say(running, alert["fingerprint"], "third")  # at an offset that was had
        running.until(lambda: "third" in comments(), "the verdict on the new topic")
        running.until(lambda: running.metric("streamproc_silences") == 1, "the silence on the new topic")
        assert running.stop() == 0


@pytest.mark.kafka
def test_incidents_go_on_where_the_feed_they_are_made_of_is_deleted_under_a_worker(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic(kafka.bootstrap, "fed-in")

    def told() -> set[str]:
        found = [orjson.loads(m.value()) for m in read(kafka.bootstrap, "fed-incidents")]
        return {i["incident_id"] for i in found if i["action"] == "resolved"}

    with worker(tmp_path, of_incidents(kafka.bootstrap, "fed", saved_every="300ms")) as running:
        publish(kafka.bootstrap, "fed-in", [*rows(0, 20, slow=False), *rows(20, 25, slow=True)])
        publish(kafka.bootstrap, "fed-in", rows(25, 60, slow=False))
        running.until(lambda: len(told()) == 1, "the first incident")
        delete(kafka.bootstrap, "fed-alert-feed")
        log = running.log
        running.until(lambda: "the topic was deleted and created anew" in log.read_text(), "the feed to be there again")
        publish(kafka.bootstrap, "fed-in", [*rows(1000, 1005, slow=True), *rows(1005, 1060, slow=False)])
        running.until(lambda: len(told()) == 2, "the second incident")
        assert running.stop() == 0


def set_offset(kafka: KafkaCluster, group: str, name: str, offset: int) -> None:
    """Set a group's offset of partition 0 as kafka-consumer-groups.sh does."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    wanted = ConsumerGroupTopicPartitions(group, [TopicPartition(name, 0, offset)])
    deadline = time.monotonic() + 30
    while True:
        try:
            for future in admin.alter_consumer_group_offsets([wanted]).values():
                future.result(30)
            return
        except KafkaException:  # the worker that has just ended is a member until its session is
            assert time.monotonic() < deadline
            time.sleep(0.3)


def offsets(running: WorkerProcess, *arguments: str) -> str:
    found = CliRunner().invoke(cli, ["offsets", arguments[0], "-c", str(running.config), *arguments[1:]])
    assert found.exception is None, f"{found.output}{found.exception}"
    return found.output


@pytest.mark.kafka
def test_an_offset_set_forward_by_kafkas_tools_is_taken_and_what_it_skips_is_counted(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic(kafka.bootstrap, "ahead-in", partitions=1)
    text = config(kafka.bootstrap, "ahead").replace("defaults:\n", KEPT)
    publish(kafka.bootstrap, "ahead-in", stream("m", 20))
    with worker(tmp_path, text) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 20, "20 events")
        running.until(lambda: "saved 20  group 20  log" in offsets(running, "show"), "them to be saved")
        assert running.stop() == 0
    publish(kafka.bootstrap, "ahead-in", more("m", 20, 30))
    set_offset(kafka, "ahead", "ahead-in", 40)
    assert "group 40 (set by another program)" in offsets(running, "show")
    with worker(tmp_path, text, name="second") as running:
        running.until(lambda: running.metric("streamproc_events_total") == 10, "what is after it")
        assert running.metric("streamproc_records_gone_total") == 20
        running.until(lambda: running.metric("streamproc_series_active") == 1, "the model")
        assert "set forward by another program" in running.log.read_text()
        assert running.stop() == 0


@pytest.mark.kafka
@pytest.mark.parametrize("to", ["group", "saved", "5"])
def test_an_offset_set_back_by_kafkas_tools_is_refused_with_the_command_that_does_it(
    kafka: KafkaCluster, tmp_path: Path, to: str
) -> None:
    app = f"back-{to}"
    topic(kafka.bootstrap, f"{app}-in", partitions=1)
    text = config(kafka.bootstrap, app).replace("defaults:\n", KEPT)
    publish(kafka.bootstrap, f"{app}-in", stream("m", 20, slow_from=15))
    with worker(tmp_path, text) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 20, "20 events")
        running.until(lambda: "saved 20  group 20  log" in offsets(running, "show"), "them to be saved")
        refused = CliRunner().invoke(cli, ["offsets", "reset", "-c", str(running.config), "--to", "earliest"])
        assert "stop all of them first" in str(refused.exception)
        assert running.stop() == 0
    set_offset(kafka, app, f"{app}-in", 10)
    with worker(tmp_path, text, name="second") as running:
        assert running.process.wait(60) == 6
        log = running.log.read_text()
        assert "set the group's offset back to 10, and the state covers all before 20" in log
        assert "streamproc offsets reset --to saved" in log
    begins = {"group": 10, "saved": 20, "5": 5}[to]
    before = offsets(running, "show")
    shown = offsets(running, "reset", "--to", to, "--dry-run")
    assert "nothing was changed" in shown
    assert offsets(running, "show") == before
    assert offsets(running, "reset", "--to", to) == shown.replace("nothing was changed\n", "")
    with worker(tmp_path, text, name="third") as running:
        publish(kafka.bootstrap, f"{app}-in", more("m", 20, 3))
        running.until(lambda: running.metric("streamproc_events_total") == 23 - begins, "all from there on")
        assert running.metric("streamproc_fenced_events_total") == 0
        if to != "saved":  # time has passed for models that are kept
            assert running.metric("streamproc_late_events_total") == 0
        # The alert at offset 15 has the id it had, so that whoever reads it knows the copy.
        found = opened(kafka, f"{app}-alerts", 1)
        assert {a["evidence"]["offset_first"] for a in found} == {15}
        assert len({a["id"] for a in found}) == 1
        assert running.stop() == 0


@pytest.mark.kafka
def test_an_offset_set_before_the_first_start_is_where_a_worker_begins(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic(kafka.bootstrap, "first-in", partitions=1)
    publish(kafka.bootstrap, "first-in", stream("m", 20))
    set_offset(kafka, "first", "first-in", 12)
    with worker(tmp_path, config(kafka.bootstrap, "first")) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 8, "what is after it")
        assert running.stop() == 0


@pytest.mark.kafka
@pytest.mark.parametrize("settings", [{"max.message.bytes": "3000"}, {"cleanup.policy": "compact"}], ids=str)
def test_what_the_internal_topic_never_takes_goes_to_the_dead_letters_alone(
    kafka: KafkaCluster, tmp_path: Path, settings: dict[str, str]
) -> None:
    compacted = "cleanup.policy" in settings
    app = "keyless" if compacted else "narrow"
    topic(kafka.bootstrap, f"{app}-in", partitions=1)
    topic(kafka.bootstrap, f"{app}-{app}-in-by-model", **settings)
    records: list[tuple[Any, ...]] = [*stream("m", 30), *stream("n", 30)]
    at = int(START * 1000)
    for place in (7, 40):
        wide = prediction("m", START, duration_s=0.1, comment="x" * 5000)
        # Without a key, and unreadable, so that no model gives it one.
        records.insert(place, (None, b"no json", at) if compacted else (b"m", wide, at))
    publish(kafka.bootstrap, f"{app}-in", records)
    with worker(tmp_path, config(kafka.bootstrap, app, repartition=True)) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 60, "all the others")
        running.until(lambda: running.metric("streamproc_dead_letters_total") == 2, "the two")
        running.until(lambda: running.metric("streamproc_repartitioned_records_total") == 60, "them to be counted")
        assert running.metric("streamproc_fenced_events_total") == 0
        letters = [dict(m.headers()) for m in read(kafka.bootstrap, f"{app}-dead", at_least=2)]
        assert {h["error.type"] for h in letters} == {b"refused"}
        assert {h["__streams.errors.offset"] for h in letters} == {b"7", b"40"}
        assert {h["__streams.errors.topic"] for h in letters} == {f"{app}-in".encode()}
        assert running.stop() == 0


#: A worker whose own code is broken: it raises with what a record holds in its text and in its variables.
BROKEN = """
import sys
from streamproc import cli, pipeline

def broken(self, batch):
    quoted = batch.values[0]
    raise ValueError(f"cannot take {quoted!r}") from KeyError(quoted)

pipeline.Pipeline.process = broken
cli.main(sys.argv[1:])
"""


@pytest.mark.kafka
@pytest.mark.parametrize("form", ["console", "json"])
def test_a_fatal_error_is_told_in_twenty_lines_without_a_records_values_and_ends_the_worker(
    kafka: KafkaCluster, tmp_path: Path, form: str
) -> None:
    app = f"broken-{form}"
    topic(kafka.bootstrap, f"{app}-in", partitions=1)
    publish(kafka.bootstrap, f"{app}-in", [(b"m", prediction("m", START, note="s3cr3t" * 9)) for _ in range(30)])
    path = tmp_path / "worker.yaml"
    path.write_text(config(kafka.bootstrap, app).replace("PORT", str(free_port())))
    ended = subprocess.run(
        [sys.executable, "-c", BROKEN, "worker", "--config", str(path), "--log-format", form],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = ended.stdout + ended.stderr
    assert ended.returncode == 70, said
    assert "s3cr3t" not in said
    assert "ValueError" in said
    fatal = said[said.index("cannot go on") :].splitlines()
    assert len(fatal) <= 20, said
    assert "end of the grace period" not in said


@pytest.mark.kafka
@pytest.mark.parametrize("workers", [1, 2])
def test_models_whose_key_moves_with_new_partitions_keep_what_they_learned_and_are_not_called_silent(
    kafka: KafkaCluster, tmp_path: Path, workers: int
) -> None:
    app = f"moving-{workers}"
    models = [f"model-{i}" for i in range(12)]
    topic(kafka.bootstrap, f"{app}-in", partitions=1)
    text = config(kafka.bootstrap, app, session_timeout="6s")
    text = text.replace("defaults:\n", "defaults:\n  silence_after: 15s\n")

    def traffic(seconds: float, until: Any = lambda: False) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not until():
            at = time.time()
            records = [(m.encode(), prediction(m, at, duration_s=0.1), int(at * 1000)) for m in models]
            publish(kafka.bootstrap, f"{app}-in", records)
            time.sleep(0.5)

    def total(running: list[WorkerProcess], name: str) -> float:
        return sum(max(0.0, each.metric(name)) for each in running)

    with contextlib.ExitStack() as stack:
        running = [stack.enter_context(worker(tmp_path, text, name=f"worker-{i}")) for i in range(workers)]
        traffic(60, lambda: total(running, "streamproc_series_active") == 12)
        running[0].until(lambda: total(running, "streamproc_snapshot_seconds_count") > workers, "snapshots")
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
        for future in admin.create_partitions([NewPartitions(f"{app}-in", 4)]).values():
            future.result(30)
        traffic(40, lambda: total(running, "streamproc_partitions_owned") == 4)
        traffic(35)
        movers = {m for m in models if zlib.crc32(m.encode()) % 4}
        assert 0 < len(movers) < 12
        assert total(running, "streamproc_moved_models_total") == len(movers)
        for each in running:
            assert 'moved_models_total{outcome="anew"}' not in each.get("/metrics")[1]
        assert total(running, "streamproc_partitions_owned") == 4
        found = [orjson.loads(m.value()) for m in read(kafka.bootstrap, f"{app}-alerts")]
        assert [a["labels"]["model"] for a in found if a["signal"] == "silence"] == []
        for each in running:
            assert each.stop() == 0
    with worker(tmp_path, text, name="last") as last:
        last.until(lambda: last.metric("streamproc_partitions_owned") == 4, "all partitions")
        traffic(3)
        # Each model is in one place: but for one that is let go of a minute after it left.
        last.until(lambda: last.metric("streamproc_series_active") >= 12, "all models")
        found = [orjson.loads(m.value()) for m in read(kafka.bootstrap, f"{app}-alerts")]
        assert [a["labels"]["model"] for a in found if a["signal"] == "silence"] == []
        assert last.stop() == 0


@pytest.mark.kafka
def test_a_snapshot_topic_too_narrow_for_a_state_is_said_and_is_no_reason_to_end(
    kafka: KafkaCluster, tmp_path: Path
) -> None:
    topic(kafka.bootstrap, "wide-in", partitions=1)
    topic(kafka.bootstrap, "wide-snapshots", **{"cleanup.policy": "compact", "max.message.bytes": "40000"})
    text = config(kafka.bootstrap, "wide").replace("defaults:\n", KEPT)
    rng = random.Random(5)

    def wide(first: int, n: int) -> list[tuple[bytes, bytes, int]]:
        return [
            (b"m", prediction("m", START + i, features={f"f{k}": rng.random() for k in range(150)}),
             int((START + i) * 1000))
            for i in range(first, first + n)
        ]  # fmt: skip

    publish(kafka.bootstrap, "wide-in", wide(0, 400))
    with worker(tmp_path, text) as running:
        running.until(lambda: running.metric("streamproc_events_total") == 400, "400 events")
        running.until(lambda: "saved 400  group 400" in offsets(running, "show"), "them to be saved")
        assert running.stop() == 0
        log = running.log.read_text()
        assert "max.message.bytes is 40000, wanted 16000000" in log
        assert "states are written in parts" in log
    publish(kafka.bootstrap, "wide-in", wide(400, 10))
    with worker(tmp_path, text, name="second") as running:
        running.until(lambda: running.metric("streamproc_events_total") == 10, "what came since, and no more")
        running.until(lambda: running.metric("streamproc_series_active") == 1, "the model")
        assert running.metric("streamproc_unusable_states_total") == 0
        assert running.stop() == 0


@pytest.mark.kafka
def test_a_snapshot_topic_too_narrow_for_any_state_is_refused_at_the_start(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic(kafka.bootstrap, "slit-in", partitions=1)
    topic(kafka.bootstrap, "slit-snapshots", **{"cleanup.policy": "compact", "max.message.bytes": "5000"})
    with worker(tmp_path, config(kafka.bootstrap, "slit")) as running:
        assert running.process.wait(60) == 5
        assert "--add-config max.message.bytes=16000000" in running.log.read_text()
