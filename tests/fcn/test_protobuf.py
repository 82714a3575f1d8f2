import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn.errors import CheckpointError
from fcn.protobuf import BYTES, VARINT, fields, varints


def test_fields_come_in_order_with_their_types() -> None:
    message = memoryview(b"\x08\x96\x01\x12\x02hi\x1d\x00\x00\x80\x3f\x21" + bytes(8))
    found = [(n, k, v if isinstance(v, int) else bytes(v)) for n, k, v in fields(message)]
    assert found == [
        (1, VARINT, 150),
        (2, BYTES, b"hi"),
        (3, 5, b"\x00\x00\x80\x3f"),
        (4, 1, bytes(8)),
    ]


def test_packed_numbers_are_read_to_their_end() -> None:
    assert list(varints(memoryview(b"\x01\x96\x01\x00"))) == [1, 150, 0]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"\x08", "a number without an end at byte 1"),
        (b"\x08" + b"\xff" * 11, "a number without an end at byte 1"),
        (b"\x12\x05hi", "field 2 has 5 bytes, but 2 are left"),
        (b"\x12\xff\xff\xff\xff\xff\xff\xff\xff\x7f", "bytes, but 0 are left"),
        (b"\x1d\x00", "field 3 has 4 bytes, but 1 are left"),
        (b"\x0b\x0c", "field 1 has type 3"),
        (b"\x0f", "field 1 has type 7"),
        (b"\x00\x00", "field number 0 at byte 0"),
    ],
)
def test_what_is_no_message_is_refused(message: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        list(fields(memoryview(message)))


@given(st.binary(max_size=200))
def test_any_bytes_are_fields_within_them_or_an_error(data: bytes) -> None:
    try:
        found = list(fields(memoryview(data)))
    except CheckpointError:
        return
    assert sum(len(v) for _, _, v in found if not isinstance(v, int)) <= len(data)
