"""Records are sent on under their models' keys, with what their meaning rests on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from faust.types import TP

from streamproc.events import KEY_HEADER, ORIGIN_HEADER, RecordBatch
from streamproc.topology import internal_topic
from streamproc.worker.repartition import Pairs, Repartitioner
from streamproc.worker.run import topic_specs
from tests.core.make import config, pipeline
from tests.core.samples import BEGIN_MS, Sample, records

TOPICS = ["seldon.prod.model.iris.inputs", "seldon.prod.model.iris.outputs"]


class Broker:
    """Keeps what is sent; stands for an app and its producer."""

    def __init__(self) -> None:
        self.producer = self
        self.sent: list[tuple[str, bytes, bytes, int, list[tuple[str, bytes]]]] = []

    async def send(self, topic: str, *, key: Any, value: Any, timestamp: float, headers: Any, **_: Any) -> Any:
        self.sent.append((topic, key, value, round(timestamp * 1000), headers))
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


def forwarded(*samples: str, times: int = 1) -> RecordBatch:
    broker = Broker()

    async def run() -> None:
        for _ in range(times):
            for i, sample in enumerate(map(Sample, samples)):
                forwarder = Repartitioner(broker, config(), topic=sample.topic, kind="predictions")
                await forwarder.forward(records([sample], stamps_ms=[BEGIN_MS + 20 * i]))

    asyncio.run(run())
    assert {s[0] for s in broker.sent} == {"streamproc-seldon.prod.model.iris-by-model"}
    columns = list(zip(*broker.sent, strict=True))
    return RecordBatch(
        columns[0][0], 0, list(range(len(broker.sent))), list(columns[3]), list(columns[1]), list(columns[2]),
        list(columns[4]),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["seldon", "seldon_json"])
@pytest.mark.parametrize("times", [1, 2])
def test_the_two_topics_of_a_seldon_model_meet(kind: str, times: int) -> None:
    batch = forwarded(f"{kind}_request", f"{kind}_response", times=times)
    assert set(batch.keys) == {b"prod/iris"}
    assert dict(batch.headers[0])[KEY_HEADER] == b"cjq0nd7ubnls73dqsnl0"
    assert [dict(h)[ORIGIN_HEADER] for h in batch.headers[:2]] == [b"0:0", b"-1:0"]
    p = pipeline(config(), deduplicate=True)
    out = p.process(batch)
    assert (out.rejected, out.events, out.fenced) == ([], 2, 2 * (times - 1))
    (window,) = p.models["prod/iris"].windows.open.values()
    assert (window.count, window.errors, window.latency_n()) == (1, 0, 1)
    assert window.latency_quantile(0.5) == pytest.approx(0.02, rel=0.01)


def test_a_pair_has_one_topic_inside() -> None:
    assert len({internal_topic("a", t) for t in TOPICS}) == 1
    sources = f"kafka: {{brokers: 'x:1', repartition: true, predictions: [{', '.join(TOPICS)}]}}\n"
    from streamproc import rules

    names = [s.name for s in topic_specs(rules.parse("version: 1\n" + sources))]
    assert len(names) == len(set(names))
    assert "streamproc-seldon.prod.model.iris-by-model" in names


def stretch(topic: str, stamps_ms: list[int], first: int = 0) -> RecordBatch:
    n = len(stamps_ms)
    offsets = list(range(first, first + n))
    return RecordBatch(topic, 0, offsets, stamps_ms, [b"k"] * n, [b"v"] * n, [()] * n)


def test_of_a_pair_what_is_ahead_waits_until_the_other_half_is_read() -> None:
    pairs, (requests, responses) = Pairs(step_ms=10), (TP(t, 0) for t in TOPICS)
    pairs.add(("t", 0), requests, stretch(TOPICS[0], [0, 5, 20, 25, 40]))
    assert list(pairs.due(("t", 0), [responses])) == []
    pairs.add(("t", 0), responses, stretch(TOPICS[1], [3, 22]))
    sent = [(tp.topic, part.timestamps_ms) for tp, part in pairs.due(("t", 0), [responses])]
    # The stretch at 25 and what follows wait again: the responses have more to read.
    assert sent == [(TOPICS[0], [0, 5]), (TOPICS[1], [3]), (TOPICS[0], [20, 25]), (TOPICS[1], [22])]
    assert [p.timestamps_ms for _, p in pairs.due(("t", 0), [])] == [[40]]


def test_of_a_pair_too_much_never_waits_and_what_has_left_us_is_let_go() -> None:
    pairs, (requests, responses) = Pairs(step_ms=10_000), (TP(t, 0) for t in TOPICS)
    pairs.add(("t", 0), requests, stretch(TOPICS[0], [0] * 50_000))
    assert list(pairs.due(("t", 0), [responses])) == []
    pairs.add(("t", 0), requests, stretch(TOPICS[0], [1], first=50_000))
    assert sum(len(p) for _, p in pairs.due(("t", 0), [responses])) == 50_000
    pairs.forget(requests)
    assert list(pairs.due(("t", 0), [])) == []
