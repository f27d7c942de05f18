"""The gauge of reloads says whether the file is what runs, whoever changed it and back."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Gauge

from streamproc import rules, tables
from streamproc.config import Config
from streamproc.worker import reloading
from streamproc.worker.reloading import Reloader
from tests.core.make import MINIMUM

BAD = MINIMUM + "defaults: {windw: 1s}\n"
OTHER = MINIMUM + "defaults: {window: 2m}\n"


class Running:
    """A reloader that watches a file every hundredth of a second, and what came of it."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "w.yaml"
        self.path.write_text(MINIMUM)
        self.reloader = Reloader(self.path, {}, rules.load(self.path, env={}), fixed=("kafka",))
        self.gauge = Gauge("ok", "ok", registry=CollectorRegistry())
        self.gauge.set(1)
        self.taken: list[str] = []
        self.configs: list[Config] = []
        self.reloader.ok, self.reloader.taken, self.reloader.take = self.gauge, self.taken.append, self.take

    async def take(self, config: Config) -> None:
        self.configs.append(config)

    def ok(self) -> bool:
        return self.gauge._value.get() == 1.0

    async def until(self, ok: bool) -> None:
        async with asyncio.timeout(10):
            while self.ok() != ok:
                await asyncio.sleep(0.01)


def watched(directory: Path, story: Callable[[Running], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> Running:
    monkeypatch.setattr(reloading, "_EVERY_S", 0.01)
    running = Running(directory)

    async def main() -> None:
        running.reloader.start()
        try:
            await story(running)
        finally:
            running.reloader.stop()

    asyncio.run(main())
    return running


def test_a_bad_change_that_is_taken_back_is_no_failure_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(r: Running) -> None:
        for _ in range(2):
            r.path.write_text(BAD)
            await r.until(False)
            r.path.write_text(MINIMUM)
            await r.until(True)

    assert watched(tmp_path, story, monkeypatch).configs == []


def test_it_is_so_too_where_the_bad_change_was_reloaded_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(r: Running) -> None:
        r.path.write_text(BAD)
        assert "windw" in await r.reloader.reload()
        assert not r.ok()
        r.path.write_text(MINIMUM)
        await r.until(True)

    watched(tmp_path, story, monkeypatch)


def test_what_is_in_force_is_told_at_each_reload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(r: Running) -> None:
        r.path.write_text(BAD)
        await r.until(False)
        r.path.write_text(OTHER)
        await r.until(True)

    running = watched(tmp_path, story, monkeypatch)
    assert running.taken == [running.reloader.digest]
    assert [c.defaults.window.us for c in running.configs] == [120_000_000]


def measured(path: Path, monkeypatch: pytest.MonkeyPatch, story: Callable[[Running], Awaitable[None]]) -> Running:
    """Watch a file whose configs name tables, which are read as a worker reads them."""

    async def main(running: Running) -> None:
        async def take(config: Config) -> None:
            await asyncio.to_thread(tables.read, config, path=running.path)
            running.configs.append(config)

        running.reloader.take = take
        running.reloader.stamps = functools.partial(tables.stamps, path=running.path)
        await story(running)

    return watched(path, main, monkeypatch)


MEASURED = MINIMUM + "models: [{match: {model: m}, reference: {file: t.parquet}}]\n"


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", b"x,y\n1,2\n"])
def test_a_table_that_cannot_be_read_leaves_what_runs_and_is_taken_once_it_is_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    async def story(r: Running) -> None:
        (tmp_path / "t.parquet").write_bytes(content)
        r.path.write_text(MEASURED)
        await r.until(False)
        assert r.configs == []
        parquet.write_table(pyarrow.table({"x": [1.5] * 600}), tmp_path / "new")
        (tmp_path / "new").rename(tmp_path / "t.parquet")
        await r.until(True)
        assert [len(c.models) for c in r.configs] == [1]
        r.path.write_text(OTHER)  # and the file is watched on
        async with asyncio.timeout(10):
            while len(r.configs) < 2:
                await asyncio.sleep(0.01)

    measured(tmp_path, monkeypatch, story)


def test_a_table_that_is_missing_is_taken_once_it_comes_and_not_read_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Config] = []
    real = tables.read

    def counted(config: Config, *, path: Path | None) -> Any:
        reads.append(config)
        return real(config, path=path)

    monkeypatch.setattr(tables, "read", counted)

    async def story(r: Running) -> None:
        r.path.write_text(MEASURED.replace("t.parquet", "t.csv"))
        await r.until(False)
        await asyncio.sleep(0.2)
        assert len(reads) == 1
        (tmp_path / "new").write_text("x\n" + "1.5\n" * 600)
        (tmp_path / "new").rename(tmp_path / "t.csv")
        await r.until(True)

    measured(tmp_path, monkeypatch, story)
    assert len(reads) == 2
