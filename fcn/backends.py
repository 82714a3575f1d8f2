"""What runs a network: torch, or on a CPU the faster OpenVINO or ONNX Runtime, where installed.

A *runtime* takes a trained model once, layer by layer (`fcn.layers`), in memory, and computes
the score maps of images of any size. It uses as many threads as torch does at that moment
(``torch.set_num_threads``, ``OMP_NUM_THREADS``). Its scores are torch's within float rounding,
so labels are the same but for ties.

Models that compute with integers (`fcn.quantise`) run here only.
"""

import sys
import threading
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fcn.checkpoint import Model
from fcn.cores import num_cores
from fcn.device import Precision, find_device
from fcn.errors import BackendError
from fcn.layers import to_layers, to_layers_and_weights
from fcn.options import Backend as Backend  # noqa: PLC0414 - others take it from here

RunsOn = Literal["torch", "onnxruntime", "openvino"]
"""What "auto" can stand for."""

Runtime = Callable[[np.ndarray], list[Tensor]]
"""From pixels ``N x H x W x (3 + B)``, of `InputSpec.dtype`, to the network's `FCN.score_maps`."""

EXTRAS: Mapping[str, str] = {"openvino": "openvino", "onnxruntime": "export"}
"""Runtimes, the fastest first (``docs/benchmarks/backends.md``), and the extra to install."""


def find_backend(
    backend: Backend, device: str = "auto", precision: Precision = "auto"
) -> tuple[RunsOn, torch.device]:
    """What runs a network, and where.

    "auto" is torch on a GPU and for half precision, and on a CPU the first of `EXTRAS` that is
    installed, or else torch. The device "auto" is a CPU for a runtime that is named.

    Raises:
        BackendError: a runtime that is not installed or not for this device or precision.
        DeviceError: a device this machine does not have.
        ValueError: an unknown backend.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"unknown backend {backend!r}; known are {', '.join(get_args(Backend))}")
    if backend == "torch":
        return "torch", find_device(device)
    if backend == "auto":
        found = find_device(device)
        on_cpu = found.type == "cpu" and precision in ("auto", "fp32")
        installed: list[RunsOn] = [name for name in EXTRAS if on_cpu and not _missing(name)]  # type: ignore[misc]
        return next(iter(installed), "torch"), found
    if device not in ("auto", "cpu"):
        raise BackendError(
            f"backend {backend!r} runs on a CPU, not on device {device!r}; take device='cpu', or "
            "backend='torch'"
        )
    if missing := _missing(backend):
        raise BackendError(
            f"backend {backend!r} needs {' and '.join(missing)}: "
            f"pip install 'fcn-flows[{EXTRAS[backend]}]', or take backend='torch'"
        )
    if precision not in ("auto", "fp32"):
        raise BackendError(
            f"backend {backend!r} computes in fp32 (or with the integers of a quantised model), "
            f"not in {precision}; take precision='fp32', or backend='torch'"
        )
    return backend, torch.device("cpu")


def make_runtime(model: Model, backend: RunsOn) -> Runtime:
    """A model made ready for a runtime other than torch.

    It may be called from several threads at once. From a thread to which torch gives one core
    (`torch.get_num_threads`) it takes one core, beside what other such threads ask; from
    another it takes all that torch has there. It is made now for the thread that makes it,
    and for the other kind when such a thread first calls; scores are the same bits.

    Memory holds the weights once more for each kind, in the runtime's own order; for ONNX Runtime
    also as a file, for a moment. OpenVINO may go on reading the model's own: they must not change.

    Raises:
        BackendError: the runtime refuses the network.
        ValueError: a layer that no trunk of `fcn.trunks` has.
    """
    made: dict[bool, Runtime] = {}
    making = threading.Lock()

    def find() -> Runtime:
        on_one = torch.get_num_threads() == 1
        with making:
            if on_one not in made:
                made[on_one] = _make(model, backend, on_one=on_one)
            return made[on_one]

    def run(pixels: np.ndarray) -> list[Tensor]:
        return find()(pixels)

    find()
    return run


def _make(model: Model, backend: RunsOn, *, on_one: bool) -> Runtime:
    if backend == "openvino":
        make = partial(_openvino, *to_layers_and_weights(model), on_one=on_one)
    else:
        make = partial(_onnxruntime, to_layers(model))
    try:
        return make()
    except (RuntimeError, ImportError) as error:
        raise BackendError(f"{backend} cannot run {model.net.backbone}: {error}") from error


def _missing(backend: str) -> list[str]:
    return [name for name in (backend, "onnx") if find_spec(name) is None]


_CORE_LOCK = threading.Lock()


@cache
def _openvino_core() -> tuple[Any, Any]:
    """The module, and one core that lives as long as this process.

    The CPU plugin that a core loads gives the calling thread a stack for signal handlers, and
    unmaps it when it goes, which may be in another thread: the next signal that the first one
    hears would end the process (OpenVINO 2026.4, ``SigAltStackSetup`` of its CPU plugin).
    """
    # Importing openvino reports the use to its makers over the network, unless this is absent.
    telemetry = sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # type: ignore[import-untyped]  # noqa: PLC0415

    if telemetry is None:
        del sys.modules["openvino_telemetry"]
    return openvino, openvino.Core()


def _openvino(data: bytes, weights: Mapping[str, np.ndarray], *, on_one: bool) -> Runtime:
    with _CORE_LOCK:
        openvino, core = _openvino_core()
    cores = num_cores()
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16 where the processor has it
        "NUM_STREAMS": cores if on_one else 1,  # images at once
        "INFERENCE_NUM_THREADS": cores if on_one else torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # cores are shared with decoding
    }
    layers = core.read_model(data, b"")
    for parameter in layers.get_parameters():
        name = parameter.get_friendly_name()
        if name in weights:
            constant = openvino.op.Constant(weights[name], shared_memory=True)
            for target in parameter.output(0).get_target_inputs():
                target.replace_source_output(constant.output(0))
            layers.remove_parameter(parameter)
    compiled = core.compile_model(layers, "CPU", settings)
    of_thread = threading.local()

    def run(pixels: np.ndarray) -> list[Tensor]:
        if not hasattr(of_thread, "request"):
            of_thread.request = compiled.create_infer_request()
        results = of_thread.request.infer([pixels], share_inputs=True)
        return [torch.from_numpy(scores) for scores in results.values()]

    return run


def _onnxruntime(data: bytes) -> Runtime:
    import onnxruntime  # type: ignore[import-untyped]  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # one: the calling thread itself
    options.enable_mem_pattern = False  # plans memory by the size of the first image
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # beside decoding
    session: Any = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])

    def run(pixels: np.ndarray) -> list[Tensor]:
        return [torch.from_numpy(scores) for scores in session.run(None, {"image": pixels})]

    return run
