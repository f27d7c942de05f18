"""Where the labelled data and its scorers are."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

SHARED = Path(os.environ.get("STREAMPROC_SHARED", Path(__file__).parents[2].parent / "shared"))


def tool(name: str) -> Any:
    """Import one of the scorers by its path."""
    path = SHARED / "tools" / f"{name}.py"
    if not path.is_file():
        sys.exit(f"{path} is not there; set STREAMPROC_SHARED to the directory that has tools/ and data/")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
