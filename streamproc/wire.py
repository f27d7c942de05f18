"""Protocol Buffers' wire format, as far as formats that are read without a schema need it."""

from __future__ import annotations

from collections.abc import Iterator


def fields(data: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield number and value of each field: an int for a varint, else bytes. Raise ValueError where it is none."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if number == 0:
            raise ValueError("protobuf: a field of number 0")
        if wire == 0:
            value, at = varint(data, at)
            yield number, value
            continue
        if wire == 2:
            length, at = varint(data, at)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError("protobuf: a wire type there is none of")
        if at + length > len(data):
            raise ValueError("protobuf: cut off")
        yield number, data[at : at + length]
        at += length


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number that begins at a place, and the place behind it."""
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
        shift += 7
    raise ValueError("protobuf: cut off")


def varints(data: bytes) -> Iterator[int]:
    """Yield numbers that stand packed."""
    at = 0
    while at < len(data):
        value, at = varint(data, at)
        yield value


def content(value: bytes | int) -> bytes:
    """Return a field that must be bytes."""
    if isinstance(value, int):
        raise ValueError("protobuf: a number where bytes belong")
    return value


def text(value: bytes | int) -> str:
    """Return a field that must be a text."""
    try:
        return content(value).decode()
    except UnicodeDecodeError:
        raise ValueError("protobuf: a name that is not UTF-8") from None
