"""Everything streamproc raises on purpose.

    StreamprocError                 exit code 1
    ├── ConfigError            1    the configuration says something that cannot be
    │   ├── InvalidConnection       (also a ValueError) the `kafka:` block contradicts itself
    │   ├── TopicMissing            a topic is not there, and creating it is not allowed
    │   └── TopicRejected           the broker refuses to create a topic as asked for
    ├── UsageError             2    the command line says something that cannot be
    ├── ReplayGateFailed       3    a replay found more, or other, alerts than its gate allows
    ├── BrokerError            4
    │   ├── BrokerUnreachable       no broker answers
    │   └── BrokerAuthFailed        a broker answers and turns us away: credentials or certificates
    ├── EmbeddedBrokerError    1    the demo's own broker is not installed, or did not start
    └── SnapshotError          1    a stored state cannot be taken up
        ├── OffsetsReset            somebody set the group's offsets back to what is in the state already
        └── ForeignState            the snapshot topic holds the state of another deployment

A message says where, what, and what to do; it is all a user of the command line sees.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct


class StreamprocError(Exception):
    """The base of all errors a user can do something about."""

    exit_code: ClassVar[int] = 1


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

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place} error {self.code} {self.path}".rstrip() + f"\n  {self.message}"


class ConfigError(StreamprocError):
    """The configuration says something that cannot be. `issues` has every mistake found in a file."""

    def __init__(self, problem: str | list[ConfigIssue]) -> None:
        super().__init__(problem if isinstance(problem, str) else "\n".join(map(str, problem)))
        self.issues = [] if isinstance(problem, str) else problem


class InvalidConnection(ConfigError, ValueError):
    """The settings of the connection contradict each other, or name a file that is not there."""


class TopicMissing(ConfigError):
    """A topic is not there, and creating it is not allowed."""


class TopicRejected(ConfigError):
    """The broker refuses to create a topic as asked for."""


class UsageError(StreamprocError):
    """The command line says something that cannot be."""

    exit_code: ClassVar[int] = 2


class ReplayGateFailed(StreamprocError):
    """A replay found more, or other, alerts than its gate allows."""

    exit_code: ClassVar[int] = 3


class BrokerError(StreamprocError):
    """The broker cannot be used."""

    exit_code: ClassVar[int] = 4


class BrokerUnreachable(BrokerError):
    """No broker answers."""


class BrokerAuthFailed(BrokerError):
    """A broker answers and turns us away: credentials or certificates."""


class EmbeddedBrokerError(StreamprocError):
    """The embedded broker is not installed, or did not start."""


class SnapshotError(StreamprocError):
    """A stored state cannot be taken up."""


class OffsetsReset(SnapshotError):
    """Somebody set the group's offsets back to what is in the state already."""


class ForeignState(SnapshotError):
    """The snapshot topic holds the state of another deployment."""
