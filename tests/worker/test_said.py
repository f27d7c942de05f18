"""Silences and feedback by the command line, a worker that runs, and a real Kafka between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from streamproc.cli import cli
from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import WorkerProcess, publish, read, topic, worker
from tests.worker.test_worker import config, stream


def said(running: WorkerProcess, *arguments: str) -> str:
    found = CliRunner().invoke(cli, [*arguments[:2], "-c", str(running.config), *arguments[2:]])
    assert found.exit_code == 0, found.output
    return found.output


def alerts(kafka: KafkaCluster, name: str, at_least: int) -> list[dict[str, Any]]:
    found = [orjson.loads(m.value()) for m in read(kafka.bootstrap, name, at_least=at_least)]
    return [a for a in found if a["signal"] == "latency"]


@pytest.mark.kafka
def test_a_silence_by_command_hides_what_matches_until_it_is_ended(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic(kafka.bootstrap, "quiet-in")
    text = config(kafka.bootstrap, "quiet", silences="quiet-silences", feedback="quiet-feedback")
    with worker(tmp_path, text) as running:
        running.until(lambda: running.get("/-/ready")[0] == 200, "ready")
        when = ("--from", "2026-09-01T00:00Z", "--to", "2026-12-31T00:00Z")
        shown = said(running, "silence", "add", "--model", "m*", *when, "--reason", "migration", "--author", "ada")
        number = shown.split()[0]
        assert number in said(running, "silence", "list")
        running.until(lambda: running.metric("streamproc_silences") == 1, "the silence to be known")
        publish(kafka.bootstrap, "quiet-in", stream("m", 50, slow_from=40))
        publish(kafka.bootstrap, "quiet-in", stream("other", 50, slow_from=40))
        running.until(lambda: running.metric("streamproc_events_total") == 100, "100 events")
        found = alerts(kafka, "quiet-alerts", 2)
        by_model = {a["labels"]["model"]: a.get("suppressed_by", "") for a in found if a["action"] == "opened"}
        assert by_model == {"m": "migration", "other": ""}
        said(running, "silence", "end", number)
        running.until(lambda: running.metric("streamproc_silences") == 0, "the silence to be over")
        assert number not in said(running, "silence", "list")
        later = [(k, v.replace(b'"id":"', b'"id":"l'), t + 1000) for k, v, t in stream("m", 60, slow_from=40)[50:]]
        publish(kafka.bootstrap, "quiet-in", later)
        running.until(lambda: running.metric("streamproc_events_total") == 110, "110 events")
        opened = [a for a in alerts(kafka, "quiet-alerts", 3) if a["action"] == "opened"]
        assert [a.get("suppressed_by", "") for a in opened if a["labels"]["model"] == "m"] == ["migration", ""]
        assert running.stop() == 0


@pytest.mark.kafka
def test_a_verdict_by_command_is_taken_and_outlives_a_restart(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic(kafka.bootstrap, "word-in")
    text = config(kafka.bootstrap, "word", silences="word-silences", feedback="word-feedback")
    with worker(tmp_path, text) as running:
        publish(kafka.bootstrap, "word-in", stream("m", 50, slow_from=40))
        running.until(lambda: running.metric("streamproc_events_total") == 50, "50 events")
        (alert,) = [a for a in alerts(kafka, "word-alerts", 1) if a["action"] == "opened"]
        found = CliRunner().invoke(
            cli,
            ["feedback", "-c", str(running.config), alert["fingerprint"], "NOT_ANOMALY", "--comment", "load test"],
        )
        assert found.exit_code == 0, found.output

        def answers() -> list[dict[str, Any]]:
            return [a for a in alerts(kafka, "word-alerts", 2) if "feedback" in a["annotations"]]

        running.until(lambda: bool(answers()), "the verdict to be published")
        (noted,) = answers()
        assert (noted["status"], noted["annotations"]["feedback"]) == ("resolved", "NOT_ANOMALY")
        assert noted["annotations"]["feedback_comment"] == "load test"
        assert running.stop() == 0
    with worker(tmp_path, text, name="second") as running:
        # As slow again: it is none any more.
        later = [(k, v.replace(b'"id":"', b'"id":"l'), t + 60_000) for k, v, t in stream("m", 60, slow_from=40)[50:]]
        publish(kafka.bootstrap, "word-in", later)
        running.until(lambda: running.metric("streamproc_events_total") == 10, "10 events")
        assert running.stop() == 0
    assert len([a for a in alerts(kafka, "word-alerts", 2) if a["action"] == "opened"]) == 1


@pytest.mark.kafka
def test_a_verdict_said_while_no_worker_runs_is_taken_by_the_next(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic(kafka.bootstrap, "away-in")
    text = config(kafka.bootstrap, "away", silences="away-silences", feedback="away-feedback")
    with worker(tmp_path, text) as running:
        publish(kafka.bootstrap, "away-in", stream("m", 50, slow_from=40))
        running.until(lambda: running.metric("streamproc_events_total") == 50, "50 events")
        (alert,) = [a for a in alerts(kafka, "away-alerts", 1) if a["action"] == "opened"]
        path = running.config
        assert running.stop() == 0
    said_of = ["feedback", "-c", str(path), alert["fingerprint"], "NOT_ANOMALY"]
    assert CliRunner().invoke(cli, said_of).exit_code == 0
    with worker(tmp_path, text, name="second") as running:
        running.until(lambda: len(alerts(kafka, "away-alerts", 2)) >= 2, "the verdict to be published")
        assert running.stop() == 0
    found = alerts(kafka, "away-alerts", 2)
    assert [(a["action"], a["annotations"].get("feedback")) for a in found[1:]] == [("resolved", "NOT_ANOMALY")]


def test_a_silence_without_an_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text('version: 1\nkafka: {brokers: "127.0.0.1:1", predictions: [p]}\n')
    found = CliRunner().invoke(cli, ["silence", "add", "-c", str(path), "--model", "m"])
    assert found.exit_code != 0
    assert "without an end is forgotten" in f"{found.output}{found.exception}"
