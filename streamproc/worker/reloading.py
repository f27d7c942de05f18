"""A config file that is read again while a process runs: taken whole or not at all."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import structlog
from prometheus_client import Gauge

from streamproc import config as config_module
from streamproc import rules
from streamproc.config import Config
from streamproc.errors import ConfigIssue, StreamprocError

log = structlog.get_logger("streamproc.config")

_EVERY_S = 5.0


class Reloader:
    """Reads a changed config file again, and has it taken.

    fixed: blocks that need a restart; a reload that changes one is refused with this said. adjust: what the command
    line changes in the file's config, each time. `take` is to be set before the first reload: it swaps to a config, or
    raises `StreamprocError` and leaves all as it was.
    """

    def __init__(
        self,
        path: Path | None,
        env: Mapping[str, str],
        config: Config,
        *,
        fixed: Sequence[str],
        adjust: Callable[[Config], Config] = lambda config: config,
    ) -> None:
        self.path = path
        self.env = env
        self.config = config
        self.fixed = fixed
        self.adjust = adjust
        self.digest = "" if path is None else config_module.digest(path.read_bytes())
        self.take: Callable[[Config], Awaitable[None]] | None = None
        self.ok: Gauge | None = None  # 1 where the last reload was taken
        self.taken: Callable[[str], None] | None = None  # told of the digest that is in force
        self.stamps: Callable[[Config], object] | None = None  # when the files that a config names were changed
        self._lacking: tuple[Config, object] | None = None  # the config that was not taken, and the stamps it had
        self._refused = ""  # the digest of what was not taken; ""; what runs is the latest
        self._one = asyncio.Lock()
        self._tasks: set[asyncio.Task[str] | asyncio.Task[None]] = set()

    async def reload(self) -> str:
        """Read the file again and swap to it; return what is wrong with it, or ""."""
        if self.path is None or self.take is None:
            return "no config file to reload"
        async with self._one:
            digest = "unreadable"
            self._lacking = None
            try:
                digest = config_module.digest(self.path.read_bytes())
                doubts: list[ConfigIssue] = []
                config = self.adjust(rules.load(self.path, env=self.env, doubts=doubts))
                for block in self.fixed:
                    if getattr(config, block) != getattr(self.config, block):
                        raise StreamprocError(f"{self.path}: `{block}` has changed, which needs a restart")
                if self.stamps is not None:
                    self._lacking = config, await asyncio.to_thread(self.stamps, config)
                await self.take(config)
                self._lacking = None
            except (StreamprocError, OSError) as e:
                self._refused = digest
                self._tell(ok=False)
                log.error("config not reloaded", problem=str(e), still_running=self.digest)
                return f"{e}\nrunning config unchanged (sha {self.digest})"
            self.config, self.digest, self._refused = config, digest, ""
            self._tell(ok=True)
            if self.taken is not None:
                self.taken(digest)
            for doubt in doubts:
                log.warning("config", problem=str(doubt))
            log.info("config reloaded", sha=digest)
            return ""

    def _tell(self, *, ok: bool) -> None:
        if self.ok is not None:
            self.ok.set(1 if ok else 0)

    def start(self) -> None:
        """Reload at SIGHUP, and where the file's content has changed."""
        loop = asyncio.get_running_loop()

        def hangup() -> None:
            task = loop.create_task(self.reload())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        loop.add_signal_handler(signal.SIGHUP, hangup)
        self._tasks.add(loop.create_task(self._watch()))

    def stop(self) -> None:
        """Watch no longer."""
        for task in self._tasks:
            task.cancel()

    async def _watch(self) -> None:
        """Look at the content: a ConfigMap swaps a link, which no event tells."""
        while self.path is not None:
            await asyncio.sleep(_EVERY_S)
            try:
                digest = config_module.digest(self.path.read_bytes())
            except OSError:
                continue
            if digest == self.digest and self._refused:
                # Somebody took a bad change back: what is in the file is what runs.
                self._refused, self._lacking = "", None
                self._tell(ok=True)
                log.info("the config file is what runs again", sha=digest)
            elif digest not in (self.digest, self._refused) or await self._mended():
                await self.reload()

    async def _mended(self) -> bool:
        """Return whether a file has changed that the config names which was not taken."""
        if not self._refused or self._lacking is None or self.stamps is None:
            return False
        config, before = self._lacking
        return await asyncio.to_thread(self.stamps, config) != before
