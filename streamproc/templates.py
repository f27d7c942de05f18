"""Template decoding: predictions of a known shape read without being parsed.

Records that one program writes about one model have the same bytes between their values. From a
record that msgspec has decoded a template is learned: those bytes, and what each value between them
means. Records of the same key are then walked against it by a compiled loop, straight into columns.

msgspec stays the judge. A record that fits no template, for whatever reason, is decoded by it; and a
template fits only where the result is known to be the same. So which templates there are changes
nothing but speed: they are no state, and are not saved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Struct

from detectors.protocol import F64, I64
from streamproc import genai, kernels
from streamproc.events import Header, Prediction, RecordBatch, failed_status, model_name, model_version
from streamproc.kernels import I32, U8, U64

#: Templates kept: some megabytes, enough for as many models as a partition is apt to hold.
MAX_TEMPLATES = 4096

#: Shapes tried for one key: a service's answers, its errors, and both again for a second version.
_CHAIN = 6
#: Larger records, and ones of more values, are left to msgspec: they are rare, and templates cost memory.
_MAX_BYTES = 65_536
_MAX_SLOTS = 512

# Learning costs as much as decoding some tens of records, so it must be earned: a stock to start
# with, then one for each so many records that fitted, and one a batch, so that news is noticed.
_CREDIT = 600.0
_EARNED = 1 / 256
#: Batches after which a template nobody used makes room for another.
_STALE = 256
_MAX_LABELS = 2048
#: Longest name of an error's type, in characters: beyond, it is more likely a message.
MAX_ERROR = 64

#: The compiled loops read eight bytes at once, so their arrays end with eight more than they hold.
_SPARE = bytes(8)

_STRING = re.compile(rb'"([^"\\\x00-\x1f]*)"')
_SCALAR = re.compile(
    rb'"[^"\\\x00-\x1f]*"|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null'
)
_SPACE = re.compile(rb"[ \t\n\r]*")

Path = tuple[str | int, ...]

#: Values that stay literal: a template is of one model and one version of it.
_LITERAL: set[Path] = {
    ("model",),
    ("model", "name"),
    ("model", "version"),
    ("model.name",),
    ("model.version",),
    # Of a template's records all failed, or none: those that did are decoded whole.
    ("http.response.status_code",),
    ("status_code",),
}

_TARGETS: dict[Path, int] = {
    ("id",): kernels.ID,
    ("source",): kernels.SOURCE,
    ("time",): kernels.TIME,
    ("duration_s",): kernels.DURATION,
    ("prediction",): kernels.PREDICTION,
    ("prediction", "value"): kernels.VALUE,
    ("prediction", "score"): kernels.SCORE,
    ("prediction", "label"): kernels.LABEL,
    ("error",): kernels.ERROR,
    ("error", "type"): kernels.ERROR_NAME,
    ("error", "message"): kernels.TEXT_OR_NULL,
    ("error.type",): kernels.ERROR_TYPE,
    ("usage", "input_tokens"): kernels.TOKENS_IN,
    ("usage", "output_tokens"): kernels.TOKENS_OUT,
    ("usage", "cost"): kernels.COST,
    ("request_id",): kernels.TEXT_OR_NULL,
    ("service.name",): kernels.TEXT_OR_NULL,
    ("deployment.environment.name",): kernels.TEXT_OR_NULL,
    ("mlflow.model_uri",): kernels.TEXT_OR_NULL,
    ("traceparent",): kernels.TEXT_OR_NULL,
}

#: Fields that few events have, and no column is walked for.
_UNSUITED = frozenset({"feature_time", "llm"})

_decode_label = msgspec.json.Decoder(str | int | bool | None).decode


class Unsuited(Exception):
    """A record has something no template can say."""


class Template(Struct, gc=False):
    """What one shape of record looks like: literal bytes, each followed by a slot or by the end."""

    segments: list[tuple[bytes, int, int]]  # literal, what follows it, which feature
    flags: int
    model: int  # codes: see `Templates`
    version: int
    layout: int  # which list of features; -1 for none
    key: bytes | None
    next: int = -1


class _Key(Struct):
    """What is known of a record key: its newest template, and when to learn from it again."""

    templates: list[int]
    not_before: int = 0
    failures: int = 0


class _Scan:
    """Split one record, JSON that msgspec has decoded, into literals and slots."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.segments: list[tuple[bytes, int, int]] = []
        self.features: list[str] = []
        self.flags = 0
        self._literal_from = 0
        end = self._space(self._value(self._space(0), ()))
        if end != len(data):
            raise Unsuited("something follows the object")
        self.segments.append((data[self._literal_from :], kernels.END, 0))

    def _space(self, at: int) -> int:
        found = _SPACE.match(self.data, at)
        return at if found is None else found.end()

    def _value(self, at: int, path: Path) -> int:
        if len(path) > 16:
            raise Unsuited("nested deeply")
        c = self.data[at : at + 1]
        if c == b"{":
            return self._object(at + 1, path)
        if c == b"[":
            return self._array(at + 1, path)
        if not path:
            raise Unsuited("no object")
        return self._scalar(at, path)

    def _object(self, at: int, path: Path) -> int:
        if path == ("prediction",):
            self.flags |= kernels.ANSWERED
        elif path == ("error",):
            self.flags |= kernels.ANSWERED | kernels.FAILED
        elif path[:1] == ("features",) and len(path) > 1:
            raise Unsuited("a feature that is no scalar")
        at = self._space(at)
        if self.data[at : at + 1] == b"}":
            return at + 1
        seen: set[str] = set()
        while True:
            found = _STRING.match(self.data, at)
            if found is None:
                raise Unsuited("a name with an escape")
            name = found.group(1).decode()
            if name in seen:
                raise Unsuited("a name twice")
            seen.add(name)
            at = self._space(found.end())
            if self.data[at : at + 1] != b":":
                raise Unsuited("no colon")
            at = self._space(self._value(self._space(at + 1), (*path, name)))
            c = self.data[at : at + 1]
            if c == b"}":
                return at + 1
            if c != b",":
                raise Unsuited("no comma")
            at = self._space(at + 1)

    def _array(self, at: int, path: Path) -> int:
        if path[:1] == ("features",) or path == ("prediction",):
            raise Unsuited("a feature or an answer that is no scalar")
        at = self._space(at)
        if self.data[at : at + 1] == b"]":
            return at + 1
        for index in range(_MAX_SLOTS):
            at = self._space(self._value(at, (*path, index)))
            c = self.data[at : at + 1]
            if c == b"]":
                return at + 1
            if c != b",":
                raise Unsuited("no comma")
            at = self._space(at + 1)
        raise Unsuited("many values")

    def _scalar(self, at: int, path: Path) -> int:
        found = _SCALAR.match(self.data, at)
        if found is None:
            raise Unsuited("a string with an escape")
        target, index = self._target(path)
        if target is not None:
            if len(self.segments) == _MAX_SLOTS:
                raise Unsuited("many values")
            self.segments.append((self.data[self._literal_from : at], target, index))
            self._literal_from = found.end()
        return found.end()

    def _target(self, path: Path) -> tuple[int | None, int]:
        """Return what a scalar means, None where it must stay as it is."""
        if path in _LITERAL or path in {("features",), ("segment",), ("usage",), ("prediction", "scores")}:
            return None, 0
        if path[0] in _UNSUITED:
            raise Unsuited("more than the columns have")
        if path[:2] == ("prediction", "scores"):
            if isinstance(path[2], str):
                self.flags |= kernels.SCORED
            return kernels.CLASS_SCORE, 0
        if path[0] == "features":
            self.features.append(str(path[1]))
            return kernels.FEATURE, len(self.features) - 1
        return _TARGETS.get(path, kernels.ANY), 0


class Walked(Struct, gc=False):
    """What the templates read of a batch of n records, row by row; see `kernels.match`.

    chosen (n,): the template or -1, in which case the row's other columns mean nothing yet. errors: codes
    of the types of what failed, None where nothing did.
    """

    chosen: I32
    times: I64
    latency: F64
    values: F64
    labels: I32
    failed: U8
    cells: F64
    kinds: U8
    models: I32
    versions: I32
    layouts: I32
    certainty: F64
    ids: U64
    errors: I32 | None
    usage: F64


class Names:
    """Strings and their codes, in the order they first came."""

    def __init__(self) -> None:
        self.names: list[Any] = []
        self._codes: dict[Any, int] = {}

    def code(self, name: Any) -> int:
        """Return the code of a name."""
        code = self._codes.get(name)
        if code is None:
            code = self._codes[name] = len(self.names)
            self.names.append(name)
        return code

    def __len__(self) -> int:
        return len(self.names)


class Templates:
    """The templates of one source partition, and the codes of the names their columns hold.

    Codes hold within a batch: what has grown too large is forgotten between two. whole: tells of a model
    whether more is asked of its events than the columns have, so that they are decoded whole.
    """

    def __init__(self, *, max_bytes: int = 4_000_000, whole: Callable[[str], bool] = lambda _: False) -> None:
        self.max_bytes = min(max_bytes, _MAX_BYTES)
        self._whole = whole
        self.learning = True
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.models, self.versions, self.labels, self.layouts = Names(), Names(), Names(), Names()
        self._templates: list[Template] = []
        self._keys: dict[bytes | None, _Key] = {}
        self._heads: dict[bytes | None, int] = {}
        self._credit = _CREDIT
        self._batch = 0
        self._dead = 0
        self._width = 0
        self.errors = Names()
        self._error_codes: dict[bytes, int] = {}
        self._clear_tables()
        self._clear_labels()

    def _clear_tables(self) -> None:
        self._table: I32 = np.full((16, 5), -1, np.int32)
        self._codes: I32 = np.full((16, 3), -1, np.int32)
        self._segments: I32 = np.zeros((256, 4), np.int32)
        self._literals: U8 = np.zeros(4096, np.uint8)
        self._segments_used = self._literals_used = 0

    def _clear_labels(self) -> None:
        self.labels = Names()
        self._label_table: I32 = np.full(4 * _MAX_LABELS, -1, np.int32)
        self._label_spans: I32 = np.zeros((_MAX_LABELS, 2), np.int32)
        self._label_codes: I32 = np.zeros(_MAX_LABELS, np.int32)
        self._label_pool: U8 = np.zeros(_MAX_LABELS * kernels.MAX_LABEL, np.uint8)
        self._labels_used = self._label_bytes = 0

    def __len__(self) -> int:
        return len(self._templates) - self._dead

    # ---------------------------------------------------------------------------- reading

    def walk(self, batch: RecordBatch) -> Walked:
        """Read what fits of a batch."""
        n = len(batch)
        self._batch += 1
        if self._labels_used == _MAX_LABELS or len(self.labels) > 4 * _MAX_LABELS:
            self._clear_labels()
        if len(self.errors) > _MAX_LABELS:
            self.errors, self._error_codes = Names(), {}
        if max(len(self.models), len(self.versions), len(self.layouts)) > 16 * MAX_TEMPLATES:
            self.reset()
        chosen, labels = np.empty(n, np.int32), np.empty(n, np.int32)
        floats = np.empty((2, n))
        cells, kinds = np.empty((n, self._width)), np.zeros((n, self._width), np.uint8)
        times, failed = np.empty(n, np.int64), np.empty(n, np.uint8)
        certainty, usage, ids, errors = np.empty((n, 2)), np.empty((n, 3)), np.empty((n, 2), np.uint64), None
        fitted = 0
        heads = self._first_tries(batch) if self._heads else None
        if heads is not None:
            values = batch.values
            try:
                data = bytearray().join(values)  # type: ignore[arg-type]
            except TypeError:  # some are null
                values = [b"" if v is None else v for v in values]
                data = bytearray().join(values)  # type: ignore[arg-type]
            ends = np.fromiter(map(len, values), np.int64, n).cumsum()  # type: ignore[arg-type]
            data += _SPARE
            octets = np.frombuffer(data, np.uint8)
            spans, error_spans = np.zeros((2, n, 2), np.int32)
            fitted = kernels.match(
                octets,
                ends,
                heads,
                self._table,
                self._segments,
                self._literals,
                self._batch,
                chosen,
                times,
                floats[0],
                floats[1],
                labels,
                failed,
                cells,
                kinds,
                spans,
                self._label_table,
                self._label_spans,
                self._label_codes,
                self._label_pool,
                certainty,
                ids,
                error_spans,
                usage,
            )
        self._credit = min(_CREDIT, self._credit + 1.0 + fitted * _EARNED)
        if fitted:
            codes = self._codes[chosen].T.copy()  # of the last row for -1, to be overwritten
            self._new_labels(octets, chosen, labels, spans)
            errors = self._error_types(octets, chosen, failed, error_spans)
        else:
            chosen[:] = -1
            codes = np.full((3, n), -1, np.int32)
        return Walked(
            chosen,
            times,
            floats[0],
            floats[1],
            labels,
            failed,
            cells,
            kinds,
            codes[0],
            codes[1],
            codes[2],
            certainty,
            ids,
            errors,
            usage,
        )

    def _error_types(self, data: U8, chosen: I32, failed: U8, spans: I32) -> I32 | None:
        """Return the codes of errors' types, -1 for none; None where nothing failed."""
        rows = np.nonzero((failed != 0) & (chosen >= 0))[0]
        if not len(rows):
            return None
        errors = np.full(len(chosen), -1, np.int32)
        known = self._error_codes
        for row, (at, end) in zip(rows.tolist(), spans[rows].tolist(), strict=True):
            token = data[at : min(end, at + MAX_ERROR)].tobytes()
            code = known.get(token)
            if code is None:
                code = known[token] = self.errors.code(token.decode() or "error")
            errors[row] = code
        return errors

    def _first_tries(self, batch: RecordBatch) -> I32 | None:
        """Return the first template to try for each record, None where there is none for any."""
        tries = [*map(self._heads.get, batch.keys)]
        if None in tries:
            tries = [-1 if t is None else t for t in tries]
        heads = np.array(tries, np.int32)
        if any(batch.headers):
            for row, headers in enumerate(batch.headers):
                if headers and _is_cloudevent(headers):
                    heads[row] = -1
        return heads if heads.max() >= 0 else None

    def _new_labels(self, data: U8, chosen: I32, labels: I32, spans: I32) -> None:
        """Give codes to labels seen for the first time."""
        for row in np.nonzero((labels <= kernels.NEW_LABEL) & (chosen >= 0))[0].tolist():
            if labels[row] <= kernels.POSITIONS:
                labels[row] = self.labels.code(f"#{kernels.POSITIONS - int(labels[row])}")
                continue
            at, end = spans[row].tolist()
            place = kernels.find_label(data, at, end, self._label_table, self._label_spans, self._label_pool)
            if self._label_table[place] >= 0:
                labels[row] = self._label_codes[self._label_table[place]]
                continue
            token = data[at:end].tobytes()
            code = self.labels.code(str(_decode_label(token)))
            labels[row] = code
            if self._labels_used < _MAX_LABELS:
                used, start = self._labels_used, self._label_bytes
                self._label_pool[start : start + len(token)] = data[at:end]
                self._label_spans[used] = start, len(token)
                self._label_codes[used] = code
                self._label_table[place] = used
                self._labels_used, self._label_bytes = used + 1, start + len(token)

    # --------------------------------------------------------------------------- learning

    def learn(self, batch: RecordBatch, rows: Sequence[int], events: Sequence[Prediction]) -> None:
        """Learn from records of a batch that fitted no template, and what msgspec made of them."""
        if not self.learning or self._credit < 1.0:
            return
        tried: set[bytes | None] = set()
        for row, event in zip(rows, events, strict=True):
            key = batch.keys[row]
            if key in tried:
                continue
            if self._credit < 1.0:
                return
            known = self._keys.get(key)
            if known is not None and self._batch < known.not_before:
                continue
            value = batch.values[row]
            if (
                value is None
                or len(value) > self.max_bytes
                or type(event) is not Prediction  # a half is known by more than its bytes
                or (batch.headers[row] and _is_cloudevent(batch.headers[row]))
            ):
                continue
            tried.add(key)
            self._credit -= 1.0
            self._learn_one(key, value, event)

    def _learn_one(self, key: bytes | None, value: bytes, event: Prediction) -> None:
        known = self._keys.get(key)
        if known is None:
            if len(self._keys) >= 4 * MAX_TEMPLATES:
                self._keys = {k: v for k, v in self._keys.items() if v.templates}
            known = self._keys[key] = _Key([])
        # A key whose newest template was never used has no shape to learn: wait twice as long each time.
        newest = known.templates[-1] if known.templates else -1
        known.failures = known.failures + 1 if newest >= 0 and self._table[newest, 4] < 0 else 0
        try:
            template = self._template(key, value, event)
        except Unsuited:
            known.failures += 6
        else:
            if self._room():
                self._append(template, known)
        known.not_before = self._batch + (1 << min(known.failures, 10))

    def _template(self, key: bytes | None, value: bytes, event: Prediction) -> Template:
        name = model_name(event)
        if failed_status(event.http_status) or failed_status(event.status_code):
            raise Unsuited("a failure by its status")
        if not name or len(name) > 512 or b'"specversion"' in value or genai.looks_genai(value) or self._whole(name):
            raise Unsuited("read by other rules")
        try:
            scan = _Scan(value)
        except UnicodeDecodeError:
            raise Unsuited("not UTF-8") from None
        layout = self.layouts.code(tuple(scan.features)) if scan.features else -1
        return Template(
            scan.segments,
            scan.flags,
            self.models.code(name),
            self.versions.code(model_version(event)),
            layout,
            key,
        )

    def _room(self) -> bool:
        """Make room for one more template where there is none; False if all are in use."""
        if len(self._templates) < MAX_TEMPLATES:
            return True
        last_used = self._table[: len(self._templates), 4]
        keep = [
            i for i, used in enumerate(last_used.tolist()) if used > self._batch - _STALE and self._live(i)
        ]
        if len(keep) == len(self._templates):
            return False
        used = last_used[keep]
        old, self._templates = self._templates, []
        self._dead = 0
        keys: dict[bytes | None, _Key] = {}
        self._heads.clear()
        self._clear_tables()
        for at, when in zip(keep, used.tolist(), strict=True):
            template = old[at]
            known = keys.setdefault(template.key, _Key([]))
            self._append(template, known)
            self._table[len(self._templates) - 1, 4] = when
        for key, known in keys.items():
            self._keys[key].templates = known.templates
        self._keys = {k: v for k, v in self._keys.items() if k in keys}
        return len(self._templates) < MAX_TEMPLATES

    def _live(self, at: int) -> bool:
        return (
            at in self._keys[self._templates[at].key].templates
            if self._templates[at].key in self._keys
            else False
        )

    def _append(self, template: Template, known: _Key) -> None:
        at = len(self._templates)
        self._templates.append(template)
        known.templates.append(at)
        if len(known.templates) > _CHAIN:
            # The least recently used makes room; its bytes go with the next clearing.
            oldest = min(known.templates[:-1], key=lambda t: int(self._table[t, 4]))
            known.templates.remove(oldest)
            self._dead += 1
        self._table = _grown(self._table, at + 1)
        self._codes = _grown(self._codes, at + 2)  # with an end that -1 may point to
        first = self._segments_used
        self._segments = _grown(self._segments, first + len(template.segments))
        for k, (literal, target, index) in enumerate(template.segments, start=first):
            start = self._literals_used
            self._literals = _grown(self._literals, start + len(literal) + len(_SPARE))
            self._literals[start : start + len(literal)] = np.frombuffer(literal, np.uint8)
            self._literals_used += len(literal)
            self._segments[k] = start, len(literal), target, index
        self._segments_used += len(template.segments)
        self._table[at] = first, self._segments_used, template.flags, -1, -1
        self._codes[at] = template.model, template.version, template.layout
        if template.layout >= 0:
            self._width = max(self._width, len(self.layouts.names[template.layout]))
        for t, following in zip(known.templates, [*known.templates[1:], -1], strict=True):
            self._table[t, 3] = following
        self._heads[template.key] = known.templates[0]

    @staticmethod
    def warm_up() -> None:
        """Compile the loops, or load them."""
        value = b'{"model":"m","prediction":{"value":0.1,"label":"a"},"features":{"a":1}}'
        batch = RecordBatch("", 0, [0], [0], [b"m"], [value], [()])
        templates = Templates()
        event = msgspec.json.decode(value, type=Prediction)
        templates.learn(batch, [0], [event])
        templates.walk(batch)


def _is_cloudevent(headers: Sequence[Header]) -> bool:
    return any(key[:3].lower() == "ce_" for key, _ in headers)


def _grown(array: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """Return an array with room for `length` rows, the old ones in place."""
    if length <= len(array):
        return array
    larger = (
        np.full((max(length, 2 * len(array)), *array.shape[1:]), -1, array.dtype)
        if array.dtype != np.uint8
        else (np.zeros(max(length, 2 * len(array)), np.uint8))
    )
    larger[: len(array)] = array
    return larger
