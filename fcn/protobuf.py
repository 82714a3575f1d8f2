"""The wire format of protocol buffers, as far as reading it safely and writing large fields need.

Source: https://protobuf.dev/programming-guides/encoding/. A message is a row of fields, each
a number, a wire type and a value. Nothing is nested here: the value of a submessage is its
bytes, and whoever knows its schema reads on from there, so that no depth in the file becomes
a depth of calls. Every length is checked against the bytes that are left.
"""

from collections.abc import Iterator, Sequence

from fcn.errors import CheckpointError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types. 3 and 4 begin and end a group, which no schema since 2008 has."""

Value = int | memoryview


def fields(message: memoryview) -> Iterator[tuple[int, int, Value]]:
    """Number, wire type and value of every field, in the order of the file.

    A varint is an int below 2**64; everything else a view of its bytes.

    Raises:
        CheckpointError: The bytes are no message: cut short, a length beyond their end, a
            varint of more than ten bytes, or an unknown wire type.
    """
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if not number:
            raise CheckpointError(f"not a protocol buffer: field number 0 at byte {position - 1}")
        if wire_type == VARINT:
            value, position = _varint(message, position)
            yield number, wire_type, value
            continue
        if wire_type == BYTES:
            length, position = _varint(message, position)
        elif wire_type in {FIXED32, FIXED64}:
            length = 4 if wire_type == FIXED32 else 8
        else:
            raise CheckpointError(f"not a protocol buffer: field {number} has type {wire_type}")
        end = position + length
        if end > len(message):
            raise CheckpointError(
                f"a protocol buffer cut short: field {number} has {length:,} bytes, but "
                f"{len(message) - position:,} are left"
            )
        yield number, wire_type, message[position:end]
        position = end


def varints(packed: memoryview) -> Iterator[int]:
    """The numbers of a packed field.

    Raises:
        CheckpointError: The bytes end within a number.
    """
    position = 0
    while position < len(packed):
        value, position = _varint(packed, position)
        yield value


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A varint and the place after it."""
    value = 0
    for index, byte in enumerate(message[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + index + 1
    raise CheckpointError(f"not a protocol buffer: a number without an end at byte {position:,}")


def field(number: int, parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """A field of bytes, or a message of several fields, for ``b"".join``; nothing is copied."""
    length = sum(memoryview(part).nbytes for part in parts)
    return [_varint_bytes(number << 3 | BYTES) + _varint_bytes(length), *parts]


def _varint_bytes(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])
