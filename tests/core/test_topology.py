"""The table of topics, and what is refused of them before any broker is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamproc import rules, topology
from streamproc.errors import ConfigError


def codes(kafka: str, more: str = "") -> list[tuple[str, str]]:
    try:
        rules.parse(f"version: 1\nkafka: {{brokers: 'x:1', {kafka}}}\n{more}")
    except ConfigError as e:
        return [(i.code, i.path) for i in e.issues]
    return []


@pytest.mark.parametrize(
    ("kafka", "path"),
    [
        ("predictions: ['a b']", "kafka.predictions[0]"),
        ("predictions: [ok, 'a/b']", "kafka.predictions[1]"),
        ("predictions: [p], telemetry: ['prédictions']", "kafka.telemetry[0]"),
        ("predictions: ['']", "kafka.predictions[0]"),
        ("predictions: ['..']", "kafka.predictions[0]"),
        (f"predictions: [{'x' * 250}]", "kafka.predictions[0]"),
        ("predictions: [p], alerts: 'my alerts'", "kafka.alerts"),
        ("predictions: [p], alerts: ''", "kafka.alerts"),
        ("predictions: [p], app_id: 'fraud team', snapshots: s, dead_letters: d, silences: '', feedback: ''",
         "kafka.app_id"),
        (f"predictions: [{'x' * 240}], repartition: true", "kafka.app_id"),
        ("predictions: [p], alerts: a.b, incidents: a_b", "kafka.incidents"),
    ],
)  # fmt: skip
def test_a_topic_kafka_cannot_have_is_refused_with_its_place(kafka: str, path: str) -> None:
    assert ("E028", path) in codes(kafka)


def test_a_topic_of_a_bridge_that_kafka_cannot_have_is_refused() -> None:
    bridges = "bridges: {retrain: {r: {requests: 're train', match: {model: a}}}}\n"
    assert codes("predictions: [p]", bridges) == [("E028", "bridges.retrain.r.requests")]


def test_two_uses_of_one_topic_are_refused() -> None:
    assert codes("predictions: [p], alerts: x, pages: x") == [("E029", "kafka.pages")]
    assert codes("predictions: [p], snapshots: x, dead_letters: x") == [("E029", "kafka.snapshots")]
    assert codes("predictions: [p], feedback: p") == [("E023", "kafka")]


def test_own_topics_carry_the_app_id_unless_they_are_named() -> None:
    told = "{brokers: 'x:1', predictions: [p], app_id: eu, alerts: '{app_id}.alerts'}"
    k = rules.parse(f"version: 1\nkafka: {told}").kafka
    assert (k.snapshots, k.dead_letters, k.silences, k.feedback, k.alerts) == (
        "eu-snapshots", "eu-dead-letters", "eu-silences", "eu-feedback", "eu.alerts"
    )  # fmt: skip
    named = rules.parse("version: 1\nkafka: {brokers: 'x:1', predictions: [p], app_id: eu, snapshots: state}").kafka
    assert named.snapshots == "state"


def test_without_an_app_id_the_names_are_those_they_always_were() -> None:
    k = rules.parse("version: 1\nkafka: {brokers: 'x:1', predictions: [p]}").kafka
    assert {t.name for t in topology.topics(k)} == {
        "p", "alerts", "incidents", "streamproc-alert-feed", "streamproc-dead-letters", "streamproc-snapshots",
        "streamproc-silences", "streamproc-feedback",
    }  # fmt: skip


def test_the_page_for_operators_has_every_topic() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    told = "predictions: [p], telemetry: [t], labels: [l], app_id: '{app_id}', repartition: true, pages: g"
    for t in topology.topics(rules.config_module.parse(f"version: 1\nkafka: {{brokers: 'x:1', {told}}}").kafka):
        known = {"predictions": "predictions", "telemetry": "telemetry", "labels": "labels", "pages": "pages"}
        name = known.get(t.role) or ("{app_id}-<topic>-by-model" if t.role == "byModel" else t.name)
        assert name in page
        assert all(f"{k}={v}" in page for k, v in t.settings.items() if k == "max.message.bytes")
