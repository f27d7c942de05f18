"""Throw compiled loops away when any source of theirs is newer: numba looks at a loop's own file only."""

from __future__ import annotations

from pathlib import Path

import detectors

_package = Path(detectors.__file__).parent
_newest = max(path.stat().st_mtime for path in _package.glob("*.py"))
if any(path.stat().st_mtime < _newest for path in (_package / "__pycache__").glob("*.nbc")):
    # The loops with their index: one that is left is older than the source for ever, and all are compiled at every run.
    for _stored in (_package / "__pycache__").glob("*.nb[ci]"):
        _stored.unlink(missing_ok=True)
