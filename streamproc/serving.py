"""What model servers publish: KServe's logger, Seldon Core 2, and the Open Inference Protocol as such.

They publish requests and responses, not predictions: what is read here are halves, which
`exchanges` puts together.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Struct

from streamproc import chat, coercion, compression, tensors
from streamproc.events import (
    KEY_HEADER,
    MAX_NAME,
    OTHER_ERROR,
    ErrorInfo,
    Half,
    Header,
    ModelRef,
    Outcome,
    Prediction,
    Time,
    failed_status,
)

#: CloudEvents types of KServe's logger. There are more of that family, such as outliers' and feedback's.
KSERVE = "org.kubeflow.serving.inference."

_SELDON_TOPIC = re.compile(r"[^.]+\.([^.]+)\.(?:model|pipeline)\.([^.]+)\.(inputs|outputs)")

#: Where Seldon and the proxies before it put a request's id, if not in the record's key.
_REQUEST_ID = ("x-request-id", "request_id")

#: Longest type of an error that is kept: beyond, it is more likely a message.
MAX_ERROR_TYPE = 64

#: Bytes that a compressed body may open to.
MAX_BODY = 4_000_000

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
        time=_time(attributes.get("time")),
    )
    endpoint = attributes.get("endpoint")
    if isinstance(endpoint, str) and endpoint:
        half.model.version = endpoint[: tensors.MAX_TEXT]  # type: ignore[union-attr]
    # The logger passes on the request's content type, on responses too, and not the encoding: the bytes tell.
    _add_body(half, data)
    status = attributes.get("statuscode", attributes.get("status"))
    if half.side == "response" and half.error is None and (failed := failed_status(status)) is not None:
        half.error, half.prediction = ErrorInfo(failed), UNSET
    return half


def seldon(topic: SeldonTopic, value: bytes, headers: Sequence[Header], key: bytes | None) -> Prediction:
    """Return what a record of one of Seldon's topics is: V2 in protobuf, or in JSON."""
    payload = _payload(value) if value[:1] == b"{" else tensors.read_protobuf(value, request=topic.request)
    # Seldon keys its records by request; one that was re-keyed by model says what its key was.
    own_key = next((v for k, v in headers if k == KEY_HEADER), key) or b""
    name = own_key.decode("utf-8", "replace")
    request_id = (name if name != topic.model else "") or _request_id(headers) or payload.id or ""
    half = _half(topic.model, request=topic.request, id=request_id, source=topic.pair, time=None)
    _add_tensors(half, payload)
    return half


def open_inference(value: bytes, headers: Sequence[Header]) -> Prediction | None:
    """Return what a bare V2 payload in JSON is, None where it is none."""
    payload = _payload(value)
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


def _time(value: Any) -> Time:
    if isinstance(value, str):
        try:
            return msgspec.convert(value, dt.datetime)
        except msgspec.ValidationError:
            return coercion.read_time(value)
    found: Time = msgspec.convert(value, Time)
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


def _payload(value: bytes) -> tensors.Payload:
    try:
        return tensors.read_json(value)
    except msgspec.DecodeError:
        plain = coercion.without_nan(value)
        if plain is None:
            raise
        return tensors.read_json(plain)


def _add_body(half: Half, data: bytes) -> None:
    """Add what a body of V1, V2 or of OpenAI's form says; of any other, that it came."""
    try:
        if compression.is_compressed(data):
            data = compression.decompress(data, max_bytes=MAX_BODY)
        if half.side == "response" and data.lstrip()[:5] == b"data:":
            _add_stream(half, data)
            return
        _add_tree(half, _tree(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, compression.CompressionError):
        if half.side == "response":
            half.prediction = Outcome(unreadable=bool(data.strip()))


def _tree(data: bytes) -> Any:
    try:
        return _any(data)
    except msgspec.DecodeError:
        plain = coercion.without_nan(data)
        if plain is None:
            raise
        return _any(plain)


def _add_stream(half: Half, data: bytes) -> None:
    """Add what the chunks of a stream of server-sent events say together."""
    half.prediction = Outcome(unreadable=True)
    for line in data.splitlines():
        chunk = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
        if not chunk or chunk == b"[DONE]":
            continue
        try:
            tree = _tree(chunk)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if not isinstance(tree, dict):
            continue
        if (error := body_error(tree)) is not None:
            half.error, half.prediction = error, UNSET
            return
        if (used := chat.usage(tree)) is not None:
            half.llm = chat.merged(half.llm, used)
            half.prediction = Outcome()


def _add_tree(half: Half, tree: Any) -> None:
    if half.side == "response" and not isinstance(tree, dict):
        half.prediction = tensors.row_answer(tree) if isinstance(tree, list) else Outcome(unreadable=tree is not None)
        return
    tree = tree if isinstance(tree, dict) else {}
    if half.side == "response" and (error := body_error(tree)) is not None:
        half.error = error
        return
    if half.side == "response" and (used := chat.usage(tree)) is not None:
        half.llm, half.prediction = used, Outcome()
        return
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
    else:
        half.prediction = tensors.row_answer(tree.get("predictions", tree.get("outputs")))


def body_error(tree: Mapping[str, Any]) -> ErrorInfo | None:
    """Return the error that a body tells of, whatever its status was; None where it tells of none.

    Frameworks write `error`, a text or an object, or `detail`, beside no answer at all.

    >>> body_error({"error": {"type": "rate_limit_error"}}).type, body_error({"detail": "boom"}).type
    ('rate_limit_error', '_OTHER')
    """
    error = tree.get("error")
    if error is None or error in ("", False):
        answered = any(tree.get(k) is not None for k in ("predictions", "outputs", "choices"))
        detail = tree.get("detail")
        if detail is None or answered:
            return None
        error = detail
    if isinstance(error, Mapping):
        for name in ("type", "code", "status", "name"):
            value = error.get(name)
            if isinstance(value, str | int) and not isinstance(value, bool) and value != "":
                return ErrorInfo(str(value)[:MAX_ERROR_TYPE])
    return ErrorInfo(failed_status(tree.get("status", tree.get("code"))) or OTHER_ERROR)


def _add_tensors(event: Prediction, payload: tensors.Payload) -> None:
    if payload.model_version and isinstance(event.model, ModelRef):
        event.model.version = payload.model_version[: tensors.MAX_TEXT]
    if type(event) is Half and event.side == "request":
        event.features = tensors.features(payload.inputs or ())
    elif (error := body_error({"error": payload.error, "outputs": payload.outputs})) is not None:
        event.error = error
    else:
        event.prediction = tensors.answer(payload.outputs or ())


def _request_id(headers: Sequence[Header]) -> str:
    for name in _REQUEST_ID:
        for key, value in headers:
            if value and key.lower() == name:
                return value.decode("utf-8", "replace")
    return ""
