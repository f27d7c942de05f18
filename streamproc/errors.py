"""Everything streamproc raises on purpose, and the exit codes of its commands.

    StreamprocError            70   what has no code of its own
    ├── ConfigError             1   the configuration says something that cannot be
    │   └── InvalidConnection       (also a ValueError) the `kafka:` block contradicts itself
    ├── UsageError              2   the command line says something that cannot be
    ├── GateFailed              3   what was to be shown did not show
    │   └── ReplayGateFailed        a replay found more, or other, alerts than its gate allows, or nothing to go by
    ├── BrokerError             4
    │   ├── BrokerUnreachable       no broker answers
    │   └── BrokerAuthFailed        a broker answers and turns us away: credentials or certificates
    ├── TopicError              5
    │   ├── TopicMissing            a topic is not there, and creating it is not allowed
    │   └── TopicRejected           the broker refuses to create a topic as asked for
    ├── SnapshotError           6   a stored state cannot be taken up
    │   ├── OffsetsReset            somebody set the group's offsets back to what is in the state already
    │   └── ForeignState            the snapshot topic holds the state of another deployment
    ├── PortTaken               7   the port for the web pages is another's
    └── EmbeddedBrokerError     8   the demo's own broker is not installed, or did not start

A message says where, what, and what to do; it is all a user of the command line sees.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct

#: What a command ends with: the only such table, which `--help` and the documentation repeat.
EXIT_CODES: dict[int, str] = {
    0: "ok",
    1: "the config is invalid",
    2: "the command line is wrong",
    3: "a gate failed: of `replay` or `schema --check`; `explain-record` refused; the demo missed its fault",
    4: "no broker can be reached, or it turns us away",
    5: "a topic is missing, or the broker refuses to create it",
    6: "a stored state cannot be taken up",
    7: "the web port is taken",
    8: "the embedded broker is not installed, or did not start",
    70: "it crashed, and ended rather than lose records",
    130: "interrupted",
}

#: What nothing else stands for: an error of our own code.
CRASHED = 70


class StreamprocError(Exception):
    """The base of all errors a user can do something about."""

    exit_code: ClassVar[int] = CRASHED


class ConfigIssue(Struct, frozen=True):
    """One mistake in a config: where, what, and what to do.

    line and column count from 1; 0 stands for the file as a whole.
    """

    file: str
    line: int
    column: int
    code: str
    path: str
    message: str

    @property
    def is_warning(self) -> bool:
        """Whether it is doubtful and not wrong: its code begins with W."""
        return self.code.startswith("W")

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        what = "warning" if self.is_warning else "error"
        return f"{place} {what} {self.code} {self.path}".rstrip() + f"\n  {self.message}"


class ConfigError(StreamprocError):
    """The configuration says something that cannot be. `issues` has every mistake found in a file."""

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str | list[ConfigIssue]) -> None:
        super().__init__(problem if isinstance(problem, str) else "\n".join(map(str, problem)))
        self.issues = [] if isinstance(problem, str) else problem


class InvalidConnection(ConfigError, ValueError):
    """The settings of the connection contradict each other, or name a file that is not there."""


class UsageError(StreamprocError):
    """The command line says something that cannot be."""

    exit_code: ClassVar[int] = 2


class GateFailed(StreamprocError):
    """What was to be shown did not show."""

    exit_code: ClassVar[int] = 3


class ReplayGateFailed(GateFailed):
    """A replay found more, or other, alerts than its gate allows, or nothing to go by."""


class BrokerError(StreamprocError):
    """The broker cannot be used."""

    exit_code: ClassVar[int] = 4


class BrokerUnreachable(BrokerError):
    """No broker answers."""


class BrokerAuthFailed(BrokerError):
    """A broker answers and turns us away: credentials or certificates."""


class TopicError(StreamprocError):
    """A topic cannot be used."""

    exit_code: ClassVar[int] = 5


class TopicMissing(TopicError):
    """A topic is not there, and creating it is not allowed."""


class TopicRejected(TopicError):
    """The broker refuses to create a topic as asked for."""


class SnapshotError(StreamprocError):
    """A stored state cannot be taken up."""

    exit_code: ClassVar[int] = 6


class OffsetsReset(SnapshotError):
    """Somebody set the group's offsets back to what is in the state already."""


class ForeignState(SnapshotError):
    """The snapshot topic holds the state of another deployment."""


class PortTaken(StreamprocError):
    """The port for the web pages is another's."""

    exit_code: ClassVar[int] = 7


class EmbeddedBrokerError(StreamprocError):
    """The embedded broker is not installed, or did not start."""

    exit_code: ClassVar[int] = 8
