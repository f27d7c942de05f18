"""Every error streamproc raises on purpose.

StreamprocError
├── ConfigError            a config cannot be used                       exit 1
├── UsageError             a command was called wrongly                  exit 2
├── GateError              a replay gate failed                          exit 3
├── BrokerError            Kafka cannot serve us                         exit 4
│   ├── BrokerUnreachable
│   ├── BrokerAuthFailed
│   └── TopicMissing
└── SnapshotError          a stored state cannot be taken up             exit 1
"""

from __future__ import annotations

from msgspec import Struct


class StreamprocError(Exception):
    """Base of all; `exit_code` is what the command line ends with."""

    exit_code = 1


class ConfigIssue(Struct, frozen=True):
    """One mistake in a config: where, what, and what to do. line and column count from 1; 0 is the file."""

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
    """A config cannot be used. `issues` has every mistake found."""

    exit_code = 1

    def __init__(self, issues: list[ConfigIssue]) -> None:
        super().__init__("\n".join(map(str, issues)))
        self.issues = issues


class SnapshotError(StreamprocError):
    """A stored state cannot be taken up."""
