"""Logs of a process: one line an event on stderr, for people or as JSON; libraries' quietened."""

from __future__ import annotations

import contextlib
import logging
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

import orjson
import structlog

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


#: Frames of a traceback that are shown, the innermost, and causes: with their headings some 20 lines.
_FRAMES = 12
_CAUSES = 3

#: Errors of these speak of brokers, files and sockets, and never quote a record.
_OF_CLIENTS = ("aiokafka.", "kafka.", "aiohttp.")


class _StartUpNoise(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        text = record.getMessage()
        return not any(noise in text for noise in _NO_NEWS)


class _Unquoted(logging.Filter):
    """Has libraries name the errors they log of, which they would quote whole."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_Named(a) if isinstance(a, BaseException) else a for a in record.args)
        return True


class _Named:
    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __repr__(self) -> str:
        return named(self._error)


def named(error: BaseException | None) -> str:
    """Return an error's name, with what it says only where that cannot quote a record's values."""
    if error is None:
        return "unknown"
    name = type(error).__name__
    ours = isinstance(error, StreamprocError | OSError) or type(error).__module__.startswith(_OF_CLIENTS)
    return f"{name}: {error}" if ours and str(error) else name


def trace(error: BaseException, *, quoting: bool = False) -> str:
    """Return where an error came from in some 20 lines, without the values that its message may quote.

    quoting: with its message all the same.
    """
    lines: list[str] = []
    seen: BaseException | None = error
    for _ in range(_CAUSES):
        if seen is None:
            break
        frames = traceback.extract_tb(seen.__traceback__)
        lines.append(f"{type(seen).__name__}: {seen}" if quoting else named(seen))
        shown = frames[-max(1, _FRAMES - len(lines)) :]
        if len(shown) < len(frames):
            lines.append(f"  {len(frames) - len(shown)} frames above")
        lines += [f"  {Path(*Path(f.filename).parts[-3:])}:{f.lineno} in {f.name}" for f in shown]
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
        if seen is not None:
            lines.append("caused by")
    if lines[-1] == "caused by":
        lines[-1] = "and more causes"
    return "\n".join(lines[:20])


#: Marks an error that was shown.
_SHOWN = "_streamproc_shown"


def _once(error: BaseException, *, quoting: bool) -> str:
    """Return where an error came from the first time it is logged: the libraries around us tell of it again."""
    if getattr(error, _SHOWN, False):
        return named(error)
    with contextlib.suppress(AttributeError):
        setattr(error, _SHOWN, True)
    return trace(error, quoting=quoting)


def _traces(level: str) -> Any:
    """Return what structlog is to show an error by; only where all is logged may it quote values."""
    quoting = level == "debug"

    def show(sio: TextIO, exc_info: tuple[type[BaseException], BaseException, TracebackType | None]) -> None:
        sio.write("\n" + _once(exc_info[1], quoting=quoting))

    return show


def _as_text(level: str) -> Any:
    quoting = level == "debug"
    return structlog.processors.ExceptionRenderer(lambda exc_info: _once(exc_info[1], quoting=quoting))


def _dumps(value: Any, **options: Any) -> str:
    return orjson.dumps(value, default=options.get("default"), option=orjson.OPT_NON_STR_KEYS).decode()


def configure(*, form: Format, level: str) -> None:
    """Send the logs of structlog and of the standard library to stderr, in one form.

    level: debug, info, warning or error; the libraries below us stay at their own. Of errors the logs say what and
    where, and only at debug their messages, which may quote what records hold.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), pad_event_to=36, exception_formatter=_traces(level)
    )
    last: list[Any] = (
        [_as_text(level), structlog.processors.JSONRenderer(serializer=_dumps)] if form == "json" else [console]
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
    if level != "debug":
        handler.addFilter(_Unquoted())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name, heard_from in _HEARD_FROM.items():
        logging.getLogger(name).setLevel(max(heard_from, logging.getLevelName(level.upper())))
