"""Models for other runtimes: ONNX and torch.export, whole from the image to the labels.

What is exported takes RGB bytes, ``N x 3 x H x W`` uint8, or with bands (`fcn.bands`) float32
``N x (3 + B) x H x W``, RGB in 0..255 and behind it the bands as their files hold them: channel
order and normalisation are inside, so that no runtime has to repeat them. Batch, height and width
are free. With ``labels`` it gives the class of every pixel, ``N x H x W`` (uint8, int32 above 256
classes), else the scores, ``N x C x H x W`` float32. Input and output are named ``image`` and
``labels`` or ``scores``; each further head has an output ``labels_NAME`` or ``scores_NAME``
behind it, and a program of torch.export then gives a dictionary. The file's metadata hold, under
``fcn``, the classes and their colours as JSON, and the bands.
"""

import copy
import json
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from fcn.checkpoint import Model, check_sees_images, versions

METADATA_KEY = "fcn"

_EXAMPLE = (2, 67, 99)  # images, height, width: unlike each other, and no multiples of a stride


class Pixels(nn.Module):
    """What is exported: a network with the input of a model, and with its argmax on request."""

    def __init__(self, model: Model, *, labels: bool) -> None:
        super().__init__()
        self.net, self.input, self.labels = model.net, model.input, labels
        self.sizes = [len(classes) for classes in model.all_classes]
        first = "labels" if labels else "scores"
        self.names = [first, *(f"{first}_{name}" for name in model.further_classes)]

    def forward(self, image: Tensor) -> Tensor | dict[str, Tensor]:
        """Scores or labels of ``N x (3 + B) x H x W``; of several heads, by output."""
        scores: Tensor = self.net(self.input.normalise(image))
        if len(self.sizes) == 1:
            return self._output(scores)
        by_head = torch.split(scores, self.sizes, dim=1)
        return dict(zip(self.names, map(self._output, by_head), strict=True))

    def _output(self, scores: Tensor) -> Tensor:
        dtype = torch.uint8 if scores.shape[1] <= 256 else torch.int32
        return scores.argmax(dim=1).to(dtype) if self.labels else scores


def to_onnx(model: Model, file: str | Path | BinaryIO, *, labels: bool = False) -> None:
    """Write a model as an ONNX file for images of any size, 1 x 1 and larger.

    Args:
        model: a trained model; its network is put into evaluation mode.
        file: Where to.
        labels: Give the class of every pixel in place of scores.

    Raises:
        ModuleNotFoundError: the extra ``export`` is not installed.
        OSError: the file cannot be written.
        ValueError: a model of other channels than three and its bands, or quantised.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"ONNX export needs {' and '.join(missing)}: pip install 'fcn-flows[export]'"
        )
    module, example = _prepared(model, labels)
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        dynamic_shapes={"image": {0: "batch", 2: "height", 3: "width"}},
        input_names=["image"],
        output_names=module.names,
        verbose=False,
    )
    assert program is not None
    exported = program.model_proto
    for output in exported.graph.output:
        _name_sizes(output)
    _forget_sources(exported.graph)
    entry = exported.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, _card(model)
    _write(file, exported.SerializeToString())


def to_torch_export(model: Model, file: str | Path | BinaryIO, *, labels: bool = False) -> None:
    """Write a model as an exported program of PyTorch, for `torch.export.load`.

    Height and width must be above the stride of the deepest map (`FCN.coarsest`: 32, for
    SqueezeNet 16); the program refuses smaller images. The JSON is an extra file named
    ``fcn``. `torch.export.load` unpickles, so it is for files whose origin is known.

    Args:
        model: a trained model; its network is put into evaluation mode.
        file: Where to.
        labels: Give the class of every pixel in place of scores.

    Raises:
        OSError: the file cannot be written.
        ValueError: a model of other channels than three and its bands, or quantised.
    """
    module, example = _prepared(model, labels)
    sizes = {"image": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    program = torch.export.export(module, (example,), dynamic_shapes=sizes)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # names files of the machine that exported
    buffer = BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_KEY: _card(model)})
    _write(file, buffer.getvalue())


def _prepared(model: Model, labels: bool) -> tuple[Pixels, Tensor]:
    """The module to export and images to trace it with."""
    check_sees_images(model)
    if model.ranges is not None:
        raise ValueError("the model is quantised; export the one that it was made from")
    num_images, height, width = _EXAMPLE
    device = next(model.net.parameters()).device
    channels, dtype = model.input.num_channels, torch.float32 if model.input.bands else torch.uint8
    example = torch.zeros(num_images, channels, height, width, dtype=dtype, device=device)
    net = model.net.eval()
    if not all(weight.is_contiguous() for weight in net.parameters()):
        # As a `Predictor` leaves them: torch.export would warn that it finds no complete tensor.
        net = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    return Pixels(replace(model, net=net), labels=labels).eval(), example


def _card(model: Model) -> str:
    """What a user of the file has to know, as JSON."""
    net, bands = model.net, model.input.bands
    further = {name: classes.to_json() for name, classes in model.further_classes.items()}
    return json.dumps(
        {
            "architecture": "FCN",
            "backbone": net.backbone,
            "stride": net.stride,
            "geometry": net.geometry,
            "classes": model.classes.to_json(),
            "ignore_index": model.classes.ignore_index,
            **({"further_classes": further} if further else {}),
            **({"bands": [vars(band) for band in bands]} if bands else {}),
            "facts": {"versions": versions(), **model.facts},
        }
    )


def _name_sizes(output: Any) -> None:
    """Call the output's sizes what they are: the exporter writes formulas of the input's."""
    dims = output.type.tensor_type.shape.dim
    dims[0].dim_param, dims[-2].dim_param, dims[-1].dim_param = "batch", "height", "width"


def _forget_sources(graph: Any) -> None:
    """Drop the stack traces, which name files of the machine that exported."""
    for entry in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output):
        entry.ClearField("metadata_props")


def _write(file: str | Path | BinaryIO, data: bytes) -> None:
    if isinstance(file, str | Path):
        Path(file).write_bytes(data)
    else:
        file.write(data)
