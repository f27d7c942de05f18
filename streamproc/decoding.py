"""From a record's bytes to an event, whatever the producer: formats are told apart by themselves.

Our own JSON goes first and fast. What it does not take is looked at by its headers, its topic and its
first bytes; see `docs/inputs.md` for what is understood.
"""

from __future__ import annotations

import binascii
import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct, field

from streamproc import coercion, compression, feature_values, framed, genai, serving, tensors
from streamproc.events import (
    TOPIC_HEADER,
    Feedback,
    Half,
    Header,
    Ignored,
    Label,
    Prediction,
    RecordBatch,
    Rejected,
    Telemetry,
    Time,
    error_type,
    failed_status,
    model_name,
)
from streamproc.field_map import FieldMap, FieldPath

Kind: TypeAlias = type[Prediction] | type[Telemetry] | type[Label] | type[Feedback]


class _Envelope(Struct, gc=False):
    """A structured CloudEvent, as far as it must be opened to reach its data."""

    specversion: str = ""
    id: str = ""
    source: str = ""
    type: str = ""
    time: Time = None
    data: msgspec.Raw = field(default_factory=msgspec.Raw)
    data_base64: str | None = None
    datacontenttype: Any = None
    inferenceservicename: Any = None
    namespace: Any = None
    component: Any = None
    endpoint: Any = None


class Decoded(Struct, gc=False):
    """The readable events of a batch and the unreadable: rows[i] is where events[i] stands in it."""

    rows: list[int]
    events: list[Any]
    rejected: list[Rejected]
    ignored: list[tuple[int, str]] = []  # rows that hold nothing to watch, and why


class OwnDecoder:
    """Decode records that we publish ourselves; how one is read its kinds say."""

    #: What a record is not where it cannot be read.
    what = ""

    def decode(self, batch: RecordBatch, at: list[int] | None = None) -> Decoded:
        """Decode every record of a batch, or those at some rows; what cannot be read is `Rejected`."""
        out = Decoded([], [], [])
        for row in range(len(batch)) if at is None else at:
            try:
                event = self.read(batch.values[row] or b"")
            except (msgspec.MsgspecError, ValueError) as e:
                out.rejected.append(Rejected(row, batch.offsets[row], self.fault(e), f"no {self.what}: {e}"))
            else:
                out.rows.append(row)
                out.events.append(event)
        return out

    def read(self, value: bytes) -> Any:
        """Return the event in a record's value. Raise ValueError or msgspec.MsgspecError."""
        raise NotImplementedError

    def fault(self, error: Exception) -> str:
        """Return the short word for what is wrong with a record."""
        del error
        return "schema"


class Decoder:
    """Decode one kind of event from bare JSON, CloudEvents, and what model servers and tracers publish.

    field_map gives, for a field of ours, the path at which a producer has it; see `streamproc.field_map`.
    """

    def __init__(
        self, kind: Kind, *, field_map: Mapping[str, str | FieldPath] | None = None, max_bytes: int = 4_000_000
    ) -> None:
        self.kind = kind
        self.field_map = FieldMap(field_map) if field_map else None
        self.max_bytes = max_bytes
        self._decode = msgspec.json.Decoder(kind, strict=True).decode
        self._envelope = msgspec.json.Decoder(_Envelope).decode
        self._any = msgspec.json.Decoder().decode
        # What says that a record means to be one of ours, so that its mistakes are worth naming.
        names = {f.encode_name for f in msgspec.structs.fields(kind)} - _COMMON
        self._telling = names if self.field_map is None else names | self.field_map.first_names()

    def decode(self, batch: RecordBatch, at: list[int] | None = None) -> Decoded:
        """Decode every record of a batch, or those at some rows; what cannot be read is `Rejected`."""
        every = range(len(batch)) if at is None else at
        values = batch.values if at is None else [batch.values[i] for i in at]
        headers_of = batch.headers if at is None else [batch.headers[i] for i in at]
        if self._may_be_ours(batch, values):
            try:
                events = list(map(self._decode, values))  # type: ignore[arg-type]
                if any(headers_of):
                    for event, headers in zip(events, headers_of, strict=True):
                        _complete(event, headers)
            except Exception:  # some record is bad or foreign: find out which, one by one
                pass
            else:
                small = max(map(len, values), default=0) <= self.max_bytes  # type: ignore[arg-type]
                ours = self.kind is not Prediction or not any(map(_is_marked, events, values))
                if small and ours and all(map(_answers[self.kind], events)) and _all_settled(events):
                    return Decoded(list(every), events, [])
        out = Decoded([], [], [], [])
        for row, value, headers in zip(every, values, headers_of, strict=True):
            try:
                event = self.decode_one(value, headers, topic=batch.topic, key=batch.keys[row])
            except _UnreadableError as e:
                out.rejected.append(Rejected(row, batch.offsets[row], e.error_type, str(e)))
            else:
                if type(event) is Ignored:
                    out.ignored.append((row, event.reason))
                    continue
                out.rows.append(row)
                out.events.append(event)
        return out

    def decode_one(
        self, value: bytes | None, headers: Sequence[Header] = (), *, topic: str = "", key: bytes | None = None
    ) -> Any:
        """Return the event in one record, or `Ignored`.

        Raise a ValueError whose `error_type` names the kind of trouble.
        """
        if value is None:
            raise _UnreadableError("null_value", "the record has no value")
        if len(value) > self.max_bytes:
            raise _UnreadableError("too_large", f"{len(value)} bytes; at most {self.max_bytes} are read")
        try:
            if compression.is_compressed(value):
                value = compression.decompress(value, max_bytes=self.max_bytes)
            try:
                event = self._read(value, headers, topic, key)
            except msgspec.DecodeError:
                plain = coercion.without_nan(value)
                if plain is None:
                    raise
                event = self._read(plain, headers, topic, key)
            if type(event) is Ignored:
                return event
            _settle(event)
        except (_UnreadableError, compression.CompressionError) as e:
            raise _UnreadableError(e.error_type, str(e)) from None
        except coercion.TimeError as e:
            raise _UnreadableError("implausible_time", str(e)) from None
        except msgspec.ValidationError as e:
            raise _UnreadableError("schema", str(e)) from None
        except msgspec.DecodeError as e:
            raise _UnreadableError("malformed", str(e)) from None
        except UnicodeDecodeError as e:
            raise _UnreadableError("malformed", f"not UTF-8 at byte {e.start}") from None
        except RecursionError:
            raise _UnreadableError("too_deep", "nested too deeply") from None
        if not _answers[self.kind](event):
            raise _UnreadableError("schema", _NO_ANSWER[self.kind] + self._unmapped())
        return event

    def _unmapped(self) -> str:
        """Return which paths of the field map have found nothing so far, as an end of a sentence."""
        if self.field_map is None or not (unseen := self.field_map.unseen()):
            return ""
        return "; nothing was ever found at " + ", ".join(f"{path} (for `{name}`)" for name, path in unseen[:5])

    def _may_be_ours(self, batch: RecordBatch, values: Sequence[bytes | None]) -> bool:
        """Whether all records may be of our own JSON, so that decoding them at once is worth a try."""
        if self.field_map is not None or not values:
            return False
        # Of envelopes the first record tells: a producer does not change its own from one to the next.
        first = batch.values[0]
        if first is not None and b'"specversion"' in first:
            return False
        return self.kind is not Prediction or serving.seldon_topic(batch.topic) is None

    def _read(self, value: bytes, headers: Sequence[Header], topic: str, key: bytes | None) -> Any:
        attributes = _attributes(headers)
        if self.kind is Prediction:
            if str(attributes.get("type", "")).startswith(serving.KSERVE):
                return _halves(serving.kserve, attributes, value)
            topic = next((v.decode("utf-8", "replace") for k, v in headers if k == TOPIC_HEADER and v), topic)
            seldon = serving.seldon_topic(topic)
            if seldon is not None:
                return _halves(serving.seldon, seldon, value, headers, key)
        if b'"specversion"' in value and not attributes.keys() - {"datacontenttype"}:
            envelope = self._envelope(value)
            if envelope.specversion and (envelope.data or envelope.data_base64 is not None):
                return self._structured(envelope, headers)
        event = self._bare(value, headers)
        _complete(event, headers)
        return event

    def _structured(self, envelope: _Envelope, headers: Sequence[Header]) -> Any:
        data = bytes(envelope.data)
        if envelope.data_base64 is not None:
            try:
                data = binascii.a2b_base64(envelope.data_base64, strict_mode=True)
            except ValueError:
                raise _UnreadableError("malformed", "CloudEvents: `data_base64` is no base64") from None
        if self.kind is Prediction and envelope.type.startswith(serving.KSERVE):
            names = [n for n in envelope.__struct_fields__ if n not in ("data", "data_base64")]
            return _halves(serving.kserve, {n: getattr(envelope, n) for n in names}, data)
        try:
            event = self._bare(data, headers)
        except msgspec.DecodeError:  # what base64 hides was not looked through for NaN
            if (plain := coercion.without_nan(data)) is None:
                raise
            event = self._bare(plain, headers)
        event.id = getattr(event, "id", "") or envelope.id
        event.source = getattr(event, "source", "") or envelope.source
        if event.time is None:
            event.time = envelope.time
        return event

    def _bare(self, value: bytes, headers: Sequence[Header]) -> Any:
        """Read JSON that stands for itself: ours, or else what it looks like."""
        ours: msgspec.ValidationError | None = None
        try:
            event = self._plain(value)
        except msgspec.ValidationError as e:
            ours = e
        except (msgspec.DecodeError, UnicodeDecodeError):
            if value.lstrip()[:1] in (b"{", b"["):
                raise
            if not value:
                raise
            packed = value[:1] == b"\0" or framed.has_header(headers)
            registry = "; avro, protobuf: framed for a schema registry, of which none is asked" * packed
            raise self._unknown(f"json: the first byte begins no object{registry}", headers) from None
        else:
            if self.kind is Prediction and _is_marked(event, value):
                return self._with_usage(event, value)
            if _answers[self.kind](event):
                return event
        tree = self._any(value)
        if not isinstance(tree, dict):
            raise self._unknown("json: no object", headers)
        if self.field_map is None and isinstance(inner := coercion.connect_payload(tree), dict):
            return self._bare(msgspec.json.encode(inner), headers)
        if self.kind is Label and b"gen_ai" in value:
            judged = _halves(genai.evaluation, tree)
            if judged is not None:
                return judged
        if self.kind is Prediction:
            if ("inputs" in tree or "outputs" in tree) and not self._telling & tree.keys():
                found = _halves(serving.open_inference, value, headers)
                if found is not None:
                    return found
            if genai.looks_genai(value):
                called = _halves(genai.call, tree)
                if called is not None:
                    return called
        if not self._telling & tree.keys():
            raise self._unknown("json: none of its fields is one of ours" + self._unmapped(), headers)
        if ours is not None:
            raise ours
        return event

    def _with_usage(self, event: Prediction, value: bytes) -> Prediction:
        """Return a prediction with what else its record says of a language model; or the call it is at all."""
        tree = self._any(value)
        if event.prediction in (None, msgspec.UNSET) and not model_name(event):
            called = _halves(genai.call, tree)
            if called is not None:
                return called  # type: ignore[no-any-return]
        usage = genai.usage(genai.canonical(genai.flat(tree)))
        if usage is not None:
            event.llm = usage
        return event

    def _unknown(self, why: str, headers: Sequence[Header]) -> _UnreadableError:
        """Return the refusal of a record that no decoder takes, with what each had to say."""
        tried = [why]
        if any(k[:3].lower() == "ce_" for k, _ in headers):
            tried.append("cloudevents: its headers are there, and its data are not ours")
        else:
            tried.append("cloudevents: no `ce_` header and no `specversion`")
        tried.append("gzip, zstd: other first bytes")
        if self.kind is Prediction:
            tried += [
                "kserve: no such type of a CloudEvent",
                "seldon: the topic is not named as its are",
                "open inference v2: no `inputs` or `outputs` of tensors",
                "gen_ai, openinference: no such attribute",
            ]
        return _UnreadableError("unknown_format", "no decoder takes it; " + "; ".join(tried))

    def _plain(self, value: bytes) -> Any:
        if self.field_map is None:
            try:
                return self._decode(value)
            except msgspec.ValidationError as refused:
                tree = self._any(value)
                if not isinstance(tree, dict):
                    raise
                inner = coercion.connect_payload(tree)
                try:
                    return msgspec.convert(coercion.eased(inner if isinstance(inner, dict) else tree), self.kind)
                except msgspec.ValidationError:
                    raise refused from None
        tree = self._any(value)
        if not isinstance(tree, dict):
            raise msgspec.ValidationError(f"Expected `object`, got `{type(tree).__name__}`")
        if (inner := coercion.connect_payload(tree)) is not None:
            tree = {**tree, "payload": inner}
        return msgspec.convert(coercion.eased(self.field_map.apply(tree)), self.kind)


def _all_settled(events: Sequence[Any]) -> bool:
    """Whether all events can be taken as they are, as nearly all can; their answers then are."""
    try:
        for event in events:
            _settle(event)
    except coercion.TimeError:
        return False
    return True


def _settle(event: Any) -> None:
    """Read what the types leave open: an answer that is a list. Raise `coercion.TimeError` for a time that is none."""
    for name in _TIMES[type(event)]:
        if (value := getattr(event, name)) is not None:
            coercion.plausible_us(value)
    if type(event) is Prediction and type(event.prediction) is list:
        event.prediction = tensors.list_answer(event.prediction)
    if isinstance(event, Prediction) and event.features:
        event.features = feature_values.flat(event.features)


_TIMES: dict[type, tuple[str, ...]] = {
    Prediction: ("time", "feature_time"),
    Half: ("time",),
    Telemetry: ("time",),
    Label: ("time", "observed_at"),
    Feedback: ("time",),
}


def _is_marked(event: Any, value: bytes | None) -> bool:
    """Whether a record that reads as ours is of a language model, and says so by names of other conventions."""
    if event.gen_ai_model is not None or event.llm_model_name is not None:
        return True
    if event.gen_ai_tokens is not None or event.gen_ai is not None:
        return True
    # A call that failed may name no more of ours than its error.
    failed = event.error is not None or event.flat_error_type is not None
    failed = failed or event.status_code is not None or event.http_status is not None
    return failed and value is not None and genai.looks_genai(value)


def _halves(read: Callable[..., Any], *args: Any) -> Any:
    """Read by one of the foreign decoders, whose plain refusals are of the schema."""
    try:
        return read(*args)
    except (msgspec.MsgspecError, UnicodeDecodeError, coercion.TimeError):
        raise
    except ValueError as e:
        raise _UnreadableError("schema", str(e)) from None


def _attributes(headers: Sequence[Header]) -> dict[str, str]:
    """Return the attributes of a CloudEvent in binary mode, by their names without `ce_`."""
    found = {}
    for key, value in headers:
        if value is None:
            continue
        if key[:3].lower() == "ce_":
            found[key[3:].lower()] = value.decode("utf-8", "replace")
        elif key.lower() == "content-type":
            found["datacontenttype"] = value.decode("utf-8", "replace")
    return found


def _complete(event: Any, headers: Sequence[Header]) -> None:
    """Fill from the headers of CloudEvents binary mode what the data itself left out."""
    for key, value in headers:
        if value is None or key[:3].lower() != "ce_":
            continue
        name = key[3:].lower()
        if name == "time":
            if event.time is None:
                event.time = _header_time(value)
        elif name in {"id", "source"}:
            if not getattr(event, name, "-"):
                setattr(event, name, value.decode())
        elif name == "statuscode" and type(event) is Prediction:
            status = value.decode("utf-8", "replace")
            if event.http_status is None or failed_status(status):  # a failure is one, wherever it is told of
                event.http_status = status
        elif name == "type" and value.startswith(_KSERVE) and type(event) is Prediction:
            raise ValueError("not ours, whatever it looks like")


def _header_time(value: bytes) -> dt.datetime | float | int:
    text = value.decode("utf-8", "replace")
    try:
        moment: dt.datetime = msgspec.convert(text, dt.datetime)
    except msgspec.ValidationError:
        return coercion.read_time(text)
    return moment


_KSERVE = serving.KSERVE.encode()

#: Fields that many formats have, and that tell of none.
_COMMON = frozenset({
    "id", "source", "time", "name", "attributes", "traceparent", "service.name", "deployment.environment.name",
    "start_time", "unit", "llm", "gen_ai", "gen_ai.request.model", "gen_ai.usage.input_tokens", "llm.model_name",
})  # fmt: skip

#: Whether an event says anything: a prediction without answer and error is nobody's event of ours.
_answers: dict[type, Callable[[Any], bool]] = {
    Prediction: lambda e: (
        e.prediction is not msgspec.UNSET or type(e) is not Prediction or bool(error_type(e)) or e.error is not None
    ),
    Telemetry: lambda e: e.value is not None or (e.sum is not None and e.count is not None and e.count > 0),
    Label: lambda e: (
        (bool(e.prediction_id) and (e.value is not None or e.label is not None))
        or (e.evaluation is not None and (e.evaluation_score is not None or e.evaluation_label is not None))
    ),
    Feedback: lambda e: True,  # noqa: ARG005
}
_NO_ANSWER = {
    Prediction: "neither `prediction` nor `error.type`",
    Telemetry: "neither `value` nor `sum` and `count`",
    Label: "no `prediction_id` with `label` or `value`, and no `gen_ai.evaluation.name` with a score",
}


class _UnreadableError(ValueError):
    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type
