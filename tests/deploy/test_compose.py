"""The deployment's files, as far as they can be proved without a Docker engine."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamproc.bridges import metrics as bridge_metrics
from streamproc.events import REASONS
from streamproc.worker import child
from streamproc.worker import metrics as worker_metrics
from streamproc.worker.connection import Connection
from streamproc.worker.topics import TopicSpec, describe, ensure
from tests.bridges.alertmanager import Alertmanager, AlertmanagerUnavailable, debian
from tests.bridges.harness import Bridge, eventually, incident, tell
from tests.brokers.kafka import LOG4J2, QUICK_START, KafkaCluster, jars

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text("utf-8"))
DEPLOY = REPOSITORY / "deploy"


def metrics() -> dict[str, tuple[str, ...]]:
    """Return the names of all series of workers and bridges, each with its labels, as their registries have them."""
    found: dict[str, tuple[str, ...]] = {}
    for registry in (worker_metrics.Metrics().registry, bridge_metrics.Metrics().registry):
        for collector, names in registry._collector_to_names.items():
            for name in names:
                found[name] = tuple(collector._labelnames)  # type: ignore[attr-defined]
    return found


def as_properties(environment: dict[str, str]) -> dict[str, str]:
    """Translate KAFKA_* as the apache/kafka image does: ___ is a dash, __ an underscore, _ a dot."""
    return {
        name.removeprefix("KAFKA_")
        .lower()
        .replace("___", "-")
        .replace("__", "\0")
        .replace("_", ".")
        .replace("\0", "_"): value
        for name, value in environment.items()
        if name.startswith("KAFKA_")
    }


def on_loopback(properties: dict[str, str], data: Path) -> tuple[dict[str, str], dict[str, int]]:
    """Put every address on 127.0.0.1 and a free port; return the ports by the ones written."""
    ports: dict[str, int] = {}

    def moved(match: re.Match[str]) -> str:
        before, port = match.groups()
        ports.setdefault(port, child.free_port())
        return f"{before}127.0.0.1:{ports[port]}"

    addressed = {
        key: re.sub(r"(://|@)(?:kafka|localhost|):(\d+)", moved, value) for key, value in properties.items()
    }
    return addressed | {"log.dirs": str(data)}, ports


@pytest.mark.kafka
def test_the_composed_kafka_starts_and_takes_topics(tmp_path: Path) -> None:
    environment = COMPOSE["services"]["kafka"]["environment"]
    properties, ports = on_loopback(as_properties(environment), tmp_path / "data")
    written = tmp_path / "server.properties"
    written.write_text("".join(f"{key}={value}\n" for key, value in properties.items()), "utf-8")
    java = ["java", "-Xmx384m", *QUICK_START, f"-Dlog4j2.configurationFile={LOG4J2}", "-cp", f"{jars()}/*"]
    cluster_id = "c3RyZWFtcHJvYy10ZXN0cw"
    subprocess.run(
        [*java, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(written)],
        check=True,
        capture_output=True,
        timeout=60,
    )
    log = tmp_path / "kafka.log"
    process = child.spawn([*java, "kafka.Kafka", written], log=log)
    try:
        deadline = time.monotonic() + 60
        while "Kafka Server started" not in log.read_text("utf-8"):
            assert process.poll() is None, child.tail(log)
            assert time.monotonic() < deadline, child.tail(log)
            time.sleep(0.1)
        for listener in ("9092", "19092"):
            conn = Connection(brokers=f"127.0.0.1:{ports[listener]}")
            name = f"through-{listener}"
            spec = TopicSpec(name=name, partitions=4, config={"cleanup.policy": "compact"})
            assert ensure(conn, [spec], create=True).created == (name,)
            assert describe(conn, [name]) == {name: 4}
    finally:
        process.kill()
        process.wait()


def test_the_image_and_the_tests_run_one_version_of_kafka() -> None:
    pom = (REPOSITORY / "tests" / "brokers" / "pom.xml").read_text("utf-8")
    version = COMPOSE["services"]["kafka"]["image"].partition(":")[2]
    assert f"<kafka.version>{version}</kafka.version>" in pom


def test_every_mounted_file_exists_and_every_volume_is_declared() -> None:
    for name, service in COMPOSE["services"].items():
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (REPOSITORY / source).exists(), f"{name} mounts {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name} mounts {source}"


def test_every_port_is_open_to_this_machine_only() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_the_worker_waits_for_its_topics_and_they_for_kafka() -> None:
    services = COMPOSE["services"]
    assert services["worker"]["depends_on"]["topics"]["condition"] == "service_completed_successfully"
    assert services["topics"]["depends_on"]["kafka"]["condition"] == "service_healthy"
    assert services["kafka"]["healthcheck"]["test"]
    advertised = services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert f"//{services['worker']['environment']['KAFKA_BROKERS']}" in advertised


def test_the_configuration_takes_its_brokers_from_the_environment() -> None:
    config = yaml.safe_load((DEPLOY / "worker.yaml").read_text("utf-8"))
    assert config["version"] == 1
    assert config["kafka"]["brokers"] == "${KAFKA_BROKERS}"


def test_rules_and_dashboard_ask_only_for_metrics_there_are() -> None:
    rules = yaml.safe_load((DEPLOY / "alerts.rules.yml").read_text("utf-8"))
    asked = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "streamproc.json").read_text("utf-8"))
    asked += [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    known = metrics()
    assert "streamproc_events_total" in known
    for expression in asked:
        # A name, and the labels it is selected by; those it is grouped by follow `by`.
        for name, selected in re.findall(r"(streamproc_\w+)(?:\{([^}]*)\})?", expression):
            assert name in known, f"{name}: {expression}"
            assert set(re.findall(r"(\w+)\s*[!=]", selected)) <= {*known[name], "instance", "job"}, expression


def test_what_the_image_compiles_is_all_that_a_config_may_name() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text("utf-8")
    (code,) = re.findall(r"python -c '([^']+)'", dockerfile)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr


@pytest.mark.kafka
def test_the_composed_bridge_shows_incidents_in_the_composed_alertmanager(
    kafka: KafkaCluster, alertmanager_binary: Path, tmp_path: Path
) -> None:
    service = COMPOSE["services"]["bridge"]
    command, port = service["command"], service["ports"][0].rpartition(":")[2]
    assert command[:2] == ["bridge", "alertmanager"]
    assert command[command.index("--web-port") + 1] == port
    assert f"bridge:{port}" in (DEPLOY / "prometheus.yml").read_text("utf-8")
    assert f":{port}/-/healthy" in " ".join(service["healthcheck"]["test"])
    written = (DEPLOY / "worker.yaml").read_text("utf-8")
    address = f"http://alertmanager:{COMPOSE['services']['alertmanager']['ports'][0].rpartition(':')[2]}"
    assert address in written
    with Alertmanager(tmp_path / "am", config=(DEPLOY / "alertmanager.yml").read_text("utf-8")) as am:
        text = written.replace(address, am.url).replace("kafka:\n", "kafka:\n  app_id: composed\n")
        text = text.replace("incidents: incidents", "incidents: composed-incidents")
        running = Bridge(tmp_path, "alertmanager", text, env={"KAFKA_BROKERS": kafka.bootstrap})
        try:
            running.ready()
            tell(kafka.bootstrap, "composed", incident(), topic="incidents")
            shown = eventually(lambda: am.firing().get("fraud/warning"), "the incident shows", 60)
            assert shown["annotations"]["cause"].startswith("data")
            tell(kafka.bootstrap, "composed", incident(action="resolved"), topic="incidents")
            # What took long to be shown is shown for as long, half a minute at most.
            eventually(lambda: not am.firing(), "and is over", 90)
            assert running.stop() == 0
        finally:
            running.stop(signal.SIGKILL)


def test_the_image_runs_as_a_numbered_user_and_stops_by_term() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text("utf-8")
    assert re.search(r"^USER \d+:\d+$", dockerfile, re.MULTILINE)
    assert "STOPSIGNAL SIGTERM" in dockerfile
    assert "/-/healthy" in dockerfile
    # In brackets, and exec at the end: a shell in between would swallow the signal.
    assert re.search(r"^ENTRYPOINT \[", dockerfile, re.MULTILINE)
    assert (DEPLOY / "entrypoint.sh").read_text("utf-8").splitlines()[-1].startswith("exec ")


@pytest.mark.parametrize(
    "command",
    [
        ["promtool", "check", "config", "prometheus.yml"],
        ["promtool", "check", "rules", "alerts.rules.yml"],
        ["amtool", "check-config", "alertmanager.yml"],
    ],
    ids=lambda command: command[-1],
)
def test_the_monitors_own_tools_accept_their_files(command: list[str]) -> None:
    package = {"promtool": "prometheus", "amtool": "prometheus-alertmanager"}[command[0]]
    try:
        program = debian(package, command[0])
    except AlertmanagerUnavailable as reason:
        pytest.skip(str(reason))
    command = [str(program), *command[1:]]
    done = subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_fire_when_they_should_and_are_quiet_at_an_empty_start(tmp_path: Path) -> None:
    try:
        promtool = debian("prometheus", "promtool")
    except AlertmanagerUnavailable as reason:
        pytest.skip(str(reason))
    for file in (DEPLOY / "alerts.rules.yml", Path(__file__).with_name("rules.test.yml")):
        shutil.copy(file, tmp_path)
    command = [str(promtool), "test", "rules", "rules.test.yml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_series_that_a_rule_divides_by_is_there_before_the_first_record() -> None:
    found = worker_metrics.Metrics()
    found.begin(["predictions", "labels"])
    text = found.text().decode()
    for topic in ("predictions", "labels"):
        for name in ("events", "source_records", "source_bytes"):
            assert f'streamproc_{name}_total{{topic="{topic}"}} 0.0' in text
    for reason in REASONS:
        assert f'streamproc_dead_letters_total{{reason="{reason}"}} 0.0' in text
    assert 'streamproc_alerts_total{action="opened",severity="critical"} 0.0' in text


def test_every_reason_in_the_code_is_a_known_one() -> None:
    source = "".join(p.read_text("utf-8") for p in (REPOSITORY / "streamproc").rglob("*.py"))
    raised = re.findall(r'(?:_UnreadableError|CompressionError)\(\s*"(\w+)"', source)
    raised += re.findall(r'Rejected\([^"()]*(?:\([^()]*\)[^"()]*)*"(\w+)",', source)
    raised += re.findall(r'error_type, key = "(\w+)"', source)
    assert {"malformed", "too_large", "no_model", "future_time", "unknown_schema"} <= set(raised)
    assert set(raised) == set(REASONS)
