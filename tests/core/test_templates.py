"""Reading by templates gives what msgspec gives, whatever the records."""

from __future__ import annotations

import datetime as dt
import itertools
import json
import math
import random
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors import state
from detectors.kernels import kernel
from streamproc import rules, templates
from streamproc.events import Prediction, RecordBatch, time_us
from streamproc.kernels import F64, I64, NO_TIME, U8, read_number, read_time
from streamproc.pipeline import Pipeline
from streamproc.windows import Accumulator, Windows, latency_buckets

_CONFIG = """
version: 1
kafka: {brokers: "x:1", predictions: [p]}
defaults:
  window: 5s
  lateness: 1s
  min_samples: 3
  max_classes: 4
  max_features: 6
  signals:
    latency: {upper_limit: 900ms}
    latency_p95: {upper_limit: 800ms}
    failures: {upper_limit: 0.5}
    prediction_drift: {upper_limit: 0.97}
    prediction_value: {upper_limit: 0.6}
    error_rate: {upper_limit: 0.2}
    class_share: {upper_limit: 0.6}
    missing_features: {upper_limit: 0.02}
    invalid_features: {upper_limit: 0.02}
    feature_outlier: {detector: half_space_trees, breaches: 10/40, params: {window_size: 20, n_trees: 3, height: 3}}
    throughput: {}
    silence: {}
"""

_START = 1_790_000_000


def _batches(
    records: list[tuple[bytes | None, bytes | None, int, Any]], cuts: list[int]
) -> list[RecordBatch]:
    found = []
    edges = sorted({0, len(records), *(c % (len(records) + 1) for c in cuts)})
    for start, end in itertools.pairwise(edges):
        part = records[start:end]
        found.append(
            RecordBatch(
                "p",
                0,
                list(range(start, end)),
                [r[2] for r in part],
                [r[0] for r in part],
                [r[1] for r in part],
                [r[3] for r in part],
            )
        )
    return found


def _run(
    batches: list[RecordBatch], *, learning: bool, config: str = _CONFIG
) -> tuple[list[Any], dict[str, bytes], dict[str, Any], Pipeline]:
    pipeline = Pipeline(rules.RuleBook(rules.parse(config)), kind="predictions", topic="p")
    assert pipeline._templates is not None
    pipeline._templates.learning = learning
    outs = [msgspec.to_builtins(pipeline.process(b)) for b in batches]
    outs.append(msgspec.to_builtins(pipeline.advance(pipeline.clock_us + 3_600_000_000)))
    return outs, dict(pipeline.snapshot_models(sorted(pipeline.models))), pipeline.manifest(), pipeline


def _same(records: list[Any], cuts: list[int]) -> Pipeline:
    batches = _batches(records, cuts)
    *expected, _ = _run(batches, learning=False)
    *found, pipeline = _run(batches, learning=True)
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    assert found[2] == expected[2]
    return pipeline


# ------------------------------------------------------------------ records


def _iso(at: float) -> str:
    return dt.datetime.fromtimestamp(at, dt.UTC).isoformat()


def _event(rng: random.Random, i: int, model: str, shape: int) -> dict[str, Any]:
    at = _START + i * 0.05
    features = {name: rng.gauss(0, 1) for name in "abcd"}
    event: dict[str, Any] = {"id": f"e-{i}", "source": f"serving/{model}", "time": _iso(at)}
    match shape:
        case 0:
            event |= {
                "model": {"name": model, "version": "7"},
                "prediction": {"value": rng.random(), "label": rng.choice(["ok", "bad", "1"])},
                "duration_s": rng.lognormvariate(-2, 1),
                "features": features,
            }
        case 1:
            event |= {"model": model, "prediction": rng.random(), "features": {**features, "e": "text"}}
        case 2:
            event |= {"model.name": model, "model.version": 3, "prediction": rng.choice(["x", "y"])}
        case 3:
            event |= {
                "model": {"name": model},
                "error": {"type": "timeout", "message": None},
                "duration_s": 1,
            }
        case 4:
            event |= {"model.name": model, "error.type": rng.choice(["timeout", ""]), "prediction": None}
        case 5:
            event |= {
                "model": {"name": model, "version": 8, "team": "core"},
                "prediction": {
                    "score": rng.random(),
                    "label": rng.choice([0, 1, True, None]),
                    "scores": {"a": 0.25},
                },
                "features": features,
                "error": rng.choice([None, None, "late", ""]),
                "segment": {"country": "de", "age": 7, "new": True},
                "batch": {"trace": [1, 2.5, {"k": "v"}], "note": "n"},
                "usage": {"input_tokens": i, "output_tokens": rng.choice([None, 3.5, -1]), "cost": rng.random()},
            }
        case _:
            event |= {"prediction": rng.random() < 0.5, "features": {"b": 1, "a": rng.randint(-5, 5)}}
            event["time"] = rng.choice([at, int(at), int(at * 1000), int(at * 1e6)])
    return event


def _odd_value(rng: random.Random) -> Any:
    return rng.choice(
        [
            None,
            True,
            False,
            0,
            -1,
            2**53 + 1,
            2**63,
            10**25,
            10**400,
            1e308,
            5e-324,
            "text",
            "",
            "ü",
            'q"',
            "specversion",
            {},
            [],
            [1],
            {"x": 1},
            "2026-01-01T00:00:00Z",
            0.1,
            -0.0,
            1.5e300,
        ]
    )


def _change(event: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Change one thing somewhere."""
    event = json.loads(json.dumps(event))
    at = event
    while True:
        key = rng.choice(list(at))
        if isinstance(at[key], dict) and at[key] and rng.random() < 0.7:
            at = at[key]
            continue
        break
    match rng.randrange(4):
        case 0:
            del at[key]
        case 1:
            at[key] = _odd_value(rng)
        case 2:
            at[rng.choice(["extra", "model", "time", "features", "error", "ü", 'k"', "prediction"])] = (
                _odd_value(rng)
            )
        case _:
            items = list(at.items())
            rng.shuffle(items)
            at.clear()
            at.update(items)
    return event


def _plain(text: str) -> bytes:
    return text.encode()


def _escape(text: str) -> bytes:
    return text.replace("serving", "serv\\u0069ng", 1).encode()


def _spaced(text: str) -> bytes:
    return text.replace(",", " ,\n", 1).replace(":", "\t: ", 2).encode() + b" "


def _truncated(text: str) -> bytes:
    return text.encode()[: len(text) * 2 // 3]


def _not_utf8(text: str) -> bytes:
    return text.encode().replace(b"serving", b"serv\xff", 1)


def _control(text: str) -> bytes:
    return text.encode().replace(b"serving", b"serv\x01\t", 1)


def _trailing(text: str) -> bytes:
    return text.encode() + b"x"


def _twice(text: str) -> bytes:
    return b'{"prediction":0.5,"duration_s":2,' + text.encode()[1:]


def _odd_number(text: str) -> bytes:
    numbers = [
        "01",
        "1.",
        ".5",
        "+1",
        "-",
        "1e",
        "1e999",
        "-0",
        "-0.0",
        "1E+2",
        "0.1e-400",
        "123456789012345678901",
    ]
    return text.encode().replace(b": 0.", f": {random.Random(len(text)).choice(numbers)}".encode() + b"0.", 1)


_TEXTS: list[Callable[[str], bytes]] = [
    *([_plain] * 9),
    _escape,
    _spaced,
    _truncated,
    _not_utf8,
    _control,
    _trailing,
    _twice,
    _odd_number,
]


def _record(
    rng: random.Random, i: int, *, models: int, oddness: float
) -> tuple[bytes | None, bytes | None, int, Any]:
    number = rng.randrange(models)
    model = f"m{number}"
    shape = (number if rng.random() < 0.9 else rng.randrange(7)) % 7
    event = _event(rng, i, model, shape)
    odd = rng.random() < oddness
    if odd:
        event = _change(event, rng)
    value: bytes | None = (rng.choice(_TEXTS) if odd else _plain)(json.dumps(event))
    headers: Any = ()
    if odd and rng.random() < 0.1:
        headers = [("ce_time", b"2026-09-21T14:13:20Z"), ("ce_id", b"x")]
    if odd and rng.random() < 0.03:
        value = None
    if odd and rng.random() < 0.05:
        value = json.dumps(
            {"specversion": "1.0", "id": "1", "source": "s", "type": "t", "data": event}
        ).encode()
    return (None if rng.random() < 0.01 else model.encode()), value, (_START + i // 20) * 1000, headers


@given(
    seed=st.integers(0, 2**32),
    models=st.integers(1, 9),
    oddness=st.sampled_from([0.0, 0.02, 0.3]),
    cuts=st.lists(st.integers(1, 399), min_size=1, max_size=12),
)
@settings(max_examples=25, deadline=None)
def test_templates_change_no_alert_no_rejection_and_no_state(
    seed: int, models: int, oddness: float, cuts: list[int]
) -> None:
    rng = random.Random(seed)
    _same([_record(rng, i, models=models, oddness=oddness) for i in range(400)], cuts)


def test_templates_change_nothing_over_a_long_stream_however_it_is_cut() -> None:
    rng = random.Random(11)
    records = [_record(rng, i, models=9, oddness=0.05) for i in range(3000)]
    for cuts in ([1500], list(range(0, 3000, 7)), [rng.randrange(3000) for _ in range(60)]):
        _same(records, cuts)
    outs, *_ = _run(_batches(records, [1500]), learning=True)
    assert sum(len(o["alerts"]) for o in outs) > 20, "a comparison of nothing"


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(),
        lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from(
        ["features", "segment", "extra", "time", "prediction", "error", "duration_s", "id", "model"]
    ),
    st.lists(st.text(max_size=3) | st.sampled_from(["a", "b", "label", "value", "name"]), max_size=2),
)
@settings(max_examples=150, deadline=None)
def test_any_json_anywhere_in_a_record_reads_the_same(found: Any, field: str, path: list[str]) -> None:
    rng = random.Random(3)
    for name in reversed(path):
        found = {name: found}
    records: list[Any] = []
    for i in range(12):
        event = _event(rng, i, "m0", 0)
        if i >= 2:
            event[field] = found
        records.append((b"m0", json.dumps(event, ensure_ascii=i % 2 == 0).encode(), _START * 1000, ()))
    expected = _run(_batches(records, [2, 4, 8]), learning=False)
    found_now = _run(_batches(records, [2, 4, 8]), learning=True)
    assert found_now[:3] == expected[:3]


# ------------------------------------------------------------------ templates


def _clean(n: int, *, models: int) -> list[Any]:
    rng = random.Random(1)
    return [
        (b"m%d" % (i % models), json.dumps(_event(rng, i, f"m{i % models}", 0)).encode(), _START * 1000, ())
        for i in range(n)
    ]


def test_records_of_a_known_shape_are_not_decoded_by_msgspec(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = _batches(_clean(200, models=10), [50])
    *_, pipeline = _run([first], learning=True)
    decoded: list[Any] = []
    monkeypatch.setattr(pipeline._decoder, "decode", lambda *a: decoded.append(a))
    assert pipeline.process(second).events == 150
    assert decoded == []


def test_templates_are_bounded_and_those_in_use_outlive_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MAX_TEMPLATES", 20)
    monkeypatch.setattr(templates, "_STALE", 3)
    records = []
    rng = random.Random(4)
    for i in range(600):
        model = f"m{i % 3}" if i % 2 else f"n{i // 20}"
        records.append((model.encode(), json.dumps(_event(rng, i, model, i % 2)).encode(), _START * 1000, ()))
    pipeline = _same(records, list(range(0, 600, 10)))
    assert pipeline._templates is not None
    assert len(pipeline._templates._templates) <= 20
    assert {b"m0", b"m1", b"m2"} <= pipeline._templates._heads.keys()


def test_a_producer_whose_shape_always_changes_is_soon_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    learned = []
    real = templates.Templates._learn_one
    monkeypatch.setattr(
        templates.Templates, "_learn_one", lambda self, *a: (learned.append(a[0]), real(self, *a))[1]
    )
    rng = random.Random(5)
    records = []
    for i in range(2000):
        event = _event(rng, i, "m0", 0)
        event[f"trace{i}"] = 1
        records.append((b"m0", json.dumps(event).encode(), _START * 1000, ()))
    _same(records, list(range(0, 2000, 10)))
    assert len(learned) < 30


def test_a_label_of_another_type_with_the_same_digits_is_the_same_class() -> None:
    records = []
    for i in range(60):
        label = '"1"' if i % 2 else "1"
        text = f'{{"model": "m", "prediction": {{"label": {label}}}}}'
        records.append((b"m", text.encode(), (_START + i) * 1000, ()))
    pipeline = _same(records, [5, 30])
    assert pipeline.models["m"].classes.names == ["1"]  # type: ignore[attr-defined]


def test_many_different_labels_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "_MAX_LABELS", 8)
    records = []
    for i in range(400):
        text = f'{{"model": "m", "prediction": "label {i % 50}"}}'
        records.append((b"m", text.encode(), (_START + i) * 1000, ()))
    pipeline = _same(records, list(range(0, 400, 20)))
    assert pipeline._templates is not None
    assert len(pipeline._templates.labels) <= 64


# ------------------------------------------------------------------ numbers


@kernel
def _read_all(data: U8, ends: I64, stops: I64, values: F64) -> None:
    start = 0
    for i in range(ends.size):
        stop, values[i], _, _ = read_number(data, start, ends[i])
        stops[i] = stop
        start = ends[i]


def _numbers(texts: list[str]) -> tuple[list[bool], list[float]]:
    data = np.frombuffer(bytearray("".join(texts).encode()) + bytes(8), np.uint8)
    ends = np.cumsum(np.array([len(t) for t in texts], np.int64))
    stops, values = np.zeros(len(texts), np.int64), np.zeros(len(texts))
    _read_all(data, ends, stops, values)
    return (stops == ends).tolist(), values.tolist()


def _check(texts: list[str], *, read_at_least: float) -> None:
    read, values = _numbers(texts)
    wrong = [
        (t, v)
        for t, ok, v in zip(texts, read, values, strict=True)
        if ok and struct.pack("d", v) != struct.pack("d", float(json.loads(t)))
    ]
    assert wrong == []
    assert sum(read) >= read_at_least * len(texts)


@pytest.mark.parametrize(
    "write", [repr, "{:.17g}".format, "{:.3e}".format, "{:.12g}".format], ids=["repr", "17g", "3e", "12g"]
)
def test_a_quarter_of_a_million_doubles_of_any_size_read_to_the_bit(write: Callable[[float], str]) -> None:
    rng = np.random.default_rng(7)
    doubles = rng.integers(0, 2**64, 250_000, dtype=np.uint64).view(np.float64)
    _check([write(d) for d in doubles[np.isfinite(doubles)].tolist()], read_at_least=0.998)


def test_everyday_numbers_read_to_the_bit() -> None:
    rng = random.Random(8)
    texts = [str(rng.randint(-(10**k), 10**k)) for k in range(18) for _ in range(3000)]
    texts += [f"{rng.gauss(0, 1):.{k}f}" for k in range(1, 17) for _ in range(3000)]
    texts += [repr(rng.gauss(0, 1)) for _ in range(50_000)]
    _check(texts, read_at_least=1.0)


def test_numbers_halfway_between_two_doubles_go_to_the_even_one() -> None:
    texts = []
    rng = random.Random(9)
    for _ in range(20_000):
        odd = 2 * rng.getrandbits(52) + (1 << 53) + 1
        texts += [str(odd), f"{odd}e0", f"{odd}0e-1", f"{odd / 2:.1f}", f"{odd * 5}e-1", f"{odd}.0"]
    texts += [
        "9007199254740993",
        "9007199254740993.0",
        "4503599627370496.5",
        "1e23",
        "8.5e22",
        "2.2250738585072014e-308",
    ]
    _check(texts, read_at_least=0.9)


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**20), 10**20))
@settings(max_examples=500, deadline=None)
def test_a_number_reads_to_the_bit_or_not_at_all(number: float) -> None:
    _check([repr(number)], read_at_least=0.0)


@given(st.from_regex(r"-?[0-9.eE+\-]{1,24}", fullmatch=True))
@settings(max_examples=500, deadline=None)
def test_what_is_no_json_number_is_not_read(text: str) -> None:
    read, values = _numbers([text])
    try:
        expected = msgspec.json.decode(text.encode(), type=float)
    except msgspec.DecodeError:
        assert not read[0]
    else:
        assert not read[0] or struct.pack("d", values[0]) == struct.pack("d", expected)


def _time(text: str) -> int:
    data = np.frombuffer(bytearray(text.encode()) + bytes(8), np.uint8)
    return int(read_time(data, 0, len(text.encode())))


@given(
    st.datetimes(dt.datetime(1980, 1, 3), dt.datetime(2098, 12, 31)),  # noqa: DTZ001 (the text gives the offset)
    st.sampled_from(["", "Z", "+00:00", "-00:00", "+05:30", "-11:45", "+23:59"]),
    st.integers(0, 9),
    st.integers(0, 10**9 - 1),
)
@settings(max_examples=500, deadline=None)
def test_a_time_reads_as_msgspec_reads_it(moment: dt.datetime, offset: str, digits: int, nanos: int) -> None:
    fraction = f".{nanos:09d}"[: digits + 1] if digits else ""
    text = moment.strftime("%Y-%m-%dT%H:%M:%S") + fraction + offset
    assert _time(text) == time_us(msgspec.json.decode(f'"{text}"', type=dt.datetime))


@given(
    st.from_regex(
        r"(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-6][0-9]:[0-6][0-9](\.[0-9]{0,10})?(Z|z|[+-][0-2][0-9]:?[0-6][0-9])?",
        fullmatch=True,
    )
)
@settings(max_examples=500, deadline=None)
def test_what_is_no_time_is_not_read(text: str) -> None:
    found = _time(text)
    try:
        expected = time_us(msgspec.json.decode(f'"{text}"', type=dt.datetime))
    except (msgspec.DecodeError, OverflowError):
        assert found == NO_TIME
    else:
        assert found in (expected, NO_TIME)


def test_every_shape_of_these_tests_makes_a_template() -> None:
    rng = random.Random(2)
    learner = templates.Templates()
    for shape in range(6):
        value = json.dumps(_event(rng, shape, "m", shape)).encode()
        learner._template(b"m", value, msgspec.json.decode(value, type=Prediction))
    assert not math.isnan(learner._credit)


# ------------------------------------------------------------------ windows


@given(st.integers(0, 2**32), st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_the_compiled_tally_is_the_plain_one(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    index, late, failed = rng.integers(3, 6, n), rng.random(n) < 0.2, rng.random(n) < 0.3
    values, seconds = rng.normal(size=n), rng.lognormal(-3, 4, n)
    values[rng.random(n) < 0.2] = np.nan
    seconds[rng.random(n) < 0.2] = np.nan
    tallied, plain = Accumulator(4, 0, 0, value_sum=0.1), Accumulator(4, 0, 0, value_sum=0.1)
    tallied.tally(index, late, values=values, buckets=latency_buckets(seconds), failed=failed)
    own = (index == 4) & ~late
    plain.errors = int(failed[own].sum())
    plain.add_values(values[own & ~np.isnan(values)])
    if (own & ~np.isnan(seconds)).any():
        plain.add_latencies(seconds[own & ~np.isnan(seconds)])
    assert state.dumps(tallied.snapshot()) == state.dumps(plain.snapshot())


def _plain_progress(windows: Windows, times: I64, arrivals: I64, before: I64) -> list[int]:
    """Follow the watermark by its definition, event by event."""
    found = []
    latest, reached, arrived = windows.max_event_us, windows.progress_us, windows.last_arrival_us
    for t, a, b in zip(times.tolist(), arrivals.tolist(), before.tolist(), strict=True):
        silence = b - arrived - windows.idle_us
        by_silence = [latest + silence] if latest is not None and silence > 0 else []
        latest = t if latest is None else max(latest, t)
        reached = max([latest, *by_silence, *([] if reached is None else [reached])])
        found.append(reached)
        arrived = a
    return found


@given(st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_progress_follows_its_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    windows = Windows(size_us=50, lateness_us=20, idle_us=30)
    clock = 0
    for n in rng.integers(1, 20, 4):
        arrivals = clock + np.cumsum(rng.integers(0, 60, n))
        before = np.concatenate(([clock], arrivals[:-1])) + rng.integers(0, 2, n) * 0
        times = arrivals + rng.integers(-80, 40, n)
        expected = _plain_progress(windows, times, arrivals, before)
        late_before = windows.late
        progress = windows.advance(times, arrivals, before)
        assert progress.tolist() == expected
        index, late, alike = windows.place(times, progress)
        assert index.tolist() == [t // 50 for t in times.tolist()]
        assert late.tolist() == [(i + 1) * 50 <= p - 20 for i, p in zip(index.tolist(), expected, strict=True)]
        assert windows.late - late_before == late.sum()
        assert alike == (len(set(index.tolist())) == 1 and not late.any())
        clock = int(arrivals[-1])
