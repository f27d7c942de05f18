"""Logs of a process: one line an event on stderr, for people or as JSON; libraries' quietened."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import orjson
import structlog

Format = Literal["console", "json"]

#: Chatty libraries, and from what level they are heard.
_HEARD_FROM = {
    "faust": logging.WARNING,
    "mode": logging.WARNING,
    # Faust's services log under the module of their class: these are ours, and the news is Faust's.
    "streamproc.worker.app": logging.WARNING,
    "streamproc.worker.driver": logging.WARNING,
    "aiokafka": logging.WARNING,
    "kafka": logging.ERROR,
    "asyncio": logging.ERROR,
    "aiohttp.access": logging.WARNING,
    "numba": logging.WARNING,
}

#: What a client says of a cluster that is still starting; it tries again, and so it is no news.
_NO_NEWS = (
    "GroupCoordinatorNotAvailableError",
    "CoordinatorNotAvailableError",
    "Group Coordinator Request failed",
    "Topic creation",
    "Heartbeat failed for group",
    "is rebalancing",
)


class _StartUpNoise(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(noise in text for noise in _NO_NEWS)


def _dumps(value: Any, **options: Any) -> str:
    return orjson.dumps(value, default=options.get("default"), option=orjson.OPT_NON_STR_KEYS).decode()


def configure(*, form: Format, level: str) -> None:
    """Send the logs of structlog and of the standard library to stderr, in one form.

    level: debug, info, warning or error; the libraries below us stay at their own.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Any] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_dumps)]
        if form == "json"
        else [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=36)]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    handler.addFilter(_StartUpNoise())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, heard_from in _HEARD_FROM.items():
        logging.getLogger(name).setLevel(max(heard_from, logging.getLevelName(level.upper())))
