"""The schemas that are checked in say what the code does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import orjson
import pytest
import yaml

from streamproc import schema, topology
from streamproc.config import Kafka
from streamproc.decoding import Decoder
from streamproc.events import Feedback, Label, Prediction, Telemetry
from tests.core.make import batch

ROOT = Path(__file__).parents[2]
KINDS: dict[str, Any] = {
    "prediction": Prediction,
    "telemetry": Telemetry,
    "label": Label,
    "feedback": Feedback,
}


def valid(name: str, event: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema.schemas()[name]).is_valid(event))


def test_the_files_are_in_step_with_the_code() -> None:
    for name, text in schema.files().items():
        assert (ROOT / "schemas" / name).read_text(encoding="utf-8") == text, (
            "run `streamproc schema --output schemas`"
        )
    assert {p.name for p in (ROOT / "schemas").iterdir()} == set(schema.files())


def test_they_come_out_equal_twice() -> None:
    assert schema.files() == schema.files()


@pytest.mark.parametrize("name", schema.schemas())
def test_each_is_a_schema_of_its_draft(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema.schemas()[name])


READ: list[tuple[str, dict[str, Any]]] = [
    ("prediction", {"model": {"name": "m"}, "prediction": 0.5}),
    ("prediction", {"model": "m", "prediction": "yes", "unknown": {"deep": 1}}),
    ("prediction", {"model.name": "m", "error.type": "timeout"}),
    ("prediction", {"model": "m", "error": {"type": "oom"}, "features": {"x": None}, "time": 1_767_603_600.5}),
    (
        "prediction",
        {
            "model": {"name": "m", "version": 3},
            "prediction": {"scores": {"a": 0.1}},
            "time": "2026-01-05T09:00:00Z",
        },
    ),
    ("prediction", {"model": {"name": "m"}, "prediction": None}),
    ("prediction", {"model": "m", "prediction": [1]}),
    ("telemetry", {"name": "queue", "value": 3}),
    ("telemetry", {"name": "queue", "sum": 3.5, "count": 2, "attributes": {"a": []}, "more": 1}),
    ("label", {"prediction_id": "1", "label": "yes", "model": "m"}),
    ("label", {"prediction_id": "1", "value": 2.0, "model.name": "m", "origin": "human"}),
    ("feedback", {"fingerprint": "f", "verdict": "NOT_ANOMALY", "new": 1}),
]

REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("prediction", {"model": {"name": "m"}}),
    ("prediction", {"model": "m", "prediction": 1, "duration_s": "fast"}),
    ("telemetry", {"name": "queue"}),
    ("telemetry", {"value": 1}),
    ("telemetry", {"name": "queue", "sum": 1}),
    ("label", {"prediction_id": "1", "model": "m"}),
    ("label", {"label": 1, "model": "m"}),
    ("label", {"prediction_id": "1", "label": 1, "model": "m", "origin": "guess"}),
    ("feedback", {"fingerprint": "f", "verdict": "MAYBE"}),
]


@pytest.mark.parametrize(("kind", "event"), READ)
def test_what_the_worker_reads_is_valid(kind: str, event: dict[str, Any]) -> None:
    assert valid(f"{kind}.v1", event)
    assert not Decoder(KINDS[kind]).decode(batch([event])).rejected


@pytest.mark.parametrize(("kind", "event"), REFUSED)
def test_what_the_worker_rejects_is_not_valid(kind: str, event: dict[str, Any]) -> None:
    assert not valid(f"{kind}.v1", event)
    assert Decoder(KINDS[kind]).decode(batch([event])).rejected


def test_a_prediction_without_any_name_of_a_model_is_not_valid() -> None:
    assert not valid("prediction.v1", {"prediction": 1})
    assert not valid("prediction.v1", {"prediction": 1, "model": {"version": 1}})


@pytest.mark.parametrize("path", ["deploy/worker.yaml", "examples/demo.yaml"])
def test_the_configs_we_ship_are_valid(path: str) -> None:
    assert valid("config.v1", yaml.safe_load((ROOT / path).read_text(encoding="utf-8")))


def test_the_config_schema_knows_quantities_and_refuses_unknown_keys() -> None:
    kafka = {"brokers": "a", "predictions": ["p"]}

    def rule(**said: Any) -> bool:
        return valid(
            "config.v1", {"version": 1, "kafka": kafka, "defaults": {"signals": {"latency_p95": said}}}
        )

    assert rule(min_effect="50ms", breaches="2/3")
    assert rule(min_effect=0.05)
    assert not rule(breaches="2 of 3")
    assert not rule(min_efect=1)
    assert not valid("config.v1", {"version": 1, "kafka": kafka, "defaults": {"window": "soon"}})
    assert not valid("config.v1", {"version": 1})


def test_asyncapi_refers_to_what_is_there() -> None:
    tree = schema.asyncapi()
    assert tree["asyncapi"] == "3.0.0"
    names = schema.files()

    def refs(node: Any) -> list[str]:
        if isinstance(node, dict):
            return [v for k, v in node.items() if k == "$ref"] + [r for v in node.values() for r in refs(v)]
        return [r for n in node for r in refs(n)] if isinstance(node, list) else []

    for ref in refs(tree):
        if ref.startswith("./"):
            assert ref[2:] in names
            continue
        node = tree
        for part in ref.removeprefix("#/").split("/"):
            node = node[part]


def test_asyncapi_names_the_topics_that_workers_read_and_write_and_no_others() -> None:
    """And the topics are those of the table, to which tests/worker holds the code."""
    tree = schema.asyncapi()
    k = Kafka(brokers="x:1", predictions=["predictions"], telemetry=["telemetry"], labels=["labels"], pages="pages")
    table = {t.role: t for t in topology.topics(k)}
    bridges = {"retrainRequests": "retrain-requests", "bridgeDeadLetters": "streamproc-bridge-dead-letters"}
    assert {role: c["address"] for role, c in tree["channels"].items()} == {
        **{role: t.name for role, t in table.items()}, **bridges
    }  # fmt: skip
    operations = {(o["action"], o["channel"]["$ref"].rpartition("/")[2]) for o in tree["operations"].values()}
    assert operations == {
        *(("receive", role) for role, t in table.items() if t.reads),
        *(("send", role) for role, t in table.items() if t.writes),
        *(("send", role) for role in bridges),
    }
    assert ("receive", "feedback") in operations


def test_a_field_of_the_type_is_a_field_of_the_schema() -> None:
    for name, kind in KINDS.items():
        known = {f.encode_name for f in msgspec.structs.fields(kind)}
        assert known == set(schema.schemas()[f"{name}.v1"]["properties"])


def test_the_files_are_plain_json() -> None:
    for text in schema.files().values():
        assert orjson.loads(text) == json.loads(text)
