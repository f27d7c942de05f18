"""What stands in a cell of a feature matrix. Apart from the loops that fill it, so as not to load a compiler."""

from __future__ import annotations

from typing import Final

IS_NUMBER: Final = 0
IS_NULL: Final = 1
IS_TEXT: Final = 2
