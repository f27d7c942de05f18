"""Our own alerts read again, all in one order: what is made of them is made by series that each have all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec import Struct

from streamproc.decoding import Decoded, OwnDecoder
from streamproc.events import Alert, ModelRef, RecordBatch

__all__ = ["INCIDENTS", "PAGES", "FeedDecoder", "Received"]

#: The series there are: the names under which their states are kept.
INCIDENTS: Final = "fleet"
PAGES: Final = "pages"


class Received(Struct, gc=False):
    """An alert as an event of one series, of the time of its record."""

    model: ModelRef
    alert: Alert
    time: None = None


class FeedDecoder(OwnDecoder):
    """Decode the alerts we publish, each once for every series."""

    what = "alert"

    def __init__(self, series: Sequence[str]) -> None:
        self._series = [ModelRef(name) for name in series]
        self._decode = msgspec.json.Decoder(Alert).decode

    def decode(self, batch: RecordBatch, at: list[int] | None = None) -> Decoded:
        """Decode every record of a batch, or those at some rows; what cannot be read is `Rejected`."""
        found = super().decode(batch, at)
        return Decoded(
            [row for row in found.rows for _ in self._series],
            [Received(whose, alert) for alert in found.events for whose in self._series],
            found.rejected,
        )

    def read(self, value: bytes) -> Alert:
        """Return the alert in a record's value."""
        return self._decode(value)

    def fault(self, error: Exception) -> str:
        """Return whether it is no JSON, or no alert."""
        return "schema" if isinstance(error, msgspec.ValidationError) else "malformed"
