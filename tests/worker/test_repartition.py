"""Records are sent on under their models' keys, with what their meaning rests on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from streamproc.events import KEY_HEADER, ORIGIN_HEADER, RecordBatch
from streamproc.worker.repartition import Repartitioner, internal_topic
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
