"""The gauge of reloads says whether the file is what runs, whoever changed it and back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge

from streamproc import rules
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
