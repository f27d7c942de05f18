from __future__ import annotations

import contextlib
import datetime
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detectors.state import VERSION, StateError, dumps, loads

LEAVES = st.none() | st.booleans() | st.integers(-(2**90), 2**90) | st.floats() | st.text() | st.binary()
TREES = st.dictionaries(
    st.text(),
    st.recursive(
        LEAVES, lambda t: st.lists(t, max_size=4) | st.dictionaries(st.text(), t, max_size=4), max_leaves=20
    ),
    max_size=5,
)


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@settings(max_examples=150, deadline=None)
@given(TREES)
def test_any_tree_comes_back_to_the_bit(tree: dict[str, Any]) -> None:
    assert same(loads(dumps(tree)), tree)


@pytest.mark.parametrize("dtype", ["f8", "f4", "i8", "u2", "i1", "?", "c16", "<U3", "S2", ">i4"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3, 4), (1000,)])
def test_arrays_keep_dtype_shape_and_every_bit(dtype: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    array = rng.integers(0, 100, size=shape).astype(dtype)
    back = loads(dumps({"a": array}))["a"]
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert back.flags.writeable


def test_nan_payloads_and_negative_zero_survive_in_arrays() -> None:
    array = np.array([0x7FF8000000000123, 0x8000000000000000, 0x7FF0000000000000], dtype=np.uint64).view(
        np.float64
    )
    assert loads(dumps({"a": array}))["a"].tobytes() == array.tobytes()


def test_counts_that_are_mostly_zero_take_little_room() -> None:
    counts = np.zeros((511, 10), dtype=np.int64)
    counts[7] = 250
    data = dumps({"counts": counts})
    assert len(data) < 300
    back = loads(data)["counts"]
    assert back.dtype == np.int64
    assert np.array_equal(back, counts)


def test_negative_and_largest_integers_are_stored_exactly() -> None:
    for array in (np.full(1000, -3), np.full(1000, 2**64 - 1, dtype=np.uint64), np.arange(-5, 995)):
        assert np.array_equal(loads(dumps({"a": array}))["a"], array)


def test_numpy_scalars_keep_their_type() -> None:
    back = loads(
        dumps({"x": np.float32(0.1), "y": np.int16(-3), "z": np.float64(math.pi), "b": np.bool_(True)})
    )
    assert [type(back[key]) for key in "xyzb"] == [np.float32, np.int16, np.float64, np.bool_]
    assert back["x"] == np.float32(0.1)


def test_tuples_come_back_as_lists() -> None:
    assert loads(dumps({"t": (1, (2, 3))})) == {"t": [1, [2, 3]]}


@pytest.mark.parametrize(
    "thing", [object(), {1: 2}, {3}, datetime.date(2024, 1, 1), np.array([object()]), print, 1j]
)
def test_what_is_no_plain_data_is_refused(thing: object) -> None:
    with pytest.raises(StateError):
        dumps({"x": thing})


def test_another_version_is_refused_by_its_number() -> None:
    data = bytearray(dumps({}))
    data[2] = VERSION + 1
    with pytest.raises(StateError, match=f"version {VERSION + 1}"):
        loads(bytes(data))


@given(st.binary(max_size=60))
def test_garbage_is_refused_with_the_typed_error(data: bytes) -> None:
    with pytest.raises(StateError):
        loads(data)


@settings(deadline=None)
@given(st.integers(3, 10_000), st.integers(0, 255))
@example(314, 48)  # the name of an array's type, which numpy would read as Python
def test_damage_is_refused_or_gives_another_state_but_never_another_error(at: int, byte: int) -> None:
    data = bytearray(
        dumps({"a": np.arange(200), "b": [1, "x", 2.5], "c": np.zeros(900, dtype=np.int32), "d": 2**80})
    )
    data[at % len(data)] = byte
    with contextlib.suppress(StateError):
        assert isinstance(loads(bytes(data)), dict)
