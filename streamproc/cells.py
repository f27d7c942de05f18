"""What stands in a cell of a feature matrix. Apart from the loops that fill it, so as not to load a compiler."""

from __future__ import annotations

from typing import Final

IS_NUMBER: Final = 0
IS_NULL: Final = 1
IS_TEXT: Final = 2  # and its length beyond, up to LONG_TEXT

#: A text longer than this, in characters, is no category.
LONG_TEXT: Final = 64
