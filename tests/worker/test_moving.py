"""How producers spread keys is told from where models were."""

from __future__ import annotations

import zlib

from aiokafka.partitioner import DefaultPartitioner

from streamproc.worker.moving import Spread

NAMES = [f"model-{i}" for i in range(40)]


def seen(home: dict[str, int], n: int) -> Spread:
    spread = Spread()
    for p in range(n):
        spread.note([m for m in NAMES if home[m] == p], p, of=n)
    return spread


def test_of_java_and_pythons_clients_the_new_home_is_theirs() -> None:
    of = DefaultPartitioner()
    home = {m: of(m.encode(), [0, 1], [0, 1]) for m in NAMES}
    spread = seen(home, 2)
    assert [spread.homes(m, of=5) for m in NAMES] == [{of(m.encode(), list(range(5)), list(range(5)))} for m in NAMES]


def test_of_librdkafka_the_new_home_is_its_own() -> None:
    spread = seen({m: zlib.crc32(m.encode()) % 2 for m in NAMES}, 2)
    assert [spread.homes(m, of=5) for m in NAMES] == [{zlib.crc32(m.encode()) % 5} for m in NAMES]


def test_of_one_partition_either_may_be_meant() -> None:
    spread = seen(dict.fromkeys(NAMES, 0), 1)
    assert all(zlib.crc32(m.encode()) % 5 in spread.homes(m, of=5) for m in NAMES)
    assert all(len(spread.homes(m, of=5)) <= 2 for m in NAMES)


def test_of_any_other_way_a_model_may_come_up_anywhere() -> None:
    spread = seen({m: len(m) % 2 if i else 1 - len(m) % 2 for i, m in enumerate(NAMES)}, 2)
    assert spread.homes("model-1", of=3) == {0, 1, 2}
