"""Compressed values, told by their first bytes, and opened to no more than is asked for."""

from __future__ import annotations

import importlib
import zlib
from typing import Any

GZIP = b"\x1f\x8b"
ZSTD = b"\x28\xb5\x2f\xfd"

#: Where a zstd may be: the standard library's from Python 3.14, its backport, and the older package.
_LIBRARIES = ("compression.zstd", "backports.zstd", "zstandard")


class CompressionError(ValueError):
    """Why a compressed value cannot be opened; error_type as in `Rejected`."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type


def is_compressed(value: bytes) -> bool:
    """Whether a value begins as gzip or zstd does; no JSON does."""
    return value[:2] == GZIP or value[:4] == ZSTD


def decompress(value: bytes, *, max_bytes: int) -> bytes:
    """Return what is in a compressed value. Raise `CompressionError` where it is damaged or too much."""
    return _gunzip(value, max_bytes) if value[:2] == GZIP else _unzstd(value, max_bytes)


def _gunzip(value: bytes, max_bytes: int) -> bytes:
    found = bytearray()
    rest = value
    while rest:  # a file may be of several members
        member = zlib.decompressobj(wbits=31)
        try:
            found += member.decompress(rest, max_bytes + 1 - len(found))
        except zlib.error as e:
            raise CompressionError("malformed", f"gzip: damaged ({_cause(e)})") from None
        if len(found) > max_bytes:
            raise _too_large(max_bytes)
        if not member.eof:
            raise CompressionError("malformed", "gzip: cut off")
        rest = member.unused_data.lstrip(b"\0")  # padding is allowed
    return bytes(found)


def _unzstd(value: bytes, max_bytes: int) -> bytes:
    library = _zstd()
    if library is None:
        raise CompressionError(
            "unknown_format", "zstd: no library to read it with; install streamproc[zstd], or send gzip"
        )
    try:
        if library.__name__ == "zstandard":
            reader = library.ZstdDecompressor().stream_reader(value)
            found = bytes(reader.read(max_bytes + 1))
            # A reader gives what there is of a frame that was cut off, and says nothing.
            whole = len(found) > max_bytes or _whole_frame(library, value)
        else:
            opened = library.ZstdDecompressor()
            found = bytes(opened.decompress(value, max_bytes + 1))
            whole = len(found) > max_bytes or opened.eof
    except Exception as e:
        raise CompressionError("malformed", f"zstd: damaged ({type(e).__name__})") from None
    if len(found) > max_bytes:
        raise _too_large(max_bytes)
    if not whole:
        raise CompressionError("malformed", "zstd: cut off")
    return found


def _whole_frame(library: Any, value: bytes) -> bool:
    opened = library.ZstdDecompressor().decompressobj()
    opened.decompress(value)  # known to be no more than is allowed
    return bool(opened.eof)


def _zstd() -> Any:
    for name in _LIBRARIES:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _cause(error: zlib.error) -> str:
    return str(error).partition(": ")[2] or "zlib"


def _too_large(max_bytes: int) -> CompressionError:
    return CompressionError("too_large", f"more than {max_bytes} bytes once decompressed; no more are read")
