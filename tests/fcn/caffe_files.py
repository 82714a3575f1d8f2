"""Writes ``.caffemodel`` files with Google's protocol buffers, from a schema stated here anew.

``blobs`` are declared as bytes, and the data of large blobs too: on the wire a submessage, a
packed field and bytes are the same, and Google's encoder takes bytes without a loop.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

Layers = Mapping[str, Sequence[np.ndarray]]

_INT32, _INT64, _FLOAT, _DOUBLE, _STRING, _BYTES, _MESSAGE = 5, 3, 2, 1, 9, 12, 11

_SCHEMA = {
    "Shape": [("dim", 1, _INT64, True)],
    "Blob": [
        ("num", 1, _INT32, False),
        ("channels", 2, _INT32, False),
        ("height", 3, _INT32, False),
        ("width", 4, _INT32, False),
        ("data", 5, _FLOAT, True),
        ("diff", 6, _FLOAT, True),
        ("shape", 7, "Shape", False),
        ("double_data", 8, _DOUBLE, True),
    ],
    "UnpackedBlob": [("data", 5, _FLOAT, None), ("shape", 7, "Shape", False)],
    "LargeBlob": [("data", 5, _BYTES, False), ("shape", 7, "Shape", False)],
    "Layer": [
        ("name", 1, _STRING, False),
        ("type", 2, _STRING, False),
        ("bottom", 3, _STRING, None),
        ("top", 4, _STRING, None),
        ("blobs", 7, _BYTES, None),
    ],
    "V1Layer": [
        ("bottom", 2, _STRING, None),
        ("top", 3, _STRING, None),
        ("name", 4, _STRING, False),
        ("type", 5, _INT32, False),
        ("blobs", 6, _BYTES, None),
    ],
    "Net": [
        ("name", 1, _STRING, False),
        ("layers", 2, "V1Layer", None),
        ("input", 3, _STRING, None),
        ("input_dim", 4, _INT32, None),
        ("layer", 100, "Layer", None),
    ],
}
"""Field name, number, type and whether it is repeated: False, None (unpacked) or True (packed)."""


def _messages() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(
        name="caffe_files.proto", package="caffe_files", syntax="proto2"
    )
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, repeated in fields:
            field = message.field.add(name=field_name, number=number)
            field.label = field.LABEL_OPTIONAL if repeated is False else field.LABEL_REPEATED
            if isinstance(kind, str):
                field.type, field.type_name = _MESSAGE, f".caffe_files.{kind}"
            else:
                field.type = kind
            if repeated:
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"caffe_files.{name}"))
        for name in _SCHEMA
    }


MESSAGES = _messages()


def blob(array: np.ndarray, form: str = "shape") -> bytes:
    """A blob in one of the forms that Caffe's files have: shape, legacy, unpacked, double."""
    if form == "legacy":
        four = [1] * (4 - array.ndim) + list(array.shape)
        sides = dict(zip(("num", "channels", "height", "width"), four, strict=True))
        return MESSAGES["Blob"](data=array.ravel().tolist(), **sides).SerializeToString()
    shape = MESSAGES["Shape"](dim=array.shape)
    if form == "unpacked":
        return MESSAGES["UnpackedBlob"](data=array.ravel(), shape=shape).SerializeToString()
    if form == "double":
        return MESSAGES["Blob"](double_data=array.ravel(), shape=shape).SerializeToString()
    if array.size > 100_000:
        return MESSAGES["LargeBlob"](data=array.tobytes(), shape=shape).SerializeToString()
    return MESSAGES["Blob"](data=array.ravel(), shape=shape).SerializeToString()


def caffemodel(layers: Layers, *, v1: bool = False, form: str = "shape") -> bytes:
    """The bytes of a net with these layers and blobs, and layers without blobs between."""
    net = MESSAGES["Net"](name="net", input=["data"], input_dim=[1, 3, 8, 8])
    for name, blobs in layers.items():
        data = [blob(array, form) for array in blobs]
        if v1:
            net.layers.add(name=name, type=4, bottom=["data"], top=[name], blobs=data)
            net.layers.add(name=f"relu_{name}", type=18, bottom=[name], top=[name])
        else:
            net.layer.add(name=name, type="Convolution", bottom=["data"], top=[name], blobs=data)
            net.layer.add(name=f"relu_{name}", type="ReLU", bottom=[name], top=[name])
    return bytes(net.SerializeToString())
