"""Caffe's ``.caffemodel`` files: layer names and their blobs, without Caffe.

Source: ``caffe.proto`` of BVLC Caffe, from which the field numbers below are taken. Both forms
of layers are read, that of today and V1 of 2014, and both forms of shapes.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcn.checkpoint import check_names
from fcn.errors import CheckpointError
from fcn.protobuf import BYTES, VARINT, Value, fields, varints

NET_LAYERS_V1, NET_LAYER = 2, 100
LAYER_NAME, LAYER_BLOBS = 1, 7
V1_LAYER_V0, V1_LAYER_NAME, V1_LAYER_BLOBS = 1, 4, 6
BLOB_DATA, BLOB_SHAPE, BLOB_DOUBLE = 5, 7, 8
BLOB_LEGACY = (1, 2, 3, 4)
"""num, channels, height, width: the shape of files before `BlobShape`."""
SHAPE_DIM = 1

MAX_LAYERS = 10_000
MAX_BLOBS = 16
"""Of one layer; a convolution has two, the largest of Caffe's layers nine."""
MAX_AXES = 32
"""The same as Caffe's ``kMaxBlobAxes``."""
MAX_SIDE = 2**31 - 1
"""Of a shape, as in Caffe, whose sizes are ints; a blob without data can claim any."""

_KINDS = ("weight", "bias")

_DTYPES: Mapping[int, np.dtype[Any]] = {
    BLOB_DATA: np.dtype("<f4"),
    BLOB_DOUBLE: np.dtype("<f8"),
}

_FIRST_BYTES = (b"\x0a", b"\x12", b"\x1a", b"\x22", b"\x42", b"\xa2\x06")
"""Keys of a net's fields that a file can begin with: name, layers, inputs, layer."""


def looks_like_caffemodel(data: bytes) -> bool:
    """The bytes begin as a Caffe net does. Caffe's files have no mark of their own."""
    return data.startswith(_FIRST_BYTES)


def read_caffemodel(data: bytes) -> dict[str, Tensor]:
    """Weights of a Caffe net by layer, named as ``conv1_1.weight`` and ``conv1_1.bias``.

    Layers without weights are left out. The memory it takes is in proportion to the file,
    whatever the file claims.

    Raises:
        CheckpointError: The bytes are no Caffe net, are damaged, hold a blob whose shape is
            not that of its data, or a layer twice.
    """
    tensors: dict[str, Tensor] = {}
    layers = 0
    for number, kind, value in fields(memoryview(data)):
        if number not in {NET_LAYERS_V1, NET_LAYER}:
            continue
        layers += 1
        if layers > MAX_LAYERS:
            raise CheckpointError(f"a Caffe net of more than {MAX_LAYERS:,} layers")
        name, blobs = _layer(_bytes(kind, value, "a layer"), v1=number == NET_LAYERS_V1)
        if len(blobs) > len(_KINDS):
            raise CheckpointError(
                f"layer {name!r} holds {len(blobs)} blobs; expected at most a weight and a bias"
            )
        for part, blob in zip(_KINDS, blobs, strict=False):
            key = f"{name}.{part}"
            if key in tensors:
                raise CheckpointError(f"layer {name!r} stands twice in the Caffe net")
            tensors[key] = _blob(blob, key)
    if not tensors:
        raise CheckpointError("not a .caffemodel: no layer with weights was found in it")
    return tensors


def _layer(message: memoryview, *, v1: bool) -> tuple[str, list[memoryview]]:
    """Name and blobs of a layer."""
    name, blobs = "", []
    name_field = V1_LAYER_NAME if v1 else LAYER_NAME
    blobs_field = V1_LAYER_BLOBS if v1 else LAYER_BLOBS
    for number, kind, value in fields(message):
        if number == name_field:
            name = _text(_bytes(kind, value, "a layer's name"))
            check_names([name])
        elif number == blobs_field:
            blobs.append(_bytes(kind, value, f"a blob of layer {name!r}"))
            if len(blobs) > MAX_BLOBS:
                raise CheckpointError(f"layer {name!r} holds more than {MAX_BLOBS} blobs")
        elif v1 and number == V1_LAYER_V0:
            raise CheckpointError(
                "a Caffe net of the oldest form (V0, 2013); write it anew with Caffe's "
                "upgrade_net_proto_binary"
            )
    return name, blobs


def _blob(message: memoryview, key: str) -> Tensor:
    """Float32 tensor of a blob, in the shape that the file gives."""
    shape: list[int] | None = None
    legacy = dict.fromkeys(BLOB_LEGACY, 0)
    data: dict[int, memoryview | bytearray] = {}
    for number, kind, value in fields(message):
        if number == BLOB_SHAPE:
            shape = _dims(_bytes(kind, value, f"the shape of {key}"), key)
        elif number in legacy:
            if not isinstance(value, int):
                raise CheckpointError(f"{key}: its shape has wire type {kind}, not {VARINT}")
            legacy[number] = value
        elif number in _DTYPES:
            # Packed in one field, as Caffe writes them, or in many.
            if isinstance(value, int):
                raise CheckpointError(f"{key}: its data have wire type {kind}, not {BYTES}")
            data[number] = _joined(data[number], value) if number in data else value
    if len(data) > 1:
        raise CheckpointError(f"{key} holds both floats and doubles")
    number, numbers = data.popitem() if data else (BLOB_DATA, b"")
    dtype = _DTYPES[number]
    if len(numbers) % dtype.itemsize:
        raise CheckpointError(f"{key}: {len(numbers):,} bytes are no whole count of {dtype.name}")
    array = np.frombuffer(numbers, dtype)
    shape = list(legacy.values()) if shape is None else shape
    if math.prod(shape) != array.size or max(shape, default=0) > MAX_SIDE:
        raise CheckpointError(
            f"{key} holds {array.size:,} numbers, but its shape is {' x '.join(map(str, shape))}"
        )
    return torch.from_numpy(array.astype(np.float32)).reshape(shape)


def _joined(first: memoryview | bytearray, second: memoryview) -> bytearray:
    if isinstance(first, memoryview):
        first = bytearray(first)
    first += second
    return first


def _dims(message: memoryview, key: str) -> list[int]:
    dims: list[int] = []
    for number, kind, value in fields(message):
        if number != SHAPE_DIM:
            continue
        if isinstance(value, int):
            dims.append(value)
        else:
            dims.extend(varints(_bytes(kind, value, f"the shape of {key}")[: 10 * MAX_AXES]))
        if len(dims) > MAX_AXES:
            raise CheckpointError(f"{key} has more than {MAX_AXES} axes")
    return dims


def _bytes(kind: int, value: Value, what: str) -> memoryview:
    if kind != BYTES or not isinstance(value, memoryview):
        raise CheckpointError(f"not a .caffemodel: {what} has wire type {kind}, expected {BYTES}")
    return value


def _text(data: memoryview) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"not a .caffemodel: a layer's name is no text: {error}") from error
