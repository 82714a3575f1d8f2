import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fcn.caffemodel import MAX_LAYERS, looks_like_caffemodel, read_caffemodel
from fcn.errors import CheckpointError
from tests.fcn.caffe_files import MESSAGES, blob, caffemodel

ARRAYS = np.random.default_rng(0)
LAYERS = {
    "conv1_1": [ARRAYS.normal(size=(4, 3, 3, 3)).astype(np.float32), np.arange(4, dtype="f4")],
    "fc6": [ARRAYS.normal(size=(5, 36)).astype(np.float32), np.arange(5, dtype="f4")],
}


@pytest.mark.parametrize("v1", [False, True])
@pytest.mark.parametrize("form", ["shape", "legacy", "unpacked", "double"])
def test_weights_come_out_by_layer(v1: bool, form: str) -> None:
    data = caffemodel(LAYERS, v1=v1, form=form)
    assert looks_like_caffemodel(data)
    found = read_caffemodel(data)
    assert list(found) == ["conv1_1.weight", "conv1_1.bias", "fc6.weight", "fc6.bias"]
    for name, (weight, bias) in LAYERS.items():
        for kind, array in (("weight", weight), ("bias", bias)):
            tensor = found[f"{name}.{kind}"]
            legacy = (*[1] * (4 - array.ndim), *array.shape)
            assert tensor.shape == (legacy if form == "legacy" else array.shape)
            assert torch.equal(tensor.reshape(array.shape), torch.from_numpy(array))


def test_every_truncation_is_an_error_or_fewer_layers() -> None:
    data = caffemodel(LAYERS)
    whole = read_caffemodel(data)
    for end in range(len(data)):
        try:
            found = read_caffemodel(data[:end])
        except CheckpointError:
            continue
        last = data.index(b"relu_fc6") - 5  # where the last layer begins, which has no weights
        assert found.keys() < whole.keys() or end >= last


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_files_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    data = bytearray(caffemodel(LAYERS))
    for place, value in changes:
        data[place % len(data)] = value
    try:
        found = read_caffemodel(bytes(data))
    except CheckpointError:
        return
    assert sum(tensor.numel() for tensor in found.values()) * 4 <= len(data)


def layer(name: str, *blobs: bytes) -> bytes:
    net = MESSAGES["Net"]()
    net.layer.add(name=name, blobs=list(blobs))
    return bytes(net.SerializeToString())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no layer with weights"),
        (b"\x0a\x03net", "no layer with weights"),
        (layer("a"), "no layer with weights"),
        (b"\xa0\x06\x01", "a layer has wire type 0, expected 2"),
        (layer("a", b"\x3a\x02\x08\x03\x2a\x04\x00\x00\x00\x00"), "a.weight holds 1 .* is 3"),
        (
            layer("a", b"\x3a\x02\x08\x01\x2a\x03\x00\x00\x00"),
            "3 bytes are no whole count of float",
        ),
        (layer("a", b"\x28\x01"), "a.weight: its data have wire type 0"),
        (layer("a", b"\x0a\x01\x01"), "its shape has wire type 2"),
        (layer("a", b"\x3a\x0b\x08" + b"\xff" * 9 + b"\x01"), "a.weight holds 0 numbers"),
        (
            layer("a", b"\x3a\x0d\x08\x00\x08" + b"\xff" * 9 + b"\x01"),
            "its shape is 0 x 18446744073",
        ),
        (layer("a", b"\x3a\x42\x0a\x40" + b"\x01" * 64), "more than 32 axes"),
        (layer("a", *[blob(np.zeros(1, "f4"))] * 3), "'a' holds 3 blobs"),
        (layer("a", *[blob(np.zeros(1, "f4"))] * 17), "more than 16 blobs"),
        (layer("a", blob(np.zeros(1, "f4"))) * 2, "'a' stands twice"),
        (layer("a") * (MAX_LAYERS + 1), "more than 10,000 layers"),
        (b"\x12\x04\x0a\x02\x0a\x00", "oldest form"),
        (b"\xa2\x06\x03\x0a\x01\xff", "a layer's name is no text"),
        (
            layer("a", blob(np.zeros(1, "f4")) + blob(np.zeros(1, "f4"), "double")),
            "both floats and doubles",
        ),
    ],
)
def test_hostile_files_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read_caffemodel(data)


def test_a_file_of_floats_one_by_one_takes_no_more_than_its_size() -> None:
    array = np.arange(50_000, dtype=np.float32)
    found = read_caffemodel(layer("a", blob(array, "unpacked")))
    assert torch.equal(found["a.weight"], torch.from_numpy(array))
