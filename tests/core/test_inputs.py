"""Payloads as serving systems publish them become our events, with no config, or are refused with a reason."""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import json
import math
from collections.abc import Iterator
from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from streamproc import compression, genai, tensors
from streamproc.decoding import Decoder
from streamproc.events import TOPIC_HEADER, Half, Label, LlmUsage, Outcome, Prediction, Telemetry, error_type
from streamproc.events import model_name as name_of
from streamproc.events import model_version as version_of
from streamproc.models import ModelState
from tests.core.make import batch, config, pipeline, quick
from tests.core.samples import BEGIN_MS, NAMES, Sample, records
from tests.core.test_templates import _same as same

USAGE = LlmUsage(
    provider="openai",
    operation="chat",
    request_model="gpt-4o",
    response_model="gpt-4o-2024-08-06",
    input_tokens=100,
    output_tokens=180,
    cache_read_tokens=64,
    time_to_first_token_s=0.25,
    finish_reasons=["stop"],
)
IRIS = {"input-0.0": 6.8, "input-0.1": 2.8, "input-0.2": 4.8, "input-0.3": 1.4}
PROBABLE = Outcome(value=1.0, label="1", score=0.78, scores=[0.01, 0.78, 0.21])
FRAUD = Outcome(value=0.93, label="fraud")
OF_SPAN = msgspec.structs.replace(USAGE, response_id="chatcmpl-123")
WHOLE = {"model": "fraud-eu", "version": "7", "id": "5f0c", "prediction": FRAUD, "duration_s": 0.041}
CALL = {"model": "gpt-4o", "version": "gpt-4o-2024-08-06", "prediction": Outcome(), "duration_s": 1.5, "llm": USAGE}

#: What each sample must come to.
EXPECTED: dict[str, dict[str, Any]] = {
    "bare": WHOLE,
    "cloudevents_binary": WHOLE,
    "cloudevents_structured": WHOLE,
    "kserve_v1_request": {
        "model": "default/sklearn-iris", "side": "request", "features": {"f0": 6.8, "f1": 2.8, "f2": 4.8, "f3": 1.4}
    },
    "kserve_v1_response": {"model": "default/sklearn-iris", "side": "response", "prediction": Outcome(value=1.0)},
    "kserve_v2_request": {"model": "default/sklearn-iris", "side": "request", "features": IRIS},
    "kserve_v2_response": {
        "model": "default/sklearn-iris", "version": "v2", "side": "response", "prediction": PROBABLE
    },
    "kserve_structured_request": {
        "model": "default/sklearn-iris", "side": "request", "features": {"amount": 120.5, "country": "DE"}
    },
    "kserve_structured_response": {
        "model": "default/sklearn-iris", "side": "response", "prediction": Outcome(score=0.93, label="fraud")
    },
    "seldon_request": {
        "model": "prod/iris",
        "version": "1",
        "side": "request",
        "features": {"predict.0": 6.75, "predict.1": 2.75, "predict.2": 4.75, "predict.3": 1.5},
    },
    "seldon_response": {"model": "prod/iris", "version": "1", "side": "response", "prediction": Outcome(value=2.0)},
    "seldon_json_request": {"model": "prod/iris", "side": "request", "features": {"amount": 120.5, "country": "DE"}},
    "seldon_json_response": {
        "model": "prod/iris", "version": "1", "side": "response", "prediction": Outcome(label="setosa")
    },
    "open_inference_request": {"model": "", "side": "request", "features": IRIS},
    "open_inference_response": {"model": "sklearn-iris", "version": "v2", "side": "response", "prediction": PROBABLE},
    "genai_flat": {**CALL, "id": "chatcmpl-123"},
    "genai_nested": {**CALL, "id": "a1"},
    "otlp_span": {**CALL, "id": "eee19b7ec3c1b174", "llm": OF_SPAN},
    "otlp_request": {
        **CALL, "prediction": UNSET, "error": "timeout", "service_name": "support-chat", "llm": OF_SPAN
    },
    "openinference_span": {
        "model": "gpt-4o",
        "id": "0xeee19b7ec3c1b174",
        "prediction": Outcome(),
        "duration_s": 1.5,
        "llm": LlmUsage(
            provider="openai",
            operation="LLM",
            request_model="gpt-4o",
            input_tokens=100,
            output_tokens=180,
            cost=0.0023,
        ),
    },
    "prediction_with_usage": {
        "model": "judge",
        "prediction": Outcome(label="ok"),
        "llm": LlmUsage(request_model="gpt-4o", input_tokens=100, cost=0.0023),
    },
}

#: Of each: the latency of the prediction that comes of it, the share of failures, and the model.
SIGNALS: dict[tuple[str, ...], tuple[float, float, str]] = {
    ("bare",): (0.041, 0.0, "fraud-eu"),
    ("cloudevents_binary",): (0.041, 0.0, "fraud-eu"),
    ("cloudevents_structured",): (0.041, 0.0, "fraud-eu"),
    ("kserve_v1_request", "kserve_v1_response"): (0.005997, 0.0, "default/sklearn-iris"),
    ("kserve_v2_response", "kserve_v2_request"): (0.005997, 0.0, "default/sklearn-iris"),
    ("kserve_structured_request", "kserve_structured_response"): (0.005997, 0.0, "default/sklearn-iris"),
    ("open_inference_request", "open_inference_response"): (0.02, 0.0, "sklearn-iris"),
    ("seldon_request", "seldon_response"): (0.02, 0.0, "prod/iris"),
    ("seldon_json_request", "seldon_json_response"): (0.02, 0.0, "prod/iris"),
    ("genai_flat",): (1.5, 0.0, "gpt-4o"),
    ("genai_nested",): (1.5, 0.0, "gpt-4o"),
    ("otlp_span",): (1.5, 0.0, "gpt-4o"),
    ("otlp_request",): (1.5, 1.0, "gpt-4o"),
    ("openinference_span",): (1.5, 0.0, "gpt-4o"),
    ("prediction_with_usage",): (1.5, 0.0, "judge"),
}


def test_every_sample_is_expected_and_makes_a_signal() -> None:
    assert sorted(EXPECTED) == NAMES
    assert sorted(n for names in SIGNALS for n in names) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_becomes_its_event(name: str) -> None:
    out = Decoder(Prediction).decode(records([Sample(name)]))
    assert out.rejected == []
    (event,) = out.events
    expected = EXPECTED[name]
    assert name_of(event) == expected["model"]
    assert version_of(event) == expected.get("version")
    assert error_type(event) == expected.get("error", "")
    for field in expected.keys() - {"model", "version", "error"}:
        assert getattr(event, field) == expected[field], field
    assert (type(event) is Half) == ("side" in expected)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str, float, int]]]:
    """Every value of a window's signal, as it is observed."""
    seen: list[tuple[str, str, float, int]] = []
    observe = ModelState._observe_window

    def spy(self: ModelState, aggregate: Any, *rest: Any) -> Any:
        seen.append((self.name, aggregate.signal, aggregate.value, aggregate.n))
        return observe(self, aggregate, *rest)

    monkeypatch.setattr(ModelState, "_observe_window", spy)
    return seen


@pytest.mark.parametrize("names", SIGNALS)
def test_samples_become_signals(names: tuple[str, ...], told: list[tuple[str, str, float, int]]) -> None:
    latency, failures, model = SIGNALS[names]
    p = pipeline(config(quick().replace("min_samples: 3", "min_samples: 1")))
    samples = [Sample(n) for n in names]
    for sample in samples:
        sample.headers.append((TOPIC_HEADER, sample.topic.encode()))
    out = p.process(records(samples, stamps_ms=[BEGIN_MS + 200 + 20 * i for i in range(len(samples))], topic="in"))
    assert (out.rejected, out.events) == ([], len(names))
    p.advance(p.clock_us + 30_000_000)
    values = {signal: value for name, signal, value, n in told if name == model and n == 1}
    assert values["error_rate"] == failures
    assert values["latency_p95"] == pytest.approx(latency, rel=0.011)


def test_all_samples_in_one_batch_are_told_apart() -> None:
    samples = [Sample(n) for n in NAMES if not n.startswith("seldon")]
    assert Decoder(Prediction).decode(records(samples)).rejected == []


@settings(max_examples=30, deadline=None)
@given(
    names=st.lists(st.sampled_from([n for n in NAMES if not n.startswith("seldon")]), min_size=1, max_size=120),
    keyed=st.booleans(),
    cuts=st.lists(st.integers(0, 120), max_size=12),
)
def test_templates_leave_foreign_records_alone(names: list[str], keyed: bool, cuts: list[int]) -> None:
    samples = [Sample(n) for n in names]
    same([(b"k" if keyed else s.key, s.value, BEGIN_MS + 10 * i, s.headers) for i, s in enumerate(samples)], cuts)


# ------------------------------------------------------------------------------ malformed


def _without(name: str, *path: str) -> Sample:
    sample = Sample(name)
    tree = json.loads(sample.value)
    node = tree
    for part in path[:-1]:
        node = node[part]
    del node[path[-1]]
    sample.value = orjson.dumps(tree)
    return sample


def _with(name: str, old: bytes, new: bytes) -> Sample:
    sample = Sample(name)
    assert old in sample.value
    sample.value = sample.value.replace(old, new)
    return sample


def _headed(name: str, **headers: str | None) -> Sample:
    sample = Sample(name)
    sample.headers = [(k, v) for k, v in sample.headers if k not in headers]
    sample.headers += [(k, v.encode()) for k, v in headers.items() if v is not None]
    return sample


def _cut(name: str, at: int = -3) -> Sample:
    sample = Sample(name)
    sample.value = sample.value[:at]
    return sample


MALFORMED: dict[str, tuple[Any, str, str]] = {
    "KServe without an id": (lambda: _headed("kserve_v1_request", ce_id=None), "schema", "without an id"),
    "KServe without a service": (
        lambda: _headed("kserve_v1_request", ce_inferenceservicename=None),
        "schema",
        "inferenceservicename",
    ),
    "KServe of another type": (
        lambda: _headed("kserve_v1_request", ce_type="org.kubeflow.serving.inference.outlier"),
        "schema",
        "requests and responses",
    ),
    "KServe at no time": (lambda: _headed("kserve_v1_response", ce_time="soon"), "implausible_time", "RFC 3339"),
    "KServe with too long an id": (lambda: _headed("kserve_v1_response", ce_id="x" * 600), "schema", "512"),
    "KServe structured, cut off": (lambda: _cut("kserve_structured_request"), "malformed", ""),
    "KServe structured without an id": (lambda: _without("kserve_structured_request", "id"), "schema", "without an id"),
    "V2 without an id": (lambda: _without("open_inference_request", "id"), "schema", "without an id"),
    "V2 of tensors that are none": (
        lambda: _with("open_inference_request", b'"inputs":[{', b'"inputs":[7,{'),
        "schema",
        "Expected `object`",
    ),
    "Seldon, cut off": (lambda: _cut("seldon_request"), "schema", "protobuf"),
    "Seldon, raw contents cut off": (lambda: _cut("seldon_response", -1), "schema", "protobuf"),
    "Seldon JSON, cut off": (lambda: _cut("seldon_json_request"), "malformed", ""),
    "a span without a model": (
        lambda: _with("otlp_span", b'"gen_ai.request.model"', b'"gen_ai.request.made"'),
        None,
        "",
    ),
    "a call without any model": (lambda: _without("openinference_span", "attributes", "llm.model_name"), "schema",
                                 "such as `gen_ai.request.model`"),
    "OTLP of a time that is none": (
        lambda: _with("otlp_span", b'"1767603601500000000"', b'"4111-1111"'),
        "schema",
        "`endTimeUnixNano` is no time",
    ),
    "OTLP attributes that are none": (
        lambda: _with("otlp_span", b'"attributes":[{"key"', b'"attributes":[{"name"'),
        "schema",
        "keys and values",
    ),
    "CloudEvents of damaged base64": (
        lambda: _with("cloudevents_structured", b'"data":', b'"data_base64":"%%%","was":'),
        "malformed",
        "base64",
    ),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_payload_is_refused_with_its_reason(kind: str) -> None:
    make, reason, message = MALFORMED[kind]
    good = Sample("bare")
    out = Decoder(Prediction).decode(records([make(), good], topic=make().topic))
    if reason is None:
        assert out.rejected == []
        return
    assert out.rejected[0].row == 0
    assert out.rejected[0].error_type == reason, out.rejected[0].message
    assert message in out.rejected[0].message
    assert "4111" not in out.rejected[0].message


@settings(max_examples=400, deadline=None)
@given(data=st.data(), name=st.sampled_from(NAMES))
def test_a_damaged_payload_never_raises(data: Any, name: str) -> None:
    sample = Sample(name)
    value = bytearray(sample.value)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(value)))
        value[at : at + data.draw(st.integers(0, 6))] = data.draw(
            st.binary(max_size=4) | st.sampled_from([b"{}", b"[]", b"null", b'"x"', b"1e999", b"-1", b"[[]]", b"true"])
        )
    sample.value = bytes(value)
    p = pipeline(config(quick()))
    good = Sample("bare")
    out = p.process(records([good, sample, good]))
    assert sum(out.accounts().values()) == 3
    p.advance(p.clock_us + 300_000_000)
    list(p.snapshot_models())


# ------------------------------------------------------------------------------ compression


@pytest.mark.parametrize("name", NAMES)
def test_a_gzipped_value_is_what_is_in_it(name: str) -> None:
    sample, plain = Sample(name), Sample(name)
    sample.value = gzip.compress(sample.value)
    assert Decoder(Prediction).decode(records([sample])) == Decoder(Prediction).decode(records([plain]))


def test_values_of_every_kind_may_be_compressed() -> None:
    for kind, value in ((Telemetry, b'{"name": "q", "value": 1}'), (Label, b'{"prediction_id": "1", "label": 1}')):
        assert Decoder(kind).decode(batch([gzip.compress(value)])).rejected == []


def test_a_file_of_several_gzip_members_is_read() -> None:
    value = gzip.compress(b'{"model": "m", ') + gzip.compress(b'"prediction": 1}') + b"\0\0"
    assert Decoder(Prediction).decode(batch([value])).rejected == []


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (gzip.compress(b" " * 5_000_000), "too_large"),
        (gzip.compress(b" " * 3_000_000) * 2, "too_large"),
        (gzip.compress(Sample("bare").value)[:-4], "malformed"),
        (gzip.compress(Sample("bare").value)[:30] + b"\xff" * 30, "malformed"),
        (gzip.compress(b"\x00avro"), "unknown_format"),
    ],
)
def test_what_cannot_be_decompressed_is_refused(value: bytes, reason: str) -> None:
    out = Decoder(Prediction).decode(batch([value]))
    assert [r.error_type for r in out.rejected] == [reason]


def test_zstd_without_a_library_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compression, "_LIBRARIES", ())
    out = Decoder(Prediction).decode(batch([compression.ZSTD + b"anything"]))
    assert out.rejected[0].error_type == "unknown_format"
    assert "streamproc[zstd]" in out.rejected[0].message


@pytest.mark.parametrize("library", ["compression.zstd", "backports.zstd", "zstandard"])
def test_zstd_is_read_where_a_library_is(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    zstd = pytest.importorskip(library)
    monkeypatch.setattr(compression, "_LIBRARIES", (library,))
    press = zstd.ZstdCompressor().compress if library == "zstandard" else zstd.compress
    value = press(Sample("bare").value)
    bad = [press(b" " * 5_000_000), value[:-4], value[:12] + b"\xff" * 12]
    out = Decoder(Prediction).decode(batch([value, *bad]))
    assert out.rows == [0]
    assert [r.error_type for r in out.rejected] == ["too_large", "malformed", "malformed"]


# ------------------------------------------------------------------------------ unknown


@pytest.mark.parametrize("value", [b"\x00\x01avro", b"4111", b'"4111"', b"[4111]", b'{"order": 4111}', b"<a>4111</a>"])
def test_an_unknown_format_is_refused_with_all_that_was_tried(value: bytes) -> None:
    (refused,) = Decoder(Prediction).decode(batch([value])).rejected
    assert refused.error_type == "unknown_format"
    for decoder in ("json", "cloudevents", "gzip", "zstd", "kserve", "seldon", "open inference", "gen_ai"):
        assert decoder in refused.message
    assert "4111" not in refused.message


def test_a_record_that_means_to_be_ours_is_told_what_is_wrong_with_it() -> None:
    (refused,) = Decoder(Prediction).decode(batch([b'{"model": "m", "prediction": 1, "duration_s": "x"}'])).rejected
    assert (refused.error_type, "duration_s" in refused.message) == ("schema", True)


def test_our_own_json_with_fields_named_as_others_name_theirs_stays_ours() -> None:
    value = b'{"model": "m", "prediction": 1, "inputs": [1], "outputs": {"a": 2}, "predictions": 3}'
    (event,) = Decoder(Prediction).decode(batch([value])).events
    assert (type(event), event.prediction) == (Prediction, 1)


# ------------------------------------------------------------------------------ the parts


def test_a_failed_call_that_reads_as_ours_keeps_its_model_and_usage() -> None:
    value = b'{"error.type": "timeout", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 3}'
    (event,) = Decoder(Prediction).decode(batch([value])).events
    assert (name_of(event), error_type(event), event.llm.input_tokens) == ("m", "timeout", 3)


def test_our_own_names_of_usage_are_read_and_reach_the_columns() -> None:
    from streamproc.columns import PredictionColumns
    from streamproc.predictions import PredictionState

    seen: list[PredictionColumns] = []
    own = b'{"model": "m", "prediction": 1, "llm": {"input_tokens": 3, "finish_reasons": ["stop"]}}'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PredictionState, "_columns", lambda self, what, *rest: seen.append(what) or [])
        p = pipeline(config())
        for first in range(0, 9, 3):  # a template may be known from the first
            p.process(batch([own, b'{"model": "m", "prediction": 1}', own], first=first))
    for what in seen:
        assert what.llm is not None
        assert what.llm.tolist() == [u := LlmUsage(input_tokens=3, finish_reasons=["stop"]), None, u]


def test_each_alias_leads_to_its_field() -> None:
    for theirs, ours in genai.ALIASES.items():
        assert genai.canonical({theirs: "5"})[ours] in ("5", 5, ["5"]), theirs


@pytest.mark.parametrize("value", [None, True, -1, "x", [], {}, float("inf"), 10**400])
def test_a_count_that_is_none_is_passed_over(value: Any) -> None:
    assert "input_tokens" not in genai.canonical({"gen_ai.usage.input_tokens": value})


def test_two_spans_in_one_record_are_refused() -> None:
    tree = json.loads(Sample("otlp_request").value)
    spans = tree["resourceSpans"][0]["scopeSpans"][0]["spans"]
    spans.append(spans[0])
    (refused,) = Decoder(Prediction).decode(batch([tree])).rejected
    assert "2 spans" in refused.message


def test_a_spans_time_is_its_end() -> None:
    (event,) = Decoder(Prediction).decode(records([Sample("otlp_span")])).events
    assert event.time == dt.datetime(2026, 1, 5, 9, 0, 1, 500_000, tzinfo=dt.UTC)


def test_a_component_that_is_no_predictor_is_a_model_of_its_own() -> None:
    (event,) = Decoder(Prediction).decode(records([_headed("kserve_v1_request", ce_component="explainer")])).events
    assert name_of(event) == "default/sklearn-iris/explainer"


def test_a_response_that_is_no_json_is_still_a_response() -> None:
    sample = _headed("kserve_v1_response", **{"content-type": "application/octet-stream"})
    sample.value = b"\x00\x01"
    (event,) = Decoder(Prediction).decode(records([sample])).events
    assert (event.side, event.prediction) == ("response", Outcome(unreadable=True))


def test_an_error_in_the_body_is_a_failure() -> None:
    sample = Sample("kserve_v1_response")
    sample.value = b'{"error": "card 4111 refused"}'
    (event,) = Decoder(Prediction).decode(records([sample])).events
    assert error_type(event) == "_OTHER"


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0.2, 0.8]], Outcome(score=0.8, scores=[0.2, 0.8])),
        ([[20.0, 0.8]], Outcome(value=10.4)),
        ([1, 2], Outcome(value=1.5, rows=2)),
        (["a", "a"], Outcome(label="a")),
        (["a", "b"], Outcome(rows=2)),
        ([True], Outcome(label="True")),
        ([], Outcome()),
        (None, Outcome()),
        ([[[1]]], Outcome(unreadable=True)),
        ([10**400], Outcome()),
    ],
)
def test_what_v1_answers_is_read_as_far_as_it_is_clear(rows: Any, expected: Outcome) -> None:
    assert tensors.row_answer(rows) == expected


@pytest.mark.parametrize(
    ("datatype", "raw", "expected"),
    [
        ("FP32", b"\x00\x00\x80?", [1.0]),
        ("FP16", b"\x00<", [1.0]),
        ("INT8", b"\xff", [-1]),
        ("UINT16", b"\x01\x01", [257]),
        ("BOOL", b"\x01", [True]),
        ("BYTES", b"\x02\x00\x00\x00hi", ["hi"]),
    ],
)
def test_raw_contents_of_each_datatype_are_read(datatype: str, raw: bytes, expected: list[Any]) -> None:
    assert tensors._raw(datatype, raw) == expected


def test_no_number_of_a_payload_is_more_than_state_can_hold() -> None:
    found = tensors.row_features([[10**400, math.inf, math.nan, "x" * 1000, [1], None, 2**63]])
    assert found == {"f0": None, "f1": None, "f2": None, "f3": "x" * 256, "f5": None, "f6": None}


def test_nan_that_base64_hides_is_a_missing_value_and_no_reason_to_refuse_the_event() -> None:
    body = b'{"model": {"name": "m"}, "prediction": 1.5, "features": {"x": NaN}}'
    envelope = {"specversion": "1.0", "type": "t", "id": "1", "source": "s",
                "data_base64": base64.b64encode(body).decode()}  # fmt: skip
    event = Decoder(Prediction).decode_one(orjson.dumps(envelope))
    assert (event.prediction, event.features) == (1.5, {"x": None})


@pytest.mark.parametrize("told", [{"status_code": "OK"}, {"http.response.status_code": 200}, {}])
def test_a_failure_that_a_header_tells_of_is_one_whatever_the_payload_says(told: dict[str, Any]) -> None:
    value = orjson.dumps({"model": {"name": "m"}, "prediction": 1.5, **told})
    event = Decoder(Prediction).decode_one(value, [("ce_specversion", b"1.0"), ("ce_statuscode", b"503")])
    assert error_type(event) == "503"
    event = Decoder(Prediction).decode_one(value, [("ce_specversion", b"1.0"), ("ce_statuscode", b"200")])
    assert error_type(event) == ""


def test_a_duration_among_the_attributes_of_a_call_is_read() -> None:
    attributes = {"gen_ai.request.model": "m", "duration_s": 0.5}
    found = genai.call({"time": 1_790_000_000, "attributes": attributes})
    assert isinstance(found, Prediction)
    assert found.duration_s == 0.5


def test_a_failed_embedding_names_its_model_in_its_parameters() -> None:
    asked = {"openinference.span.kind": "EMBEDDING", "service.name": "shop",
             "embedding.invocation_parameters": '{"model": "embed-x"}'}  # fmt: skip
    found = genai.call({"attributes": asked, "status": {"code": 2}, "spanId": "a"})
    assert isinstance(found, Prediction)
    assert (name_of(found), error_type(found)) == ("embed-x", "_OTHER")


def test_what_an_embedding_used_stands_in_what_mlflow_has_of_its_answer() -> None:
    own = {"mlflow.spanType": '"EMBEDDING"', "model": '"embed-x"',
           "mlflow.spanOutputs": '{"data": [], "usage": {"prompt_tokens": 5, "total_tokens": 5}}'}  # fmt: skip
    found = genai.call({"attributes": own, "spanId": "a"})
    assert isinstance(found, Prediction)
    assert found.llm is not None
    assert found.llm.input_tokens == 5
