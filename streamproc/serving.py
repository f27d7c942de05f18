"""What model servers publish: KServe's logger, Seldon Core 2, and the Open Inference Protocol as such.

They publish requests and responses, not predictions: what is read here are halves, which
`exchanges` puts together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from streamproc import tensors
from streamproc.events import KEY_HEADER, MAX_NAME, ErrorInfo, Half, Header, ModelRef, Outcome, Prediction, Time

#: CloudEvents types of KServe's logger. There are more of that family, such as outliers' and feedback's.
KSERVE = "org.kubeflow.serving.inference."

_SELDON_TOPIC = re.compile(r"[^.]+\.([^.]+)\.(?:model|pipeline)\.([^.]+)\.(inputs|outputs)")

#: Where Seldon and the proxies before it put a request's id, if not in the record's key.
_REQUEST_ID = ("x-request-id", "request_id")

#: OpenTelemetry's word for an error of no known type.
_OTHER = "_OTHER"

_any = msgspec.json.Decoder().decode


class SeldonTopic(Struct, frozen=True):
    """What the name of one of Seldon's topics says."""

    model: str
    request: bool
    pair: str  # the same for both topics of a model


def seldon_topic(topic: str) -> SeldonTopic | None:
    """Return what a topic named as Seldon Core 2 names them says, or None.

    >>> seldon_topic("seldon.prod.model.iris.inputs").model
    'prod/iris'
    """
    found = _SELDON_TOPIC.fullmatch(topic)
    if found is None:
        return None
    pair = topic.removesuffix(f".{found[3]}")
    return SeldonTopic(f"{found[1]}/{found[2]}", found[3] == "inputs", pair)


def kserve(attributes: Mapping[str, Any], data: bytes) -> Half:
    """Return the half that one CloudEvent of KServe's logger is. Raise ValueError where it is none.

    The model is `namespace/inferenceservicename`; a transformer or an explainer, which logs the same
    requests once more, is a model of its own, with its component added.
    """
    side = str(attributes.get("type", "")).removeprefix(KSERVE)
    if side not in ("request", "response"):
        raise ValueError("KServe: of its types only requests and responses are read")
    service, namespace = attributes.get("inferenceservicename"), attributes.get("namespace")
    if not isinstance(service, str) or not service:
        raise ValueError("KServe: no `inferenceservicename`")
    component = attributes.get("component")
    names = [namespace, service, component if component not in ("predictor", "default") else None]
    half = _half(
        "/".join(n for n in names if isinstance(n, str) and n),
        request=side == "request",
        id=str(attributes.get("id") or ""),
        source=str(attributes.get("source") or ""),
        time=msgspec.convert(attributes.get("time"), Time, strict=False),
    )
    endpoint = attributes.get("endpoint")
    if isinstance(endpoint, str) and endpoint:
        half.model.version = endpoint[: tensors.MAX_TEXT]  # type: ignore[union-attr]
    kind = str(attributes.get("datacontenttype") or "json")
    if "json" in kind:
        _add_json(half, data)
    elif half.side == "response":
        half.prediction = Outcome()  # that there was an answer, and when, is worth having
    return half


def seldon(topic: SeldonTopic, value: bytes, headers: Sequence[Header], key: bytes | None) -> Prediction:
    """Return what a record of one of Seldon's topics is: V2 in protobuf, or in JSON."""
    payload = (
        tensors.read_json(value)
        if value[:1] == b"{"
        else tensors.read_protobuf(value, request=topic.request)
    )
    # Seldon keys its records by request; one that was re-keyed by model says what its key was.
    own_key = next((v for k, v in headers if k == KEY_HEADER), key) or b""
    name = own_key.decode("utf-8", "replace")
    request_id = (name if name != topic.model else "") or _request_id(headers) or payload.id or ""
    half = _half(topic.model, request=topic.request, id=request_id, source=topic.pair, time=None)
    _add_tensors(half, payload)
    return half


def open_inference(value: bytes, headers: Sequence[Header]) -> Prediction | None:
    """Return what a bare V2 payload in JSON is, None where it is none."""
    payload = tensors.read_json(value)
    if not payload.inputs and not payload.outputs:
        return None
    request = payload.inputs is not None
    if request and not all(t.datatype for t in payload.inputs or ()):
        return None
    request_id = payload.id or _request_id(headers)
    if request or request_id:
        found: Prediction = _half(payload.model_name or "", request=request, id=request_id, source="", time=None)
    else:
        found = Prediction(model=ModelRef(payload.model_name or ""))  # which request it answers, nobody knows
    _add_tensors(found, payload)
    return found


def _half(model: str, *, request: bool, id: str, source: str, time: Time) -> Half:
    if not id:
        raise ValueError("a request or response without an id: nothing to join it by")
    if len(id) > MAX_NAME or len(source) > MAX_NAME:
        raise ValueError("an id or a source longer than 512 characters")
    return Half(
        model=ModelRef(model),
        side="request" if request else "response",
        exchange=f"{source}\n{id}",
        id=id,
        source=source,
        time=time,
    )


def _add_json(half: Half, data: bytes) -> None:
    """Add what a body of V1 or V2 says; of any other, that it came."""
    tree = _any(data)
    tree = tree if isinstance(tree, dict) else {}
    if isinstance(tree.get("inputs"), list) or isinstance(tree.get("outputs"), list):
        try:
            payload = msgspec.convert(tree, tensors.Payload)
        except msgspec.ValidationError:
            # The older protocol has `inputs` and `outputs` too, in columns and without types.
            payload = None
        if payload is not None:
            _add_tensors(half, payload)
            return
    if half.side == "request":
        half.features = tensors.row_features(tree.get("instances", tree.get("inputs")))
    elif tree.get("error") is not None:
        half.error = ErrorInfo(_OTHER)
    else:
        half.prediction = tensors.row_answer(tree.get("predictions", tree.get("outputs")))


def _add_tensors(event: Prediction, payload: tensors.Payload) -> None:
    if payload.model_version and isinstance(event.model, ModelRef):
        event.model.version = payload.model_version[: tensors.MAX_TEXT]
    if type(event) is Half and event.side == "request":
        event.features = tensors.features(payload.inputs or ())
    elif payload.error is not None:
        event.error = ErrorInfo(_OTHER)
    else:
        event.prediction = tensors.answer(payload.outputs or ())


def _request_id(headers: Sequence[Header]) -> str:
    for name in _REQUEST_ID:
        for key, value in headers:
            if value and key.lower() == name:
                return value.decode("utf-8", "replace")
    return ""
