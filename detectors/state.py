"""Turn a detector's state into bytes and back, exactly and without pickle.

The format is a two-byte mark, one byte of version, then msgpack. Numpy arrays, numpy scalars and
integers beyond 64 bits travel as msgpack extension types. Nothing in the bytes is ever executed.
"""

from __future__ import annotations

import re
import zlib
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from detectors.protocol import State

__all__ = ["VERSION", "StateError", "dumps", "loads"]

_MARK: Final = b"sd"

#: The version written, and the only one read.
VERSION: Final = 1

_ARRAY: Final = 1
_SCALAR: Final = 2
_BIG_INT: Final = 3

# Counts below this many bytes cost more to squeeze than they save on the wire.
_SQUEEZE_FROM_BYTES: Final = 512

#: Names of types that are written, as `dtype.str` gives them.
_DTYPE: Final = re.compile(r"[<>|=][biufcSU]\d{1,9}")

_LEAVES: Final = frozenset({float, str, bytes, bool, type(None)})
_INT64_MIN: Final = -(2**63)
_UINT64_MAX: Final = 2**64 - 1


class StateError(ValueError):
    """The bytes, or the tree, are not a state that can be taken up."""


def dumps(state: State) -> bytes:
    """Write a state as bytes.

    Parameters
    ----------
    state
        A tree of dict (str keys), list, tuple (read back as a list), int of any size, float with
        nan and infinities, str, bytes, bool, None, numpy arrays and numpy scalars of numbers,
        booleans or text.

    Raises
    ------
    StateError
        The tree holds something else.

    Examples
    --------
    >>> import numpy as np
    >>> from detectors.state import dumps, loads
    >>> loads(dumps({"n": 3, "masses": np.zeros(2, dtype=np.uint16)}))
    {'n': 3, 'masses': array([0, 0], dtype=uint16)}

    A count array that is mostly zero is stored in few bytes.

    >>> len(dumps({"masses": np.zeros(10_000, dtype=np.int64)})) < 200
    True
    """
    if not isinstance(state, dict):
        raise StateError(f"a state is a dict, not {type(state).__name__}")
    try:
        body = _plain_encoder.encode(_plain_tree(state))
    except (TypeError, RecursionError) as error:
        raise StateError(f"a state cannot hold this: {error}") from error
    return _MARK + bytes((VERSION,)) + body


def loads(data: bytes) -> State:
    """Read a state that `dumps` wrote; arrays come back writable, with their dtype and shape.

    Raises
    ------
    StateError
        The bytes are not a state, are damaged, or are of another version.
    """
    if data[:2] != _MARK or len(data) < 4:
        raise StateError("not a detector state: the leading mark is missing")
    if data[2] != VERSION:
        raise StateError(f"state format version {data[2]} cannot be read; this release reads {VERSION}")
    try:
        state = _decoder.decode(memoryview(data)[3:])
    except (msgspec.MsgspecError, ValueError, TypeError, KeyError, RecursionError, zlib.error) as error:
        raise StateError(f"damaged detector state: {error}") from error
    if not isinstance(state, dict):
        raise StateError(f"a state is a dict, not {type(state).__name__}")
    return state


def _plain_tree(node: Any) -> Any:
    # msgspec itself would write sets, dates and wide integers as something else, or not at all.
    kind = type(node)
    if kind in _LEAVES:
        return node
    if kind is int:
        if _INT64_MIN <= node <= _UINT64_MAX:
            return node
        wide = node.to_bytes(node.bit_length() // 8 + 1, "little", signed=True)
        return msgspec.msgpack.Ext(_BIG_INT, wide)
    if kind is dict:
        for key in node:
            if type(key) is not str:
                raise TypeError(f"the key {key!r}")
        return {key: _plain_tree(value) for key, value in node.items()}
    if kind is list or kind is tuple:
        return [_plain_tree(value) for value in node]
    if isinstance(node, np.ndarray):
        return msgspec.msgpack.Ext(_ARRAY, _pack_array(node))
    if isinstance(node, np.generic):
        dtype = _plain(node.dtype)
        return msgspec.msgpack.Ext(_SCALAR, _plain_encoder.encode((dtype.str, node.tobytes())))
    raise TypeError(f"{kind.__module__}.{kind.__qualname__}")


def _plain(dtype: np.dtype[Any]) -> np.dtype[Any]:
    if dtype.kind not in "biufcSU" or dtype.hasobject:
        raise TypeError(f"numpy dtype {dtype}")
    return dtype


def _named(name: Any) -> np.dtype[Any]:
    """Return the type of a name that `dtype.str` gave; numpy itself would evaluate a damaged one as Python."""
    if not isinstance(name, str) or _DTYPE.fullmatch(name) is None:
        raise ValueError("bad array type")
    return _plain(np.dtype(name))


def _pack_array(array: npt.NDArray[Any]) -> bytes:
    dtype = _plain(array.dtype)
    stored, data, squeezed = array, b"", False
    if dtype.kind in "iu" and array.nbytes > _SQUEEZE_FROM_BYTES and int(array.min()) >= 0:
        stored = array.astype(np.min_scalar_type(int(array.max())), copy=False)
        data = stored.tobytes()
        if len(data) > _SQUEEZE_FROM_BYTES:
            tight = zlib.compress(data, 1)
            if len(tight) < len(data):
                data, squeezed = tight, True
    if not data:
        data = stored.tobytes()
    return _plain_encoder.encode((dtype.str, array.shape, stored.dtype.str, squeezed, data))


def _unpack_array(data: memoryview) -> npt.NDArray[Any]:
    name, shape, stored_name, squeezed, body = _plain_decoder.decode(data)
    dtype, stored = _named(name), _named(stored_name)
    count = 1
    for side in shape:
        if type(side) is not int or side < 0:
            raise ValueError("bad array shape")
        count *= side
    if squeezed:
        # The expected length bounds what damaged bytes can make us allocate.
        body = zlib.decompressobj().decompress(body, count * stored.itemsize + 1)
    if len(body) != count * stored.itemsize:
        raise ValueError("array of another length than its shape")
    array = np.frombuffer(body, dtype=stored).reshape(shape)
    return array.astype(dtype)


def _decode_other(code: int, data: memoryview) -> Any:
    if code == _ARRAY:
        return _unpack_array(data)
    if code == _SCALAR:
        name, body = _plain_decoder.decode(data)
        return np.frombuffer(body, dtype=_named(name))[0]
    if code == _BIG_INT:
        return int.from_bytes(bytes(data), "little", signed=True)
    raise ValueError(f"unknown extension type {code}")


_decoder = msgspec.msgpack.Decoder(ext_hook=_decode_other)
_plain_encoder = msgspec.msgpack.Encoder()
_plain_decoder = msgspec.msgpack.Decoder()
