"""The engine's promise: no offset is durable before everything it stands for is. With a producer that fails."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import orjson
import pytest
import structlog
from aiokafka.errors import InvalidTimestampError, MessageSizeTooLargeError
from faust.types import TP

from streamproc import rules
from streamproc.config import Config
from streamproc.events import RecordBatch
from streamproc.joins import JoinDecoder
from streamproc.rules import RuleBook
from streamproc.signals import SIGNALS
from streamproc.worker import snapshots
from streamproc.worker.beginnings import outside
from streamproc.worker.driver import Committed
from streamproc.worker.engine import Engine, Owned
from streamproc.worker.metrics import Metrics
from streamproc.worker.repartition import Repartitioner
from streamproc.worker.topics import Identity
from streamproc.worker.warming import first_alerts
from tests.core.make import MINIMUM
from tests.worker.harness import prediction

START = 1_790_000_000.0
SOURCE = TP("in", 0)

CONFIG = rules.parse(
    """
version: 1
kafka: {brokers: "nowhere:9092", predictions: [in]}
defaults: {signals: {latency: {detector: limits, params: {upper: 1.0}}}}
"""
)


class Sent:
    def __init__(self, topic: str, key: bytes | None, value: bytes | None, offset: int) -> None:
        self.topic, self.key, self.value, self.offset = topic, key, value, offset


class FakeProducer:
    """Takes everything; the broker's answer to a topic in `refused` is an error, in `pending` none at all."""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.refused: set[str] = set()
        self.refused_keys: tuple[bytes, ...] = ()

    async def send(self, topic: str, *, key: Any, value: Any, **_: Any) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        if topic in self.refused or (key is not None and key.startswith(self.refused_keys or (b"\0",))):
            future.set_exception(OSError("No space left on device"))
        else:
            self.sent.append(Sent(topic, key, value, len(self.sent)))
            future.set_result(self.sent[-1])
        return future

    def to(self, topic: str) -> list[Sent]:
        return [s for s in self.sent if s.topic == topic]


class FakeConsumer:
    def __init__(self) -> None:
        self.sought: list[dict[TP, int]] = []
        self.commits = 0
        self.end = 0
        self.asked: int | None = 0
        self.stable: int | None = None
        self.begin = 0
        self.group: dict[TP, Committed] = {}

    async def seek_to(self, positions: dict[TP, int]) -> None:
        self.sought.append(dict(positions))

    async def commit(self) -> None:
        self.commits += 1

    def own_commit(self, tp: TP) -> int | None:
        return 0 if self.commits else None

    async def committed(self, tps: list[TP]) -> dict[TP, Committed]:
        return {tp: at for tp, at in self.group.items() if tp in tps}

    async def earliest_offsets(self, *tps: TP) -> dict[TP, int]:
        return dict.fromkeys(tps, self.begin)

    def highwater(self, tp: TP) -> int:
        return self.end

    def readable(self, tp: TP) -> int:
        return self.end if self.stable is None else self.stable

    async def highwaters(self, *tps: TP) -> dict[TP, int]:
        if self.asked is None:
            raise OSError("no broker")
        return dict.fromkeys(tps, self.asked)


class FakeApp:
    def __init__(self) -> None:
        self.producer = FakeProducer()
        self.consumer = FakeConsumer()
        self.consumer_generation_id = 1
        self.rebalancing = False


WITH_LABELS = rules.parse(
    """
version: 1
kafka: {brokers: "nowhere:9092", predictions: [in], labels: [labels]}
"""
)


SENT_ON = rules.parse(
    """
version: 1
kafka: {brokers: "nowhere:9092", predictions: [in], repartition: true}
"""
)


class Bench:
    """An engine with one partition in hand, and everything around it in view."""

    def __init__(self, config: Config = CONFIG) -> None:
        self.app = FakeApp()
        self.fatal: list[BaseException] = []
        self.engine = Engine(
            self.app,
            config,
            settings={},
            sources={"in": "predictions"},
            raw=["in"] if config.kafka.repartition else [],
            partitions={"in": 1},
            snapshot_partitions=1,
            metrics=Metrics(),
            source="test",
            on_fatal=self.fatal.append,
            wall=lambda: START,
        )
        writer = snapshots.Writer(
            self.engine._send_snapshot, topic="in", partition=0, stored=snapshots.Stored(7), snapshot_partition=0
        )
        self.held = Owned(SOURCE, self.engine._pipeline(SOURCE), writer, 0, generation=1)
        self.engine._owned[SOURCE] = self.held


def batch(first: int, n: int, *, previous: int | None = None, slow: bool = False) -> RecordBatch:
    at = [START + first + i for i in range(n)]
    return RecordBatch(
        "in",
        0,
        list(range(first, first + n)),
        [int(t * 1000) for t in at],
        [b"m"] * n,
        [prediction("m", t, duration_s=9.0 if slow else 0.1) for t in at],
        [()] * n,
        first,
        first - 1 if previous is None else previous,
    )


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def test_an_alert_the_broker_refuses_keeps_the_offset_where_it_was() -> None:
    async def scenario() -> Bench:
        bench = Bench()
        bench.app.producer.refused = {"alerts"}
        await bench.engine.take(batch(0, 5, slow=True))
        with pytest.raises(OSError, match="No space left"):
            await bench.engine.snapshot()
        return bench

    bench = run(scenario())
    assert bench.held.durable == 0
    assert bench.app.consumer.commits == 0
    assert bench.app.producer.to("streamproc-snapshots") == []


def test_what_is_sent_on_to_be_joined_is_awaited_before_the_offset_moves() -> None:
    async def scenario(refused: set[str]) -> Bench:
        bench = Bench(WITH_LABELS)
        bench.app.producer.refused = refused
        await bench.engine.take(batch(0, 5))
        if refused:
            with pytest.raises(OSError, match="No space left"):
                await bench.engine.snapshot()
        else:
            await bench.engine.snapshot()
        return bench

    bench = run(scenario({"streamproc-joins"}))
    assert bench.held.durable == 0
    assert bench.app.producer.to("streamproc-snapshots") == []
    bench = run(scenario(set()))
    assert bench.held.durable == 5
    (sent,) = bench.app.producer.to("streamproc-joins")
    assert sent.key == b"m"
    assert len(JoinDecoder().read(sent.value or b"").rows) == 5


@pytest.mark.parametrize("kind", [b'["model"', b'["manifest"'])
def test_a_snapshot_the_broker_refuses_keeps_the_offset_where_it_was(kind: bytes) -> None:
    async def scenario() -> Bench:
        bench = Bench()
        bench.app.producer.refused_keys = (kind,)
        await bench.engine.take(batch(0, 5))
        with pytest.raises(OSError, match="No space left"):
            await bench.engine.snapshot()
        return bench

    bench = run(scenario())
    assert bench.held.durable == 0
    assert bench.engine.watermark(SOURCE) == 0
    assert bench.app.consumer.commits == 0
    assert not [s for s in bench.app.producer.sent if (s.key or b"").startswith(b'["manifest"')]


@pytest.mark.parametrize("refused", ["alerts", "streamproc-snapshots"])
def test_after_a_save_that_failed_no_manifest_is_written_though_the_broker_is_well_again(refused: str) -> None:
    async def scenario() -> Bench:
        bench = Bench()
        bench.app.producer.refused = {refused}
        await bench.engine.take(batch(0, 5, slow=True))
        with pytest.raises(OSError, match="No space left"):
            await bench.engine.snapshot()
        bench.app.producer.refused = set()
        await bench.engine.snapshot()
        await bench.engine.take(batch(5, 5))
        await bench.engine.on_revoked({SOURCE})
        return bench

    bench = run(scenario())
    assert bench.app.producer.to("streamproc-snapshots") == []
    assert bench.engine._parked == {}


def test_a_snapshot_writes_models_then_the_manifest_then_commits() -> None:
    async def scenario() -> Bench:
        bench = Bench()
        await bench.engine.take(batch(0, 5))
        await bench.engine.snapshot()
        return bench

    bench = run(scenario())
    kinds = [(s.key or b"")[2:7] for s in bench.app.producer.to("streamproc-snapshots")]
    assert kinds == [b"model", b"manif"]
    assert bench.engine.watermark(SOURCE) == 5
    assert bench.app.consumer.commits == 1


def test_a_revocation_whose_snapshot_fails_lets_go_without_keeping_the_state() -> None:
    async def scenario() -> Bench:
        bench = Bench()
        await bench.engine.take(batch(0, 5))
        bench.app.producer.refused = {"streamproc-snapshots"}
        await bench.engine.on_revoked({SOURCE})
        return bench

    bench = run(scenario())
    assert bench.engine.owned() == []
    assert bench.engine._parked == {}
    assert bench.fatal == []


def test_a_partition_that_comes_back_in_the_next_generation_goes_on_with_its_state() -> None:
    async def scenario() -> dict[TP, int]:
        bench = Bench()
        await bench.engine.take(batch(0, 5))
        await bench.engine.on_revoked({SOURCE})
        assert bench.engine.watermark(SOURCE) is None
        bench.app.consumer_generation_id = 2
        positions: dict[TP, int] = await bench.engine.positions({SOURCE})
        assert bench.engine._owned[SOURCE] is bench.held
        return positions

    assert run(scenario()) == {SOURCE: 5}


@pytest.mark.parametrize("generation", [1, 3])
def test_state_is_not_kept_where_another_may_have_had_the_partition(
    generation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> tuple[Bench, list[Any]]:
        bench = Bench()
        restored: list[Any] = []

        async def restore(tps: list[TP], generation: int) -> None:
            restored.append((tps, generation))
            bench.engine._restoring.clear()

        monkeypatch.setattr(bench.engine, "_restore", restore)
        await bench.engine.take(batch(0, 5))
        await bench.engine.on_revoked({SOURCE})
        bench.app.consumer_generation_id = generation
        await bench.engine.positions({SOURCE})
        return bench, restored

    bench, restored = run(scenario())
    assert bench.engine.owned() == []
    # Between the revocation and an assignment nothing is ours; after a generation missed, all is read anew.
    assert restored == ([] if generation == 1 else [([SOURCE], 3)])


def test_a_restore_that_ends_after_the_revocation_installs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> Bench:
        bench = Bench()
        bench.engine._owned.clear()
        reading = asyncio.Event()

        async def read(tps: list[TP]) -> dict[Any, snapshots.Stored]:
            await reading.wait()
            return {(tp.topic, tp.partition): snapshots.Stored(1, {"next_offset": 0, "clock_us": 0}) for tp in tps}

        monkeypatch.setattr(bench.engine, "_read", read)
        waiting = asyncio.ensure_future(bench.engine.positions({SOURCE}))
        await asyncio.sleep(0)
        await bench.engine.on_revoked({SOURCE})
        reading.set()
        assert await waiting == {}
        return bench

    bench = run(scenario())
    assert bench.engine.owned() == []
    assert bench.engine._restoring == {}


def test_a_batch_that_went_missing_is_read_again_and_not_skipped() -> None:
    async def scenario() -> Bench:
        bench = Bench()
        await bench.engine.take(batch(0, 5))
        await bench.engine.take(batch(10, 5))  # 5 to 9 were read from Kafka and never came
        assert bench.held.expected == 5
        await bench.engine.take(batch(5, 5))
        await bench.engine.take(batch(10, 5))
        return bench

    bench = run(scenario())
    assert bench.app.consumer.sought == [{SOURCE: 5}]
    assert bench.held.expected == 15


def test_a_hole_in_the_log_is_passed_over() -> None:
    async def scenario() -> Bench:
        bench = Bench()
        await bench.engine.take(batch(0, 5))
        await bench.engine.take(batch(8, 5, previous=4))  # nothing was read between: compaction, a marker
        return bench

    bench = run(scenario())
    assert bench.app.consumer.sought == []
    assert bench.held.expected == 13


def test_a_batch_delivered_twice_is_scored_once() -> None:
    async def scenario() -> Bench:
        bench = Bench()
        await bench.engine.take(batch(0, 5))
        await bench.engine.take(batch(0, 5))
        await bench.engine.take(batch(3, 5))
        return bench

    bench = run(scenario())
    assert bench.held.expected == 8
    assert bench.engine.metrics.events.labels(topic="in")._value.get() == 8


def test_what_comes_before_its_state_is_restored_is_not_taken() -> None:
    async def scenario() -> Bench:
        bench = Bench()
        held = bench.engine._owned.pop(SOURCE)
        await bench.engine.take(batch(0, 5))
        assert held.expected == 0
        return bench

    assert run(scenario()).app.producer.sent == []


def test_an_error_in_our_own_code_ends_the_worker_and_moves_no_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> Bench:
        bench = Bench()

        def broken(_: RecordBatch) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(bench.held.pipeline, "process", broken)
        with pytest.raises(ZeroDivisionError):
            await bench.engine.take(batch(0, 5))
        return bench

    bench = run(scenario())
    assert [type(e) for e in bench.fatal] == [ZeroDivisionError]
    assert bench.held.expected == bench.held.durable == 0


def test_a_batch_cut_short_while_publishing_is_never_covered_by_a_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> Bench:
        bench = Bench()
        stuck = asyncio.Event()

        async def never(*_: Any, **__: Any) -> None:
            await stuck.wait()

        monkeypatch.setattr(bench.app.producer, "send", never)
        taking = asyncio.ensure_future(bench.engine.take(batch(0, 5, slow=True)))
        await asyncio.sleep(0)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        monkeypatch.undo()
        await bench.engine.snapshot()
        await bench.engine.on_revoked({SOURCE})
        return bench

    bench = run(scenario())
    assert bench.app.producer.sent == []
    assert bench.engine._parked == {}
    assert bench.fatal == []


def test_an_alert_that_cannot_even_be_handed_over_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> Bench:
        bench = Bench()

        async def refuse(*_: Any, **__: Any) -> None:
            raise OSError("no producer")

        monkeypatch.setattr(bench.app.producer, "send", refuse)
        with pytest.raises(OSError, match="no producer"):
            await bench.engine.take(batch(0, 5, slow=True))
        return bench

    bench = run(scenario())
    assert [str(e) for e in bench.fatal] == ["no producer"]
    assert bench.engine.owned() == []


def test_a_dead_letter_too_large_for_its_topic_is_kept_without_its_value() -> None:
    async def scenario() -> Bench:
        bench = Bench()
        producer = bench.app.producer
        send = producer.send

        async def limited(topic: str, *, value: Any, **more: Any) -> asyncio.Future[Any]:
            if value is not None and len(value) > 600_000:
                refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                refused.set_exception(MessageSizeTooLargeError())
                return refused
            return await send(topic, value=value, **more)

        producer.send = limited  # type: ignore[method-assign, assignment]
        bad = RecordBatch("in", 0, [0], [int(START * 1000)], [b"m"], [b"x" * 700_000], [()], 0, -1)
        await bench.engine.take(bad)
        await bench.engine.snapshot()
        return bench

    bench = run(scenario())
    (letter,) = bench.app.producer.to("streamproc-dead-letters")
    assert letter.key == b"m"
    assert letter.value is None
    assert bench.engine.watermark(SOURCE) == 1
    assert bench.fatal == []


def test_a_partition_with_lag_that_does_not_move_is_unhealthy() -> None:
    bench = Bench()
    bench.app.consumer.end = 10
    assert bench.engine.stuck() == []
    bench.held.moved_at -= 120
    assert bench.engine.stuck() == ["in-0"]
    # Of an open transaction there is nothing to read, however long it takes.
    bench.app.consumer.stable = 0
    assert bench.engine.stuck() == []
    assert bench.engine.lag(bench.held) == 10
    bench.app.consumer.end, bench.app.consumer.stable = 0, None
    assert bench.engine.stuck() == []


@pytest.mark.parametrize(
    ("asked", "passes"), [(5, True), (6, False), (None, False)], ids=["nothing came", "more came", "no broker"]
)
def test_time_passes_only_where_the_broker_says_that_nothing_came(
    asked: int | None, passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> Bench:
        bench = Bench()
        await bench.engine.take(batch(0, 5))
        # What the last fetch told of the end; the worker was paused since, or cut off.
        bench.app.consumer.end, bench.app.consumer.asked = 5, asked
        monkeypatch.setattr(bench.engine, "_wall", lambda: START + 60.0)
        bench.held.moved_at -= 10.0
        clock = asyncio.ensure_future(bench.engine.run_clock())
        await asyncio.sleep(0.8)
        clock.cancel()
        return bench

    bench = run(scenario())
    assert bench.held.pipeline.clock_us == int((START + (60.0 if passes else 4.0)) * 1e6)
    assert bench.fatal == []


def test_what_warms_up_is_told_by_metric_page_and_log_until_all_of_it_can_alert() -> None:
    bench = Bench(WARMING)
    told: list[str] = []

    async def main() -> None:
        for k in range(2):
            await bench.engine.take(batch(40 * k, 40))
            with structlog.testing.capture_logs() as logs:
                await bench.engine._look_at_warming()
            told.extend(f"{line['event']}: {line['what']}" for line in logs)

    run(main())
    assert told == [
        "warming up: 1 of 1 models warm up: silence in 11 values, where enough events come",
        "warmed up: all signals of 1 models can alert",
    ]
    text = bench.engine.metrics.text().decode()
    assert "streamproc_series_warming 0.0" in text
    assert 'streamproc_signals_warming{signal=' not in text
    assert str(bench.engine.warming) == "all signals of 1 models can alert"


def test_the_start_says_when_a_new_model_can_first_alert() -> None:
    lines = first_alerts(RuleBook(WARMING))
    assert lines == ["latency by limits: 1 values", "silence: 52 events"]
    lines = first_alerts(RuleBook(rules.parse(MINIMUM)))
    assert "error_rate: 31 min; 70 s from 0.5 on" in lines
    assert "prediction_value by drift: 8.4 h" in lines


def unreadable(first: int, values: list[bytes]) -> RecordBatch:
    n = len(values)
    offsets = list(range(first, first + n))
    return RecordBatch("in", 0, offsets, [int(START * 1000)] * n, [b"m"] * n, values, [()] * n, first, first - 1)


@pytest.mark.parametrize("redact", [False, True])
def test_the_first_record_of_each_reason_is_logged_and_then_a_count_a_minute(redact: bool) -> None:
    text = f"version: 1\nkafka: {{brokers: 'b:1', predictions: [in]}}\nworker: {{redact: {str(redact).lower()}}}\n"
    bench = Bench(rules.parse(text))
    refusals = bench.engine._refusals

    async def main() -> list[Any]:
        with structlog.testing.capture_logs() as logs:
            refusals.tell(0.0)
            await bench.engine.take(unreadable(0, [b"{", b'{"prediction": "x"', b'{"model": 7}', b"{"]))
            refusals.tell(59.0)
            await bench.engine.take(unreadable(4, [b"{"] * 296))
            refusals.tell(60.0)
            refusals.tell(120.0)
        return [line for line in logs if line["log_level"] == "warning"]

    first, second, count = run(main())
    assert (first["reason"], first["offset"], second["reason"], second["offset"]) == ("malformed", 0, "schema", 2)
    assert ("why" in first) is not redact
    assert (count["topic"], count["malformed"], count["schema"], count["of"]) == ("in", 299, 1, 300)
    text = bench.engine.metrics.text().decode()
    assert 'streamproc_dead_letters_total{reason="malformed"} 299.0' in text
    assert 'streamproc_source_records_total{topic="in"} 300.0' in text
    assert 'streamproc_events_total{topic="in"} 0.0' in text


WARMING = rules.parse(
    """
version: 1
kafka: {brokers: "nowhere:9092", predictions: [in]}
defaults:
  signals:
    latency: {detector: limits, params: {upper: 1.0}}
    silence: {params: {warm_up: 50}}
"""
    + "".join(f'    {name}: {{mode: "off"}}\n' for name in SIGNALS if name not in ("latency", "silence"))
)


def test_labels_that_can_agree_with_no_answer_are_named_once_and_counted() -> None:
    bench = Bench(WITH_LABELS)
    tp = TP("labels", 0)
    bench.engine._kinds["labels"], bench.engine._partitions["labels"] = "labels", 1
    writer = snapshots.Writer(
        bench.engine._send_snapshot, topic="labels", partition=0, stored=snapshots.Stored(7), snapshot_partition=0
    )
    bench.engine._owned[tp] = Owned(tp, bench.engine._pipeline(tp), writer, 0, generation=1)

    def records(topic: str, values: list[bytes]) -> RecordBatch:
        n = len(values)
        return RecordBatch(topic, 0, list(range(n)), [int(START * 1000)] * n, [b"m"] * n, values, [()] * n, 0, -1)

    async def main() -> list[Any]:
        answers = [prediction("m", START + i, prediction={"label": "no" if i % 2 else "yes"}) for i in range(4)]
        truths = [b'{"prediction_id": "%d", "label": %d, "model": "m"}' % (i, i % 2) for i in range(4)]
        stray = b'{"prediction_id": "9", "label": 1, "model": "n"}'
        await bench.engine.take(records("in", answers))
        await bench.engine.take(records("labels", [*truths, stray]))
        with structlog.testing.capture_logs() as logs:
            bench.app.consumer.end = 9  # there are predictions still to read: whose, nobody knows yet
            await bench.engine._look_at_labels()
            assert "n" not in {line.get("model") for line in logs}
            bench.app.consumer.end = 4
            await bench.engine._look_at_warming()
            await bench.engine._look_at_warming()
        return [(line["model"], line["problem"]) for line in logs if line["log_level"] == "warning"]

    (m, of_classes), (n, of_model) = sorted(run(main()))
    assert (m, n) == ("m", "n")
    assert "labels of m are `0`, `1`, and its answers" in of_classes
    assert "labels are of model n, which makes no predictions" in of_model
    text = bench.engine.metrics.text().decode()
    assert 'streamproc_label_mismatches{kind="unknown_model"} 1.0' in text
    assert 'streamproc_label_mismatches{kind="other_classes"} 1.0' in text


def test_a_record_that_cannot_be_sent_on_ends_the_worker_and_moves_no_offset() -> None:
    async def scenario() -> Bench:
        bench = Bench(SENT_ON)
        engine = bench.engine
        engine._raw[SOURCE] = engine._taken[SOURCE] = 0
        engine.forwarders["in"] = Repartitioner(bench.app, SENT_ON, topic="in", kind="predictions")
        bench.app.producer.refused = {"streamproc-in-by-model"}
        with pytest.raises(OSError, match="No space left"):
            await engine.receive(batch(0, 5))
        bench.app.producer.refused = set()
        return bench

    bench = run(scenario())
    assert [type(e) for e in bench.fatal] == [OSError]
    assert bench.engine.watermark(SOURCE) == 0
    assert bench.app.producer.to("streamproc-dead-letters") == []


def test_only_what_its_topic_never_takes_is_set_aside_of_a_batch_that_is_sent_on() -> None:
    async def scenario() -> Bench:
        bench = Bench(SENT_ON)
        engine = bench.engine
        engine._raw[SOURCE] = engine._taken[SOURCE] = 0
        engine.forwarders["in"] = Repartitioner(bench.app, SENT_ON, topic="in", kind="predictions")
        producer, send = bench.app.producer, bench.app.producer.send
        asked: list[int] = []

        async def together(topic: str, *, value: Any, **more: Any) -> asyncio.Future[Any]:
            asked.append(1)
            if topic == "streamproc-in-by-model" and (len(asked) <= 5 or value == wrong):
                refused: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
                refused.set_exception(InvalidTimestampError())
                return refused
            return await send(topic, value=value, **more)

        producer.send = together  # type: ignore[method-assign, assignment]
        whole = batch(0, 5)
        wrong = whole.values[3]
        await engine.receive(whole)
        return bench

    bench = run(scenario())
    assert bench.fatal == []
    assert bench.engine.watermark(SOURCE) == 5
    assert len(bench.app.producer.to("streamproc-in-by-model")) == 4
    assert len(bench.app.producer.to("streamproc-dead-letters")) == 1


class FakeCluster:
    """Topics by id, as a broker would tell of them."""

    def __init__(self, **ids: str) -> None:
        self.ids = ids

    async def identify(self, names: Any) -> dict[str, Identity]:
        return {n: Identity(id=self.ids[n], partitions=1) for n in names if n in self.ids}

    async def restore(self) -> bool:
        return False


def test_a_log_that_goes_back_is_gone_on_with_at_its_end_and_its_offsets_are_new_ones() -> None:
    async def scenario() -> Bench:
        bench = Bench()
        bench.engine._cluster = FakeCluster(**{"in": "a", "streamproc-snapshots": "s"})
        await bench.engine.look()
        await bench.engine.take(batch(0, 50))
        bench.app.consumer.asked = 20  # the end of the log: an unclean election took thirty records
        back = msgspec.structs.replace(batch(0, 20), wanted=50)
        await bench.engine.take(back)
        assert bench.engine._look_now.is_set()
        await bench.engine.look()
        await bench.engine.take(msgspec.structs.replace(batch(20, 5), timestamps_ms=[int((START + 60) * 1000)] * 5))
        await bench.engine.snapshot()
        return bench

    bench = run(scenario())
    assert bench.held.expected == 25
    assert bench.app.consumer.sought == [{SOURCE: 20}]
    assert bench.engine.metrics.events.labels(topic="in")._value.get() == 55
    assert bench.engine.metrics.fenced._value.get() == 0
    assert bench.engine.metrics.renewed.labels(topic="in", reason="truncated")._value.get() == 1
    manifest = orjson.loads(bench.app.producer.to("streamproc-snapshots")[-1].value or b"")
    assert (manifest["log"]["life"], manifest["log"]["topic_id"]) == (1, "a")
    assert outside(manifest["next_offset"]) == 25


def test_a_topic_that_is_absent_is_counted_until_it_is_back() -> None:
    async def scenario() -> list[float]:
        bench = Bench()
        bench.engine._cluster = cluster = FakeCluster(**{"in": "a", "streamproc-snapshots": "s"})
        absent = []
        for ids in ({"in": "a"}, {"in": "a", "streamproc-silences": "x", "streamproc-feedback": "y"}):
            cluster.ids = {"streamproc-snapshots": "s", **ids}
            await bench.engine.look()
            absent.append(bench.engine.metrics.absent._value.get())
        return absent

    assert run(scenario()) == [2, 0]
