"""Model files that describe themselves: safetensors with a JSON card, no code inside."""

import contextlib
import json
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_serializer,
)
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn import Conv2d

from fcn.classes import Classes
from fcn.errors import CheckpointError
from fcn.input import InputSpec
from fcn.light import Uninitialised
from fcn.loading import weights_digest
from fcn.model import FCN
from fcn.names import check_head_name
from fcn.trunks import Backbone, Geometry

FORMAT = 1
CARD_KEY = "fcn"

Low = Annotated[float, Field(le=0, allow_inf_nan=False)]
High = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Range = tuple[float, float]
"""What a layer's input ranges over, from a value up to 0 to one from 0."""

MAX_HEADER_BYTES = 100_000_000
"""Limit on a safetensors header; the same as in the safetensors library."""

MAX_NAME = 200
"""Characters of a weight's name; the longest of a trunk of `fcn.trunks` has 50."""


@dataclass
class Model:
    """A network with everything needed to use it.

    Attributes:
        net: The network.
        classes: Names and colours of its scores' channels; of several heads, the first one's.
        input: What its images must be turned into.
        facts: How it came to be: data set digest, configuration, scores, versions.
        further_classes: The classes of the other heads, by the names that the network has for
            them. What has no name is everywhere of the first head.
        ranges: Of a model that computes with integers (`fcn.quantise`), what the inputs of its
            convolutions range over, by the name of the layer; else None.

    Raises:
        ValueError: bands, and a network of another number of channels.
        ValueError: classes that are not those of the network's heads, by name and number, or
            that have another ``ignore_index`` than the first head's; a further head that has
            no proper name (`fcn.names.check_head_name`).
    """

    net: FCN
    classes: Classes
    input: InputSpec
    facts: dict[str, Any] = field(default_factory=dict)
    further_classes: Mapping[str, Classes] = field(default_factory=dict)
    ranges: Mapping[str, Range] | None = None

    def __post_init__(self) -> None:
        if self.input.bands and self.net.in_channels != self.input.num_channels:
            raise ValueError(
                f"the images have {self.input.num_channels} channels, of them bands "
                f"{', '.join(b.name for b in self.input.bands)}; the network sees "
                f"{self.net.in_channels}"
            )
        if self.net.heads is None and not self.further_classes:
            return
        first, *further = self.net.heads or {"": self.net.num_classes}
        sizes = dict(zip([first, *self.further_classes], map(len, self.all_classes), strict=True))
        if sizes != self.net.heads or list(self.further_classes) != further:
            raise ValueError(f"classes are given for {sizes}, the network's heads {self.net.heads}")
        for name in further:
            check_head_name(name)
        if len({classes.ignore_index for classes in self.all_classes}) > 1:
            raise ValueError("the classes of all heads must have the same ignore_index")

    @property
    def all_classes(self) -> list[Classes]:
        """The classes of every head, in the order of the scores' channels."""
        return [self.classes, *self.further_classes.values()]


class _Card(BaseModel):
    """The JSON of a model file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1]
    architecture: Literal["FCN"]
    backbone: Backbone
    stride: int
    geometry: Geometry
    learnable_upsampling: bool
    in_channels: int = 3
    at_once: bool = False
    heads: dict[str, int] | None = None
    modalities: tuple[int, ...] | None = Field(None, exclude_if=lambda given: given is None)
    classes: list[dict[str, Any]] = Field(min_length=1, max_length=65_535)
    ignore_index: int
    input: InputSpec
    facts: dict[str, Any]
    further_classes: dict[str, list[dict[str, Any]]] = Field({}, exclude_if=lambda given: not given)
    sha256: str | None = None
    ranges: dict[str, tuple[Low, High]] | None = Field(None, exclude_if=lambda given: given is None)

    @field_serializer("input", mode="wrap")
    def _without_no_bands(
        self, given: InputSpec, serialise: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        """Of a network of RGB images nothing is said of bands, as in files of before."""
        found: dict[str, Any] = serialise(given)
        return found if given.bands else {k: v for k, v in found.items() if k != "bands"}


def to_bytes(model: Model) -> bytes:
    """The model as the bytes of a safetensors file."""
    net = model.net
    card = _Card(
        format=FORMAT,
        architecture="FCN",
        backbone=net.backbone,
        stride=net.stride,
        geometry=net.geometry,
        learnable_upsampling=net.learnable_upsampling,
        in_channels=net.in_channels,
        at_once=net.at_once,
        heads=net.heads,
        modalities=net.modalities,
        classes=model.classes.to_json(),
        ignore_index=model.classes.ignore_index,
        input=model.input,
        facts={"versions": versions(), **model.facts},
        further_classes={name: c.to_json() for name, c in model.further_classes.items()},
        ranges=None if model.ranges is None else dict(model.ranges),
    )
    tensors = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    card = card.model_copy(update={"sha256": weights_digest(save_tensors(tensors))})
    return save_tensors(tensors, {CARD_KEY: card.model_dump_json()})


def save(model: Model, file: str | Path | BinaryIO) -> None:
    """Write a model file that `fcn.load` reads."""
    data = to_bytes(model)
    if isinstance(file, str | Path):
        Path(file).write_bytes(data)
    else:
        file.write(data)


def model_of(data: bytes, digest: Future[str]) -> Model:
    """The model of a file's bytes (`fcn.loading.load`), whose `weights_digest` is on its way.

    Raises:
        CheckpointError: as `load` does.
    """
    tensors, metadata = read_safetensors(data)
    card = _read_card(metadata)
    try:
        classes = Classes.from_json(card.classes, card.ignore_index)
        further = {
            name: Classes.from_json(rows, card.ignore_index)
            for name, rows in card.further_classes.items()
        }
        with torch.device("meta"), Uninitialised():
            net = FCN(
                card.backbone,
                sum(map(len, (classes, *further.values()))),
                card.stride,
                card.geometry,
                learnable_upsampling=card.learnable_upsampling,
                in_channels=card.in_channels,
                at_once=card.at_once,
                heads=card.heads,
                modalities=card.modalities,
            )
        model = Model(
            net,
            classes,
            card.input,
            card.facts,
            further_classes=further,
            ranges=card.ranges,
        )
    except (ValueError, KeyError, TypeError, RuntimeError) as error:  # torch's, of sizes too large
        raise CheckpointError(f"the model card cannot be built: {error}") from error
    check_fit(net, tensors)
    if unknown := sorted(card.ranges.keys() - _convolutions(net) if card.ranges else ()):
        raise CheckpointError(
            f"the model card has a range for {unknown[0]!r}, no convolution of {net.backbone}"
        )
    if card.sha256 not in (None, digest.result()):
        raise CheckpointError(
            "the weights are not those that were saved: their SHA-256 differs from the one on the "
            "model card; copy the file again, or train again"
        )
    net.load_state_dict(tensors, assign=True)
    net.eval()
    return model


def _convolutions(net: FCN) -> set[str]:
    return {name for name, layer in net.named_modules() if isinstance(layer, Conv2d)}


def check_fit(net: FCN, tensors: Mapping[str, Tensor]) -> None:
    """Check that weights have the very names, shapes and dtypes of a network's.

    Raises:
        CheckpointError: a weight is missing, unknown, or of another shape or dtype.
    """
    own = net.state_dict()
    expected = {name: tensor.shape for name, tensor in own.items()}
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if expected != found:
        wrong = sorted(n for n in expected.keys() | found if expected.get(n) != found.get(n))
        first = wrong[0]
        raise CheckpointError(
            f"{len(wrong)} of {len(expected)} weights do not fit {net.backbone}: {first} is "
            f"{shape_text(found.get(first))}, expected {shape_text(expected.get(first))}"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != own[name].dtype:
            raise CheckpointError(f"{name} holds {tensor.dtype}, expected {own[name].dtype}")


def is_safetensors(data: bytes) -> bool:
    """The bytes begin as a safetensors file does: a length within them, and JSON."""
    return int.from_bytes(data[:8], "little") + 8 <= len(data) and data[8:9] == b"{"


def read_safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        CheckpointError: The bytes are no safetensors file, or a damaged one.
    """
    try:
        (size,) = struct.unpack_from("<Q", data)
        if size > MAX_HEADER_BYTES:
            raise CheckpointError(f"not a safetensors file: its header would be {size:,} bytes")
        header = json.loads(data[8 : 8 + size])
        tensors, metadata = load_tensors(data), dict(header.get("__metadata__") or {})
    except (struct.error, ValueError, AttributeError, SafetensorError, RecursionError) as error:
        raise CheckpointError(f"not a readable safetensors file: {str(error)[:200]}") from error
    check_names(tensors)
    return tensors, metadata


def check_names(names: Iterable[object]) -> None:
    """Refuse names of weights that no message could show: a file may hold any.

    Raises:
        CheckpointError: a name of more than `MAX_NAME` characters.
    """
    for name in names:
        if isinstance(name, str) and len(name) > MAX_NAME:
            raise CheckpointError(
                f"a name of {len(name):,} characters, {name[:40]!r} …; no weight has one above "
                f"{MAX_NAME}"
            )


def versions() -> dict[str, str]:
    """Versions of what decides a network's numbers; of what is not installed, none."""
    found = {}
    for name in ("fcn-flows", "torch", "torchvision"):
        with contextlib.suppress(PackageNotFoundError):  # run from a folder that is on the path
            found[name] = version(name)
    return found


def _read_card(metadata: Mapping[str, str]) -> _Card:
    if CARD_KEY not in metadata:
        raise CheckpointError(
            "a safetensors file without a model card; expected one written by fcn.save"
        )
    try:
        return _Card.model_validate_json(metadata[CARD_KEY])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"the model card is not valid: {place}: {first['msg']}") from error


def check_sees_images(model: Model) -> None:
    """Find out whether a model is one of images: RGB, with the bands that its input names.

    Raises:
        ValueError: a model of another number of channels.
    """
    if model.net.in_channels != model.input.num_channels:
        raise ValueError(
            f"images are RGB, but the model sees {model.net.in_channels} channels and names no "
            "bands; give its InputSpec bands, or call model.net on tensors"
        )


def shape_text(shape: torch.Size | None) -> str:
    """A shape as messages give it, ``64 x 3 x 3 x 3``; "absent" for none."""
    return "absent" if shape is None else " x ".join(map(str, shape)) or "a single number"
