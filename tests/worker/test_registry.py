"""A schema registry by its published API, values by Confluent's own serializers, and a real Kafka between."""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.brokers.kafka import KafkaCluster
from tests.worker.harness import prediction, publish, read, topic, worker
from tests.worker.test_worker import START, config

AVRO = json.dumps({
    "type": "record",
    "name": "Prediction",
    "fields": [
        *({"name": n, "type": "string"} for n in ("id", "source")),
        {"name": "model", "type": {"type": "record", "name": "Model", "fields": [{"name": "name", "type": "string"}]}},
        *({"name": n, "type": "double"} for n in ("time", "prediction", "duration_s")),
    ],
})  # fmt: skip


class Registry:
    """Confluent's REST API as far as serializers and readers use it; `down` answers 503."""

    def __init__(self) -> None:
        self.schemas: dict[int, dict[str, Any]] = {}
        self.subjects: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.down = False

    def answer(self, method: str, path: str, body: dict[str, Any] | None) -> tuple[int, Any]:
        path, _, query = path.partition("?")
        parts = path.strip("/").split("/")
        if self.down:
            return 503, {"error_code": 50301, "message": "down"}
        if method == "POST" and parts[0] == "subjects" and body is not None:
            number = next((n for n, s in self.schemas.items() if s["schema"] == body["schema"]), len(self.schemas) + 1)
            self.schemas[number] = body
            self.subjects.setdefault(parts[1], []).append(number)
            return 200, {"id": number, "guid": guid(number), "version": 1, "subject": parts[1], **body}
        if parts[:2] == ["schemas", "guids"]:
            number = next((n for n in self.schemas if guid(n) == parts[2]), 0)
            return self.answer("GET", f"/schemas/ids/{number}?{query}", None)
        if parts[:2] == ["schemas", "ids"] and int(parts[2]) in self.schemas:
            self.asked.append(parts[2])
            found = dict(self.schemas[int(parts[2])])
            if "format=serialized" in query and found.get("schemaType") == "PROTOBUF":
                found["schema"] = found.get("serialized", found["schema"])
            return 200, found
        if parts[0] == "subjects" and len(parts) == 4 and parts[1] in self.subjects:
            number = self.subjects[parts[1]][-1]
            return 200, {"id": number, "version": 1, "subject": parts[1], **self.schemas[number]}
        return 404, {"error_code": 40403, "message": "Schema not found"}


def guid(number: int) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, str(number)))


@contextlib.contextmanager
def serving(registry: Registry) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, tree = registry.answer(self.command, self.path, body)
            data = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("content-type", "application/vnd.schemaregistry.v1+json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = _do  # noqa: N815

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def events(model: str, n: int) -> list[dict[str, Any]]:
    return [
        {"id": f"{i}", "source": "t", "model": {"name": model}, "time": START + i, "prediction": 0.5,
         "duration_s": 5.0 if i >= 40 else 0.1}
        for i in range(n)
    ]  # fmt: skip


def avro_values(url: str, subject: str, n: int) -> list[tuple[bytes, bytes, int]]:
    pytest.importorskip("fastavro", reason="fastavro is not installed")
    from confluent_kafka.schema_registry import SchemaRegistryClient
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    serialize = AvroSerializer(SchemaRegistryClient({"url": url}), AVRO)
    context = SerializationContext(subject, MessageField.VALUE)
    return [(b"m", serialize(e, context), int((START + i) * 1000)) for i, e in enumerate(events("m", n))]


@pytest.mark.kafka
def test_avro_by_confluents_serializer_is_watched_as_json_is(kafka: KafkaCluster, tmp_path: Path) -> None:
    registry = Registry()
    topic(kafka.bootstrap, "avro-in")
    with serving(registry) as url:
        publish(kafka.bootstrap, "avro-in", avro_values(url, "avro-in", 50))
        text = config(kafka.bootstrap, "avro") + f"schema_registry: {{url: {url}}}\n"
        with worker(tmp_path, text) as running:
            running.until(lambda: running.metric("streamproc_events_total") == 50, "50 events")
            found = [json.loads(m.value()) for m in read(kafka.bootstrap, "avro-alerts", at_least=1)]
            assert running.stop() == 0
    assert ("latency", 5.0) in {(a["signal"], a.get("value")) for a in found if a["action"] == "opened"}
    assert registry.asked.count("1") <= 3  # by the serializer, and once by the worker


def with_headers(url: str, subject: str, events: list[dict[str, Any]], kind: str) -> list[tuple[Any, ...]]:
    """Return records by Confluent's own serializers, told to put the schema's GUID into a header."""
    from confluent_kafka.schema_registry import SchemaRegistryClient, header_schema_id_serializer
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    from tests.oracles.messages import PREDICTIONS

    client, conf = SchemaRegistryClient({"url": url}), {"schema.id.serializer": header_schema_id_serializer}
    if kind == "AVRO":
        serialize = AvroSerializer(client, AVRO, conf=conf)
    else:
        of = PREDICTIONS["Prediction"]
        inner = ProtobufSerializer(of, client, {**conf, "use.deprecated.format": False})
        serialize = lambda e, context: inner(of(**{k: v for k, v in e.items() if k != "source"}), context)  # noqa: E731
    found: list[tuple[Any, ...]] = []
    for event in events:
        headers: list[tuple[str, bytes]] = [("trace", b"1")]
        value = serialize(event, SerializationContext(subject, MessageField.VALUE, headers))
        found.append((b"m", value, int(event["time"] * 1000), headers))
    return found


@pytest.mark.kafka
@pytest.mark.parametrize("kind", ["AVRO", "PROTOBUF"])
def test_schemas_that_confluents_serializers_name_in_headers_are_read_over_kafka(
    kafka: KafkaCluster, tmp_path: Path, kind: str
) -> None:
    name = f"headers-{kind.lower()}"
    registry = Registry()
    topic(kafka.bootstrap, f"{name}-in")
    with serving(registry) as url:
        records = with_headers(url, f"{name}-in", events("m", 50), kind)
        assert all(len(headers) == 2 and value[:1] != b"\0" for _, value, _, headers in records)
        publish(kafka.bootstrap, f"{name}-in", records)
        text = config(kafka.bootstrap, name) + f"schema_registry: {{url: {url}}}\n"
        with worker(tmp_path, text) as running:
            running.until(lambda: running.metric("streamproc_events_total") == 50, "50 events")
            found = [json.loads(m.value()) for m in read(kafka.bootstrap, f"{name}-alerts", at_least=1)]
            assert running.stop() == 0
    assert ("latency", 5.0) in {(a["signal"], a.get("value")) for a in found if a["action"] == "opened"}


@pytest.mark.kafka
def test_while_the_registry_is_down_records_wait_and_none_is_lost(kafka: KafkaCluster, tmp_path: Path) -> None:
    registry = Registry()
    topic(kafka.bootstrap, "wait-in")
    with serving(registry) as url:
        publish(kafka.bootstrap, "wait-in", avro_values(url, "wait-in", 50))
        registry.down = True
        text = config(kafka.bootstrap, "wait") + f"schema_registry: {{url: {url}}}\n"
        with worker(tmp_path, text) as running:
            running.until(lambda: "cannot be asked" in running.log.read_text(), "a warning")
            time.sleep(1.0)
            assert running.metric("streamproc_events_total") == 0
            assert running.metric("streamproc_dead_letters_total") == 0
            registry.down = False
            running.until(lambda: running.metric("streamproc_events_total") == 50, "50 events")
            assert running.stop() == 0


@pytest.mark.kafka
def test_a_number_the_registry_has_not_goes_to_the_dead_letters(kafka: KafkaCluster, tmp_path: Path) -> None:
    topic(kafka.bootstrap, "unknown-in")
    good = [(b"m", prediction("m", START), int(START * 1000))]
    publish(kafka.bootstrap, "unknown-in", [*good, (b"m", b"\0\0\0\0\x63xyz", int(START * 1000))])
    with serving(Registry()) as url:
        text = config(kafka.bootstrap, "unknown") + f"schema_registry: {{url: {url}}}\n"
        with worker(tmp_path, text) as running:
            found = read(kafka.bootstrap, "unknown-dead", at_least=1)
            assert running.stop() == 0
    headers = dict(found[0].headers())
    assert headers["error.type"] == b"unknown_schema"
    assert found[0].value() == b"\0\0\0\0\x63xyz"


def test_protobuf_by_its_files_descriptor_and_the_path_to_its_message() -> None:
    pytest.importorskip("google.protobuf", reason="protobuf is not installed")
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    from streamproc import framed

    file = descriptor_pb2.FileDescriptorProto(name="p.proto", syntax="proto3")
    other = file.message_type.add(name="Other")
    other.field.add(name="x", number=1, type=9, label=1)
    kind = file.message_type.add(name="Prediction")
    for number, (name, of) in enumerate([("id", 9), ("source", 9), ("count", 3), ("prediction", 1)], start=1):
        kind.field.add(name=name, number=number, type=of, label=1)
    text = base64.b64encode(file.SerializeToString()).decode()
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName("Prediction"))(
        id="7", source="t", count=1 << 40, prediction=0.5
    )
    frame = b"\0\0\0\0\x01\x02\x02" + message.SerializeToString()  # one index, zigzagged: the second message
    found = json.loads(framed.json_of(frame, {1: framed.codec("PROTOBUF", text)}))
    assert found == {"id": "7", "source": "t", "count": 1 << 40, "prediction": 0.5}
