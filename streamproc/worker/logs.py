"""Logs of a process: one line an event on stderr, for people or as JSON; libraries' quietened."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from collections.abc import MutableMapping
from typing import Any, Literal

import orjson
import structlog
from aiokafka.errors import KafkaError

from streamproc.errors import StreamprocError

Format = Literal["console", "json"]

#: Chatty libraries, and from what level they are heard.
_HEARD_FROM = {
    "faust": logging.WARNING,
    "mode": logging.WARNING,
    # Faust's services log under the module of their class: these are ours, and the news is Faust's.
    "streamproc.worker.app": logging.WARNING,
    "streamproc.worker.driver": logging.WARNING,
    "aiokafka": logging.WARNING,
    "aiokafka.cluster": logging.CRITICAL,  # a topic that is not there, at each turn; the engine says so once
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


#: Frames shown of an error: where it was raised, and a little of the way there.
_FRAMES = 6

#: Marks an error that was shown.
_TOLD = "_streamproc_told"

#: Characters of a line of a library that are shown.
_LINE = 600


def named(error: BaseException | None) -> str:
    """Return an error without what it may quote of a record.

    Its own text is shown where it is known to be none's but a program's: ours, Kafka's clients' and the system's.

    >>> named(ValueError("could not convert string to float: 'secret'")), named(OSError(28, "No space left on device"))
    ('ValueError', 'OSError: No space left on device')
    """
    if error is None:
        return "unknown"
    kind = type(error).__name__
    if isinstance(error, StreamprocError | KafkaError):
        return f"{kind}: {error}"
    if isinstance(error, OSError) and error.strerror:
        return f"{kind}: {error.strerror}"
    return kind


def brief(error: BaseException, *, frames: int = _FRAMES) -> str:
    """Return what an error is and where it came from, in a few lines, without its text and without any value."""
    lines = []
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen and len(seen) < 2:
        seen.add(id(found))
        stack = traceback.extract_tb(found.__traceback__)
        lines.append(f"{'' if found is error else 'because of '}{named(found)}"[:_LINE])
        lines += [f"  {_place(frame.filename)}:{frame.lineno} in {frame.name}" for frame in stack[-frames:]]
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
        frames //= 2
    return "\n".join(lines)


def _place(path: str) -> str:
    parts = path.replace("\\", "/").split("/")
    return "/".join(parts[-3:])


def _errors(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Show an error that is logged: where it came from once, and without what may be of a record."""
    told = event.pop("exc_info", None)
    error = told[1] if isinstance(told, tuple) else told if isinstance(told, BaseException) else None
    if told is True:
        error = sys.exc_info()[1]
    if error is None:
        return event
    # The libraries around us tell of it again, each with a trace of its own.
    event["exception"] = named(error) if getattr(error, _TOLD, False) else brief(error)
    with contextlib.suppress(AttributeError):
        setattr(error, _TOLD, True)
    return event


class _Foreign(logging.Filter):
    """Takes out of the lines of libraries what they quote: the errors they are given, and whatever is long."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.msg, dict):  # one of ours
            return True
        if isinstance(record.args, tuple):
            record.args = tuple(named(a) if isinstance(a, BaseException) else a for a in record.args)
        text = record.getMessage()
        line = text.strip().partition("\n")[0][:_LINE]
        if line != text:
            record.msg, record.args = line, ()
        return True


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
        [structlog.processors.JSONRenderer(serializer=_dumps)]
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
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _errors, *last],
        )
    )
    handler.addFilter(_StartUpNoise())
    handler.addFilter(_Foreign())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, heard_from in _HEARD_FROM.items():
        logging.getLogger(name).setLevel(max(heard_from, logging.getLevelName(level.upper())))
